"""How well a model predicts a text: nats a token, in one stream or in windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ritornello.models.language_model import LanguageModel
from ritornello.nn.state import leaves, refill

CHUNK = 256  # steps that are scored at once
Read = Callable[[np.ndarray, int], np.ndarray]


@torch.no_grad()
def stream_nats(
    model: LanguageModel, read: Read, tokens: int, *, lanes: int = 1, warmup: int = 512
) -> Iterator[tuple[float, int]]:
    """Scores a text as one stream, each token given all that stand before it.

    Args:
        model: in evaluation mode.
        read: (starts, length) to tokens (len(starts), length), as `TokenFile.windows`.
        tokens: how many there are; all but the first are predicted.
        lanes: parts of the text that are read side by side, for speed. With 1 (default) the state is carried through
            the whole text. With more, each lane but the first reads `warmup` tokens before its part unscored.
        warmup: see lanes.

    Yields:
        Summed nats and number of the tokens scored, chunk by chunk; they add up to all.
    """
    device = model.embed.weight.device
    lanes = max(1, min(lanes, (tokens - 1) // warmup))
    each = (tokens - 1) // lanes
    starts = np.arange(lanes) * each
    state: Any = None
    if lanes > 1:
        _, state = model(_text(read, np.maximum(starts - warmup, 0), warmup, device))
        for leaf in leaves(state):
            leaf[0] = 0  # the first lane begins with the text
    for offset in range(0, each, CHUNK):
        nats, state = _score(model, _text(read, starts + offset, min(CHUNK, each - offset) + 1, device), state)
        yield float(nats.double().sum()), nats.numel()
    if rest := tokens - 1 - lanes * each:  # the last lane reads to the end
        tail = refill(state, [leaf[-1:] for leaf in leaves(state)])
        nats, _ = _score(model, _text(read, starts[-1:] + each, rest + 1, device), tail)
        yield float(nats.double().sum()), nats.numel()


@torch.no_grad()
def window_nats(model: LanguageModel, read: Read, tokens: int, window: int) -> Iterator[tuple[float, int]]:
    """Scores a text in windows of `window` tokens that know nothing of each other; arguments as in `stream_nats`."""
    device = model.embed.weight.device
    starts = np.arange(0, tokens - 1, window)
    whole = starts[starts + window <= tokens - 1]
    groups = [whole[i : i + 128] for i in range(0, len(whole), 128)] + [starts[len(whole) :]]
    for group in groups:
        if len(group):
            length = min(window, tokens - 1 - int(group[0]))
            nats, _ = _score(model, _text(read, group, length + 1, device), None)
            yield float(nats.double().sum()), nats.numel()


def _text(read: Read, starts: np.ndarray, length: int, device: torch.device) -> Tensor:
    """(length, len(starts)) tokens on the model's device."""
    return torch.from_numpy(read(starts, length).astype(np.int64)).T.to(device)


def _score(model: LanguageModel, text: Tensor, state: Any) -> tuple[Tensor, Any]:
    """(time - 1, batch) negative log-likelihoods of all but the first token, and the state after the last but one."""
    logits, state = model(text[:-1], state)
    targets = text[1:]
    nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return nats.view(targets.shape), state


def scores(nats: float, predicted: int, tokens: int, characters: int) -> dict[str, float]:
    """The figures that people compare.

    Args:
        nats: summed over the predicted tokens.
        predicted: how many they are.
        tokens, characters: of the whole text, for the rate between the two.

    Returns:
        loss (nats a token), bits_per_character, perplexity (e to the loss), tokens (predicted).

    Example:
        >>> scores(nats=20.0, predicted=10, tokens=11, characters=22)["loss"]
        2.0
    """
    loss = nats / predicted
    return {
        "loss": loss,
        "bits_per_character": loss / math.log(2) * tokens / characters,
        "perplexity": math.exp(min(loss, 700.0)),
        "tokens": predicted,
    }
