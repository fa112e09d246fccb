"""Steppers: one input after the other, the same as the whole sequence at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close
from torch import nn

import ritornello as rit
from ritornello.errors import ArgumentError

CELLS = {
    "lstm": lambda: rit.LSTM(5, 7),
    "gru-before": lambda: rit.GRU(5, 7, reset="before"),
    "foreign": lambda: nn.GRUCell(5, 7),
}


def walk(step: Any, x: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
    outputs = []
    for each in x:
        output, state = step(each, state)
        outputs.append(output.clone())
    return torch.stack(outputs), state


@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", list(CELLS))
def test_steps_equal_the_sequence(cell: str, dtype: torch.dtype, rows: int) -> None:
    unfold = rit.Unfold(CELLS[cell](), learn_initial=True).to(dtype)
    with torch.no_grad():
        for field in unfold.initial:
            field.fill_(0.5)
        x = torch.randn(9, rows, 5, dtype=dtype)
        outputs, last = unfold(x)
    found, state = walk(unfold.stepper(rows), x)
    assert_close([found, *state], [outputs, *last])


def test_a_step_may_hold_the_other_sign() -> None:
    unfold, x = rit.Unfold(rit.GRU(5, 7)), torch._neg_view(torch.randn(9, 1, 5))
    with torch.no_grad():
        assert_close(walk(unfold.stepper(), x)[0], unfold(x.resolve_neg())[0])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float64], ids=str)
def test_tensors_of_another_dtype_are_read_as_they_are(dtype: torch.dtype) -> None:
    class Masked(rit.Elman):
        def __init__(self) -> None:
            super().__init__(5, 7)
            self.register_buffer("mask", torch.ones(7, dtype=dtype))

        def forward(self, x: torch.Tensor, s: Any) -> Any:
            return self.State(torch.tanh(self.W(x) + F.linear(s.h, self.U.weight)) * self.mask)

    unfold, x = rit.Unfold(Masked()), torch.randn(9, 1, 5)
    with torch.no_grad():
        assert_close(walk(unfold.stepper(), x)[0], unfold(x)[0])


def test_one_row_needs_no_axis_and_any_state_may_be_given() -> None:
    unfold = rit.Unfold(rit.LSTM(5, 7)).double()
    x = torch.randn(6, 1, 5, dtype=torch.float64)
    state = (torch.randn(1, 7, dtype=torch.float64), torch.randn(1, 7, dtype=torch.float64))
    step = unfold.stepper()
    with torch.no_grad():
        outputs, last = unfold(x, state)
    found, end = walk(step, x[:, 0], unfold.cell.State(*state))
    assert_close([found, *end], [outputs, *last])
    first, _ = step(x[0])  # no state: from the beginning again
    with torch.no_grad():
        assert_close(first, unfold(x[:1])[0][0])


def test_an_older_state_goes_on_from_where_it_was_kept() -> None:
    unfold = rit.Unfold(rit.GRU(5, 7)).double()
    x, step = torch.randn(4, 1, 5, dtype=torch.float64), unfold.stepper()
    _, state = step(x[0])
    kept = type(state)(*(field.clone() for field in state))
    one = step(x[1], state)[0].clone()
    step(x[2], None)
    assert torch.equal(step(x[1], kept)[0], one)


def test_a_stepper_made_in_inference_mode_goes_on_outside() -> None:
    unfold, x = rit.Unfold(rit.LSTM(5, 7)), torch.randn(4, 1, 5)
    with torch.inference_mode():
        step, made_there = unfold.stepper(), rit.Unfold(rit.GRU(5, 7)).stepper()
    with torch.no_grad():
        assert_close(walk(step, x)[0], unfold(x)[0])
    walk(made_there, x)


def test_its_own_fields_may_be_given_back_in_another_order() -> None:
    unfold, x = rit.Unfold(rit.LSTM(5, 7)).double(), torch.randn(2, 1, 5, dtype=torch.float64)
    step = unfold.stepper()
    _, state = step(x[0])
    h, c = state.h.clone(), state.c.clone()
    with torch.no_grad():
        expected = unfold(x[1:], (c, h))[0][0]
    assert_close(step(x[1], unfold.cell.State(state.c, state.h))[0], expected)


def test_what_does_not_fit_is_named() -> None:
    unfold = rit.Unfold(rit.LSTM(5, 7))
    step = unfold.stepper()
    with pytest.raises(
        ArgumentError, match=r"^x is torch\.float32 of shape \(1, 6\) on cpu; expected torch\.float32 of"
    ):
        step(torch.zeros(1, 6))
    with pytest.raises(ArgumentError, match=r"^x is torch\.float64"):
        step(torch.zeros(1, 5, dtype=torch.float64))
    for rows, shape in ((3, (5, 3)), (1, (5, 1)), (3, (15,)), (3, (5,))):
        with pytest.raises(ArgumentError, match=r"^x is torch\.float32 of shape .*; expected .* of shape \(\d, 5\)"):
            unfold.stepper(rows)(torch.zeros(shape))
    with pytest.raises(ArgumentError, match=r"^state field 'h' has shape \(2, 7\); expected \(1, 7\)"):
        step(torch.zeros(1, 5), (torch.zeros(2, 7), torch.zeros(2, 7)))
    h = torch.zeros(1, 7)
    for state, message in (
        ((h,), r"^state has 1 fields; LSTM\.State has 2: h, c \(missing: c\)\.$"),
        ((h, h, h), r"^state has 3 fields; LSTM\.State has 2: h, c \(not among them: number 3\)\.$"),
        ({"h": h, "m": h}, r"^state has the fields h, m; LSTM\.State has h, c \(missing: c; not among them: m\)\.$"),
        ((h, h.double()), r"^state field 'c' is torch\.float64"),
    ):
        with pytest.raises(ArgumentError, match=message):
            step(torch.zeros(1, 5), state)
    with pytest.raises(ArgumentError, match=r"^rows must be a positive integer, not 0"):
        unfold.stepper(0)
    with pytest.raises(ArgumentError, match=r"^No stepper in bfloat16"):
        rit.Unfold(rit.LSTM(5, 7).bfloat16()).stepper()
    with pytest.raises(ArgumentError, match=r"^No stepper in float16"):
        rit.Unfold(rit.LSTM(5, 7).half()).stepper()


def test_a_cell_without_a_program_has_no_stepper() -> None:
    class Sorting(rit.GRU):
        def forward(self, x: torch.Tensor, s: Any) -> Any:
            return self.State(s.h.sort(-1).values)

    with pytest.raises(ArgumentError, match=r"^No stepper: Sorting cannot be compiled: torch's sort"):
        rit.Unfold(Sorting(3, 4)).stepper()


@pytest.mark.parametrize("pause", [0.0, 0.002], ids=["at once", "now and then"])
def test_two_threads_take_steps_of_the_same_bits(pause: float) -> None:
    """A helper spins while steps come fast, and sleeps while they do not."""
    unfold, x = rit.Unfold(rit.LSTM(128, 128)), torch.randn(60, 1, 128)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            step, state, outputs = unfold.stepper(), None, []
            for number, each in enumerate(x):
                output, state = step(each, state)
                outputs.append(output.clone())
                if number % 10 == 9:
                    time.sleep(pause)
            found.append(torch.stack(outputs))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


FORK = """
import os, sys, threading, torch
import ritornello as rit
torch.set_num_threads(2)
step, x = rit.Unfold(rit.LSTM(128, 128)).stepper(), torch.randn(40, 1, 128)
def walk():
    state, outputs = None, []
    for each in x:
        output, state = step(each, state)
        outputs.append(output.clone())
    return torch.stack(outputs)
before = walk()
child = os.fork()
if child == 0:
    same = torch.equal(walk(), before)
    for _ in range(3):  # a new thread may take the place of the one that is gone
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
    del step, walk
    os._exit(0 if same else 3)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
sys.exit(status if torch.equal(walk(), before) else 5)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_stepper_survives_a_fork() -> None:
    """In the child its helper is gone. It could hang, hence a process that can be killed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(rit.__file__).parents[1]), *sys.path])}
    done = subprocess.run([sys.executable, "-c", FORK], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-3000:]
