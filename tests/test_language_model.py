"""The language model, drawing from it and scoring with it, against definitions that are slow and written out."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close
from hypothesis import assume, example, given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

import ritornello as rit
from ritornello.data.corpus import Corpus, prepare
from ritornello.errors import ArgumentError, DataError, RunError
from ritornello.models import LanguageModel, generate, narrow, scoring
from ritornello.models.predictor import Predictor, reader
from ritornello.models.scoring import scores, stream_nats, window_nats
from ritornello.tasks.language_model import LanguageModelTask, train
from ritornello.training.files import read_tensors, weights, write_tensors

SIZES = {"vocabulary": 5, "cell": rit.LSTM, "embedding": 6, "hidden": 4}


class TestModel:
    def test_shapes(self):
        model = LanguageModel(**SIZES, layers=2)
        logits, state = model(torch.zeros(7, 3, dtype=torch.long))
        assert logits.shape == (7, 3, 5)
        assert [[tuple(field.shape) for field in layer] for layer in state] == [[(3, 4), (3, 4)]] * 2

    def test_a_state_goes_on_where_the_text_was_left(self):
        model = LanguageModel(**SIZES, layers=2).double()
        text = torch.randint(5, (9, 2))
        whole, last = model(text)
        first, state = model(text[:4])
        second, state = model(text[4:], state)
        assert_close(torch.cat([first, second]), whole)
        assert_close(state, last)

    def test_the_equations(self):
        model = LanguageModel(**SIZES).double()
        text = torch.randint(5, (6, 1))
        outputs, _ = model.stack(model.embed.weight[text])
        assert_close(model(text)[0], outputs @ model.output.weight.T + model.output.bias)

    def test_advance_gives_the_log_probabilities_of_forward_and_no_graph(self):
        model = LanguageModel(**SIZES)
        text = torch.randint(5, (4, 3))
        expected = model(text)[0].log_softmax(-1)
        state = None
        for step, tokens in enumerate(text):
            log_p, state = model.advance(tokens, state)
            assert not log_p.requires_grad
            assert_close(log_p, expected[step])

    @pytest.mark.parametrize(
        ("embedding", "hidden", "tied", "shared"),
        [(4, 4, True, True), (4, 4, False, False), (6, 4, True, False), (3, 4, True, False)],
    )
    def test_output_and_embedding_share_a_tensor_only_where_sizes_allow(self, embedding, hidden, tied, shared):
        model = LanguageModel(5, rit.GRU, embedding=embedding, hidden=hidden, tied=tied)
        assert model.tied == shared == (model.output.weight is model.embed.weight)

    def test_a_shared_tensor_learns_from_both_of_its_places(self):
        torch.manual_seed(1)
        tied = LanguageModel(5, rit.GRU, embedding=4, hidden=4).double()
        free = LanguageModel(5, rit.GRU, embedding=4, hidden=4, tied=False).double()
        free.load_state_dict({**tied.state_dict(), "output.weight": tied.embed.weight})
        for model in (tied, free):
            model(torch.tensor([[0], [3]]))[0].logsumexp(-1).sum().backward()
        assert_close(tied.embed.weight.grad, free.embed.weight.grad + free.output.weight.grad)

    def test_a_shared_tensor_is_saved_once(self, tmp_path):
        model = LanguageModel(5, rit.GRU, embedding=4, hidden=4)
        write_tensors(tmp_path / "model.safetensors", weights(model), {})
        with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
            names = list(file.keys())
        assert "embed.weight" in names
        assert "output.weight" not in names

    def test_dropout_is_off_in_evaluation(self):
        model = LanguageModel(**SIZES, layers=2, dropout=0.5)
        text = torch.randint(5, (6, 2))
        assert not torch.equal(model(text)[0], model(text)[0])
        model.eval()
        plain = LanguageModel(**SIZES, layers=2).eval()
        plain.load_state_dict(model.state_dict())
        assert torch.equal(model(text)[0], plain(text)[0])

    def test_dropout_falls_on_embeddings_and_on_what_the_output_layer_reads(self):
        model = LanguageModel(**SIZES, dropout=0.25)
        with torch.no_grad():
            model.embed.weight.fill_(3)
        read = {}
        for name in ("stack", "output"):
            module = model.get_submodule(name)
            module.register_forward_pre_hook(lambda _, inputs, name=name: read.update({name: inputs[0].detach()}))
        model(torch.randint(5, (100, 10)))
        assert read["stack"].unique().tolist() == [0, 4]
        for values in read.values():
            assert 0.2 < float((values == 0).float().mean()) < 0.3

    @pytest.mark.parametrize("tied", [True, False])
    def test_it_begins_with_the_frequencies_of_its_symbols(self, tied):
        model = LanguageModel(5, rit.LSTM, embedding=4, hidden=4, tied=tied)
        with torch.no_grad():
            model.embed.weight.zero_()
            model.output.weight.zero_()
        model.start_at(torch.tensor([9, 0, 3, 3, 0]))
        assert_close(
            model(torch.zeros(2, 3, dtype=torch.long))[0].exp(), (torch.tensor([10, 1, 4, 4, 1]) / 20).expand(2, 3, 5)
        )

    def test_frequencies_of_another_vocabulary_are_refused(self):
        model = LanguageModel(**SIZES)
        before = model.output.bias.clone()
        with pytest.raises(ArgumentError, match=r"counts must have shape \(5,\), one for each symbol .* not \(4,\)"):
            model.start_at(torch.ones(4))
        assert torch.equal(model.output.bias, before)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"vocabulary": 0}, "LanguageModel: vocabulary must be a positive integer, not 0"),
            ({"vocabulary": 2.5}, "LanguageModel: vocabulary must be a positive integer, not 2.5"),
            ({"embedding": -1}, "LanguageModel: embedding must be a positive integer, not -1"),
            ({"hidden": 0}, "LSTM: hidden_size must be a positive integer, not 0"),
            ({"layers": 0}, "layers must be at least 1, not 0"),
            ({"dropout": 1.0}, r"LanguageModel: dropout must lie in 0 to 1 \(exclusive\), not 1.0"),
            ({"dropout": -0.1}, "dropout must lie in 0 to 1"),
            ({"dropout": math.nan}, "dropout must lie in 0 to 1"),
        ],
    )
    def test_errors(self, change, message):
        with pytest.raises(ArgumentError, match=message):
            LanguageModel(**{**SIZES, **change})


class TestHello:
    """The field's smallest example: from "hell" to "ello", and then from "h" to "hello"."""

    @pytest.mark.parametrize("cell", [rit.Elman, rit.GRU, rit.LSTM])
    def test_by_hand(self, cell):
        letters = ["h", "e", "l", "o"]
        text = torch.tensor([letters.index(letter) for letter in "hello"]).unsqueeze(1)
        model = LanguageModel(4, cell, embedding=4, hidden=8)
        optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(60):
            optimiser.zero_grad()
            logits, _ = model(text[:-1])
            F.cross_entropy(logits.flatten(0, 1), text[1:].flatten()).backward()
            optimiser.step()
        drawn = generate(model.advance, [letters.index("h")], length=4, temperature=0)
        assert "h" + "".join(letters[int(symbol)] for symbol in drawn) == "hello"

    def test_by_the_public_calls(self, tmp_path):
        (tmp_path / "hello.txt").write_text("hello")
        options = {"train": tmp_path / "hello.txt", "valid": tmp_path / "hello.txt", "batch": 1, "window": 4}
        model = train(tmp_path / "run", **options, hidden=8, embedding=4, steps=100, lr=0.05, warmup=0)
        assert sorted(model.tokenizer.symbols) == ["e", "h", "l", "o"]
        assert model.sample("h", length=4, temperature=0) == "hello"

    def test_training_begins_with_the_frequencies_of_its_part(self, tmp_path):
        (tmp_path / "text.txt").write_text("ab" * 30 + "aaac" * 10)
        (tmp_path / "other.txt").write_text("dddd")
        options = {"train": tmp_path / "text.txt", "valid": tmp_path / "other.txt", "batch": 2, "window": 4}
        model = train(tmp_path / "run", **options, steps=1, lr=1e-12)
        found = dict(zip(model.tokenizer.symbols, model.model.output.bias.exp().tolist(), strict=True))
        assert found == pytest.approx({"a": 61 / 104, "b": 31 / 104, "c": 11 / 104, "d": 1 / 104}, rel=1e-5)


