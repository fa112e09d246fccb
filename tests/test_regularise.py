"""Regularisers of any cell: against the options of torch's layers, NumPy, and means over many draws."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, gradients
from torch import Tensor, nn
from twins import TORCH_CELLS, chain_twin, node_twin

import ritornello as rit
from ritornello.cells import CELLS, TREE_CELLS, Cell
from ritornello.errors import ArgumentError, CellError
from ritornello.nn import (
    Stack,
    VariationalDropout,
    WeightDrop,
    Zoneout,
    activation_regularisation,
    temporal_activation_regularisation,
)

F64 = torch.float64
POISON = float("nan")
LENGTHS = [3, 5, 0, 1]
EXECUTORS = ["reference", "cpu"]


def beyond(lengths: list[int], time: int = 5) -> Tensor:
    """(time, batch): True in the padding."""
    return torch.arange(time)[:, None] >= torch.tensor(lengths)


# --- zoneout


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", list(CELLS))
def test_zoneout_takes_the_mean_in_evaluation(name: str, executor: str) -> None:
    """A loop by hand: every field is mixed with what it was, but for those that are the cell's alone to write."""
    cell = CELLS[name](3, 4)
    unfold = rit.Unfold(Zoneout(cell, 0.3), executor=executor).to(F64).eval()
    x = torch.randn(5, 2, 3, dtype=F64)
    state, steps = cell.zero_state(2, x), []
    for row in x:
        new = cell(row, state)
        mixed = [0.3 * old + 0.7 * field for old, field in zip(state, new, strict=True)]
        state = cell.State(*mixed)._replace(**{field: getattr(new, field) for field in cell.private})
        steps.append(state[0])
    outputs, last = unfold(x)
    assert_close(outputs, torch.stack(steps))
    assert_close(last, state)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_zoneout_keeps_each_field_at_its_own_rate_in_training(executor: str) -> None:
    """Where a field is kept it is what it was, bit for bit; else it is what the plain cell makes of the old state."""
    cell = rit.LSTM(3, 50)
    unfold = rit.Unfold(Zoneout(cell, c=0.5, h=0.1), executor=executor).to(F64)
    x = torch.randn(20, 30, 3, dtype=F64)
    states, _ = unfold(x, all_states=True)
    before = cell.State(*(torch.cat([torch.zeros_like(field[:1]), field[:-1]]) for field in states))
    plain = cell(x.flatten(0, 1), cell.State(*(field.flatten(0, 1) for field in before)))
    for field, old, new, share in zip(states, before, plain, (0.1, 0.5), strict=True):
        new = new.view_as(field)
        kept = field == old
        assert_close(field[~kept], new[~kept])
        spread = (share * (1 - share) / kept.numel()) ** 0.5
        assert abs(kept.double().mean() - share) < 5 * spread
        assert kept.double().mean((0, 1)).std() < 3 * (share / 600) ** 0.5  # each unit by itself
    assert not torch.equal(unfold(x)[0], unfold(x)[0])


def test_a_field_that_is_not_named_is_not_kept_and_the_rest_may_have_a_share() -> None:
    assert Zoneout(rit.LSTM(3, 4), c=0.5).shares == {"h": 0.0, "c": 0.5}
    assert Zoneout(rit.LSTM(3, 4), 0.1, c=0.5).shares == {"h": 0.1, "c": 0.5}
    x = torch.randn(5, 2, 3)
    none = Zoneout(rit.LSTM(3, 4), 0.0)
    assert torch.equal(rit.Unfold(none)(x)[0], rit.Unfold(none.cell)(x)[0])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_zoneout_leaves_what_is_the_cell_s_alone(executor: str) -> None:
    unfold = rit.Unfold(Zoneout(rit.cells.SLSTM(3, 16), 0.3), executor=executor)
    assert unfold(10 * torch.randn(300, 8, 3))[0].abs().max() <= 1
    clocked = rit.Unfold(Zoneout(rit.cells.GroupedRNN(3, 8), 0.5), executor=executor)
    assert clocked(torch.randn(9, 1, 3))[1].clock.tolist() == [[0, 1, 3, 7]]
    with pytest.raises(
        ArgumentError, match=r"^Zoneout: SLSTM alone writes its c, of which nothing is held back: leave it"
    ):
        Zoneout(rit.cells.SLSTM(3, 4), c=0.2)


