"""Text to token ids and back at four levels, each saved as a tokenizer.json of Hugging Face's `tokenizers`.

| level | tokens                                       | what the vocabulary does not hold |
|-------|----------------------------------------------|-----------------------------------|
| char  | the characters of its text                   | an error                          |
| byte  | the 256 bytes of UTF-8; the id is the byte   | does not exist                    |
| word  | frequent words, each with the space before   | `<unk>`                           |
| bpe   | bytes, and frequent pairs merged into one    | does not exist                    |

Nothing is normalised: decoding gives the text back, character for character (`<unk>` aside).
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Regex, decoders, models, trainers
from tokenizers import Tokenizer as Library
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as Steps

from ritornello.data.text import blocks, codes, encoded, named, printable, replacing
from ritornello.errors import ArgumentError, DataError, RunError, nearest

END, UNKNOWN = "<end>", "<unk>"  # no text becomes either: no level joins < or > to a letter
BATCH = 16  # blocks that `tokenizers` encodes at once; its encodings take some hundred bytes a token

_SPLIT = {  # what no token crosses; the library saves it, and `load` knows the level by it
    "char": Split(Regex(r"[\s\S]"), "isolated"),
    "byte": ByteLevel(add_prefix_space=False, use_regex=False),
    "word": Split(Regex(r" ?\w+(?:['’]\w+)*| ?[^\w\s]|\s"), "isolated"),
    "bpe": Steps([Split(Regex(r"\n+"), "merged_with_previous"), ByteLevel(add_prefix_space=False)]),
}
LEVELS = tuple(_SPLIT)
_Learnt = tuple[list[str], list[tuple[str, str]]]  # the vocabulary in the order of its ids, and the merges


def _byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte, in which the library spells byte tokens."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in shown else next(spare)) for byte in range(256)]


_LETTERS = _byte_letters()
_BYTES = {letter: byte for byte, letter in enumerate(_LETTERS)}


def _library(level: str, names: Sequence[str] = (), merges: Sequence[tuple[str, str]] = ()) -> Library:
    """The library's tokenizer of a level, whose ids are the places in `names`."""
    ids = {name: index for index, name in enumerate(names)}
    spelt = level in ("byte", "bpe")
    library = Library(models.BPE(ids, list(merges)) if spelt else models.WordLevel(ids, unk_token=UNKNOWN))
    library.pre_tokenizer = _SPLIT[level]
    library.decoder = decoders.ByteLevel() if spelt else decoders.Fuse()
    return library


def _names(library: Library) -> list[str]:
    names = [library.id_to_token(index) for index in range(library.get_vocab_size())]
    known = [name for name in names if name is not None]
    if len(known) < len(names):
        raise ValueError("its ids are not 0, 1, 2, ...")
    return known


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    empty = True
    for text in texts:
        encoded(text)  # the library words a lone surrogate badly
        empty = empty and not text
        yield from blocks([text])
    if empty:
        raise DataError("there is no text to learn a vocabulary from")


def _learn_char(texts: Iterator[str], size: int) -> _Learnt:
    seen = np.zeros(0x110000, dtype=bool)
    while batch := "".join(islice(texts, BATCH)):
        seen[codes(batch)] = True
    return list(map(chr, np.flatnonzero(seen))), []


def _learn_word(texts: Iterable[str], size: int) -> _Learnt:
    library = _library("word")
    trainer = trainers.WordLevelTrainer(vocab_size=size - 1, show_progress=False, special_tokens=[])
    library.train_from_iterator(texts, trainer)  # ties in frequency: the lesser word first
    return [UNKNOWN, *_names(library)], []


def _learn_bpe(texts: Iterable[str], size: int) -> _Learnt:
    library = _library("bpe")
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=_LETTERS)
    library.train_from_iterator(texts, trainer)
    merges = json.loads(library.to_str())["model"]["merges"]
    return _names(library), [(left, right) for left, right in merges]


_LEARN = {"char": _learn_char, "byte": lambda *_: (_LETTERS, []), "word": _learn_word, "bpe": _learn_bpe}
_SIZES = {"word": (2, 20_000), "bpe": (256, 4096)}  # least and usual vocabulary, without <end>


