"""rit evaluate: how well trained models predict a text."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def evaluate(
    runs: Annotated[list[str], typer.Argument(help="The runs' folders; several are set side by side.")],
    text: Annotated[list[str], typer.Option(help="Files or folders of text.", show_default="none")] = [],  # noqa: B006
    part: Annotated[
        str, typer.Option(help="Without --text: a part of the run's own text, valid, test or train.")
    ] = "valid",
    window: Annotated[
        int, typer.Option(help="Score windows of this many tokens, without carried state; 0: one stream.")
    ] = 0,
    lanes: Annotated[
        int, typer.Option(help="Parts read side by side, each warmed up by 512 tokens; 1: exactly one stream.")
    ] = 64,
    most: Annotated[int, typer.Option(help="Score this many tokens at most; 0: all.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", show_default="off")] = False,
    cell: Annotated[
        str, typer.Option(help="The runs' foreign cell, named again; its code is run.", show_default="none")
    ] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, mps, ...")] = "cpu",
) -> None:
    """Score trained models on a text: nats a token, bits per character, perplexity."""
    from rich.console import Console

    from ritornello.cli.tables import score_table
    from ritornello.errors import ArgumentError
    from ritornello.tasks import load

    if part not in ("train", "valid", "test"):
        raise ArgumentError(f"--part is {part!r}; it must be train, valid or test (a file is given by --text).")
    rows = {}
    for run in runs:
        model = load(run, cell=cell or None, device=device)
        rows[run] = model.evaluate(text or part, window=window, lanes=lanes, most=most)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        Console().print(score_table(rows))
