"""Cells drawn at random: straight-line torch programs over all that the tracer knows, and batches to run them on.

One generator serves Hypothesis, which shrinks what it draws, and `benchmarks/fuzz.py`, which goes by seeds. A cell is
lines of Python: printed, it can be read, and pasted. Values carry a bound on their size, so that none grows without
end, and whatever has a pole is kept away from it.
"""

from __future__ import annotations

import hashlib
import linecache
import math
import random
import re
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from comparison import TOLERANCES, assert_close, flat, weighted
from hypothesis import strategies as st
from torch import Tensor, nn

import ritornello as rit
from ritornello.program import philox

F64 = torch.float64
SIZES = (1, 2, 5, 7, 16, 17, 33)
FIELDS = ("h", "c", "m")
LARGE = 6.0  # a bound beyond which a value goes through tanh


class Recipe(NamedTuple):
    """A cell as text.

    Attributes:
        inputs, sizes: of x and of the state's fields.
        parameters: name and shape of each; a Linear's shape is (out, in, whether it has a bias), in a list.
        lines: the equations.
        results: the names of the new state's fields.
    """

    inputs: int
    sizes: tuple[int, ...]
    parameters: tuple[tuple[str, Any], ...]
    lines: tuple[str, ...]
    results: tuple[str, ...]

    @property
    def source(self) -> str:
        body = [*self.lines, f"return self.State({', '.join(self.results)})"]
        return "def forward(self, x, s):\n" + "".join(f"    {line}\n" for line in body)

    @property
    def torch_multiplies(self) -> bool:
        """Whether parameters are multiplied with each other: torch does that, its bits hang on its threads."""
        return re.search(r"self\.p\d+ @ \(?self\.p\d+", self.source) is not None

    def __repr__(self) -> str:
        made = [
            f"    # {name}: {'Linear' if isinstance(s, list) else 'Parameter'}{tuple(s)}" for name, s in self.parameters
        ]
        return "\n".join([f"# x {self.inputs}, state {self.sizes}", *made, self.source])


class RandomCell(rit.Cell):
    """The cell of a recipe; its parameters, drawn from a seed, are of about the size that training would start with."""

    State: ClassVar[Any] = None  # of each one its own

    def __init__(self, recipe: Recipe, seed: int = 0) -> None:
        super().__init__(recipe.inputs, recipe.sizes[0])
        self.recipe = recipe
        self.State = namedtuple("State", FIELDS[: len(recipe.sizes)])
        for name, shape in recipe.parameters:
            made = (
                nn.Linear(shape[1], shape[0], bias=shape[2])
                if isinstance(shape, list)
                else nn.Parameter(torch.empty(shape))
            )
            setattr(self, name, made)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            bound = 1 / math.sqrt(parameter.shape[-1]) if parameter.dim() > 1 else 0.9
            drawn = torch.rand(parameter.shape, generator=generator, dtype=F64) * 2 - 1
            parameter.data = (drawn * bound).float().double()  # exact in float32 too
        scope: dict[str, Any] = {"torch": torch, "F": F, "total": rit.total}
        name = f"<random cell {hash(recipe.source):x}>"
        linecache.cache[name] = (len(recipe.source), None, recipe.source.splitlines(True), name)
        exec(compile(recipe.source, name, "exec"), scope)
        self._equations = scope["forward"]

    @property
    def state_sizes(self) -> tuple[int, ...]:
        return self.recipe.sizes

    def forward(self, x: Tensor, s: Any) -> Any:
        if _philox:
            _philox[-1].next_call(len(x))
        return self._equations(self, x, s)


# Drawing.


