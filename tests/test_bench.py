"""`rit bench`: it runs, it tells all it measured, and it times nothing that is wrong. No test looks at a time."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import ritornello as rit
from ritornello import processor
from ritornello.bench import (
    ceiling,
    contenders,
    dropin,
    roster,
    scan,
    sections,
    settings,
    steps,
    stream,
)
from ritornello.bench.check import Mismatch, Oracle
from ritornello.bench.clock import Times, interleave
from ritornello.bench.contenders import CELL, LOOP, NN, OURS, PLAIN, SCAN, Answer, make_case
from ritornello.bench.goals import judge
from ritornello.bench.report import Report
from ritornello.bench.roster import ROSTER, entries
from ritornello.bench.sections import BOTH, FORWARD, Row, weights_read
from ritornello.bench.suite import run
from ritornello.cells import Cell
from ritornello.cli import main

QUICK = ("--seconds", "0.01", "--no-scan")
STRANGERS = """
    from collections import namedtuple
    import torch, ritornello as rit
    from torch import nn

    class Mine(rit.Cell):
        State = namedtuple("State", "h m")

        def __init__(self, input_size, hidden_size):
            super().__init__(input_size, hidden_size)
            self.A = nn.Linear(input_size + hidden_size, hidden_size)

        def forward(self, x, s):
            m = 0.5 * s.m + torch.tanh(self.A(torch.cat([x, s.h], -1)))
            return self.State(torch.sigmoid(m) * m, m)

    class Plain(nn.LSTMCell):
        pass

    class Dice(Mine):
        def forward(self, x, s):
            return super().forward(x + torch.rand_like(x), s)

    class Branching(Mine):
        def forward(self, x, s):
            return super().forward(x if x.detach().abs().max() < 9 else 0 * x, s)

    class Needy(nn.Module):
        def __init__(self, input_size, hidden_size, more):
            super().__init__()

    number = 3
"""


HALVES = pytest.mark.skipif(not processor.has_bfloat16(), reason="no instructions for bfloat16")


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """A folder of its own, a small ceiling and small sequences of different lengths."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ceiling, "SIZES", ((16, 16, 16), (32, 16, 32)))
    monkeypatch.setattr(settings, "RAGGED", (12, 3, 4))
    monkeypatch.setattr(settings, "DENSE", ((3, 2, 4),))
    monkeypatch.setattr(settings, "WIDE", ((3, 2, 4),))
    monkeypatch.setattr(sections, "STEPS", 3)
    Path("mine.py").write_text(textwrap.dedent(STRANGERS))


@pytest.fixture
def shell(monkeypatch, capsys):
    """Types `rit bench`: the status, what it said, what it complained of."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["rit", "bench", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            main()
        return exit_.value.code or 0, *capsys.readouterr()

    return call


MODEL = """
    import torch
    from torch import nn

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.out = nn.LSTM(3, 4, bidirectional=True), nn.Linear(8, 2)

        def forward(self, x):
            return self.out(self.lstm(x)[0])

    def make():
        return Tagger(), (torch.randn(5, 2, 3),)

    def none():
        return 3
