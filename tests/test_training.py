"""The training loop on tasks that are no language models, against loops by hand; resume, bit for bit; damage."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comparison import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import ritornello as rit
from ritornello import processor
from ritornello.cli.info import info
from ritornello.errors import ArgumentError, DataError, RitornelloError, RunError
from ritornello.tasks import language_model
from ritornello.tasks.language_model_config import LanguageModelConfig, TextConfig
from ritornello.training import Display, TrainingConfig, files, loop
from ritornello.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from ritornello.training.config import from_json
from ritornello.training.files import read_tensors, write_tensors
from ritornello.training.optimise import clip, learning_rate, make_optimiser
from ritornello.training.run import Run, alone

TIMES = ("seconds", "epoch_seconds", "tokens_per_second")


class Regression:
    """Linear regression on windows of as many rows as `sizes` says: a task that the loop was not written for."""

    criterion = "valid_loss"

    def __init__(self, sizes: tuple[int, ...] = (4, 4, 4)) -> None:
        generator = torch.Generator().manual_seed(1)
        rows = torch.randn(sum(sizes) + 8, 4, generator=generator, dtype=torch.float64)
        self.data = [(part[:, :3], part[:, 3:]) for part in rows.split([*sizes, 8])]

    def windows(self) -> int:
        return len(self.data) - 1

    def batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self.data[start:-1]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], carry: Any) -> tuple[Tensor, Any, int]:
        inputs, targets = batch
        return ((model(inputs) - targets) ** 2).mean(), None, len(inputs)

    def blank(self, model: nn.Module) -> Any:
        return None

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            loss = float(self.loss(model, self.data[-1], None)[0])
        return {"valid_loss": loss, "valid_root": math.sqrt(loss)}


class Slope:
    """A loss whose gradient is always `gradient`, and validation losses as they were written down."""

    criterion = "valid_loss"

    def __init__(
        self, gradient: list[float], *, windows: int = 4, valid: list[float] | None = None, bad: int | None = None
    ) -> None:
        self.gradient, self.count, self.bad = torch.tensor([gradient]), windows, bad
        self.valid = iter(valid or itertools.count(1000, -1))
        self.seen = 0

    def windows(self) -> int:
        return self.count

    def batches(self, epoch: int, start: int) -> Iterator[int]:
        yield from range(start, self.count)

    def loss(self, model: nn.Module, batch: int, carry: Any) -> tuple[Tensor, Any, int]:
        self.seen += 1
        loss = (model.weight * self.gradient).sum()
        return (loss * math.nan if self.seen == self.bad else loss), None, 10

    def blank(self, model: nn.Module) -> Any:
        return None

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"valid_loss": float(next(self.valid))}


class Watch:
    """Keeps what it is shown; raises or calls where it is told to."""

    def __init__(self, model: nn.Module | None = None, at: dict[int, Callable[[], None]] | None = None) -> None:
        self.model, self.at = model, at or {}
        self.losses: list[float] = []
        self.weights: list[Tensor] = []
        self.rows: list[dict[str, Any]] = []
        self.best: list[bool] = []

    def preparing(self, stage: str, done: int, total: int) -> None: ...

    def update(self, progress: Progress, fraction: float, loss: float, tokens: int) -> None:
        self.losses.append(loss)
        if self.model is not None:
            self.weights.append(self.model.weight.detach().clone())
        self.at.get(progress.step, lambda: None)()

    def evaluated(self, row: dict[str, Any], best: bool) -> None:
        self.rows.append(row)
        self.best.append(best)


class Stopped(Exception):
    """What a test stops training with."""


def stop() -> None:
    raise Stopped


@pytest.fixture
def run(tmp_path: Path) -> Run:
    with Run.prepare(tmp_path / "run", "a test", {}) as run:
        pass
    return run.moved(tmp_path / "run")


def fit(task: Any, model: nn.Module, run: Run, **options: Any) -> tuple[Progress, Watch]:
    """Trains with constant rate and nothing that changes gradients, but for what is asked."""
    plain = {"schedule": "constant", "warmup": 0, "clip_norm": 0.0, "weight_decay": 0.0, "lr": 0.1, "optimiser": "sgd"}
    watch = options.pop("watch", None) or Watch(model)
    resume = options.pop("resume", False)
    progress, _ = loop.train(
        task, model, TrainingConfig(**{**plain, "momentum": 0.0, **options}), run, resume=resume, watch=watch
    )
    return progress, watch


def linear() -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(3, 1).double()


class TestSchedules:
    """The rate of each update: what plain gradient descent moves by where the gradient is always 1."""

    def rates(self, run: Run, **options: Any) -> list[float]:
        model = nn.Linear(1, 1, bias=False).double()
        before = float(model.weight.detach())
        _, watch = fit(Slope([1.0], valid=options.pop("valid", None)), model, run, **options)
        places = [before, *(float(weight) for weight in watch.weights)]
        return [one - other for one, other in itertools.pairwise(places)]

    def test_constant(self, run):
        assert self.rates(run, steps=5, lr=0.3) == pytest.approx([0.3] * 5, rel=1e-9)

    def test_cosine_falls_to_zero_over_the_steps(self, run):
        expected = [0.3 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
        assert self.rates(run, steps=8, lr=0.3, schedule="cosine") == pytest.approx(expected, rel=1e-9)

    def test_cosine_falls_to_zero_over_the_epochs(self, run):
        expected = [0.3 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
        assert self.rates(run, epochs=1.5, lr=0.3, schedule="cosine") == pytest.approx(expected, rel=1e-9)

    def test_cosine_falls_to_zero_over_the_minutes(self, run, monkeypatch):
        clock = Clock(monkeypatch)
        monkeypatch.setattr(Slope, "loss", clock.taking(6, Slope.loss))
        expected = [0.3 * (1 + math.cos(math.pi * step / 5)) / 2 for step in range(5)]
        rates = self.rates(run, minutes=0.5, lr=0.3, schedule="cosine", evaluations=1)
        assert rates == pytest.approx(expected, rel=1e-9)

    def test_warm_up_is_linear(self, run):
        assert self.rates(run, steps=6, lr=0.4, warmup=4) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rel=1e-9)

    def test_warm_up_multiplies_the_schedule(self):
        config = TrainingConfig(steps=10, lr=1.0, warmup=10)
        assert learning_rate(config, 4, 0.4, 1.0) == pytest.approx(0.5 * 0.5 * (1 + math.cos(0.4 * math.pi)))

    def test_plateau_halves_after_two_evaluations_without_a_better_loss(self, run):
        valid = [3.0, 2.0, 2.5, 1.9, 2.5, 1.9, 2.5, 2.5, 1.0, 1.5]
        rates = self.rates(run, steps=10, lr=0.8, schedule="plateau", valid=valid)
        assert rates == pytest.approx([0.8] * 6 + [0.4] * 2 + [0.2] * 2, rel=1e-9)

    def test_only_plateau_listens_to_plateaus(self, run):
        assert self.rates(run, steps=4, lr=0.8, valid=[1.0, 2.0, 2.0, 2.0]) == pytest.approx([0.8] * 4, rel=1e-9)


def by_hand(optimiser: str, model: nn.Linear, task: Regression, updates: int, o: TrainingConfig) -> list[float]:
    """Update after update, from the equations; weight decay on the matrix alone."""
    losses, memory = [], {name: {"m": 0.0, "v": 0.0} for name in ("weight", "bias")}
    for t in range(1, updates + 1):
        batch = task.data[(t - 1) % task.windows()]
        loss, _, _ = task.loss(model, batch, None)
        losses.append(float(loss.detach()))
        gradients = torch.autograd.grad(loss, [model.weight, model.bias])
        for name, parameter, g in zip(memory, (model.weight, model.bias), gradients, strict=True):
            state, w = memory[name], parameter.detach().clone()
            decay = o.weight_decay if name == "weight" else 0.0
            if optimiser == "adamw":
                w = w - o.lr * decay * w
            else:
                g = g + decay * w
            if optimiser in ("adam", "adamw"):
                state["m"] = o.beta1 * state["m"] + (1 - o.beta1) * g
                state["v"] = o.beta2 * state["v"] + (1 - o.beta2) * g**2
                m, v = state["m"] / (1 - o.beta1**t), state["v"] / (1 - o.beta2**t)
                w = w - o.lr * m / (v.sqrt() + 1e-8)
            elif optimiser == "adagrad":
                state["v"] = state["v"] + g**2
                w = w - o.lr * g / (state["v"].sqrt() + 1e-10)
            elif optimiser == "rmsprop":
                state["v"] = 0.99 * state["v"] + 0.01 * g**2
                state["m"] = o.momentum * state["m"] + g / (state["v"].sqrt() + 1e-8)
                w = w - o.lr * state["m"]
            else:
                state["m"] = o.momentum * state["m"] + g
                w = w - o.lr * state["m"]
            parameter.data = w
    return losses


class TestOptimisers:
    @pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw", "adagrad", "rmsprop"])
    @pytest.mark.parametrize(
        "options", [{"momentum": 0.0}, {"momentum": 0.8, "weight_decay": 0.1, "beta1": 0.7, "beta2": 0.8}]
    )
    def test_the_equations(self, run, optimiser, options):
        ours, theirs, task = linear(), linear(), Regression()
        options = {"optimiser": optimiser, "lr": 0.03, "weight_decay": 0.0, **options}
        _, watch = fit(task, ours, run, steps=10, **options)
        losses = by_hand(optimiser, theirs, task, 10, TrainingConfig(**options))
        assert_close(torch.tensor(watch.losses).double(), torch.tensor(losses).double())
        assert_close(ours.weight, theirs.weight)
        assert_close(ours.bias, theirs.bias)

    @pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw", "adagrad", "rmsprop"])
    def test_weight_decay_touches_matrices_only(self, run, optimiser):
        model, task = linear(), Regression()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        task.loss = lambda model, batch, carry: (0 * model(batch[0]).sum(), None, 1)
        fit(task, model, run, steps=2, optimiser=optimiser, weight_decay=0.5)
        assert (model.weight.abs() < before[0].abs()).all()
        assert torch.equal(model.bias, before[1])

    def test_a_frozen_parameter_stays(self, run):
        model = linear()
        model.bias.requires_grad_(False)
        before = model.bias.clone()
        fit(Regression(), model, run, steps=2, optimiser="adamw", weight_decay=0.1)
        assert torch.equal(model.bias, before)


class TestAccumulation:
    @pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
    def test_windows_that_accumulate_are_one_batch(self, tmp_path, optimiser):
        """Three windows of unlike sizes make the same updates as one window of all their rows."""
        found = []
        for name, sizes, accumulate in (("a", (5, 3, 2), 3), ("b", (5, 3, 2), 0), ("c", (10,), 1)):
            with Run.prepare(tmp_path / name, "a test", {}) as run:
                pass
            model = linear()
            options = {"accumulate": accumulate, "optimiser": optimiser, "weight_decay": 0.1, "clip_norm": 0.5}
            progress, watch = fit(Regression(sizes), model, run.moved(tmp_path / name), epochs=6, **options)
            assert progress.step == 6
            found.append(
                [
                    torch.tensor(watch.losses).double(),
                    *model.parameters(),
                    torch.tensor([row["train_loss"] for row in watch.rows]).double(),
                ]
            )
        assert_close(found[0], found[2])
        assert_close(found[1], found[2])

    def test_an_update_does_not_reach_into_the_next_epoch(self, run):
        progress, watch = fit(Slope([1.0], windows=5), nn.Linear(1, 1, bias=False), run, epochs=2, accumulate=2)
        assert (progress.step, len(watch.losses)) == (6, 6)


class TestCarry:
    def test_a_state_goes_from_window_to_window_without_its_graph_and_ends_with_the_epoch(self, run):
        task, came = Slope([1.0], windows=3), []

        def loss(model: nn.Module, batch: int, carry: Any) -> tuple[Tensor, Any, int]:
            came.append(carry and int(carry[0]))
            assert not (carry and carry[0].requires_grad)
            grown = model.weight.sum() * 0 + (carry[0] + 1 if carry else 1)
            return grown, (grown,), 10

        task.loss = loss
        fit(task, nn.Linear(1, 1, bias=False), run, epochs=2, accumulate=2)
        assert came == [None, 1, 2, None, 1, 2]


class TestClipping:
    """Each option by itself: a step of plain descent from a gradient of (3, -4), whose norm is 5."""

    @pytest.mark.parametrize(
        ("options", "moved"),
        [
            ({}, [3.0, -4.0]),
            ({"clip_norm": 1.0}, [0.6, -0.8]),
            ({"clip_norm": 5.5}, [3.0, -4.0]),
            ({"clip_value": 0.5}, [0.5, -0.5]),
            ({"clip_value": 3.5}, [3.0, -3.5]),
            ({"clip_value": 3.0, "clip_norm": 1.0}, [0.5**0.5, -(0.5**0.5)]),
        ],
    )
    def test_a_step(self, run, options, moved):
        model = nn.Linear(2, 1, bias=False)
        before = model.weight.detach().clone()
        fit(Slope([3.0, -4.0]), model, run, steps=1, lr=1.0, **options)
        assert_close((before - model.weight)[0], torch.tensor(moved))


def test_word_vectors_with_sparse_gradients_are_a_group_of_their_own():
    model = nn.Sequential(nn.Embedding(7, 3, sparse=True), nn.Linear(3, 2))
    groups = make_optimiser(model, TrainingConfig(steps=1, optimiser="adagrad", weight_decay=0.3)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [([names[id(parameter)] for parameter in group["params"]], group["weight_decay"]) for group in groups]
    assert found == [(["1.weight"], 0.3), (["1.bias"], 0.0), (["0.weight"], 0.0)]


@pytest.mark.parametrize(
    ("groups", "scales"),
    [("all", (0.1, 0.1, 0.1)), ("group", (84**-0.5, 84**-0.5, 0.25)), ("tensor", (20**-0.5, 0.125, 0.25))],
)
def test_each_group_is_clipped_by_its_own_norm(groups, scales):
    """Two matrices with gradients of norm √20 and 8, a vector with one of norm 4: 10 together."""
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 16, bias=False))
    config = TrainingConfig(steps=1, clip_norm=1.0, clip_groups=groups)
    gradients = (torch.ones(4, 5), torch.ones(16, 4), torch.full((4,), 2.0))
    parameters = (model[0].weight, model[1].weight, model[0].bias)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    clip(make_optimiser(model, config), config)
    for parameter, gradient, scale in zip(parameters, gradients, scales, strict=True):
        assert_close(parameter.grad, gradient * scale)


def words(sparse: bool) -> nn.Module:
    """Rows of an embedding, some of them read twice and most never, into a layer."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Embedding(50, 6, sparse=sparse), nn.Linear(6, 4))
    ids = torch.tensor([3, 7, 3, 3, 49])
    for _ in range(2):  # gradients that are added up
        (model(ids).square().sum() * 30).backward()
    return model


