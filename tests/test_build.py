"""The build: the extension where there is a compiler, pure Python where there is none, and what the packages hold."""

from __future__ import annotations

import ast
import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import ritornello

ROOT = Path(__file__).parent.parent
SOURCE = Path(ritornello.__file__).parent
OBJECTS = ROOT / "build" / "CMakeFiles" / "engine.dir" / "src" / "csrc"
REQUIRED = os.environ.get("RITORNELLO_REQUIRE_EXTENSION", "0") not in ("", "0")
ISAS = ("baseline", "avx2", "avx512", "avx512bf16")


def unavailable(what: str) -> None:
    (pytest.fail if REQUIRED else pytest.skip)(what)


@pytest.fixture(scope="module")
def core():
    try:
        return importlib.import_module("ritornello._core")
    except ImportError:
        unavailable("the extension is not built: make build")


@pytest.fixture(scope="module")
def build_tools():
    for name in ("build", "cmake", "nanobind", "ninja", "scikit_build_core"):
        pytest.importorskip(name)


def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "c++"))
    if found is None:
        unavailable("no C++ compiler")
    return str(found)


def python(code: str, *folders: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in an interpreter without site packages that imports from these folders."""
    code = f"import sys; sys.path[:0] = {[str(folder) for folder in folders]!r}; {code}"
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def package(kind: str, into: Path, *options: str, source: Path = ROOT, **environment: str) -> tuple[Path | None, str]:
    """The file that `python -m build --kind` makes, None if it fails, and what it printed."""
    command = [
        sys.executable,
        "-m",
        "build",
        f"--{kind}",
        "--no-isolation",
        "--outdir",
        str(into),
        *options,
        str(source),
    ]
    environment = {**os.environ, "RITORNELLO_REQUIRE_EXTENSION": "", **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    made = list(into.glob("ritornello-*"))
    assert (done.returncode == 0) == (len(made) == 1), done.stdout + done.stderr
    return made[0] if made else None, done.stdout + done.stderr


def foreign_symbols(path: Path, isa: str) -> list[str]:
    """What an object file shows to the linker outside `rit::<isa>`, in mangled names.

    The linker keeps one copy of an inline function or template that several objects define: compiled for AVX-512, it
    would stop other processors.
    """
    lines = subprocess.run(["nm", "-P", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    names = [line.split()[0] for line in lines.splitlines() if line.split()[1].isupper() or line.split()[1] in "uvw"]
    pointers = "DW.ref."  # to the handler of exceptions: data, the same from every object
    return [name for name in names if f"3rit{len(isa)}{isa}" not in name and not name.startswith(pointers)]


# The extension


def test_the_best_instruction_set_is_chosen(core):
    done = python("import ritornello._core as core; print(core.instruction_set())", SOURCE.parent, RITORNELLO_ISA="")
    assert done.stdout.strip() == core.instruction_sets()[-1], done.stderr


@pytest.mark.parametrize("isa", ISAS)
def test_an_instruction_set_can_be_forced(core, isa):
    assert core.instruction_sets() == list(ISAS[: len(core.instruction_sets())])
    done = python("import ritornello._core as core; print(core.instruction_set())", SOURCE.parent, RITORNELLO_ISA=isa)
    if isa in core.instruction_sets():
        assert done.stdout.strip() == isa, done.stderr
    else:
        assert f"RITORNELLO_ISA is '{isa}', but this processor can run baseline" in done.stderr


def test_an_unknown_instruction_set_is_an_error(core):
    done = python("import ritornello._core as core; core.instruction_set()", SOURCE.parent, RITORNELLO_ISA="avx9")
    sets = ", ".join(core.instruction_sets())
    assert f"ValueError: RITORNELLO_ISA is 'avx9', but this processor can run {sets}: set it to one" in done.stderr


def test_the_stub_is_as_generated(core):
    stubgen = pytest.importorskip("nanobind.stubgen")
    generator = stubgen.StubGen(core)
    generator.put(core)
    stub = SOURCE / "_core.pyi"
    command = f"python -m nanobind.stubgen -m ritornello._core -o {stub.relative_to(ROOT)} && make format"
    assert ast.unparse(ast.parse(stub.read_text())) == ast.unparse(ast.parse(generator.get())), f"run {command}"


@pytest.mark.parametrize("isa", ISAS[1:])
def test_what_an_instruction_set_compiles_stays_with_it(isa):
    path = OBJECTS / f"backend_{isa}.cpp.o"
    if not (path.exists() and shutil.which("nm")):
        unavailable(f"needs nm and {path}: make build")
    assert foreign_symbols(path, isa) == []


PLANTED = """
template <class T> T twice(T x) { return x + x; }
struct S {};
namespace rit::avx512 {
template <class T> int own(T) { return 1; }
static int local() { return 2; }
int (*a)(int) = twice<int>;
int (*b)(S) = own<S>;
int (*c)() = local;
}
namespace rit::avx512bf16 { int other() { return 3; } }
"""


def test_the_reader_of_symbols_sees_a_planted_one(tmp_path):
    (tmp_path / "planted.cpp").write_text(PLANTED)
    subprocess.run([compiler(), "-std=c++17", "-c", "planted.cpp"], cwd=tmp_path, check=True)
    seen = foreign_symbols(tmp_path / "planted.o", "avx512")
    assert sorted(seen) == ["_Z5twiceIiET_S0_", "_ZN3rit10avx512bf165otherEv"]


# The packages


def test_without_a_compiler_the_wheel_is_pure_python(build_tools, tmp_path):
    nothing = {"PATH": str(tmp_path), "CC": "/nowhere/cc", "CXX": "/nowhere/c++"}
    wheel, said = package("wheel", tmp_path / "dist", **nothing)
    assert "no working C++ compiler was found: installing without the compiled extension" in said
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    names = {path.name for path in (tmp_path / "installed" / "ritornello").iterdir()}
    assert {"__init__.py", "py.typed", "_core.pyi"} <= names
    assert not [name for name in names if name.endswith(".so")]
    done = python("import ritornello; print(ritornello.__version__)", tmp_path / "installed")
    assert done.stdout.strip() == ritornello.__version__, done.stderr
    done = python("import ritornello._core", tmp_path / "installed")
    assert "ModuleNotFoundError: No module named 'ritornello._core'" in done.stderr


def test_the_extension_can_be_required(build_tools, tmp_path):
    nothing = {"PATH": str(tmp_path), "CC": "/nowhere/cc", "CXX": "/nowhere/c++"}
    wheel, said = package("wheel", tmp_path / "dist", RITORNELLO_REQUIRE_EXTENSION="1", **nothing)
    assert wheel is None
    assert "RITORNELLO_REQUIRE_EXTENSION is set, and no working C++ compiler was found." in said


def test_broken_code_is_an_error(build_tools, tmp_path):
    compiler()
    sdist, said = package("sdist", tmp_path / "dist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    source = tmp_path / sdist.name.removesuffix(".tar.gz")
    (source / "src" / "csrc" / "backend.inl").write_text("#error broken\n")
    wheel, said = package("wheel", tmp_path / "wheel", "--config-setting=build.targets=engine", source=source)
    assert wheel is None
    assert "error: #error broken" in said


def test_the_source_package_holds_what_a_build_and_a_test_run_need(build_tools, tmp_path):
    sdist, _ = package("sdist", tmp_path)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CMakeLists.txt", "src/csrc/module.cpp", "src/csrc/backend.inl", "src/ritornello/_core.pyi"} <= names
    assert {"tests/test_build.py", "docs/start.md", "examples/demo.sh", "LICENSE", "README.md", "PKG-INFO"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
