"""A program's meaning, in torch: what every pass and every executor is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ritornello.program.aten import read
from ritornello.program.ops import OPS
from ritornello.program.program import PARAMETER, Node, Program, Value, live


def parameters(
    nodes: Sequence[Node], values: Iterable[Value], find: Callable[[str], Tensor], dtype: torch.dtype = torch.float64
) -> dict[Value, Tensor]:
    """The parameter-rate values asked for, computed by torch and differentiable by it.

    Args:
        nodes: the program's.
        find: from a parameter's path to the tensor.
        dtype: of the constants among them.
    """
    found: dict[Value, Tensor] = {}
    for value in live(nodes, values):
        node = nodes[value]
        args = [found[arg] for arg in node.args]
        if node.op == "constant":
            found[value] = torch.tensor([node.attributes[0]], dtype=dtype)
        elif node.op == "parameter":
            found[value] = find(node.attributes[0])
        else:
            assert node.rate <= PARAMETER, node
            found[value] = _parameter_op(node, args)
    return found


def _parameter_op(node: Node, args: Sequence[Tensor]) -> Tensor:
    if node.op == "transpose":
        return args[0].t()
    if node.op == "window":
        row, column = node.attributes
        return args[0][row : row + node.shape[0], column : column + node.shape[1]]
    if node.op != "call":
        return OPS[node.op].meaning(*args, *node.attributes)
    name, positional, named, index = node.attributes
    base, _, overload = name.partition(".")
    function = getattr(getattr(torch.ops.aten, base), overload)
    out = function(*(read(arg, args) for arg in positional), **{key: read(arg, args) for key, arg in named})
    return out if index < 0 else out[index]


def interpret(
    program: Program,
    x: Tensor,
    states: Sequence[Sequence[Tensor]],
    find: Callable[[str], Tensor],
    uniform: Callable[[int, int], Tensor] | None = None,
    given: Mapping[Value, Tensor] | None = None,
) -> dict[Value, Tensor]:
    """Every value that the results need.

    Args:
        program: what to run.
        x: (rows, inputs).
        states: for each predecessor the fields (rows, size).
        find: from a parameter's path to the tensor.
        uniform: (stream, size) to the random numbers (rows, size) of a step.
        given: values that are known already.
    """
    found: dict[Value, Tensor] = dict(given or {})
    for value in live(program.nodes, program.results, found):
        node = program.nodes[value]
        if value in found:
            continue
        if node.op == "x":
            found[value] = x
        elif node.op == "state":
            field, slot = node.attributes
            found[value] = states[slot][field]
        elif node.op == "uniform":
            assert uniform is not None, "the program draws random numbers"
            found[value] = uniform(node.attributes[0], node.size)
        elif node.rate <= PARAMETER:
            found[value] = parameters(program.nodes, [value], find, x.dtype)[value].to(x)
        else:
            args = [found[arg] for arg in node.args]
            if node.op == "cat":
                args = [arg.expand(len(x), -1) for arg in args]
            found[value] = OPS[node.op].meaning(*args, *node.attributes)
    return found
