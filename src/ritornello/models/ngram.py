"""Interpolated modified Kneser-Ney n-grams: the simple solution that a recurrent network must beat.

For a token w after a history h of k - 1 tokens, and h' the history without its oldest token,

    p_k(w | h) = (c(hw) - D(c(hw))) / c(h.) + backoff(h) p_{k-1}(w | h'),   p_0(w) = 1 / V,
    backoff(h) = (sum of D(c(hv)) over the v seen after h) / c(h.),         p_k = p_{k-1} where h is unseen,

with D(0) = 0 and the discounts D(1), D(2), D(3 or more) of each order estimated from its counts of counts.
At the highest order c is how often the n-gram occurs; below it, how many distinct tokens precede the n-gram.
The text counts as preceded by one mark that occurs nowhere else and is part of no n-gram: the n-grams that
open the text have it as one more predecessor, so that every count is 1 or more.

Sources: Kneser and Ney, Improved backing-off for m-gram language modeling, ICASSP 1995; Chen and Goodman, An
empirical study of smoothing techniques for language modeling, Computer Speech and Language 13, 1999, its
"modified Kneser-Ney"; the fixed discounts where an estimate fails are KenLM's (Heafield et al., ACL 2013).

Shapes: T tokens, V the vocabulary, N the distinct n-grams of one order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ritornello.errors import ArgumentError, DataError, RunError

BLOCK = 1 << 20  # tokens scored at once: bounds the memory of `nats` at about 60 MB
KEY_LIMIT = np.iinfo(np.int64).max


class Table(NamedTuple):
    """The n-grams of one order k, sorted. An n-gram's id is its row; the last row is id -1, "never seen".

    A key is `context * V + token`, where context is the id of the first k - 1 tokens in the table below (0 at
    order 1): the continuations of a context are neighbours, and any order fits 64 bits.
    """

    keys: np.ndarray  # (N + 1,) int64, increasing; the last is KEY_LIMIT
    counts: np.ndarray  # (N,) smallest unsigned integer, 1 or more
    share: np.ndarray  # (N + 1,) float64: (c - D(c)) / c(h.); the last is 0
    backoff: np.ndarray  # (contexts + 1,) float64: what a context leaves to the order below; the last is 1

    @classmethod
    def build(cls, keys: np.ndarray, counts: np.ndarray, contexts: int, vocabulary_size: int) -> Table:
        """The table of `keys` (N,) seen `counts` (N,) times, over the `contexts` rows of the table below."""
        counts = _smallest(counts)
        context = keys // vocabulary_size
        discount = np.array([0.0, *discounts(counts)])[np.minimum(counts, 3)]
        total = np.bincount(context, weights=counts, minlength=contexts)
        withheld = np.bincount(context, weights=discount, minlength=contexts)
        backoff = np.ones(contexts + 1)
        np.divide(withheld, total, out=backoff[:-1], where=total > 0)
        share = np.append((counts - discount) / total[context], 0.0)
        return cls(np.append(keys, KEY_LIMIT), counts, share, backoff)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The ids (T,) of the n-grams with these keys (T,), -1 where there is none; a key may be negative."""
        ids = np.searchsorted(self.keys, keys)
        ids[self.keys[ids] != keys] = -1
        return ids


