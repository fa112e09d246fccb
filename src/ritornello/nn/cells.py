"""`torch.nn`'s recurrent cells: torch's own single step, which nothing beats from Python, and a stepper for streams."""

from __future__ import annotations

from typing import Any

from torch import nn

from ritornello.engine import Unfold
from ritornello.executors.stepper import Stepper


class _Streams(nn.RNNCellBase):
    """What the three cells have beyond torch's."""

    def stepper(self, rows: int = 1) -> Stepper:
        """A fast step in inference, one input after the other: see `ritornello.Unfold.stepper`.

        Args:
            rows: how many sequences go side by side.
        """
        cell: Any = self
        return Unfold(cell).stepper(rows)


class RNNCell(_Streams, nn.RNNCell):
    """`torch.nn.RNNCell`.

    Example:
        >>> import torch, ritornello as rit
        >>> rit.nn.RNNCell(3, 4)(torch.randn(2, 3)).shape
        torch.Size([2, 4])
    """


class LSTMCell(_Streams, nn.LSTMCell):
    """`torch.nn.LSTMCell`.

    Example:
        >>> import torch, ritornello as rit
        >>> cell = rit.nn.LSTMCell(3, 4)
        >>> h, c = cell(torch.randn(2, 3))
        >>> output, state = cell.stepper(rows=2)(torch.randn(2, 3))
        >>> output.shape
        torch.Size([2, 4])
    """


class GRUCell(_Streams, nn.GRUCell):
    """`torch.nn.GRUCell`.

    Example:
        >>> import torch, ritornello as rit
        >>> rit.nn.GRUCell(3, 4)(torch.randn(2, 3)).shape
        torch.Size([2, 4])
    """
