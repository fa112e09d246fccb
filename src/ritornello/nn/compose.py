"""Compositions of unfoldings: stacks, both directions, residual connections. There is no other mechanism."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell
from ritornello.engine import Unfold
from ritornello.engine.adjoint import Adjoint
from ritornello.errors import ArgumentError


class Bidirectional(nn.Module):
    """Two unfoldings, one in each direction, side by side.

    h reads the past, g the future; the output at each step is [h, g] (Schuster & Paliwal 1997).

    Args:
        forward_cell, backward_cell: two cells with the same input size.
        batch_first, learn_initial, adjoint, executor: as in `Unfold`.

    Shapes:
        As `Unfold`'s; outputs have forward_cell.output_size + backward_cell.output_size features, and the state is a
        pair: (forward state, backward state).

    Raises:
        ArgumentError: the cells' input sizes differ.

    Example:
        >>> import torch, ritornello as rit
        >>> both = rit.nn.Bidirectional(rit.GRU(3, 4), rit.GRU(3, 4))
        >>> both(torch.randn(5, 2, 3))[0].shape
        torch.Size([5, 2, 8])
    """

    def __init__(
        self,
        forward_cell: Cell,
        backward_cell: Cell,
        *,
        batch_first: bool = False,
        learn_initial: bool = False,
        adjoint: str | Adjoint = "full",
        executor: str = "auto",
    ) -> None:
        super().__init__()
        if forward_cell.input_size != backward_cell.input_size:
            raise ArgumentError(
                f"Bidirectional: the forward cell reads {forward_cell.input_size} features and the backward cell "
                f"{backward_cell.input_size}; both read the same input."
            )
        if forward_cell is backward_cell:
            raise ArgumentError("Bidirectional: give each direction a cell of its own, or they share their parameters.")
        self.batch_first = batch_first
        common: dict[str, Any] = {"batch_first": batch_first, "learn_initial": learn_initial, "executor": executor}
        self.ahead = Unfold(forward_cell, adjoint=adjoint, **common)
        self.back = Unfold(backward_cell, adjoint=adjoint, reverse=True, **common)

    @property
    def input_size(self) -> int:
        """Features of x."""
        return self.ahead.input_size

    @property
    def output_size(self) -> int:
        """Features of the outputs, both directions together."""
        return self.ahead.output_size + self.back.output_size

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """As `Unfold.forward`; the state is a pair."""
        before = _states(self, state, 2)
        h, last_h = self.ahead(x, before[0], lengths=lengths, resets=resets)
        g, last_g = self.back(x, before[1], lengths=lengths, resets=resets)
        return torch.cat([h, g], -1), (last_h, last_g)


class Residual(nn.Module):
    """A layer whose input is added to its output (He et al. 2016): y = x + layer(x).

    Args:
        layer: an `Unfold` or a composition whose input and output have the same size.

    Raises:
        ArgumentError: its input and output sizes differ.

    Example:
        >>> import torch, ritornello as rit
        >>> rit.nn.Residual(rit.Unfold(rit.GRU(4, 4)))(torch.randn(5, 2, 4))[0].shape
        torch.Size([5, 2, 4])
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        if layer.input_size != layer.output_size:
            raise ArgumentError(
                f"Residual: the layer reads {layer.input_size} features and gives {layer.output_size}; "
                "they are added, so they must be alike."
            )
        self.layer = layer
        self.batch_first = layer.batch_first
        self.input_size = layer.input_size
        self.output_size = layer.output_size

    def forward(self, x: Tensor, state: Any = None, **options: Any) -> tuple[Tensor, Any]:
        """As the layer's forward."""
        outputs, last = self.layer(x, state, **options)
        if options.get("lengths") is not None:
            x = self._without_padding(x, options["lengths"])
        return x + outputs, last

    def _without_padding(self, x: Tensor, lengths: Tensor | Sequence[int]) -> Tensor:
        time = x.shape[1 if self.batch_first and x.dim() == 3 else 0]
        beyond = torch.arange(time, device=x.device)[:, None] >= torch.as_tensor(lengths, device=x.device)
        if x.dim() == 3 and self.batch_first:
            beyond = beyond.T
        return x.masked_fill((beyond if x.dim() == 3 else beyond[:, 0])[..., None], 0)


