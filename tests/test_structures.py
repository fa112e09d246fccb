"""Schedules against what they stand for: for each step or node, who precedes it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from ritornello.errors import ArgumentError
from ritornello.structures import (
    Acyclic,
    Forest,
    Graphs,
    Schedule,
    binarise,
    chain,
    collapse,
    forest,
    preorder,
    row_entries,
    row_levels,
    row_sources,
    segments,
    spans,
    subtree_sizes,
)


class Batch(NamedTuple):
    """A batch of chains, as plain lists."""

    time: int
    batch: int
    lengths: list[int] | None
    resets: list[list[bool]] | None  # by step, then sequence
    reverse: bool

    def schedule(self) -> Schedule:
        return chain(
            self.time,
            self.batch,
            lengths=None if self.lengths is None else torch.tensor(self.lengths, dtype=torch.long),
            resets=None if self.resets is None else torch.tensor(self.resets).bool().view(self.time, self.batch),
            reverse=self.reverse,
        )

    def length(self, b: int) -> int:
        return self.time if self.lengths is None else self.lengths[b]

    def predecessor(self, t: int, b: int) -> tuple:
        """The definition: what step t of sequence b reads."""
        if self.reverse:
            if t == self.length(b) - 1:
                return ("entry", b)
            return ("blank",) if self.resets and self.resets[t + 1][b] else ("position", (t + 1) * self.batch + b)
        if self.resets and self.resets[t][b]:
            return ("blank",)
        return ("entry", b) if t == 0 else ("position", (t - 1) * self.batch + b)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    time, batch = draw(st.integers(0, 6)), draw(st.integers(0, 5))
    lengths = st.lists(st.integers(0, time), min_size=batch, max_size=batch)
    marks = st.lists(st.booleans(), min_size=batch, max_size=batch)
    resets = st.lists(marks, min_size=time, max_size=time)
    return Batch(time, batch, draw(st.none() | lengths), draw(st.none() | resets), draw(st.booleans()))


@st.composite
def trees(draw: st.DrawFn, most: int = 9) -> list[int]:
    """Parents of a tree of any shape, its nodes in any order."""
    size = draw(st.integers(1, most))
    parents = [-1] + [draw(st.integers(0, node - 1)) for node in range(1, size)]
    names = draw(st.permutations(range(size)))
    renamed = [-1] * size
    for node, parent in enumerate(parents):
        renamed[names[node]] = -1 if parent < 0 else names[parent]
    return renamed


def positions(schedule: Schedule) -> list[int]:
    """The position in the input of each schedule row."""
    return list(range(schedule.rows)) if schedule.order is None else schedule.order.tolist()


def entries(schedule: Schedule) -> list[int]:
    """The sequence of each entry."""
    return list(range(schedule.entries)) if schedule.entry is None else schedule.entry.tolist()


def meaning(schedule: Schedule, table_row: int) -> tuple:
    """What a row of the table holds."""
    if table_row == 0:
        return ("blank",)
    if table_row < schedule.first_row:
        return ("entry", entries(schedule)[table_row - 1])
    return ("position", positions(schedule)[table_row - schedule.first_row])


def sources(schedule: Schedule) -> list[list[int]]:
    """The table rows that each schedule row reads."""
    found = []
    for level in schedule.levels:
        if isinstance(level.source, int):
            found += [[level.source + i] for i in range(level.stop - level.start)]
        else:
            assert level.source.shape[0] == level.stop - level.start
            found += level.source.tolist()
    return found


def last_rows(schedule: Schedule) -> list[int]:
    """The table row of each sequence's final state."""
    if schedule.last is not None:
        return schedule.last.tolist()
    if not schedule.levels:
        return list(range(1, schedule.first_row))
    level = schedule.levels[-1]
    return list(range(schedule.first_row + level.start, schedule.first_row + level.stop))