@pytest.mark.parametrize(
    "options",
    [{"clip_norm": 0.5}, {"clip_norm": 1e9}, {"clip_value": 0.7}, {"clip_value": 1.5, "clip_norm": 2.0}],
    ids=str,
)
@pytest.mark.parametrize("groups", ["all", "tensor"])
def test_sparse_gradients_are_clipped_as_torch_clips_dense_ones(options, groups):
    ours, theirs = words(sparse=True), words(sparse=False)
    config = TrainingConfig(steps=1, optimiser="adagrad", clip_groups=groups, **{"clip_norm": 0.0, **options})
    clip(make_optimiser(ours, config), config)
    parameters = list(theirs.parameters())
    if config.clip_value:
        nn.utils.clip_grad_value_(parameters, config.clip_value)
    if config.clip_norm:
        for together in [parameters] if groups == "all" else [[parameter] for parameter in parameters]:
            nn.utils.clip_grad_norm_(together, config.clip_norm)
    assert ours[0].weight.grad.is_sparse
    for one, other in zip(ours.parameters(), parameters, strict=True):
        assert_close(one.grad.to_dense(), other.grad)


def test_weight_decay_does_not_fall_on_rows_that_were_not_read():
    model = words(sparse=True)
    before = model[0].weight.detach().clone()
    make_optimiser(model, TrainingConfig(steps=1, optimiser="adagrad", weight_decay=0.5)).step()
    changed = (model[0].weight != before).any(1)
    assert changed.nonzero().flatten().tolist() == [3, 7, 49]


