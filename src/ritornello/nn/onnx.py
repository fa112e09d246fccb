"""Weights in the layout of the ONNX operators RNN, GRU and LSTM, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ritornello.errors import ArgumentError
from ritornello.nn.recurrent import GRU, LSTM, RNN, Recurrent

# Where each gate of ours, in torch's order, stands in ONNX's: LSTM i f g o in i o f c, GRU r z n in z r h.
_ORDERS = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1)}


def to_onnx(module: Recurrent, layer: int = 0) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One layer's weights and attributes, as the operator takes them.

    Args:
        module: `ritornello.nn.RNN`, `GRU` or `LSTM`.
        layer: its number; ONNX has an operator for each.

    Returns:
        inputs: W (directions, gates · hidden, input), R (directions, gates · hidden, hidden), B (directions,
            2 · gates · hidden), and P (directions, 3 · hidden) of peepholes; without biases no B.
        attributes: hidden_size, direction, and what else the operator needs.

    Raises:
        ArgumentError: a module with options for which the operators have no word.

    Example:
        >>> import ritornello as rit
        >>> inputs, attributes = rit.nn.to_onnx(rit.nn.GRU(3, 4))
        >>> {name: tuple(value.shape) for name, value in inputs.items()}
        {'W': (1, 12, 3), 'R': (1, 12, 4), 'B': (1, 24)}
        >>> attributes
        {'hidden_size': 4, 'direction': 'forward', 'linear_before_reset': 1}
    """
    name = _operator(module)
    own = {option: getattr(module, option) for option in module.own}
    if not 0 <= layer < module.num_layers:
        raise ArgumentError(f"layer is {layer}; the module has {module.num_layers}, counted from 0.")
    for option in ("cell", "layer_norm", "learn_initial", "proj_size", "residual", "zoneout"):
        if getattr(module, option):
            raise ArgumentError(
                f"ONNX's {name} has no {option}: {option}={getattr(module, option)!r} cannot be written."
            )
    suffixes = [f"_l{layer}{suffix}" for suffix in module._suffixes]

    def stacked(parameter: str) -> Tensor:
        return torch.stack(
            [_moved(getattr(module, parameter + suffix).detach(), name, own, True) for suffix in suffixes]
        )

    inputs = {"W": stacked("weight_ih"), "R": stacked("weight_hh")}
    if module.bias:
        inputs["B"] = torch.cat([stacked("bias_ih"), stacked("bias_hh")], -1)
    attributes: dict[str, Any] = {"hidden_size": module.hidden_size}
    attributes["direction"] = "bidirectional" if module.bidirectional else "reverse" if module.reverse else "forward"
    if name == "GRU":
        attributes["linear_before_reset"] = int(own.get("reset", "after") == "after")
    if own.get("coupled"):
        attributes["input_forget"] = 1
    if own.get("peephole"):
        kinds = ("weight_ci", "weight_co", "weight_ci" if own.get("coupled") else "weight_cf")
        inputs["P"] = torch.stack([torch.cat([getattr(module, k + s).detach() for k in kinds]) for s in suffixes])
    if name == "RNN" and module.mode == "RNN_RELU":
        attributes["activations"] = ["Relu"] * len(suffixes)
    return inputs, attributes


def from_onnx(
    operator: str,
    W: Tensor,
    R: Tensor,
    B: Tensor | None = None,
    P: Tensor | None = None,
    *,
    direction: str = "forward",
    linear_before_reset: int = 0,
    input_forget: int = 0,
    activations: list[str] | None = None,
    batch_first: bool = False,
) -> Recurrent:
    """A module of one layer with an operator's weights.

    Args:
        operator: "RNN", "GRU" or "LSTM".
        W, R, B, P: as the operator takes them.
        direction, linear_before_reset, input_forget, activations: its attributes.
        batch_first: of the module.

    Raises:
        ArgumentError: what there is no module for.

    Example:
        >>> import torch, ritornello as rit
        >>> rit.nn.from_onnx("RNN", torch.zeros(1, 4, 3), torch.zeros(1, 4, 4))
        RNN(3, 4, bias=False)
    """
    if operator not in _ORDERS:
        raise ArgumentError(f"ONNX's operator must be one of RNN, GRU, LSTM, not {operator!r}.")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise ArgumentError(f"direction must be forward, reverse or bidirectional, not {direction!r}.")
    if (direction == "bidirectional") != (len(W) == 2):
        raise ArgumentError(f"direction is {direction!r}, and W has {len(W)} directions.")
    usual = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}[operator]
    relu = operator == "RNN" and activations is not None and set(activations) == {"Relu"}
    if activations is not None and not relu and activations != usual * len(W):
        raise ArgumentError(f"activations={activations}: {operator} has {usual} here, RNN also Relu.")
    hidden, sizes = R.shape[-1], {"input_size": W.shape[-1], "hidden_size": R.shape[-1]}
    common: dict[str, Any] = {**sizes, "bias": B is not None, "batch_first": batch_first, "bidirectional": len(W) == 2}
    common |= {"reverse": direction == "reverse", "dtype": W.dtype, "device": W.device}
    if operator == "RNN":
        module: Recurrent = RNN(**common, nonlinearity="relu" if relu else "tanh")
    elif operator == "GRU":
        module = GRU(**common, reset="after" if linear_before_reset else "before")
    else:
        module = LSTM(**common, peephole=P is not None, coupled=bool(input_forget))
    own = {option: getattr(module, option) for option in module.own}
    values: dict[str, Tensor] = {}
    for number, suffix in enumerate(module._suffixes):
        values["weight_ih_l0" + suffix] = _moved(W[number], operator, own, False)
        values["weight_hh_l0" + suffix] = _moved(R[number], operator, own, False)
        if B is not None:
            for kind, bias in zip(("bias_ih_l0", "bias_hh_l0"), B[number].chunk(2), strict=True):
                values[kind + suffix] = _moved(bias, operator, own, False)
        if P is not None:
            i, o, f = P[number].split(hidden)
            values |= {"weight_ci_l0" + suffix: i, "weight_co_l0" + suffix: o}
            if not input_forget:
                values["weight_cf_l0" + suffix] = f
    module.load_state_dict(values)
    return module


def _operator(module: Any) -> str:
    for name, kind in (("RNN", RNN), ("GRU", GRU), ("LSTM", LSTM)):
        if isinstance(module, kind):
            return name
    raise ArgumentError(f"to_onnx takes ritornello.nn.RNN, GRU or LSTM, not {type(module).__name__}.")


def _moved(weight: Tensor, operator: str, own: dict[str, Any], there: bool) -> Tensor:
    """Rows gate by gate in the other's order; a coupled forget gate has rows in ONNX alone, which are not read."""
    order = _ORDERS[operator]
    if there:
        gates = list(weight.chunk(len(order) - bool(own.get("coupled"))))
        if own.get("coupled"):
            gates.insert(1, torch.zeros_like(gates[0]))
        return torch.cat([gates[order.index(k)] for k in range(len(order))])
    gates = list(weight.chunk(len(order)))
    ordered = [gates[place] for place in order]
    if own.get("coupled"):
        del ordered[1]
    return torch.cat(ordered)
