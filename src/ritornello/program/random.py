"""Random numbers by counter: Philox4x32-10 (Salmon et al. 2011), as src/csrc/random.h draws them."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def philox(seed: int, rows: Tensor, stream: int, size: int) -> Tensor:
    """Numbers in [0, 1), multiples of 2⁻²⁴: the same for the same arguments.

    Args:
        seed: of 64 bits.
        rows: (rows,) which rows they are drawn for.
        stream: tells apart several draws of one row.
        size: numbers a row.

    Returns:
        (rows, size), float64. Number w·q + j, with q = ⌈size / 4⌉, is word w of counter (j, stream, row).

    Example:
        >>> import torch
        >>> bool((philox(7, torch.tensor([0, 1]), 0, 1000).mean(1) - 0.5).abs().max() < 0.05)
        True
    """
    quarter = -(-size // 4)
    shape = (len(rows), quarter)
    row = rows.view(-1, 1).expand(shape)
    words = [
        torch.arange(quarter, device=rows.device).expand(shape),
        torch.full(shape, stream, device=rows.device),
        row & _MASK,
        row >> 32,
    ]
    key0, key1 = seed & _MASK, seed >> 32
    for _ in range(10):
        high0, low0 = _product(words[0], 0xD2511F53)
        high1, low1 = _product(words[2], 0xCD9E8D57)
        words = [high1 ^ words[1] ^ key0, low1, high0 ^ words[3] ^ key1, low0]
        key0, key1 = (key0 + 0x9E3779B9) & _MASK, (key1 + 0xBB67AE85) & _MASK
    whole = torch.cat(words, 1)[:, :size]
    return (whole >> 8).double() * 2.0**-24


def _product(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product of two 32-bit numbers, in 64-bit arithmetic with a sign."""
    low = (a & 0xFFFF) * b
    high = (a >> 16) * b + (low >> 16)
    return (high >> 16) & _MASK, ((high & 0xFFFF) << 16 | (low & 0xFFFF)) & _MASK
