"""The house: imports run downwards only, importing costs nothing, and every public name is there and explained."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ritornello

SOURCE = Path(ritornello.__file__).parent
RANKS = (
    *("errors", "_core", "processor", "cells", "program", "structures", "executors", "engine", "nn"),
    *("data", "models", "pictures", "training", "tasks", "bench", "cli"),
)


def imports(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Line and full name of every module or name that a module imports, but for `if TYPE_CHECKING:` blocks.

    Args:
        module: the importing module's full name, a package's ending in `.__init__`, against which relative imports
            are resolved.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from imports(ast.Module(node.orelse, []), module)
        else:
            yield from imports(node, module)


def homes() -> dict[str, str]:
    """The package behind each name that `ritornello/__init__.py` lends out."""
    return {name: ritornello._HOMES.get(name, name) for name in ritornello.__all__}


def upward(code: str, module: str) -> list[str]:
    """What in a module's code imports from its own package's rank or above, other than from itself."""
    package = module.split(".")[1]
    if package not in RANKS:
        return [f"{module}: package {package!r} has no rank in RANKS"]
    found = []
    for line, name in imports(ast.parse(code), module):
        parts = name.split(".")
        if parts[0] != "ritornello":
            continue
        target = homes().get(parts[1], parts[1]) if len(parts) > 1 else ""
        if target in ("", "__version__") or target == package:
            continue
        if target not in RANKS or RANKS.index(target) >= RANKS.index(package):
            found.append(f"{module}:{line} imports {name}")
    return found


def modules() -> dict[str, Path]:
    """Every module but `ritornello/__init__.py`, by its full name."""
    paths = [path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"]
    return {".".join(["ritornello", *path.relative_to(SOURCE).with_suffix("").parts]): path for path in paths}


def test_imports_run_downwards_only() -> None:
    found = {name: upward(path.read_text(), name) for name, path in modules().items()}
    assert {"ritornello.errors", "ritornello.cells.cell", "ritornello.engine.unfold"} <= set(found)
    assert not [line for lines in found.values() for line in lines]


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("ritornello.cells.lstm", "import ritornello.engine"),
        ("ritornello.cells.lstm", "from ritornello.engine import Unfold"),
        ("ritornello.cells.lstm", "from ritornello import engine"),
        ("ritornello.cells.lstm", "from ritornello import Unfold"),
        ("ritornello.cells.lstm", "import torch, ritornello.nn.compose as c"),
        ("ritornello.cells.lstm", "def f():\n    from ritornello.engine.unfold import Unfold"),
        ("ritornello.cells.lstm", "try:\n    import ritornello.tasks\nexcept ImportError:\n    pass"),
        ("ritornello.cells.lstm", "from ..engine import Unfold"),
        ("ritornello.cells.__init__", "from ..engine import Unfold"),
        ("ritornello.cells.lstm", "from .. import structures"),
        ("ritornello.cells.lstm", "if TYPE_CHECKING:\n    pass\nelse:\n    import ritornello.nn"),
        ("ritornello.cells.lstm", "if not TYPE_CHECKING:\n    import ritornello.nn"),
        ("ritornello.errors", "import ritornello.cells"),
        ("ritornello.data.text", "import ritornello.models"),
        ("ritornello.engine.door", "import ritornello.attic"),
        ("ritornello.attic", "import torch"),
    ],
)  # fmt: skip
def test_the_walker_sees_a_planted_violation(module: str, code: str) -> None:
    assert len(upward(code, module)) == 1


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("ritornello.engine.unfold", "import torch\nfrom ritornello.cells import Cell\nimport ritornello.errors"),
        (
            "ritornello.engine.unfold",
            "from ritornello.engine import door\nfrom . import door\nfrom .door import Layout",
        ),
        ("ritornello.engine.__init__", "from .door import Layout\nfrom ..cells import Cell"),
        ("ritornello.engine.unfold", "from ritornello import Cell, cells, __version__\nfrom ..cells.cell import Cell"),
        ("ritornello.cells.lstm", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ritornello.nn"),
        ("ritornello.cells.lstm", "import typing\nif typing.TYPE_CHECKING:\n    from ..nn import Stack"),
        ("ritornello.cli.main", "from ritornello.tasks import classify\nimport ritornello"),
    ],
)
def test_the_walker_lets_pass_what_is_right(module: str, code: str) -> None:
    assert upward(code, module) == []


def test_importing_ritornello_imports_no_torch() -> None:
    code = "import sys, ritornello; print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'numpy'}))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r}); {code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


PACKAGES = ["ritornello", *(f"ritornello.{found.name}" for found in pkgutil.iter_modules([str(SOURCE)]) if found.ispkg)]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there_and_explained(package: str) -> None:
    module = importlib.import_module(package)
    assert (module.__doc__ or "").strip(), f"{package} has no docstring"
    public = getattr(module, "__all__", [])
    assert len(set(public)) == len(public), f"{package}.__all__ names something twice"
    for name in public:
        value = getattr(module, name)
        if inspect.ismodule(value) or inspect.isclass(value) or callable(value):
            text = (value.__doc__ or "").strip()
            assert text, f"{package}.{name} has no docstring"
            assert not text.startswith(f"{name}("), f"{package}.{name} has only the docstring that Python makes"


def test_the_lazy_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {name.split(".")[-1] for _, name in imports(ast.Module(block.body, []), "ritornello.__init__")}
    assert seen == set(ritornello._HOMES) | set(ritornello._MODULES) == set(ritornello.__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'ritornello' has no attribute 'lstm'"):
        ritornello.lstm  # noqa: B018