"""


class TestReplaced:
    @pytest.fixture(autouse=True)
    def smaller(self, monkeypatch):
        monkeypatch.setattr(dropin, "DEEP", (10, 3, 4))
        monkeypatch.setattr(dropin, "DENSE", ((3, 2, 4),))
        Path("model.py").write_text(textwrap.dedent(MODEL))

    def test_all_cases(self, shell):
        threads = torch.get_num_threads()
        status, out, error = shell("--torch", "--model", "model.py:make", "--seconds", "0.01", "--json", "o.json")
        assert (status, error, torch.get_num_threads()) == (0, "", threads)
        rows = json.loads(Path("o.json").read_text())["torch"]
        names = list(dict.fromkeys(row["case"] for row in rows))
        assert len(names) == 6 + 3 + 2 + 1
        assert names[-1] == "model.py:make"
        assert [row["what"] for row in rows] == ["forward", "forward+backward"] * len(names)
        for row in rows:
            assert row["ratio"] == row["ms"][NN] / row["ms"][OURS]
            assert f"{row['ratio']:6.2f}" in out

    def test_other_results_are_not_timed(self, shell, monkeypatch):
        class Wrong(rit.nn.LSTM):
            def forward(self, *args, **kwargs):
                outputs, last = super().forward(*args, **kwargs)
                return outputs * 1.001, last

        def wrong(model, executor):
            for module in model.modules():
                if type(module) is nn.LSTM:
                    rit.nn.replace(module)
                    module.__class__ = Wrong

        monkeypatch.setattr(dropin, "replace", wrong)
        case = dropin._replaced("x", nn.LSTM(3, 4), (torch.ones(5, 2, 3),))
        monkeypatch.setattr(dropin, "cases", lambda models, executor: [case])
        status, _, error = shell("--torch", "--seconds", "0.01")
        assert status == 1
        assert "x: replaced modules differ by" in error

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--torch", "--shape", "3,2,4"), "--torch and --shape clash"),
            (("--model", "model.py:make"), "--model says what --torch is to replace modules in"),
            (("--torch", "--model", "model.py:none"), "it must be a function that returns a model"),
            (("--torch", "--model", "model.py:nothing"), "Module 'model.py' has no 'nothing'"),
            (("--torch", "--model", "nothing"), "'nothing' names nothing"),
        ],
    )
    def test_models_that_are_none(self, words, message, shell):
        status, _, error = shell(*words, "--seconds", "0.001")
        assert status == 2
        assert message in error


class TestCommand:
    def test_everything_that_was_measured_is_in_the_file(self, shell):
        threads = torch.get_num_threads()
        status, out, error = shell("--cell", "lstm", "--cell", "peephole", *QUICK, "--threads", 1, "--json", "o.json")
        assert (status, error) == (0, "")
        assert torch.get_num_threads() == threads
        for text in ("T 3, B 2, H 4", "T 1 to 12, B 3, H 4", "First call", "Goals", "ceiling", "seed 0"):
            assert text in out
        found = json.loads(Path("o.json").read_text())
        assert list(found) == ["header", "rows", "ceiling_gflops", "bfloat16", "streaming", "first_call", "goals"]
        header = found["header"]
        assert header["threads"] == 1
        assert header["torch"] == torch.__version__
        assert {"device", "instruction_set", "commit", "dtype", "seed", "jax", "hand_over_us"} <= set(header)
        assert set(header["ceiling"]) == {"call", "gflops", "others"}
        assert "torch.mm" in header["ceiling"]["others"]
        rows = found["rows"]
        expected = [(s, c, w) for s in ("dense", "ragged") for c in ("lstm", "peephole") for w in (FORWARD, BOTH)]
        assert [(row["section"], row["cell"], row["what"]) for row in rows] == expected
        for row in rows:
            others = {LOOP} | ({NN} if row["cell"] == "lstm" else set())
            asked = others | {OURS, "ceiling"}
            if row["section"] == "ragged":
                asked |= {"ritornello dense"} | ({"torch.nn padded"} if row["cell"] == "lstm" else set())
            assert set(row["times"]) == asked
            assert {OURS, *others} <= set(row["differences"])
            assert {name for name, ratio in row["ratios"].items() if ratio} == asked & set(row["ratios"])
            assert (row["per_token"] is not None) == (row["section"] == "ragged")
            assert row["flops"] == 2 * row["tokens"] * 8 * 16 * (3 if row["what"] == BOTH else 1)
            for each in row["times"].values():
                assert set(each) == {"best_ms", "median_ms", "calls", "gflops"}
                assert each["calls"] >= 3
        halves = ["lstm", "peephole"] if processor.has_bfloat16() else []
        assert [each["cell"] for each in found["bfloat16"]] == halves
        assert all(each["ratio"] == each["float32_ms"] / each["bfloat16_ms"] for each in found["bfloat16"])
        walks = [("lstm", 128, {OURS, NN, CELL}), ("peephole", 128, {OURS, CELL})]
        assert [(each["cell"], each["units"], set(each["us"])) for each in found["streaming"]] == walks
        assert [each["cell"] for each in found["first_call"]] == ["lstm", "peephole"]
        for each in found["first_call"]:
            assert set(each) == {"cell", "first_ms", "second_ms", "import_ms", "phases"}
            assert set(each["phases"]) == {"trace", "passes", "adjoint", "lowering", "machine", "rest"}
        assert len(found["goals"]) == 20
        assert all(set(goal) == {"name", "holds", "found"} for goal in found["goals"])

    @pytest.mark.parametrize(
        ("words", "sections", "more"),
        [
            (("--shape", "2,1,3", "--shape", "4,2,3"), {"dense": 2}, set()),
            (("--ragged",), {"ragged": 1}, set()),
            (("--no-ragged", "--no-first-call", "--no-bfloat16"), {"dense": 1}, {"streaming"}),
            (("--shape", "2,1,3", "--ragged"), {"dense": 1, "ragged": 1}, set()),
            (("--first-call",), {}, {"first_call"}),
            (("--streaming",), {}, {"streaming"}),
            pytest.param(("--bfloat16",), {}, {"bfloat16"}, marks=HALVES),
        ],
    )
    def test_sections(self, words, sections, more, shell):
        assert shell(*words, "--cell", "elman", "--forward", *QUICK, "--json", "o.json")[0] == 0
        found = json.loads(Path("o.json").read_text())
        names = [row["section"] for row in found["rows"]]
        assert {name: names.count(name) for name in names} == sections
        assert all(row["what"] == FORWARD for row in found["rows"])
        assert {name for name in ("bfloat16", "streaming", "first_call") if found[name]} == more

    def test_without_instructions_for_bfloat16(self, shell, monkeypatch):
        monkeypatch.setattr(processor, "instruction_set", lambda: "avx2")
        status, _, error = shell("--bfloat16", "--cell", "lstm", *QUICK)
        assert (status, error) == (
            2,
            "rit: There are no instructions for bfloat16 here (avx2): leave --bfloat16 out.\n",
        )
        fractions = []
        monkeypatch.setattr(Report, "doing", lambda self, what, fraction: fractions.append(fraction))
        assert shell("--cell", "lstm", *QUICK, "--json", "o.json")[0] == 0
        assert not json.loads(Path("o.json").read_text())["bfloat16"]
        parts = len(fractions) - 1  # the first is the ceiling
        assert fractions[1:] == [part / parts for part in range(parts)]

    def test_a_wrong_stream_is_not_timed(self, shell, monkeypatch):
        def wrong(case):
            right = stream.called(case)
            return lambda keep=True: [1.01 * output for output in right(keep)]

        monkeypatch.setitem(stream.WALKERS, OURS, wrong)
        status, _, error = shell("--streaming", "--cell", "lstm", *QUICK)
        assert status == 1
        assert "streaming by ritornello with lstm is wrong: outputs differs by" in error

    @pytest.mark.parametrize(
        ("words", "why"),
        [
            (("--cell", "lstm", "--dtype", "bfloat16"), "No stepper in bfloat16: its states are kept in float32"),
            (("--cell", "mine.py:Branching"), "No stepper: "),
        ],
    )
    def test_a_cell_without_a_stepper_is_streamed_by_others(self, words, why, shell):
        status, out, error = shell(*words, *QUICK, "--json", "o.json")
        assert (status, error) == (0, "")
        assert f"  {words[1]}: {why}" in out
        found = json.loads(Path("o.json").read_text())
        (stream,) = found["streaming"]
        assert set(stream["us"]) == ({NN, CELL} if words[1] == "lstm" else {CELL})
        assert stream["notes"][OURS].startswith(why)
        assert [goal["holds"] for goal in found["goals"] if "streaming" in goal["name"]] == [None]

    def test_a_stream_needs_no_gradients(self, shell, monkeypatch):
        monkeypatch.setattr(torch.autograd, "grad", lambda *_, **__: pytest.fail("gradients that nobody reads"))
        assert shell("--streaming", "--cell", "lstm", *QUICK)[0] == 0

    @pytest.mark.parametrize("name", ["Mine", "Plain"])
    def test_a_stranger(self, name, shell):
        assert shell("--cell", f"mine.py:{name}", "--shape", "3,2,4", "--ragged", *QUICK, "--json", "o.json")[0] == 0
        rows = json.loads(Path("o.json").read_text())["rows"]
        assert len(rows) == 4
        assert all("calls the cell" in row["notes"][LOOP] for row in rows)

    def test_a_strangers_first_call(self, shell):
        assert shell("--cell", "mine.py:Mine", "--first-call", *QUICK, "--json", "o.json")[0] == 0
        (found,) = json.loads(Path("o.json").read_text())["first_call"]
        assert found["phases"]["trace"] > 0

    @pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
    def test_dtypes(self, dtype, shell):
        status, out, _ = shell("--cell", "gru", "--shape", "3,2,4", "--dtype", dtype, *QUICK)
        assert status == 0
        assert dtype in out

    def test_another_executor(self, shell):
        words = ("--cell", "gru", "--shape", "3,2,4", "--executor", "reference", *QUICK, "--json", "o.json")
        assert shell(*words)[0] == 0
        assert {row["executor"] for row in json.loads(Path("o.json").read_text())["rows"]} == {"reference"}

    def test_a_wrong_contender_ends_it(self, shell, monkeypatch):
        right = steps.lstm

        def wrong(o, w):
            step = right(o, w)
            return lambda p, s: tuple(1.001 * field for field in step(p, s))

        monkeypatch.setitem(steps.STEPS, rit.LSTM, wrong)
        status, out, error = shell("--cell", "lstm", "--shape", "3,2,4", *QUICK, "--json", "o.json")
        assert status == 1
        assert "GFLOP/s, " in out  # the header only
        assert "T 3" not in out
        assert error.startswith("rit: ritornello at (3, 2, 4) with LSTM is wrong: ")
        assert "it was not timed" in error
        assert not Path("o.json").exists()

    def test_a_cell_that_throws_dice_cannot_be_checked(self, shell):
        status, _, error = shell("--cell", "mine.py:Dice", "--shape", "3,2,4", *QUICK)
        assert status == 1
        assert "with Dice" in error

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--shape", "3,2"), "--shape is '3,2'; it must be steps, sequences and units, as in 50,50,128."),
            (("--shape", "3,0,2"), "--shape is '3,0,2'; it must"),
            (("--shape", "3,x,2"), "--shape is '3,x,2'; it must"),
            (("--cell", "lsmt"), "Unknown cell 'lsmt': did you mean lstm or slstm?"),
            (("--cell", "nowhere.py:Cell"), "Cannot import 'nowhere.py': there is no such file."),
            (("--cell", "mine.py:Yours"), "has no 'Yours'"),
            (("--cell", "mine.py:number"), "not a subclass of ritornello.Cell"),
            (("--cell", "mine.py:Needy", "--shape", "3,2,4"), "cannot be made with (input_size, hidden_size): "),
            (("--dtype", "float16"), "Unknown dtype 'float16': did you mean bfloat16"),
            (("--seconds", "0"), "seconds is 0.0; it must be a positive number."),
            (("--seconds", "nan"), "seconds is nan; it must be a positive number."),
            (("--threads", "-1"), "threads is -1; it must be at least 1."),
            (("--executor", "gpu"), "Unknown executor 'gpu'"),
            (("--json", "nowhere/o.json"), "--json nowhere/o.json: there is no folder 'nowhere'."),
            (("--sahpe", "3,2,4"), "No such option: --sahpe"),
        ],
    )
    def test_mistakes_are_one_sentence(self, words, message, shell):
        status, _, error = shell(*words, *(() if "--seconds" in words else QUICK))
        assert status == 2
        assert error.startswith("rit: ")
        assert error.count("\n") == 1
        assert message in error

    def test_help_needs_no_torch(self):
        code = """
            import sys
            sys.argv = ["rit", "bench", "--help"]
            try:
                __import__("ritornello.cli", fromlist=["main"]).main()
            finally:
                assert not {"torch", "numpy", "jax", "rich.progress"} & set(sys.modules)
        """
        source = str(Path(rit.__file__).parents[1])
        code = f"import sys; sys.path.insert(0, {source!r})\n" + textwrap.dedent(code)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "--first-call" in done.stdout


LENGTHS = [None, torch.tensor([3, 7, 1, 7])]
KNOWN = {**ROSTER, **{name: rit.cells.CELLS[name] for name in ("min-gru", "min-lstm", "rg-lru", "sru")}}


class TestContenders:
    @pytest.mark.parametrize("lengths", LENGTHS, ids=["dense", "ragged"])
    @pytest.mark.parametrize("name", KNOWN)
    def test_all_agree_with_the_cell_called_by_hand(self, name, lengths):
        case = make_case(KNOWN[name], (7, 4, 5), lengths=lengths, dtype=torch.float64)
        assert steps.step_of(case.cell) is not None
        state, by_hand = case.cell.zero_state(4, case.x), []
        for x in case.x:
            state = case.cell(x, state)
            by_hand.append(state[0])
        by_hand = torch.stack(by_hand)
        if lengths is not None:
            by_hand = by_hand * (torch.arange(7)[:, None] < lengths)[:, :, None]
        leaves = dict(case.cell.named_parameters())
        gradients = dict(zip(leaves, torch.autograd.grad(by_hand, list(leaves.values()), case.weights), strict=True))
        oracle = Oracle(case)
        assert set(oracle.answer.gradients) == {"x", *gradients}
        oracle.agree("by hand", Answer(by_hand.detach(), gradients))
        for contender in (contenders.ours(case), contenders.torch_nn(case), contenders.loop(case, plain=True)):
            if contender is not None:
                oracle.agree(contender.name, contender.answer(contender.both()))
                oracle.agree(contender.name, Answer(contender.outputs(contender.forward()), {}))

    @pytest.mark.parametrize("lengths", LENGTHS, ids=["dense", "ragged"])
    @pytest.mark.parametrize("name", KNOWN)
    def test_lax_scan_agrees(self, name, lengths):
        pytest.importorskip("jax")
        case = make_case(KNOWN[name], (7, 4, 5), lengths=lengths)
        contender = scan.lax_scan(case, torch.get_num_threads())
        oracle = Oracle(case)
        assert set(contender.answer(contender.both()).gradients) == set(oracle.answer.gradients)
        oracle.agree("lax.scan", contender.answer(contender.both()))
        oracle.agree("lax.scan", Answer(contender.outputs(contender.forward()), {}))
        assert all(seconds > 0 for seconds in contender.compile_s)

    @pytest.mark.parametrize("name", ROSTER)
    def test_no_cell_is_too_sensitive_to_be_checked_in_half_precision(self, name):
        oracle = Oracle(make_case(ROSTER[name], (50, 50, 128), dtype=torch.bfloat16), backward=False)
        exact, found = oracle.finer.answer.outputs, oracle.answer.outputs
        oracle.agree("it", Answer(exact + 3 * (exact - found), {}))

    @pytest.mark.parametrize(
        "name", ["gru(update=write)", "gru(bias=False)", "peephole(peephole=matrices)", "sru(peephole=True)", "deep"]
    )
    def test_other_equations_have_no_careful_step(self, name):
        assert steps.step_of(entries([name])[0].make(3, 3)) is None

    def test_torch_has_three_of_them(self):
        modules = {name: contenders.module_of(make(3, 3)) for name, make in ROSTER.items()}
        found = {name: type(module) for name, module in modules.items() if module is not None}
        assert found == {"elman": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
        assert contenders.module_of(rit.Elman(3, 3, nonlinearity="relu")) is None

    @pytest.mark.parametrize(
        ("name", "gates"),
        [("elman", 1), ("gru", 3), ("gru-before", 3), ("lstm", 4), ("peephole", 4), ("layer-norm", 4),
         ("coupled", 3), ("made-up", 4)],
    )  # fmt: skip
    def test_work_is_counted_in_the_program(self, name, gates):
        assert weights_read(ROSTER[name](3, 5)) == gates * 5 * (3 + 5)

    def test_the_multiplicative_cell_has_a_product_more(self):
        assert weights_read(rit.cells.MultiplicativeLSTM(3, 5)) == 5 * 5 * (3 + 5)

    def test_the_work_of_a_cell_without_a_program_is_its_matrices(self):
        class Branching(rit.Elman):
            def forward(self, x, s):
                return super().forward(x, s) if float(x.sum()) else super().forward(x + 1, s)

        assert weights_read(Branching(3, 5)) == 5 * (3 + 5)

    def test_who_runs(self):
        assert [entry.name for entry in entries([])] == list(ROSTER)
        assert [entry.name for entry in entries([], everyone=True)] == list(rit.cells.CELLS)
        assert all(isinstance(entry.make(2, 3), Cell) for entry in entries([], everyone=True))
        assert [entry.name for entry in entries(["gru", "mine.py:Plain", "gru"])] == ["gru", "mine.py:Plain"]
        assert roster.stranger("mine.py:Plain")(2, 3).state_sizes == (3, 3)
        assert entries(["peephole(peephole=matrices)"])[0].make(2, 3).p.shape == (3, 3, 3)


class TestCheck:
    @pytest.fixture
    def case(self):
        return make_case(rit.LSTM, (5, 2, 3))

    def test_what_is_right_is_near(self, case):
        oracle = Oracle(case)
        assert oracle.agree("it", oracle.answer) == 0

    @pytest.mark.parametrize("wrong", [1.01, math.nan, math.inf])
    def test_what_is_wrong_is_told(self, case, wrong):
        oracle = Oracle(case)
        gradients = oracle.answer.gradients
        with pytest.raises(Mismatch, match=r"^it is wrong: outputs differs by "):
            oracle.agree("it", Answer(oracle.answer.outputs * wrong, gradients))
        with pytest.raises(Mismatch, match=r"^it is wrong: gradient of U.weight differs by "):
            oracle.agree("it", Answer(oracle.answer.outputs, {"U.weight": gradients["U.weight"] * wrong}))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("name", ["outputs", "x", "U.weight"])
    def test_less_is_asked_of_rivals_parameters_in_half_precision_alone(self, name, dtype, case):
        oracle = Oracle(case.to(dtype))
        outputs, gradients = oracle.answer
        if name == "outputs":
            answer = Answer(1.1 * outputs, {})
        else:
            answer = Answer(outputs, {name: 1.1 * gradients[name]})
        with pytest.raises(Mismatch, match="is wrong"):
            oracle.agree("it", answer)
        if (name, dtype) == ("U.weight", torch.bfloat16):
            oracle.agree("it", answer, rival=True)
        else:
            with pytest.raises(Mismatch, match="is wrong"):
                oracle.agree("it", answer, rival=True)

    def test_another_shape_is_wrong(self, case):
        oracle = Oracle(case)
        with pytest.raises(Mismatch, match="differs by inf"):
            oracle.agree("it", Answer(oracle.answer.outputs[:-1], {}))

    @pytest.mark.parametrize(("dtype", "coarse"), [(torch.float32, 2.0**13), (torch.bfloat16, 2.0**5)])
    def test_where_rounding_grows_the_finer_loop_decides(self, dtype, coarse):
        oracle, off = self.rounded(coarse, dtype)
        oracle.agree("it", off(0.0))
        oracle.agree("it", off(3.0))
        with pytest.raises(Mismatch, match="is wrong"):
            oracle.agree("it", off(6.0))

    @pytest.mark.parametrize(
        ("dtype", "coarse"), [(torch.float32, 2.0**15), (torch.float32, 2.0**24), (torch.bfloat16, 2.0**6)]
    )
    def test_a_loop_that_rounding_moves_far_proves_nothing(self, dtype, coarse):
        oracle, off = self.rounded(coarse, dtype)
        oracle.agree("it", off(0.0))
        with pytest.raises(Mismatch, match=r"cannot be checked: rounding alone moves the Python loop by"):
            oracle.agree("it", off(2.0))

    def rounded(self, coarse, dtype):
        """The oracle of a cell that rounds, and answers so many times as far from the exact one as the loop's."""

        class Coarse(rit.Elman):
            def forward(self, x, s):
                return self.State(x + coarse - coarse)

        oracle = Oracle(make_case(Coarse, (24, 4, 4), dtype=dtype))
        exact, found = oracle.finer.answer.outputs, oracle.answer.outputs
        return oracle, lambda times: Answer(exact + times * (found - exact), {})


