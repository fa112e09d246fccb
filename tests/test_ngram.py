"""The n-gram model against modified Kneser-Ney written out with dictionaries, and against sums by hand."""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ritornello.errors import ArgumentError, DataError, RunError
from ritornello.models import ngram
from ritornello.models.ngram import NGramModel, discounts

SHAKESPEARE = Path(__file__).parents[2] / "shared/data/tinyshakespeare/input.txt"
TOLERANCE = {"rtol": 0, "atol": 1e-10}


class Oracle:
    """Chen and Goodman's equations, one dictionary per order, nothing shared with the model."""

    def __init__(self, text: list[int], vocabulary_size: int, order: int) -> None:
        self.vocabulary_size, self.order = vocabulary_size, order
        self.counts: dict[int, dict[tuple[int, ...], int]] = {}
        for k in range(1, order + 1):
            occurrences: dict[tuple[int, ...], list[object]] = defaultdict(list)
            for i in range(len(text) - k + 1):
                occurrences[tuple(text[i : i + k])].append(text[i - 1] if i else "the mark before the text")
            self.counts[k] = {
                gram: len(before) if k == order else len(set(before)) for gram, before in occurrences.items()
            }
        self.discounts = {k: self._discounts(list(self.counts[k].values())) for k in self.counts}

    @staticmethod
    def _discounts(counts: list[int]) -> dict[int, Fraction]:
        n = {i: Fraction(counts.count(i)) for i in (1, 2, 3, 4)}
        result = {0: Fraction(0)}
        for i in (1, 2, 3):
            result[i] = Fraction(i, 2)
            if n[1] and n[i]:
                y = n[1] / (n[1] + 2 * n[2])
                estimate = i - (i + 1) * y * n[i + 1] / n[i]
                result[i] = estimate if 0 < estimate < i else result[i]
        return result

    def probability(self, token: int, history: tuple[int, ...]) -> float:
        k = len(history) + 1
        lower = self.probability(token, history[1:]) if history else 1 / self.vocabulary_size
        after = [self.counts[k].get((*history, w), 0) for w in range(self.vocabulary_size)]
        if not sum(after):
            return lower
        d1, d2, d3 = (float(self.discounts[k][i]) for i in (1, 2, 3))
        n1, n2, n3 = after.count(1), after.count(2), sum(count >= 3 for count in after)
        gamma = (d1 * n1 + d2 * n2 + d3 * n3) / sum(after)
        count = after[token]
        discount = float(self.discounts[k][min(count, 3)])
        return max(count - discount, 0) / sum(after) + gamma * lower

    def at(self, text: list[int], position: int) -> float:
        return self.probability(text[position], tuple(text[max(position - self.order + 1, 0) : position]))

    def distribution(self, history: list[int]) -> list[float]:
        recent = tuple(history[max(len(history) - self.order + 1, 0) :])
        return [self.probability(token, recent) for token in range(self.vocabulary_size)]


@st.composite
def problems(draw: st.DrawFn) -> tuple[int, int, list[int], list[int]]:
    """A vocabulary, an order, a text to fit, and another text that may hold tokens the first one lacks."""
    vocabulary_size = draw(st.integers(1, 6))
    tokens = st.integers(0, vocabulary_size - 1)
    fitted = draw(st.lists(tokens, min_size=1, max_size=60))
    return vocabulary_size, draw(st.integers(1, 5)), fitted, draw(st.lists(tokens, max_size=20))


def fit(text: list[int], vocabulary_size: int, order: int) -> NGramModel:
    return NGramModel.fit(np.array(text), vocabulary_size, order)


def chain(length: int = 3000, vocabulary_size: int = 20, seed: int = 0) -> np.ndarray:
    """A Markov chain with a few likely successors for each token."""
    random = np.random.default_rng(seed)
    tokens = [0]
    for _ in range(length - 1):
        tokens.append(int(tokens[-1] * 7 + random.geometric(0.4)) % vocabulary_size)
    return np.array(tokens)


