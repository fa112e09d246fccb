"""Words that somebody else has cut, and their ids, in the tokenizer.json of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as Library
from tokenizers import models
from tokenizers.pre_tokenizers import Split

from ritornello.data.text import replacing
from ritornello.data.tokenizer import UNKNOWN
from ritornello.errors import ArgumentError, RunError


@dataclass(frozen=True)
class Vocabulary:
    """Words, each known by its place; place 0 is `<unk>` and stands for all others.

    >>> vocabulary = Vocabulary.learn({"the": 5, "a": 2, "cat": 2, "xylophone": 1}, least=2)
    >>> vocabulary.names
    ('<unk>', 'the', 'a', 'cat')
    >>> vocabulary.ids(["the", "xylophone"]).tolist()
    [1, 0]
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.names[:1] != (UNKNOWN,) or len(set(self.names)) < len(self.names):
            raise ArgumentError(f"a vocabulary begins with {UNKNOWN} and holds each word once.")

    @classmethod
    def learn(cls, counts: Mapping[str, int], size: int | None = None, least: int = 1) -> Vocabulary:
        """The words of a text: the frequent ones first, of those that are alike the lesser.

        Args:
            counts: how often each word occurs, such as `Trees.word_counts()`.
            size: the most words to take, `<unk>` among them; default: all.
            least: how often a word occurs to be taken.

        Raises:
            ArgumentError: a size or `least` below 1.
        """
        if (size is not None and size < 1) or least < 1:
            raise ArgumentError(f"size and least must be positive integers, not {size!r} and {least!r}.")
        words = [word for word, count in counts.items() if count >= least and word != UNKNOWN]
        words.sort(key=lambda word: (-counts[word], word))
        return cls((UNKNOWN, *words[: None if size is None else size - 1]))

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def index(self) -> dict[str, int]:
        """The id of each word."""
        return {name: place for place, name in enumerate(self.names)}

    def ids(self, words: Iterable[str]) -> np.ndarray:
        """The ids of words: int64, (words,)."""
        return np.array([self.index.get(word, 0) for word in words], np.int64)

    def save(self, path: str | Path) -> None:
        """Writes a tokenizer.json, which `tokenizers.Tokenizer.from_file` reads; it takes words between spaces."""
        library = Library(models.WordLevel(self.index, unk_token=UNKNOWN))
        library.pre_tokenizer = Split(" ", "removed")
        with replacing(Path(path)) as file:
            file.write(library.to_str(pretty=True).encode())

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Reads what `save` wrote.

        Raises:
            RunError: the file is missing, damaged, or not from here.
        """
        try:
            found = Library.from_str(Path(path).read_text("utf-8")).get_vocab()
            names = tuple(sorted(found, key=found.__getitem__))
            if sorted(found.values()) != [*range(len(found))]:
                raise ValueError("its ids are not 0, 1, 2, ...")
            return cls(names)
        except Exception as error:  # the library raises Exception itself
            raise RunError(f"{path}: not a vocabulary of words ({error})") from None
