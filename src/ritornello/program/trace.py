"""From a cell to a program: the cell is called once on a few rows, and what torch is asked to do is written down.

What is recorded are ATen calls, below Python, autograd and `torch.nn`: however a cell spells its products, chunks and
in-place updates, a small table (`aten.py`) reads them all. Python's own control flow runs as it stands; whatever asks
for a number that only data can give makes the cell untraceable. The cell is recorded twice, on 3 rows with gradients
and on 5 without: a program that comes out the same knows nothing of the number of rows, nor of whether gradients are
asked for.

A program has no memory but the state: a cell that keeps a tensor from one call to the next, or counts its calls, is
untraceable, and the reference executor runs it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ritornello.cells.adapt import name_of
from ritornello.cells.cell import meaning_of_total
from ritornello.cells.untouched import HOOKS, holds_tensors, untouched
from ritornello.errors import CellError
from ritornello.program.program import (
    CONSTANT,
    INPUT,
    PARAMETER,
    PREDECESSOR,
    ROW,
    STATE,
    UNKNOWN,
    Builder,
    Program,
    Value,
    prune,
)

_OWN = str(Path(__file__).parent)
_TORCH = str(Path(torch.__file__).parent)
_BY_TORCH = torch._C._disabled_torch_dispatch_impl  # what a plain tensor, or a subclass in Python alone, computes by


class Untraceable(Exception):
    """The cell does something that programs have no word for; says what and where.

    Attributes:
        changed: names of what the cell changes in itself whenever it is called.
        outside: whether it changes what it reads outside itself.
    """

    def __init__(self, reason: str, changed: Iterable[str] = (), outside: bool = False) -> None:
        super().__init__(reason)
        self.changed = frozenset(changed)
        self.outside = outside


def trace(cell: Any, x_size: int, sizes: Sequence[int], like: Tensor) -> Program:
    """The program of a cell.

    Args:
        cell: a module called as `cell(x, state)`, or with a state for each of its `slots`; its `State` is their type.
        x_size: features of x.
        sizes: features of each field of the state.
        like: a tensor of the dtype and device to run with.

    Raises:
        Untraceable: with the op and the line of the cell that cannot be recorded.
    """
    hooked = next((name for name, module in cell.named_modules() if any(vars(module)[kind] for kind in HOOKS)), None)
    if hooked is not None:  # one may change what comes out, and be recorded; but most are there to see it
        raise Untraceable(f"it has a hook{hooked and f' (on {hooked})'}, which is to be called at each step")
    try:
        with untouched(cell) as changed:
            first = _recorded(cell, x_size, sizes, like, 3)
            with untouched(cell) as again:  # what the first call set up, such as a default read from the class
                second = _recorded(cell, x_size, sizes, like, 5, gradients=False)
    except Untraceable as reason:
        reason.changed = frozenset(changed)
        raise
    changed.update(again)
    if changed:
        kept = next((name for name, value in changed.items() if holds_tensors(value)), None)
        what = f"keeps a tensor ({kept})" if kept is not None else f"changes its own setting ({next(iter(changed))})"
        raise Untraceable(f"it {what} from one call to the next", changed)
    if not _alike(first, second):
        with untouched(cell):
            third = _recorded(cell, x_size, sizes, like, 3)
            fourth = _recorded(cell, x_size, sizes, like, 5)
        if not _alike(first, third):
            by = "differs from call to call, by what is neither an input nor a setting of it"
        elif not _alike(first, fourth):
            by = "depends on the number of rows, and so on how sequences are batched"
        else:
            by = "depends on whether gradients are asked for (branch on self.training instead)"
        raise Untraceable(f"its computation {by}")
    return first


def foreign(tensor: Tensor) -> bool:
    """Whether a tensor computes by rules of its own, as a `FakeTensor` or a `DTensor` does, and may have no memory.

    While torch.compile captures a graph all tensors are stand-ins; those that it runs on are not.
    """
    return type(tensor).__torch_dispatch__ is not _BY_TORCH and not torch.compiler.is_compiling()


def _alike(one: Program, other: Program) -> bool:
    return one == other or one.to_text() == other.to_text()  # NaN is not equal to itself


def _recorded(cell: Any, x_size: int, sizes: Sequence[int], like: Tensor, rows: int, gradients: bool = True) -> Program:
    recorder, slots = Recorder(cell, rows, gradients), getattr(cell, "slots", None)
    b = recorder.builder

    def leaf(name: str, attributes: tuple[int, ...], size: int, rate: int) -> Tensor:
        zeros = torch.zeros(rows, size, dtype=like.dtype, device=like.device)
        tensor = zeros.requires_grad_(recorder.gradients).clone()  # as in training
        recorder.bind(tensor, b.leaf(name, attributes, (size,), rate))
        recorder.given[tensor.untyped_storage()._cdata] = (
            "x" if name == "x" else f"s.{cell.State._fields[attributes[0]]}"
        )
        return tensor

    x = leaf("x", (), x_size, INPUT)
    states = [
        cell.State(*(leaf("state", (field, slot), size, STATE) for field, size in enumerate(sizes)))
        for slot in range(slots or 1)
    ]
    if slots is None:
        recorder.drawn_for.update((id(field), PREDECESSOR) for field in states[0])
    generator = torch.get_rng_state()
    try:
        with (
            _with_gradients(recorder.gradients),
            _without_autocast(like.device.type),
            meaning_of_total(recorder.total if slots is None else None),
            recorder,
        ):
            new = cell(x, *states)
        recorder.check_hooks()
    except (Untraceable, CellError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # its own mistake: the reference executor calls it again and reports it
        raise Untraceable(f"it raised {type(error).__name__}: {error}") from error
    finally:
        torch.set_rng_state(generator)
    if getattr(type(new), "_fields", None) != cell.State._fields:
        raise Untraceable("it does not return its State")
    results = [recorder.result(value, size) for value, size in zip(new, sizes, strict=True)]
    return prune(Program(tuple(b.nodes), tuple(results), tuple(sizes), x_size, slots or 1))


def changed_in_place(cell: Any, what: str, where: str = "") -> CellError:
    """The error for a cell that writes into what it is given, which others hold too: a caller, the step before."""
    return CellError(f"{name_of(cell)}.forward changes its {what} in place{where}; make a new tensor instead.")


def _with_gradients(wanted: bool) -> Any:
    """Entered only where it is otherwise: a graph that is being exported would record it."""
    return torch.set_grad_enabled(wanted) if torch.is_grad_enabled() != wanted else nullcontext()


def _without_autocast(device: str) -> Any:
    """Entered only where it is on, for the same reason."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