def test_groups_to_clip_that_there_are_not():
    with pytest.raises(ArgumentError, match=r"^Unknown clip_groups 'tensors': did you mean tensor\? Known: all, group"):
        TrainingConfig(clip_groups="tensors")


class Clock:
    """Stands still but for what takes time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: self.now))

    def taking(self, seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*args: Any, **kwargs: Any) -> Any:
            self.now += seconds
            return function(*args, **kwargs)

        return slow


class TestBudget:
    def updates(self, run: Run, **options: Any) -> int:
        task = Slope([1.0], windows=4)
        progress, watch = fit(task, nn.Linear(1, 1, bias=False), run, **options)
        assert progress.step == len(watch.losses)
        assert task.seen == progress.step or "accumulate" in options
        return progress.step

    @pytest.mark.parametrize("steps", [1, 3, 4, 9])
    def test_steps(self, run, steps):
        assert self.updates(run, steps=steps) == steps

    @pytest.mark.parametrize(("epochs", "updates"), [(1, 4), (0.25, 1), (0.3, 2), (2.5, 10), (3, 12)])
    def test_epochs(self, run, epochs, updates):
        assert self.updates(run, epochs=epochs) == updates

    @pytest.mark.parametrize(("accumulate", "updates"), [(1, 8), (2, 4), (3, 4), (4, 2), (0, 2), (100, 2)])
    def test_epochs_where_batches_accumulate(self, run, accumulate, updates):
        assert self.updates(run, epochs=2, accumulate=accumulate) == updates

    def test_minutes_with_evaluations_included(self, run, monkeypatch):
        clock = Clock(monkeypatch)
        monkeypatch.setattr(Slope, "loss", clock.taking(2, Slope.loss))
        assert self.updates(run, minutes=0.5, evaluations=1) == 15
        monkeypatch.setattr(Slope, "evaluate", clock.taking(7, Slope.evaluate))
        assert self.updates(run, minutes=0.5, evaluations=2) == 12

    @pytest.mark.parametrize(
        ("steps", "evaluations", "at"),
        [
            (10, 1, [10]),
            (10, 5, [2, 4, 6, 8, 10]),
            (3, 10, [1, 2, 3]),
            (7, 2, [4, 7]),
            (100, 100, list(range(1, 101))),
        ],
    )
    def test_evaluations(self, run, steps, evaluations, at):
        fit(Slope([1.0]), nn.Linear(1, 1, bias=False), run, steps=steps, evaluations=evaluations)
        assert [row["step"] for row in run.metrics()] == at


class TestCriterion:
    def test_the_weights_that_are_kept_are_the_best_by_the_task_s_own_score(self, run, capsys):
        task = Slope([1.0], valid=[4.0, 3.0, 2.0, 1.0])
        task.criterion, task.errors = "valid_error", iter([0.5, 0.2, 0.2, 0.4])
        evaluate = task.evaluate
        task.evaluate = lambda model: evaluate(model) | {"valid_error": next(task.errors)}
        model = nn.Linear(1, 1, bias=False)
        progress, watch = fit(task, model, run, steps=4, evaluations=4)
        assert watch.best == [True, True, False, False]
        assert (progress.best_step, progress.best_score, progress.waiting) == (2, 0.2, 2)
        kept, about = read_tensors(run.model_file)
        assert about == {"step": 2, "valid_loss": 3.0}
        assert torch.equal(kept["weight"], watch.weights[1])
        info(str(run.path))
        assert "best                  valid_loss 3.0000, valid_error 0.2000" in capsys.readouterr().out


class TestPatience:
    VALID = (5.0, 4.0, 4.0, 3.0, 3.5, 3.2, 2.0, 9.0, 9.0, 9.0, 1.0)

    @pytest.mark.parametrize(
        ("patience", "stops", "best"), [(1, 3, 2), (2, 6, 4), (3, 10, 7), (4, 11, 11), (0, 11, 11)]
    )
    def test_stops_after_so_many_evaluations_without_a_better_loss(self, run, patience, stops, best):
        model = nn.Linear(1, 1, bias=False)
        options = {"steps": 11, "evaluations": 11, "patience": patience}
        progress, watch = fit(Slope([1.0], valid=list(self.VALID)), model, run, **options)
        assert (progress.step, progress.best_step) == (stops, best)
        tensors, about = read_tensors(run.model_file)
        assert torch.equal(tensors["weight"], watch.weights[best - 1]), "the weights that are kept are the best"
        assert about == {"step": best, "valid_loss": self.VALID[best - 1]}
        assert watch.best == [loss < min((9.9, *self.VALID[:n])) for n, loss in enumerate(self.VALID[:stops])]

        again, watch = fit(Slope([1.0]), model, run, resume=True, **options)
        assert (again.step, watch.losses) == (stops, []), "and resuming does not begin again"


class TestNoNumber:
    def test_a_loss_that_is_none_ends_training_and_nothing_is_lost(self, run):
        model = nn.Linear(1, 1, bias=False)
        watch = Watch(model)
        with pytest.raises(RunError, match=r"The loss is nan after 5 updates; .* lower --lr or a smaller --clip-norm"):
            fit(Slope([1.0], bad=6), model, run, steps=10, evaluations=5, watch=watch)
        assert torch.equal(model.weight, watch.weights[4]), "no update was made with it"
        fresh = nn.Linear(1, 1, bias=False)
        config = TrainingConfig(steps=10, optimiser="sgd")
        _, progress = load_checkpoint(run.checkpoint_file, fresh, make_optimiser(fresh, config), None)
        assert progress.step == 4
        assert torch.equal(fresh.weight, watch.weights[3])

    def test_from_the_first_update_on(self, run):
        told = (
            r"The loss is nan after 0 updates\. Nothing is learnt yet: the cell, or its first weights, give no finite"
        )
        with pytest.raises(RunError, match=told):
            fit(Slope([1.0], bad=1), nn.Linear(1, 1, bias=False), run, steps=3, evaluations=3)

    def test_a_validation_loss_that_is_none(self, run):
        with pytest.raises(RunError, match="The loss is nan after 2 updates"):
            fit(Slope([1.0], valid=[1.0, math.nan]), nn.Linear(1, 1, bias=False), run, steps=3, evaluations=3)
        assert [row["step"] for row in run.metrics()] == [1]


class TestLog:
    FIELDS = ("step", "epoch", "seconds", "epoch_seconds", "train_loss", "valid_loss", "tokens_per_second")

    @pytest.fixture
    def rows(self, run, monkeypatch) -> list[dict[str, Any]]:
        """Windows of 5, 3 and 2 rows take 2 s each and an evaluation 4 s."""
        clock = Clock(monkeypatch)
        monkeypatch.setattr(Regression, "batches", _slow_batches(clock))
        monkeypatch.setattr(Regression, "evaluate", clock.taking(4, Regression.evaluate))
        _, self.watch = fit(Regression((5, 3, 2)), linear(), run, steps=6, evaluations=3)
        return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]

    def test_the_fields_and_then_the_tasks_own(self, rows):
        assert [list(row) for row in rows] == [[*self.FIELDS, "valid_root"]] * 3

    def test_the_values(self, rows):
        losses = self.watch.losses
        assert rows == self.watch.rows
        assert [row["step"] for row in rows] == [2, 4, 6]
        assert [row["epoch"] for row in rows] == pytest.approx([2 / 3, 4 / 3, 2])
        assert [row["seconds"] for row in rows] == [4, 12, 20]
        assert [row["epoch_seconds"] for row in rows] == pytest.approx([6, 6, 6])
        assert [row["tokens_per_second"] for row in rows] == pytest.approx([8 / 4, 7 / 4, 5 / 4])
        expected = [
            (5 * losses[0] + 3 * losses[1]) / 8,
            (2 * losses[2] + 5 * losses[3]) / 7,
            (3 * losses[4] + 2 * losses[5]) / 5,
        ]
        assert [row["train_loss"] for row in rows] == pytest.approx(expected, rel=1e-12)
        assert [row["valid_root"] ** 2 for row in rows] == pytest.approx([row["valid_loss"] for row in rows])
        assert len({row["valid_loss"] for row in rows}) == 3

    def test_the_events_hold_the_same_numbers(self, rows, run):
        assert events(run) == expected_events(rows)

    def test_a_resumed_log_has_no_row_twice(self, rows, run):
        fit(Regression((5, 3, 2)), linear(), run, steps=9, evaluations=3, resume=True)
        longer = run.metrics()
        assert longer[:3] == rows
        assert [row["step"] for row in longer] == [2, 4, 6, 9]
        assert events(run) == expected_events(longer)

    def test_a_line_that_was_cut_short_is_left_out(self, rows, run):
        with open(run.metrics_file, "a") as file:
            file.write('{"step": 99')
        assert run.metrics() == rows

    @pytest.mark.parametrize(
        ("line", "message"),
        [("{'step'}", "metrics.jsonl is damaged: Expecting"), ("[3]", "damaged: a line is no object"), ("\x00", "dam")],
    )
    def test_a_damaged_line_is_an_error(self, rows, run, line, message):
        with open(run.metrics_file, "a") as file:
            file.write(line + "\n")
        with pytest.raises(RunError, match=message):
            run.metrics()

    def test_a_log_that_was_deleted_begins_anew(self, rows, run):
        run.metrics_file.unlink()
        fit(Regression((5, 3, 2)), linear(), run, steps=9, evaluations=3, resume=True)
        assert [row["step"] for row in run.metrics()] == [9]


def _slow_batches(clock: Clock) -> Callable[..., Any]:
    def batches(self: Regression, epoch: int, start: int) -> Iterator[Any]:
        for batch in self.data[start:-1]:
            clock.now += 2
            yield batch

    return batches


def events(run: Run) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(run.path / "tensorboard"))
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def expected_events(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, Any]]]:
    return {
        name: [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows] for name in rows[0] if name != "step"
    }


class TestDisplay:
    def shown(self, **options: Any) -> str:
        console = Console(file=io.StringIO(), width=120, **options)
        with Display(console, every=0) as display:
            display.preparing("scan", 1, 2)
            for step in range(1, 5):
                display.update(Progress(step=step), step / 4, 1.5, 10)
            row = {"step": 4, "seconds": 75, "train_loss": 1.25, "valid_loss": 1.5, "tokens_per_second": 1234.5}
            display.evaluated(row, True)
        return console.file.getvalue()

    def test_a_line_an_evaluation_anywhere(self):
        line = "step      4 · 1:15 · train 1.2500 · valid 1.5000 nats · 1,234 tokens/s · best so far\n"
        assert self.shown(force_terminal=False) == line

    def test_a_bar_with_loss_speed_and_time_left_on_a_terminal(self):
        shown = self.shown(force_terminal=True)
        assert "reading" in shown
        assert "loss 1.500" in shown
        assert "tokens/s" in shown
        assert "0:00 left" in shown
        assert "best so far" in shown


class TestInterrupt:
    def test_a_first_ctrl_c_waits_for_the_update_and_then_all_is_kept(self, tmp_path):
        whole, halved = tmp_path / "whole", tmp_path / "halved"
        models = []
        for path in (whole, halved):
            with Run.prepare(path, "a test", {}):
                pass
            models.append(linear())
        options = {"steps": 8, "evaluations": 2, "optimiser": "adam"}
        fit(Regression(), models[0], Run.open(whole), **options)

        watch = Watch(at={3: lambda: signal.raise_signal(signal.SIGINT)})
        handler = signal.getsignal(signal.SIGINT)
        config = TrainingConfig(**options, lr=0.1, schedule="constant", warmup=0, clip_norm=0, weight_decay=0)
        progress, interrupted = loop.train(Regression(), models[1], config, Run.open(halved), watch=watch)
        assert (interrupted, progress.step, len(watch.losses)) == (True, 3, 3)
        assert signal.getsignal(signal.SIGINT) is handler
        assert "weight" in read_tensors(Run.open(halved).model_file)[0], "a model to sample from, not yet evaluated"
        assert read_tensors(Run.open(halved).checkpoint_file)[1]["step"] == 3

        fit(Regression(), linear(), Run.open(halved), resume=True, **options)
        assert everything(halved) == everything(whole)

    def test_one_after_the_last_update_stops_nothing(self, tmp_path):
        with Run.prepare(tmp_path / "run", "a test", {}):
            pass
        watch = Watch(at={4: lambda: signal.raise_signal(signal.SIGINT)})
        config = TrainingConfig(steps=4, evaluations=1, optimiser="adam")
        progress, interrupted = loop.train(Regression(), linear(), config, Run.open(tmp_path / "run"), watch=watch)
        assert (interrupted, progress.step) == (False, 4)

    def test_a_second_one_stops_at_once(self):
        with loop.interruptible() as interrupted:
            signal.raise_signal(signal.SIGINT)
            assert interrupted()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)

    def test_another_thread_has_none(self):
        found = []

        def ask() -> None:
            with loop.interruptible() as interrupted:
                found.append(interrupted())

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert found == [False]


# A small language model, its dropout on, whose twelve updates cross an epoch's end: what is stopped and resumed below.
SMALL = {
    "steps": 12,
    "evaluations": 4,
    "batch": 4,
    "window": 8,
    "hidden": 8,
    "layers": 2,
    "dropout": 0.3,
    "lr": 0.02,
    "warmup": 2,
    "seed": 3,
}
TEXT = "".join(f"{number * number % 97:02} " for number in range(105))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "squares.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    path = tmp_path_factory.mktemp("whole") / "run"
    language_model.train(path, train=text, **SMALL)
    return path


@pytest.fixture(scope="module")
def said(whole: Path) -> str:
    """What that run's model says."""
    return rit.load(whole).sample("1", length=5)