class Draft:
    """A recipe in the making.

    Attributes:
        known: name, size and bound of every value so far.
    """

    def __init__(self, source: random.Random, inputs: int, sizes: tuple[int, ...], chance: bool) -> None:
        self.random, self.inputs, self.sizes, self.chance = source, inputs, sizes, chance
        self.known: list[tuple[str, int, float]] = [("x", inputs, 3.0)]
        self.known += [(f"s.{name}", size, 2.0) for name, size in zip(FIELDS, sizes, strict=False)]
        self.parameters: list[tuple[str, Any]] = []
        self.lines: list[str] = []

    def one_of(self, items: Any) -> Any:
        return items[self.random.randint(0, len(items) - 1)]

    def maybe(self) -> bool:
        return self.random.randint(0, 1) == 1

    def number(self) -> str:
        return self.one_of(("0.5", "-0.3", "1.7", "0.25", "2", "-1", "0.1234"))

    def parameter(self, *shape: int) -> str:
        return self._parameter(shape)

    def linear(self, out: int, size: int) -> str:
        return self._parameter([out, size, self.maybe()])

    def _parameter(self, shape: Any) -> str:
        name = f"p{len(self.parameters)}"
        self.parameters.append((name, shape))
        return f"self.{name}"

    def pick(self) -> tuple[str, int, float]:
        """Any value, rather a recent one."""
        recent = self.known[-4:] if self.maybe() else self.known
        return self.one_of(recent)

    def beside(self, size: int) -> tuple[str, float]:
        """Something that broadcasts against values of that size: a value, a parameter or a number."""
        fitting = [(name, bound) for name, length, bound in self.known if length in (1, size)]
        kind = self.random.randint(0, 7)
        if fitting and kind < 4:
            return self.one_of(fitting)
        if kind == 4:
            return self.number(), 2.0
        if kind == 5:
            return self.parameter(*self.one_of(((), (1,), (size,), (1, size)))), 1.0
        name, length, bound = self.pick()
        return self.add(f"{self.linear(size, length)}({name})", size, bound * math.sqrt(length))[0], LARGE

    def of(self, size: int) -> tuple[str, float]:
        """A value of exactly that size."""
        fitting = [(name, bound) for name, length, bound in self.known if length == size]
        if fitting and self.maybe():
            return self.one_of(fitting)
        name, length, bound = self.pick()
        made = self.add(f"{self.linear(size, length)}({name})", size, bound * math.sqrt(length))
        return made[0], made[2]

    def of_the_unread(self, size: int) -> tuple[str, float]:
        """A sum of products of values that no line reads yet."""
        text = "\n".join(self.lines)
        unread = [value for value in self.known if not re.search(rf"\b{re.escape(value[0])}\b(?! =)", text)][-4:]
        if not unread:
            return self.of(size)
        terms = [f"{self.linear(size, length)}({name})" for name, length, _ in unread]
        made = self.add(" + ".join(terms), size, sum(bound * math.sqrt(length) for _, length, bound in unread))
        return made[0], made[2]

    def add(self, text: str, size: int, bound: float) -> tuple[str, int, float]:
        """One more line."""
        name = f"v{len(self.lines)}"
        if bound > LARGE:
            text, bound = f"torch.tanh({text})", 1.0
        self.lines.append(f"{name} = {text}")
        self.known.append((name, size, bound))
        return self.known[-1]

    def several(self, text: str, sizes: list[int], bound: float) -> None:
        """A line that makes several values."""
        names = [f"v{len(self.lines)}_{k}" for k in range(len(sizes))]
        self.lines.append(f"{', '.join(names)}, = {text}")
        self.known += [(name, size, bound) for name, size in zip(names, sizes, strict=True)]

    def recipe(self, results: list[str]) -> Recipe:
        return Recipe(self.inputs, self.sizes, tuple(self.parameters), tuple(self.lines), tuple(results))


Word = Callable[[Draft], Any]
WORDS: dict[str, list[Word]] = {}


def word(kind: str) -> Callable[[Word], Word]:
    def register(make: Word) -> Word:
        WORDS.setdefault(kind, []).append(make)
        return make

    return register


