"""Trees in files against a naive recursive reader and writer, and against the counts of real sets."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from ritornello.data.brackets import format_trees, parse_trees, read_trees, write_trees
from ritornello.data.conllu import read_conllu
from ritornello.data.trees import Trees
from ritornello.data.vocabulary import Vocabulary
from ritornello.errors import ArgumentError, DataError, RunError


class Node(NamedTuple):
    """A tree as one would write it down: a leaf has a word and no children."""

    label: str | None
    word: str | None
    children: tuple[Node, ...] = ()


# What separates tokens is the ASCII space, tab and line ends, and brackets; all else is a part of them.
LETTERS = st.sampled_from("ab3-é\u00a0\u2028\x85\x0b'\\")
NAMES = st.text(LETTERS, min_size=1, max_size=3) | st.sampled_from(["(", "x)y", "<unk>"])
BARE = st.builds(Node, st.none(), NAMES, st.just(()))


def nodes_over(
    label: st.SearchStrategy[str | None], children: st.SearchStrategy[list[Node]]
) -> st.SearchStrategy[Node]:
    return st.builds(Node, label, st.none(), children.map(tuple))


LABELLED = st.recursive(
    st.builds(Node, NAMES, NAMES, st.just(())),
    lambda below: nodes_over(
        NAMES, st.lists(below | BARE, min_size=2, max_size=4) | st.lists(below, min_size=1, max_size=1)
    ),
    max_leaves=8,
)
PLAIN = st.recursive(
    BARE,
    lambda below: (
        nodes_over(st.none(), st.lists(below, min_size=2, max_size=4))
        | nodes_over(st.none(), st.tuples(nodes_over(st.none(), st.lists(below, min_size=2, max_size=4))))
    ),
    max_leaves=8,
)


def escaped(name: str) -> str:
    return name.replace("(", "-LRB-").replace(")", "-RRB-")


def written(tree: Node, space: Callable[[], str] = lambda: " ", top: bool = True) -> str:
    """The definition of the format; `space` is what stands between two names, or around them."""
    if tree.word is not None and tree.label is None and not top:
        return escaped(tree.word)
    parts = [escaped(name) for name in (tree.label, tree.word) if name is not None]
    parts += [written(child, space, False) for child in tree.children]
    return "(" + space().join(parts) + ")"


def walked(tree: Node, parent: int, found: list[tuple[int, Node]]) -> None:
    found.append((parent, tree))
    number = len(found) - 1
    for child in tree.children:
        walked(child, number, found)


def nodes(trees: Trees) -> list[list[tuple[int, str | None, str | None]]]:
    """For each tree and node the parent, the label and the word."""
    labels = [*trees.label_names, None]
    words = [*trees.word_names, None]
    columns = zip(trees.forest.parents.tolist(), trees.labels.tolist(), trees.words.tolist(), strict=True)
    rows = iter([(parent, labels[label], words[word]) for parent, label, word in columns])
    return [[next(rows) for _ in range(size)] for size in trees.forest.sizes.tolist()]


def expected(batch: list[Node]) -> list[list[tuple[int, str | None, str | None]]]:
    found = []
    for tree in batch:
        walk: list[tuple[int, Node]] = []
        walked(tree, -1, walk)
        found.append([(parent, node.label, node.word) for parent, node in walk])
    return found


@pytest.mark.parametrize("labelled", [True, False])
@given(data=st.data())
def test_what_is_written_is_read(labelled: bool, data: st.DataObject) -> None:
    batch = data.draw(st.lists(LABELLED if labelled else PLAIN, min_size=1, max_size=4))
    spaces: Iterator[str] = iter(data.draw(st.lists(st.sampled_from(["\n", "  ", "\t", "\r\n "]), max_size=20)))
    text = "\n".join(written(tree, lambda: next(spaces, " ")) for tree in batch)
    trees = parse_trees(text, labelled=labelled)
    assert nodes(trees) == expected(batch)
    lines = format_trees(trees)
    assert lines == [written(tree) for tree in batch]
    assert nodes(parse_trees("\n".join(lines), labelled=labelled)) == nodes(trees)


def nested(text: str) -> list[Any]:
    """Brackets as lists; ValueError where they are not balanced or a name stands outside of them."""
    stack: list[list[Any]] = [[]]
    for token in filter(None, text.replace("(", " ( ").replace(")", " ) ").replace("\n", " ").split(" ")):
        if token == "(":
            stack[-1].append([])
            stack.append(stack[-1][-1])
        elif token == ")":
            stack.pop()
            if not stack:
                raise ValueError(text)
        else:
            stack[-1].append(token.replace("-LRB-", "(").replace("-RRB-", ")"))
    if len(stack) > 1 or not stack[0] or any(isinstance(item, str) for item in stack[0]):
        raise ValueError(text)
    return stack[0]


def meant(items: Any, labelled: bool, top: bool = False) -> Node:
    """The definition of what a bracket means; ValueError where it means nothing."""
    if isinstance(items, str):
        return Node(None, items)
    if labelled and top and len(items) == 1 and isinstance(items[0], list):
        return meant(items[0], labelled)
    label, rest = (items[0], items[1:]) if labelled and items else (None, items)
    if isinstance(label, list) or not rest:
        raise ValueError(items)
    if len(rest) == 1 and isinstance(rest[0], str):
        return Node(label, rest[0])
    return Node(label, None, tuple(meant(item, labelled) for item in rest))


TOKENS = st.lists(st.sampled_from(["(", "(", "(", ")", ")", ")", "a", "b", "\n"]), max_size=14).map(" ".join)


@given(st.one_of(TOKENS, st.lists(LABELLED | PLAIN, max_size=2).map(lambda batch: " ".join(map(written, batch)))))
@pytest.mark.parametrize("labelled", [True, False])
def test_any_text_is_read_as_meant_or_refused(labelled: bool, text: str) -> None:
    try:
        wanted = [meant(items, labelled, True) for items in nested(text)]
    except ValueError:
        with pytest.raises(DataError, match=r"^text(: there is no|, line \d+, column \d+: (this|the) )"):
            parse_trees(text, labelled=labelled)
    else:
        assert nodes(parse_trees(text, labelled=labelled)) == expected(wanted)


@pytest.mark.parametrize(
    ("text", "labelled", "lines"),
    [
        ("(3 (2 The)(4 (4 gorgeous) (2 film)))", True, ["(3 (2 The) (4 (4 gorgeous) (2 film)))"]),
        (
            "( (S\n  (NP (DT the)\n (NN cat)) (VP sat)) )\n\n(X y)\n",
            True,
            ["(S (NP (DT the) (NN cat)) (VP sat))", "(X y)"],
        ),
        ("(S the (NN cat) sat)(2 no)", True, ["(S the (NN cat) sat)", "(2 no)"]),
        ("(NP the cat)", True, ["(NP the cat)"]),
        ("((a b) c) (d)", False, ["((a b) c)", "(d)"]),
        ("(((a) b))", False, ["((a b))"]),  # a bracket around one word is the word
        ("(-LRB- -LRB-)", True, ["(-LRB- -LRB-)"]),
        ("(A (B (C d)))", True, ["(A (B (C d)))"]),
    ],
)
def test_ways_to_write_trees(text: str, labelled: bool, lines: list[str]) -> None:
    assert format_trees(parse_trees(text, labelled=labelled)) == lines


def test_words_are_cut_at_ascii_spaces_and_brackets_alone() -> None:
    trees = parse_trees("(3 (2 8\u00a01/2) (2 -LRB-a-RRB-))")
    assert trees.sentences() == [["8\u00a01/2", "(a)"]]
    assert format_trees(trees) == ["(3 (2 8\u00a01/2) (2 -LRB-a-RRB-))"]


BROKEN = {
    "(2 a": "line 1, column 1: the tree that begins here does not end: 1 closing bracket is missing$",
    "(2 a)\n (2 (3 (1 b\n(2 c)": "line 2, column 2: the tree .* does not end: 3 closing brackets are missing$",
    "(2 a))": "line 1, column 6: this bracket closes nothing$",
    "(2 a)\r\n\u00e9\u00e9 (2 b)": "line 2, column 1: this stands outside of any tree$",
    "(2 a) 3": "line 1, column 7: this stands outside of any tree$",
    "word": "line 1, column 1: this stands outside of any tree$",
    "x)(": "line 1, column 1: this stands outside of any tree$",
    ")(": "line 1, column 1: this bracket closes nothing$",
    "()": "line 1, column 1: this bracket is empty: a tree has a word at least$",
    "(2 (1 a)\n ( ))": "line 2, column 2: this bracket is empty",
    "(2 (1 a) ((2 b) (2 c)))": "line 1, column 10: this bracket has no label$",
    "( (2 a) (2 b))": "line 1, column 1: this bracket has no label$",
    "( (2 a) b)": "line 1, column 1: this bracket has no label$",
    "(2 (1 a)\n\t(b))": "line 2, column 2: this bracket has a label or a word, and needs both$",
    "((2 a)) ((2 b) ((1 c)))": "line 1, column 9: this bracket has no label$",  # the first bracket is left out
    "((2 a)) ((2 (b)))": "line 1, column 13: this bracket has a label or a word",
    "": "there is no tree in it$",
    " \n": "there is no tree in it$",
}


@pytest.mark.parametrize("text", BROKEN)
def test_where_brackets_are_wrong(text: str) -> None:
    separator = ": " if BROKEN[text].startswith("there") else ", "
    with pytest.raises(DataError, match=f"^text{separator}{BROKEN[text]}"):
        parse_trees(text)


def test_a_bracket_without_label_is_none_of_the_errors_without_labels() -> None:
    with pytest.raises(DataError, match=r"^text, line 1, column 4: this bracket is empty"):
        parse_trees("(a ())", labelled=False)
    with pytest.raises(DataError, match=r"^text, line 1, column 1: this stands outside"):
        parse_trees("a (b c)", labelled=False)


def test_labels() -> None:
    text = "(10 (9 a) (-1 b))"
    assert parse_trees(text).label_names == ("-1", "9", "10")
    assert parse_trees(text.replace("9", "S")).label_names == ("-1", "10", "S")
    legal = [str(k) for k in range(-1, 11)]
    trees = parse_trees(text, label_names=legal)
    assert (trees.labels.tolist(), trees.label_names) == ([11, 10, 0], tuple(legal))
    with pytest.raises(DataError, match=r"^text, line 2, column 3: the label is '5': .*Known: 0, 1, 2, 3, 4$"):
        parse_trees("(0 a)\n (5 (2 a) (6 a))", label_names=list("01234"))
    with pytest.raises(DataError, match=r"^tree 1 has the label 'NP': did you mean N\? Known: N, S$"):
        parse_trees("(S a) (S (NP a) b)").relabelled(["S", "N"])
    assert parse_trees("(a b)", labelled=False, label_names=["x"]).label_names == ("x",)


def test_labels_may_be_brackets() -> None:
    trees = parse_trees("(-LRB- a)", label_names=["("])
    assert (trees.labels.tolist(), trees.label_names) == ([0], ("(",))


def test_labels_in_groups() -> None:
    trees = parse_trees("(0 (1 a) (2 b)) (4 (3 c) d)").grouped([["3", "4"], ["0", "7"]])
    assert (trees.labels.tolist(), trees.label_names) == ([1, -1, -1, 0, 0, -1], ("3+4", "0+7"))
    assert format_trees(trees[1]) == ["(3+4 (3+4 c) d)"]


def test_errors_name_the_source() -> None:
    with pytest.raises(DataError, match=r"^a letter, line 1, column 1: the tree that begins here does not end"):
        parse_trees("(1 a", source="a letter")


def test_files(tmp_path: Path) -> None:
    for name, text in {"a.txt": "\ufeff(1 x)\n", "b.txt": "(0 (1 y) (1 x))"}.items():
        (tmp_path / name).write_text(text, "utf-8")
    trees = read_trees([tmp_path / "a.txt", tmp_path / "b.txt"])
    assert trees.word_names == ("x", "y")
    assert format_trees(trees) == ["(1 x)", "(0 (1 y) (1 x))"]
    write_trees(tmp_path / "c.txt", trees)
    assert (tmp_path / "c.txt").read_bytes() == b"(1 x)\n(0 (1 y) (1 x))\n"
    (tmp_path / "c.txt").write_text("(1 x)\n(2")
    with pytest.raises(DataError, match=r"c\.txt, line 2, column 1: the tree that begins here does not end"):
        read_trees(tmp_path)
    (tmp_path / "c.txt").write_text("\n")
    with pytest.raises(DataError, match=r"c\.txt: there is no tree in it$"):
        read_trees(tmp_path)
    with pytest.raises(DataError, match=r"^There is no file of trees to read\.$"):
        read_trees([])


def test_some_of_the_trees() -> None:
    trees = parse_trees("(1 a) (0 (1 b) (2 c)) (2 d)")
    assert format_trees(trees[1]) == ["(0 (1 b) (2 c))"]
    assert format_trees(trees[[2, 0]]) == ["(2 d)", "(1 a)"]
    assert format_trees(trees[np.array([True, False, True])]) == ["(1 a)", "(2 d)"]
    assert len(trees[1:]) == 2
    assert trees[[2, 1]].sentences() == [["d"], ["b", "c"]]
    assert trees.word_counts() == {"a": 1, "b": 1, "c": 1, "d": 1}


DEEP = 50_000


def test_a_tree_as_deep_as_no_recursion_goes() -> None:
    text = "(1 (0 a) " * DEEP + "(2 b)" + ")" * DEEP
    trees = parse_trees(text)
    assert trees.forest.heights[0] == DEEP
    assert format_trees(trees) == [text]
    assert trees.binarised().forest.nodes == trees.collapsed().forest.nodes == 2 * DEEP + 1
    chain = parse_trees("(1 " * DEEP + "(2 b)" + ")" * DEEP)
    assert format_trees(chain.collapsed()) == ["(1 b)"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": [-1, 0, -1]}, "^tree 0: node 2 is a leaf without a word; brackets cannot tell$"),
        ({"words": [0, 0, 1]}, "^tree 0: node 0 has children and a word;"),
        ({"labels": [-1, 0, 0]}, "^tree 0: node 0 has no label, and others have;"),
        ({"word_names": ("New York", "b")}, "^'New York' is empty or holds a space or line end"),
        ({"label_names": ("",)}, "^'' is empty"),
    ],
)
def test_what_brackets_cannot_hold(change: dict[str, Any], message: str) -> None:
    trees = parse_trees("(1 (1 a) (1 b))")
    parts = {name: getattr(trees, name) for name in ("forest", "labels", "words", "label_names", "word_names")}
    parts |= {name: value if isinstance(value, tuple) else np.array(value) for name, value in change.items()}
    with pytest.raises(DataError, match=message):
        format_trees(Trees(**parts))


def test_an_only_child_without_a_label_is_not_written() -> None:
    trees = parse_trees("(1 (1 a))")
    bare = Trees(trees.forest, np.array([0, -1]), trees.words, trees.label_names, trees.word_names)
    with pytest.raises(DataError, match=r"^tree 0: node 1 is an only child and has no label"):
        format_trees(bare)


# Other shapes.


def collapsed(tree: Node) -> Node:
    low = tree
    while len(low.children) == 1:
        low = low.children[0]
    return Node(tree.label, low.word, tuple(map(collapsed, low.children)))


def binarised(tree: Node, side: str) -> Node:
    children = [binarised(child, side) for child in tree.children]
    while len(children) > 2:
        children = (
            [*children[:-2], Node(None, None, tuple(children[-2:]))]
            if side == "right"
            else [Node(None, None, tuple(children[:2])), *children[2:]]
        )
    return Node(tree.label, tree.word, tuple(children))


@given(st.lists(LABELLED, min_size=1, max_size=4))
@example([Node("a", None, tuple(Node("b", str(k)) for k in range(6)))])
def test_collapsed_and_binarised(batch: list[Node]) -> None:
    trees = parse_trees(" ".join(map(written, batch)))
    assert nodes(trees.collapsed()) == expected([collapsed(tree) for tree in batch])
    for side in ("left", "right"):
        two = trees.binarised(side)
        assert nodes(two) == expected([binarised(tree, side) for tree in batch])
        assert two.forest.counts.max() <= 2
        assert set(two.forest.slots.tolist()) <= {-1, 0, 1}
    with pytest.raises(ArgumentError, match=r"^side is 'up': Known: left, right"):
        trees.binarised("up")


# Vocabularies.


def test_a_vocabulary_of_words(tmp_path: Path) -> None:
    trees = parse_trees("(1 (1 b) (1 (1 a) (1 b))) (1 c\u00a0d)")
    vocabulary = Vocabulary.learn(trees.word_counts())
    assert vocabulary.names == ("<unk>", "b", "a", "c\u00a0d")
    vocabulary.save(tmp_path / "tokenizer.json")
    assert Vocabulary.load(tmp_path / "tokenizer.json") == vocabulary
    library = Library.from_file(str(tmp_path / "tokenizer.json"))
    assert library.encode("a c\u00a0d b e").ids == vocabulary.ids(["a", "c\u00a0d", "b", "e"]).tolist() == [2, 3, 1, 0]
    other = parse_trees("(1 (1 e) (1 b))").encoded(vocabulary)
    assert (other.words.tolist(), other.sentences()) == ([-1, 0, 1], [["<unk>", "b"]])
    assert Vocabulary.learn(trees.word_counts(), size=2).names == ("<unk>", "b")
    assert Vocabulary.learn(trees.word_counts(), least=2).names == ("<unk>", "b")


def test_a_vocabulary_holds_the_unknown_word_once_and_orders_ties_by_the_alphabet() -> None:
    assert Vocabulary.learn({"<unk>": 3, "b": 1, "a": 1}).names == ("<unk>", "a", "b")


def test_what_is_no_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"^a vocabulary begins with <unk> and holds each word once"):
        Vocabulary(("<unk>", "a", "a"))
    with pytest.raises(ArgumentError, match=r"^size and least must be positive integers, not 0 and 1"):
        Vocabulary.learn({}, size=0)
    with pytest.raises(RunError, match=r"tokenizer\.json: not a vocabulary of words \(.*No such file"):
        Vocabulary.load(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RunError, match=r"tokenizer\.json: not a vocabulary of words"):
        Vocabulary.load(tmp_path / "tokenizer.json")


# Dependencies.


def conllu(*sentences: str) -> str:
    """Sentences of words `form/head/relation` as CoNLL-U; what begins with # or holds a tab is a line as it is."""
    blocks = []
    for sentence in sentences:
        lines, number = [], 0
        for item in sentence.split("|"):
            if item.startswith("#") or "\t" in item:
                lines.append(item)
            else:
                form, head, relation = item.split("/")
                number += 1
                lines.append(f"{number}\t{form}\t{form}\tX\tX\t_\t{head}\t{relation}\t_\t_")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n\n"


