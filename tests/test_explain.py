"""rit.explain: what became of a cell, readably."""

from __future__ import annotations

import io
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from twins import VARIANTS

import ritornello as rit
from ritornello import cells
from ritornello.errors import ArgumentError
from ritornello.program import Program, simplify, trace, unroll
from ritornello.program.interpret import interpret
from ritornello.program.linear import linearise, scanned
from ritornello.program.passes import fold
from ritornello.program.program import STATE, prune
from ritornello.program.trace import lookup


def explained(cell: nn.Module) -> str:
    file = io.StringIO()
    rit.explain(cell, file)
    return file.getvalue()


def test_an_lstm_reads_like_its_equations() -> None:
    text = explained(rit.Unfold(rit.LSTM(128, 128)))
    assert "LSTM: x of 128 features, state h (128), c (128)\nexecutor: cpu (" in text
    before, loop = text.split("in the loop:")
    assert "v₁ : 512 = W.bias + x @ W.weight.T" in before
    assert "v₂ : 512 = v₁ + h' @ U.weight.T" in loop
    assert loop.count("@") == 1, "one product for all gates"
    flops = 2 * 128 * 512 * 2  # x and h, each 128 by 512, a multiplication and an addition
    assert f"forward: {flops:,} flops a row in products, 50% of them before the loop" in text
    assert (
        f"backward: {flops // 2:,} flops a row in the loop, {flops // 2:,} for x and {flops:,} for parameters" in text
    )


def test_an_unfolding_tells_its_adjoint() -> None:
    assert explained(rit.Unfold(rit.LSTM(3, 4))).endswith("\nadjoint: full: keeps what every step computed.\n")
    text = explained(rit.Unfold(rit.LSTM(3, 4), adjoint="truncated:20,40"))
    assert text.endswith("\nadjoint: truncated:20,40: losses reach back a bounded number of steps.\n")
    assert "adjoint" not in explained(rit.LSTM(3, 4))


def test_a_product_with_a_part_of_a_parameter_shows_which() -> None:
    assert "@ U.weight[8:12, 0:4].T" in explained(rit.GRU(3, 4, reset="before"))


def test_what_stays_on_the_reference_executor_says_why() -> None:
    class Summing(rit.GRU):
        def forward(self, x: Tensor, s: Any) -> Any:
            return self.State(s.h.sort(-1).values)

    text = explained(Summing(3, 4))
    assert "executor: reference, for Summing cannot be compiled: torch's sort (test_explain.py, line" in text
    assert "s.h.sort(-1).values" in text


def test_a_module_that_is_no_cell_and_one_that_is_no_module() -> None:
    assert explained(nn.LSTMCell(3, 4)).startswith("LSTMCell: x of 3 features, state h (4), c (4)")
    with pytest.raises(ArgumentError, match=r"^explain takes a cell, a module like one, or an Unfold, not str"):
        rit.explain("lstm")  # type: ignore[arg-type]


class Mean(rit.Cell):
    """h = (1 - z) h' + z n / 2, with z and n of x alone, written in the ways that people write it."""

    def __init__(self, way: str) -> None:
        super().__init__(3, 4)
        self.way = way
        self.z, self.n = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor, s: Any) -> Any:
        z, n = torch.sigmoid(self.z(x)), torch.tanh(self.n(x)) / 2
        ways = {
            "apart": lambda h: h - z * h + n * z,
            "lerp": lambda h: torch.lerp(h, n, z),
            "toward": lambda h: h + z * (n - h),
            "twice": lambda h: (h + h - 2 * (h * z)) / 2 + z * n,
            "negative": lambda h: -(z * (h - n) - h),
            "quotient": lambda h: ((1 - z) * h + z * n) / (z + (1 - z)),
        }
        return self.State(ways[self.way](s.h))


class Mixed(rit.Cell):
    """Fields that follow one upon the other: c is a mean whose share hangs on d', and d is one of x alone."""

    State = namedtuple("State", "y c d")

    def __init__(self) -> None:
        super().__init__(3, 4)
        self.W = nn.Linear(3, 12)

    def forward(self, x: Tensor, s: Any) -> Any:
        a, b, n = self.W(x).chunk(3, -1)
        c = torch.sigmoid(a + s.d) * s.c + n
        return self.State(torch.tanh(c) * s.d, c, torch.sigmoid(b) * s.d + n)


class Crossed(rit.Cell):
    """Linear in the state, but each field in the other's."""

    State = namedtuple("State", "h c")

    def forward(self, x: Tensor, s: Any) -> Any:
        return self.State(x * s.c, x * s.h)