ONE = """-{a}; torch.abs({a}); torch.sigmoid({a}); torch.tanh({a}); torch.relu({a}); F.silu({a}); F.mish({a});
F.gelu({a}); F.gelu({a}, approximate='tanh'); F.softplus({a}); F.softplus({a}, 2, 1.5); F.logsigmoid({a});
F.elu({a}, 0.7); F.celu({a}, 2.0); F.selu({a}); F.leaky_relu({a}, 0.1); F.hardtanh({a}, -0.7, 0.6); F.relu6({a} + 3);
F.hardswish({a}); F.threshold({a}, 0.31, -0.2); torch.sin({a}); torch.cos({a}); torch.erf({a}); torch.sign({a} - 0.17);
torch.sgn({a} + 0.29); torch.expm1(torch.tanh({a})); torch.exp(torch.tanh({a})); torch.log({a}.abs() + 0.5);
torch.log1p({a}.abs()); torch.sqrt({a}.abs() + 0.5); torch.rsqrt({a}.abs() + 0.5); torch.reciprocal({a}.abs() + 0.5);
torch.square(torch.tanh({a})); torch.tanh({a}) ** 3; ({a}.abs() + 0.5) ** 0.7; ({a}.abs() + 0.5) ** -1.5;
({a}.abs() + 0.5) ** -2; ({a}.abs() + 0.5) ** 0.5; 1.0 * {a} ** 1; F.softsign({a}); F.tanhshrink({a});
{a}.clamp(-0.5, 0.8); {a}.clamp(min=-0.4); {a}.clamp(max=0.9); torch.clamp_min({a}, 0.05); 1 - {a}; {a} - 0.6;
2 / ({a}.abs() + 0.5); {a} / 3; torch.ones_like({a}) - {a}; torch.zeros_like({a}).copy_({a}); {a}.clone().mul_(0.5);
torch.full_like({a}, 0.3) * {a}; {a}.new_ones({a}.shape) + {a}; {a}.new_full({a}.shape, 0.2) - {a}; total({a});
torch.empty_like({a}).fill_(0.7) * {a}; torch.tanh_({a}.clone()); torch.scalar_tensor(0.5, dtype={a}.dtype) * {a};
torch.tensor(0.75) * {a}; {a}.reshape({a}.shape).contiguous(); {a} * ({a} > 0.11); ({a} <= 0.07).to({a}.dtype);
torch.where({a} > 0.21, {a}, -0.5); {a}.masked_fill({a} >= 0.4, 0.25); ~({a} < 0.13) * {a};
torch.where(({a} > -0.9) & ({a} < 0.8), {a}, {a} * 0.5); torch.where(({a} != 0) | ({a} == 0.2), {a}, 0.0);
torch.logical_not({a} > 0.37) * {a}; {a}.flip(-1); {a}.roll(2, -1);
torch.tanh({a}.cumsum(-1))""".replace("\n", " ").split("; ")


@word("one")
def _one(d: Draft) -> None:
    name, size, bound = d.pick()
    d.add(d.one_of(ONE).format(a=name), size, bound + 2)


TWO = """{a} + {b}; {a} - {b}; {a} * {b}; {b} * {a}; {a} / ({b2}.abs() + 0.5); torch.minimum({a}, {v});
torch.maximum({a}, {v}); torch.where({a} > {b}, {a}, {v}); torch.where({a} + 0.123 <= {v}, {b}, {a});
torch.lerp({a}, {v}, 0.3); torch.lerp({a}, {v}, torch.sigmoid({v})); torch.addcmul({a}, {v}, {v2}, value=0.4);
torch.addcdiv({a}, {v}, {v2}.abs() + 0.5, value=-0.7); torch.add({a}, {v}, alpha=0.6); torch.sub({a}, {v}, alpha=1.5);
torch.rsub({a}, {v}, alpha=0.7); {a}.clone().add_({v}); torch.logical_and({a} > 0.1, {v} < 0.4) * {a};
torch.logical_or({a} >= 0.3, {v} <= 0.2) * {v}; {a}.masked_fill({v} > 0.35, -0.15); torch.clamp({a}, min={v});
torch.sigmoid({a}) * {v} + (1 - torch.sigmoid({a})) * {v2}; {a} + torch.tanh({a}) * {b}; {b} - {a}""".replace(
    "\n", " "
).split("; ")


@word("two")
def _two(d: Draft) -> None:
    name, size, bound = d.pick()
    text = d.one_of(TWO)
    beside, its = d.beside(size) if "{b}" in text else ("", 1.0)
    vectors = [d.of(size) if f"{{{key}}}" in text else ("", 1.0) for key in ("b2", "v", "v2")]
    bounds = [its, *(each for _, each in vectors)]
    whole = (bound + 1) * (max(bounds) + 1) * 2
    b2, v, v2 = (each for each, _ in vectors)
    d.add(text.format(a=name, b=beside, b2=b2, v=v, v2=v2), size, whole)


