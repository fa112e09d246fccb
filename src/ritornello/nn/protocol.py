"""What all layers over sequences have in common: sizes, states, padding, and what they gave at each sequence's end.

A layer is an `Unfold` or a composition of them: it has `input_size`, `output_size` and `batch_first`, and its
`forward(x, state, *, lengths, resets)` gives outputs of every step and the last state.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ritornello.cells import Cell
from ritornello.engine import Unfold, door
from ritornello.errors import ArgumentError, nearest
from ritornello.structures import Acyclic, AnyTrees

Lengths = Tensor | Sequence[int] | None
Function = Callable[[Tensor], Tensor]


def is_layer(module: Any) -> bool:
    """Whether a module can stand in a composition: it tells a layer's sizes, and gives outputs of every step."""
    sizes = all(isinstance(getattr(module, name, None), int) for name in ("input_size", "output_size", "batch_first"))
    return sizes and getattr(module, "reads", "transducer") == "transducer"


def checked_layer(owner: str, module: Any) -> Any:
    """The module; raises ArgumentError unless it is a layer."""
    if not is_layer(module):
        raise ArgumentError(f"{owner} stands around a layer, an Unfold or a composition, not {type(module).__name__}.")
    return module


def walks_back(layer: nn.Module) -> bool:
    """Whether some unfolding in a layer is reversed."""
    return any(isinstance(part, Unfold) and part.reverse for part in layer.modules())


def of_cells(layer: Any, tell: Callable[[Cell], Any]) -> Any:
    """What is told of each cell in a layer, nested as the layer's state is."""
    return tell(layer.cell) if isinstance(layer, Unfold) else layer.of_cells(tell)


def state_sizes(layer: Any) -> Any:
    """Features of a layer's state: nested as the state is, with numbers in place of tensors.

    Example:
        >>> import ritornello as rit
        >>> state_sizes(rit.nn.Stack.of(rit.LSTM, 3, 4, layers=2))
        (State(h=4, c=4), State(h=4, c=4))
    """
    return of_cells(layer, lambda cell: cell.State(*cell.state_sizes))


def open_sizes(layer: Any) -> Any:
    """The same of what others than the cell may write: 0 for its private fields.

    Example:
        >>> import ritornello as rit
        >>> open_sizes(rit.Unfold(rit.cells.GroupedRNN(3, 8)))
        State(h=8, clock=0)
    """

    def told(cell: Cell) -> Any:
        fields = zip(cell.State._fields, cell.state_sizes, strict=True)
        return cell.State(*(0 if field in cell.private else size for field, size in fields))

    return of_cells(layer, told)


def check_options(owner: str, options: Iterable[str], own: Iterable[str] = ()) -> None:
    """Raises ArgumentError for an option that is neither `Unfold`'s nor one of the owner's own."""
    known = {*inspect.signature(Unfold).parameters, *own} - {"cell", "options", "self"}
    for option in options:
        if option not in known:
            raise ArgumentError(f"Unknown option {option!r} of {owner}: {nearest(option, known)}.")


def check_outputs(owner: str, options: dict[str, Any]) -> None:
    """Raises ArgumentError where a layer is asked for all fields of its states, of which the owner reads one."""
    if options.get("all_states"):
        raise ArgumentError(
            f"{owner} reads its layer's outputs, so that all_states is not for it; ask the Unfold alone."
        )


def ending(layer: Any, outputs: Tensor | None, last: Any, lengths: Lengths) -> Tensor:
    """What a layer gave at the step of each sequence that it walked last; where there was none, its initial state.

    Args:
        layer: a layer; one that walks both ways has two last steps, each for its own features.
        outputs, last: what it gave. Without outputs they are read from the state, whose first field they are.
        lengths: as it was given.

    Returns:
        (batch, output_size), or (output_size,) for one sequence.
    """
    if not isinstance(layer, Unfold):
        return layer.ending(outputs, last, lengths)
    if outputs is None:
        return last[0]
    steps = outputs.transpose(0, 1) if layer.batch_first and outputs.dim() == 3 else outputs
    if len(steps) == 0:
        return last[0]
    if lengths is None:
        return steps[0 if layer.reverse else -1]
    lengths = torch.as_tensor(lengths, device=steps.device).long()
    where = torch.zeros_like(lengths) if layer.reverse else (lengths - 1).clamp(min=0)
    if steps.dim() == 2:
        return torch.where(lengths > 0, steps[where][0], last[0])
    found = steps[where, torch.arange(len(where), device=steps.device)]
    return torch.where((lengths > 0)[:, None], found, last[0])


