"""The cpu executor: whatever the cell, the structure and the number of threads, it answers as the reference does."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import os
import random
import re
import subprocess
import sys
import threading
import weakref
from collections import namedtuple
from collections.abc import Callable
from functools import cache, cached_property, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, flat, gradients
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_cells import (
    Answer,
    IllConditioned,
    Problem,
    RandomCell,
    Recipe,
    answer,
    check,
    digest,
    draw_problem,
    draw_recipe,
    next_seed,
    problems,
)
from test_program import (
    CALLS,
    CHANCE,
    NO_BAD_NUMBERS,
    NO_INFINITY,
    Applied,
    as_exact,
    assert_alike,
    edge_rows,
    edges_of,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import ritornello as rit
from ritornello import _core
from ritornello.errors import ArgumentError, CellError
from ritornello.executors import EXECUTORS, cpu
from ritornello.executors.fingerprint import fingerprint
from ritornello.executors.plan import make_plan
from ritornello.program import Wants, derive, encode, lower, philox, simplify, trace, unroll

F64 = torch.float64
DTYPES = [F64, torch.float32]
TESTS = Path(__file__).parent
SOURCE = Path(rit.__file__).parents[1]
SEEDS = 20  # random problems that a process of its own runs


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def on_threads(count: int, work: Callable[[], Any]) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return work()
    finally:
        torch.set_num_threads(before)


# Random cells over random batches.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(problems(chance=True))
@settings(max_examples=120)
def test_random_cells_equal_the_reference(dtype: torch.dtype, problem: Problem) -> None:
    try:
        check(problem, dtype)
    except IllConditioned:
        assume(False)


def test_the_comparison_sees_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that is off by a millionth is caught, though the values are right; it is not ill-conditioned."""
    source = random.Random(5)
    problem = draw_problem(source, draw_recipe(source))._replace(frozen=(), read="both")
    check(problem, F64)
    run = EXECUTORS["cpu"].run

    def wrong(request: Any) -> Any:
        result = run(request)
        return result._replace(
            last=type(result.last)(*(field + 1e-6 * (field - field.detach()) for field in result.last))
        )

    monkeypatch.setattr(EXECUTORS["cpu"], "run", wrong)
    with pytest.raises(AssertionError, match="differs"):
        check(problem, F64)


@given(problems(chance=True))
@settings(max_examples=25)
def test_the_number_of_threads_changes_no_bit(problem: Problem) -> None:
    assume(not problem.recipe.torch_multiplies)
    for dtype in DTYPES:
        one, two = (on_threads(count, lambda: answer(problem, "cpu", dtype)) for count in (1, 2))  # noqa: B023
        assert_same_bits(one, two)


def assert_same_bits(one: Answer, other: Answer) -> None:
    for part, its in zip(one, other, strict=True):
        assert part.keys() == its.keys()
        for name in part:
            assert torch.equal(part[name], its[name]), name


DEEP = Recipe(
    16,
    (33,),
    (("p0", [33, 16, True]), ("p1", [33, 33, True]), ("p2", [33, 33, False])),
    ("v0 = torch.tanh(self.p0(x))", "v1 = torch.tanh(self.p1(v0) + self.p2(s.h))"),
    ("v1",),
)


@pytest.mark.parametrize("frozen", [(), (-1,)], ids=["x", "no x"])
def test_a_long_thin_batch_changes_no_bit_either(frozen: tuple[int, ...]) -> None:
    """What needs no state runs over many levels at once; parameters' gradients wait until all threads are done."""
    problem = Problem(DEEP, 2000, 1, None, None, False, "", False, "both", frozen, 3)
    one = on_threads(1, lambda: answer(problem, "cpu", torch.float32))
    for seed in range(6):
        on_threads(2, lambda: answer(problem._replace(seed=seed + 7), "cpu", torch.float32))  # noqa: B023  other numbers in memory
        assert_same_bits(one, on_threads(2, lambda: answer(problem, "cpu", torch.float32)))


class Shared(rit.Cell):
    """Two products read one parameter, through windows of different heights."""

    def __init__(self) -> None:
        super().__init__(20, 33)
        self.U = nn.Linear(33, 33)

    def forward(self, x: Tensor, s: Any) -> Any:
        below = F.linear(s.h, self.U.weight[16:])
        return self.State(torch.tanh(self.U(torch.tanh(F.pad(x, (0, 13)) + s.h)) + F.pad(below, (16, 0))))


def test_windows_of_one_parameter_change_no_bit_either() -> None:
    """Threads that add to one place must do so in one order."""
    cell, x = Shared(), torch.randn(150, 16, 20)
    unfold = rit.Unfold(cell, executor="cpu")

    def work() -> list[Tensor]:
        return list(torch.autograd.grad(unfold(x)[0].sum(), list(cell.parameters())))

    expected = torch.autograd.grad(rit.Unfold(cell, executor="reference")(x)[0].sum(), list(cell.parameters()))
    one = on_threads(1, work)
    assert_close(one, list(expected))
    for _ in range(30):
        assert all(torch.equal(a, b) for a, b in zip(one, on_threads(2, work), strict=True))


WRITTEN: dict[str, Recipe] = {
    "a bias on x": Recipe(
        3,
        (4,),
        (("p0", (3,)), ("p1", [4, 3, True]), ("p2", [4, 4, False])),
        ("v0 = torch.tanh(self.p1(x + self.p0) + self.p2(s.h))",),
        ("v0",),
    ),
    "x added to a field that is not read": Recipe(
        3,
        (4, 3),
        (("p0", [4, 3, True]), ("p1", [4, 4, False])),
        ("v0 = torch.tanh(self.p0(x) + self.p1(s.h))", "v1 = s.c + x"),
        ("v0", "v1"),
    ),
    "a value beside its product": Recipe(
        3,
        (33,),
        (("p0", [33, 3, True]), ("p1", [33, 33, False]), ("p2", [33, 33, False])),
        ("v0 = torch.tanh(self.p0(x) + self.p1(s.h))", "v1 = torch.tanh(v0 + self.p2(v0))"),
        ("v1",),
    ),
    "a layer under the input": DEEP,
    "a row's number times a matrix": Recipe(
        3,
        (5,),
        (("p0", [5, 4, True]),),
        ("v0 = torch.tanh(s.h + self.p0(x.sum(-1, keepdim=True).expand(-1, 4)))",),
        ("v0",),
    ),
    "a state handed on": Recipe(
        2, (3, 3), (("p0", [3, 2, True]),), ("v0 = torch.tanh(self.p0(x)) + s.c",), ("v0", "s.h")
    ),
    "two fields alike": Recipe(
        2, (2, 2), (("p0", [2, 2, True]),), ("v0 = torch.tanh(self.p0(x) + s.h)",), ("v0", "v0")
    ),
    "x as the state": Recipe(2, (2,), (), (), ("x",)),
    "x beside its own product": Recipe(
        4, (4,), (("p0", [4, 4, True]),), ("v0 = torch.tanh(x + s.h) * torch.sigmoid(self.p0(x))",), ("v0",)
    ),
}


@pytest.mark.parametrize("frozen", ["", "x", "parameters", "all"])
@pytest.mark.parametrize("batch", [1, 2, 30])
@pytest.mark.parametrize("what", WRITTEN)
def test_cells_that_a_compiler_may_stumble_over(what: str, batch: int, frozen: str) -> None:
    """Written by hand, after what random ones have found."""
    recipe = WRITTEN[what]
    numbers = tuple(range(9)) if frozen in ("parameters", "all") else ()
    numbers += (-1,) if frozen in ("x", "all") else ()
    for all_states in (False, True):
        check(Problem(recipe, 3, batch, None, None, False, "", all_states, "both", numbers, 1), F64)


def test_more_sequences_than_a_block_and_several_lanes(threads: int) -> None:
    lengths = tuple(k % 5 for k in range(300))
    for seed in range(4):
        source = random.Random(seed)
        problem = draw_problem(source, draw_recipe(source))._replace(time=4, batch=300, lengths=lengths, marks=None)
        check(problem, F64)


def test_many_steps() -> None:
    check(Problem(DEEP, 700, 1, None, None, False, "learnt", False, "both", (), 3), F64)