def test_zoneout_of_any_cell() -> None:
    for cell in (*(make(3, 4) for make in TORCH_CELLS.values()), Zoneout(rit.GRU(3, 4), 0.2)):
        unfold = rit.Unfold(Zoneout(cell, 0.25), executor="cpu").eval()
        assert unfold(torch.randn(5, 2, 3))[0].shape == (5, 2, 4)
    ours, theirs = rit.Unfold(Zoneout(rit.LSTM(3, 4), 0.3)).eval(), rit.nn.LSTM(3, 4, zoneout=0.3).eval()
    with torch.no_grad():
        for mine, torchs in (("W.weight", "weight_ih_l0"), ("U.weight", "weight_hh_l0"), ("W.bias", "bias_ih_l0")):
            getattr(theirs, torchs).copy_(ours.cell.cell.get_parameter(mine))
        theirs.bias_hh_l0.zero_()
    x = torch.randn(5, 2, 3)
    assert_close(ours(x)[0], theirs(x)[0])


def test_zoneout_over_trees_keeps_the_sum_of_the_children() -> None:
    for cell in (rit.LSTM(3, 64), rit.cells.TreeLSTM(3, 64), rit.cells.RecursiveNet(3, 64)):
        for executor in EXECUTORS:
            unfold = rit.Unfold(Zoneout(cell, 0.3), executor=executor).to(F64)
            x = torch.randn(3, 3, dtype=F64)
            found, _ = unfold.eval().over([[2, 2, -1]], x, all_states=True)
            plain, _ = rit.Unfold(cell).over([[-1]], x[:1], all_states=True)
            for field, expected in zip(found, plain, strict=True):
                assert_close(field[:1], 0.7 * expected)
            new = node_twin(cell, x[2:], [cell.State(*(field[k : k + 1] for field in found)) for k in (0, 1)])
            for field, made in zip(found, new, strict=True):
                assert_close(field[2:], 0.3 * (field[:1] + field[1:2]) + 0.7 * made)
            kept, _ = unfold.train().over([[2, 2, -1]], x, all_states=True)
            new = node_twin(cell, x[2:], [cell.State(*(field[k : k + 1] for field in kept)) for k in (0, 1)])
            for field, made in zip(kept, new, strict=True):
                stays = torch.isclose(field[2], field[0] + field[1])
                assert 0.1 < stays.double().mean() < 0.6
                assert_close(torch.where(stays, made[0], field[2]), made[0])


# --- variational dropout


def copy_to_torchs(ours: nn.Module, theirs: nn.Module, name: str) -> None:
    """Copies a cell's weights to one of rit.nn's layers."""
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.W.weight)
        theirs.weight_hh_l0.copy_(ours.U.weight)
        theirs.bias_ih_l0.copy_(ours.W.bias)
        theirs.bias_hh_l0.zero_()
        if name == "gru":
            theirs.bias_hh_l0[2 * ours.hidden_size :] = ours.d


DROP_INS = {"lstm": rit.nn.LSTM, "gru": rit.nn.GRU, "elman": rit.nn.RNN}


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", list(DROP_INS))
def test_variational_dropout_is_that_of_torchs_layers(name: str, executor: str) -> None:
    """The same draws: what a GRU carries on is not masked, and resets do not draw anew."""
    ours = VariationalDropout(CELLS[name](3, 4), inputs=0.4, recurrent=0.4, executor=executor).to(F64)
    theirs = DROP_INS[name](3, 4, variational_dropout=0.4, dtype=F64)
    copy_to_torchs(ours.cell.cell, theirs, name)
    x, resets = torch.randn(5, 4, 3, dtype=F64), torch.zeros(5, 4, dtype=torch.bool)
    resets[2, :2] = True
    found = []
    for module in (ours, theirs):
        torch.manual_seed(7)
        found.append(module(x, lengths=LENGTHS, resets=resets)[0])
    assert_close(*found)
    parameters = dict(ours.named_parameters())
    mine = gradients(found[0], parameters)
    assert_close(mine["cell.cell.U.weight"], gradients(found[1], {"U": theirs.weight_hh_l0})["U"])
    plain = rit.Unfold(ours.cell.cell, executor=executor)
    assert torch.equal(ours.eval()(x)[0], plain(x)[0])


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("reset", ["before", "after"])
def test_every_product_reads_h_under_the_mask(reset: str, executor: str) -> None:
    """The GRU by hand, with the mask that the layer drew, in both places of its reset gate."""
    layer = VariationalDropout(rit.GRU(3, 4, reset=reset), recurrent=0.5, executor=executor).to(F64)
    x, cell = torch.randn(5, 6, 3, dtype=F64), layer.cell.cell
    torch.manual_seed(3)
    outputs, _ = layer(x)
    torch.manual_seed(3)
    mask = F.dropout(torch.ones(6, 4, dtype=F64), 0.5)
    h, u = torch.zeros(6, 4, dtype=F64), cell.U.weight.split(4)
    for row, found in zip(x, outputs, strict=True):
        wr, wz, wn = cell.W(row).chunk(3, -1)
        r, z = torch.sigmoid(wr + (h * mask) @ u[0].T), torch.sigmoid(wz + (h * mask) @ u[1].T)
        product = (r * h * mask) @ u[2].T + cell.d if reset == "before" else r * ((h * mask) @ u[2].T + cell.d)
        h = (1 - z) * torch.tanh(wn + product) + z * h
        assert_close(found, h)