def check_form(schedule: Schedule) -> None:
    """What every schedule keeps, whatever it stands for."""
    bounds = [0, *(level.stop for level in schedule.levels)]
    assert [level.start for level in schedule.levels] == bounds[:-1], "levels follow one another"
    assert bounds[-1] == schedule.rows == len(positions(schedule)) == len(sources(schedule)), "and cover all rows"
    assert len(set(positions(schedule))) == schedule.rows, "each row once"
    assert sorted(entries(schedule)) == list(range(schedule.entries)), "each sequence enters once"
    assert len(last_rows(schedule)) == schedule.entries
    pieces = [range(1), range(1, schedule.first_row)]
    for level in schedule.levels:
        rows = sources(schedule)[level.start : level.stop]
        read = [row for predecessors in rows for row in predecessors]
        assert all(0 <= row < schedule.first_row + level.start for row in read), "predecessors lie in earlier levels"
        if isinstance(level.source, int) and read:
            assert any(read[0] in piece and read[-1] in piece for piece in pieces), "consecutive rows lie in one piece"
        pieces.append(range(schedule.first_row + level.start, schedule.first_row + level.stop))


@given(batches())
@example(Batch(3, 2, [1, 3], [[False, False], [False, True], [True, False]], True))  # a reset in the padding
@example(Batch(0, 2, None, None, True))
@example(Batch(3, 0, [], [[], [], []], False))
@example(Batch(4, 3, [0, 0, 0], None, False))
def test_chains(batch: Batch) -> None:
    schedule = batch.schedule()
    check_form(schedule)
    assert schedule.entries == batch.batch
    expected = {
        t * batch.batch + b: [batch.predecessor(t, b)] for b in range(batch.batch) for t in range(batch.length(b))
    }
    found = {
        position: [meaning(schedule, row) for row in rows]
        for position, rows in zip(positions(schedule), sources(schedule), strict=True)
    }
    assert found == expected

    ends = [0 if batch.reverse else batch.length(b) - 1 for b in range(batch.batch)]
    assert [meaning(schedule, row) for row in last_rows(schedule)] == [
        ("position", t * batch.batch + b) if batch.length(b) else ("entry", b) for b, t in enumerate(ends)
    ]


@given(batches())
def test_the_active_rows_of_chains_are_a_prefix(batch: Batch) -> None:
    """Level n holds the n-th step walked of all sequences that have one: those of the level before, or fewer."""
    schedule = batch.schedule()
    by_entry = entries(schedule)
    if batch.batch:
        assert len(schedule.levels) == max(batch.length(b) for b in range(batch.batch))
    for step, level in enumerate(schedule.levels):
        active = sum(batch.length(b) > step for b in range(batch.batch))
        assert level.stop - level.start == active
        sequences = [position % batch.batch for position in positions(schedule)[level.start : level.stop]]
        assert sequences == by_entry[:active]


def test_a_dense_chain_needs_no_row_numbers() -> None:
    schedule = chain(3, 2)
    assert (schedule.order, schedule.entry, schedule.last) == (None, None, None)
    assert all(isinstance(level.source, int) for level in schedule.levels)
    ragged = chain(3, 2, lengths=torch.tensor([1, 3]))
    assert all(isinstance(level.source, int) for level in ragged.levels)


@given(st.lists(trees(), max_size=4))
@example([])
@example([[-1], [-1]])
def test_forests(batch: list[list[int]]) -> None:
    schedule = forest(batch)
    check_form(schedule)
    assert schedule.entries == len(batch)
    offsets = [sum(map(len, batch[:number])) for number in range(len(batch))]
    expected = {}
    for number, (tree, offset) in enumerate(zip(batch, offsets, strict=True)):
        for node in range(len(tree)):
            children = [("position", offset + child) for child, parent in enumerate(tree) if parent == node]
            expected[offset + node] = sorted(children) or [("entry", number)]
    found = {
        position: sorted(meaning(schedule, row) for row in rows)
        for position, rows in zip(positions(schedule), sources(schedule), strict=True)
    }
    assert found == expected
    assert [meaning(schedule, row) for row in last_rows(schedule)] == [
        ("position", offset + tree.index(-1)) for tree, offset in zip(batch, offsets, strict=True)
    ]