@pytest.mark.parametrize("size", [70, 150, 300])
@pytest.mark.parametrize("batch", [1, 14])
def test_sizes_of_several_panels(size: int, batch: int) -> None:
    for cell in (rit.LSTM(40, size), rit.GRU(40, size, reset="before")):
        x = torch.randn(2, batch, 40, dtype=F64, requires_grad=True)
        inputs = {"x": x, **dict(cell.double().named_parameters())}
        expected = gradients(rit.Unfold(cell, executor="reference")(x), inputs)
        assert_close(gradients(rit.Unfold(cell, executor="cpu")(x), inputs), expected)
        for dtype in DTYPES:
            found = rit.Unfold(cell.to(dtype), executor="cpu")(x.to(dtype))
            assert_close(found, rit.Unfold(cell.double(), executor="reference")(x))


class Linear(rit.Cell):
    """h' = W x + U h + b: nothing but products."""

    State = namedtuple("State", "h")

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__(inputs, units)
        self.W, self.U = nn.Linear(inputs, units), nn.Linear(units, units, bias=False)

    def forward(self, x: Tensor, s: Any) -> Any:
        return self.State(self.W(x) + self.U(s.h))


class Rounded(torch.autograd.Function):
    """A product both sides of which are rounded to bfloat16, in both directions, and summed in float64."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = x.float().bfloat16().double(), weight.float().bfloat16().double()
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradient.float().bfloat16().double()
        return gradient @ weight, gradient.T @ x


@pytest.mark.parametrize("size", [1, 5, 33, 64, 150])
@pytest.mark.parametrize("batch", [1, 3, 14, 70])
def test_products_in_bfloat16_round_their_sides_and_nothing_else(size: int, batch: int) -> None:
    """On whole numbers, of which float32 loses nothing when it adds them: so every bit is the oracle's."""
    cell = Linear(size + 2, size)
    for parameter in cell.parameters():
        nn.init.uniform_(parameter, -1.5, 1.5).data.round_()
    x = torch.randint(-600, 601, (2, batch, size + 2)).float().requires_grad_()
    weights = torch.randint(-20, 21, (2, batch, size)).float()
    with torch.autocast("cpu", torch.bfloat16):
        outputs, _ = rit.Unfold(cell, executor="cpu")(x)
    inputs = [x, cell.W.weight, cell.U.weight, cell.W.bias]
    found = [outputs, *torch.autograd.grad(outputs, inputs, weights)]
    state, states = torch.zeros(batch, size, dtype=F64), []
    for step in x.double():
        state = Rounded.apply(step, cell.W.weight) + Rounded.apply(state, cell.U.weight) + cell.W.bias
        states.append(state)
    expected = torch.stack(states)
    for one, other in zip(found, [expected, *torch.autograd.grad(expected, inputs, weights.double())], strict=True):
        assert torch.equal(one.double(), other.double())


