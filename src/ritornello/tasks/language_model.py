"""Language modelling: text in, a model that predicts and writes it out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ritornello.cells import catalogue
from ritornello.data import corpus as embedded
from ritornello.data.corpus import Corpus, prepare
from ritornello.data.tokenizer import Tokenizer
from ritornello.data.tokens import TokenFile
from ritornello.errors import DataError, RunError
from ritornello.models.language_model import LanguageModel
from ritornello.models.ngram import NGramModel
from ritornello.models.predictor import Predictor, reader
from ritornello.tasks.experiment import (
    cell_of,
    check_device,
    check_given,
    check_steps,
    check_task,
    name_of,
    section,
    settle,
)
from ritornello.tasks.language_model_config import LanguageModelConfig, TextConfig
from ritornello.tasks.language_model_run import LanguageModelRun
from ritornello.training.config import TrainingConfig
from ritornello.training.display import Display
from ritornello.training.files import load_weights, read_tensors, write_tensors
from ritornello.training.log import Log
from ritornello.training.loop import train as train_loop
from ritornello.training.run import Run

TASK = "language-model"
CONFIGS = {"text": TextConfig, "model": LanguageModelConfig, "training": TrainingConfig}


class LanguageModelTask:
    """Contiguous batches of a text whose state carries over, and the cross-entropy of the next token.

    The training part is cut into `batch` lanes that are read side by side, `window` tokens at a time; the state is
    carried from window to window and gradients stop between them (truncated back-propagation through time). Where the
    lanes begin is drawn anew for each epoch from the seed, so that windows fall differently.

    Args:
        corpus: the prepared text.
        window: tokens a window.
        batch: lanes.
        seed: of the lanes' beginnings.
        valid_tokens: score so many tokens of the validation part at most; 0 scores all.

    Raises:
        DataError: the training part is too short for so many lanes.
    """

    criterion = "valid_loss"

    def __init__(self, corpus: Corpus, window: int, batch: int, seed: int, valid_tokens: int = 0) -> None:
        self.corpus = corpus
        self.window = window
        self.batch = batch
        self.seed = seed
        self.valid_tokens = valid_tokens
        self.text: TokenFile = corpus.parts["train"]
        self.read = reader(self.text, corpus.tokenizer)
        if len(self.text) <= batch:
            raise DataError(
                f"The training part has {len(self.text)} tokens; --batch {batch} needs at least {batch + 1}: "
                "give more text or a smaller batch."
            )
        lane = (len(self.text) - 1) // batch
        spare = -(-window // batch)
        self.lane = lane - spare if lane >= 10 * spare else lane

    def windows(self) -> int:
        return -(-self.lane // self.window)

    def batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets, both (time, batch), on the CPU."""
        room = len(self.text) - 1 - self.batch * self.lane
        first = int(np.random.default_rng((self.seed, epoch)).integers(room + 1))
        lanes = first + np.arange(self.batch) * self.lane
        for number in range(start, self.windows()):
            offset = number * self.window
            tokens = self.read(lanes + offset, min(self.window, self.lane - offset) + 1)
            text = torch.from_numpy(tokens.astype(np.int64)).T
            yield text[:-1], text[1:]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], carry: Any) -> tuple[Tensor, Any, int]:
        inputs, targets = (tokens.to(next(model.parameters()).device) for tokens in batch)
        logits, carry = model(inputs, carry)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()), carry, targets.numel()

    def blank(self, model: nn.Module) -> Any:
        with torch.no_grad():
            return model(torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device))[1]

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, LanguageModel)
        found = Predictor(model, self.corpus.tokenizer).score(
            self.corpus.parts["valid"], self.corpus.info["valid"].characters, most=self.valid_tokens
        )
        found.pop("tokens")
        return {f"valid_{name}": value for name, value in found.items()}


def train(
    out: str | Path, *, overwrite: bool = False, watch: Display | None = None, **options: Any
) -> LanguageModelRun:
    """Trains a language model and keeps it in a run folder.

    Args:
        out: the folder; it appears when the text is read and everything fits.
        overwrite: replace the run that is there.
        watch: shows training, such as `ritornello.training.Display()`. Default: nothing is shown.
        **options: fields of `TextConfig`, `LanguageModelConfig` and `TrainingConfig` by name; all have defaults. `cell`
            may be a class.

    Returns:
        The trained model, with the weights that scored best on the validation part.

    Raises:
        ArgumentError, DataError, RunError: an option, a text or a folder that does not fit.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name, "song.txt")
        >>> _ = path.write_text("da capo al fine " * 40)
        >>> song = train(f"{folder.name}/run", train=path, steps=60, batch=4, hidden=16, lr=0.03)
        >>> song.sample("da capo", length=8, temperature=0)
        'da capo al fine'
        >>> folder.cleanup()
    """
    cell = options.get("cell")
    if isinstance(cell, type):
        options["cell"] = name_of(cell)
    configs = settle(CONFIGS, options)
    cell_class = cell if isinstance(cell, type) else catalogue.find(configs["model"].cell)
    check_device(configs["training"].device)
    with Run.prepare(out, TASK, {name: asdict(config) for name, config in configs.items()}, overwrite=overwrite) as run:
        _prepare(run, cell_class, watch)
    return _fit(run.moved(out), cell_class, watch, resume=False)


