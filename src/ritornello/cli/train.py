"""rit train: trains a model of a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from ritornello.cli.options import given, with_options
from ritornello.errors import ArgumentError
from ritornello.tasks.language_model_config import LanguageModelConfig, TextConfig
from ritornello.tasks.parse_config import ParserConfig, ParserTrainingConfig, TreebankConfig
from ritornello.tasks.tree_config import TreeModelConfig, TreesConfig, TreeTrainingConfig
from ritornello.training.config import TrainingConfig

app = typer.Typer(help="Train a model.", no_args_is_help=True, pretty_exceptions_enable=False)
Out = Annotated[str, typer.Option(help="The run's folder.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run that is there, with its options.", show_default="off")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.", show_default="off")]


@app.callback()
def train() -> None:
    """Train a model."""


@app.command("lm")
@with_options(TextConfig, LanguageModelConfig, TrainingConfig)
def language_model(
    context: typer.Context, out: Out = "runs/lm", resume: Resume = False, overwrite: Overwrite = False, **options: Any
) -> None:
    """Train a language model: it learns to predict a text, and then writes it."""
    from ritornello.tasks import language_model as task
    from ritornello.training.display import Display

    run = _trained(task, Display(), out, resume, overwrite, given(context, options))
    most = {"most": run.run.config["text"]["valid_tokens"]}
    _report(run, "lm", out, most, ("rit sample {run}", "rit evaluate {run} --text FILE"))


@app.command("tree")
@with_options(TreesConfig, TreeModelConfig, TreeTrainingConfig)
def tree(
    context: typer.Context, out: Out = "runs/tree", resume: Resume = False, overwrite: Overwrite = False, **options: Any
) -> None:
    """Train a model of trees: it learns the labels of all nodes of bracketed trees, such as sentiment."""
    from ritornello.tasks import tree as task
    from ritornello.training.display import Display

    display = Display(unit="nodes", shares={"valid_root": "roots", "valid_node": "nodes"})
    run = _trained(task, display, out, resume, overwrite, given(context, options))
    _report(run, "tree", out, {}, ("rit predict {run} '(not (very good))'", "rit evaluate {run} --text FILE"))


@app.command("parse")
@with_options(TreebankConfig, ParserConfig, ParserTrainingConfig)
def parse(
    context: typer.Context,
    out: Out = "runs/parse",
    resume: Resume = False,
    overwrite: Overwrite = False,
    **options: Any,
) -> None:
    """Train a parser: it learns from bracketed trees to put other sentences into brackets."""
    from ritornello.tasks import parse as task
    from ritornello.training.display import Display

    display = Display(unit="sentences", shares={"valid_f1": "F1"}, measure="margin")
    run = _trained(task, display, out, resume, overwrite, given(context, options))
    _report(run, "parse", out, {}, ("rit predict {run} 'the cat sees a dog'", "rit evaluate {run} --text FILE"))


def _trained(task: Any, display: Any, out: str, resume: bool, overwrite: bool, options: dict[str, Any]) -> Any:
    if resume and overwrite:
        raise ArgumentError("--resume goes on with the run and --overwrite replaces it; give one of them.")
    with display:
        if resume:
            return task.resume(out, given=options, watch=display)
        return task.train(out, overwrite=overwrite, watch=display, **options)


def _report(run: Any, verb: str, out: str, scored: Mapping[str, Any], then: tuple[str, ...]) -> None:
    """The scores, where the run lies, and what to type next."""
    from functools import partial
    from shlex import quote

    from rich.console import Console

    from ritornello.cli.tables import score_table

    console = Console()
    say = partial(console.print, soft_wrap=True, highlight=False, markup=False)
    name = run.run.config["model"]["cell"]
    foreign = f" --cell {quote(name)}" if ":" in name else ""
    if run.interrupted:
        say(f"Stopped; all is kept. Go on with: rit train {verb} --resume --out {quote(out)}{foreign}")
        raise typer.Exit(130)
    rows = {f"{out} ({part})": run.evaluate(part, **scored) for part in run.parts() if part != "train"}
    console.print(score_table(rows, run.columns))
    say(f"The run lies in {out}. Next:")
    for command in then:
        say(f"  {command.format(run=quote(out) + foreign)}")
