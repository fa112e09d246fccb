"""The drop-in for torch.nn: interface, weights and results are torch's; what torch lacks is tested against loops."""

from __future__ import annotations

import copy
import io
import itertools
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import assert_close
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import ritornello as rit
from ritornello.errors import ArgumentError
from ritornello.nn.layers import plan_of

F64 = torch.float64
PAIRS = {"RNN": (nn.RNN, rit.nn.RNN), "GRU": (nn.GRU, rit.nn.GRU), "LSTM": (nn.LSTM, rit.nn.LSTM)}


def both(name: str, *args: Any, dtype: torch.dtype = F64, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """torch's module and ours, made from the same seed."""
    made = []
    for kind in PAIRS[name]:
        torch.manual_seed(3)
        made.append(kind(*args, dtype=dtype, **kwargs))
    return made[0], made[1]


def flat(found: Any) -> list[Tensor]:
    if isinstance(found, PackedSequence):
        return [found.data]
    if isinstance(found, Tensor):
        return [found]
    return [tensor for part in found for tensor in flat(part)]


def answer(module: nn.Module, input: Any, hx: Any = None, **options: Any) -> list[Tensor]:
    """Values, and the gradients of everything."""
    torch.manual_seed(7)
    outputs = flat(module(input, hx, **options))
    torch.manual_seed(8)
    loss = sum((value * torch.randn_like(value)).sum() for value in outputs)
    leaves = [*flat(input), *(flat(hx) if hx is not None else []), *module.parameters()]
    return [*outputs, *torch.autograd.grad(loss, leaves, materialize_grads=True)]


LAYOUTS = ("padded", "unbatched", "packed", "unsorted")
LAST = {"RNN": ("nonlinearity", ("tanh", "relu")), "GRU": ("dropout", (0.0,)), "LSTM": ("proj_size", (0, 2))}
OPTIONS = [
    (name, dict(zip(("num_layers", "bias", "batch_first", "bidirectional", key), values, strict=True)))
    for name, (key, last) in LAST.items()
    for values in itertools.product((1, 2), (True, False), (False, True), (False, True), last)
]


def inputs(layout: str, batch_first: bool, dtype: torch.dtype = F64) -> tuple[Any, int | None]:
    """An input of 3 features, and how many sequences it has (None: unbatched)."""
    torch.manual_seed(5)
    if layout == "unbatched":
        return torch.randn(6, 3, dtype=dtype).requires_grad_(), None
    if layout == "padded":
        return torch.randn((4, 6, 3) if batch_first else (6, 4, 3), dtype=dtype).requires_grad_(), 4
    lengths = (6, 5, 5, 1) if layout == "packed" else (2, 6, 1, 5)
    packed = pack_sequence([torch.randn(n, 3, dtype=dtype) for n in lengths], enforce_sorted=layout == "packed")
    packed.data.requires_grad_()
    return packed, 4


def state_of(module: Any, batch: int | None) -> Any:
    count = module.num_layers * (2 if module.bidirectional else 1)
    sizes = (module.proj_size or module.hidden_size, module.hidden_size)[: 2 if module.mode == "LSTM" else 1]
    dtype = module.weight_ih_l0.dtype
    fields = [torch.randn((count, size) if batch is None else (count, batch, size), dtype=dtype) for size in sizes]
    fields = [field.requires_grad_() for field in fields]
    return tuple(fields) if len(fields) > 1 else fields[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("name", "options"), OPTIONS, ids=[f"{n}-{'-'.join(map(str, o.values()))}" for n, o in OPTIONS]
)
def test_every_option_of_torch(name: str, options: dict[str, Any], layout: str) -> None:
    """Values and every gradient, without a state and with one."""
    theirs, ours = both(name, 3, 4, **options)
    input, batch = inputs(layout, options["batch_first"])
    for hx in (None, state_of(ours, batch)):
        assert_close(answer(ours, input, hx), answer(theirs, input, hx))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_precisions(name: str, dtype: torch.dtype) -> None:
    """Against float64, as near as torch's own module comes or the tolerance allows."""
    _, exact = both(name, 3, 4, 2, bidirectional=True)
    ours = copy.deepcopy(exact).to(dtype)
    input, _ = inputs("padded", False)
    found, expected = ours(input.detach().to(dtype)), exact(input)
    for one, other in zip(flat(found), flat(expected), strict=True):
        assert one.dtype == dtype
        assert_close(one if dtype == torch.float32 else one.bfloat16(), other)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", PAIRS)
def test_autocast(name: str) -> None:
    options = {"proj_size": 2} if name == "LSTM" else {}
    theirs, ours = both(name, 3, 4, 2, dtype=torch.float32, **options)
    input, _ = inputs("padded", False, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = flat(ours(input)), flat(theirs(input))
    assert [value.dtype for value in found] == [value.dtype for value in expected]
    for one, other in zip(found, expected, strict=True):
        assert_close(one.bfloat16(), other.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert rit.nn.LSTM(3, 4)(input)[1][1].dtype == torch.bfloat16


@pytest.mark.parametrize("name", PAIRS)
def test_dropout_between_layers_is_torchs(name: str) -> None:
    """The same seed drops the same outputs."""
    theirs, ours = both(name, 3, 4, 3, dropout=0.5)
    input, _ = inputs("padded", False)
    torch.manual_seed(1)
    expected = theirs(input)
    torch.manual_seed(1)
    assert_close(flat(ours(input)), flat(expected))
    assert_close(flat(ours.eval()(input)), flat(theirs.eval()(input)))


# A module like torch's.


@pytest.mark.parametrize("name", PAIRS)
def test_it_is_torchs_module(name: str) -> None:
    theirs, ours = both(name, 3, 4, 2, bidirectional=True, batch_first=True)
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
    ours.flatten_parameters()
    assert list(ours.all_weights)
    assert len(ours._flat_weights) == len(theirs._flat_weights)
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("name", PAIRS)
def test_copies_and_files(name: str) -> None:
    ours = PAIRS[name][1](3, 4, 2, dtype=F64, zoneout=0.1, learn_initial=True).eval()
    input, _ = inputs("padded", False)
    expected = flat(ours(input))
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for other in (copy.deepcopy(ours), torch.load(file, weights_only=False), copy.copy(ours)):
        assert_close(flat(other(input)), expected)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    fresh = type(ours)(3, 4, 2, dtype=F64, zoneout=0.1, learn_initial=True).eval()
    fresh.load_state_dict(torch.load(file))
    assert_close(flat(fresh(input)), expected)


@pytest.mark.parametrize("name", PAIRS)
def test_weights_that_are_computed_or_shared(name: str) -> None:
    """Parametrizations, weights of another module, and torch.func.functional_call."""
    theirs, ours = both(name, 3, 4)
    input, _ = inputs("padded", False)
    for module in (theirs, ours):
        torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
        torch.manual_seed(0)
        torch.nn.utils.parametrizations.spectral_norm(module, "weight_ih_l0")
    assert_close(answer(ours.eval(), input), answer(theirs.eval(), input))
    theirs, ours = both(name, 4, 4, 2)
    for module in (theirs, ours):
        module.weight_hh_l1 = module.weight_hh_l0
    wide = torch.randn(5, 2, 4, dtype=F64, requires_grad=True)
    assert_close(answer(ours, wide), answer(theirs, wide))
    theirs, ours = both(name, 4, 4, 2)
    values = {key: value * 2 for key, value in ours.state_dict().items()}
    found, expected = (torch.func.functional_call(module, values, (wide,)) for module in (ours, theirs))
    assert_close(flat(found), flat(expected))


def test_hooks() -> None:
    _, ours = both("LSTM", 3, 4)
    seen = []
    ours.register_forward_pre_hook(lambda module, args: seen.append("before"))
    ours.register_forward_hook(lambda module, args, output: seen.append("after"))
    ours.register_full_backward_hook(lambda module, inputs, outputs: seen.append("back"))
    input, _ = inputs("padded", False)
    ours(input)[0].sum().backward()
    assert seen == ["before", "after", "back"]


@pytest.mark.parametrize("name", PAIRS)
def test_gradients_of_each_sample(name: str) -> None:
    plan_of.cache_clear()  # the first call of all may be under a transformation
    _, ours = both(name, 3, 4, 2)
    x = torch.randn(6, 5, 3, dtype=F64)
    parameters = dict(ours.named_parameters())

    def loss(values: dict[str, Tensor], one: Tensor) -> Tensor:
        return torch.func.functional_call(ours, values, (one.unsqueeze(1),))[0].square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(parameters, x)
    for number in range(5):
        expected = torch.autograd.grad(ours(x[:, number : number + 1])[0].square().sum(), list(parameters.values()))
        assert_close([found[key][number] for key in parameters], list(expected))


@pytest.mark.parametrize("name", PAIRS)
def test_the_first_call_may_be_where_tensors_are_made_elsewhere(name: str) -> None:
    theirs, ours = both(name, 3, 4, 2)
    input, _ = inputs("padded", False)
    plan_of.cache_clear()
    with torch.device("meta"):
        outputs = ours(input)[0]
    assert_close(outputs, theirs(input)[0])
    plan_of.cache_clear()
    with FakeTensorMode():
        made = PAIRS[name][1](3, 4, 2, dtype=F64)
        outputs, _, states = made(torch.randn(5, 2, 3, dtype=F64), all_states=True)
        assert isinstance(outputs, FakeTensor)
        assert outputs.shape == (5, 2, 4)
        assert states.h.shape == (2, 5, 2, 4)
    assert_close(ours(input)[0], theirs(input)[0])


@pytest.mark.parametrize("name", PAIRS)
def test_gradients_of_gradients(name: str) -> None:
    theirs, ours = both(name, 3, 4)
    input, _ = inputs("padded", False)
    found = []
    for module in (ours, theirs):
        (first,) = torch.autograd.grad(module(input)[0].square().sum(), input, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [input, *module.parameters()]))
    assert_close(*map(list, found))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("lengths", [None, [6, 2, 0, 4]], ids=["dense", "ragged"])
def test_compiled_and_exported(name: str, lengths: list[int] | None) -> None:
    """torch.compile looks into what derives from torch's modules only where it is told to."""
    torch._dynamo.reset()
    _, ours = both(name, 3, 4, 2, bidirectional=True)
    input, _ = inputs("padded", False)
    options = {} if lengths is None else {"lengths": torch.tensor(lengths)}
    expected = answer(ours, input, **options)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(allow_rnn=True):
        assert_close(answer(compiled, input, **options), expected)
    if lengths is None:
        exported = torch.export.export(ours, (input.detach(),))
        assert_close(flat(exported.module()(input.detach())), expected[: len(flat(ours(input)))])


@pytest.mark.parametrize(
    "options",
    [
        {"variational_dropout": 0.3, "weight_drop": 0.3, "zoneout": 0.2},
        {"layer_norm": True, "peephole": True, "learn_initial": True},
        {"coupled": True, "residual": True, "reverse": True, "proj_size": 3},
    ],
    ids=lambda options: "-".join(options),
)
def test_other_options_compiled(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    ours = rit.nn.LSTM(3, 4, 2, **options)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(allow_rnn=True):
        outputs, _ = compiled(torch.randn(5, 2, 3))
        outputs.sum().backward()
        assert all(parameter.grad is not None for parameter in ours.parameters())
        ours.eval()
        x = torch.randn(5, 2, 3)
        assert_close(flat(compiled(x)), [value.double() for value in flat(ours(x))])


@pytest.mark.parametrize("options", [{}, {"zoneout": 0.2}, {"cell": rit.GRU}], ids=str)
def test_left_out_of_a_graph_it_runs_as_it_does_without(options: dict[str, Any]) -> None:
    """As torch.compile leaves out all recurrent modules unless told otherwise."""
    torch._dynamo.reset()
    plan_of.cache_clear()
    ours, x, graphs = rit.nn.RNN(3, 4, 2, **options).eval(), torch.randn(5, 2, 3), []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(ours, backend=backend)
    found, _ = compiled(x)
    found.sum().backward()
    assert not graphs
    assert_close(found, ours(x)[0])


LOAD = """
import sys, torch, ritornello.engine
program, expected = torch.export.load(sys.argv[1]), torch.load(sys.argv[2])
outputs, (h, c) = program.module()(expected["x"])
torch.testing.assert_close([outputs, h, c], expected["found"])
"""


def test_an_exported_module_runs_elsewhere(tmp_path: Path) -> None:
    plan_of.cache_clear()
    ours, x = rit.nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True).eval(), torch.randn(2, 50, 3)
    torch.export.save(torch.export.export(ours, (x,)), tmp_path / "model.pt2")
    torch.save({"x": x, "found": [value.detach() for value in flat(ours(x))]}, tmp_path / "expected.pt")
    files = [str(tmp_path / name) for name in ("model.pt2", "expected.pt")]
    done = subprocess.run([sys.executable, "-c", LOAD, *files], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


# What torch refuses.


WRONG: dict[str, tuple[Any, Any]] = {
    "axes": (torch.zeros(2, 2, 2, 3, dtype=F64), None),
    "features": (torch.zeros(5, 2, 4, dtype=F64), None),
    "dtype": (torch.zeros(5, 2, 3), None),
    "no steps": (torch.zeros(0, 2, 3, dtype=F64), None),
    "a state's axes": (torch.zeros(5, 2, 3, dtype=F64), torch.zeros(1, 4, dtype=F64)),
    "a state's size": (torch.zeros(5, 2, 3, dtype=F64), torch.zeros(1, 2, 5, dtype=F64)),
    "a state's batch": (torch.zeros(5, 2, 3, dtype=F64), torch.zeros(1, 3, 4, dtype=F64)),
    "a state's dtype": (torch.zeros(5, 2, 3, dtype=F64), torch.zeros(1, 2, 4)),
    "a state of an unbatched input": (torch.zeros(5, 3, dtype=F64), torch.zeros(1, 2, 4, dtype=F64)),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("what", WRONG)
def test_the_same_mistakes_are_refused(name: str, what: str) -> None:
    input, hx = WRONG[what]
    said = []
    for module in both(name, 3, 4):
        state = hx if hx is None or name != "LSTM" else (hx, hx)
        with pytest.raises(Exception) as error:
            module(input, state)
        said.append((error.type, str(error.value)))
    assert said[0][0] is said[1][0]
    if "state" in what:
        assert said[1][1].startswith("the state's h is torch.float")
    else:
        assert said[0][1] == said[1][1]


WRITES = {
    "outputs": lambda outputs, state: flat(outputs)[0].relu_(),
    "one step": lambda outputs, state: flat(outputs)[0][-1].mul_(2),
    "the state": lambda outputs, state: flat(state)[0].mul_(2),
    "the state, detached": lambda outputs, state: [field.detach_() for field in flat(state)],
}


@pytest.mark.parametrize("what", WRITES)
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", list(PAIRS))
def test_what_torch_s_callers_write_into_ours_may_too(name: str, layers: int, layout: str, what: str) -> None:
    """As in `F.relu(outputs, inplace=True)`, and `hidden.detach_()` between two windows."""
    if (name, layout) == ("LSTM", "padded") and what in ("outputs", "one step"):
        pytest.skip("torch's LSTM forbids it too")
    found = []
    for module in both(name, 3, 4, layers):
        outputs, state = module(inputs(layout, False)[0])
        WRITES[what](outputs, state)
        loss = sum(value.square().sum() for value in flat((outputs, state)))
        found.append([loss, *torch.autograd.grad(loss, list(module.parameters()), materialize_grads=True)])
    assert_close(found[1], found[0])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"zoneout": 1.0}, "zoneout must lie in 0 to 1"),
        ({"weight_drop": True}, "weight_drop must lie in 0 to 1"),
        ({"executor": "gpu"}, "Unknown executor 'gpu'"),
        ({"recurrent_init": "orthogonl"}, "Unknown recurrent_init 'orthogonl': did you mean orthogonal"),
        ({"forget_bias": 1.0, "bias": False}, "forget_bias and bias=False clash"),
        ({"forget_bias": 1.0, "coupled": True}, "forget_bias and coupled=True clash"),
    ],
)
def test_options_that_do_not_fit(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        rit.nn.LSTM(3, 4, **kwargs)


def test_options_of_another_module_are_named() -> None:
    with pytest.raises(ArgumentError, match=r"^peephole is an option of LSTM, not of GRU\.$"):
        rit.nn.GRU(3, 4, peephole=True)
    with pytest.raises(ArgumentError, match=r"^reset is an option of GRU, not of RNN\.$"):
        rit.nn.RNN(3, 4, reset="before")


def test_a_state_that_does_not_fit_is_named() -> None:
    _, ours = both("LSTM", 3, 4, proj_size=2)
    x = torch.zeros(5, 2, 3, dtype=F64)
    with pytest.raises(
        RuntimeError, match=r"the state's c is torch.float64 of shape \(1, 2, 2\) on cpu; expected .*4\) on"
    ):
        ours(x, (torch.zeros(1, 2, 2, dtype=F64), torch.zeros(1, 2, 2, dtype=F64)))
    with pytest.raises(RuntimeError, match=r"the state's h is torch.float64 of shape \(1, 2, 2\) on meta; expected"):
        ours(x, (torch.zeros(1, 2, 2, dtype=F64, device="meta"), torch.zeros(1, 2, 4, dtype=F64)))


def test_lengths_that_do_not_fit() -> None:
    _, ours = both("GRU", 3, 4)
    x = torch.zeros(5, 2, 3, dtype=F64)
    for lengths, message in (
        ([5, 6], "lengths holds 6"),
        ([-1, 2], "lengths holds -1"),
        ([1], r"lengths has shape \(1,\)"),
        ([float("nan"), 1.0], "lengths must be integers"),
    ):
        with pytest.raises(ArgumentError, match=message):
            ours(x, lengths=lengths)
    packed = pack_padded_sequence(x, [5, 3])
    with pytest.raises(ArgumentError, match="lengths cannot be given beside a PackedSequence"):
        ours(packed, lengths=[5, 3])


# What torch lacks.


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths(name: str, bidirectional: bool, batch_first: bool) -> None:
    """As torch's packed sequences, and beyond: sequences without a step."""
    theirs, ours = both(name, 3, 4, 2, bidirectional=bidirectional, batch_first=batch_first)
    input, _ = inputs("padded", batch_first)
    hx, lengths = state_of(ours, 4), torch.tensor([3, 6, 0, 5])
    found = answer(ours, input, hx, lengths=lengths)
    some = [0, 1, 3]
    x = input.detach().transpose(0, 1) if batch_first else input.detach()
    given = tuple(field.detach()[:, some] for field in ([hx] if name != "LSTM" else hx))
    packed = pack_padded_sequence(x[:, some], lengths[some], enforce_sorted=False)
    outputs, last = theirs(packed, given if name == "LSTM" else given[0])
    padded = pad_packed_sequence(outputs, total_length=6)[0]
    expected = torch.zeros(6, 4, padded.shape[-1], dtype=F64)
    expected[:, some] = padded.detach()
    assert_close(found[0], expected.transpose(0, 1) if batch_first else expected)
    for one, other, entry in zip(flat(found[1:3]), flat(last), flat(hx), strict=False):
        assert_close(one[:, some], other)
        assert_close(one[:, 2], entry[:, 2])


def test_resets_begin_anew() -> None:
    _, ours = both("LSTM", 3, 4, 2, bidirectional=True)
    input, _ = inputs("padded", False)
    resets = torch.zeros(6, 4, dtype=torch.bool)
    resets[2, 1] = resets[5, 3] = True
    outputs, _ = ours(input, resets=resets)
    assert_close(outputs[:2, 1:2], ours(input[:2, 1:2])[0])
    assert_close(outputs[2:, 1:2], ours(input[2:, 1:2])[0])
    assert_close(outputs[:5, 3:], ours(input[:5, 3:])[0])
    assert_close(outputs[:, :1], ours(input[:, :1])[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_states(layout: str) -> None:
    """In the caller's order: the last layer's h are the outputs, each sequence's last ones the final states."""
    _, ours = both("LSTM", 3, 4, 2, bidirectional=True)
    input, _ = inputs(layout, False)
    outputs, (h, c), states = ours(input, all_states=True)
    if isinstance(outputs, PackedSequence):
        padded, lengths = pad_packed_sequence(outputs)
    else:
        padded, lengths = outputs, torch.full(outputs.shape[1:-1], len(outputs))
    assert_close(torch.cat([states.h[2], states.h[3]], -1), padded)
    final = lengths.sub(1)[None, None, ..., None].expand(2, 1, *lengths.shape, 4)
    for field, last in ((states.h, h), (states.c, c)):
        assert_close(field[::2].gather(1, final).squeeze(1), last[::2])
        assert_close(field[1::2, 0], last[1::2])


def test_nested_tensors() -> None:
    _, ours = both("GRU", 3, 4, 2, bidirectional=True, batch_first=True)
    parts = [torch.randn(n, 3, dtype=F64) for n in (2, 6, 3)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged, requires_grad=True)
    outputs, last = ours(nested)
    (gradient,) = torch.autograd.grad(outputs.values().square().sum(), nested)
    for part, found in zip(parts, gradient.unbind(), strict=True):
        part.requires_grad_()
        assert_close(found, torch.autograd.grad(ours(part[None])[0].square().sum(), part)[0])
    for number, (part, found) in enumerate(zip(parts, outputs.unbind(), strict=True)):
        expected, final = ours(part[None])
        assert_close(found, expected[0])
        assert_close(last[:, number], final[:, 0])


def lstm_by_hand(module: Any, x: Tensor, suffix: str = "_l0") -> tuple[Tensor, Tensor]:
    """h and c of all steps, gate by gate, from the papers' equations."""
    get = lambda name: getattr(module, name + suffix)  # noqa: E731
    h, c, hs, cs = torch.zeros(x.shape[1], 4, dtype=F64), torch.zeros(x.shape[1], 4, dtype=F64), [], []

    def norm(value: Tensor, weight: Tensor) -> Tensor:
        mean = value.mean(-1, keepdim=True)
        return (value - mean) / (((value - mean) ** 2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    for step in x:
        wide, deep = step @ get("weight_ih").T, h @ get("weight_hh").T
        if module.layer_norm:
            wide, deep = norm(wide, get("norm_ih")), norm(deep, get("norm_hh"))
        parts = (wide + get("bias_ih") + deep + get("bias_hh")).split(4, -1)
        i, g, o = parts[0], parts[-2], parts[-1]
        if module.peephole:
            i = i + get("weight_ci") * c
        i = i.sigmoid()
        if module.coupled:
            f = 1 - i
        else:
            f = (parts[1] + (get("weight_cf") * c if module.peephole else 0)).sigmoid()
        old_h, old_c = h, c
        c = f * c + i * g.tanh()
        o = (o + (get("weight_co") * c if module.peephole else 0)).sigmoid()
        h = o * (norm(c, get("norm_c")) + get("norm_c_bias") if module.layer_norm else c).tanh()
        h, c = (module.zoneout * old + (1 - module.zoneout) * new for old, new in ((old_h, h), (old_c, c)))
        hs.append(h)
        cs.append(c)
    return torch.stack(hs), torch.stack(cs)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("zoneout", [0.0, 0.3])
def test_variants_of_the_lstm(peephole: bool, coupled: bool, layer_norm: bool, zoneout: float) -> None:
    torch.manual_seed(0)
    ours = rit.nn.LSTM(
        3, 4, dtype=F64, peephole=peephole, coupled=coupled, layer_norm=layer_norm, zoneout=zoneout
    ).eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    input, _ = inputs("padded", False)
    outputs, _, states = ours(input, all_states=True)
    h, c = lstm_by_hand(ours, input)
    found = torch.autograd.grad(outputs.square().sum(), [input, *ours.parameters()])
    assert_close([outputs, states.h[0], states.c[0]], [h, h, c])
    assert_close(list(found), list(torch.autograd.grad(h.square().sum(), [input, *ours.parameters()])))


def test_gru_that_resets_before_the_product() -> None:
    torch.manual_seed(0)
    ours = rit.nn.GRU(3, 4, dtype=F64, reset="before")
    input, _ = inputs("padded", False)
    h, expected = torch.zeros(4, 4, dtype=F64), []
    w, u, b, d = ours.weight_ih_l0, ours.weight_hh_l0, ours.bias_ih_l0, ours.bias_hh_l0
    for step in input:
        wide = step @ w.T + b + d
        r, z = (wide[:, :8] + h @ u[:8].T).sigmoid().chunk(2, -1)
        n = (wide[:, 8:] + (r * h) @ u[8:].T).tanh()
        h = (1 - z) * n + z * h
        expected.append(h)
    assert_close(ours(input)[0], torch.stack(expected))


def test_zoneout_keeps_a_share_in_training() -> None:
    torch.manual_seed(0)
    ours = rit.nn.LSTM(3, 400, dtype=F64, zoneout=0.25)
    _, _, states = ours(torch.randn(20, 2, 3, dtype=F64), all_states=True)
    for field in states:
        kept = (field[0, 1:] == field[0, :-1]).double().mean()
        assert 0.23 < kept < 0.27


def test_variational_dropout_has_one_mask_for_all_steps() -> None:
    """Where x is 1 at every step and U is the identity, the outputs show the masks."""
    torch.manual_seed(0)
    ours = rit.nn.RNN(50, 50, dtype=F64, nonlinearity="relu", bias=False, variational_dropout=0.4)
    nn.init.eye_(ours.weight_ih_l0.data)
    nn.init.zeros_(ours.weight_hh_l0.data)
    outputs, _ = ours(torch.ones(6, 3, 50, dtype=F64))
    assert bool((outputs == outputs[0]).all())
    assert set(outputs.unique().tolist()) == {0.0, 1 / 0.6}
    nn.init.eye_(ours.weight_hh_l0.data)
    resets = torch.zeros(6, 3, dtype=torch.bool)
    resets[3, 0] = True
    outputs, _ = ours(torch.ones(6, 3, 50, dtype=F64), lengths=[6, 3, 5], resets=resets)
    x_kept = outputs[0] != 0
    h_kept = outputs[2] > outputs[0]  # what is carried over grows
    assert 0.4 < h_kept[x_kept].double().mean() < 0.8
    expected = torch.zeros(3, 50, dtype=F64)
    for step in range(6):
        expected = (x_kept + h_kept * expected * ~resets[step][:, None]) / 0.6
        going = torch.tensor([step < 6, step < 3, step < 5])[:, None]
        assert_close(outputs[step], expected * going)
    assert_close(*(ours.eval()(torch.ones(6, 3, 50, dtype=F64))[0] for _ in range(2)))


def test_variational_dropout_leaves_what_a_gru_carries() -> None:
    """Where the update gate is shut, the state stays as it is."""
    ours = rit.nn.GRU(1, 4, dtype=F64, variational_dropout=0.5)
    nn.init.zeros_(ours.weight_hh_l0.data)
    ours.bias_ih_l0.data[4:8] = 50.0
    h = torch.full((1, 2, 4), 0.1, dtype=F64)
    assert_close(ours(torch.zeros(9, 2, 1, dtype=F64), h)[1], h)


def test_weight_drop_drops_recurrent_weights_in_training() -> None:
    torch.manual_seed(0)
    ours = rit.nn.RNN(1, 60, dtype=F64, nonlinearity="relu", bias=False, weight_drop=0.5)
    nn.init.zeros_(ours.weight_ih_l0.data)
    nn.init.eye_(ours.weight_hh_l0.data)
    h = torch.ones(1, 1, 60, dtype=F64)
    outputs, _ = ours(torch.zeros(3, 1, 1, dtype=F64), h)
    assert set(outputs[0].unique().tolist()) == {0.0, 2.0}
    assert set(outputs[2].unique().tolist()) == {0.0, 8.0}
    assert bool((ours.eval()(torch.zeros(3, 1, 1, dtype=F64), h)[0] == 1).all())


def test_residual_and_learnt_initial_states() -> None:
    torch.manual_seed(0)
    ours = rit.nn.GRU(4, 4, 2, dtype=F64, residual=True, learn_initial=True)
    nn.init.normal_(ours.initial_h)
    x = torch.randn(5, 2, 4, dtype=F64)
    first, second = (rit.nn.GRU(4, 4, dtype=F64) for _ in range(2))
    for number, module in enumerate((first, second)):
        module.load_state_dict(
            {f"{n}_l0": getattr(ours, f"{n}_l{number}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        )
    entry = ours.initial_h.unsqueeze(1).repeat(1, 2, 1)
    middle = x + first(x, entry[:1])[0]
    expected = middle + second(middle, entry[1:])[0]
    assert_close(ours(x)[0], expected)
    ours(x)[0].sum().backward()
    assert ours.initial_h.grad is not None
    assert bool((ours.initial_h.grad != 0).any())


def test_initialisations() -> None:
    ours = rit.nn.LSTM(3, 4, recurrent_init="orthogonal", forget_bias=1.0)
    for gate in ours.weight_hh_l0.split(4):
        assert torch.allclose(gate @ gate.T, torch.eye(4), atol=1e-5)
    torch.manual_seed(0)
    fresh = rit.nn.LSTM(3, 4, forget_bias=1.0, layer_norm=True, learn_initial=True, recurrent_init="identity")
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    nn.init.ones_(fresh.initial_h.data)
    fresh.reset_parameters()
    for name, value in fresh.state_dict().items():
        same = name.startswith(("norm", "initial", "weight_hh")) or name == "x"
        assert torch.equal(value, before[name]) == same, name
    assert bool((fresh.bias_ih_l0[4:8] + fresh.bias_hh_l0[4:8] == 1).all())
    assert ours.bias_ih_l0[4:8].tolist() == [1.0] * 4
    assert ours.bias_hh_l0[4:8].tolist() == [0.0] * 4
    assert bool((ours.bias_ih_l0[:4] != 1).all())


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cells_of_ones_own(layout: str, bidirectional: bool) -> None:
    """With a cell that computes what torch does, the results are torch's; the second layer may have another."""

    class Other(rit.LSTM):
        pass

    torch.manual_seed(0)
    theirs = nn.LSTM(3, 4, 2, bidirectional=bidirectional, dtype=F64)
    ours = rit.nn.RNN(3, 4, 2, bidirectional=bidirectional, cell=[rit.LSTM, Other], dtype=F64)
    cells = [module for module in ours.modules() if isinstance(module, rit.Cell)]
    for cell, suffix in zip(
        cells, ("_l0", "_l0_reverse", "_l1", "_l1_reverse")[:: 1 if bidirectional else 2], strict=True
    ):
        cell.load_state_dict(
            {
                "W.weight": getattr(theirs, "weight_ih" + suffix),
                "U.weight": getattr(theirs, "weight_hh" + suffix),
                "W.bias": getattr(theirs, "bias_ih" + suffix) + getattr(theirs, "bias_hh" + suffix),
            }
        )
    input, batch = inputs(layout, False)
    for hx in (None, state_of(theirs, batch)):
        assert_close(flat(ours(input, hx)), flat(theirs(input, hx)))
    assert not [name for name in ours.state_dict() if name.startswith("weight")]
    assert_close(flat(copy.deepcopy(ours)(input)), flat(theirs(input)))


def test_cells_that_do_not_fit() -> None:
    for options, message in (
        ({"zoneout": 0.1}, "cell and zoneout clash"),
        ({"bias": False}, "cell and bias clash"),
        ({"cell": [rit.LSTM]}, "cell has 1 entries; num_layers is 2"),
        ({"cell": [rit.LSTM, rit.GRU]}, "different fields or sizes; use ritornello.nn.Stack"),
    ):
        with pytest.raises(ArgumentError, match=message):
            rit.nn.RNN(3, 4, 2, **{"cell": rit.GRU, **options})
    ours = rit.nn.RNN(3, 4, 2, cell=rit.GRU)
    with pytest.raises(ArgumentError, match="all_states and cell clash"):
        ours(torch.zeros(5, 2, 3), all_states=True)
    with pytest.raises(ArgumentError, match=r"hx has \[1\] states in its fields; expected 2"):
        ours(torch.zeros(5, 2, 3), torch.zeros(1, 2, 4))


WEIGHTS = [
    ("weight_hh_l0", (4, 4), r"weight_hh_l0 has shape \(4, 4\); expected \(12, 4\)"),
    ("weight_ih_l0", (16, 2), r"weight_ih_l0 has shape \(16, 2\); expected \(12, 3\)"),
    ("bias_hh_l0", (3,), r"bias_hh_l0 has shape \(3,\); expected \(12,\)"),
]


@pytest.mark.parametrize(("name", "shape", "message"), WEIGHTS)
def test_weights_that_do_not_fit(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.func.functional_call(rit.nn.GRU(3, 4), {name: torch.zeros(shape)}, (torch.zeros(5, 2, 3),))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64], ids=str)
def test_other_dtypes_under_autocast_are_torchs_business(name: str, dtype: torch.dtype) -> None:
    said = []
    for module in both(name, 3, 4, dtype=torch.float32):
        with torch.autocast("cpu", torch.bfloat16):
            try:
                said.append([(value.dtype, value.shape) for value in flat(module(torch.ones(5, 2, 3, dtype=dtype)))])
            except (RuntimeError, ValueError) as error:
                said.append([type(error)])
    assert said[0] == said[1]


def test_empty_batches_and_the_meta_device() -> None:
    x = torch.zeros(5, 0, 3)
    for options, given in (
        ({}, {}),
        ({"zoneout": 0.1}, {}),
        ({"peephole": True}, {"lengths": []}),
        ({}, {"lengths": []}),
    ):
        outputs, (h, _) = rit.nn.LSTM(3, 4, **options)(x, **given)
        assert (outputs.shape, h.shape) == ((5, 0, 4), (1, 0, 4))
    for options in ({}, {"peephole": True, "layer_norm": True}, {"zoneout": 0.1}, {"coupled": True}):
        ours = rit.nn.LSTM(3, 4, 2, bidirectional=True, device="meta", **options)
        for given in ({}, {"lengths": [5, 3]}):
            assert ours(torch.zeros(5, 2, 3, device="meta"), **given)[0].shape == (5, 2, 8)


def test_dropout_and_residual_are_the_same_with_own_cells() -> None:
    for cell in (None, rit.GRU):
        torch.manual_seed(0)
        ours = rit.nn.GRU(4, 4, 2, residual=True, dropout=0.999, cell=cell)
        assert float(ours(torch.full((5, 2, 4), 10.0))[0].detach().abs().max()) < 2


def test_own_cells_are_reset_in_place() -> None:
    ours = rit.nn.RNN(3, 4, cell=rit.GRU)
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in ours.named_parameters()}
    ours.reset_parameters()
    for name, parameter in ours.named_parameters():
        assert parameter is before[name][0]
        assert not torch.equal(parameter, before[name][1])


@pytest.mark.parametrize("hx", [3, (), (torch.zeros(1, 2, 4),), (torch.zeros(1, 2, 4), 3)], ids=str)
def test_states_that_are_none(hx: Any) -> None:
    """Of another kind or number: torch's own error, whatever it is, and ours where there are options."""
    for options in ({}, {"peephole": True}):
        with pytest.raises((RuntimeError, ValueError, TypeError, IndexError, AttributeError)):
            rit.nn.LSTM(3, 4, **options)(torch.zeros(5, 2, 3), hx)


@pytest.mark.parametrize("name", PAIRS)
def test_without_the_extension_it_is_torch_that_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = both(name, 3, 4)
    input, _ = inputs("padded", False)
    expected = answer(theirs, input)
    monkeypatch.setattr("ritornello.executors.cpu._core", None)
    monkeypatch.setattr("ritornello.nn.recurrent.choose", None)  # nobody asks for an executor
    assert_close(answer(ours, input), expected)


def test_own_cells_keep_the_order_of_packed_rows() -> None:
    ours = rit.nn.RNN(3, 4, cell=rit.GRU, dtype=F64)
    packed = pack_padded_sequence(torch.randn(3, 40, 3, dtype=F64), [3] * 20 + [2] * 20)
    outputs, _ = ours(packed)
    padded, _ = ours(pad_packed_sequence(packed)[0], lengths=[3] * 20 + [2] * 20)
    assert_close(outputs.data, pack_padded_sequence(padded, [3] * 20 + [2] * 20).data)
    assert outputs.sorted_indices is None


REFUSED: dict[str, tuple[Any, str]] = {
    "both directions": (
        lambda: rit.nn.RNN(3, 4, reverse=True, bidirectional=True),
        "reverse=True and bidirectional=True",
    ),
    "before and norm": (
        lambda: rit.nn.GRU(3, 4, reset="before", layer_norm=True),
        "reset='before' and layer_norm=True",
    ),
    "reset": (lambda: rit.nn.GRU(3, 4, reset="befor"), "Unknown reset 'befor': did you mean before"),
    "an instance": (lambda: rit.nn.RNN(3, 4, cell=rit.GRU(3, 4)), "cell is a GRU; give its class"),
    "a name": (lambda: rit.nn.RNN(3, 4, cell="gru"), "^RNN: cell must be a class, .* not 'gru'; ritornello.cells.find"),
    "no module": (lambda: rit.nn.replace([]), "replace takes a module, not list"),
    "no executor": (lambda: rit.nn.replace(nn.LSTM(3, 4), executor="cpuu"), "Unknown executor 'cpuu'"),
    "to_onnx": (lambda: rit.nn.to_onnx(nn.LSTM(3, 4)), "to_onnx takes ritornello.nn.RNN, GRU or LSTM, not LSTM"),
    "a learnt state": (lambda: rit.nn.to_onnx(rit.nn.GRU(3, 4, learn_initial=True)), "ONNX's GRU has no learn_initial"),
    "a layer": (lambda: rit.nn.to_onnx(rit.nn.GRU(3, 4), 1), "layer is 1; the module has 1"),
    "operator": (lambda: rit.nn.from_onnx("Lstm", W, R), "must be one of RNN, GRU, LSTM, not 'Lstm'"),
    "direction": (lambda: rit.nn.from_onnx("RNN", W, R, direction="back"), "direction must be forward, reverse or"),
    "directions": (lambda: rit.nn.from_onnx("RNN", W, R, direction="bidirectional"), "W has 1 directions"),
    "activations": (lambda: rit.nn.from_onnx("RNN", W, R, activations=["Elu"]), "RNN has \\['Tanh'\\] here"),
    "strided": (lambda: rit.nn.RNN(3, 4)(torch.nested.nested_tensor([torch.zeros(2, 3)])), "layout torch.jagged"),
}
W, R = torch.zeros(1, 4, 3), torch.zeros(1, 4, 4)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what: str) -> None:
    call, message = REFUSED[what]
    with pytest.raises(ArgumentError, match=message):
        call()


# Swapping modules of an existing model.


def test_replace() -> None:
    torch.manual_seed(0)

    class Special(nn.LSTM):
        pass

    model = nn.ModuleDict(
        {"one": nn.LSTM(3, 4), "two": nn.GRU(4, 4, bidirectional=True), "own": Special(3, 4), "c": nn.GRUCell(3, 4)}
    )
    torch.nn.utils.parametrizations.weight_norm(model["two"], "weight_hh_l0")
    seen: list[str] = []
    model["one"].register_forward_hook(lambda *_: seen.append("hook"))
    x = torch.randn(5, 2, 3)
    before = model["two"](model["one"](x)[0])[0]
    parameters, names = list(model.parameters()), list(model.state_dict())
    found = {swap.name: swap for swap in rit.nn.replace(model)}
    assert [found[name].reason is None for name in ("one", "two", "own", "c")] == [True, True, False, True]
    assert isinstance(model["c"], rit.nn.GRUCell)
    assert "derived from LSTM" in found["own"].reason
    assert isinstance(model["one"], rit.nn.LSTM)
    assert isinstance(model["two"], rit.nn.GRU)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == names
    assert_close(model["two"](model["one"](x)[0])[0], before.double())
    assert seen == ["hook", "hook"]
    assert rit.nn.replace(model) == [found["own"]]
    torch.nn.utils.parametrize.remove_parametrizations(model["two"], "weight_hh_l0")
    assert type(model["two"]) is rit.nn.GRU


# PyTorch's own inputs for these classes, and ONNX's own cases.


def shipped() -> list[tuple[str, bool, Any]]:
    from torch.testing._internal.common_modules import module_db

    found = []
    for info in module_db:
        name = info.module_cls.__name__
        if info.module_cls.__module__ == "torch.nn.modules.rnn":
            for training in (False, True):
                for sample in info.module_inputs_func(info, "cpu", F64, True, training):
                    found.append((name, training, sample))
    return found


def test_the_inputs_that_torch_ships() -> None:
    """Of the six classes, in evaluation and in training."""
    torch.manual_seed(0)
    cases = shipped()
    for name, training, sample in cases:
        made = []
        for kind in (getattr(nn, name), getattr(rit.nn, name)):
            torch.manual_seed(1)
            made.append(
                kind(*sample.constructor_input.args, **sample.constructor_input.kwargs).double().train(training)
            )
        found, expected = (m(*sample.forward_input.args, **sample.forward_input.kwargs) for m in reversed(made))
        assert type(found) is type(expected)
        assert_close(flat(found), flat(expected))
        gradients = [
            torch.autograd.grad(
                sum(value.square().sum() for value in flat(each)), list(module.parameters()), retain_graph=True
            )
            for each, module in zip((expected, found), made, strict=True)
        ]
        assert_close(list(gradients[1]), list(gradients[0]))
        if sample.reference_fn is not None:
            reference = sample.reference_fn(made[1], *sample.forward_input.args, **sample.forward_input.kwargs)
            assert_close(flat(found), flat(reference))
    assert len(cases) >= 174


def operators() -> list[Any]:
    """ONNX's own cases for its recurrent operators."""
    from onnx.backend.test.case.node import collect_testcases

    return [case for case in collect_testcases(None) if case.model.graph.node[0].op_type in PAIRS]


def test_the_cases_that_onnx_ships() -> None:
    """As an operator's weights become a module, and go back unchanged."""
    onnx = pytest.importorskip("onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of making all other cases
        cases = operators()
    assert len(cases) >= 18
    for case in cases:
        node = case.model.graph.node[0]
        values, results = case.data_sets[0]
        given = {name: torch.tensor(value) for name, value in zip(filter(None, node.input), values, strict=True)}
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        layout = attributes.pop("layout", 0)
        attributes.pop("hidden_size")
        direction = attributes.pop("direction", b"forward").decode()
        weights = {name: given[name] for name in "WRBP" if name in given}
        module = rit.nn.from_onnx(node.op_type, **weights, direction=direction, batch_first=bool(layout), **attributes)
        initial = [given[name] for name in ("initial_h", "initial_c") if name in given]
        hx = None if not initial else tuple(initial) if len(initial) > 1 else initial[0]
        outputs, last = module(given["X"], hx, lengths=given.get("sequence_lens"))
        count = len(given["W"])
        steps = outputs.unflatten(-1, (count, -1))  # (time, batch, directions, hidden), or batch first
        found = {"Y": steps if layout else steps.transpose(1, 2)}
        finals = last if isinstance(last, tuple) else (last,)
        for name, final in zip(("Y_h", "Y_c"), finals, strict=False):
            found[name] = final.transpose(0, 1) if layout else final
        for name, value in zip(filter(None, node.output), results, strict=True):
            assert_close(found[name], torch.tensor(value).double(), f"{case.name}: {name}")
        written, said = rit.nn.to_onnx(module)
        assert said["direction"] == direction
        assert said["hidden_size"] == module.hidden_size
        for name, value in weights.items():
            assert torch.equal(written[name], value)


def test_onnx_of_each_layer_and_option() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 2, 3)
    for made in (
        rit.nn.LSTM(3, 4, 2, peephole=True, coupled=True),
        rit.nn.LSTM(3, 4, 2, peephole=True, bias=False),
        rit.nn.GRU(3, 4, 2, bidirectional=True),
        rit.nn.GRU(3, 4, 2, reset="before"),
        rit.nn.RNN(3, 4, 2, nonlinearity="relu", reverse=True),
    ):
        expected, inner = made(x)[0], x
        for layer in range(2):
            weights, attributes = rit.nn.to_onnx(made, layer)
            attributes.pop("hidden_size")
            name = next(name for name, pair in PAIRS.items() if isinstance(made, pair[1]))
            inner = rit.nn.from_onnx(name, **weights, **attributes)(inner)[0]
        assert_close(inner, expected.double())
    with pytest.raises(ArgumentError, match="ONNX's LSTM has no layer_norm"):
        rit.nn.to_onnx(rit.nn.LSTM(3, 4, layer_norm=True))
    with pytest.raises(ArgumentError, match="ONNX's LSTM has no proj_size: proj_size=2"):
        rit.nn.to_onnx(rit.nn.LSTM(3, 4, proj_size=2))