@pytest.mark.parametrize("kind", ["dense", "ragged", "resets", "both"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("state", ["", "given", "learnt"])
def test_every_kind_of_batch(kind: str, reverse: bool, state: str, threads: int) -> None:
    """What chance may miss: all fields, zero-length rows, resets at the first step."""
    source = random.Random(f"{kind}{reverse}{state}")
    lengths = (3, 0, 4, 1, 0) if kind in ("ragged", "both") else None
    marks = (
        tuple(tuple((t * 5 + b) % 3 == 0 for b in range(5)) for t in range(4)) if kind in ("resets", "both") else None
    )
    recipe = draw_recipe(source, chance=True)
    check(Problem(recipe, 4, 5, lengths, marks, reverse, state, True, "both", (), 3), F64)


@pytest.mark.parametrize(("time", "batch"), [(0, 3), (3, 0), (0, 0), (1, 1), (5, 1)])
@pytest.mark.parametrize("lengths", [False, True])
def test_empty_and_single(time: int, batch: int, lengths: bool, threads: int) -> None:
    for seed in range(3):
        recipe = draw_recipe(random.Random(seed))
        given_lengths = tuple(k % (time + 1) for k in range(batch)) if lengths else None
        for all_states in (False, True):
            check(Problem(recipe, time, batch, given_lengths, None, False, "learnt", all_states, "both", (), seed), F64)


# What the machine's own mathematics does.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", [*sorted(set(CALLS) - set(CHANCE))])
def test_every_call_at_kinks_and_at_bad_numbers(call: str, dtype: torch.dtype) -> None:
    """Values everywhere, gradients where all is finite, as the reference gives them."""
    cell = Applied(CALLS[call]).to(dtype)
    bad = [0.0, 1.0, -1.0, float("nan"), float("inf"), -float("inf")]
    for values, differentiate in (([0.3, -0.7, 1.3, -2.2], True), (edges_of(call), True), (bad, False)):
        if not differentiate and (call in NO_INFINITY | NO_BAD_NUMBERS or "_trilinear" in call):
            continue
        sides = [side.to(dtype) for side in edge_rows(values)]
        answers = []
        for executor in ("reference", "cpu"):
            cell = cell.to(F64 if executor == "reference" else dtype)
            x, h = (side.to(F64 if executor == "reference" else dtype).requires_grad_() for side in sides)
            outputs, _ = rit.Unfold(cell, executor=executor)(x.unsqueeze(0), (h,))
            found = gradients(outputs, {"x": x, "h": h}) if differentiate and outputs.requires_grad else {}
            answers.append({"outputs": outputs.detach(), **found})
        for name, expected in answers[0].items():
            found = answers[1][name]
            assert_alike(found if name == "outputs" else as_exact(call, found), expected, name)


FUNCTIONS = ["sigmoid", "tanh", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "reciprocal", "erf", "sin", "cos"]
FUNCTIONS += ["softplus", "gelu", "silu", "mish", "logsigmoid", "elu"]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("size", [1, 7, 33])
def test_functions_over_their_range_in_single_precision(name: str, size: int) -> None:
    """From the smallest numbers to the largest, of either sign: as near to double precision as torch's own come."""
    function = getattr(torch, name, None) or getattr(F, name)
    cell = Applied(lambda c, x, h: function(x), size)
    powers = torch.logspace(-37, 37, 75 * size, dtype=F64).view(-1, size).float()
    fine = torch.linspace(-30, 30, 80 * size).view(-1, size)
    x = torch.cat([powers, -powers, fine, torch.zeros(1, size)])
    x = x[(torch.isfinite(function(x.double())).all(1)) & (function(x.double()).abs() < 1e38).all(1)]
    if name in ("sin", "cos"):
        x = x[(x.abs() < 1e4).all(1)]
    with torch.no_grad():
        found = rit.Unfold(cell.float(), executor="cpu")(x.unsqueeze(0))[0][0]
    assert_close(found, function(x.double()))


@given(st.integers(0, 2**31 - 1), st.sampled_from([1, 3, 4, 5, 16, 17, 33, 70]), st.sampled_from(DTYPES))
@settings(max_examples=30)
def test_uniform_numbers_are_philox_s(seed: int, size: int, dtype: torch.dtype) -> None:
    """Bit for bit, two streams of one row."""

    class Noise(rit.Cell):
        State = namedtuple("State", "h c")

        def forward(self, x: Tensor, s: Any) -> Any:
            return self.State(torch.rand_like(s.h), torch.rand_like(s.c))

    torch.manual_seed(seed)
    drawn = next_seed()
    both, _ = rit.Unfold(Noise(2, size), executor="cpu")(torch.zeros(3, 2, 2, dtype=dtype), all_states=True)
    for stream, field in enumerate(both):
        expected = philox(drawn, torch.arange(6), stream, size)
        assert torch.equal(field.flatten(0, 1).double(), expected)


# Processes of their own: instruction sets, poisoned memory, forks.


WORK = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import torch
torch.set_num_threads(1)
from random_cells import digest
from ritornello import _core
print(_core.instruction_set(), digest(range({SEEDS})))
"""


def process(code: str, *before: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(SOURCE), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    command = [*before, sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@cache
def under(name: str) -> str:
    """The digest of some problems under an instruction set, working memory filled with NaN before it is used."""
    done = process(WORK, RITORNELLO_ISA=name, RITORNELLO_POISON="1")
    assert done.returncode == 0, done.stderr[-3000:]
    used, found = done.stdout.split()
    assert used == name
    return found


@pytest.mark.parametrize("name", _core.instruction_sets())
def test_every_instruction_set_equals_the_reference(name: str) -> None:
    under(name)


def test_poisoned_memory_changes_nothing() -> None:
    """What is read was written."""
    assert under(_core.instruction_set()) == digest(range(SEEDS))


def test_an_unknown_instruction_set_is_told() -> None:
    done = process("from ritornello import _core; _core.instruction_set()", RITORNELLO_ISA="mmx")
    assert "ValueError: RITORNELLO_ISA is 'mmx', but this processor can run baseline" in done.stderr


FORK = f"""
import os, sys
sys.path.insert(0, {str(TESTS)!r})
import torch
import ritornello as rit
torch.set_num_threads(2)
unfold = rit.Unfold(rit.LSTM(3, 8), executor="cpu")
x = torch.randn(5, 40, 3, generator=torch.Generator().manual_seed(0))
def work():
    return torch.autograd.grad(unfold(x)[0].sum(), list(unfold.parameters()))
def same():
    return all(torch.equal(a, b) for a, b in zip(before, work()))
before = work()
child = os.fork()
if child == 0:
    os._exit(0 if same() else 3)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
sys.exit(status if same() else 5)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("own", ["", "1"], ids=["openmp", "own threads"])
def test_a_forked_process_can_work(own: str) -> None:
    """In the child the threads of the parent are gone. It could hang, hence a process that can be killed."""
    done = process(FORK, **({"RITORNELLO_OWN_THREADS": own} if own else {}))
    assert done.returncode == 0, done.stderr[-3000:]


THREADLESS = """
import resource, sys, torch
import ritornello as rit
unfold, x = rit.Unfold(rit.LSTM(3, 8), executor="cpu"), torch.randn(5, 40, 3)
torch.set_grad_enabled(False)
expected = unfold(x)[0]
torch.set_num_threads(2)
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
most = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**26, most))  # less than a stack
try:
    unfold(x)
    sys.exit(4)
except RuntimeError:
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
sys.exit(0 if torch.equal(unfold(x)[0], expected) else 5)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_a_thread_that_could_not_be_started_is_not_waited_for() -> None:
    """It could hang, hence a process that can be killed; its threads' stacks are greater than what memory is left."""
    great = ("sh", "-c", f'ulimit -S -s {2**19} && exec "$@"', "sh")
    done = process(THREADLESS, *great, RITORNELLO_OWN_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]


# Autograd.


def small(all_states: bool = False) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """A cell with most kinds of ops, as a function of all its tensors."""
    unfold = rit.Unfold(Mixed(2, 3).double(), executor="cpu")
    names = [name for name, _ in unfold.named_parameters()]
    x = torch.randn(3, 2, 2, dtype=F64, requires_grad=True)
    states = [torch.randn(2, 3, dtype=F64, requires_grad=True) for _ in range(2)]

    def call(x: Tensor, h: Tensor, c: Tensor, *parameters: Tensor) -> Any:
        given = dict(zip(names, parameters, strict=True))
        outputs, last = torch.func.functional_call(unfold, given, (x, (h, c)), {"all_states": all_states})
        return tuple(flat((outputs, last)))

    return call, (x, *states, *(p.detach().clone().requires_grad_() for p in unfold.parameters()))


class Mixed(rit.Cell):
    """A little of everything that has a derivative."""

    State = namedtuple("State", "h c")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, 2 * hidden_size)
        self.U = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.B = nn.Bilinear(input_size, hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.scale = nn.Parameter(torch.rand(hidden_size))

    def forward(self, x: Tensor, s: Any) -> Any:
        a, b = (self.W(x) + self.U(s.h)).chunk(2, -1)
        mixed = self.norm(a * torch.softmax(b, -1) + self.B(x, s.h))
        c = torch.sigmoid(b) * s.c + self.scale * F.softplus(mixed) / (1 + s.c.square())
        return self.State(torch.tanh(c) * torch.sigmoid(a) + x.mean(-1, keepdim=True), c)


def test_gradients_by_finite_differences() -> None:
    call, inputs = small(all_states=True)
    assert gradcheck(call, inputs)


def test_second_gradients_by_finite_differences() -> None:
    call, inputs = small()
    assert gradgradcheck(call, inputs)


@pytest.mark.parametrize("kind", ["dense", "ragged", "resets"])
def test_second_gradients_equal_the_reference_s(kind: str) -> None:
    """Also with dropout: the backward of the backward sees the same masks."""

    class Dropped(Mixed):
        def forward(self, x: Tensor, s: Any) -> Any:
            return super().forward(x, self.State(F.dropout(s.h, 0.4, self.training), s.c))

    cell = Dropped(2, 3).double()
    x = torch.randn(4, 3, 2, dtype=F64, requires_grad=True)
    options: dict[str, Any] = {"ragged": {"lengths": [4, 0, 2]}, "resets": {"resets": torch.rand(4, 3) < 0.4}}.get(
        kind, {}
    )
    torch.manual_seed(3)
    outputs, _ = rit.Unfold(cell, executor="cpu")(x, **options)
    inputs = [x, *cell.parameters()]
    once = torch.autograd.grad(outputs.square().sum(), inputs, retain_graph=True)
    again = torch.autograd.grad(outputs.square().sum(), inputs, create_graph=True)
    assert_close(tuple(again), tuple(once))
    twice = torch.autograd.grad(sum(g.square().sum() for g in again), inputs)  # type: ignore[arg-type]
    step = 1e-6
    with torch.no_grad():
        for value in inputs:
            value.add_(step * torch.sign(value))
    torch.manual_seed(3)
    outputs, _ = rit.Unfold(cell, executor="cpu")(x, **options)
    moved = torch.autograd.grad(outputs.square().sum(), inputs)
    difference = sum((m.square() - o.square()).sum() for m, o in zip(moved, once, strict=True)) / step
    along = sum((t * torch.sign(v)).sum() for t, v in zip(twice, inputs, strict=True))
    assert along.item() == pytest.approx(difference.item(), rel=1e-3)


@pytest.mark.parametrize("learn", [False, True], ids=["given", "learnt"])
def test_gradients_with_a_graph_count_what_comes_twice_once(learn: bool) -> None:
    """A tensor that enters at several places, or through another, at each of them gets that place's share."""
    cell, x = rit.LSTM(2, 3).double(), torch.randn(4, 2, 2, dtype=F64)
    h, c = torch.randn(2, 2, 3, dtype=F64).unbind()
    h.requires_grad_()
    found = []
    for executor in ("cpu", "reference"):
        unfold = rit.Unfold(cell, executor=executor, learn_initial=learn).double()
        for state in [None] if learn else [(h, h), (h, h.tanh()), (h, c)]:
            leaves = list(unfold.initial) if unfold.initial is not None else [h]
            loss = unfold(x, state)[0].square().sum()
            once = torch.autograd.grad(loss, leaves, retain_graph=True)
            again = torch.autograd.grad(loss, leaves, create_graph=True)
            assert_close(again, once)
            found += [*again, *torch.autograd.grad(sum(each.square().sum() for each in again), leaves)]
    assert_close(found[: len(found) // 2], found[len(found) // 2 :])


def test_many_gradients_at_once() -> None:
    cell, x = rit.LSTM(2, 3).double(), torch.randn(3, 2, 2, dtype=F64)
    found = []
    for executor, at_once in (("cpu", True), ("reference", False)):
        unfold = rit.Unfold(cell, executor=executor)
        found.append(torch.autograd.functional.jacobian(lambda x, u=unfold: tuple(flat(u(x))), x, vectorize=at_once))
    assert not any(each.requires_grad for each in found[0])
    assert_close(*found)


def test_backward_twice_over_one_graph() -> None:
    unfold = rit.Unfold(Mixed(2, 3), executor="cpu")
    x = torch.randn(4, 2, 2, requires_grad=True)
    outputs, last = unfold(x)
    leaves = [x, *unfold.parameters()]
    first = torch.autograd.grad(outputs.sum(), leaves, retain_graph=True)
    other = torch.autograd.grad(last.c.sum(), leaves, retain_graph=True)
    third = torch.autograd.grad(outputs.sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, third, strict=True))
    assert not torch.equal(first[0], other[0])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(outputs.sum(), leaves)


def test_a_second_backward_keeps_no_states_either() -> None:
    outputs, _ = rit.Unfold(rit.LSTM(2, 3), executor="cpu")(torch.randn(4, 2, 2, requires_grad=True))
    node = outputs.grad_fn
    while not hasattr(node, "run"):
        node = node.next_functions[0][0]
    for _ in range(2):
        outputs.sum().backward(retain_graph=True)
        assert node.run.out == []
        assert node.run.memory is None
        assert node.run.hidden == []


@pytest.mark.parametrize("all_states", [False, True])
def test_states_that_nobody_asks_for_lie_beside_the_frames(all_states: bool) -> None:
    x = torch.randn(4, 2, 2, requires_grad=True)
    outputs, _ = rit.Unfold(rit.LSTM(2, 3), executor="cpu")(x, all_states=all_states)
    node = (outputs.c if all_states else outputs).grad_fn
    while not hasattr(node, "run"):
        node = node.next_functions[0][0]
    shown = [tuple(saved.shape) for saved in node.saved_tensors].count((8, 3))
    assert (shown, len(node.run.hidden)) == ((2, 0) if all_states else (1, 1))


@pytest.mark.parametrize("lengths", [None, [7, 0]])
@pytest.mark.parametrize("steps", [1, 7, 150])
def test_states_that_are_known_before_the_loop(steps: int, lengths: list[int] | None) -> None:
    """Written by the rows of many levels at once, though nobody asks for them."""
    cell, x = rit.cells.QRNN(3, 4).double(), torch.randn(steps, 2, 3, dtype=F64)
    given = None if lengths is None else [min(steps, each) for each in lengths]
    with torch.no_grad():
        state = rit.Unfold(cell)(x[:1])[1]
        found = [rit.Unfold(cell, executor=name)(x, state, lengths=given) for name in ("cpu", "reference")]
    assert_close(*found)


def test_what_needs_no_gradient_gets_none() -> None:
    cell = Mixed(2, 3)
    cell.unused = nn.Parameter(torch.ones(3))
    cell.W.weight.requires_grad_(False)
    x = torch.randn(4, 2, 2)
    outputs, _ = rit.Unfold(cell, executor="cpu")(x)
    outputs.sum().backward()
    assert x.grad is None
    assert cell.unused.grad is None
    assert cell.W.weight.grad is None
    assert cell.U.weight.grad is not None
    with torch.no_grad():
        assert not rit.Unfold(cell, executor="cpu")(x)[0].requires_grad
    for parameter in cell.parameters():
        parameter.requires_grad_(False)
    assert not rit.Unfold(cell, executor="cpu")(x)[0].requires_grad


def test_tensors_that_are_no_parameters_get_gradients_too() -> None:
    class Scaled(rit.Elman):
        scale: Tensor

        def forward(self, x: Tensor, s: Any) -> Any:
            return self.State(super().forward(x, s).h * self.scale)

    cell, x = Scaled(2, 3).requires_grad_(False), torch.randn(4, 2, 2)
    z = torch.randn(3, requires_grad=True)
    found = []
    for executor in ("cpu", "reference"):
        cell.scale = z.sigmoid()
        found += torch.autograd.grad(rit.Unfold(cell, executor=executor)(x)[0].sum(), z)
    assert_close(*found)


def test_an_output_that_was_written_over_is_told() -> None:
    unfold = rit.Unfold(Mixed(2, 3), executor="cpu")
    outputs, _ = unfold(torch.randn(4, 2, 2))
    loss = outputs.sum()
    outputs.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_backward_lets_go_of_what_it_kept() -> None:
    """The frames go with the graph, or with the backward pass, whichever is first."""
    unfold = rit.Unfold(Mixed(2, 3), executor="cpu")
    kept: list[weakref.ref[Any]] = []
    make = _core.Memory

    class Watched:
        def __init__(self, size: int) -> None:
            self.memory = make(size)
            self.address = self.memory.address
            kept.append(weakref.ref(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_core, "Memory", Watched)
        outputs, last = unfold(torch.randn(4, 2, 2))
        assert [ref() is not None for ref in kept] == [True]
        outputs.sum().backward()
        gc.collect()
        assert [ref() is None for ref in kept] == [True]
        outputs, last = unfold(torch.randn(4, 2, 2))
        assert kept[-1]() is not None
        del outputs, last
        gc.collect()
        assert kept[-1]() is None
        with torch.no_grad():
            unfold(torch.randn(4, 2, 2))
        assert len(kept) == 2


def test_two_python_threads_train_as_each_would_alone() -> None:
    def train(seed: int, found: dict[int, list[Tensor]]) -> None:
        generator = torch.Generator().manual_seed(seed)
        unfold = rit.Unfold(models[seed], executor="cpu")
        optimizer = torch.optim.SGD(unfold.parameters(), lr=0.1)
        for _ in range(12):
            optimizer.zero_grad()
            x = torch.randn(6, 8 + seed, 3, generator=generator)
            unfold(x)[0].square().mean().backward()
            optimizer.step()
        found[seed] = [p.detach().clone() for p in unfold.parameters()]

    models = {}
    alone: dict[int, list[Tensor]] = {}
    together: dict[int, list[Tensor]] = {}
    for found, parallel in ((alone, False), (together, True)):
        for seed in (0, 1):
            torch.manual_seed(seed)
            models[seed] = (rit.LSTM if seed else rit.GRU)(3, 17)
        workers = [threading.Thread(target=train, args=(seed, found)) for seed in (0, 1)]
        for worker in workers:
            worker.start()
            if not parallel:
                worker.join()
        for worker in workers:
            worker.join(60)
    for seed in (0, 1):
        assert all(torch.equal(a, b) for a, b in zip(alone[seed], together[seed], strict=True))


# Chance.


class Noisy(rit.Cell):
    """h' + dropped x."""

    def __init__(self, size: int, rate: float = 0.3) -> None:
        super().__init__(size, size)
        self.rate = rate

    def forward(self, x: Tensor, s: Any) -> Any:
        return self.State(F.dropout(x, self.rate, self.training))


def test_a_seed_fixes_the_masks() -> None:
    unfold = rit.Unfold(Noisy(50), executor="cpu")
    x = torch.ones(20, 10, 50)
    torch.manual_seed(1)
    first, second = unfold(x)[0], unfold(x)[0]
    torch.manual_seed(1)
    again = unfold(x)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1]), "each step draws its own"
    assert set(first.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.7))}
    assert float(first.mean()) == pytest.approx(1.0, abs=0.03)
    assert torch.equal(unfold.eval()(x)[0], x)
    assert not torch.equal(unfold.train()(x)[0], x)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_dropout_s_rate(rate: float) -> None:
    unfold = rit.Unfold(Noisy(50, rate), executor="cpu")
    outputs = unfold(torch.ones(20, 10, 50))[0]
    assert float((outputs == 0).double().mean()) == pytest.approx(rate, abs=0.03)
    assert float(outputs.mean()) == pytest.approx(1.0 if rate < 1 else 0.0, abs=0.1)


