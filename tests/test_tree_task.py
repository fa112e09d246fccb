"""Training on labelled trees, from files to predictions: it learns, goes on as if never stopped, counts rightly."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close
from torch import nn

import ritornello as rit
from ritornello.cells import CELLS, TREE_CELLS
from ritornello.data.brackets import parse_trees, read_trees
from ritornello.data.listops import CLASSES, END, OPERATIONS, PARTIAL, listops, value_of
from ritornello.data.vocabulary import Vocabulary
from ritornello.errors import ArgumentError, CellError, DataError, RunError
from ritornello.models.tree import SpanClassifier, TreeClassifier
from ritornello.pictures import draw_tree, save
from ritornello.structures import Forest, spans
from ritornello.tasks import tree
from ritornello.tasks.tree_config import TreeModelConfig, TreesConfig
from ritornello.tasks.tree_run import SENTIMENT, SIDE_BY_SIDE, Reading, logits_of, scores
from ritornello.training import loop
from ritornello.training.files import read_tensors
from ritornello.training.run import Run

TIMES = ("seconds", "epoch_seconds", "tokens_per_second")


def review(generator: random.Random, words: int) -> tuple[str, int]:
    """A phrase of `good`, `bad` and `not`, and whether it praises: both halves must, and `not` turns round."""
    if words == 1:
        value = generator.randrange(2)
        return f"({value} {('bad', 'good')[value]})", value
    if generator.random() < 0.4:
        text, value = review(generator, words - 1)
        return f"({1 - value} not {text})", 1 - value
    cut = generator.randrange(1, words)
    (left, a), (right, b) = review(generator, cut), review(generator, words - cut)
    return f"({a & b} {left} {right})", a & b


def reviews(count: int, seed: int, lengths: tuple[int, int]) -> list[str]:
    generator, found = random.Random(seed), dict[str, None]()
    while len(found) < count:
        found[review(generator, generator.randint(*lengths))[0]] = None
    return list(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reviews, no two alike; `long.txt` has twice the words of those that are learnt from."""
    path = tmp_path_factory.mktemp("reviews")
    short = reviews(600, 1, (1, 8))
    for name, lines in {
        "train.txt": short[:400],
        "valid.txt": short[400:500],
        "test.txt": short[500:],
        "long.txt": reviews(100, 2, (12, 16)),
    }.items():
        (path / name).write_text("\n".join(lines))
    return path


def parts(folder: Path) -> dict[str, Path]:
    return {"train": folder / "train.txt", "valid": folder / "valid.txt"}


SIZES = {"hidden": 16, "embedding": 16, "dropout": 0.0}
LEARN: dict[str, Any] = {**SIZES, "epochs": 10, "batch": 10, "evaluations": 2, "lr": 0.1}
SHORT: dict[str, Any] = {"hidden": 6, "embedding": 5, "steps": 4, "batch": 4, "evaluations": 2}


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tree.TreeModelRun:
    out = tmp_path_factory.mktemp("trained") / "run"
    return tree.train(out, **parts(folder), test=folder / "test.txt", **LEARN)


class TestLearning:
    @pytest.mark.parametrize(
        "options",
        [
            {"cell": "tree-lstm"},
            {"cell": "tree-gru", "precision": "float32"},
            {"cell": "recursive"},
            {"cell": "recursive-tensor", "optimiser": "adamw", "lr": 0.01},
            {"cell": "lstm"},
            {"cell": "gru(reset=before)"},
        ],
        ids=lambda options: options["cell"],
    )
    def test_what_holds_of_short_trees_holds_of_long_ones_that_were_never_seen(self, options, folder, tmp_path):
        run = tree.train(tmp_path / "run", **parts(folder), **{**LEARN, **options})
        for name in ("valid.txt", "test.txt", "long.txt"):
            found = run.evaluate(folder / name)
            assert found["root"] >= 0.97, name
            assert found["node"] >= 0.98, name

    def test_words_without_their_tree_do_not_say_how_far_a_negation_reaches(self, folder, tmp_path, trained):
        run = tree.train(tmp_path / "run", **parts(folder), **LEARN, model="sequence")
        assert Run.open(tmp_path / "run").config["model"]["cell"] == "lstm"
        assert 0.5 < run.evaluate(folder / "long.txt")["root"] < 0.9 < trained.evaluate(folder / "long.txt")["root"]

    def test_the_values_of_lists(self, tmp_path):
        """Brackets of lists that are not whole have no class."""
        lines = listops(900, seed=1, deepest=2, arguments=3)
        for name, part in {"train.txt": lines[:700], "valid.txt": lines[700:]}.items():
            (tmp_path / name).write_text("\n".join(part))
        run = tree.train(
            tmp_path / "run", **parts(tmp_path), classes=CLASSES, **{**LEARN, "hidden": 40, "epochs": 12, "lr": 0.05}
        )
        assert run.classes == CLASSES
        found = run.evaluate("valid")
        text = (tmp_path / "valid.txt").read_text()
        assert (found["trees"], found["nodes"]) == (200, text.count("]"))
        values = [int(label) for label in re.findall(r"^\((.)", text, re.M)]
        assert found["root"] > 1.5 * max(map(values.count, values)) / len(values)

    def test_the_weights_that_are_kept_are_those_of_the_fewest_wrong_roots(self, folder, tmp_path):
        run = tree.train(tmp_path / "run", **parts(folder), **{**LEARN, "epochs": 3, "evaluations": 9})
        rows = run.run.metrics()
        best = min(rows, key=lambda row: row["valid_root_error"])
        assert read_tensors(run.run.model_file)[1]["step"] == best["step"]
        assert run.evaluate("valid")["root"] == best["valid_root"] == 1 - best["valid_root_error"]
        assert run.evaluate("valid")["loss"] == pytest.approx(best["valid_loss"], rel=1e-6)

    @pytest.mark.parametrize("cell", [*CELLS, *TREE_CELLS])
    @pytest.mark.parametrize("model", ["tree", "sequence"])
    def test_every_cell_trains_or_says_that_it_is_for_the_other_structure(self, cell, model, folder, tmp_path):
        options = {**parts(folder), **SHORT, "cell": cell, "model": model}
        if model == "tree" and cell not in TREE_CELLS and not sums(CELLS[cell](2, 4)):
            message = r"to run it over trees, sum over predecessors with ritornello\.total"
        elif model == "sequence" and cell in TREE_CELLS:
            message = "tells 2 children apart, a chain has none"
        else:
            assert len(tree.train(tmp_path / "run", **options).predict("(not good)")) == 1
            return
        with pytest.raises(CellError, match=message):
            tree.train(tmp_path / "run", **options)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("model", ["tree", "sequence"])
    def test_outputs_that_are_narrower_than_states(self, model, folder, tmp_path):
        run = tree.train(tmp_path / "run", **parts(folder), **SHORT, cell="jordan(output_size=3)", model=model)
        assert run.model.output.in_features == 3
        assert len(run.predict("(not good)")) == 1

    def test_batches_without_any_label_that_counts(self, tmp_path):
        (tmp_path / "trees.txt").write_text("(0 (0 bad) (0 film))\n(2 (2 a) (2 film))\n(1 (1 good) (1 film))\n" * 3)
        files = {"train": tmp_path / "trees.txt", "valid": tmp_path / "trees.txt", "classes": ("0", "1")}
        for model in ("tree", "sequence"):
            run = tree.train(tmp_path / model, **files, **{**SHORT, "batch": 1, "steps": 9}, model=model)
            assert len(run.run.metrics()) == 2
        (tmp_path / "other.txt").write_text("(2 (2 a) (2 film))")
        with pytest.raises(DataError, match=r"other\.txt: no node has a label that counts; the model's are 0, 1"):
            run.evaluate(tmp_path / "other.txt")

    def test_threads_are_those_of_the_training_alone(self, folder, tmp_path):
        before = torch.get_num_threads()
        tree.train(tmp_path / "run", **parts(folder), **{**SHORT, "threads": before + 1})
        assert torch.get_num_threads() == before

    def test_a_train_part_without_any_label_that_counts(self, tmp_path):
        """The classes are there, and collapsing leaves the highest label of a chain alone."""
        path = tmp_path / "trees.txt"
        path.write_text("(0 (1 (2 a)))")
        with pytest.raises(DataError, match=r"^No node of the train part has a label that counts; see --classes\.$"):
            tree.train(tmp_path / "run", train=path, valid=path, classes=("1", "2"), collapse=True, **SHORT)

    def test_no_trees_have_no_labels(self, trained):
        labelled, shares = trained.label(trained.parse("(good film)")[:0])
        assert (len(labelled), shares.shape) == (0, (0, len(trained.classes)))

    def test_a_no_break_space_belongs_to_a_word(self, trained):
        (line,) = trained.predict("good\u00a0film")
        assert parse_trees(line).sentences() == [["good\u00a0film"]]

    def test_labels_of_which_some_are_unknown(self, trained):
        with pytest.raises(DataError, match=r"text, line 2, column 2: the label is '7': Known: 0, 1"):
            trained.predict("(1 good)\n(7 film)")
        assert trained.predict("(7 good)") == trained.predict("(7 (good))")  # words, all of them

    def test_modes_are_as_they_were_when_only_some_is_asked_for(self, trained):
        trained.model.train()
        trained.model.output.eval()
        some = logits_of(trained.model, trained.read(trained.parse("(not (good bad))")))
        next(some)
        some.close()
        assert trained.model.training
        assert not trained.model.output.training
        trained.model.eval()