def program_of(cell: rit.Cell, *passes: Callable[[Program], Program]) -> Program:
    program = unroll(trace(cell, cell.input_size, cell.state_sizes, next(cell.parameters(), torch.zeros(()))), 1)
    for each in passes:
        program = each(program)
    return program


@pytest.mark.parametrize("way", ["apart", "lerp", "toward", "twice", "negative", "quotient"])
def test_a_cell_that_is_linear_in_its_state_becomes_one_multiplication_and_addition(way: str) -> None:
    cell = Mean(way).double()
    program = program_of(cell, simplify)
    assert scanned(program) == (0,)
    assert [node.op for node in program.nodes if node.rate >= STATE and node.op != "state"] == ["mul_add"]
    x, h = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    found = interpret(program, x, [[h]], lambda name: lookup(cell, name))
    torch.testing.assert_close(found[program.results[0]], cell(x, cell.State(h)).h)
    assert "linear in the state: a scan of h; no product is left in the loop" in explained(cell)


def test_fields_are_solved_one_after_the_other() -> None:
    cell = Mixed().double()
    program = program_of(cell, fold)
    assert scanned(program) == (2, 1, 0)
    assert "a scan of d, c, y" in explained(cell)
    state = cell.State(*torch.randn(3, 5, 4, dtype=torch.float64))
    x = torch.randn(5, 3, dtype=torch.float64)
    written = linearise(program)
    found = interpret(written, x, [state], lambda name: lookup(cell, name))
    torch.testing.assert_close(tuple(found[value] for value in written.results), tuple(cell(x, state)))


def test_a_reading_that_no_step_waits_for_may_be_a_product() -> None:
    assert "a scan of s, y; 32 flops a row in products stay in it" in explained(rit.cells.LRU(3, 4))


def test_each_field_is_rewritten_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Many(rit.Cell):
        State = namedtuple("State", [f"s{number}" for number in range(8)])

        def forward(self, x: Tensor, s: Any) -> Any:
            return self.State(*(h + 0.5 * (x * number - h) for number, h in enumerate(s)))

    program, written = program_of(Many(4, 4), fold), []
    monkeypatch.setattr("ritornello.program.linear.prune", lambda program: written.append(0) or prune(program))
    made = linearise(program)
    assert [made.nodes[value].op for value in made.results] == ["mul_add"] * 8
    assert len(written) == 8


class Halving(rit.Cell):
    def forward(self, x: Tensor, s: Any) -> Any:
        return self.State((x * s.h + 0.5 * x) / (x + x))


def test_a_quotient_by_a_tiny_number_stays_what_it_is() -> None:
    """1 / y is infinite where x / y is not."""
    cell = Halving(1, 1)
    assert scanned(program_of(cell, simplify)) == (0,)
    outputs, _ = rit.Unfold(cell, executor="cpu")(torch.full((3, 1, 1), 1e-39))
    torch.testing.assert_close(outputs.flatten(), torch.tensor([0.25, 0.375, 0.4375]))


NO_PRODUCT = {"qrnn", "sru", "sru-peephole", "sru-square", "min-gru", "min-lstm", "rg-lru", "teacher-forced"}
LINEAR = NO_PRODUCT - {"sru-peephole", "teacher-forced"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_cell_is_compiled_and_those_made_for_it_have_no_product_in_their_loop(variant: str) -> None:
    text = explained(VARIANTS[variant](6, 8))
    assert "\nexecutor: cpu (" in text
    if variant != "lru":  # whose last product waits for nothing, and may leave the loop
        assert ("@" not in text.split("in the loop:")[1]) == (variant in NO_PRODUCT)
    if variant in LINEAR:
        assert "linear in the state: a scan of" in text
        assert "no product is left in the loop" in text


def test_of_a_teacher_forced_jordan_network_nothing_is_left_in_the_loop() -> None:
    free = explained(cells.Jordan(3, 4, output_size=2))
    assert free.split("in the loop:")[1].count("@") == 2
    forced = explained(cells.TeacherForced(cells.Jordan(3, 4, output_size=2)))
    before, loop = forced.split("in the loop:")
    assert before.count("@") == 3
    assert loop.split("forward:")[0].split() == ["nothing", "o", "=", "v₃"]
    assert "no step waits for another" in loop
    assert "100% of them before the loop" in loop
    assert "backward: 0 flops a row in the loop" in loop


@pytest.mark.parametrize("cell", [rit.LSTM(3, 4), rit.GRU(3, 4), rit.Elman(3, 4), Crossed(4, 4)])
def test_other_cells_are_not_linear(cell: rit.Cell) -> None:
    assert scanned(program_of(cell, simplify)) is None
    assert linearise(program_of(cell, fold)) == program_of(cell, fold)
    assert "linear in the state" not in explained(cell)