def slow_narrow(log_p: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """One row, symbol by symbol, from the definitions in `narrow`'s docstring."""
    symbols = range(len(log_p))
    if temperature == 0:
        likeliest = max(symbols, key=lambda symbol: log_p[symbol])
        return [float(symbol == likeliest) for symbol in symbols]
    heat = [math.exp((value - max(log_p)) / temperature) for value in log_p]
    p = [value / sum(heat) for value in heat]
    ranked = sorted(symbols, key=lambda symbol: (-p[symbol], symbol))
    kept = set(ranked[:top_k] if top_k else ranked)
    reached = 0.0
    for symbol in ranked:
        if top_p < 1 and reached >= top_p:
            kept.discard(symbol)
        reached += p[symbol]
        assume(abs(reached - top_p) > 1e-9 or top_p == 1)  # on the edge rounding decides
    mass = sum(p[symbol] for symbol in kept)
    return [p[symbol] / mass if symbol in kept else 0.0 for symbol in symbols]


WEIGHTS = st.lists(st.integers(0, 6), min_size=5, max_size=5).filter(any)


class TestNarrow:
    @given(
        rows=st.lists(WEIGHTS, min_size=1, max_size=3),
        temperature=st.sampled_from([0.0, 1e-300, 0.01, 0.5, 1.0, 3.0, 1e6]),
        top_k=st.integers(0, 7),
        top_p=st.one_of(st.just(1.0), st.floats(1e-6, 1.0)),
    )
    @example(rows=[[1, 1, 1, 1, 1]], temperature=1.0, top_k=2, top_p=1.0)
    @example(rows=[[1, 1, 1, 1, 1]], temperature=1.0, top_k=0, top_p=0.5)
    @example(rows=[[0, 3, 3, 0, 0]], temperature=0.0, top_k=0, top_p=1.0)
    def test_the_definition(self, rows, temperature, top_k, top_p):
        log_p = torch.tensor(rows, dtype=torch.float64)
        log_p = (log_p / log_p.sum(-1, keepdim=True)).log()
        found = narrow(log_p, temperature, top_k, top_p)
        assert_close(found.sum(-1), torch.ones(len(rows), dtype=torch.float64))
        expected = [slow_narrow(row, temperature, top_k, top_p) for row in log_p.tolist()]
        assert_close(found, torch.tensor(expected, dtype=torch.float64))

    def test_of_equals_the_first_are_kept(self):
        log_p = torch.full((1, 4), 0.25).log()
        assert narrow(log_p, top_k=2).tolist() == [[0.5, 0.5, 0.0, 0.0]]
        assert narrow(log_p, top_p=0.3).tolist() == [[0.5, 0.5, 0.0, 0.0]]
        assert narrow(log_p, temperature=0).tolist() == [[1.0, 0.0, 0.0, 0.0]]
        many = torch.zeros(1, 1024).log_softmax(-1)
        assert narrow(many, top_k=300)[0].nonzero().flatten().tolist() == list(range(300))

    def test_the_coldest_temperature_is_that_of_the_likeliest(self):
        log_p = torch.tensor([[0.2, 0.5, 0.3]]).log()
        assert narrow(log_p, temperature=1e-300).tolist() == narrow(log_p, temperature=0).tolist() == [[0, 1, 0]]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"temperature": -0.5}, "temperature must be 0 or greater, not -0.5"),
            ({"temperature": math.nan}, "temperature must be 0 or greater, not nan"),
            ({"temperature": math.inf}, "temperature must be 0 or greater, not inf"),
            ({"top_k": -1}, r"top_k must be 0 \(all symbols\) or greater, not -1"),
            ({"top_p": 0.0}, r"top_p must lie in 0 \(exclusive\) to 1, not 0.0"),
            ({"top_p": 1.1}, "top_p must lie in 0 .* not 1.1"),
            ({"top_p": math.nan}, "top_p must lie in 0 .* not nan"),
        ],
    )
    def test_errors(self, options, message):
        with pytest.raises(ArgumentError, match=message):
            narrow(torch.zeros(1, 3), **options)


