"""Cells against their papers' equations in NumPy, against torch's cells, and what every row of `CELLS` must keep."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_close, gradients
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from twins import TORCH_CELLS, VARIANTS, copy_from_torch

import ritornello as rit
from ritornello.cells import CELLS, Cell, find, is_foreign, meaning_of_total, over_predecessors, total
from ritornello.errors import ArgumentError

F64 = torch.float64
TREE = [3, 3, 5, 5, 5, -1]  # node 3 has two children, the root three, of which 2 and 4 are leaves


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def blocks(cell: Cell) -> SimpleNamespace:
    """A cell's parameters as NumPy, each stacked one cut into a dictionary by gate."""
    cut = {}
    for name, parameter in cell.named_parameters():
        value = parameter.detach().numpy()
        whole = not cell.gates or len(value) == cell.hidden_size
        cut[name.replace(".", "_")] = (
            value if whole else dict(zip(cell.gates, np.split(value, len(cell.gates)), strict=True))
        )
    return SimpleNamespace(W=cut["W_weight"], b=cut["W_bias"], U=cut["U_weight"], d=cut.get("d"))


# The oracles: one row x of F features and the states of its K predecessors, (K, H) each.


def elman(cell: Any, x: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, ...]:
    p = blocks(cell)
    a = p.b + p.U @ h.sum(0) + p.W @ x
    return (np.tanh(a) if cell.nonlinearity == "tanh" else np.maximum(a, 0),)


def gru(cell: Any, x: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, ...]:
    p = blocks(cell)
    r = [sigmoid(p.W["r"] @ x + p.U["r"] @ h_k + p.b["r"]) for h_k in h]
    z = sigmoid(p.W["z"] @ x + p.U["z"] @ h.sum(0) + p.b["z"])
    if cell.reset == "after":
        recurrent = sum(r_k * (p.U["n"] @ h_k + p.d) for r_k, h_k in zip(r, h, strict=True))
    else:
        recurrent = p.U["n"] @ sum(r_k * h_k for r_k, h_k in zip(r, h, strict=True)) + p.d
    n = np.tanh(p.W["n"] @ x + p.b["n"] + recurrent)
    return ((1 - z) * n + z * h.sum(0),)


def lstm(cell: Any, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, ...]:
    """Tai, Socher & Manning (2015), eq. 2 to 8; with one predecessor, the LSTM of Gers et al. (2000)."""
    p = blocks(cell)
    h_sum = h.sum(0)  # (2)
    i = sigmoid(p.W["i"] @ x + p.U["i"] @ h_sum + p.b["i"])  # (3)
    f = [sigmoid(p.W["f"] @ x + p.U["f"] @ h_k + p.b["f"]) for h_k in h]  # (4)
    o = sigmoid(p.W["o"] @ x + p.U["o"] @ h_sum + p.b["o"])  # (5)
    u = np.tanh(p.W["g"] @ x + p.U["g"] @ h_sum + p.b["g"])  # (6)
    new = i * u + sum(f_k * c_k for f_k, c_k in zip(f, c, strict=True))  # (7)
    return o * np.tanh(new), new  # (8)


ORACLES = {"elman": elman, "elman-relu": elman, "gru": gru, "gru-before": gru, "lstm": lstm}