@settings(max_examples=150, deadline=None)
@given(problems())
@example((1, 3, [0], []))
@example((6, 5, [3, 3], [3, 3, 3, 0]))
@example((2, 2, [0, 1] * 30, [1, 1, 0, 0]))
def test_every_probability_is_the_oracle_s(problem: tuple[int, int, list[int], list[int]]) -> None:
    vocabulary_size, order, fitted, other = problem
    model, oracle = fit(fitted, vocabulary_size, order), Oracle(fitted, vocabulary_size, order)
    for text in (fitted, other):
        expected = np.array([oracle.at(text, position) for position in range(len(text))])
        np.testing.assert_allclose(np.exp(-model.nats(np.array(text, np.uint8))), expected, **TOLERANCE)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_every_distribution_is_the_oracle_s_and_sums_to_one(
    problem: tuple[int, int, list[int], list[int]],
) -> None:
    vocabulary_size, order, fitted, other = problem
    model, oracle = fit(fitted, vocabulary_size, order), Oracle(fitted, vocabulary_size, order)
    assert model.size == sum(map(len, oracle.counts.values()))
    for history in ([], fitted, other, fitted[:2], other[:1] + fitted[-2:]):
        distribution = model.distribution(history)
        np.testing.assert_allclose(distribution, oracle.distribution(history), **TOLERANCE)
        assert math.isclose(distribution.sum(), 1, abs_tol=1e-12)
        assert distribution.min() > 0


def test_a_bigram_model_by_hand() -> None:
    # the text 0 1 0; token 0 follows {the mark, 1}, token 1 follows {0}: counts 2 and 1, of 3
    # n1 = n2 = 1: Y = D1 = 1/3; D2 = 2 - 0 is not below 2, so 1; backoff (1 + 1/3) / 3 = 4/9
    # p(0) = (2 - 1) / 3 + 4/9 / 2 = 5/9, p(1) = (1 - 1/3) / 3 + 4/9 / 2 = 4/9
    # both bigrams occur once: D1 = 1 - 0 is not below 1, so 1/2
    # p(1 | 0) = 1/2 + 1/2 4/9 = 13/18, p(0 | 1) = 1/2 + 1/2 5/9 = 7/9
    model = fit([0, 1, 0], vocabulary_size=2, order=2)
    assert discounts(np.array([1, 2])) == [1 / 3, 1, 1.5]
    assert model.size == 4
    np.testing.assert_allclose(model.distribution([]), [5 / 9, 4 / 9], rtol=1e-15)
    np.testing.assert_allclose(model.distribution([0]), [5 / 18, 13 / 18], rtol=1e-15)
    np.testing.assert_allclose(model.distribution([1]), [7 / 9, 2 / 9], rtol=1e-15)
    np.testing.assert_allclose(model.nats(np.array([0, 1, 0])), -np.log([5 / 9, 13 / 18, 7 / 9]), rtol=1e-15)


def test_the_discounts_are_chen_and_goodman_s() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [100, 40, 20, 12, 50])
    y = 100 / 180
    expected = [1 - 2 * y * 40 / 100, 2 - 3 * y * 20 / 40, 3 - 4 * y * 12 / 20]
    np.testing.assert_allclose(discounts(counts), expected, rtol=1e-15)


def test_a_discount_that_cannot_be_estimated_is_half_its_count() -> None:
    assert discounts(np.zeros(0, np.int64)) == [0.5, 1.0, 1.5]
    assert discounts(np.array([7, 8])) == [0.5, 1.0, 1.5]
    # n1 = 2, n2 = 1, n3 = 4: D1 = 1/2 stands, 2 - 3 * 1/2 * 4 is negative
    assert discounts(np.array([1, 1, 2, 3, 3, 3, 3])) == [0.5, 1.0, 1.5]
    # 2 - 3 * 1/2 * 4 / 3 is exactly zero, and 3 - 4 * 1/2 * 6 / 4 too
    assert discounts(np.repeat([1, 2, 3, 4], [6, 3, 4, 6])) == [0.5, 1.0, 1.5]


