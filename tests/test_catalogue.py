"""The catalogue: cells by name, with options, and of one's own; what each row of `CELLS` must keep, and tell."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import assert_close
from twins import VARIANTS, random_state

import ritornello as rit
from ritornello import cells
from ritornello.cells import CELLS, Cell, find, is_foreign
from ritornello.errors import ArgumentError

# What every row keeps.


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_sizes_and_zero_state(variant: str) -> None:
    cell = VARIANTS[variant](3, 4)
    state = cell.zero_state(5, torch.ones((), dtype=torch.float64))
    assert type(state) is cell.State
    assert [field.shape for field in state] == [(5, size) for size in cell.state_sizes]
    assert all(field.dtype == torch.float64 and not field.any() for field in state)
    new = cell(torch.zeros(5, cell.input_size), random_state(cell, 5, torch.float32))
    assert [field.shape for field in new] == [(5, size) for size in cell.state_sizes]
    assert cell.output_size == new[0].shape[1]
    assert cell.extra_repr() == f"{cell.input_size}, {cell.hidden_size}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_a_row_says_of_its_parameters_is_so(variant: str) -> None:
    cell = VARIANTS[variant](3, 4)
    assert all(cell.get_parameter(name).dim() == 2 for name in cell.recurrent)
    assert set(cell.keeps + cell.writes) <= set(cell.gates)
    if cell.keeps + cell.writes and variant != "gru-no-bias":
        assert len(cell.get_parameter(cell.gate_bias)) == len(cell.gates) * cell.hidden_size


GATED = [name for name, make in VARIANTS.items() if make(3, 4).keeps + make(3, 4).writes and name != "gru-no-bias"]


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("variant", GATED)
def test_gates_keep_and_write_as_a_row_says(variant: str, kept: bool) -> None:
    """With those that keep wide open and those that write shut the memory stays; the other way round it is lost."""
    cell, x = VARIANTS[variant](3, 4).double(), torch.randn(5, 3, dtype=torch.float64)
    with torch.no_grad():
        for gate in cell.keeps + cell.writes:
            bias = cell.get_parameter(cell.gate_bias).chunk(len(cell.gates))[cell.gates.index(gate)]
            bias.fill_(80 if (gate in cell.keeps) == kept else -80)
    state = random_state(cell, 5)
    memory = "c" if "c" in state._fields else "h"
    before, after = getattr(state, memory), getattr(cell(x, state), memory)
    if kept:
        assert_close(after, before)
    elif memory == "c":
        assert_close(cell(x, state._replace(c=2 * before)).c, after)
    else:
        assert ((after - before).abs() > 1e-3).all()


# Constructors.


@pytest.mark.parametrize("size", [0, -1, 2.0, "3", None])
@pytest.mark.parametrize("name", list(CELLS))
def test_sizes_must_be_positive_integers(name: str, size: object) -> None:
    label = CELLS[name].__name__
    with pytest.raises(ArgumentError, match=f"^{label}: input_size must be a positive integer, not {size!r}"):
        CELLS[name](size, 4)
    with pytest.raises(ArgumentError, match=f"^{label}: hidden_size must be a positive integer, not {size!r}"):
        CELLS[name](3, size)


OUTPUTS = "Known: identity, sigmoid, softmax, tanh."
PERIODS = "GroupedRNN: periods must be ascending positive integers, not "
LEAKS = "Leaky: leak must be one or two numbers in 0 (exclusive) to 1, not "
WRONG: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (rit.Elman, {"nonlinearity": "sin"}, "Elman: nonlinearity must be 'tanh' or 'relu', not 'sin'."),
    (rit.GRU, {"reset": "never"}, "GRU: reset must be 'after' or 'before' the product, not 'never'."),
    (rit.GRU, {"update": "z"}, "GRU: update must be 'keep' or 'write', not 'z'."),
    (cells.Jordan, {"output_size": 0}, "Jordan: output_size must be a positive integer, not 0."),
    (cells.Jordan, {"output": "softmix"}, f"Jordan: unknown output 'softmix': did you mean softmax? {OUTPUTS}"),
    (cells.Jordan, {"output": None}, f"Jordan: unknown output None: {OUTPUTS}"),
    (cells.ElmanJordan, {"output_size": "3"}, "ElmanJordan: output_size must be a positive integer, not '3'."),
    (cells.ElmanJordan, {"output": "relu"}, f"ElmanJordan: unknown output 'relu': {OUTPUTS}"),
    *((cells.Leaky, {"leak": leak}, f"{LEAKS}{leak!r}.") for leak in (0, -0.1, 1.5, "half", (0.1, 2), (0.1,), None)),
    *(
        (cells.GroupedRNN, {"periods": periods}, f"{PERIODS}{periods!r}.")
        for periods in ((), (2, 1), (0, 1), (1, 2.0), 4, "12")
    ),
    *(
        (
            cells.AdditiveMemory,
            {"theta": theta},
            f"AdditiveMemory: theta must be one or two numbers in 0 to 1 (exclusive), not {theta!r}.",
        )
        for theta in (-0.1, 1, 1.5, "near", (0.1, 1), (0.1,), None)
    ),
    (
        cells.PeepholeLSTM,
        {"peephole": "vector"},
        "PeepholeLSTM: unknown peephole 'vector': did you mean vectors? Known: matrices, vectors.",
    ),
    (cells.PeepholeLSTM, {"peephole": 3}, "PeepholeLSTM: unknown peephole 3: Known: matrices, vectors."),
    (cells.ProjectedLSTM, {"output_size": 0}, "ProjectedLSTM: output_size must be a positive integer, not 0."),
    (cells.MultiplicativeRNN, {"factors": 0}, "MultiplicativeRNN: factors must be a positive integer, not 0."),
    (cells.DeepTransition, {"depth": 0}, "DeepTransition: depth must be an integer of at least 1, not 0."),
    (
        cells.DeepTransition,
        {"input_depth": -1},
        "DeepTransition: input_depth must be an integer of at least 0, not -1.",
    ),
    (
        cells.DeepTransition,
        {"output_depth": 1.0},
        "DeepTransition: output_depth must be an integer of at least 0, not 1.0.",
    ),
    (cells.RecurrentHighway, {"depth": 0}, "RecurrentHighway: depth must be a positive integer, not 0."),
    (cells.LRU, {"slowest": 1}, "LRU: 0 < fastest < slowest < 1 must hold, not 0.5 and 1."),
    (cells.RGLRU, {"fastest": 1}, "RGLRU: 0 < fastest < slowest < 1 must hold, not 1 and 0.999."),
    (cells.LRU, {"fastest": 0}, "LRU: 0 < fastest < slowest < 1 must hold, not 0 and 0.999."),
    (cells.LRU, {"fastest": 0.9, "slowest": 0.8}, "LRU: 0 < fastest < slowest < 1 must hold, not 0.9 and 0.8."),
]


@pytest.mark.parametrize(("kind", "options", "message"), WRONG, ids=lambda value: None)
def test_options_that_do_not_fit(kind: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{re.escape(message)}$"):
        kind(3, 4, **options)


def test_only_a_cell_can_be_teacher_forced() -> None:
    with pytest.raises(ArgumentError, match=r"^TeacherForced takes a ritornello\.Cell, not LSTMCell\.$"):
        cells.TeacherForced(torch.nn.LSTMCell(3, 4))  # type: ignore[arg-type]


def test_a_teacher_forced_cell_shares_its_parameters_and_feeds_the_truth_back() -> None:
    cell = cells.ElmanJordan(3, 4, output_size=2)
    forced = cells.TeacherForced(cell)
    assert forced.input_size == 5
    assert {id(parameter) for parameter in forced.parameters()} == {id(parameter) for parameter in cell.parameters()}
    x = torch.randn(6, 1, 3)
    free, last = rit.Unfold(cell)(x)
    before = torch.cat([torch.zeros(1, 1, 2), free[:-1]])
    outputs, forced_last = rit.Unfold(forced)(torch.cat([x, before], -1))  # its own outputs for truth: nothing changes
    assert_close(outputs, free.double())
    assert_close(tuple(forced_last), tuple(field.double() for field in last))


# Options behind a name.


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("gru(reset=before)", rit.GRU, {"reset": "before"}),
        ("gru( update = 'write', bias=False )", rit.GRU, {"update": "write", "d": None}),
        ("gru()", rit.GRU, {"reset": "after"}),
        ("groups(periods=(1, 4))", cells.GroupedRNN, {"periods": (1, 4)}),
        ("leaky(leak=[0.1, 1])", cells.Leaky, {}),
        ("highway(carry_bias=-1.5)", cells.RecurrentHighway, {}),
        ("sru(peephole=false)", cells.SRU, {"v": None}),
        ("jordan(output_size=none)", cells.Jordan, {"outputs": 4}),
        ("torch.nn:LSTMCell(bias=False)", torch.nn.LSTMCell, {"bias": False}),
    ],
)
def test_find_with_options(name: str, kind: type, expected: dict[str, Any]) -> None:
    cell = find(name)(3, 4)
    assert type(cell) is kind
    assert is_foreign(name) == ("torch" in name)
    for option, value in expected.items():
        assert getattr(cell, option) == value


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gru(rest=before)", "gru has no option 'rest': did you mean reset? Known: bias, forget_bias, reset, update."),
        ("gru(input_size=3)", "gru has no option 'input_size': Known: bias, forget_bias, reset, update."),
        ("tensor(depth=2)", "tensor has no option 'depth': Known: ."),
        *(
            (f"gru{options}", f"'gru{options}': options are written as in gru(reset=before).")
            for options in (
                *("(1)", "(", "(reset=before", "(reset=before)x", "(reset=before)(update=write)", "(reset=f(x))"),
                *("(reset=[before])", "(reset={[]: 1})", "(*reset)", "(reset=)", "(reset before)"),
            )
        ),
        ("lsmt(forget_bias=1)", "Unknown cell 'lsmt': did you mean lstm or slstm?"),
        ("mine.py", "'mine.py' names a file and no cell in it: write mine.py:Class."),
    ],
)
def test_options_that_are_not_understood(name: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{re.escape(message)}"):
        find(name)


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
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # another test's
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
    assert_close(outputs[:, 0, 0], torch.arange(1.0, 5.0))


def test_a_file_with_parentheses_in_its_name_may_have_options_too(folder: Path) -> None:
    (folder / "mine (1).py").write_text(
        MINE.format(where="copy").replace(
            "pass", "def __init__(self, i, h, depth=1):\n        super().__init__(i, h)\n        self.depth = depth", 1
        )
    )
    assert find("mine (1).py:Mine").where == "copy"
    assert find("mine (1).py:Other(depth=3)")(2, 3).depth == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "lsmt",
            r"^Unknown cell 'lsmt': did you mean lstm( or \S+)?\? Known: additive, .*, tree-lstm; "
            r"or name your own as module:Class or FILE\.py:Class\.$",
        ),
        ("xyzzy", "^Unknown cell 'xyzzy': Known: additive, coupled, deep, elman"),
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_state_can_be_pickled(variant: str) -> None:
    cell = VARIANTS[variant](4, 4)
    state = cell.zero_state(2, torch.zeros(()))
    found = pickle.loads(pickle.dumps(state))
    assert type(found) is type(state)
    assert found._fields == state._fields


AROUND = {
    "foreign": lambda: torch.nn.LSTMCell(3, 4),
    "fed": lambda: rit.nn.SelfFed(rit.GRU(5, 4), torch.nn.Linear(4, 2)),
    "zoneout": lambda: rit.nn.Zoneout(rit.LSTM(3, 4), 0.1),
}


@pytest.mark.parametrize("kind", AROUND)
def test_so_can_that_of_a_cell_around_another(kind: str) -> None:
    _, state = rit.Unfold(AROUND[kind]())(torch.randn(5, 2, 3))
    found = pickle.loads(pickle.dumps(state))
    assert type(found) is type(state)
    assert all(bool((one == other).all()) for one, other in zip(found, state, strict=True))
