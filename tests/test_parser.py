"""Parsing by a recursive network: searches beside all trees there are, margins, baselines, sentences and scenes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

import ritornello as rit
from ritornello.data.brackets import parse_trees
from ritornello.data.scenes import FEATURES, Scene, _touching, scenes
from ritornello.errors import ArgumentError, RunError
from ritornello.models import merging
from ritornello.models.merging import Instances, beam_search
from ritornello.models.parser import Parser, SentenceParser, bracket_f1, branching, groups_of, region_f1, wrong_in
from ritornello.structures import Forest, preorder

F64 = torch.float64
CELLS = {"tree-lstm": rit.cells.TreeLSTM, "lstm": rit.LSTM, "recursive": rit.cells.RecursiveNet}


def parser(cell: str = "tree-lstm", seed: int = 0) -> Parser:
    torch.manual_seed(seed)
    made = Parser(CELLS[cell], 3, 4).to(F64)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return made


def in_brackets(trees: Forest) -> Forest:
    return Forest.from_depths(preorder(trees)[1])


# The naive twins: every derivation that there is.


def state_of(made: Parser, tree: Any, x: torch.Tensor) -> tuple[Any, float]:
    """The state of a nested pair of leaves, and the summed score of its merges."""
    cell = made.unfold.cell
    if isinstance(tree, int):
        blank = cell.zero_state(1, x)
        return cell(x[tree : tree + 1], *[blank] * (cell.slots or 1)), 0.0
    (left, a), (right, b) = (state_of(made, part, x) for part in tree)
    nodes, _ = made._compose(left, right)
    return nodes, a + b + float(made.score(nodes[0]))


def derivations(nodes: tuple[Any, ...], linked: frozenset[frozenset[int]], ids: tuple[int, ...]) -> Iterator[Any]:
    """All trees over a graph, as nested pairs; the place of a node is its first leaf's."""
    if len(nodes) == 1:
        yield nodes[0]
        return
    for i in range(len(nodes)):
        for j in range(i + 1, len(nodes)):
            if frozenset((ids[i], ids[j])) in linked:
                merged = tuple((nodes[i], nodes[j]) if k == i else node for k, node in enumerate(nodes) if k != j)
                renamed = frozenset(frozenset(ids[i] if each == ids[j] else each for each in pair) for pair in linked)
                left = frozenset(pair for pair in renamed if len(pair) == 2)
                yield from derivations(merged, left, tuple(each for k, each in enumerate(ids) if k != j))


def all_trees(neighbours: np.ndarray) -> set[Any]:
    size = len(neighbours)
    linked = frozenset(frozenset((i, j)) for i in range(size) for j in range(i) if neighbours[i, j])
    return set(derivations(tuple(range(size)), linked, tuple(range(size))))


def greedy_twin(made: Parser, neighbours: np.ndarray, x: torch.Tensor) -> Any:
    """The best merge of all neighbours, again and again."""
    size = len(neighbours)
    nodes: dict[int, Any] = {i: i for i in range(size)}
    linked = {(i, j) for i in range(size) for j in range(size) if neighbours[i, j]}
    while len(nodes) > 1:
        worth = {
            (i, j): state_of(made, (nodes[i], nodes[j]), x)[1] - sum(state_of(made, nodes[k], x)[1] for k in (i, j))
            for i, j in linked
            if i < j
        }
        one, other = max(worth, key=lambda pair: worth[pair])
        nodes[one] = (nodes[one], nodes.pop(other))
        linked = {(one if i == other else i, one if j == other else j) for i, j in linked}
        linked = {(i, j) for i, j in linked if i != j}
    return next(iter(nodes.values()))


def nested(trees: Forest, which: int) -> Any:
    """A tree of leaves-first form as nested pairs."""
    tree = trees[which]
    leaves = {node: number for number, node in enumerate(tree.leaves.tolist())}

    def visit(node: int) -> Any:
        below = sorted((int(tree.slots[c]), c) for c in range(tree.nodes) if tree.parents[c] == node)
        return tuple(visit(child) for _, child in below) if below else leaves[node]

    return visit(int(tree.roots[0]))