def test_gradients_see_the_masks_of_the_forward_pass() -> None:
    class Dropped(Mixed):
        def forward(self, x: Tensor, s: Any) -> Any:
            h, c = super().forward(x, self.State(F.dropout(s.h, 0.3, self.training), s.c))
            return self.State(F.dropout(h, 0.5, self.training) * torch.bernoulli(torch.sigmoid(c)), c)

    unfold = rit.Unfold(Dropped(2, 3).double(), executor="cpu")

    def call(x: Tensor) -> Tensor:
        torch.manual_seed(9)
        return unfold(x)[0]

    x = torch.randn(3, 2, 2, dtype=F64, requires_grad=True)
    assert gradcheck(call, (x,))


# Settings that change, and cells that have no program.


def both(cell: rit.Cell, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return tuple(rit.Unfold(cell, executor=name)(x)[0] for name in ("cpu", "reference"))  # type: ignore[return-value]


class Settings(rit.Cell):
    """Branches on all manner of attributes."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.W = nn.Linear(3, 3)
        self.factor: Any = 1.0
        self.flags = {"twice": False}
        self.powers = [1, 2]
        self.options, self.slotted = Options(), Slotted()
        self.inner = nn.Identity()
        self.bias = nn.Parameter(torch.randn(3))
        self.shift = torch.zeros(3)
        self.gain = nn.Parameter(torch.randn(3), requires_grad=False)
        self.U, self.V = nn.Linear(3, 3), nn.Linear(3, 3)
        self.V.weight = self.U.weight
        self.order, self.biases = [self.U, self.V], [self.U.bias, self.V.bias]

    def forward(self, x: Tensor, s: Any) -> Any:
        value = torch.tanh(self.inner(self.W(x))) * self.factor + self.shift
        value = value * 2 if self.flags["twice"] else value
        value = value + sum(0.1 * torch.tanh(s.h) ** power for power in self.powers)
        value = -value if self.options.negative else value
        value = value * 2 if self.slotted.double else value
        value = value * self.gain if self.gain.requires_grad else value + self.gain.detach()
        for module in self.order:
            value = torch.tanh(module(value) + self.biases[0])
        return self.State(value if self.bias is None else value + self.bias)


class Options:
    negative = False


class Slotted:
    __slots__ = ("double",)

    def __init__(self) -> None:
        self.double = False


CHANGES: dict[str, Callable[[Settings], Any]] = {
    "a number": lambda c: setattr(c, "factor", 3.0),
    "an integer for a float": lambda c: setattr(c, "factor", 2),
    "a tensor": lambda c: setattr(c, "shift", torch.ones(3)),
    "a tensor's contents": lambda c: c.shift.add_(1),
    "an entry of a dict": lambda c: c.flags.update(twice=True),
    "a list's length": lambda c: c.powers.append(3),
    "an element of a list": lambda c: c.powers.__setitem__(0, 3),
    "an attribute of an object": lambda c: setattr(c.options, "negative", True),
    "an attribute of an object without a dict": lambda c: setattr(c.slotted, "double", True),
    "a module": lambda c: setattr(c, "inner", nn.Tanh()),
    "a parameter's values": lambda c: c.W.weight.data.mul_(2),
    "a parameter": lambda c: setattr(c, "bias", nn.Parameter(torch.ones(3))),
    "a parameter of another shape": lambda c: setattr(c, "bias", nn.Parameter(torch.ones(1))),
    "no parameter": lambda c: setattr(c, "bias", None),
    "a parameter that is trained": lambda c: c.gain.requires_grad_(),
    "weights that were tied": lambda c: setattr(c.V, "weight", nn.Parameter(torch.randn(3, 3))),
    "the order of modules": lambda c: c.order.reverse(),
    "the order of tensors": lambda c: c.biases.reverse(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_setting_that_changes_is_seen(what: str) -> None:
    cell, x = Settings(), torch.randn(4, 2, 3)
    assert_close(*both(cell, x))
    CHANGES[what](cell)
    assert_close(*both(cell, x))


CLASS_CHANGES: dict[str, Callable[[Any], Any]] = {
    "a number": lambda kind: setattr(kind, "factor", 3.0),
    "a number of its base": lambda kind: setattr(kind.__mro__[1], "shift", 0.5),
    "a method": lambda kind: setattr(kind, "forward", lambda c, x, s: c.State(x)),
    "a method's code": lambda kind: setattr(kind.forward, "__code__", (lambda self, x, s: self.State(x)).__code__),
    "another method's code": lambda kind: setattr(kind.squash, "__code__", (lambda value: 2 * value).__code__),
}


@pytest.mark.parametrize("what", CLASS_CHANGES)
def test_a_class_that_changes_is_seen(what: str) -> None:
    """As notebooks do when they reload a module: what is there already goes on with the new code."""

    class Base(rit.Cell):
        shift = 0.0

    class Tried(Base):
        factor = 1.0

        @staticmethod
        def squash(value: Tensor) -> Tensor:
            return torch.tanh(value)

        def forward(self, x: Tensor, s: Any) -> Any:
            return self.State(self.squash(x + s.h) * self.factor + self.shift)

    cell, x = Tried(3, 3), torch.randn(4, 2, 3)
    before = both(cell, x)
    assert_close(*before)
    CLASS_CHANGES[what](Tried)
    after = both(cell, x)
    assert_close(*after)
    assert not torch.equal(before[0], after[0])


class Around:
    """What a cell may read that is not its own."""

    number = 1.0

    def __init__(self) -> None:
        self.number = 1.0
        self.inner = SimpleNamespace(number=1.0)


def grown(value: Tensor) -> Tensor:
    return value * GLOBALS["number"]


NUMBER, NUMBERS, GLOBALS, OBJECT, ARRAY = 1.0, [1.0], {"number": 1.0}, Around(), np.ones(1)
PARTIAL, MODULE = partial(torch.mul, other=1.0), ModuleType("settings_of_an_experiment")
MODULE.number = 1.0


OUTSIDE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[], Any]]] = {
    "a global": (lambda h: h * NUMBER, lambda: globals().update(NUMBER=3.0)),
    "an entry of a list": (lambda h: h * NUMBERS[0], lambda: NUMBERS.__setitem__(0, 3.0)),
    "an entry of a dict that a function reads": (lambda h: grown(h), lambda: GLOBALS.update(number=3.0)),
    "a function": (lambda h: grown(h), lambda: globals().update(grown=lambda value: 3 * value)),
    "an attribute": (lambda h: h * OBJECT.number, lambda: setattr(OBJECT, "number", 3.0)),
    "an attribute of an attribute": (
        lambda h: h * OBJECT.inner.number,
        lambda: setattr(OBJECT.inner, "number", 3.0),
    ),
    "an attribute of a class": (lambda h: h * Around.number, lambda: setattr(Around, "number", 3.0)),
    "a module's global": (lambda h: h * MODULE.number, lambda: setattr(MODULE, "number", 3.0)),
    "an array": (lambda h: h * float(ARRAY[0]), lambda: ARRAY.fill(3.0)),
    "a partial function": (lambda h: PARTIAL(h), lambda: PARTIAL.keywords.update(other=3.0)),
    "within a comprehension": (lambda h: sum(h * n for n in NUMBERS), lambda: NUMBERS.append(3.0)),
}


class Outward(rit.Cell):
    """Asks a function that is an attribute."""

    def __init__(self, ask: Callable[[Tensor], Tensor]) -> None:
        super().__init__(3, 3)
        self.ask = ask

    def forward(self, x: Tensor, s: Any) -> Any:
        return self.State(torch.tanh(x + self.ask(s.h)))


@pytest.mark.parametrize("what", OUTSIDE)
def test_what_a_cell_reads_outside_itself_is_seen_when_it_changes(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "NUMBER": 1.0,
        "NUMBERS": [1.0],
        "GLOBALS": {"number": 1.0},
        "OBJECT": Around(),
        "ARRAY": np.ones(1),
        "PARTIAL": partial(torch.mul, other=1.0),
        "grown": grown,
    }.items():  # as they were, afterwards
        monkeypatch.setitem(globals(), name, value)
    monkeypatch.setattr(Around, "number", 1.0)
    monkeypatch.setattr(MODULE, "number", 1.0)
    ask, change = OUTSIDE[what]
    cell, x = Outward(ask), torch.randn(4, 2, 3)
    before = both(cell, x)
    assert_close(*before)
    change()
    after = both(cell, x)
    assert_close(*after)
    assert not torch.equal(before[0], after[0])


def test_the_variables_of_a_function_around_a_cell_are_seen() -> None:
    factor, factors = 1.0, [1.0]

    class Within(rit.Elman):
        def forward(self, x: Tensor, s: Any) -> Any:
            return self.State(super().forward(x, s).h * factor * factors[0])

    cell, x = Within(3, 3), torch.randn(4, 2, 3)
    found = [both(cell, x)]
    factor = 2.0
    found.append(both(cell, x))
    factors[0] = 2.0
    found.append(both(cell, x))
    for one, other in found:
        assert_close(one, other)
    assert_close(found[2][0][0], 4 * found[0][0][0])


def test_what_does_not_change_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where functions call one another in a circle, and where a first call fills a table."""
    made: list[Any] = []
    monkeypatch.setattr(cpu, "make_plan", lambda *of: made.append(of) or make_plan(*of))
    table: dict[int, float] = {}

    def ping(h: Tensor, times: int = 2) -> Tensor:
        return pong(h, times - 1) if times else h

    def pong(h: Tensor, times: int) -> Tensor:
        return ping(h * table.setdefault(3, 0.5), times)

    unfold = rit.Unfold(Outward(ping), executor="cpu")
    for _ in range(3):
        unfold(torch.randn(4, 2, 3))
    assert len(made) == 2


def test_a_cell_that_changes_what_it_reads_outside_is_refused_and_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(cpu, "make_plan", lambda *of: made.append(of) or make_plan(*of))
    calls: list[int] = []

    def counted(h: Tensor) -> Tensor:
        calls.append(len(calls))
        return h

    cell = Outward(counted)
    unfold, x = rit.Unfold(cell), torch.randn(4, 2, 3)
    unfold(x)
    count, tried = len(calls), len(made)
    for _ in range(3):
        unfold(x)
    assert len(made) == tried == 2
    assert len(calls) == count + 12
    reason = cpu.CpuExecutor().plan(Outward(counted), 3, (3,), torch.zeros(()))
    assert reason == "Outward cannot be compiled: it changes what it reads outside itself whenever it is called"


@pytest.mark.parametrize("executor", ["auto", "cpu", "reference"])
@pytest.mark.parametrize(
    ("deed", "what"),
    [
        (lambda x, s: x.mul_(0.5), "x"),
        (lambda x, s: s.h.mul_(0.5), "s.h"),
        (lambda x, s: s.c[:, :1].zero_(), "s.c"),
        (lambda x, s: rit.total(s.c).add_(1), "s.c"),
    ],
)
def test_what_a_cell_is_given_it_leaves_as_it_is(deed: Callable[[Tensor, Any], Any], what: str, executor: str) -> None:
    """A caller holds it too, or the step before."""

    class Writing(rit.LSTM):
        def forward(self, x: Tensor, s: Any) -> Any:
            deed(x, s)
            return super().forward(x, s)

    x, state = torch.randn(4, 2, 3), (torch.randn(2, 4), torch.randn(2, 4))
    with (
        torch.no_grad(),
        pytest.raises(
            CellError, match=rf"^Writing\.forward changes its {re.escape(what)} in place.*; make a new tensor"
        ),
    ):
        rit.Unfold(Writing(3, 4), executor=executor)(x, state)


def test_a_buffer_that_went_to_another_device_is_told() -> None:
    class Masked(rit.Elman):
        def forward(self, x: Tensor, s: Any) -> Any:
            return self.State(super().forward(x, s).h * self.mask)

    cell, x = Masked(3, 4), torch.randn(4, 2, 3)
    cell.register_buffer("mask", torch.ones(4))
    assert rit.Unfold(cell)(x)[0].shape == (4, 2, 4)
    cell.mask = cell.mask.to("meta")
    with pytest.raises(RuntimeError, match="device"):
        rit.Unfold(cell)(x)


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_a_hook_on_gradients_that_comes_later_is_seen(register: str) -> None:
    cell, x = rit.GRU(3, 4), torch.randn(4, 2, 3)
    inputs = {"h": torch.randn(2, 4, requires_grad=True), **dict(cell.named_parameters())}

    def found(executor: str) -> dict[str, Tensor]:
        return gradients(rit.Unfold(cell, executor=executor)(x, (inputs["h"],)), inputs)

    before = found("auto")
    getattr(cell.U, register)(lambda module, *d: tuple(2 * each for each in d[0]))
    assert_close(found("auto"), found("reference"))
    assert not torch.equal(found("auto")["h"], before["h"])


def test_the_plan_is_looked_up_once_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    unfold, x = rit.Unfold(rit.LSTM(3, 4)), torch.randn(4, 2, 3)
    monkeypatch.setattr(cpu, "fingerprint", lambda *of: taken.append(of) or fingerprint(*of))
    unfold(x)
    taken.clear()
    for calls in (1, 2):
        unfold(x)
        assert len(taken) == calls


# Cells that change themselves.


class Restless(rit.Cell):
    """Does something to itself at every call."""

    made, turns = 0, 0

    def __init__(self, deed: Callable[[Any, Tensor], Any]) -> None:
        super().__init__(3, 3)
        self.W, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.calls, self.big, self.seen, self.counts = 0, 0.5, [], {"calls": 0}
        self.memory: Any = (torch.zeros(3),)
        self.tensor = torch.zeros(3)
        self.deed = deed

    @cached_property
    def wide(self) -> bool:
        return self.hidden_size > 2

    def forward(self, x: Tensor, s: Any) -> Any:
        self.deed(self, s.h)
        return self.State(torch.tanh(self.W(x) + s.h))


def held(cell: Restless) -> list[Any]:
    """All that a deed may change, as text."""
    tensors = [cell.tensor, *cell.memory, *cell.buffers()]
    plain = [cell.calls, cell.big, Restless.made, cell.training, *(vars(cell).get(name) for name in ("turns", "own"))]
    return [*plain, str(cell.seen), cell.counts, vars(cell).get("wide"), str(tensors)]


TURNS = itertools.count()
DEEDS: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "a count": (lambda c, h: setattr(c, "calls", c.calls + 1), r"changes its own setting \(calls\)"),
    "a count in its class": (lambda c, h: setattr(Restless, "made", c.made + 1), r"changes its own setting \(made\)"),
    "a count that its class begins": (lambda c, h: setattr(c, "turns", c.turns + 1), r"its own setting \(turns\)"),
    "a count that begins by itself": (
        lambda c, h: setattr(c, "own", getattr(c, "own", 0) + 1),
        r"changes its own setting \(own\)",
    ),
    "what it finds out once": (lambda c, h: setattr(c, "found", c.hidden_size > 2), ""),
    "a count in a dict": (lambda c, h: c.counts.update(calls=c.counts["calls"] + 1), r"its own setting \(counts\)"),
    "a log": (lambda c, h: c.seen.append(len(h)), r"changes its own setting \(seen\)"),
    "its mode": (lambda c, h: c.train(not c.training), r"changes its own setting \(training\)"),
    "a tuple of tensors": (lambda c, h: setattr(c, "memory", (h.detach(),)), r"keeps a tensor \(memory\)"),
    "a list of tensors": (lambda c, h: c.seen.append(h.detach()), r"keeps a tensor \(seen\)"),
    "a tensor": (lambda c, h: setattr(c, "tensor", h.detach()), r"keeps a tensor \(tensor\)"),
    "a new tensor": (lambda c, h: setattr(c, "fresh", h.detach()), r"keeps a tensor \(fresh\)"),
    "a tensor's contents": (lambda c, h: c.tensor.add_(1), "changing a parameter or buffer in place"),
    "running means": (lambda c, h: c.norm(h), "torch's"),
    "what is refused anyway": (lambda c, h: (setattr(c, "calls", c.calls + 1), h.cumprod(0)), "torch's cumprod"),
    "nothing": (lambda c, h: setattr(c, "big", 0.25 + 0.25), ""),
    "what it looks up": (lambda c, h: c.wide, ""),
}