class Concatenated(Cell):
    """One matrix on [x; h], and a linear part of h that is only carried on."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size + hidden_size, hidden_size)

    def forward(self, x: Tensor, s: Any) -> Any:
        return self.State(0.5 * s.h + torch.tanh(self.W(torch.cat([x, s.h.clone() * 1.0], -1))))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_one_mask_a_sequence_of_inputs_and_of_h(batch_first: bool, executor: str) -> None:
    layer = VariationalDropout(
        Concatenated(3, 4), inputs=0.5, recurrent=0.25, executor=executor, batch_first=batch_first, reverse=True
    ).to(F64)
    x = torch.randn(5, 4, 3, dtype=F64)
    poisoned = x.masked_fill(beyond(LENGTHS)[..., None], POISON)
    torch.manual_seed(5)
    outputs, last = layer(poisoned.transpose(0, 1) if batch_first else poisoned, lengths=LENGTHS)
    torch.manual_seed(5)
    of_x, of_h = F.dropout(torch.ones(4, 3, dtype=F64), 0.5), F.dropout(torch.ones(4, 4, dtype=F64), 0.25)

    class ByHand(Concatenated):
        def forward(self, x: Tensor, s: Any) -> Any:
            read = torch.cat([x[..., :3], s.h * x[..., 3:]], -1)
            return self.State(0.5 * s.h + torch.tanh(layer.cell.cell.W(read)))

    wide = torch.cat([x * of_x, of_h.expand(5, 4, 4)], -1)
    states, final = chain_twin(ByHand(3, 4), wide, layer.cell.zero_state(1, x), None, LENGTHS, reverse=True)
    assert_close(outputs.transpose(0, 1) if batch_first else outputs, states.h)
    assert_close(last, final)
    torch.manual_seed(5)
    assert layer(x[:, 0])[0].shape == (5, 4)
    assert (layer.input_size, layer.output_size) == (3, 4)


def test_masks_have_their_shares_and_mean() -> None:
    """Over many draws: what reaches a product is h on average, and zero so often."""

    class Reading(Cell):
        """Its output is its h as a product reads it; the state's second field stays."""

        State = rit.LSTM.State

        def __init__(self, size: int) -> None:
            super().__init__(size, size)
            self.register_buffer("one", torch.eye(size))

        def forward(self, x: Tensor, s: Any) -> Any:
            return self.State((x + s.h) @ self.one, s.c)

    layer = VariationalDropout(Reading(6), inputs=0.2, recurrent=0.3)
    x = torch.zeros(1, 4000, 6)
    outputs, _ = layer(x, (torch.ones(4000, 6), torch.zeros(4000, 6)))
    assert abs(outputs.mean() - 1) < 5 * (0.3 / 0.7 / 24000) ** 0.5
    assert abs((outputs == 0).double().mean() - 0.3) < 5 * (0.21 / 24000) ** 0.5


def test_variational_dropout_over_trees_has_one_mask_a_tree() -> None:
    layer = VariationalDropout(rit.Elman(3, 4), inputs=0.4, recurrent=0.4)
    x, trees = torch.randn(5, 3), [[2, 2, -1], [1, -1]]
    torch.manual_seed(2)
    outputs, _ = layer.over(trees, x)
    torch.manual_seed(2)
    of_x, of_h = F.dropout(torch.ones(2, 3), 0.4), F.dropout(torch.ones(2, 4), 0.4)
    cell, which = layer.cell.cell, [0, 0, 0, 1, 1]
    leaf = torch.tanh(cell.W(x * of_x[which]))
    assert_close(outputs[[0, 1, 3]], leaf[[0, 1, 3]])
    assert_close(outputs[2], torch.tanh(cell.W(x[2] * of_x[0]) + cell.U((leaf[0] + leaf[1]) * of_h[0])))
    assert_close(outputs[4], torch.tanh(cell.W(x[4] * of_x[1]) + cell.U(leaf[3] * of_h[1])))
    assert torch.equal(layer.eval().over(trees, x)[0], rit.Unfold(cell).over(trees, x)[0])


