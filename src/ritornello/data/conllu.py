"""Dependency trees in CoNLL-U, read by the library `conllu`."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ritornello.data.text import chunks, find
from ritornello.data.trees import Trees, label_order
from ritornello.errors import ArgumentError, DataError
from ritornello.structures import Forest

_FIELDS = ("feats", "deps", "misc")  # not taken apart: nobody reads them here, and it takes a third of the time


class _Sentence(NamedTuple):
    """A sentence: for messages, where it stands; and of each word the form, the relation and the parent."""

    origin: str
    words: list[str]
    relations: list[str]
    parents: list[int]


def read_conllu(paths: str | Path | Sequence[str | Path]) -> Trees:
    """Reads the dependency tree of each sentence of UTF-8 files, or all files of folders.

    A node is a word, in the order of the sentence; its parent is its head and its label the relation to it. What is no
    word for the tree, a multiword token (`8-9`) or an empty node (`8.1`), is left out.

    Raises:
        ArgumentError: the library `conllu` is not installed.
        DataError: with file and sentence: a line that is none of CoNLL-U, words that are not numbered 1, 2, 3, ..., a
            head that is missing or no word, no root or several, a cycle; a file without a sentence.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "song.conllu")
        ...     words = ["1 da _ _ _ _ 2 case _ _", "2 capo _ _ _ _ 0 root _ _"]
        ...     _ = path.write_text("\\n".join(words).replace(" ", "\\t"))
        ...     trees = read_conllu(path)
        >>> trees.forest.parents.tolist(), trees.sentences(), [trees.label_names[k] for k in trees.labels]
        ([1, -1], [['da', 'capo']], ['case', 'root'])
    """
    sentences = [sentence for path in find(paths) for sentence in _sentences(path)]
    sizes = np.array([len(sentence.words) for sentence in sentences], np.int64)
    try:
        forest = Forest.from_flat(np.array([p for s in sentences for p in s.parents], np.int64), sizes)
    except ArgumentError:
        raise next(error for error in map(_cycle, sentences) if error) from None
    words, word_names = _indexed(word for sentence in sentences for word in sentence.words)
    labels, label_names = _indexed(relation for sentence in sentences for relation in sentence.relations)
    return Trees(forest, labels, words, label_names, word_names).relabelled(label_order(label_names))


def _indexed(names: Iterator[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    index: dict[str, int] = defaultdict(count().__next__)
    return np.fromiter(map(index.__getitem__, names), np.int64), tuple(index)


def _sentences(path: Path) -> Iterator[_Sentence]:
    try:
        from conllu.exceptions import ParseException
        from conllu.parser import parse_sentences, parse_token_and_metadata
    except ImportError:
        raise ArgumentError("CoNLL-U needs the library conllu: pip install 'ritornello[conllu]'") from None
    number, as_is = 0, {field: (lambda line, i: line[i]) for field in _FIELDS}
    for number, block in enumerate(parse_sentences(io.StringIO("".join(chunks(path)))), 1):
        origin = f"{path}, sentence {number}"
        try:
            tokens = parse_token_and_metadata(block, field_parsers=as_is)
        except ParseException as error:
            raise DataError(f"{origin}: not CoNLL-U ({error})") from None
        if "sent_id" in tokens.metadata:
            origin += f" ({tokens.metadata['sent_id']})"
        yield _sentence(origin, [token for token in tokens if isinstance(token["id"], int)])
    if not number:
        raise DataError(f"{path}: there is no sentence in it")


def _sentence(origin: str, words: list[Any]) -> _Sentence:
    if [word["id"] for word in words] != [*range(1, len(words) + 1)] or not words:
        raise DataError(f"{origin}: its words are numbered {[word['id'] for word in words]}, and not 1, 2, 3, ...")
    if any(len(word) < 8 for word in words):
        short = next(word for word in words if len(word) < 8)
        raise DataError(f"{origin}: word {short['id']} has {len(short)} columns; CoNLL-U has 10")
    for word in words:
        if word["head"] is None or not 0 <= word["head"] <= len(words):
            head = "_" if word["head"] is None else word["head"]
            raise DataError(f"{origin}: word {word['id']} has the head {head}; heads are 0 (root) to {len(words)}")
    roots = [word["id"] for word in words if word["head"] == 0]
    if len(roots) != 1:
        told = f"words {', '.join(map(str, roots))} are roots" if roots else "no word is the root"
        raise DataError(f"{origin}: {told} (head 0); a sentence has one root")
    return _Sentence(
        origin,
        [word["form"] for word in words],
        [word["deprel"] for word in words],
        [word["head"] - 1 for word in words],
    )


def _cycle(sentence: _Sentence) -> DataError | None:
    try:
        Forest.from_parents([sentence.parents])
    except ArgumentError:
        return DataError(f"{sentence.origin}: its heads form a cycle")
    return None
