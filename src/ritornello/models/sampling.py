"""Drawing text from a model, symbol by symbol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ritornello.errors import ArgumentError

Advance = Callable[[Tensor, Any], tuple[Tensor, Any]]


def narrow(log_p: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """The distribution that is drawn from.

    Args:
        log_p: (batch, vocabulary) log-probabilities.
        temperature: below 1 sharper, above 1 flatter; 0 puts everything on the likeliest symbol.
        top_k: keep only the k likeliest symbols (Fan et al. 2018); 0 keeps all.
        top_p: keep the fewest likeliest symbols whose probabilities reach top_p (Holtzman et al. 2020); 1 keeps all.

    Returns:
        (batch, vocabulary) probabilities, each row summing to 1.

    Raises:
        ArgumentError: temperature < 0, top_k < 0, or top_p outside (0, 1].

    Example:
        >>> narrow(torch.tensor([[0.5, 0.3, 0.2]]).log(), top_k=2)
        tensor([[0.6250, 0.3750, 0.0000]])
    """
    if temperature < 0 or not temperature < float("inf"):
        raise ArgumentError(f"temperature must be 0 or greater, not {temperature}.")
    if top_k < 0:
        raise ArgumentError(f"top_k must be 0 (all symbols) or greater, not {top_k}.")
    if not 0 < top_p <= 1:
        raise ArgumentError(f"top_p must lie in 0 (exclusive) to 1, not {top_p}.")
    if temperature == 0:
        return torch.zeros_like(log_p).scatter_(-1, log_p.argmax(-1, keepdim=True), 1.0)
    likeliest = log_p.amax(-1, keepdim=True)  # taken off first, so that the coldest temperature does not overflow
    p = ((log_p - likeliest) / max(temperature, torch.finfo(log_p.dtype).tiny)).softmax(-1)
    ordered, index = p.sort(descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k:
        keep[..., top_k:] = False
    if top_p < 1:
        keep &= ordered.cumsum(-1) - ordered < top_p  # what lies before a symbol has not reached top_p
    kept = torch.zeros_like(p).scatter_(-1, index, ordered * keep)
    return kept / kept.sum(-1, keepdim=True)


def generate(
    advance: Advance,
    prompt: Sequence[int],
    *,
    count: int = 1,
    length: int,
    end: int | None = None,
    forbidden: Sequence[int] = (),
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """Draws `count` texts at once, one symbol of each at a time.

    Args:
        advance: (batch,) symbols and a state to (batch, vocabulary) log-probabilities and the next state.
        prompt: the symbols that all texts begin with, at least one.
        count: how many texts.
        length: symbols to draw for each.
        end: the symbol that ends a text: once it is drawn, that text goes on with `end` alone, and drawing stops when
            all texts have ended.
        forbidden: symbols that are never drawn.
        temperature, top_k, top_p: as in `narrow`.
        seed: of the draws; the same seed draws the same texts.
        device: where the model lies.

    Yields:
        (count,) the symbols drawn at each step.

    Raises:
        ArgumentError: an empty prompt, or an option out of range.
    """
    if len(prompt) == 0:
        raise ArgumentError("The prompt is empty; begin with at least one symbol.")
    if count < 1 or length < 0:
        raise ArgumentError(f"count must be at least 1 and length at least 0, not {count} and {length}.")
    if not 0 <= seed < 1 << 63:
        raise ArgumentError(f"seed must be 0 or greater and below 2^63, not {seed}.")
    generator = torch.Generator().manual_seed(seed)
    state: Any = None
    log_p = torch.empty(0)
    for symbol in prompt:
        log_p, state = advance(torch.full((count,), int(symbol), device=device), state)
    ended = torch.zeros(count, dtype=torch.bool)
    for _ in range(length):
        log_p = log_p.cpu()
        if len(forbidden):
            log_p[:, list(forbidden)] = -torch.inf
        drawn = torch.multinomial(narrow(log_p, temperature, top_k, top_p), 1, generator=generator).squeeze(1)
        if end is not None:
            drawn[ended] = end
            ended |= drawn == end
        yield drawn
        if ended.all():
            return
        log_p, state = advance(drawn.to(device), state)