@pytest.mark.parametrize("inputs", ["leaves", "inner"])
@pytest.mark.parametrize("name", ["lstm", "tree-lstm"])
def test_variational_dropout_where_some_nodes_have_an_x(name: str, inputs: str) -> None:
    """As over all nodes, with zeros for the others."""
    cell = (CELLS | TREE_CELLS)[name](3, 4)
    trees, given = [[2, 2, -1], [1, -1]], {"leaves": [0, 1, 3], "inner": [2, 4]}[inputs]
    x = torch.randn(len(given), 3)
    everywhere = torch.zeros(5, 3).index_copy(0, torch.tensor(given), x)
    for shares in ({"inputs": 0.4}, {"recurrent": 0.4}, {"inputs": 0.4, "recurrent": 0.4}):
        layer, found = VariationalDropout(cell, **shares), []
        for options in ({"x": x, "inputs": inputs}, {"x": everywhere}):
            torch.manual_seed(2)
            found.append(layer.over(trees, **options)[0])
        assert_close(*found)
        assert not torch.equal(found[0], rit.Unfold(cell).over(trees, everywhere)[0])
    with pytest.raises(ArgumentError, match=rf"x has shape \(5, 3\); expected \({len(given)}, 3\): a row for each"):
        layer.over(trees, everywhere, inputs=inputs)


def test_variational_dropout_of_both_slots() -> None:
    layer = VariationalDropout(rit.cells.RecursiveNet(3, 4), recurrent=0.4)
    cell, x = layer.cell.cell, torch.randn(3, 3)
    torch.manual_seed(2)
    outputs, _ = layer.over([[2, 2, -1]], x)
    torch.manual_seed(2)
    mask = F.dropout(torch.ones(1, 4), 0.4)
    below = [cell.State(outputs[k : k + 1] * mask) for k in (0, 1)]
    assert_close(outputs[2:], cell(x[2:], *below).h)


class ByProduct(rit.Cell):
    """Reads h by F.linear, and by one of torch's other products."""

    def __init__(self, product: str) -> None:
        super().__init__(3, 4)
        self.product, self.U, self.V = product, nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))
        self.W, self.T = nn.Linear(3, 4), nn.Parameter(torch.randn(4, 4, 4))

    def again(self, h: Tensor) -> Tensor:
        if self.product == "bilinear":
            return F.bilinear(h, h, self.T)
        if self.product == "einsum":
            return torch.einsum("bi,ij->bj", h, self.V)
        if self.product == "addmm":
            return torch.addmm(self.U.bias, h, self.V)
        return torch.mm(h, self.V) if self.product == "mm" else h @ self.V

    def forward(self, x: Tensor, s: Any) -> Any:
        return self.State(torch.tanh(self.W(x) + self.U(s.h) + self.again(s.h)))


@pytest.mark.parametrize("product", ["bilinear", "einsum", "addmm", "mm", "@"])
def test_every_kind_of_product_is_masked(product: str) -> None:
    layer = VariationalDropout(ByProduct(product), recurrent=0.4, executor="reference")
    cell, x, h = layer.cell.cell, torch.randn(1, 2, 3), torch.randn(2, 4)
    torch.manual_seed(2)
    outputs, _ = layer(x, (h,))
    torch.manual_seed(2)
    read = h * F.dropout(torch.ones(2, 4), 0.4)
    assert_close(outputs[0], torch.tanh(cell.W(x[0]) + cell.U(read) + cell.again(read)))


def test_the_mask_is_as_wide_as_h() -> None:
    layer = VariationalDropout(rit.cells.ProjectedLSTM(3, 4, output_size=2), inputs=0.2, recurrent=0.3)
    assert layer(torch.randn(5, 2, 3))[0].shape == (5, 2, 2)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_matrices_read_is_masked_whichever_field_it_is(executor: str) -> None:
    """A deep output is read by none; of Elman's and Jordan's together both o and h are."""
    x, h = torch.randn(1, 2, 3, dtype=F64), torch.randn(2, 4, dtype=F64)
    layer = VariationalDropout(rit.cells.DeepTransition(3, 4, output_depth=1), recurrent=0.4, executor=executor).to(F64)
    torch.manual_seed(2)
    outputs, _ = layer(x, (torch.randn_like(h), h))
    torch.manual_seed(2)
    cell, _ = layer.cell.cell, torch.randn_like(h)
    read = h * F.dropout(torch.ones(2, 4, dtype=F64), 0.4)
    inner = torch.tanh(cell.W(x[0]) + cell.U(read))
    inner = torch.tanh(cell.transition[0](inner) + cell.S(read))
    assert_close(outputs[0], torch.tanh(cell.output[0](inner)))
    layer = VariationalDropout(rit.cells.ElmanJordan(3, 4, output_size=2), recurrent=0.4, executor=executor).to(F64)
    o, cell = torch.randn(2, 2, dtype=F64), layer.cell.cell
    torch.manual_seed(2)
    outputs, last = layer(x, (o, h))
    torch.manual_seed(2)
    of_o, of_h = F.dropout(torch.ones(2, 6, dtype=F64), 0.4).split((2, 4), -1)
    assert (of_o == 0).any() or (of_h == 0).any()
    assert_close(last.h, torch.tanh(cell.W(x[0]) + cell.U(h * of_h) + cell.R(o * of_o)))
    assert_close(outputs[0], cell.V(last.h))


