"""Adjoints: the exact ones beside "full" and one another; the truncated one beside plain loops, the randomized one
beside all that it may draw. The textbook's closed forms are in `test_bptt.py`."""

from __future__ import annotations

import copy
import itertools
import math
import weakref
from collections import namedtuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, gradients, weighted
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_structures import Batch, batches
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from twins import chain_twin, truncated_twin

import ritornello as rit
from ritornello.engine import influence
from ritornello.engine.adjoint import settle_adjoint
from ritornello.errors import ArgumentError, CellError
from ritornello.executors import Request, chains
from ritornello.structures import chain

F64 = torch.float64


class Noisy(rit.Cell):
    """Draws at random inside: backward must draw the same numbers in every segment."""

    State = namedtuple("State", "h")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = torch.nn.Linear(input_size + hidden_size, hidden_size)

    def forward(self, x: Tensor, s: Any) -> Any:
        return self.State(F.dropout(torch.tanh(self.W(torch.cat([x, s.h], -1))), 0.3, True))


CELLS = {"lstm": rit.LSTM, "gru": rit.GRU, "qrnn": rit.cells.QRNN, "noisy": Noisy}
SHAPES = [(1, 1), (5, 3), (9, 33), (30, 2), (0, 2), (4, 0)]


def calls(time: int, batch: int) -> dict[str, dict[str, Any]]:
    """Keyword arguments of an unfolding's call, by what they are about."""
    lengths = torch.randint(0, time + 1, (batch,))
    resets = torch.rand(time, batch) < 0.3
    return {
        "dense": {},
        "ragged": {"lengths": lengths},
        "resets": {"resets": resets},
        "both": {"lengths": lengths, "resets": resets},
        "every": {"all_states": True},
    }


@pytest.mark.parametrize("executor", ["cpu", "reference"])
@pytest.mark.parametrize("kind", ["dense", "ragged", "resets", "both", "every"])
@pytest.mark.parametrize("cell", list(CELLS))
def test_checkpointed_equals_full(cell: str, kind: str, executor: str) -> None:
    for time, batch in SHAPES:
        made, call = CELLS[cell](4, 7).double(), calls(time, batch)[kind]
        x = torch.randn(time, batch, 4, dtype=F64, requires_grad=True)
        found = {}
        for adjoint in ("full", "checkpointed"):
            unfold = rit.Unfold(made, adjoint=adjoint, executor=executor, learn_initial=True).double()
            with torch.no_grad():
                for field in unfold.initial:
                    field.fill_(0.3)
            torch.manual_seed(1)
            values = unfold(x, **call)
            found[adjoint] = (values, gradients(values, {"x": x, **dict(unfold.named_parameters())}))
        assert_close(found["checkpointed"], found["full"])


@pytest.mark.parametrize("executor", ["cpu", "reference"])
@pytest.mark.parametrize("adjoint", ["checkpointed", "truncated:3,4,checkpointed", "randomized:0.3,checkpointed"])
def test_segments_are_run_again_by_the_weights_of_their_forward_pass(adjoint: str, executor: str) -> None:
    """Weights are lent for the forward pass alone, as `WeightDrop` lends them."""
    unfold = rit.Unfold(rit.LSTM(3, 5).double(), executor=executor)
    dropped, x = rit.nn.WeightDrop(unfold), torch.randn(9, 3, 3, dtype=F64)
    found = []
    for unfold.adjoint in (adjoint.removesuffix("checkpointed").rstrip(",") or "full", adjoint):
        torch.manual_seed(1)
        found.append(torch.autograd.grad(dropped(x)[0].square().sum(), list(dropped.parameters())))
    assert_close(found[1], found[0])


