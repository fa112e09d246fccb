"""Command-line options made from configuration dataclasses: names, defaults and help stand there, once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Annotated, Any, get_type_hints

import typer


def described(kind: type) -> dict[str, str]:
    """What the Attributes section of the docstring, or of that of the class that it derives from, says of each field.

    >>> from ritornello.training.config import TrainingConfig
    >>> described(TrainingConfig)["momentum"]
    'of sgd and rmsprop.'
    """
    found = {} if kind.__base__ in (None, object) else described(kind.__base__)
    section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    for entry in re.split(r"\n    (?=\S)", "\n" + section)[1:]:
        names, _, text = entry.partition(": ")
        for name in names.split(", "):
            found[name] = " ".join(text.split())
    return found


def given(context: typer.Context, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in options}
    return {name: options[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def with_options(*kinds: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a Typer command an option for each field of the dataclasses.

    The command's own parameters come first; the fields arrive as keyword arguments, all of them.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        parameters = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        for kind in kinds:
            help_of, hints = described(kind), get_type_hints(kind)
            for field in fields(kind):
                parameters.append(_parameter(field.name, hints[field.name], field.default, help_of[field.name], kind))

        def call(*args: Any, **kwargs: Any) -> None:
            command(*args, **kwargs)

        call.__doc__ = command.__doc__
        call.__name__ = command.__name__
        call.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        return call

    return decorate


def _parameter(name: str, hint: Any, default: Any, text: str, kind: type) -> inspect.Parameter:
    assert default is not MISSING, f"{kind.__name__}.{name} needs a default"
    several = hint == tuple[str, ...]
    flag = "--" + name.replace("_", "-")
    panel = kind.__name__.removesuffix("Config")
    panel = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", panel).capitalize()
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if hint is bool else flag,
        help=text,
        show_default=True if not several and default != "" else "none",
        rich_help_panel=panel,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=list(default) if several else default,
        annotation=Annotated[list[str] if several else hint, option],
    )
