"""The verbs, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from ritornello import __version__
from ritornello.cli import bench, evaluate, info, predict, sample, train

app = typer.Typer(
    name="rit",
    help="Recurrent and recursive networks: train, sample, predict, evaluate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(train.app, name="train")
app.command("sample")(sample.sample)
app.command("predict")(predict.predict)
app.command("evaluate")(evaluate.evaluate)
app.command("info")(info.info)
app.command("bench")(bench.bench)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ritornello {__version__}")
        raise typer.Exit


@app.callback()
def rit(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Recurrent and recursive networks: train, sample, predict, evaluate."""