def layout_of(x: Tensor, batch_first: bool, axes: int) -> door.Layout:
    """How x is laid out; `axes` of its first axes are time and batch: 2, or 1 for one sequence."""
    time, batch = (x.shape[0], 1) if axes == 1 else (x.shape[1], x.shape[0]) if batch_first else x.shape[:2]
    return door.Layout(time, batch, batch_first, axes == 2)


def without_padding(
    x: Tensor, lengths: Lengths, batch_first: bool, *, axes: int | None = None, fill: float = 0.0
) -> Tensor:
    """x with `fill`, and so with no gradient, beyond each sequence's end.

    Args:
        x: (time, batch, ...), or as `batch_first` and `axes` say.
        lengths: (batch,) steps of each sequence; None where all are full.
        axes: how many of the first axes are time and batch. Default: all but one.

    Raises:
        ArgumentError: lengths that do not fit x.
    """
    axes = x.dim() - 1 if axes is None else axes
    layout = layout_of(x, batch_first, axes)
    if not torch.compiler.is_compiling():  # a graph's lengths are checked when it runs
        lengths = door.settle_lengths(lengths, layout)
    if lengths is None:
        return x
    beyond = torch.arange(layout.time, device=x.device)[:, None] >= torch.as_tensor(lengths, device=x.device)
    beyond = beyond[:, 0] if axes == 1 else beyond.T if batch_first else beyond
    return x.masked_fill(beyond.view(*beyond.shape, *[1] * (x.dim() - axes)), fill)


def check_share(owner: str, name: str, share: Any) -> None:
    """Raises ArgumentError unless a share of what is dropped can be one."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise ArgumentError(f"{owner}: {name} must lie in 0 to 1 (exclusive), not {share!r}.")


def over(owner: str, layer: Any, trees: AnyTrees, x: Tensor, state: Any, inputs: str) -> tuple[Tensor, Any]:
    """A layer unfolded over trees.

    Raises:
        ArgumentError: a layer for sequences alone.
    """
    if not hasattr(layer, "over"):
        raise ArgumentError(
            f"{owner}.over: a {type(layer).__name__} walks sequences only; over trees there are Unfold and all that "
            "stands around it but Bidirectional and Feedback."
        )
    return layer.over(trees, x, state, inputs=inputs)


def on_nodes(trees: Acyclic, x: Tensor, inputs: str) -> Tensor:
    """x for all nodes, of which the `inputs` have one: 0 for the others. (nodes, features)."""
    if inputs == "nodes":
        return x
    given = torch.from_numpy(trees.given(inputs)).to(x.device)
    return x.new_zeros(trees.nodes, x.shape[-1]).index_copy(0, given, x)


class Around(nn.Module):
    """What a composition around one layer has of it: sizes, layout, state and end, where it does not say otherwise."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer

    @property
    def input_size(self) -> int:
        """Features of x."""
        return self.layer.input_size

    @property
    def output_size(self) -> int:
        """Features of the outputs."""
        return self.layer.output_size

    @property
    def batch_first(self) -> bool:
        """Whether x and the outputs are (batch, time, features)."""
        return self.layer.batch_first

    def of_cells(self, tell: Callable[[Cell], Any]) -> Any:
        """What is told of each cell, nested as the state is."""
        return of_cells(self.layer, tell)

    def ending(self, outputs: Tensor | None, last: Any, lengths: Lengths) -> Tensor:
        """As the layer's."""
        return ending(self.layer, outputs, last, lengths)