class Chain:
    """Each symbol's distribution depends on the symbol before it alone; the state is what was read."""

    def __init__(self, table: list[list[float]]) -> None:
        self.log_p = torch.tensor(table).log()

    def __call__(self, tokens: Tensor, state: list[list[int]] | None) -> tuple[Tensor, list[list[int]]]:
        self.read = [*(state or []), tokens.tolist()]
        return self.log_p[tokens].clone(), self.read


EVEN = [[0.25] * 4] * 4


def texts(chain: Chain, prompt: list[int] | None = None, **options) -> list[list[int]]:
    """A row for each text."""
    return torch.stack(list(generate(chain, prompt or [0], **options)), 1).tolist()


class TestGenerate:
    def test_the_same_seed_draws_the_same_texts(self):
        drawn = [texts(Chain(EVEN), count=3, length=20, seed=seed) for seed in (5, 5, 6)]
        assert drawn[0] == drawn[1] != drawn[2]
        assert drawn[0][0] != drawn[0][1]

    def test_the_prompt_is_read_by_all_and_then_each_reads_its_own(self):
        chain = Chain(EVEN)
        drawn = texts(chain, [1, 2, 3], count=2, length=4)
        assert chain.read[:3] == [[1, 1], [2, 2], [3, 3]]
        assert chain.read[3:6] == [list(column) for column in zip(*drawn, strict=True)][:3]

    def test_a_sure_chain_is_followed(self):
        cycle = [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
        assert texts(Chain(cycle), length=6) == [[1, 2, 3, 0, 1, 2]]

    def test_a_text_ends_with_the_end_symbol_and_all_with_the_last(self):
        drawn = texts(Chain(EVEN), count=4, length=1000, end=2, seed=3)
        lengths = {text.index(2) + 1 for text in drawn}
        assert len(lengths) > 1
        assert {len(text) for text in drawn} == {max(lengths)}
        assert all(set(text[text.index(2) :]) == {2} for text in drawn)

    def test_length_is_the_most(self):
        assert [len(text) for text in texts(Chain(EVEN), count=2, length=3, end=None)] == [3, 3]
        assert list(generate(Chain(EVEN), [0], length=0)) == []

    @pytest.mark.parametrize("temperature", [0, 1])
    def test_what_is_forbidden_is_never_drawn(self, temperature):
        drawn = texts(Chain([[0.9, 0.05, 0.04, 0.01]] * 4), length=300, forbidden=[0, 2], temperature=temperature)
        assert set(drawn[0]) == ({1} if temperature == 0 else {1, 3})

    @pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.7}, {"forbidden": [1]}])
    def test_frequencies_are_those_of_the_distribution(self, options):
        row, draws = [0.4, 0.3, 0.2, 0.1], 20_000
        (drawn,) = torch.tensor(texts(Chain([row] * 4), count=draws, length=1, seed=7, **options)).T
        log_p = torch.tensor([row]).log()
        log_p[:, options.pop("forbidden", [])] = -math.inf
        expected = narrow(log_p, **options)[0] * draws
        assert surprise(drawn, expected) < 16.3  # of chi-squared with 3 degrees of freedom, 0.1 % lie beyond
        assert surprise(drawn, torch.full((4,), draws / 4)) > 16.3

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"prompt": []}, "The prompt is empty"),
            ({"count": 0}, "count must be at least 1 and length at least 0, not 0 and 3"),
            ({"length": -1}, "count must be at least 1 and length at least 0, not 1 and -1"),
            ({"seed": -1}, r"seed must be 0 or greater and below 2\^63, not -1"),
            ({"seed": 1 << 70}, "seed must be 0 or greater"),
            ({"top_p": 2.0}, "top_p must lie"),
        ],
    )
    def test_errors(self, change, message):
        with pytest.raises(ArgumentError, match=message):
            next(generate(Chain(EVEN), **{"prompt": [0], "length": 3, "count": 1, **change}))


