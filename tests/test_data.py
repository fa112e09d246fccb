"""Text for language models: Python's own str and bytes methods are the oracle, and `tokenizers` reads every file."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from functools import partial
from itertools import accumulate, pairwise

import numpy as np
import pytest
import tokenizers
from hypothesis import assume, given
from hypothesis import strategies as st

from ritornello.data import corpus as corpus_module
from ritornello.data import tokenizer as tokenizer_module
from ritornello.data.corpus import EMBEDDED, Corpus, encode_text, help_topics, prepare, write
from ritornello.data.text import Span, blocks, chunks, find, replacing, spans, spool
from ritornello.data.tokenizer import LEVELS, StreamDecoder, Tokenizer
from ritornello.data.tokens import Part, TokenFile, encode_files
from ritornello.errors import ArgumentError, DataError, RunError
from ritornello.tasks import language_model_config

ODD = "naïve 😀 e\u0301 \u0301a \0 \r\n\n\n  don't ’tis <end><unk>\t٣ ½² ǅ 日本\u3000語"
ODD += "\x85\u2028\x1c_x \ufeff𝔘 \U0010ffff"
SAMPLE = "To be, or not to be: that is the question.\nWhether 'tis nobler\r\n\r\nin the mind\n\n\n    to" * 3 + ODD
TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("aab'  \n\n\r<end>é日😀\u0301"), max_size=80)
SPACED = st.lists(st.sampled_from(["a", "be,", " ", "   ", "\n", "\n\n", "\r\n"]), min_size=9).map("".join)
MADE = {
    (level, end): Tokenizer.train(level, [SAMPLE], {"word": 30, "bpe": 300}.get(level), end)
    for level in LEVELS
    for end in (False, True)
}
made = pytest.mark.parametrize("tokenizer", MADE.values(), ids=lambda made: f"{made.level}-{made.end}")
levels = pytest.mark.parametrize("level", LEVELS)


def pieces_of(text, size):
    return [text[start : start + size] for start in range(0, len(text), size)]


def joined(arrays, dtype):
    return np.concatenate([np.empty(0, dtype), *arrays])


def known(tokenizer, text):
    """The part of a text that the tokenizer can encode."""
    return "".join(filter(SAMPLE.__contains__, text)) if tokenizer.level == "char" else text


def write_files(folder, texts):
    paths = [folder / f"{index}.txt" for index in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode())
    return paths


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder that Hypothesis' examples may write over."""
    return tmp_path_factory.mktemp("shelf")


