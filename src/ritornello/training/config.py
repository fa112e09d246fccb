"""The options that all tasks share. Needs no torch, so that `rit --help` is quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any, TypeVar, get_origin, get_type_hints

from ritornello.errors import ArgumentError, RunError, nearest
from ritornello.processor import has_bfloat16

OPTIMISERS = ("adamw", "adam", "adagrad", "rmsprop", "sgd")
SCHEDULES = ("cosine", "constant", "plateau")
CLIP_GROUPS = ("all", "group", "tensor")
PRECISIONS = ("auto", "float32", "bfloat16")
DEFAULT_MINUTES = 3.0
MOST_THREADS = 1024
LIMIT = 1 << 63  # of every number: what torch takes as a seed or a size

BUDGETS = ("steps", "epochs", "minutes")
Config = TypeVar("Config")


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained.

    Attributes:
        steps: a budget of so many updates of the weights. Give one of steps, epochs and minutes; none is 3 minutes.
        epochs: a budget of so many passes over the training part.
        minutes: a budget of wall time, evaluations included.
        batch: sequences that are trained side by side.
        accumulate: batches that make one update together, each token counting alike; 0 takes the whole epoch
            (full-batch descent).
        optimiser: adamw (Loshchilov & Hutter 2019), adam, adagrad (Duchi et al. 2011), rmsprop or sgd.
        lr: the highest learning rate.
        momentum: of sgd and rmsprop.
        beta1: of adam and adamw, for the mean of gradients.
        beta2: of adam and adamw, for the mean of their squares.
        weight_decay: on matrices, not on vectors, nor on word vectors that adagrad trains; decoupled in adamw,
            λ/2·Σw² in the loss elsewhere.
        schedule: cosine (to zero at the end of the budget), constant, or plateau (halved when two evaluations in a row
            bring no better score).
        warmup: updates over which the rate rises from 0.
        clip_norm: the largest norm of gradients (Pascanu et al. 2013); 0 does not clip.
        clip_groups: what that norm is of: all gradients together, each group of the optimiser (matrices, vectors, word
            vectors with sparse gradients), or each tensor; each is clipped by its own.
        clip_value: the largest absolute value of a gradient's component; 0 does not clip.
        evaluations: how often the validation part is scored in the course of the budget.
        patience: stop after this many evaluations in a row without a better score; 0 never does.
        seed: of the initial weights, the order of data and dropout.
        device: cpu, cuda, mps, or any name that torch knows.
        precision: float32; bfloat16 by torch.autocast; or auto, which takes bfloat16 on a processor that has
            instructions for it (AVX512_BF16), and float32 elsewhere.
        threads: of torch; 0 leaves them as they are.

    Raises:
        ArgumentError: a value out of its range.

    Example:
        >>> TrainingConfig(steps=100, lr=1e-3).schedule
        'cosine'
    """

    steps: int = 0
    epochs: float = 0.0
    minutes: float = 0.0
    batch: int = 64
    accumulate: int = 1
    optimiser: str = "adamw"
    lr: float = 0.01
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup: int = 50
    clip_norm: float = 1.0
    clip_groups: str = "all"
    clip_value: float = 0.0
    evaluations: int = 10
    patience: int = 0
    seed: int = 1
    device: str = "cpu"
    precision: str = "float32"
    threads: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        for name, legal in (
            ("optimiser", OPTIMISERS),
            ("schedule", SCHEDULES),
            ("clip_groups", CLIP_GROUPS),
            ("precision", PRECISIONS),
        ):
            value = getattr(self, name)
            if value not in legal:
                raise ArgumentError(f"Unknown {name} {value!r}: {nearest(str(value), legal)}.")
        if self.precision == "auto":
            fast = self.device == "cpu" and has_bfloat16()
            object.__setattr__(self, "precision", "bfloat16" if fast else "float32")
        check_least(self, 1, "batch", "evaluations")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not 0 <= value < LIMIT:
                raise ArgumentError(f"{field.name} must be 0 or greater and below 2^63, not {value}.")
        for name in ("momentum", "beta1", "beta2"):
            if getattr(self, name) >= 1:
                raise ArgumentError(f"{name} must be below 1, not {getattr(self, name)}.")
        if self.threads > MOST_THREADS:
            raise ArgumentError(f"threads must be at most {MOST_THREADS}, not {self.threads}.")
        budgets = [name for name in BUDGETS if getattr(self, name)]
        if len(budgets) > 1:
            raise ArgumentError(f"Give one budget, steps, epochs or minutes; came: {' and '.join(budgets)}.")
        if not budgets:
            object.__setattr__(self, "minutes", DEFAULT_MINUTES)


def from_json(kind: type[Config], values: Any, where: str) -> Config:
    """A config dataclass from a run's JSON; an unknown or missing key or an illegal value is an error.

    Raises:
        RunError: naming `where` and the key or value that does not fit.
    """
    if not isinstance(values, Mapping):
        raise RunError(f"{where} holds no object but {values!r}.")
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown = [key for key in values if key not in known]
    missing = [key for key in known if key not in values]
    if unknown:
        raise RunError(f"{where} holds the unknown key {unknown[0]!r}: {nearest(unknown[0], known)}.")
    if missing:
        raise RunError(f"{where} lacks the key {missing[0]!r}; it was cut or written by another version.")
    try:
        return kind(**values)
    except (ArgumentError, TypeError) as error:
        raise RunError(f"{where} holds a value that does not fit: {error}") from error


def check_types(config: Any) -> None:
    """Checks each field of a config dataclass against its type; a whole number will do for a float.

    Raises:
        ArgumentError: naming the field and the value.
    """
    for name, hint in get_type_hints(type(config)).items():
        value, kind = getattr(config, name), get_origin(hint) or hint
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or isinstance(value, bool) != (kind is bool):
            raise ArgumentError(f"{name} must be of type {kind.__name__}, not {value!r}.")


def check_least(config: Any, least: int, *names: str) -> None:
    """Raises ArgumentError unless these fields are at least so great."""
    for name in names:
        if getattr(config, name) < least:
            raise ArgumentError(f"{name} must be at least {least}, not {getattr(config, name)}.")


def check_dropout(config: Any) -> None:
    """Raises ArgumentError unless the config's dropout is a share that leaves something."""
    if not 0 <= config.dropout < 1:
        raise ArgumentError(f"dropout must lie in 0 to 1 (exclusive), not {config.dropout}.")


def settle_paths(config: Any, *names: str) -> None:
    """Makes tuples of texts of fields of a frozen config that were given as one path, or as several.

    Raises:
        ArgumentError: naming the field and the value, where it is neither.
    """
    for name in names:
        given = getattr(config, name)
        several = [given] if isinstance(given, str | PathLike) else given
        if not isinstance(several, list | tuple) or not all(isinstance(each, str | PathLike) for each in several):
            raise ArgumentError(f"{name} must be a path or several, not {given!r}.")
        object.__setattr__(config, name, tuple(map(str, several)))
