"""Layers one upon another: stacks, with residual and skip connections."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ritornello.cells import Cell
from ritornello.engine import Unfold
from ritornello.errors import ArgumentError, tell
from ritornello.nn.bidirectional import Bidirectional
from ritornello.nn.dropout import dropped
from ritornello.nn.protocol import (
    Around,
    Lengths,
    check_options,
    check_outputs,
    check_share,
    checked_layer,
    ending,
    is_layer,
    of_cells,
    on_nodes,
    over,
    without_padding,
)
from ritornello.nn.state import parts_of
from ritornello.nn.variational import VariationalDropout
from ritornello.structures import AnyTrees, batch_of


class Residual(Around):
    """A layer whose input is added to its output (He et al. 2016): y = x + layer(x).

    Args:
        layer: an `Unfold` or a composition whose input and output have the same size.

    Raises:
        ArgumentError: its input and output sizes differ.

    Example:
        >>> import torch, ritornello as rit
        >>> rit.nn.Residual(rit.Unfold(rit.GRU(4, 4)))(torch.randn(5, 2, 4))[0].shape
        torch.Size([5, 2, 4])
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(checked_layer("Residual", layer))
        if layer.input_size != layer.output_size:
            raise ArgumentError(
                f"Residual: the layer reads {layer.input_size} features and gives {layer.output_size}; "
                "they are added, so they must be alike."
            )

    def forward(self, x: Tensor, state: Any = None, **options: Any) -> tuple[Tensor, Any]:
        """As the layer's forward."""
        check_outputs("Residual", options)
        outputs, last = self.layer(x, state, **options)
        return without_padding(x, options.get("lengths"), self.batch_first) + outputs, last

    def over(self, trees: AnyTrees, x: Tensor, state: Any = None, *, inputs: str = "nodes") -> tuple[Tensor, Any]:
        """As the layer's; to a node without an x nothing is added."""
        batch = batch_of(trees)
        outputs, roots = over("Residual", self.layer, batch, x, state, inputs)
        return on_nodes(batch, x, inputs) + outputs, roots


