"""A cell, traced and lowered for the compiled machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.overrides import _pop_mode_temporarily
from torch.utils._python_dispatch import _disable_current_modes

from ritornello.errors import CellError
from ritornello.program import (
    MOST_FIELDS,
    Joint,
    Node,
    Program,
    Untraceable,
    Value,
    Wants,
    blank,
    damp,
    derive,
    encode,
    lookup,
    lower,
    parameters,
    prune,
    simplify,
    trace,
    unroll,
)


class Kind(NamedTuple):
    """What rows of a structure have: each kind has code of its own.

    Attributes:
        slots: how many predecessors they read: none, where they are leaves.
        input: whether they have an x.
    """

    slots: int
    input: bool = True


class Plan:
    """All that is made of a cell's program.

    Attributes:
        program: simplified, for one predecessor, or for as many as the cell tells apart.
        traced: as it was before, with `total` where predecessors are summed; None where that is not known.
        sizes: of the state's fields.
        reads: the parameters', buffers' and other tensors' paths in the cell.
        random: whether it draws at random.
    """

    def __init__(self, program: Program, traced: Program | None = None) -> None:
        self.program, self.traced = program, traced
        self.sizes = program.fields
        self._kinds: dict[Kind, Plan | CellError] = {}
        self.reads = tuple(node.attributes[0] for node in program.nodes if node.op == "parameter")
        self.random = any(node.op == "uniform" for node in program.nodes)
        self._compiled: dict[Wants, Compiled] = {}

    def seed(self) -> int:
        """A new seed from torch's generator, if the program draws at random."""
        return int(torch.randint(2**62, ())) if self.random else 0

    @cached_property
    def joint(self) -> Joint:
        """The program with its adjoint."""
        return derive(self.program)

    @cached_property
    def damped(self) -> Plan:
        """For an x with a last column more, by which what goes back to a row's predecessor is multiplied."""
        return Plan(damp(self.program))

    def of_kind(self, kind: Kind) -> Plan:
        """For rows of a kind; states that leaves do not read are zero.

        Raises:
            CellError: a cell for chains.
        """
        if kind not in self._kinds:
            try:
                self._kinds[kind] = Plan(self._program_of(kind))
            except CellError as error:
                self._kinds[kind] = error
        found = self._kinds[kind]
        if isinstance(found, CellError):
            raise found
        return found

    def _program_of(self, kind: Kind) -> Program:
        assert self.traced is not None, "known by its program alone"
        if self.traced.slots > 1:
            program = self.program
        else:
            program = simplify(unroll(self.traced, max(1, kind.slots)))
        if not kind.slots:
            program = blank(program, "state")._replace(slots=0)
        return program if kind.input else blank(program, "x")

    def compiled(self, wants: Wants) -> Compiled:
        """The code for a kind of run, made when it is first asked for."""
        if wants not in self._compiled:
            self._compiled[wants] = Compiled(self.joint, wants)
        return self._compiled[wants]


class Compiled:
    """Code for one kind of run.

    Attributes:
        wants: what is asked of it.
        code: as lowered.
        core: the same in the machine.
    """

    def __init__(self, joint: Joint, wants: Wants) -> None:
        from ritornello import _core

        numbers = {name: number for number, name in enumerate(_core.op_names())}
        self.wants = wants
        self.code = lower(joint, wants)
        self.core = _core.Code(*encode(self.code, numbers))
        prologue = prune(self.code.program._replace(results=tuple(self.code.parameters)))
        self._nodes, self._values = prologue.nodes, prologue.results
        paths = [self._nodes[v].attributes[0] for v in self._values if self._nodes[v].op == "parameter"]
        self._paths = paths if len(paths) == len(self._values) else None

    def parameter_values(self, cell: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        """The parameter-rate values that the code reads, as they are now, differentiable."""
        if self._paths is not None:
            return [lookup(cell, path) for path in self._paths]
        return evaluate(self._nodes, self._values, lambda name: lookup(cell, name), dtype)


def evaluate(
    nodes: Sequence[Node], values: Sequence[Value], find: Callable[[str], Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Parameter-rate values of a program."""
    found = parameters(nodes, values, find, dtype)
    return [found[value].to(dtype) for value in values]


@contextmanager
def unwatched() -> Iterator[None]:
    """What looks at each call of torch, such as torch.func, torch.export or a default device, does not look here."""
    with ExitStack() as lifted:
        lifted.enter_context(temporarily_clear_interpreter_stack())
        lifted.enter_context(_disable_current_modes())
        for _ in range(torch._C._len_torch_function_stack()):
            lifted.enter_context(_pop_mode_temporarily())
        yield


@unwatched()
def make_plan(cell: nn.Module, x_size: int, sizes: Sequence[int], like: Tensor) -> Plan:
    """Traces a cell and simplifies its program.

    Raises:
        Untraceable: with the reason.
    """
    if len(sizes) > MOST_FIELDS:
        raise Untraceable(f"its state has {len(sizes)} fields; the compiled machine takes {MOST_FIELDS}")
    if 0 in sizes:
        raise Untraceable(f"field {list(sizes).index(0)} of its state has no elements")
    traced = trace(cell, x_size, sizes, like)
    program = traced if traced.slots > 1 else unroll(traced, 1)
    return Plan(simplify(program), traced)
