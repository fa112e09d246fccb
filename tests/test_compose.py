"""Stack, Bidirectional and Residual: against the same put together by hand, and torch.nn's stacked layers."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import pytest
import torch
from comparison import assert_close, gradients
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from twins import TORCH_LAYERS, chain_twin, copy_from_torch

import ritornello as rit
from ritornello.cells import CELLS, Cell
from ritornello.errors import ArgumentError
from ritornello.nn import Bidirectional, Residual, Stack
from ritornello.nn.state import detached, leaves, refill

F64 = torch.float64
POISON = float("nan")
LENGTHS = [3, 5, 0, 1]


class Echo(Cell):
    """Its output is its input."""

    def forward(self, x: Tensor, s: Any) -> Any:
        return self.State(x)


def beyond(lengths: list[int], time: int = 5) -> Tensor:
    """(time, batch): True in the padding."""
    return torch.arange(time)[:, None] >= torch.tensor(lengths)


def state_of(cell: Cell, rows: int = 4) -> Any:
    return cell.State(*(torch.randn(rows, size, dtype=F64) for size in cell.state_sizes))


def loop(cell: Cell, x: Tensor, state: Any, lengths: list[int] | None, resets: Tensor | None, reverse: bool) -> Any:
    """The naive loop: outputs and last state."""
    states, last = chain_twin(cell, x, cell.zero_state(1, x), state, lengths, resets, reverse)
    return states[0], last


RESETS = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 1], [1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 1, 0]]).bool()
OPTIONS: list[dict[str, Any]] = [{}, {"lengths": LENGTHS}, {"resets": RESETS}]
OPTIONS.append(OPTIONS[1] | OPTIONS[2])


@pytest.mark.parametrize("options", OPTIONS, ids=["full", "lengths", "resets", "both"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_bidirectional_is_two_loops_side_by_side(batch_first: bool, options: dict[str, Any]) -> None:
    layer = Bidirectional(rit.LSTM(3, 4), rit.GRU(3, 2), batch_first=batch_first).to(F64)
    x, states = torch.randn(5, 4, 3, dtype=F64), (state_of(layer.ahead.cell), state_of(layer.back.cell))
    poisoned = x.masked_fill(beyond(LENGTHS)[..., None], POISON) if "lengths" in options else x
    lengths, resets = options.get("lengths"), options.get("resets")
    turned = options | {"resets": resets.T if batch_first and resets is not None else resets}
    outputs, last = layer(poisoned.transpose(0, 1) if batch_first else poisoned, states, **turned)
    h, last_h = loop(layer.ahead.cell, x, states[0], lengths, resets, False)
    g, last_g = loop(layer.back.cell, x, states[1], lengths, resets, True)
    assert_close(outputs.transpose(0, 1) if batch_first else outputs, torch.cat([h, g], -1))
    assert_close(last, (last_h, last_g))
    assert (layer.input_size, layer.output_size) == (3, 6)


@pytest.mark.parametrize("options", OPTIONS, ids=["full", "lengths", "resets", "both"])
def test_a_stack_reads_the_layer_below(options: dict[str, Any]) -> None:
    cells = [rit.LSTM(3, 4), rit.Elman(4, 2), rit.GRU(2, 5)]
    stack = Stack([rit.Unfold(cell, reverse=cell is cells[1]) for cell in cells]).to(F64)
    x, states = torch.randn(5, 4, 3, dtype=F64), [state_of(cell) for cell in cells]
    expected, lasts = x, []
    for cell, state in zip(cells, states, strict=True):
        lengths, resets = options.get("lengths"), options.get("resets")
        expected, last = loop(cell, expected, state, lengths, resets, cell is cells[1])
        lasts.append(last)
    for given in (tuple(states), states):
        outputs, last = stack(x, given, **options)
        assert_close(outputs, expected)
        assert_close(last, tuple(lasts))
    assert (stack.input_size, stack.output_size, stack.batch_first) == (3, 5, False)
    assert_close(stack(x, **options), stack(x, [None] * 3, **options))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
def test_a_residual_adds_its_input(lengths: list[int] | None, batch_first: bool) -> None:
    """What is beyond a sequence's end is neither read nor added."""
    layer = Residual(rit.Unfold(rit.GRU(3, 3), batch_first=batch_first)).to(F64)
    x, state = torch.randn(5, 4, 3, dtype=F64), state_of(layer.layer.cell)
    expected, last_expected = loop(layer.layer.cell, x, state, lengths, None, False)
    expected = expected + x
    if lengths:
        expected[beyond(lengths)] = 0
        x[beyond(lengths)] = POISON
    x.requires_grad_()
    outputs, last = layer(x.transpose(0, 1) if batch_first else x, state, lengths=lengths)
    outputs = outputs.transpose(0, 1) if batch_first else outputs
    assert_close(outputs, expected)
    assert_close(last, last_expected)
    assert (layer.input_size, layer.output_size, layer.batch_first) == (3, 3, batch_first)

    found = gradients(outputs, {"x": x})["x"]
    clean = x.detach().nan_to_num().requires_grad_()
    twin, _ = loop(layer.layer.cell, clean, state, lengths, None, False)
    inside = ~beyond(lengths or [5] * 4)
    assert_close(found, gradients((twin + clean) * inside[..., None], {"x": clean})["x"])
    assert not found[~inside].any()


