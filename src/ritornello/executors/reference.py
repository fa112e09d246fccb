"""The reference executor: the meaning of unfolding, in torch operations, level by level.

Any device, any dtype, differentiable as often as the cell is. Every other executor is tested against it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from ritornello.cells.adapt import name_of
from ritornello.cells.cell import Cell, meaning_of_total, over_predecessors
from ritornello.cells.mode import modes_of, within
from ritornello.errors import CellError, RitornelloError
from ritornello.executors.request import Request, Result
from ritornello.program import changed_in_place, damped
from ritornello.structures import Level, segments


class ReferenceExecutor:
    """Calls the cell itself, once a level."""

    name = "reference"

    def supports(self, request: Request) -> str | None:
        if request.checkpointed and torch._C._are_functorch_transforms_active():
            return "no checkpoints are kept under a torch.func transformation"
        return None

    def run(self, request: Request) -> Result:
        if request.checkpointed and torch.is_grad_enabled() and request.schedule.levels:
            return _run_in_segments(request)
        schedule, cell = request.schedule, request.cell
        table = _Table(request)
        sizes = [level.stop - level.start for level in schedule.levels]
        damping = [None] * len(sizes) if request.damping is None else request.damping.split(sizes)
        for level, x, factors in zip(schedule.levels, _inputs(request, sizes), damping, strict=True):
            if isinstance(level.source, int):
                new = _chain_step(cell, x, table.consecutive(level.source, len(x)), factors)
            else:
                new = step_over(cell, x, table.gather(level.source), factors)
            table.append(level, new)
        fields = range(len(request.entry) if request.every_field else 1)
        return Result(tuple(table.rows(field) for field in fields), table.last())


def _inputs(request: Request, sizes: Sequence[int]) -> list[Tensor]:
    """The x of each level; zero where rows have none."""
    given, x = request.schedule.inputs, request.x
    if given is None:
        return list(x.split(list(sizes)))
    found = []
    for start, stop, _ in request.schedule.levels:
        within = given.start <= start and stop <= given.stop
        found.append(x[start - given.start : stop - given.start] if within else x.new_zeros(stop - start, x.shape[-1]))
    return found


def _run_in_segments(request: Request) -> Result:
    """Each segment anew in the backward pass, from the states that it began with: no others are kept."""
    state, where = request.entry, request.schedule.entry
    parts = segments(request.schedule)
    sizes = [part.rows for part in parts]
    damping = [None] * len(sizes) if request.damping is None else request.damping.split(sizes)
    weights = dict(request.cell.named_parameters())
    found = []
    for part, x, factors in zip(parts, request.x.split(sizes), damping, strict=True):
        twice = _Twice(replace(request, schedule=part, checkpointed=False), tuple(weights))
        given = (x, factors, *request.blank, *state, *weights.values())
        rows, last = checkpoint(twice, *given, use_reentrant=False)
        found.append(rows)
        state = last if where is None else type(last)(*(field[where.to(field.device)] for field in last))
    return Result(tuple(torch.cat(field) for field in zip(*found, strict=True)), last)


class _Twice:
    """A request that is run in the forward pass, and in the backward pass again by the cell as it was then.

    Weights may have been lent to the cell for the forward pass alone (`torch.func.functional_call`). All tensors are
    given, so that torch notices when one is changed between the passes.
    """

    def __init__(self, request: Request, names: tuple[str, ...]) -> None:
        self.request, self.names = request, names
        self.buffers, self.modes = dict(request.cell.named_buffers()), modes_of(request.cell)
        self.begun = False

    def __call__(self, x: Tensor, damping: Tensor | None, *tensors: Tensor) -> Result:
        kind, fields = type(self.request.entry), len(self.request.entry)
        blank, entry, weights = kind(*tensors[:fields]), kind(*tensors[fields : 2 * fields]), tensors[2 * fields :]
        request = replace(self.request, x=x, damping=damping, blank=blank, entry=entry)
        if not self.begun:
            self.begun = True
            return ReferenceExecutor().run(request)
        then = {**self.buffers, **dict(zip(self.names, weights, strict=True))}
        with within(self.modes):
            return functional_call(_Walk(request.cell), {f"cell.{name}": each for name, each in then.items()}, request)


class _Walk(nn.Module):
    """The reference executor as a module, whose weights can be lent."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, request: Request) -> Result:
        return ReferenceExecutor().run(request)