class Stack(nn.Module):
    """Layers one upon another: each reads the outputs of the one below.

    Args:
        layers: `Unfold`s or compositions; each reads as many features as the one below gives.
        skip: x goes to every layer, beside the outputs of the one below, and the outputs of every layer go to the
            output, side by side (Graves 2013, eq. 9 to 11): the layers read so many more features. Default False.
        dropout: share of the outputs between layers that are zeroed in training (not above the last). Default 0.

    Shapes:
        As `Unfold`'s; the state is a tuple with the state of each layer.

    Raises:
        ArgumentError: no layer, sizes that do not fit together, or a dropout outside 0 to 1.

    Example:
        >>> import torch, ritornello as rit
        >>> stack = rit.nn.Stack.of(rit.LSTM, 3, 4, layers=2)
        >>> outputs, states = stack(torch.randn(5, 2, 3))
        >>> outputs.shape, len(states)
        (torch.Size([5, 2, 4]), 2)
    """

    def __init__(self, layers: Iterable[Any], *, skip: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        if isinstance(layers, nn.Module) and not isinstance(layers, (nn.ModuleList, nn.Sequential)):
            raise ArgumentError(f"Stack takes a list of layers, not one {type(layers).__name__}.")
        held: Any = nn.ModuleList(layers)
        self.layers = held
        self.skip, self.dropout = skip, dropout
        if not held:
            raise ArgumentError("Stack: give at least one layer.")
        for number, layer in enumerate(held):
            if not is_layer(layer):
                raise ArgumentError(
                    f"Stack: layer {number} is a {type(layer).__name__}; "
                    "layers are Unfold, and compositions that tell their sizes and give the outputs of every step."
                )
        check_share("Stack", "dropout", dropout)
        if dropout and len(held) == 1:
            tell(f"Stack: dropout={dropout:g} acts between layers, and here is one: nothing is zeroed.")
        self.input_size: int = held[0].input_size
        self.batch_first: bool = held[0].batch_first
        beside, told = (self.input_size, f", beside the {self.input_size} of x,") if skip else (0, "")
        for number, (below, above) in enumerate(pairwise(held)):
            if below.output_size + beside != above.input_size:
                raise ArgumentError(
                    f"Stack: layer {number} gives {below.output_size} features{told} and layer {number + 1} reads "
                    f"{above.input_size}; they must be alike."
                )
            if below.batch_first != above.batch_first:
                raise ArgumentError(f"Stack: layers {number} and {number + 1} differ in batch_first; make them alike.")

    @property
    def output_size(self) -> int:
        """Features of the outputs: the last layer's, or with `skip` those of all layers together."""
        return sum(layer.output_size for layer in (self.layers if self.skip else self.layers[-1:]))

    def of_cells(self, tell: Callable[[Cell], Any]) -> Any:
        """What is told of each cell, nested as the state is."""
        return tuple(of_cells(layer, tell) for layer in self.layers)

    @classmethod
    def of(
        cls,
        cell: Callable[[int, int], nn.Module] | Sequence[Callable[[int, int], nn.Module]],
        input_size: int,
        hidden_size: int | Sequence[int],
        *,
        layers: int | None = None,
        bidirectional: bool = False,
        merge: str | None = None,
        residual: bool = False,
        skip: bool = False,
        dropout: float = 0.0,
        variational_dropout: float = 0.0,
        **options: Any,
    ) -> Stack:
        """The usual stack: a cell, or two, in every layer.

        Args:
            cell: a `Cell` class, or any function of (input_size, hidden_size) that makes one; or one for each layer.
            input_size: features of x.
            hidden_size: features of each layer's output (of each direction's, if bidirectional); or one for each layer.
            layers: how many. Default: as many as cells or sizes are listed, else 1.
            bidirectional: two cells a layer, one in each direction.
            merge: of the two, as in `Bidirectional`: "concatenate" (default) or "sum".
            residual: each layer's input is added to its output, except where sizes differ (as in the first layer).
            skip, dropout: as in `Stack`.
            variational_dropout: share of each layer's inputs and of its h, as in `VariationalDropout`.
            options: as in `Unfold`: reverse, batch_first, learn_initial, adjoint, executor.

        Raises:
            ArgumentError: options that clash, or lists of different lengths.

        Example:
            >>> import ritornello as rit
            >>> stack = rit.nn.Stack.of((rit.GRU, rit.LSTM), 3, (8, 4), skip=True)
            >>> stack.layers[1].input_size, stack.output_size
            (11, 12)
        """
        if bidirectional and options.get("reverse"):
            raise ArgumentError("Stack: reverse=True and bidirectional=True clash: both directions are walked already.")
        if merge is not None and not bidirectional:
            raise ArgumentError(f"Stack: merge={merge!r} and bidirectional=False clash: there is nothing to merge.")
        if residual and skip:
            raise ArgumentError(
                "Stack: residual=True and skip=True clash: with skip connections a layer reads more than it gives."
            )
        check_options("Stack.of", options, inspect.signature(cls.of).parameters)
        unfold: Any = Unfold
        if variational_dropout:
            unfold = partial(VariationalDropout, inputs=variational_dropout, recurrent=variational_dropout)
        ways = (False, True) if bidirectional else (options.get("reverse", False),)
        made: list[Any] = []
        for make, size in _each_layer(cell, hidden_size, layers):
            reads = made[-1].output_size + skip * input_size if made else input_size
            walks = [unfold(make(reads, size), **{**options, "reverse": reverse}) for reverse in ways]
            layer: Any = Bidirectional(*walks, merge=merge or "concatenate") if bidirectional else walks[0]
            made.append(Residual(layer) if residual and layer.input_size == layer.output_size else layer)
        return cls(made, skip=skip, dropout=dropout)

    def forward(
        self, x: Tensor, state: Any = None, *, lengths: Lengths = None, resets: Tensor | None = None
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """As `Unfold.forward`; the state is a tuple, a layer each."""
        before = parts_of(self, state, len(self.layers))
        outputs: list[Tensor] = []
        after = []
        for layer, entering in zip(self.layers, before, strict=True):
            reads = self._above(outputs, x) if outputs else x
            found, last = layer(reads, entering, lengths=lengths, resets=resets)
            outputs.append(found)
            after.append(last)
        return self._given(outputs), tuple(after)

    def over(
        self, trees: AnyTrees, x: Tensor, state: Any = None, *, inputs: str = "nodes"
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """As `Unfold.over`: a deep recursive network (Irsoy & Cardie 2014).

        At every node a layer reads its own states at the children, and what the layer below gives at the node.

        Args:
            trees, x, inputs: as in `Unfold.over`; layers above the first read at all nodes.
            state: what leaves read: a tuple, a layer each, fields (trees, size). Default: the initial states.

        Returns:
            outputs: (nodes of all trees, output_size).
            roots: a tuple with a `State` of each layer, fields (trees, size).

        Raises:
            ArgumentError: as `Unfold.over`; a layer for sequences alone.

        Example:
            >>> import torch, ritornello as rit
            >>> stack = rit.nn.Stack.of(rit.cells.TreeLSTM, 3, 4, layers=2)
            >>> outputs, roots = stack.over([[2, 2, -1]], torch.randn(2, 3), inputs="leaves")
            >>> bool((outputs[2] == roots[1].h[0]).all())
            True
        """
        batch = batch_of(trees)
        before = parts_of(self, state, len(self.layers))
        outputs: list[Tensor] = []
        after = []
        for layer, entering in zip(self.layers, before, strict=True):
            reads = self._above(outputs, x) if outputs else x
            found, roots = over("Stack", layer, batch, reads, entering, inputs)
            x, inputs = on_nodes(batch, x, inputs) if self.skip else x, "nodes"
            outputs.append(found)
            after.append(roots)
        return self._given(outputs), tuple(after)

    def _above(self, outputs: Sequence[Tensor], x: Tensor) -> Tensor:
        """What a layer reads of those below."""
        below = dropped(outputs[-1], self.dropout) if self.training else outputs[-1]
        return torch.cat([x, below], -1) if self.skip else below

    def _given(self, outputs: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(outputs), -1) if self.skip else outputs[-1]

    def ending(self, outputs: Tensor | None, last: Any, lengths: Lengths) -> Tensor:
        """The last layer's, or with `skip` those of all layers side by side."""
        if not self.skip:
            return ending(self.layers[-1], outputs, last[-1], lengths)
        sizes = [layer.output_size for layer in self.layers]
        parts = [None] * len(sizes) if outputs is None else outputs.split(sizes, -1)
        return torch.cat([ending(*each, lengths) for each in zip(self.layers, parts, last, strict=True)], -1)

    def extra_repr(self) -> str:
        return ", ".join(
            [*(["skip=True"] if self.skip else []), *([f"dropout={self.dropout}"] if self.dropout else [])]
        )


def check_maker(owner: str, make: Any) -> None:
    """Raises ArgumentError unless each layer can make its cell by it."""
    if isinstance(make, nn.Module):
        raise ArgumentError(f"{owner}: cell is a {type(make).__name__}; give its class: each layer makes its own.")
    if not callable(make):
        raise ArgumentError(
            f"{owner}: cell must be a class, or a function of (input_size, hidden_size), not {make!r}; "
            "ritornello.cells.find knows them by name."
        )


def _each_layer(cell: Any, hidden_size: Any, layers: int | None) -> list[tuple[Any, int]]:
    """A maker of cells and a size for each layer."""
    given = (("cell", cell), ("hidden_size", hidden_size))
    lists = {name: list(each) for name, each in given if isinstance(each, Sequence) and not isinstance(each, str)}
    counts = {name: len(given) for name, given in lists.items()}
    if layers is None:
        layers = next(iter(counts.values()), 1)
    if not isinstance(layers, int) or layers < 1:
        raise ArgumentError(f"Stack: layers must be at least 1, not {layers!r}.")
    for name, count in counts.items():
        if count != layers:
            raise ArgumentError(f"Stack: {name} lists {count} and there are {layers} layers; give one for each.")
    cells = lists.get("cell", [cell] * layers)
    for make in cells:
        check_maker("Stack", make)
    return list(zip(cells, lists.get("hidden_size", [hidden_size] * layers), strict=True))
