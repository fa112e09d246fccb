"""Initial values of a cell's parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ritornello.cells.adapt import name_of
from ritornello.cells.cell import Cell
from ritornello.errors import ArgumentError


def check_number(owner: str, name: str, value: Any) -> None:
    """Raises ArgumentError unless the value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ArgumentError(f"{owner}: {name} must be a finite number, not {value!r}.")


@torch.no_grad()
def uniform_(cell: Cell) -> None:
    """Draws every parameter uniformly from ±1/√hidden_size, in the order they were made, as `torch.nn.LSTM` does."""
    bound = cell.hidden_size**-0.5
    for parameter in cell.parameters():
        nn.init.uniform_(parameter, -bound, bound)


@torch.no_grad()
def add_to_gate_bias_(cell: Cell, bias: Tensor, gate: str, value: float) -> None:
    """Adds `value` to one gate's part of a stacked bias, or takes it from it where the gate writes the memory.

    `cell.gates` says where that part lies.
    """
    check_number(type(cell).__name__, "the gates' bias", value)
    position = cell.gates.index(gate)
    bias.chunk(len(cell.gates))[position].add_(-value if gate in cell.writes else value)


def leak_logits(leaks: tuple[float, float], count: int) -> Tensor:
    """Logits of shares from the smaller to the larger leak, evenly on a logarithmic scale; 1 stands for 0.999."""
    slow, fast = sorted(leaks)
    return torch.logit((torch.logspace(0, 1, count, base=fast / slow) * slow).clamp(max=0.999))


@torch.no_grad()
def orthogonal_(cell: Cell, gain: float = 1.0, names: str | Sequence[str] = ()) -> Cell:
    """Makes the recurrent weights orthogonal, gate by gate, so that they keep lengths (Saxe et al. 2014).

    A block that is not square, such as a projection, gets orthonormal rows or columns, whichever are fewer.

    Args:
        cell: changed in place.
        gain: of each block.
        names: the weights, or one. Default: `cell.recurrent`, as the catalogue's cells name theirs.

    Returns:
        the cell.

    Raises:
        ArgumentError: a cell without recurrent weights, a name that it does not have, or a parameter that is no matrix.

    Example:
        >>> import torch, ritornello as rit
        >>> from ritornello.cells import orthogonal_
        >>> U = orthogonal_(rit.Elman(3, 4)).U.weight
        >>> bool((U @ U.T - torch.eye(4)).abs().max() < 1e-5)
        True
    """
    for _, block in _blocks(cell, names):
        nn.init.orthogonal_(block, gain)
    return cell


@torch.no_grad()
def identity_(cell: Cell, scale: float = 1.0, names: str | Sequence[str] = ()) -> Cell:
    """Makes the recurrent weights the identity times `scale`, gate by gate: at first a unit hands on what it holds
    (Le, Jaitly & Hinton 2015).

    Args, Returns, Raises: as `orthogonal_`'s; besides, a gate's weight must be square.

    Example:
        >>> import ritornello as rit
        >>> from ritornello.cells import identity_
        >>> identity_(rit.Elman(3, 2)).U.weight.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    blocks = _blocks(cell, names)
    for name, block in blocks:
        if block.shape[0] != block.shape[1]:
            raise ArgumentError(f"{name} cannot be an identity: a gate's part has shape {tuple(block.shape)}.")
    for _, block in blocks:
        nn.init.eye_(block).mul_(scale)
    return cell


def _blocks(cell: Cell, names: str | Sequence[str]) -> list[tuple[str, Tensor]]:
    """The parts of recurrent weights, each with its parameter's name: one for each gate that is stacked there."""
    _check(cell)
    kind, known = name_of(cell), dict(cell.named_parameters())
    names = [names] if isinstance(names, str) else names or cell.recurrent
    if not names:
        raise ArgumentError(f"{kind} has no recurrent weights.")
    found = []
    for name in names:
        if name not in known:
            raise ArgumentError(f"{kind} has no parameter {name!r}: it has {', '.join(known)}.")
        weight = known[name].detach()
        if weight.dim() != 2:
            raise ArgumentError(f"{name} of shape {tuple(weight.shape)} is no matrix.")
        stacked = len(weight) % cell.hidden_size == 0
        found += [(name, block) for block in weight.split(cell.hidden_size if stacked else len(weight))]
    return found


@torch.no_grad()
def forget_bias_(cell: Cell, value: float = 1.0) -> Cell:
    """Sets the biases of gates so that at first the memory is kept (Gers, Schmidhuber & Cummins 2000).

    Args:
        cell: changed in place; `cell.keeps` names the gates. Where none keeps, those in `cell.writes` get -value.
        value: of the bias.

    Returns:
        the cell.

    Raises:
        ArgumentError: a cell without such gates, or without biases.

    Example:
        >>> import ritornello as rit
        >>> from ritornello.cells import forget_bias_
        >>> forget_bias_(rit.LSTM(3, 1), 2.0).W.bias[1].item()
        2.0
    """
    _check(cell)
    check_number("forget_bias_", "value", value)
    for gate in cell.keeps or _memory_gates(cell):
        _gate_bias(cell, gate).fill_(value if gate in cell.keeps else -value)
    return cell


@torch.no_grad()
def chrono_(cell: Cell, longest: float, shortest: float = 1.0) -> Cell:
    """Draws the biases of gates so that units remember for times up to `longest` steps.

    A gate with bias b forgets in about 1 + exp(b) steps: b_f = log u with u uniform in (shortest, longest - 1), and
    b_i = -b_f (Tallec & Ollivier 2018, "Can recurrent neural networks warp time?", the chrono initialisation).

    Args:
        cell: changed in place; `cell.keeps` and `cell.writes` name the gates.
        longest: steps of the longest dependency that is expected, above 2.
        shortest: steps of the shortest, less one. Default 1.

    Returns:
        the cell.

    Raises:
        ArgumentError: times that do not fit, a cell without such gates, or without biases.

    Example:
        >>> import ritornello as rit
        >>> from ritornello.cells import chrono_
        >>> bias = chrono_(rit.LSTM(3, 100), 500).W.bias.chunk(4)
        >>> bool((bias[1] == -bias[0]).all()), bool(bias[1].max() > 5)
        (True, True)
    """
    for name, value in (("longest", longest), ("shortest", shortest)):
        check_number("chrono_", name, value)
    if not 0 < shortest < longest - 1:
        raise ArgumentError(f"chrono_: shortest must lie in 0 to longest - 1, not {shortest} beside {longest}.")
    gates = _memory_gates(cell)
    bias = torch.empty_like(_gate_bias(cell, gates[0])).uniform_(shortest, longest - 1).log()
    for gate in gates:
        _gate_bias(cell, gate).copy_(bias if gate in cell.keeps else -bias)
    return cell


def _check(cell: Any) -> None:
    if not isinstance(cell, Cell):
        raise ArgumentError(f"Initialisers take a ritornello.Cell, not {type(cell).__name__}.")


def _memory_gates(cell: Cell) -> tuple[str, ...]:
    _check(cell)
    if not cell.keeps and not cell.writes:
        raise ArgumentError(f"{name_of(cell)} names no gate that keeps or writes its memory.")
    return cell.keeps + cell.writes


def _gate_bias(cell: Cell, gate: str) -> Tensor:
    bias = dict(cell.named_parameters()).get(cell.gate_bias)
    if bias is None:
        raise ArgumentError(f"This {name_of(cell)} has no biases.")
    return bias.chunk(len(cell.gates))[cell.gates.index(gate)]
