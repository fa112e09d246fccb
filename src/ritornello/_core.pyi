"""The compiled engine of the cpu executor."""

from collections.abc import Sequence

def instruction_sets() -> list[str]:
    """The instruction sets that this processor can run, best last."""

def instruction_set() -> str:
    """
    The one in use: the best, or the one that the environment variable RITORNELLO_ISA names.
    """

MOST_FIELDS: int = 16

MOST_SLOTS: int = 16

MOST_SPACES: int = 128

MOST_TERMS: int = 64

def op_names() -> list[str]:
    """The machine's instructions, in the order of their numbers."""

class Memory:
    """Working memory, used again when it is dropped."""

    def __init__(self, bytes: int) -> None: ...
    @property
    def address(self) -> int: ...

class Levels:
    """The levels of chains."""

    def __init__(self, entries: int, starts: Sequence[int], source: Sequence[int], last: Sequence[int]) -> None: ...

class Forest:
    """A forest's levels, of rows of several kinds."""

    def __init__(
        self,
        entries: int,
        levels: Sequence[int],
        source: int,
        sources: int,
        last: int,
        owner: int,
        rows: int,
        slots: Sequence[int],
    ) -> None: ...
    def forward(
        self,
        arg0: Sequence[Code],
        arg1: str,
        arg2: int,
        arg3: int,
        arg4: int,
        arg5: Sequence[int],
        arg6: Sequence[int],
        arg7: Sequence[int],
        arg8: Sequence[int],
        arg9: Sequence[int],
        arg10: Sequence[Sequence[int]],
        arg11: Sequence[Sequence[int]],
        /,
    ) -> None: ...
    def backward(
        self,
        arg0: Sequence[Code],
        arg1: str,
        arg2: int,
        arg3: int,
        arg4: int,
        arg5: Sequence[int],
        arg6: Sequence[int],
        arg7: Sequence[int],
        arg8: Sequence[int],
        arg9: Sequence[Sequence[int]],
        arg10: Sequence[Sequence[int]],
        arg11: Sequence[int],
        arg12: Sequence[int],
        arg13: int,
        arg14: Sequence[int],
        arg15: Sequence[int],
        arg16: Sequence[Sequence[int]],
        arg17: Sequence[Sequence[int]],
        /,
    ) -> None: ...

class Code:
    """A lowered program."""

    def __init__(self, ints: Sequence[int], constants: Sequence[float]) -> None: ...
    @property
    def frame_stride(self) -> int: ...
    def forward(
        self,
        arg0: Levels,
        arg1: Sequence[Levels],
        arg2: Sequence[int],
        arg3: str,
        arg4: int,
        arg5: int,
        arg6: int,
        arg7: Sequence[int],
        arg8: Sequence[int],
        arg9: Sequence[int],
        arg10: Sequence[int],
        arg11: int,
        arg12: Sequence[int],
        arg13: Sequence[int],
        /,
    ) -> None: ...
    def backward(
        self,
        arg0: Levels,
        arg1: Sequence[Levels],
        arg2: Sequence[int],
        arg3: str,
        arg4: int,
        arg5: int,
        arg6: int,
        arg7: Sequence[int],
        arg8: Sequence[int],
        arg9: Sequence[int],
        arg10: int,
        arg11: Sequence[int],
        arg12: Sequence[int],
        arg13: Sequence[int],
        arg14: Sequence[int],
        arg15: int,
        arg16: Sequence[int],
        arg17: Sequence[int],
        arg18: Sequence[int],
        arg19: Sequence[int],
        /,
    ) -> None: ...

class Stepper:
    """One step after the other, with the weights packed once."""

    def __init__(
        self,
        code: Code,
        type: str,
        rows: int,
        threads: int,
        seed: int,
        parameters: Sequence[int],
        strides: Sequence[int],
        first: Sequence[int],
        second: Sequence[int],
    ) -> None: ...
    def step(self, arg0: int, arg1: int, /) -> None: ...
