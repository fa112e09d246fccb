"""The door: what a caller may give is checked and brought to one layout here, once; inside there is only one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ritornello.cells.adapt import name_of
from ritornello.cells.cell import Cell
from ritornello.errors import ArgumentError, CellError
from ritornello.structures import Schedule, chain


class Layout(NamedTuple):
    """How the caller lays out sequences, for bringing results back.

    Attributes:
        time, batch: padded sizes.
        batch_first, batched: whether batch precedes time, and whether there is a batch axis at all.
    """

    time: int
    batch: int
    batch_first: bool
    batched: bool


def check_chain(cell: Cell) -> None:
    """Raises CellError for a cell that is for trees alone."""
    if cell.slots is not None:
        raise CellError(
            f"{name_of(cell)} tells {cell.slots} children apart, a chain has none: unfold it with .over(trees, x)."
        )


def settle_input(cell: Cell, x: Tensor, batch_first: bool) -> tuple[Tensor, Layout]:
    """Checks x and brings it to (time, batch, features)."""
    check_chain(cell)
    name = name_of(cell)
    order = "(batch, time, features)" if batch_first else "(time, batch, features)"
    if not isinstance(x, Tensor):
        raise ArgumentError(f"x must be a tensor of shape {order}, not {type(x).__name__}.")
    if x.dim() not in (2, 3):
        raise ArgumentError(f"x has shape {tuple(x.shape)}; expected {order}, or (time, features) for one sequence.")
    x = _settle_dtype(cell, x)
    if x.shape[-1] != cell.input_size:
        raise ArgumentError(f"x has {x.shape[-1]} features; {name} was made with input_size={cell.input_size}.")
    batched = x.dim() == 3
    if not batched:
        x = x.unsqueeze(1)
    elif batch_first:
        x = x.transpose(0, 1)
    return x, Layout(x.shape[0], x.shape[1], batch_first, batched)


def settle_nodes(cell: Cell, x: Tensor, count: int, inputs: str) -> Tensor:
    """Checks the x of so many nodes of trees."""
    check_nodes(x, count, cell.input_size, inputs)
    return _settle_dtype(cell, x)


def check_nodes(x: Any, count: int, features: int, inputs: str) -> None:
    """Raises ArgumentError unless there is a row for each of so many nodes."""
    expected = (count, features)
    if not isinstance(x, Tensor):
        raise ArgumentError(f"x must be a tensor of shape {expected}, not {type(x).__name__}.")
    if tuple(x.shape) != expected:
        which = {"nodes": "nodes", "leaves": "leaves", "inner": "inner nodes"}[inputs]
        raise ArgumentError(
            f"x has shape {tuple(x.shape)}; expected {expected}: a row for each of the {count} {which}."
        )


def _settle_dtype(cell: Cell, x: Tensor) -> Tensor:
    """Checks that x and the cell's parameters fit together; under autocast x enters, and states stay, in float32."""
    if x.layout is not torch.strided:
        how = "rit.nn.RNN(..., cell=...) takes nested ones" if x.is_nested else "x.to_dense() makes one"
        raise ArgumentError(f"x has layout {x.layout}; expected a dense tensor: {how}.")
    if not x.is_floating_point():
        raise ArgumentError(
            f"x has dtype {x.dtype}; expected a floating-point dtype, such as {torch.float32}: symbols become vectors "
            "by torch.nn.Embedding."
        )
    weight = next(cell.parameters(), x)
    if weight.device != x.device:
        raise ArgumentError(
            f"x is on {x.device} and the parameters of {name_of(cell)} on {weight.device}: move one of them."
        )
    if autocast_is_on(x):
        return x.to(weight.dtype)
    if weight.dtype != x.dtype:
        raise ArgumentError(
            f"x has dtype {x.dtype} and the parameters of {name_of(cell)} {weight.dtype}: "
            f"convert one of them with .to(...), or use torch.autocast."
        )
    return x


