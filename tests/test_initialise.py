"""Initial values: what cells draw by themselves, and the initialisers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from comparison import assert_close
from torch import Tensor
from twins import CORE, TREE_VARIANTS, VARIANTS

import ritornello as rit
from ritornello import cells
from ritornello.cells import Cell, chrono_, forget_bias_, identity_, orthogonal_
from ritornello.errors import ArgumentError

CONSTANT = {  # parameters that no chance has a part in
    "irnn": {"U.weight", "W.bias"},
    "leaky": {"a"},
    "leaky-alike": {"a"},
    "additive": {"a", "theta_g"},
    "layer-norm": {"norm_x.weight", "norm_x.bias", "norm_h.weight", "norm_c.weight", "norm_c.bias"},
}
EVERY = {**VARIANTS, **TREE_VARIANTS}
RECURRENT = [name for name, make in EVERY.items() if make(3, 4).recurrent]


def gate(cell: Cell, name: str) -> Tensor:
    return cell.get_parameter(cell.gate_bias).detach().chunk(len(cell.gates))[cell.gates.index(name)]


def value(cell: Cell) -> dict[str, Tensor]:
    return {name: parameter.clone() for name, parameter in cell.state_dict().items()}


# What cells draw by themselves.


@pytest.mark.parametrize("variant", ["elman", "gru", "lstm"])
def test_initial_values_fill_their_bounds(variant: str) -> None:
    options = {"forget_bias": 0.0} if variant == "lstm" else {}
    cell, bound = CORE[variant](32, 64, **options), 64**-0.5
    for name, parameter in cell.named_parameters():
        assert parameter.abs().max() <= bound, name
        assert parameter.max() > 0.9 * bound, name
        assert parameter.min() < -0.9 * bound, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_seed_gives_the_same_weights(variant: str) -> None:
    def made(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return VARIANTS[variant](3, 4).state_dict()

    first, again, other = made(3), made(3), made(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert {name for name in first if torch.equal(first[name], other[name])} == CONSTANT.get(variant, set())


def test_what_is_not_drawn_stands_where_its_paper_puts_it() -> None:
    irnn = rit.cells.IRNN(50, 200, scale=0.5)
    assert_close(irnn.U.weight, 0.5 * torch.eye(200))
    assert not irnn.W.bias.any()
    assert irnn.W.weight.std().item() == pytest.approx(0.001, rel=0.05)
    additive = cells.AdditiveMemory(3, 4, theta=0.9)
    assert_close([additive.a.sigmoid(), additive.theta_g], [torch.full((4,), 0.9), torch.ones(4)])
    assert_close(
        cells.AdditiveMemory(3, 4).a.sigmoid(), 1 - torch.tensor([0.01, 0.01 ** (2 / 3), 0.01 ** (1 / 3), 0.999])
    )
    highway = cells.RecurrentHighway(3, 4, depth=2, carry_bias=-1.5)
    assert all(layer.bias[4:].tolist() == [-1.5] * 4 and layer.bias[:4].abs().max() <= 0.5 for layer in highway.R)
    norm = cells.LayerNormLSTM(3, 4, forget_bias=2.0, gain=0.3)
    assert norm.norm_x.bias.tolist() == [0.0] * 4 + [2.0] * 4 + [0.0] * 8
    assert_close(norm.norm_h.weight, torch.full((16,), 0.3))


def test_a_new_recursive_network_hands_on_the_mean_of_its_children() -> None:
    cell = cells.RecursiveNet(32, 64)
    off = (cell.W.weight - torch.eye(64).repeat(1, 2) / 2).detach().abs().max()
    assert 0.9 * 0.125 < off <= 0.125 * (1 + 1e-6)


def test_a_new_tensor_network_has_small_products() -> None:
    assert 0.9 / 32 < cells.RecursiveTensorNet(3, 8).T.detach().abs().max() <= 1 / 32


def test_leaks_share_out_their_range_on_a_logarithmic_scale() -> None:
    assert_close(torch.sigmoid(cells.Leaky(3, 5, leak=(1e-4, 0.01)).a), torch.logspace(-4, -2, 5))
    assert_close(torch.sigmoid(cells.Leaky(3, 2, leak=0.25).a), torch.full((2,), 0.25))
    assert_close(torch.sigmoid(cells.Leaky(3, 3).a), torch.tensor([0.01, 0.1, 0.999]))


def test_decays_are_drawn_from_their_ranges() -> None:
    """The LRU's uniformly in λ², the real-gated one's a^8 uniformly."""
    decay = torch.exp(-torch.exp(cells.LRU(3, 5000, slowest=0.9, fastest=0.6).nu.double()))
    assert_uniform(decay**2, 0.36, 0.81)
    assert_uniform(torch.exp(-8 * torch.nn.functional.softplus(cells.RGLRU(3, 5000).Lambda.double())), 0.9, 0.999)
    wide = cells.RGLRU(3, 5000, slowest=0.8, fastest=0.05).Lambda.double()
    assert_uniform(torch.exp(-8 * torch.nn.functional.softplus(wide)), 0.05, 0.8)


def assert_uniform(values: Tensor, low: float, high: float) -> None:
    """By Kolmogorov and Smirnov, at a level of a thousandth."""
    ordered = np.sort((values.detach().numpy() - low) / (high - low))
    count = len(ordered)
    assert ordered[0] >= -1e-6
    assert ordered[-1] <= 1 + 1e-6
    distance = max(
        np.abs(ordered - np.arange(count) / count).max(), np.abs(ordered - np.arange(1, count + 1) / count).max()
    )
    assert distance < 1.95 / count**0.5


def test_the_test_of_uniformity_can_fail() -> None:
    assert_uniform(torch.rand(5000), 0, 1)
    for wrong in (torch.rand(5000) ** 1.2, 0.95 * torch.rand(5000), 1.01 * torch.rand(5000)):
        with pytest.raises(AssertionError):
            assert_uniform(wrong, 0, 1)


# Biases.


@pytest.mark.parametrize(
    ("variant", "default"),
    [
        ("lstm", 1),
        ("peephole", 1),
        ("coupled", 1),
        ("projected", 1),
        ("multiplicative", 1),
        ("slstm", 3),
        ("gru", 0),
        ("gru(update=write)", 0),
        ("minimal", 0),
        ("tree-lstm", 1),
    ],
)
@pytest.mark.parametrize("given", [None, 2.5])
def test_the_forget_bias_is_added_to_the_forget_gate_alone(variant: str, default: float, given: float | None) -> None:
    made = []
    for options in ({} if given is None else {"forget_bias": given}, {"forget_bias": 0.0}):
        torch.manual_seed(7)
        made.append(cells.find(variant)(3, 4, **options))
    expected, (name,) = value(made[1]), made[0].keeps[:1] or made[0].writes
    start, bias = 4 * made[0].gates.index(name), default if given is None else given
    expected["W.bias"][start : start + 4] += bias if name in made[0].keeps else -bias
    assert_close(dict(made[0].state_dict()), expected)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        *((name, {"f": 1.5}) for name in ("lstm", "peephole", "coupled", "layer-norm", "slstm", "multiplicative")),
        *((name, {"f": 1.5}) for name in ("qrnn", "sru", "min-lstm", "tree-lstm", "tree-lstm-3")),
        ("gru", {"z": 1.5}),
        ("gru-write", {"z": -1.5}),
        ("min-gru", {"z": -1.5}),
        ("minimal", {"f": -1.5}),
    ],
)
def test_forget_bias_keeps_the_memory_and_touches_nothing_else(variant: str, expected: dict[str, float]) -> None:
    cell = EVERY[variant](3, 4)
    before = value(cell)
    assert forget_bias_(cell, 1.5) is cell
    for name, bias in expected.items():
        assert_close(gate(cell, name), torch.full((4,), bias))
        before[cell.gate_bias].chunk(len(cell.gates))[cell.gates.index(name)].fill_(bias)
    assert_close(dict(cell.state_dict()), before)


CHRONO = [
    *("lstm", "layer-norm", "coupled", "gru", "gru-write", "minimal", "min-gru", "min-lstm", "qrnn", "sru", "slstm"),
    "tree-lstm",
]


@pytest.mark.parametrize("variant", CHRONO)
def test_chrono_draws_times_uniformly(variant: str) -> None:
    """1 / (1 - σ(b)) = 1 + u steps, u uniform, and gates that write are their mirror."""
    cell = EVERY[variant](3, 400).double()
    before = value(cell)
    assert chrono_(cell, longest=200, shortest=10) is cell
    times = []
    for name in cell.keeps + cell.writes:
        bias = gate(cell, name) if name in cell.keeps else -gate(cell, name)
        times.append(1 / (1 - torch.sigmoid(bias)))
        assert_uniform(times[-1], 11, 200)
        assert times[-1].mean() == pytest.approx(105.5, rel=0.1)
        before[cell.gate_bias].chunk(len(cell.gates))[cell.gates.index(name)].copy_(gate(cell, name))
    assert_close(times[0], times[-1])
    assert_close(dict(cell.state_dict()), before)


def test_a_tree_lstm_keeps_by_f_and_writes_by_i() -> None:
    cell = chrono_(cells.TreeLSTM(3, 4), 50)
    assert gate(cell, "f").min() >= 0 >= gate(cell, "i").max()
    assert gate(forget_bias_(cell, 1.5), "f").tolist() == [1.5] * 4


def test_chrono_remembers_as_long_as_it_says() -> None:
    """Without input a unit of T steps has forgotten all but (1 - 1/T)^t after t of them."""
    cell = chrono_(cells.CoupledLSTM(3, 6), 50).double()
    torch.nn.init.zeros_(cell.U.weight)
    g = cell.gates.index("g") * 6
    with torch.no_grad():
        cell.W.bias[g : g + 6] = 0
        state = cell.State(torch.zeros(1, 6).double(), torch.ones(1, 6).double())
        _, last = rit.Unfold(cell)(torch.zeros(30, 1, 3).double(), state)
    assert_close(last.c[0], (1 - 1 / (1 + torch.exp(gate(cell, "f")))) ** 30)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({"longest": 2}, "shortest must lie in 0 to longest - 1, not 1.0 beside 2"),
        ({"longest": 50, "shortest": 0}, "shortest must lie in 0 to longest - 1, not 0 beside 50"),
        ({"longest": 5, "shortest": 4}, "shortest must lie in 0 to longest - 1, not 4 beside 5"),
        ({"longest": math.inf}, "longest must be a finite number, not inf"),
        ({"longest": "500"}, "longest must be a finite number, not '500'"),
        ({"longest": 50, "shortest": True}, "shortest must be a finite number, not True"),
    ],
)
def test_times_that_do_not_fit(times: dict[str, float], message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^chrono_: {message}\\.$"):
        chrono_(rit.LSTM(3, 4), **times)


@pytest.mark.parametrize("initialise", [forget_bias_, lambda cell: chrono_(cell, 50)], ids=["forget_bias_", "chrono_"])
def test_cells_without_such_gates_or_biases(initialise) -> None:
    for cell in (rit.Elman(3, 4), cells.LSTM1997(3, 4), cells.RGLRU(3, 4), cells.RecurrentHighway(3, 4)):
        with pytest.raises(
            ArgumentError, match=f"^{type(cell).__name__} names no gate that keeps or writes its memory\\.$"
        ):
            initialise(cell)
    with pytest.raises(ArgumentError, match=r"^This GRU has no biases\.$"):
        initialise(rit.GRU(3, 4, bias=False))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: forget_bias_(rit.LSTM(3, 4), "1"), "forget_bias_: value must be a finite number, not '1'"),
        (
            lambda: rit.GRU(3, 4, update="write", forget_bias="1"),
            "GRU: the gates' bias must be a finite number, not '1'",
        ),
        (
            lambda: rit.GRU(3, 4, bias=False, forget_bias=1.0),
            "GRU: forget_bias=1.0 and bias=False clash: there is no bias to add it to",
        ),
        (lambda: rit.LSTM(3, 4, forget_bias="1"), "LSTM: the gates' bias must be a finite number, not '1'"),
        (
            lambda: cells.RecurrentHighway(3, 4, carry_bias=None),
            "RecurrentHighway: carry_bias must be a finite number, not None",
        ),
        (lambda: cells.LRU(3, 4, slowest="x"), "LRU: slowest must be a finite number, not 'x'"),
    ],
)
def test_what_is_no_number_is_named(make, message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{message}\\.$"):
        make()


WRAPPED = {
    "zoneout": lambda cell: rit.nn.Zoneout(cell, 0.1),
    "teacher-forced": cells.TeacherForced,
    "self-fed": lambda cell: rit.nn.SelfFed(cell, torch.nn.Linear(4, 1)),
    "twice": lambda cell: rit.nn.Zoneout(rit.nn.Zoneout(cell, 0.1), 0.1),
}


@pytest.mark.parametrize("around", list(WRAPPED))
@pytest.mark.parametrize("initialise", [orthogonal_, identity_, forget_bias_, lambda cell: chrono_(cell, 50)])
def test_initialisers_reach_a_cell_within_another(initialise, around: str) -> None:
    plain, inside = rit.LSTM(3, 4), rit.LSTM(3, 4)
    inside.load_state_dict(plain.state_dict())
    for cell in (plain, WRAPPED[around](inside)):
        torch.manual_seed(1)
        initialise(cell)
    assert_close(value(inside), value(plain))


# Recurrent weights.


@pytest.mark.parametrize("variant", RECURRENT)
def test_orthogonal_weights_keep_lengths(variant: str) -> None:
    """Gate by gate; of a block that is not square, the rows or columns are orthonormal."""
    cell = EVERY[variant](3, 4).double()
    before = value(cell)
    assert orthogonal_(cell, gain=2.0) is cell
    for name, parameter in cell.named_parameters():
        if name not in cell.recurrent:
            assert torch.equal(parameter, before[name]), name
            continue
        for block in parameter.detach().split(4 if len(parameter) % 4 == 0 else len(parameter)):
            narrow = block if block.shape[0] <= block.shape[1] else block.T
            assert_close(narrow @ narrow.T, 4 * torch.eye(len(narrow), dtype=torch.float64))


def test_recurrent_weights_of_tree_cells_are_those_that_read_states() -> None:
    assert {name: {*make(3, 4).recurrent} for name, make in cells.TREE_CELLS.items()} == {
        "recursive": {"W.weight"},
        "recursive-tensor": {"W.weight"},
        "tree-lstm": {"U.weight"},
        "tree-gru": {"R.weight", "U.weight", "Z.weight"},
    }


@pytest.mark.parametrize(
    "variant", ["elman", "gru", "lstm", "jordan", "minimal", "deep-3", "highway", "multiplicative"]
)
def test_identity_hands_on_what_is_held(variant: str) -> None:
    cell = VARIANTS[variant](3, 4)
    assert identity_(cell, scale=0.5) is cell
    for name in cell.recurrent:
        for block in cell.get_parameter(name).split(4):
            assert_close(block, 0.5 * torch.eye(4))


def test_weights_by_name() -> None:
    cell = rit.LSTM(4, 4)
    before = value(cell)
    identity_(orthogonal_(cell, names=["U.weight"]), names="W.weight")
    assert_close(cell.W.weight, torch.eye(4).repeat(4, 1))
    assert not torch.equal(cell.U.weight, before["U.weight"])


@pytest.mark.parametrize("initialise", [orthogonal_, identity_, forget_bias_, lambda cell: chrono_(cell, 50)])
def test_initialisers_take_cells(initialise) -> None:
    for other in (rit.Unfold(rit.LSTM(3, 4)), torch.nn.LSTMCell(3, 4)):
        with pytest.raises(
            ArgumentError, match=rf"^Initialisers take a ritornello\.Cell, not {type(other).__name__}\.$"
        ):
            initialise(other)


@pytest.mark.parametrize(
    ("cell", "names", "message"),
    [
        (cells.MinGRU(3, 4), (), r"MinGRU has no recurrent weights\."),
        (rit.Elman(3, 4), ["V.weight"], r"Elman has no parameter 'V\.weight': it has W\.weight, W\.bias, U\.weight\."),
        (rit.Elman(3, 4), ["W.bias"], r"W\.bias of shape \(4,\) is no matrix\."),
    ],
)
@pytest.mark.parametrize("initialise", [orthogonal_, identity_])
def test_weights_that_are_not_there(initialise, cell: Cell, names: list[str], message: str) -> None:
    before = value(cell)
    with pytest.raises(ArgumentError, match=f"^{message}$"):
        initialise(cell, names=names)
    assert_close(dict(cell.state_dict()), before)


def test_an_identity_must_be_square_and_changes_nothing_where_one_is_not() -> None:
    cell = cells.GroupedRNN(3, 4, (1, 2))
    before = value(cell)
    with pytest.raises(
        ArgumentError, match=r"^U\.0\.weight cannot be an identity: a gate's part has shape \(2, 4\)\.$"
    ):
        identity_(cell)
    assert_close(dict(cell.state_dict()), before)