class NGramModel:
    """An interpolated modified Kneser-Ney model over the tokens 0 to V - 1. Build it with `fit`.

    >>> text = np.frombuffer(b"to be or not to be", np.uint8)
    >>> model = NGramModel.fit(text, vocabulary_size=256, order=3)
    >>> bytes([model.distribution(b"to b").argmax()])
    b'e'
    >>> float(model.nats(text).mean().round(2)), float(np.log(256).round(2))
    (0.72, 5.55)
    """

    def __init__(self, vocabulary_size: int, keys: list[np.ndarray], counts: list[np.ndarray]) -> None:
        self.order = len(keys)
        self.vocabulary_size = vocabulary_size
        contexts = [1, *map(len, keys[:-1])]
        rows = zip(keys, counts, contexts, strict=True)
        self._tables = [Table.build(*row, vocabulary_size) for row in rows]

    @classmethod
    def fit(cls, tokens: np.ndarray, vocabulary_size: int, order: int) -> NGramModel:
        """Count the n-grams of a text, of 1 to `order` tokens.

        Args:
            tokens: (T,) integers, T >= 1; a memmap will do. A text shorter than the order is legal.
            vocabulary_size: V; every token lies in 0 to V - 1.
            order: the longest n-gram, 1 or more: a token is predicted from the `order - 1` before it.

        Raises:
            ArgumentError: an order or a vocabulary below 1, or tokens that are not a 1-D array of integers.
            DataError: an empty text, or a token outside the vocabulary.
        """
        if order < 1:
            raise ArgumentError(f"order is {order}; an n-gram model needs an order of 1 or more")
        most = KEY_LIMIT // (np.size(tokens) + 1)
        if not 1 <= vocabulary_size <= most:
            raise ArgumentError(f"vocabulary_size is {vocabulary_size}; expected 1 to {most} for this text")
        text = _checked(tokens, vocabulary_size).astype(np.int64, copy=False)
        if not len(text):
            raise DataError("the text is empty; an n-gram model needs one token or more to count")
        return cls(vocabulary_size, *_count(text, vocabulary_size, order))

    def nats(self, tokens: np.ndarray, context: np.ndarray | None = None) -> np.ndarray:
        """The surprise of each token given all those before it, in nats: -ln p, finite.

        Args:
            tokens: (T,) integers; a memmap will do, the work is done in blocks.
            context: the integers before `tokens[0]`. Default: none, so that the first tokens of the text are
                predicted from what history there is.

        Returns:
            (T,) float64.

        Raises:
            ArgumentError: tokens that are not a 1-D array of integers.
            DataError: a token outside the vocabulary.

        >>> model = NGramModel.fit(np.array([0, 1, 0]), vocabulary_size=2, order=2)
        >>> np.exp(-model.nats(np.array([0, 1, 0]))) * 18  # by hand: 5/9, 13/18, 7/9
        array([10., 13., 14.])
        """
        tokens = _checked(tokens, self.vocabulary_size)
        history = np.zeros(0, np.int64) if context is None else self._recent(context)
        surprise = np.empty(len(tokens))
        for start in range(0, len(tokens), BLOCK):
            window = np.concatenate([history, tokens[start : start + BLOCK].astype(np.int64)])
            surprise[start : start + BLOCK] = -np.log(self._probabilities(window)[len(history) :])
            history = self._recent(window)
        return surprise

    def distribution(self, history: Sequence[int]) -> np.ndarray:
        """The probabilities of the next token, (V,) float64 that sum to 1.

        Args:
            history: the tokens so far, of which the last `order - 1` count; it may be empty.

        Raises:
            ArgumentError: a history that is not one row of integers.
            DataError: a token outside the vocabulary.

        >>> model = NGramModel.fit(np.array([0, 1, 0]), vocabulary_size=2, order=2)
        >>> model.distribution([0]) * 18
        array([ 5., 13.])
        """
        recent = self._recent(np.array(list(history[-self.order :]) or np.zeros(0, np.int64)))
        probabilities = np.full(self.vocabulary_size, 1 / self.vocabulary_size)
        before, context = np.zeros(len(recent), np.int64), 0
        for table in self._tables:
            base = context * self.vocabulary_size
            first, last = np.searchsorted(table.keys, [base, base + self.vocabulary_size])
            probabilities *= table.backoff[context]
            probabilities[table.keys[first:last] - base] += table.share[first:last]
            ids = table.find(before * self.vocabulary_size + recent)
            if not len(ids) or ids[-1] < 0:
                break
            before, context = _shifted(ids), int(ids[-1])
        return probabilities

    def tensors(self) -> dict[str, np.ndarray]:
        """The model as plain arrays, each of the smallest unsigned integers that hold it.

        `order` and `vocabulary_size`, (1,), and for each k from 1 to the order `keys_k` and `counts_k`, (N,).

        >>> arrays = NGramModel.fit(np.array([0, 1, 0]), vocabulary_size=2, order=2).tensors()
        >>> {name: array.tolist() for name, array in arrays.items()}
        {'order': [2], 'vocabulary_size': [2],
         'keys_1': [0, 1], 'counts_1': [2, 1], 'keys_2': [1, 2], 'counts_2': [1, 1]}
        """
        arrays = {"order": np.array([self.order]), "vocabulary_size": np.array([self.vocabulary_size])}
        for k, table in enumerate(self._tables, start=1):
            arrays |= {f"keys_{k}": table.keys[:-1], f"counts_{k}": table.counts}
        return {name: _smallest(array) for name, array in arrays.items()}

    @classmethod
    def from_tensors(cls, arrays: Mapping[str, np.ndarray]) -> NGramModel:
        """The model whose `tensors()` these are; other names are left alone.

        Raises:
            RunError: an array that is missing, or that does not fit the others.
        """
        order, vocabulary_size = (_stored_size(arrays, name) for name in ("order", "vocabulary_size"))
        keys: list[np.ndarray] = []
        counts: list[np.ndarray] = []
        for k in range(1, order + 1):
            keys.append(_stored_keys(arrays, f"keys_{k}", (len(keys[-1]) if keys else 1) * vocabulary_size))
            counts.append(_stored(arrays, f"counts_{k}"))
            if len(counts[-1]) != len(keys[-1]) or not np.all(counts[-1] > 0):
                raise _damaged(f"counts_{k}", f"{len(keys[-1])} counts of 1 or more")
        return cls(vocabulary_size, keys, counts)

    @property
    def size(self) -> int:
        """How many distinct n-grams are stored, all orders together."""
        return sum(len(table.counts) for table in self._tables)

    def _probabilities(self, window: np.ndarray) -> np.ndarray:
        """p (T,) of each token of the window (T,) given those before it in the window."""
        probabilities = np.full(len(window), 1 / self.vocabulary_size)
        before = np.zeros(len(window), np.int64)  # the id of the k - 1 tokens before each token
        for table in self._tables:
            ids = table.find(before * self.vocabulary_size + window)
            probabilities *= table.backoff[before]
            probabilities += table.share[ids]
            before = _shifted(ids)
        return probabilities

    def _recent(self, tokens: np.ndarray) -> np.ndarray:
        """The last order - 1 tokens, int64, or all where there are fewer."""
        recent = tokens[max(len(tokens) - self.order + 1, 0) :]
        return _checked(recent, self.vocabulary_size).astype(np.int64)


