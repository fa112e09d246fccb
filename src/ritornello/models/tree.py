"""Classifiers of trees: a label for every node, read from the words below it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ritornello.errors import ArgumentError
from ritornello.nn import Dropout, Stack
from ritornello.nn.protocol import check_share
from ritornello.structures import Forest, spans

STEPS = 1 << 16  # of the sequences that are read side by side, padding included


class TreeClassifier(nn.Module):
    r"""Word vectors at the leaves, a cell unfolded over the tree, a softmax at every node.

    .. math:: p(y \mid \text{node}) = \mathrm{softmax}(W h + b)

    Socher et al. (2013); Tai, Socher & Manning (2015), section 4.1.

    Args:
        vocabulary: how many words there are.
        labels: how many labels.
        cell: a `Cell` class, or any function of (input_size, hidden_size) that makes one: a cell for trees, or one that
            sums over its predecessors.
        embedding: features of a word's vector.
        hidden: features of a node's state, in each layer.
        layers: cells one upon another; the softmax reads the last (Irsoy & Cardie 2014). Default 1.
        dropout: share zeroed, in training, of the word vectors, between layers and before the softmax.
        sparse: give the word vectors a sparse gradient, of those words alone that were read.

    Shapes:
        words (leaves,) integers, in the order of the leaves; logits (nodes, labels).

    Raises:
        ArgumentError: a size that is no positive integer, or a dropout outside 0 to 1.

    Example:
        >>> import ritornello as rit
        >>> model = TreeClassifier(9, 5, rit.cells.TreeLSTM, embedding=3, hidden=4)
        >>> model(Forest.from_parents([[2, 2, -1]]), torch.tensor([7, 8])).shape
        torch.Size([3, 5])
    """

    def __init__(
        self,
        vocabulary: int,
        labels: int,
        cell: Callable[[int, int], nn.Module],
        *,
        embedding: int,
        hidden: int,
        layers: int = 1,
        dropout: float = 0.0,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        check_share(type(self).__name__, "dropout", dropout)
        for name, size in (("vocabulary", vocabulary), ("labels", labels), ("embedding", embedding)):
            if not isinstance(size, int) or size < 1:
                raise ArgumentError(f"{type(self).__name__}: {name} must be a positive integer, not {size!r}.")
        self.embed = nn.Embedding(vocabulary, embedding, sparse=sparse)
        nn.init.uniform_(self.embed.weight, -0.05, 0.05)
        self.stack = Stack.of(cell, embedding, hidden, layers=layers, dropout=dropout if layers != 1 else 0.0)
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(self.stack.output_size, labels)

    def forward(self, trees: Forest, words: Tensor, nodes: Tensor | None = None) -> Tensor:
        """The logits of each node's label, or of those `nodes` alone that are asked for by number."""
        x = self.dropout(self.embed(words))
        states, _ = self.stack.over(trees, x, inputs="leaves")
        return self.output(self.dropout(states if nodes is None else states[nodes]))


class SpanClassifier(TreeClassifier):
    """The same task without the tree: a node is the sequence of its words, and the cell reads them one by one.

    The sequential baseline of Tai, Socher & Manning (2015), section 5.1: it is trained on the phrases that nodes span.

    Arguments, shapes and errors as `TreeClassifier`'s; the cell is one for chains.

    Example:
        >>> import ritornello as rit
        >>> model = SpanClassifier(9, 5, rit.LSTM, embedding=3, hidden=4)
        >>> model(Forest.from_parents([[-1, 0, 0]]), torch.tensor([7, 8])).shape
        torch.Size([3, 5])
    """

    def forward(self, trees: Forest, words: Tensor, nodes: Tensor | None = None) -> Tensor:
        starts, lengths = spans(trees)
        wanted = np.arange(trees.nodes) if nodes is None else nodes.cpu().numpy()
        order = np.argsort(-lengths[wanted], kind="stable")
        sizes = lengths[wanted[order]]
        found, done = [], 0
        while done < len(order):  # those together that are more than half as long as the longest: most nodes are short
            longest = sizes[done]
            end = min(np.searchsorted(-sizes, -(longest // 2)), done + max(1, STEPS // longest))
            some = wanted[order[done:end]]
            reach = np.minimum(starts[some] + np.arange(longest)[:, None], len(words) - 1)  # padding: any word
            x = self.dropout(self.embed(words[torch.from_numpy(reach).to(words.device)]))
            found.append(self.stack(x, lengths=torch.from_numpy(lengths[some]))[1][-1][0])
            done = end
        if not found:
            return self.output(self.output.weight.new_zeros(0, self.output.in_features))
        places = torch.from_numpy(np.argsort(order)).to(words.device)
        return self.output(self.dropout(torch.cat(found)[places]))
