"""rit.explain: what became of a cell, readably."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ritornello as rit
from ritornello.errors import ArgumentError
from ritornello.program import simplify, trace, unroll
from ritornello.program.interpret import interpret
from ritornello.program.linear import linear
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


class Leaky(rit.Cell):
    """h = (1 - z) h' + z n, with z and n of x alone: a prefix scan."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.z, self.n = nn.Linear(input_size, hidden_size), nn.Linear(input_size, hidden_size)

    def forward(self, x: Tensor, s: Any) -> Any:
        z = torch.sigmoid(self.z(x))
        return self.State(s.h - z * s.h + torch.tanh(self.n(x)) * z / 2)


def test_a_cell_that_is_linear_in_its_state_is_found_and_its_form_is_right() -> None:
    cell = Leaky(3, 4).double()
    program = simplify(unroll(trace(cell, 3, [4], torch.zeros((), dtype=torch.float64)), 1))
    form = linear(program)
    assert form is not None
    x, h = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    found = interpret(form.program, x, [[h]], lambda name: lookup(cell, name))
    a, b = (found[value] for value in form.program.results)
    torch.testing.assert_close(a * h + b, cell(x, cell.State(h)).h)
    assert "linear in the state: a prefix scan" in explained(cell)


@pytest.mark.parametrize("cell", [rit.LSTM(3, 4), rit.GRU(3, 4), rit.Elman(3, 4)])
def test_other_cells_are_not_linear(cell: rit.Cell) -> None:
    assert linear(simplify(unroll(trace(cell, 3, list(cell.state_sizes), torch.zeros(())), 1))) is None
