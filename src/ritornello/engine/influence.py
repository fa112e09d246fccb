"""Forward accumulation: the influence of what is asked for on each state is carried along with the state.

Real-time recurrent learning (Williams & Zipser 1989): ∂h_t/∂w = ∂f/∂w + (∂f/∂h_{t-1}) ∂h_{t-1}/∂w. The influence matrix
is (sequences, numbers of the state, columns), a column for each number whose gradient is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from ritornello.cells.adapt import name_of
from ritornello.cells.mode import modes_of, within
from ritornello.errors import ArgumentError, CellError
from ritornello.executors import Request, Result
from ritornello.structures import Level

MOST_BYTES = 1 << 30  # of the influence matrix


def accumulate_forward(request: Request, run: Callable[[Request], Result]) -> Result:
    """The request's result, whose gradients are accumulated forwards, in one more walk."""
    named = dict(request.cell.named_parameters())
    tensors = [request.x, *request.entry, *request.blank, *named.values()]
    if not any(tensor.requires_grad for tensor in tensors):
        return run(request)
    if torch._C._are_functorch_transforms_active():
        raise ArgumentError("adjoint='forward' is no part of a torch.func transformation; use adjoint='full'.")
    _check_parameters(request.cell)
    _check_size(request, _Columns.of(request, tensors, [tensor.requires_grad for tensor in tensors]))
    found = _Accumulated.apply(request, run, tuple(named), *tensors)
    fields = len(request.entry)
    return Result(tuple(found[:-fields]), type(request.entry)(*found[-fields:]))