class TestFind:
    def test_folders_are_walked_in_order_without_hidden_files(self, tmp_path):
        for name in ("b.txt", "a/z.md", "a/b/c", ".hidden", ".git/config", "a/.b/c.txt"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("x")
        given = tmp_path / ".hidden"
        expected = [given, tmp_path / "a/b/c", tmp_path / "a/z.md", tmp_path / "b.txt"]
        assert find([given, tmp_path]) == expected
        assert find(str(given)) == [given]

    def test_errors(self, tmp_path):
        with pytest.raises(DataError, match=r"nowhere: there is no such file or folder"):
            find([tmp_path / "nowhere"])
        with pytest.raises(DataError, match="this folder holds no file"):
            find([tmp_path])

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
    def test_a_pipe_can_be_read_only_once(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DataError, match="pipe: this must be a file, for it is read more than once"):
            find([tmp_path / "pipe"])

    def test_standard_input_is_kept(self, tmp_path):
        path = spool(io.BytesIO(b"a\r\n\xff"), tmp_path / "new")
        assert path == tmp_path / "new" / "stdin.txt"
        assert path.read_bytes() == b"a\r\n\xff"


class TestChunks:
    @given(text=TEXT, size=st.integers(1, 9), mark=st.booleans())
    def test_pieces_are_the_text(self, shelf, text, size, mark):
        assume(text and not text.startswith("\ufeff"))
        path = shelf / "text"
        path.write_bytes(b"\xef\xbb\xbf" * mark + text.encode())
        assert "".join(chunks(path, size)) == text

    @given(data=st.binary(max_size=6) | st.sampled_from([b"\xf0\x9f\x98", b"\xc3("]), text=TEXT, size=st.integers(1, 9))
    def test_any_bytes(self, shelf, data, text, size):
        data = text.encode() + data + text[:3].encode()
        assume(data and not data.startswith(b"\xef\xbb\xbf"))
        path = shelf / "text"
        path.write_bytes(data)
        assert "".join(chunks(path, size, raw=True)) == data.decode(errors="surrogateescape")
        try:
            expected = data.decode()
        except UnicodeDecodeError as error:
            with pytest.raises(
                DataError, match=rf"text: byte {error.start} is 0x{data[error.start]:02x}, .*convert it"
            ):
                list(chunks(path, size))
        else:
            assert "".join(chunks(path, size)) == expected

    @pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf"])
    def test_an_empty_file_is_named(self, tmp_path, data):
        (tmp_path / "nothing").write_bytes(data)
        with pytest.raises(DataError, match="nothing: this file is empty"):
            list(chunks(tmp_path / "nothing"))

    def test_a_file_that_cannot_be_opened_is_named(self, tmp_path):
        with pytest.raises(DataError, match=r"gone: this file cannot be read \(No such file"):
            list(chunks(tmp_path / "gone"))

    def test_a_file_is_replaced_whole_or_not_at_all(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"old")
        with pytest.raises(TypeError), replacing(path) as file:
            file.writelines([b"ne", None])
        assert path.read_bytes() == b"old"
        with replacing(path) as file:
            file.write(b"new")
        assert path.read_bytes() == b"new"
        assert list(tmp_path.iterdir()) == [path]


class TestPieces:
    @given(text=TEXT | SPACED, size=st.integers(1, 9), limit=st.integers(1, 12))
    def test_blocks_depend_on_the_text_alone(self, text, size, limit):
        found = list(blocks(pieces_of(text, size), limit))
        assert "".join(found) == text
        places, start = [], 0
        while len(text) - start > limit:
            window = range(start + 1, start + limit + 1)
            ends = [place for place in window if text[place - 1] == "\n" != text[place]]
            words = [place for place in window if text[place] == " " and not text[place - 1].isspace()]
            start = ends[-1] if ends else words[-1] if words else start + limit
            places.append(start)
        assert list(accumulate(map(len, found)))[:-1] == places

    @given(texts=st.lists(TEXT.filter(bool), min_size=1, max_size=3), places=st.tuples(*[st.floats(0, 1)] * 2))
    def test_spans_cut_characters_and_lines(self, shelf, texts, places):
        assume(not any(text.startswith("\ufeff") for text in texts))
        whole = "".join(texts)
        start, stop = sorted(int(len(whole) * place) for place in places)
        sizes = list(zip(write_files(shelf, texts), map(len, texts), strict=True))
        found = spans(sizes, start, stop)
        assert "".join("".join(span.chunks()) for span in found) == whole[start:stop]
        assert [span.ends for span in found] == [span.stop == len(span.path.read_bytes().decode()) for span in found]
        expected, first = [], 0
        for text in texts:
            for line in text.split("\n"):
                if start <= first < stop and line.removesuffix("\r"):
                    expected.append(line.removesuffix("\r"))
                first += len(line) + 1
            first -= 1  # the last line of a file has no newline
        lines = [line for span in found for batch in span.lines() for line in batch]
        assert lines == expected

    def test_a_file_that_shrinks_is_an_error(self, tmp_path):
        (path,) = write_files(tmp_path, ["abc"])
        for read in (Span(path, 0, 9, True).chunks, Span(path, 0, 9, True).lines):
            with pytest.raises(DataError, match=r"0\.txt: this file became shorter"):
                list(read())


class TestTokenizer:
    @given(text=TEXT)
    def test_char_and_byte_by_definition(self, text):
        assert MADE["byte", False].encode(text).tolist() == list(text.encode())
        assume(text)
        tokenizer = Tokenizer.train("char", pieces_of(text, 3))
        alphabet = sorted(set(text))
        assert tokenizer.encode(text).tolist() == [alphabet.index(character) for character in text]
        assert [tokenizer.decode([index]) for index in range(tokenizer.vocabulary_size)] == alphabet

    @levels
    @given(text=TEXT.filter(bool))
    def test_any_text_comes_back(self, level, text):
        tokenizer = Tokenizer.train(level, [text], end_symbol=True)
        ids = tokenizer.encode(text)
        assert ids.dtype == tokenizer.dtype
        assert tokenizer.decode(ids) == text
        assert tokenizer.end not in ids
        assert b"".join(map(tokenizer.bytes_of, ids.tolist())) == text.encode()

    @made
    def test_odd_text_comes_back(self, tokenizer):
        if tokenizer.level != "word":
            assert tokenizer.decode(tokenizer.encode(ODD)) == ODD
        assert tokenizer.encode("").dtype == tokenizer.dtype
        assert tokenizer.decode(tokenizer.encode("")) == ""

    @made
    @given(text=TEXT)
    def test_the_library_reads_the_file_and_encodes_the_same(self, tokenizer, shelf, text):
        path = shelf / f"{tokenizer.level}{tokenizer.end}.json"
        if not path.exists():
            tokenizer.save(path)
        text = known(tokenizer, text)
        library, again = tokenizers.Tokenizer.from_file(str(path)), Tokenizer.load(path)
        ids = library.encode(text).ids
        assert tokenizer.encode(text).tolist() == ids
        assert library.decode(ids) == tokenizer.decode(ids)
        assert library.get_vocab_size() == tokenizer.vocabulary_size
        np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text), strict=True)
        assert vars(again).keys() == vars(tokenizer).keys()
        for name in ("level", "symbols", "dtype", "end", "unknown"):
            assert getattr(again, name) == getattr(tokenizer, name)

    @made
    @given(text=TEXT | SPACED, size=st.integers(1, 9), limit=st.integers(4, 20))
    def test_a_stream_may_be_cut_anywhere(self, tokenizer, text, size, limit):
        text = known(tokenizer, text)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokenizer_module, "blocks", partial(blocks, limit=limit))
            patch.setattr(tokenizer_module, "BATCH", 2)
            found = joined(tokenizer.encode_stream(pieces_of(text, size)), tokenizer.dtype)
            np.testing.assert_array_equal(found, joined(tokenizer.encode_stream([text]), tokenizer.dtype))
        cuts = pairwise(blocks([text], limit))
        if all(left[-1] == "\n" != right[0] or (right[0] == " " and not left[-1].isspace()) for left, right in cuts):
            np.testing.assert_array_equal(found, tokenizer.encode(text))

    @levels
    @given(texts=st.lists(TEXT, max_size=4))
    def test_documents_end(self, level, texts):
        tokenizer = MADE[level, True]
        texts = [known(tokenizer, text) for text in texts]
        expected = [index for text in texts for index in (*tokenizer.encode(text).tolist(), tokenizer.end)]
        found = tokenizer.encode_documents(texts)
        assert found.dtype == tokenizer.dtype
        assert found.tolist() == expected
        assert tokenizer.decode(found) == "".join(tokenizer.decode(tokenizer.encode(text)) for text in texts)

    @made
    def test_the_end_symbol_cannot_be_typed(self, tokenizer):
        ids = tokenizer.encode("<end>")
        assert len(ids) > 1
        assert tokenizer.end not in ids
        assert tokenizer.end in (None, tokenizer.vocabulary_size - 1)
        if tokenizer.end is not None:
            assert tokenizer.symbols[-1] == "<end>"
            assert tokenizer.bytes_of(tokenizer.end) == b""

    @made
    @given(data=st.data())
    def test_text_arrives_as_ids_do(self, tokenizer, data):
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocabulary_size - 1), max_size=40))
        decoder = StreamDecoder(tokenizer)
        pieces = [decoder.push(index) for index in ids]
        assert "".join(pieces) + decoder.finish() == tokenizer.decode(ids)
        assert tokenizer.decode(np.array(ids, tokenizer.dtype)) == tokenizer.decode(ids)

    def test_half_a_character_waits(self):
        decoder = StreamDecoder(MADE["byte", True])
        assert [decoder.push(index) for index in (0xC3, 256, 0xA9, 0xFF, 0xF0, 0x9F)] == ["", "", "é", "\ufffd", "", ""]
        assert decoder.finish() == "\ufffd"

    def test_words(self):
        text = "don't stop, don't  stop: never stop\n"
        tokenizer = Tokenizer.train("word", [text])
        words = ["don't", " stop", ",", " don't", " ", " stop", ":", " never", " stop", "\n"]
        assert [tokenizer.decode([index]) for index in tokenizer.encode(text)] == words
        counts = Counter(words)
        assert tokenizer.symbols == ["<unk>", *(repr(w)[1:-1] for w in sorted(counts, key=lambda w: (-counts[w], w)))]

    def test_rare_words_are_unknown(self):
        tokenizer = Tokenizer.train("word", ["a a a", " b b c"], vocabulary=4, end_symbol=True)
        assert tokenizer.symbols == ["<unk>", " a", " b", "<end>"]
        assert tokenizer.unknown == 0
        assert tokenizer.encode(" a c b").tolist() == [1, 0, 2]
        assert tokenizer.decode([1, 0, 2]) == " a<unk> b"

    @levels
    def test_the_vocabulary_is_as_large_as_asked(self, level):
        for end in (False, True):
            tokenizer = MADE[level, end]
            expected = {"char": len(set(SAMPLE)) + end, "byte": 256 + end, "word": 30, "bpe": 300}[level]
            assert tokenizer.vocabulary_size == len(tokenizer.symbols) == expected

    @pytest.mark.parametrize(("count", "end", "dtype"), [(256, False, "u1"), (256, True, "u2"), (65537, False, "u4")])
    def test_the_dtype_is_the_smallest(self, count, end, dtype):
        text = "".join(map(chr, range(0x10000, 0x10000 + count)))
        tokenizer = Tokenizer.train("char", [text], end_symbol=end)
        assert tokenizer.encode(text).dtype == np.dtype(dtype)
        assert tokenizer.encode(text).tolist() == list(range(count))

    @levels
    def test_learning_is_deterministic(self, tmp_path, level):
        """Another process hashes with other seeds."""
        code = (
            "import sys; from ritornello.data.tokenizer import Tokenizer;"
            "text = open(sys.argv[2], encoding='utf-8', newline='').read();"
            "Tokenizer.train(sys.argv[1], [text], {'bpe': 300}.get(sys.argv[1])).save(sys.argv[3])"
        )
        (path,) = write_files(tmp_path, [SAMPLE])
        subprocess.run([sys.executable, "-c", code, level, path, tmp_path / "there"], check=True)
        Tokenizer.train(level, [SAMPLE], {"bpe": 300}.get(level)).save(tmp_path / "here")
        assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()

    def test_symbols_can_be_printed(self):
        assert Tokenizer.train("char", ["\n \\'é\x7f"]).symbols == ["\\n", " ", "'", "\\\\", "\\x7f", "é"]
        assert [MADE["byte", True].symbols[index] for index in (10, 65, 195, 256)] == ["\\n", "A", "\\xc3", "<end>"]
        assert all(len(set(tokenizer.symbols)) == tokenizer.vocabulary_size for tokenizer in MADE.values())
        assert all(symbol.isprintable() for tokenizer in MADE.values() for symbol in tokenizer.symbols)

    def test_unknown_characters_are_listed(self):
        tokenizer = Tokenizer.train("char", ["abc"])
        with pytest.raises(DataError, match=r"'z' \(U\+007A\), '😀' \(U\+1F600\): not in the vocabulary .* 3 symbols"):
            tokenizer.encode("az😀z")
        with pytest.raises(DataError, match=r"'m' \(U\+006D\) and 3 more: not in"):
            tokenizer.encode("defghijklmnop")

    @levels
    def test_lone_surrogates(self, level):
        with pytest.raises(DataError, match=r"U\+D800 is half a character"):
            MADE[level, False].encode("a\ud800")
        if level != "byte":
            with pytest.raises(DataError, match=r"U\+D800 is half a character"):
                Tokenizer.train(level, ["a\ud800"])
        assert MADE["byte", False].encode("\udcff").tolist() == [255]

    def test_bad_choices(self):
        with pytest.raises(ArgumentError, match="unknown level 'chr': did you mean char"):
            Tokenizer.train("chr", ["a"])
        with pytest.raises(ArgumentError, match="vocabulary is 9, but level byte has no choice"):
            Tokenizer.train("byte", ["a"], vocabulary=9)
        with pytest.raises(ArgumentError, match="vocabulary is 256; level bpe needs at least 257"):
            Tokenizer.train("bpe", ["a"], vocabulary=256, end_symbol=True)
        for level in ("char", "word", "bpe"):
            with pytest.raises(DataError, match="no text to learn a vocabulary from"):
                Tokenizer.train(level, ["", ""])
        for index in (-1, 256):
            with pytest.raises(ArgumentError, match=rf"id {index} is outside the vocabulary, 0 to 255"):
                MADE["byte", False].decode([0, index])

    @levels
    def test_a_damaged_file_is_named(self, tmp_path, level):
        path = tmp_path / "tokenizer.json"
        MADE[level, True].save(path)
        other = LEVELS[LEVELS.index(level) - 1]
        with pytest.raises(RunError, match=rf"this tokenizer is of level {level}, where {other} is expected"):
            Tokenizer.load(path, other)
        with pytest.raises(ArgumentError, match="unknown level 'chr': did you mean char"):
            Tokenizer.load(path, "chr")
        whole = path.read_text("utf-8")
        gap = whole.replace(f": {MADE[level, True].end}", ": 999999")
        for damaged in ("", whole[: len(whole) // 2], "[]", '{"a": 1}', whole.replace("plit", "lit"), gap):
            if damaged != whole:
                path.write_text(damaged, "utf-8")
                with pytest.raises(RunError, match=r"tokenizer\.json: not a tokenizer that ritornello can use"):
                    Tokenizer.load(path, level)
        with pytest.raises(RunError, match=r"nowhere: not a tokenizer"):
            Tokenizer.load(tmp_path / "nowhere")

    def test_a_tokenizer_from_elsewhere_is_refused(self, tmp_path):
        tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "other.json"))
        with pytest.raises(RunError, match=r"its way of cutting text is none of ritornello's levels"):
            Tokenizer.load(tmp_path / "other.json")


