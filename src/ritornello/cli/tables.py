"""Tables of scores."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table


def score_table(rows: Mapping[str, Mapping[str, float]]) -> Table:
    """A row for each scored text: nats a token, bits per character, perplexity, tokens."""
    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    for title in ("nats/token", "bits/character", "perplexity", "tokens"):
        table.add_column(title, justify="right")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['loss']:.4f}",
            f"{row['bits_per_character']:.4f}",
            f"{row['perplexity']:.3f}",
            f"{int(row['tokens']):,}",
        )
    return table