def test_stacks_take_variational_dropout() -> None:
    stack = Stack.of((rit.GRU, rit.LSTM), 3, 4, bidirectional=True, variational_dropout=0.3, executor="cpu")
    unfolds = [part for part in stack.modules() if isinstance(part, rit.Unfold)]
    assert [type(part) for part in unfolds] == [VariationalDropout] * 4
    assert [(part.inputs, part.cell.share) for part in unfolds] == [(0.3, 0.3)] * 4
    x = torch.randn(5, 4, 3)
    assert not torch.equal(stack(x)[0], stack(x)[0])
    plain = Stack.of((rit.GRU, rit.LSTM), 3, 4, bidirectional=True)
    plain.load_state_dict({name.replace("cell.cell", "cell"): value for name, value in stack.state_dict().items()})
    assert torch.equal(stack.eval()(x, lengths=LENGTHS)[0], plain(x, lengths=LENGTHS)[0])


@pytest.mark.parametrize("name", ["lstm", "elman"])
def test_torchs_own_cells_under_variational_dropout(name: str) -> None:
    """Their fused calls read h by products alone."""
    layer = VariationalDropout(TORCH_CELLS[name](3, 4), recurrent=0.4, executor="cpu")
    twin = VariationalDropout(CELLS[name](3, 4), recurrent=0.4, executor="cpu")
    with torch.no_grad():
        theirs, ours = layer.cell.cell.module, twin.cell.cell
        ours.W.weight.copy_(theirs.weight_ih)
        ours.U.weight.copy_(theirs.weight_hh)
        ours.W.bias.copy_(theirs.bias_ih + theirs.bias_hh)
    x = torch.randn(5, 4, 3)
    torch.manual_seed(1)
    found = layer(x)[0]
    torch.manual_seed(1)
    assert_close(found, twin(x)[0])


def test_a_product_that_cannot_be_masked_is_named() -> None:
    class Half(Cell):
        def __init__(self) -> None:
            super().__init__(3, 4)
            self.U = nn.Linear(2, 4)

        def forward(self, x: Tensor, s: Any) -> Any:
            return self.State(torch.tanh(self.U(s.h[..., :2]) + x.sum(-1, keepdim=True)))

    for cell, message in (
        (nn.GRUCell(3, 4), r"^VariationalDropout: no product in GRUCell that torch shows reads its h; write it with"),
        (Half(), r"^VariationalDropout: a product reads 2 features of the 4 of h; it must read all of them\.$"),
    ):
        layer = VariationalDropout(cell, recurrent=0.3)
        with pytest.raises(CellError, match=message):
            layer(torch.randn(5, 2, 3))
        assert layer.eval()(torch.randn(5, 2, 3))[0].shape == (5, 2, 4)


# --- weight drop


@pytest.mark.parametrize("executor", EXECUTORS)
def test_weight_drop_draws_once_a_call(executor: str) -> None:
    layer = WeightDrop(rit.Unfold(rit.LSTM(3, 4), executor=executor), share=0.4).to(F64)
    x, cell = torch.randn(5, 4, 3, dtype=F64), layer.layer.cell
    torch.manual_seed(4)
    outputs, last = layer(x, lengths=LENGTHS)
    torch.manual_seed(4)
    weight = F.dropout(cell.U.weight, 0.4)
    parameters = dict(layer.named_parameters())
    twin = rit.LSTM(3, 4).to(F64)
    del twin.U.weight
    twin.W, twin.U.weight = cell.W, weight
    states, final = chain_twin(twin, x, cell.zero_state(1, x), None, LENGTHS)
    assert_close(outputs, states.h)
    assert_close(last, final)
    found = gradients(outputs, parameters)
    assert_close(found, gradients(states.h, parameters))
    dropped = weight == 0
    assert dropped.any()
    assert not found["layer.cell.U.weight"][dropped].any()
    assert torch.equal(layer.eval()(x)[0], layer.layer(x)[0])
    assert not torch.equal(layer.train()(x)[0], layer(x)[0])


