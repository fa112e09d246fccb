"""rit predict: labels for trees, trees for sentences."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer


def predict(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    text: Annotated[
        list[str],
        typer.Argument(
            help="Trees in brackets, '(not (very good))', or sentences; for a parser sentences; none: standard input."
        ),
    ] = [],  # noqa: B006
    trees: Annotated[list[str], typer.Option(help="Files or folders of them.", show_default="none")] = [],  # noqa: B006
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
    from ritornello.errors import ArgumentError
    from ritornello.pictures import check_place
    from ritornello.tasks import load

    if picture:
        check_place(picture)
    model = load(run, cell=cell or None, device=device)
    if not hasattr(model, "answer"):
        raise ArgumentError(f"{run} holds no model of trees; its task is {model.run.config['task']!r}.")
    if text and trees:
        raise ArgumentError("Give trees as text or as files (--trees), not both.")
    found = [model.answer(each, source) for each, source in _texts(text, trees)]
    if picture:
        _draw(found, Path(picture))
    for labelled, _ in found:
        for line in format_trees(labelled):
            print(line)


def _texts(given: list[str], trees: list[str]) -> Iterator[tuple[str, str]]:
    """Texts, and what errors call each."""
    from tempfile import TemporaryDirectory

    from ritornello.data.text import chunks, find, spool

    if given:
        yield from ((text, "text") for text in given)
    elif trees:
        yield from (("".join(chunks(path)), str(path)) for path in find(trees))
    else:
        with TemporaryDirectory() as folder:
            source = "standard input"
            yield "".join(chunks(spool(sys.stdin.buffer, folder), name=source)), source


def _draw(found: list[Any], path: Path) -> None:
    """Draws trees into files, which are numbered where there are several."""
    from ritornello.pictures import draw_tree, save

    drawn = [(trees, shares, which) for trees, shares in found for which in range(len(trees))]
    for number, (trees, shares, which) in enumerate(drawn, 1):
        to = path.with_name(f"{path.stem}-{number}{path.suffix}") if len(drawn) > 1 else path
        save(draw_tree(trees, which, shares=shares), to)
