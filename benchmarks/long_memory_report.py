"""What long_memory.py's runs say: a table and a picture. A row is told by itself: its baseline and marks are in it."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from ritornello.errors import RunError

Row = dict[str, Any]
Panel = tuple[str, int]  # a task and a length
COLOURS = ["#000000", "#8c8c8c", "#e69f00", "#56b4e9", "#0072b2", "#f4a3b5", "#b2182b"]


def contender(row: Row) -> str:
    return f"{row['cell']}+{row['init']}" if row["init"] else row["cell"]


def grouped(rows: list[Row]) -> tuple[dict[Panel, Row], list[str], dict[tuple[Panel, str], list[Row]]]:
    """Tasks with their lengths, a row of each; contenders as they come; and the rows of each panel and contender."""
    found: dict[tuple[Panel, str], list[Row]] = {}
    for row in rows:
        found.setdefault(((row["task"], row["time"]), contender(row)), []).append(row)
    panels = {panel: found[panel, name][0] for panel, name in sorted(found)}
    return panels, list(dict.fromkeys(map(contender, rows))), found


def steps_to(rows: list[Row], mark: int) -> list[int]:
    """Of the runs whose score fell below that mark, after how many steps it was first seen to."""
    first = (next((step for step, score in row["curve"] if score < row["marks"][mark]), None) for row in rows)
    return [step for step in first if step is not None]


def mean(steps: list[int]) -> str:
    """The mean, and over several the standard deviation.

    >>> mean([1400, 1600]), mean([])
    ('1,500 ± 141', '–')
    """
    spread = f" ± {statistics.stdev(steps):,.0f}" if len(steps) > 1 else ""
    return f"{statistics.mean(steps):,.0f}{spread}" if steps else "–"


def entry(rows: list[Row]) -> str:
    """A contender's runs at one task: steps until learnt (to the first mark), and how those that failed ended: the best
    of their last ten scores, because a single score may fall on a spike."""
    early, learnt = steps_to(rows, 0), steps_to(rows, 1)
    steps = f"**{mean(learnt)}** ({mean(early)})"
    if len(learnt) == len(rows):
        return steps
    failed = [row for row in rows if row["end"] != "learnt"]
    score = statistics.mean(min(score for _, score in row["curve"][-10:]) for row in failed)
    away = not score < 10 * rows[0]["baseline"]
    ended = f"{'ran away' if away else f'{score:.2g}'} after {max(row['steps'] for row in failed):,}"
    if learnt:
        return f"{len(learnt)} of {len(rows)}: {steps}, else {ended}"
    return f"{ended} ({mean(early)})" if early else ended


def table(rows: list[Row]) -> str:
    """Markdown: a row a contender, a column a task and length."""
    panels, contenders, found = grouped(rows)
    lines = ["| | " + " | ".join(f"{task}, T = {length}" for task, length in panels) + " |"]
    lines.append("|---" * (len(panels) + 1) + "|")
    for name in contenders:
        entries = (entry(found[panel, name]) if (panel, name) in found else "" for panel in panels)
        lines.append(f"| `{name}` | " + " | ".join(entries) + " |")
    lines.append("| without memory | " + " | ".join(f"{row['baseline']:.2g}" for row in panels.values()) + " |")
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Learning curves: a panel a task and length, a colour a contender, a line a seed.

    Raises:
        RunError: matplotlib is not installed, or does not know the file's kind.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RunError("--plot needs matplotlib: pip install matplotlib.") from None
    panels, contenders, found = grouped(rows)
    colours = dict(zip(contenders, COLOURS * len(contenders), strict=False))
    across, down = min(len(panels), 2), -(-len(panels) // 2)
    figure = Figure(figsize=(5.2 * across, 3.2 * down + 0.6), layout="constrained")
    for number, ((task, length), one) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(down, across, number)
        for name in contenders:
            for row in found.get(((task, length), name), []):
                ends = [len(row["curve"]) - 1] if row["end"] == "learnt" else []
                (line,) = axes.plot(*zip(*row["curve"], strict=True), color=colours[name], linewidth=1.4)
                line.set(marker="o", markersize=5, markevery=ends)
        for level, says, where in ((one["baseline"], "without memory", 0.98), (one["marks"][1], "learnt", 0.1)):
            axes.axhline(level, color="0.5", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            axes.annotate(says, (where, level), (0, 5), ("axes fraction", "data"), "offset points", color="0.4",
                          fontsize=8, horizontalalignment="right")  # fmt: skip
        axes.set(title=f"{task}, T = {length}", yscale="log", xlabel="steps", xmargin=0.02)
        axes.set_ylim(one["marks"][1] / 3, 3 * one["baseline"])  # it begins far above, and how far says nothing
        axes.set_ylabel("mean squared error" if task == "adding" else "cross-entropy")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.spines[["top", "right"]].set_visible(False)
    for name in contenders:
        figure.axes[0].plot([], [], color=colours[name], linewidth=2.5, label=name)
    figure.legend(loc="outside lower center", ncols=min(len(contenders), 7), frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise RunError(f"Cannot draw {path}: {error}.") from None