def test_weight_drop_has_its_share_and_mean() -> None:
    layer = WeightDrop(nn.Linear(300, 200, bias=False), "weight", 0.25)
    nn.init.ones_(layer.layer.weight)
    weight = layer(torch.eye(300))
    assert abs((weight == 0).double().mean() - 0.25) < 5 * (0.1875 / 60000) ** 0.5
    assert_close(weight[weight != 0], torch.full_like(weight[weight != 0], 1 / 0.75))


def test_weight_drop_names_parameters() -> None:
    stack = Stack.of((rit.GRU, rit.LSTM), 3, 4, bidirectional=True, executor="cpu")
    assert len(WeightDrop(stack).dropped) == 4
    every = WeightDrop(rit.Unfold(rit.Elman(3, 4), executor="cpu"), "*", 0.3)  # no parameter is left as it was
    assert len(every.dropped) == 3
    x = torch.randn(5, 2, 3)
    assert all(gradient.any() for gradient in gradients(every(x)[0], dict(every.named_parameters())).values())
    listed = WeightDrop(stack, ("layers.0.ahead.cell.U.weight", "*.d"), 0.3)
    assert listed.dropped == (
        *("layers.0.ahead.cell.d", "layers.0.ahead.cell.U.weight"),
        "layers.0.back.cell.d",
    )
    assert (listed.input_size, listed.output_size, listed.batch_first) == (3, 8, False)
    network = rit.nn.Network(Stack([listed, rit.nn.Residual(WeightDrop(rit.Unfold(rit.GRU(8, 8))))]), reads="acceptor")
    assert network(torch.randn(5, 4, 3), lengths=LENGTHS)[0].shape == (4, 8)


@pytest.mark.parametrize("name", [name for name, kind in CELLS.items() if kind(3, 4).recurrent])
def test_weight_drop_knows_the_recurrent_weights_of_every_cell(name: str) -> None:
    plain, wrapped = CELLS[name](3, 4), Zoneout(CELLS[name](3, 4), 0.1)
    assert {*WeightDrop(rit.Unfold(plain)).dropped} == {f"cell.{own}" for own in plain.recurrent}
    assert {*WeightDrop(rit.Unfold(wrapped)).dropped} == {f"cell.cell.{own}" for own in plain.recurrent}
    assert {*WeightDrop(plain).dropped} == {*plain.recurrent}


@pytest.mark.parametrize("name", list(TREE_CELLS))
def test_weight_drop_takes_all_that_a_tree_cell_multiplies_states_with(name: str) -> None:
    layer = WeightDrop(TREE_CELLS[name](3, 4))
    read_x = {"V.weight", "W.weight"} if name in ("tree-lstm", "tree-gru") else {"V.weight"}
    matrices = {own for own, parameter in TREE_CELLS[name](3, 4).named_parameters() if parameter.dim() == 2}
    assert {*layer.dropped} == matrices - read_x


def test_weight_drop_of_weights_that_are_given() -> None:
    """Within another one, and under torch.func, a weight is a tensor and no parameter."""
    twice = WeightDrop(WeightDrop(rit.Unfold(rit.LSTM(3, 4)), share=0.3), share=0.3)
    assert twice(torch.randn(5, 2, 3))[0].shape == (5, 2, 4)
    layer, x = WeightDrop(rit.Unfold(rit.Elman(3, 4))), torch.randn(5, 2, 3)
    given = {name: torch.zeros_like(value) for name, value in layer.named_parameters()}
    assert not torch.func.functional_call(layer, given, (x,))[0].any()


# --- files, copies, graphs


REGULARISED = {
    "zoneout": lambda: rit.Unfold(Zoneout(rit.LSTM(3, 4), c=0.5, h=0.05), executor="cpu"),
    "variational": lambda: VariationalDropout(rit.GRU(3, 4), inputs=0.2, recurrent=0.3, executor="cpu"),
    "weight-drop": lambda: WeightDrop(Stack.of(rit.LSTM, 3, 4, layers=2, executor="cpu"), share=0.3),
    "all": lambda: WeightDrop(
        Stack.of(lambda i, h: Zoneout(rit.LSTM(i, h), 0.1), 3, 4, layers=2, variational_dropout=0.2, executor="cpu"),
        share=0.2,
    ),
}


