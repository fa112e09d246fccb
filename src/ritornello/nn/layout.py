"""What callers of recurrent modules give, brought to rows once, and back: padded, unbatched, packed, or nested."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ritornello.engine import door
from ritornello.errors import ArgumentError
from ritornello.structures import Schedule, chain, from_rows, to_rows


@dataclass
class Batch:
    """Sequences as rows: step by step, where some end early the longest first. All layers read and write such rows.

    Attributes:
        given: the caller's input.
        layout: its padded sizes, and how it was laid out.
        lengths, resets: of the sequences, (batch,) and (time, batch), or None.
    """

    given: Any
    layout: door.Layout
    lengths: Tensor | None = None
    resets: Tensor | None = None

    @property
    def packed(self) -> bool:
        """Whether the input came packed."""
        return isinstance(self.given, PackedSequence)

    @property
    def dense(self) -> bool:
        """Whether no sequence ends early, so that steps are rows as they lie."""
        return self.lengths is None

    @cached_property
    def _base(self) -> Schedule:
        return chain(self.layout.time, self.layout.batch, lengths=self.lengths)

    def schedule(self, reverse: bool) -> Schedule:
        """The chains, over these rows."""
        if not reverse and self.resets is None:
            return self._base if self._base.order is None else replace(self._base, order=None)
        time, batch = self.layout.time, self.layout.batch
        made = chain(time, batch, lengths=self.lengths, resets=self.resets, reverse=reverse)
        if self._base.order is None or made.order is None:
            return made
        row_of = torch.empty(time * batch, dtype=torch.long)
        row_of[self._base.order] = torch.arange(self._base.rows)
        return replace(made, order=row_of[made.order])

    def steps(self) -> Tensor:
        """A padded input as (time, batch, features)."""
        x = self.given.to_padded_tensor(0.0) if self.given.is_nested else self.given
        return x.unsqueeze(1) if not self.layout.batched else x.transpose(0, 1) if self.layout.batch_first else x

    def rows(self) -> Tensor:
        """The input as rows."""
        return self.given.data if self.packed else to_rows(self.steps().reshape(-1, self.given.shape[-1]), self._base)

    def sequences(self) -> Tensor:
        """Which sequence each row belongs to."""
        order = self._base.order
        return (torch.arange(self._base.rows) if order is None else order) % self.layout.batch

    def padded(self, rows: Tensor) -> Tensor:
        """Rows as steps, with zeros for padding, in the order of the caller's axes."""
        time, batch = self.layout.time, self.layout.batch
        steps = from_rows(rows, self._base, time * batch).view(time, batch, rows.shape[-1])
        if self.packed and self.given.unsorted_indices is not None:
            steps = steps.index_select(1, self.given.unsorted_indices)
        return self.laid_out(steps)

    def laid_out(self, steps: Tensor) -> Tensor:
        """(time, batch, features) in the order of the caller's axes."""
        layout = self.layout
        return steps.squeeze(1) if not layout.batched else steps.transpose(0, 1) if layout.batch_first else steps

    def back(self, rows: Tensor) -> Any:
        """Rows as the caller gave the input."""
        if self.packed:
            return self.given._replace(data=rows)
        padded = self.padded(rows)
        if not self.given.is_nested:
            return padded
        valid = torch.arange(self.layout.time)[None, :] < self.given.offsets().diff().cpu()[:, None]
        return torch.nested.nested_tensor_from_jagged(padded[valid], self.given.offsets())


def check_nested(given: Tensor) -> None:
    """Raises ArgumentError unless a nested tensor is one that can be read."""
    if given.layout != torch.jagged or getattr(given, "_lengths", None) is not None:
        raise ArgumentError("a nested tensor must be of layout torch.jagged, without holes between its rows.")


def settle(given: Any, batch_first: bool, lengths: Any, resets: Any) -> Batch:
    """Checks lengths and resets beside an input whose number of axes is known to be right.

    Raises:
        ArgumentError: lengths or resets that do not fit it, or that it has already.
    """
    if isinstance(given, PackedSequence) or given.is_nested:
        kind = "a PackedSequence" if isinstance(given, PackedSequence) else "a nested tensor"
        for name, value in (("lengths", lengths), ("resets", resets)):
            if value is not None:
                raise ArgumentError(
                    f"{name} cannot be given beside {kind}, which has its lengths: pad it, or drop one."
                )
    if isinstance(given, PackedSequence):
        sizes = given.batch_sizes
        layout = door.Layout(len(sizes), int(sizes[0]), False, True)
        counts = (sizes[:, None] > torch.arange(layout.batch)).sum(0)
        return Batch(given, layout, None if bool((counts == layout.time).all()) else counts)
    if given.is_nested:
        counts = given.offsets().diff().cpu()
        layout = door.Layout(int(counts.max()), len(counts), True, True)
        return Batch(given, layout, door.settle_lengths(counts, layout))
    batched = given.dim() == 3
    time, batch = given.shape[:2] if batched else (given.shape[0], 1)
    if batched and batch_first:
        time, batch = batch, time
    layout = door.Layout(time, batch, batch_first, batched)
    if torch.compiler.is_compiling():  # a graph's lengths and resets are checked when it runs
        lengths = None if lengths is None else torch.as_tensor(lengths, device="cpu")
        resets = resets.T if resets is not None and batched and batch_first else resets
        return Batch(given, layout, lengths, resets.unsqueeze(1) if resets is not None and not batched else resets)
    return Batch(given, layout, door.settle_lengths(lengths, layout), door.settle_resets(resets, layout))
