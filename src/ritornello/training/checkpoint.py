"""Checkpoints: all that an exact resume needs, in one file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ritornello.errors import RunError
from ritornello.nn.state import leaves, refill
from ritornello.training.config import TrainingConfig, check_types, from_json
from ritornello.training.files import load_weights, read_tensors, weights, write_tensors


@dataclass
class Progress:
    """How far training has come.

    Attributes:
        step: updates done.
        epoch, window: passes over the training part that are complete, and windows done in the one that is not.
        seconds: wall time spent, evaluations included.
        evaluations: how many there were.
        best_score, best_step: the best validation score (the smallest of what the task judges by), and when it was.
        waiting: evaluations in a row without a better one.
        scale: what plateaus have left of the learning rate.
        loss_sum, tokens: summed training loss and tokens since the last evaluation, for its report.
        training_seconds: of `seconds`, those since the last evaluation.
        evaluated_epoch: epochs done at the last evaluation.
        log_size: bytes of metrics.jsonl.
    """

    step: int = 0
    epoch: int = 0
    window: int = 0
    seconds: float = 0.0
    evaluations: int = 0
    best_score: float = float("inf")
    best_step: int = 0
    waiting: int = 0
    scale: float = 1.0
    loss_sum: float = 0.0
    tokens: int = 0
    training_seconds: float = 0.0
    evaluated_epoch: float = 0.0
    log_size: int = 0

    def __post_init__(self) -> None:
        check_types(self)

    def fraction(self, config: TrainingConfig, windows: int) -> float:
        """Share of the budget that is spent; `windows` are those of an epoch."""
        if config.steps:
            return self.step / config.steps
        if config.epochs:
            return (self.epoch + self.window / windows) / config.epochs
        return self.seconds / (60 * config.minutes)

    def complete(self, config: TrainingConfig, windows: int) -> bool:
        """Whether the budget is spent, or patience is."""
        return self.fraction(config, windows) >= 1 or 0 < config.patience <= self.waiting


def save_checkpoint(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, carry: Any, progress: Progress
) -> None:
    """Writes weights, the optimiser's state, the carried state, random generators and progress, atomically."""
    tensors = {f"model.{name}": tensor for name, tensor in weights(model).items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{key}": value for key, value in state.items() if value is not None}
    tensors |= {f"carry.{number}": leaf for number, leaf in enumerate(leaves(carry))}
    tensors["random.cpu"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type != "cpu":
        tensors["random.device"] = torch.get_device_module(device).get_rng_state(device)
    write_tensors(path, tensors, {"optimiser": type(optimiser).__name__, **dataclasses.asdict(progress)})


def load_checkpoint(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, blank: Any) -> tuple[Any, Progress]:
    """Restores all that `save_checkpoint` wrote.

    Args:
        path: the checkpoint.
        model, optimiser: made as they were then; their contents are replaced.
        blank: a carried state, for its structure.

    Returns:
        The carried state (None at the beginning of an epoch) and the progress.

    Raises:
        RunError: the file is missing, corrupt, or belongs to another configuration.
    """
    tensors, about = read_tensors(path)
    own, asked = about.pop("optimiser", "no optimiser"), type(optimiser).__name__
    if own != asked:
        raise RunError(f"{path} is of {own}; the configuration asks for {asked}.")
    progress = from_json(Progress, about, str(path))
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimiser": {}, "carry": {}, "random": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part not in parts or not rest:
            raise RunError(f"{path} holds the unknown tensor {name!r}; it was written by another version.")
        parts[part][rest] = tensor
    load_weights(model, parts["model"], path)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimiser"].items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    device = next(model.parameters()).device
    torch.set_rng_state(parts["random"]["cpu"])
    if device.type != "cpu" and "device" in parts["random"]:
        torch.get_device_module(device).set_rng_state(parts["random"]["device"], device)
    carried = [parts["carry"][str(number)].to(device) for number in range(len(parts["carry"]))]
    return (refill(blank, carried) if carried else None), progress
