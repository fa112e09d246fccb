"""The benchmark as a person reads it: tables, and a progress bar on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ritornello.bench.contenders import CELL, DENSE, LOOP, NN, OURS, PADDED, PLAIN, SCAN
from ritornello.bench.first_call import PHASES
from ritornello.bench.goals import Goal
from ritornello.bench.sections import Row

WIDE = 180  # of text that is piped


class Report:
    """Prints tables as they are found. Use it as a context.

    Args:
        console: where the tables go; standard output by default. The bar goes to standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console()
        self.console = console if console.is_terminal else Console(file=console.file, width=WIDE, color_system=None)
        errors = Console(stderr=True)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            console=errors,
            transient=True,
            auto_refresh=False,  # a thread that draws would take its share of the processor
            disable=not errors.is_terminal,
        )
        self._task = self._bar.add_task("", total=1.0)

    def __enter__(self) -> Report:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def doing(self, what: str, fraction: float) -> None:
        self._bar.update(self._task, description=what, completed=min(fraction, 1.0), refresh=True)

    def header(self, facts: dict[str, Any]) -> None:
        ceiling, hand_over = facts["ceiling"], facts["hand_over_us"]
        commit = f" ({facts['commit']})" if facts["commit"] else ""
        others = ", ".join(f"{name} {rate:.0f}" for name, rate in ceiling["others"].items())
        lines = {
            "device": f"{facts['device']}, {facts['threads']} in use; {facts['instruction_set'] or 'no extension'}",
            "versions": f"ritornello {facts['ritornello']}{commit}, torch {facts['torch']}, "
            f"JAX {facts['jax'] or 'left out'}, Python {facts['python']}",
            "ceiling": f"{ceiling['gflops']:.1f} GFLOP/s, {ceiling['call']} (best of each way: {others})",
            "hand-over": "one thread"
            if hand_over is None
            else f"{hand_over:.1f} µs, an empty parallel region of torch",
            "measured": f"{facts['dtype']}, seed {facts['seed']}, {facts['seconds']:g} s a case; "
            "ms is the least of all calls; ceiling, our rate as a share of the fastest product's beside us; "
            "×, how many times as long as we the one to its left takes; per token, our ragged cost over our dense one",
        }
        table = _table(show_header=False)
        for name, text in lines.items():
            table.add_row(name, text)
        self._print(table)

    def rows(self, rows: list[Row]) -> None:
        if not rows:
            return
        time, batch, hidden = rows[0].shape
        ragged = rows[0].section == "ragged"
        length = f"T {time // 10} to {time}" if ragged else f"T {time}"
        title = f"{length}, B {batch}, H {hidden}" + (f", {rows[0].tokens:,} tokens" if ragged else "")
        table = _table(title)
        table.add_column("cell", min_width=14)
        table.add_column("pass", min_width=16)
        others = {"ragged": [NN, PADDED, LOOP, SCAN], "long": [PLAIN, LOOP, SCAN]}.get(
            rows[0].section, [NN, LOOP, SCAN]
        )
        titles = {NN: "packed nn" if ragged else NN, PADDED: "padded nn"}
        for head in ("ms", "median", "GFLOP/s", "ceiling"):
            table.add_column(head, justify="right", min_width=8)
        for name in others:
            table.add_column(titles.get(name, name), justify="right", min_width=9)
            table.add_column("×", justify="right", min_width=5)
        table.add_column("per token" if ragged else "", justify="right")
        table.add_column("compile s", justify="right")
        for row in rows:
            mine = row.times[OURS]
            words = [f"{mine['best_ms']:.3f}", f"{mine['median_ms']:.3f}", f"{mine['gflops']:.1f}", f"{row.share:.0%}"]
            for name in others:
                ratio = row.ratio(name)
                words += ["", ""] if ratio is None else [f"{row.times[name]['best_ms']:.3f}", f"{ratio:.2f}"]
            words.append("" if row.per_token is None else f"{row.per_token:.3f}")
            words.append("" if row.compile_s is None else f"{row.compile_s:.2f}")
            table.add_row(row.cell, row.what, *words)
        self._print(table)
        told = (OURS, DENSE, LOOP)
        self._notes(f"{row.cell}: {row.notes[name]}" for row in rows for name in told if name in row.notes)

    def first_call(self, found: list[dict[str, Any]]) -> None:
        table = _table("First call, ms")
        table.add_column("cell")
        for head in ("first", "second", *PHASES, "rest", "(imports)"):
            table.add_column(head, justify="right", min_width=8)
        for each in found:
            phases = [each["phases"][name] for name in (*PHASES, "rest")]
            numbers = [each["first_ms"], each["second_ms"], *phases, each["import_ms"]]
            table.add_row(each["cell"], *(f"{number:.2f}" for number in numbers))
        self._print(table)

    def bfloat16(self, found: list[dict[str, Any]]) -> None:
        table = _table("bfloat16")
        table.add_column("cell")
        for head in ("T, B, H", "float32 ms", "bfloat16 ms", "×"):
            table.add_column(head, justify="right", min_width=8)
        for each in found:
            numbers = [f"{each[name]:.3f}" for name in ("float32_ms", "bfloat16_ms")]
            table.add_row(each["cell"], ", ".join(map(str, each["shape"])), *numbers, f"{each['ratio']:.2f}")
        self._print(table)

    def streaming(self, found: list[dict[str, Any]]) -> None:
        table = _table(f"One row, step by step, H {found[0]['units']}, µs a step")
        table.add_column("cell")
        table.add_column(OURS, justify="right", min_width=9)
        for name in (NN, CELL):
            table.add_column(name, justify="right", min_width=9)
            table.add_column("×", justify="right", min_width=5)
        for each in found:
            times = {name: f"{us:.2f}" for name, us in each["us"].items()}
            ratios = {name: f"{us / each['us'][OURS]:.2f}" for name, us in each["us"].items() if OURS in times}
            words = [word for name in (NN, CELL) for word in (times.get(name, ""), ratios.get(name, ""))]
            table.add_row(each["cell"], times.get(OURS, ""), *words)
        self._print(table)
        self._notes(f"{each['cell']}: {each['notes'][OURS]}" for each in found if OURS in each["notes"])

    def replaced(self, found: dict[str, Any]) -> None:
        """A model before and after its modules were replaced; rows come one by one."""
        words = (f"{found['ms'][NN]:9.2f}", f"{found['ms'][OURS]:9.2f}", f"{found['ratio']:6.2f}")
        line = f"{found['case']:40} {found['what']:17} {' '.join(words)}   {found['difference']:.0e}"
        self.console.print(line, highlight=False, soft_wrap=True)

    def replaced_header(self) -> None:
        """Above the rows of `replaced`."""
        head = f"{'':40} {'pass':17} {NN + ' ms':>9} {'ours ms':>9} {'×':>6}   difference"
        self.console.print(head, highlight=False, soft_wrap=True)

    def goals(self, goals: list[Goal]) -> None:
        table = _table("Goals")
        for head in ("", "goal", "measured, the worst case"):
            table.add_column(head)
        for goal in goals:
            table.add_row({True: "holds", False: "FAILS", None: "-"}[goal.holds], goal.name, goal.found)
        self._print(table)

    def drift(self, least: float, most: float) -> None:
        self.console.print(f"The ceiling lay between {least:.1f} and {most:.1f} GFLOP/s.", highlight=False)
        if least < 0.9 * most:
            self.console.print("That is no quiet machine: measure again before you believe any of it.", highlight=False)

    def _notes(self, notes: Iterable[str]) -> None:
        for note in sorted(set(notes)):
            self.console.print(f"  {note}", highlight=False, soft_wrap=True)

    def _print(self, table: Table) -> None:
        self.console.print(table, highlight=False)
        self.console.print()


def _table(title: str | None = None, show_header: bool = True) -> Table:
    return Table(
        title=title, show_header=show_header, box=None, pad_edge=False, title_justify="left", title_style="bold"
    )
