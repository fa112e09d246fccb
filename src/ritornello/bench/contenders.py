"""The contenders: ways to compute one case, with the same weights, from padded sequences to padded outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ritornello import cells
from ritornello.bench.steps import TORCH, before, step_of
from ritornello.cells import Cell
from ritornello.engine import Unfold

OURS, DENSE, NN, PADDED, LOOP, PLAIN, SCAN, CELL = (
    "ritornello",
    "ritornello dense",
    "torch.nn",
    "torch.nn padded",
    "loop",
    "plain loop",
    "lax.scan",
    "the cell",
)


class Answer(NamedTuple):
    """What a contender computes.

    Attributes:
        outputs: (time, batch, size), zeros beyond a sequence's end.
        gradients: of x and of the cell's parameters, by name; a contender may lack some.
    """

    outputs: Tensor
    gradients: dict[str, Tensor]


@dataclass
class Contender:
    """One way to compute a case.

    Attributes:
        name: of its column.
        forward: the outputs, without gradients.
        both: the outputs and all gradients, in the contender's own form.
        outputs: from what `forward` gives to a tensor.
        answer: from what `both` gives to an answer.
        note: what is to be said of it.
        compile_s: seconds that went before the first call of `forward`, and of `both`; they are not timed with it.
    """

    name: str
    forward: Callable[[], Any]
    both: Callable[[], Any]
    outputs: Callable[[Any], Tensor]
    answer: Callable[[Any], Answer]
    note: str = ""
    compile_s: tuple[float, float] | None = None


@dataclass
class Case:
    """A cell, and what it runs over.

    Attributes:
        cell: holds the weights.
        x: (time, batch, input_size).
        weights: (time, batch, output_size), the gradient that comes to the outputs.
        lengths: (batch,) steps of each sequence; None where all are full.
        executor: ritornello's.
    """

    cell: Cell
    x: Tensor
    weights: Tensor
    lengths: Tensor | None = None
    executor: str = "auto"

    @property
    def tokens(self) -> int:
        """Steps of all sequences."""
        return self.x.shape[0] * self.x.shape[1] if self.lengths is None else int(self.lengths.sum())

    def to(self, dtype: torch.dtype) -> Case:
        """The same in another precision, with weights of its own."""
        cell = copy.deepcopy(self.cell).to(dtype)
        return Case(cell, self.x.to(dtype), self.weights.to(dtype), self.lengths, self.executor)


def make_case(
    make: Callable[[int, int], Cell],
    shape: tuple[int, int, int],
    *,
    lengths: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    executor: str = "auto",
    seed: int = 0,
) -> Case:
    """A case of shape (time, batch, hidden_size), the input as large as the state, all from one seed.

    The cell is in evaluation mode: what a dropout draws at random could not be compared.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        time, batch, hidden = shape
        cell = make(hidden, hidden).to(dtype).eval()
        x = torch.randn(time, batch, hidden).to(dtype)
        weights = torch.randn(time, batch, cell.output_size).to(dtype)
    return Case(cell, x, weights, lengths, executor)


def in_torch(
    name: str,
    case: Case,
    call: Callable[[Tensor], Tensor],
    parameters: Mapping[str, Tensor],
    rename: Any = dict,
    note: str = "",
) -> Contender:
    """A contender of torch's autograd."""
    x = case.x.detach().clone().requires_grad_()
    leaves = {"x": x, **parameters}
    tensors = list(leaves.values())

    def forward() -> Tensor:
        with torch.no_grad():
            return call(case.x)

    def both() -> tuple[Tensor, Sequence[Tensor | None]]:
        outputs = call(x)
        return outputs, torch.autograd.grad(outputs, tensors, case.weights, allow_unused=True)

    def answer(found: tuple[Tensor, Sequence[Tensor | None]]) -> Answer:
        outputs, gradients = found
        named = {
            key: torch.zeros_like(leaf) if gradient is None else gradient
            for (key, leaf), gradient in zip(leaves.items(), gradients, strict=True)
        }
        return Answer(outputs.detach(), rename(named))

    return Contender(name, forward, both, lambda found: found, answer, note)


