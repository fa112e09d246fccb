"""Swapping the recurrent modules of an existing model."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn
from torch.nn.utils import parametrize

from ritornello.errors import ArgumentError
from ritornello.executors import check_name
from ritornello.nn.cells import GRUCell, LSTMCell, RNNCell
from ritornello.nn.recurrent import GRU, LSTM, RNN, Recurrent

OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: RNN,
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNNCell: RNNCell,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
}


class Swap(NamedTuple):
    """What became of one module.

    Attributes:
        name: its path within the model; "" is the model itself.
        was: its class's name.
        reason: why it was left as it is; None if it was replaced.
    """

    name: str
    was: str
    reason: str | None = None


def replace(model: nn.Module, *, executor: str = "auto") -> list[Swap]:
    """Makes `torch.nn.RNN`, `LSTM`, `GRU` and their cells within a model ritornello's, in place.

    The objects stay what they are: the same parameters (an optimiser goes on with them), hooks, parametrizations and
    names in the state dict.

    Args:
        model: any module; itself may be a recurrent one.
        executor: as in `ritornello.Unfold`.

    Returns:
        what was replaced, and what looked like a recurrent module but was left, with the reason.

    Raises:
        ArgumentError: something that is no module.

    Example:
        >>> import torch, ritornello as rit
        >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 3), torch.nn.LSTM(3, 4))
        >>> rit.nn.replace(model)
        [Swap(name='1', was='LSTM', reason=None)]
        >>> isinstance(model[1], rit.nn.LSTM), isinstance(model[1], torch.nn.LSTM)
        (True, True)
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"replace takes a module, not {type(model).__name__}.")
    check_name(executor)
    found = []
    for name, module in model.named_modules():
        if isinstance(module, tuple(OURS.values())) or not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            continue
        was = _torchs_class(module)
        if was in OURS:
            _become(module, OURS[was], executor)
            found.append(Swap(name, was.__name__))
        else:
            found.append(Swap(name, type(module).__name__, f"it is a class of its own, derived from {_base(module)}"))
    return found


def _torchs_class(module: nn.Module) -> type[nn.Module]:
    """The class as it was before a parametrization put one of its own in place."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _base(module: nn.Module) -> str:
    return next((known.__name__ for known in OURS if isinstance(module, known)), "RNNBase")


def _become(module: nn.Module, ours: type[nn.Module], executor: str) -> None:
    kind = type(module)
    if parametrize.is_parametrized(module):  # whose class holds a property for each parametrized parameter
        ours = type(
            kind.__name__, (ours,), {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
        )
    module.__class__ = ours
    if isinstance(module, Recurrent):
        module._extend({**module.beyond, "executor": executor})
