"""Sources of text: files and folders, read as a stream of UTF-8 whatever their size."""

from __future__ import annotations

import codecs
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ritornello.errors import DataError

BLOCK = 1 << 16  # characters: the most that is tokenized as one string


def find(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The text files behind a path or several: a file as given; a folder gives every file in it and below, sorted.

    In a folder no file is chosen by its ending, but what starts with "." is left out, folders too.

    Raises:
        DataError: a path that is missing, or can be read only once (a pipe), or a folder without files.
    """
    found: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file, path))
            if not inside:
                raise DataError(f"{path}: this folder holds no file; name a text file or a folder of them")
            found += inside
        elif path.is_file():
            found.append(path)
        elif path.exists():
            raise DataError(
                f"{path}: this must be a file, for it is read more than once; rit train lm takes a pipe as -"
            )
        else:
            raise DataError(f"{path}: there is no such file or folder")
    return found


def _hidden(file: Path, folder: Path) -> bool:
    return any(name.startswith(".") for name in file.relative_to(folder).parts)


def spool(stream: BinaryIO, folder: str | Path) -> Path:
    """Copies `stream` (standard input, as bytes) to `folder`/stdin.txt, so that it can be read more than once.

    Raises:
        DataError: it holds nothing.
    """
    path = Path(folder) / "stdin.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        shutil.copyfileobj(stream, file)
    if not path.stat().st_size:
        raise DataError("Standard input is empty, or was read before; it can be read once.")
    return path


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` once it is complete and on the disk."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def chunks(
    path: str | Path, size: int = 1 << 20, raw: bool = False, *, name: str = "", advice: str = ""
) -> Iterator[str]:
    """The text of a UTF-8 file in pieces, in memory that does not grow with the file.

    Line ends stay as they are; a byte-order mark at the start is dropped.

    Args:
        size: bytes to read at a time.
        raw: let each byte that is not UTF-8 pass, as the lone surrogate of Python's "surrogateescape".
        name: what errors call the file, if not by its path.
        advice: what else can be done where a byte is not UTF-8.

    Raises:
        DataError: the file cannot be opened, holds no text, or has a byte that is not UTF-8.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "song.txt")
    ...     _ = path.write_bytes(b"da\\r\\ncapo")
    ...     list(chunks(path, size=3))
    ['da\\r', '\\nca', 'po']
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape" if raw else "strict")
    empty = True
    with _opened(path) as file:
        read = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
        file.seek(read)
        data = b"-"
        while data:
            data = file.read(size)
            read += len(data)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise _not_utf8(name or str(path), read - len(error.object), error, advice) from None
            if text:
                empty = False
                yield text
    if empty:
        raise DataError(f"{name or path}: this file is empty")


def _opened(path: str | Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"{path}: this file cannot be read ({error.strerror})") from None


def _not_utf8(name: str, base: int, error: UnicodeDecodeError, advice: str) -> DataError:
    return DataError(
        f"{name}: byte {base + error.start} is 0x{error.object[error.start]:02x}, where the file stops being UTF-8; "
        f"convert it (for example with iconv -f latin1 -t utf-8){advice}"
    )


def encoded(text: str, encoding: str = "utf-8", errors: str = "strict") -> bytes:
    """`text.encode(encoding, errors)`, with a DataError where that fails."""
    try:
        return text.encode(encoding, errors)
    except UnicodeEncodeError as error:
        raise DataError(f"U+{ord(text[error.start]):04X} is half a character (a lone surrogate), not text") from None


def codes(text: str) -> np.ndarray:
    """The code point of each character: uint32, (characters,)."""
    return np.frombuffer(encoded(text, "utf-32-le"), dtype="<u4")


def named(characters: Sequence[str], most: int = 10) -> str:
    """Characters for a message, at most `most` of them.

    >>> named("aé\\n", most=2)
    "'a' (U+0061), 'é' (U+00E9) and 1 more"
    """
    names = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in characters[:most])
    return names + (f" and {len(characters) - most} more" if len(characters) > most else "")


