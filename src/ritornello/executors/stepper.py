"""One step at a time: for streams, where the next input is not known yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ritornello.errors import ArgumentError
from ritornello.executors.plan import Plan
from ritornello.executors.run import TYPES, addresses, strides
from ritornello.program import Wants


class Stepper:
    """A cell's step on the compiled machine, with its weights packed once and its memory set up once.

    Made by `Unfold.stepper`. What a step returns lies in its own memory and **is overwritten by the step after
    the next**: clone what is to be kept. Weights that change later are not seen. With two or more of torch's threads
    each stepper owns one of its own, which spins for 50 microseconds after a step, waiting for the next.

    Example:
        >>> import torch, ritornello as rit
        >>> unfold = rit.Unfold(rit.LSTM(3, 4))
        >>> x, step, state = torch.randn(5, 1, 3), unfold.stepper(), None
        >>> for each in x:
        ...     output, state = step(each, state)
        >>> bool(torch.allclose(output, unfold(x)[0][-1]))
        True
    """

    def __init__(self, plan: Plan, cell: nn.Module, settle: Callable[[Any], Any], like: Tensor, rows: int) -> None:
        from ritornello import _core

        fields = len(plan.sizes)
        compiled = plan.compiled(Wants(False, False, (False,) * fields))
        values = [value.detach().to(like.dtype) for value in compiled.parameter_values(cell, like.dtype)]
        self._settle = settle
        initial = settle(None)
        self._initial = type(initial)(*(field.detach() for field in initial))
        with torch.inference_mode(False):  # they are written into later, wherever that is
            self._states = [type(initial)(*(field.clone() for field in self._initial)) for _ in range(2)]
        shape, self._dtype = torch.Size((rows, compiled.code.input_size)), like.dtype
        self._shapes = (shape, shape[1:]) if rows == 1 else (shape,)
        self._core = _core.Stepper(
            compiled.core,
            TYPES[like.dtype],
            rows,
            torch.get_num_threads(),
            plan.seed(),
            addresses(values),
            strides(values),
            addresses(self._states[0]),
            addresses(self._states[1]),
        )
        self._results = [(state[0], state) for state in self._states]
        self._step, self._turn = self._core.step, 0

    def __call__(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step.

        Args:
            x: (rows, input_size); (input_size,) for one row.
            state: what the last call returned, or one as `Unfold.forward` takes it. Default: the initial state.

        Returns:
            the output and the new state, overwritten by the step after the next.

        Raises:
            ArgumentError: an x or a state that does not fit.
        """
        if x.shape not in self._shapes or x.dtype is not self._dtype or not x.is_contiguous() or not x.is_cpu:
            x = self._settled(x)
        if x.is_neg():  # its memory holds the other sign
            x = x.resolve_neg()
        turn = self._turn
        if state is not self._states[turn]:
            self._load(state, self._states[turn])
        self._step(x.data_ptr(), turn)
        self._turn = turn = 1 - turn
        return self._results[turn]

    def _settled(self, x: Tensor) -> Tensor:
        if x.shape not in self._shapes or x.dtype != self._dtype or not x.is_cpu:
            raise ArgumentError(
                f"x is {x.dtype} of shape {tuple(x.shape)} on {x.device}; expected {self._dtype} of shape "
                f"{tuple(self._shapes[0])} on the CPU; stepper(rows=...) says how many go side by side."
            )
        return x.contiguous()

    def _load(self, state: Any, into: Any) -> None:
        given = self._initial if state is None else self._settle(state)
        moved = [(field, value.detach()) for field, value in zip(into, given, strict=True) if value is not field]
        own = {field.untyped_storage().data_ptr() for field in into}  # what lies there is written over as it waits
        for field, value in [(f, v.clone() if v.untyped_storage().data_ptr() in own else v) for f, v in moved]:
            field.copy_(value)
