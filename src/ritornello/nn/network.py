"""What stands around a recurrence: what it reads, what is read of it, and a context that all steps share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ritornello.engine import door
from ritornello.errors import ArgumentError, nearest
from ritornello.nn.bidirectional import Bidirectional
from ritornello.nn.compose import Residual
from ritornello.nn.protocol import (
    Around,
    Function,
    Lengths,
    check_outputs,
    checked_layer,
    ending,
    on_nodes,
    open_sizes,
    over,
    state_sizes,
    without_padding,
)
from ritornello.nn.state import leaves, refill
from ritornello.structures import AnyTrees, batch_of

READS = ("acceptor", "encoder", "transducer")
INTO = ("both", "state", "steps")
KEEPING = (  # modules that give as many features as they read
    *(nn.Tanh, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softmax, nn.LogSoftmax),
    *(nn.Dropout, nn.LayerNorm, nn.Identity),
)


class Network(Around):
    r"""A recurrence between an encoder of its inputs and a decoder of its states.

    .. math::
        h^{(t)} = \mathrm{Enc}(x^{(t)}) \qquad z^{(t)} = g(h^{(t)}, z^{(t-1)}) \qquad y^{(t)} = \mathrm{Dec}(z^{(t)})

    And a network as (R, O), s_i = R(s_{i-1}, x_i), y_i = O(s_i) (Goldberg 2016): read as a *transducer* it answers with
    every output, as an *acceptor* with the last one, as an *encoder* with its last state.

    Args:
        layer: g: an `Unfold` or a composition.
        encode: Enc, such as `nn.Embedding` or a convolutional network: from (time, batch, ...) to what the layer reads.
            Default: x as it is.
        decode: Dec, such as `nn.Linear`. Default: what is read, as it is.
        reads: "transducer" (default), "acceptor" or "encoder".

    Shapes:
        x: (time, batch, ...) or as `batch_first` says; without a batch axis (time, features), or (time,) integers.
        The answer: a transducer's (time, batch, ...), 0 in the padding; an acceptor's (batch, ...), from each
        sequence's own last step (each direction's, where both are walked: step 1 for the one backwards); an encoder's
        (batch, ...), from all fields of all layers' last states side by side. A sequence of length 0 is read by its
        initial state.
        encode and decode must treat steps alike and apart: they are called once, for all of them; the padding that
        encode sees is 0.

    Raises:
        ArgumentError: an unknown `reads`, sizes that do not fit together, or an acceptor without one last step.

    Example:
        >>> import torch, ritornello as rit
        >>> judge = rit.nn.Network(
        ...     rit.nn.Stack.of(rit.GRU, 4, 8, bidirectional=True),
        ...     encode=torch.nn.Embedding(100, 4),
        ...     decode=torch.nn.Linear(16, 2),
        ...     reads="acceptor",
        ... )
        >>> logits, state = judge(torch.randint(100, (7, 3)), lengths=[7, 2, 0])
        >>> logits.shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        layer: nn.Module,
        *,
        encode: Function | None = None,
        decode: Function | None = None,
        reads: str = "transducer",
    ) -> None:
        if reads not in READS:
            raise ArgumentError(f"Unknown reads {reads!r}: {nearest(reads, READS)}.")
        super().__init__(checked_layer("Network", layer))
        self.encode, self.decode, self.reads = encode, decode, reads
        if reads == "acceptor":
            _check_ending(layer)
        read = sum(leaves(state_sizes(layer))) if reads == "encoder" else layer.output_size
        for one, gives, other, takes in (
            ("encode", _features(encode, -1), "the layer", layer.input_size),
            (f"the {reads}'s reading", read, "decode", _features(decode, 0)),
        ):
            if None not in (gives, takes) and gives != takes:
                raise ArgumentError(f"Network: {one} gives {gives} features and {other} reads {takes}.")
        self._read = read

    @property
    def input_size(self) -> Any:
        """Features of x; None where `encode` does not tell them."""
        return self.layer.input_size if self.encode is None else _features(self.encode, 0)

    @property
    def output_size(self) -> Any:
        """Features of the answer; None where `decode` does not tell them."""
        return self._read if self.decode is None else _features(self.decode, -1)

    def forward(self, x: Tensor, state: Any = None, *, lengths: Lengths = None, **options: Any) -> tuple[Tensor, Any]:
        """The answer, and the last state; further options, such as `resets`, are the layer's."""
        if self.encode is not None:
            features = x.is_floating_point()
            batched = x.dim() > 1 + features
            x = self.encode(without_padding(x, lengths, self.batch_first, axes=1 + batched))
        check_outputs("Network", options)
        outputs, last = self.layer(x, state, lengths=lengths, **options)
        if self.reads == "encoder":
            outputs = torch.cat(leaves(last), -1)
        elif self.reads == "acceptor":
            outputs = ending(self.layer, outputs, last, lengths)
        if self.decode is None:
            return outputs, last
        answer = self.decode(outputs)
        if self.reads == "transducer":
            answer = without_padding(answer, lengths, self.batch_first, axes=outputs.dim() - 1)
        return answer, last

    def over(self, trees: AnyTrees, x: Tensor, state: Any = None, *, inputs: str = "nodes") -> tuple[Tensor, Any]:
        """The answer over trees: a transducer's is of every node, an acceptor's and an encoder's of every root.

        Args:
            trees, state, inputs: as in `Unfold.over`.
            x: (nodes that have one, ...), what `encode` reads.

        Returns:
            the answer, (nodes, ...) or (trees, ...); and the roots' states.

        Example:
            >>> import torch, ritornello as rit
            >>> layer, words = rit.Unfold(rit.cells.TreeLSTM(4, 8)), torch.nn.Embedding(100, 4)
            >>> judge = rit.nn.Network(layer, encode=words, decode=torch.nn.Linear(8, 2), reads="acceptor")
            >>> judge.over([[2, 2, -1], [-1]], torch.tensor([7, 9, 8]), inputs="leaves")[0].shape
            torch.Size([2, 2])
        """
        batch = batch_of(trees)
        features = x if self.encode is None else self.encode(x)
        outputs, roots = over("Network", self.layer, batch, features, state, inputs)
        if self.reads == "encoder":
            outputs = torch.cat(leaves(roots), -1)
        elif self.reads == "acceptor":
            outputs = outputs[torch.from_numpy(batch.roots).to(outputs.device)]
        return outputs if self.decode is None else self.decode(outputs), roots

    def ending(self, outputs: Tensor | None, last: Any, lengths: Lengths) -> Tensor:
        """The layer's, decoded."""
        if self.decode is None:
            return super().ending(outputs, last, lengths)
        return self.decode(super().ending(None, last, lengths))

    def extra_repr(self) -> str:
        return f"reads={self.reads!r}"