class TestTokenFile:
    def test_reads_what_was_asked(self, tmp_path):
        ids = np.random.default_rng(0).integers(0, 60_000, 1000, dtype=np.uint16)
        (tmp_path / "ids").write_bytes(ids.tobytes())
        tokens = TokenFile(tmp_path / "ids", ids.dtype, 1000)
        assert len(tokens) == 1000
        np.testing.assert_array_equal(tokens.read(3, 7), ids[3:7], strict=True)
        np.testing.assert_array_equal(tokens.read(0, 1000), ids, strict=True)
        starts = np.array([0, 990, 17, 17])
        np.testing.assert_array_equal(tokens.windows(starts, 10), [ids[start : start + 10] for start in starts])
        assert tokens.windows(starts, 0).shape == (4, 0)
        assert tokens.windows(starts[:0], 5).shape == (0, 5)
        for start, stop in ((-1, 3), (998, 1001), (5, 4)):
            with pytest.raises(ArgumentError, match=rf"tokens {start} to {stop} do not lie in a file of 1000"):
                tokens.read(start, stop)

    def test_a_file_of_another_size_is_an_error(self, tmp_path):
        path = tmp_path / "ids"
        path.write_bytes(bytes(10))
        with pytest.raises(RunError, match="ids: 10 bytes, where 6 tokens take 12"):
            TokenFile(path, np.dtype("u2"), 6)
        with pytest.raises(RunError, match="gone: 0 bytes, where 6 tokens take 12"):
            TokenFile(tmp_path / "gone", np.dtype("u2"), 6)
        tokens = TokenFile(path, np.dtype("u2"), 5)
        path.write_bytes(bytes(8))
        with pytest.raises(RunError, match="ids: this file became shorter"):
            tokens.read(0, 5)


