"""Cells as programs: recorded, simplified, differentiated, and lowered to the code of the compiled machine."""

from ritornello.program.code import MOST_FIELDS, MOST_SLOTS, Code, encode, most_predecessors
from ritornello.program.derive import Joint, derive
from ritornello.program.interpret import interpret, parameters
from ritornello.program.lower import Wants, lower
from ritornello.program.ops import damped
from ritornello.program.passes import blank, damp, simplify, unroll
from ritornello.program.program import Builder, Node, Program, Value, prune
from ritornello.program.random import philox
from ritornello.program.trace import Untraceable, changed_in_place, foreign, lookup, trace

__all__ = [
    "MOST_FIELDS",
    "MOST_SLOTS",
    "Builder",
    "Code",
    "Joint",
    "Node",
    "Program",
    "Untraceable",
    "Value",
    "Wants",
    "blank",
    "changed_in_place",
    "damp",
    "damped",
    "derive",
    "encode",
    "foreign",
    "interpret",
    "lookup",
    "lower",
    "most_predecessors",
    "parameters",
    "philox",
    "prune",
    "simplify",
    "trace",
    "unroll",
]
