"""The options of language modelling. Needs no torch, so that `rit --help` is quick."""

from __future__ import annotations

from dataclasses import dataclass

from ritornello.errors import ArgumentError, nearest
from ritornello.training.config import check_dropout, check_least, check_types, settle_paths

KINDS = ("rnn", "ngram")
LEVELS = ("char", "byte", "word", "bpe")
DOCUMENTS = ("file", "line")
ORDERS = {"char": 7, "byte": 7, "word": 3, "bpe": 4}


@dataclass(frozen=True)
class TextConfig:
    """The text to learn from.

    Attributes:
        train: files or folders of UTF-8 text, or - for standard input; without any, English text that every Python
            carries (its help topics).
        valid: text that training is judged by; without any, a share of the training text.
        test: text that the result is judged by; without any, a share of the training text.
        split: shares of train/valid/test in percent, by characters, where valid is not given.
        level: what a token is: char, byte, word or bpe.
        vocabulary: most tokens at level word and bpe; 0 takes 20000 words, or 4096 byte pairs.
        documents: what an end symbol is learnt for: each file (where there are several) or each line.
        valid_tokens: tokens of the validation part that are scored in the course of training, at most; 0 scores all.

    Raises:
        ArgumentError: an unknown level or kind of document, or a split that is none.
    """

    train: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    split: str = "90/10/0"
    level: str = "char"
    vocabulary: int = 0
    documents: str = "file"
    valid_tokens: int = 200_000

    def __post_init__(self) -> None:
        settle_paths(self, "train", "valid", "test")
        check_types(self)
        for name, legal in (("level", LEVELS), ("documents", DOCUMENTS)):
            if getattr(self, name) not in legal:
                raise ArgumentError(f"Unknown {name} {getattr(self, name)!r}: {nearest(getattr(self, name), legal)}.")
        if self.vocabulary < 0:
            raise ArgumentError(f"vocabulary must be 0 or greater, not {self.vocabulary}.")
        if self.valid_tokens < 0 or self.valid_tokens == 1:
            raise ArgumentError(f"valid_tokens must be 0 (all) or at least 2, not {self.valid_tokens}.")
        self.shares()

    def shares(self) -> tuple[float, float, float]:
        """The split as shares of 1.

        Example:
            >>> TextConfig(split="80/10/10").shares()
            (0.8, 0.1, 0.1)
        """
        try:
            train, valid, test = (float(part) for part in self.split.split("/"))
        except ValueError:
            train = valid = test = 0.0
        if min(train, valid) <= 0 or test < 0 or not abs(train + valid + test - 100) < 1e-6:
            raise ArgumentError(
                f"split is {self.split!r}; expected percent of train/valid/test that sum to 100, some of them valid's, "
                "such as 90/10/0."
            )
        return train / 100, valid / 100, test / 100


@dataclass(frozen=True)
class LanguageModelConfig:
    """The model.

    Attributes:
        model: rnn, or ngram for an interpolated Kneser-Ney n-gram model, the simple solution to beat.
        cell: a cell's name, or module:Class or FILE.py:Class for one of your own.
        layers: of cells.
        hidden: units of each layer.
        embedding: features of a token's vector; 0 takes 64 at level char and byte, else as many as hidden, so that the
            output layer shares them.
        dropout: share of embeddings and outputs that are zeroed in training.
        tied: share the embedding's weights with the output layer where sizes allow.
        window: tokens that gradients reach back (truncated back-propagation through time).
        order: longest n-gram; 0 takes 7 at level char and byte, 4 at bpe, 3 at word.

    Raises:
        ArgumentError: a value out of its range.
    """

    model: str = "rnn"
    cell: str = "lstm"
    layers: int = 1
    hidden: int = 512
    embedding: int = 0
    dropout: float = 0.0
    tied: bool = True
    window: int = 32
    order: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        if self.model not in KINDS:
            raise ArgumentError(f"Unknown model {self.model!r}: {nearest(self.model, KINDS)}.")
        check_least(self, 1, "layers", "hidden", "window")
        for name in ("embedding", "order"):
            if getattr(self, name) < 0:
                raise ArgumentError(f"{name} must be 0 or greater, not {getattr(self, name)}.")
        check_dropout(self)

    def embedding_for(self, level: str) -> int:
        """The embedding's size, chosen where it is 0."""
        return self.embedding or (64 if level in ("char", "byte") else self.hidden)

    def order_for(self, level: str) -> int:
        """The n-gram's order, chosen where it is 0."""
        return self.order or ORDERS[level]