@pytest.mark.parametrize("order", [1, 2, 4, 7])
def test_nats_are_those_of_the_distributions(order: int) -> None:
    text = chain(400)
    model = NGramModel.fit(text[:300], 20, order)
    nats = model.nats(text[300:], context=text[:300])
    expected = [-np.log(model.distribution(text[:i].tolist())[text[i]]) for i in range(300, 400)]
    np.testing.assert_allclose(nats, expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
def test_blocks_do_not_change_the_nats(order: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = chain(200).astype(np.uint8)
    model = NGramModel.fit(text[:150], 20, order)
    whole = model.nats(text)
    monkeypatch.setattr(ngram, "BLOCK", block)
    np.testing.assert_array_equal(model.nats(text), whole)
    np.testing.assert_array_equal(model.nats(text[90:], context=text[:90]), whole[90:])
    np.testing.assert_array_equal(model.nats(text[2:], context=text[:2]), whole[2:])
    assert model.nats(text[:0]).shape == (0,)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int64])
def test_every_integer_dtype_and_a_memmap_give_one_model(dtype: type[np.generic], tmp_path: Path) -> None:
    text = chain(300)
    text.astype(dtype).tofile(tmp_path / "tokens.bin")
    mapped = np.memmap(tmp_path / "tokens.bin", dtype=dtype, mode="r")
    model, mapped_model = NGramModel.fit(text, 20, 3), NGramModel.fit(mapped, 20, 3)
    nats = mapped_model.nats(mapped, context=mapped[:5])
    np.testing.assert_array_equal(nats, model.nats(text, context=text[:5]))
    np.testing.assert_array_equal(mapped_model.distribution(mapped), model.distribution(text.tolist()))


def test_a_vocabulary_and_an_order_beyond_64_bits_of_raw_tokens() -> None:
    text, stride = chain(500), 10_000_019
    small = NGramModel.fit(text, vocabulary_size=20, order=6)
    model = NGramModel.fit(text * stride, vocabulary_size=20 * stride, order=6)
    for k in range(1, 7):
        np.testing.assert_array_equal(model.tensors()[f"counts_{k}"], small.tensors()[f"counts_{k}"])
    # the large vocabulary only spreads the uniform base over more tokens
    assert np.all(model.nats(text * stride) > small.nats(text))
    assert np.all(model.nats(text * stride) < small.nats(text) + np.log(stride))


def test_tensors_round_trip_in_the_smallest_integers() -> None:
    text = chain()
    model = NGramModel.fit(text, 20, 4)
    arrays = model.tensors()
    again = NGramModel.from_tensors(arrays)
    assert (again.order, again.vocabulary_size, again.size) == (4, 20, model.size)
    assert [arrays[f"keys_{k}"].dtype for k in (1, 2, 3, 4)] == [np.uint8, np.uint16, np.uint16, np.uint16]
    np.testing.assert_array_equal(again.nats(text), model.nats(text))
    np.testing.assert_array_equal(again.distribution(text.tolist()), model.distribution(text.tolist()))