def random_graph(size: int, seed: int) -> np.ndarray:
    """Connected: a random tree and some edges more."""
    random = np.random.default_rng(seed)
    found = np.zeros((size, size), bool)
    for node in range(1, size):
        found[node, random.integers(node)] = True
    found |= random.random((size, size)) < 0.25
    return (found | found.T) & ~np.eye(size, dtype=bool)


def line(size: int) -> np.ndarray:
    return Instances.lines([size]).neighbours[0]


@pytest.mark.parametrize("cell", list(CELLS))
@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=3), st.integers(0, 10**6))
@settings(max_examples=15)
def test_the_greedy_search_merges_the_best_pair_again_and_again(
    cell: str, kinds: list[tuple[int, bool]], seed: int
) -> None:
    made = parser(cell, seed)
    graphs = [line(size) if is_line else random_graph(size, seed) for size, is_line in kinds]
    x = torch.randn(sum(map(len, graphs)), 3, dtype=F64)
    with torch.no_grad():
        found = made.search(Instances.graphs(graphs), x)
        scores = made(found.trees, x)
        for number, (graph, own) in enumerate(zip(graphs, x.split([*map(len, graphs)]), strict=True)):
            assert nested(found.trees, number) == greedy_twin(made, graph, own)
    assert_close(torch.from_numpy(found.scores), scores)


@pytest.mark.parametrize("how", ["beam", "chart"])
@given(st.integers(2, 5), st.booleans(), st.integers(0, 10**6))
@settings(max_examples=15)
def test_with_room_for_all_hypotheses_the_best_of_all_trees_is_found(
    how: str, size: int, is_line: bool, seed: int
) -> None:
    made, graph = parser(seed=seed), line(size) if is_line or how == "chart" else random_graph(size, seed)
    x = torch.randn(size, 3, dtype=F64)
    with torch.no_grad():
        found = made.search(Instances.graphs([graph]), x, how, width=300)
        totals = {tree: state_of(made, tree, x)[1] for tree in all_trees(graph)}
        best = max(totals, key=lambda tree: totals[tree])
    assert nested(found.trees, 0) == best
    assert found.scores[0] == pytest.approx(totals[best], abs=1e-9)


def test_a_wider_search_never_ends_lower_on_average() -> None:
    made, sizes = parser(seed=3), np.arange(2, 12)
    x = torch.randn(int(sizes.sum()), 3, dtype=F64)
    means = {
        how: made.search(Instances.lines(sizes), x, how, width=8).scores.mean() for how in ("greedy", "beam", "chart")
    }
    assert means["greedy"] <= means["beam"] + 1e-9
    assert means["greedy"] < means["chart"]


# Margins.


GOLD = parse_trees("((a b) (c (d e))) ((a (b c)) d) (a b)", labelled=False).forest


def gold_instances() -> Instances:
    return Instances.lines([5, 4, 2], groups_of(GOLD))


@pytest.mark.parametrize("how", ["greedy", "beam", "chart"])
def test_among_right_merges_alone_the_right_tree_is_found(how: str) -> None:
    made, x = parser(), torch.randn(11, 3, dtype=F64)
    found = made.search(gold_instances(), x, how, width=4, only_right=True)
    assert bracket_f1(in_brackets(found.trees), GOLD) == 1.0
    assert wrong_in(found.trees, gold_instances()).tolist() == [0, 0, 0]
    assert_close(made(found.trees, x), made(GOLD, x))


def test_a_wrong_merge_crosses_a_group() -> None:
    other = branching([5, 4, 2], "left")  # ((((a b) c) d) e), (((a b) c) d), (a b)
    assert wrong_in(other, gold_instances()).tolist() == [2, 1, 0]


@pytest.mark.parametrize("how", ["greedy", "chart"])
def test_the_margin_is_the_difference_of_the_two_trees(how: str) -> None:
    made, x, instances = parser(seed=5), torch.randn(11, 3, dtype=F64), gold_instances()
    loss = made.margin(instances, x, penalty=0.7, how=how)
    assert_close(loss, made.margin(instances, x, penalty=0.7, how=how, right=GOLD))
    rival = made.search(instances, x, how, 1, penalty=0.7).trees
    expected = made(rival, x) + 0.7 * torch.from_numpy(wrong_in(rival, instances)).double() - made(GOLD, x)
    assert_close(loss, expected.clamp(min=0))
    assert (
        float(made.margin(instances, x, penalty=1e6, how=how)[0].detach()) > 1e6
    )  # then the wrongest tree is the rival
    leaf = x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: made.margin(instances, x, penalty=0.7, how=how), (leaf,))