def sums(cell: rit.Cell) -> bool:
    """Whether a cell takes any number of children."""
    try:
        rit.Unfold(cell).over([[2, 2, -1]], torch.zeros(3, 2))
    except CellError:
        return False
    return True


class TestSpans:
    def test_a_node_is_the_cell_s_last_state_over_its_own_words(self, folder):
        trees = read_trees(folder / "valid.txt")
        trees = trees.encoded(Vocabulary.learn(trees.word_counts()))[:40]
        model = SpanClassifier(9, 2, rit.LSTM, embedding=3, hidden=4).eval()
        words = torch.from_numpy(trees.words[trees.forest.leaves])
        found = model(trees.forest, words)
        starts, lengths = spans(trees.forest)
        for node, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
            _, last = model.stack(model.embed(words[start : start + length])[:, None])
            assert_close(found[node], model.output(last[0].h[0]))

    @pytest.mark.parametrize("kind", [TreeClassifier, SpanClassifier])
    @pytest.mark.parametrize("steps", [1, 20, 1 << 16])
    def test_nodes_that_are_asked_for(self, kind, steps, folder, monkeypatch):
        monkeypatch.setattr("ritornello.models.tree.STEPS", steps)
        trees = read_trees(folder / "valid.txt")
        trees = trees.encoded(Vocabulary.learn(trees.word_counts()))[:20]
        model = kind(9, 2, rit.LSTM, embedding=3, hidden=4).eval()
        words = torch.from_numpy(trees.words[trees.forest.leaves])
        nodes = torch.randperm(trees.forest.nodes)[:30]
        assert_close(model(trees.forest, words, nodes), model(trees.forest, words)[nodes])
        assert model(trees.forest, words, nodes[:0]).shape == (0, 2)

    def test_new_word_vectors_are_small(self):
        largest = TreeClassifier(90, 2, rit.LSTM, embedding=30, hidden=4).embed.weight.detach().abs().max()
        assert 0.045 < largest <= 0.05

    def test_trees_of_one_word(self):
        model = SpanClassifier(9, 2, rit.GRU, embedding=3, hidden=4)
        assert model(Forest.from_parents([[-1], [-1]]), torch.tensor([7, 8])).shape == (2, 2)

    @pytest.mark.parametrize("kind", [TreeClassifier, SpanClassifier])
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"vocabulary": 0}, "vocabulary must be a positive integer, not 0"),
            ({"labels": 2.5}, "labels must be a positive integer, not 2.5"),
            ({"embedding": -1}, "embedding must be a positive integer, not -1"),
            ({"dropout": 1.0}, "Classifier: dropout must lie in 0 to 1"),
        ],
    )
    def test_sizes_that_are_none(self, kind, change, message):
        options: dict[str, Any] = {"vocabulary": 9, "labels": 2, "embedding": 3, "hidden": 4, **change}
        with pytest.raises(ArgumentError, match=message):
            kind(cell=rit.LSTM, **options)


class Stopped(Exception):
    """What a test stops training with."""