@pytest.mark.parametrize("length", [None, 0, 3])
@pytest.mark.parametrize("batch_first", [False, True])
def test_compositions_of_one_sequence(batch_first: bool, length: int | None) -> None:
    """Without a batch axis, the same as a batch of one."""
    make = partial(Stack.of, rit.GRU, 3, 2, layers=3, bidirectional=True, residual=True)
    torch.manual_seed(3)
    alone = make(batch_first=batch_first).to(F64)
    torch.manual_seed(3)
    batched = make().to(F64)
    x, resets = torch.randn(5, 3, dtype=F64), torch.tensor([False, True, False, False, True])
    lengths = None if length is None else [length]
    poisoned = x.clone()
    poisoned[length if length is not None else 5 :] = POISON
    outputs, last = alone(poisoned, lengths=lengths, resets=resets)
    expected, last_expected = batched(x[:, None], lengths=lengths, resets=resets[:, None])
    assert_close(outputs, expected[:, 0])
    for pair, pair_expected in zip(last, last_expected, strict=True):
        for state, state_expected in zip(pair, pair_expected, strict=True):
            assert_close(state.h, state_expected.h[0])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("lengths", [None, [3, 5, 2, 1]], ids=["full", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", list(TORCH_LAYERS))
def test_a_stack_equals_torch_s_layers(
    name: str, bidirectional: bool, lengths: list[int] | None, dtype: torch.dtype
) -> None:
    theirs = TORCH_LAYERS[name](3, 4, num_layers=2, bidirectional=bidirectional, batch_first=True, dtype=dtype)
    ours = Stack.of(CELLS[name], 3, 4, layers=2, bidirectional=bidirectional, batch_first=True).to(dtype)
    names: dict[str, Tensor] = {}
    for number, layer in enumerate(ours.layers):
        halves = {"ahead.": layer.ahead, "back.": layer.back} if bidirectional else {"": layer}
        for half, unfold in halves.items():
            suffix = f"_l{number}_reverse" if half == "back." else f"_l{number}"
            copied = copy_from_torch(unfold.cell, theirs, suffix)
            names |= {f"layers.{number}.{half}cell.{key}": value for key, value in copied.items()}
    assert set(names) == set(dict(ours.named_parameters()))

    ways = 2 if bidirectional else 1
    fields = len(CELLS[name].State._fields)
    stacked = [torch.randn(2 * ways, 4, 4, dtype=dtype, requires_grad=True) for _ in range(fields)]
    states = [CELLS[name].State(*(field[number] for field in stacked)) for number in range(2 * ways)]
    states = list(zip(states[::2], states[1::2], strict=True)) if bidirectional else states

    x = torch.randn(4, 5, 3, dtype=dtype, requires_grad=True)
    read, poisoned = x, x
    if lengths:
        read = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False, batch_first=True)
        poisoned = x.masked_fill(beyond(lengths).T[..., None], POISON)
    expected, final = theirs(read, tuple(stacked) if fields > 1 else stacked[0])
    if lengths:
        expected, _ = pad_packed_sequence(expected, batch_first=True, total_length=5)
    outputs, last = ours(poisoned, states, lengths=lengths)
    assert_close(outputs, expected)
    flat = [state for pair in last for state in pair] if bidirectional else list(last)
    last_fields = [torch.stack(values) for values in zip(*flat, strict=True)]
    final_fields = list(final) if fields > 1 else [final]
    assert_close(last_fields, final_fields)

    entering = {"x": x, **{f"state {number}": field for number, field in enumerate(stacked)}}
    found = gradients((outputs, last_fields), entering | dict(ours.named_parameters()))
    wanted = gradients((expected, final_fields), entering | names)
    wanted = {key: value[-4:] if key.endswith(".d") else value for key, value in wanted.items()}
    assert_close({key: found[key] for key in wanted}, wanted, "gradient")


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_dropout_is_between_layers_only_and_in_training_only(layers: int) -> None:
    """Layers that echo show what dropout does: each value is kept, scaled by 1/(1 - p) for each layer but the last."""
    stack = Stack.of(Echo, 10, 10, layers=layers, dropout=0.2)
    x = torch.rand(100, 20, 10) + 1
    outputs, states = stack(x)
    assert_close(states[0].h, x[-1])  # below the first there is none
    scale = 1.25 ** (layers - 1)
    kept = outputs != 0
    assert_close(outputs[kept], (x * scale)[kept])
    assert kept.all() == (layers == 1)
    share, spread = 0.8 ** (layers - 1), (0.25 / kept.numel()) ** 0.5
    assert abs(kept.double().mean() - share) <= 5 * spread
    assert torch.equal(stack.eval()(x)[0], x)
    assert torch.equal(stack.train()(x)[0] != 0, kept) == (layers == 1)  # another draw each time


def test_dropout_between_no_layers_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ritornello"):
        rit.models.LanguageModel(5, rit.GRU, embedding=3, hidden=4, dropout=0.25)
        Stack.of(rit.GRU, 3, 4, layers=2, dropout=0.25)
        assert not caplog.records
        Stack.of(rit.GRU, 3, 4, dropout=0.25)
    assert [record.getMessage() for record in caplog.records] == [
        "Stack: dropout=0.25 acts between layers, and here is one: nothing is zeroed."
    ]


def test_without_dropout_training_and_evaluating_are_alike() -> None:
    stack, x = Stack.of(rit.LSTM, 3, 4, layers=2), torch.randn(5, 2, 3)
    assert torch.equal(stack.train()(x)[0], stack.eval()(x)[0])


def test_of_makes_the_usual_stack() -> None:
    stack = Stack.of(
        partial(rit.GRU, reset="before"),
        *(3, 4),
        layers=3,
        bidirectional=True,
        residual=True,
        dropout=0.5,
        batch_first=True,
        learn_initial=True,
        adjoint="truncated:2,3",
        executor="reference",
    )
    kinds = [type(layer) for layer in stack.layers]
    assert kinds == [Bidirectional, Residual, Residual]  # the first layer's sizes differ
    assert (stack.input_size, stack.output_size, stack.batch_first, stack.dropout) == (3, 8, True, 0.5)
    unfolds = [module for module in stack.modules() if isinstance(module, rit.Unfold)]
    assert [unfold.reverse for unfold in unfolds] == [False, True] * 3
    assert [unfold.cell.reset for unfold in unfolds] == ["before"] * 6
    assert [unfold.input_size for unfold in unfolds] == [3, 3, 8, 8, 8, 8]
    assert all(unfold.batch_first and unfold.executor == "reference" for unfold in unfolds)
    assert all(unfold.initial is not None and unfold.adjoint == rit.Truncated(2, 3) for unfold in unfolds)
    assert len({id(parameter) for parameter in stack.parameters()}) == 6 * 5
    assert [type(layer) for layer in Stack.of(rit.LSTM, 4, 4, layers=2, residual=True).layers] == [Residual, Residual]
    assert [type(layer) for layer in Stack.of(rit.LSTM, 4, 4).layers] == [rit.Unfold]


def test_a_residual_stack_by_hand() -> None:
    stack = Stack.of(rit.Elman, 3, 3, layers=2, residual=True).to(F64)
    x = torch.randn(5, 4, 3, dtype=F64)
    expected = x
    for layer in stack.layers:
        expected = expected + loop(layer.layer.cell, expected, None, None, None, False)[0]
    assert_close(stack(x)[0], expected)


EXECUTORS = ["reference", "cpu"]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("options", OPTIONS, ids=["full", "lengths", "resets", "both"])
def test_with_skip_connections_every_layer_reads_x_and_is_read(options: dict[str, Any], executor: str) -> None:
    cells = (rit.LSTM, rit.Elman, rit.GRU)
    stack = Stack.of(cells, 3, (4, 2, 5), skip=True, executor=executor).to(F64)
    x, states = torch.randn(5, 4, 3, dtype=F64), [state_of(layer.cell) for layer in stack.layers]
    below, every, lasts = x[..., :0], [], []
    for layer, state in zip(stack.layers, states, strict=True):
        read = torch.cat([x, below], -1)
        below, last = loop(layer.cell, read, state, options.get("lengths"), options.get("resets"), False)
        every.append(below)
        lasts.append(last)
    if "lengths" in options:
        x = x.masked_fill(beyond(LENGTHS)[..., None], POISON)
    outputs, found = stack(x, states, **options)
    assert_close(outputs, torch.cat(every, -1))
    assert_close(found, tuple(lasts))
    assert (stack.input_size, stack.output_size) == (3, 11)
    assert [layer.input_size for layer in stack.layers] == [3, 7, 5]


def test_dropout_of_a_stack_with_skip_connections_spares_x_and_the_outputs() -> None:
    class Heads(Cell):
        """Its output is its first ten inputs."""

        def forward(self, x: Tensor, s: Any) -> Any:
            return self.State(x[..., :10])

    class Tails(Heads):
        """Its output is its last ten inputs."""

        def forward(self, x: Tensor, s: Any) -> Any:
            return self.State(x[..., -10:])

    x = torch.rand(50, 20, 10) + 1
    for upper, spared in ((Heads, True), (Tails, False)):
        outputs, _ = Stack.of((Echo, upper), 10, 10, skip=True, dropout=0.5)(x)
        assert torch.equal(outputs[..., :10], x)
        assert torch.equal(outputs[..., 10:], x) == spared
    kept = outputs[..., 10:] != 0  # of what was between the layers
    assert_close(outputs[..., 10:][kept], (2 * x)[kept])


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("merge", ["concatenate", "sum"])
@pytest.mark.parametrize("options", OPTIONS, ids=["full", "lengths", "resets", "both"])
def test_whole_stacks_in_both_directions(options: dict[str, Any], merge: str, executor: str) -> None:
    """The two directions meet only at the top."""
    halves = [Stack.of((rit.GRU, rit.Elman), 3, (4, 2), reverse=way, executor=executor) for way in (False, True)]
    both = Bidirectional(*halves, merge=merge).to(F64)
    x, states = torch.randn(5, 4, 3, dtype=F64), [[state_of(layer.cell) for layer in half.layers] for half in halves]
    found, lasts = [], []
    for half, entering, way in zip(halves, states, (False, True), strict=True):
        reads, last = x, []
        for layer, state in zip(half.layers, entering, strict=True):
            reads, final = loop(layer.cell, reads, state, options.get("lengths"), options.get("resets"), way)
            last.append(final)
        found.append(reads)
        lasts.append(tuple(last))
    outputs, after = both(x, states, **options)
    assert_close(outputs, torch.cat(found, -1) if merge == "concatenate" else found[0] + found[1])
    assert_close(after, tuple(lasts))
    assert both.output_size == (4 if merge == "concatenate" else 2)


def test_a_stack_whose_layers_sum_their_directions() -> None:
    stack = Stack.of(rit.Elman, 3, 3, layers=2, bidirectional=True, merge="sum", residual=True).to(F64)
    expected = x = torch.randn(5, 4, 3, dtype=F64)
    for layer in stack.layers:
        ways = [
            loop(unfold.cell, expected, None, LENGTHS, None, unfold.reverse)[0] for unfold in layer.layer.children()
        ]
        expected = (expected + sum(ways)).masked_fill(beyond(LENGTHS)[..., None], 0)
    assert_close(stack(x, lengths=LENGTHS)[0], expected)


def test_what_unfoldings_are_told_goes_through_compositions() -> None:
    told = {"adjoint": "checkpointed", "executor": "cpu", "learn_initial": True, "batch_first": True}
    for make in (
        partial(Stack.of, (rit.GRU, rit.Elman), 3, 4, bidirectional=True, **told),
        lambda: Bidirectional(rit.GRU(3, 4), rit.LSTM(3, 4), **told),
        partial(Stack.of, rit.GRU, 3, (4, 2), reverse=True, variational_dropout=0.1, **told),
    ):
        unfolds = [part for part in make().modules() if isinstance(part, rit.Unfold)]
        assert unfolds
        for unfold in unfolds:
            assert (str(unfold.adjoint), unfold.executor, unfold.batch_first) == ("checkpointed", "cpu", True)
            assert unfold.initial is not None
    assert [part.reverse for part in unfolds] == [True, True]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_learnt_initial_states_are_read_and_learnt_in_compositions(executor: str) -> None:
    whole = Bidirectional(
        *(
            Stack.of((rit.LSTM, rit.GRU), 3, 4, skip=True, learn_initial=True, executor=executor, reverse=way)
            for way in (False, True)
        )
    ).to(F64)
    unfolds = [part for part in whole.modules() if isinstance(part, rit.Unfold)]
    for unfold in unfolds:
        for field in unfold.initial:
            torch.nn.init.normal_(field)
    x = torch.randn(5, 4, 3, dtype=F64)
    states = [unfold.cell.State(*(field.expand(4, -1) for field in unfold.initial)) for unfold in unfolds]
    assert_close(whole(x, lengths=LENGTHS), whole(x, ((states[0], states[1]), (states[2], states[3])), lengths=LENGTHS))
    learnt = {name: field for name, field in whole.named_parameters() if "initial" in name}
    assert len(learnt) == 6
    assert all(gradient.any() for gradient in gradients(whole(x)[0], learnt).values())


@pytest.mark.parametrize("adjoint", ["full", "checkpointed"])
def test_gradients_of_a_deep_composition_by_differences(adjoint: str) -> None:
    whole = Stack.of((rit.GRU, rit.LSTM), 2, (3, 2), bidirectional=True, skip=True, adjoint=adjoint).to(F64)
    x = torch.randn(4, 2, 2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: whole(x, lengths=[4, 2])[0], x)


def test_a_state_is_taken_apart_put_together_and_cut_off() -> None:
    stack = Stack.of(rit.LSTM, 3, 4, layers=2, bidirectional=True)
    _, carried = stack(torch.randn(5, 2, 3))
    tensors = leaves(carried)
    assert [id(leaf) for leaf in tensors] == [id(f) for pair in carried for state in pair for f in state]
    again = refill(carried, [leaf + 1 for leaf in tensors])
    assert [type(state) for pair in again for state in pair] == [rit.LSTM.State] * 4
    assert_close(again[1][0].c, carried[1][0].c + 1)

    cut = detached(carried)
    assert_close(cut, carried)
    assert all(leaf.requires_grad for leaf in tensors)
    assert not any(leaf.requires_grad for leaf in leaves(cut))
    assert leaves(None) == []


CELL = rit.GRU(3, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Bidirectional(CELL, rit.GRU(2, 4)),
            r"^Bidirectional: the forward cell reads 3 features and the backward cell 2; both read the same input\.$",
        ),
        (lambda: Bidirectional(CELL, CELL), r"^Bidirectional: give each direction a cell of its own, or they share"),
        (
            lambda: Bidirectional(rit.Unfold(CELL), rit.Unfold(CELL, reverse=True)),
            r"^Bidirectional: give each direction a cell of its own, or they share",
        ),
        (
            lambda: Bidirectional(rit.GRU(3, 4), rit.GRU(3, 4), lerrn_initial=True),
            r"^Unknown option 'lerrn_initial' of Bidirectional: did you mean learn_initial\?",
        ),
        (
            lambda: Residual(rit.Unfold(rit.GRU(4, 4)))(torch.zeros(5, 2, 4), all_states=True),
            r"^Residual reads its layer's outputs, so that all_states is not for it; ask the Unfold alone\.$",
        ),
        (
            lambda: Stack.of(rit.GRU, 3, 4, layers=2)(torch.zeros(5, 2, 3), [5, 2]),
            r"^Stack: state must be a tuple of 2 states, not numbers \(those of steps are given by name, lengths=",
        ),
        (
            lambda: Stack.of(rit.GRU, 3, 4, state_sizes=5),
            r"^GRU tells its sizes itself: leave out input_size and state",
        ),
        (
            lambda: Residual(rit.Unfold(CELL)),
            r"^Residual: the layer reads 3 features and gives 4; they are added, so they must be alike",
        ),
        (lambda: Residual(rit.GRU(4, 4)), r"^Residual stands around a layer, an Unfold or a composition, not GRU\.$"),
        (lambda: Stack([]), r"^Stack: give at least one layer"),
        (
            lambda: Stack([rit.Unfold(CELL), rit.Unfold(CELL)]),
            r"^Stack: layer 0 gives 4 features and layer 1 reads 3; they must be alike",
        ),
        (
            lambda: Stack([rit.Unfold(CELL), rit.Unfold(rit.GRU(4, 4)), rit.Unfold(CELL)]),
            r"^Stack: layer 1 gives 4 features and layer 2 reads 3",
        ),
        (
            lambda: Stack([rit.Unfold(CELL), rit.Unfold(rit.GRU(4, 4), batch_first=True)]),
            r"^Stack: layers 0 and 1 differ in batch_first; make them alike",
        ),
        (lambda: Stack([rit.Unfold(CELL)], dropout=1), r"^Stack: dropout must lie in 0 to 1 \(exclusive\), not 1\."),
        (
            lambda: Stack([rit.Unfold(CELL)], dropout=-0.1),
            r"^Stack: dropout must lie in 0 to 1 \(exclusive\), not -0\.1",
        ),
        (
            lambda: Stack([rit.Unfold(CELL)], dropout=POISON),
            r"^Stack: dropout must lie in 0 to 1 \(exclusive\), not nan",
        ),
        (lambda: Stack.of(rit.GRU, 3, 4, layers=0), r"^Stack: layers must be at least 1, not 0"),
        (lambda: Stack.of(rit.GRU, 3, 4, executor="gpu"), r"^Unknown executor 'gpu'"),
        (
            lambda: Stack.of(rit.GRU, 3, 4, bidirectional=True, reverse=True),
            r"^Stack: reverse=True and bidirectional=True clash: both directions are walked already\.$",
        ),
        (
            lambda: Stack.of(rit.GRU, 3, 4, merge="sum"),
            r"^Stack: merge='sum' and bidirectional=False clash: there is nothing to merge",
        ),
        (
            lambda: Stack.of(rit.GRU, 3, 4, residual=True, skip=True),
            r"^Stack: residual=True and skip=True clash: with skip connections a layer reads more than it gives",
        ),
        (
            lambda: Stack.of((rit.GRU, rit.LSTM), 3, 4, layers=3),
            r"^Stack: cell lists 2 and there are 3 layers; give one for each",
        ),
        (
            lambda: Stack.of((rit.GRU, rit.LSTM), 3, (4, 4, 4)),
            r"^Stack: hidden_size lists 3 and there are 2 layers; give one for each",
        ),
        (lambda: Stack.of(rit.GRU, 3, 4, layers="2"), r"^Stack: layers must be at least 1, not '2'"),
        (
            lambda: Stack.of("lstm", 3, 4),
            r"^Stack: cell must be a class, or a function of .*, not 'lstm'; ritornello\.cells\.find knows",
        ),
        (
            lambda: Stack.of(rit.GRU, 3, 4, num_layers=2),
            r"^Unknown option 'num_layers' of Stack\.of: did you mean layers",
        ),
        (lambda: Stack(rit.Unfold(CELL)), r"^Stack takes a list of layers, not one Unfold\.$"),
        (lambda: Stack.of(CELL, 3, 4), r"^Stack: cell is a GRU; give its class: each layer makes its own\.$"),
        (
            lambda: Stack.of(rit.GRU, 3, 4, dropout="0.1"),
            r"^Stack: dropout must lie in 0 to 1 \(exclusive\), not '0\.1'",
        ),
        (lambda: Stack.of((), 3, 4), r"^Stack: layers must be at least 1, not 0"),
        (
            lambda: Stack([rit.Unfold(CELL), rit.Unfold(rit.GRU(4, 4))], skip=True),
            r"^Stack: layer 0 gives 4 features, beside the 3 of x, and layer 1 reads 4; they must be alike",
        ),
        (
            lambda: Stack([rit.nn.Network(rit.Unfold(CELL), reads="acceptor"), rit.Unfold(CELL)]),
            r"^Stack: layer 0 is a Network; layers are Unfold, and compositions that tell their sizes and give",
        ),
        (
            lambda: Bidirectional(CELL, rit.GRU(3, 4), merge="add"),
            r"^Unknown merge 'add': .*Known: concatenate, sum",
        ),
        (
            lambda: Bidirectional(CELL, rit.GRU(3, 2), merge="sum"),
            r"^Bidirectional: the directions give 4 and 2 features; with merge='sum' they are added, so they must be",
        ),
        (
            lambda: Bidirectional(CELL, rit.GRU(3, 4), reverse=True),
            r"^Bidirectional: reverse clashes with it: both directions are walked already",
        ),
        (
            lambda: Bidirectional(rit.Unfold(CELL), rit.Unfold(rit.GRU(3, 4))),
            r"^Bidirectional: the second layer walks forwards; make it with reverse=True",
        ),
        (
            lambda: Bidirectional(rit.Unfold(CELL, reverse=True), rit.GRU(3, 4)),
            r"^Bidirectional: the first layer walks backwards",
        ),
        (
            lambda: Bidirectional(rit.Unfold(CELL), rit.GRU(3, 4), batch_first=True),
            r"^Bidirectional: batch_first and a layer clash: layers have their own",
        ),
        (
            lambda: Bidirectional(rit.Unfold(CELL), rit.Unfold(rit.GRU(3, 4), reverse=True, batch_first=True)),
            r"^Bidirectional: the two layers differ in batch_first; make them alike",
        ),
    ],
)
def test_what_cannot_be_composed_is_named(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "state", "message"),
    [
        (Stack([rit.Unfold(CELL)]), (None, None), r"^Stack: state must be a tuple of 1 states, not 2 states\.$"),
        (Stack.of(rit.GRU, 3, 4, layers=2), [None], r"^Stack: state must be a tuple of 2 states, not 1 states"),
        (Stack([rit.Unfold(CELL)]), torch.zeros(2, 4), r"^Stack: state must be a tuple of 1 states, not Tensor"),
        (
            Bidirectional(CELL, rit.GRU(3, 4)),
            (None,) * 3,
            r"^Bidirectional: state must be a tuple of 2 states, not 3 states",
        ),
        (
            Stack.of(rit.GRU, 3, 4, bidirectional=True),
            (torch.zeros(2, 4),),
            r"^Bidirectional: state must be a tuple of 2 states, not Tensor",
        ),
        (
            Stack.of(rit.LSTM, 3, 4, layers=2),
            (torch.zeros(2, 2, 4),) * 2,
            r"^Stack: state must be a tuple of 2 states with fields \(batch, size\), not tensors of all layers",
        ),
        (Stack.of(rit.LSTM, 3, 4), ((torch.zeros(2, 4),),), r"^state has 1 fields; LSTM\.State has 2: h, c"),
    ],
)
def test_a_state_that_does_not_fit_is_named(layer: nn.Module, state: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        layer(torch.zeros(5, 2, 3), state)


def test_stack_takes_layers_only():
    with pytest.raises(ArgumentError, match="layer 0 is a Linear; layers are Unfold"):
        rit.nn.Stack([torch.nn.Linear(3, 3)])
