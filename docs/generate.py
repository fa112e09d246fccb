"""Writes what is generated: support tables between the pages' marks, as the executors tell them; computed pictures."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

import ritornello as rit
from ritornello.cells import CELLS, TREE_CELLS
from ritornello.engine import unfold as engine
from ritornello.errors import ArgumentError, CellError
from ritornello.executors import EXECUTORS, Request, choose

README = Path(__file__).parent.parent / "README.md"
SUPPORT = Path(__file__).parent / "support.md"
PICTURES = Path(__file__).parent / "pictures"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ADJOINTS = ("full", "checkpointed", "truncated:2,2", "randomized:0.1", "forward")
WALKS = {
    "chain": {},
    "reversed": {"reverse": True},
    "ragged": {"lengths": [3, 1]},
    "resets": {"resets": torch.tensor([[False, False], [True, False], [False, True]])},
    "tree": None,
}


def support_table() -> str:
    """For each structure the executors that run it: a column for cells, and a row for structures, that are alike."""
    cells: dict[tuple[str, ...], list[str]] = {}
    for name, kind in [*sorted(CELLS.items()), *sorted(TREE_CELLS.items())]:
        cells.setdefault(tuple(_executors(kind, walk) for walk in WALKS.values()), []).append(name)
    walks: dict[tuple[str, ...], list[str]] = {}
    for structure, *entries in zip(WALKS, *cells, strict=True):
        walks.setdefault(tuple(entries), []).append(structure)
    lines = ["| | " + " | ".join(", ".join(f"`{name}`" for name in names) for names in cells.values()) + " |"]
    lines.append("|---" * (len(cells) + 1) + "|")
    lines += [f"| {', '.join(structures)} | {' | '.join(entries)} |" for entries, structures in walks.items()]
    return "\n".join(lines)


def _executors(kind: Callable[[int, int], rit.Cell], walk: dict | None) -> str:
    return ", ".join(name for name in EXECUTORS if _runs(kind, walk, name)) or "no"


def _runs(kind: Callable[[int, int], rit.Cell], walk: dict | None, executor: str) -> bool:
    try:
        unfolded(kind(2, 4), walk, executor=executor)
    except (ArgumentError, CellError):
        return False  # a cell for chains, over a tree, or one for trees, over a chain
    return True


def unfolded(cell: rit.Cell, walk: dict | None, dtype: torch.dtype = torch.float32, **how) -> torch.Tensor:
    """The states of a small walk; None is a tree."""
    options = dict(walk or {})
    unfold = rit.Unfold(cell, reverse=options.pop("reverse", False), **how)
    if walk is None:
        return unfold.over([[2, 2, -1]], torch.randn(3, 2).to(dtype))[0]
    return unfold(torch.randn(3, 2, 2).to(dtype), **options)[0]


def with_table(text: str, table: Callable[[], str] = support_table) -> str:
    return re.sub(r"(<!-- support -->\n).*?(<!-- /support -->)", rf"\1{table()}\n\2", text, flags=re.S)


Outcome = tuple[str, str]  # the executor, or "no"; and the reason why it is not the first


def outcome(cell: rit.Cell, walk: dict | None, dtype: torch.dtype, adjoint: str) -> Outcome:
    """Who runs a cell so, forward and backward."""
    found: list[Outcome] = []

    def watched(name: str, request: Request):
        chosen = choose(name, request)
        reasons = [why for each in EXECUTORS.values() if each is not chosen and (why := each.supports(request))]
        found.append((chosen.name, reasons[0] if reasons else ""))
        return chosen

    try:
        with mock.patch.object(engine, "choose", watched):
            outputs = unfolded(cell, walk, dtype, adjoint=adjoint)
        outputs.float().sum().backward()
    except CellError:
        if cell.slots is not None:
            return "no", "it tells its children apart, and a chain has none"
        return "no", "it is written for chains: it does not sum over predecessors with `ritornello.total`"
    except ArgumentError as error:
        return "no", re.sub(r"^adjoint='\S+'", "the adjoint", str(error).replace(type(cell).__name__, "it"))
    return found[-1]


def every_outcome() -> str:
    """A table for all cells that are alike: structures × adjoints; dtypes where they matter; reasons below."""
    alike: dict[tuple, list[str]] = {}
    for name, kind in (CELLS | TREE_CELLS).items():
        torch.manual_seed(0)
        cells = {dtype: kind(2, 4).to(dtype) for dtype in DTYPES}
        key = tuple(
            outcome(cell, walk, dtype, adjoint)
            for walk in WALKS.values()
            for adjoint in ADJOINTS
            for dtype, cell in cells.items()
        )
        alike.setdefault(key, []).append(name)
    parts = []
    for key, names in alike.items():
        reasons: dict[str, int] = {}
        rows = [f"| {' | '.join(['', *(a.partition(':')[0] for a in ADJOINTS)])} |", "|---" * (len(ADJOINTS) + 1) + "|"]
        for at, structure in enumerate(WALKS):
            row = key[at * len(ADJOINTS) * len(DTYPES) :]
            entries = [_entry(row[k * len(DTYPES) : (k + 1) * len(DTYPES)], reasons) for k in range(len(ADJOINTS))]
            rows.append(f"| {structure} | {' | '.join(entries)} |")
        notes = [f"{number}. {reason.rstrip('.')}." for reason, number in reasons.items()]
        parts.append("\n".join([f"{', '.join(f'`{name}`' for name in names)}:", "", *rows, "", *notes]))
    return "\n\n".join(parts)


def _entry(outcomes: tuple[Outcome, ...], reasons: dict[str, int]) -> str:
    """One entry of the table: who runs it, each with the dtypes if they differ, and the number of the reason."""
    words: dict[str, list[str]] = {}
    for dtype, (name, reason) in zip(DTYPES, outcomes, strict=True):
        mark = f" ({reasons.setdefault(reason, len(reasons) + 1)})" if reason else ""
        words.setdefault(name + mark, []).append(str(dtype)[6:])
    if len(words) == 1:
        return next(iter(words))
    return "; ".join(f"{', '.join(dtypes)}: {word}" for word, dtypes in words.items())


def distant_gradients(adjoint, steps: int = 60, sequences: int = 400) -> torch.Tensor:
    """(sequences, steps): the gradient of the last output by the input so many steps before it."""
    torch.manual_seed(0)
    cell = rit.Elman(32, 32)
    torch.nn.init.orthogonal_(cell.U.weight, gain=0.96)
    torch.nn.init.normal_(cell.W.weight, std=0.03)
    x = torch.randn(steps, 1, 32).expand(steps, sequences, 32).clone().requires_grad_()
    outputs, _ = rit.Unfold(cell, adjoint=adjoint)(x)
    return torch.autograd.grad(outputs[-1].sum(), x)[0].flip(0).transpose(0, 1)


def gradient_picture() -> str:
    """The norm of that gradient against the distance, for three adjoints."""
    full, truncated, randomized = (distant_gradients(way) for way in ("full", "truncated:20,20", "randomized:0.05"))
    curves = {
        "truncated: 20 steps": (truncated[0].norm(dim=-1), '#8fb04a" stroke-width="8'),
        "full": (full[0].norm(dim=-1), '#2f6f8f" stroke-width="2.5'),
        "randomized, one sequence": (randomized[4].norm(dim=-1), '#e0a070" stroke-width="1.5'),
        "randomized, mean of 400": (
            randomized.mean(0).norm(dim=-1),
            '#c0401a" stroke-width="2.5" stroke-dasharray="3 6',
        ),
    }
    top, right, bottom = 0.5, 60, -4.0  # decimal logarithms of norms; steps
    lines, names = [], []
    for number, (name, (norms, colour)) in enumerate(curves.items()):
        points = [(70 + 560 * d / right, y) for d, y in enumerate(norms.log10().tolist()) if y > bottom]
        path = " ".join(f"{x:.1f},{30 + 240 * (top - y) / (top - bottom):.1f}" for x, y in points)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        names.append(f'<path d="M645 {75 + 30 * number} h40" stroke="{colour}"/>')
        names.append(f'<text x="695" y="{80 + 30 * number}">{name}</text>')
    ticks = [
        f'<text x="60" y="{35 + 240 * (top - y) / (top - bottom):.0f}" text-anchor="end">{10.0**y:g}</text>'
        for y in (0, -1, -2, -3, -4)
    ] + [f'<text x="{70 + 560 * d / right:.0f}" y="292" text-anchor="middle">{d}</text>' for d in range(0, 61, 10)]
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 910 330" font-family="Helvetica, Arial, sans-serif"'
    frame = '<path d="M70 30 V270 H630" fill="none" stroke="#555"/>'
    said = '<text x="350" y="318" text-anchor="middle">norm of the gradient; steps from the input to the loss</text>'
    return "\n".join([f'{head} font-size="14" fill="#333">', '<rect width="910" height="330" fill="#fff"/>', frame,
                      *ticks, said, *lines, *names, "</svg>", ""])  # fmt: skip


if __name__ == "__main__":
    README.write_text(with_table(README.read_text("utf-8")), "utf-8")
    SUPPORT.write_text(with_table(SUPPORT.read_text("utf-8"), every_outcome), "utf-8")
    (PICTURES / "gradients.svg").write_text(gradient_picture(), "utf-8")
