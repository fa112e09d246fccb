"""Feedback and SelfFed: against naive loops that feed one step at a time."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from comparison import assert_close, gradients
from torch import Tensor, nn
from twins import node_twin

import ritornello as rit
from ritornello.errors import ArgumentError
from ritornello.nn import Bidirectional, Context, Feedback, SelfFed, Stack

F64 = torch.float64
LENGTHS = [3, 5, 0, 1]
EXECUTORS = ["reference", "cpu"]
SYMBOLS, START = 6, 5


def beyond(lengths: list[int], time: int = 5) -> Tensor:
    """(time, batch): True in the padding."""
    return torch.arange(time)[:, None] >= torch.tensor(lengths)


def decoder(features: int = 3, **options: Any) -> Feedback:
    """Of symbols, over two layers; its weights are large, so that choices differ and are far apart."""
    unfold = {name: options.pop(name) for name in ("executor", "batch_first") if name in options}
    layer = Stack.of((rit.LSTM, rit.GRU), features + 4, 8, **unfold)
    output, embed = nn.Linear(8, SYMBOLS), nn.Embedding(SYMBOLS, 4)
    for parameter in (*layer.parameters(), output.weight):
        nn.init.normal_(parameter, std=2.0)
    return Feedback(layer, output, embed=embed, start=START, **options).to(F64)


def naive(
    net: Feedback, x: Tensor | None, fed: Any, lengths: list[int], time: int = 5, end: int | None = None
) -> tuple[Tensor, Tensor, list[int]]:
    """Logits, choices and lengths of each sequence by itself, cell by cell.

    Args:
        fed: a function of (step, sequence, what was chosen) to the symbol that is fed next.
    """
    logits, chosen, counts = [], [], []
    for b, length in enumerate(lengths):
        cells = [layer.cell for layer in net.layer.layers]
        states = [cell.zero_state(1, net.output.weight) for cell in cells]
        symbol, rows, picks = START, [], []
        for t in range(length):
            below = net.embed(torch.tensor([symbol]))
            if x is not None:
                below = torch.cat([x[t, b : b + 1], below], -1)
            for number, cell in enumerate(cells):
                states[number] = cell(below, states[number])
                below = states[number][0]
            rows.append(net.output(below)[0])
            picks.append(int(rows[-1].argmax()))
            if end is not None and picks[-1] == end:
                break
            symbol = fed(t, b, picks[-1])
        counts.append(len(rows))
        fill = START if net.end is None else net.end
        logits.append(torch.stack(rows + [net.output.weight.new_zeros(SYMBOLS)] * (time - len(rows))))
        chosen.append(torch.tensor(picks + [fill] * (time - len(picks))))
    return torch.stack(logits, 1), torch.stack(chosen, 1), counts


def given() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 4, 3, dtype=F64), torch.randint(0, SYMBOLS, (5, 4))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_teacher_forcing_is_a_loop_that_is_fed_the_truth(batch_first: bool, executor: str) -> None:
    net, (x, truth) = decoder(executor=executor, batch_first=batch_first), given()
    expected, _, _ = naive(net, x, lambda t, b, chosen: int(truth[t, b]), LENGTHS)
    ignored = truth.masked_fill(beyond(LENGTHS), -100)  # the padding of a loss's targets is not read
    if batch_first:
        found = net(x.transpose(0, 1), ignored.T, lengths=LENGTHS)
    else:
        found = net(x, ignored, lengths=LENGTHS)
    outputs = found.outputs.transpose(0, 1) if batch_first else found.outputs
    assert_close(outputs, expected)
    assert found.chosen is None
    assert found.lengths.tolist() == LENGTHS
    parameters = dict(net.named_parameters())
    assert_close(gradients(outputs, parameters), gradients(expected, parameters))


def test_teacher_forcing_is_one_unfolding_and_one_product() -> None:
    net, (x, truth) = decoder(executor="cpu"), given()
    calls = []
    for name, module in (("layer", net.layer), ("output", net.output)):
        module.register_forward_hook(lambda module, args, result, name=name: calls.append((name, len(args[0]))))
    net(x, truth)
    assert calls == [("layer", 5), ("output", 5)]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
def test_free_running_is_a_loop_that_is_fed_its_own_choice(
    lengths: list[int] | None, batch_first: bool, executor: str
) -> None:
    net, (x, _) = decoder(executor=executor, batch_first=batch_first), given()
    expected, choices, _ = naive(net, x, lambda t, b, chosen: chosen, lengths or [5] * 4)
    found = net(x.transpose(0, 1) if batch_first else x, feed="free", lengths=lengths)
    outputs, chosen = found.outputs, found.chosen
    if batch_first:
        outputs, chosen = outputs.transpose(0, 1), chosen.T
    assert_close(outputs, expected)
    assert torch.equal(chosen, choices)
    assert len(choices.unique()) > 2
    parameters = dict(net.named_parameters())
    assert_close(gradients(outputs, parameters), gradients(expected, parameters))
    taught = net(x.transpose(0, 1) if batch_first else x, found.chosen, lengths=lengths)
    assert_close(taught.outputs, found.outputs)
    assert_close(taught.state, found.state)


def test_an_end_symbol_stops_what_counts() -> None:
    net, x = decoder(end=2), torch.randn(12, 30, 3, dtype=F64)
    expected, choices, counts = naive(net, x, lambda t, b, chosen: chosen, [12] * 30, 12, end=2)
    found = net(x, feed="free")
    assert_close(found.outputs, expected)
    assert torch.equal(found.chosen, choices)
    assert found.lengths.tolist() == counts
    assert len(set(counts)) > 1
    assert_close(net(x, feed="free").state, net(x, found.chosen, lengths=counts).state)
    called: list[Any] = []
    net.output.register_forward_hook(lambda *call: called.append(call))
    short = min(range(30), key=counts.__getitem__)
    every = net(x[:, short : short + 1].expand(12, 3, 3), feed="free", before=torch.tensor([START] * 3))
    assert len(called) == int(every.lengths[0]) < 12  # when all have ended, nothing goes on
    ended = found.chosen[-1] == 2
    assert 0 < ended.sum() < 30
    scheduled = net(x, found.chosen, feed=0.5, lengths=[12] * 30)  # the truth says how long it is
    assert scheduled.lengths.tolist() == [12] * 30


def test_without_x_it_writes_from_what_came_before() -> None:
    net = decoder(0, end=2)
    found = net(feed="free", steps=5, before=torch.tensor([START] * 3))
    expected, choices, counts = naive(net, None, lambda t, b, chosen: chosen, [5] * 3, end=2)
    assert_close(found.outputs, expected)
    assert torch.equal(found.chosen, choices)
    assert found.lengths.tolist() == counts


def test_it_goes_on_from_where_it_was() -> None:
    net, (x, truth) = decoder(), given()
    for feed in ("teacher", "free"):
        whole = net(x, truth, feed=feed)
        first = net(x[:2], truth[:2], feed=feed)
        before = truth[1] if feed == "teacher" else first.chosen[1]
        second = net(x[2:], truth[2:], first.state, feed=feed, before=before)
        assert_close(torch.cat([first.outputs, second.outputs]), whole.outputs)
        assert_close(second.state, whole.state)


def test_scheduled_sampling_lies_between_the_two() -> None:
    net, (x, truth) = decoder(), given()
    taught, free = net(x, truth, lengths=LENGTHS), net(x, feed="free", lengths=LENGTHS)
    for share, like in ((1.0, taught), (1, taught), (0.0, free), (0, free)):
        found = net(x, truth, feed=share, lengths=LENGTHS)
        assert_close((found.outputs, found.state), (like.outputs, like.state))
    assert not torch.equal(taught.outputs, free.outputs)


@pytest.mark.parametrize("share", [0.25, 0.7])
def test_the_share_of_truths_is_the_probability(share: float) -> None:
    """The model always chooses 0 and the truth is 1; what is fed is seen where it is embedded."""
    net = decoder(end=None)
    nn.init.zeros_(net.output.weight)
    net.output.bias.data = torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=F64)
    fed = []
    net.embed.register_forward_hook(lambda module, args, result: fed.append(args[0]))
    for seed in range(5):
        torch.manual_seed(seed)
        net(torch.zeros(21, 100, 3, dtype=F64), torch.ones(21, 100, dtype=torch.long), feed=share)
    steps = torch.stack([symbols[0] for symbols in fed if (symbols != START).all()]).double()
    assert steps.shape == (5 * 20, 100)
    variance = share * (1 - share)
    assert abs(steps.mean() - share) < 5 * (variance / steps.numel()) ** 0.5
    for way in (0, 1):  # each step and each sequence by itself: means of 100 draws
        assert abs(steps.mean(way).std() - (variance / 100) ** 0.5) < 0.4 * (variance / 100) ** 0.5


def test_temperature_draws_from_the_models_own_distribution() -> None:
    net = decoder()
    nn.init.zeros_(net.output.weight)
    net.output.bias.data = torch.tensor([2.0, 1, 0, -1, 0.5, -9], dtype=F64)
    x = torch.zeros(3, 4000, 3, dtype=F64)
    for temperature in (1.0, 2.0):
        chosen = net(x, feed="free", temperature=temperature).chosen
        p = (net.output.bias / temperature).softmax(-1)
        counts = torch.bincount(chosen.flatten(), minlength=SYMBOLS) / chosen.numel()
        assert ((counts - p).abs() <= 5 * (p * (1 - p) / chosen.numel()).sqrt()).all()
    assert (net(x, feed="free").chosen == 0).all()
    assert (net(x, feed="free", temperature=1e-3).chosen == 0).all()


def regressor(make: Any = None) -> Feedback:
    layer = rit.Unfold(rit.LSTM(3 + 2, 4)) if make is None else make(3 + 2)
    return Feedback(layer, nn.Linear(4, 2), start=0.5).to(F64)


@pytest.mark.parametrize("feed", ["teacher", "free", 0.0, 1.0])
def test_real_values_are_fed_back_as_they_are(feed: Any) -> None:
    net = regressor()
    x, truth = torch.randn(5, 4, 3, dtype=F64), torch.randn(5, 4, 2, dtype=F64)
    found = net(x, truth, feed=feed, lengths=LENGTHS)
    state, y, steps = net.layer.cell.zero_state(4, x), torch.full((4, 2), 0.5, dtype=F64), []
    for row, true in zip(x, truth, strict=True):
        state = net.layer.cell(torch.cat([row, y], -1), state)
        steps.append(net.output(state.h))
        y = true if feed in ("teacher", 1.0) else steps[-1]
    expected = torch.stack(steps).masked_fill(beyond(LENGTHS)[..., None], 0)
    assert_close(found.outputs, expected)
    assert found.chosen is None
    parameters = dict(net.named_parameters())
    assert_close(gradients(found.outputs, parameters), gradients(expected, parameters))
    free = net(x, feed="free", before=truth[0])
    assert_close(free.outputs[0], net(x, truth, before=truth[0]).outputs[0])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_self_fed_cell_is_free_running_in_one_unfolding(executor: str) -> None:
    net = regressor(lambda size: rit.Unfold(rit.LSTM(size, 4)))
    unfold = rit.Unfold(SelfFed(net.layer.cell, net.output), executor=executor)
    x, zero = torch.randn(5, 4, 3, dtype=F64), torch.zeros(4, 4, dtype=F64)
    outputs, last = unfold(x, (torch.full((4, 2), 0.5, dtype=F64), zero, zero), lengths=LENGTHS)
    found = net(x, feed="free", lengths=LENGTHS)
    assert_close(outputs, found.outputs)
    assert_close((last.h, last.c), tuple(found.state))
    parameters = dict(net.named_parameters())
    assert_close(gradients(outputs, parameters), gradients(found.outputs, parameters))
    assert (unfold.input_size, unfold.output_size) == (3, 2)
    assert last._fields == ("y", "h", "c")


def test_over_trees_the_sum_of_the_childrens_outputs_is_fed() -> None:
    x, output = torch.randn(3, 3), nn.Linear(4, 2)
    for cell in (rit.LSTM(3 + 2, 4), rit.cells.TreeLSTM(3 + 2, 4)):
        found, _ = rit.Unfold(SelfFed(cell, output)).over([[2, 2, -1]], x, all_states=True)
        below = [cell.State(found.h[k : k + 1], found.c[k : k + 1]) for k in (0, 1)]
        reads = torch.cat([x[2:], found.y[:1] + found.y[1:2]], -1)
        new = node_twin(cell, reads, below)
        assert_close(found.h[2:], new.h)
        assert_close(found.y[2:], output(new.h))


def test_a_self_fed_cell_goes_into_stacks_and_takes_any_cell() -> None:
    stack = Stack([rit.Unfold(rit.GRU(3, 4)), rit.Unfold(SelfFed(nn.GRUCell(4 + 2, 5), nn.Linear(5, 2)))])
    assert stack(torch.randn(5, 4, 3), lengths=LENGTHS)[0].shape == (5, 4, 2)
    twice = SelfFed(SelfFed(rit.GRU(3 + 4, 5), nn.Linear(5, 2)), nn.Linear(2, 2))
    assert twice.State._fields == ("fed", "y", "h")


def test_a_context_is_seen_at_every_step() -> None:
    layer = Context(Stack.of(rit.GRU, 3 + 4 + 2, 8, layers=2), 2)
    net = Feedback(layer, nn.Linear(8, SYMBOLS), embed=nn.Embedding(SYMBOLS, 4), start=START).to(F64)
    (x, truth), context = given(), torch.randn(4, 2, dtype=F64)
    options = {"context": context, "lengths": LENGTHS}
    taught = net(x, truth, **options)
    shifted = torch.cat([torch.full((1, 4), START), truth[:-1]])
    expected, _ = layer(torch.cat([x, net.embed(shifted)], -1), **options)
    assert_close(taught.outputs, net.output(expected).masked_fill(beyond(LENGTHS)[..., None], 0))
    assert_close(net(x, truth, feed=1.0, **options).outputs, taught.outputs)
    assert not torch.equal(net(x, truth, context=context + 1).outputs, net(x, truth, context=context).outputs)


def test_the_start_is_0_unless_it_is_said() -> None:
    x = torch.randn(5, 4, 3, dtype=F64)
    symbols = Feedback(rit.Unfold(rit.GRU(3 + 4, 8)), nn.Linear(8, SYMBOLS), embed=nn.Embedding(SYMBOLS, 4)).to(F64)
    assert_close(symbols(x, feed="free").outputs, symbols(x, feed="free", before=torch.zeros(4).long()).outputs)
    values = Feedback(rit.Unfold(rit.GRU(3 + 2, 8)), nn.Linear(8, 2)).to(F64)
    assert_close(values(x, feed="free").outputs, values(x, feed="free", before=x.new_zeros(4, 2)).outputs)


def test_no_steps_and_no_sequences() -> None:
    net, (x, truth) = decoder(), given()
    for feed in ("teacher", "free", 0.5):
        found = net(x[:0], truth[:0], feed=feed)
        assert found.outputs.shape == (0, 4, SYMBOLS)
        assert (found.chosen is None) if feed == "teacher" else (found.chosen.shape == (0, 4))
        assert net(x[:, :0], truth[:, :0], feed=feed).outputs.shape == (5, 0, SYMBOLS)


def test_a_state_dict_goes_round() -> None:
    first, second, (x, truth) = decoder(), decoder(), given()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x, truth).outputs, second(x, truth).outputs)
    assert torch.equal(first(x, feed="free").chosen, second(x, feed="free").chosen)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_teacher_forcing_is_captured_whole() -> None:
    torch._dynamo.reset()
    net, (x, truth), lengths = decoder(executor="cpu"), given(), torch.tensor(LENGTHS)
    compiled = torch.compile(lambda x, y, n: net(x, y, lengths=n).outputs, fullgraph=True, backend="eager")
    found, expected = compiled(x, truth, lengths), net(x, truth, lengths=lengths).outputs
    assert_close(found, expected)
    parameters = dict(net.named_parameters())
    assert_close(gradients(found, parameters), gradients(expected, parameters))


def test_free_running_is_captured_step_by_step() -> None:
    net, (x, _) = decoder().eval(), given()
    found = torch.compile(net, backend="eager", fullgraph=True)(x, feed="free")
    assert_close(found.outputs, net(x, feed="free").outputs)


def test_the_loop_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    net, (x, truth) = decoder(), given()
    with caplog.at_level(logging.WARNING, "ritornello"):
        net(x, truth)
        assert not caplog.records
        net(x, feed="free")
        net(x, truth, feed=0.5)
    assert [record.getMessage() for record in caplog.records] == [
        "Feedback: without teacher forcing, what a step is fed is chosen after the step before it; "
        "it goes step by step, in a Python loop."
    ]


@pytest.mark.parametrize("adjoint", ["truncated:2,3", "randomized:0.2"])
def test_an_adjoint_that_counts_steps_does_not_go_step_by_step(adjoint: str) -> None:
    layer = rit.Unfold(rit.GRU(3 + 4, 8), adjoint=adjoint)
    net = Feedback(Stack([layer]), nn.Linear(8, SYMBOLS), embed=nn.Embedding(SYMBOLS, 4)).to(F64)
    x, truth = given()
    for feed in ("free", 0.5):
        with pytest.raises(ArgumentError, match=rf"^adjoint='{adjoint}' and feed={feed!r} clash: gradients go back"):
            net(x, truth, feed=feed)
    with torch.no_grad():
        found = net(x, feed="free")
    layer.adjoint = "full"
    assert torch.equal(net(x, feed="free").chosen, found.chosen)


UNFOLD, OUT, EMBED = rit.Unfold(rit.GRU(3 + 4, 8)), nn.Linear(8, SYMBOLS), nn.Embedding(SYMBOLS, 4)
X, TRUTH = torch.zeros(5, 2, 3), torch.zeros(5, 2, dtype=torch.long)
NET = Feedback(UNFOLD, OUT, embed=EMBED)
REAL = Feedback(UNFOLD, nn.Linear(8, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Feedback(OUT, OUT), r"^Feedback stands around a layer, an Unfold or a composition, not Linear\.$"),
        (
            lambda: Feedback(Bidirectional(rit.GRU(3, 4), rit.GRU(3, 4)), OUT),
            r"^Feedback: the layer walks backwards somewhere; what is fed back lies in the past alone\.$",
        ),
        (lambda: Feedback(UNFOLD, OUT, end=2), r"^Feedback: end and embed=None clash: only symbols end a sequence\.$"),
        (lambda: Feedback(UNFOLD, OUT, embed=EMBED, start=0.5), r"^Feedback: start must be a symbol, an integer of 0"),
        (lambda: Feedback(UNFOLD, OUT, embed=EMBED, end=6), r"^Feedback: end is 6 and embed knows 0 to 5\.$"),
        (lambda: NET(X, feed="teacher"), r"^feed='teacher' and truth=None clash: give the truth, or feed='free'\.$"),
        (lambda: NET(X, feed=0.5), r"^feed=0\.5 and truth=None clash"),
        (lambda: NET(X, TRUTH, feed=1.5), r"^feed must be 'teacher', 'free' or a probability .*, not 1\.5\.$"),
        (lambda: NET(X, TRUTH, feed="forced"), r"^feed must be 'teacher', 'free' or .*, not 'forced'\.$"),
        (lambda: NET(X, TRUTH, feed=True), r"^feed must be 'teacher', 'free' or .*, not True\.$"),
        (lambda: NET(X, TRUTH, temperature=-1.0), r"^temperature must be 0 or greater, not -1\.0\.$"),
        (
            lambda: NET(X, TRUTH, temperature=0.8),
            r"^temperature and feed='teacher' clash: the truth is fed, and nothing is drawn\.$",
        ),
        (
            lambda: NET(X, TRUTH, all_states=True),
            r"^Feedback reads its layer's outputs, so that all_states is not for it; ask the Unfold alone\.$",
        ),
        (
            lambda: Feedback(UNFOLD, nn.Linear(8, 7), embed=EMBED),
            r"^Feedback: output gives 7 logits and embed knows 6 symbols; make them alike\.$",
        ),
        (
            lambda: SelfFed(rit.GRU(3, 4), nn.Linear(5, 2)),
            r"^SelfFed: the cell gives 4 features, which output cannot read: mat1 and mat2 shapes cannot be",
        ),
        (
            lambda: REAL(X, torch.zeros(5, 2, 4), temperature=1.0),
            r"^temperature and embed=None clash: real values are not drawn\.$",
        ),
        (
            lambda: NET(X, TRUTH, resets=torch.zeros(5, 2).bool()),
            r"^resets and Feedback clash: what is fed would cross them; give sequences apart\.$",
        ),
        (lambda: NET(X[0], TRUTH), r"^Feedback: x has shape \(2, 3\); expected \(time, batch, 3\)\.$"),
        (lambda: NET(X, TRUTH[:, 0]), r"^Feedback: truth has shape \(5,\); expected \(time, batch\)\.$"),
        (
            lambda: REAL(X, torch.zeros(5, 2, 3)),
            r"^Feedback: truth has shape \(5, 2, 3\); expected \(time, batch, 4\)\.$",
        ),
        (
            lambda: NET(X, TRUTH[:4]),
            r"^Feedback: x has \(5, 2\) and truth \(4, 2\) \(time, batch\); make them alike\.$",
        ),
        (
            lambda: NET(feed="free"),
            r"^Feedback: without x and truth, give steps=, how many, and before=, what precedes each sequence\.$",
        ),
        (lambda: NET(X, feed="free", lengths=[6, 1]), r"^lengths holds 6; each must lie between 0 and the 5 steps"),
        (
            lambda: Stack([rit.Unfold(rit.GRU(3, 4)), NET]),
            r"^Stack: layer 1 is a Feedback; layers are Unfold, and compositions that",
        ),
        (lambda: NET(X, TRUTH.float()), r"^Feedback: truth must be symbols, integers, not torch\.float32\.$"),
        (
            lambda: NET(X, TRUTH, before=torch.zeros(2)),
            r"^Feedback: before must be symbols, integers, not torch\.float32\.$",
        ),
        (
            lambda: Feedback(rit.Unfold(rit.GRU(4, 8)), OUT, embed=EMBED)(feed="free", steps=-1, before=TRUTH[0]),
            r"^Feedback: steps must be an integer of 0 or more, not -1\.$",
        ),
        (lambda: NET(X, feed="free", steps=3), r"^Feedback: steps is 3, and x or truth has 5\.$"),
        (
            lambda: NET(X, TRUTH, before=torch.zeros(3, dtype=torch.long)),
            r"^Feedback: before has shape \(3,\); expected \(2,\)\.$",
        ),
        (
            lambda: SelfFed(rit.GRU(3, 4), nn.Linear(4, 3)),
            r"^SelfFed: the cell reads 3 features and its output has 3; none is left for x\.$",
        ),
    ],
)
def test_what_does_not_fit_is_named(call: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()