@word("product")
def _linear(d: Draft) -> None:
    name, length, bound = d.pick()
    size = d.one_of(SIZES)
    grown = bound * math.sqrt(length)
    kind = d.random.randint(0, 6)
    if kind == 0:
        d.add(f"F.linear({name}, {d.parameter(size, length)}, {d.parameter(size)})", size, grown + 1)
    elif kind == 1:
        d.add(f"{name} @ {d.parameter(length, size)}", size, bound * length)
    elif kind == 2:  # a window of a larger matrix, whose other part is read as well
        whole = d.parameter(size + 3, length)
        d.add(f"F.linear({name}, {whole}[3:])", size, grown)
        d.add(f"F.linear({name}, {whole}[:3])", 3, grown)
    elif kind == 3:
        d.add(
            f"torch.addmm({d.parameter(size)}, {name}, {d.parameter(length, size)}, beta=0.5, alpha=0.8)",
            size,
            bound * length,
        )
    elif kind == 4:  # of low rank
        d.add(f"{name} @ ({d.parameter(length, 2)} @ {d.parameter(2, size)})", size, bound * length)
    elif kind == 5:  # transposed and cut across
        d.add(f"{name} @ {d.parameter(size + 2, length)}.t()[:, 1:{size + 1}]", size, grown)
    else:
        first, second = d.parameter(2 * size, length), d.linear(size, size)
        d.add(f"{second}(torch.tanh(F.linear({name}, {first}.chunk(2)[1])))", size, math.sqrt(size))


@word("gates")
def _gates(d: Draft) -> None:
    """As most cells begin: products of the input and of a state, summed, and taken apart."""
    size, parts = d.one_of(SIZES), d.random.randint(2, 4)
    (a, la, ba), (b, lb, bb) = d.pick(), d.pick()
    text = f"({d.linear(parts * size, la)}({a}) + {d.linear(parts * size, lb)}({b})).chunk({parts}, -1)"
    d.several(text, [size] * parts, (ba + bb) * math.sqrt(max(la, lb)))


@word("gates")
def _gates_apart(d: Draft) -> None:
    """As others write it: a product for each gate, windows of one matrix, each with its own bias."""
    size, (a, la, ba), (b, lb, bb) = d.one_of(SIZES), d.pick(), d.pick()
    whole, other, bias = d.parameter(3 * size, la), d.parameter(3 * size, lb), d.parameter(3 * size)
    bound = (ba + bb) * math.sqrt(max(la, lb)) + 1
    for k in range(d.random.randint(2, 3)):
        at = f"[{k * size}:{(k + 1) * size}]"
        d.add(f"F.linear({a}, {whole}{at}, {bias}{at}) + F.linear({b}, {other}{at})", size, bound)


@word("product")
def _concatenated(d: Draft) -> None:
    (a, la, ba), (b, lb, bb) = d.pick(), d.pick()
    size = d.one_of(SIZES)
    d.add(f"{d.linear(size, la + lb)}(torch.cat([{a}, {b}], -1))", size, max(ba, bb) * math.sqrt(la + lb))


@word("product")
def _padded(d: Draft) -> None:
    """Beside values zeros and ones, the way to a bias of those who write it as one more column."""
    (a, la, ba), (b, lb, _) = d.pick(), d.pick()
    size, spare = d.one_of(SIZES), d.random.randint(0, 1)
    one = f"torch.ones_like({a}[..., :1])" if spare else f"{a}.new_full(({b}.shape[0], 2), 0.5)"
    text = f"torch.cat([{a}, torch.zeros_like({b}), {one}], -1)"
    d.add(f"{d.linear(size, la + lb + 2 - spare)}({text})", size, ba * math.sqrt(la) + 1)


@word("product")
def _residual(d: Draft) -> None:
    name, size, _ = d.pick()
    made, _, _ = d.add(f"torch.tanh({name})", size, 1.0)
    d.add(f"{made} + {d.linear(size, size)}({made})", size, 1 + math.sqrt(size))


@word("pairs")
def _bilinear(d: Draft) -> None:
    (a, la, ba), (b, lb, bb) = d.pick(), d.pick()
    if la * lb > 120:
        return
    size = d.one_of(SIZES[:4])
    kind = d.random.randint(0, 3)
    if kind == 0:
        text = f"F.bilinear({a}, {b}, {d.parameter(size, la, lb)}, {d.parameter(size)})"
        d.add(text, size, ba * bb * la * math.sqrt(lb))
    elif kind == 1:
        d.add(f"({a}.unsqueeze(2) * {b}.unsqueeze(1)).flatten(1)", la * lb, ba * bb)
    elif kind == 2 and la * lb > 1:
        outer, _, bound = d.add(f"torch.bmm({a}.unsqueeze(2), {b}.unsqueeze(1)).flatten(1)", la * lb, ba * bb)
        d.add(f"torch.bmm({outer}.view(-1, {la}, {lb}), {b}.unsqueeze(2)).squeeze(2)", la, bound * bb * lb)
        d.add(f"torch.bmm({a}.unsqueeze(1), {outer}.view(-1, {la}, {lb})).squeeze(1)", lb, bound * ba * la)
    else:
        v, bound = d.of(la)
        d.add(f"({a}.unsqueeze(1) @ {v}.unsqueeze(2)).squeeze(1)", 1, ba * bound * la)


