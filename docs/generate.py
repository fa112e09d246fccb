"""Writes the support table, as the executors tell it, between the README's marks, and the computed pictures."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import ritornello as rit
from ritornello.cells import CELLS
from ritornello.errors import CellError
from ritornello.executors import EXECUTORS, Request
from ritornello.structures import chain, forest

README = Path(__file__).parent.parent / "README.md"
PICTURES = Path(__file__).parent / "pictures"
STRUCTURES = {
    "chain": chain(3, 2),
    "reversed": chain(3, 2, reverse=True),
    "ragged": chain(3, 2, lengths=torch.tensor([3, 1])),
    "resets": chain(3, 2, resets=torch.tensor([[False, False], [True, False], [False, True]])),
    "tree": forest([[2, 2, -1]]),
}


def support_table() -> str:
    """For each structure the executors that run it, in a row for all cells that are alike."""
    lines = ["| cells | " + " | ".join(STRUCTURES) + " |", "|---" * (len(STRUCTURES) + 1) + "|"]
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, kind in sorted(CELLS.items()):
        alike.setdefault(tuple(_executors(kind(2, 4), schedule) for schedule in STRUCTURES.values()), []).append(name)
    for entries, names in alike.items():
        lines.append(f"| {', '.join(f'`{name}`' for name in names)} | {' | '.join(entries)} |")
    return "\n".join(lines)


def _executors(cell, schedule) -> str:
    x, like = torch.zeros(schedule.rows, cell.input_size), torch.zeros(())
    request = Request(cell, x, cell.zero_state(schedule.entries, like), cell.zero_state(1, like), schedule)
    return ", ".join(name for name in EXECUTORS if _runs(name, request)) or "no"


def _runs(name: str, request: Request) -> bool:
    try:
        with torch.no_grad():
            return EXECUTORS[name].supports(request) is None and bool(EXECUTORS[name].run(request))
    except CellError:
        return False  # a cell for chains, over a tree


def with_table(text: str) -> str:
    return re.sub(r"(<!-- support -->\n).*?(<!-- /support -->)", rf"\1{support_table()}\n\2", text, flags=re.S)


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
    (PICTURES / "gradients.svg").write_text(gradient_picture(), "utf-8")