class StopAt:
    """Watches training and stops it after an update."""

    def __init__(self, step: int) -> None:
        self.step = step

    def update(self, progress: Any, fraction: float, loss: float, tokens: int) -> None:
        if progress.step == self.step:
            raise Stopped

    def evaluated(self, row: dict[str, Any], best: bool) -> None: ...


def everything(path: Path) -> dict[str, Any]:
    """All that must not depend on having been stopped."""
    run = Run.open(path)
    tensors, about = read_tensors(run.checkpoint_file)
    return {
        "model": run.model_file.read_bytes(),
        "state": {name: tensor.numpy().tobytes() for name, tensor in tensors.items()},
        "progress": {k: v for k, v in about.items() if k not in ("seconds", "training_seconds", "log_size")},
        "log": [{name: value for name, value in row.items() if name not in TIMES} for row in run.metrics()],
    }


# Dropout is on, and an epoch has seven batches.
TWICE: dict[str, Any] = {**SHORT, "dropout": 0.3, "batch": 60, "steps": 0, "epochs": 2.0, "evaluations": 4}


class TestResume:
    @pytest.mark.parametrize("step", [1, 5, 7, 13])
    @pytest.mark.parametrize("options", [{}, {"model": "sequence"}, {"optimiser": "adam", "accumulate": 2}], ids=str)
    def test_stopped_and_gone_on_with(self, step, options, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
        options = {**parts(folder), **TWICE, **options}
        tree.train(tmp_path / "whole", **options)
        if "accumulate" in options:
            step = (step + 1) // 2
        with pytest.raises(Stopped):
            tree.train(tmp_path / "halved", **options, watch=StopAt(step))
        again = tree.resume(tmp_path / "halved", given=options)
        assert everything(tmp_path / "halved") == everything(tmp_path / "whole")
        assert not again.interrupted

    def test_the_files_are_not_needed_any_more(self, folder, tmp_path):
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        with pytest.raises(Stopped):
            tree.train(tmp_path / "run", **parts(copy), test=copy / "test.txt", **SHORT, watch=StopAt(2))
        shutil.rmtree(copy)
        assert tree.resume(tmp_path / "run").evaluate("test")["trees"] == 100

    def test_stopped_while_the_trees_are_read(self, folder, tmp_path, monkeypatch):
        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        tree.train(tmp_path / "whole", **parts(folder), **SHORT)
        with monkeypatch.context() as patch:
            patch.setattr(tree, "write_json", interrupt)
            with pytest.raises(KeyboardInterrupt):
                tree.train(tmp_path / "run", **parts(folder), **SHORT)
        assert not (tmp_path / "run").exists()
        tree.resume(tmp_path / "run")
        assert everything(tmp_path / "run") == everything(tmp_path / "whole")

    def test_options_that_are_not_its_own(self, trained):
        for given, message in (
            ({"hidden": 9}, r"^hidden is 16 in .* and cannot become 9; leave it out\.$"),
            ({"classes": ["0", "1"]}, r"^classes is \(\) in .* and cannot become \('0', '1'\)"),
            ({"hiden": 9}, "^Unknown option 'hiden': did you mean hidden"),
        ):
            with pytest.raises(ArgumentError, match=message):
                tree.resume(trained.run.path, given=given)


class TestLoad:
    def test_the_folder_gives_the_same_answers(self, trained, folder):
        found = rit.load(trained.run.path)
        assert found.predict("(not (good bad))") == trained.predict("(not (good bad))")
        assert found.evaluate("test") == trained.evaluate("test") == trained.evaluate(folder / "test.txt")
        assert found.parts() == ["train", "valid", "test"]
        assert_close(*(torch.from_numpy(run.label(run.parse("(not good)"))[1]) for run in (found, trained)))

    def test_a_cell_of_one_s_own_must_be_named_again(self, folder, tmp_path):
        class Mine(rit.cells.TreeLSTM):
            """Somebody's own."""

        run = tree.train(tmp_path / "run", **parts(folder), **SHORT, cell=Mine)
        with pytest.raises(RunError, match=r"foreign cell .*Mine.*, whose code is run only if you ask for it: name it"):
            rit.load(tmp_path / "run")
        with pytest.raises(RunError, match=r"was trained with the cell .*Mine.*, not 'tree-gru'"):
            rit.load(tmp_path / "run", cell="tree-gru")
        assert rit.load(tmp_path / "run", cell=Mine).evaluate("valid") == run.evaluate("valid")
        assert tree.resume(tmp_path / "run", cell=Mine).evaluate("valid") == run.evaluate("valid")

    def test_a_class_of_the_catalogue_goes_by_its_name(self, folder, tmp_path):
        tree.train(tmp_path / "run", **parts(folder), **SHORT, cell=rit.cells.TreeGRU)
        assert Run.open(tmp_path / "run").config["model"]["cell"] == "tree-gru"
        assert isinstance(rit.load(tmp_path / "run").model.stack.layers[0].cell, rit.cells.TreeGRU)

    @pytest.mark.parametrize("model", ["tree", "sequence"])
    def test_layers(self, model, folder, tmp_path):
        run = tree.train(tmp_path / "run", **parts(folder), **SHORT, model=model, layers=2)
        assert [layer.input_size for layer in run.model.stack.layers] == [SHORT["embedding"], SHORT["hidden"]]
        assert run.model.stack.dropout == run.run.config["model"]["dropout"] == 0.5
        assert rit.load(tmp_path / "run").evaluate("valid") == run.evaluate("valid")

    @pytest.mark.parametrize("content", ["{}", "[1, 2]"])
    def test_damaged_labels(self, content, trained, tmp_path):
        path = shutil.copytree(trained.run.path, tmp_path / "run")
        (path / "labels.json").write_text(content)
        with pytest.raises(RunError, match=r"labels\.json is damaged: it is no list of labels"):
            rit.load(path)

    def test_another_task_s_run(self, trained, tmp_path):
        with pytest.raises(RunError, match="holds the task 'tree'; expected 'language-model'"):
            rit.tasks.language_model.load(trained.run.path)


class Fixed(nn.Module):
    """A model whose logits were written down, in the order of the nodes."""

    def __init__(self, logits: np.ndarray, slots: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(logits))
        self.unfold = rit.Unfold(rit.LSTM(1, 1) if slots is None else rit.cells.TreeLSTM(1, 1, slots))
        self.seen = 0

    def forward(self, trees: Forest, words: torch.Tensor, nodes: torch.Tensor | None = None) -> torch.Tensor:
        assert len(words) == len(trees.leaves)
        assert not self.training
        self.seen += trees.nodes
        logits = self.weight[self.seen - trees.nodes : self.seen]
        return logits if nodes is None else logits[nodes]


class TestScores:
    def test_beside_a_count_by_hand(self):
        """More trees than are computed at once, and nodes without a label."""
        generator = np.random.default_rng(1)
        text = " ".join(
            f"({generator.integers(5)} (2 a) ({generator.integers(5)} b c))" for _ in range(SIDE_BY_SIDE + 40)
        )
        trees = parse_trees(text, label_names=SENTIMENT).encoded(Vocabulary(("<unk>", "a", "b", "c")))
        logits = generator.normal(size=(trees.forest.nodes, 5)).astype(np.float32)
        loss, right, tops, sides = [], [], [], []
        parents = trees.forest.parents.tolist()
        for label, parent, row in zip(trees.labels.tolist(), parents, logits.astype(float).tolist(), strict=True):
            if label < 0:
                continue
            shares = np.exp(row) / np.exp(row).sum()
            loss.append(-np.log(shares[label]))
            right.append(row.index(max(row)) == label)
            if parent < 0:
                tops.append(right[-1])
                if label != 2:
                    sides.append((shares[3] + shares[4] > shares[0] + shares[1]) == (label > 2))
        model = Fixed(logits).train()
        found = scores(model, trees)
        assert model.training
        assert (found["trees"], found["nodes"]) == (SIDE_BY_SIDE + 40, 3 * (SIDE_BY_SIDE + 40))
        expected = {"loss": loss, "root": tops, "node": right, "binary": sides}
        assert found == pytest.approx(
            {name: np.mean(each) for name, each in expected.items()} | {k: found[k] for k in ("trees", "nodes")}
        )

    def test_two_sides_are_of_five_sentiments_alone(self):
        trees = parse_trees("(3 (0 a) (1 b))").encoded(Vocabulary(("<unk>", "a", "b")))
        assert "binary" not in scores(Fixed(np.zeros((3, 3), np.float32)), trees)
        letters = parse_trees("(a (b x) (c (d y) (e z)))")
        letters = letters.encoded(Vocabulary(("<unk>", "x", "y", "z")))
        assert len(letters.label_names) == 5
        assert "binary" not in scores(Fixed(np.zeros((5, 5), np.float32)), letters)
        neutral = parse_trees("(2 (0 a) (1 b))", label_names=SENTIMENT).encoded(Vocabulary(("<unk>", "a", "b")))
        assert "binary" not in scores(Fixed(np.zeros((3, 5), np.float32)), neutral)

    def test_trees_whose_labels_do_not_count(self):
        trees = parse_trees("(1 (1 a) (1 b))").grouped([("0",), ("2",)]).encoded(Vocabulary(("<unk>", "a", "b")))
        found = scores(Fixed(np.zeros((3, 2), np.float32)), trees)
        assert found == {"loss": 0.0, "root": 0.0, "node": 0.0, "trees": 0, "nodes": 0}


class TestEvaluate:
    def test_parts_and_files(self, trained, folder):
        for part in ("train", "valid", "test"):
            assert trained.evaluate(part) == trained.evaluate(str(folder / f"{part}.txt"))
        both = trained.evaluate([folder / "valid.txt", folder / "test.txt"])
        assert both["trees"] == 200
        shares = [trained.evaluate(part)["root"] for part in ("valid", "test")]
        assert both["root"] == pytest.approx(sum(shares) / 2)
        assert trained.evaluate(folder)["trees"] == 700

    def test_what_it_cannot_score(self, trained, folder, tmp_path):
        (tmp_path / "strange.txt").write_text("(1 good)\n(1 (7 not) (0 bad))")
        with pytest.raises(DataError, match=r"strange\.txt, line 2, column 5: the label is '7': Known: 0, 1$"):
            trained.evaluate(tmp_path / "strange.txt")
        (tmp_path / "wide.txt").write_text("(1 good)\n" * 300 + "(1 good good good)")
        with pytest.raises(DataError, match=r"^tree 300 has a node with 3 children, and the cell 2 slots; train with "):
            trained.evaluate(tmp_path / "wide.txt")
        run = tree.TreeModelRun(Run(tmp_path, {}), trained.model, trained.read)
        with pytest.raises(DataError, match=r"has no test part; it has \.$"):
            run.evaluate("test")


class TestPredict:
    @pytest.mark.parametrize(
        ("text", "lines"),
        [
            ("(not (not bad))", ["(0 (? not) (1 (? not) (0 bad)))"]),
            ("(1 (0 not) (0 (1 not) (1 good)))", ["(1 (? not) (0 (? not) (1 good)))"]),  # its labels are set aside
            ("(1 good) (0 not good)\n(1 (0 bad) (0 bad))", ["(1 good)", "(0 (? not) (1 good))", "(0 (0 bad) (0 bad))"]),
            ("not not bad", ["(0 (? not) (1 (? not) (0 bad)))"]),
            ("good", ["(1 good)"]),
            ("not good\n\nbad\n", ["(0 (? not) (1 good))", "(0 bad)"]),  # a line is a sentence
        ],
    )
    def test_trees_and_sentences(self, text, lines, trained):
        found = trained.predict(text)
        assert len(found) == len(lines)
        for one, line in zip(found, lines, strict=True):
            assert re.fullmatch(re.escape(line).replace(r"\?", "[01]"), one)

    def test_labels_are_the_likeliest_and_shares_are_probabilities(self, trained):
        found, shares = trained.label(trained.parse("(not (good bad)) (bad)"))
        assert shares.shape == (6, 2)
        assert shares.sum(1) == pytest.approx(1)
        assert found.labels.tolist() == shares.argmax(1).tolist()

    def test_what_is_read_does_not_depend_on_labels(self, trained):
        with_labels, without = (trained.label(trained.parse(text)) for text in ("(0 (0 bad) (1 good))", "(bad good)"))
        assert_close(torch.from_numpy(with_labels[1]), torch.from_numpy(without[1]))

    def test_all_words_that_are_unknown_are_one(self, trained):
        known, *strange = (
            torch.from_numpy(trained.label(trained.parse(f"(not {word})"))[1]) for word in ("good", "grand", "swell")
        )
        assert torch.equal(*strange)
        assert not torch.equal(known, strange[0])
        assert "grand" in trained.predict("(not grand)")[0], "and are written as they came"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("(not (good)", "^text, line 1, column 1: the tree that begins here does not end: 1 closing bracket is"),
            ("good\n)", "^text, line 1, column 1: this stands outside of any tree"),
            ("(good)\n(not ())", "^text, line 2, column 6: this bracket is empty"),
            (" \n", "^text: there is no tree in it"),
            (
                "(good) (good bad good)",
                "^tree 1 has a node with 3 children, and the cell 2 slots; train with --binaris",
            ),
        ],
    )
    def test_what_is_no_tree(self, text, message, trained):
        with pytest.raises(DataError, match=message):
            trained.predict(text)