class Recorder(TorchDispatchMode):
    """Follows every tensor that the cell makes.

    Attributes:
        builder: holds the program as far as it is written.
        rows: how many rows the cell is called on.
        given: by their memory, what the cell is given.
        gradients: whether autograd watches too, if that is asked for; in TorchScript it has ops of its own.
        drawn_for: by a tensor's id what numbers like it are drawn for: ROW, UNKNOWN or PREDECESSOR.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Otherwise torch wraps `__init__`: its first call would import torch._dynamo, which takes a second."""
        return False

    def __init__(self, cell: nn.Module, rows: int, gradients: bool = True) -> None:
        super().__init__()
        self.builder = Builder()
        self.cell = cell
        self.rows = rows
        self.streams = 0
        self.given: dict[int, str] = {}
        self.drawn_for: dict[int, int] = {}
        self._values: dict[int, Value] = {}
        self._kept: list[Tensor] = []
        self._stale: set[int] = set()
        self._stopped: set[int] = set()
        self._storages: dict[int, list[Tensor]] = {}
        self._names = _tensors_of(cell)
        scripted = any(isinstance(module, torch.jit.ScriptModule) for module in cell.modules())
        trained = not any(parameter.is_inference() for parameter in cell.parameters())
        watched = torch.is_grad_enabled() or not torch.compiler.is_compiling()
        self.gradients = gradients and trained and not scripted and watched

    def bind(self, tensor: Tensor, value: Value) -> None:
        """From now on the tensor is that value."""
        if id(tensor) not in self._values:
            self._kept.append(tensor)  # so that its id is not given to another
            self._storages.setdefault(tensor.untyped_storage()._cdata, []).append(tensor)
        self._values[id(tensor)] = value
        self._stale.discard(id(tensor))

    def stop(self, tensor: Tensor) -> None:
        """The tensor is detached: autograd keeps such ones for itself, the cell must not compute with it."""
        self._kept.append(tensor)
        self._stopped.add(id(tensor))

    def overwrite(self, tensor: Tensor, value: Value) -> None:
        """An in-place op: what shares the tensor's memory is no longer what was recorded of it."""
        if id(tensor) in self._names:
            raise self.untraceable("changing a parameter or buffer in place")
        given = self.given.get(tensor.untyped_storage()._cdata)
        if given is not None:
            raise changed_in_place(self.cell, given, f" ({_where()})")
        for other in self._storages.get(tensor.untyped_storage()._cdata, ()):
            if other is not tensor and not _apart(tensor, other):
                self._stale.add(id(other))
        self.bind(tensor, value)

    def value(self, tensor: Tensor) -> Value:
        """The value of a tensor that the cell computed with."""
        if id(tensor) in self._stale:
            raise self.untraceable("reading a tensor after a view of it was changed in place")
        if id(tensor) in self._stopped:
            raise self.untraceable("detach, or .data, which stops the gradient")
        known = self._values.get(id(tensor))
        if known is not None:
            return known
        name = self._names.get(id(tensor))
        if name is None:
            if tensor.numel() == 1:
                raise self.untraceable("computing with a tensor that is no parameter, buffer or attribute of the cell")
            raise self.untraceable(
                f"computing with a tensor of shape {tuple(tensor.shape)} that is no parameter, buffer or attribute"
            )
        if foreign(tensor):
            raise self.untraceable(f"computing with {name}, which is a {type(tensor).__name__}")
        value = self.builder.leaf("parameter", (name,), tuple(tensor.shape), PARAMETER)
        self.bind(tensor, value)
        return value

    def knows(self, tensor: Tensor) -> bool:
        return id(tensor) in self._values or id(tensor) in self._names

    def _varies(self, tensor: Tensor) -> bool:
        return self.knows(tensor) and self.builder.rate(self.value(tensor)) > CONSTANT

    def total(self, tensor: Tensor) -> Tensor:
        """What `total` means while a cell is recorded."""
        result = tensor.view_as(tensor)
        self.bind(result, self.builder.apply("total", self.value(tensor)))
        self.drawn_for[id(result)] = ROW
        return result

    def result(self, tensor: Any, size: int) -> Value:
        """A returned field as a row's value."""
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != (self.rows, size):
            raise Untraceable("it returns fields of other shapes than its State promises")
        value = self.value(tensor)
        return value if self.builder.size(value) == size else self.builder.expand(value, size)

    def check_hooks(self) -> None:
        """Hooks change gradients behind the program's back."""
        if any(tensor._backward_hooks for tensor in self._kept if id(tensor) not in self._names):
            raise Untraceable("it registers hooks on gradients")

    def untraceable(self, what: str) -> Untraceable:
        return Untraceable(f"{what} ({_where()})")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from ritornello.program.aten import translate

        kwargs = kwargs or {}
        before = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if self.gradients and not torch.is_grad_enabled() and any(self._varies(tensor) for tensor in before):
            raise self.untraceable("torch.no_grad, or a torch.autograd.Function with a backward of its own")
        out = func(*args, **kwargs)
        translate(self, func, args, kwargs, before, out)
        self._follow(func.name(), before, out)
        return out

    def _follow(self, name: str, before: Sequence[Tensor], out: Any) -> None:
        """What there is one of each new tensor for: where its shape was told in numbers, that is not known."""
        wide = max((self.drawn_for.get(id(tensor), ROW) for tensor in before), default=UNKNOWN)
        if name.startswith("aten::new_"):
            wide = UNKNOWN
        elif name.startswith("aten::expand"):
            wide = max(wide, UNKNOWN)
        for tensor in torch.utils._pytree.tree_leaves(out):
            if wide != ROW and isinstance(tensor, Tensor) and tensor.dim() > 1 and len(tensor) == self.rows:
                self._kept.append(tensor)
                self.drawn_for[id(tensor)] = wide


