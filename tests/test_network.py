"""Network and Context: against the same put together by hand, sequence by sequence."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from comparison import assert_close, gradients
from torch import Tensor, nn
from twins import chain_twin

import ritornello as rit
from ritornello.errors import ArgumentError
from ritornello.nn import Bidirectional, Context, Network, Residual, Stack
from ritornello.nn.protocol import state_sizes
from ritornello.nn.state import leaves

F64 = torch.float64
POISON = float("nan")
LENGTHS = [3, 5, 0, 1]
EXECUTORS = ["reference", "cpu"]
capturing = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def alone(layer: nn.Module, x: Tensor, length: int, **options: Any) -> tuple[Tensor, Any]:
    """One sequence's own steps, without a batch and without padding."""
    return layer(x[:length], **options)


def beyond(lengths: list[int], time: int = 5) -> Tensor:
    """(time, batch): True in the padding."""
    return torch.arange(time)[:, None] >= torch.tensor(lengths)


LAYERS = {
    "forwards": lambda **o: rit.Unfold(rit.LSTM(4, 3), **o),
    "backwards": lambda **o: rit.Unfold(rit.GRU(4, 3), reverse=True, **o),
    "stack": partial(Stack.of, (rit.GRU, rit.LSTM), 4, 3),
    "skip": partial(Stack.of, rit.GRU, 4, (3, 2), skip=True, bidirectional=True),
    "both": lambda **o: Bidirectional(rit.LSTM(4, 3), rit.Elman(4, 2), **o),
    "sum": partial(Stack.of, rit.GRU, 4, 3, layers=2, bidirectional=True, merge="sum"),
    "residual": partial(Stack.of, rit.GRU, 4, 2, layers=3, bidirectional=True, residual=True),
    "residual-backwards": lambda **o: Residual(rit.Unfold(rit.LSTM(4, 4), reverse=True, **o)),
    "residual-of-skips": lambda **o: Residual(Stack.of(rit.GRU, 4, (3, 1), skip=True, **o)),
    "inner-network": lambda **o: Stack(
        [rit.Unfold(rit.GRU(4, 3), **o), Network(rit.Unfold(rit.GRU(3, 2), **o), decode=nn.Linear(2, 6))]
    ),
}


def last_outputs(layer: Any, outputs: Tensor, length: int) -> Tensor:
    """A sequence's outputs at its last walked step, found by looking at each direction by itself.

    Args:
        outputs: of this sequence alone, (length, features).
    """
    if isinstance(layer, rit.Unfold):
        return outputs[0 if layer.reverse else length - 1]
    if isinstance(layer, Bidirectional) and layer.merge == "concatenate":
        size = layer.ahead.output_size
        return torch.cat([outputs[length - 1, :size], outputs[0, size:]])
    if isinstance(layer, (Residual, Network)):
        return last_outputs(layer.layer, outputs, length)
    if isinstance(layer, Stack) and layer.skip:
        parts = outputs.split([part.output_size for part in layer.layers], -1)
        return torch.cat([last_outputs(part, each, length) for part, each in zip(layer.layers, parts, strict=True)])
    assert isinstance(layer, Stack)
    return last_outputs(layer.layers[-1], outputs, length)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", list(LAYERS))
def test_an_acceptor_reads_each_sequence_at_its_own_last_step(name: str, batch_first: bool, executor: str) -> None:
    layer = LAYERS[name](batch_first=batch_first, executor=executor, learn_initial=True).to(F64)
    for part in layer.modules():
        if isinstance(part, rit.Unfold):
            for field in part.initial:
                nn.init.normal_(field)
    network = Network(layer, decode=nn.Linear(layer.output_size, 2, dtype=F64), reads="acceptor")
    x = torch.randn(5, 4, 4, dtype=F64)
    poisoned = x.masked_fill(beyond(LENGTHS)[..., None], POISON)
    answer, last = network(poisoned.transpose(0, 1) if batch_first else poisoned, lengths=LENGTHS)
    assert answer.shape == (4, 2)
    for b, length in enumerate(LENGTHS):
        steps, state = alone(layer, x[:, b], length)
        assert_close([leaf[b] for leaf in leaves(last)], leaves(state))
        if name == "sum":
            expected = sum(part[0] for part in state[-1])
        elif length:
            expected = last_outputs(layer, steps, length)
        else:  # what it entered with
            continue
        assert_close(answer[b], network.decode(expected))
        assert_close(network(x[:length, b])[0], answer[b])
        assert_close(network(x[:, b], lengths=[length])[0], answer[b])
    full = network(x.transpose(0, 1) if batch_first else x)[0]
    assert_close(full[1], answer[1])