@pytest.mark.parametrize("name", list(REGULARISED))
def test_state_dicts_go_round(name: str) -> None:
    first, second = REGULARISED[name](), REGULARISED[name]()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file))
    x = torch.randn(5, 4, 3)
    found = []
    for module in (first, second):
        torch.manual_seed(6)
        found.append((module.train()(x, lengths=LENGTHS)[0], module.eval()(x, lengths=LENGTHS)[0]))
    assert_close(*found)
    assert not torch.equal(found[0][0], found[0][1])
    assert len(first.state_dict()) == len({id(parameter) for parameter in first.parameters()})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_regularised_layers_are_captured_whole() -> None:
    torch._dynamo.reset()
    model, x = REGULARISED["all"](), torch.randn(6, 3, 3)
    compiled = torch.compile(lambda x: model(x, lengths=torch.tensor([6, 2, 0]))[0], fullgraph=True, backend="eager")
    first, second = compiled(x), compiled(x)
    assert not torch.equal(first, second)
    assert not first[2:, 1].any()
    found = gradients(first, dict(model.named_parameters()))
    assert all(gradient.any() for name, gradient in found.items())
    model.eval()
    assert_close(compiled(x), model(x, lengths=[6, 2, 0])[0])


def test_explain_shows_that_they_are_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    for module in (Zoneout(rit.LSTM(3, 4), 0.1), VariationalDropout(rit.GRU(3, 4), recurrent=0.3)):
        rit.explain(module)
        assert "executor: cpu" in capsys.readouterr().out


# --- activation regularisation


def numbers(outputs: np.ndarray, lengths: list[int], resets: np.ndarray | None) -> tuple[float, float]:
    """Means of squares of what is within the sequences, and of what neighbours differ by."""
    values, changes = [], []
    for b, length in enumerate(lengths):
        for t in range(length):
            values.extend(outputs[t, b] ** 2)
            if t and not (resets is not None and resets[t, b]):
                changes.extend((outputs[t, b] - outputs[t - 1, b]) ** 2)
    return float(np.mean(values)), float(np.mean(changes))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
def test_activations_are_regularised_within_sequences(
    lengths: list[int] | None, resets: bool, batch_first: bool
) -> None:
    outputs, marks = torch.randn(5, 4, 6, dtype=F64), torch.rand(5, 4) < 0.3
    ar, tar = numbers(outputs.numpy(), lengths or [5] * 4, marks.numpy() if resets else None)
    if lengths:
        outputs = outputs.masked_fill(beyond(lengths)[..., None], POISON)
    given = (outputs.transpose(0, 1) if batch_first else outputs).requires_grad_()
    options: dict[str, Any] = {"lengths": lengths, "batch_first": batch_first}
    one = activation_regularisation(given, 3.0, **options)
    options["resets"] = (marks.T if batch_first else marks) if resets else None
    two = temporal_activation_regularisation(given, 0.5, **options)
    assert_close(torch.stack([one, two]), torch.tensor([3 * ar, tar / 2], dtype=F64))
    (gradient,) = torch.autograd.grad(one + two, given)
    assert not gradient.isnan().any()
    assert not lengths or not (gradient.transpose(0, 1) if batch_first else gradient)[beyond(lengths)].any()


def test_activations_of_one_sequence_and_of_none() -> None:
    outputs = torch.randn(5, 6, dtype=F64)
    ar, tar = numbers(outputs[:, None].numpy(), [3], None)
    assert_close(activation_regularisation(outputs, 1.0, lengths=[3]), torch.tensor(ar, dtype=F64))
    assert_close(temporal_activation_regularisation(outputs, 1.0, lengths=[3]), torch.tensor(tar, dtype=F64))
    for nothing in (outputs[:0, None], outputs[:0], outputs[:, None][:, :0]):
        assert activation_regularisation(nothing) == temporal_activation_regularisation(nothing) == 0
    assert temporal_activation_regularisation(outputs, lengths=[1]) == 0
    assert_close(activation_regularisation(torch.ones(2, 2, 2)), torch.tensor(2.0))
    assert_close(
        temporal_activation_regularisation(torch.arange(3.0)[:, None, None].expand(3, 2, 2)), torch.tensor(1.0)
    )


def test_activations_in_half_precision_have_room_for_their_sum() -> None:
    outputs = torch.full((100, 10, 100), 2.0, dtype=torch.float16)
    outputs[::2] = 0
    assert activation_regularisation(outputs, 1.0).item() == 2
    assert temporal_activation_regularisation(outputs, 1.0).item() == 4


