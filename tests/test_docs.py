"""Every command and snippet of the documentation runs, in its page's order; generated parts are as generated."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import ritornello as rit
from ritornello.cells import CELLS, TREE_CELLS, Jordan, TeacherForced
from ritornello.cli import main
from ritornello.errors import CellError

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(python|console)( file=(\S+))?\n(.*?)^```$", re.M | re.S)
OTHERS = r"lightning|datasets|torch\.utils\.data"  # whose warnings are not for us to mend
TEXT = "Once upon a time there was a small cell, and it went round and round. " * 40
TREES = "(1 (1 good) (1 film))\n(0 (0 not) (1 (1 good) (1 film)))\n(1 (1 not) (0 (0 dull) (1 film)))\n" * 4
SMALL = "--steps 12 --hidden 16 --batch 4"
SCRIPT = rf"{sys.executable} {ROOT}/benchmarks/\1"
SHORTER = {  # what takes minutes on the page, and what the test runs in its place
    r"--minutes \S+": SMALL,
    r"(rit train lm --train FILE.txt --out \S+)$": rf"\1 {SMALL}",
    r"(rit train (?:tree|parse) --train .*) --epochs \d+": r"\1",
    r"(rit train (?:tree|parse) --train .*)$": r"\1 --steps 4 --hidden 16 --embedding 16",
    r"python docs/(draw_tree.py)": rf"{sys.executable} {ROOT}/docs/\1 tree.png",
    r"python benchmarks/(parity.py) .*": rf"{SCRIPT} --text FILE.txt --steps 12 --seeds 1",
    r"python benchmarks/(long_memory.py) --task (\S+) .* --out": rf"{SCRIPT} --task \2 --time 10 --steps 12 --out",
    r"python benchmarks/(long_memory.py) --out": rf"{SCRIPT} --out",
    r"rit bench --torch.*": "rit bench --help",
    r"python benchmarks/(scenes.py) (.*)": rf"{SCRIPT} --train 40 --test 10 --epochs 1 --seed 1 \2",
    r"python benchmarks/(adjoints.py) .*": rf"{SCRIPT} --time 50 --hidden 8 --rounds 1",
    r"python benchmarks/(memory.py) .*": rf"{SCRIPT} --gigabytes 0.0004 --steps 4",
    r"python benchmarks/(catalogue.py) --text .*": rf"{SCRIPT} --out runs/cells --text FILE.txt --cell elman"
    " --parameters 20000 --minutes 0.001 --quiet 0.1",
    r"python benchmarks/(catalogue.py) --out \S+ --table": rf"{SCRIPT} --out runs/cells --table",
    r"rit bench --all.*": "rit bench --help",
}
FEWER = {"20_000": "200", "1_000": "50", "2_000": "50"}  # lists that the page on results generates


@pytest.fixture
def rit_on_path(tmp_path, monkeypatch):
    """A folder with the texts that the pages name, and `rit` on the path."""
    for name in ("FILE.txt", "OTHER.txt"):
        (tmp_path / name).write_text(TEXT)
    (tmp_path / "SENTENCES.txt").write_text("not a dull moment\ngood film\n")
    for name in ("TREES.txt", "OTHER-TREES.txt", "DEV-TREES.txt", "TEST-TREES.txt"):
        (tmp_path / name).write_text(TREES)
    command = tmp_path / "bin" / "rit"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom ritornello.cli import main\nmain()\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def run_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a command of a page; what takes minutes there, for some steps. `rit` itself runs in this process."""
    if line.startswith("make "):
        target = line.split()[1]
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), f"the Makefile has no {target}"
        return
    for long, short in SHORTER.items():
        line = re.sub(long, short, line)
    if line.startswith("rit ") and "<" not in line:
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code, line
        return
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_runs(page, rit_on_path, monkeypatch):
    warnings.filterwarnings("ignore", module=OTHERS)
    names: dict = {}
    for kind, _, file, code in BLOCK.findall(page.read_text("utf-8")):
        if file:
            (rit_on_path / file).write_text(code)
        elif kind == "python":
            for many, few in FEWER.items():
                code = code.replace(many, few)
            exec(compile(code, str(page), "exec"), names)
        else:
            for line in re.findall(r"^\$ (.*)$", code, re.M):
                run_command(line, monkeypatch)
    for name in ("my_cell", "my_tree_cell"):
        sys.modules.pop(name, None)


