"""Unfolding as one node of a captured graph: torch.compile and torch.export."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import assert_close, gradients
from torch import Tensor, library, nn
from torch.autograd.graph import saved_tensors_hooks

import ritornello as rit
from ritornello.engine.op import unfold as unfold_op
from ritornello.errors import ArgumentError
from ritornello.nn.layers import plan_of
from ritornello.program import lookup

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
CELLS = {
    "lstm": lambda: rit.LSTM(5, 7),
    "gru-before": lambda: rit.GRU(5, 7, reset="before"),  # reads parts of a parameter
    "foreign": lambda: nn.LSTMCell(5, 7),  # adds two biases before the loop
}


class Tagger(nn.Module):
    """Embedding, unfolding, head: what people compile and export."""

    def __init__(self, cell: nn.Module, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.unfold = rit.Unfold(cell, executor="cpu", learn_initial=True, **options)
        self.head = nn.Linear(7, 11)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.head(self.unfold(self.embedding(tokens), lengths=lengths)[0])


def targets(graph: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", list(CELLS))
def test_compiled_whole_it_is_one_node_with_the_same_values_and_gradients(cell: str, reverse: bool) -> None:
    torch._dynamo.reset()
    model, graphs = Tagger(CELLS[cell](), reverse=reverse), []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    parameters = dict(model.named_parameters())
    for time in (6, 30):
        tokens = torch.randint(0, 11, (time, 3))
        for lengths in (None, torch.tensor([time, 2, 0])):
            found, expected = compiled(tokens, lengths), model(tokens, lengths)
            assert_close(found, expected)
            assert_close(gradients(found, parameters), gradients(expected, parameters))
    sizes = {len(list(graph.graph.nodes)) for graph in graphs if graph is not graphs[0]}
    assert all(sum("ritornello.unfold" in target for target in targets(graph)) == 1 for graph in graphs)
    assert max(sizes) < 60, "the graph grows with the number of steps"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_compiled_when_its_original_is_gone(copied: Callable[[Tagger], Tagger]) -> None:
    torch._dynamo.reset()
    model, tokens = copied(Tagger(rit.GRU(5, 7))), torch.randint(0, 11, (6, 3))
    gc.collect()
    others = [rit.Unfold(rit.Elman(5, 7)) for _ in range(50)]  # which may lie where the original lay
    assert_close(torch.compile(model, fullgraph=True, backend="eager")(tokens), model(tokens))
    del others


def test_checkpointed_within_a_graph_keeps_no_step() -> None:
    """Between forward and backward the node holds what it was called with, and no more, however long x is."""
    unfold, x = rit.Unfold(rit.LSTM(5, 7), executor="cpu"), torch.randn(30, 3, 5)
    parameters = dict(unfold.named_parameters())
    expected = unfold(x)
    kept: dict[str, int] = {}
    for unfold.adjoint in ("full", "checkpointed"):
        torch._dynamo.reset()
        compiled = torch.compile(unfold, fullgraph=True, backend="eager")
        compiled(x)
        sizes: list[int] = []
        with saved_tensors_hooks(lambda saved, sizes=sizes: sizes.append(saved.numel()) or saved, lambda saved: saved):
            found = compiled(x)
        assert_close(found, expected)
        assert_close(gradients(found, parameters), gradients(expected, parameters))
        kept[str(unfold.adjoint)] = sum(sizes)
    assert kept["full"] > 30 * 3 * 7 * 4
    assert kept["checkpointed"] < x.numel() + 2 * sum(p.numel() for p in unfold.parameters())


@pytest.mark.parametrize("adjoint", ["truncated:2,3", "randomized:0.5", "forward"])
def test_other_adjoints_run_between_two_graphs_and_never_as_full(adjoint: str) -> None:
    torch._dynamo.reset()
    model, graphs = Tagger(rit.LSTM(5, 7), adjoint=adjoint), []
    parameters, tokens = dict(model.named_parameters()), torch.randint(0, 11, (9, 3))

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    found = {}
    for run in (torch.compile(model, backend=backend), model):
        torch.manual_seed(4)
        found[run] = gradients(run(tokens), parameters)
    assert_close(*found.values())
    assert len(graphs) == 2
    assert not any("ritornello" in target for graph in graphs for target in targets(graph))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="such an adjoint is no node of a graph"):
        torch.compile(model, fullgraph=True, backend="eager")(tokens)


def test_an_adjoint_stands_in_the_way_of_no_graph_without_gradients() -> None:
    model, tokens = Tagger(rit.LSTM(5, 7), adjoint="truncated:2,3"), torch.randint(0, 11, (9, 3))
    with torch.no_grad():
        exported = torch.export.export(model, (tokens,))
        assert_close(exported.module()(tokens), model(tokens))
        torch._dynamo.reset()
        assert_close(torch.compile(model, fullgraph=True, backend="eager")(tokens), model(tokens))
    with pytest.raises(ArgumentError, match=r"^adjoint='truncated:2,3' is no node of a graph: export under"):
        torch.export.export(model, (tokens,), strict=False)


def test_compiled_by_inductor() -> None:
    torch._dynamo.reset()
    model, tokens = Tagger(rit.LSTM(5, 7)), torch.randint(0, 11, (6, 3))
    compiled = torch.compile(model, fullgraph=True)
    parameters = dict(model.named_parameters())
    assert_close(gradients(compiled(tokens), parameters), gradients(model(tokens), parameters))


@pytest.mark.parametrize("cell", list(CELLS))
def test_exported_saved_and_loaded_in_a_new_process(cell: str, tmp_path: Path) -> None:
    model = Tagger(CELLS[cell]())
    sizes = {"tokens": {0: torch.export.Dim("time"), 1: torch.export.Dim("batch")}}
    with torch.no_grad():
        program = torch.export.export(model, (torch.randint(0, 11, (6, 3)),), dynamic_shapes=sizes)
    torch.export.save(program, tmp_path / "model.pt2")
    tokens = torch.randint(0, 11, (40, 4))
    torch.save((tokens, model(tokens).detach()), tmp_path / "expected.pt")
    script = (
        "import sys, torch, ritornello.engine\n"
        "program = torch.export.load(sys.argv[1])\n"
        "tokens, expected = torch.load(sys.argv[2])\n"
        "found = program.module()(tokens)\n"
        "torch.testing.assert_close(found, expected)\n"
        "found.sum().backward()\n"
    )
    files = [str(tmp_path / name) for name in ("model.pt2", "expected.pt")]
    done = subprocess.run([sys.executable, "-c", script, *files], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


class Outputs(nn.Module):
    """Those of a module that returns states, too."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("inner", [lambda: rit.Unfold(rit.GRU(5, 7)), lambda: rit.nn.GRU(5, 7)], ids=["Unfold", "nn"])
