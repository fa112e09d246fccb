"""A text encoded once to files of token ids, which are read in windows however large they are."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ritornello.data.text import Span, blocks, encoded, replacing
from ritornello.data.tokenizer import Tokenizer
from ritornello.errors import ArgumentError, DataError, RunError

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TokenFile:
    """Token ids on disk: `count` of them, each of `dtype`, in the machine's byte order.

    It is opened anew by each call and only what is asked for is read, so no more of it stays in memory.

    Raises:
        RunError: the file is missing, or its size is not that of `count` ids.
    """

    path: Path
    dtype: np.dtype
    count: int

    def __post_init__(self) -> None:
        size, expected = self.path.stat().st_size if self.path.is_file() else 0, self.count * self.dtype.itemsize
        if size != expected:
            raise RunError(
                f"{self.path}: {size} bytes, where {self.count} tokens take {expected}; prepare the text again"
            )

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> np.ndarray:
        """The tokens from `start` up to `stop`: (stop - start,), a copy."""
        return self.windows(np.array([start]), stop - start)[0]

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The `length` tokens from each of `starts`: (len(starts), length), a copy.

        Raises:
            ArgumentError: a window that does not lie in the file.
        """
        lanes = np.empty((len(starts), max(length, 0)), self.dtype)
        with io.BufferedReader(io.FileIO(self.path), 4096) as file:
            for lane, start in zip(lanes, np.asarray(starts).tolist(), strict=True):
                if not 0 <= start <= start + length <= self.count:
                    raise ArgumentError(f"tokens {start} to {start + length} do not lie in a file of {self.count}")
                file.seek(start * self.dtype.itemsize)
                if file.readinto(lane.data) != lane.nbytes:
                    raise RunError(f"{self.path}: this file became shorter; prepare the text again")
        return lanes


@dataclass(frozen=True)
class PartInfo:
    """What a part was made from.

    Attributes:
        tokens: all tokens, `<end>` and `<unk>` among them.
        characters, bytes: of the text (bytes of UTF-8). A line that is a document counts its newline, for which
            `<end>` stands; an `<end>` after a file counts nothing.
        unknown: how many tokens are `<unk>`.
        files: the files that the text comes from.
    """

    tokens: int
    characters: int
    bytes: int
    unknown: int
    files: list[str]


@dataclass
class Meter:
    """Counts the text that passes by and tells `progress`."""

    stage: str
    total: int
    progress: Progress | None
    characters: int = 0
    bytes: int = 0

    def add(self, text: str) -> None:
        self.characters += len(text)
        self.bytes += len(encoded(text, errors="surrogateescape"))
        self.tell(self.bytes if self.stage == "scan" else self.characters)

    def tell(self, done: int) -> None:
        if self.progress:
            self.progress(self.stage, min(done, self.total), self.total)

    def watch(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            self.add(text)
            yield text


@dataclass(frozen=True)
class Part:
    """A part of a text: spans of files, where a document is a "file" or a "line". `origin` is for messages."""

    spans: list[Span]
    documents: str = "file"
    origin: str = ""

    @property
    def characters(self) -> int:
        return sum(span.stop - span.start for span in self.spans)

    def texts(self, meter: Meter) -> Iterator[str]:
        """The text in pieces that a tokenizer can learn from."""
        for span in self.spans:
            if self.documents == "line":
                yield from (line for lines in _lines(span, meter) for line in lines)
            else:
                yield from blocks(meter.watch(span.chunks()))

    def tokens(self, tokenizer: Tokenizer, meter: Meter) -> Iterator[np.ndarray]:
        """The text's ids, with `<end>` after each document where the tokenizer has it."""
        for span in self.spans:
            if self.documents == "line":
                yield from map(tokenizer.encode_documents, _lines(span, meter))
            else:
                yield from tokenizer.encode_stream(meter.watch(span.chunks()))
                if span.ends and tokenizer.end is not None:
                    yield np.array([tokenizer.end], tokenizer.dtype)

    def too_small(self, name: str, count: int) -> DataError:
        return DataError(
            f"the {name} part{self.origin} comes to {count} tokens, and it needs at least two tokens, one to read and "
            "one to predict; give more text or another split"
        )


def _lines(span: Span, meter: Meter) -> Iterator[list[str]]:
    for lines in span.lines():
        meter.add("".join(f"{line}\n" for line in lines))
        yield lines


def encode_files(
    tokenizer: Tokenizer, parts: Mapping[str, Part], folder: Path, progress: Progress | None = None
) -> dict[str, PartInfo]:
    """Writes each part's ids to `folder`/<part>.bin, which appears there only when it is complete.

    Raises:
        DataError: a text that cannot be read or encoded, or a part with fewer than two tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    meter = Meter("encode", sum(part.characters for part in parts.values()), progress)
    info = {name: _encode(tokenizer, name, part, folder, meter) for name, part in parts.items()}
    meter.tell(meter.total)
    return info


def _encode(tokenizer: Tokenizer, name: str, part: Part, folder: Path, meter: Meter) -> PartInfo:
    count, unknown, characters, size = 0, 0, meter.characters, meter.bytes
    with replacing(folder / f"{name}.bin") as file:
        for ids in part.tokens(tokenizer, meter):
            file.write(ids.data)
            count += len(ids)
            unknown += 0 if tokenizer.unknown is None else int(np.count_nonzero(ids == tokenizer.unknown))
        if count < 2:
            raise part.too_small(name, count)
    files = [str(path) for path in dict.fromkeys(span.path for span in part.spans)]
    return PartInfo(count, meter.characters - characters, meter.bytes - size, unknown, files)