class _Accumulated(torch.autograd.Function):
    """An unfolding that keeps nothing but what entered it."""

    @staticmethod
    def forward(ctx: Any, request: Request, run: Any, names: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.request, ctx.names, ctx.modes = request, names, modes_of(request.cell)
        ctx.save_for_backward(*tensors)
        result = run(request)
        return (*result.rows, *(field.clone() for field in result.last))  # without steps it is what entered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise ArgumentError("adjoint='forward' gives first derivatives only; for more use adjoint='full'.")
        wanted = ctx.needs_input_grad[3:]
        with within(ctx.modes):
            return (None, None, None, *_gradients(ctx.request, ctx.names, ctx.saved_tensors, wanted, gradients))


class _Columns(NamedTuple):
    """How many columns belong to what: the numbers whose gradients are asked for."""

    parameters: int
    entry: int
    blank: int
    x: int

    @staticmethod
    def of(request: Request, tensors: Sequence[Tensor], wanted: Sequence[bool]) -> _Columns:
        fields = len(request.entry)
        size = sum(field.shape[-1] for field in request.entry)
        of_parameters = zip(tensors[1 + 2 * fields :], wanted[1 + 2 * fields :], strict=True)
        return _Columns(
            sum(p.numel() for p, want in of_parameters if want),
            size * any(wanted[1 : 1 + fields]),
            size * any(wanted[1 + fields : 1 + 2 * fields]),
            len(request.schedule.levels) * request.x.shape[1] * wanted[0],
        )


def _check_parameters(cell: nn.Module) -> None:
    for module in cell.modules():
        for name, value in (*vars(module).items(), *module.named_buffers(recurse=False)):
            if isinstance(value, Tensor) and value.requires_grad:
                raise ArgumentError(
                    f"adjoint='forward' differentiates by parameters; {name_of(cell)}'s {name!r} is a tensor that "
                    "requires a gradient and is none: make it a torch.nn.Parameter, or use adjoint='checkpointed'."
                )


def _check_size(request: Request, columns: _Columns) -> None:
    entries, size = request.schedule.entries, sum(field.shape[-1] for field in request.entry)
    needed = entries * size * sum(columns) * request.x.itemsize
    if needed > MOST_BYTES:
        raise ArgumentError(
            f"adjoint='forward' would carry an influence matrix of {entries} sequences by {size} states by "
            f"{sum(columns):,} numbers to differentiate by, {needed / 1e9:.1f} GB; it is for small cells: "
            "use adjoint='checkpointed', which is exact too and keeps O(√T) states."
        )


def _gradients(
    request: Request, names: Sequence[str], tensors: Sequence[Tensor], wanted: Sequence[bool], given: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradients of x, entry, blank and parameters, from those of what came out."""
    schedule, fields, columns = request.schedule, len(request.entry), _Columns.of(request, tensors, wanted)
    x, inputs = tensors[0], tensors[0].shape[1]
    state, initial = (torch.cat([*tensors[k : k + fields]], -1) for k in (1, 1 + fields))
    parameters = dict(zip(names, tensors[1 + 2 * fields :], strict=True))
    asked = [name for name, want in zip(names, wanted[1 + 2 * fields :], strict=True) if want]
    step = _jacobians(request, parameters, asked)
    d_rows, d_last = _outside(request, given)

    def carried(by_entry: bool, by_blank: bool) -> Tensor:
        """The influence on a state of what has made no step yet."""
        one = torch.eye(state.shape[1], dtype=x.dtype, device=x.device)
        return torch.cat([
            x.new_zeros(len(one), columns.parameters),
            (one * by_entry)[:, : columns.entry],
            (one * by_blank)[:, : columns.blank],
            x.new_zeros(len(one), columns.x),
        ], -1)  # fmt: skip

    found = x.new_zeros(schedule.entries, sum(columns))
    influence, at_blank = carried(True, False).expand(schedule.entries, -1, -1), carried(False, True)
    for number, level in enumerate((*schedule.levels, Level(0, 0, 1))):
        rows = level.stop - level.start
        found[rows : len(state)] += _times(d_last[rows : len(state)], influence[rows:])  # sequences that ended
        if not rows:
            break
        state, influence = state[:rows], influence[:rows]
        if isinstance(level.source, Tensor):  # some may begin anew
            fresh = (level.source == 0).to(x.device)
            state, influence = torch.where(fresh, initial, state), torch.where(fresh[..., None], at_blank, influence)
        by_parameters, by_x, by_state, state = step(x[level.start : level.stop], state)
        influence = by_state @ influence
        influence[:, :, : columns.parameters] += by_parameters
        if columns.x:
            at = sum(columns[:3]) + number * inputs
            influence[:, :, at : at + inputs] = by_x
        found[:rows] += _times(d_rows[level.start : level.stop], influence)
    return _laid_out(request, tensors, wanted, found.split(columns, -1))


def _times(d: Tensor, influence: Tensor) -> Tensor:
    return (d.unsqueeze(1) @ influence).squeeze(1)


def _outside(request: Request, given: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The gradients that came from outside: of all rows, and of the final states in the order of entries."""
    schedule, fields = request.schedule, len(request.entry)
    rows, last = list(given[:-fields]), torch.cat([*given[-fields:]], -1)
    rows += [last.new_zeros(schedule.rows, field.shape[-1]) for field in request.entry[len(rows) :]]
    return torch.cat(rows, -1), last if schedule.entry is None else last[schedule.entry.to(last.device)]


def _jacobians(
    request: Request, parameters: dict[str, Tensor], asked: Sequence[str]
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """From x and states of rows to their new states' Jacobians by parameters, by x and by states, and these states."""
    cell, sizes = request.cell, [field.shape[-1] for field in request.entry]

    def one(asked: dict[str, Tensor], x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        before = type(request.entry)(*(field.unsqueeze(0) for field in state.split(sizes)))
        after = torch.cat(functional_call(cell, {**parameters, **asked}, (x.unsqueeze(0), before)), -1).squeeze(0)
        return after, after

    derivatives = vmap(jacrev(one, argnums=(0, 1, 2), has_aux=True), in_dims=(None, 0, 0))

    def step(x: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        try:
            (by_parameters, by_x, by_state), new = derivatives({name: parameters[name] for name in asked}, x, state)
        except RuntimeError as error:
            raise CellError(
                f"{name_of(cell)} cannot be accumulated forwards ({str(error).splitlines()[0]}); "
                "use adjoint='checkpointed'."
            ) from error
        flat = [by_parameters[name].reshape(*new.shape, -1) for name in asked]
        return torch.cat([by_x[:, :, :0], *flat], -1), by_x, by_state, new

    return step


def _laid_out(
    request: Request, tensors: Sequence[Tensor], wanted: Sequence[bool], found: Sequence[Tensor]
) -> list[Tensor | None]:
    """What was found for each entry, as gradients of the tensors."""
    by_parameters, by_entry, by_blank, by_x = found
    d_x = None
    if wanted[0]:
        levels, x = request.schedule.levels, tensors[0]
        steps = by_x.view(len(by_x), len(levels), x.shape[1])
        d_x = torch.cat([x[:0], *(steps[: level.stop - level.start, k] for k, level in enumerate(levels))])
    sizes = [field.shape[-1] for field in request.entry]
    d_entry = by_entry.split(sizes, -1) if by_entry.shape[1] else [None] * len(sizes)
    d_blank = by_blank.sum(0, keepdim=True).split(sizes, -1) if by_blank.shape[1] else [None] * len(sizes)
    of_parameters = list(zip(tensors[1 + 2 * len(sizes) :], wanted[1 + 2 * len(sizes) :], strict=True))
    each = iter(by_parameters.sum(0).split([p.numel() for p, want in of_parameters if want]))
    return [d_x, *d_entry, *d_blank, *(next(each).view_as(p) if want else None for p, want in of_parameters)]