def test_a_sequence_without_steps_is_read_by_its_initial_state() -> None:
    unfold = rit.Unfold(rit.LSTM(4, 3), learn_initial=True).to(F64)
    for field in unfold.initial:
        nn.init.normal_(field)
    h, c = (field[0] for field in unfold.initial)
    x = torch.full((5, 2, 4), POISON, dtype=F64)
    for steps in (x, x[:0]):
        assert_close(Network(unfold, reads="acceptor")(steps, lengths=[0, 0])[0], torch.stack([h, h]))
        found = Network(unfold, reads="encoder")(steps, lengths=[0, 0])[0]
        assert_close(found, torch.cat([h, c]).expand(2, -1))
    assert_close(Network(unfold, reads="acceptor")(x[:0, 0])[0], h)
    given = unfold.cell.State(torch.randn(2, 3, dtype=F64), torch.randn(2, 3, dtype=F64))
    both = Bidirectional(rit.LSTM(4, 3), rit.LSTM(4, 3)).to(F64)
    found = Network(both, reads="acceptor")(x, (given, (given.c, given.h)), lengths=[0, 0])[0]
    assert_close(found, torch.cat([given.h, given.c], -1))


def test_resets_do_not_move_the_last_step() -> None:
    unfold = rit.Unfold(rit.GRU(4, 3)).to(F64)
    x, resets = torch.randn(5, 2, 4, dtype=F64), torch.zeros(5, 2, dtype=torch.bool)
    resets[2] = True
    answer, last = Network(unfold, reads="acceptor")(x, lengths=[5, 3], resets=resets)
    states, _ = chain_twin(unfold.cell, x, unfold.cell.zero_state(1, x), None, [5, 3], resets)
    assert_close(answer, torch.stack([states.h[4, 0], states.h[2, 1]]))
    assert_close(last.h, answer)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_transducer_is_enc_g_dec(batch_first: bool, executor: str) -> None:
    """Padding is neither read nor answered, and reaches no gradient."""
    encode = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    layer = rit.Unfold(rit.LSTM(4, 5), batch_first=batch_first, executor=executor)
    network = Network(layer, encode=encode, decode=nn.Linear(5, 2)).to(F64)
    assert (network.input_size, network.output_size, network.batch_first) == (3, 2, batch_first)
    x = torch.randn(5, 4, 3, dtype=F64)
    poisoned = x.masked_fill(beyond(LENGTHS)[..., None], POISON)
    found, last = network(poisoned.transpose(0, 1) if batch_first else poisoned, lengths=LENGTHS)
    found = found.transpose(0, 1) if batch_first else found
    h = encode(x)
    states, final = chain_twin(layer.cell, h, layer.cell.zero_state(1, x), None, LENGTHS)
    expected = network.decode(states.h).masked_fill(beyond(LENGTHS)[..., None], 0)
    assert_close(found, expected)
    assert_close(last, final)
    parameters = dict(network.named_parameters())
    assert_close(gradients(found, parameters), gradients(expected, parameters))


@pytest.mark.parametrize("batched", [False, True])
def test_symbols_and_pictures_are_encoded(batched: bool) -> None:
    unfold = rit.Unfold(rit.GRU(4, 3))
    words = Network(unfold, encode=nn.Embedding(7, 4))
    tokens = torch.randint(7, (5, 2))
    padded = tokens.clone()
    padded[3:, 0] = -100  # what a loss ignores
    expected = unfold(words.encode(tokens), lengths=[3, 5])[0]
    if batched:
        assert_close(words(padded, lengths=[3, 5])[0], expected)
    else:
        assert_close(words(padded[:, 0], lengths=[3])[0], expected[:, 0])
        return
    frames = torch.randn(5, 2, 1, 2, 2)
    video = Network(unfold, encode=lambda x: x.flatten(2))
    assert_close(video(frames)[0], unfold(frames.flatten(2))[0])