class Stack(nn.Module):
    """Layers one upon another: each reads the outputs of the one below.

    Args:
        layers: `Unfold`s or compositions; each reads as many features as the one below gives.
        dropout: share of the outputs between layers that are zeroed in training (not above the last). Default 0.

    Shapes:
        As `Unfold`'s; the state is a tuple with the state of each layer.

    Raises:
        ArgumentError: no layer, sizes that do not fit together, or a dropout outside 0 to 1.

    Example:
        >>> import torch, ritornello as rit
        >>> stack = rit.nn.Stack.of(rit.LSTM, 3, 4, layers=2)
        >>> outputs, states = stack(torch.randn(5, 2, 3))
        >>> outputs.shape, len(states)
        (torch.Size([5, 2, 4]), 2)
    """

    def __init__(self, layers: Iterable[nn.Module], *, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if not self.layers:
            raise ArgumentError("Stack: give at least one layer.")
        for number, layer in enumerate(self.layers):
            if not all(hasattr(layer, name) for name in ("input_size", "output_size", "batch_first")):
                raise ArgumentError(
                    f"Stack: layer {number} is a {type(layer).__name__}; "
                    "layers are Unfold, Bidirectional, Residual or Stack."
                )
        if not 0 <= dropout < 1:
            raise ArgumentError(f"Stack: dropout must lie in 0 to 1 (exclusive), not {dropout}.")
        for number, (below, above) in enumerate(zip(self.layers[:-1], self.layers[1:], strict=True)):
            if below.output_size != above.input_size:
                raise ArgumentError(
                    f"Stack: layer {number} gives {below.output_size} features and layer {number + 1} reads "
                    f"{above.input_size}; they must be alike."
                )
            if below.batch_first != above.batch_first:
                raise ArgumentError(f"Stack: layers {number} and {number + 1} differ in batch_first; make them alike.")
        self.dropout = dropout
        self.input_size: int = self.layers[0].input_size  # type: ignore[assignment]
        self.output_size: int = self.layers[-1].output_size  # type: ignore[assignment]
        self.batch_first: bool = self.layers[0].batch_first  # type: ignore[assignment]

    @classmethod
    def of(
        cls,
        cell: Callable[[int, int], Cell],
        input_size: int,
        hidden_size: int,
        *,
        layers: int = 1,
        bidirectional: bool = False,
        residual: bool = False,
        dropout: float = 0.0,
        batch_first: bool = False,
        learn_initial: bool = False,
        adjoint: str | Adjoint = "full",
        executor: str = "auto",
    ) -> Stack:
        """The usual stack: the same kind of cell and the same width in every layer.

        Args:
            cell: a `Cell` class, or any function of (input_size, hidden_size) that makes one.
            input_size: features of x.
            hidden_size: features of each layer's output (of each direction's, if bidirectional).
            layers: how many. Default 1.
            bidirectional: two cells a layer, one in each direction.
            residual: each layer's input is added to its output, except where sizes differ (as in the first layer).
            dropout, batch_first, learn_initial, adjoint, executor: as in `Stack` and `Unfold`.
        """
        if layers < 1:
            raise ArgumentError(f"Stack: layers must be at least 1, not {layers}.")
        common: dict[str, Any] = {"batch_first": batch_first, "learn_initial": learn_initial, "executor": executor}
        common["adjoint"] = adjoint
        made: list[nn.Module] = []
        for _ in range(layers):
            if bidirectional:
                layer: nn.Module = Bidirectional(cell(input_size, hidden_size), cell(input_size, hidden_size), **common)
            else:
                layer = Unfold(cell(input_size, hidden_size), **common)
            if residual and layer.input_size == layer.output_size:
                layer = Residual(layer)
            made.append(layer)
            input_size = layer.output_size  # type: ignore[assignment]
        return cls(made, dropout=dropout)

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """As `Unfold.forward`; the state is a tuple, a layer each."""
        before = _states(self, state, len(self.layers))
        after = []
        for number, (layer, entering) in enumerate(zip(self.layers, before, strict=True)):
            if number and self.dropout:
                x = nn.functional.dropout(x, self.dropout, self.training)
            x, last = layer(x, entering, lengths=lengths, resets=resets)
            after.append(last)
        return x, tuple(after)


def _states(module: nn.Module, state: Any, count: int) -> Sequence[Any]:
    if state is None:
        return [None] * count
    if not isinstance(state, (tuple, list)) or len(state) != count:
        came = f"{len(state)} states" if isinstance(state, (tuple, list)) else type(state).__name__
        raise ArgumentError(f"{type(module).__name__}: state must be a tuple of {count} states, not {came}.")
    return state