def check(level: str, vocabulary: int | None = None, end_symbol: bool = False) -> None:
    """Raises the ArgumentError that `Tokenizer.train` would, before any text is read."""
    if level not in LEVELS:
        raise ArgumentError(f"unknown level {level!r}: {nearest(level, LEVELS)}")
    if vocabulary is not None and level not in _SIZES:
        raise ArgumentError(
            f"vocabulary is {vocabulary}, but level {level} has no choice: it takes the symbols there are"
        )
    if vocabulary is not None and vocabulary < _SIZES[level][0] + end_symbol:
        raise ArgumentError(f"vocabulary is {vocabulary}; level {level} needs at least {_SIZES[level][0] + end_symbol}")


class Tokenizer:
    """Turns text into ids and back; made by `train` or `load`.

    Attributes:
        level: "char", "byte", "word" or "bpe".
        symbols: for people: what each id stands for, control characters and partial UTF-8 escaped.
        vocabulary_size: how many ids there are.
        dtype: the smallest unsigned NumPy dtype that holds them.
        end: the id of `<end>`, the end of a document, or None. It is the last one.
        unknown: the id of `<unk>`, or None.

    >>> tokenizer = Tokenizer.train("char", ["da capo"])
    >>> tokenizer.symbols
    [' ', 'a', 'c', 'd', 'o', 'p']
    >>> tokenizer.encode("cap")
    array([2, 1, 5], dtype=uint8)
    >>> tokenizer.decode([2, 4, 3, 1])
    'coda'
    """

    def __init__(self, level: str, library: Library) -> None:
        names = _names(library)
        self.level = level
        self.vocabulary_size = len(names)
        self.dtype = np.min_scalar_type(len(names) - 1)
        self.end = library.token_to_id(END)
        self.unknown = library.token_to_id(UNKNOWN)
        self._library = library
        self._bytes = [self._spelt(name) for name in names]
        self.symbols = [name if name in (END, UNKNOWN) else printable(self._spelt(name)) for name in names]
        self._table = np.full(0x110000 if level == "char" else 0, len(names), np.min_scalar_type(len(names)))
        if level == "char":  # the id of every code point; vocabulary_size where there is none
            characters = [ord(name) for name in names if name != END]
            self._table[characters] = np.arange(len(characters))

    def _spelt(self, name: str) -> bytes:
        if name == END:
            return b""
        return bytes(map(_BYTES.__getitem__, name)) if self.level in ("byte", "bpe") else name.encode()

    @classmethod
    def train(
        cls, level: str, texts: Iterable[str], vocabulary: int | None = None, end_symbol: bool = False
    ) -> Tokenizer:
        """Learns a vocabulary, in memory that grows with the distinct words alone; the same texts give the same one.

        Args:
            texts: pieces of text, read once and not joined: a word or byte pair that reaches from one to the next
                is not seen. Cut a long stream with `ritornello.data.text.blocks`. Level "byte" does not read them.
            vocabulary: for "word" (default 20,000) and "bpe" (default 4096), the most ids to use in all; a short
                text needs fewer. The other levels take what there is.
            end_symbol: add `<end>` as the last id.

        Raises:
            ArgumentError: an unknown level, or a vocabulary that does not fit it.
            DataError: texts without a character.

        >>> Tokenizer.train("word", ["to be or not to be"], vocabulary=3, end_symbol=True).symbols
        ['<unk>', ' be', '<end>']
        """
        check(level, vocabulary, end_symbol)
        size = vocabulary or (_SIZES[level][1] if level in _SIZES else 0)
        names, merges = _LEARN[level](_pieces(texts), size - end_symbol)
        return cls(level, _library(level, names + [END] * end_symbol, merges))

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text: (tokens,), of `dtype`. "<end>" in a text is five characters, never the symbol.

        Raises:
            DataError: a character that the vocabulary of level "char" does not hold, or a lone surrogate. (At level
                "byte", those of "surrogateescape" stand for bytes that are not UTF-8.)
        """
        if self.level == "char":
            return self._encode_characters(text)
        if self.level == "byte":
            return np.frombuffer(encoded(text, errors="surrogateescape"), np.uint8).astype(self.dtype)
        return np.concatenate([np.empty(0, self.dtype), *self.encode_stream([text])])

    def encode_stream(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """The ids of one text that comes in pieces; joined, they are those of `encode`, wherever it was cut."""
        if self.level in ("char", "byte"):
            yield from map(self.encode, texts)
            return
        pieces = blocks(texts)
        while batch := list(islice(pieces, BATCH)):
            yield np.concatenate(self._encode_each(batch))

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        """The ids of short documents, each followed by `<end>`: (tokens,).

        >>> Tokenizer.train("char", ["ab"], end_symbol=True).encode_documents(["a", "bb"])
        array([0, 2, 1, 1, 2], dtype=uint8)
        """
        assert self.end is not None
        if self.level in ("char", "byte"):
            sizes = [len(text) if self.level == "char" else len(self.encode(text)) for text in texts]
            ids = self.encode("".join(texts))
        else:
            parts = self._encode_each(texts)
            sizes = [len(part) for part in parts]
            ids = np.concatenate([np.empty(0, self.dtype), *parts])
        return np.insert(ids, np.cumsum(sizes, dtype=np.int64), self.end)

    def _encode_characters(self, text: str) -> np.ndarray:
        ids = self._table[codes(text)]
        if len(ids) and ids.max() == self.vocabulary_size:
            strange = sorted({character for character in text if self._table[ord(character)] == self.vocabulary_size})
            raise DataError(
                f"{named(strange)}: not in the vocabulary of this tokenizer, which knows only the "
                f"{self.vocabulary_size} symbols of its own text: take it out, or train with level byte or bpe"
            )
        return ids.astype(self.dtype, copy=False)

    def _encode_each(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded("".join(texts))  # the library words a lone surrogate badly
        encodings = self._library.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, self.dtype) for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids. `<end>` adds nothing; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ArgumentError: an id outside the vocabulary.
        """
        return b"".join(map(self.bytes_of, np.asarray(ids, dtype=np.int64).tolist())).decode(errors="replace")

    def lacking(self, text: str) -> list[str]:
        """The words of a text that become `<unk>`, each once; none at the other levels."""
        encoding = self._library.encode(text) if self.unknown is not None else None
        pieces = zip(encoding.offsets, encoding.ids, strict=True) if encoding else ()
        return list(dict.fromkeys(text[a:b].strip() for (a, b), index in pieces if index == self.unknown))

    def bytes_of(self, index: int) -> bytes:
        """The UTF-8 bytes of one id, perhaps a part of a character; b"" for `<end>`."""
        if not 0 <= index < self.vocabulary_size:
            raise ArgumentError(f"id {index} is outside the vocabulary, 0 to {self.vocabulary_size - 1}")
        return self._bytes[index]

    def save(self, path: str | Path) -> None:
        """Writes a tokenizer.json, which `tokenizers.Tokenizer.from_file` reads and which encodes the same there."""
        with replacing(Path(path)) as file:
            file.write(self._library.to_str(pretty=True).encode())

    @classmethod
    def load(cls, path: str | Path, level: str | None = None) -> Tokenizer:
        """Reads what `save` wrote. The file tells its level; `level` is the one the caller expects.

        Raises:
            ArgumentError: an unknown level.
            RunError: the file is missing, damaged, of another level, or not from here.
        """
        if level is not None:
            check(level)
        try:
            library = Library.from_str(Path(path).read_text("utf-8"))
            state = library.pre_tokenizer.__getstate__() if library.pre_tokenizer else None
            found = next((name for name, split in _SPLIT.items() if split.__getstate__() == state), None)
            if found is None:
                raise ValueError("its way of cutting text is none of ritornello's levels")
            tokenizer = cls(found, library)
        except Exception as error:  # the library raises Exception itself
            raise RunError(f"{path}: not a tokenizer that ritornello can use ({error})") from None
        if level not in (None, found):
            raise RunError(f"{path}: this tokenizer is of level {found}, where {level} is expected")
        return tokenizer


class StreamDecoder:
    """Text as ids arrive; bytes that begin a character wait for its end.

    >>> decoder = StreamDecoder(Tokenizer.train("byte", []))
    >>> [decoder.push(index) for index in "né".encode()] + [decoder.finish()]
    ['n', '', 'é', '']
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int) -> str:
        """The text that is complete with this id."""
        return self._decoder.decode(self._tokenizer.bytes_of(index))

    def finish(self) -> str:
        """What is left: U+FFFD where a character was never completed, else the empty text."""
        return self._decoder.decode(b"", final=True)