def printable(piece: bytes) -> str:
    """UTF-8, perhaps cut within a character, for people: what cannot be seen is escaped as Python does.

    >>> printable("né\\n".encode()), printable(b"\\xc3")
    ('né\\\\n', '\\\\xc3')
    """
    try:
        return repr(piece.decode())[1:-1]
    except UnicodeDecodeError:
        return repr(piece)[2:-1]


def blocks(texts: Iterable[str], limit: int = BLOCK) -> Iterator[str]:
    """Cuts a text that comes in pieces of any size into blocks; where it cuts depends on the whole text alone.

    A block ends at the last line end (after a run of newlines, never inside) within `limit` characters; where there
    is none, before the last space that follows a word; where there is none either, after `limit` characters.
    No token of `ritornello.data.tokenizer` reaches over the first two kinds of cut.

    >>> list(blocks(["one\\n", "two\\n\\nthr", "ee four"], limit=6))
    ['one\\n', 'two\\n\\n', 'three', ' four']
    """
    held = ""
    for text in texts:
        held += text
        start = 0
        while len(held) - start > limit:  # so that the character after the longest block is known
            cut = _border(held, start, start + limit)
            yield held[start:cut]
            start = cut
        held = held[start:]
    if held:
        yield held


def _border(text: str, start: int, stop: int) -> int:
    """The best place to cut in start < place <= stop; text[stop] exists."""
    end = stop
    while end > start and text[end] == "\n":  # a run of newlines stays whole
        end -= 1
    cut = text.rfind("\n", start, end) + 1
    if cut > start:
        return cut
    cut = text.rfind(" ", start + 1, stop + 1)
    while cut > start and text[cut - 1].isspace():
        cut = text.rfind(" ", start + 1, cut)
    return cut if cut > start else stop


@dataclass(frozen=True)
class Span:
    """The characters from `start` up to `stop` of a file; `ends`: the file ends with them.

    Line by line, it is the lines whose first character lies in it. `raw`: as in `chunks`.
    """

    path: Path
    start: int
    stop: int
    ends: bool
    raw: bool = False

    def chunks(self) -> Iterator[str]:
        """The text in pieces."""
        position = 0
        for text in chunks(self.path, raw=self.raw):
            piece = text[max(self.start - position, 0) : self.stop - position]
            if piece:
                yield piece
            position += len(text)
            if position >= self.stop:
                return
        raise self._shrunk()

    def lines(self) -> Iterator[list[str]]:
        """The lines in batches, without their ends (newline, or carriage return and newline), empty ones left out.

        The longest line is held in memory.
        """
        held, position = "", 0
        for text in chain(chunks(self.path, raw=self.raw), ["\n"]):
            *complete, held = (held + text).split("\n")
            *starts, position = accumulate(map(len, complete), lambda first, size: first + size + 1, initial=position)
            pairs = zip((line.removesuffix("\r") for line in complete), starts, strict=True)
            yield [line for line, first in pairs if line and self.start <= first < self.stop]
            if position >= self.stop:
                return
        raise self._shrunk()

    def _shrunk(self) -> DataError:
        return DataError(f"{self.path}: this file became shorter while it was being read")


def spans(sizes: Sequence[tuple[Path, int]], start: int, stop: int, raw: bool = False) -> list[Span]:
    """The characters from `start` up to `stop` of files that follow one another; `sizes`: the characters of each.

    >>> [(str(span.path), span.start, span.stop, span.ends)
    ...  for span in spans([(Path("a"), 5), (Path("b"), 5)], 3, 9)]
    [('a', 3, 5, True), ('b', 0, 4, False)]
    """
    found, first = [], 0
    for path, size in sizes:
        low, high = max(start - first, 0), min(stop - first, size)
        if low < high:
            found.append(Span(path, low, high, high == size, raw))
        first += size
    return found