LSTM = rit.LSTM(3, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Zoneout(LSTM), r"^Zoneout: say a share, or one for a field of h, c\.$"),
        (lambda: Zoneout(LSTM, z=0.1), r"^Zoneout: LSTM\.State has no field 'z': Known: c, h\.$"),
        (lambda: Zoneout(LSTM, 1.0), r"^Zoneout: share must lie in 0 to 1 \(exclusive\), not 1\.0\.$"),
        (lambda: Zoneout(LSTM, c=-0.1), r"^Zoneout: c must lie in 0 to 1 \(exclusive\), not -0\.1\.$"),
        (lambda: Zoneout(LSTM, True), r"^Zoneout: share must lie in 0 to 1 \(exclusive\), not True\.$"),
        (lambda: VariationalDropout(LSTM, inputs=1), r"^VariationalDropout: inputs must lie in 0 to 1 \(exclusive\)"),
        (
            lambda: VariationalDropout(LSTM, recurrent="a"),
            r"^VariationalDropout: recurrent must lie in 0 to 1 \(exclusive\), not 'a'\.$",
        ),
        (
            lambda: VariationalDropout(LSTM, recurrent=0.2)(torch.zeros(5, 2, 7)),
            r"^x has 7 features; LSTM was made with input_size=3\.$",
        ),
        (lambda: WeightDrop(rit.Unfold(LSTM), share=1.5), r"^WeightDrop: share must lie in 0 to 1 \(exclusive\)"),
        (
            lambda: WeightDrop(rit.Unfold(LSTM), "U.weight"),
            r"^WeightDrop: no parameter is called 'U\.weight': did you mean cell\.U\.weight .*Known: cell\.U\.weight, ",
        ),
        (
            lambda: WeightDrop(rit.nn.LSTM(3, 4)),
            r"^WeightDrop: no cell in this LSTM names recurrent weights; say names=\.\.\., some of weight_ih_l0, ",
        ),
        (
            lambda: VariationalDropout(LSTM, recurrent=0.2).stepper(),
            r"^No stepper in training: a mask holds for a whole call; say \.eval\(\) first\.$",
        ),
        (
            lambda: activation_regularisation(torch.zeros(5, 2, 3), lengths=[6, 1]),
            r"^lengths holds 6; each must lie between 0 and the 5 steps of x",
        ),
        (
            lambda: temporal_activation_regularisation(torch.zeros(5, 2, 3), resets=torch.zeros(2, 5).bool()),
            r"^resets has shape \(2, 5\); expected \(5, 2\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


# Plain dropout.


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_dropout_zeroes_its_share_and_keeps_the_mean(share: float, dtype: torch.dtype) -> None:
    layer, x = rit.nn.Dropout(share), torch.ones(301, 997, dtype=dtype, requires_grad=True)
    torch.manual_seed(3)
    y = layer(x)
    zeroed = y == 0
    deviation = (share * (1 - share) / y.numel()) ** 0.5
    assert abs(float(zeroed.double().mean()) - share) < 5 * deviation
    assert_close(y[~zeroed].float(), torch.full_like(y[~zeroed], 1 / (1 - share)).float() if dtype != torch.bfloat16
                 else y[~zeroed].float().mean().expand(int((~zeroed).sum())))  # fmt: skip
    for axis in (0, 1):  # no row, no column is preferred; neighbours know nothing of each other
        shares = zeroed.double().mean(axis)
        assert float((shares - share).abs().max()) < 6 * (share * (1 - share) / y.shape[axis]) ** 0.5
    for step in (1, 2, 4, 997):
        both = (zeroed.flatten()[step:] & zeroed.flatten()[:-step]).double().mean()
        assert abs(float(both) - share**2) < 6 * deviation
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y.detach())
    torch.manual_seed(3)
    assert torch.equal(layer(x), y)
    assert layer.eval()(x) is x


def test_dropout_of_nearly_all_and_on_x_s_own_device() -> None:
    kept = rit.nn.Dropout(0.999999)(torch.ones(100_000))
    assert set(kept.unique().tolist()) <= {0.0, 65536.0}
    torch.set_default_device("meta")
    try:
        assert rit.nn.Dropout(0.5)(torch.ones(4, device="cpu")).device.type == "cpu"
    finally:
        torch.set_default_device(None)


def test_dropout_elsewhere_is_torch_s() -> None:
    layer, x = rit.nn.Dropout(0.5), torch.randn(4, 5)
    torch.manual_seed(0)
    found = torch.func.vmap(layer, randomness="different")(x)
    assert found.shape == x.shape
    assert layer(torch.zeros(0, 3)).shape == (0, 3)
    for share in (-0.1, 1.0, "half", True):
        with pytest.raises(ArgumentError, match=r"Dropout: share must lie in 0 to 1 \(exclusive\)"):
            rit.nn.Dropout(share)