@word("layout")
def _cut(d: Draft) -> None:
    name, size, bound = d.pick()
    if size < 2:
        return
    at = d.random.randint(1, size - 1)
    kind = d.random.randint(0, 7)
    if kind == 0:
        d.several(
            f"{name}.split({at}, -1)", [min(at, size - k) for k in range(0, size, at)], bound
        ) if size // at < 6 else None
    elif kind == 1:
        d.several(f"{name}.split([{at}, {size - at}], -1)", [at, size - at], bound)
    elif kind == 2:
        d.add(f"{name}[..., {at}:]", size - at, bound)
    elif kind == 3:
        d.add(f"{name}.narrow(-1, {at - 1}, {size - at})", size - at, bound)
    elif kind == 4:
        d.add(f"{name}[:, {at}].unsqueeze(-1)", 1, bound)
    elif kind == 5 and size <= 7:
        d.add(f"torch.stack({name}.unbind(-1)[::-1], 1)", size, bound)
    elif kind == 6:
        whole, kept, changed = (f"v{len(d.lines) + k}" for k in range(3))
        d.lines += [f"{whole} = {name}.clone()", f"{kept} = {whole}[..., :{at}]", f"{changed} = {whole}[..., {at}:]"]
        d.lines.append(f"{changed}.mul_(0.5)")  # the other part stays what it was
        d.known += [(kept, at, bound), (changed, size - at, bound)]
    else:
        d.add(f"torch.cat([{name}[..., {at}:], {name}[..., :{at}]], -1)", size, bound)


@word("layout")
def _join(d: Draft) -> None:
    parts = [d.pick() for _ in range(d.random.randint(2, 3))]
    size = sum(length for _, length, _ in parts)
    if size > 70:
        return
    names, bound = [name for name, _, _ in parts], max(bound for _, _, bound in parts)
    alike = len({length for _, length, _ in parts}) == 1
    if alike and d.maybe():
        d.add(f"torch.stack([{', '.join(names)}], 1).flatten(1)", size, bound)
    else:
        d.add(f"torch.cat([{', '.join(names)}], -1)", size, bound)


@word("layout")
def _spread(d: Draft) -> None:
    name, size, bound = d.pick()
    if size == 1:
        wide = d.one_of(SIZES)
        d.add(f"{name}.expand(-1, {wide})", wide, bound)
    elif size % 2 == 0:
        d.add(f"({name}.view(-1, 2, {size // 2}) * {d.number()}).flatten(1)", size, 2 * bound)
        d.add(f"{name}.view(-1, 2, {size // 2}).sum(-1)", 2, bound * size)
        d.add(f"{name}.view(-1, 2, {size // 2}).transpose(1, 2).flatten(1)", size, bound)
        d.add(f"({name}.unflatten(-1, (2, {size // 2})) * {d.parameter(size // 2)}).reshape(-1, {size})", size, bound)


ROW = """{a}.sum(-1, keepdim=True):1; {a}.mean(-1, keepdim=True):1; {a}.amax(-1, keepdim=True):1; {a}.amin(-1, True):1;
torch.softmax({a}, -1):n; torch.log_softmax({a}, -1):n; torch.logsumexp({a}, -1, keepdim=True):1; F.softmin({a}, -1):n;
F.layer_norm({a}, ({n},)):n; F.layer_norm({a}, ({n},), {w}, {w}):n; F.rms_norm({a}, ({n},)):n;
F.rms_norm({a}, ({n},), {w}, 0.01):n; F.group_norm({a}, 1, {w}, {w}, 0.01):n; ({a} + 0.1).norm(dim=-1, keepdim=True):1;
{a}.var(-1, unbiased=False, keepdim=True):1; torch.sqrt(torch.var_mean({a}, -1, correction=0, keepdim=True)[0] + 0.1):1;
F.normalize({a} + 0.3, dim=-1, eps=0.01):n; {a}.abs().sum(-1, keepdim=True):1; {a}.norm(1, -1, True):1;
{a} * torch.softmax({a}, -1):n; {a} - {a}.mean(-1, True):n; {a}.view(-1, 1, {n}).mean(-1):1""".replace("\n", " ").split(
    "; "
)


