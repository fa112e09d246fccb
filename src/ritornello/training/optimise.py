"""Updates: optimisers, learning rates, clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ritornello.training.config import TrainingConfig


def make_optimiser(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimiser that the configuration names.

    Weight decay falls on matrices and not on vectors, nor on embeddings with sparse gradients: of these only the rows
    that were read are touched, by optimisers for which that is the same (adagrad, sgd without momentum).
    """
    sparse = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding) and module.sparse}
    checks = torch.sparse.check_sparse_tensor_invariants
    if sparse and not checks.is_enabled():
        checks.disable()  # as it is: said aloud, so that torch does not warn of it at every run
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    dense = [p for p in parameters if id(p) not in sparse]
    groups = [
        {"params": [p for p in dense if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in dense if p.dim() < 2], "weight_decay": 0.0},
        {"params": [p for p in parameters if id(p) in sparse], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (config.beta1, config.beta2)
    match config.optimiser:
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr, betas=betas, fused=True)
        case "adagrad":
            return torch.optim.Adagrad(groups, lr=config.lr)
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
    groups = [_gradients(group["params"]) for group in optimiser.param_groups]
    together = [gradient for group in groups for gradient in group]
    if config.clip_value:
        for gradient in together:
            gradient.clamp_(-config.clip_value, config.clip_value)
    if config.clip_norm:
        clipped = {"all": [together], "group": groups, "tensor": [[gradient] for gradient in together]}
        for gradients in clipped[config.clip_groups]:
            norm = nn.utils.get_total_norm(gradients)
            torch._foreach_mul_(gradients, (config.clip_norm / (norm + 1e-6)).clamp(max=1.0))


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients that there are; of sparse ones the rows, each once."""
    found = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            found.append(parameter.grad.values())
        elif parameter.grad is not None:
            found.append(parameter.grad)
    return found