def test_an_encoder_answers_with_all_of_its_last_state() -> None:
    layer = Stack.of((rit.LSTM, rit.GRU), 4, (3, 2), bidirectional=True)
    network, x = Network(layer, reads="encoder"), torch.randn(5, 4, 4)
    answer, last = network(x, lengths=LENGTHS)
    (ahead, back), (upper_ahead, upper_back) = last
    assert_close(answer, torch.cat([*ahead, *back, *upper_ahead, *upper_back], -1))
    assert network.output_size == 16
    decoded = Network(layer, decode=nn.Linear(16, 3), reads="encoder")
    assert_close(decoded(x, lengths=LENGTHS)[0], decoded.decode(answer))
    assert network(x[:, 0])[0].shape == (16,)
    assert state_sizes(network) == state_sizes(layer)


def test_networks_are_layers() -> None:
    """Pascanu et al. (2014): deep from the input to the state, and from the state to the output."""
    layers = [Network(rit.Unfold(rit.GRU(4, 4)), decode=nn.Sequential(nn.Linear(4, 4), nn.Tanh())) for _ in range(2)]
    stack = Stack(layers).to(F64)
    expected = x = torch.randn(5, 4, 4, dtype=F64)
    for layer in layers:
        expected = layer.decode(layer.layer(expected, lengths=LENGTHS)[0]).masked_fill(beyond(LENGTHS)[..., None], 0)
    assert_close(stack(x, lengths=LENGTHS)[0], expected)
    assert_close(Residual(layers[0])(x)[0], x + layers[0](x)[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Network(rit.Unfold(rit.GRU(3, 4)), reads="last"), r"^Unknown reads 'last': .*acceptor, encoder, tr"),
        (
            lambda: Network(nn.Linear(3, 4)),
            r"^Network stands around a layer, an Unfold or a composition, not Linear\.$",
        ),
        (
            lambda: Network(rit.Unfold(rit.GRU(3, 4)), encode=nn.Embedding(7, 4)),
            r"^Network: encode gives 4 features and the layer reads 3\.$",
        ),
        (
            lambda: Network(rit.Unfold(rit.LSTM(3, 4)), decode=nn.Linear(4, 2), reads="encoder"),
            r"^Network: the encoder's reading gives 8 features and decode reads 4\.$",
        ),
        (
            lambda: Stack([Network(rit.Unfold(rit.GRU(4, 4)), encode=lambda x: x)]),
            r"^Stack: layer 0 is a Network; layers are Unfold, and compositions that tell their sizes",
        ),
        (
            lambda: Network(Residual(Bidirectional(rit.GRU(4, 4), rit.GRU(4, 4), merge="sum")), reads="acceptor"),
            r"^Network: reads='acceptor' and a Residual with merge='sum' clash",
        ),
        (
            lambda: Network(
                Stack([Network(Residual(rit.Unfold(rit.GRU(4, 4))), decode=nn.Linear(4, 2))]), reads="acceptor"
            ),
            r"^Network: reads='acceptor' and a Residual with decode clash",
        ),
        (lambda: Context(rit.Unfold(rit.GRU(3, 4)), 2, into="x"), r"^Unknown into 'x': .*Known: both, state, steps"),
        (
            lambda: Network(rit.Unfold(rit.LSTM(3, 4)), reads="acceptor")(torch.zeros(5, 2, 3), all_states=True),
            r"^Network reads its layer's outputs, so that all_states is not for it; ask the Unfold alone\.$",
        ),
        (lambda: Context(rit.GRU(3, 4), 2), r"^Context stands around a layer, an Unfold or a composition, not GRU\.$"),
        (lambda: Context(rit.Unfold(rit.GRU(3, 4)), 0), r"^Context: size must be a positive integer, not 0\.$"),
        (
            lambda: Context(rit.Unfold(rit.GRU(3, 4)), 5),
            r"^Context: the layer reads 3 features, fewer than the 5 of the context; it reads those of x and",
        ),
        (
            lambda: Context(rit.Unfold(rit.GRU(3, 4)), 2)(torch.zeros(5, 2, 1), context=torch.zeros(2, 3)),
            r"^Context: context must be a tensor of shape \(2, 2\), not \(2, 3\)\.$",
        ),
        (
            lambda: Context(rit.Unfold(rit.GRU(3, 4)), 2)(torch.zeros(5, 1)),
            r"^Context: context must be a tensor of shape \(2,\), not NoneType\.$",
        ),
        (
            lambda: Stack([Context(rit.Unfold(rit.GRU(3, 4)), 2)])(torch.zeros(5, 3, 1)),
            r"^Context: context must be a tensor of shape \(3, 2\), not NoneType\.$",
        ),
        (
            lambda: Network(rit.Unfold(rit.GRU(3, 4)), encode=nn.Linear(2, 3))(torch.zeros(5, 2, 2), lengths=[6, 1]),
            r"^lengths holds 6; each must lie between 0 and the 5 steps of x",
        ),
    ],
)
def test_what_does_not_fit_is_named(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


RESETS = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("resets", [None, RESETS], ids=["", "resets"])
@pytest.mark.parametrize("into", ["steps", "state", "both"])
def test_a_context_enters_steps_and_state(into: str, resets: Tensor | None, batch_first: bool, executor: str) -> None:
    """A loop of the cell by hand, R apart from W; after a reset the state is the cell's own."""
    cell = rit.Elman(3 + (into != "state") * 2, 4)
    told = Context(rit.Unfold(cell, batch_first=batch_first, executor=executor), 2, into).to(F64)
    x, c = torch.randn(5, 4, 3, dtype=F64), torch.randn(4, 2, dtype=F64)
    w, r = cell.W.weight[:, :3], cell.W.weight[:, 3:]
    bias = cell.W.bias + (c @ r.T if into != "state" else 0)
    first = torch.tanh(c @ told.to_state.weight.T + told.to_state.bias) if into != "steps" else c.new_zeros(4, 4)
    h, steps = first, []
    for t, row in enumerate(x):
        inside = (t < torch.tensor(LENGTHS))[:, None]
        if resets is not None:
            h = h.masked_fill(resets[t][:, None] & inside, 0)
        h = torch.where(inside, torch.tanh(row @ w.T + bias + h @ cell.U.weight.T), h)
        steps.append(h)
    expected = torch.stack(steps).masked_fill(beyond(LENGTHS)[..., None], 0)
    poisoned = x.masked_fill(beyond(LENGTHS)[..., None], POISON)
    if batch_first:
        poisoned, expected = poisoned.transpose(0, 1), expected.transpose(0, 1)
        resets = None if resets is None else resets.T
    outputs, last = told(poisoned, context=c, lengths=LENGTHS, resets=resets)
    assert_close(outputs, expected)
    assert_close(last.h, h)
    assert (told.input_size, told.output_size, told.batch_first) == (3, 4, batch_first)
    parameters = dict(told.named_parameters()) | {"c": c.requires_grad_()}
    outputs, _ = told(poisoned.nan_to_num(), context=c, lengths=LENGTHS)
    assert all(gradient.any() for gradient in gradients(outputs, parameters).values())


def test_a_context_around_any_composition_sets_every_state() -> None:
    layer = Stack.of((rit.LSTM, rit.GRU), 3 + 2, 4, bidirectional=True)
    told = Context(layer, 2).to(F64)
    x, c = torch.randn(5, 4, 3, dtype=F64), torch.randn(4, 2, dtype=F64)
    parts = torch.tanh(told.to_state(c)).split(4, -1)
    assert len(parts) == 6
    state = ((parts[:2], parts[2:4]), (parts[4:5], parts[5:]))
    wide = torch.cat([x, c.expand(5, 4, 2)], -1)
    assert_close(told(x, context=c), layer(wide, state))
    assert_close(told(x, state, context=torch.zeros_like(c))[0], layer(wide * torch.tensor([1, 1, 1, 0, 0]), state)[0])
    outputs, last = told(x[:, 1], context=c[1])
    assert_close(outputs, told(x, context=c)[0][:, 1])
    assert leaves(last)[0].shape == (4,)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    ("make", "open_fields"), [(rit.cells.SLSTM, "h"), (rit.cells.GroupedRNN, "h"), (rit.LSTM, "hc")]
)
def test_a_context_leaves_what_is_the_cell_s_alone(make: Any, open_fields: str, executor: str) -> None:
    """A clock counts steps, and c, n and m of the sLSTM are parts of a quotient: they begin at 0."""
    cell = make(3 + 2, 8)
    told = Context(Stack([rit.Unfold(cell, executor=executor)]), 2).to(F64)
    nn.init.normal_(told.to_state.weight, std=3)
    x, c = torch.randn(9, 4, 3, dtype=F64), torch.randn(4, 2, dtype=F64)
    assert len(told.to_state.weight) == 8 * len(open_fields)
    parts = iter(torch.tanh(told.to_state(c)).split(8, -1))
    state = cell.zero_state(4, x)
    state = state._replace(**{field: next(parts) for field in open_fields})
    outputs, (last,) = told(x, context=c)
    assert_close(outputs, told.layer(torch.cat([x, c.expand(9, -1, -1)], -1), (state,))[0])
    assert outputs.abs().max() <= 1
    if "clock" in cell.State._fields:
        assert last.clock.tolist() == [[0, 1, 3, 7]] * 4


