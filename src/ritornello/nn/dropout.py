"""Dropout whose masks cost little on the CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ritornello.nn.protocol import check_share


class Dropout(nn.Module):
    """Zeroes a share of the elements in training, and scales the others, so that the mean stays.

    Srivastava et al. (2014). As `torch.nn.Dropout`; on the CPU masks come from 8 or 16 random bits an element, of which
    a number of torch's generator has 64: that takes a sixth of the time.

    Args:
        share: to zero, 0 to 1 (exclusive); on the CPU rounded to a multiple of 1/65536.

    Raises:
        ArgumentError: a share out of range.

    Example:
        >>> layer = Dropout(0.25)
        >>> sorted(set(layer(torch.ones(1000)).tolist()))
        [0.0, 1.3333333730697632]
        >>> layer.eval()(torch.ones(2)).tolist()
        [1.0, 1.0]
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        check_share("Dropout", "share", share)
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return dropped(x, self.share) if self.training else x

    def extra_repr(self) -> str:
        return str(self.share)


def dropped(x: Tensor, share: float) -> Tensor:
    """x with a share of its elements zeroed, as in training."""
    if not share:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return F.dropout(x, share)
    bits = torch.int8 if (share * 256).is_integer() else torch.int16
    steps = 1 << (8 * bits.itemsize)
    zeroed, each = min(round(share * steps), steps - 1), 8 // bits.itemsize
    drawn = torch.empty(-(-x.numel() // each), dtype=torch.int64, device=x.device).random_(-(1 << 63), None)
    drawn = drawn.view(bits)[: x.numel()].view(x.shape)
    kept = torch.ge(drawn, zeroed - steps // 2, out=x.new_empty(x.shape))  # as numbers: booleans take longer
    return x * kept.mul_(steps / (steps - zeroed))