MULTIWORD = "2-3\tau\t_\t_\t_\t_\t_\t_\t_\t_"
EMPTY = "1.1\tdit\t_\t_\t_\t_\t_\t_\t1:x\t_"


def test_dependency_trees(tmp_path: Path) -> None:
    path = tmp_path / "a.conllu"
    text = conllu(f"# sent_id = s1|va/0/root|{EMPTY}|{MULTIWORD}|à/4/case|le/4/det|20\u00a0000/1/obl", "oui/0/root")
    path.write_text(text, "utf-8")
    trees = read_conllu(path)
    assert nodes(trees) == [
        [(-1, "root", "va"), (3, "case", "à"), (3, "det", "le"), (0, "obl", "20\u00a0000")],
        [(-1, "root", "oui")],
    ]
    assert trees.label_names == ("case", "det", "obl", "root")
    path.write_text(text.replace("\n", "\r\n"), "utf-8")
    assert nodes(read_conllu(path)) == nodes(trees)
    with pytest.raises(DataError, match=r"^tree 0: node 0 has children and a word; brackets cannot tell"):
        format_trees(trees)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            conllu("a/0/root", "# sent_id = s2|a/0/root|b/0/root"),
            r"sentence 2 \(s2\): words 1, 2 are roots \(head",
        ),
        (conllu("a/2/x|b/1/x"), "sentence 1: no word is the root"),
        (conllu("a/0/root", "# sent_id = s2|a/0/root|b/3/x|c/2/x"), r"sentence 2 \(s2\): its heads form a cycle$"),
        (conllu("a/_/x"), r"sentence 1: word 1 has the head _; heads are 0 \(root\) to 1$"),
        (conllu("a/0/x|b/3/x"), r"sentence 1: word 2 has the head 3; heads are 0 \(root\) to 2$"),
        (conllu("a/x/x"), r"sentence 1: not CoNLL-U \(.*'x' is not a valid"),
        ("some words\n", r"sentence 1: not CoNLL-U \("),
        ("1\ta\n", "sentence 1: word 1 has 2 columns; CoNLL-U has 10$"),
        ("# nothing\n", r"sentence 1: its words are numbered \[\], and not 1, 2, 3"),
        ("2" + conllu("a/0/root")[1:], r"sentence 1: its words are numbered \[2\], and not 1, 2, 3"),
        ("\n", "there is no sentence in it$"),
    ],
)
def test_what_is_no_dependency_tree(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.conllu"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"a\.conllu[:,] {message}"):
        read_conllu(path)


def test_without_the_library_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.conllu").write_text(conllu("a/0/root"))
    for name in ("conllu", "conllu.parser", "conllu.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ArgumentError, match=r"^CoNLL-U needs the library conllu: pip install 'ritornello\[conllu\]'$"):
        read_conllu(tmp_path / "a.conllu")


# Real sets; the counts are those of their README.


@pytest.mark.parametrize(
    ("part", "counts", "roots"),
    [
        ("train", (8544, 318_582, 163_563), [1092, 2218, 1624, 2322, 1288]),
        ("dev", (1101, 41_447, 21_274), [139, 289, 229, 279, 165]),
        ("test", (2210, 82_600, 42_405), [279, 633, 389, 510, 399]),
    ],
)
def test_sentiments(shared_data: Path, part: str, counts: tuple[int, ...], roots: list[int]) -> None:
    path = shared_data / "sst_trees" / f"{part}.txt"
    trees = read_trees(path)
    assert (len(trees), trees.forest.nodes, len(trees.forest.leaves)) == counts
    assert trees.label_names == tuple("01234")
    assert np.bincount(trees.labels[trees.forest.roots]).tolist() == roots
    assert set(trees.forest.counts.tolist()) == {0, 2}
    assert ("\n".join(format_trees(trees)) + "\n").encode() == path.read_bytes()


@pytest.mark.parametrize(
    ("part", "sentences", "words"),
    [
        ("ud_english_ewt/en_ewt-ud-dev", 2001, 25_147),
        ("ud_english_ewt/en_ewt-ud-test", 2077, 25_094),
        ("ud_french_sequoia/fr_sequoia-ud-dev", 412, 9999),
        ("ud_french_sequoia/fr_sequoia-ud-test", 456, 10_044),
    ],
)
def test_universal_dependencies(shared_data: Path, tmp_path: Path, part: str, sentences: int, words: int) -> None:
    path = tmp_path / "part.conllu"
    path.write_bytes(gzip.decompress((shared_data / f"{part}.conllu.gz").read_bytes()))
    trees = read_conllu(path)
    assert (len(trees), trees.forest.nodes) == (sentences, words)
    assert {trees.label_names[label] for label in trees.labels[trees.forest.roots]} == {"root"}
