"""A recurrent language model: p(next symbol | all symbols before it)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ritornello.cells import Cell
from ritornello.errors import ArgumentError
from ritornello.nn import Dropout, Stack
from ritornello.nn.protocol import check_share


class LanguageModel(nn.Module):
    r"""Embedding, a stack of cells, and a softmax over the vocabulary.

    .. math:: \log p(y^{(1)}, …, y^{(τ)}) = \sum_t \log p(y^{(t)} \mid y^{(t-1)}, …, y^{(1)})

    with the hidden state as the only memory of what came before (Goodfellow, Bengio & Courville, eq. 10.31; Mikolov
    et al. 2010). The output layer shares the embedding's weights where sizes allow (Press & Wolf 2017).

    Args:
        vocabulary: how many symbols there are.
        cell: a `Cell` class, or any function of (input_size, hidden_size) that makes one.
        embedding: features of a symbol's vector.
        hidden: features of each layer's state.
        layers: how many layers of cells.
        dropout: share zeroed, in training, of the embeddings, between layers and before the output layer.
        tied: share the embedding's weights with the output layer where embedding and output have the same size.

    Shapes:
        tokens (time, batch) integers; logits (time, batch, vocabulary), before the softmax.

    Raises:
        ArgumentError: a size that is no positive integer, or a dropout outside 0 to 1.

    Example:
        >>> import torch, ritornello as rit
        >>> model = LanguageModel(vocabulary=4, cell=rit.LSTM, embedding=3, hidden=5)
        >>> logits, state = model(torch.tensor([[0], [1], [2]]))
        >>> logits.shape
        torch.Size([3, 1, 4])
    """

    def __init__(
        self,
        vocabulary: int,
        cell: Callable[[int, int], Cell],
        *,
        embedding: int,
        hidden: int,
        layers: int = 1,
        dropout: float = 0.0,
        tied: bool = True,
    ) -> None:
        super().__init__()
        for name, size in (("vocabulary", vocabulary), ("embedding", embedding)):
            if not isinstance(size, int) or size < 1:
                raise ArgumentError(f"LanguageModel: {name} must be a positive integer, not {size!r}.")
        check_share("LanguageModel", "dropout", dropout)
        self.embed = nn.Embedding(vocabulary, embedding)
        self.stack = Stack.of(cell, embedding, hidden, layers=layers, dropout=dropout if layers != 1 else 0.0)
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(self.stack.output_size, vocabulary)
        self.tied = tied and self.stack.output_size == embedding
        if self.tied:
            nn.init.uniform_(self.embed.weight, -0.1, 0.1)  # as an output layer it must begin near 0
            self.output.weight = self.embed.weight
        nn.init.zeros_(self.output.bias)

    @torch.no_grad()
    def start_at(self, counts: Tensor) -> None:
        """Lets the model begin with the frequencies of symbols, whatever came before them, instead of learning them.

        Where the output's bias has to learn that one symbol is a thousand times as frequent as another, units of the
        recurrence do it in its place, because they all move at once: they saturate, and stay so. After 600 updates on
        a novel's characters four in five units of an LSTM held |c| > 4; begun here 2 to 3 %, and it was 0.34 nats
        better (docs/results.md). Goodfellow, Bengio & Courville (2016), section 8.4, on biases of output units.

        Args:
            counts: (vocabulary,) how often each symbol stands in the training text; 1 is added to each.

        Raises:
            ArgumentError: counts of another shape.

        Example:
            >>> import torch, ritornello as rit
            >>> model = LanguageModel(vocabulary=3, cell=rit.LSTM, embedding=3, hidden=5)
            >>> model.start_at(torch.tensor([7, 1, 1]))
            >>> [round(p, 3) for p in model.output.bias.softmax(0).tolist()]
            [0.667, 0.167, 0.167]
        """
        if counts.shape != self.output.bias.shape:
            raise ArgumentError(
                f"LanguageModel.start_at: counts must have shape {tuple(self.output.bias.shape)}, one for each symbol "
                f"of the vocabulary, not {tuple(counts.shape)}."
            )
        self.output.bias.copy_((counts.double() + 1).log().log_softmax(0))

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The logits of the next symbol at each step, and the state after the last.

        Args:
            tokens: (time, batch) integers.
            state: what a call before it returned, so that text goes on; None at the beginning of a text.
        """
        outputs, state = self.stack(self.dropout(self.embed(tokens)), state)
        return self.output(self.dropout(outputs)), state

    @torch.no_grad()
    def advance(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step of many texts: (batch,) symbols in, (batch, vocabulary) log-probabilities of the next one out."""
        logits, state = self(tokens.unsqueeze(0), state)
        return logits[0].float().log_softmax(-1), state