class _Table:
    """The schedule's table of states, kept as the pieces that were computed: blank, entries, then a piece a level."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.kind = type(request.entry)
        self.pieces: list[Any] = [request.blank, request.entry]
        self.starts = array("q", [0, 1])

    def append(self, level: Level, state: Any) -> None:
        self.pieces.append(state)
        self.starts.append(self.request.schedule.first_row + level.start)

    def consecutive(self, start: int, count: int) -> Any:
        """The states of table rows start to start + count, which lie in one piece."""
        piece = bisect_right(self.starts, start) - 1
        state = self.pieces[piece]
        offset = start - self.starts[piece]
        if offset == 0 and len(state[0]) == count:
            return state
        return self.kind(*(field[offset : offset + count] for field in state))

    def gather(self, rows: Tensor) -> Any:
        """The states of any rows; only the pieces that hold some of them are touched."""
        if not rows.numel():
            return self.kind(*(field[:0] for field in self.request.entry))
        starts = torch.frombuffer(self.starts, dtype=torch.int64).to(rows.device)
        piece_of = torch.searchsorted(starts, rows, right=True) - 1
        used, compact = piece_of.unique(return_inverse=True)
        pieces = [self.pieces[piece] for piece in used.tolist()]
        sizes = torch.tensor([len(piece[0]) for piece in pieces], device=rows.device)
        offsets = sizes.cumsum(0) - sizes
        index = (rows - starts[piece_of] + offsets[compact]).to(self.request.x.device)
        return self.kind(*(torch.cat(fields)[index] for fields in zip(*pieces, strict=True)))

    def rows(self, field: int) -> Tensor:
        """One field of all schedule rows."""
        computed = [state[field] for state in self.pieces[2:]]
        return torch.cat(computed) if computed else self.request.entry[field][:0]

    def last(self) -> Any:
        """The final state of every sequence."""
        last = self.request.schedule.last
        return self.pieces[-1] if last is None else self.gather(last)


def _chain_step(cell: Cell, x: Tensor, state: Any, damping: Tensor | None) -> Any:
    before = state if damping is None else type(state)(*(damped(field, damping) for field in state))
    return _checked(cell, _called(cell, x, before), state, (len(x),))


def _called(cell: Cell, x: Tensor, *states: Any) -> Any:
    """What the cell makes of them, which it must leave as they are."""
    given = (x, *(field for state in states for field in state))
    watched = not torch.compiler.is_compiling() and not any(tensor.is_inference() for tensor in given)
    versions = [tensor._version for tensor in given] if watched else []
    new = cell(x, *states)
    if watched and versions != [tensor._version for tensor in given]:
        names = ["x", *(f"s.{field}" for state in states for field in state._fields)]
        told = zip(names, given, versions, strict=True)
        raise changed_in_place(cell, next(name for name, tensor, before in told if tensor._version != before))
    return new


def step_over(cell: Cell, x: Tensor, state: Any, damping: Tensor | None = None) -> Any:
    """One level of rows with any number of predecessors, on an axis of their own.

    Args:
        x: (rows, features).
        state: fields (rows, predecessors, size).

    Returns:
        The new state, fields (rows, size).

    Raises:
        CellError: a cell for chains.
    """
    predecessors = state[0].shape[1]
    if getattr(cell, "slots", None) is not None:
        children = [type(state)(*(field[:, slot] for field in state)) for slot in range(predecessors)]
        return _checked(cell, _called(cell, x, *children), children[0], (len(x),))
    if predecessors == 1:  # as on a chain: `total` is the identity
        return _chain_step(cell, x, type(state)(*(field.squeeze(1) for field in state)), damping)
    assert damping is None, "trees are not damped"
    try:
        with meaning_of_total(over_predecessors):
            new = _called(cell, x.unsqueeze(1), state)
    except (torch.OutOfMemoryError, RitornelloError):
        raise
    except (RuntimeError, ValueError) as error:
        raise CellError(
            f"{name_of(cell)} cannot run over {predecessors} predecessors ({error}); "
            f"to run it over trees, sum over predecessors with ritornello.total(...)."
        ) from error
    new = _checked(cell, new, state, (len(x), 1), predecessors)
    return type(state)(*(field.squeeze(1) for field in new))


def _checked(cell: Cell, new: Any, entry: Any, rows: tuple[int, ...], predecessors: int = 1) -> Any:
    """The new state, if it has the fields and shapes that the cell's State promises.

    It keeps the dtype that it entered with: under autocast the products are in the lower precision, the memory is not.
    """
    name, fields = name_of(cell), type(entry)._fields
    if getattr(type(new), "_fields", None) != fields:
        came = f"{type(new).__name__}({', '.join(getattr(type(new), '_fields', ()))})" if new is not None else "nothing"
        raise CellError(f"{name}.forward returned {came}; return self.State({', '.join(fields)}).")
    for field, value, before in zip(fields, new, entry, strict=True):
        expected = (*rows, before.shape[-1])
        if not isinstance(value, Tensor):
            raise CellError(
                f"{name}.forward returned {field!r} as {type(value).__name__}; expected a tensor of shape {expected}."
            )
        if tuple(value.shape) == expected:
            continue
        if predecessors > 1 and tuple(value.shape) == (rows[0], predecessors, before.shape[-1]):
            raise CellError(
                f"{name} is a cell for chains: its state {field!r} keeps {predecessors} predecessors apart; "
                f"to run it over trees, sum over predecessors with ritornello.total(...)."
            )
        raise CellError(
            f"{name}.forward returned {field!r} of shape {tuple(value.shape)}; expected {expected}, "
            f"as {name}.state_sizes says."
        )
    if all(value.dtype == before.dtype for value, before in zip(new, entry, strict=True)):
        return new
    return type(entry)(*(value.to(before.dtype) for value, before in zip(new, entry, strict=True)))
