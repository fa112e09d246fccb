"""The command line as people type it, and the calls of Python that do the same."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import typer

import ritornello as rit
from ritornello.cli import main
from ritornello.cli.app import app
from ritornello.cli.options import described
from ritornello.errors import DataError, RunError
from ritornello.processor import instruction_set
from ritornello.tasks import language_model
from ritornello.tasks import tree as tree_task
from ritornello.training.config import TrainingConfig
from ritornello.training.log import Log
from ritornello.training.run import Run

SMALL = ("--steps", "4", "--hidden", "8", "--batch", "4", "--window", "8", "--lr", "0.02", "--warmup", "1")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(rit.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
COMMAND = [sys.executable, "-c", "from ritornello.cli import main; main()"]
TEXT = "To be, or not to be, that is the question:\nwhether 'tis nobler in the mind to suffer\n" * 8


class Answer(NamedTuple):
    """What a command said."""

    status: int
    out: str
    error: str


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Types a command in an empty folder with a text in it."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)

    def call(*words: Any, stdin: bytes = b"") -> Answer:
        monkeypatch.setattr(sys, "argv", ["rit", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        return Answer(exit_.value.code or 0, *capsys.readouterr())

    return call


@pytest.fixture
def succeeds(shell: Callable[..., Answer]) -> Callable[..., str]:
    """The output of a command that ends well."""

    def call(*words: Any, stdin: bytes = b"") -> str:
        answer = shell(*words, stdin=stdin)
        assert answer.status == 0, answer.error
        return answer.out

    return call


@pytest.fixture
def fails(shell: Callable[..., Answer]) -> Callable[..., str]:
    """The one sentence of a command that is mistaken, which changes nothing in the folder."""

    def call(*words: Any, stdin: bytes = b"") -> str:
        before = tree()
        answer = shell(*words, stdin=stdin)
        assert (answer.status, answer.out) == (2, "")
        assert answer.error.startswith("rit: ")
        assert answer.error.count("\n") == 1
        assert tree() == before
        return answer.error.removeprefix("rit: ").rstrip("\n")

    return call


def tree() -> dict[str, bytes]:
    """All files here and what they hold, and all folders; not what Python keeps for itself."""
    return {
        str(path): path.read_bytes() if path.is_file() else b""
        for path in sorted(Path().rglob("*"))
        if "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT)
    options = {"hidden": 8, "batch": 4, "window": 8, "lr": 0.02, "warmup": 1}
    language_model.train(folder / "run", train=folder / "text.txt", steps=4, **options)
    return folder / "run"


class TestHelp:
    @pytest.mark.parametrize(
        "words", [["--help"], ["train", "lm", "--help"], ["train", "tree", "-h"], ["sample", "-h"], ["predict", "-h"]]
    )
    def test_imports_nothing_heavy(self, words):
        code = f"""
            import sys
            import ritornello
            assert not [name for name in sys.modules if name.startswith("ritornello.")]
            sys.argv = ["rit", *{words}]
            try:
                ritornello.cli = __import__("ritornello.cli", fromlist=["main"]).main()
            except SystemExit as end:
                assert not end.code
            heavy = {{"torch", "numpy", "tokenizers", "safetensors", "tensorboard", "rich.progress"}}
            sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "Usage: rit" in done.stdout

    @pytest.mark.parametrize("words", [["train", "lm"], ["train", "tree"], ["sample"], ["evaluate"]])
    def test_every_option_shows_its_default_and_says_what_it_is(self, words, succeeds, monkeypatch):
        monkeypatch.setenv("COLUMNS", "400")
        shown = {line.split()[1]: line for line in succeeds(*words, "--help").splitlines() if line.startswith("│ --")}
        command = typer.main.get_command(app)
        for word in words:
            command = command.commands[word]
        options = [parameter for parameter in command.params if parameter.opts[0].startswith("--")]
        assert len(options) > 7
        for option in options:
            assert "[default: " in shown[option.opts[0]], option.opts
            assert len(option.help) > 8

    @pytest.mark.parametrize("verb", ["lm", "tree"])
    def test_flags_that_all_tasks_share(self, verb, succeeds, monkeypatch):
        monkeypatch.setenv("COLUMNS", "400")
        shown = succeeds("train", verb, "--help")
        shared = "out steps epochs minutes seed device precision train valid test cell hidden batch lr threads"
        assert all(f"--{name} " in shown for name in [*shared.split(), "resume", "overwrite"])

    def test_what_the_docstring_says_of_each_field_is_its_help(self):
        assert described(TrainingConfig)["beta1"] == "of adam and adamw, for the mean of gradients."

    def test_version(self, succeeds):
        assert succeeds("--version") == f"ritornello {rit.__version__}\n"

    def test_without_a_verb_it_helps(self, shell):
        answer = shell()
        assert answer.status == 2
        assert "Usage: rit" in answer.out
        assert answer.error == ""


