"""Outputs fed back as inputs: teacher forcing, free running, and what lies between them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ritornello.engine import Randomized, Truncated, Unfold, door
from ritornello.errors import ArgumentError, tell
from ritornello.nn.protocol import Lengths, check_outputs, checked_layer, walks_back, without_padding


class Fed(NamedTuple):
    """What `Feedback` gives.

    Attributes:
        outputs: (time, batch, output features), such as logits; 0 beyond a sequence's end.
        chosen: (time, batch) the symbol chosen at each step, and the end symbol (or the start) beyond a sequence's end;
            None where nothing is chosen: under teacher forcing, and with real values.
        lengths: (batch,) steps of each sequence, the end symbol's included.
        state: the layer's last.
    """

    outputs: Tensor
    chosen: Tensor | None
    lengths: Tensor
    state: Any


class Feedback(nn.Module):
    r"""A layer that reads, beside x, what came out of it at the step before.

    .. math:: h^{(t)} = f(h^{(t-1)}, [x^{(t)}; e(y^{(t-1)})]) \qquad o^{(t)} = \mathrm{output}(h^{(t)})

    Over symbols, log p(y | x) = Σ_t log p(y_t | x, y_1 … y_{t-1}): no output is independent of the others. What y is
    fed, `feed` says at every call:

    - "teacher": the truth (Williams & Zipser 1989). One unfolding, on any executor, and one output layer for all rows.
    - "free": what the model itself chose.
    - a probability p: at each step and sequence the truth with probability p, else what the model chose: scheduled
      sampling (Bengio et al. 2015). p falls over training, such as by p = k / (k + exp(step / k)).

    **The last two choose between steps, which no program has a word for: they go step by step in a Python loop** (each
    step on the layer's executor), and say so once. A regulariser that draws once a call draws once a step there, and
    gradients go back through all steps. Real values in free running are one unfolding all the same by `SelfFed`.

    Args:
        layer: an `Unfold` or a composition that walks forwards; it reads x and the fed vector, side by side.
        output: from the layer's outputs to what comes out: logits of the symbols, or real values.
        embed: e, from symbols to vectors, such as `nn.Embedding`. Default None: real values, fed back as they are.
        start: the symbol before the first, y^(0) (default 0); with real values the number that all its features are.
        end: a symbol after which a sequence is over in free running: later steps are not walked and do not count.

    Raises:
        ArgumentError: a layer that walks backwards, options that clash, or what is given does not fit.

    Example:
        >>> import torch, ritornello as rit
        >>> decoder = rit.nn.Feedback(
        ...     rit.Unfold(rit.GRU(3 + 8, 16)), torch.nn.Linear(16, 10), embed=torch.nn.Embedding(10, 8)
        ... )
        >>> x, truth = torch.randn(5, 2, 3), torch.randint(10, (5, 2))
        >>> decoder(x, truth).outputs.shape
        torch.Size([5, 2, 10])
        >>> decoder(x, feed="free").chosen.shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        layer: nn.Module,
        output: nn.Module,
        *,
        embed: nn.Module | None = None,
        start: float = 0,
        end: int | None = None,
    ) -> None:
        if walks_back(checked_layer("Feedback", layer)):
            raise ArgumentError(
                "Feedback: the layer walks backwards somewhere; what is fed back lies in the past alone."
            )
        if end is not None and embed is None:
            raise ArgumentError("Feedback: end and embed=None clash: only symbols end a sequence.")
        count = getattr(embed, "num_embeddings", None)
        for name, symbol in (("start", start), ("end", end)):
            if embed is not None and symbol is not None and not (isinstance(symbol, int) and symbol >= 0):
                raise ArgumentError(f"Feedback: {name} must be a symbol, an integer of 0 or more, not {symbol!r}.")
            if isinstance(count, int) and symbol is not None and symbol >= count:
                raise ArgumentError(f"Feedback: {name} is {symbol} and embed knows 0 to {count - 1}.")
        given = getattr(output, "out_features", None)
        if isinstance(count, int) and isinstance(given, int) and given > count:
            raise ArgumentError(
                f"Feedback: output gives {given} logits and embed knows {count} symbols; make them alike."
            )
        super().__init__()
        self.layer: Any = layer
        self.output, self.embed, self.start, self.end = output, embed, start, end

    def forward(
        self,
        x: Tensor | None = None,
        truth: Tensor | None = None,
        state: Any = None,
        *,
        feed: str | float = "teacher",
        steps: int | None = None,
        before: Tensor | None = None,
        temperature: float = 0.0,
        lengths: Lengths = None,
        **options: Any,
    ) -> Fed:
        """Walks the sequences.

        Args:
            x: (time, batch, features), or as `batch_first` says. None: the fed vector is all there is to read.
            truth: (time, batch) symbols, or (time, batch, output features) real values: y^(1) to y^(time). With
                feed="free" it is not read.
            state: as the layer's.
            feed: "teacher" (default), "free", or the probability of the truth, 0 to 1.
            steps: how many, where there is neither x nor truth.
            before: (batch,) symbols, or (batch, output features): y^(0), as where sequences go on. Default: `start`;
                needed where neither x nor truth tells how many sequences there are.
            temperature: what is chosen among symbols: 0 (default) the likeliest; else one drawn from
                softmax(logits / temperature).
            lengths: (batch,) steps of each sequence; the truth beyond is not read.
            options: the layer's, such as `context`.
        """
        self._check(feed, truth, temperature, options)
        given = self._settled(x, truth, before, steps, lengths)
        if feed != "teacher" and given.steps:
            return self._walk(given, state, feed, temperature, options)
        first = given.before.unsqueeze(self._time)
        known = first if given.truth is None else torch.cat([first, given.truth], self._time)
        read = self._read(x, known.narrow(self._time, 0, given.steps))
        outputs, last = self.layer(read, state, lengths=lengths, **options)
        chosen = None if feed == "teacher" or self.embed is None else known.narrow(self._time, 0, 0)
        return Fed(without_padding(self.output(outputs), lengths, self.batch_first), chosen, given.lengths, last)

    @property
    def _time(self) -> int:
        return 1 if self.batch_first else 0

    @property
    def batch_first(self) -> bool:
        """Whether x, the truth and the outputs are (batch, time, ...)."""
        return self.layer.batch_first

    def _read(self, x: Tensor | None, fed: Tensor) -> Tensor:
        """What the layer reads: x and the vectors of what is fed, side by side."""
        vectors = fed if self.embed is None else self.embed(fed)
        return vectors if x is None else torch.cat([x, vectors], -1)

    def _walk(self, given: _Given, state: Any, feed: str | float, temperature: float, options: dict[str, Any]) -> Fed:
        """Step by step."""
        if not torch.compiler.is_compiling():
            tell(
                "Feedback: without teacher forcing, what a step is fed is chosen after the step before it; "
                "it goes step by step, in a Python loop."
            )
        time, before = self._time, given.before
        free, symbols = feed == "free", self.embed is not None
        forced = torch.rand(given.steps, len(before), device=before.device) < (0.0 if isinstance(feed, str) else feed)
        running, counts = given.lengths > 0, torch.zeros_like(given.lengths)
        outputs: list[Tensor] = []
        chosen: list[Tensor] = []
        for t, force in enumerate(forced):
            here = running & (t < given.lengths)
            read = self._read(None if given.x is None else given.x.narrow(time, t, 1), before.unsqueeze(time))
            found, state = self.layer(read, state, lengths=here.long(), **options)  # who has ended, stays as it is
            outputs.append(self.output(found.select(time, 0)).masked_fill(~here[:, None], 0))
            counts = counts + here
            before = outputs[-1]
            if symbols:
                before = _choose(before, temperature).masked_fill(~here, self.start if self.end is None else self.end)
                chosen.append(before)
            if free and self.end is not None:
                running = running & (before != self.end)
                if not running.any():
                    outputs += [torch.zeros_like(outputs[-1])] * (given.steps - t - 1)
                    chosen += [torch.full_like(before, self.end)] * (given.steps - t - 1)
                    break
            if given.truth is not None and not free:
                before = torch.where(force if symbols else force[:, None], given.truth.select(time, t), before)
        return Fed(torch.stack(outputs, time), torch.stack(chosen, time) if symbols else None, counts, state)

    def _check(self, feed: Any, truth: Tensor | None, temperature: float, options: dict[str, Any]) -> None:
        check_outputs("Feedback", options)
        number = isinstance(feed, (int, float)) and not isinstance(feed, bool) and 0 <= feed <= 1
        if not number and feed not in ("teacher", "free"):
            raise ArgumentError(f"feed must be 'teacher', 'free' or a probability of the truth, 0 to 1, not {feed!r}.")
        if feed != "free" and truth is None:
            raise ArgumentError(f"feed={feed!r} and truth=None clash: give the truth, or feed='free'.")
        if not 0 <= temperature < float("inf"):
            raise ArgumentError(f"temperature must be 0 or greater, not {temperature}.")
        if temperature and self.embed is None:
            raise ArgumentError("temperature and embed=None clash: real values are not drawn.")
        if temperature and feed == "teacher":
            raise ArgumentError("temperature and feed='teacher' clash: the truth is fed, and nothing is drawn.")
        if feed != "teacher" and torch.is_grad_enabled():
            self._check_adjoint(feed)
        if "resets" in options:
            raise ArgumentError("resets and Feedback clash: what is fed would cross them; give sequences apart.")

    def _check_adjoint(self, feed: Any) -> None:
        """Raises ArgumentError for an adjoint that counts steps of one call, where each step is a call."""
        for part in self.layer.modules():
            if isinstance(part, Unfold) and isinstance(part.adjoint, (Truncated, Randomized)):
                raise ArgumentError(
                    f"adjoint={str(part.adjoint)!r} and feed={feed!r} clash: gradients go back through every step that "
                    "is walked by itself; use adjoint='full', or torch.no_grad()."
                )

    def _settled(
        self, x: Tensor | None, truth: Tensor | None, before: Tensor | None, steps: int | None, lengths: Lengths
    ) -> _Given:
        """Checks that what is given fits together."""
        width = 0 if x is None else x.shape[-1]
        tail = () if self.embed is not None else (self.layer.input_size - width,)
        axes = ("batch", "time") if self.batch_first else ("time", "batch")
        sizes = None
        for name, value, more in (("x", x, (width,)), ("truth", truth, tail)):
            if value is None:
                continue
            if value.dim() != 2 + len(more) or tuple(value.shape[2:]) != more:
                expected = ", ".join(map(str, (*axes, *more)))
                raise ArgumentError(f"Feedback: {name} has shape {tuple(value.shape)}; expected ({expected}).")
            if sizes is not None and value.shape[:2] != sizes:
                told = f"{tuple(value.shape[:2])} ({', '.join(axes)})"
                raise ArgumentError(f"Feedback: x has {tuple(sizes)} and truth {told}; make them alike.")
            sizes = value.shape[:2]
        for name, value in (("truth", truth), ("before", before)):
            if self.embed is not None and value is not None and value.is_floating_point():
                raise ArgumentError(f"Feedback: {name} must be symbols, integers, not {value.dtype}.")
        if steps is not None and (not isinstance(steps, int) or steps < 0):
            raise ArgumentError(f"Feedback: steps must be an integer of 0 or more, not {steps!r}.")
        if sizes is None and (steps is None or before is None):
            raise ArgumentError(
                "Feedback: without x and truth, give steps=, how many, and before=, what precedes each sequence."
            )
        if sizes is not None and steps not in (None, sizes[self._time]):
            raise ArgumentError(f"Feedback: steps is {steps}, and x or truth has {sizes[self._time]}.")
        count = len(before) if sizes is None else sizes[1 - self._time]  # type: ignore[arg-type]
        if before is None:
            like = next(self.parameters())
            kind = like.dtype if tail else torch.long
            before = torch.full((count, *tail), self.start, dtype=kind, device=like.device)
        elif tuple(before.shape) != (count, *tail):
            raise ArgumentError(f"Feedback: before has shape {tuple(before.shape)}; expected {(count, *tail)}.")
        if truth is not None:
            truth = without_padding(truth, lengths, self.batch_first, axes=2, fill=self.start)
        time: int = steps if sizes is None else sizes[self._time]  # type: ignore[assignment]
        if not torch.compiler.is_compiling():  # a graph's lengths are checked when it runs
            lengths = door.settle_lengths(lengths, door.Layout(time, count, self.batch_first, True))
        counts = torch.as_tensor(time if lengths is None else lengths, device=before.device).expand(count)
        return _Given(x, truth, before, time, counts)


class _Given(NamedTuple):
    """What a call is given, once it fits together.

    Attributes:
        x, truth: as given; the truth's padding is the start symbol.
        before: y^(0), (batch,) or (batch, output features).
        steps: how many.
        lengths: (batch,) steps of each sequence.
    """

    x: Tensor | None
    truth: Tensor | None
    before: Tensor
    steps: int
    lengths: Tensor


def _choose(logits: Tensor, temperature: float) -> Tensor:
    if not temperature:
        return logits.argmax(-1)
    with torch.no_grad():
        return torch.multinomial((logits.float() / temperature).softmax(-1), 1).squeeze(-1)
