"""One face for all language models: it advances by a token, and scores a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ritornello.data.tokenizer import Tokenizer
from ritornello.data.tokens import TokenFile
from ritornello.errors import RunError
from ritornello.models.language_model import LanguageModel
from ritornello.models.ngram import NGramModel
from ritornello.models.scoring import scores, stream_nats, window_nats

LANES = 64


def reader(text: TokenFile, tokenizer: Tokenizer) -> Callable[[np.ndarray, int], np.ndarray]:
    """`text.windows`, with a RunError where a damaged file holds a token that the vocabulary lacks."""

    def read(starts: np.ndarray, length: int) -> np.ndarray:
        tokens = text.windows(starts, length)
        if (highest := int(tokens.max(initial=0))) >= tokenizer.vocabulary_size:
            raise RunError(
                f"{text.path} is damaged: it holds the token {highest}, where the vocabulary has "
                f"{tokenizer.vocabulary_size}; train anew with --overwrite."
            )
        return tokens

    return read


class Predictor:
    """A trained recurrent model or n-gram model behind one face."""

    def __init__(self, model: LanguageModel | NGramModel, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def advance(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """(batch,) tokens and a state to (batch, vocabulary) log-probabilities and the next state."""
        if isinstance(self.model, LanguageModel):
            return self.model.advance(tokens, state)
        histories = [[*past, int(token)] for past, token in zip(state or [[]] * len(tokens), tokens, strict=True)]
        histories = [past[-self.model.order :] for past in histories]
        p = np.stack([self.model.distribution(past) for past in histories])
        return torch.from_numpy(p).log(), histories

    def score(
        self, text: TokenFile, characters: int, *, lanes: int = LANES, window: int = 0, most: int = 0
    ) -> dict[str, float]:
        """Scores a text of so many characters; the rest as in `LanguageModelRun.evaluate`."""
        tokens = min(len(text), most) if most else len(text)
        total, predicted = 0.0, 0
        for nats, count in self._nats(text, tokens, lanes, window):
            total, predicted = total + nats, predicted + count
        return scores(total, predicted, len(text), characters)

    def _nats(self, text: TokenFile, count: int, lanes: int, window: int) -> Iterator[tuple[float, int]]:
        if isinstance(self.model, LanguageModel):
            self.model.eval()
            if window:
                yield from window_nats(self.model, reader(text, self.tokenizer), count, window)
            else:
                yield from stream_nats(self.model, reader(text, self.tokenizer), count, lanes=lanes)
            return
        block = window or 1 << 20
        for start in range(0, count - 1, block):
            context = text.read(max(0, start + 1 - (1 if window else self.model.order)), start + 1)
            tokens = text.read(start + 1, min(start + 1 + block, count))
            yield float(self.model.nats(tokens, context).sum()), len(tokens)