SENTIMENTS = """(3 (2 the) (4 (4 best) (2 film)))
(1 (2 the) (0 (0 worst) (2 film)))
(2 (2 the) (2 film))
(4 (4 best) (3 (2 the) (2 film)))
"""


class TestShapes:
    @pytest.fixture
    def path(self, tmp_path):
        (tmp_path / "five.txt").write_text(SENTIMENTS * 3)
        return tmp_path / "five.txt"

    def trained(self, path: Path, **options: Any) -> tree.TreeModelRun:
        return tree.train(path.parent / "run", train=path, valid=path, **{**SHORT, **options})

    def test_five_sentiments_have_two_sides(self, path):
        assert set(self.trained(path).evaluate("valid")) == {"loss", "root", "node", "binary", "trees", "nodes"}

    def test_classes_of_several_labels(self, path):
        run = self.trained(path, classes=("0 1", "3 4"), steps=60, lr=0.2)
        assert run.classes == ("0+1", "3+4")
        assert run.model.output.out_features == 2
        found = run.evaluate("valid")
        assert (found["trees"], found["nodes"]) == (9, 27), "neutral nodes are left out"
        assert found["root"] == 1
        (line,) = run.predict("(the (best film))")
        assert re.fullmatch(r"\(3\+4 \([03]\+[14] the\) \(3\+4 \(3\+4 best\) \([03]\+[14] film\)\)\)", line)
        assert run.predict(line) == [line], "what it wrote it can read"
        assert run.predict(SENTIMENTS.splitlines()[0]) == [line]

    def test_a_label_that_no_class_names_may_be_new(self, path, tmp_path):
        (tmp_path / "more.txt").write_text("(7 (4 best) (0 worst))\n(3 film)")
        run = tree.train(tmp_path / "run", train=path, valid=tmp_path / "more.txt", classes=("0", "3 4"), **SHORT)
        assert run.evaluate("valid")["trees"] == 1

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_nodes_of_two(self, side, tmp_path):
        (tmp_path / "wide.txt").write_text("(1 (0 a) (1 b) (0 c) d)\n(0 (1 (1 a)) (1 (1 b)))\n" * 4)
        run = self.trained(tmp_path / "wide.txt", binarise=side)
        (line,) = run.predict("(a b c d)")
        shape = {"left": "((((a) (b)) (c)) (d))", "right": "((a) ((b) ((c) (d))))"}[side]
        assert re.sub("[01] ", "", line) == shape
        assert run.evaluate("valid")["nodes"] == 4 * (4 + 5), "new nodes have no label, and those of one child stay"

    def test_chains_of_only_children_are_one_node(self, tmp_path):
        (tmp_path / "unary.txt").write_text("(1 (0 (1 (0 a))) (1 (1 b)))\n" * 4)
        run = self.trained(tmp_path / "unary.txt", collapse=True)
        assert re.sub("[01] ", "", run.predict("(1 (1 (0 a)) (1 b))")[0]) == "((a) (b))"
        found = run.read.files(tmp_path / "unary.txt")
        assert found.forest.sizes.tolist() == [3] * 4
        assert [found.label_names[label] for label in found.labels[:3]] == ["1", "0", "1"], "the highest labels"

    def test_rare_words_are_unknown(self, path):
        run = self.trained(path, least=4)
        assert run.read.vocabulary.names == ("<unk>", "film", "the", "best")
        assert run.model.embed.num_embeddings == 4