def discounts(counts: np.ndarray) -> list[float]:
    """D1, D2 and D3+ of one order, from the counts (N,) of its n-grams.

    With n_i the number of n-grams counted i times and Y = n_1 / (n_1 + 2 n_2), the estimate is
    D_i = i - (i + 1) Y n_{i+1} / n_i. Where that is undefined or not strictly between 0 and i, D_i = i / 2.
    So no count falls to zero, and every context leaves something to the order below.

    >>> discounts(np.array([1, 1, 1, 1, 2, 2, 3]))
    [0.5, 1.25, 1.5]
    """
    # Python integers, so that the comparisons at the two ends are exact
    seen = np.bincount(np.minimum(counts, 5).astype(np.uint8), minlength=6).tolist()
    once_or_twice = seen[1] + 2 * seen[2]
    estimates = []
    for i in (1, 2, 3):
        whole = seen[i] * once_or_twice
        part = i * whole - (i + 1) * seen[1] * seen[i + 1]
        estimates.append(part / whole if 0 < part < i * whole else i / 2)
    return estimates


def _count(text: np.ndarray, vocabulary_size: int, order: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The keys and the counts of each order, from the text (T,) int64."""
    keys: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    ids = np.zeros(len(text) + 1, np.int64)  # of the (k-1)-grams in the text's order: T - k + 2 of them
    for k in range(1, order + 1):
        found, longer = np.unique(ids[:-1] * vocabulary_size + text[k - 1 :], return_inverse=True)
        if keys:
            suffix = np.empty(len(found), np.int64)
            suffix[longer] = ids[1:]  # each distinct k-gram is one more predecessor of its last k - 1 tokens
            predecessors = np.bincount(suffix, minlength=len(keys[-1]))
            predecessors[ids[:1]] += 1  # the mark before the text
            counts.append(predecessors)
        keys.append(found)
        ids = longer
    counts.append(np.bincount(ids, minlength=len(keys[-1])))
    return keys, counts


def _shifted(ids: np.ndarray) -> np.ndarray:
    """What ends before each position, from what ends at it; nothing ends before the first."""
    return np.concatenate([np.full(1, -1), ids[:-1]])


def _smallest(array: np.ndarray) -> np.ndarray:
    return array.astype(np.min_scalar_type(array.max(initial=0)), copy=False)


def _checked(tokens: np.ndarray, vocabulary_size: int) -> np.ndarray:
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.dtype.kind not in "ui":
        raise ArgumentError(f"tokens are {tokens.dtype} {tokens.shape}; expected one row of integers, (T,)")
    for token in (tokens.min(initial=0), tokens.max(initial=0)):
        if not 0 <= token < vocabulary_size:
            raise DataError(f"a token is {token}; the vocabulary is 0 to {vocabulary_size - 1}")
    return tokens


def _damaged(name: str, expected: str) -> RunError:
    return RunError(f"the n-gram model's {name} is missing or damaged: expected {expected}; fit it again")


def _stored(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    array = np.asarray(arrays[name]) if name in arrays else None
    if array is None or array.ndim != 1 or array.dtype.kind not in "ui":
        raise _damaged(name, "one row of integers")
    return array


def _stored_size(arrays: Mapping[str, np.ndarray], name: str) -> int:
    array = _stored(arrays, name)
    if len(array) != 1 or array[0] < 1:
        raise _damaged(name, "one number, 1 or more")
    return int(array[0])


def _stored_keys(arrays: Mapping[str, np.ndarray], name: str, limit: int) -> np.ndarray:
    keys = _stored(arrays, name)
    inside = not len(keys) or 0 <= int(keys[0]) <= int(keys[-1]) < limit <= KEY_LIMIT
    if not inside or not np.all(keys[1:] > keys[:-1]):
        raise _damaged(name, f"increasing keys below {min(limit, KEY_LIMIT)}")
    return keys.astype(np.int64)