@pytest.mark.parametrize("executor", ["cpu", "reference"])
@pytest.mark.parametrize("adjoint", ["full", "checkpointed", "forward"])
@pytest.mark.parametrize("kind", ["zoneout", "variational"])
def test_the_backward_pass_is_of_the_mode_of_the_forward_pass(kind: str, adjoint: str, executor: str) -> None:
    """Of zoneout the mean, and masks drawn before the walk: accumulated forwards, cells draw in another order."""
    cell = rit.LSTM(3, 5).double()
    if kind == "zoneout":
        unfold = rit.Unfold(rit.nn.Zoneout(cell, 0.4), adjoint=adjoint, executor=executor)
        unfold.eval()
    else:
        unfold = rit.nn.VariationalDropout(cell, recurrent=0.4, adjoint=adjoint, executor=executor)
    x, found = torch.randn(6, 2, 3, dtype=F64), []
    for changed in (False, True):
        torch.manual_seed(1)
        loss = unfold(x)[0].square().sum()
        unfold.train(unfold.training != changed)
        found.append(torch.autograd.grad(loss, list(unfold.parameters())))
        unfold.train(unfold.training != changed)
    assert_close(found[1], found[0])


@pytest.mark.parametrize("executor", ["cpu", "reference"])
@pytest.mark.parametrize("adjoint", ["full", "checkpointed", "forward"])
def test_a_weight_changed_between_the_passes_is_told(adjoint: str, executor: str) -> None:
    unfold = rit.Unfold(rit.LSTM(3, 5), adjoint=adjoint, executor=executor)
    loss = unfold(torch.randn(6, 2, 3))[0].sum()
    with torch.no_grad():
        unfold.cell.U.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_second_backward_gives_the_same() -> None:
    unfold = rit.Unfold(rit.LSTM(3, 4).double(), adjoint="checkpointed", executor="cpu")
    x = torch.randn(10, 2, 3, dtype=F64, requires_grad=True)
    outputs, _ = unfold(x)
    first = torch.autograd.grad(outputs.sum(), x, retain_graph=True)
    assert_close(torch.autograd.grad(outputs.sum(), x), first)


