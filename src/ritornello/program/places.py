"""Where the values of a lowered program lie: slots that are written and read, and the memory that each one gets.

A value is kept in the frame where another routine or a reduction reads it, in a block's memory where products do, and
otherwise in memory for one row. A place is free again as soon as nobody reads it any more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from ritornello.program.code import FRAME, SCRATCH, TEMP, Instruction, Place, Product
from ritornello.program.ops import ELEMENTS, OPS

ALIGN = 16  # elements: a cache line of single precision


@dataclass(eq=False)
class Slot:
    """A value that instructions write and read, before it has a place."""

    size: int
    routine: int
    place: Place | None = None
    written: tuple[int, int] | None = None  # routine, step: when
    reads: list[tuple[tuple[int, int], int, int]] = field(default_factory=list)  # when, first and last + 1 element
    kept: bool = False  # for the reductions
    hint: tuple[Slot, int] | None = None
    block: bool = False  # products read and write whole blocks

    def at(self, offset: int, size: int) -> View:
        return View(self, offset, size)


class View(NamedTuple):
    slot: Slot
    offset: int
    size: int


class Item(NamedTuple):
    """An instruction or product over views."""

    op: str
    size: int
    out: View
    args: tuple[View, ...]
    extra: int
    start: bool  # of a product: the first argument is where it starts


def sink(items: list[Item]) -> None:
    """Moves an instruction whose result is kept behind the last reader of an argument whose place it could take."""
    for item in list(items):
        view = _kept_argument(item)
        if view is None:
            continue
        at = items.index(item)
        readers = [k for k in range(at + 1, len(items)) if _reads(items[k], view)]
        if readers and not any(_in_the_way(other, item) for other in items[at + 1 : readers[-1] + 1]):
            items.insert(readers[-1], items.pop(at))


def _kept_argument(item: Item) -> View | None:
    """An argument of the result's size that another routine left in the frame."""
    if item.op == "product" or not item.out.slot.kept:
        return None
    here, size = item.out.slot.routine, item.out.size
    kept = (arg for arg in item.args if arg.slot.place is None and arg.slot.routine != here and arg.size == size)
    return next(kept, None)


def _in_the_way(other: Item, item: Item) -> bool:
    """Whether the item cannot be moved behind the other."""
    writes = any(other.out.slot is arg.slot for arg in item.args)
    return other.op == "product" or _reads(other, item.out) or other.out.slot is item.out.slot or writes


def _reads(item: Item, view: View) -> bool:
    end = view.offset + view.size
    return any(arg.slot is view.slot and arg.offset < end and view.offset < arg.offset + arg.size for arg in item.args)


def _ends(slot: Slot) -> Iterable[tuple[int, int, tuple[int, int]]]:
    """The parts of a slot, each with the moment after which nobody reads it."""
    if slot.kept or slot.written is None:
        return
    bounds = sorted({0, slot.size, *(edge for _, start, stop in slot.reads for edge in (start, stop))})
    for start, stop in pairwise(bounds):
        when = max((w for w, a, b in slot.reads if a <= start and stop <= b), default=slot.written)
        yield start, stop, when


def _read_and_written(items: Sequence[list[Item]]) -> None:
    for routine, steps in enumerate(items):
        for step, item in enumerate(steps):
            if item.out.slot.written is None:
                item.out.slot.written = (routine, step)
            for arg in item.args:
                arg.slot.reads.append(((routine, step), arg.offset, arg.offset + arg.size))


