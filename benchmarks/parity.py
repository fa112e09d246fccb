"""Does `rit train lm` do what a plain PyTorch script does, and what does its loop cost?

    python benchmarks/parity.py [--text FILE] [--steps 1000] [--seeds 1 2 3]

Same model, data, optimiser, seed and initial weights as `plain_lstm.py`. Prints, for each seed, the largest difference
of the first 20 losses and both final validation losses; then the share of a step that is neither forward, backward nor
optimiser, and apart from it what the first training of a process costs once. The default text is the embedded corpus.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from ritornello.cells import LSTM
from ritornello.data import corpus
from ritornello.data.corpus import prepare
from ritornello.models import LanguageModel
from ritornello.tasks import experiment
from ritornello.tasks import language_model as task
from ritornello.training import loop
from ritornello.training.files import weights

PLAIN = Path(__file__).with_name("plain_lstm.py")
RECIPE = {"batch": 64, "window": 32, "lr": 0.01, "warmup": 50, "weight_decay": 0.01, "beta2": 0.99, "clip_norm": 1.0,
          "cell": "lstm", "embedding": 64, "hidden": 256, "layers": 1, "dropout": 0.0}  # fmt: skip
PARTS = ("forward", "backward", "optimiser")


class Losses:
    """A watcher that keeps the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def preparing(self, stage, done, total): ...

    def update(self, progress, fraction, loss, tokens):
        self.losses.append(loss)

    def evaluated(self, row, best): ...


class Clock:
    """Sums the time spent in functions that are replaced by timed ones."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, name, function):
        def call(*args, **kwargs):
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - begin

        return call

    def own(self) -> float:
        """Seconds of training that are no part of forward, backward, optimiser or evaluation."""
        return self.seconds["all"] - sum(self.seconds[part] for part in (*PARTS, "evaluation"))

    def watch_training(self) -> None:
        task.LanguageModelTask.loss = self.timed("forward", task.LanguageModelTask.loss)
        task.LanguageModelTask.evaluate = self.timed("evaluation", task.LanguageModelTask.evaluate)
        torch.Tensor.backward = self.timed("backward", torch.Tensor.backward)
        loop.clip = self.timed("optimiser", loop.clip)
        torch.optim.AdamW.step = self.timed("optimiser", torch.optim.AdamW.step)
        experiment.train_loop = self.timed("all", experiment.train_loop)


def ours(text: Path, folder: Path, seed: int, steps: int) -> tuple[list[float], float]:
    watch = Losses()
    name = folder / f"run{seed}"
    run = task.train(name, train=text, steps=steps, seed=seed, evaluations=1, watch=watch, **RECIPE)
    return watch.losses, run.evaluate("valid", lanes=1)["loss"]


def plain(text: Path, folder: Path, seed: int, steps: int) -> tuple[list[float], float]:
    tokens = prepare(folder / "text", "char", text)
    torch.manual_seed(seed)
    model = LanguageModel(tokens.tokenizer.vocabulary_size, LSTM, embedding=64, hidden=256)
    model.start_at(task.LanguageModelTask(tokens, RECIPE["window"], RECIPE["batch"], seed).counts())
    file = folder / "weights.safetensors"
    save_file({name: tensor.detach() for name, tensor in weights(model).items()}, file)
    done = subprocess.run(
        [sys.executable, str(PLAIN), str(text), str(file), str(seed), str(steps)], check=True, capture_output=True
    )
    answer = json.loads(done.stdout)
    return answer["losses"], answer["valid_loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.steps} steps")
    clock = Clock()
    clock.watch_training()
    finals: dict[str, list[float]] = {"rit": [], "plain": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = options.text or corpus.write("help-topics", folder / "help-topics.txt")
        ours(text, folder, 0, 2)  # what a process pays once: lazy imports, TensorBoard's first event
        once = clock.own()
        clock.seconds.clear()
        for seed in options.seeds:
            other, other_valid = plain(text, folder, seed, options.steps)
            losses, valid = ours(text, folder, seed, options.steps)
            apart = max(abs(a - b) for a, b in zip(losses[:20], other, strict=False))
            print(
                f"seed {seed}: first 20 losses at most {apart:.1e} apart; "
                f"valid rit {valid:.4f}, plain {other_valid:.4f}"
            )
            finals["rit"].append(valid)
            finals["plain"].append(other_valid)
            if apart > 1e-5:
                raise SystemExit("The losses differ: rit and the plain script do not train the same model.")
    for who, found in finals.items():
        spread = f" ± {statistics.stdev(found):.4f}" if len(found) > 1 else ""
        print(f"{who}: valid {statistics.mean(found):.4f}{spread} nats a character over seeds {options.seeds}")
    spent = clock.seconds["all"] - clock.seconds["evaluation"]
    parts = ", ".join(f"{part} {clock.seconds[part] / spent:.1%}" for part in PARTS)
    print(f"a step of rit: {parts}, the loop's own {clock.own() / spent:.2%}; besides, {once:.2f} s once a process")


if __name__ == "__main__":
    main()
