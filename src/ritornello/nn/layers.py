"""One layer in one direction: the equations of `torch.nn`'s recurrent layers, over parameters with torch's names.

These cells are never trained: each is traced once for its program, which then runs on a module's own parameters.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ritornello.cells.cell import Cell, state_type
from ritornello.engine.op import Captured, capture_plan
from ritornello.executors.plan import Plan, make_plan, unwatched

GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "GRU": 3, "LSTM": 4}
STATES: dict[tuple[str, ...], Any] = {names: state_type(*names) for names in (("h",), ("h", "c"))}


class Layer(NamedTuple):
    """What the equations of a layer depend on, besides parameters.

    Attributes:
        mode: torch's name, "RNN_TANH", "RNN_RELU", "GRU" or "LSTM".
        input_size, hidden_size, proj_size, bias: as torch's modules have them.
        peephole: the LSTM's gates see c (Gers & Schmidhuber 2000).
        coupled: the LSTM's forget gate is 1 - i (Greff et al. 2017).
        layer_norm: both products, and an LSTM's c, are normalised (Ba, Kiros & Hinton 2016).
        reset: the GRU's reset gate acts "after" the product (as torch's) or "before" it (Cho et al. 2014).
        zoneout: share of the state that stays as it was (Krueger et al. 2017).
        training: whether zoneout draws, or takes the mean.
        masked: h, as the products read it, is multiplied by a mask that comes after the features of x, the same at
            every step: variational dropout (Gal & Ghahramani 2016).
    """

    mode: str
    input_size: int
    hidden_size: int
    proj_size: int = 0
    bias: bool = True
    peephole: bool = False
    coupled: bool = False
    layer_norm: bool = False
    reset: str = "after"
    zoneout: float = 0.0
    training: bool = False
    masked: bool = False

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Features of the state's fields."""
        h = self.proj_size or self.hidden_size
        return (h, self.hidden_size) if self.mode == "LSTM" else (h,)

    @property
    def state_names(self) -> tuple[str, ...]:
        """What the state's fields are called."""
        return ("h", "c") if self.mode == "LSTM" else ("h",)

    @property
    def State(self) -> Any:
        """The type of the state."""
        return STATES[self.state_names]

    @property
    def gates(self) -> int:
        """How many pieces of `hidden_size` the products have."""
        return GATES[self.mode] - self.coupled

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The parameters, in torch's order; those that torch does not know come last."""
        wide, h = self.gates * self.hidden_size, self.state_sizes[0]
        found: dict[str, tuple[int, ...]] = {"weight_ih": (wide, self.input_size), "weight_hh": (wide, h)}
        if self.bias:
            found |= {"bias_ih": (wide,), "bias_hh": (wide,)}
        if self.proj_size:
            found["weight_hr"] = (self.proj_size, self.hidden_size)
        if self.peephole:
            found |= {f"weight_c{gate}": (self.hidden_size,) for gate in ("io" if self.coupled else "ifo")}
        if self.layer_norm:
            found |= {"norm_ih": (wide,), "norm_hh": (wide,)}
            if self.mode == "LSTM":
                found |= {"norm_c": (self.hidden_size,), "norm_c_bias": (self.hidden_size,)}
        return found


