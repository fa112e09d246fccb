"""A text prepared for a language model, from files of the user's or from text that needs no download."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ritornello.data.text import chunks, find, replacing, spans, spool
from ritornello.data.tokenizer import Tokenizer, check
from ritornello.data.tokens import Meter, Part, PartInfo, Progress, TokenFile, encode_files
from ritornello.errors import ArgumentError, DataError, RunError, nearest

FORMAT = 1
DOCUMENTS = ("file", "line")
Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Corpus:
    """A prepared text: `tokenizer`, `parts` ("train", "valid" and perhaps "test") and `info` about each."""

    tokenizer: Tokenizer
    parts: dict[str, TokenFile]
    info: dict[str, PartInfo]

    @classmethod
    def open(cls, folder: str | Path) -> Corpus:
        """Opens what `prepare` wrote to `folder`: tokenizer.json, tokens/info.json and tokens/<part>.bin.

        Raises:
            RunError: a file is missing or damaged, or another version wrote it.
        """
        path = Path(folder) / "tokens" / "info.json"
        if not path.is_file():
            raise RunError(f"{path}: missing, so no text has been prepared here, or not to the end; prepare it (again)")
        try:
            record = json.loads(path.read_text("utf-8"))
            if record["format"] != FORMAT:
                raise RunError(f"{path}: format {record['format']}, but this version reads {FORMAT}; prepare it again")
            tokenizer = Tokenizer.load(Path(folder) / "tokenizer.json")
            info = {name: PartInfo(**part) for name, part in record["parts"].items()}
            files = {name: path.with_name(f"{name}.bin") for name in info}
            parts = {name: TokenFile(files[name], tokenizer.dtype, part.tokens) for name, part in info.items()}
        except (UnicodeDecodeError, json.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
            raise RunError(f"{path}: damaged ({error!r}); prepare the text again") from None
        return cls(tokenizer, parts, info)


def prepare(
    folder: str | Path,
    level: str,
    train: Paths,
    valid: Paths = (),
    test: Paths = (),
    *,
    split: tuple[float, float, float] = (0.9, 0.1, 0.0),
    vocabulary: int | None = None,
    documents: str = "file",
    progress: Progress | None = None,
) -> Corpus:
    """Makes a tokenizer for a text and writes the text's tokens to `folder`, in memory that does not grow with it.

    The text is read three times: to count and check it, to learn the vocabulary (level "char" from every part, "word"
    and "bpe" from the train part alone), and to encode it.

    Args:
        train, valid, test: files, folders (see `ritornello.data.text.find`) or "-" for standard input, which is kept
            in `folder`/stdin.txt. The files of a part follow one another.
        split: used without `valid` files, to cut the train text by characters: the first int(split[0] * n) are for
            training, the last int(split[2] * n) for the test unless it has files, and what is between for validation.
        documents: what a document is, "file" or "line". With more than one train file, or with lines, `<end>` follows
            each document; a line loses its newline (or carriage return and newline) and an empty one is skipped. A
            line belongs to the part that its first character falls in.
        vocabulary: see `Tokenizer.train`.
        progress: called with stage ("scan", "learn", "encode"), done and total: bytes in "scan", else characters.

    Raises:
        ArgumentError: a level, vocabulary, split or kind of document that does not fit.
        DataError: a file that is missing, empty or not UTF-8 (level "byte" takes any bytes), or a part with fewer than
            two tokens.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "song.txt")
    ...     _ = path.write_text("da capo al fine " * 10)
    ...     corpus = prepare(folder, "char", path)
    ...     print({name: len(tokens) for name, tokens in corpus.parts.items()})
    ...     print(corpus.tokenizer.decode(corpus.parts["valid"].read(0, 15)))
    {'train': 144, 'valid': 16}
    da capo al fine
    """
    folder, raw = Path(folder), level == "byte"
    _check_choices(split, documents)
    files = {name: _files(paths, folder) for name, paths in (("train", train), ("valid", valid), ("test", test))}
    end_symbol = documents == "line" or len(files["train"]) > 1
    check(level, vocabulary, end_symbol)
    parts = _cut(_scan(files, raw, progress), split, documents, raw)
    tokenizer = _learn(level, parts, vocabulary, end_symbol, progress)
    (folder / "tokens" / "info.json").unlink(missing_ok=True)  # what it says is about to change
    info = encode_files(tokenizer, parts, folder / "tokens", progress)
    tokenizer.save(folder / "tokenizer.json")
    record = {"format": FORMAT, "parts": {name: asdict(part) for name, part in info.items()}}
    with replacing(folder / "tokens" / "info.json") as file:
        file.write(json.dumps(record, indent=1).encode())
    return Corpus.open(folder)


def encode_text(
    tokenizer: Tokenizer, paths: Paths, folder: str | Path, documents: str = "file"
) -> tuple[TokenFile, PartInfo]:
    """Encodes files with a tokenizer that exists, into `folder`; arguments and errors as in `prepare`.

    Returns:
        The tokens, and what they were made from.
    """
    folder, raw = Path(folder), tokenizer.level == "byte"
    sizes = _scan({"text": _files(paths, folder)}, raw, None)
    part = Part(spans(sizes["text"], 0, sys.maxsize, raw), documents)
    info = encode_files(tokenizer, {"text": part}, folder)["text"]
    return TokenFile(folder / "text.bin", tokenizer.dtype, info.tokens), info


def _check_choices(split: Sequence[float], documents: str) -> None:
    if documents not in DOCUMENTS:
        raise ArgumentError(f"documents is {documents!r}: {nearest(documents, DOCUMENTS)}")
    if len(split) != 3 or min(split[:2]) <= 0 or split[2] < 0 or not abs(sum(split) - 1) < 1e-6:
        raise ArgumentError(
            f"split is {split}; it must be three shares that add up to 1, those of train and valid above 0"
        )


def _files(paths: Paths, folder: Path) -> list[Path]:
    several = [paths] if isinstance(paths, str | Path) else paths
    return find([spool(sys.stdin.buffer, folder) if str(path) == "-" else path for path in several])


def _scan(files: dict[str, list[Path]], raw: bool, progress: Progress | None) -> dict[str, list[tuple[Path, int]]]:
    """How many characters each file has; reading it all, it meets every error that a file can have."""
    meter = Meter("scan", sum(path.stat().st_size for paths in files.values() for path in paths), progress)
    sizes: dict[str, list[tuple[Path, int]]] = {name: [] for name in files}
    for name, paths in files.items():
        for path in paths:
            before = meter.characters
            for text in chunks(path, raw=raw, advice=", or model its bytes with --level byte"):
                meter.add(text)
            sizes[name].append((path, meter.characters - before))
    meter.tell(meter.total)
    return sizes


def _cut(
    sizes: dict[str, list[tuple[Path, int]]], split: Sequence[float], documents: str, raw: bool
) -> dict[str, Part]:
    """The parts: those of given files, the others cut from the train text."""
    count = sum(size for _, size in sizes["train"])
    first = count if sizes["valid"] else int(count * split[0])
    last = count if sizes["valid"] or sizes["test"] else count - int(count * split[2])
    parts = {}
    for name, share, start, stop in zip(sizes, split, (0, first, last), (first, last, count), strict=True):
        if sizes[name] and name != "train":
            parts[name] = Part(spans(sizes[name], 0, sys.maxsize, raw), documents)
        elif name == "train" or (share > 0 and not sizes["valid"]):
            origin = f" (a share of {share} in {count} characters)" if first < count else ""
            parts[name] = Part(spans(sizes["train"], start, stop, raw), documents, origin)
            if start == stop:
                raise parts[name].too_small(name, 0)
    return parts


def _learn(
    level: str, parts: dict[str, Part], vocabulary: int | None, end_symbol: bool, progress: Progress | None
) -> Tokenizer:
    source = [*parts.values()] if level == "char" else [parts["train"]]
    meter = Meter("learn", sum(part.characters for part in source), progress)
    texts = (text for part in source for text in part.texts(meter))
    tokenizer = Tokenizer.train(level, texts, vocabulary, end_symbol)
    meter.tell(meter.total)
    return tokenizer


def help_topics() -> str:
    """English prose that every CPython carries: what `help("LAMBDAS")` and its like print, in the keys' order.

    About half a million characters of 100 kinds; it differs a little from one Python version to the next.

    Raises:
        DataError: this Python was packaged without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError("this Python came without its help topics (pydoc_data); use a text of your own") from None
    return "\n\n".join(topics[key].strip("\n") for key in sorted(topics)) + "\n"


EMBEDDED: dict[str, Callable[[], str]] = {"help-topics": help_topics}


def write(name: str, path: str | Path) -> Path:
    """Writes the text called `name` in `EMBEDDED` as the UTF-8 file `path`, and returns that path.

    Raises:
        ArgumentError: there is no text of that name.
    """
    if name not in EMBEDDED:
        raise ArgumentError(f"there is no text called {name!r}: {nearest(name, EMBEDDED)}")
    path = Path(path)
    path.write_bytes(EMBEDDED[name]().encode())
    return path