def test_tracing_is_no_part_of_an_exported_graph(inner: Callable[[], nn.Module], strict: bool) -> None:
    plan_of.cache_clear()
    model, x, file = Outputs(inner()), torch.randn(4, 3, 5), io.BytesIO()
    program = torch.export.export(model, (x,), strict=strict)
    assert not any("grad" in str(node.target) for node in program.graph.nodes)
    torch.export.save(program, file)
    file.seek(0)
    assert_close(torch.export.load(file).module()(x), model(x))


def test_the_op_by_torchs_own_checks() -> None:
    plan_cell = rit.GRU(3, 4)
    unfold = rit.Unfold(plan_cell)
    from ritornello.engine.op import capture, captured_values

    captured = capture(unfold._number, True)
    values = [
        value.detach().requires_grad_()
        for value in captured_values(captured, partial(lookup, plan_cell), torch.float32)
    ]
    x, state = torch.randn(5, 2, 3, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    seed = torch.zeros((), dtype=torch.long)
    for lengths in (None, torch.tensor([5, 2])):
        for gradients_wanted in (False, True):
            arguments = (
                x,
                [state],
                [torch.zeros(1, 4)],
                values,
                lengths,
                None,
                seed,
                captured.program,
                False,
                "float32",
            )
            library.opcheck(unfold_op, (*arguments, gradients_wanted), test_utils=("test_schema", "test_faketensor"))


def test_a_cell_captured_without_gradients_is_traced_anew_for_training() -> None:
    """A graph that knows no gradients need not be watched by autograd: what stops them is not seen."""

    class Stopping(rit.Elman):
        def forward(self, x: Tensor, s: Any) -> Any:
            with torch.no_grad():
                h = torch.tanh(s.h)
            return super().forward(x, self.State(h))

    torch._dynamo.reset()
    unfold, x = rit.Unfold(Stopping(5, 7)), torch.randn(6, 3, 5)
    with torch.no_grad():
        assert_close(torch.compile(unfold, backend="eager")(x), unfold(x))
    reference = rit.Unfold(unfold.cell, executor="reference")
    parameters = dict(unfold.named_parameters())
    assert_close(gradients(unfold(x), parameters), gradients(reference(x), parameters))


def test_a_setting_that_changes_is_captured_anew() -> None:
    class Scaled(rit.Elman):
        of_all = 1.0

        def __init__(self) -> None:
            super().__init__(5, 7)
            self.factor, self.power, self.negative, self.shift = 1.0, 1, False, None
            self.numbers, self.by_name, self.squash = [1.0, 1.0], {"number": 1.0}, torch.tanh

        def forward(self, x: Tensor, s: Any) -> Any:
            h = self.squash(super().forward(x, s).h ** self.power * self.factor)
            h = h * self.numbers[1] * self.by_name["number"] * self.of_all
            h = h if self.shift is None else h + self.shift
            return self.State(-h if self.negative else h)

    torch._dynamo.reset()
    unfold, x = rit.Unfold(Scaled()), torch.randn(6, 3, 5)
    compiled = torch.compile(unfold, fullgraph=True, backend="eager")
    cell = unfold.cell
    for change in (
        *(partial(setattr, cell, "factor", factor) for factor in (0.25, 0.5)),
        *(partial(setattr, cell, "power", power) for power in (2, 3)),
        partial(setattr, cell, "negative", True),
        partial(setattr, cell, "shift", 0.5),
        partial(cell.numbers.__setitem__, 1, 2.0),
        partial(cell.by_name.update, number=3.0),
        partial(setattr, cell, "squash", torch.sigmoid),
        partial(setattr, Scaled, "of_all", 2.0),
        partial(setattr, cell, "of_all", 0.5),
    ):
        torch._dynamo.reset()  # which captures so many at most
        before = compiled(x)
        change()
        assert_close(compiled(x), unfold(x))
        assert not torch.equal(compiled(x)[0], before[0])


def test_a_cell_that_cannot_be_compiled_runs_between_two_graphs() -> None:
    class Rounded(rit.Elman):
        def forward(self, x: Tensor, s: Any) -> Any:
            h = super().forward(x, s).h
            return self.State(h + h.argmax(-1, keepdim=True))

    torch._dynamo.reset()
    unfold, x, graphs = rit.Unfold(Rounded(5, 7)), torch.randn(6, 3, 5), []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled, parameters = (
        torch.compile(lambda x: 2 * unfold(x + 1)[0], backend=backend),
        dict(unfold.named_parameters()),
    )
    found, expected = compiled(x), 2 * unfold(x + 1)[0]
    assert_close(found, expected)
    assert_close(gradients(found, parameters), gradients(expected, parameters))
    assert len(graphs) <= 3, "the graph grows with the number of steps"
    assert not any("argmax" in target for graph in graphs for target in targets(graph))
    with pytest.raises(
        torch._dynamo.exc.Unsupported, match=r"Rounded cannot be compiled: torch's argmax \(test_capture"
    ):
        torch.compile(unfold, fullgraph=True, backend="eager")(x)


def test_another_cell_is_captured_in_place_of_the_first() -> None:
    torch._dynamo.reset()
    unfold, x = rit.Unfold(rit.Elman(5, 7)), torch.randn(6, 3, 5)
    compiled = torch.compile(unfold, fullgraph=True, backend="eager")
    for unfold.cell in (rit.Elman(5, 7, nonlinearity="relu"), rit.GRU(5, 7), rit.Elman(5, 7)):
        assert_close(compiled(x), unfold(x))


def test_trees_run_between_two_graphs() -> None:
    torch._dynamo.reset()
    unfold, x, graphs = rit.Unfold(rit.LSTM(5, 7)), torch.randn(6, 5), []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def run(x: Tensor) -> Tensor:
        return 2 * unfold.over([[2, 2, 4, 4, -1], [-1]], x + 1)[0]

    compiled, parameters = torch.compile(run, backend=backend), dict(unfold.named_parameters())
    with torch.no_grad():
        assert torch.equal(compiled(x), run(x))
    found, expected = compiled(x), run(x)
    assert torch.equal(found, expected)
    assert_close(gradients(found, parameters), gradients(expected, parameters))
    assert len(graphs) == 4, "two without gradients and two with them"


def test_lengths_that_do_not_fit_are_found_when_the_graph_runs() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(Tagger(rit.GRU(5, 7)), fullgraph=True, backend="eager")
    tokens = torch.randint(0, 11, (6, 3))
    for lengths, message in (
        (torch.tensor([7, 1, 1]), "lengths must lie between 0 and 6"),
        (torch.tensor([2.5, 1.0, 1.0]), "lengths must be integers, not torch.float32"),
        (torch.tensor([2]), r"lengths has shape \(1,\); expected \(3,\)"),
    ):
        with pytest.raises(RuntimeError, match=message):
            compiled(tokens, lengths)


def test_resets_that_do_not_fit_are_found_when_the_graph_runs() -> None:
    torch._dynamo.reset()
    unfold, x = rit.Unfold(rit.GRU(5, 7)), torch.randn(6, 3, 5)
    compiled = torch.compile(unfold, fullgraph=True, backend="eager")
    for resets, message in (
        (torch.ones(6, 3), "resets must be booleans, not torch.float32"),
        (torch.ones(7, 3, dtype=torch.bool), r"resets has shape \(7, 3\); expected \(6, 3\)"),
    ):
        with pytest.raises(RuntimeError, match=message):
            compiled(x, resets=resets)
    resets = torch.rand(6, 3) < 0.5
    assert_close(compiled(x, resets=resets), unfold(x, resets=resets))


def test_dropout_is_drawn_anew_at_every_call_and_off_in_eval() -> None:
    class Dropping(rit.LSTM):
        def forward(self, x: Tensor, s: Any) -> Any:
            new = super().forward(x, s)
            return self.State(nn.functional.dropout(new.h, 0.5, self.training), new.c)

    torch._dynamo.reset()
    model = Tagger(Dropping(5, 7))
    compiled, tokens = torch.compile(model, fullgraph=True, backend="eager"), torch.randint(0, 11, (6, 3))
    assert not torch.equal(compiled(tokens), compiled(tokens))
    model.eval()
    assert_close(compiled(tokens), model(tokens))
    assert torch.equal(compiled(tokens), compiled(tokens))


def test_autocast_within_a_compiled_graph() -> None:
    torch._dynamo.reset()
    model, tokens = Tagger(rit.LSTM(5, 7)), torch.randint(0, 11, (6, 3))
    compiled = torch.compile(model.unfold, fullgraph=True, backend="eager")
    x = model.embedding(tokens).detach()
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = compiled(x)[0], model.unfold(x)[0]
    assert found.dtype == expected.dtype == torch.float32
    assert torch.equal(found, expected)
    assert not torch.equal(found, model.unfold(x)[0])


def test_autocast_to_another_dtype_is_refused_within_a_compiled_graph_too() -> None:
    torch._dynamo.reset()
    unfold, x = rit.Unfold(rit.LSTM(5, 7)), torch.randn(6, 3, 5)
    compiled = torch.compile(unfold, backend="eager")
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(compiled(x)[0], unfold(x)[0])
    named = rit.Unfold(rit.LSTM(5, 7), executor="cpu")
    with torch.autocast("cpu", torch.float16), pytest.raises(ArgumentError, match=r"torch\.autocast asks for"):
        torch.compile(named, backend="eager")(x)


def test_a_graph_in_bfloat16() -> None:
    torch._dynamo.reset()
    unfold, x = rit.Unfold(rit.LSTM(5, 7)).bfloat16(), torch.randn(6, 3, 5).bfloat16()
    parameters = dict(unfold.named_parameters())
    found, expected = torch.compile(unfold, fullgraph=True, backend="eager")(x), unfold(x)
    assert torch.equal(found[0], expected[0])
    assert_close(gradients(found, parameters), gradients(expected, parameters))
