"""The benchmark of long memory: small runs end to end, its file, its table and its picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Generator, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from long_memory import main
from long_memory_report import entry, mean, table
from long_memory_runs import TASKS, Run, Settings, train

TINY = ["--units", "8", "--batch", "4", "--every", "10"]


def rows_of(path):
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text("utf-8").splitlines()]


def tiny(path, *arguments):
    main([*TINY, "--out", str(path), *arguments])
    return rows_of(path)


def test_end_to_end(tmp_path, capsys):
    out, drawn = tmp_path / "runs.jsonl", tmp_path / "curves.png"
    one = ("--task", "adding", "--time", "10", "--cell", "elman", "gru(reset=before)+chrono", "--steps", "25")
    rows = tiny(out, *one)
    assert [(row["cell"], row["init"], row["seed"]) for row in rows] == [
        ("elman", "", 1),
        ("gru(reset=before)", "chrono", 1),
    ]
    for row in rows:
        assert (row["task"], row["time"], row["end"], row["steps"], row["units"]) == ("adding", 10, "steps", 25, 8)
        assert [step for step, _ in row["curve"]] == [0, 10, 20, 25]
        assert all(0 < score < 10 for _, score in row["curve"])
    assert "0 of 2 runs are in" in capsys.readouterr().err

    assert tiny(out, *one) == rows, "what the file has was run again"
    assert "2 of 2 runs are in" in capsys.readouterr().err
    assert tiny(out, *one, "--seed", "2", "2")[:2] == rows
    assert len(rows_of(out)) == 4
    longer = tiny(out, *one[:-1], "40")
    assert len(longer) == 6
    assert longer[-2]["curve"][:3] == rows[0]["curve"][:3], "a seed does not repeat"
    assert len(tiny(out, "--time", "12", "--cell", "lstm+chrono", "irnn", "--steps", "1")) == 6 + 4

    capsys.readouterr()
    main(["--out", str(out), "--table", "--plot", str(drawn)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| | adding, T = 10 | adding, T = 12 | copying, T = 12 |"
    assert [line.split("`")[1] for line in lines[2:-1]] == ["elman", "irnn", "lstm+chrono", "gru(reset=before)+chrono"]
    assert "after 40 |" in lines[2]
    assert lines[-1] == "| without memory | 0.17 | 0.17 | 0.65 |"
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert rows_of(out)[0] == rows[0], "showing the file changed it"


def test_each_task_has_a_rate_and_some_cells_their_own(tmp_path):
    rows = tiny(tmp_path / "runs.jsonl", "--time", "10", "--cell", "elman(nonlinearity=relu)", "gru", "--steps", "1")
    rates = {(row["task"], row["cell"][:3]): (row["optimiser"], row["lr"]) for row in rows}
    assert rates["adding", "elm"] == rates["adding", "gru"] == ("adam", 0.002)
    assert rates["copying", "elm"] == ("rmsprop", 0.001)
    assert rates["copying", "gru"] == ("rmsprop", 0.005)
    rows = tiny(tmp_path / "other.jsonl", "--time", "10", "--cell", "elman", "gru", "--steps", "1", "--lr", "0.01")
    assert {row["lr"] for row in rows} == {0.01}


def test_what_is_learnt_ends_a_run():
    row = train(Run("adding", 10, "gru", "", 1), Settings("adam", 0.02, 16, 50, 1.0, 50), 2000, lambda *_: None)
    assert (row["end"], row["steps"]) == ("learnt", row["curve"][-1][0])
    assert row["steps"] < 2000
    assert row["curve"][-1][1] < 0.01 < row["curve"][-2][1]


def test_answers_without_memory_score_the_baseline():
    same = nn.Identity()
    task = TASKS["adding"](50)
    x, y = task.draw(20_000, Generator().manual_seed(1))
    assert x.shape == (50, 20_000, task.inputs)
    assert task.loss(same, torch.ones(50, 20_000, 1), y).item() == pytest.approx(task.baseline, rel=0.02)

    task = TASKS["copying"](50)
    x, y = task.draw(20, Generator().manual_seed(1))
    assert x.shape == (70, 20, task.inputs)
    answer = torch.zeros(70, 20, task.outputs)
    answer[:60, :, 8] = 100.0  # a blank for sure
    answer[60:, :, 8] = -100.0  # any symbol
    assert task.loss(same, answer, y).item() == pytest.approx(task.baseline)


def test_a_run_that_diverges_ends_and_its_row_is_json(tmp_path):
    (row,) = tiny(
        tmp_path / "runs.jsonl", "--task", "copying", "--time", "60", "--cell", "irnn", "--lr", "1e6", "--steps", "50"
    )
    assert (row["end"], row["steps"]) == ("diverged", 10)
    assert row["curve"][-1][0] == 0


def row_of(end, steps, *curve):
    return {"task": "adding", "time": 9, "cell": "gru", "init": "", "marks": [0.1, 0.01], "baseline": 1 / 6, "end": end,
            "steps": steps, "curve": curve}  # fmt: skip


def test_entries_of_the_table():
    quick = row_of("learnt", 200, (0, 1.0), (100, 0.05), (200, 0.009))
    slow = row_of("learnt", 1400, (0, 1.0), (1300, 0.09), (1400, 0.001))
    near = row_of("steps", 3000, (0, 1.0), (600, 0.09), (3000, 0.0523))
    never = row_of("steps", 3000, (0, 1.0), (3000, 0.1661))
    assert entry([quick]) == "**200** (100)"
    assert entry([quick, slow]) == "**800 ± 849** (700 ± 849)"
    assert entry([slow, near]) == "1 of 2: **1,400** (950 ± 495), else 0.052 after 3,000"
    assert entry([near]) == "0.052 after 3,000 (600)"
    assert entry([never, never]) == "0.17 after 3,000"
    assert entry([row_of("steps", 3000, (0, 1e28), (3000, 1e28))]) == "ran away after 3,000"
    spike = row_of("steps", 3000, *((step, 0.02) for step in range(0, 3000, 100)), (3000, 1e28))
    assert entry([spike]) == "0.02 after 3,000 (0)"
    gone = row_of(
        "steps",
        3000,
        *((step, 0.02) for step in range(0, 2100, 100)),
        *((step, 1e28) for step in range(2100, 3001, 100)),
    )
    assert entry([gone]) == "ran away after 3,000 (0)"
    assert mean([]) == "–"
    assert table([quick]).splitlines()[2] == "| `gru` | **200** (100) |"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "add"], "Unknown task 'add': did you mean adding? Known: adding, copying."),
        (["--cell", "lsmt"], "Unknown cell 'lsmt': did you mean lstm"),
        (["--cell", "lstm+crono"], "Unknown initialisation 'crono': did you mean chrono?"),
        (["--cell", "elman+chrono"], "Elman names no gate that keeps or writes its memory."),
        (["--cell", "torch.nn:LSTMCell+chrono"], "torch.nn:LSTMCell is no ritornello.Cell"),
        (["--cell", "gru(rest=before)"], "gru has no option 'rest': did you mean reset?"),
        (["--time", "9"], "time must be at least 10, not 9: less is no test of memory."),
        (["--seed", "0"], "seed must be at least 1, not 0: 0 draws the test set."),
        (["--steps", "0"], "steps must be at least 1, not 0."),
        (["--units", "0"], "units must be above 0, not 0."),
        (["--lr", "nan"], "lr must be above 0, not nan."),
        (["--optimiser", "rmspop"], "Unknown optimiser 'rmspop': did you mean rmsprop?"),
        (["--threads", "0"], "threads must be 1 to 1024, not 0."),
        (["--out", "no/such/folder.jsonl", "--steps", "1"], "no/such/folder.jsonl: No such file or directory"),
        (["--table"], "holds no runs yet."),
        (["--out", "bad.jsonl"], "bad.jsonl, line 2, is no run"),
        (["--out", "good.jsonl"], "good.jsonl holds adding by elman, Settings(optimiser='adam', lr=0.002, units=8"),
        (["--out", "good.jsonl", "--plot", "curves.xyz"], "Cannot draw curves.xyz"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    good = json.dumps(train(Run("adding", 10, "elman", "", 1), Settings("adam", 0.002, 8, 4), 1, lambda *_: None))
    Path("good.jsonl").write_text(good + "\n")
    Path("bad.jsonl").write_text(good + '\n{"task": "adding"}\n')
    with pytest.raises(SystemExit) as stopped:
        main(["--units", "16", "--steps", "1", *arguments])
    assert stopped.value.code == 2
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("0 of")]
    assert len(told) == 1
    assert told[0].startswith("long_memory: ")
    assert message in told[0]
