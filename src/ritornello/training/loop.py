"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ritornello.errors import RunError
from ritornello.nn.state import detached
from ritornello.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from ritornello.training.config import TrainingConfig
from ritornello.training.files import weights, write_tensors
from ritornello.training.log import Log
from ritornello.training.optimise import average_gradients, clip, learning_rate, make_optimiser
from ritornello.training.run import Run

CHECKPOINT_SECONDS = 60.0


class Task(Protocol):
    """What the loop asks of a task.

    Attributes:
        criterion: the name of the validation score that is to be small: the weights with the smallest are kept.
    """

    criterion: str

    def windows(self) -> int:
        """Batches in an epoch."""

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """The batches of an epoch from the start-th on; the same for the same arguments."""

    def loss(self, model: nn.Module, batch: Any, carry: Any) -> tuple[Tensor, Any, int]:
        """The mean loss of a batch in nats a token, the state to carry on, and the number of tokens."""

    def blank(self, model: nn.Module) -> Any:
        """A carried state, for its structure; None where nothing is carried."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Scores of the validation part, `valid_loss` in nats a token among them. Draws no random number."""


class Watcher(Protocol):
    """What shows training to a person."""

    def update(self, progress: Progress, fraction: float, loss: float, tokens: int) -> None:
        """After each update; `tokens` are those of this update."""

    def evaluated(self, row: dict[str, Any], best: bool) -> None:
        """After each evaluation."""


def train(
    task: Task,
    model: nn.Module,
    config: TrainingConfig,
    run: Run,
    *,
    resume: bool = False,
    watch: Watcher | None = None,
) -> tuple[Progress, bool]:
    """Trains a model within a budget; checkpoints as it goes.

    Args:
        task: the data and the loss.
        model: on its device; trained in place. At the end it holds its last weights, and the run its best.
        config: the budget and all else.
        run: the folder to keep everything in.
        resume: go on from the run's checkpoint, where there is one, exactly as if it had not stopped.
        watch: shows training.

    Returns:
        How far it came, and whether Ctrl-C stopped it (then it is checkpointed, and can be resumed).

    Raises:
        RunError: the loss is no number any more, a checkpoint cannot be written, or the one to resume is damaged.
    """
    optimiser = make_optimiser(model, config)
    progress, carry = Progress(), None
    if resume and run.checkpoint_file.exists():
        carry, progress = load_checkpoint(run.checkpoint_file, model, optimiser, task.blank(model))
    device_type = next(model.parameters()).device.type
    per_epoch = task.windows()
    batches = task.batches(progress.epoch, progress.window)
    due = int(progress.fraction(config, per_epoch) * config.evaluations + 1e-9)
    progress.evaluations = min(progress.evaluations, due)  # fewer where the budget has grown
    log = Log(run, progress.log_size)
    before = checkpointed = time.monotonic()

    def checkpoint() -> None:
        nonlocal checkpointed
        progress.log_size = log.size
        save_checkpoint(run.checkpoint_file, model, optimiser, carry, progress)
        checkpointed = time.monotonic()

    with contextlib.closing(log), interruptible() as interrupted:
        while not progress.complete(config, per_epoch) and not interrupted():
            model.train()
            rate = learning_rate(config, progress.step, progress.fraction(config, per_epoch), progress.scale)
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad()
            count = min(config.accumulate or per_epoch, per_epoch - progress.window)
            update_loss = 0.0
            update_tokens = 0
            for _ in range(count):
                with torch.autocast(device_type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                    loss, carry, tokens = task.loss(model, next(batches), carry)
                (loss * tokens).backward()
                carry = detached(carry)
                update_loss += loss.item() * tokens
                update_tokens += tokens
            update_loss /= update_tokens
            check_finite(update_loss, progress, run)
            average_gradients(model, update_tokens)
            clip(optimiser, config)
            optimiser.step()

            progress.step += 1
            progress.window += count
            progress.loss_sum += update_loss * update_tokens
            progress.tokens += update_tokens
            if progress.window == per_epoch:
                progress.epoch, progress.window, carry = progress.epoch + 1, 0, None
                batches = task.batches(progress.epoch, 0)
            now = time.monotonic()
            progress.seconds += now - before
            progress.training_seconds += now - before
            before = now
            fraction = progress.fraction(config, per_epoch)
            if watch:
                watch.update(progress, fraction, update_loss, update_tokens)

            due = int(fraction * config.evaluations + 1e-9)
            if fraction >= 1 or due > progress.evaluations:
                row = evaluate(task, model, progress, per_epoch)
                progress.evaluations = max(progress.evaluations + 1, due)
                progress.seconds += time.monotonic() - before
                before = time.monotonic()
                check_finite(row["valid_loss"], progress, run)
                best = keep_score(run, model, progress, row, row[task.criterion])
                log.write(row)
                checkpoint()
                if watch:
                    watch.evaluated(row, best)
            elif now - checkpointed > CHECKPOINT_SECONDS:
                checkpoint()
        if interrupted():
            checkpoint()
            if not run.model_file.exists():
                write_tensors(run.model_file, weights(model), {"step": progress.step})
    return progress, interrupted() and not progress.complete(config, per_epoch)


def check_finite(loss: float, progress: Progress, run: Run) -> None:
    """Raises RunError if the loss is no number any more."""
    if not math.isfinite(loss):
        kept = "; the last checkpoint is intact" if run.checkpoint_file.exists() else ""
        told = "Try a lower --lr or a smaller --clip-norm."
        if not progress.step:
            told = "Nothing is learnt yet: the cell, or its first weights, give no finite numbers."
        raise RunError(f"The loss is {loss} after {progress.step} updates{kept}. {told}")


def evaluate(task: Task, model: nn.Module, progress: Progress, per_epoch: int) -> dict[str, Any]:
    """Scores the validation part: a row for the log. Begins the count of training loss anew."""
    model.eval()
    rate = progress.tokens / max(progress.training_seconds, 1e-9)
    done = progress.epoch + progress.window / per_epoch
    found = task.evaluate(model)
    row = {
        "step": progress.step,
        "epoch": done,
        "seconds": progress.seconds,
        "epoch_seconds": progress.training_seconds / max(done - progress.evaluated_epoch, 1e-9),
        "train_loss": progress.loss_sum / max(progress.tokens, 1),
        "valid_loss": found["valid_loss"],
        "tokens_per_second": rate,
        **found,
    }
    progress.evaluated_epoch = done
    progress.loss_sum, progress.tokens, progress.training_seconds = 0.0, 0, 0.0
    return row


def keep_score(run: Run, model: nn.Module, progress: Progress, row: dict[str, Any], score: float) -> bool:
    """Keeps the weights if they are the best so far; counts the evaluations since, for patience and plateaus."""
    if score < progress.best_score:
        progress.best_score, progress.best_step, progress.waiting = score, progress.step, 0
        write_tensors(run.model_file, weights(model), {"step": progress.step, "valid_loss": row["valid_loss"]})
        return True
    progress.waiting += 1
    if progress.waiting % 2 == 0:
        progress.scale *= 0.5
    return False


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within it the first Ctrl-C (in the main thread) only sets a flag, so that an update is never cut in two."""
    came = False

    def note(number: int, frame: Any) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)