class TestEmbeddings:
    """Gradients of the words that were read alone, and of all: the same training."""

    @pytest.mark.parametrize(
        "options", [{}, {"clip_norm": 0.05}, {"clip_value": 1e-3, "clip_norm": 0.01, "clip_groups": "tensor"}], ids=str
    )
    def test_sparse_and_dense_train_alike_with_adagrad(self, options, folder, tmp_path, monkeypatch):
        options = {**parts(folder), **SHORT, "weight_decay": 0.0, "precision": "float32", "evaluations": 4, **options}
        ours, build = tree.train(tmp_path / "sparse", **options), tree.EXPERIMENT.build
        assert ours.model.embed.sparse
        monkeypatch.setattr(tree.EXPERIMENT, "build", lambda *args: dense(build(*args)))
        theirs = tree.train(tmp_path / "dense", **options)
        assert not theirs.model.embed.sparse
        losses = [[row["train_loss"] for row in run.run.metrics()] for run in (ours, theirs)]
        assert len(losses[0]) == 4
        assert losses[0] == pytest.approx(losses[1], rel=1e-5), "a loss a step"
        ends = [read_tensors(run.run.checkpoint_file)[0] for run in (ours, theirs)]
        for name, tensor in ends[1].items():
            if name.startswith("model."):
                assert_close(ends[0][name], tensor, name)

    def test_they_are_sparse_where_adagrad_is_the_optimiser(self, folder, tmp_path):
        for optimiser, sparse in (("adagrad", True), ("adam", False)):
            run = tree.train(tmp_path / optimiser, **parts(folder), **SHORT, optimiser=optimiser)
            assert run.model.embed.sparse == sparse


def dense(model: TreeClassifier) -> TreeClassifier:
    model.embed.sparse = False
    return model


FILES = {
    "open.txt": "(1 good)\n(0 (1 not) (1 good)",
    "strange.txt": "(1 good)\n(5 (1 not) (1 good))",
    "wide.txt": "(1 good)\n(0 bad)\n(1 (1 good) (1 good) (1 good))",
    "empty.txt": "",
    "blank.txt": " \n",
}