class TestRoundTrip:
    @pytest.mark.parametrize("model", ["rnn", "ngram"])
    @pytest.mark.parametrize("level", ["char", "byte", "word", "bpe"])
    def test_train_sample_evaluate_info(self, model, level, succeeds):
        said = succeeds(
            "train", "lm", "--train", "text.txt", "--model", model, "--level", level, *SMALL, "--out", "run"
        )
        assert "bits/character" in said
        assert "run (valid)" in said
        assert "rit sample run" in said

        drawn = [
            succeeds("sample", "run", "--prompt", "To be", "--length", 12, "--seed", seed, "--temperature", 1)
            for seed in (1, 1, 2)
        ]
        assert drawn[0] == drawn[1] != drawn[2]
        assert drawn[0].startswith("To be")
        python = rit.load("run").sample("To be", length=12, seed=1)
        assert drawn[0] == python + "\n"

        found = json.loads(succeeds("evaluate", "run", "--json"))["run"]
        assert found == rit.load("run").evaluate("valid")
        assert f"{found['loss']:.4f}" in said
        assert f"{found['bits_per_character']:.4f}" in succeeds("evaluate", "run")
        other = json.loads(succeeds("evaluate", "run", "--json", "--text", "text.txt", "--window", 5))["run"]
        assert other == rit.load("run").evaluate("text.txt", window=5)
        assert other["tokens"] > found["tokens"]

        about = succeeds("info", "run")
        assert f"model='{model}'" in about
        assert f"level='{level}'" in about
        assert "valid_loss" in about

    @pytest.mark.parametrize(
        "options",
        [
            ["--cell", "gru", "--layers", "2", "--embedding", "8", "--dropout", "0.2", "--no-tied"],
            ["--cell", "elman", "--precision", "bfloat16", "--optimiser", "rmsprop", "--schedule", "plateau"],
            [
                "--optimiser",
                "sgd",
                "--accumulate",
                "0",
                "--clip-value",
                "0.1",
                "--clip-groups",
                "tensor",
                "--patience",
                "1",
            ],
            ["--split", "50/30/20", "--seed", "5"],
        ],
        ids=" ".join,
    )
    def test_other_options(self, options, succeeds):
        said = succeeds("train", "lm", "--train", "text.txt", *SMALL, *options, "--out", "run")
        assert ("run (test)" in said) == ("--split" in options)
        assert len(succeeds("sample", "run", "--length", 5)) == 6

    def test_words_that_the_vocabulary_lacks(self, shell, succeeds):
        Path("words.txt").write_text("one two three four five six seven. " * 20)
        succeeds("train", "lm", "--train", "words.txt", "--level", "word", *SMALL, "--out", "run")
        answer = shell("sample", "run", "--prompt", "one zebra two cow", "--length", 3)
        assert answer.status == 2
        assert "lacks 'zebra', 'cow' of the prompt" in answer.error
        assert succeeds("sample", "run", "--prompt", "two three", "--length", 3).startswith("two three")

    def test_threads(self, succeeds, monkeypatch):
        asked = []
        monkeypatch.setattr(torch, "set_num_threads", asked.append)
        succeeds("train", "lm", "--train", "text.txt", *SMALL, "--threads", 3)
        assert asked == [3, torch.get_num_threads()], "and as before once it is trained"
        assert Run.open("runs/lm").config["training"]["threads"] == 3

    def test_without_a_text_it_reads_what_python_carries(self, succeeds, monkeypatch):
        from ritornello.data import corpus

        monkeypatch.setitem(corpus.EMBEDDED, "help-topics", lambda: TEXT)
        succeeds("train", "lm", *SMALL)
        assert json.loads(Path("runs/lm/tokens/info.json").read_text())["parts"]["train"]["characters"] == 612

    def test_standard_input(self, succeeds):
        succeeds("train", "lm", "--train", "-", *SMALL, "--out", "a", stdin=TEXT.encode())
        succeeds("train", "lm", "--train", "text.txt", *SMALL, "--out", "b")
        assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()
        assert not Path("a/stdin.txt").exists()
        found = json.loads(succeeds("evaluate", "a", "--json", "--text", "-", stdin=TEXT.encode()))
        assert found["a"] == rit.load("b").evaluate("text.txt")

    def test_folders_and_parts_of_their_own(self, succeeds):
        for name in ("book/one.txt", "book/deep/two.txt", "valid.txt", "test.txt"):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(TEXT)
        parts = ("--train", "book", "--valid", "valid.txt", "--test", "test.txt")
        said = succeeds("train", "lm", *parts, *SMALL, "--out", "run")
        assert "run (test)" in said
        assert rit.load("run").tokenizer.end is not None, "two files, two documents"
        assert rit.load("run").parts() == ["train", "valid", "test"]

    def test_a_line_is_a_document_and_ends_with_the_end_symbol(self, succeeds):
        Path("names.txt").write_text("anna\notto\nada\n" * 40)
        succeeds("train", "lm", "--train", "names.txt", "--documents", "line", "--model", "ngram", "--out", "run")
        drawn = {succeeds("sample", "run", "--length", 1000, "--seed", seed, "--temperature", 1) for seed in range(9)}
        assert len(drawn) > 1
        assert all(text.endswith("\n") and len(text) < 60 for text in drawn)
        assert succeeds("sample", "run", "--prompt", "an", "--length", 1000, "--temperature", 0) == "anna\n"

    def test_several_runs_side_by_side(self, succeeds, trained):
        long = Path("a-name-that-is-as-long-as-the-half-of-a-line/and-another-one-of-that-length/and-a-third")
        long.parent.mkdir(parents=True)
        long.symlink_to(trained)
        said = succeeds("evaluate", trained, long)
        assert said.count(f"{rit.load(trained).evaluate('valid')['loss']:.4f}") == 2
        assert "…" not in said