class TestClock:
    def test_contenders_take_turns(self):
        order = []
        calls = {name: lambda name=name: order.append(name) for name in "abc"}
        found = interleave(calls, 1e-9)
        assert order == list("abcabcabc")
        assert {name: len(times.seconds) for name, times in found.items()} == {"a": 3, "b": 3, "c": 3}

    def test_least_and_middle(self):
        assert (Times([3.0, 1.0, 2.0]).best, Times([3.0, 1.0, 2.0]).median) == (1.0, 2.0)


def row(cell, shape, section="dense", ceiling=100.0, per_token=None, **ms):
    """A row of forward + backward: ritornello takes 1 ms and does 90 GFLOP/s."""
    found = Row(section, shape, cell, BOTH, shape[0] * shape[1], 9e7, 0.95, "cpu", {}, {}, per_token=per_token)
    found.times = {OURS: {"best_ms": 1.0, "gflops": 90.0}, "ceiling": {"best_ms": 1.0, "gflops": ceiling}}
    names = {"nn": NN, "loop": LOOP, "plain": PLAIN, "scan": SCAN}
    found.times |= {names[name]: {"best_ms": each, "gflops": 1.0} for name, each in ms.items()}
    return found


class TestGoals:
    def test_nothing_measured_is_neither(self):
        assert {goal.holds for goal in judge([], [], [], [], 1.0)} == {None}

    @pytest.mark.parametrize(
        ("rows", "goal", "holds", "found"),
        [
            ([row("lstm", (50, 50, 128))], "0.90 of the ceiling", True, "0.90 (0.75 of the run's best), lstm at"),
            ([row("made-up", (50, 50, 128), ceiling=110)], "0.90 of the ceiling", False, "missed in 1 of 1 cases"),
            ([row("elman", (50, 50, 128), ceiling=110)], "0.90 of the ceiling", None, "not measured"),
            ([row("layer-norm", (50, 50, 128), ceiling=105)], "layer norm there", True, "layer-norm"),
            ([row("lstm", (100, 128, 64), ceiling=121)], "100,128,64: at least 0.75", False, "0.74"),
            ([row("lstm", (256, 1, 128), ceiling=179)], "256,1,128: at least 0.5", True, "0.50"),
            ([row("lstm", (50, 50, 128), nn=0.9), row("lstm", (5, 5, 5), nn=9)], "not slower", False, "0.90"),
            ([row("lstm", (50, 50, 128), nn=1), row("lstm", (5, 5, 5), nn=4)], "nn.LSTM: 1.4", True, "2.00"),
            ([row("gru", (50, 50, 128), nn=3.9)], "gru against nn.GRU: 4 times", False, "3.90 over 1 shapes"),
            ([row("made-up", (50, 50, 128), loop=4)], "B ≥ 32: 4 times", True, "4.00"),
            ([row("made-up", (50, 1, 128), loop=19)], "B = 1: 20 times", False, "19.00"),
            ([row("lstm", (50, 1, 128), loop=19)], "B = 1: 20 times", None, "not measured"),
            ([row("lstm", (50, 50, 128), scan=3)], "lax.scan, B > 1", False, "3.00"),
            ([row("lstm", (50, 1, 128), scan=3)], "lax.scan, B = 1", True, "3.00"),
            ([row("lstm", (500, 32, 256), "ragged", nn=50, per_token=1.1)], "packed nn.LSTM", True, "50.00"),
            ([row("gru", (500, 32, 256), "ragged", nn=50, per_token=1.2)], "a token costs", False, "+20 %, gru"),
        ],
    )  # fmt: skip
    def test_each(self, rows, goal, holds, found):
        (judged,) = [each for each in judge(rows, [], [], [], 120.0) if goal in each.name]
        assert judged.holds is holds
        assert found in judged.found

    @pytest.mark.parametrize(("ceiling", "products", "bound"), [(105, 0.95, 0.85), (125, 0.5, 0.7)])
    def test_the_catalogue(self, ceiling, products, bound):
        rows = [row(name, (64, 32, 256), ceiling=ceiling) for name in rit.cells.CELLS]
        for each in rows:
            each.products = products
        (judged,) = [
            goal
            for goal in judge(rows, [], [], [], 120.0)
            if f"at least {bound:.2f}" in goal.name and "whole" in goal.name
        ]
        assert judged.holds
        rows[-1].times["ceiling"]["gflops"] *= 1.1
        (judged,) = [goal for goal in judge(rows, [], [], [], 120.0) if judged.name == goal.name]
        assert not judged.holds
        (judged,) = [goal for goal in judge(rows[1:], [], [], [], 120.0) if judged.name == goal.name]
        assert judged.holds is None, "the catalogue was not measured as a whole"

    @pytest.mark.parametrize(("ratio", "holds"), [(19, False), (20, True)])
    def test_linear_cells(self, ratio, holds):
        rows = [row("sru", (10_000, 4, 128), "long", plain=ratio), row("lru", (10_000, 4, 128), "long", plain=30)]
        (judged,) = [goal for goal in judge(rows, [], [], [], 120.0) if "linear" in goal.name]
        assert judged.holds == holds

    @pytest.mark.parametrize(("ratio", "holds"), [(1.59, False), (1.6, True)])
    def test_bfloat16(self, ratio, holds):
        found = [{"cell": "gru", "shape": (2, 3, 256), "ratio": each} for each in (9.0, ratio)]
        (judged,) = [goal for goal in judge([], found, [], [], 1.0) if "bfloat16" in goal.name]
        assert (judged.holds, judged.found[:4]) == (holds, f"{ratio:.2f}")

    @pytest.mark.parametrize("ratio", [1.0, 9.0])
    def test_bfloat16_of_few_units_is_not_judged(self, ratio):
        found = [{"cell": "gru", "shape": (50, 50, 128), "ratio": ratio}]
        (judged,) = [goal for goal in judge([], found, [], [], 1.0) if "bfloat16" in goal.name]
        assert (judged.holds, judged.found) == (None, "not measured")

    @pytest.mark.parametrize(("us", "holds"), [(39.0, False), (40.0, True)])
    def test_streaming(self, us, holds):
        found = [{"cell": "lstm", "units": 128, "us": {OURS: 5.0, NN: us}}]
        (judged,) = [goal for goal in judge([], [], found, [], 1.0) if "streaming" in goal.name]
        assert (judged.holds, judged.found) == (holds, f"{us / 5:.2f}: 5.0 µs against {us:.1f}")

    @pytest.mark.parametrize(("ms", "holds"), [(49, True), (51, False)])
    def test_first_call(self, ms, holds):
        found = [{"cell": "lstm", "first_ms": 1}, {"cell": "gru", "first_ms": ms}]
        assert judge([], [], [], found, 1.0)[-1] == ("first call of a new cell: under 50 ms", holds, f"{ms} ms, gru")