class TestMistakes:
    """One sentence each, and nothing is left in the folder."""

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"train": ()}, ArgumentError, r"no trees to learn from: name files of them with --train\.$"),
            ({"valid": ()}, ArgumentError, r"no trees to be judged by: name files of them with --valid\.$"),
            ({"train": "open.txt"}, DataError, r"open\.txt, line 2, column 1: the tree that begins here does not end"),
            ({"valid": "strange.txt"}, DataError, r"strange\.txt, line 2, column 2: the label is '5': Known: 0, 1$"),
            ({"test": "strange.txt"}, DataError, r"strange\.txt, line 2, column 2: the label is '5': Known: 0, 1$"),
            ({"train": "empty.txt"}, DataError, r"empty\.txt: this file is empty$"),
            ({"valid": "blank.txt"}, DataError, r"blank\.txt: there is no tree in it$"),
            ({"train": "nowhere.txt"}, DataError, r"nowhere\.txt: there is no such file or folder$"),
            *(
                (
                    {part: "wide.txt"},
                    DataError,
                    f"^tree 2 of the {part} part has a node with 3 children, and the",
                )
                for part in ("train", "valid", "test")
            ),
            ({"classes": ("0", "9")}, ArgumentError, r"^classes names the label '9'; the trees have 0, 1\.$"),
            ({"classes": ("0 1", "1")}, ArgumentError, r"^classes is \['0 1', '1'\]: '1' stands in two\.$"),
            ({"classes": ("0 1",)}, ArgumentError, r"^classes is \['0 1'\]: name two classes at least, each with a"),
            ({"classes": ("0", " ")}, ArgumentError, r"^classes is \['0', ' '\]: name two classes at least, each"),
            ({"binarise": "up"}, ArgumentError, r"^Unknown side 'up' of --binarise: Known: left, right\.$"),
            ({"least": 0}, ArgumentError, r"^least must be at least 1, not 0\.$"),
            ({"collapse": 1}, ArgumentError, r"^collapse must be of type bool, not 1\.$"),
            (
                {"model": "trees"},
                ArgumentError,
                r"^Unknown model 'trees': did you mean tree\? Known: sequence",
            ),
            ({"hidden": 0}, ArgumentError, r"^hidden must be at least 1, not 0\.$"),
            ({"embedding": -1}, ArgumentError, r"^embedding must be at least 1, not -1\.$"),
            ({"dropout": 1.0}, ArgumentError, r"^dropout must lie in 0 to 1 \(exclusive\), not 1\.0\.$"),
            ({"cell": "tree-lsmt"}, ArgumentError, r"^Unknown cell 'tree-lsmt': did you mean tree-lstm"),
            ({"cell": "recursive(project=False)"}, ArgumentError, "input_size=5 and hidden_size=6 must be the same"),
            ({"cell": "tree-lstm(slots=1)"}, ArgumentError, "TreeLSTM: slots must be 2 or more, not 1"),
            ({"device": "abacus"}, ArgumentError, "^Device 'abacus' cannot be used here"),
            ({"hiden": 3}, ArgumentError, "^Unknown option 'hiden': did you mean hidden"),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else "",
    )
    def test_training(self, options, error, message, folder, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name, text in FILES.items():
            Path(name).write_text(text)
        before = sorted(tmp_path.iterdir())
        with pytest.raises(error, match=message) as caught:
            tree.train("run", **{**parts(folder), **SHORT, **options})
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.iterdir()) == before

    def test_roots_of_which_none_has_a_label_that_counts(self, tmp_path):
        for name, text in {"train.txt": "(0 (1 a) (2 b))", "valid.txt": "(2 (2 a) (1 b))"}.items():
            (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=r"^No root of the valid part has a label that counts, to judge by; see"):
            tree.train(tmp_path / "run", **parts(tmp_path), **SHORT, classes=("0", "1"))
        assert not (tmp_path / "run").exists()

    def test_more_slots_or_a_cell_that_sums(self, folder, tmp_path):
        (tmp_path / "wide.txt").write_text(FILES["wide.txt"])
        files = {"train": tmp_path / "wide.txt", "valid": folder / "valid.txt"}
        for cell in ("tree-lstm(slots=3)", "lstm"):
            run = tree.train(tmp_path / cell, **files, **SHORT, cell=cell)
            assert run.evaluate("train")["trees"] == 3


def test_configurations_settle_what_is_given() -> None:
    config = TreesConfig(train="a.txt", valid=Path("b"), classes=["0 1", "2"])
    assert (config.train, config.valid, config.classes) == (("a.txt",), ("b",), ("0 1", "2"))
    assert (TreeModelConfig().cell, TreeModelConfig(model="sequence").cell) == ("tree-lstm", "lstm")
    assert TreeModelConfig(model="sequence", cell="gru").cell == "gru"


def test_reading_without_labels_keeps_the_names() -> None:
    read = Reading(TreesConfig(), ["0", "1"], Vocabulary(("<unk>", "a")))
    found = read(parse_trees("(a b)", labelled=False))
    assert (found.labels.tolist(), found.label_names, found.words.tolist()) == ([-1] * 3, ("0", "1"), [-1, 1, 0])


# Lists of operations.


def evaluated(tree: Any) -> int:
    """What a tree of nested tuples, `(operation, arguments)`, is worth; by other means than the generator's."""
    if isinstance(tree, int):
        return tree
    values = sorted(map(evaluated, tree[1]))
    return {
        "[MAX": lambda: values[-1],
        "[MIN": lambda: values[0],
        "[SM": lambda: int(str(sum(values))[-1]),
        "[MED": lambda: int(np.floor(np.median(values))),
    }[tree[0]]()


def nested(tokens: list[str]) -> Any:
    token = tokens.pop(0)
    if token not in OPERATIONS:
        return int(token)
    arguments = []
    while tokens[0] != END:
        arguments.append(nested(tokens))
    tokens.pop(0)
    return token, tuple(arguments)


def depth(tree: Any) -> int:
    return 0 if isinstance(tree, int) else 1 + max(map(depth, tree[1]))


def lists(tree: Any) -> list[Any]:
    return [] if isinstance(tree, int) else [tree, *(each for argument in tree[1] for each in lists(argument))]