def everything(path: Path) -> dict[str, Any]:
    """All that must not depend on having been stopped: weights and their file, all state, the log but for times."""
    run = Run.open(path)
    tensors, about = read_tensors(run.checkpoint_file)
    clocks = ("seconds", "training_seconds", "log_size")
    return {
        "model file": run.model_file.read_bytes(),
        "state": {name: (tensor.dtype, tensor.numpy().tobytes()) for name, tensor in tensors.items()},
        "progress": {name: value for name, value in about.items() if name not in clocks},
        "log": [{name: value for name, value in row.items() if name not in TIMES} for row in run.metrics()],
    }


class TestResume:
    def test_the_run_holds_what_it_should(self, whole):
        found = everything(whole)
        assert found["progress"]["step"] == 12
        assert found["progress"]["epoch"] == 1, "an epoch ended on the way"
        names = set(found["state"])
        assert {"random.cpu", "carry.0", "carry.3", "model.embed.weight", "optimiser.0.exp_avg"} <= names
        assert [row["step"] for row in found["log"]] == [3, 6, 9, 12]

    def test_the_seed_decides(self, whole, text, tmp_path):
        language_model.train(tmp_path / "same", train=text, **SMALL)
        language_model.train(tmp_path / "other", train=text, **{**SMALL, "seed": 4})
        assert everything(tmp_path / "same") == everything(whole)
        assert everything(tmp_path / "other")["model file"] != everything(whole)["model file"]

    @pytest.mark.parametrize("seconds", [-1, 1e9], ids=["a checkpoint an update", "a checkpoint an evaluation"])
    @pytest.mark.parametrize("step", range(1, 13))
    def test_stopped_after_any_update(self, whole, text, tmp_path, monkeypatch, step, seconds):
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", seconds)
        out = tmp_path / "run"
        with pytest.raises(Stopped):
            language_model.train(out, train=text, **SMALL, watch=Watch(at={step: stop}))
        language_model.resume(out)
        assert everything(out) == everything(whole)

    def test_stopped_again_and_again(self, whole, text, tmp_path, monkeypatch):
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
        out, stops = tmp_path / "run", 0
        with pytest.raises(Stopped):
            language_model.train(out, train=text, **SMALL, watch=Watch(at={2: stop}))
        while Run.open(out).metrics()[-1:] == [] or Run.open(out).metrics()[-1]["step"] < 12:
            done = read_tensors(Run.open(out).checkpoint_file)[1]["step"]
            try:
                language_model.resume(out, watch=Watch(at={done + 2: stop}))
            except Stopped:
                stops += 1
        assert stops >= 5
        assert everything(out) == everything(whole)

    @pytest.mark.parametrize(
        "options",
        [
            {"optimiser": "sgd"},
            {"optimiser": "rmsprop", "clip_value": 0.1},
            {"optimiser": "adam", "accumulate": 2, "precision": "bfloat16"},
            {"schedule": "plateau", "cell": "gru", "lr": 0.5},
            {"epochs": 1.2, "steps": 0, "accumulate": 0, "tied": False},
        ],
        ids=lambda options: "-".join(map(str, options.values())),
    )
    def test_other_options(self, text, tmp_path, options):
        options = {**SMALL, **options}
        language_model.train(tmp_path / "whole", train=text, **options)
        with pytest.raises(Stopped):
            language_model.train(tmp_path / "halved", train=text, **options, watch=Watch(at={2: stop, 5: stop}))
        language_model.resume(tmp_path / "halved")
        assert everything(tmp_path / "halved") == everything(tmp_path / "whole")

    def test_what_was_logged_after_the_checkpoint_is_cut_off(self, whole, text, tmp_path, monkeypatch):
        out, save, calls = tmp_path / "run", loop.save_checkpoint, itertools.count(1)
        monkeypatch.setattr(loop, "save_checkpoint", lambda *args: stop() if next(calls) == 3 else save(*args))
        with pytest.raises(Stopped):
            language_model.train(out, train=text, **SMALL)
        assert [row["step"] for row in Run.open(out).metrics()] == [3, 6, 9]
        monkeypatch.undo()
        language_model.resume(out)
        assert everything(out) == everything(whole)
        assert [step for step, _ in events(Run.open(out))["valid_loss"]] == [3, 6, 9, 12]

    def test_a_run_that_is_complete_stays_as_it_is(self, whole, tmp_path):
        shutil.copytree(whole, tmp_path / "run")
        model = language_model.resume(tmp_path / "run")
        assert everything(tmp_path / "run") == everything(whole)
        assert model.sample("1", length=20) == rit.load(whole).sample("1", length=20)

    def test_the_text_is_not_needed_once_it_is_encoded(self, whole, tmp_path, text):
        copy = tmp_path / "text.txt"
        shutil.copy(text, copy)
        with pytest.raises(Stopped):
            language_model.train(tmp_path / "run", train=copy, **SMALL, watch=Watch(at={4: stop}))
        copy.unlink()
        language_model.resume(tmp_path / "run")
        assert everything(tmp_path / "run") == everything(whole)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"given": {"hidden": 16}}, r"hidden is 8 in .* and cannot become 16; leave it out"),
            ({"given": {"minutes": 2.0}}, r"has a budget in steps; give more of these, --steps, not minutes\."),
            ({"given": {"steps": 6}}, r"steps is 12 in .* and cannot become 6; leave it out"),
            ({"given": {"device": "nowhere"}}, r"Device 'nowhere' cannot be used here"),
            ({"cell": "gru"}, r"was trained with the cell 'lstm', not 'gru'"),
        ],
    )
    def test_options_that_are_not_its_own(self, whole, options, message):
        with pytest.raises((ArgumentError, RunError), match=message):
            language_model.resume(whole, **options)

    def test_options_that_are_its_own(self, whole, tmp_path, text):
        shutil.copytree(whole, tmp_path / "run")
        language_model.resume(tmp_path / "run", given={**SMALL, "train": [str(text)], "cell": "lstm"})
        assert everything(tmp_path / "run") == everything(whole)

    def test_a_complete_run_goes_on_with_a_larger_budget(self, whole, tmp_path):
        """Evaluations are where the new budget has them; what was there stays, and threads may be others."""
        shutil.copytree(whole, tmp_path / "run")
        language_model.resume(tmp_path / "run", given={"steps": 24, "threads": 1})
        run = Run.open(tmp_path / "run")
        assert [row["step"] for row in run.metrics()] == [3, 6, 9, 12, 18, 24]
        assert run.metrics()[:4] == Run.open(whole).metrics()
        assert (run.section("training")["steps"], run.section("training")["threads"]) == (24, 1)
        before = everything(tmp_path / "run")
        language_model.resume(tmp_path / "run")
        assert everything(tmp_path / "run") == before

    def test_ctrl_c_is_told_in_python_too(self, tmp_path, text, caplog, monkeypatch):
        monkeypatch.setattr(loop, "interruptible", lambda: contextlib.nullcontext(lambda: True))
        run = language_model.train(tmp_path / "run", train=text, **SMALL)
        assert run.interrupted
        assert f"Stopped by Ctrl-C; all is kept in {tmp_path / 'run'}, and resume goes on from it." in caplog.messages

    def test_nothing_to_resume(self, tmp_path, text):
        with pytest.raises(RunError, match=r"There is no run .*nowhere; rit train makes one"):
            language_model.resume(tmp_path / "nowhere")
        with Run.prepare(tmp_path / "other", "a test", {}):
            pass
        with pytest.raises(RunError, match="holds the task 'a test'; expected 'language-model'"):
            language_model.resume(tmp_path / "other")