def _tensors_of(cell: nn.Module) -> dict[int, str]:
    """Parameters, buffers and plain tensor attributes by the path that `lookup` follows."""
    names: dict[int, str] = {}
    for prefix, module in cell.named_modules():
        for kind in (module._parameters, module._buffers, vars(module)):
            for name, tensor in kind.items():
                if isinstance(tensor, Tensor):
                    names.setdefault(id(tensor), f"{prefix}.{name}" if prefix else name)
    return names


def lookup(cell: nn.Module, name: str) -> Tensor:
    """The tensor of that path, as it is now."""
    target: Any = cell
    for part in name.split("."):
        target = getattr(target, part)
    return target


def _apart(one: Tensor, other: Tensor) -> bool:
    """Whether two views of one memory are different columns of it."""
    if one.dim() != 2 or other.dim() != 2 or one.stride() != other.stride() or one.stride(0) == 0:
        return False
    width = one.stride(0)
    first, second = one.storage_offset() % width, other.storage_offset() % width
    return first + one.shape[1] <= second or second + other.shape[1] <= first


def _where() -> str:
    """The line of the cell that is being executed."""
    frames = [
        f for f in traceback.extract_stack() if not f.filename.startswith((_OWN, _TORCH)) and f.name != "__call__"
    ]
    last = frames[-1]
    return f"{Path(last.filename).name}, line {last.lineno}: {last.line}"


Translation = Callable[..., Any]
__all__ = ["CONSTANT", "Recorder", "Untraceable", "lookup", "trace"]