# Learning.


def sentences(count: int, seed: int) -> list[str]:
    """Noun phrases around a verb; adjectives belong to the noun behind them, "of" to the noun before it."""
    random = np.random.default_rng(seed)
    words = {"adjective": ["red", "old", "big"], "noun": ["cat", "dog", "tree"], "verb": ["sees", "likes"]}

    def draw(kind: str) -> str:
        return str(random.choice(words[kind]))

    def noun(depth: int) -> str:
        phrase = draw("noun")
        for _ in range(random.integers(0, 3)):
            phrase = f"({draw('adjective')} {phrase})"
        return f"({phrase} (of {noun(depth - 1)}))" if depth and random.random() < 0.5 else phrase

    return [f"({noun(1)} ({draw('verb')} {noun(1)}))" for _ in range(count)]


@pytest.mark.parametrize("how", ["greedy", "chart"])
def test_a_parser_learns_a_small_grammar(how: str) -> None:
    torch.manual_seed(1)
    train, test = (parse_trees(" ".join(sentences(count, seed)), labelled=False) for count, seed in ((150, 1), (60, 2)))
    names = {name: number for number, name in enumerate(train.word_names)}
    made = SentenceParser(len(names), rit.cells.TreeLSTM, embedding=8, encoder=8, hidden=12)
    optimiser = torch.optim.Adam(made.parameters(), lr=0.02)

    def read(trees: Any) -> tuple[torch.Tensor, np.ndarray, Forest]:
        forest = trees.forest
        sizes = np.bincount(forest.tree_of[forest.leaves])
        ids = [names[trees.word_names[word]] for word in trees.words[forest.leaves]]
        return torch.tensor(ids), sizes, forest

    words, sizes, right = read(train)
    for _ in range(30):
        loss = made.margin(Instances.lines(sizes, groups_of(right)), made.features(words, sizes), right=right, how=how)
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    words, sizes, right = read(test)
    with torch.no_grad():
        found = made.search(Instances.lines(sizes), made.features(words, sizes), how, width=1)
    baselines = [bracket_f1(branching(sizes, way), right) for way in ("left", "right", "balanced")]
    assert bracket_f1(in_brackets(found.trees), right) > max(baselines) + 0.3 > 0.5


def test_a_parser_learns_to_put_scenes_together() -> None:
    torch.manual_seed(1)
    made = Parser(partial(rit.LSTM, forget_bias=0.0), FEATURES, 24)
    optimiser = torch.optim.Adam(made.parameters(), lr=0.02)

    def read(count: int, seed: int) -> tuple[Instances, torch.Tensor]:
        drawn = scenes(count, seed)
        x = torch.from_numpy(np.concatenate([scene.features for scene in drawn]))
        return Instances.graphs([s.neighbours for s in drawn], [s.groups for s in drawn]), x

    instances, x = read(120, seed=1)
    for _ in range(40):
        loss = made.margin(instances, x, penalty=0.3)
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    instances, x = read(40, seed=2)
    assert instances.groups is not None
    with torch.no_grad():
        trained = region_f1(made.search(instances._replace(groups=None), x).trees, instances.groups)
        untrained = region_f1(
            Parser(rit.LSTM, FEATURES, 24).search(instances._replace(groups=None), x).trees, instances.groups
        )
    assert trained > untrained + 0.15


# Scores and messages.


def test_brackets_by_hand() -> None:
    right = parse_trees("((a b) (c d)) (a (b c))", labelled=False).forest
    found = parse_trees("(a (b (c d))) (a (b c))", labelled=False).forest
    assert bracket_f1(found, right) == pytest.approx(2 * 2 / (3 + 3))  # (c d) and (b c) of three each
    for how, text in (("left", "(((a b) c) d)"), ("right", "(a (b (c d)))"), ("balanced", "((a b) (c d))")):
        assert branching([4], how).parents.tolist() == parse_trees(text, labelled=False).forest.parents.tolist()