@given(st.lists(trees(), max_size=4))
def test_a_forest_s_levels_are_as_few_as_heights_and_arities(batch: list[list[int]]) -> None:
    def height(tree: list[int], node: int) -> int:
        return max((1 + height(tree, child) for child, parent in enumerate(tree) if parent == node), default=0)

    kinds = {(height(tree, node), tree.count(node)) for tree in batch for node in range(len(tree))}
    assert len(forest(batch).levels) == len(kinds)


def test_a_random_tree_of_a_thousand_nodes_and_a_comb() -> None:
    generator = random.Random(0)
    check_form(forest([[-1] + [generator.randrange(node) for node in range(1, 1000)]]))
    comb = [-1] + [2 * ((node - 1) // 2) for node in range(1, 401)]  # each even node has a leaf and the next even node
    schedule = forest([comb])
    check_form(schedule)
    assert len(schedule.levels) == 201


@pytest.mark.parametrize("reverse", [False, True])
def test_schedules_live_on_the_cpu_whatever_the_default_device(reverse: bool) -> None:
    lengths = torch.tensor([2, 3])
    resets = torch.tensor([[False, True], [True, False], [False, False]])
    with torch.device("meta"):
        found = [
            chain(3, 2, reverse=reverse),
            chain(3, 2, lengths=lengths, reverse=reverse),
            chain(3, 2, resets=resets, reverse=reverse),
            forest([[2, 2, -1]]),
            forest([[2, 2, -1]], slots=2),
        ]
    for schedule in found:
        held = [schedule.order, schedule.entry, schedule.last, *(level.source for level in schedule.levels)]
        assert {value.device.type for value in held if isinstance(value, torch.Tensor)} <= {"cpu"}
        check_form(schedule)


def test_numbers_that_are_not_whole() -> None:
    with pytest.raises(ArgumentError, match=r"^depths must be integers, one for each node, not float64"):
        Forest.from_depths([0, 1.7])  # type: ignore[list-item]
    with pytest.raises(ArgumentError, match=r"^predecessors must be integers, one for each node, not float64"):
        Graphs.from_predecessors([[[], [0.5]]])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([[-1], []], r"^Tree 1 is empty; a tree has a root at least\.$"),
        ([[-1], [1, 0]], r"^Tree 1 has 0 roots \(nodes with parent -1\); a tree has one\.$"),
        ([[-1], [-1, 0, -1]], "^Tree 1 has 2 roots"),
        ([[-1, 2]], r"^Tree 0: parent 2 is no node; parents lie in 0 to 1, the root's is -1\.$"),
        ([[-1], [-1, -2]], r"^Tree 1: parent -2 is no node"),
        ([[-1, 1]], r"^Tree 0: the parents form a cycle through node 1; a tree has none\.$"),
        ([[-1], [3, -1, 0, 2]], "^Tree 1: the parents form a cycle through node 0;"),
        ([[-1], [4, 0, -1, 4, 3]], "^Tree 1: the parents form a cycle through node 3;"),  # others only lead to it
        ([[-1, 0], [1, 2, 3, 4, 0, -1]], "^Tree 1: the parents form a cycle through node 0;"),
        ([[-1, -1], [5]], "^Tree 0 has 2 roots"),  # the first tree that is none
        ([[5], [-1, -1]], "^Tree 0: parent 5 is no node"),
        ([[-1], [[-1]]], r"^Tree 1: parents must be integers, one for each node, not int64 of shape \(1, 1\)\.$"),
        ([[-1.0]], r"^Tree 0: parents must be integers, one for each node, not float64 of shape \(1,\)\.$"),
        ([[-1, [0]]], r"^Tree 0: parents must be integers, one for each node, not lists in lists\.$"),
    ],
)
def test_what_is_no_tree(batch: list[list[int]], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        forest(batch)


# Forests as data.


class Slotted(NamedTuple):
    """A tree and which child of its parent each node is."""

    parents: list[int]
    slots: list[int]


@st.composite
def slotted_trees(draw: st.DrawFn, slots: int = 4, most: int = 9) -> Slotted:
    """Trees of at most `slots` children a node, of whom some are missing."""
    parents, taken = [-1], [-1]
    free = [(0, slot) for slot in range(slots)]
    for node in range(1, draw(st.integers(1, most))):
        parent, slot = free.pop(draw(st.integers(0, len(free) - 1)))
        parents.append(parent)
        taken.append(slot)
        free += [(node, slot) for slot in range(slots)]
    names = draw(st.permutations(range(len(parents))))
    old = sorted(range(len(names)), key=names.__getitem__)
    return Slotted([-1 if parents[n] < 0 else names[parents[n]] for n in old], [taken[n] for n in old])


def children(parents: list[int], node: int) -> list[int]:
    return [child for child, parent in enumerate(parents) if parent == node]


def height(parents: list[int], node: int) -> int:
    return max((1 + height(parents, child) for child in children(parents, node)), default=0)


def assert_same(found: Acyclic, expected: Acyclic) -> None:
    assert type(found) is type(expected)
    for field in fields(found):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        assert ours.dtype == theirs.dtype, field.name
        assert ours.tolist() == theirs.tolist(), field.name


@given(st.lists(trees(), max_size=4))
@example([])
def test_a_forest_knows_its_nodes(batch: list[list[int]]) -> None:
    found = Forest.from_parents(batch)
    nodes = [(number, parents, node) for number, parents in enumerate(batch) for node in range(len(parents))]
    assert (len(found), found.nodes, found.sizes.tolist()) == (len(batch), len(nodes), list(map(len, batch)))
    assert found.parents.tolist() == [parents[node] for _, parents, node in nodes]
    assert found.tree_of.tolist() == [number for number, _, _ in nodes]
    assert found.heights.tolist() == [height(parents, node) for _, parents, node in nodes]
    assert found.counts.tolist() == [parents.count(node) for _, parents, node in nodes]
    assert found.slots.tolist() == [
        -1 if parents[node] < 0 else children(parents, parents[node]).index(node) for _, parents, node in nodes
    ]
    assert found.roots.tolist() == [place for place, (_, parents, node) in enumerate(nodes) if parents[node] < 0]
    assert found.leaves.tolist() == [place for place, (_, parents, node) in enumerate(nodes) if node not in parents]


@given(st.lists(slotted_trees(), min_size=1, max_size=5), st.data())
def test_some_trees_of_a_forest_are_the_forest_of_these_trees(batch: list[Slotted], data: st.DataObject) -> None:
    whole = Forest.from_parents([tree.parents for tree in batch], [tree.slots for tree in batch])
    chosen = data.draw(st.lists(st.integers(0, len(batch) - 1), min_size=1, max_size=6))
    expected = Forest.from_parents([batch[n].parents for n in chosen], [batch[n].slots for n in chosen])
    assert_same(whole[chosen], expected)
    assert_same(whole[np.array(chosen)], expected)
    assert_same(Forest.concatenate([whole[n] for n in chosen]), expected)
    assert_same(whole[1:], whole[list(range(1, len(batch)))])
    offsets = [sum(len(tree.parents) for tree in batch[:n]) for n in chosen]
    nodes = [start + node for start, n in zip(offsets, chosen, strict=True) for node in range(len(batch[n].parents))]
    assert whole.nodes_of(chosen).tolist() == nodes


@given(st.lists(slotted_trees(), max_size=4), st.integers(4, 6))
def test_slots_that_are_empty_read_the_blank_row(batch: list[Slotted], slots: int) -> None:
    made = Forest.from_parents([tree.parents for tree in batch], [tree.slots for tree in batch])
    schedule = made.schedule(slots)
    check_form(schedule)
    expected, offset, summed = {}, 0, {}
    for number, (parents, taken) in enumerate(batch):
        for node in range(len(parents)):
            below = {taken[child]: ("position", offset + child) for child in children(parents, node)}
            empty = ("blank",) if below else ("entry", number)
            expected[offset + node] = [below.get(slot, empty) for slot in range(slots)]
            summed[offset + node] = [below[slot] for slot in sorted(below)] or [empty]
        offset += len(parents)
    for found, wanted in ((schedule, expected), (made.schedule(), summed)):
        reads = [[meaning(found, row) for row in rows] for rows in sources(found)]
        assert dict(zip(positions(found), reads, strict=True)) == wanted
    kinds = {height(tree.parents, node) for tree in batch for node in range(len(tree.parents))}
    assert len(schedule.levels) == len(kinds)
    assert [meaning(schedule, row) for row in last_rows(schedule)] == [("position", root) for root in made.roots]


@given(st.lists(trees(), max_size=4))
def test_the_nodes_of_a_level_stand_in_their_order(batch: list[list[int]]) -> None:
    for schedule in (forest(batch), forest(batch, slots=8)):
        for level in schedule.levels:
            nodes = positions(schedule)[level.start : level.stop]
            assert nodes == sorted(nodes)


def nested(tree: list[int], node: int = 0) -> object:
    """The tree as lists, its leaves named by their nodes."""
    return [nested(tree, child) for child in children(tree, node)] or f"leaf {node}"


@st.composite
def depths(draw: st.DrawFn) -> list[int]:
    found: list[int] = []
    for _ in range(draw(st.integers(0, 12))):
        found.append(draw(st.integers(0, found[-1] + 1 if found else 0)))
    return found


@given(depths())
def test_depths_and_nested_lists(given_depths: list[int]) -> None:
    batch: list[list[int]] = []
    path: list[int] = []
    for depth in given_depths:  # the path to the node before
        if depth == 0:
            batch.append([])
        tree = batch[-1]
        path = [*path[:depth], len(tree)]
        tree.append(path[-2] if depth else -1)
    expected = Forest.from_parents(batch)
    made = Forest.from_depths(given_depths)
    assert_same(made, expected)
    starts, lengths = spans(made)
    wanted, before = [], 0
    for shape in shapes(made, list(range(made.nodes))):
        wanted += spanned(shape, before)
        before += leaf_count(shape)
    assert list(zip(starts.tolist(), lengths.tolist(), strict=True)) == wanted
    lists = [nested(tree) for tree in batch]
    found, leaves = Forest.from_nested(lists)
    assert_same(found, expected)
    assert leaves == [f"leaf {node}" for tree in batch for node in range(len(tree)) if node not in tree]
    assert_same(Forest.from_nested([tuple(tree) if isinstance(tree, list) else tree for tree in lists])[0], expected)


Shape = tuple[int, list["Shape"]]  # a node and its children by their slots


def shapes(made: Forest, names: list[int]) -> list[Shape]:
    above, slots = made.above.tolist(), made.slots.tolist()

    def shape(node: int) -> Shape:
        below = sorted((slots[child], child) for child, parent in enumerate(above) if parent == node)
        return names[node], [shape(child) for _, child in below]

    return [shape(root) for root in made.roots.tolist()]


def two_by_two(shape: Shape, side: str) -> Shape:
    name, below = shape[0], [two_by_two(child, side) for child in shape[1]]
    while len(below) > 2:
        below = [*below[:-2], (-1, below[-2:])] if side == "right" else [(-1, below[:2]), *below[2:]]
    return name, below


def without_chains(shape: Shape, highest: bool) -> Shape:
    low = shape
    while len(low[1]) == 1:
        low = low[1][0]
    return (shape if highest else low)[0], [without_chains(child, highest) for child in low[1]]


def in_order(shape: Shape, depth: int = 0) -> list[tuple[int, int]]:
    return [(shape[0], depth), *(found for child in shape[1] for found in in_order(child, depth + 1))]


def everywhere(shape: Shape) -> list[Shape]:
    return [shape, *(found for child in shape[1] for found in everywhere(child))]


def leaf_count(shape: Shape) -> int:
    return sum(map(leaf_count, shape[1])) or 1


def spanned(shape: Shape, start: int) -> list[tuple[int, int]]:
    """Where each node's leaves begin, and how many they are, in the order of opening brackets."""
    found = [(start, leaf_count(shape))]
    for child in shape[1]:
        found += spanned(child, start)
        start += leaf_count(child)
    return found


@given(st.lists(slotted_trees(), max_size=4))
@example([Slotted([5, 5, 5, 5, 5, -1], [3, 0, 4, 1, 2, -1])])
@example([Slotted([1, 2, -1], [2, 0, -1])])
def test_trees_made_of_trees(batch: list[Slotted]) -> None:
    made = Forest.from_parents([tree.parents for tree in batch], [tree.slots for tree in batch])
    expected = shapes(made, list(range(made.nodes)))
    nodes, depths = preorder(made)
    assert list(zip(nodes.tolist(), depths.tolist(), strict=True)) == [
        found for shape in expected for found in in_order(shape)
    ]
    sizes = {shape[0]: len(in_order(shape)) for tree in expected for shape in everywhere(tree)}
    assert subtree_sizes(made).tolist() == [sizes[node] for node in range(made.nodes)]
    if nodes.tolist() == sorted(nodes.tolist()):
        assert len(spans(made)[0]) == made.nodes
    else:
        with pytest.raises(ArgumentError, match=r"^Spans are of trees whose nodes stand in the order of opening"):
            spans(made)
    for side in ("left", "right"):
        two, origin = binarise(made, side)
        assert shapes(two, origin.tolist()) == [two_by_two(shape, side) for shape in expected]
        assert two.slots[origin < 0].tolist() == [int(side == "right")] * (origin < 0).sum()
    small, highest, lowest = collapse(made)
    assert shapes(small, highest.tolist()) == [without_chains(shape, True) for shape in expected]
    assert shapes(small, lowest.tolist()) == [without_chains(shape, False) for shape in expected]
    with pytest.raises(ArgumentError, match=r"^side is 'up': Known: left, right"):
        binarise(made, "up")


def test_deep_and_many() -> None:
    """Shapes that a recursion, or anything quadratic, would not survive."""
    size = 100_001
    comb = [-1] + [2 * ((node - 1) // 2) for node in range(1, size)]
    made = Forest.from_parents([comb])
    assert made.heights.max() == 50_000
    assert len(made.schedule().levels) == len(made.schedule(2).levels) == 50_001
    lists: object = "leaf"
    for _ in range(50_000):
        lists = ["leaf", lists]
    assert_same(Forest.from_nested([lists])[0], made)
    order, depths = preorder(made)
    assert order.tolist() == list(range(size))
    assert depths.max() == 50_000
    assert subtree_sizes(made)[:3].tolist() == [size, 1, size - 2]
    assert spans(made)[1][:3].tolist() == [50_001, 1, 50_000]
    while isinstance(lists, list):  # Python itself frees nested lists recursively
        lists = lists[1]
    leaves = Forest.from_parents([[-1]] * 10_000)
    assert [level.source.shape for level in leaves.schedule().levels] == [(10_000, 1)]
    star = forest([[-1] + [0] * 10_000, *[[-1]] * 10_000])
    assert [tuple(level.source.shape) for level in star.levels] == [(20_000, 1), (1, 10_000)]
    ladder = [[[]] + [[node - 1, max(node - 2, 0)] for node in range(1, 5000)]]  # 2^5000 ways lead through it
    assert Graphs.from_predecessors(ladder).heights.max() == 4999


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: forest([[-1], [-1, 0, 0, 0]], 2),
            r"^Tree 1: node 0 has 3 children, one in slot 2; the cell has 2 slot",
        ),
        (
            lambda: Forest.from_parents([[-1, 0]], [[0, 4]]).schedule(1),
            r"^Tree 0: node 0 has 1 child, one in slot 4; the cell has 1 slot, from 0 to 0: "
            r"give it more, or binarise the trees\.$",
        ),
        (lambda: forest([[-1]], slots=0), "^slots must be a positive integer, not 0"),
        (
            lambda: Forest.from_parents([[-1], [-1, 0, 0]], [[0], [0, 3, 3]]),
            r"^Tree 1: node 2 is in slot 3 of node 0, and so is a sibling\.$",
        ),
        (
            lambda: Forest.from_parents([[-1], [1, -1]], [[0], [-2, 0]]),
            r"^Tree 1: node 0 is in slot -2 of node 1, and slots count from 0\.$",
        ),
        (
            lambda: Forest.from_parents([[-1]], [[0, 0]]),
            r"^slots are given for \[2\] nodes; the trees have \[1\]\.$",
        ),
        (
            lambda: Forest.from_flat(np.array([-1, -1]), np.array([1])),
            r"^sizes add up to 1 nodes, and there are 2 parents\.$",
        ),
        (lambda: Forest.from_nested("a b"), r"^Trees are nested lists, not a text; ritornello\.data\.brackets reads"),
        (lambda: Forest.from_nested(["a", ["a", ["b", []]]]), r"^Tree 1 holds an empty list; a list has children"),
        (lambda: Forest.from_depths([0, 1, 3]), "^depths: node 2 has depth 3, and no parent precedes it"),
        (lambda: Forest.from_depths([1]), "^depths: node 0 has depth 1,"),
        (lambda: Forest.from_depths([0, -1]), "^depths: node 1 has depth -1,"),
        (lambda: Graphs.from_predecessors([[[]], []]), r"^Graph 1 is empty; a graph has a node at least\.$"),
        (
            lambda: Graphs.from_predecessors([[[]], [[], [2]]]),
            r"^Graph 1: predecessor 2 is no node; they lie in 0 to 1, and -1 is an empty slot\.$",
        ),
        (
            lambda: Graphs.from_predecessors([[[]], [[], [0, 3], [1], [2]]]),
            r"^Graph 1 has a cycle, and node 1 lies on it or after it\.$",
        ),
        (
            lambda: Graphs.from_predecessors([[[]], [[], [0], [0]]]),
            r"^Graph 1 has 2 nodes that precede none; a graph has one\.$",
        ),
        (
            lambda: Graphs.from_predecessors([[[], [0, -1, 0]]]).schedule(2),
            r"^Graph 0: node 1 has 2 predecessors, one in slot 2; the cell has 2 slots, from 0 to 1: give it more\.$",
        ),
    ],
)
def test_what_is_no_structure(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


# Graphs.


@st.composite
def graphs(draw: st.DrawFn, most: int = 7) -> list[list[int]]:
    """Predecessors of an acyclic graph with one end, its nodes in any order; -1 where a slot is empty."""
    size = draw(st.integers(1, most))
    found = [draw(st.lists(st.integers(-1, node - 1), max_size=3)) for node in range(size)]
    ends = [node for node in range(size - 1) if not any(node in reads for reads in found)]
    found[-1] += ends
    names = draw(st.permutations(range(size)))
    renamed: list[list[int]] = [[] for _ in range(size)]
    for node, reads in enumerate(found):
        renamed[names[node]] = [other if other < 0 else names[other] for other in reads]
    return renamed


@given(st.lists(graphs(), max_size=4), st.data())
def test_graphs(batch: list[list[list[int]]], data: st.DataObject) -> None:
    made = Graphs.from_predecessors(batch)
    for slots in (None, 9):
        schedule = made.schedule(slots)
        check_form(schedule)
        expected, offset = {}, 0
        for number, graph in enumerate(batch):
            for node, reads in enumerate(graph):
                held = [("blank",) if other < 0 else ("position", offset + other) for other in reads]
                inner = any(other >= 0 for other in reads)
                if slots is None:
                    held = [other for other in held if other != ("blank",)] or [("entry", number)]
                else:
                    held = [*held, *[("blank",)] * (slots - len(held))] if inner else [("entry", number)] * slots
                expected[offset + node] = held
            offset += len(graph)
        reads = [[meaning(schedule, row) for row in rows] for rows in sources(schedule)]
        assert dict(zip(positions(schedule), reads, strict=True)) == expected
        ends = [meaning(schedule, row)[1] for row in last_rows(schedule)]
        read = {held[1] for rows in expected.values() for held in rows if held[0] == "position"}
        assert not read & set(ends)
    if batch:
        chosen = data.draw(st.lists(st.integers(0, len(batch) - 1), min_size=1, max_size=5))
        assert_same(made[chosen], Graphs.from_predecessors([batch[n] for n in chosen]))
        assert_same(Graphs.concatenate([made[:1], made[1:]]), made)


@given(st.lists(slotted_trees(), max_size=3))
def test_a_tree_as_a_graph_is_the_tree(batch: list[Slotted]) -> None:
    read = []
    for parents, taken in batch:
        below = [{taken[child]: child for child in children(parents, node)} for node in range(len(parents))]
        read.append([[kids.get(slot, -1) for slot in range(4)] for kids in below])
    as_graphs = Graphs.from_predecessors(read)
    as_trees = Forest.from_parents([tree.parents for tree in batch], [tree.slots for tree in batch])
    for slots in (None, 4):
        ours, theirs = as_graphs.schedule(slots), as_trees.schedule(slots)
        assert sources(ours) == sources(theirs)
        assert positions(ours) == positions(theirs)
        assert len(ours.levels) == len(theirs.levels)


def walked(schedule: Schedule, states: list[str], names: list[str]) -> tuple[list[str], list[str]]:
    """Each row's history as a text, from those that its predecessors have; and the last ones, sequence by sequence."""
    table = ["", *(states[sequence] for sequence in entries(schedule))]
    for row, source in enumerate(row_sources(schedule).tolist()):
        table.append(f"{table[source]} {names[row]}")
    rows = table[schedule.first_row :]
    if schedule.last is None:
        last = rows[schedule.rows - schedule.entries :] if schedule.levels else table[1:]
    else:
        last = [table[row] for row in schedule.last.tolist()]
    return rows, last


def check_segments(schedule: Schedule, size: int) -> None:
    names = [str(row) for row in range(schedule.rows)]
    states = [f"entry {sequence}" for sequence in range(schedule.entries)]
    whole, last = walked(schedule, states, names)
    found: list[str] = []
    for part in segments(schedule, size):
        assert len(part.levels) <= size
        rows, states = walked(part, states, names[len(found) :])
        found += rows
    assert (found, states) == (whole, last)


@given(batches(), st.integers(1, 7))
def test_segments_walked_one_after_the_other_are_the_whole(batch: Batch, size: int) -> None:
    schedule = batch.schedule()
    check_segments(schedule, size)
    levels = [number for number, level in enumerate(schedule.levels) for _ in range(level.stop - level.start)]
    assert row_levels(schedule).tolist() == levels
    sequences = [entries(schedule)[entry] for entry in row_entries(schedule).tolist()]
    assert sequences == [position % batch.batch for position in positions(schedule)]