def test_a_model_of_a_text_shorter_than_its_order_round_trips() -> None:
    model = fit([2, 1], vocabulary_size=3, order=5)
    again = NGramModel.from_tensors(model.tensors())
    assert again.size == 3
    np.testing.assert_array_equal(again.distribution([2]), model.distribution([2]))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("order", None, "order is missing or damaged: expected one row of integers"),
        ("order", [0], "order is missing or damaged: expected one number, 1 or more"),
        ("order", [3], "keys_3 is missing or damaged"),
        ("vocabulary_size", [2, 2], "vocabulary_size is missing or damaged: expected one number"),
        ("vocabulary_size", [1], r"keys_1 is missing or damaged: expected increasing keys below 1;"),
        ("vocabulary_size", [2**62], r"keys_2 is missing or damaged: expected increasing keys below \d+;"),
        ("keys_2", None, "keys_2 is missing or damaged: expected one row of integers; fit it again"),
        ("keys_2", [2, 1], "expected increasing keys below 4"),
        ("keys_2", [1, 1], "expected increasing keys below 4"),
        ("keys_2", [-1, 2], "expected increasing keys below 4"),
        ("keys_2", [1, 4], "expected increasing keys below 4"),
        ("keys_2", [[1, 2]], "keys_2 is missing or damaged: expected one row of integers"),
        ("counts_1", [1.0, 1.0], "counts_1 is missing or damaged: expected one row of integers"),
        ("counts_1", [1, 0], "counts_1 is missing or damaged: expected 2 counts of 1 or more"),
        ("counts_2", [1], "counts_2 is missing or damaged: expected 2 counts of 1 or more"),
    ],
)
def test_damaged_tensors_are_refused(name: str, value: list | None, message: str) -> None:
    arrays = fit([0, 1, 0], vocabulary_size=2, order=2).tensors()
    del arrays[name]
    if value is not None:
        arrays[name] = np.array(value)
    with pytest.raises(RunError, match=message):
        NGramModel.from_tensors(arrays)


@pytest.mark.parametrize(
    ("tokens", "vocabulary_size", "order", "error", "message"),
    [
        ([0], 2, 0, ArgumentError, "order is 0; an n-gram model needs an order of 1 or more"),
        ([0], 0, 1, ArgumentError, "vocabulary_size is 0; expected 1 to"),
        ([0, 0], 2**62, 2, ArgumentError, "expected 1 to 3074457345618258602 for this text"),
        ([[0]], 2, 1, ArgumentError, r"tokens are int64 \(1, 1\); expected one row of integers"),
        ([0.5], 2, 1, ArgumentError, r"tokens are float64 \(1,\); expected one row of integers"),
        (np.zeros(0, np.uint8), 2, 1, DataError, "the text is empty; an n-gram model needs one token"),
        ([0, 2], 2, 1, DataError, "a token is 2; the vocabulary is 0 to 1"),
        ([0, -1], 2, 1, DataError, "a token is -1; the vocabulary is 0 to 1"),
    ],
)
def test_fit_refuses(tokens: list, vocabulary_size: int, order: int, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        NGramModel.fit(np.array(tokens), vocabulary_size, order)


def test_scoring_refuses_what_fit_refuses() -> None:
    model = fit([0, 1, 0], vocabulary_size=2, order=2)
    with pytest.raises(DataError, match="a token is 5; the vocabulary is 0 to 1"):
        model.nats(np.array([0, 5]))
    with pytest.raises(DataError, match="a token is 3; the vocabulary is 0 to 1"):
        model.nats(np.array([0]), context=np.array([3]))
    with pytest.raises(DataError, match="a token is 2; the vocabulary is 0 to 1"):
        model.distribution([2])
    with pytest.raises(ArgumentError, match="tokens are float64"):
        model.distribution([0.5])  # type: ignore[list-item]


def held_out(text: str, order: int) -> float:
    """The mean nats of the last tenth of a text's characters, from the n-grams of the rest."""
    characters, tokens = np.unique(np.array(list(text)), return_inverse=True)
    cut = len(tokens) * 9 // 10
    model = NGramModel.fit(tokens[:cut], len(characters), order)
    return float(model.nats(tokens[cut:], context=tokens[:cut]).mean())


def test_on_english_a_longer_history_helps() -> None:
    text = "".join(topics[name] for name in sorted(topics))[:300_000]
    unigram, five = held_out(text, 1), held_out(text, 5)
    assert five < 0.65 * unigram
    assert unigram < 0.8 * math.log(len(set(text)))


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason=f"needs Tiny Shakespeare at {SHAKESPEARE}")
def test_tiny_shakespeare_has_the_measured_nats() -> None:
    # the score to beat; the best of the orders 1 to 10
    assert held_out(SHAKESPEARE.read_text(), 7) == pytest.approx(1.5165, abs=1e-4)