def test_the_report_takes_rows_that_lack_contenders(capsys):
    lacking = row("lstm", (500, 32, 256), "ragged")
    lacking.times[OURS]["median_ms"] = 1.0
    with Report() as report:
        report.rows([])
        report.rows([lacking])
    assert "T 50 to 500, B 32, H 256" in capsys.readouterr().out


@pytest.mark.parametrize(("least", "quiet"), [(95.0, True), (80.0, False)])
def test_a_machine_that_is_not_quiet_is_told(least, quiet, capsys):
    Report().drift(least, 100.0)
    said = capsys.readouterr().out
    assert f"between {least} and 100.0 GFLOP/s" in said
    assert ("no quiet machine" in said) != quiet


def test_the_long_section_takes_cells_that_are_linear_beside_both_loops(capsys):
    others = {"shapes": (), "ragged": None, "first_call": False, "streaming": 0, "scan": False}
    asked = settings.Settings(cells=("gru", "sru", "lru"), long=(20, 2, 4), seconds=0.001, **others)
    with Report() as report:
        found = run(asked, report)
    times = {(row["cell"], row["what"]): set(row["times"]) - {"ceiling"} for row in found["rows"]}
    passes = ("forward", BOTH)
    assert times == {("sru", what): {OURS, PLAIN, LOOP} for what in passes} | {
        ("lru", what): {OURS, PLAIN} for what in passes
    }
    assert "T 20, B 2, H 4" in capsys.readouterr().out