@pytest.fixture(scope="session", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


def make(variant: str, input_size: int = 3, hidden_size: int = 4) -> Cell:
    return VARIANTS[variant](input_size, hidden_size).to(F64)


def random_state(cell: Cell, rows: int, dtype: torch.dtype = F64) -> Any:
    return cell.State(*(torch.randn(rows, size, dtype=dtype) for size in cell.state_sizes))


def test_every_cell_has_an_oracle() -> None:
    assert set(ORACLES) == set(VARIANTS), "a cell of CELLS needs its paper's equations in NumPy here"


@pytest.mark.parametrize("variant", list(ORACLES))
def test_a_cell_is_its_equations(variant: str) -> None:
    cell = make(variant)
    x, state = torch.randn(5, 3, dtype=F64), random_state(cell, 5)
    new = cell(x, state)
    assert type(new) is cell.State
    for row in range(5):
        expected = ORACLES[variant](cell, x[row].numpy(), *(field[row : row + 1].numpy() for field in state))
        assert_close([field[row] for field in new], expected, f"row {row}")


@pytest.mark.parametrize("variant", list(ORACLES))
def test_a_cell_over_several_predecessors_is_its_equations(variant: str) -> None:
    cell = make(variant)
    x = torch.randn(5, 1, 3, dtype=F64)
    state = cell.State(*(torch.randn(5, 3, size, dtype=F64) for size in cell.state_sizes))
    with meaning_of_total(over_predecessors):
        new = cell(x, state)
    for row in range(5):
        expected = ORACLES[variant](cell, x[row, 0].numpy(), *(field[row].numpy() for field in state))
        assert_close([field[row, 0] for field in new], expected, f"row {row}")


@pytest.mark.parametrize("variant", list(ORACLES))
def test_unfolding_over_a_tree_is_the_equations_at_every_node(variant: str) -> None:
    """For the LSTM this is the child-sum Tree-LSTM; leaves read zeros."""
    cell = make(variant)
    x = torch.randn(len(TREE), 3, dtype=F64)
    states: dict[int, tuple[np.ndarray, ...]] = {}
    for node in range(len(TREE)):  # a child comes before its parent in TREE
        children = [child for child, parent in enumerate(TREE) if parent == node]
        below = [states[child] for child in children] or [tuple(np.zeros(size) for size in cell.state_sizes)]
        states[node] = ORACLES[variant](cell, x[node].numpy(), *map(np.stack, zip(*below, strict=True)))
    nodes, root = rit.Unfold(cell).over([TREE], x, all_states=True)
    for number, name in enumerate(cell.State._fields):
        assert_close(nodes[number], np.stack([states[node][number] for node in range(len(TREE))]), name)
        assert_close(root[number], states[5][number][None], f"root {name}")


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


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_of_first_and_second_order(variant: str, reverse: bool) -> None:
    """Finite differences of a ragged batch with a reset, in x, given and learnt state and every parameter."""
    unfold = rit.Unfold(make(variant, 2, 2), reverse=reverse, learn_initial=True).to(F64)
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
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


def test_gradients_of_first_and_second_order_over_a_tree(variant: str) -> None:
    unfold = rit.Unfold(make(variant, 2, 2))
    parameters = dict(unfold.named_parameters())
    call = SimpleNamespace(module=_Over(unfold))

    def run(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        named = {f"unfold.{name}": weight for name, weight in zip(parameters, weights, strict=True)}
        return functional_call(call.module, named, (x,))

    inputs = [torch.randn(4, 2, dtype=F64), *parameters.values()]
    inputs = [value.detach().requires_grad_() for value in inputs]
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


class _Over(torch.nn.Module):
    """`functional_call` calls forward: a module whose forward walks a tree."""

    def __init__(self, unfold: rit.Unfold) -> None:
        super().__init__()
        self.unfold = unfold

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        nodes, root = self.unfold.over([[2, 2, 3, -1]], x, all_states=True)
        return *nodes, *root


# Parameters and their initial values.


@pytest.mark.parametrize("variant", ["elman", "gru", "lstm"])
def test_initial_values_fill_their_bounds(variant: str) -> None:
    options = {"forget_bias": 0.0} if variant == "lstm" else {}
    cell, bound = VARIANTS[variant](32, 64, **options), 64**-0.5
    for name, parameter in cell.named_parameters():
        assert parameter.abs().max() <= bound, name
        assert parameter.max() > 0.9 * bound, name
        assert parameter.min() < -0.9 * bound, name


@pytest.mark.parametrize("options", [{}, {"forget_bias": 2.5}], ids=["default", "2.5"])
def test_the_forget_bias_is_added_to_the_forget_gate_alone(options: dict[str, float]) -> None:
    cells = []
    for chosen in (options, {"forget_bias": 0.0}):
        torch.manual_seed(7)
        cells.append(rit.LSTM(3, 4, **chosen))
    expected = {name: value.clone() for name, value in cells[1].state_dict().items()}
    start = 4 * rit.LSTM.gates.index("f")
    expected["W.bias"][start : start + 4] += options.get("forget_bias", 1.0)
    assert_close(dict(cells[0].state_dict()), expected)

    x, state = torch.zeros(1, 3), rit.LSTM.State(torch.zeros(1, 4), torch.ones(1, 4))
    kept = [cell(x, state).c for cell in cells]
    assert (kept[0] > kept[1]).all()  # what the bias is for: more of the memory stays


def test_the_same_seed_gives_the_same_weights(variant: str) -> None:
    def made(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return VARIANTS[variant](3, 4).state_dict()

    first, again, other = made(3), made(3), made(4)
    for name in first:
        assert torch.equal(first[name], again[name]), name
        assert not torch.equal(first[name], other[name]), name


def test_state_sizes_and_zero_state(variant: str) -> None:
    cell = VARIANTS[variant](3, 4)
    state = cell.zero_state(5, torch.ones((), dtype=F64))
    assert type(state) is cell.State
    assert [field.shape for field in state] == [(5, size) for size in cell.state_sizes]
    assert all(field.dtype == F64 and not field.any() for field in state)
    new = cell(torch.zeros(5, 3), random_state(cell, 5, torch.float32))
    assert [field.shape for field in new] == [(5, size) for size in cell.state_sizes]
    assert cell.output_size == new[0].shape[1]
    assert cell.extra_repr() == "3, 4"


@pytest.mark.parametrize("size", [0, -1, 2.0, "3", None])
@pytest.mark.parametrize("name", list(CELLS))
def test_sizes_must_be_positive_integers(name: str, size: object) -> None:
    label = CELLS[name].__name__
    with pytest.raises(ArgumentError, match=f"^{label}: input_size must be a positive integer, not {size!r}"):
        CELLS[name](size, 4)
    with pytest.raises(ArgumentError, match=f"^{label}: hidden_size must be a positive integer, not {size!r}"):
        CELLS[name](3, size)


def test_unknown_options() -> None:
    with pytest.raises(ArgumentError, match=r"^Elman: nonlinearity must be 'tanh' or 'relu', not 'sin'"):
        rit.Elman(3, 4, nonlinearity="sin")
    with pytest.raises(ArgumentError, match=r"^GRU: reset must be 'after' or 'before' the product, not 'never'"):
        rit.GRU(3, 4, reset="never")


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


# Finding cells by name.


MINE = """
from collections import namedtuple
import ritornello as rit

class Mine(rit.Cell):
    State = namedtuple("State", "h")
    where = {where!r}

    def forward(self, x, s):
        return self.State(s.h + 1)

class Other(Mine):
    pass

not_a_cell = 3
class Plain: pass
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; what is imported in it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("name", list(CELLS))
def test_find_in_the_catalogue(name: str) -> None:
    assert not is_foreign(name)
    assert find(name) is CELLS[name]
    assert issubclass(CELLS[name], Cell)


def test_find_a_module_s_class_in_the_current_folder_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a_cell_of_mine.py").write_text(MINE.format(where="elsewhere"))
    (folder / "a_cell_of_mine.py").write_text(MINE.format(where="here"))
    monkeypatch.syspath_prepend(str(elsewhere))
    path = list(sys.path)
    assert is_foreign("a_cell_of_mine:Mine")
    assert find("a_cell_of_mine:Mine").where == "here"
    assert find("a_cell_of_mine:Other").__name__ == "Other"
    assert sys.path == path


def test_find_a_file_s_class(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "another_of_mine.py").write_text(MINE.format(where="file"))
    cell = find("sub/another_of_mine.py:Mine")
    assert cell.where == "file"
    assert find(f"{folder}/sub/another_of_mine.py:Mine").where == "file"
    outputs, _ = rit.Unfold(cell(2, 3))(torch.zeros(4, 1, 2))
    assert_close(outputs[:, 0, 0], np.arange(1.0, 5.0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "lsmt",
            r"^Unknown cell 'lsmt': did you mean lstm\? Known: elman, gru, lstm; "
            r"or name your own as module:Class or FILE\.py:Class\.$",
        ),
        ("xyzzy", "^Unknown cell 'xyzzy': Known: elman"),
        (
            "no_such_module_of_mine:Mine",
            "^Cannot import 'no_such_module_of_mine': ModuleNotFoundError: No module named",
        ),
        (":Mine", "^':Mine' names nothing; write module:Name or FILE.py:Name"),
        ("raising:Mine", "^Cannot import 'raising': ZeroDivisionError: division by zero"),
        ("raising.py:Mine", r"^Cannot import 'raising\.py': ZeroDivisionError: division by zero"),
        ("broken.py:Mine", r"^Cannot import 'broken\.py': SyntaxError"),
        ("absent.py:Mine", r"^Cannot import 'absent\.py': there is no such file"),
        ("mine.py:Mime", r"^Module 'mine\.py' has no 'Mime': did you mean Mine\? Known: Mine, Other\.$"),
        ("mine:", "^Module 'mine' has no ''"),
        ("mine:Plain", "^'mine:Plain' is a type, not a subclass of ritornello.Cell"),
        ("mine:not_a_cell", "^'mine:not_a_cell' is a int, not a subclass of ritornello.Cell"),
    ],
)
def test_what_cannot_be_found(folder: Path, name: str, message: str) -> None:
    (folder / "mine.py").write_text(MINE.format(where="here"))
    (folder / "raising.py").write_text("1 / 0")
    (folder / "broken.py").write_text("class Mine(")
    path = list(sys.path)
    with pytest.raises(ArgumentError, match=message):
        find(name)
    assert sys.path == path
