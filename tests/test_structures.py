"""Schedules against what they stand for: for each step or node, who precedes it."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from ritornello.errors import ArgumentError
from ritornello.structures import Schedule, chain, forest, row_entries, row_levels, row_sources, segments


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
        ]
    for schedule in found:
        held = [schedule.order, schedule.entry, schedule.last, *(level.source for level in schedule.levels)]
        assert {value.device.type for value in held if isinstance(value, torch.Tensor)} <= {"cpu"}
        check_form(schedule)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([[]], r"^Tree 0 has 0 roots \(nodes with parent -1\); a tree has one\.$"),
        ([[-1], [1, 0]], "^Tree 1 has 0 roots"),
        ([[-1], [-1, 0, -1]], "^Tree 1 has 2 roots"),
        ([[-1, 2]], r"^Tree 0: parent 2 is no node; parents lie in 0 to 1, the root's is -1\.$"),
        ([[-1], [-1, -2]], r"^Tree 1: parent -2 is no node"),
        ([[-1, 1]], r"^Tree 0: the parents form a cycle through node 1; a tree has none\.$"),
        ([[-1], [3, -1, 0, 2]], "^Tree 1: the parents form a cycle through node 0;"),
    ],
)
def test_what_is_no_tree(batch: list[list[int]], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        forest(batch)


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


@given(st.lists(st.integers(1, 5), max_size=4), st.integers(1, 6))
def test_trees_without_branches_have_segments_too(lengths: list[int], size: int) -> None:
    schedule = forest([[*range(1, length), -1] for length in lengths])
    check_segments(schedule, size)
