"""rit bench: how fast cells run, beside everything else that runs them."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def bench(
    shape: Annotated[
        list[str], typer.Option(help="Steps, sequences and units, as T,B,H; several may be given.", show_default="six")
    ] = [],  # noqa: B006
    cell: Annotated[
        list[str],
        typer.Option(help="A cell's name, or FILE.py:Class, whose code is run; several.", show_default="nine"),
    ] = [],  # noqa: B006
    everyone: Annotated[
        bool,
        typer.Option(
            "--all",
            help="The whole catalogue, at 64,32,256 and, where linear in the state, 10000,4,128.",
            show_default="off",
        ),
    ] = False,
    ragged: Annotated[
        bool | None, typer.Option(help="Sequences of different lengths.", show_default="unless others are asked for")
    ] = None,
    first_call: Annotated[
        bool | None,
        typer.Option(help="The first call of each cell, by phases.", show_default="unless others are asked for"),
    ] = None,
    bfloat16: Annotated[
        bool | None,
        typer.Option(
            help="bfloat16 beside float32, where there are instructions for it.",
            show_default="unless others are asked for",
        ),
    ] = None,
    streaming: Annotated[
        bool | None,
        typer.Option(help="One row, step by step, 128 units.", show_default="unless others are asked for"),
    ] = None,
    torch_: Annotated[
        bool,
        typer.Option("--torch", help="Instead: torch.nn's modules beside ritornello.nn's.", show_default="off"),
    ] = False,
    model: Annotated[
        list[str],
        typer.Option(
            help="With --torch: FILE.py:function, whose code is run; it returns a model and a tuple of its inputs.",
            show_default="none",
        ),
    ] = [],  # noqa: B006
    forward: Annotated[
        bool, typer.Option("--forward", help="Leave forward + backward out.", show_default="off")
    ] = False,
    scan: Annotated[bool, typer.Option(help="jax.lax.scan too, where JAX is installed.")] = True,
    dtype: Annotated[str, typer.Option(help="float32, float64 or bfloat16.")] = "float32",
    executor: Annotated[str, typer.Option(help="auto, or an executor's name.")] = "auto",
    threads: Annotated[int, typer.Option(help="Threads of all contenders; 0: torch's.")] = 0,
    seconds: Annotated[float, typer.Option(help="For each case and pass, all contenders together.")] = 2.0,
    seed: Annotated[int, typer.Option(help="Of weights, inputs and lengths.")] = 0,
    json_file: Annotated[
        str, typer.Option("--json", help="Write everything that was measured to this file.", show_default="none")
    ] = "",
) -> None:
    """Measure speed: ritornello, torch.nn, a Python loop, jax.lax.scan and the fastest matrix product, side by side.

    Without --shape, --all, --ragged, --bfloat16, --streaming and --first-call it measures the usual cells in all these
    ways; else what is asked for. Nothing is timed before it computes the same as the Python loop.
    """
    import json
    from pathlib import Path

    import torch

    from ritornello.bench import Mismatch, Settings, run
    from ritornello.bench.report import Report
    from ritornello.bench.settings import CATALOGUE, DENSE, LONG, RAGGED, STREAM, WIDE
    from ritornello.errors import ArgumentError
    from ritornello.processor import has_bfloat16

    if model and not torch_:
        raise ArgumentError("--model says what --torch is to replace modules in: give both.")
    others = {"--shape": shape, "--cell": cell, "--all": everyone, "--ragged": ragged, "--first-call": first_call}
    others |= {"--bfloat16": bfloat16, "--streaming": streaming, "--dtype": dtype != "float32"}
    if torch_ and (clash := [name for name, value in others.items() if value]):
        raise ArgumentError(f"--torch and {clash[0]} clash: --torch has cases of its own.")
    if everyone and cell:
        raise ArgumentError("--all and --cell clash: --all is every cell of the catalogue.")
    asked = bool(shape or ragged or first_call or bfloat16 or streaming or everyone)
    halves = has_bfloat16() and not asked if bfloat16 is None else bfloat16
    shapes = tuple(_shape(text) for text in shape)
    settings = Settings(
        cells=tuple(cell),
        everyone=everyone,
        shapes=shapes or (CATALOGUE if everyone else () if asked else DENSE),
        long=LONG if everyone and not shape else None,
        ragged=RAGGED if (not asked if ragged is None else ragged) else None,
        first_call=not asked if first_call is None else first_call,
        bfloat16=shapes or WIDE if halves else (),
        streaming=STREAM if (not asked if streaming is None else streaming) else 0,
        backward=not forward,
        dtype=dtype,
        threads=threads or torch.get_num_threads(),
        seconds=seconds,
        executor=executor,
        seed=seed,
        scan=scan,
    )
    if json_file and not Path(json_file).absolute().parent.is_dir():
        raise ArgumentError(f"--json {json_file}: there is no folder {str(Path(json_file).parent)!r}.")
    with Report() as report:
        try:
            found = _torch(tuple(model), settings, report) if torch_ else run(settings, report)
        except Mismatch as error:
            typer.echo(f"rit: {error}", err=True)
            raise typer.Exit(1) from error
    if json_file:
        Path(json_file).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _torch(models: tuple[str, ...], settings: Any, report: Any) -> dict[str, Any]:
    import torch

    from ritornello.bench import dropin

    before = torch.get_num_threads()
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    report.replaced_header()
    rows = []
    try:
        for row in dropin.measure(models, settings, lambda what: report.doing(what, 0.0)):
            report.replaced(row)
            rows.append(row)
    finally:
        torch.set_num_threads(before)
    return {"torch": rows}


def _shape(text: str) -> tuple[int, int, int]:
    from ritornello.errors import ArgumentError

    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise ArgumentError(f"--shape is {text!r}; it must be steps, sequences and units, as in 50,50,128.")
    time, batch, hidden = map(int, parts)
    return time, batch, hidden