class TestListOps:
    def test_every_list_has_its_value_and_grows_to_the_right(self):
        lines = listops(300, seed=4, deepest=6)
        trees = parse_trees("\n".join(lines))
        for number, words in enumerate(trees.sentences()):
            whole = nested(list(words))
            assert value_of(" ".join(words)) == evaluated(whole)
            one = trees[number]
            labels = [one.label_names[label] if label >= 0 else None for label in one.labels.tolist()]
            found = [int(label) for label in labels if label not in (None, PARTIAL)]
            assert found == [evaluated(each) for each in lists(whole)], "in the order of their brackets"
            assert labels.count(PARTIAL) == sum(len(each[1]) for each in lists(whole))
            assert set(one.forest.counts.tolist()) == {0, 2}

    def test_depths_are_drawn_alike_and_the_greatest_is_reached(self):
        lines = listops(1200, seed=2, deepest=5, arguments=3)
        counts = np.bincount([depth(nested(words)) for words in parse_trees("\n".join(lines)).sentences()])
        assert len(counts) == 6
        assert counts[0] == 0
        assert counts[1:].min() > 150

    def test_lists_stand_at_any_place_and_not_only_on_the_way_to_the_greatest_depth(self):
        trees = [nested(words) for words in parse_trees("\n".join(listops(200, seed=4, deepest=6))).sentences()]
        last = sum(not isinstance(tree[1][-1], int) for tree in trees) / len(trees)
        assert 0.2 < last < 0.4
        assert any(len(lists(tree)) > depth(tree) for tree in trees)

    def test_no_two_are_alike_and_the_seed_decides(self):
        lines = listops(500, seed=3, deepest=2, arguments=2)
        assert len(set(lines)) == 500
        assert lines == listops(500, seed=3, deepest=2, arguments=2) != listops(500, seed=4, deepest=2, arguments=2)

    def test_none_is_longer_or_wider_than_it_may_be(self):
        trees = parse_trees("\n".join(listops(300, seed=5, arguments=4, longest=30)))
        assert max(len(words) for words in trees.sentences()) <= 30
        sizes = {len(each[1]) for words in trees.sentences() for each in lists(nested(words))}
        assert sizes == {2, 3, 4}

    def test_none_at_all(self):
        assert listops(0, seed=1) == []

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"count": -1}, "^listops: count must be an integer from 0, not -1"),
            ({"deepest": 0}, "^listops: deepest must be an integer from 1, not 0"),
            ({"deepest": 3000}, r"^listops: deepest must be 300 at most, not 3000\.$"),
            ({"arguments": 1.5}, r"^listops: arguments must be an integer from 2, not 1\.5"),
            ({"longest": 3}, "^listops: longest must be an integer from 4, not 3"),
            (
                {"deepest": 1, "arguments": 2, "count": 401},
                r"^listops: of 40100 expressions 400 were new and had 150 tokens at most; ask for fewer",
            ),
        ],
    )
    def test_what_cannot_be_drawn(self, options, message):
        with pytest.raises(ArgumentError, match=message):
            listops(**{"count": 3, "seed": 1, **options})

    @pytest.mark.parametrize("text", ["", "1 2", "[MAX 1", "[MAX ]", "1 ]", "[MAX 1 x ]", "[MAX 12 ]"])
    def test_what_is_no_expression(self, text):
        with pytest.raises(ArgumentError, match=f"^{re.escape(repr(text))} is no expression: "):
            value_of(text)


# Pictures.


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def colours(figure: Any) -> list[tuple[float, ...]]:
    """Of the labels' boxes."""
    return [text.get_bbox_patch().get_facecolor() for text in figure.axes[0].texts if text.get_bbox_patch()]


