"""rit train: trains a model of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ritornello.cli.options import with_options
from ritornello.errors import ArgumentError
from ritornello.tasks.language_model_config import LanguageModelConfig, TextConfig
from ritornello.training.config import TrainingConfig

if TYPE_CHECKING:
    from ritornello.tasks.language_model_run import LanguageModelRun

app = typer.Typer(help="Train a model.", no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def train() -> None:
    """Train a model."""


@app.command("lm")
@with_options(TextConfig, LanguageModelConfig, TrainingConfig)
def language_model(
    context: typer.Context,
    out: Annotated[str, typer.Option(help="The run's folder.")] = "runs/lm",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that is there, with its options.", show_default="off")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that is there.", show_default="off")
    ] = False,
    **options: Any,
) -> None:
    """Train a language model: it learns to predict a text, and then writes it."""
    from ritornello.tasks import language_model as task
    from ritornello.training.display import Display

    given = {name: value for name, value in options.items() if _was_given(context, name)}
    if resume and overwrite:
        raise ArgumentError("--resume goes on with the run and --overwrite replaces it; give one of them.")
    with Display() as display:
        if resume:
            run = task.resume(out, given=given, watch=display)
        else:
            run = task.train(out, overwrite=overwrite, watch=display, **given)
    _report(run, out)
    if run.interrupted:
        raise typer.Exit(130)


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _report(run: LanguageModelRun, out: str) -> None:
    """The scores, where the run lies, and what to type next."""
    from shlex import quote

    from rich.console import Console

    from ritornello.cli.tables import score_table

    console = Console()
    name = run.run.config["model"]["cell"]
    foreign = f" --cell {quote(name)}" if ":" in name else ""
    if run.interrupted:
        console.print(f"Stopped; all is kept. Go on with: rit train lm --resume --out {out}{foreign}", soft_wrap=True)
        return
    most = run.run.config["text"]["valid_tokens"]
    rows = {part: run.evaluate(part, most=most) for part in run.parts() if part != "train"}
    console.print(score_table({f"{out} ({part})": row for part, row in rows.items()}))
    console.print(f"The run lies in {out}. Next:", soft_wrap=True, highlight=False)
    console.print(f"  rit sample {out}{foreign}", soft_wrap=True, highlight=False)
    console.print(f"  rit evaluate {out}{foreign} --text FILE", soft_wrap=True, highlight=False)
