"""Unfolding: a cell over a structure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ritornello.cells.adapt import Adapted, name_of
from ritornello.cells.cell import Cell
from ritornello.engine import door
from ritornello.engine.adjoint import PLAIN, Adjoint, Full, check_trees, settle_adjoint
from ritornello.engine.op import Captured, capture, captured_values, differs, new_seed, remember
from ritornello.engine.op import unfold as unfold_op
from ritornello.errors import ArgumentError
from ritornello.executors import EXECUTORS, Request, Result, check_name, choose
from ritornello.executors.cpu import CpuExecutor, unfit
from ritornello.executors.run import TYPES, inside, machine_type
from ritornello.executors.stepper import Stepper
from ritornello.program import lookup
from ritornello.structures import AnyTrees, Schedule, forest, from_rows, to_rows


class Unfold(nn.Module):
    r"""A network: a cell, unfolded over sequences.

    .. math:: h^{(t)} = f(h^{(t-1)}, x^{(t)}; \theta)

    with the same f and θ at every step (Goodfellow, Bengio & Courville, eq. 10.4 and 10.5).

    Args:
        cell: the transition function: a `ritornello.Cell`, or any module with `forward(x, state)`, such as
            `torch.nn.LSTMCell`, taken as it is (see `ritornello.cells.Adapted`).
        input_size, state_sizes: of a module that is no `Cell` and does not tell them itself.
        reverse: walk from each sequence's last step to its first. Outputs keep their steps.
        batch_first: x and the outputs are (batch, time, features) instead of (time, batch, features). The state has no
            time axis and is (batch, size) either way.
        learn_initial: the initial state, read where a sequence begins, is a parameter (at first zero) instead of zero;
            but for fields that are the cell's alone to write, such as a clock (`Cell.private`).
        adjoint: how gradients go back through time (docs/bptt.md): "full" (default) keeps what every step computed;
            "checkpointed" keeps O(√T) states beyond inputs and outputs and computes the steps between once more, in
            about 1.3 times the time; `Truncated(k1, k2)` and `Randomized(p)`, or their texts "truncated:20,40" and
            "randomized:0.05"; "forward" carries derivatives forwards, for small cells. Over trees there is
            "full" alone; in a graph that torch.compile captures the last three break it.
        executor: "auto" (default) or an executor's name.

    Raises:
        ArgumentError: what is given does not fit; the message names it.
        CellError: the cell returned other fields or shapes than its `State` promises.

    Example:
        >>> import torch, ritornello as rit
        >>> unfold = rit.Unfold(rit.LSTM(3, 4))
        >>> outputs, last = unfold(torch.randn(5, 2, 3), lengths=[5, 2])
        >>> outputs.shape, last.c.shape
        (torch.Size([5, 2, 4]), torch.Size([2, 4]))
        >>> bool((outputs[1, 1] == last.h[1]).all()), bool((outputs[2:, 1] == 0).all())
        (True, True)
    """

    def __init__(
        self,
        cell: nn.Module,
        *,
        input_size: int | None = None,
        state_sizes: int | Sequence[int | tuple[int, ...]] | None = None,
        reverse: bool = False,
        batch_first: bool = False,
        learn_initial: bool = False,
        adjoint: str | Adjoint = "full",
        executor: str = "auto",
    ) -> None:
        super().__init__()
        if not isinstance(cell, nn.Module):
            raise ArgumentError(f"Unfold takes a ritornello.Cell or a module like one, not {type(cell).__name__}.")
        if not isinstance(cell, Cell):
            cell = Adapted(cell, input_size, state_sizes)
        elif (input_size, state_sizes) != (None, None):
            raise ArgumentError(f"{name_of(cell)} tells its sizes itself: leave out input_size and state_sizes.")
        check_name(executor)
        self.cell: Cell = cell
        self.reverse = reverse
        self.batch_first = batch_first
        self._adjoint = settle_adjoint(adjoint)
        self.executor = executor
        self.initial = nn.ParameterList(_first(cell)) if learn_initial else None

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._number = remember(self.cell)  # a copy has a cell of its own

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "cell":
            self._number = remember(value)

    @property
    def adjoint(self) -> Adjoint:
        """How gradients go back through time; set, it may be a text."""
        return self._adjoint

    @adjoint.setter
    def adjoint(self, adjoint: str | Adjoint) -> None:
        self._adjoint = settle_adjoint(adjoint)

    @property
    def input_size(self) -> int:
        """Features of x."""
        return self.cell.input_size

    @property
    def output_size(self) -> int:
        """Features of the outputs."""
        return self.cell.output_size

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        resets: Tensor | None = None,
        all_states: bool = False,
    ) -> tuple[Any, Any]:
        """Unfolds the cell over a batch of sequences.

        Args:
            x: (time, batch, input_size); (batch, time, input_size) with `batch_first`; (time, input_size) for one
                sequence. time and batch may be 0.
            state: the states that sequences enter with, fields (batch, size), or (size,) for one sequence; a `State`, a
                tuple, or a dict by field. Default: the initial state.
            lengths: (batch,) integers, steps of each sequence, 0 allowed. Steps beyond are neither read nor computed,
                and their outputs are 0.
            resets: booleans like x without its features: a new sequence begins at this step, and nothing crosses from
                the step before it; it enters with the initial state, whatever `state` is.
            all_states: return the states of all steps, all fields, in place of the outputs.

        Returns:
            outputs: (time, batch, output_size), or laid out as x is; with `all_states` a `State` of such tensors.
            last: `State` with fields (batch, size): each sequence's state after its own last step (its first, with
                `reverse`); the state it entered with where it has no steps.
        """
        if torch.compiler.is_compiling() and torch.is_grad_enabled() and not isinstance(self.adjoint, PLAIN):
            if not torch.compiler.is_dynamo_compiling():
                raise ArgumentError(
                    f"adjoint={str(self.adjoint)!r} is no node of a graph: export under torch.no_grad()."
                )
            eager = torch._dynamo.disable(self.forward)  # such an adjoint is no node of a graph: it runs between two
            return eager(x, state, lengths=lengths, resets=resets, all_states=all_states)
        given = x
        x, layout = door.settle_input(self.cell, x, self.batch_first)
        captured = self._captured(x) if torch.compiler.is_compiling() else None
        if captured is not None and captured.program:
            return self._as_node(captured, x, layout, state, lengths, resets, all_states)
        if captured is not None and torch.compiler.is_dynamo_compiling():
            torch._dynamo.graph_break(msg=captured.reason)
            eager = torch._dynamo.disable(self.forward)  # it runs between two graphs
            return eager(given, state, lengths=lengths, resets=resets, all_states=all_states)
        schedule = door.chain_schedule(layout, lengths, resets, self.reverse)
        blank = self._blank(x)
        entry = door.settle_state(self.cell, state, blank, x, layout.batch, layout.batched)
        result = self._run(x.reshape(-1, x.shape[-1]), entry, blank, schedule, all_states)
        fields = []
        for rows in result.rows:
            field = from_rows(rows, schedule, layout.time * layout.batch)
            fields.append(self._laid_out(field.view(layout.time, layout.batch, field.shape[-1]), layout))
        last = result.last if layout.batched else self.cell.State(*(field.squeeze(0) for field in result.last))
        return (self.cell.State(*fields) if all_states else fields[0]), last

    def stepper(self, rows: int = 1) -> Stepper:
        """A fast step for streams: one input after the other, in inference.

        Args:
            rows: how many sequences go side by side.

        Returns:
            a function of (x, state) to (output, state), for the weights and the mode (train or eval) of this moment.
            With two or more of torch's threads it owns one, which spins for 50 microseconds after each step.

        Raises:
            ArgumentError: a cell that the compiled executor cannot run, with its reason.

        Example:
            >>> import torch, ritornello as rit
            >>> step = rit.Unfold(rit.GRU(3, 4)).stepper()
            >>> output, state = step(torch.randn(1, 3))
            >>> output, state = step(torch.randn(1, 3), state)
            >>> output.shape
            torch.Size([1, 4])
        """
        if not isinstance(rows, int) or rows < 1:
            raise ArgumentError(f"rows must be a positive integer, not {rows!r}.")
        door.check_chain(self.cell)
        like = next(self.cell.parameters(), torch.zeros(()))
        blank = self._blank(like)
        executor = EXECUTORS["cpu"]
        assert isinstance(executor, CpuExecutor)
        plan = executor.plan_or_reason(self.cell, self.input_size, tuple(self.cell.state_sizes), like)
        if isinstance(plan, str):
            raise ArgumentError(f"No stepper: {plan}.")
        if like.dtype != inside(TYPES[like.dtype]):
            raise ArgumentError(
                f"No stepper in {str(like.dtype)[6:]}: its states are kept in float32; convert the model first."
            )
        settle = partial(door.settle_state, self.cell, blank=blank, x=like, entries=rows)
        return Stepper(plan, self.cell, settle, like, rows)

    def _captured(self, x: Tensor) -> Captured | None:
        """What a graph that is being captured holds of the cell, if the unfolding is for the compiled executor."""
        if self.executor not in ("auto", "cpu") or unfit(x) is not None:
            return None
        captured = capture(self._number, self.training)
        for path, value in captured.settings:
            if differs(lookup(self.cell, path), value):  # never; but now torch.compile watches for it
                return None
        for path in captured.others:
            if lookup(self.cell, path) is None:  # neither
                return None
        return captured

    def _as_node(
        self,
        captured: Captured,
        x: Tensor,
        layout: door.Layout,
        state: Any,
        lengths: Any,
        resets: Any,
        all_states: bool,
    ) -> tuple[Any, Any]:
        """The unfolding as one op. Lengths and resets are checked when the graph runs."""
        blank = self._blank(x)
        entry = door.settle_state(self.cell, state, blank, x, layout.batch, layout.batched)
        values = captured_values(captured, lambda path: lookup(self.cell, path), x.dtype)
        lengths = None if lengths is None else torch.as_tensor(lengths, device="cpu")
        if resets is not None:
            resets = resets.unsqueeze(1) if not layout.batched else resets.T if layout.batch_first else resets
        keeps = torch.is_grad_enabled() and isinstance(self.adjoint, Full)
        way = (captured.program, self.reverse, machine_type(x), keeps)
        chains = (lengths, resets, new_seed(captured), *way)
        found = unfold_op(x, list(entry), list(blank), values, *chains)
        steps = [self._laid_out(field, layout) for field in found[: captured.fields]]
        last = [field if layout.batched else field.squeeze(0) for field in found[captured.fields : 2 * captured.fields]]
        return (self.cell.State(*steps) if all_states else steps[0]), self.cell.State(*last)

    def _laid_out(self, field: Tensor, layout: door.Layout) -> Tensor:
        return field.squeeze(1) if not layout.batched else field.transpose(0, 1) if self.batch_first else field

    def over(
        self,
        trees: AnyTrees,
        x: Tensor,
        state: Any = None,
        *,
        inputs: str = "nodes",
        all_states: bool = False,
    ) -> tuple[Any, Any]:
        """Unfolds the cell over trees, from the leaves to the roots, or over acyclic graphs.

        Args:
            trees: a `Forest`, `Graphs`, or for each tree the parent of every node, -1 for the root.
            x: (nodes of all trees, input_size), tree after tree; or, as `inputs` says, of some nodes alone.
            state: what leaves read, fields (trees, size). Default: the initial state, which is also what a cell reads
                of a child that is missing.
            inputs: which nodes have an x: all "nodes" (default), the "leaves" (nodes without children) or the "inner"
                ones, in their order. For the others x is zero, which costs no product.
            all_states: return all fields of every node's state in place of the outputs.

        Returns:
            outputs: (nodes of all trees, output_size); with `all_states` a `State` of such tensors.
            roots: `State` with fields (trees, size).

        Raises:
            ArgumentError: trees that are none, sizes that do not fit, or more children than the cell has slots.
            CellError: a cell written for chains.

        Example:
            >>> import torch, ritornello as rit
            >>> outputs, root = rit.Unfold(rit.LSTM(3, 4)).over([[2, 2, -1]], torch.randn(3, 3))
            >>> bool((outputs[2] == root.h[0]).all())
            True
        """
        if torch.compiler.is_dynamo_compiling():
            eager = torch._dynamo.disable(self.over)  # a graph cannot hold addresses: it runs between two
            return eager(trees, x, state, inputs=inputs, all_states=all_states)
        if self.reverse:
            raise ArgumentError(
                "Unfold(reverse=True) walks chains backwards; trees are walked from leaves to roots only."
            )
        check_trees(self.adjoint, self.cell)
        schedule = forest(trees, self.cell.slots, inputs)
        given = schedule.inputs
        count = schedule.rows if given is None else given.stop - given.start
        x = door.settle_nodes(self.cell, x, count, inputs)
        blank = self._blank(x)
        entry = door.settle_state(self.cell, state, blank, x, schedule.entries)
        fresh = state is None and self.initial is None
        result = self._run(x, entry, blank, schedule, all_states, fresh)
        fields = [from_rows(rows, schedule, schedule.rows) for rows in result.rows]
        return (self.cell.State(*fields) if all_states else fields[0]), result.last

    def _run(
        self, x: Tensor, entry: Any, blank: Any, schedule: Schedule, all_states: bool, fresh: bool = False
    ) -> Result:
        if schedule.entry is not None:
            where = schedule.entry.to(x.device)
            entry = self.cell.State(*(field[where] for field in entry))
        rows = to_rows(x, schedule)
        request = Request(self.cell, rows, entry, blank, schedule, all_states, fresh=fresh)
        return self.adjoint.unfold(request, lambda request: choose(self.executor, request).run(request))

    def _blank(self, x: Tensor) -> Any:
        """The initial state, one row."""
        if self.initial is None:
            return self.cell.zero_state(1, x)
        learnt = iter(self.initial)
        fields = zip(self.cell.State._fields, self.cell.state_sizes, strict=True)
        private = self.cell.private
        return self.cell.State(*(x.new_zeros(1, n) if f in private else next(learnt).to(x.dtype) for f, n in fields))

    def extra_repr(self) -> str:
        flags = [f"{name}=True" for name in ("reverse", "batch_first") if getattr(self, name)]
        flags += ["learn_initial=True"] if self.initial is not None else []
        return ", ".join(flags if self.adjoint == Full() else [*flags, f"adjoint={str(self.adjoint)!r}"])


def _first(cell: Cell) -> list[Tensor]:
    """Zeros, of the fields of the initial state that may be learnt."""
    return [
        torch.zeros(1, n) for f, n in zip(cell.State._fields, cell.state_sizes, strict=True) if f not in cell.private
    ]
