"""adjoint="checkpointed": the same values and gradients as "full", with little kept."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, gradients
from torch import Tensor

import ritornello as rit
from ritornello.errors import ArgumentError
from ritornello.executors import run as run_module

F64 = torch.float64


class Noisy(rit.Cell):
    """Draws at random inside: backward must draw the same numbers in every segment."""

    State = namedtuple("State", "h")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = torch.nn.Linear(input_size + hidden_size, hidden_size)

    def forward(self, x: Tensor, s: Any) -> Any:
        return self.State(F.dropout(torch.tanh(self.W(torch.cat([x, s.h], -1))), 0.3, True))


CELLS = {"lstm": rit.LSTM, "gru": rit.GRU, "noisy": Noisy}
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


@pytest.mark.parametrize("kind", ["dense", "ragged", "resets", "both", "every"])
@pytest.mark.parametrize("cell", list(CELLS))
def test_checkpointed_equals_full(cell: str, kind: str) -> None:
    for time, batch in SHAPES:
        made, call = CELLS[cell](4, 7).double(), calls(time, batch)[kind]
        x = torch.randn(time, batch, 4, dtype=F64, requires_grad=True)
        found = {}
        for adjoint in ("full", "checkpointed"):
            unfold = rit.Unfold(made, adjoint=adjoint, executor="cpu", learn_initial=True).double()
            with torch.no_grad():
                for field in unfold.initial:
                    field.fill_(0.3)
            torch.manual_seed(1)
            values = unfold(x, **call)
            found[adjoint] = (values, gradients(values, {"x": x, **dict(unfold.named_parameters())}))
        assert_close(found["checkpointed"], found["full"])


def test_a_second_backward_gives_the_same() -> None:
    unfold = rit.Unfold(rit.LSTM(3, 4).double(), adjoint="checkpointed", executor="cpu")
    x = torch.randn(10, 2, 3, dtype=F64, requires_grad=True)
    outputs, _ = unfold(x)
    first = torch.autograd.grad(outputs.sum(), x, retain_graph=True)
    assert_close(torch.autograd.grad(outputs.sum(), x), first)


def test_only_root_t_states_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond x and the outputs: checkpoints of √T segments; no frames at all between forward and backward."""
    runs = []

    class Watched(run_module.Run):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            found = super().forward(*args, **kwargs)
            runs.append(self)
            return found

    monkeypatch.setattr("ritornello.executors.cpu.Run", Watched)
    unfold = rit.Unfold(rit.LSTM(3, 8), adjoint="checkpointed", executor="cpu")
    unfold(torch.randn(100, 2, 3))
    (run,) = runs
    assert len(run.segments) == 10
    assert [tuple(field.shape) for field in run.checkpoints] == [(9, 2, 8)] * 2
    assert run.memory is None
    assert not run.frame


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"^Unknown adjoint 'checkpoint': did you mean checkpointed\?"):
        rit.Unfold(rit.LSTM(3, 4), adjoint="checkpoint")
    unfold = rit.Unfold(rit.LSTM(3, 4), adjoint="checkpointed", executor="reference")
    with pytest.raises(ArgumentError, match=r"adjoint='checkpointed' is the cpu executor's"):
        unfold(torch.zeros(2, 1, 3))
