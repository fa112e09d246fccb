"""Tables of scores."""

from __future__ import annotations

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table


def score_table(rows: Mapping[str, Mapping[str, float]], columns: Mapping[str, tuple[str, str]]) -> Table:
    """A row for each scored run or part.

    Args:
        rows: scores by name.
        columns: of a score its heading and format; what no row has is left out.
    """
    shown = {name: column for name, column in columns.items() if any(name in row for row in rows.values())}
    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    for heading, _ in shown.values():
        table.add_column(heading, justify="right", overflow="fold")
    for title, row in rows.items():
        table.add_row(
            escape(title), *(format(row[name], kind) if name in row else "" for name, (_, kind) in shown.items())
        )
    return table