def test_a_sequence_from_a_vector_alone() -> None:
    """One to many: x has no features, the context is all there is."""
    told = Context(rit.Unfold(rit.GRU(2, 4)), 2)
    c = torch.randn(3, 2)
    assert told.input_size == 0
    outputs, _ = told(torch.empty(5, 3, 0), context=c)
    assert_close(outputs, told.layer(c.expand(5, 3, 2), (torch.tanh(told.to_state(c)),))[0])


def test_a_context_reaches_through_a_network() -> None:
    told = Context(rit.Unfold(rit.LSTM(5, 4)), 2)
    network = Network(told, encode=nn.Embedding(7, 3), decode=nn.Linear(4, 7), reads="acceptor")
    tokens, c = torch.randint(7, (5, 2)), torch.randn(2, 2)
    expected = network.decode(told(network.encode(tokens), context=c)[0][-1])
    assert_close(network(tokens, context=c)[0], expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(network(tokens, context=c)[1].h, told(network.encode(tokens), context=c)[1].h)


class Judge(nn.Module):
    """Every composition in one model."""

    def __init__(self, reads: str) -> None:
        super().__init__()
        stacks = [Stack.of(rit.LSTM, 4 + 2, 3, layers=2, skip=True, reverse=way, executor="cpu") for way in (0, 1)]
        self.told = Context(Bidirectional(*stacks), 2)
        self.network = Network(self.told, encode=nn.Embedding(11, 4), decode=nn.Linear(12, 5), reads=reads)
        self.refine = Stack.of((rit.GRU, rit.Elman), 5, 5, bidirectional=True, merge="sum", residual=True)

    def forward(self, tokens: Tensor, context: Tensor, lengths: Tensor) -> Tensor:
        answer, _ = self.network(tokens, context=context, lengths=lengths)
        return answer if self.network.reads == "acceptor" else self.refine(answer, lengths=lengths)[0]


@pytest.mark.parametrize("reads", ["acceptor", "transducer"])
def test_compositions_are_captured_whole(reads: str) -> None:
    torch._dynamo.reset()
    model = Judge(reads)
    parameters = dict(model.named_parameters())
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for time in (6, 9):
        given = torch.randint(11, (time, 3)), torch.randn(3, 2), torch.tensor([time, 2, 0])
        found, expected = compiled(*given), model(*given)
        assert_close(found, expected)
        assert_close(gradients(found, parameters), gradients(expected, parameters))


test_compositions_are_captured_whole.pytestmark += capturing  # type: ignore[attr-defined]