def test_of_uneven_halves_the_first_is_the_smaller() -> None:
    assert branching([3], "balanced").parents.tolist() == [-1, 0, 0, 2, 2]


def test_regions_by_hand() -> None:
    groups = [np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]], bool)]
    right = Forest.from_parents([[4, 4, 5, 5, 6, 6, -1]])  # ((0 1) (2 3))
    wrong = Forest.from_parents([[6, 4, 4, 5, 5, 6, -1]])  # (0 ((1 2) 3))
    assert region_f1(right, groups) == 1.0
    assert region_f1(wrong, groups) == 0.0


def test_scenes_are_what_they_say() -> None:
    for scene in scenes(30, seed=4):
        size = len(scene.features)
        assert scene.neighbours.shape == (size, size)
        assert not scene.neighbours.diagonal().any()
        Instances.graphs([scene.neighbours])  # connected
        for group in scene.groups:  # and so is each group
            Instances.graphs([scene.neighbours[np.ix_(group, group)]])
        assert scene.boxes[:, 2:].max() == 1.0
        assert float(np.prod(scene.boxes[:, 2:] - scene.boxes[:, :2], 1).sum()) == pytest.approx(1.0)
    assert all((a.features == b.features).all() for a, b in zip(scenes(3, 7), scenes(3, 7), strict=True))


def colours_alike(scene: Scene) -> list[bool]:
    """For each region, whether all regions of its part have its colour."""
    found = []
    for region in range(len(scene.features)):
        part = min((group for group in scene.groups if group[region]), key=np.sum)
        found.append(bool((scene.features[part, :3] == scene.features[region, :3]).all()))
    return found


def test_regions_of_a_part_have_one_colour_but_for_noise() -> None:
    assert all(all(colours_alike(scene)) for scene in scenes(20, seed=1, noise=0))
    assert not all(all(colours_alike(scene)) for scene in scenes(20, seed=1, noise=0.01))


def test_scenes_have_two_to_four_objects() -> None:
    counts: Counter[int] = Counter()
    for scene in scenes(200, seed=1):
        covered = scene.groups[1:].sum(1).cumsum()  # objects come first and cover all
        counts[int(np.searchsorted(covered, len(scene.features))) + 1] += 1
    assert set(counts) == {2, 3, 4}
    assert min(counts.values()) > 40


def test_boxes_touch_along_edges_alone() -> None:
    quarters = np.array([(0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), (0, 0.5, 0.5, 1), (0.5, 0.5, 1, 1)])
    diagonal = np.eye(4, dtype=bool)
    assert (_touching(quarters) == ~(diagonal | diagonal[::-1])).all()
    assert not _touching(np.array([(0, 0, 0.4, 1), (0.43, 0, 1, 1)])).any()


def test_messages() -> None:
    made, x = parser(), torch.randn(4, 3, dtype=F64)
    with pytest.raises(ArgumentError, match="Unknown search 'gredy': did you mean greedy"):
        made.search(Instances.lines([4]), x, "gredy")
    with pytest.raises(ArgumentError, match="width must be a positive integer, not 0"):
        made.search(Instances.lines([4]), x, "beam", width=0)
    with pytest.raises(ArgumentError, match="chart_search takes sentences, whose neighbours lie on a line"):
        made.search(Instances.graphs([~np.eye(4, dtype=bool)]), x, "chart")
    with pytest.raises(ArgumentError, match="Graph 0 falls apart: no way leads from leaf 0 to leaf 2"):
        Instances.graphs(
            [np.eye(4, k=1, dtype=bool) * [[1, 1, 0, 1]] | np.eye(4, k=-1, dtype=bool) * [[1], [1], [0], [1]]]
        )
    with pytest.raises(ArgumentError, match=r"Graph 0: neighbours of shape \(2, 3\) are no symmetric matrix"):
        Instances.graphs([np.ones((2, 3), bool)])
    with pytest.raises(ArgumentError, match="A parser merges two neighbours; TreeLSTM has 3 slots"):
        Parser(partial(rit.cells.TreeLSTM, slots=3), 3, 4)
    with pytest.raises(ArgumentError, match="Unknown branching 'up'"):
        branching([3], "up")
    with pytest.raises(ArgumentError, match=r"^A sentence without a word has no tree\.$"):
        branching([2, 0], "left")
    for count, noise in ((-1, 0.03), (1, -0.1)):
        with pytest.raises(
            ArgumentError, match=f"^scenes: count and noise must not be negative, not {count} and {noise}\\.$"
        ):
            scenes(count, 1, noise=noise)
    apart = Instances.lines([3], [np.array([[True, False, True]])])
    with pytest.raises(ArgumentError, match="Instance 0 cannot be merged rightly: a group of it falls apart"):
        made.search(apart, x[:3], only_right=True)
    with pytest.raises(ArgumentError, match="Instance 0 cannot be merged rightly: a group of it falls apart"):
        made.search(apart, x[:3], "chart", only_right=True)
    groups = [np.ones((1, 3), bool), np.array([[True, False, True]])]
    for how in ("beam", "chart"):
        with pytest.raises(ArgumentError, match="Instance 1 cannot be merged rightly"):
            made.search(Instances.lines([3, 3], groups), torch.randn(6, 3, dtype=F64), how, only_right=True)
    with pytest.raises(ArgumentError, match="Instance 1 has no leaf; each needs one at least"):
        Instances.lines([2, 0])
    with pytest.raises(ArgumentError, match="Instance 0 has no leaf"):
        Instances.graphs([np.zeros((0, 0))])


