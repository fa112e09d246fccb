"""The compiled engine of the cpu executor."""

def instruction_sets() -> list[str]:
    """The instruction sets that this processor can run, best last."""

def instruction_set() -> str:
    """
    The one in use: the best, or the one that the environment variable RITORNELLO_ISA names.
    """
