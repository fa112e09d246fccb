"""Cells of one's own within the interface of torch's recurrent modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from ritornello.engine import Unfold
from ritornello.errors import ArgumentError
from ritornello.nn.bidirectional import Bidirectional
from ritornello.nn.compose import Residual, Stack, check_maker
from ritornello.nn.layout import settle

_MEANT = {"cell", "executor", "reverse", "residual", "learn_initial"}  # options that are not about torch's equations


def stack_of(module: Any, asked: set[str]) -> Stack:
    """The layers of a module whose option `cell` names other equations, in the dtype and on the device of its own.

    Args:
        module: an RNN, GRU or LSTM.
        asked: the options that differ from their defaults.

    Raises:
        ArgumentError: options that clash with cells, or cells that do not go together.
    """
    clash = sorted(asked - _MEANT)
    clash += [name for name, usual in (("proj_size", 0), ("bias", True)) if getattr(module, name) != usual]
    if clash:
        raise ArgumentError(f"cell and {clash[0]} clash: {clash[0]} is about torch's equations, not the cell's.")
    makers = module.cell if isinstance(module.cell, (tuple, list)) else [module.cell] * module.num_layers
    if len(makers) != module.num_layers:
        raise ArgumentError(f"cell has {len(makers)} entries; num_layers is {module.num_layers}.")
    for make in makers:
        check_maker(type(module).__name__, make)
    common = {name: getattr(module, name) for name in ("batch_first", "learn_initial", "executor")}
    layers: list[Any] = []
    states = set()
    for make in makers:
        inputs = layers[-1].output_size if layers else module.input_size
        cells = [make(inputs, module.hidden_size) for _ in range(1 + module.bidirectional)]
        states |= {(cell.State._fields, tuple(cell.state_sizes)) for cell in cells}
        layer: Any = (
            Bidirectional(*cells, **common) if len(cells) > 1 else Unfold(*cells, reverse=module.reverse, **common)
        )
        layers.append(Residual(layer) if module.residual and layer.input_size == layer.output_size else layer)
    if len(states) > 1:
        raise ArgumentError("cell: the layers' states have different fields or sizes; use ritornello.nn.Stack.")
    return Stack(layers, dropout=module.dropout if len(layers) > 1 else 0.0).to(module._like)


def call_stack(module: Any, input: Any, hx: Any, lengths: Any, resets: Any, all_states: bool) -> tuple[Any, Any]:
    """A call of the module's stack with torch's shapes around it: hx has (layers · directions, batch, size) a field."""
    if isinstance(input, Tensor) and input.is_nested:
        raise ArgumentError("a nested tensor and cell clash: pad it, and give lengths.")
    if all_states:
        raise ArgumentError("all_states and cell clash: unfold the cells with ritornello.Unfold, layer by layer.")
    x, packed = input, isinstance(input, PackedSequence)
    if packed:
        settle(input, module.batch_first, lengths, resets)  # there are none beside a packed input
        x, lengths = pad_packed_sequence(input, batch_first=module.batch_first)
    states = None if hx is None else _by_layer(module, (hx,) if isinstance(hx, Tensor) else tuple(hx))
    outputs, last = module.stack(x, states, lengths=lengths, resets=resets)
    finals = [state for layer in last for state in (layer if module.bidirectional else (layer,))]
    hidden = tuple(torch.stack(field) for field in zip(*finals, strict=True))
    if packed:
        outputs = input._replace(data=_packed_like(input, outputs.transpose(0, 1) if module.batch_first else outputs))
    return outputs, hidden if len(hidden) > 1 else hidden[0]


def _packed_like(packed: PackedSequence, steps: Tensor) -> Tensor:
    """(time, batch, size) as the data of a packed sequence, in the order of its rows."""
    if packed.sorted_indices is not None:
        steps = steps.index_select(1, packed.sorted_indices)
    return steps[torch.arange(steps.shape[1]) < packed.batch_sizes[:, None]]


def _by_layer(module: Any, fields: tuple[Tensor, ...]) -> list[Any]:
    directions = 1 + module.bidirectional
    count = module.num_layers * directions
    if any(len(field) != count for field in fields):
        raise ArgumentError(f"hx has {[len(field) for field in fields]} states in its fields; expected {count}.")
    states = [tuple(field[place] for field in fields) for place in range(count)]
    return [tuple(states[k : k + 2]) for k in range(0, count, 2)] if directions > 1 else states
