"""Chains: one predecessor a step. Dense, reversed, ragged, and with resets."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from ritornello.structures.schedule import Level, Schedule


def chain(
    time: int,
    batch: int,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
) -> Schedule:
    """The schedule of a batch of chains, padded to (time, batch).

    Args:
        time, batch: the padded sizes; either may be 0.
        lengths: (batch,) integers from 0 to `time`: steps of each sequence; the rest is padding and costs nothing.
        resets: (time, batch) booleans: a new sequence begins at this step, so that no state crosses from the step
            before, in either direction.
        reverse: walk from each sequence's last step to its first.

    Returns:
        A schedule whose entries are sorted by length (longest first), so that the rows of a step are a prefix of
        those of the step before it.

    Example:
        >>> s = chain(3, 2, lengths=torch.tensor([1, 3]))
        >>> s.rows, [(level.start, level.stop) for level in s.levels], s.order.tolist()
        (4, [(0, 2), (2, 3), (3, 4)], [1, 0, 3, 5])
    """
    if lengths is None and resets is None:
        order = torch.arange(time * batch, device="cpu").view(time, batch).flip(0).flatten() if reverse else None
        return Schedule(batch, time * batch, _dense(time, batch), order=order)
    return _ragged(time, batch, lengths, resets, reverse)


@lru_cache(maxsize=128)
def _dense(time: int, batch: int) -> tuple[Level, ...]:  # no tensor is cached: one made in inference mode cannot train
    return tuple(Level(t * batch, (t + 1) * batch, 1 + t * batch) for t in range(time))


def _ragged(time: int, batch: int, lengths: Tensor | None, resets: Tensor | None, reverse: bool) -> Schedule:
    if lengths is None:
        lengths = torch.full((batch,), time, device="cpu")
    lengths, entry = lengths.sort(descending=True, stable=True)
    steps = torch.arange(int(lengths[0]) if batch else 0, device="cpu")
    active = (lengths[None, :] > steps[:, None]).sum(1)  # sequences that reach each step: a prefix
    starts = torch.cat([active.new_zeros(1), active.cumsum(0)])

    valid = lengths[None, :] > steps[:, None]
    t, b = valid.nonzero(as_tuple=True)  # in the order of rows: step by step, longest first
    position = lengths[b] - 1 - t if reverse else t
    order = position * batch + entry[b]
    first_row = 1 + batch
    previous = torch.where(t > 0, first_row + starts[t - 1] + b, 1 + b)  # table row of each row's predecessor
    if resets is not None:
        previous = torch.where(_fresh(resets, t, position, entry[b], reverse), 0, previous)

    bounds = starts.tolist()
    levels = []
    for step, (start, stop) in enumerate(pairwise(bounds)):
        contiguous = 1 if step == 0 else first_row + bounds[step - 1]
        source = contiguous if resets is None else previous[start:stop, None]
        levels.append(Level(start, stop, source))

    last = torch.empty_like(entry)
    slot = torch.arange(batch, device="cpu")
    last[entry] = torch.where(lengths > 0, first_row + starts[(lengths - 1).clamp(min=0)] + slot, 1 + slot)
    return Schedule(batch, bounds[-1], tuple(levels), order=order, entry=entry, last=last)


def _fresh(resets: Tensor, step: Tensor, position: Tensor, sequence: Tensor, reverse: bool) -> Tensor:
    """Which rows start anew: where a sequence begins; walking backwards, the step before that."""
    if not reverse:
        return resets[position, sequence]
    after = torch.cat([resets[1:], resets.new_zeros(1, resets.shape[1])])
    return after[position, sequence] & (step > 0)  # what follows the first step walked is padding