TREES = ["(1 (1 good) (1 film))", "(0 (0 not) (1 (1 good) (1 film)))", "(1 (0 not) (0 (0 bad) (1 film)))"]
SMALL_TREES = ("--steps", "4", "--hidden", "6", "--embedding", "5", "--batch", "3", "--evaluations", "2")


@pytest.fixture(scope="module")
def trained_trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trees")
    (folder / "trees.txt").write_text("\n".join(TREES * 3))
    files = {"train": folder / "trees.txt", "valid": folder / "trees.txt"}
    tree_task.train(folder / "run", **files, steps=4, hidden=6, embedding=5, batch=3)
    return folder / "run"


class TestTrees:
    @pytest.fixture(autouse=True)
    def _files(self, shell):
        Path("trees.txt").write_text("\n".join(TREES * 3))

    def test_train_predict_evaluate_info(self, succeeds):
        files = ("--train", "trees.txt", "--valid", "trees.txt", "--test", "trees.txt")
        said = succeeds("train", "tree", *files, *SMALL_TREES, "--out", "run")
        for part in ("run (valid)", "run (test)", "nats/node", "all nodes", "rit predict run '(not (very good))'"):
            assert part in said
        assert "run (train)" not in said

        model = rit.load("run")
        lines = "".join(f"{line}\n" for line in model.predict("\n".join(TREES)))
        assert succeeds("predict", "run", *TREES) == lines
        assert succeeds("predict", "run", stdin="\n".join(TREES).encode()) == lines
        Path("some.txt").write_text("\n".join(TREES))
        assert succeeds("predict", "run", "--trees", "some.txt") == lines
        assert succeeds("predict", "run", "not a film", "good") == "".join(
            f"{line}\n" for line in model.predict("not a film\ngood")
        )

        found = json.loads(succeeds("evaluate", "run", "--json"))["run"]
        assert found == model.evaluate("valid")
        assert f"{found['root']:.1%}" in succeeds("evaluate", "run", "--text", "trees.txt")
        about = succeeds("info", "run")
        assert "model='tree', cell='tree-lstm'" in about
        assert "valid_root_error" in about

    def test_classes_and_other_options(self, succeeds):
        words = ("train", "tree", "--train", "trees.txt", "--valid", "trees.txt", *SMALL_TREES, "--overwrite")
        succeeds(*words, "--classes", "0", "--classes", "1", "--binarise", "left", "--collapse", "--least", 2)
        assert rit.load("runs/tree").read.config.classes == ("0", "1")
        said = succeeds(*words, "--model", "sequence", "--cell", "gru", "--optimiser", "adam", "--lr", 0.01)
        assert "runs/tree (valid)" in said

    def test_pictures(self, succeeds, trained_trees):
        succeeds("predict", trained_trees, "(not good)", "--picture", "one.png")
        succeeds("predict", trained_trees, "(not good) (bad)", "(film)", "--picture", "many.svg")
        assert sorted(os.listdir()) == [*("many-1.svg", "many-2.svg", "many-3.svg", "one.png", "text.txt", "trees.txt")]
        assert Path("one.png").read_bytes().startswith(b"\x89PNG")

    def test_two_tasks_side_by_side_have_a_table_each(self, succeeds, trained, trained_trees):
        said = succeeds("evaluate", trained, trained_trees, trained)
        assert said.index("nats/token") < said.index("nats/node")
        rows = json.loads(succeeds("evaluate", trained, trained_trees, "--json"))
        assert [set(row) >= {"loss", "root"} for row in rows.values()] == [False, True]

    def test_a_foreign_cell_must_be_named_again(self, succeeds, fails):
        Path("mine.py").write_text("import ritornello as rit\nclass Mine(rit.cells.TreeGRU):\n    pass\n")
        files = ("--train", "trees.txt", "--valid", "trees.txt")
        said = succeeds("train", "tree", *files, *SMALL_TREES, "--cell", "mine.py:Mine", "--out", "run")
        assert "rit predict run --cell mine.py:Mine '(not (very good))'" in said
        for verb in ("predict", "evaluate"):
            assert "name it again with --cell mine.py:Mine" in fails(verb, "run")
        assert succeeds("predict", "run", "(good)", "--cell", "mine.py:Mine").startswith("(")

    def test_ctrl_c(self, shell, succeeds, monkeypatch):
        words = ("train", "tree", "--train", "trees.txt", "--valid", "trees.txt", *SMALL_TREES, "--out")
        loss, calls = tree_task.TreeTask.loss, []

        def interrupted(self: Any, *args: Any) -> Any:
            calls.append(1)
            if len(calls) == 4:  # the first sees whether all fits
                os.kill(os.getpid(), signal.SIGINT)
            return loss(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(tree_task.TreeTask, "loss", interrupted)
            answer = shell(*words, "run")
        assert answer.status == 130
        assert answer.out == "Stopped; all is kept. Go on with: rit train tree --resume --out run\n"
        succeeds("train", "tree", "--resume", "--out", "run")
        succeeds(*words, "whole")
        assert Path("run/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--train", "open.txt"], "open.txt, line 2, column 1: the tree that begins here does not end: 1 closing"),
            (["--valid", "strange.txt"], "strange.txt, line 1, column 5: the label is '7': Known: 0, 1"),
            (["--valid", "wide.txt"], "tree 0 of the valid part has a node with 3 children, and the cell 2 slots"),
            (["--valid", "nowhere"], "nowhere: there is no such file or folder"),
            (["--train", "empty.txt"], "empty.txt: this file is empty"),
            (["--classes", "0", "--classes", "5"], "classes names the label '5'; the trees have 0, 1."),
            (["--classes", "0 1", "--classes", "1"], "classes is ['0 1', '1']: '1' stands in two."),
            (["--binarise", "top"], "Unknown side 'top' of --binarise"),
            (["--cell", "peephole"], "PeepholeLSTM is a cell for chains"),
            (["--cell", "tree-lstm", "--model", "sequence"], "TreeLSTM tells 2 children apart, a chain has none"),
            (["--layers", "0"], "layers must be at least 1, not 0"),
            (["--window", "2"], "No such option: --window"),
            (["--resume"], "There is no run run; rit train makes one"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_mistakes_in_training(self, words, message, fails):
        for name, text in {
            "open.txt": "(1 good)\n(0 (0 not)",
            "strange.txt": "(1 (7 a) (0 b))",
            "wide.txt": "(1 a b c)",
            "empty.txt": "",
        }.items():
            Path(name).write_text(text)
        given = {"--train": "trees.txt", "--valid": "trees.txt", "--out": "run"}
        rest = [word for name, value in given.items() if name not in words for word in (name, value)]
        assert message in fails("train", "tree", *rest, *SMALL_TREES, *words)

    def test_without_trees_to_be_judged_by(self, fails):
        assert fails("train", "tree", "--train", "trees.txt") == (
            "There are no trees to be judged by: name files of them with --valid."
        )

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["predict", "LM", "(a b)"], "holds no model of trees; its task is 'language-model'."),
            (["sample", "TREES"], "holds no language model; its task is 'tree'."),
            (["evaluate", "TREES", "--window", "5"], "--window is for texts; "),
            (["evaluate", "LM", "TREES", "--lanes", "1"], "--lanes is for texts; "),
            (["evaluate", "TREES", "--part", "test"], "has no test part; it has train, valid."),
            (
                ["evaluate", "TREES", "--text", "text.txt"],
                "text.txt, line 1, column 1: this stands outside",
            ),
            (["predict", "TREES", "(a b)", "--picture", "a.gif"], "'a.gif' does not end in a kind of picture: "),
            (["predict", "TREES", "(a b)", "--picture", "no/a.png"], "There is no folder no to put a.png in."),
            (
                ["predict", "TREES", "(a b)", "--trees", "trees.txt"],
                "Give trees as text or as files (--trees), not",
            ),
            (["predict", "TREES", "--trees", "open.txt"], "open.txt, line 1, column 4: the tree that begins here does"),
            (["predict", "TREES", "(a b)", "(a b c)", "--picture", "a.png"], "tree 0 has a node with 3 children"),
            (["predict", "TREES", "(a (b)"], "text, line 1, column 1: the tree that begins here does not end"),
            (["predict", "TREES", " "], "text: there is no tree in it"),
            (["predict", "TREES"], "Standard input is empty, or was read before; it can be read once."),
            (["predict", "TREES", "(a b)", "--device", "meta"], "Device 'meta' cannot be used here"),
            (["predict", "TREES", "(a b)", "--device", "abacus"], "Device 'abacus' cannot be used here"),
            (["predict", "nowhere", "(a b)"], "There is no run nowhere"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_mistakes_in_other_verbs(self, words, message, fails, trained, trained_trees):
        Path("open.txt").write_text("(a)(b")
        places = {"LM": trained, "TREES": trained_trees}
        assert message in fails(*(places.get(word, word) for word in words))

    def test_what_is_piped_in_must_be_utf_8(self, shell, trained_trees):
        answer = shell("predict", trained_trees, stdin=b"(caf\xe9 noir)")
        assert (answer.status, answer.out) == (2, "")
        assert "standard input: byte 4 is 0xe9, where the file stops being UTF-8" in answer.error
        assert "--level" not in answer.error

    def test_names_that_read_as_markup_or_need_quotes(self, succeeds):
        out = "w[/a] z"
        said = succeeds("train", "tree", "--train", "trees.txt", "--valid", "trees.txt", *SMALL_TREES, "--out", out)
        assert f"rit evaluate '{out}' --text FILE" in said
        for verb in ("evaluate", "info"):
            assert out in succeeds(verb, out)

    def test_without_matplotlib_nothing_is_printed(self, fails, trained_trees, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        message = fails("predict", trained_trees, "(a b)", "--picture", "a.png")
        assert message == "Pictures need matplotlib: pip install 'ritornello[pictures]'."


class TestSample:
    def sample(self, succeeds, trained, *options: Any) -> str:
        return succeeds("sample", trained, "--length", 40, *options)

    def test_options_are_passed_on(self, succeeds, trained):
        model = rit.load(trained)
        for name, value in (("temperature", 0.3), ("temperature", 0), ("top_k", 2), ("top_p", 0.4), ("until", "e")):
            options = {"temperature": 0.8, name: value}
            found = self.sample(succeeds, trained, f"--{name.replace('_', '-')}", value)
            assert found == model.sample(length=40, **options) + "\n", name
            if name != "temperature" or value != 0.8:
                assert found != self.sample(succeeds, trained), name

    def test_many_at_once(self, succeeds, trained):
        texts = rit.load(trained).sample("To", count=3, length=40, temperature=0.8)
        assert len(set(texts)) == 3
        said = self.sample(succeeds, trained, "--count", 3, "--prompt", "To")
        assert said == "".join(f"--- {number} ---\n{text}\n" for number, text in enumerate(texts, 1))

    def test_until_ends_the_text_with_what_was_asked_for(self, trained):
        model = rit.load(trained)
        whole = model.sample("To", length=300)
        assert whole.count("e") > 2
        assert model.sample("To", length=300, until="e") == whole[: whole.index("e") + 1]
        place = whole.index("e", 20)
        assert model.sample("To", length=300, until=whole[place - 2 : place + 1]).endswith(whole[place - 2 : place + 1])

    def test_length_nought_is_the_prompt(self, succeeds, trained):
        assert succeeds("sample", trained, "--length", 0, "--prompt", "To be") == "To be\n"

    def test_it_is_printed_as_it_is_drawn(self, succeeds, trained, monkeypatch):
        written = []
        monkeypatch.setattr(sys.stdout, "flush", lambda: written.append(1), raising=False)
        self.sample(succeeds, trained)
        assert len(written) >= 40

    def test_whoever_reads_may_go(self, trained):
        with subprocess.Popen(
            [*COMMAND, "sample", str(trained), "--length", "1000000"],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert len(process.stdout.read(10)) == 10
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode in (0, 1)


CELLS = """
from collections import namedtuple
import torch
import ritornello as rit

with open({marker!r}, "a") as file:
    file.write("x")

class Leaky(rit.Cell):
    State = namedtuple("State", "h")
    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.W = torch.nn.Linear(input_size + hidden_size, hidden_size)
    def forward(self, x, s):
        return self.State(0.5 * s.h + 0.5 * torch.tanh(self.W(torch.cat([x, s.h], -1))))

class Tensor(Leaky):
    def forward(self, x, s):
        return super().forward(x, s).h

class Fields(Leaky):
    def forward(self, x, s):
        return namedtuple("State", "h c")(s.h, s.h)

class Shape(Leaky):
    def forward(self, x, s):
        return self.State(super().forward(x, s).h[:, :3])

class Batch(Leaky):
    def forward(self, x, s):
        return self.State(super().forward(x, s).h.mean(0, keepdim=True))

class Product(Leaky):
    def forward(self, x, s):
        return self.State(x @ s.h)

class Optional(Leaky):
    def __init__(self, input_size, hidden_size, rate=0.5):
        super().__init__(input_size, hidden_size)

class Greedy(Leaky):
    def __init__(self, input_size, hidden_size, more):
        super().__init__(input_size, hidden_size)
"""


@pytest.fixture
def cells(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of foreign cells is there; each time that it is executed, a letter more is in the file that comes back."""
    marker = tmp_path_factory.mktemp("marker") / "executed"
    marker.write_text("")
    (tmp_path / "leaky_cells.py").write_text(CELLS.format(marker=str(marker)))
    yield marker
    sys.modules.pop("leaky_cells", None)


class TestForeignCells:
    @pytest.mark.parametrize("name", ["leaky_cells.py:Leaky", "leaky_cells:Leaky"])
    def test_a_run_is_loaded_only_by_who_names_its_cell_again(self, name, shell, succeeds, fails, cells):
        said = succeeds("train", "lm", "--train", "text.txt", *SMALL, "--cell", name, "--out", "run")
        assert f"rit sample run --cell {name}" in said
        assert cells.read_text() == "x"
        sys.modules.pop("leaky_cells", None)

        succeeds("info", "run")
        message = fails("sample", "run")
        assert message.startswith(f"run was trained with the foreign cell {name!r}, whose code is run only if you ask")
        assert f"--cell {name}" in message
        assert fails("evaluate", "run") == fails("train", "lm", "--resume", "--out", "run") == message
        assert "was trained with the cell" in fails("sample", "run", "--cell", "lstm")
        with pytest.raises(RunError, match="whose code is run only if you ask for it"):
            rit.load("run")
        assert cells.read_text() == "x", "a stranger's code was executed"

        drawn = succeeds("sample", "run", "--cell", name, "--length", 9)
        assert len(drawn) == 10
        assert cells.read_text() == "xx"
        assert "nats/token" in succeeds("evaluate", "run", "--cell", name)
        assert rit.load("run", cell=name).sample(length=9, temperature=0.8) + "\n" == drawn
        assert "nats/token" in succeeds("train", "lm", "--resume", "--out", "run", "--cell", name)

    def test_the_file_may_have_moved(self, succeeds, cells):
        succeeds("train", "lm", "--train", "text.txt", *SMALL, "--cell", "leaky_cells.py:Leaky", "--out", "run")
        Path("elsewhere").mkdir()
        Path("leaky_cells.py").rename("elsewhere/mine.py")
        assert len(succeeds("sample", "run", "--cell", "elsewhere/mine.py:Leaky", "--length", 9)) == 10

    def test_commands_with_options_can_be_pasted(self, succeeds, fails, cells):
        name = "leaky_cells.py:Optional(rate=0.3)"
        said = succeeds("train", "lm", "--train", "text.txt", *SMALL, "--cell", name, "--out", "run")
        assert f"rit sample run --cell '{name}'" in said
        assert f"name it again with --cell '{name}' (in Python" in fails("sample", "run")
        assert len(succeeds("sample", "run", "--cell", name, "--length", 9)) == 10

    def test_a_class_will_do_in_python(self, shell):
        class Gru(rit.GRU):
            """A cell that is in no file."""

        options = {"steps": 2, "hidden": 8, "batch": 4, "window": 8}
        trained = language_model.train("run", train="text.txt", cell=Gru, **options)
        assert Run.open("run").config["model"]["cell"].endswith("Gru")
        with pytest.raises(RunError, match="foreign cell"):
            rit.load("run")
        assert rit.load("run", cell=Gru).sample(length=9) == trained.sample(length=9)
        with pytest.raises(RunError, match=r"was trained with the cell .*Gru.*, not 'lstm'"):
            rit.load("run", cell=rit.LSTM)

    def test_a_class_of_the_catalogue_is_not_foreign(self, shell):
        options = {"steps": 2, "hidden": 8, "batch": 4, "window": 8}
        trained = language_model.train("run", train="text.txt", cell=rit.GRU, **options)
        assert Run.open("run").config["model"]["cell"] == "gru"
        assert rit.load("run").sample(length=9) == trained.sample(length=9)

    @pytest.mark.parametrize(
        ("cell", "message"),
        [
            ("Tensor", "Tensor.forward returned Tensor(); return self.State(h)."),
            ("Fields", "Fields.forward returned State(h, c); return self.State(h)."),
            (
                "Shape",
                "Shape.forward returned 'h' of shape (4, 3); expected (4, 8), as Shape.state_sizes says.",
            ),
            (
                "Batch",
                "Batch.forward returned 'h' of shape (1, 8); expected (4, 8), as Batch.state_sizes says.",
            ),
            ("Product", "could not be made, or make its first steps: RuntimeError: mat1 and mat2 shapes"),
            ("Greedy", "could not be made, or make its first steps: TypeError: Greedy.__init__() missing 1 required"),
            ("Leeky", "Module 'leaky_cells.py' has no 'Leeky': did you mean Leaky"),
            ("rit", "'leaky_cells.py:rit' is a module, not a subclass of ritornello.Cell or torch.nn.Module."),
        ],
    )
    def test_a_cell_that_is_wrong_leaves_no_folder(self, cell, message, fails, cells):
        words = ("train", "lm", "--train", "text.txt", *SMALL, "--cell", f"leaky_cells.py:{cell}", "--out", "run")
        assert message in fails(*words)


class TestMistakes:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--train", "empty.txt"], "empty.txt: this file is empty"),
            (["--train", "one.txt"], "comes to 0 tokens, and it needs at least two tokens"),
            (["--train", "latin.txt"], "latin.txt: byte 3 is 0xe9, where the file stops being UTF-8; convert it"),
            (["--train", "nowhere.txt"], "nowhere.txt: there is no such file or folder"),
            (["--train", "hollow"], "hollow: this folder holds no file"),
            (["--train", "-"], "Standard input is empty, or was read before; it can be read once."),
            (["--valid", "empty.txt"], "empty.txt: this file is empty"),
            (["--cell", "lsmt"], "Unknown cell 'lsmt': did you mean lstm or slstm? Known: additive, "),
            (["--cell", "nowhere.py:Cell"], "Cannot import 'nowhere.py': there is no such file"),
            (["--cell", "nowhere:Cell"], "Cannot import 'nowhere': ModuleNotFoundError: No module named 'nowhere'"),
            (["--cell", "broken.py:Cell"], "Cannot import 'broken.py': SyntaxError"),
            (["--steps", "3", "--epochs", "2"], "Give one budget, steps, epochs or minutes; came: steps and epochs"),
            (["--steps", "-3"], "steps must be 0 or greater"),
            (["--steps", "nan"], "Invalid value for '--steps'"),
            (["--lr", "nan"], "lr must be 0 or greater and below 2^63, not nan"),
            (["--minutes", "nan"], "minutes must be 0 or greater"),
            (["--minutes", "-1"], "minutes must be 0 or greater"),
            (["--epochs", "inf"], "epochs must be 0 or greater"),
            (["--dropout", "nan"], "dropout must lie in 0 to 1 (exclusive), not nan"),
            (["--layers", "0"], "layers must be at least 1, not 0"),
            (["--hidden", "-8"], "hidden must be at least 1, not -8"),
            (["--hidden", "1000000000000"], "The cell 'lstm' could not be made"),
            (["--batch", "100000"], "The training part has 612 tokens; --batch 100000 needs at least 100001"),
            (["--seed", "-1"], "seed must be 0 or greater"),
            (["--threads", "-1"], "threads must be 0 or greater"),
            (["--level", "chars"], "Unknown level 'chars': did you mean char"),
            (["--vocabulary", "300"], "vocabulary is 300, but level char has no choice"),
            (["--split", "90/20"], "split is '90/20'; expected percent of train/valid/test"),
            (["--optimiser", "adm"], "Unknown optimiser 'adm': did you mean adam"),
            (["--device", "abacus"], "Device 'abacus' cannot be used here"),
            (["--hiden", "8"], "No such option: --hiden"),
            (
                ["--resume", "--overwrite"],
                "--resume goes on with the run and --overwrite replaces it; give one of them",
            ),
            (["--out", "text.txt"], "text.txt is a file; name a folder for the run"),
            (["--out", "."], "holds files that are no run; name another folder with --out"),
            (["--out", "text.txt/run"], "Cannot make text.txt/run: Not a directory"),
            (["--resume"], "There is no run run; rit train makes one"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_training(self, words, message, fails, tmp_path):
        (tmp_path / "empty.txt").write_text("")
        (tmp_path / "one.txt").write_text("x")
        (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
        (tmp_path / "broken.py").write_text("class Cell(:")
        (tmp_path / "hollow").mkdir()
        base = {"--train": "text.txt", "--out": "run", **dict(zip(SMALL[::2], SMALL[1::2], strict=True))}
        if set(words) & {"--epochs", "--minutes"} and "--steps" not in words:
            del base["--steps"]
        given = [word for name, value in base.items() if name not in words for word in (name, value)]
        assert message in fails("train", "lm", *given, *words)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["sample", "RUN", "--prompt", "To Zü"], "'Z' (U+005A), 'ü' (U+00FC): not in the vocabulary"),
            (["sample", "RUN", "--temperature", "-1"], "temperature must be 0 or greater, not -1.0"),
            (["sample", "RUN", "--temperature", "nan"], "temperature must be 0 or greater, not nan"),
            (["sample", "RUN", "--top-k", "-1"], "top_k must be 0 (all symbols) or greater, not -1"),
            (["sample", "RUN", "--top-p", "0"], "top_p must lie in 0 (exclusive) to 1, not 0.0"),
            (["sample", "RUN", "--count", "0"], "count must be at least 1"),
            (["sample", "RUN", "--count", "-2"], "count must be at least 1"),
            (["sample", "RUN", "--length", "-2"], "length at least 0, not 1 and -2"),
            (["sample", "RUN", "--seed", "-2"], "seed must be 0 or greater"),
            (["sample", "RUN", "--device", "abacus"], "Device 'abacus' cannot be used here"),
            (["sample", "RUN", "--cell", "gru"], "was trained with the cell 'lstm', not 'gru'"),
            (["sample", "RUN", "--lenght", "3"], "No such option: --lenght"),
            (["sample"], "Missing argument 'run'"),
            (["sample", "nowhere"], "There is no run nowhere; rit train makes one"),
            (["sample", "folder"], "folder is no run: it has no config.json"),
            (["sample", "text.txt"], "There is no run text.txt"),
            (["evaluate", "RUN", "--part", "tests"], "--part is 'tests'; it must be train, valid or test"),
            (["evaluate", "RUN", "--part", "test"], "has no test part; it has train, valid"),
            (["evaluate", "RUN", "--lanes", "0"], "lanes must be at least 1"),
            (["evaluate", "RUN", "--window", "-1"], "window at least 0"),
            (["evaluate", "RUN", "--most", "1"], "most 0 (all) or at least 2"),
            (["evaluate", "RUN", "--text", "latin.txt"], "latin.txt: byte 3 is 0xe9"),
            (["evaluate", "RUN", "--text", "nowhere.txt"], "nowhere.txt: there is no such file or folder"),
            (["evaluate", "RUN", "--text", "strange.txt"], "'é' (U+00E9): not in the vocabulary"),
            (["evaluate", "RUN", "--text", "one.txt"], "comes to 1 tokens, and it needs at least two tokens"),
            (["info", "nowhere"], "There is no run nowhere"),
            (["dance"], "No such command 'dance'"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_other_verbs(self, words, message, fails, trained, tmp_path):
        (tmp_path / "folder").mkdir()
        (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
        (tmp_path / "strange.txt").write_text("café")
        (tmp_path / "one.txt").write_text("b")
        assert message in fails(*(trained if word == "RUN" else word for word in words))

    @pytest.mark.parametrize("verb", ["sample", "evaluate", "info"])
    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("config.json", b"{", "config.json is damaged, it holds no JSON"),
            ("config.json", b'{"format": 7, "task": "x", "ritornello": "3.1"}', "format 7, written by ritornello 3.1"),
            ("model.safetensors", b"\0" * 100, "model.safetensors is cut or corrupt"),
        ],
    )
    def test_damaged_runs(self, verb, file, content, message, succeeds, fails):
        succeeds("train", "lm", "--train", "text.txt", *SMALL, "--out", "run")
        Path("run", file).write_bytes(content)
        assert message in fails(verb, "run")

    def test_a_run_that_exists(self, succeeds, fails):
        words = ("train", "lm", "--train", "text.txt", *SMALL, "--out", "run")
        succeeds(*words)
        assert fails(*words).startswith("run holds a run already; go on with --resume, replace it with --overwrite")
        assert fails(*words, "--resume", "--hidden", "9") == "hidden is 8 in run and cannot become 9; leave it out."

    @pytest.mark.parametrize(
        "mistake",
        [
            ["--train", "nowhere.txt"],
            ["--train", "latin.txt"],
            ["--cell", "lsmt"],
            ["--cell", "wrong.py:Shape"],
            ["--batch", "100000"],
            ["--steps", "-1"],
            ["--device", "abacus"],
        ],
        ids=" ".join,
    )
    def test_a_mistake_leaves_the_run_that_would_be_overwritten(self, mistake, succeeds, fails, tmp_path):
        (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
        (tmp_path / "wrong.py").write_text(CELLS.format(marker=os.devnull))
        succeeds("train", "lm", "--train", "text.txt", *SMALL, "--out", "run")
        fails("train", "lm", "--train", "text.txt", *SMALL, "--out", "run", "--overwrite", *mistake)
        assert len(succeeds("sample", "run", "--length", 5)) == 6

    def test_a_disk_that_is_full_where_no_one_thought_of_it(self, shell, monkeypatch):
        def full(self: Log, row: dict[str, Any]) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/metrics.jsonl")

        monkeypatch.setattr(Log, "write", full)
        answer = shell("train", "lm", "--train", "text.txt", *SMALL, "--out", "run")
        assert (answer.status, answer.error) == (2, "rit: run/metrics.jsonl: No space left on device\n")

    def test_overwrite(self, succeeds):
        words = ("train", "lm", "--train", "text.txt", *SMALL, "--out", "run")
        succeeds(*words)
        before = Path("run/model.safetensors").read_bytes()
        succeeds(*words, "--overwrite", "--seed", 9)
        assert Path("run/model.safetensors").read_bytes() != before
        assert sorted(os.listdir()) == ["run", "text.txt"]


class TestCtrlC:
    def test_all_is_kept_and_resume_ends_as_if_it_had_not_come(self, succeeds):
        words = ["train", "lm", "--train", "text.txt", "--steps", "800", "--evaluations", "40", "--dropout", "0.2"]
        words += ["--hidden", "8", "--batch", "4", "--window", "8", "--threads", "1"]
        with subprocess.Popen(
            [*COMMAND, *words, "--out", "stopped"], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            while not Path("stopped/metrics.jsonl").exists() or not Path("stopped/metrics.jsonl").read_bytes():
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            said, error = process.communicate()
        assert process.returncode == 130, error
        assert said.decode() == "Stopped; all is kept. Go on with: rit train lm --resume --out stopped\n"
        assert b"Traceback" not in error
        assert 1 <= len(Run.open("stopped").metrics()) < 40
        assert len(succeeds("sample", "stopped", "--length", 5)) == 6

        succeeds("train", "lm", "--resume", "--out", "stopped")
        succeeds(*words, "--out", "whole")
        assert Path("stopped/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
        assert [row["step"] for row in Run.open("stopped").metrics()] == list(range(20, 801, 20))

    def test_while_the_text_is_read(self, shell, succeeds, monkeypatch):
        def interrupt(*words: Any, **options: Any) -> None:
            raise KeyboardInterrupt

        words = ("train", "lm", "--train", "text.txt", *SMALL, "--out")
        with monkeypatch.context() as patch:
            patch.setattr(language_model, "prepare", interrupt)
            assert shell(*words, "run").status == 130
        assert not Path("run").exists()
        succeeds("train", "lm", "--resume", "--out", "run")
        succeeds(*words, "whole")
        assert Path("run/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


class TestPython:
    """All that the command does is a short call."""

    def test_sample_evaluate_and_parts(self, trained):
        model = rit.load(trained)
        assert model.sample("To be", length=10).startswith("To be")
        assert len(model.sample(count=2, length=3)) == 2
        assert set(model.evaluate("valid")) == {"loss", "bits_per_character", "perplexity", "tokens"}
        assert model.evaluate(trained.parent / "text.txt")["tokens"] == len(TEXT) - 1
        assert model.evaluate([trained.parent / "text.txt"] * 2)["tokens"] == 2 * len(TEXT) - 1
        with pytest.raises(DataError, match="has no test part"):
            model.evaluate("test")

    def test_a_stream_gives_what_is_drawn(self, trained):
        model = rit.load(trained)
        pieces = list(model.stream("To", count=2, length=7, seed=3))
        texts = ["To" + "".join(piece[number] for piece in pieces) for number in range(2)]
        assert texts == model.sample("To", count=2, length=7, seed=3)

    def test_info_without_a_run_tells_what_is_installed(self, succeeds):
        said = succeeds("info")
        assert torch.__version__ in said
        assert "additive, coupled, deep, elman" in said
        assert re.search(rf"^instructions +{instruction_set() or 'no compiled extension'} *$", said, re.M)