@pytest.mark.parametrize("how", ["greedy", "beam", "chart"])
def test_scores_that_are_no_numbers_end_the_search(how: str) -> None:
    made = parser()
    with torch.no_grad():
        made.score.bias.fill_(float("nan"))
    with pytest.raises(RunError, match="The score of a merge is no number any more; try a lower --lr"):
        made.search(Instances.lines([3]), torch.randn(3, 3, dtype=F64), how)


@pytest.mark.parametrize("how", ["greedy", "beam", "chart"])
def test_no_sentence_has_no_tree(how: str) -> None:
    assert len(parser().search(Instances.lines([]), torch.zeros(0, 3, dtype=F64), how).trees) == 0


def test_a_search_leaves_modes_as_they_were_and_takes_scores_with_gradients() -> None:
    made = parser()
    made.unfold.eval()
    with pytest.raises(ArgumentError, match="chart_search takes sentences"):
        made.search(Instances.graphs([~np.eye(3, dtype=bool)]), torch.zeros(3, 3, dtype=F64), "chart")
    assert (made.training, made.unfold.training, made.score.training) == (True, False, True)
    leaves = made._leaves(torch.randn(3, 3, dtype=F64))
    assert len(beam_search(Instances.lines([3]), leaves, made._compose, width=2).trees) == 1


def test_groups_and_brackets_of_many_trees_and_of_few_words() -> None:
    trees = branching([4, 1, 3, 2], "right")
    assert [group.shape for group in groups_of(trees)] == [(3, 4), (0, 1), (2, 3), (1, 2)]
    assert groups_of(trees[:0]) == []
    pairs = branching([2, 2], "left")
    assert bracket_f1(pairs, pairs) == 1.0  # nothing to find, and nothing that is wrong
    assert region_f1(Forest.from_parents([[2, 2, -1]]), [np.ones((1, 2), bool)]) == 1.0
    only = Forest.from_depths([0, 1, 2, 1, 2])  # only children are no brackets of two words
    assert bracket_f1(only, Forest.from_depths([0, 1, 1])) == 1.0


def test_regions_found_in_part() -> None:
    groups = [np.array([[1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [1, 1, 1, 1, 1]], bool)]
    found = Forest.from_parents([[5, 5, 6, 7, 8, 6, 7, 8, -1]])  # ((((0 1) 2) 3) 4): finds one of two, crosses once
    assert region_f1(found, groups) == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))
    chain = Forest.from_parents([[4, 4, 5, 6, 5, 6, -1]])  # a group of one region asks for nothing
    assert region_f1(chain, [np.array([[1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1]], bool)]) == 1.0


