"""The benchmark of the catalogue on text: one run's end is not the others', and all in a folder are made alike."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import catalogue

WORDS = "Once upon a time there was a small cell, and it went round and round. " * 40
SHORT = ("--parameters", "20000", "--minutes", "0.001", "--quiet", "0.1", "--workers", "1")


def test_a_run_that_diverges_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text(WORDS)
    found = catalogue.trained(str(tmp_path / "run"), str(text), "irnn", 8, 30, 1e18, 1)
    assert found["valid"] == found["test"] == math.inf
    assert found["error"].startswith("The loss is ")
    results = catalogue.Results(tmp_path)
    results.add(kind="plan", cell="irnn", hidden=8, weights=9, steps=30, minutes=1.0)
    for seed, valid in ((1, math.inf), (2, 1.5)):
        results.add(kind="run", cell="irnn", seed=seed, rate=0.01, valid=valid, test=valid)
    assert catalogue.table(catalogue.Results(tmp_path)).endswith("| diverged | diverged | 2 |")


def test_a_folder_holds_runs_of_one_size_and_time(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(WORDS)
    words = ["--text", str(text), "--out", str(tmp_path / "cells"), "--cell", "elman", *SHORT]
    catalogue.main(words)
    with pytest.raises(SystemExit, match=r"holds elman with .* units and 0\.001 minutes; for other --parameters"):
        catalogue.main([*words, "--minutes", "0.002"])


def test_the_first_seed_decides_between_rates(tmp_path: Path) -> None:
    results = catalogue.Results(tmp_path)
    assert list(catalogue.runs(results, "text", ["gru"], [0.003, 0.01], 1)) == [], "its speed is not known"
    results.add(kind="plan", cell="gru", hidden=8, weights=9, steps=30, minutes=1.0)
    jobs = list(catalogue.runs(results, "text", ["gru"], [0.003, 0.01], 1))
    for (_, row), valid in zip(jobs, (1.2, math.inf), strict=True):
        results.add(**row, valid=valid, test=valid)
    assert list(catalogue.runs(results, "text", ["gru"], [0.003, 0.01], 1)) == [], "made"
    assert [row["rate"] for _, row in catalogue.runs(results, "text", ["gru"], [0.001, 0.01], 1)] == [0.001]
    ((_, row),) = catalogue.runs(results, "text", ["gru"], [0.001, 0.01], 2)
    assert row == {"kind": "run", "cell": "gru", "seed": 2, "rate": 0.003}
    results.add(**row, valid=1.4, test=1.4)
    assert catalogue.table(results).endswith("| 0.003 | 1.3000 ± 0.1414 | 1.3000 ± 0.1414 | 2 |")


def test_the_page_has_the_table_of_the_rows_that_are_kept() -> None:
    root = Path(__file__).parent.parent
    kept = catalogue.table(catalogue.Results(root / "benchmarks" / "warpeace"))
    assert kept.count("\n") > 2
    assert f"\n{kept}\n" in (root / "docs" / "results.md").read_text("utf-8")