PRELOADED = ["hypothesis", "pytest", "rich.progress", "ritornello.tasks.language_model", "tensorboard", "torch._dynamo"]
DEATHS = ("fsync", "replace", "rename", "rmdir", "unlink", "mkdir")


def _train_or_resume(out: str, text: str, options: dict[str, Any], die_at: int, overwrite: bool) -> None:
    """What a killed process runs; it kills itself before the `die_at`-th thing that it does to the file system."""
    calls = itertools.count(1)

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    if multiprocessing.parent_process():
        torch.set_num_threads(1)
        loop.CHECKPOINT_SECONDS = -1
    for name in DEATHS if die_at else ():
        setattr(os, name, deadly(getattr(os, name)))
    if overwrite:
        language_model.train(out, overwrite=True, train=text, **options)
        return
    try:
        language_model.resume(out)
    except RunError as error:
        if "There is no run" not in str(error):
            raise
        language_model.train(out, train=text, **options)


@pytest.fixture(scope="module")
def launch() -> Callable[..., Any]:
    """Starts a process that trains, quickly: forked from one that has imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)

    def start(out: Path, text: Path, options: dict[str, Any], die_at: int = 0, overwrite: bool = False) -> Any:
        process = context.Process(target=_train_or_resume, args=(str(out), str(text), options, die_at, overwrite))
        process.start()
        return process

    return start


class TestKill:
    def test_at_any_moment(self, text, tmp_path, launch):
        """kill -9 wherever it falls, again and again, a little later each time, until a process comes to the end."""
        options = {**SMALL, "steps": 50}
        language_model.train(tmp_path / "whole", train=text, **options)
        out, chance = tmp_path / "run", random.Random(0)
        for killed in itertools.count():
            process = launch(out, text, options)
            process.join(0.03 * (killed + 1) * chance.uniform(0.5, 1.5))
            process.kill()
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
        assert killed >= 1
        assert everything(out) == everything(tmp_path / "whole")

    def test_before_anything_that_it_does_to_files(self, text, tmp_path, launch):
        """Preparation, the run taking its place, weights, checkpoints: one process a moment."""
        options = {**SMALL, "steps": 3, "evaluations": 2}
        language_model.train(tmp_path / "whole", train=text, **options)
        for moment in itertools.count(1):
            out = tmp_path / f"run{moment}"
            process = launch(out, text, options, die_at=moment)
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            _train_or_resume(str(out), str(text), options, 0, False)
            assert everything(out) == everything(tmp_path / "whole"), f"killed at moment {moment}"
            shutil.rmtree(out)
        assert moment > 15

    def test_while_it_replaces_another(self, whole, text, tmp_path, launch):
        options = {**SMALL, "steps": 1, "evaluations": 1}
        language_model.train(tmp_path / "new", train=text, **options)
        legal = [everything(tmp_path / "new"), everything(whole)]
        found = set()
        for moment in itertools.count(1):
            out = tmp_path / f"run{moment}"
            shutil.copytree(whole, out)
            process = launch(out, text, options, die_at=moment, overwrite=True)
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            language_model.resume(out)
            assert everything(out) in legal, f"killed at moment {moment}"
            found.add(legal.index(everything(out)))
        assert found == {0, 1}


def test_tensors_that_share_memory_are_kept_each(tmp_path):
    whole = torch.arange(4.0)
    write_tensors(tmp_path / "some.safetensors", {"whole": whole, "part": whole[1:3], "own": torch.ones(1)}, {})
    found, _ = read_tensors(tmp_path / "some.safetensors")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "whole": [0, 1, 2, 3],
        "part": [1, 2],
        "own": [1],
    }


class TestFullDisk:
    @pytest.mark.parametrize("function", ["fsync", "replace"])
    @pytest.mark.parametrize("step", [6, 9])
    def test_the_checkpoint_before_stays(self, whole, text, tmp_path, monkeypatch, function, step):
        out = tmp_path / "run"

        def full(*args: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def fill() -> None:
            monkeypatch.setattr(files.os, function, full)

        with pytest.raises(
            RunError, match=r"Cannot write .*safetensors: No space left on device; the one written before is intact"
        ):
            language_model.train(out, train=text, **SMALL, watch=Watch(at={step: fill}))
        monkeypatch.undo()
        assert not list(out.glob("*.tmp"))
        assert read_tensors(Run.open(out).checkpoint_file)[1]["step"] == step - 3
        assert rit.load(out).sample("1", length=3)
        language_model.resume(out)
        assert everything(out) == everything(whole)

    def test_no_file_yet(self, tmp_path, monkeypatch):
        def full(*args: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(RunError, match=r"Cannot write .*x: No space left on device\.$"):
            files.write_atomically(tmp_path / "x", b"some")
        assert list(tmp_path.iterdir()) == []


def damaged_copy(run: Path, folder: Path, file: str, change: Callable[[bytes], bytes | None]) -> Path:
    copy = folder / "damaged"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    content = change((copy / file).read_bytes())
    if content is None:
        (copy / file).unlink()
    else:
        (copy / file).write_bytes(content)
    return copy


def with_json(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        value = json.loads(content)
        change(value)
        return json.dumps(value).encode()

    return changed


def missing(content: bytes) -> None:
    return None


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """A bit of the last tensor's last number."""
    return content[:-1] + bytes([content[-1] ^ 1])