@pytest.mark.parametrize("what", DEEDS)
def test_a_cell_that_changes_itself_is_refused_and_stays_as_it_was(what: str) -> None:
    deed, message = DEEDS[what]
    cell = Restless(deed)
    before, tensor, seen = held(cell), cell.tensor, cell.seen
    plan = cpu.CpuExecutor().plan(cell, 3, (3,), torch.zeros(()))
    assert re.search(message, plan) if isinstance(plan, str) else not message
    assert held(cell) == before
    assert cell.tensor is tensor
    assert cell.seen is seen


@pytest.mark.parametrize("what", [what for what, (_, message) in DEEDS.items() if message])
def test_a_cell_that_changes_itself_is_traced_once(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference executor runs it, and its changes make no other cell of it."""
    made: list[Any] = []
    monkeypatch.setattr(cpu, "make_plan", lambda *of: made.append(of) or make_plan(*of))
    cell = Restless(DEEDS[what][0])
    for _ in range(3):
        rit.Unfold(cell)(torch.randn(5, 2, 3))
    assert len(made) == 1
    assert cell.calls in (0, 15)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda h: 1.0 + next(TURNS), "differs from call to call, by what is neither an input nor a setting"),
        (lambda h: 1.0 + len(h), "depends on the number of rows"),
        (lambda h: 1.0 + torch.is_grad_enabled(), "depends on whether gradients are asked for"),
        (lambda h: 1.0 + h.requires_grad, "depends on whether gradients are asked for"),
    ],
)
def test_what_a_computation_depends_on_is_told(draw: Callable[[Tensor], float], message: str) -> None:
    class Moody(rit.Elman):
        def forward(self, x: Tensor, s: Any) -> Any:
            return self.State(super().forward(x, s).h * draw(s.h))

    assert message in str(cpu.CpuExecutor().plan(Moody(3, 3), 3, (3,), torch.zeros(())))


def test_a_cell_that_stops_changing_itself_is_compiled() -> None:
    cell = Restless(lambda c, h: c.training and setattr(c, "calls", c.calls + 1))
    x = torch.randn(4, 2, 3)
    assert_close(*(rit.Unfold(cell)(x)[0] for _ in range(2)))
    assert_close(*both(cell.eval(), x))
    assert cell.calls == 8


def test_a_cell_made_in_inference_mode_is_compiled() -> None:
    x = torch.randn(5, 2, 3)
    with torch.inference_mode():
        assert_close(*both(rit.GRU(3, 4), x))
        cell = rit.GRU(3, 4)
    assert_close(*both(cell, x))


def test_a_first_call_in_inference_mode_is_like_any_other() -> None:
    cell, x = Restless(lambda c, h: None), torch.randn(4, 2, 3)
    with torch.inference_mode():
        found = rit.Unfold(cell, executor="cpu")(x)[0]
    assert_close(*both(cell, x))
    assert_close(found, both(cell, x)[0])


# Cells of many steps within the step.


LOOPS: dict[str, tuple[int, Callable[[Any, Tensor, Tensor], Tensor]]] = {
    "elements": (400, lambda c, v, x: torch.tanh(v) * 0.5 + v),
    "sums": (1000, lambda c, v, x: v + torch.cat([x, x], -1)),
    "views": (1000, lambda c, v, x: torch.cat([v[:, 1:], v[:, :1]], -1)),
    "products": (300, lambda c, v, x: torch.tanh(torch.cat([c.W(v[:, :3]), x], -1) + v)),
    "parameters": (300, lambda c, v, x: v),
}


@pytest.mark.parametrize("what", LOOPS)
def test_a_long_loop_within_a_cell(what: str) -> None:
    steps, step = LOOPS[what]

    class Looping(rit.Cell):
        def __init__(self) -> None:
            super().__init__(3, 3)
            self.W = nn.Linear(3, 3)

        def forward(self, x: Tensor, s: Any) -> Any:
            v, bias = torch.cat([self.W(x), s.h], -1), self.W.bias
            for _ in range(steps):
                v = step(self, v, x)
                bias = torch.tanh(bias) + bias if what == "parameters" else bias
            left, right = torch.tanh(v).chunk(2, -1) if what != "sums" else v.chunk(2, -1)
            return self.State(torch.tanh(left * right * 1e-3 + bias))

    cell, x = Looping().double(), torch.randn(2, 2, 3, dtype=F64)
    inputs = dict(cell.named_parameters())
    one, other = (rit.Unfold(cell, executor=name)(x) for name in ("cpu", "reference"))
    assert_close(one, other)
    assert_close(gradients(one, inputs), gradients(other, inputs))
    rit.explain(cell, io.StringIO())


def test_a_tuple_of_anything_is_a_setting_too() -> None:
    cell = Settings()
    cell.layout = (1, [2, {"a": 3}])
    assert_close(*both(cell, torch.randn(4, 2, 3)))


def test_tensors_of_any_kind_are_read_as_torch_reads_them() -> None:
    class Kinds(rit.Cell):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.W = nn.Linear(4, 4)
            self.register_buffer("mask", torch.tensor([True, False, True, False]))
            self.register_buffer("whole", torch.arange(4))
            self.strided = nn.Parameter(torch.randn(4, 8)[:, ::2])
            self.spread = torch.randn(1).expand(4)
            self.scalar = torch.tensor(2)
            self.half = torch.randn(4).bfloat16()

        def forward(self, x: Tensor, s: Any) -> Any:
            value = torch.where(self.mask, self.W(x), 0.5 * s.h) * self.whole + self.spread * self.scalar
            return self.State(torch.tanh(F.linear(value, self.strided) + self.half))

    torch.manual_seed(0)
    cell, x = Kinds(), torch.randn(4, 2, 4)
    assert_close(*both(cell, x))


def test_the_column_of_ones() -> None:
    """A bias by one more column of ones, in single precision."""

    class Ones(rit.Cell):
        def __init__(self) -> None:
            super().__init__(3, 4)
            self.W = nn.Linear(3 + 4 + 1, 4, bias=False)

        def forward(self, x: Tensor, s: Any) -> Any:
            return self.State(torch.tanh(self.W(torch.cat([x, s.h, torch.ones_like(x[:, :1])], -1))))

    assert_close(*both(Ones(), torch.randn(4, 2, 3)))


@pytest.mark.parametrize("terms", [20, 40, 100])
def test_a_sum_of_many_products(terms: int) -> None:
    class Many(rit.Cell):
        def __init__(self) -> None:
            super().__init__(3, 4)
            self.U = nn.ModuleList(nn.Linear(4, 4) for _ in range(terms))

        def forward(self, x: Tensor, s: Any) -> Any:
            parts = (u(torch.tanh((k + 1) * s.h)) for k, u in enumerate(self.U))
            return self.State(torch.tanh(sum(parts, start=x.sum(-1, keepdim=True))))

    cell = Many()
    with torch.no_grad():
        found = rit.Unfold(cell)(torch.ones(3, 2, 3))[0]  # "auto": another may take it, but it works
        expected = rit.Unfold(cell, executor="reference")(torch.ones(3, 2, 3))[0]
    assert_close(found, expected)


@pytest.mark.parametrize("fields", [8, 11, 12, 17])
def test_a_state_of_many_fields(fields: int) -> None:
    class Many(rit.Cell):
        State = namedtuple("State", [f"f{k}" for k in range(fields)])

        def forward(self, x: Tensor, s: Any) -> Any:
            return self.State(x.mean(-1, keepdim=True) + s[0], *s[:-1])

    cell, x = Many(3, 4), torch.randn(3, 2, 3)
    assert_close(rit.Unfold(cell)(x)[0], rit.Unfold(cell, executor="reference")(x)[0])


class Untraceable(rit.Cell):
    """A running product over the row."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, hidden_size)

    def forward(self, x: Tensor, s: Any) -> Any:
        return self.State(torch.tanh(self.W(x) + s.h).cumprod(-1))


def test_what_cannot_be_compiled_runs_on_the_reference(caplog: pytest.LogCaptureFixture) -> None:
    cell, x = Untraceable(3, 4), torch.randn(4, 2, 3, requires_grad=True)
    with caplog.at_level("WARNING"):
        outputs, _ = rit.Unfold(cell)(x)
        rit.Unfold(cell)(x)
    assert len(caplog.records) == 1, "it is said once"
    assert "Untraceable cannot be compiled: torch's cumprod (test_cpu.py, line" in caplog.text
    expected, _ = rit.Unfold(cell, executor="reference")(x)
    assert torch.equal(outputs, expected)
    outputs.sum().backward()
    assert x.grad is not None


HOOKED: dict[str, Callable[[Any, Callable[..., Any]], Any]] = {
    "forward": lambda module, hook: module.register_forward_hook(hook),
    "before": lambda module, hook: module.register_forward_pre_hook(hook),
    "backward": lambda module, hook: module.register_full_backward_hook(hook),
    "before backward": lambda module, hook: module.register_full_backward_pre_hook(hook),
}


@pytest.mark.parametrize("kind", HOOKED)
def test_a_hook_is_called_at_each_step(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Most are there to see what passes: a loop that is compiled has nothing to show them."""
    cell, x = rit.LSTM(3, 4), torch.randn(5, 2, 3, requires_grad=True)
    state = rit.LSTM.State(*torch.randn(2, 2, 4, requires_grad=True))
    unfold = rit.Unfold(cell)
    plain, _ = unfold(x, state)
    seen: list[Any] = []
    with caplog.at_level("WARNING"):
        for name, place in (("", cell), (" (on U)", cell.U)):
            handle = HOOKED[kind](place, lambda *given: seen.append(given))
            outputs, _ = unfold(x, state)
            outputs.sum().backward()
            assert_close(outputs, plain)
            assert len(seen) == 5
            assert f"it has a hook{name}, which is to be called at each step" in caplog.text
            handle.remove()
            seen.clear()
            assert torch.equal(unfold(x, state)[0], plain), "it is compiled again"
            assert not seen


def test_a_hook_may_change_what_passes() -> None:
    cell, x = rit.Elman(3, 4), torch.randn(5, 2, 3)
    doubled = copy.deepcopy(cell)
    cell.U.register_forward_hook(lambda module, inputs, output: 2 * output)
    with torch.no_grad():
        doubled.U.weight.mul_(2)
    assert_close(rit.Unfold(cell)(x)[0], rit.Unfold(doubled)(x)[0])


def test_what_looks_at_every_call_sees_no_tracing_and_leaves_nothing_behind() -> None:
    cell, x = rit.GRU(3, 4), torch.randn(5, 2, 3)
    expected = rit.Unfold(cell, executor="reference")(x)[0]
    with FlopCounterMode(display=False) as counted:  # by hooks on all modules
        assert_close(rit.Unfold(cell)(x)[0], expected)
    assert counted.get_total_flops() == 5 * 2 * 2 * (3 + 4) * 12
    with FakeTensorMode(allow_non_fake_inputs=True):
        rit.Unfold(cell)(x)
    with Seen() as mode:
        outputs = rit.Unfold(copy.deepcopy(cell), executor="cpu")(x)[0]
    assert not any("mm" in name for name in mode.names)
    assert_close(outputs, expected)


class Seen(TorchDispatchMode):
    """The names of all that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def negated(*size: int) -> Tensor:
    """A tensor whose memory holds the other sign, as that of `z.conj().imag` does."""
    return torch._neg_view(torch.randn(*size)).requires_grad_()


def test_tensors_may_hold_the_other_sign() -> None:
    cell, x = rit.LSTM(3, 4), negated(5, 2, 3)
    cell.W.weight = nn.Parameter(torch._neg_view(cell.W.weight.detach()))
    state = rit.LSTM.State(negated(2, 4), negated(2, 4))
    asked = (negated(5, 2, 4).detach(), negated(2, 4).detach())
    assert all(tensor.is_neg() for tensor in (x, *state, cell.W.weight, *asked))
    found = []
    for executor in ("cpu", "reference"):
        outputs, last = rit.Unfold(cell, executor=executor)(x, state)
        found.append((outputs, *torch.autograd.grad([outputs, last.c], [x, *state, *cell.parameters()], asked)))
    for ours, expected in zip(*found, strict=True):
        assert_close(ours, expected)


def test_tensors_without_memory_run_on_the_reference() -> None:
    """Stand-ins, and tensors that hold others: what they compute is theirs to say."""
    cell, x = rit.GRU(3, 4), torch.randn(5, 2, 3)
    unfold = rit.Unfold(cell)
    expected, _ = unfold(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert isinstance(unfold(mode.from_tensor(x))[0], FakeTensor)
        made = rit.Unfold(rit.GRU(3, 4))(torch.randn(5, 2, 3))[0]
        assert isinstance(made, FakeTensor)
        assert made.shape == (5, 2, 4)
    twice = unfold(TwoTensor(x, 2 * x))[0]
    assert_close(twice.a, expected)
    assert_close(twice.b, unfold(2 * x)[0])
    state = unfold(x, rit.GRU.State(TwoTensor(torch.zeros(2, 4), torch.ones(2, 4))))[0]
    assert_close(state.a, expected)
    plain = cell.U.weight
    cell.U.weight = nn.Parameter(TwoTensor(plain.detach(), 2 * plain.detach()))
    assert_close(unfold(x)[0].a, expected)
    cell.U.weight = plain
    assert torch.equal(unfold(x)[0], expected), "compiled again"
    with pytest.raises(rit.errors.ArgumentError, match="x is a TwoTensor, which computes by its own rules"):
        rit.Unfold(cell, executor="cpu")(TwoTensor(x, x))


def unfold(cell: rit.Cell, dtype: torch.dtype = torch.float32) -> Any:
    return rit.Unfold(cell, executor="cpu")(torch.randn(4, 2, 3, dtype=dtype))


def mapped() -> Any:
    return torch.func.vmap(rit.Unfold(rit.LSTM(3, 4), executor="cpu"))(torch.randn(5, 4, 2, 3))


small_unfold = rit.Unfold(rit.LSTM(3, 4), executor="cpu")


def forward_mode() -> Any:
    with forward_ad.dual_level():
        return small_unfold(forward_ad.make_dual(torch.randn(4, 2, 3), torch.ones(4, 2, 3)))


class Nothing(rit.Cell):
    State = namedtuple("State", "h none")
    state_sizes = (3, 0)

    def forward(self, x: Tensor, s: Any) -> Any:
        return self.State(x + s.h, s.none)


FLOAT8 = rit.LSTM(3, 4).to(torch.float8_e5m2)
REASONS: dict[str, tuple[Callable[[], Any], str]] = {
    "cell": (
        lambda: unfold(Untraceable(3, 4)),
        r"Untraceable cannot be compiled: torch's cumprod \(test_cpu.py, line \d+: .*cumprod.*\); use executor='auto'",
    ),
    "dtype": (
        lambda: rit.Unfold(FLOAT8, executor="cpu")(torch.zeros(2, 1, 3, dtype=torch.float8_e5m2)),
        "x has dtype torch.float8_e5m2; this executor knows float32, float64, bfloat16, float16",
    ),
    "size": (lambda: unfold(Nothing(3, 3)), "Nothing cannot be compiled: field 1 of its state has no elements"),
    "forward": (forward_mode, "it is under forward-mode differentiation"),
    "fx": (lambda: make_fx(lambda x: small_unfold(x)[0])(torch.randn(4, 2, 3)), "torch.fx records what is called"),
    "func": (mapped, "it is under a torch.func transformation"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # which torch calls for forward mode
@pytest.mark.parametrize("what", REASONS)
def test_a_reason_is_given(what: str) -> None:
    call, message = REASONS[what]
    with pytest.raises(ArgumentError, match=f"^Executor 'cpu' cannot run this: {message}"):
        call()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("frozen", [False, True])
def test_forward_mode_goes_by_the_reference(frozen: bool) -> None:
    cell, x, tangent = rit.Elman(3, 4).requires_grad_(not frozen), torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    found = []
    for executor in ("auto", "reference"):
        with forward_ad.dual_level():
            outputs, _ = rit.Unfold(cell, executor=executor)(forward_ad.make_dual(x, tangent))
            found.append(forward_ad.unpack_dual(outputs).tangent)
    assert torch.equal(*found)


def test_a_graph_of_torch_fx_computes_what_it_recorded() -> None:
    unfold, x = rit.Unfold(rit.LSTM(3, 4).requires_grad_(False)), torch.randn(5, 2, 3)
    graph = make_fx(lambda x: unfold(x)[0])(x)
    for values in (x, 2 * x):
        assert_close(graph(values), unfold(values)[0])


# Code and levels from anywhere.


@cache
def encodings() -> list[tuple[list[int], list[float]]]:
    numbers = {name: number for number, name in enumerate(_core.op_names())}
    found = []
    for seed in range(6):
        cell = RandomCell(draw_recipe(random.Random(seed), chance=True))
        joint = derive(simplify(unroll(trace(cell, cell.input_size, cell.state_sizes, torch.zeros((), dtype=F64)), 1)))
        wants = seed % 2 == 0
        found.append(encode(lower(joint, Wants(wants, wants, (wants,) * len(cell.state_sizes))), numbers))
    return found


ODD = st.one_of(st.integers(-3, 100), st.sampled_from([2**20, 2**28, 2**31 - 1, 2**31, -(2**31), 2**62, -(2**63)]))


def mutate(data: st.DataObject, ints: list[int]) -> list[int]:
    changed = list(ints)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(changed) - 1)))
        kind = data.draw(st.integers(0, 4))
        if kind <= 1 and changed:
            changed[at] = data.draw(ODD)
        elif kind == 2:
            changed.insert(at, data.draw(ODD))
        elif kind == 3:
            del changed[at : at + data.draw(st.integers(1, 3))]
        else:
            changed = changed[:at]
    return changed


@given(st.data())
@settings(max_examples=400)
def test_malformed_code_is_refused(data: st.DataObject) -> None:
    """Or taken, where it is code after all; never read beyond its end."""
    ints, constants = data.draw(st.sampled_from(encodings()))
    core = _core.Code(ints, constants)
    assert core.frame_stride >= 0
    told = refused(lambda: _core.Code(mutate(data, ints), constants[: data.draw(st.integers(0, len(constants)))]))
    assert not told or any(word in told for word in ("code", "product", "too many"))


def refused(make: Callable[[], Any]) -> str:
    """What a ValueError says; "" where there is none."""
    try:
        make()
    except ValueError as error:
        return str(error)
    return ""


def schedule_levels() -> list[tuple[int, list[int], list[int], list[int]]]:
    """Arguments of Levels: a dense chain, a ragged one, one with resets."""
    return [(2, [0, 2, 4, 6], [], []), (3, [0, 3, 5, 6], [], []), (2, [0, 2, 4], [1, 2, 0, 4], [5, 6])]


@given(st.data())
@settings(max_examples=300)
def test_malformed_levels_are_refused(data: st.DataObject) -> None:
    arguments = list(data.draw(st.sampled_from(schedule_levels())))
    _core.Levels(*arguments)
    which = data.draw(st.integers(0, 3))
    if isinstance(arguments[which], list):
        arguments[which] = mutate(data, arguments[which])
    else:
        arguments[which] = data.draw(st.sampled_from([-1, 0, 1, 2, 5, 2**20, 2**31 - 1]))
    told = refused(lambda: _core.Levels(*arguments))
    assert not told or told.startswith("levels: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ints: ints[:-1], "the code ends early"),
        (lambda ints: [*ints, 0], "the code goes on after its end"),
        (lambda ints: [99, *ints[1:]], r"the code holds 99 at 0; expected 1 to 16"),
        (lambda ints: [16, 16, *ints[2:]], "too many fields and predecessors"),
    ],
)
def test_what_is_wrong_with_code_is_told(change: Any, message: str) -> None:
    ints, constants = encodings()[0]
    with pytest.raises(ValueError, match=message):
        _core.Code(change(ints), constants)
    with pytest.raises(ValueError, match="other constants than its numbers"):
        _core.Code(ints, [*constants, 1.0])