def surprise(drawn: Tensor, expected: Tensor) -> float:
    """Pearson's chi-squared; what cannot be drawn must not have been."""
    found = torch.bincount(drawn, minlength=len(expected)).float()
    possible = expected > 0
    assert not found[~possible].any()
    return float(((found - expected)[possible] ** 2 / expected[possible]).sum())


def reads(text: np.ndarray):
    """What `TokenFile.windows` does, of an array; a window that is not inside fails."""

    def read(starts: np.ndarray, length: int) -> np.ndarray:
        assert all(0 <= start <= start + length <= len(text) for start in starts)
        return np.stack([text[start : start + length] for start in starts])

    return read


@torch.no_grad()
def one_by_one(model: LanguageModel, text: np.ndarray, start: int, stop: int, begin: int) -> float:
    """Nats of the tokens after `start` up to `stop`, in float64, with a state that began to read at `begin`."""
    model = copy.deepcopy(model).double()
    total, state = 0.0, None
    for place in range(begin, stop):
        log_p, state = model(torch.tensor([[int(text[place])]]), state)
        if place >= start:
            total -= float(log_p[0, 0].log_softmax(-1)[int(text[place + 1])])
    return total


def summed(pieces) -> tuple[Tensor, int]:
    nats, counts = zip(*pieces, strict=True)
    return torch.tensor(sum(nats)), sum(counts)


