"""Cells against their papers' equations in NumPy and against torch's cells, and their gradients, on every executor."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_close, gradients
from oracles import ORACLES, over_tree, sigmoid, unfold
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from twins import TORCH_CELLS, VARIANTS, copy_from_torch, random_state

import ritornello as rit
from ritornello.cells import CELLS, Cell, meaning_of_total, over_predecessors, total
from ritornello.errors import CellError
from ritornello.executors import EXECUTORS

F64 = torch.float64
TREE = [3, 3, 5, 5, 5, -1]  # node 3 has two children, the root three, of which 2 and 4 are leaves
LENGTHS = [6, 0, 4, 1]
RESETS = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 1, 0]]).bool()
PADDING = torch.arange(6)[:, None] >= torch.tensor(LENGTHS)
OVER_TREES = [name for name, oracle in ORACLES.items() if oracle.predecessors != "one"]
FOR_CHAINS = [name for name, oracle in ORACLES.items() if oracle.predecessors == "one"]


@pytest.fixture(scope="session", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


def make(variant: str, input_size: int = 3, hidden_size: int = 4) -> Cell:
    return VARIANTS[variant](input_size, hidden_size).to(F64)


# The papers' equations.


def test_every_cell_has_an_oracle() -> None:
    assert set(ORACLES) == set(VARIANTS), "a cell of CELLS needs its paper's equations in tests/oracles.py"


def test_a_cell_is_its_equations(variant: str) -> None:
    cell = make(variant)
    x, state = torch.randn(5, cell.input_size, dtype=F64), random_state(cell, 5)
    new = cell(x, state)
    assert type(new) is cell.State
    for row in range(5):
        expected = ORACLES[variant](cell, x[row].numpy(), *(f[row : row + 1].detach().numpy() for f in state))
        assert_close([field[row] for field in new], expected, f"row {row}")


@pytest.mark.parametrize("variant", OVER_TREES)
def test_a_cell_over_several_predecessors_is_its_equations(variant: str) -> None:
    cell = make(variant)
    x = torch.randn(5, 1, cell.input_size, dtype=F64)
    state = cell.State(*(torch.randn(5, 3, size, dtype=F64) for size in cell.state_sizes))
    with meaning_of_total(over_predecessors):
        new = cell(x, state)
    for row in range(5):
        expected = ORACLES[variant](cell, x[row, 0].numpy(), *(field[row].numpy() for field in state))
        assert_close([field[row, 0] for field in new], expected, f"row {row}")


@pytest.mark.parametrize("variant", OVER_TREES)
def test_unfolding_over_a_tree_is_the_equations_at_every_node(variant: str) -> None:
    """For the LSTM this is the child-sum Tree-LSTM; leaves read zeros."""
    cell = make(variant)
    x = torch.randn(len(TREE), cell.input_size, dtype=F64)
    states = over_tree(ORACLES[variant], cell, TREE, x.numpy())
    nodes, root = rit.Unfold(cell).over([TREE], x, all_states=True)
    for number, name in enumerate(cell.State._fields):
        assert_close(nodes[number], np.stack([states[node][number] for node in range(len(TREE))]), name)
        assert_close(root[number], states[5][number][None], f"root {name}")


@pytest.mark.parametrize("variant", FOR_CHAINS)
def test_a_cell_for_chains_says_so_over_a_tree(variant: str) -> None:
    unfold, name = rit.Unfold(make(variant)), type(make(variant)).__name__
    x = torch.randn(len(TREE), unfold.cell.input_size, dtype=F64)
    reason = r"(is a cell for chains: its state '\w+' keeps 2 predecessors apart|cannot run over 2 predecessors .*)"
    told = rf"^{name} {reason}; to run it over trees, sum over predecessors with ritornello\.total"
    with pytest.raises(CellError, match=told):
        unfold.over([TREE], x)
    nodes, _ = unfold.over([[1, 2, 3, 4, 5, -1]], x)  # where no node has two children it may
    assert_close(nodes, unfold(x[:, None])[0][:, 0])


@pytest.mark.parametrize("executor", list(EXECUTORS))
@pytest.mark.parametrize("reverse", [False, True])
def test_unfolding_over_a_chain_is_the_equations_at_every_step(variant: str, reverse: bool, executor: str) -> None:
    """A ragged batch with resets and a given state, in both directions."""
    cell = make(variant)
    x, state = torch.randn(6, 4, cell.input_size, dtype=F64), random_state(cell, 4)
    x[PADDING] = float("nan")
    given = [field.detach().numpy() for field in state]
    expected, last = unfold(ORACLES[variant], cell, x.numpy(), given, LENGTHS, RESETS.numpy(), reverse)
    run = rit.Unfold(cell, reverse=reverse, executor=executor)
    with torch.no_grad():
        found = run(x, state, lengths=LENGTHS, resets=RESETS, all_states=True)
    assert_close([tuple(part) for part in found], [expected, last])


@pytest.mark.parametrize("periods", [(1, 2, 4, 8), (2, 3), (1,), (3, 3)])
def test_a_group_steps_when_its_period_divides_the_time_since_the_last_reset(periods: tuple[int, ...]) -> None:
    cell, x = rit.cells.GroupedRNN(3, 2 * len(periods), periods), torch.randn(20, 1, 3)
    resets = torch.zeros(20, 1, dtype=torch.bool)
    resets[7] = True
    with torch.no_grad():
        outputs, _ = rit.Unfold(cell)(x, resets=resets)
    groups = torch.cat([torch.zeros(1, 1, cell.hidden_size), outputs]).view(21, len(periods), 2)
    moved = (groups[1:] != groups[:-1]).all(-1)
    for t in range(20):
        time = t if t < 7 else t - 7
        assert moved[t].tolist() == [time % period == 0 or t == 7 for period in periods]


def test_a_quasi_recurrent_network_is_a_convolution_over_two_inputs_and_a_pooling() -> None:
    cell, x = make("qrnn"), torch.randn(6, 1, 3, dtype=F64)
    kernel = torch.stack([cell.V.weight, cell.W.weight], -1)
    convolved = nn.functional.conv1d(nn.functional.pad(x[:, 0].T, (1, 0)), kernel, cell.W.bias)
    z, f, o = convolved.detach().T.numpy().reshape(6, 3, 4).transpose(1, 0, 2)
    c, outputs = np.zeros(4), []
    for t in range(6):
        c = sigmoid(f[t]) * c + (1 - sigmoid(f[t])) * np.tanh(z[t])
        outputs.append(sigmoid(o[t]) * c)
    assert_close(rit.Unfold(cell)(x)[0][:, 0], np.stack(outputs))


@pytest.mark.parametrize("executor", list(EXECUTORS))
@pytest.mark.parametrize(("variant", "shut"), [("slstm", "fi"), ("min-lstm", "fi"), ("rg-lru", "r")])
def test_gates_that_are_all_but_shut_give_numbers(variant: str, shut: str, executor: str) -> None:
    cell = make(variant).float()
    with torch.no_grad():
        for gate in shut:
            cell.W.bias.chunk(len(cell.gates))[cell.gates.index(gate)].fill_(-200)
    outputs, _ = rit.Unfold(cell, executor=executor)(torch.randn(3, 1, 3))
    assert outputs.isfinite().all()
    for found in gradients(outputs, dict(cell.named_parameters())).values():
        assert found.isfinite().all()


@pytest.mark.parametrize(("variant", "shut"), [("slstm", "i"), ("rg-lru", "r")])
def test_gates_that_are_all_but_shut_give_numbers_in_half_precision(variant: str, shut: str) -> None:
    """Where 1e-37 is 0."""
    cell = make(variant).half()
    with torch.no_grad():
        cell.W.bias.chunk(len(cell.gates))[cell.gates.index(shut)].fill_(-20)
    outputs, _ = rit.Unfold(cell, executor="reference")(torch.randn(3, 1, 3).half())
    assert outputs.isfinite().all()
    for found in gradients(outputs, dict(cell.named_parameters())).values():
        assert found.isfinite().all()


@pytest.mark.parametrize("executor", list(EXECUTORS))
def test_a_linear_recurrent_unit_that_hardly_forgets_still_reads(executor: str) -> None:
    cell = rit.cells.LRU(1, 1)
    with torch.no_grad():
        cell.nu.fill_(np.log(1e-8))
        cell.B.weight.fill_(1)
    states, _ = rit.Unfold(cell, executor=executor)(torch.ones(1, 1, 1), all_states=True)
    assert states.s.item() == pytest.approx(2e-8**0.5, rel=1e-4)
    (slope,) = torch.autograd.grad(states.s.sum(), cell.nu)
    assert slope.item() == pytest.approx(2e-8**0.5 / 2, rel=1e-4)


# The cells that torch has.


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in TORCH_CELLS), ("elman", {"nonlinearity": "relu"})]
)
def test_a_cell_equals_torch_s(name: str, options: dict[str, str], dtype: torch.dtype) -> None:
    theirs = TORCH_CELLS[name](3, 4, **options, dtype=dtype)
    ours = CELLS[name](3, 4, **options).to(dtype)
    names = copy_from_torch(ours, theirs)
    x, state = torch.randn(5, 3, dtype=dtype, requires_grad=True), random_state(ours, 5, dtype)
    for field in state:
        field.requires_grad_()
    new = ours(x, state)
    expected = theirs(x, tuple(state) if len(state) > 1 else state[0])
    expected = expected if isinstance(expected, tuple) else (expected,)
    assert_close(tuple(new), expected)

    inputs = {"x": x, **state._asdict()}
    our_gradients = gradients(new, inputs | dict(ours.named_parameters()))
    their_gradients = gradients(expected, inputs | names)
    if "d" in names:
        their_gradients["d"] = their_gradients["d"][-4:]
    assert_close({key: our_gradients[key] for key in their_gradients}, their_gradients)


@pytest.mark.parametrize("options", [{"bias": False}, {"proj_size": 2}], ids=str)
def test_options_that_torch_s_layers_have(options: dict[str, Any]) -> None:
    theirs = (nn.LSTM if "proj_size" in options else nn.GRU)(3, 4, dtype=F64, **options)
    ours: Any = rit.cells.ProjectedLSTM(3, 4, 2) if "proj_size" in options else rit.GRU(3, 4, bias=False)
    names = {"W.weight": theirs.weight_ih_l0, "U.weight": theirs.weight_hh_l0}
    if "proj_size" in options:
        nn.init.zeros_(theirs.bias_hh_l0)
        names |= {"W.bias": theirs.bias_ih_l0, "V.weight": theirs.weight_hr_l0}
    ours = ours.to(F64)
    ours.load_state_dict(names)
    x = torch.randn(5, 2, 3, dtype=F64, requires_grad=True)
    expected, found = theirs(x)[0], rit.Unfold(ours)(x)[0]
    assert_close(found, expected)
    inputs = {"x": x, **{name: ours.get_parameter(name) for name in names}}
    assert_close(gradients(found, inputs), gradients(expected, {"x": x, **names}))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("reset", ["after", "before"])
def test_both_conventions_of_the_update_gate_are_one_function(reset: str, bias: bool) -> None:
    """Weights of z change their signs, and so do their gradients; there and back changes no bit."""
    keep = rit.GRU(3, 4, reset=reset, bias=bias).to(F64).eval()
    write = keep.with_update("write")
    assert (write.update, write.reset, write.training, write.keeps, write.writes) == ("write", reset, False, (), ("z",))
    for name, parameter in write.with_update("keep").named_parameters():
        assert torch.equal(parameter, keep.get_parameter(name))
    assert keep.with_update("keep") is not keep

    x, state = torch.randn(5, 2, 3, dtype=F64, requires_grad=True), random_state(keep, 2)
    answers = []
    for cell in (keep, write):
        found = rit.Unfold(cell)(x, state)
        inputs = {"x": x, "h": state.h, **dict(cell.named_parameters())}
        answers.append((found, gradients(found, inputs)))
    (expected, wanted), (found, mapped) = answers
    for name in ("W.weight", "U.weight", "W.bias"):
        if name in mapped:
            mapped[name].chunk(3)[1].neg_()
    assert_close(found, expected)
    assert_close(mapped, wanted)


# Gradients.


def test_gradients_of_first_and_second_order(variant: str) -> None:
    """Finite differences of a ragged batch with a reset, in x, given and learnt state and every parameter."""
    unfold = rit.Unfold(make(variant, 2, 2), reverse=len(variant) % 2 == 1, learn_initial=True).to(F64)
    parameters = dict(unfold.named_parameters())
    resets = torch.tensor([[False, False], [False, True], [False, False]])

    def run(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        state, weights = values[: len(unfold.cell.State._fields)], values[len(unfold.cell.State._fields) :]
        named = dict(zip(parameters, weights, strict=True))
        options = {"lengths": [1, 3], "resets": resets, "all_states": True}
        outputs, last = functional_call(unfold, named, (x, tuple(state)), options)
        return *outputs, *last

    inputs = [torch.randn(3, 2, 2, dtype=F64), *random_state(unfold.cell, 2), *parameters.values()]
    inputs = [value.detach().requires_grad_() for value in inputs]
    assert gradcheck(run, inputs, fast_mode=True)
    assert gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("variant", OVER_TREES)
def test_gradients_of_first_and_second_order_over_a_tree(variant: str) -> None:
    unfold = rit.Unfold(make(variant, 2, 2))
    parameters = dict(unfold.named_parameters())
    call = SimpleNamespace(module=_Over(unfold))

    def run(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        named = {f"unfold.{name}": weight for name, weight in zip(parameters, weights, strict=True)}
        return functional_call(call.module, named, (x,))

    inputs = [torch.randn(4, 2, dtype=F64), *parameters.values()]
    inputs = [value.detach().requires_grad_() for value in inputs]
    assert gradcheck(run, inputs, fast_mode=True)
    assert gradgradcheck(run, inputs, fast_mode=True)


class _Over(torch.nn.Module):
    """`functional_call` calls forward: a module whose forward walks a tree."""

    def __init__(self, unfold: rit.Unfold) -> None:
        super().__init__()
        self.unfold = unfold

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        nodes, root = self.unfold.over([[2, 2, 3, -1]], x, all_states=True)
        return *nodes, *root


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("all_states", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_compiled_executor_answers_as_the_reference(
    variant: str, reverse: bool, all_states: bool, dtype: torch.dtype
) -> None:
    """A ragged batch with resets: values with and without gradients, and the gradient of all that they depend on."""
    answers = []
    cell = make(variant, 5, 6)
    values = torch.randn(6, 4, cell.input_size, dtype=F64).masked_fill(PADDING[..., None], float("nan"))
    entering = random_state(cell, 4)
    for executor, kind in (("reference", F64), ("cpu", dtype)):
        run = rit.Unfold(cell, reverse=reverse, executor=executor).to(kind)
        x, state = (
            values.to(kind).requires_grad_(),
            cell.State(*(f.detach().to(kind).requires_grad_() for f in entering)),
        )
        options = {"lengths": LENGTHS, "resets": RESETS, "all_states": all_states}
        found = run(x, state, **options)
        with torch.no_grad():
            alone = run(x, state, **options)
        inputs = {
            "x": x,
            **{f"s.{name}": field for name, field in state._asdict().items()},
            **dict(run.named_parameters()),
        }
        answers.append((found, alone, gradients(found, inputs)))
    assert_close(answers[1], answers[0])


# `total` and the axis that it sums over.


def test_total_is_the_identity_but_within_the_axis() -> None:
    value = torch.randn(2, 3, 4)
    assert total(value) is value
    with meaning_of_total(over_predecessors):
        assert_close(total(value), value.numpy().sum(1, keepdims=True))
        with meaning_of_total(over_predecessors):
            assert total(value).shape == (2, 1, 4)
        assert total(value).shape == (2, 1, 4)  # the inner one has not ended the outer
    assert total(value) is value


def test_the_axis_ends_with_an_error_and_is_of_one_thread() -> None:
    value, seen = torch.randn(2, 3, 4), []

    def inside() -> None:
        with meaning_of_total(over_predecessors):
            thread = threading.Thread(target=lambda: seen.append(total(value)))
            thread.start()
            thread.join()
            raise KeyError

    with pytest.raises(KeyError):
        inside()
    assert seen[0] is value
    assert total(value) is value