def resume(
    out: str | Path,
    *,
    cell: str | type | None = None,
    given: Mapping[str, Any] | None = None,
    watch: Display | None = None,
) -> LanguageModelRun:
    """Goes on with a run that was stopped, with its own options, exactly as if it had not been.

    Args:
        out: the run's folder.
        cell: the run's foreign cell, named again (or its class); see `load`.
        given: options as `train` takes them; they must be the run's own.
        watch: as in `train`.

    Raises:
        RunError: no such run, a damaged one, or one with a foreign cell that is not named. DataError: its text is gone
            and was not encoded yet. ArgumentError: an option that is not the run's own.
    """
    given = dict(given or {})
    with Run.reopen(out, TASK) as run:
        cell_class = cell_of(run, _section(run, "model").cell, cell or given.pop("cell", None))
        check_device(_section(run, "training").device)
        check_given(run, CONFIGS, given, out)
        if not (run.path / "tokens" / "info.json").exists():
            _prepare(run, cell_class, watch)
    return _fit(run.moved(out), cell_class, watch, resume=True)


def load(path: str | Path, *, cell: str | type | None = None, device: str = "cpu") -> LanguageModelRun:
    """A trained language model from its run folder. Executes nothing that the folder holds.

    Args:
        path: the folder.
        cell: where the run was trained with a cell of somebody's own, its name again, `module:Class` or
            `FILE.py:Class`, or its class: only what you name is imported.
        device: where to put the model.

    Raises:
        RunError: no such run, or one that is damaged, unfinished, of another version, or with a foreign cell that is
            not named.
    """
    run = Run.open(path)
    check_task(run, TASK)
    check_device(device)
    config = _section(run, "model")
    cell_class = cell_of(run, config.cell, cell) if config.model == "rnn" else None
    tokenizer = Tokenizer.load(run.path / "tokenizer.json")
    tensors, _ = read_tensors(run.model_file)
    if cell_class is None:
        model: LanguageModel | NGramModel = NGramModel.from_tensors({k: v.numpy() for k, v in tensors.items()})
        if model.vocabulary_size != tokenizer.vocabulary_size:
            raise RunError(f"{run.path}: model and tokenizer have {model.vocabulary_size} and "
                           f"{tokenizer.vocabulary_size} tokens; they belong to different runs.")  # fmt: skip
    else:
        model = _build(run, tokenizer, cell_class)
        load_weights(model, tensors, run.model_file)
        model.eval().to(device)
    return LanguageModelRun(run, model, tokenizer)


def _fit(run: Run, cell_class: Callable[..., Any], watch: Display | None, *, resume: bool) -> LanguageModelRun:
    """Trains on a prepared run."""
    corpus = Corpus.open(run.path)
    config = _section(run, "training")
    if _section(run, "model").model == "ngram":
        _fit_ngram(run, corpus)
        return load(run.path)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    model = _build(run, corpus.tokenizer, cell_class).to(config.device)
    _, interrupted = train_loop(_task(run, corpus), model, config, run, resume=resume, watch=watch)
    load_weights(model, read_tensors(run.model_file)[0], run.model_file)
    found = LanguageModelRun(run, model.eval(), corpus.tokenizer)
    found.interrupted = interrupted
    return found


def _fit_ngram(run: Run, corpus: Corpus) -> None:
    """Counts the training part, and logs one evaluation."""
    text = corpus.parts["train"]
    begin = time.monotonic()
    order = _section(run, "model").order_for(corpus.tokenizer.level)
    model = NGramModel.fit(text.read(0, len(text)), corpus.tokenizer.vocabulary_size, order)
    seconds = time.monotonic() - begin
    predictor = Predictor(model, corpus.tokenizer)
    scored = {part: predictor.score(corpus.parts[part], corpus.info[part].characters) for part in ("train", "valid")}
    scored["valid"].pop("tokens")
    row = {"step": 1, "epoch": 1, "seconds": time.monotonic() - begin, "epoch_seconds": seconds}
    row |= {"train_loss": scored["train"]["loss"], "tokens_per_second": len(text) / max(seconds, 1e-9)}
    row |= {f"valid_{name}": value for name, value in scored["valid"].items()}
    write_tensors(run.model_file, {name: torch.from_numpy(array) for name, array in model.tensors().items()}, {})
    with contextlib.closing(Log(run)) as log:
        log.write(row)


def _section(run: Run, name: str) -> Any:
    return section(run, CONFIGS, name)


def _build(run: Run, tokenizer: Tokenizer, cell: Callable[..., Any]) -> LanguageModel:
    config = _section(run, "model")
    return LanguageModel(
        tokenizer.vocabulary_size,
        cell,
        embedding=config.embedding_for(tokenizer.level),
        hidden=config.hidden,
        layers=config.layers,
        dropout=config.dropout,
        tied=config.tied,
    )


def _task(run: Run, corpus: Corpus) -> LanguageModelTask:
    text, model, training = (_section(run, name) for name in ("text", "model", "training"))
    return LanguageModelTask(corpus, model.window, training.batch, training.seed, text.valid_tokens)


def _prepare(run: Run, cell: Callable[..., Any], watch: Display | None) -> None:
    """Encodes the run's text into its folder, and sees whether text, sizes and cell fit together."""
    text = _section(run, "text")
    given = {}
    for part in ("train", "valid", "test"):
        spooled = run.path / "stdin.txt"
        given[part] = [spooled if path == "-" and spooled.exists() else path for path in getattr(text, part)]
    if not text.train:
        given["train"] = [embedded.write("help-topics", run.path / "help-topics.txt")]
    corpus = prepare(
        run.path,
        text.level,
        **given,
        split=text.shares(),
        vocabulary=text.vocabulary or None,
        documents=text.documents,
        progress=watch.preparing if watch else None,
    )
    (run.path / "stdin.txt").unlink(missing_ok=True)
    if _section(run, "model").model == "rnn":
        task = _task(run, corpus)

        def steps() -> None:
            model = _build(run, corpus.tokenizer, cell).to(_section(run, "training").device)
            task.loss(model, next(task.batches(0, 0)), None)

        check_steps(_section(run, "model").cell, steps)