def test_every_block_is_found():
    for page in PAGES:
        text = page.read_text("utf-8")
        fences = len(re.findall(r"^```", text, re.M))
        assert fences == 2 * len(BLOCK.findall(text)), f"{page.name} has a block that no test runs"


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch has no batching rule for bilinear forms
def test_every_outcome_is_as_generated():
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    text = (ROOT / "docs" / "support.md").read_text("utf-8")
    assert generate["with_table"](text, generate["every_outcome"]) == text, "run docs/generate.py"


def test_support_table_is_as_generated():
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    text = (ROOT / "README.md").read_text("utf-8")
    assert generate["with_table"](text) == text, "run docs/generate.py"
    assert re.search(r"^\| \| [^|]*`lstm`[^|]* \| [^|]*`sru`[^|]* \| [^|]*`tree-lstm` \|$", text, re.M)
    both = "cpu, reference"
    rows = (f"| chain, reversed, ragged, resets | {both} | {both} | no |", f"| tree | {both} | no | {both} |")
    assert "\n{}\n{}\n".format(*rows) in text


def test_the_table_of_cells_is_as_they_are(capsys):
    """Names, classes, numbers of parameters, trees; and what `rit.explain` is said to print."""
    page = (ROOT / "docs" / "choose-a-cell.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\S+)` \| `(\w+)` \| [^|]+ \| ([^|]+) \| (yes)? ?\| ", page, re.M)
    assert [name for name, *_ in rows] == list(CELLS)
    for name, kind, formula, trees in rows:
        assert CELLS[name].__name__ == kind
        for inputs, hidden in ((3, 4), (7, 8), (2, 12)):
            cell = CELLS[name](inputs, hidden)
            code = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", formula.replace("²", "**2"))
            expected = eval(code, {"I": inputs, "H": hidden, "O": cell.output_size})
            assert sum(parameter.numel() for parameter in cell.parameters()) == expected, name
        unfold = rit.Unfold(CELLS[name](3, 4))
        if trees:
            unfold.over([[2, 2, -1]], torch.zeros(3, 3))
        else:
            with pytest.raises(CellError):
                unfold.over([[2, 2, -1]], torch.zeros(3, 3))
    rit.explain(TeacherForced(Jordan(3, 4, output_size=2)))
    printed = capsys.readouterr().out
    assert "".join(re.findall(r"^# (.*\n)", page, re.M)[1:]) in printed


def test_the_table_of_tree_cells_is_as_they_are():
    page = (ROOT / "docs" / "choose-a-cell.md").read_text("utf-8").partition("\n## Over trees\n")[2]
    rows = re.findall(r"^\| `(\S+)` \| `(\w+)` \| [^|]+ \| ([^|]+) \| [^|]+ \|$", page, re.M)
    assert [name for name, *_ in rows] == list(TREE_CELLS)
    for name, kind, formula in rows:
        assert TREE_CELLS[name].__name__ == kind
        code = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", formula.replace("²", "**2").replace("³", "**3"))
        for inputs, hidden in ((3, 4), (7, 8), (2, 12)):
            numbers = sum(parameter.numel() for parameter in TREE_CELLS[name](inputs, hidden).parameters())
            assert eval(code, {"I": inputs, "H": hidden}) == numbers, name


def test_the_drawn_tree_is_as_its_script_draws_it(tmp_path):
    pixels = pytest.importorskip("matplotlib.image").imread
    page, drawn = ROOT / "docs" / "pictures" / "tree.png", tmp_path / "tree.png"
    subprocess.run([sys.executable, str(ROOT / "docs" / "draw_tree.py"), str(drawn)], check=True)
    assert page.stat().st_size < 60_000
    assert pixels(page).shape == pixels(drawn).shape
    assert abs(pixels(page) - pixels(drawn)).mean() < 0.01  # fonts may be drawn otherwise elsewhere


def test_demo_runs(rit_on_path):
    done = subprocess.run(
        ["sh", str(ROOT / "examples" / "demo.sh")],
        env={**os.environ, "MINUTES": "0.03"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for expected in ("nats/token", "bits/character", "runs/demo-ngram", "$ rit sample runs/demo", "Next"):
        assert expected in done.stdout