def test_hypotheses_that_are_alike_take_one_place_of_the_beam() -> None:
    worth = {(1, 3): -1.0, (3, 5): -10.0}

    def compose(one: Any, other: Any) -> tuple[Any, torch.Tensor]:
        spans = torch.stack([one[0][:, 0], other[0][:, 1]], 1)
        middles = one[0][:, 1].tolist()
        rows = zip(map(tuple, spans.int().tolist()), middles, strict=True)
        found = [100.0 if row == (1, 5) and middle == 3 else worth.get(row, 0.0) for row, middle in rows]
        return rit.Elman.State(spans), torch.tensor(found)

    places = torch.arange(5.0)
    found = beam_search(Instances.lines([5]), rit.Elman.State(torch.stack([places, places + 1], 1)), compose, width=9)
    assert found.scores.tolist() == [89.0]


@pytest.mark.parametrize("how", ["greedy", "beam", "chart"])
def test_scores_that_are_told_hold_no_penalty(how: str) -> None:
    groups = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], bool)
    instances = Instances.lines([5] * 20, [groups] * 20)
    made, x = parser(seed=1), torch.randn(100, 3, dtype=F64)
    with torch.no_grad():
        found = made.search(instances, x, how, width=3, penalty=2.0)
        assert_close(torch.from_numpy(found.scores), made(found.trees, x))
    assert wrong_in(found.trees, instances).any()


def test_the_right_tree_is_searched_as_its_rival() -> None:
    made, x = parser(), torch.randn(120, 3, dtype=F64)
    instances = Instances.lines([6] * 20, [np.ones((1, 6), bool)] * 20)  # every tree is right
    assert made.margin(instances, x, how="chart").tolist() == [0.0] * 20
    scores = {how: made.search(instances, x, how).scores for how in ("chart", "greedy")}
    assert (scores["chart"] > scores["greedy"] + 0.01).any()


def test_wrong_merges_are_counted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "CROSSINGS", 1)
    assert wrong_in(branching([5, 4, 2], "left"), gold_instances()).tolist() == [2, 1, 0]


def test_a_leaf_is_no_neighbour_of_itself() -> None:
    made, x = parser(), torch.randn(4, 3, dtype=F64)
    all_touch = np.ones((4, 4), bool)
    one, other = (made.search(Instances.graphs([each]), x) for each in (all_touch, all_touch & ~np.eye(4, dtype=bool)))
    assert one.trees.parents.tolist() == other.trees.parents.tolist()


def test_a_search_is_that_of_evaluation() -> None:
    torch.manual_seed(0)
    made, x = Parser(lambda i, h: rit.nn.Zoneout(rit.LSTM(i, h), 0.5), 3, 4).train(), torch.randn(5, 3)
    scores = [made.search(Instances.lines([5]), x).scores.tolist() for _ in range(2)]
    scores.append(made.eval().search(Instances.lines([5]), x).scores.tolist())
    assert scores[0] == scores[1] == scores[2]


def test_features_of_a_sentence_do_not_hang_on_its_batch() -> None:
    torch.manual_seed(0)
    made = SentenceParser(9, rit.cells.TreeLSTM, embedding=3, encoder=4, hidden=5).eval()
    words = torch.tensor([1, 2, 3, 4, 5])
    together = made.features(words, np.array([2, 3]))
    apart = [made.features(part, np.array([len(part)])) for part in words.split([2, 3])]
    assert_close(together, torch.cat(apart))


def test_a_parser_drops_what_its_words_give() -> None:
    made = SentenceParser(9, rit.cells.TreeLSTM, embedding=64, encoder=32, hidden=5, dropout=0.5)
    torch.nn.init.ones_(made.embed.weight)
    read: list[torch.Tensor] = []
    made.encoder.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    words, sizes = torch.tensor([1, 2, 3, 4, 5]), np.array([2, 3])
    features = made.features(words, sizes)
    assert set(read[0].unique().tolist()) == {0.0, 2.0}
    assert (features == 0).any()
    plain = made.eval().features(words, sizes)
    assert set(read[1].unique().tolist()) == {1.0}
    assert (plain != 0).all()


def test_wide_beams_keep_no_two_alike() -> None:
    made, x = parser(seed=3), torch.randn(6, 3, dtype=F64)
    exact = made.search(Instances.lines([6]), x, "beam", width=60)
    assert float(exact.scores[0]) == pytest.approx(float(made.search(Instances.lines([6]), x, "chart", 60).scores[0]))