class TestDamage:
    """What cannot be used is said in one sentence, and never by another exception."""

    @pytest.mark.parametrize(
        ("file", "change", "message"),
        [
            ("config.json", missing, r"damaged is no run: it has no config.json"),
            ("config.json", half, r"config.json is damaged, it holds no JSON \(.*\); train anew with --overwrite"),
            ("config.json", lambda content: b"[]", "is no run's configuration: it lacks the keys format and task"),
            ("config.json", lambda content: b"\xff", "config.json is damaged, it holds no JSON"),
            (
                "config.json",
                with_json(lambda config: config.update(format=99, ritornello="9.9")),
                f"has format 99, written by ritornello 9.9; ritornello {rit.__version__} reads format 1",
            ),
            ("config.json", with_json(lambda c: c.pop("format")), "it lacks the keys format and task"),
            (
                "config.json",
                with_json(lambda c: c.update(task="dance")),
                "holds the unknown task 'dance': .*Known: lang",
            ),
            ("config.json", with_json(lambda c: c.update(task=[])), "it lacks the keys format and task"),
            ("config.json", with_json(lambda c: c.pop("model")), "lacks the section 'model'; it was cut or edited"),
            ("config.json", with_json(lambda c: c.update(model=[])), "lacks the section 'model'"),
            (
                "config.json",
                with_json(lambda c: c["model"].update(hiden=3)),
                "section 'model', holds the unknown key 'hiden': did you mean hidden",
            ),
            ("config.json", with_json(lambda c: c["model"].pop("hidden")), "section 'model', lacks the key 'hidden'"),
            (
                "config.json",
                with_json(lambda c: c["model"].update(hidden="8")),
                "holds a value that does not fit: hidden must be of type int, not '8'",
            ),
            ("config.json", with_json(lambda c: c["model"].update(layers=0)), "layers must be at least 1, not 0"),
            (
                "config.json",
                with_json(lambda c: c["model"].update(cell="lsmt")),
                "Unknown cell 'lsmt': did you mean lstm",
            ),
            (
                "config.json",
                with_json(lambda c: c["model"].update(hidden=9)),
                r"holds '.*' of shape \(.*\); the configuration asks for",
            ),
            (
                "config.json",
                with_json(lambda c: c["model"].update(layers=3)),
                r"lacks the model's tensor: 'stack.layers.2.* another configuration",
            ),
            (
                "config.json",
                with_json(lambda c: c["model"].update(layers=1)),
                "holds a tensor that the model lacks: 'stack.layers.1",
            ),
            ("config.json", with_json(lambda c: c["model"].update(model="ngram")), "n-gram model's order is missing"),
            ("model.safetensors", missing, "model.safetensors is missing; the run ended before it was written"),
            ("model.safetensors", half, "model.safetensors is cut or corrupt .* restore it from a copy or train anew"),
            ("model.safetensors", flipped, "model.safetensors is cut or corrupt .*checksum"),
            ("model.safetensors", lambda content: b"", "model.safetensors is cut or corrupt"),
            ("model.safetensors", lambda content: os.urandom(500), "model.safetensors is cut or corrupt"),
            ("tokenizer.json", missing, "tokenizer.json: not a tokenizer that ritornello can use"),
            ("tokenizer.json", half, "tokenizer.json: not a tokenizer that ritornello can use"),
            ("tokenizer.json", lambda content: b"{}", "tokenizer.json: not a tokenizer that ritornello can use"),
        ],
    )
    def test_load(self, whole, tmp_path, file, change, message):
        with pytest.raises(RitornelloError, match=message):
            rit.load(damaged_copy(whole, tmp_path, file, change))

    @pytest.mark.parametrize(
        ("file", "change", "message"),
        [
            ("checkpoint.safetensors", half, "checkpoint.safetensors is cut or corrupt"),
            ("checkpoint.safetensors", flipped, "checkpoint.safetensors is cut or corrupt .*checksum"),
            ("tokens/train.bin", half, r"train.bin: .* bytes, where .* tokens take"),
            ("tokens/train.bin", missing, r"train.bin: 0 bytes, where .* tokens take"),
            ("tokens/info.json", half, "info.json: damaged"),
            ("config.json", with_json(lambda c: c["training"].update(lr=-1)), "lr must be 0 or greater"),
            ("config.json", with_json(lambda c: c["training"].update(device="x")), "Device 'x' cannot be used here"),
        ],
    )
    def test_resume(self, whole, tmp_path, file, change, message):
        with pytest.raises(RitornelloError, match=message):
            language_model.resume(damaged_copy(whole, tmp_path, file, change))

    @pytest.mark.parametrize("change", [missing, half, flipped])
    def test_an_ngram_model(self, text, tmp_path, change):
        language_model.train(tmp_path / "run", train=text, model="ngram")
        with pytest.raises(RunError, match=r"model.safetensors is (missing|cut or corrupt)"):
            rit.load(damaged_copy(tmp_path / "run", tmp_path, "model.safetensors", change))

    def test_a_token_that_the_vocabulary_lacks(self, whole, tmp_path):
        path = damaged_copy(whole, tmp_path, "tokens/valid.bin", lambda content: content[:5] + b"\xff" + content[6:])
        with pytest.raises(
            RunError, match=r"valid.bin is damaged: it holds the token 255, where the vocabulary has 11"
        ):
            rit.load(path).evaluate("valid")
        path = damaged_copy(whole, tmp_path, "tokens/train.bin", lambda content: b"\xff" * len(content))
        path.joinpath("checkpoint.safetensors").unlink()
        with pytest.raises(RunError, match=r"train.bin is damaged: it holds the token 255"):
            language_model.resume(path)

    FILES = (
        "config.json",
        "model.safetensors",
        "checkpoint.safetensors",
        "tokenizer.json",
        "metrics.jsonl",
        "tokens/info.json",
        "tokens/train.bin",
        "tokens/valid.bin",
    )

    @settings(max_examples=250)
    @given(data=st.data(), file=st.sampled_from(FILES))
    def test_any_bytes(self, whole, said, tmp_path_factory, data, file):
        """A file cut anywhere, or with some bytes anywhere replaced: an error of ours, or a run that can be used."""
        before = (whole / file).read_bytes()
        place = data.draw(st.integers(0, len(before) - 1))
        inserted = data.draw(
            st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from([b"9", b'"', b"-", b"0", b"["]))
        )
        after = data.draw(
            st.sampled_from([before[:place], before[:place] + inserted + before[place + len(inserted) :]])
        )
        path = damaged_copy(whole, tmp_path_factory.getbasetemp(), file, lambda content: after)
        for use in (self._load, self._evaluate, self._info, self._resume):
            try:
                found = use(path)
            except (RitornelloError, Stopped):
                continue
            if use == self._load and file not in ("config.json", "tokenizer.json"):
                assert found == said, "weights are never other ones unseen"

    @staticmethod
    def _load(path: Path) -> str:
        return rit.load(path).sample("1", length=5)

    @staticmethod
    def _evaluate(path: Path) -> None:
        rit.load(path).evaluate("valid")

    @staticmethod
    def _info(path: Path) -> None:
        info(str(path))

    @staticmethod
    def _resume(path: Path) -> None:
        language_model.resume(path, watch=Watch(at=dict.fromkeys(range(13, 10_000), stop)))


