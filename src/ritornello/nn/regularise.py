"""Regularisers of the recurrence itself, for any cell: zoneout, variational dropout, weight drop, AR and TAR.

All of them stay on the compiled executor.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from ritornello.cells.adapt import Adapted, name_of
from ritornello.cells.cell import Cell, total
from ritornello.engine import Unfold, door
from ritornello.errors import ArgumentError, CellError, nearest
from ritornello.nn.protocol import Around, Lengths, layout_of, without_padding

PRODUCTS = {  # what reads h by a matrix; a concatenation is only made to be multiplied
    *(F.linear, F.bilinear, torch.cat, torch.concat, torch.concatenate, torch.addmm, torch.mm, torch.bmm),
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm),
    *(torch.lstm_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell),  # which read h by products alone, unlike the GRU's
}


def check_share(owner: str, name: str, share: Any) -> None:
    """Raises ArgumentError unless a share of what is dropped can be one."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise ArgumentError(f"{owner}: {name} must lie in 0 to 1 (exclusive), not {share!r}.")


class _Wrapped(Cell):
    """A cell around a cell, whose sizes and state it has."""

    def __init__(self, cell: nn.Module) -> None:
        cell = cell if isinstance(cell, Cell) else Adapted(cell)
        nn.Module.__init__(self)  # its sizes are asked of the cell, not kept
        self.cell = cell

    @property
    def input_size(self) -> int:  # type: ignore[override]
        """Features of x."""
        return self.cell.input_size

    @property
    def hidden_size(self) -> int:  # type: ignore[override]
        """As the cell's."""
        return self.cell.hidden_size

    @property
    def State(self) -> Any:
        """The type of the state."""
        return self.cell.State

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Features of each field."""
        return self.cell.state_sizes


class Zoneout(_Wrapped):
    r"""A cell some of whose units stay as they were (Krueger et al. 2017, eq. 2).

    .. math:: s^{(t)} = d \odot s^{(t-1)} + (1 - d) \odot f(s^{(t-1)}, x^{(t)})

    with d drawn anew for every step, unit and sequence: 1 with probability `share`. In evaluation d is its mean.

    Args:
        cell: any cell.
        share: of every field's units, 0 to 1 (exclusive).
        shares: of single fields, by name, such as c=0.5, h=0.05 (the paper's, for an LSTM). Default: `share`.

    Shapes:
        As the cell's. Its parameters are called `cell.…`: of a plain cell they load into `zoneout.cell`.
        Over trees what stays is the sum over the predecessors.

    Raises:
        ArgumentError: a share out of range, no share at all, or a field that the state does not have.

    Example:
        >>> import torch, ritornello as rit
        >>> unfold = rit.Unfold(rit.nn.Zoneout(rit.LSTM(3, 4), c=0.5, h=0.05))
        >>> unfold(torch.randn(5, 2, 3))[0].shape
        torch.Size([5, 2, 4])
    """

    def __init__(self, cell: nn.Module, share: float | None = None, **shares: float) -> None:
        super().__init__(cell)
        fields = self.State._fields
        for name in shares:
            if name not in fields:
                raise ArgumentError(
                    f"Zoneout: {name_of(self.cell)}.State has no field {name!r}: {nearest(name, fields)}."
                )
        if share is None and not shares:
            raise ArgumentError(f"Zoneout: say a share, or one for a field of {', '.join(fields)}.")
        self.shares = {field: shares.get(field, share or 0.0) for field in fields}
        for name, each in (("share", share or 0.0), *shares.items()):
            check_share("Zoneout", name, each)

    def forward(self, x: Tensor, s: Any) -> Any:
        new = self.cell(x, s)
        return self.State(*map(self._kept, s, new, self.shares.values()))

    def _kept(self, old: Tensor, new: Tensor, share: float) -> Tensor:
        if not share:
            return new
        if not self.training:
            return share * total(old) + (1 - share) * new
        return torch.where(torch.rand_like(new) < share, total(old), new)

    def extra_repr(self) -> str:
        return ", ".join(f"{field}={share}" for field, share in self.shares.items())


class VariationalDropout(Unfold):
    """An `Unfold` whose dropout masks are the same at every step of a sequence (Gal & Ghahramani 2016, eq. 7).

    One mask zeroes features of x. Another zeroes features of h as matrices read it: in W x + U h, or U (r ⊙ h); what a
    cell carries on of h by itself, as a GRU does, is not touched. Both hold for a whole sequence and a whole call,
    across resets too. In evaluation it is the plain `Unfold`.

    Args:
        cell: any cell that reads its h by products in torch's own words (`F.linear`, `@`, ...).
        inputs: share of the features of x that is zeroed, the others scaled by 1/(1 - inputs). Default 0.
        recurrent: the same of h, the state's first field. Default 0.
        options: as in `Unfold`.

    Shapes:
        As `Unfold`'s. The mask of h comes beside x to the executor: (time, batch, h) numbers more, but no product.
        Parameters are called `cell.cell.…`; those of a plain `Unfold` load into `layer.cell.cell`.

    Raises:
        ArgumentError: a share out of range. CellError: no product reads h, or one reads only a part of it.

    Example:
        >>> import torch, ritornello as rit
        >>> layer = rit.nn.VariationalDropout(rit.GRU(3, 4), inputs=0.2, recurrent=0.3)
        >>> layer(torch.randn(5, 2, 3), lengths=[5, 2])[0].shape
        torch.Size([5, 2, 4])
    """

    def __init__(self, cell: nn.Module, *, inputs: float = 0.0, recurrent: float = 0.0, **options: Any) -> None:
        check_share("VariationalDropout", "inputs", inputs)
        check_share("VariationalDropout", "recurrent", recurrent)
        super().__init__(Masked(cell, recurrent), **options)
        self.inputs = inputs

    @property
    def input_size(self) -> int:
        """Features of x."""
        return self._masked.cell.input_size

    @property
    def _masked(self) -> Masked:
        assert isinstance(self.cell, Masked)
        return self.cell

    def forward(self, x: Tensor, state: Any = None, **options: Any) -> tuple[Any, Any]:
        """As `Unfold.forward`."""
        _, layout = door.settle_input(self._masked.cell, x, self.batch_first)

        def spread(mask: Tensor) -> Tensor:
            steps = mask if not layout.batched else mask.unsqueeze(1 if self.batch_first else 0)
            return steps.expand(*x.shape[:-1], -1)

        return super().forward(self._with_masks(x, layout.batch, spread), state, **options)

    def over(self, trees: Sequence[Sequence[int]], x: Tensor, state: Any = None, **options: Any) -> tuple[Any, Any]:
        """As `Unfold.over`, with the same masks at all nodes of a tree."""
        sizes = torch.tensor([len(tree) for tree in trees], device=x.device)
        x = self._with_masks(x, len(trees), lambda mask: mask.repeat_interleave(sizes, 0))
        return super().over(trees, x, state, **options)

    def _with_masks(self, x: Tensor, count: int, spread: Any) -> Tensor:
        """x under its mask, and beside it that of h; one for each of so many sequences."""
        if self.inputs and self.training:
            x = x * spread(F.dropout(x.new_ones(count, x.shape[-1]), self.inputs))
        if not self._masked.active:
            return x
        return torch.cat([x, spread(F.dropout(x.new_ones(count, self.output_size), self._masked.share))], -1)

    def extra_repr(self) -> str:
        told = ", ".join((f"inputs={self.inputs}, recurrent={self._masked.share}", super().extra_repr()))
        return told.removesuffix(", ")


class Masked(_Wrapped):
    """A cell in which every product that reads h, the state's first field, reads it under a mask.

    In training the mask comes after the features of x; see `VariationalDropout`.
    """

    def __init__(self, cell: nn.Module, share: float) -> None:
        super().__init__(cell)
        self.share = share

    @property
    def input_size(self) -> int:  # type: ignore[override]
        """Features of x, and in training those of h."""
        return self.cell.input_size + self.active * self.state_sizes[0]

    @property
    def active(self) -> bool:
        """Whether a mask is read."""
        return bool(self.share) and self.training

    def forward(self, x: Tensor, s: Any) -> Any:
        if not self.active:
            return self.cell(x, s)
        size = self.cell.input_size
        with _Reading(s[0], x[..., size:]) as reading:
            new = self.cell(x[..., :size], s)
        if not reading.masked:
            raise CellError(
                f"VariationalDropout: no product in {name_of(self.cell)} that torch shows reads its "
                f"{self.State._fields[0]}; write it with nn.Linear or @."
            )
        return new


class _Reading(TorchFunctionMode):
    """Within it every product of what is computed from h, element by element, reads it under the mask.

    What a product gives is no longer h: only what other operations make of h is followed.
    """

    def __init__(self, h: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask
        self.masked = False
        self._followed = {id(h): h}  # kept, so that no id is given to another

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(id(value) in self._followed for value in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        if func in PRODUCTS:
            args, kwargs = tree_map(self._under_mask, (args, kwargs))
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        self._followed.update((id(value), value) for value in tree_leaves(out) if isinstance(value, Tensor))
        return out

    def _under_mask(self, value: Any) -> Any:
        if id(value) not in self._followed:
            return value
        if value.shape[-1] != self.mask.shape[-1]:
            raise CellError(
                f"VariationalDropout: a product reads {value.shape[-1]} features of the {self.mask.shape[-1]} of h; "
                "it must read all of them."
            )
        self.masked = True
        return value * self.mask


class WeightDrop(Around):
    """A module some of whose weights are zeroed in training, drawn once a call (Merity, Keskar & Socher 2018).

    One draw holds for all steps and sequences of a call, so that the recurrence stays what it is.

    Args:
        layer: an `Unfold`, a composition, or any other module.
        names: which parameters, by the layer's names for them, or patterns with * of these. Default "*U.weight": the
            recurrent weights of the catalogue's cells.
        share: of each one's entries, the others scaled by 1/(1 - share). Default 0.5.

    Shapes:
        As the layer's. Its parameters are called `layer.…`, and stay whole: what is dropped is a copy.

    Raises:
        ArgumentError: a share out of range, or a name that no parameter has.

    Example:
        >>> import torch, ritornello as rit
        >>> layer = rit.nn.WeightDrop(rit.nn.Stack.of(rit.LSTM, 3, 4, layers=2), share=0.3)
        >>> layer.dropped
        ('layers.0.cell.U.weight', 'layers.1.cell.U.weight')
        >>> layer(torch.randn(5, 2, 3))[0].shape
        torch.Size([5, 2, 4])
    """

    def __init__(self, layer: nn.Module, names: str | Sequence[str] = "*U.weight", share: float = 0.5) -> None:
        super().__init__(layer)
        check_share("WeightDrop", "share", share)
        known = [name for name, _ in layer.named_parameters()]
        patterns = [names] if isinstance(names, str) else names
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise ArgumentError(f"WeightDrop: no parameter is called {pattern!r}: {nearest(pattern, known)}.")
        self.dropped = tuple(name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns))
        self.share = share

    def forward(self, *args: Any, **options: Any) -> Any:
        """As the layer's forward."""
        if not self.training or not self.share:
            return self.layer(*args, **options)
        weights = {name: F.dropout(self.layer.get_parameter(name), self.share) for name in self.dropped}
        return functional_call(self.layer, weights, args, options)

    def extra_repr(self) -> str:
        return f"share={self.share}, dropped={', '.join(self.dropped)}"


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
        a number; 0 where there are no steps.

    Raises:
        ArgumentError: lengths that do not fit.

    Example:
        >>> activation_regularisation(torch.full((5, 2, 4), 3.0), 2.0, lengths=[5, 2])
        tensor(18.)
    """
    squares = without_padding(outputs, lengths, batch_first).square()
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
        a number; 0 where there are no pairs.

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
    changes = (steps[1:] - steps[:-1]).where(counts, 0)
    return weight * changes.square().sum() / _at_least_one(counts.sum() * outputs.shape[-1])


def _at_least_one(count: Any) -> Any:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


__all__ = [
    "VariationalDropout",
    "WeightDrop",
    "Zoneout",
    "activation_regularisation",
    "temporal_activation_regularisation",
]
