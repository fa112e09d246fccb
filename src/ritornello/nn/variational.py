"""Variational dropout: the same masks at every step, of the inputs and of h as matrices read it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from ritornello.cells.adapt import name_of
from ritornello.cells.cell import Cell
from ritornello.cells.wrapped import Wrapped
from ritornello.engine import Unfold, door
from ritornello.errors import ArgumentError, CellError
from ritornello.executors.stepper import Stepper
from ritornello.nn.protocol import check_options, check_share, on_nodes
from ritornello.structures import AnyTrees, batch_of

PRODUCTS = {  # what reads h by a matrix; a concatenation is only made to be multiplied
    *(F.linear, F.bilinear, torch.cat, torch.concat, torch.concatenate, torch.addmm, torch.mm, torch.bmm),
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm, Tensor.addmm, torch.einsum),
    *(torch.lstm_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell),  # which read h by products alone, unlike the GRU's
}


class VariationalDropout(Unfold):
    """An `Unfold` whose dropout masks are the same at every step of a sequence (Gal & Ghahramani 2016, eq. 7).

    One mask zeroes features of x. Another zeroes features of h as matrices read it: in W x + U h, or U (r ⊙ h); what a
    cell carries on of h by itself, as a GRU does, is not touched. h is the state's first field, or those that the cell
    names (`Cell.multiplied`). Both hold for a whole sequence and a whole call, across resets too. In evaluation it is
    the plain `Unfold`.

    Args:
        cell: any cell that reads its h by products in torch's own words (`F.linear`, `@`, ...).
        inputs: share of the features of x that is zeroed, the others scaled by 1/(1 - inputs). Default 0.
        recurrent: the same of h. Default 0.
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
        check_options("VariationalDropout", options, ("inputs", "recurrent"))
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

    def over(
        self,
        trees: AnyTrees,
        x: Tensor,
        state: Any = None,
        *,
        inputs: str = "nodes",
        **options: Any,
    ) -> tuple[Any, Any]:
        """As `Unfold.over`, with the same masks at all nodes of a tree."""
        if not self.training:
            return super().over(trees, x, state, inputs=inputs, **options)
        batch = batch_of(trees)
        x = door.settle_nodes(self._masked.cell, x, len(batch.given(inputs)), inputs)
        if self._masked.active:  # the mask of h is for every node
            x, inputs = on_nodes(batch, x, inputs), "nodes"
        of = torch.from_numpy(batch.tree_of[batch.given(inputs)]).to(x.device)
        x = self._with_masks(x, len(batch), lambda mask: mask[of])
        return super().over(batch, x, state, inputs=inputs, **options)

    def stepper(self, rows: int = 1) -> Stepper:
        """As `Unfold.stepper`, in evaluation."""
        if self._masked.active:
            raise ArgumentError("No stepper in training: a mask holds for a whole call; say .eval() first.")
        return super().stepper(rows)

    def _with_masks(self, x: Tensor, count: int, spread: Any) -> Tensor:
        """x under its mask, and beside it that of h; one for each of so many sequences."""
        if self.inputs and self.training:
            x = x * spread(F.dropout(x.new_ones(count, x.shape[-1]), self.inputs))
        if not self._masked.active:
            return x
        return torch.cat([x, spread(F.dropout(x.new_ones(count, sum(self._masked.read)), self._masked.share))], -1)

    def extra_repr(self) -> str:
        told = ", ".join((f"inputs={self.inputs}, recurrent={self._masked.share}", super().extra_repr()))
        return told.removesuffix(", ")


class Masked(Wrapped):
    """A cell in which every product that reads h reads it under a mask.

    In training the masks come after the features of x; see `VariationalDropout`.
    """

    def __init__(self, cell: nn.Module, share: float) -> None:
        super().__init__(cell)
        self.share = share
        fields = self.State._fields
        self.where = tuple(map(fields.index, self.multiplied or fields[:1]))

    @property
    def stands_for(self) -> Cell:
        """What messages speak of."""
        return self.cell

    @property
    def read(self) -> list[int]:
        """Features of each field that is masked."""
        return [self.state_sizes[place] for place in self.where]

    @property
    def input_size(self) -> int:  # type: ignore[override]
        """Features of x, and in training those of h."""
        return self.cell.input_size + self.active * sum(self.read)

    @property
    def active(self) -> bool:
        """Whether a mask is read."""
        return bool(self.share) and self.training

    def forward(self, x: Tensor, *s: Any) -> Any:
        if not self.active:
            return self.cell(x, *s)
        x, *masks = x.split([self.cell.input_size, *self.read], -1)
        hs = [(each[place], mask) for place, mask in zip(self.where, masks, strict=True) for each in s]
        with _Reading(hs) as reading:
            new = self.cell(x, *s)
        for place, mask in zip(self.where, masks, strict=True):
            if id(mask) not in reading.used:
                raise CellError(
                    f"VariationalDropout: no product in {name_of(self.cell)} that torch shows reads its "
                    f"{self.State._fields[place]}; write it with nn.Linear or @, or say inputs alone."
                )
        return new


class _Reading(TorchFunctionMode):
    """Within it every product of what is computed from an h, element by element, reads it under the mask beside it.

    What a product gives is no longer h: only what other operations make of h is followed.
    """

    def __init__(self, hs: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.used: set[int] = set()
        self._followed = {id(h): (h, mask) for h, mask in hs}  # kept, so that no id is given to another

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [self._followed[id(value)] for value in tree_leaves((args, kwargs)) if id(value) in self._followed]
        if not given:
            return func(*args, **kwargs)
        if func in PRODUCTS:
            args, kwargs = tree_map(self._under_mask, (args, kwargs))
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        mask = given[0][1]
        self._followed.update((id(value), (value, mask)) for value in tree_leaves(out) if isinstance(value, Tensor))
        return out

    def _under_mask(self, value: Any) -> Any:
        if id(value) not in self._followed:
            return value
        _, mask = self._followed[id(value)]
        if value.shape[-1] != mask.shape[-1]:
            raise CellError(
                f"VariationalDropout: a product reads {value.shape[-1]} features of the {mask.shape[-1]} of h; "
                "it must read all of them."
            )
        self.used.add(id(mask))
        return value * mask