class LayerCell(Cell):
    """A layer's equations."""

    weight_ih: Tensor
    weight_hh: Tensor
    weight_hr: Tensor
    weight_ci: Tensor
    weight_cf: Tensor
    weight_co: Tensor
    bias_ih: Tensor
    bias_hh: Tensor
    norm_ih: Tensor
    norm_hh: Tensor
    norm_c: Tensor
    norm_c_bias: Tensor

    def __init__(self, layer: Layer) -> None:
        h = layer.state_sizes[0]
        super().__init__(layer.input_size + layer.masked * h, h)
        self.layer = layer
        for name, shape in layer.shapes().items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    @property
    def State(self) -> Any:
        return self.layer.State

    @property
    def state_sizes(self) -> tuple[int, ...]:
        return self.layer.state_sizes

    def forward(self, x: Tensor, s: Any) -> Any:
        h = s.h  # as the products read it
        if self.layer.masked:
            h = h * x[..., self.layer.input_size :]
            x = x[..., : self.layer.input_size]
        if self.layer.mode == "LSTM":
            new = self._lstm(x, h, s)
        elif self.layer.mode == "GRU":
            new = self._gru(x, h, s)
        else:
            squash = torch.tanh if self.layer.mode == "RNN_TANH" else torch.relu
            new = (squash(self._input(x) + self._recurrent(h)),)
        if self.layer.zoneout:
            new = tuple(self._zoned_out(field, before) for field, before in zip(new, s, strict=True))
        return self.State(*new)

    def _input(self, x: Tensor) -> Tensor:
        return self._product(x, self.weight_ih, "ih")

    def _recurrent(self, h: Tensor) -> Tensor:
        return self._product(h, self.weight_hh, "hh")

    def _product(self, x: Tensor, weight: Tensor, side: str) -> Tensor:
        """All gates' share of x or h; the bias comes after the norm."""
        bias = getattr(self, f"bias_{side}") if self.layer.bias else None
        if not self.layer.layer_norm:
            return F.linear(x, weight, bias)
        wide = F.layer_norm(F.linear(x, weight), weight.shape[:1], getattr(self, f"norm_{side}"))
        return wide if bias is None else wide + bias

    def _lstm(self, x: Tensor, read: Tensor, s: Any) -> tuple[Tensor, ...]:
        gates = (self._input(x) + self._recurrent(read)).chunk(self.layer.gates, -1)
        i, g, o = gates[0], gates[-2], gates[-1]
        if self.layer.peephole:
            i = i + self.weight_ci * s.c
        i = torch.sigmoid(i)
        if self.layer.coupled:
            f = 1 - i
        else:
            f = torch.sigmoid(gates[1] + self.weight_cf * s.c if self.layer.peephole else gates[1])
        c = f * s.c + i * torch.tanh(g)
        o = torch.sigmoid(o + self.weight_co * c if self.layer.peephole else o)
        seen = F.layer_norm(c, c.shape[-1:], self.norm_c, self.norm_c_bias) if self.layer.layer_norm else c
        h = o * torch.tanh(seen)
        return (F.linear(h, self.weight_hr) if self.layer.proj_size else h), c

    def _gru(self, x: Tensor, read: Tensor, s: Any) -> tuple[Tensor, ...]:
        size = self.layer.hidden_size
        if self.layer.reset == "after":
            (xr, xz, xn), (hr, hz, hn) = self._input(x).chunk(3, -1), self._recurrent(read).chunk(3, -1)
            r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
            n = torch.tanh(xn + r * hn)
        else:
            wide = self._input(x)
            bias = self.bias_hh if self.layer.bias else None
            first = F.linear(read, self.weight_hh[: 2 * size], None if bias is None else bias[: 2 * size])
            r, z = torch.sigmoid(wide[..., : 2 * size] + first).chunk(2, -1)
            last = F.linear(r * read, self.weight_hh[2 * size :], None if bias is None else bias[2 * size :])
            n = torch.tanh(wide[..., 2 * size :] + last)
        return ((1 - z) * n + z * s.h,)

    def _zoned_out(self, new: Tensor, old: Tensor) -> Tensor:
        share = self.layer.zoneout
        if self.layer.training:
            return torch.where(torch.rand_like(new) < share, old, new)
        return share * old + (1 - share) * new


@lru_cache(maxsize=256)
def plan_of(layer: Layer) -> Plan:
    """The layer's program, ready for the compiled machine."""
    with unwatched():
        cell, like = LayerCell(layer), torch.zeros(())
    return make_plan(cell, cell.input_size, cell.state_sizes, like)


def capture_layer(*layer: Any) -> Captured:
    """What a captured graph holds of the layer with these settings."""
    return capture_plan(lambda: plan_of(Layer(*layer)))


capture_layer._dynamo_marked_constant = True  # type: ignore[attr-defined]