class TestRun:
    def test_a_run_takes_its_place_whole_or_vanishes(self, tmp_path):
        with Run.prepare(tmp_path / "run", "a test", {}) as run:
            assert run.path.is_dir()
            assert not (tmp_path / "run").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
        with pytest.raises(Stopped), Run.prepare(tmp_path / "other", "a test", {}):
            stop()
        assert [path.name for path in tmp_path.iterdir()] == ["run"]

    def test_an_error_leaves_the_old_run(self, whole, tmp_path):
        shutil.copytree(whole, tmp_path / "run")
        with pytest.raises(Stopped), Run.prepare(tmp_path / "run", "a test", {}, overwrite=True):
            stop()
        assert everything(tmp_path / "run") == everything(whole)
        assert [path.name for path in tmp_path.iterdir()] == ["run"]

    def test_overwriting_leaves_nothing_of_the_old_run(self, whole, tmp_path):
        shutil.copytree(whole, tmp_path / "run")
        with Run.prepare(tmp_path / "run", "a test", {"a": 1}, overwrite=True):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
        assert Run.open(tmp_path / "run").config == {
            "ritornello": rit.__version__,
            "format": 1,
            "task": "a test",
            "a": 1,
        }

    def test_two_do_not_work_on_one_run(self, whole, text, tmp_path):
        path = tmp_path / "run"
        shutil.copytree(whole, path)
        message = f"Another process is training {path}: wait for its end, or stop it."
        with alone(path):
            for use in (
                lambda: language_model.resume(path),
                lambda: language_model.train(path, train=text, steps=1, overwrite=True),
            ):
                with pytest.raises(RunError) as raised:
                    use()
                assert str(raised.value) == message
            assert rit.load(path).sample("1", length=5) == rit.load(whole).sample("1", length=5)
        assert everything(path) == everything(whole)
        language_model.resume(path)
        shutil.rmtree(path)
        with Run.prepare(path, "a test", {}):
            with pytest.raises(RunError, match=r"Another process is training .*/run: wait"), Run.prepare(path, "b", {}):
                pass
            with pytest.raises(RunError, match=r"Another process is training .*/run: wait"), Run.reopen(path, "a test"):
                pass
        assert Run.open(path).config["task"] == "a test"

    def test_a_file_system_without_locks_lets_all_in(self, tmp_path, monkeypatch):
        def without(error):
            def flock(*_):
                raise OSError(error, "no locks")

            return flock

        monkeypatch.setattr("fcntl.flock", without(errno.ENOLCK))
        with Run.prepare(tmp_path / "run", "a test", {}), alone(tmp_path):
            pass
        monkeypatch.setattr("fcntl.flock", without(errno.EIO))
        with pytest.raises(OSError, match="no locks"), alone(tmp_path):
            pass

    def test_an_empty_folder_is_free(self, tmp_path):
        (tmp_path / "run").mkdir()
        with Run.prepare(tmp_path / "run", "a test", {}):
            pass
        assert Run.open(tmp_path / "run").config["task"] == "a test"

    def test_what_was_stopped_while_it_was_made_can_be_gone_on_with(self, tmp_path):
        with pytest.raises(KeyboardInterrupt), Run.prepare(tmp_path / "run", "a test", {}):
            raise KeyboardInterrupt
        assert not (tmp_path / "run").exists()
        with Run.reopen(tmp_path / "run", "a test") as run:
            assert run.path != tmp_path / "run"
        assert Run.open(tmp_path / "run").config["task"] == "a test"

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_what_is_no_run_is_never_replaced(self, tmp_path, overwrite):
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter1.tex").write_text("x")
        with (
            pytest.raises(RunError, match=r"thesis holds files that are no run; name another folder with --out"),
            Run.prepare(tmp_path / "thesis", "a test", {}, overwrite=overwrite),
        ):
            pass
        with (
            pytest.raises(RunError, match=r"chapter1.tex is a file; name a folder for the run"),
            Run.prepare(tmp_path / "thesis" / "chapter1.tex", "a test", {}, overwrite=overwrite),
        ):
            pass
        with (
            pytest.raises(RunError, match=r"'\.' has no name of its own|holds files that are no run"),
            Run.prepare(".", "a test", {}, overwrite=overwrite),
        ):
            pass
        assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "x"

    def test_a_run_in_the_way(self, whole):
        with (
            pytest.raises(RunError, match="holds a run already; go on with --resume, replace it with --overwrite, or"),
            Run.prepare(whole, "a test", {}),
        ):
            pass

    def test_a_place_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("x")
        with (
            pytest.raises(RunError, match=r"Cannot make .*file/run: Not a directory"),
            Run.prepare(tmp_path / "file" / "run", "a test", {}),
        ):
            pass