def allocate(items: Sequence[list[Item]], slots: Sequence[Slot]) -> tuple[int, int, int]:
    """Gives every slot its place, once all items are there; returns the sizes of TEMP, SCRATCH and FRAME."""
    _read_and_written(items)
    arenas = {TEMP: _Arena(), SCRATCH: _Arena(), FRAME: _Arena()}
    space_of = {id(slot): _space(slot, items) for slot in slots}
    dying: dict[tuple[int, int], list[tuple[Slot, int, int]]] = defaultdict(list)
    for slot in slots:
        for start, stop, when in _ends(slot):
            dying[when].append((slot, start, stop))
    for routine, steps in enumerate(items):
        for step, item in enumerate(steps):
            slot = item.out.slot
            if slot.place is None:
                space = space_of[id(slot)]
                offset = _in_place(item, dying[routine, step], space)
                if offset is None:
                    offset = arenas[space].take(slot.size, _hinted(slot))
                slot.place = Place(space, offset, slot.size)
            for other, start, stop in dying.pop((routine, step), []):
                if other.place is not None and space_of.get(id(other)) == other.place.space:
                    arenas[other.place.space].give(other.place.offset + start, stop - start)
    return arenas[TEMP].size, arenas[SCRATCH].size, arenas[FRAME].size


def _space(slot: Slot, items: Sequence[list[Item]]) -> int:
    assert slot.written is not None
    routine = slot.written[0]
    if slot.kept or any(when[0] != routine for when, _, _ in slot.reads):
        return FRAME
    last = max((when[1] for when, _, _ in slot.reads), default=slot.written[1])
    crossed = any(item.op == "product" for item in items[routine][slot.written[1] : last + 1])
    return SCRATCH if slot.block or crossed else TEMP


def _in_place(item: Item, dying: list[tuple[Slot, int, int]], space: int) -> int | None:
    """The place of an argument that is read here for the last time, if the result can take it over."""
    base = item.op.partition(".")[0]
    whole = item.out.size == item.out.slot.size and item.out.offset == 0
    if not whole or (item.op != "product" and (base not in OPS or OPS[base].kind != ELEMENTS)):
        return None
    for number, arg in enumerate(item.args):
        if item.op == "product" and not (item.start and number == 0 and arg not in item.args[1:]):
            break  # its rows are read while its columns are written
        entry = (arg.slot, arg.offset, arg.offset + arg.size)
        place = arg.slot.place
        if place is None or place.space != space or arg.size != item.out.size or entry not in dying:
            continue
        dying.remove(entry)
        return place.offset + arg.offset
    return None


def _hinted(slot: Slot) -> int | None:
    """Where the value that this one is computed from lay, or where the product that made it started."""
    hint, offset = slot.hint, 0
    while hint is not None:
        offset += hint[1]
        if hint[0].place is not None and hint[0].place.space == FRAME:
            return hint[0].place.offset + offset
        hint = hint[0].hint
    return None


def final(item: Item) -> Instruction | Product:
    out, args = place_of(item.out), tuple(place_of(arg) for arg in item.args)
    if item.op == "product":
        return Product(item.size, out, args[0] if item.start else None, item.extra, args[item.start :])
    return Instruction(item.op, item.size, out, args, item.extra)


def place_of(view: View) -> Place:
    place = view.slot.place
    assert place is not None
    return Place(place.space, place.offset + view.offset, view.size)


class _Arena:
    """Places in one space: the first that fits, the one hinted at if it is free."""

    def __init__(self) -> None:
        self.size = 0
        self.free: list[tuple[int, int]] = []  # start, stop

    def take(self, size: int, hint: int | None = None) -> int:
        if hint is not None:
            for start, stop in self.free:
                if start <= hint and hint + size <= stop:
                    return self._use(start, stop, hint, size)
        for start, stop in self.free:
            if stop - start >= size:
                return self._use(start, stop, start, size)
        offset = self.size
        self.size += -(-size // ALIGN) * ALIGN
        if self.size > offset + size:
            self.free.append((offset + size, self.size))
        return offset

    def _use(self, start: int, stop: int, offset: int, size: int) -> int:
        self.free.remove((start, stop))
        self.free += [piece for piece in ((start, offset), (offset + size, stop)) if piece[0] < piece[1]]
        self.free.sort()
        return offset

    def give(self, offset: int, size: int) -> None:
        pieces = sorted([*self.free, (offset, offset + size)])
        merged = [pieces[0]]
        for start, stop in pieces[1:]:
            if start == merged[-1][1]:
                merged[-1] = (merged[-1][0], stop)
            else:
                merged.append((start, stop))
        self.free = merged