def test_only_root_t_states_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond x and the outputs: checkpoints of √T segments; no frames at all between forward and backward."""
    runs = []

    class Watched(chains.ChainRun):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            found = super().forward(*args, **kwargs)
            runs.append(self)
            return found

    monkeypatch.setattr("ritornello.executors.cpu.ChainRun", Watched)
    unfold = rit.Unfold(rit.LSTM(3, 8), adjoint="checkpointed", executor="cpu")
    unfold(torch.randn(100, 2, 3))
    (run,) = runs
    assert len(run.segments) == 10
    assert [tuple(field.shape) for field in run.checkpoints] == [(9, 2, 8)] * 2
    assert run.memory is None
    assert not run.frames


class Watched(rit.Cell):
    """Knows which of its intermediate values are alive."""

    State = namedtuple("State", "h")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size + hidden_size, hidden_size)
        self.made: list[weakref.ref] = []
        self.most = 0

    def alive(self) -> int:
        return sum(made() is not None for made in self.made)

    def forward(self, x: Tensor, s: Any) -> Any:
        inner = torch.tanh(self.W(torch.cat([x, s.h], -1)))
        self.made.append(weakref.ref(inner))
        self.most = max(self.most, self.alive())
        return self.State(inner * inner)


def test_the_reference_executor_keeps_root_t_steps_too() -> None:
    for adjoint, alive, most in (("full", 100, 100), ("checkpointed", 0, 11)):
        cell = Watched(2, 3)
        unfold = rit.Unfold(cell, adjoint=adjoint, executor="reference")
        x = torch.randn(100, 2, 2, requires_grad=True)
        outputs, _ = unfold(x)
        assert cell.alive() == alive
        outputs.sum().backward()
        assert cell.most <= most, adjoint


def made(cell: str, batch: Batch, executor: str) -> tuple[rit.Unfold, dict[str, Tensor], dict[str, Any]]:
    """An unfolding with a learnt initial state; its inputs (x, the given state, parameters) by name; its options."""
    torch.manual_seed(1)
    unfold = rit.Unfold(CELLS[cell](2, 3), reverse=batch.reverse, executor=executor, learn_initial=True).double()
    for field in unfold.initial:
        nn.init.constant_(field, 0.3)
    inputs = {"x": torch.randn(batch.time, batch.batch, 2, dtype=F64, requires_grad=True)}
    for field in unfold.cell.State._fields:
        inputs[field] = torch.randn(batch.batch, 3, dtype=F64, requires_grad=True)
    resets = None if batch.resets is None else torch.tensor(batch.resets).bool().view(batch.time, batch.batch)
    return unfold, {**inputs, **dict(unfold.named_parameters())}, {"lengths": batch.lengths, "resets": resets}


def called(
    unfold: rit.Unfold, inputs: dict[str, Tensor], options: dict[str, Any], adjoint: Any
) -> tuple[Any, dict[str, Tensor]]:
    """Values and gradients with an adjoint; the outputs and the final states weigh in them."""
    unfold.adjoint = adjoint
    values = unfold(inputs["x"], tuple(inputs[field] for field in unfold.cell.State._fields), **options)
    return values, gradients(values, inputs)


RAGGED = Batch(6, 3, [6, 2, 0], [[False, True, False]] * 2 + [[False] * 3] * 4, False)


@pytest.mark.parametrize("executor", ["cpu", "reference"])
@settings(max_examples=25)
@given(batch=batches(), k1=st.integers(1, 4), more=st.integers(0, 4), every=st.booleans(), checkpointed=st.booleans())
@example(batch=RAGGED, k1=2, more=1, every=True, checkpointed=True)
@example(batch=RAGGED._replace(reverse=True), k1=1, more=1, every=True, checkpointed=False)
def test_truncated_is_what_plain_loops_with_detach_give(
    executor: str, batch: Batch, k1: int, more: int, every: bool, checkpointed: bool
) -> None:
    unfold, inputs, options = made("lstm", batch, executor)
    options["all_states"] = every
    found = called(unfold, inputs, options, rit.Truncated(k1, k1 + more, checkpointed=checkpointed))
    plain, _ = called(unfold, inputs, options, "full")
    assert_close(found[0], plain)
    given_state = unfold.cell.State(*(inputs[field] for field in unfold.cell.State._fields))
    initial = unfold.cell.State(*unfold.initial)
    states, last = truncated_twin(
        unfold.cell, inputs["x"], initial, given_state, k1, k1 + more, batch.lengths, options["resets"], batch.reverse
    )
    expected = (states if every else states[0], last)
    assert_close(found, (expected, gradients(expected, inputs)))


class Largest(rit.Cell):
    """The largest number so far."""

    def forward(self, x: Tensor, s: Any) -> Any:
        return self.State(torch.maximum(s.h, x))


@pytest.mark.parametrize("executor", ["cpu", "reference"])
def test_a_state_may_be_infinite(executor: str) -> None:
    unfold = rit.Unfold(Largest(2, 2), adjoint=rit.Truncated(1, 2), executor=executor)
    x = torch.tensor([[1.0, 5.0], [2.0, 4.0], [3.0, -math.inf]]).requires_grad_()
    outputs, last = unfold(x, (torch.full((2,), -math.inf),))
    assert outputs.tolist() == [[1, 5], [2, 5], [3, 5]]
    last.h.sum().backward()
    assert x.grad.tolist() == [[0, 0], [0, 0], [1, 0]]  # the 5 lies further back than two steps


def test_the_twin_that_reaches_back_all_the_way_is_the_full_one() -> None:
    unfold, inputs, options = made("lstm", RAGGED, "reference")
    state, initial = unfold.cell.State(inputs["h"], inputs["c"]), unfold.cell.State(*unfold.initial)
    rest = (RAGGED.lengths, options["resets"], RAGGED.reverse)
    found = truncated_twin(unfold.cell, inputs["x"], initial, state, 2, 6, *rest)
    expected = chain_twin(unfold.cell, inputs["x"], initial, state, *rest)
    assert_close((found, gradients(found, inputs)), (expected, gradients(expected, inputs)))


@pytest.mark.parametrize("executor", ["cpu", "reference"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@settings(max_examples=15)
@given(batch=batches(), every=st.booleans())
@example(batch=RAGGED, every=True)
@example(batch=Batch(3, 0, None, None, False), every=False)
@example(batch=Batch(0, 3, None, None, False), every=True)
def test_forward_equals_full(cell: str, executor: str, batch: Batch, every: bool) -> None:
    unfold, inputs, options = made(cell, batch, executor)
    found, expected = (called(unfold, inputs, {**options, "all_states": every}, way) for way in ("forward", "full"))
    assert_close(found, expected)


def test_forward_gives_what_is_asked_for_and_no_more() -> None:
    unfold, inputs, options = made("gru", RAGGED, "auto")
    unfold.cell.U.weight.requires_grad_(False)
    inputs["x"].requires_grad_(False)
    asked = {name: tensor for name, tensor in inputs.items() if tensor.requires_grad}
    found = {}
    for unfold.adjoint in ("full", "forward"):
        values = unfold(inputs["x"], (inputs["h"],), **options)
        found[str(unfold.adjoint)] = gradients(values, asked)
    assert_close(found["forward"], found["full"])
    with torch.no_grad():
        assert not unfold(inputs["x"])[0].requires_grad
    for parameter in unfold.parameters():
        parameter.requires_grad_(False)
    assert not unfold(inputs["x"])[0].requires_grad


def test_memory_of_forward_does_not_grow_with_the_steps() -> None:
    """Between forward and backward: what entered, and nothing else."""
    unfold = rit.Unfold(rit.LSTM(3, 4), adjoint="forward")
    unfold(torch.zeros(1, 1, 3))  # records the cell, under autograd
    kept = {}
    for time in (5, 50):
        x, sizes = torch.randn(time, 2, 3), []
        with saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            unfold(x)
        kept[time] = sum(sizes) - x.numel()
    assert kept[5] == kept[50] == sum(p.numel() for p in unfold.parameters()) + 2 * (2 + 1) * 4


PROBABILITIES = (0.9, 0.5, 0.25, 0.125)  # of the first step nothing is carried back


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("executor", ["cpu", "reference"])
def test_randomized_draws_every_outcome_as_often_as_it_should(executor: str, checkpointed: bool) -> None:
    """Eight ways to stop: each by plain loops; their mean by probability is the full gradient, exactly."""
    draws = 2000
    cell = rit.LSTM(2, 3).double()
    x = torch.randn(4, 1, 2, dtype=F64)
    many = x.expand(4, draws, 2).clone().requires_grad_()
    unfold = rit.Unfold(cell, adjoint=rit.Randomized(PROBABILITIES, checkpointed=checkpointed), executor=executor)
    found = torch.autograd.grad(weighted_alike(unfold(many)), many)[0]
    mean = torch.zeros(4, 2, dtype=F64)
    matched = torch.zeros(draws, dtype=torch.bool)
    for stops in itertools.product([False, True], repeat=3):
        factors = [0 if stop else 1 / (1 - p) for stop, p in zip(stops, PROBABILITIES[1:], strict=True)]
        probability = math.prod(p if stop else 1 - p for stop, p in zip(stops, PROBABILITIES[1:], strict=True))
        outcome = damped_gradient(cell, x, [1.0, *factors])
        mean += probability * outcome
        same = (found - outcome[:, None]).abs().amax((0, 2)) < 1e-9
        spread = math.sqrt(draws * probability * (1 - probability))
        assert abs(int(same.sum()) - draws * probability) < 5 * spread
        matched |= same
    assert matched.all()
    assert_close(mean, damped_gradient(cell, x, [1.0] * 4))


def weighted_alike(values: Any) -> Tensor:
    """The same loss of every sequence."""
    outputs, last = values
    return (outputs * torch.linspace(-1, 2, 12, dtype=F64).view(4, 1, 3)).sum() + (last.c * last.h).sum()


def damped_gradient(cell: rit.Cell, x: Tensor, factors: list[float]) -> Tensor:
    """x's gradient by a plain loop, in which what goes back from step t is multiplied by factors[t]."""
    x = x.clone().requires_grad_()
    state, outputs = cell.zero_state(1, x), []
    for step, factor in zip(x, factors, strict=True):
        state = cell.State(*(factor * field + (1 - factor) * field.detach() for field in state))
        state = cell(step, state)
        outputs.append(state.h)
    return torch.autograd.grad(weighted_alike((torch.stack(outputs), state)), x)[0][:, 0]


