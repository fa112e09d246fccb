"""Regularisers of a recurrence: some of its weights dropped, its activations kept small and slow (AR and TAR)."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ritornello.cells import Cell
from ritornello.engine import door
from ritornello.errors import ArgumentError, nearest
from ritornello.nn.protocol import Around, Lengths, check_share, layout_of, over, without_padding
from ritornello.structures import AnyTrees


class WeightDrop(Around):
    """A module some of whose weights are zeroed in training, drawn once a call (Merity, Keskar & Socher 2018).

    One draw holds for all steps and sequences of a call, so that the recurrence stays what it is.

    Args:
        layer: an `Unfold`, a composition, or any other module.
        names: which parameters, by the layer's names for them, or patterns with * of these. Default: the recurrent
            weights, as the layer's cells name theirs (`Cell.recurrent`).
        share: of each one's entries, the others scaled by 1/(1 - share). Default 0.5.

    Shapes:
        As the layer's. Its parameters are called `layer.…`, and stay whole: what is dropped is a copy.

    Raises:
        ArgumentError: a share out of range, a name that no parameter has, or no names where no cell has any.

    Example:
        >>> import torch, ritornello as rit
        >>> layer = rit.nn.WeightDrop(rit.nn.Stack.of(rit.LSTM, 3, 4, layers=2), share=0.3)
        >>> layer.dropped
        ('layers.0.cell.U.weight', 'layers.1.cell.U.weight')
        >>> layer(torch.randn(5, 2, 3))[0].shape
        torch.Size([5, 2, 4])
    """

    def __init__(self, layer: nn.Module, names: str | Sequence[str] = (), share: float = 0.5) -> None:
        super().__init__(layer)
        check_share("WeightDrop", "share", share)
        known = [name for name, _ in layer.named_parameters()]
        patterns = [names] if isinstance(names, str) else names or _recurrent(layer, known)
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise ArgumentError(f"WeightDrop: no parameter is called {pattern!r}: {nearest(pattern, known)}.")
        self.dropped = tuple(name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns))
        self.share = share

    def forward(self, *args: Any, **options: Any) -> Any:
        """As the layer's forward."""
        if not self.training or not self.share:
            return self.layer(*args, **options)
        return functional_call(self.layer, self._weights(), args, options)

    def over(self, trees: AnyTrees, x: Tensor, state: Any = None, *, inputs: str = "nodes") -> tuple[Tensor, Any]:
        """As the layer's."""
        given = ("WeightDrop", self.layer, trees, x, state, inputs)
        if not self.training or not self.share:
            return over(*given)
        weights = {f"layer.{name}": weight for name, weight in self._weights().items()}
        return functional_call(_Over(self.layer), weights, given)

    def _weights(self) -> dict[str, Tensor]:
        return {name: F.dropout(attrgetter(name)(self.layer), self.share) for name in self.dropped}

    def extra_repr(self) -> str:
        return f"share={self.share}, dropped={', '.join(self.dropped)}"


class _Over(Around):
    """A layer whose call walks trees: `functional_call` knows calls alone."""

    def forward(self, *given: Any) -> tuple[Tensor, Any]:
        return over(*given)


def _recurrent(layer: nn.Module, known: Sequence[str]) -> list[str]:
    """The names of the recurrent weights of a layer's cells."""
    cells = [(path, cell) for path, cell in layer.named_modules() if isinstance(cell, Cell)]
    found = [
        name for path, cell in cells for own in cell.recurrent if (name := f"{path}.{own}".removeprefix(".")) in known
    ]
    if not found:
        raise ArgumentError(
            f"WeightDrop: no cell in this {type(layer).__name__} names recurrent weights; say names=..., some of "
            f"{', '.join(known)}."
        )
    return found


def activation_regularisation(
    outputs: Tensor, weight: float = 2.0, *, lengths: Lengths = None, batch_first: bool = False
) -> Tensor:
    r"""AR: keeps activations small (Merity, McCann & Socher 2017, eq. 1). Add it to the loss.

    .. math:: \alpha \, \mathrm{mean}_t \, (m^{(t)} \odot h^{(t)})^2

    Args:
        outputs: (time, batch, features), h of the last layer as dropout (m) leaves it; (time, features) for one
            sequence.
        weight: α. Default 2.
        lengths: (batch,) steps of each sequence; what is beyond counts as neither sum nor number.
        batch_first: outputs are (batch, time, features).

    Returns:
        a number, in float32 at least; 0 where there are no steps.

    Raises:
        ArgumentError: lengths that do not fit.

    Example:
        >>> activation_regularisation(torch.full((5, 2, 4), 3.0), 2.0, lengths=[5, 2])
        tensor(18.)
    """
    squares = _wide(without_padding(outputs, lengths, batch_first)).square()
    layout = layout_of(outputs, batch_first, outputs.dim() - 1)
    steps = layout.time * layout.batch if lengths is None else torch.as_tensor(lengths).sum()
    return weight * squares.sum() / _at_least_one(steps * outputs.shape[-1])


def temporal_activation_regularisation(
    outputs: Tensor,
    weight: float = 1.0,
    *,
    lengths: Lengths = None,
    resets: Tensor | None = None,
    batch_first: bool = False,
) -> Tensor:
    r"""TAR: keeps activations from changing quickly (Merity, McCann & Socher 2017, eq. 2). Add it to the loss.

    .. math:: \beta \, \mathrm{mean}_t \, (h^{(t)} - h^{(t+1)})^2

    Args:
        outputs: (time, batch, features), h of the last layer before dropout; (time, features) for one sequence.
        weight: β. Default 1.
        lengths: (batch,) steps of each sequence; only pairs of steps within it count.
        resets: booleans like outputs without features, as in `Unfold`: no pair reaches across one.
        batch_first: outputs are (batch, time, features).

    Returns:
        a number, in float32 at least; 0 where there are no pairs.

    Raises:
        ArgumentError: lengths or resets that do not fit.

    Example:
        >>> h = torch.arange(5.0).square()[:, None, None].expand(5, 2, 4)
        >>> temporal_activation_regularisation(h, lengths=[3, 2])
        tensor(3.6667)
    """
    axes = outputs.dim() - 1
    layout = layout_of(outputs, batch_first, axes)
    lengths, resets = door.settle_lengths(lengths, layout), door.settle_resets(resets, layout)
    steps = outputs.unsqueeze(1) if axes == 1 else outputs.transpose(0, 1) if batch_first else outputs
    counts = torch.ones(layout.time, layout.batch, dtype=torch.bool)  # whether a step and the one before are a pair
    if lengths is not None:
        counts = torch.arange(layout.time)[:, None] < lengths
    if resets is not None:
        counts = counts & ~resets
    counts = counts[1:, :, None].to(outputs.device)
    changes = _wide(steps[1:] - steps[:-1]).where(counts, 0)
    return weight * changes.square().sum() / _at_least_one(counts.sum() * outputs.shape[-1])


def _wide(values: Tensor) -> Tensor:
    """In float32 at least, which has room for a sum of squares."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _at_least_one(count: Any) -> Any:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