END = None  # in expected documents, below


def expected_parts(texts, shares, documents):
    """The slow version: every character of the train files, and END, by part."""
    whole = "".join(texts)
    first, last = int(len(whole) * shares[0]), len(whole) - int(len(whole) * shares[2])
    parts = {"train": [], "valid": [], "test": []}
    place = 0
    for text in texts:
        for line in text.splitlines(keepends=True) if documents == "line" else [text]:
            name = "train" if place < first else "valid" if place < last else "test"
            if documents == "line" and line.rstrip("\n"):
                parts[name] += [*line.rstrip("\n"), END]
            for character in line if documents == "file" else "":
                name = "train" if place < first else "valid" if place < last else "test"
                parts[name].append(character)
                place += 1
            if documents == "file" and len(texts) > 1:
                parts[name].append(END)
            place += len(line) if documents == "line" else 0
    return parts if shares[2] else {name: part for name, part in parts.items() if name != "test"}


def symbols_of(corpus, name):
    tokenizer, tokens = corpus.tokenizer, corpus.parts[name]
    ids = tokens.read(0, len(tokens)).tolist()
    return [END if index == tokenizer.end else tokenizer.decode([index]) for index in ids]


class TestPrepare:
    @given(
        texts=st.lists(st.text("ab\n", min_size=8, max_size=40), min_size=1, max_size=3),
        shares=st.sampled_from([(0.9, 0.1, 0.0), (0.7, 0.2, 0.1), (0.5, 0.25, 0.25), (0.6, 0.4, 0.0)]),
        documents=st.sampled_from(["file", "line"]),
    )
    def test_the_split_is_that_of_a_slow_version(self, shelf, texts, shares, documents):
        expected = expected_parts(texts, shares, documents)
        paths = write_files(shelf, texts)
        if min(map(len, expected.values())) < 2:
            with pytest.raises(DataError, match=r"needs at least two tokens|no text to learn"):
                prepare(shelf / "run", "char", paths, split=shares, documents=documents)
            return
        corpus = prepare(shelf / "run", "char", paths, split=shares, documents=documents)
        assert {name: symbols_of(corpus, name) for name in corpus.parts} == expected
        for name, info in corpus.info.items():
            ends = expected[name].count(END)
            assert info.tokens == len(corpus.parts[name]) == len(expected[name])
            assert info.characters == info.bytes == info.tokens - ends * (documents == "file")

    @levels
    def test_the_first_nine_tenths_as_nanogpt_cuts_them(self, tmp_path, level):
        (path,) = write_files(tmp_path, [SAMPLE])
        corpus = prepare(tmp_path, level, path, vocabulary=300 if level == "bpe" else None)
        first, tokenizer = int(len(SAMPLE) * 0.9), corpus.tokenizer
        for name, text in (("train", SAMPLE[:first]), ("valid", SAMPLE[first:])):
            np.testing.assert_array_equal(corpus.parts[name].read(0, len(corpus.parts[name])), tokenizer.encode(text))
            info = corpus.info[name]
            assert (info.characters, info.bytes) == (len(text), len(text.encode()))
            assert info.unknown == (0 if level != "word" else tokenizer.encode(text).tolist().count(0))
            assert info.files == [str(path)]
        assert set(corpus.parts) == {"train", "valid"}
        assert corpus.info["valid"].unknown > 0 or level != "word"

    def test_the_vocabulary_of_words_is_learnt_from_the_train_part(self, tmp_path):
        train, valid = write_files(tmp_path, ["aa bb", "bb cc"])
        assert prepare(tmp_path, "word", train, valid).tokenizer.symbols == ["<unk>", " bb", "aa"]
        assert prepare(tmp_path, "char", train, valid).tokenizer.symbols == [" ", "a", "b", "c"]
        assert prepare(tmp_path, "byte", train, valid).tokenizer.vocabulary_size == 256

    def test_files_of_parts(self, tmp_path):
        paths = write_files(tmp_path, ["abcdefghij", "kl", "mn", "opqrstuv"])
        run = tmp_path / "run"
        corpus = prepare(run, "char", paths[0], [paths[1], paths[2]], paths[3])
        assert {name: "".join(symbols_of(corpus, name)) for name in corpus.parts} == {
            "train": "abcdefghij",
            "valid": "klmn",
            "test": "opqrstuv",
        }
        corpus = prepare(run, "char", paths[0], test=[paths[1]], split=(0.5, 0.3, 0.2))
        assert ["".join(symbols_of(corpus, name)) for name in corpus.parts] == ["abcde", "fghij", "kl"]
        corpus = prepare(run, "char", paths[0], valid=[paths[1]], split=(0.5, 0.3, 0.2))
        assert ["".join(symbols_of(corpus, name)) for name in corpus.parts] == ["abcdefghij", "kl"]
        corpus = prepare(run, "char", [paths[1], paths[2]], [paths[0], paths[1]])
        assert symbols_of(corpus, "train") == [*"kl", END, *"mn", END]
        assert symbols_of(corpus, "valid") == [*"abcdefghij", END, *"kl", END]

    def test_one_file_twice_is_two_documents(self, tmp_path):
        (path,) = write_files(tmp_path, ["ab"])
        assert symbols_of(prepare(tmp_path, "char", [path, path], path), "train") == [*"ab", END, *"ab", END]

    @levels
    def test_lines_are_documents_at_every_level(self, tmp_path, level):
        (path,) = write_files(tmp_path, ["no\r\n\nyes é\n\r\n" * 9 + "no"])
        corpus = prepare(tmp_path, level, path, documents="line")
        tokens, lines = corpus.parts["train"], ["no", "yes é"] * 8 + ["no"]
        np.testing.assert_array_equal(tokens.read(0, len(tokens)), corpus.tokenizer.encode_documents(lines))
        assert "\\n" not in corpus.tokenizer.symbols or level in ("byte", "bpe")
        assert corpus.info["train"].characters == sum(len(line) + 1 for line in lines)
        assert corpus.info["train"].bytes == sum(len(line.encode()) + 1 for line in lines)

    def test_tiny_shakespeare_as_nanogpt_prepares_it(self, tmp_path, shared_data):
        corpus = prepare(tmp_path, "char", shared_data / "tinyshakespeare" / "input.txt")
        assert (corpus.tokenizer.vocabulary_size, corpus.tokenizer.dtype) == (65, np.uint8)
        assert [len(tokens) for tokens in corpus.parts.values()] == [1_003_854, 111_540]

    def test_bytes_of_any_kind(self, tmp_path):
        data = bytes(range(256)) * 4
        (tmp_path / "image").write_bytes(data)
        corpus = prepare(tmp_path / "run", "byte", tmp_path / "image")
        assert b"".join(corpus.parts[name].read(0, len(corpus.parts[name])).tobytes() for name in corpus.parts) == data
        with pytest.raises(DataError, match=r"image: byte 128 is 0x80, .* --level byte"):
            prepare(tmp_path / "run", "char", tmp_path / "image")

    def test_another_text_with_the_same_tokenizer(self, tmp_path):
        paths = write_files(tmp_path, ["abba\n" * 9, "ab\n\nba", "abc"])
        corpus = prepare(tmp_path / "run", "char", paths[0], documents="line")
        tokens, info = encode_text(corpus.tokenizer, paths[1], tmp_path / "eval", "line")
        np.testing.assert_array_equal(tokens.read(0, 6), corpus.tokenizer.encode_documents(["ab", "ba"]))
        assert (len(tokens), info.tokens, info.characters) == (6, 6, 6)
        with pytest.raises(DataError, match=r"'c' \(U\+0063\): not in the vocabulary"):
            encode_text(corpus.tokenizer, paths[2], tmp_path / "eval")

    def test_standard_input(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abcde" * 10)))
        corpus = prepare(tmp_path, "char", "-")
        assert len(corpus.parts["train"]) == 45
        assert corpus.info["train"].files == [str(tmp_path / "stdin.txt")]

    def test_progress_reaches_each_total(self, tmp_path):
        paths, seen = write_files(tmp_path, [SAMPLE, SAMPLE]), []
        prepare(tmp_path, "char", paths, progress=lambda *told: seen.append(told))
        assert list(dict.fromkeys(stage for stage, _, _ in seen)) == ["scan", "learn", "encode"]
        for name in ("scan", "learn", "encode"):
            done, totals = zip(*[told[1:] for told in seen if told[0] == name], strict=True)
            assert sorted(done) == list(done)
            assert {done[-1]} == set(totals) == {2 * len(SAMPLE.encode() if name == "scan" else SAMPLE)}

    def test_errors(self, tmp_path):
        one, empty, text = write_files(tmp_path, ["a", "", "abc\n\n\n"])
        with pytest.raises(DataError, match=r"1\.txt: this file is empty"):
            prepare(tmp_path, "char", [text, empty])
        for level in LEVELS:
            with pytest.raises(
                DataError, match=r"train part \(a share of 0.9 in 1 characters\) .* at least two tokens"
            ):
                prepare(tmp_path, level, one)
        with pytest.raises(DataError, match=r"the valid part \(a share of 0.1 in 6 characters\) comes to 1 tokens"):
            prepare(tmp_path, "char", text)
        with pytest.raises(DataError, match=r"the valid part \(a share of 0.5 in 6 characters\) comes to 0 tokens"):
            prepare(tmp_path, "char", text, split=(0.5, 0.5, 0), documents="line")
        with pytest.raises(DataError, match="the test part comes to 1 tokens"):
            prepare(tmp_path, "char", text, text, one)
        with pytest.raises(ArgumentError, match="documents is 'lines': did you mean line"):
            prepare(tmp_path, "char", text, documents="lines")
        for split in ((0.9, 0.2, 0.0), (1.0, 0.0, 0.0), (0.9, 0.2, -0.1), (0.5, 0.5), (float("nan"), 0.5, 0.5)):
            with pytest.raises(ArgumentError, match="three shares that add up to 1, those of train and valid above 0"):
                prepare(tmp_path, "char", text, split=split)
        with pytest.raises(ArgumentError, match="unknown level 'wrd': did you mean word"):
            prepare(tmp_path, "wrd", text)
        with pytest.raises(ArgumentError, match="vocabulary is 256; level bpe needs at least 257"):
            prepare(tmp_path, "bpe", [text, text], vocabulary=256)

    def test_what_fails_leaves_no_token_file(self, tmp_path):
        good, bad = write_files(tmp_path, ["abc", "abz"])
        parts = {"train": Part(spans([(good, 3)], 0, 3)), "valid": Part(spans([(bad, 3)], 0, 3))}
        with pytest.raises(DataError, match=r"'z' \(U\+007A\)"):
            encode_files(Tokenizer.train("char", ["abc"]), parts, tmp_path / "tokens")
        assert [path.name for path in (tmp_path / "tokens").iterdir()] == ["train.bin"]

    def test_opening_again(self, tmp_path):
        (path,) = write_files(tmp_path, [SAMPLE])
        corpus, again = prepare(tmp_path, "char", path), Corpus.open(tmp_path)
        assert (again.parts, again.info) == (corpus.parts, corpus.info)
        assert again.tokenizer.symbols == corpus.tokenizer.symbols
        with pytest.raises(RunError, match=r"info\.json: missing, so no text has been prepared here"):
            Corpus.open(tmp_path / "elsewhere")
        info = tmp_path / "tokens" / "info.json"
        whole = info.read_text()
        for damaged in (whole[:-5], "[]", "{}", whole.replace("unknown", "x"), whole.replace('"parts"', '"x"'), "\0"):
            info.write_text(damaged)
            with pytest.raises(RunError, match=r"info\.json: damaged"):
                Corpus.open(tmp_path)
        info.write_text(whole.replace('"format": 1', '"format": 2'))
        with pytest.raises(RunError, match="format 2, but this version reads 1"):
            Corpus.open(tmp_path)
        info.write_text(whole)
        (tmp_path / "tokens" / "valid.bin").write_bytes(b"x")
        with pytest.raises(RunError, match=r"valid\.bin: 1 bytes, where"):
            Corpus.open(tmp_path)

    @pytest.mark.parametrize(
        ("level", "documents", "sizes"),
        [("char", "file", (10, 20)), ("char", "line", (2, 4)), ("word", "file", (3, 4))],
    )
    def test_memory_does_not_grow_with_the_text(self, tmp_path, level, documents, sizes):
        peaks = []
        for megabytes in sizes:
            (path,) = write_files(tmp_path, ["It was the same, and yet not quite.\n" * (megabytes * 27_778)])
            tracemalloc.start()
            corpus = prepare(tmp_path, level, path, documents=documents)
            corpus.parts["train"].windows(np.arange(0, len(corpus.parts["train"]) - 100, 1000), 100)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < 20_000_000
        assert peaks[1] < 1.1 * peaks[0]


class TestEmbedded:
    def test_the_help_topics_are_english(self, tmp_path):
        path = write("help-topics", tmp_path / "text")
        text = path.read_bytes().decode()
        assert text == help_topics() == EMBEDDED["help-topics"]()
        assert len(text) > 300_000
        assert text.count(" the ") > 3000
        assert text.endswith("\n")
        assert not text.endswith("\n\n")

    def test_errors(self, tmp_path, monkeypatch):
        with pytest.raises(ArgumentError, match="there is no text called 'help': did you mean help-topics"):
            write("help", tmp_path / "text")
        monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
        with pytest.raises(DataError, match="this Python came without its help topics"):
            help_topics()


def test_text_needs_no_torch():
    code = "import sys, ritornello.data.corpus; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_words_that_the_vocabulary_lacks_are_named():
    tokenizer = Tokenizer.train("word", ["the cat sat on the mat"])
    assert tokenizer.lacking("the dog sat on the dog, the cow") == ["dog", ",", "cow"]
    assert tokenizer.lacking("the cat") == []
    assert Tokenizer.train("byte", ["a"]).lacking("zebra") == []


def test_the_options_offer_what_the_data_has():
    """The lists of the configuration stand apart, so that `rit --help` imports no tokenizer."""
    assert set(language_model_config.LEVELS) == set(tokenizer_module.LEVELS) == set(language_model_config.ORDERS)
    assert language_model_config.DOCUMENTS == corpus_module.DOCUMENTS