class Context(Around):
    r"""A layer that is told one fixed vector for each sequence (Goodfellow, Bengio & Courville, section 10.2.4).

    Into the steps: :math:`h^{(t)} = f(W x^{(t)} + R c + U h^{(t-1)})`, a bias that changes with c. Into the state:
    :math:`h^{(0)} = \tanh(V c)`. Or both.

    Args:
        layer: an `Unfold`, `Stack`, `Bidirectional` or other composition, of any cells. Where c enters the steps, it
            reads `size` features more than x has.
        size: features of the context.
        into: "both" (default), "steps" or "state".

    Shapes:
        x: as the layer's, without the last `size` features where c enters the steps; it may have none then. The rest
        is the layer's. R is the last `size` columns of the input weights W: their product leaves the loop with W x, and
        costs 2 · size flops a row of weights and step more. V is `to_state`, one row for each feature of the state; but
        what is a cell's alone to write, such as a clock (`Cell.private`), begins at 0.

    Raises:
        ArgumentError: an unknown `into`, a layer that reads less than the context, or a context of another shape.

    Example:
        >>> import torch, ritornello as rit
        >>> caption = rit.nn.Context(rit.nn.Stack.of(rit.LSTM, 3 + 5, 4, layers=2), 5)
        >>> outputs, state = caption(torch.randn(7, 2, 3), context=torch.randn(2, 5), lengths=[7, 4])
        >>> outputs.shape
        torch.Size([7, 2, 4])
    """

    def __init__(self, layer: Any, size: int, into: str = "both") -> None:
        if into not in INTO:
            raise ArgumentError(f"Unknown into {into!r}: {nearest(into, INTO)}.")
        super().__init__(checked_layer("Context", layer))
        if not isinstance(size, int) or size < 1:
            raise ArgumentError(f"Context: size must be a positive integer, not {size!r}.")
        if into != "state" and layer.input_size < size:
            raise ArgumentError(
                f"Context: the layer reads {layer.input_size} features, fewer than the {size} of the context; "
                "it reads those of x and of the context, side by side."
            )
        self.size, self.into = size, into
        self.to_state = None if into == "steps" else nn.Linear(size, sum(leaves(open_sizes(layer))))

    @property
    def input_size(self) -> int:
        """Features of x."""
        return self.layer.input_size - (self.size if self.into != "state" else 0)

    def forward(
        self, x: Tensor, state: Any = None, *, context: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, Any]:
        """As the layer's forward.

        Args:
            x, options: as the layer's.
            state: what sequences enter with, as where they go on; then the context does not set it.
            context: (batch, size), or (size,) beside one sequence. A step with a reset enters with the layer's own
                initial state, not with the context's; into the steps the context goes on entering.
        """
        batched = x.dim() == 3
        sequences = (x.shape[0 if self.batch_first else 1],) if batched else ()
        context = self._checked(context, (*sequences, self.size))
        if self.into != "state":
            steps = context.unsqueeze(1 if self.batch_first else 0) if batched else context
            x = torch.cat([x, steps.expand(*x.shape[:-1], -1).to(x.dtype)], -1)
        return self.layer(x, self._state(context) if state is None else state, **options)

    def over(
        self,
        trees: AnyTrees,
        x: Tensor,
        state: Any = None,
        *,
        context: Tensor | None = None,
        inputs: str = "nodes",
    ) -> tuple[Tensor, Any]:
        """As the layer's, over trees: each has a context, (trees, size), that enters at all of its nodes."""
        batch = batch_of(trees)
        context = self._checked(context, (len(batch), self.size))
        if self.into != "state":
            door.check_nodes(x, len(batch.given(inputs)), self.input_size, inputs)
            nodes = context[torch.from_numpy(batch.tree_of).to(context.device)]
            x, inputs = torch.cat([on_nodes(batch, x, inputs), nodes.to(x.dtype)], -1), "nodes"
        return over("Context", self.layer, batch, x, self._state(context) if state is None else state, inputs)

    def _checked(self, context: Any, expected: tuple[int, ...]) -> Tensor:
        """The context; raises ArgumentError where it is none of that shape."""
        if not isinstance(context, Tensor) or tuple(context.shape) != expected:
            came = tuple(context.shape) if isinstance(context, Tensor) else type(context).__name__
            raise ArgumentError(f"Context: context must be a tensor of shape {expected}, not {came}.")
        return context

    def _state(self, context: Tensor) -> Any:
        """What the context makes of the state; what the cell alone writes is 0. None where it makes nothing of it."""
        if self.to_state is None:
            return None
        kind = self.to_state.weight.dtype
        first = torch.tanh(self.to_state(context.to(kind))).to(kind)  # whatever autocast makes of it
        sizes = state_sizes(self.layer)
        fields = zip(first.split(leaves(open_sizes(self.layer)), -1), leaves(sizes), strict=True)
        return refill(
            sizes, [field if field.shape[-1] else field.new_zeros(*field.shape[:-1], n) for field, n in fields]
        )

    def extra_repr(self) -> str:
        return f"{self.size}, into={self.into!r}"


def _check_ending(layer: nn.Module) -> None:
    """Raises ArgumentError where the last output is a sum of what several steps gave."""

    def mixes(part: nn.Module) -> bool:
        return getattr(part, "merge", "") == "sum" or getattr(part, "decode", None) is not None

    for outer in layer.modules():
        for inner in outer.modules():
            if (isinstance(outer, Residual) and mixes(inner)) or (mixes(outer) and isinstance(inner, Residual)):
                other = "merge='sum'" if Bidirectional in (type(outer), type(inner)) else "decode"
                raise ArgumentError(
                    f"Network: reads='acceptor' and a Residual with {other} clash: what is added at the last step of "
                    "one direction is not known apart; use merge='concatenate', or reads='transducer'."
                )


def _features(module: Any, place: int) -> int | None:
    """Features that a module reads (place 0) or gives (-1), where it tells them."""
    names = (("in_features", "input_size"), ("out_features", "output_size", "embedding_dim"))[place]
    if isinstance(module, nn.Sequential):
        telling = [part for part in module if not isinstance(part, KEEPING)]
        return _features(telling[place], place) if telling else None
    found = (getattr(module, name, None) for name in names)
    return next((value for value in found if isinstance(value, int)), None)
