"""rit evaluate: how well trained models predict a text, or label trees."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer


def evaluate(
    context: typer.Context,
    runs: Annotated[list[str], typer.Argument(help="The runs' folders; several are set side by side.")],
    text: Annotated[
        list[str], typer.Option(help="Files or folders of text, or of labelled trees.", show_default="none")
    ] = [],  # noqa: B006
    part: Annotated[
        str, typer.Option(help="Without --text: a part of the run's own text or trees: valid, test or train.")
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
    """Score trained models: nats a token, bits per character and perplexity of texts; labels and brackets of trees."""
    from rich.console import Console

    from ritornello.cli.options import given
    from ritornello.cli.tables import score_table
    from ritornello.errors import ArgumentError
    from ritornello.tasks import load

    if part not in ("train", "valid", "test"):
        raise ArgumentError(f"--part is {part!r}; it must be train, valid or test (a file is given by --text).")
    how = given(context, {"window": window, "lanes": lanes, "most": most})
    rows: dict[str, dict[str, float]] = {}
    tables: dict[str, tuple[Any, list[str]]] = {}  # for each task, for they score by other numbers
    for run in runs:
        model: Any = load(run, cell=cell or None, device=device)
        for option in how:
            if option not in model.scoring:
                raise ArgumentError(f"--{option} is for texts; {run} holds a run of another task.")
        rows[run] = model.evaluate(text or part, **how)
        tables.setdefault(model.run.config["task"], (model.columns, []))[1].append(run)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        for columns, names in tables.values():
            Console().print(score_table({name: rows[name] for name in names}, columns))