def ours(case: Case, name: str = OURS) -> Contender:
    """ritornello."""
    unfold = Unfold(case.cell, executor=case.executor)
    return in_torch(name, case, lambda x: unfold(x, lengths=case.lengths)[0], dict(case.cell.named_parameters()))


def loop(case: Case, plain: bool = False) -> Contender:
    """A loop in Python; over the rows that are still active where sequences end early.

    Args:
        plain: call the cell at each step, also where a careful person would do more before the loop.
    """
    cell = case.cell
    parameters = dict(cell.named_parameters())
    write = None if plain else step_of(cell)

    def careful(x: Tensor, sizes: list[int]) -> list[Tensor]:
        assert write is not None
        step = write(TORCH, parameters)
        return walk(before(TORCH, parameters, x, cell).split(sizes), step)

    def called(x: Tensor, sizes: list[int]) -> list[Tensor]:
        return walk(x.split(sizes), lambda x, s: cell(x, cell.State(*s)))

    def walk(inputs: Sequence[Tensor], step: Callable) -> list[Tensor]:
        state = tuple(cell.zero_state(len(inputs[0]), inputs[0]))
        outputs = []
        for row in inputs:
            if len(row) < len(state[0]):
                state = tuple(field[: len(row)] for field in state)
            state = step(row, state)
            outputs.append(state[0])
        return outputs

    run = careful if write is not None else called

    def call(x: Tensor) -> Tensor:
        time, batch, size = x.shape
        if case.lengths is None:
            return torch.cat(run(x.reshape(-1, size), [batch] * time)).view(time, batch, -1)
        packed = pack_padded_sequence(x, case.lengths, enforce_sorted=False)
        rows = torch.cat(run(packed.data, packed.batch_sizes.tolist()))
        return pad_packed_sequence(packed._replace(data=rows), total_length=time)[0]

    note = "" if write is not None or plain else "calls the cell at each step"
    return in_torch(PLAIN if plain else LOOP, case, call, parameters, note=note)


def torch_nn(case: Case, packed: bool = True) -> Contender | None:
    """torch.nn's module, where it has the cell; ragged sequences are packed, or run padded to their full length."""
    module = module_of(case.cell)
    if module is None:
        return None
    H = case.cell.hidden_size

    def call(x: Tensor) -> Tensor:
        if case.lengths is None or not packed:
            return module(x)[0]
        outputs: PackedSequence = module(pack_padded_sequence(x, case.lengths, enforce_sorted=False))[0]
        return pad_packed_sequence(outputs, total_length=len(x))[0]

    def rename(g: dict[str, Tensor]) -> dict[str, Tensor]:
        named = {"W.weight": "weight_ih_l0", "W.bias": "bias_ih_l0", "U.weight": "weight_hh_l0"}
        found = {"x": g["x"], **{name: g[theirs] for name, theirs in named.items()}}
        return found | ({"d": g["bias_hh_l0"][-H:]} if isinstance(module, nn.GRU) else {})

    name = NN if packed else PADDED
    return in_torch(name, case, call, dict(module.named_parameters()), rename, note=type(module).__name__)


@torch.no_grad()
def module_of(cell: Cell) -> nn.RNNBase | None:
    """torch.nn's module with the cell's weights."""
    kind: Any = {cells.LSTM: nn.LSTM, cells.GRU: nn.GRU, cells.Elman: nn.RNN}.get(type(cell))
    known: Any = cell
    usual = {"reset": "after", "update": "keep", "nonlinearity": "tanh"}
    if kind is None or any(getattr(cell, name, value) != value for name, value in usual.items()):
        return None
    if known.W.bias is None:
        return None
    module = kind(cell.input_size, cell.hidden_size).to(known.W.weight.dtype)
    module.weight_ih_l0.copy_(known.W.weight)
    module.weight_hh_l0.copy_(known.U.weight)
    module.bias_ih_l0.copy_(known.W.bias)
    module.bias_hh_l0.zero_()
    if kind is nn.GRU:
        module.bias_hh_l0[-cell.hidden_size :] = known.d
    return module