@pytest.fixture(scope="module")
def scored() -> tuple[LanguageModel, np.ndarray]:
    torch.manual_seed(4)
    model = LanguageModel(5, rit.LSTM, embedding=6, hidden=8, layers=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that a token's past matters
    return model, np.random.default_rng(0).integers(5, size=61).astype(np.uint8)


class TestScoring:
    @pytest.mark.parametrize("chunk", [1, 7, 60, 256])
    def test_one_lane_is_one_stream(self, scored, chunk, monkeypatch):
        monkeypatch.setattr(scoring, "CHUNK", chunk)
        model, text = scored
        nats, count = summed(stream_nats(model, reads(text), len(text)))
        assert count == len(text) - 1
        assert_close(nats, torch.tensor(one_by_one(model, text, 0, 60, 0), dtype=torch.float64))

    @pytest.mark.parametrize("lanes", [2, 3, 4, 7, 100])
    @pytest.mark.parametrize("warmup", [3, 10])
    def test_lanes_are_streams_that_are_warmed_up(self, scored, lanes, warmup, monkeypatch):
        monkeypatch.setattr(scoring, "CHUNK", 4)
        model, text = scored
        nats, count = summed(stream_nats(model, reads(text), len(text), lanes=lanes, warmup=warmup))
        lanes = min(lanes, 60 // warmup)
        borders = [*(lane * (60 // lanes) for lane in range(lanes)), 60]
        expected = sum(
            one_by_one(model, text, start, stop, begin=start - warmup if start else 0)
            for start, stop in pairwise(borders)
        )
        assert count == len(text) - 1
        assert_close(nats, torch.tensor(expected, dtype=torch.float64))
        assert abs(expected - one_by_one(model, text, 0, 60, 0)) > 1e-3, "the warm-up makes no difference here"

    def test_a_lane_is_no_shorter_than_its_warm_up(self, scored):
        model, text = scored
        nats, _ = summed(stream_nats(model, reads(text[:60]), 60, lanes=100, warmup=3))
        borders = [*range(0, 57, 3), 59]  # 19 lanes of 3 tokens, and what is left
        parts = [one_by_one(model, text, a, b, begin=max(a - 3, 0)) for a, b in pairwise(borders)]
        assert_close(nats, torch.tensor(sum(parts), dtype=torch.float64))

    @pytest.mark.parametrize("window", [1, 7, 20, 59, 60, 61, 1000])
    def test_windows_know_nothing_of_each_other(self, scored, window):
        model, text = scored
        nats, count = summed(window_nats(model, reads(text), len(text), window))
        expected = sum(
            one_by_one(model, text, start, min(start + window, 60), begin=start) for start in range(0, 60, window)
        )
        assert count == len(text) - 1
        assert_close(nats, torch.tensor(expected, dtype=torch.float64))

    @given(
        tokens=st.integers(2, 300),
        lanes=st.integers(1, 9),
        warmup=st.integers(1, 40),
        chunk=st.integers(1, 50),
        window=st.integers(1, 70),
    )
    def test_every_token_but_the_first_counts_once(self, tokens, lanes, warmup, chunk, window):
        counts = torch.zeros(tokens, dtype=torch.long)

        def count(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
            counts.index_add_(0, targets, torch.ones_like(targets))
            return torch.zeros(targets.shape)

        read = reads(np.arange(tokens))  # so that each target tells its place
        for pieces in (
            stream_nats(Deaf(), read, tokens, lanes=lanes, warmup=warmup),
            window_nats(Deaf(), read, tokens, window),
        ):
            counts.zero_()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(scoring, "CHUNK", chunk)
                patch.setattr(scoring, "F", SimpleNamespace(cross_entropy=count))
                assert summed(pieces)[1] == tokens - 1
            assert counts.tolist() == [0] + [1] * (tokens - 1)

    def test_scores(self):
        found = scores(nats=20.0, predicted=10, tokens=11, characters=22)
        assert found == {
            "loss": 2.0,
            "bits_per_character": pytest.approx(2.0 / math.log(2) * 11 / 22, rel=1e-12),
            "perplexity": pytest.approx(math.exp(2.0), rel=1e-12),
            "tokens": 10,
        }

    def test_a_hopeless_model_has_a_finite_perplexity(self):
        assert math.isfinite(scores(nats=1e6, predicted=1, tokens=2, characters=2)["perplexity"])


class Deaf(nn.Module):
    """Has the face of a language model, and no opinion."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1, 1)

    def forward(self, text: Tensor, state: Tensor | None = None) -> tuple[Tensor, tuple[Tensor]]:
        return torch.zeros(*text.shape, 1), (torch.zeros(text.shape[1], 1),)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """600 characters, each pair of neighbours telling where it stands."""
    folder = tmp_path_factory.mktemp("corpus")
    text = "".join(f"{number:03}" for number in range(200))
    (folder / "text").write_text(text)
    return prepare(folder, "char", folder / "text", folder / "text")


class TestTask:
    @pytest.mark.parametrize(
        ("window", "batch", "shifts"), [(7, 3, True), (16, 5, True), (600, 1, False), (1, 1, True), (64, 599, False)]
    )
    def test_an_epoch_reads_lanes_side_by_side_without_a_gap(self, corpus, window, batch, shifts):
        task = LanguageModelTask(corpus, window=window, batch=batch, seed=1)
        text = corpus.parts["train"].read(0, 600)
        starts = set()
        for epoch in range(6):
            inputs, targets = (torch.cat(parts) for parts in zip(*task.batches(epoch, 0), strict=True))
            assert inputs.shape == targets.shape == (task.lane, batch)
            first = _place(text, torch.cat([inputs[:, 0], targets[-1:, 0]]).tolist())
            starts.add(first)
            for lane in range(batch):
                begin = first + lane * task.lane
                assert inputs[:, lane].tolist() == text[begin : begin + task.lane].tolist()
                assert targets[:, lane].tolist() == text[begin + 1 : begin + 1 + task.lane].tolist()
        spare = 599 - batch * task.lane
        assert spare <= 60 + batch, "an epoch leaves out about a tenth at most"
        assert shifts == (spare >= window) == (len(starts) > 1), "windows fall differently from epoch to epoch"

    def test_windows_are_counted(self, corpus):
        task = LanguageModelTask(corpus, window=7, batch=3, seed=1)
        batches = list(task.batches(0, 0))
        assert len(batches) == task.windows()
        assert [len(inputs) for inputs, _ in batches[:-1]] == [7] * (len(batches) - 1)
        assert 1 <= len(batches[-1][0]) <= 7

    def test_an_epoch_goes_on_from_any_window(self, corpus):
        task = LanguageModelTask(corpus, window=16, batch=5, seed=1)
        for start in range(task.windows() + 1):
            for found, expected in zip(task.batches(2, start), list(task.batches(2, 0))[start:], strict=True):
                assert torch.equal(found[0], expected[0])
                assert torch.equal(found[1], expected[1])

    def test_the_loss_is_the_mean_over_tokens_and_the_state_goes_on(self, corpus):
        task = LanguageModelTask(corpus, window=16, batch=5, seed=1)
        model = LanguageModel(10, rit.GRU, embedding=4, hidden=8)
        first, second = list(task.batches(0, 0))[:2]
        _, carry, tokens = task.loss(model, first, None)
        loss, _, _ = task.loss(model, second, carry)
        logits, _ = model(torch.cat([first[0], second[0]]))
        expected = F.cross_entropy(logits[16:].flatten(0, 1), second[1].flatten())
        assert tokens == 16 * 5
        assert_close(loss, expected)

    def test_the_validation_part_is_scored(self, corpus):
        model = LanguageModel(10, rit.GRU, embedding=4, hidden=8)
        task = LanguageModelTask(corpus, window=16, batch=5, seed=1)
        nats, count = summed(stream_nats(model.eval(), corpus.parts["valid"].windows, 600))
        expected = scores(float(nats), count, 600, 600)
        assert task.evaluate(model) == pytest.approx(
            {f"valid_{name}": value for name, value in expected.items() if name != "tokens"}, rel=1e-6
        )

    def test_a_model_scores_no_more_than_it_is_asked_to(self, corpus):
        model = LanguageModel(10, rit.GRU, embedding=4, hidden=8).eval()
        predictor = Predictor(model, corpus.tokenizer)
        found = predictor.score(corpus.parts["valid"], 600, lanes=1, most=50)
        nats, count = summed(stream_nats(model, corpus.parts["valid"].windows, 50))
        assert found["tokens"] == count == 49
        assert found["loss"] == pytest.approx(float(nats) / 49, rel=1e-6)

    def test_a_text_that_is_too_short_for_so_many_lanes(self, corpus):
        with pytest.raises(DataError, match="training part has 600 tokens; --batch 600 needs at least 601"):
            LanguageModelTask(corpus, window=4, batch=600, seed=1)

    def test_a_damaged_token_is_an_error(self, corpus):
        tokens = SimpleNamespace(path=Path("train.bin"), windows=lambda starts, length: np.array([[3, 200]]))
        read = reader(tokens, corpus.tokenizer)
        with pytest.raises(RunError, match=r"train.bin is damaged: it holds the token 200, .* vocabulary has 10"):
            read(np.array([0]), 2)


def _place(text: np.ndarray, part: list[int]) -> int:
    return bytes(text.tolist()).find(bytes(part))


class TestWeights:
    """What is written is read again, bit by bit; what does not fit is named."""

    def test_round_trip(self, tmp_path):
        tensors = {"a": torch.randn(3, 2).T, "b": torch.zeros((), dtype=torch.bfloat16), "c": torch.zeros(0, 3)}
        write_tensors(tmp_path / "t.safetensors", tensors, {"step": 3, "é": [1.5]})
        found, about = read_tensors(tmp_path / "t.safetensors")
        assert about == {"step": 3, "é": [1.5]}
        assert {name: (t.dtype, t.tolist()) for name, t in found.items()} == {
            name: (t.dtype, t.tolist()) for name, t in tensors.items()
        }