@word("row")
def _row(d: Draft) -> None:
    name, size, bound = d.pick()
    text, _, result = d.one_of(ROW).rpartition(":")
    if size == 1 and "group" in text:
        return  # torch refuses to normalise one number
    while "{w}" in text:
        text = text.replace("{w}", d.parameter(size), 1)
    d.add(
        text.format(a=name, n=size),
        1 if result == "1" else size,
        bound * size if ".sum" in text else bound + math.sqrt(size),
    )


@word("row")
def _grouped(d: Draft) -> None:
    name, size, bound = d.pick()
    fitting = [k for k in (2, 4, 8) if size % k == 0 and size > k]
    if not fitting:
        return
    groups = d.one_of(fitting)
    kind = d.one_of(
        (
            "torch.softmax({a}.view(-1, {g}, {n}), -1).flatten(1)",
            "F.group_norm({a}, {g}, eps=0.01)",
            "F.layer_norm({a}.view(-1, {g}, {n}), ({n},), eps=0.01).flatten(1)",
        )
    )
    d.add(kind.format(a=name, g=groups, n=size // groups), size, bound + math.sqrt(size))


@word("row")
def _glu(d: Draft) -> None:
    name, size, bound = d.pick()
    if size % 2 == 0:
        d.add(f"F.glu({name}, -1)", size // 2, bound)


CHANCE = (
    "F.dropout({a}, 0.3, self.training)",
    "F.dropout({a}, 0.5)",
    "torch.rand_like({a}) * {a}",
    "torch.bernoulli(torch.sigmoid({a})) * {a}",
)


@word("chance")
def _chance(d: Draft) -> None:
    name, size, bound = d.pick()
    if d.chance:
        d.add(d.one_of(CHANCE).format(a=name), size, 2 * bound)


KINDS = ("two", "one", "product", "layout", "row", "gates", "two", "one", "product", "layout", "row", "pairs", "chance")


def draw_recipe(source: random.Random, *, chance: bool = False, totals: bool = False, lines: int = 14) -> Recipe:
    """A cell.

    Args:
        chance: whether it may draw at random.
        totals: whether each result is a `total`, as a cell over trees has it.
        lines: about how many at the most.
    """
    fields = source.randint(1, 3)
    sizes = tuple(SIZES[source.randint(0, 6)] for _ in range(fields))
    d = Draft(source, SIZES[source.randint(0, 6)], sizes, chance)
    for _ in range(source.randint(1, lines)):
        d.one_of(WORDS[d.one_of(KINDS)])(d)
    results = []
    for number, size in enumerate(sizes):
        results.append(_result(d, number, size, totals))
    return d.recipe(results)


def _result(d: Draft, number: int, size: int, totals: bool) -> str:
    """A field's next value: bounded, whatever the value before it was."""
    kind, before = d.random.randint(0, 9), f"s.{FIELDS[number]}"
    if kind == 0 and not totals:  # as it stands: a constant, x, another field, a value read elsewhere too
        fitting = [name for name, length, bound in d.known if length == size and bound <= 2]
        return d.one_of([*fitting, before])
    name, bound = d.of_the_unread(size) if kind % 2 else d.of(size)
    if bound > 2:
        name, _, _ = d.add(f"torch.tanh({name})", size, 1.0)
    if kind >= 5:
        gate, _ = d.of(size)
        name, _, _ = d.add(f"torch.sigmoid({gate}) * {before} + torch.sigmoid(-{gate}) * {name}", size, 2.0)
    return d.add(f"total({name})", size, 2.0)[0] if totals else name


# What draws at random, by the numbers that the machine draws.


class _Philox:
    def __init__(self, seed: int) -> None:
        self.seed, self.next_row, self.stream, self.rows = seed, 0, 0, torch.arange(0)

    def next_call(self, rows: int) -> None:
        self.rows = torch.arange(self.next_row, self.next_row + rows)
        self.next_row, self.stream = self.next_row + rows, 0

    def uniform(self, like: Tensor) -> Tensor:
        drawn = philox(self.seed, self.rows, self.stream, math.prod(like.shape[1:]))
        self.stream += 1
        return drawn.view(like.shape).to(like.dtype)


_philox: list[_Philox] = []


@contextmanager
def drawn_by_philox(seed: int) -> Iterator[None]:
    """Within it `torch` gives RandomCells the numbers that the machine gives them for that seed."""
    draws = _Philox(seed)

    def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
        return x * (draws.uniform(x) < 1 - p).to(x.dtype).div(1 - p) if training else x

    def bernoulli(chance: Tensor) -> Tensor:
        return (draws.uniform(chance) < chance).to(chance.dtype)

    _philox.append(draws)
    try:
        with (
            mock.patch.object(F, "dropout", dropout),
            mock.patch.object(torch, "rand_like", draws.uniform),
            mock.patch.object(torch, "bernoulli", bernoulli),
        ):
            yield
    finally:
        _philox.pop()


def next_seed() -> int:
    """The seed that the cpu executor will draw."""
    state = torch.get_rng_state()
    seed = int(torch.randint(2**62, ()))
    torch.set_rng_state(state)
    return seed


# Batches.


class Problem(NamedTuple):
    """A cell and all that one call of an unfolding is given.

    Attributes:
        marks: resets, step by step.
        state: "" for zeros, "given", or "learnt".
        read: what the loss reads: "both" the outputs and the last state, or one of them.
        frozen: which parameters need no gradient, by number; -1: x.
        adjoint: of the unfolding.
    """

    recipe: Recipe
    time: int
    batch: int
    lengths: tuple[int, ...] | None
    marks: tuple[tuple[bool, ...], ...] | None
    reverse: bool
    state: str
    all_states: bool
    read: str
    frozen: tuple[int, ...]
    seed: int
    adjoint: str = "full"

    @property
    def kind(self) -> str:
        """Of the schedule, in words."""
        words = {"reversed": self.reverse, "ragged": self.lengths is not None, "resets": self.marks is not None}
        return " ".join([name for name, holds in words.items() if holds] or ["dense"])


def draw_problem(source: random.Random, recipe: Recipe) -> Problem:
    time = source.randint(0, 5) if source.randint(0, 7) == 0 else source.randint(1, 4)
    batch = (1, 2, 3, 5, 17, 40, 0)[min(source.randint(0, 6), source.randint(0, 6))]
    lengths = marks = None
    if source.randint(0, 2) == 2:
        lengths = tuple(source.randint(0, time) for _ in range(batch))
    if source.randint(0, 3) == 3:
        marks = tuple(tuple(source.randint(0, 3) == 3 for _ in range(batch)) for _ in range(time))
    state = ("", "given", "learnt")[source.randint(0, 2)]
    read = ("both", "both", "outputs", "last")[source.randint(0, 3)]
    frozen = tuple(k for k in range(-1, len(recipe.parameters)) if source.randint(0, 6) == 6)
    flags = [source.randint(0, 1) == 1 for _ in range(2)]
    seed, adjoint = source.randint(0, 999), ("full", "full", "truncated:1,1", "truncated:2,2")[source.randint(0, 3)]
    return Problem(recipe, time, batch, lengths, marks, flags[0], state, flags[1], read, frozen, seed, adjoint)


def recipes(**options: Any) -> st.SearchStrategy[Recipe]:
    return st.randoms(use_true_random=False).map(lambda source: draw_recipe(source, **options))


def problems(**options: Any) -> st.SearchStrategy[Problem]:
    def draw(source: random.Random) -> Problem:
        return draw_problem(source, draw_recipe(source, **options))

    return st.randoms(use_true_random=False).map(draw)


class Answer(NamedTuple):
    """Values and gradients by name."""

    values: dict[str, Tensor]
    gradients: dict[str, Tensor]


def setting(
    problem: Problem, executor: str, dtype: torch.dtype, nudge: float = 0.0
) -> tuple[rit.Unfold, dict[str, Tensor], dict[str, Any]]:
    """The unfolding, the tensors to differentiate by, and the call's keywords (and "x").

    Args:
        nudge: a relative change of every number, drawn at random, up to that size.
    """
    recipe = problem.recipe
    unfold = rit.Unfold(
        RandomCell(recipe, problem.seed).to(dtype),
        reverse=problem.reverse,
        learn_initial=problem.state == "learnt",
        adjoint=problem.adjoint,
        executor=executor,
    ).to(dtype)
    generator = torch.Generator().manual_seed(problem.seed + 1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=F64).clamp(-3, 3).float().to(dtype)

    inputs = {"x": drawn(problem.time, problem.batch, recipe.inputs)}
    if problem.state == "given":
        inputs |= {
            f"s.{name}": drawn(problem.batch, size).clamp(-2, 2)
            for name, size in zip(FIELDS, recipe.sizes, strict=False)
        }
    for field in unfold.initial or ():
        field.data = drawn(*field.shape).clamp(-2, 2)
    inputs |= dict(unfold.named_parameters())
    if nudge:
        for value in inputs.values():
            value.data *= 1 + nudge * (2 * torch.rand(value.shape, generator=generator, dtype=F64) - 1).to(dtype)
    for number, value in enumerate(inputs.values()):
        value.requires_grad_((number - 1) not in problem.frozen)
    state = (
        unfold.cell.State(*(inputs[f"s.{name}"] for name in unfold.cell.State._fields))
        if problem.state == "given"
        else None
    )
    marks = None if problem.marks is None else torch.tensor(problem.marks).bool().view(problem.time, problem.batch)
    lengths = None if problem.lengths is None else list(problem.lengths)
    return (
        unfold,
        inputs,
        {"x": inputs["x"], "state": state, "lengths": lengths, "resets": marks, "all_states": problem.all_states},
    )


class IllConditioned(Exception):
    """No one could tell the answer: it changes by as much when the numbers change in their last digits."""


def check(problem: Problem, dtype: torch.dtype) -> None:
    """Fails unless the cpu executor gives what the reference gives in float64, within the tolerance of the dtype.

    Raises:
        IllConditioned: they differ, but by no more than the reference itself does, in that dtype or from its answer
            to nearly the same numbers.
    """
    expected = answer(problem, "reference")
    found = answer(problem, "cpu", dtype)
    try:
        assert_close(found, expected)
    except AssertionError as error:
        others = [answer(problem, "reference", nudge=32 * torch.finfo(dtype).eps)]
        others += [answer(problem, "reference", dtype)] if dtype != F64 else []
        allowed = [max(each) for each in zip(*(errors(other, expected) for other in others), strict=True)]
        least = TOLERANCES[dtype].absolute
        if all(e <= max(least, 8 * a) for e, a in zip(errors(found, expected), allowed, strict=True)):
            raise IllConditioned from error
        raise


def errors(found: Answer, expected: Answer) -> list[float]:
    """The largest difference in each tensor."""
    pairs = [(one[name], other[name]) for one, other in zip(found, expected, strict=True) for name in other]
    return [float((one.double() - other.double()).abs().max()) if other.numel() else 0.0 for one, other in pairs]


def answer(problem: Problem, executor: str, dtype: torch.dtype = F64, nudge: float = 0.0) -> Answer:
    """What an executor makes of a problem; its random numbers follow from the problem's seed."""
    unfold, inputs, call = setting(problem, executor, dtype, nudge)
    torch.manual_seed(problem.seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "var")  # of the variance of no rows
        with drawn_by_philox(next_seed()) if executor == "reference" else nullcontext():
            outputs, last = unfold(call.pop("x"), **call)
    names = [f"outputs.{name}" for name in unfold.cell.State._fields] if problem.all_states else ["outputs"]
    values = dict(zip([*names, *(f"last.{name}" for name in last._fields)], flat((outputs, last)), strict=True))
    read = [value for name, value in values.items() if problem.read == "both" or name.startswith(problem.read)]
    loss = weighted(read)
    wanted = {name: value for name, value in inputs.items() if value.requires_grad}
    if not loss.requires_grad:
        return Answer(values, {name: torch.zeros_like(value) for name, value in wanted.items()})
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, materialize_grads=True)
    return Answer({name: value.detach() for name, value in values.items()}, dict(zip(wanted, found, strict=True)))


def problem_of(seed: int) -> tuple[Problem, torch.dtype]:
    """The problem of that number, and the dtype to run it in."""
    source = random.Random(seed)
    return draw_problem(source, draw_recipe(source, chance=True)), (F64, torch.float32)[seed % 2]


def digest(seeds: range) -> str:
    """Checks some problems; what the bits of the answers come to."""
    found = hashlib.sha256()
    for seed in seeds:
        problem, dtype = problem_of(seed)
        try:
            check(problem, dtype)
        except IllConditioned:
            continue
        for part in answer(problem, "cpu", dtype):
            for value in part.values():
                found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()
