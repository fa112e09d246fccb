"""Language modelling: text in, a model that predicts and writes it out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ritornello.data import corpus as embedded
from ritornello.data.corpus import Corpus, prepare
from ritornello.data.tokenizer import Tokenizer
from ritornello.data.tokens import TokenFile
from ritornello.errors import DataError, RunError
from ritornello.models.language_model import LanguageModel
from ritornello.models.ngram import NGramModel
from ritornello.models.predictor import Predictor, reader
from ritornello.tasks.experiment import Experiment
from ritornello.tasks.language_model_config import LanguageModelConfig, TextConfig
from ritornello.tasks.language_model_run import LanguageModelRun
from ritornello.training.config import TrainingConfig
from ritornello.training.display import Display
from ritornello.training.files import read_tensors, write_tensors
from ritornello.training.log import Log
from ritornello.training.run import Run

BLOCK = 1 << 20  # tokens read at once, where all are read


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

    def counts(self) -> Tensor:
        """How often each token stands in the training part: (vocabulary,) integers."""
        found = torch.zeros(self.corpus.tokenizer.vocabulary_size, dtype=torch.long)
        for start in range(0, len(self.text), BLOCK):
            tokens = self.read(np.array([start]), min(BLOCK, len(self.text) - start))[0]
            found += torch.from_numpy(np.bincount(tokens, minlength=len(found)))
        return found

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


class LanguageModelExperiment(Experiment[LanguageModelRun]):
    """Encodes text, and fits a network that predicts its tokens, or counts them."""

    name = "language-model"
    kinds: ClassVar = {"text": TextConfig, "model": LanguageModelConfig, "training": TrainingConfig}
    prepared = "tokens/info.json"

    def prepare(self, run: Run, watch: Display | None) -> None:
        text = self.section(run, "text")
        given = {}
        for part in ("train", "valid", "test"):
            spooled = run.path / "stdin.txt"
            given[part] = [spooled if path == "-" and spooled.exists() else path for path in getattr(text, part)]
        if not text.train:
            given["train"] = [embedded.write("help-topics", run.path / "help-topics.txt")]
        prepare(
            run.path,
            text.level,
            **given,
            split=text.shares(),
            vocabulary=text.vocabulary or None,
            documents=text.documents,
            progress=watch.preparing if watch else None,
        )
        (run.path / "stdin.txt").unlink(missing_ok=True)

    def known(self, run: Run) -> Tokenizer:
        return Tokenizer.load(run.path / "tokenizer.json")

    def task(self, run: Run, known: Tokenizer) -> LanguageModelTask:
        text, model, training = (self.section(run, name) for name in ("text", "model", "training"))
        corpus = Corpus.open(run.path)
        return LanguageModelTask(corpus, model.window, training.batch, training.seed, text.valid_tokens)

    def build(self, run: Run, known: Tokenizer, cell: Callable[..., Any]) -> LanguageModel:
        config = self.section(run, "model")
        return LanguageModel(
            known.vocabulary_size,
            cell,
            embedding=config.embedding_for(known.level),
            hidden=config.hidden,
            layers=config.layers,
            dropout=config.dropout,
            tied=config.tied,
        )

    def begin(self, task: LanguageModelTask, model: LanguageModel) -> None:
        model.start_at(task.counts())

    def use(self, run: Run, model: LanguageModel | NGramModel, known: Tokenizer) -> LanguageModelRun:
        return LanguageModelRun(run, model, known)

    def counts(self, run: Run) -> bool:
        """Whether the run's model is one of n-grams, which needs neither cell nor steps."""
        return self.section(run, "model").model == "ngram"

    def check(self, run: Run, cell: Callable[..., Any]) -> None:
        if not self.counts(run):
            super().check(run, cell)

    def fit(self, run: Run, cell: Callable[..., Any], watch: Display | None, *, resume: bool) -> LanguageModelRun:
        if not self.counts(run):
            return super().fit(run, cell, watch, resume=resume)
        _fit_ngram(run, Corpus.open(run.path), self.section(run, "model"))
        return self.load(run.path)

    def load(self, path: str | Path, *, cell: str | type | None = None, device: str = "cpu") -> LanguageModelRun:
        run = Run.open(path, self.name)
        if not self.counts(run):
            return super().load(path, cell=cell, device=device)
        known = self.known(run)
        model = NGramModel.from_tensors({k: v.numpy() for k, v in read_tensors(run.model_file)[0].items()})
        if model.vocabulary_size != known.vocabulary_size:
            raise RunError(f"{run.path}: model and tokenizer have {model.vocabulary_size} and "
                           f"{known.vocabulary_size} tokens; they belong to different runs.")  # fmt: skip
        return self.use(run, model, known)


def _fit_ngram(run: Run, corpus: Corpus, config: LanguageModelConfig) -> None:
    """Counts the training part, and logs one evaluation."""
    text = corpus.parts["train"]
    begin = time.monotonic()
    order = config.order_for(corpus.tokenizer.level)
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


EXPERIMENT = LanguageModelExperiment()
resume, load = EXPERIMENT.resume, EXPERIMENT.load


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
    return EXPERIMENT.train(out, options, overwrite=overwrite, watch=watch)
