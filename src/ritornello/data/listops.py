"""ListOps: nested lists of digits, an operation each, generated; what one is worth needs its structure."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from statistics import median

from ritornello.errors import ArgumentError

OPERATIONS: dict[str, Callable[[Sequence[int]], int]] = {
    "[MAX": max,
    "[MIN": min,
    "[MED": lambda values: int(median(values)),
    "[SM": lambda values: sum(values) % 10,
}
END, PARTIAL = "]", "-"
CLASSES = tuple("0123456789")  # what --classes of `rit train tree` names; a bracket that is no whole list has none
DEEPEST = 300
NESTED = 0.12  # share of arguments that are lists, but for those that lead to the greatest depth


def listops(count: int, seed: int, *, deepest: int = 20, arguments: int = 5, longest: int = 150) -> list[str]:
    """Draws expressions such as `[MAX 2 9 [MIN 4 7 ] 0 ]`, as binary trees in brackets.

    Nangia & Bowman (2018), "ListOps: a diagnostic dataset for latent tree learning": MAX, MIN, MED (the median, rounded
    down) and SM (the sum modulo 10) of two to five arguments, digits or lists; a list grows to the right, an argument a
    bracket: `(((([MAX 2) 9) ...) ])`. There depths come as they fall, and few are great; here each is drawn uniformly
    first, and one argument at each depth above it leads down to it.

    Args:
        count: how many, no two of them alike.
        seed: of all that is drawn.
        deepest: the greatest depth of lists in lists, 1 to 300.
        arguments: the most of a list, at least 2.
        longest: tokens of the longest expression; what is longer is drawn again.

    Returns:
        The trees as lines for `read_trees`: a list's bracket is labelled by its value, others by "-".

    Raises:
        ArgumentError: a number below its least, or expressions that can hardly be drawn.

    Example:
        >>> listops(2, seed=318, deepest=2, arguments=2)
        ['(8 (- (- [SM 6) 2) ])', '(4 (- (- [SM 3) (1 (- (- [SM 0) 1) ])) ])']
        >>> value_of("[MED 3 1 [SM 9 4 ] ]")
        3
    """
    for name, value, least in (
        ("count", count, 0), ("deepest", deepest, 1), ("arguments", arguments, 2), ("longest", longest, 4)
    ):  # fmt: skip
        if not isinstance(value, int) or value < least:
            raise ArgumentError(f"listops: {name} must be an integer from {least}, not {value!r}.")
    if deepest > DEEPEST:
        raise ArgumentError(f"listops: deepest must be {DEEPEST} at most, not {deepest}.")
    generator, found = random.Random(seed), dict[str, None]()
    for _ in range(100 * count):
        if len(found) == count:
            break
        text, _, length = _drawn(generator, generator.randint(1, deepest), arguments, exact=True)
        if length <= longest:
            found[text] = None
    if len(found) < count:
        raise ArgumentError(
            f"listops: of {100 * count} expressions {len(found)} were new and had {longest} tokens at most; "
            "ask for fewer, or longer ones."
        )
    return list(found)


def _drawn(generator: random.Random, depth: int, most: int, exact: bool) -> tuple[str, int, int]:
    """An expression of at most that depth, or of just that: its brackets, its value, its tokens."""
    name, count = generator.choice(list(OPERATIONS)), generator.randint(2, most)
    spine = generator.randrange(count) if exact and depth > 1 else -1
    text, values, length = name, [], 2
    for place in range(count):
        if place == spine or (depth > 1 and generator.random() < NESTED):
            argument, value, tokens = _drawn(generator, depth - 1, most, exact=place == spine)
        else:
            value, tokens = generator.randrange(10), 1
            argument = str(value)
        text = f"({PARTIAL} {text} {argument})"
        values.append(value)
        length += tokens
    value = OPERATIONS[name](values)
    return f"({value} {text} {END})", value, length


def value_of(expression: str) -> int:
    """What an expression without brackets, tokens between spaces, is worth.

    Raises:
        ArgumentError: it is none.
    """
    stack: list[list[int]] = [[]]
    names = []
    for token in expression.split():
        if token in OPERATIONS:
            names.append(token)
            stack.append([])
        elif token == END and names and stack[-1]:
            values = stack.pop()
            stack[-1].append(OPERATIONS[names.pop()](values))
        elif token in CLASSES:
            stack[-1].append(int(token))
        else:
            raise ArgumentError(f"{expression!r} is no expression: {token!r} cannot stand there.")
    if names or len(stack[0]) != 1:
        raise ArgumentError(f"{expression!r} is no expression: a list does not end, or there is not just one value.")
    return stack[0][0]
