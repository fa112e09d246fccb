"""rit sample: text from a trained model, as it is drawn."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def sample(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    prompt: Annotated[str, typer.Option(help="What the text begins with.", show_default="none")] = "",
    length: Annotated[int, typer.Option(help="Tokens to draw; fewer where the end symbol comes.")] = 500,
    until: Annotated[str, typer.Option(help="End the text once this was drawn.", show_default="none")] = "",
    temperature: Annotated[float, typer.Option(help="Below 1 sharper, above 1 wilder, 0 always the likeliest.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw from the k likeliest tokens; 0: from all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the likeliest tokens that make up this share; 1: from all.")
    ] = 1.0,
    count: Annotated[int, typer.Option(help="How many texts, drawn side by side.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed draws the same text.")] = 0,
    cell: Annotated[
        str, typer.Option(help="The run's foreign cell, named again; its code is run.", show_default="none")
    ] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, mps, ...")] = "cpu",
) -> None:
    """Write text with a trained language model."""
    from ritornello.errors import ArgumentError
    from ritornello.tasks import load

    model = load(run, cell=cell or None, device=device)
    if not hasattr(model, "stream"):
        raise ArgumentError(f"{run} holds no language model; its task is {model.run.config['task']!r}.")
    options = {
        "length": length,
        "until": until,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
    }
    if count != 1:
        for number, text in enumerate(model.sample(prompt, count=count, **options), 1):
            print(f"--- {number} ---\n{text}")
        return
    text = prompt  # not shown before the first token is drawn: until then the prompt or an option may be wrong
    for (piece,) in model.stream(prompt, **options):
        sys.stdout.write(text + piece)
        sys.stdout.flush()
        text = ""
    print()