def autocast_is_on(x: Tensor) -> bool:
    """Whether torch.autocast is on for x's device; some devices know no autocast."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def settle_lengths(lengths: Any, layout: Layout) -> Tensor | None:
    """Checks lengths and brings them to a (batch,) int64 tensor on the CPU, or None where all rows are full."""
    if lengths is None:
        return None
    try:
        lengths = torch.as_tensor(lengths, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"lengths must be integers, one for each sequence, not {lengths!r}.") from error
    if lengths.numel() == 0:
        lengths = lengths.long()
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ArgumentError(f"lengths must be integers, not {lengths.dtype}.")
    if lengths.shape != (layout.batch,):
        raise ArgumentError(
            f"lengths has shape {tuple(lengths.shape)}; expected ({layout.batch},), one for each sequence."
        )
    if layout.batch and not 0 <= int(lengths.min()) <= int(lengths.max()) <= layout.time:
        bad = next(n for n in lengths.tolist() if not 0 <= n <= layout.time)
        raise ArgumentError(f"lengths holds {bad}; each must lie between 0 and the {layout.time} steps of x.")
    return None if bool((lengths == layout.time).all()) else lengths.long()


def settle_resets(resets: Any, layout: Layout) -> Tensor | None:
    """Checks resets and brings them to (time, batch) booleans on the CPU, or None where there are none."""
    if resets is None:
        return None
    resets = torch.as_tensor(resets, device="cpu")
    expected: tuple[int, ...] = (layout.time, layout.batch)
    if not layout.batched:
        expected = (layout.time,)
    elif layout.batch_first:
        expected = (layout.batch, layout.time)
    if resets.dtype != torch.bool:
        raise ArgumentError(f"resets must be booleans, not {resets.dtype}.")
    if tuple(resets.shape) != expected:
        raise ArgumentError(f"resets has shape {tuple(resets.shape)}; expected {expected}, one for each step of x.")
    if not bool(resets.any()):
        return None
    return resets.unsqueeze(1) if not layout.batched else resets.T if layout.batch_first else resets


def settle_state(cell: Cell, state: Any, blank: Any, x: Tensor, entries: int, batched: bool = True) -> Any:
    """Checks a given state, or spreads the blank one over all sequences. Fields (entries, size)."""
    if state is None:
        return cell.State(*(field.expand(entries, -1) for field in blank))
    name, fields = name_of(cell), cell.State._fields
    if isinstance(state, Tensor):
        state = (state,)
    given = tuple(state) if isinstance(state, Mapping) else getattr(type(state), "_fields", None)
    if given is not None and (given != fields if isinstance(state, tuple) else {*given} != {*fields}):
        other = _other_fields([f for f in fields if f not in given], [f for f in given if f not in fields])
        raise ArgumentError(
            f"state has the fields {', '.join(map(str, given))}; {name}.State has {', '.join(fields)}{other}."
        )
    if isinstance(state, Mapping):
        state = tuple(state[field] for field in fields)
    if not isinstance(state, tuple) or len(state) != len(fields):
        came = f"{len(state)} fields" if isinstance(state, tuple) else type(state).__name__
        other = ""
        if isinstance(state, tuple):
            extra = [f"number {k + 1}" for k in range(len(fields), len(state))]
            other = _other_fields(fields[len(state) :], extra)
        elif isinstance(state, list) and all(isinstance(each, int) for each in state):
            other = " (numbers of steps are given by name, lengths=...)"
        raise ArgumentError(f"state has {came}; {name}.State has {len(fields)}: {', '.join(fields)}{other}.")
    for field, value, size in zip(fields, state, cell.state_sizes, strict=True):
        expected = (entries, size) if batched else (size,)
        if not isinstance(value, Tensor):
            raise ArgumentError(
                f"state field {field!r} must be a tensor of shape {expected}, not {type(value).__name__}."
            )
        if tuple(value.shape) != expected:
            hint = ": leave out torch's axis of layers" if tuple(value.shape) == (1, *expected) else ""
            raise ArgumentError(f"state field {field!r} has shape {tuple(value.shape)}; expected {expected}{hint}.")
        if value.dtype != x.dtype or value.device != x.device:
            raise ArgumentError(
                f"state field {field!r} is {value.dtype} on {value.device}; x is {x.dtype} on {x.device}: make them "
                "alike."
            )
    return cell.State(*(value if batched else value.unsqueeze(0) for value in state))


def _other_fields(missing: Sequence[Any], extra: Sequence[Any]) -> str:
    """The fields by which a state differs, in parentheses."""
    told = [f"{what}: {', '.join(map(str, f))}" for what, f in (("missing", missing), ("not among them", extra)) if f]
    return f" ({'; '.join(told)})" if told else ""


def chain_schedule(layout: Layout, lengths: Any, resets: Any, reverse: bool) -> Schedule:
    """The schedule of the caller's chains."""
    return chain(
        layout.time,
        layout.batch,
        lengths=settle_lengths(lengths, layout),
        resets=settle_resets(resets, layout),
        reverse=reverse,
    )