class TestConfig:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps": 3, "epochs": 2}, "Give one budget, steps, epochs or minutes; came: steps and epochs"),
            ({"steps": -1}, r"steps must be 0 or greater and below 2\^63, not -1"),
            ({"steps": 2.5}, "steps must be of type int, not 2.5"),
            ({"epochs": math.nan}, "epochs must be 0 or greater .* not nan"),
            ({"minutes": math.inf}, "minutes must be 0 or greater .* not inf"),
            ({"lr": math.nan}, "lr must be 0 or greater .* not nan"),
            ({"lr": "fast"}, "lr must be of type float, not 'fast'"),
            ({"seed": -1}, "seed must be 0 or greater"),
            ({"seed": 1 << 64}, r"seed must be .* below 2\^63"),
            ({"batch": 0}, "batch must be at least 1, not 0"),
            ({"batch": True}, "batch must be of type int, not True"),
            ({"threads": 10_000}, "threads must be at most 1024, not 10000"),
            ({"evaluations": 0}, "evaluations must be at least 1, not 0"),
            ({"momentum": 1.0}, "momentum must be below 1, not 1.0"),
            ({"beta1": 1.0}, "beta1 must be below 1"),
            ({"beta2": 2.0}, "beta2 must be below 1"),
            ({"optimiser": "adma"}, "Unknown optimiser 'adma': did you mean adam"),
            ({"schedule": "cosin"}, "Unknown schedule 'cosin': did you mean cosine"),
            ({"precision": "float16"}, "Unknown precision 'float16': did you mean .*Known: auto, bfloat16, float32"),
        ],
    )
    def test_training(self, options, message):
        with pytest.raises(ArgumentError, match=message):
            TrainingConfig(**options)

    @pytest.mark.parametrize(
        ("isa", "device", "expected"),
        [
            ("avx512bf16", "cpu", "bfloat16"),
            ("avx512", "cpu", "float32"),
            (None, "cpu", "float32"),
            ("avx512bf16", "cuda", "float32"),
        ],
    )
    def test_auto_becomes_the_quicker_precision(self, isa, device, expected, monkeypatch):
        monkeypatch.setattr(processor, "instruction_set", lambda: isa)
        assert TrainingConfig(precision="auto", device=device).precision == expected
        assert TrainingConfig(precision="float32", device=device).precision == "float32"

    @pytest.mark.parametrize(
        ("kind", "options", "message"),
        [
            (TextConfig, {"level": "chars"}, "Unknown level 'chars': did you mean char"),
            (TextConfig, {"documents": "page"}, "Unknown documents 'page': .*Known: file, line"),
            (TextConfig, {"vocabulary": -5}, "vocabulary must be 0 or greater, not -5"),
            (TextConfig, {"valid_tokens": 1}, r"valid_tokens must be 0 \(all\) or at least 2, not 1"),
            (
                TextConfig,
                {"split": "90"},
                "split is '90'; expected percent of train/valid/test that sum to 100, some of",
            ),
            (TextConfig, {"split": "90/20/0"}, "split is '90/20/0'"),
            (TextConfig, {"split": "100/0/0"}, "split is '100/0/0'"),
            (TextConfig, {"split": "nan/10/0"}, "split is 'nan/10/0'"),
            (LanguageModelConfig, {"model": "rnnn"}, "Unknown model 'rnnn': did you mean rnn"),
            (LanguageModelConfig, {"layers": 0}, "layers must be at least 1, not 0"),
            (LanguageModelConfig, {"hidden": -4}, "hidden must be at least 1, not -4"),
            (LanguageModelConfig, {"window": 0}, "window must be at least 1"),
            (LanguageModelConfig, {"embedding": -1}, "embedding must be 0 or greater, not -1"),
            (LanguageModelConfig, {"order": -1}, "order must be 0 or greater, not -1"),
            (LanguageModelConfig, {"dropout": 1.0}, r"dropout must lie in 0 to 1 \(exclusive\), not 1.0"),
            (LanguageModelConfig, {"dropout": math.nan}, "dropout must lie in 0 to 1"),
            (LanguageModelConfig, {"tied": 1}, "tied must be of type bool, not 1"),
        ],
    )
    def test_language_model(self, kind, options, message):
        with pytest.raises(ArgumentError, match=message):
            kind(**options)

    def test_without_a_budget_it_is_three_minutes(self):
        assert (TrainingConfig().minutes, TrainingConfig(steps=5).minutes) == (3.0, 0.0)

    @pytest.mark.parametrize("kind", [TextConfig, LanguageModelConfig, TrainingConfig, Progress])
    def test_json_and_back(self, kind):
        config = kind()
        assert from_json(kind, json.loads(json.dumps(asdict(config))), "here") == config

    def test_json_that_is_no_object(self):
        with pytest.raises(RunError, match=r"here holds no object but \[1\]"):
            from_json(Progress, [1], "here")

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"hiden": 3}, ArgumentError, "Unknown option 'hiden': did you mean hidden"),
            ({"device": "nonsense"}, ArgumentError, "Device 'nonsense' cannot be used here"),
            ({"batch": 1000}, DataError, "The training part has .* tokens; --batch 1000 needs at least 1001"),
            ({"hidden": 1 << 40}, RitornelloError, "The cell 'lstm' could not be made, or make its first steps"),
        ],
    )
    def test_what_does_not_fit_leaves_no_folder(self, text, tmp_path, options, error, message):
        with pytest.raises(error, match=message):
            language_model.train(tmp_path / "run", train=text, **{**SMALL, **options})
        assert list(tmp_path.iterdir()) == []


def test_another_optimiser_does_not_take_a_checkpoint(tmp_path):
    model = nn.Linear(2, 1)
    save_checkpoint(tmp_path / "c", model, make_optimiser(model, TrainingConfig(optimiser="sgd")), None, Progress())
    with pytest.raises(RunError, match="is of SGD; the configuration asks for AdamW"):
        load_checkpoint(tmp_path / "c", model, make_optimiser(model, TrainingConfig()), None)
