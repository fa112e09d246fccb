"""rit predict: labels for trees, trees for sentences."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def predict(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    text: Annotated[
        list[str],
        typer.Argument(help="Trees in brackets, '(not (very good))', or sentences; none: from standard input."),
    ] = [],  # noqa: B006
    trees: Annotated[list[str], typer.Option(help="Files or folders of trees.", show_default="none")] = [],  # noqa: B006
    picture: Annotated[
        str, typer.Option(help="Draw the trees, as png, svg or pdf; several get numbers.", show_default="none")
    ] = "",
    cell: Annotated[
        str, typer.Option(help="The run's foreign cell, named again; its code is run.", show_default="none")
    ] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, mps, ...")] = "cpu",
) -> None:
    """Label the nodes of trees, or put sentences into brackets: a tree a line, and as pictures."""
    from ritornello.data.brackets import format_trees
    from ritornello.data.text import chunks, find
    from ritornello.errors import ArgumentError
    from ritornello.pictures import check_picture
    from ritornello.tasks import load

    model = load(run, cell=cell or None, device=device)
    if not hasattr(model, "answer"):
        raise ArgumentError(f"{run} holds no model of trees; its task is {model.run.config['task']!r}.")
    if text and trees:
        raise ArgumentError("Give trees as text or as files (--trees), not both.")
    if picture:
        check_picture(picture)
    texts = ["".join(chunks(path)) for path in find(trees)] if trees else text or [sys.stdin.read()]
    number = 0
    for each in texts:
        found, shares = model.answer(each)
        for line in format_trees(found):
            print(line)
        if picture:
            number = _draw(found, shares, Path(picture), number, several=len(texts) > 1 or len(found) > 1)


def _draw(found: Any, shares: Any, path: Path, number: int, several: bool) -> int:
    """Draws trees into files that are numbered where there are several; how many there are now."""
    from ritornello.pictures import draw_tree, save

    for which in range(len(found)):
        number += 1
        to = path.with_name(f"{path.stem}-{number}{path.suffix}") if several else path
        save(draw_tree(found, which, shares=shares), to)
    return number
