"""Updates: optimisers, learning rates, clipping."""

from __future__ import annotations

import math

import torch
from torch import nn

from ritornello.training.config import TrainingConfig


def make_optimiser(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimiser that the configuration names; weight decay falls on matrices and not on vectors."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (config.beta1, config.beta2)
    match config.optimiser:
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr, betas=betas, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=config.lr, momentum=config.momentum)
        case _:
            return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)


def learning_rate(config: TrainingConfig, step: int, fraction: float, scale: float) -> float:
    """The rate of the next update.

    Args:
        config: names the schedule.
        step: updates done so far.
        fraction: share of the budget that is spent, 0 to 1.
        scale: what plateaus have left of the rate, 1 where there were none.

    Example:
        >>> config = TrainingConfig(steps=100, lr=1.0, warmup=10)
        >>> [round(learning_rate(config, step, step / 100, 1.0), 3) for step in (0, 9, 50, 100)]
        [0.1, 0.98, 0.5, 0.0]
    """
    rate = config.lr
    if config.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0)))
    elif config.schedule == "plateau":
        rate *= scale
    if step < config.warmup:
        rate *= (step + 1) / config.warmup
    return rate


def average_gradients(model: nn.Module, tokens: int) -> None:
    """Divides gradients of a loss that was summed over so many tokens, so that windows of any length weigh alike."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.div_(tokens)


def clip(optimiser: torch.optim.Optimizer, config: TrainingConfig) -> None:
    """Clips gradients by value, then by norm: of all together, of each of the optimiser's groups, or of each tensor."""
    groups = [group["params"] for group in optimiser.param_groups]
    together = [parameter for group in groups for parameter in group]
    if config.clip_value:
        nn.utils.clip_grad_value_(together, config.clip_value)
    if config.clip_norm:
        clipped = {"all": [together], "group": groups, "tensor": [[parameter] for parameter in together]}
        for group in clipped[config.clip_groups]:
            nn.utils.clip_grad_norm_(group, config.clip_norm)
