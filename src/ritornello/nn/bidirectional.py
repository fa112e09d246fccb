"""Both directions: of one cell each, or of whole stacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ritornello.cells import Cell
from ritornello.engine import Unfold
from ritornello.errors import ArgumentError, nearest
from ritornello.nn.protocol import Lengths, check_options, ending, is_layer, of_cells
from ritornello.nn.state import parts_of

MERGES = ("concatenate", "sum")


class Bidirectional(nn.Module):
    """Two unfoldings, one in each direction, side by side.

    h reads the past, g the future; the output at each step is [h, g] (Schuster & Paliwal 1997), or h + g.

    Args:
        ahead, back: two cells with the same input size; or two layers, such as whole stacks, the second made with
            `reverse=True`, so that the directions meet only at the top.
        merge: "concatenate" (default) or "sum".
        options: of cells, as in `Unfold`: batch_first, learn_initial, adjoint, executor. Layers have their own.

    Shapes:
        As `Unfold`'s; outputs have ahead.output_size + back.output_size features, or as many as each with "sum", and
        the state is a pair: (forward state, backward state).

    Raises:
        ArgumentError: sizes that differ, one cell for both, a layer in the wrong direction, an unknown merge, or
            options that clash.

    Example:
        >>> import torch, ritornello as rit
        >>> both = rit.nn.Bidirectional(rit.GRU(3, 4), rit.GRU(3, 4))
        >>> both(torch.randn(5, 2, 3))[0].shape
        torch.Size([5, 2, 8])
        >>> forwards = rit.nn.Stack.of(rit.GRU, 3, 4, layers=2)
        >>> backwards = rit.nn.Stack.of(rit.GRU, 3, 4, layers=2, reverse=True)
        >>> rit.nn.Bidirectional(forwards, backwards, merge="sum")(torch.randn(5, 2, 3))[0].shape
        torch.Size([5, 2, 4])
    """

    def __init__(self, ahead: nn.Module, back: nn.Module, *, merge: str = "concatenate", **options: Any) -> None:
        super().__init__()
        if merge not in MERGES:
            raise ArgumentError(f"Unknown merge {merge!r}: {nearest(merge, MERGES)}.")
        if "reverse" in options:
            raise ArgumentError("Bidirectional: reverse clashes with it: both directions are walked already.")
        check_options("Bidirectional", options)
        if not _cells(ahead).isdisjoint(_cells(back)):
            raise ArgumentError("Bidirectional: give each direction a cell of its own, or they share their parameters.")
        self.merge = merge
        self.ahead = _direction(ahead, options, reverse=False)
        self.back = _direction(back, options, reverse=True)
        if self.ahead.input_size != self.back.input_size:
            raise ArgumentError(
                f"Bidirectional: the forward cell reads {self.ahead.input_size} features and the backward cell "
                f"{self.back.input_size}; both read the same input."
            )
        if self.ahead.batch_first != self.back.batch_first:
            raise ArgumentError("Bidirectional: the two layers differ in batch_first; make them alike.")
        if merge == "sum" and self.ahead.output_size != self.back.output_size:
            raise ArgumentError(
                f"Bidirectional: the directions give {self.ahead.output_size} and {self.back.output_size} features; "
                "with merge='sum' they are added, so they must be alike."
            )
        self.batch_first: bool = self.ahead.batch_first

    @property
    def input_size(self) -> int:
        """Features of x."""
        return self.ahead.input_size

    @property
    def output_size(self) -> int:
        """Features of the outputs, both directions together."""
        return self.ahead.output_size + (self.back.output_size if self.merge == "concatenate" else 0)

    def of_cells(self, tell: Callable[[Cell], Any]) -> Any:
        """What is told of each cell, nested as the state is."""
        return of_cells(self.ahead, tell), of_cells(self.back, tell)

    def forward(
        self, x: Tensor, state: Any = None, *, lengths: Lengths = None, resets: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """As `Unfold.forward`; the state is a pair."""
        before = parts_of(self, state, 2)
        h, last_h = self.ahead(x, before[0], lengths=lengths, resets=resets)
        g, last_g = self.back(x, before[1], lengths=lengths, resets=resets)
        return self._merged(h, g), (last_h, last_g)

    def _merged(self, h: Tensor, g: Tensor) -> Tensor:
        return h + g if self.merge == "sum" else torch.cat([h, g], -1)

    def ending(self, outputs: Tensor | None, last: Any, lengths: Lengths) -> Tensor:
        """Each direction at its own last step, merged."""
        h = g = None  # a sum is not taken apart
        if outputs is not None and self.merge == "concatenate":
            h, g = outputs.split([self.ahead.output_size, self.back.output_size], -1)
        return self._merged(ending(self.ahead, h, last[0], lengths), ending(self.back, g, last[1], lengths))

    def extra_repr(self) -> str:
        return "" if self.merge == "concatenate" else f"merge={self.merge!r}"


def _cells(given: nn.Module) -> set[nn.Module]:
    """A cell, or the cells of a layer."""
    return {part for part in given.modules() if isinstance(part, Cell)} | ({given} if not is_layer(given) else set())


def _direction(given: nn.Module, options: dict[str, Any], reverse: bool) -> Any:
    """A cell unfolded, or a layer as it is."""
    if not is_layer(given):
        return Unfold(given, reverse=reverse, **options)
    if options:
        raise ArgumentError(f"Bidirectional: {next(iter(options))} and a layer clash: layers have their own.")
    turned = [part.reverse for part in given.modules() if isinstance(part, Unfold)]
    if any(way != reverse for way in turned):
        which, way = ("second", "forwards; make it with reverse=True") if reverse else ("first", "backwards")
        raise ArgumentError(f"Bidirectional: the {which} layer walks {way}.")
    return given