class TestPictures:
    pytestmark = pytest.mark.filterwarnings("error")

    @pytest.fixture(autouse=True)
    def _library(self):
        pytest.importorskip("matplotlib")

    def test_labels_stand_at_nodes_and_words_below(self, tmp_path):
        trees = parse_trees("(3 (2 The) (4 (4 best) film)) (1 no)")
        figure = draw_tree(trees, title=r"$\so$ it is")
        assert texts(figure) == ["3", "2", "The", "4", "4", "best", "", "film"]
        assert figure.axes[0].get_title() == r"$\so$ it is"
        save(figure, tmp_path / "no-formula.svg")
        places = {text.get_text(): text.get_position() for text in figure.axes[0].texts if text.get_text()}
        assert places["The"][0] < places["best"][0] < places["film"][0]
        assert places["3"][1] > places["4"][1] == places["2"][1] > places["The"][1]
        assert len(figure.axes[0].lines) == 4, "an edge for each node but the root"
        assert texts(draw_tree(trees, 1)) == ["1", "no"]

    def test_an_edge_goes_from_a_child_to_its_parent(self):
        trees = parse_trees("(3 (2 The) (4 (4 best) (2 (1 film) ever)))")
        (axes,) = draw_tree(trees).axes
        places = [text.get_position() for text in axes.texts if text.get_bbox_patch()]  # in the order of nodes
        expected = {
            frozenset((places[child], places[parent]))
            for child, parent in enumerate(trees.forest.parents.tolist())
            if parent >= 0
        }
        ends = [zip(line.get_xdata(), line.get_ydata(), strict=True) for line in axes.lines]
        assert {frozenset(pair) for pair in ends} == expected

    def test_numbers_go_from_red_to_green(self):
        found = colours(draw_tree(parse_trees("(-2 (-1 a) (0 (10 b) (1 c)))")))  # -2, -1, 0, 10, 1
        order = [found[place] for place in (0, 1, 2, 4, 3)]
        redness = [red - green for red, green, *_ in order]
        assert redness == sorted(redness, reverse=True)
        assert len(set(redness)) == 5

    def test_shares_mix_colours_and_doubt_is_pale(self):
        trees = parse_trees("(0 (0 a) (4 b))", label_names=SENTIMENT)
        sure, halved = np.eye(5)[[0, 0, 4]], np.eye(5)[[0, 0, 4]]
        halved[0] = [0.5, 0, 0, 0, 0.5]
        one, other = draw_tree(trees, shares=sure), draw_tree(trees, shares=halved)
        assert colours(one)[1:] == colours(other)[1:]
        (neutral, *_) = colours(draw_tree(parse_trees("(2 a)", label_names=SENTIMENT)))
        assert colours(other)[0] == pytest.approx(neutral)
        boxes = [box for text in other.axes[0].texts if (box := text.get_bbox_patch())]
        edges = [float(box.get_edgecolor()[0]) for box in boxes]
        assert edges == pytest.approx([0.375, 0, 0])

    def test_shares_are_those_of_the_tree_that_is_drawn(self):
        trees = parse_trees("(0 (0 a) (4 b)) (4 c)", label_names=SENTIMENT)
        shares = np.eye(5)[[0, 0, 4, 2]]
        assert colours(draw_tree(trees, 1, shares=shares)) == colours(
            draw_tree(parse_trees("(2 c)", label_names=SENTIMENT))
        )

    def test_names_have_colours_of_their_own(self):
        found = colours(draw_tree(parse_trees("(S (NP a) (VP (V b) (NP c)))")))
        assert found[1] == found[4]
        assert len(set(found)) == 4

    def test_a_tree_without_labels(self):
        figure = draw_tree(parse_trees("((the cat) sat)", labelled=False))
        assert texts(figure) == ["", "", "", "the", "", "cat", "", "sat"]
        assert set(colours(figure)) == {(1.0, 1.0, 1.0, 1.0)}

    @pytest.mark.parametrize("kind", ["png", "svg", "pdf", "PNG"])
    def test_files(self, kind, tmp_path):
        path = tmp_path / f"tree.{kind}"
        save(draw_tree(parse_trees(r"(3 (2 $\oops$) (4 $5) --5)")), path)  # no formulas
        assert path.read_bytes()[:5].strip(b"\x89") in (b"PNG\r", b"<?xml", b"%PDF-")
        assert list(tmp_path.iterdir()) == [path]

    def test_labels_that_look_like_numbers_and_are_none(self):
        assert len(colours(draw_tree(parse_trees("(--5 (2 a) (- b))")))) == 3

    def test_a_disk_that_is_full(self, tmp_path, monkeypatch):
        figure = draw_tree(parse_trees("(3 a)"))
        save(figure, tmp_path / "tree.png")
        before = (tmp_path / "tree.png").read_bytes()

        def full(file: Any, **_: Any) -> None:
            file.write(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(figure, "savefig", full)
        with pytest.raises(OSError, match="No space left"):
            save(figure, tmp_path / "tree.png")
        assert (tmp_path / "tree.png").read_bytes() == before
        assert len(list(tmp_path.iterdir())) == 1

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda path: draw_tree(parse_trees("(1 a)"), 1), r"^There is no tree 1; there are 1, from 0\.$"),
            (lambda path: draw_tree(parse_trees("(1 a)"), -1), "^There is no tree -1"),
            (
                lambda path: save(None, path / "a.jpg"),
                r"a\.jpg' does not end in a kind of picture: (did you mean png\? )?Known: pdf, png, svg\.$",
            ),
            (lambda path: save(None, path / "png"), "png' does not end in a kind of picture"),
            (lambda path: save(None, path / "nowhere" / "a.png"), r"^There is no folder .*nowhere to put a\.png in\.$"),
        ],
    )
    def test_mistakes(self, call: Callable[[Path], None], message, tmp_path):
        with pytest.raises(ArgumentError, match=message):
            call(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_nodes_in_another_order(self):
        trees = parse_trees("(1 (0 a) (0 b))")
        turned = type(trees)(
            Forest.from_parents([[2, 2, -1]]), trees.labels, trees.words, trees.label_names, trees.word_names
        )
        with pytest.raises(ArgumentError, match="whose nodes stand in the order of opening brackets"):
            draw_tree(turned)

    def test_without_the_library(self, monkeypatch):
        import sys

        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ArgumentError, match=r"^Pictures need matplotlib: pip install 'ritornello\[pictures\]'\.$"):
            draw_tree(parse_trees("(1 a)"))


def test_the_loss_is_the_mean_over_labelled_nodes() -> None:
    trees = parse_trees("(1 (0 (1 a) b) (0 c)) (0 (1 b) c)")
    words = Vocabulary.learn(trees.word_counts())
    trees = trees.encoded(words)
    model = TreeClassifier(len(words), 2, rit.cells.TreeLSTM, embedding=3, hidden=4)
    task = tree.TreeTask(trees, trees, 2, 1)
    found, _, count = task.loss(model, task.some(np.arange(2)), None)
    logits = model(trees.forest, torch.from_numpy(trees.words[trees.forest.leaves]))
    labels = torch.from_numpy(trees.labels)
    assert (labels < 0).sum() > 0
    assert count == (labels >= 0).sum()
    assert_close(found, F.cross_entropy(logits, labels, ignore_index=-1))


@pytest.mark.parametrize("kind", [TreeClassifier, SpanClassifier])
def test_word_vectors_and_states_are_dropped_in_training(kind: Any) -> None:
    model = kind(9, 2, rit.LSTM, embedding=64, hidden=64, dropout=0.5)
    torch.nn.init.ones_(model.embed.weight)
    read: list[torch.Tensor] = []
    model.output.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    given: list[torch.Tensor] = []

    class Watched(rit.Unfold):
        def over(self, trees: Any, x: torch.Tensor, *more: Any, **options: Any) -> Any:
            given.append(x)
            return super().over(trees, x, *more, **options)

        def forward(self, x: torch.Tensor, *more: Any, **options: Any) -> Any:
            given.append(x)
            return super().forward(x, *more, **options)

    model.stack.layers[0].__class__ = Watched
    batch = Forest.from_depths([0, 1, 1]), torch.tensor([7, 8])
    model(*batch)
    assert set(given[0].unique().tolist()) == {0.0, 2.0}
    assert (read[0] == 0).any()
    model.eval()(*batch)
    assert set(given[-1].unique().tolist()) == {1.0}
    assert (read[-1] != 0).all()


def test_the_recipe_is_that_of_the_paper(folder: Path, tmp_path: Path) -> None:
    """Tai, Socher & Manning (2015), section 5."""
    run = tree.train(tmp_path / "run", **parts(folder), steps=1, evaluations=1)
    training, model = (run.run.config[name] for name in ("training", "model"))
    assert (training["optimiser"], training["lr"], training["batch"]) == ("adagrad", 0.05, 25)
    assert training["weight_decay"] == 1e-4
    assert (model["hidden"], model["embedding"], model["dropout"]) == (150, 300, 0.5)
    assert run.model.dropout.share == 0.5