def test_the_mean_of_randomized_is_the_full_gradient_and_truncated_is_not() -> None:
    draws, time = 4000, 12
    cell = rit.Elman(2, 5).double()
    with torch.no_grad():
        cell.U.weight.copy_(torch.eye(5))  # so that what is far still weighs
        cell.W.weight.mul_(0.3)
    x = torch.randn(time, 1, 2, dtype=F64).expand(time, draws, 2).clone().requires_grad_()

    def first_steps(adjoint: Any) -> Tensor:
        outputs, _ = rit.Unfold(cell, adjoint=adjoint)(x)
        return torch.autograd.grad(outputs[-1].sum(), x)[0][:3].flatten(2).transpose(0, 1).flatten(1)

    exact = first_steps("full")[0]
    randomized = first_steps(rit.Randomized(0.1))
    standard_error = randomized.std(0) / math.sqrt(draws)
    assert ((randomized.mean(0) - exact) / standard_error).abs().max() < 5
    assert ((first_steps("truncated:4,8").mean(0) - exact) / standard_error).abs().min() > 20
    assert not torch.equal(first_steps("randomized:0.1"), randomized), "drawn anew at each call"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_randomized_is_unbiased_in_every_precision(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 / 0.95 is 0.2 % more in bfloat16, 10 % in 50 steps: so it stops as much more often. By evenly drawn numbers."""
    draws = 100_000
    cell, schedule = rit.Elman(1, 1), chain(2, draws)
    monkeypatch.setattr(torch, "rand", lambda count, **like: (torch.arange(count, **like) % draws + 0.5) / draws)
    asked = Request(cell, torch.zeros(2 * draws, 1, dtype=dtype), None, None, schedule)
    seen = []
    rit.Randomized(0.05).unfold(asked, lambda request: seen.append(request.damping))
    first, second = seen[0].view(2, draws).double()
    assert (first == 1).all()
    assert len(second.unique()) == 2
    assert abs(float(second.mean()) - 1) < 2e-5


@pytest.mark.parametrize("adjoint", ["truncated:2,3", "randomized:0.4", "randomized:0.4,checkpointed"])
def test_both_executors_give_the_same_first_and_second_derivatives(adjoint: str) -> None:
    found = {}
    for executor in ("cpu", "reference"):
        unfold, inputs, options = made("lstm", RAGGED, executor)
        unfold.adjoint = adjoint
        torch.manual_seed(2)
        values = unfold(inputs["x"], (inputs["h"], inputs["c"]), **options)
        first = torch.autograd.grad(weighted(values), list(inputs.values()), create_graph=True)
        found[executor] = (first, gradients(first, inputs))
    assert_close(found["cpu"], found["reference"])
    unfold.adjoint = "full"
    values = unfold(inputs["x"], (inputs["h"], inputs["c"]), **options)
    full = torch.autograd.grad(weighted(values), list(inputs.values()))
    with pytest.raises(AssertionError, match="differs"):
        assert_close(found["cpu"][0], full)


@pytest.mark.parametrize("executor", ["cpu", "reference"])
@pytest.mark.parametrize("adjoint", ["truncated:3,3", "truncated:2,5", "truncated:2,5,checkpointed"])
def test_a_truncated_unfolding_draws_what_the_full_one_draws(adjoint: str, executor: str) -> None:
    cell, x = Noisy(2, 3), torch.randn(11, 2, 2, requires_grad=True)
    found = []
    for way in ("full", adjoint):
        torch.manual_seed(3)
        outputs, last = rit.Unfold(cell, adjoint=way, executor=executor)(x)
        found.append((outputs, last.h, torch.rand(4)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("adjoint", ["full", "checkpointed", "truncated:2,3", "randomized:0.2"])
def test_under_torch_no_grad_and_in_float32(adjoint: str) -> None:
    unfold, x = rit.Unfold(rit.GRU(3, 4), adjoint=adjoint), torch.randn(7, 2, 3)
    expected = rit.Unfold(unfold.cell)(x)
    assert all(torch.equal(one, other) for one, other in zip(unfold(x)[1], expected[1], strict=True))
    with torch.no_grad():
        assert torch.equal(unfold(x)[0], expected[0])
    unbatched, _ = unfold(x[:, 0])
    assert_close(unbatched, expected[0][:, 0])


def test_texts_and_dataclasses_say_the_same() -> None:
    for text, adjoint in {
        "truncated:20,40": rit.Truncated(20, 40),
        "truncated:20,40,checkpointed": rit.Truncated(20, 40, checkpointed=True),
        "randomized:0.05": rit.Randomized(0.05),
        "randomized:0.05,checkpointed": rit.Randomized(0.05, checkpointed=True),
    }.items():
        assert settle_adjoint(text) == adjoint == rit.Unfold(rit.LSTM(3, 4), adjoint=adjoint).adjoint
        assert str(adjoint) == text
    assert rit.Randomized(torch.tensor([0.5, 0.25])) == rit.Randomized((0.5, 0.25))
    unfold = rit.Unfold(rit.LSTM(3, 4), adjoint="truncated:2, 4")
    assert str(copy.deepcopy(unfold).adjoint) == "truncated:2,4"
    assert "adjoint='truncated:2,4'" in repr(unfold)
    assert "adjoint" not in repr(rit.Unfold(rit.LSTM(3, 4)))


@pytest.mark.parametrize(
    ("adjoint", "message"),
    [
        ("checkpoint", r"^Unknown adjoint 'checkpoint': did you mean checkpointed\?"),
        ("truncate:2,3", r"^Unknown adjoint 'truncate': did you mean truncated\?"),
        ("truncated:3,2", r"^k2 is 2; it must be at least k1, 3"),
        ("truncated:0,2", r"^k1 must be a positive integer, not 0"),
        ("truncated:2,-1", r"^k2 must be a positive integer, not -1"),
        ("truncated:2", r"^Adjoint 'truncated:2' is not understood: write truncated:K1,K2\."),
        ("truncated:2,x", r"^Adjoint 'truncated:2,x' is not understood: write truncated:K1,K2\."),
        ("truncated", r"^Adjoint 'truncated' is not understood"),
        ("randomized", r"^Adjoint 'randomized' is not understood: write randomized:P\."),
        ("randomized:1", r"^p must lie in 0 to 1 \(exclusive\), not 1\.0\."),
        ("randomized:nan", r"^p must lie in 0 to 1 \(exclusive\), not nan\."),
        ("randomized:0.1,0.2", r"^Adjoint 'randomized:0\.1,0\.2' is not understood"),
        ("full:2", r"^Adjoint 'full:2' is not understood: write full\."),
        (None, r"^adjoint must be a text such as 'truncated:20,40', or an adjoint, not None\."),
    ],
)
def test_what_cannot_be_is_named(adjoint: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        rit.Unfold(rit.LSTM(3, 4), adjoint=adjoint)


def test_what_settings_cannot_be_is_named() -> None:
    for p, message in {
        "x": "^p must be a number or one number for each step, not 'x'",
        ((0.1,), (0.2,)): r"^p must be a number or one number for each step, not of shape \(2, 1\)",
        (0.5, -0.5): r"^p must lie in 0 to 1 \(exclusive\), not -0\.5",
    }.items():
        with pytest.raises(ArgumentError, match=message):
            rit.Randomized(p)
    with pytest.raises(ArgumentError, match=r"^k1 must be a positive integer, not True"):
        rit.Truncated(True, 2)
    unfold = rit.Unfold(rit.LSTM(3, 4), adjoint=rit.Randomized((0.1, 0.1)))
    with pytest.raises(ArgumentError, match=r"^p holds 2 probabilities for 3 steps; give one for each"):
        unfold(torch.zeros(3, 1, 3))


def test_probabilities_of_steps_that_there_are_not_are_left_aside() -> None:
    unfold = rit.Unfold(rit.LSTM(3, 4), adjoint=rit.Randomized((0.1, 0.1, 0.1, 0.1)))
    outputs, _ = unfold(torch.zeros(3, 1, 3))
    outputs.sum().backward()
    assert outputs.shape == (3, 1, 4)


@pytest.mark.parametrize("adjoint", ["checkpointed", "truncated:2,2", "randomized:0.1", "forward"])
def test_trees_want_another_adjoint(adjoint: str) -> None:
    unfold = rit.Unfold(rit.LSTM(3, 4), adjoint=adjoint)
    with pytest.raises(
        ArgumentError, match=rf"^adjoint='{adjoint}' goes back along chains; unfold LSTM over trees with"
    ):
        unfold.over([[2, 2, -1]], torch.zeros(3, 3))
    with pytest.raises(ArgumentError, match="over trees"):  # though each node of this one has one child
        unfold.over([[1, 2, -1]], torch.zeros(3, 3))


def test_what_the_executors_do_not_checkpoint() -> None:
    unfold = rit.Unfold(rit.LSTM(3, 4), adjoint="checkpointed", executor="reference")
    with pytest.raises(ArgumentError, match=r"no checkpoints are kept under a torch\.func transformation"):
        torch.func.grad(lambda x: unfold(x)[0].sum())(torch.zeros(3, 1, 3))


def test_the_influence_matrix_may_be_as_large_as_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype, size in ((torch.float32, 4), (F64, 8)):
        unfold = rit.Unfold(rit.Elman(2, 3), adjoint="forward").to(dtype)
        needed = 3 * sum(parameter.numel() for parameter in unfold.parameters()) * size
        monkeypatch.setattr(influence, "MOST_BYTES", needed)
        unfold(torch.zeros(2, 1, 2, dtype=dtype))
        monkeypatch.setattr(influence, "MOST_BYTES", needed - 1)
        with pytest.raises(ArgumentError, match="would carry an influence matrix"):
            unfold(torch.zeros(2, 1, 2, dtype=dtype))


def test_what_forward_is_not_for() -> None:
    big = rit.Unfold(rit.LSTM(256, 256), adjoint="forward")
    message = r"an influence matrix of 16 sequences by 512 states by 525,312 numbers to differentiate by, 17\.2 GB"
    with pytest.raises(ArgumentError, match=message):
        big(torch.zeros(2, 16, 256))
    with torch.no_grad():
        assert big(torch.zeros(2, 16, 256))[0].shape == (2, 16, 256)
    noisy = rit.Unfold(Noisy(2, 3), adjoint="forward")
    with pytest.raises(CellError, match=r"^Noisy cannot be accumulated forwards \(.*random.*\); use adjoint='check"):
        noisy(torch.zeros(2, 1, 2))[0].sum().backward()
    hidden = rit.Unfold(rit.Elman(2, 3), adjoint="forward")
    hidden.cell.extra = torch.zeros(3, requires_grad=True)
    with pytest.raises(ArgumentError, match="Elman's 'extra' is a tensor that requires a gradient and is none"):
        hidden(torch.zeros(2, 1, 2))
    once = rit.Unfold(rit.Elman(2, 3), adjoint="forward")
    with pytest.raises(ArgumentError, match=r"^adjoint='forward' gives first derivatives only; for more use"):
        torch.autograd.grad(once(torch.randn(2, 1, 2))[0].sum(), once.cell.W.weight, create_graph=True)
    with pytest.raises(ArgumentError, match=r"^adjoint='forward' is no part of a torch\.func transformation; use"):
        torch.func.grad(lambda x: once(x)[0].sum())(torch.randn(2, 1, 2))
