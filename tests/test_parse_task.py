"""`rit train parse`: runs of parsers, from trees in files to trees of other sentences."""

from __future__ import annotations

from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_parser import sentences

import ritornello as rit
from ritornello import processor
from ritornello.data.brackets import format_trees
from ritornello.errors import ArgumentError, CellError, DataError, RunError
from ritornello.models import parser
from ritornello.models.merging import chart_search
from ritornello.models.parser import branching
from ritornello.tasks import parse, parse_config, parse_run
from ritornello.tasks.parse_run import short
from ritornello.tasks.treebank import Shuffled
from ritornello.training.files import read_tensors
from ritornello.training.run import Run

SMALL: dict[str, Any] = {
    "labelled": False, "hidden": 12, "embedding": 8, "encoder": 8, "dropout": 0.0, "batch": 25, "lr": 0.02,
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("trees")
    for part, count, seed in (("train", 120, 1), ("valid", 40, 2), ("test", 40, 3)):
        (folder / f"{part}.txt").write_text("\n".join(sentences(count, seed)))
    return {part: str(folder / f"{part}.txt") for part in ("train", "valid", "test")}


@pytest.fixture(scope="module")
def run(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> parse.ParserRun:
    return parse.train(tmp_path_factory.mktemp("runs") / "run", **files, **SMALL, epochs=6, evaluations=2)


def test_a_run_learns_and_is_scored_beside_trees_that_know_nothing(run: parse.ParserRun, files: dict[str, str]) -> None:
    found = run.evaluate("test")
    assert found["f1"] > max(found["right"], found["left"], found["balanced"]) + 0.2
    assert found["sentences"] == 40
    assert run.parts() == ["train", "valid", "test"]
    assert run.evaluate(files["test"]) == found


def test_the_weights_that_are_kept_are_those_with_the_best_f1(files: dict[str, str], tmp_path: Path) -> None:
    run = parse.train(tmp_path / "run", **files, **SMALL, epochs=3, evaluations=9)
    rows = run.run.metrics()
    best = max(rows, key=lambda row: row["valid_f1"])
    assert min(row["valid_f1"] for row in rows) < best["valid_f1"]
    assert read_tensors(run.run.model_file)[1]["step"] == best["step"]
    assert run.evaluate("valid")["f1"] == pytest.approx(best["valid_f1"])


def test_the_three_baselines_are_of_their_names(run: parse.ParserRun, tmp_path: Path) -> None:
    (tmp_path / "left.txt").write_text("(((a b) c) d)\n")
    found = run.evaluate(tmp_path / "left.txt")
    assert (found["left"], found["right"], found["balanced"]) == (1.0, 0.0, 0.5)


def test_sentences_in_pieces_are_scored_as_together(run: parse.ParserRun, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = parse.ParseExperiment()
    task = experiment.task(run.run, run.vocabulary)
    text = "\n".join(sentence.replace("(", "").replace(")", "") for sentence in sentences(9, 7))
    together = run.evaluate("valid"), run.predict(text), task.evaluate(run.model)
    monkeypatch.setattr(parse_run, "SPANS", 1)
    assert run.evaluate("valid") == together[0]
    assert run.predict(text) == together[1]
    assert task.evaluate(run.model) == pytest.approx(together[2], rel=1e-5)


def test_losses_are_means_over_sentences(run: parse.ParserRun) -> None:
    task = parse.ParseExperiment().task(run.run, run.vocabulary)
    task.valid = task.train
    everything = np.arange(len(task.train.sizes))
    with torch.no_grad():
        loss = float(task.loss(run.model.eval(), task.some(everything), None)[0])
    assert loss > 0
    assert task.evaluate(run.model)["valid_loss"] == pytest.approx(loss, rel=1e-5)


def test_width_and_margin_reach_the_search(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, float]] = []

    def watched(*given: Any, width: int, penalty: float = 0.0, **options: Any) -> Any:
        seen.append((width, penalty))
        return chart_search(*given, width=width, penalty=penalty, **options)

    monkeypatch.setattr(parser, "chart_search", watched)
    run = parse.train(tmp_path / "run", **files, **SMALL, steps=2, evaluations=1, width=3, margin=0.25)
    assert {width for width, _ in seen} == {3}
    assert {penalty for _, penalty in seen} == {0.25, 0.0}
    seen.clear()
    run.predict("red cat sees old dog")
    assert seen == [(3, 0.0)]


@pytest.mark.parametrize(
    ("isa", "told"),
    [("avx2", ["This processor has no instructions for bfloat16, so that float32 is faster."]), ("avx512bf16", [])],
)
def test_a_parser_trains_in_bfloat16(
    isa: str,
    told: list[str],
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(processor, "instruction_set", lambda: isa)
    run = parse.train(tmp_path / "run", **files, **SMALL, steps=4, evaluations=1, precision="bfloat16")
    assert caplog.messages == told
    trees, x = branching([3, 2], "left"), torch.randn(5, run.model.unfold.input_size)
    with torch.autocast("cpu", torch.bfloat16):
        assert run.model(trees, x).dtype == torch.float32


def test_every_epoch_has_an_order_of_its_own_and_so_has_every_seed() -> None:
    def orders(seed: int, epoch: int, start: int = 0) -> list[list[int]]:
        shuffled = Shuffled(10, 4, seed)
        shuffled.some = np.ndarray.tolist  # type: ignore[method-assign]
        return list(shuffled.batches(epoch, start))

    for seed, epoch in product((1, 2), (0, 1)):
        batches = orders(seed, epoch)
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert sorted(chain(*batches)) == list(range(10))
        assert orders(seed, epoch, 1) == batches[1:]
    assert orders(1, 0) == orders(1, 0)
    assert orders(1, 0) != orders(1, 1)
    assert orders(1, 0) != orders(2, 0)


def test_dropout_is_that_of_the_option(files: dict[str, str], tmp_path: Path) -> None:
    run = parse.train(tmp_path / "run", **files, **{**SMALL, "dropout": 0.5}, steps=1, evaluations=1)
    assert run.model.dropout.share == 0.5


def test_predictions_keep_the_words_and_are_the_same_once_loaded(run: parse.ParserRun) -> None:
    text = "red cat sees old dog\n\nnobody ( likes ) trees\nbig"
    found = run.predict(text)
    words = [line.replace("(", " ").replace(")", " ").split() for line in found]
    assert words == [["red", "cat", "sees", "old", "dog"], ["nobody", "-LRB-", "likes", "-RRB-", "trees"], ["big"]]
    assert found[0].count("(") == 4
    again = rit.load(run.run.path)
    assert isinstance(again, parse.ParserRun)
    assert again.predict(text) == found


def test_going_on_is_as_if_it_had_not_stopped(files: dict[str, str], tmp_path: Path) -> None:
    options = {**files, **SMALL, "dropout": 0.3, "steps": 8, "evaluations": 4, "search": "greedy"}
    whole = parse.train(tmp_path / "whole", **options)

    class Stop(Exception):
        pass

    class Watch:
        def preparing(self, *_: Any) -> None: ...
        def update(self, *_: Any) -> None: ...
        def evaluated(self, row: dict[str, Any], best: bool) -> None:
            if row["step"] == 4:
                raise Stop

    with pytest.raises(Stop):
        parse.train(tmp_path / "parts", watch=Watch(), **options)  # type: ignore[arg-type]
    parts = parse.resume(tmp_path / "parts")
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [row["valid_f1"] for row in parts.run.metrics()] == [row["valid_f1"] for row in whole.run.metrics()]
    with pytest.raises(ArgumentError, match=r"search is 'greedy' in .* and cannot become 'chart'; leave it out"):
        parse.resume(tmp_path / "parts", given={"search": "chart"})


def test_sentences_of_two_to_most_words_become_plain_binary_trees(tmp_path: Path) -> None:
    """Chains of only children collapse; what is too short or too long is left out."""
    (tmp_path / "trees.txt").write_text(
        "(S a b c)\n(S (VP (V go) (ADV (RB away))))\n(S a)\n(S (NP (N p) (N q)) (VP (V r) (V s)))\n(S v w x y z)"
    )
    trees = short([tmp_path / "trees.txt"], parse_config.TreebankConfig(most=4))
    assert format_trees(trees) == ["(a (b c))", "(go away)", "((p q) (r s))"]
    assert trees.label_names == ()


@pytest.mark.parametrize(("least", "known"), [(1, ("<unk>", "the", "cat", "dog")), (2, ("<unk>", "the"))])
def test_words_that_are_rarer_than_least_are_unknown(least: int, known: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "trees.txt"
    path.write_text("(the cat)\n(the dog)")
    run = parse.train(tmp_path / "run", train=str(path), valid=str(path), least=least, steps=1, **SMALL)
    assert run.vocabulary.names == known


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"valid": ()}, ArgumentError, "There are no trees to be judged by: name files of them with --valid"),
        ({"search": "chat"}, ArgumentError, "Unknown search 'chat': did you mean chart"),
        ({"most": 1}, ArgumentError, "most must be at least 2, not 1"),
        ({"margin": float("nan")}, ArgumentError, "margin must be 0 or greater and finite, not nan"),
        ({"test": 5}, ArgumentError, "test must be a path or several, not 5"),
        ({"optimiser": "sgd", "lr": 1e18, "clip_norm": 0.0, "steps": 5}, RunError, "no number any more|The loss is"),
        ({"cell": "tree-lstm(slots=3)"}, ArgumentError, "A parser merges two neighbours; TreeLSTM has 3 slots"),
        (
            {"cell": "peephole"},
            CellError,
            "PeepholeLSTM cannot run over 2 predecessors|PeepholeLSTM is a cell for chains",
        ),
        ({"labelled": True}, DataError, "line 1, column"),
        ({"most": 2}, DataError, "no sentence has 2 to 2 words; give others, or a larger --most"),
        ({"treshold": 1}, ArgumentError, "Unknown option 'treshold'"),
    ],
)
def test_messages(options: dict[str, Any], error: type, message: str, files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        parse.train(tmp_path / "run", **{**files, **SMALL, "steps": 1, **options})
    if error is not RunError:  # which comes in training
        assert not list(tmp_path.iterdir())  # nothing half-made is left


def test_the_options_know_the_searches_that_there_are() -> None:
    assert parse_config.SEARCHES == parser.SEARCHES


def test_other_runs_and_empty_text(run: parse.ParserRun, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="text: there is no word to put into brackets"):
        run.predict(" \n")
    with pytest.raises(DataError, match="text, line 2, is in brackets already; a parser takes its words alone"):
        run.predict("not a tree\n (not (a tree))")
    assert run.predict("(the) cat (sees)") == run.predict("-LRB-the-RRB- cat -LRB-sees-RRB-")
    assert run.predict("-LRB- cat\u00a0flap -RRB-") != run.predict("-LRB- cat flap -RRB-")
    assert "cat\u00a0flap" in run.predict("the cat\u00a0flap")[0]
    assert run.answer("a a b")[0].word_counts() == {"a": 2, "b": 1}
    with Run.prepare(tmp_path / "other", "language-model", {}):
        pass
    with pytest.raises(RunError, match="holds the task 'language-model'; expected 'parse'"):
        parse.load(tmp_path / "other")
