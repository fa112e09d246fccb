"""`torch.nn`'s recurrent layers on this library's executors, with what torch lacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ritornello.engine.door import autocast_is_on
from ritornello.engine.op import captured_values, new_seed
from ritornello.engine.op import unfold as unfold_op
from ritornello.errors import ArgumentError, nearest
from ritornello.executors import Request, check_name, choose
from ritornello.executors.cpu import unfit, unreadable
from ritornello.executors.program_cell import BoundCell
from ritornello.executors.run import machine_type
from ritornello.nn.layers import STATES, Layer, capture_layer, plan_of
from ritornello.nn.layout import Batch, check_nested, settle
from ritornello.nn.own import call_stack, stack_of
from ritornello.program import foreign
from ritornello.structures import from_rows, to_rows

Init = str | Callable[[Tensor], Any]


class Recurrent(nn.RNNBase):
    """What `RNN`, `LSTM` and `GRU` share: a call of all layers, and the options that torch does not have.

    Options, by name only:
        zoneout: share of each state that stays as it was in training, and its mean in evaluation (Krueger et al. 2017).
        variational_dropout: share of each layer's inputs and of h that is zeroed in training, by a mask that is the
            same at every step (Gal & Ghahramani 2016).
        weight_drop: share of the recurrent weights that is zeroed in training (Merity, Keskar & Socher 2018).
        layer_norm: both products, and an LSTM's c on its way to h, are normalised (Ba, Kiros & Hinton 2016).
        residual: a layer's input, as dropout leaves it, is added to its output where sizes are alike (He et al. 2016).
        learn_initial: the initial states are parameters, `initial_h` and `initial_c`, (layers · directions, size), at
            first zero.
        reverse: one direction, from each sequence's last step to its first.
        recurrent_init: "orthogonal", "identity", or a function of `torch.nn.init`, for each gate's recurrent weights.
        cell: other equations: a `Cell` class or function of (input_size, hidden_size), or one for each layer. Then the
            parameters are the cells' own, in `stack`, and hx has a tensor for each field of their state.
        executor: as in `ritornello.Unfold`.
    """

    zoneout: float
    variational_dropout: float
    weight_drop: float
    layer_norm: bool
    residual: bool
    learn_initial: bool
    reverse: bool
    recurrent_init: Init | None
    cell: Any
    executor: str
    plain: bool
    stack: Any

    own: ClassVar[tuple[str, ...]] = ()  # options of the equations that only this class has
    beyond: ClassVar[dict[str, Any]] = {
        "zoneout": 0.0,
        "variational_dropout": 0.0,
        "weight_drop": 0.0,
        "layer_norm": False,
        "residual": False,
        "learn_initial": False,
        "reverse": False,
        "recurrent_init": None,
        "cell": None,
        "executor": "auto",
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name, default) for name, default in self.beyond.items()}
        for kind in Recurrent.__subclasses__():
            for name in kwargs.keys() & {*kind.own}:
                raise ArgumentError(f"{name} is an option of {kind.__name__}, not of {type(self).__name__}.")
        super().__init__(*args, **kwargs)
        self._extend(options)

    def _extend(self, options: dict[str, Any]) -> None:
        """Takes the options that torch's modules do not have, and makes the parameters that they ask for."""
        for name in ("zoneout", "variational_dropout", "weight_drop"):
            share = options[name]
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
                raise ArgumentError(f"{name} must lie in 0 to 1 (exclusive), not {share!r}.")
        check_name(options["executor"])
        if options["reverse"] and self.bidirectional:
            raise ArgumentError("reverse=True and bidirectional=True clash: both directions are walked already.")
        for name, value in options.items():
            setattr(self, name, value)
        self.plain = all(value == self.beyond[name] for name, value in options.items() if name != "executor")
        if self.cell is not None:
            self.stack = stack_of(self, {name for name, value in options.items() if value != self.beyond[name]})
            for name in self._flat_weights_names:
                delattr(self, name)
            self._init_flat_weights()
            return
        if self.plain:
            return
        for number in range(self.num_layers):
            for suffix in self._suffixes:
                self._extend_layer(f"_l{number}{suffix}", self._layer(number))
        if self.learn_initial:
            count, layer = self.num_layers * len(self._suffixes), self._layer(0)
            for name, size in zip(layer.state_names, layer.state_sizes, strict=True):
                setattr(self, f"initial_{name}", nn.Parameter(self._like.new_empty(count, size)))
        self._initialise()

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as the constructor did."""
        if getattr(self, "cell", None) is not None:
            self.stack.load_state_dict(stack_of(self, {"cell"}).state_dict())
            return
        super().reset_parameters()
        if not getattr(self, "plain", True):
            self._initialise()

    def _initialise(self) -> None:
        """What is not drawn as torch draws: norms, initial states, and recurrent weights if it is asked for."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.startswith("norm"):
                    parameter.fill_(0.0 if "bias" in name else 1.0)
                elif name.startswith("initial"):
                    parameter.zero_()
        if self.recurrent_init is not None:
            initialise_recurrent(self, self.recurrent_init)

    def extra_repr(self) -> str:
        """As torch's, and the options that differ from their defaults."""
        told = (
            f"{name}={getattr(self, name)!r}" for name, default in self.beyond.items() if getattr(self, name) != default
        )
        return ", ".join((super().extra_repr(), *told))

    def _extend_layer(self, suffix: str, layer: Layer) -> None:
        bound = self.hidden_size**-0.5
        for name, shape in layer.shapes().items():
            known = getattr(self, name + suffix, None)
            if known is not None and known.shape == shape:
                continue
            made = nn.Parameter(self._like.new_empty(shape))
            setattr(self, name + suffix, nn.init.uniform_(made, -bound, bound))

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """As in torch; none where cells hold their own."""
        return [] if self.cell is not None else super().all_weights

    @property
    def _like(self) -> Tensor:
        """A parameter, for its dtype and device; none that a parametrization would have to compute."""
        own = next((parameter for parameter in self._parameters.values() if parameter is not None), None)
        return next(self.parameters()) if own is None else own

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    def _layer(self, number: int) -> Layer:
        below = (self.proj_size or self.hidden_size) * len(self._suffixes)
        return Layer(
            self.mode,
            self.input_size if number == 0 else below,
            self.hidden_size,
            self.proj_size,
            self.bias,
            layer_norm=self.layer_norm,
            zoneout=self.zoneout,
            training=bool(self.zoneout and self.training),
            masked=bool(self.variational_dropout and self.training),
            **{name: getattr(self, name) for name in self.own},
        )

    def _named(self, layer: Layer, suffix: str) -> dict[str, Tensor]:
        """The parameters of a layer, by the names that its equations have for them."""
        named = {}
        for name, shape in layer.shapes().items():
            found = named[name] = getattr(self, name + suffix)
            if found.shape != shape:
                raise RuntimeError(f"{name}{suffix} has shape {tuple(found.shape)}; expected {shape}.")
        if self.weight_drop and self.training:
            named["weight_hh"] = F.dropout(named["weight_hh"], self.weight_drop)
        return named

    def forward(
        self,
        input: Any,
        hx: Any = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        resets: Tensor | None = None,
        all_states: bool = False,
    ) -> Any:
        """As in torch. Beyond torch:

        Args:
            input: also a nested tensor of layout `torch.jagged`, (batch, lengths, features).
            lengths: (batch,) steps of each sequence, 0 allowed; padding costs nothing, and its outputs are 0.
            resets: booleans like input without its features: a new sequence begins here, from the initial state.
            all_states: return a third value, the states of all steps: a named tuple of tensors (layers · directions,
                ...), each laid out like a padded input.

        Raises:
            ArgumentError: lengths or resets that do not fit. Otherwise what torch raises.
        """
        called = self._called
        if not torch.compiler.is_compiling() and torch._C._dynamo.eval_frame.get_eval_frame_callback() is not None:
            called = torch.compiler.disable(called)  # torch.compile left this module out: it would look into each step
        return called(input, hx, lengths, resets, all_states)

    def _called(self, input: Any, hx: Any, lengths: Any, resets: Any, all_states: bool) -> Any:
        if self.cell is not None:
            return call_stack(self, input, hx, lengths, resets, all_states)
        data = input.data if isinstance(input, PackedSequence) else input
        if isinstance(data, Tensor) and data.is_nested:
            check_nested(data)
        beyond = not self.plain or lengths is not None or resets is not None or all_states
        fits = self._fits(data, input) and self._about_states(data, input, hx) is None
        if not fits or (not beyond and not self._is_ours(data)):
            return self._as_torch(data, input, hx, beyond)
        states = self._entering(input, hx)
        batch = settle(input, self.batch_first, lengths, resets)
        in_graph = torch.compiler.is_compiling() and not batch.packed and unfit(data) is None
        in_graph = in_graph and self.executor != "reference"
        outputs, last, steps = (self._in_graph if in_graph else self._on_rows)(batch, states, all_states)
        if autocast_is_on(data):
            outputs, last = self._lowered(outputs, last, data.device.type)
        hidden = [self._handed_back(field, input, batch) for field in last]
        result = tuple(hidden) if len(hidden) > 1 else hidden[0]
        return (outputs, result, steps) if all_states else (outputs, result)

    def _is_ours(self, data: Tensor) -> bool:
        """Whether what torch can do too is for the executors: where it is compiled, or one of them is asked for."""
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            return False
        rows = data.values() if data.is_nested else data
        return self.executor != "auto" or (unreadable(rows) is None and not foreign(self._like))

    def _as_torch(self, data: Any, input: Any, hx: Any, beyond: bool) -> Any:
        """torch's own answer, or its error; where that is about a state, with a name."""
        try:
            found = super().forward(input, hx)
        except (RuntimeError, ValueError) as error:
            said = self._about_states(data, input, hx) if self._fits(data, input) else None
            if said is None:
                raise
            raise type(error)(said) from error
        if beyond:
            raise ArgumentError(f"Options that torch lacks take no input of {data.dtype} beside {self._like.dtype}.")
        return found

    def _fits(self, data: Any, input: Any) -> bool:
        """Whether torch would take the input."""
        if not isinstance(data, Tensor) or data.dim() not in ((2,) if data is not input else (2, 3)):
            return False
        weight = self._like
        steps = 1 if data.dim() == 3 and self.batch_first else 0
        if data.shape[-1] != self.input_size or data.device != weight.device or data.shape[steps] == 0:
            return False
        lower = autocast_is_on(data) and torch.get_autocast_dtype(data.device.type)
        return data.dtype in ((torch.float32, lower) if lower else (weight.dtype,))

    def _about_states(self, data: Tensor, input: Any, hx: Any) -> str | None:
        """What is wrong with the states beside an input that fits; None where nothing is."""
        if hx is None:
            return None
        layer = self._layer(0)
        fields = [hx] if isinstance(hx, Tensor) else hx
        names = layer.state_names
        if not isinstance(fields, (tuple, list)) or len(fields) != len(names) or not all(map(torch.is_tensor, fields)):
            return f"the state is no {'tuple of tensors' if len(names) > 1 else 'tensor'} {', '.join(names)}."
        count = self.num_layers * len(self._suffixes)
        batch = () if data is input and data.dim() == 2 else (self._entries(input),)
        cast = autocast_is_on(data)
        for field, name, size in zip(fields, names, layer.state_sizes, strict=True):
            shape = (count, *batch, size)
            if field.shape != shape or field.device != data.device or (field.dtype != data.dtype and not cast):
                return (
                    f"the state's {name} is {field.dtype} of shape {tuple(field.shape)} on {field.device}; "
                    f"expected {data.dtype} of shape {shape} on {data.device}."
                )
        return None

    def _lowered(self, outputs: Any, last: list[Tensor], device: str) -> tuple[Any, list[Tensor]]:
        """In the dtypes that torch's own functions answer with under autocast."""
        if self.mode == "GRU":
            return outputs, last
        dtype = torch.get_autocast_dtype(device)
        data = outputs.data.to(dtype) if isinstance(outputs, PackedSequence) else outputs.to(dtype)
        outputs = outputs._replace(data=data) if isinstance(outputs, PackedSequence) else data
        return outputs, [field if number and self.proj_size else field.to(dtype) for number, field in enumerate(last)]

    def _entries(self, input: Any) -> int:
        if isinstance(input, PackedSequence):
            return int(input.batch_sizes[0])
        return input.size(0 if self.batch_first or input.is_nested else 1)

    def _entering(self, input: Any, hx: Any) -> list[Tensor] | None:
        """The given states, (layers · directions, batch, size), in the order of the rows."""
        if hx is None:
            return None
        fields = [hx] if isinstance(hx, Tensor) else list(hx)
        if isinstance(input, PackedSequence) and input.sorted_indices is not None:
            return [field.index_select(1, input.sorted_indices) for field in fields]
        return [field if field.dim() == 3 else field.unsqueeze(1) for field in fields]

    def _handed_back(self, field: Tensor, input: Any, batch: Batch) -> Tensor:
        if batch.packed:
            return field if input.unsorted_indices is None else field.index_select(1, input.unsorted_indices)
        return field if batch.layout.batched else field.squeeze(1)

    # --- all layers

    def _on_rows(self, batch: Batch, states: list[Tensor] | None, all_states: bool) -> tuple[Any, list[Tensor], Any]:
        """By the executors, over rows."""
        schedules = [batch.schedule(suffix != "" or self.reverse) for suffix in self._suffixes]

        def unfold(layer: Layer, suffix: str, named: dict[str, Tensor], x: Tensor, entry: Any, blank: Any) -> Any:
            schedule = schedules[suffix.endswith("_reverse")]
            if schedule.entry is not None:
                entry = layer.State(*(field[schedule.entry] for field in entry))
            cell: Any = BoundCell(plan_of(layer), layer.State, named)
            request = Request(cell, to_rows(x, schedule), entry, blank, schedule, all_states)
            result = choose(self.executor, request).run(request)
            return [from_rows(field, schedule, len(x)) for field in result.rows], result.last

        x, last, steps = self._through(batch.rows(), batch, states, unfold)
        outputs = batch.back(x)
        if x is steps[-1][0] and x.requires_grad and (batch.packed or (self.mode != "LSTM" and batch.dense)):
            # The backward pass reads x, and torch's callers may write into what they get.
            outputs = outputs._replace(data=outputs.data.clone()) if batch.packed else outputs.clone()
        return outputs, last, self._all(steps, batch.padded) if all_states else None

    def _in_graph(self, batch: Batch, states: list[Tensor] | None, all_states: bool) -> tuple[Any, list[Tensor], Any]:
        """As nodes of a graph that is being captured, over padded steps."""

        def unfold(layer: Layer, suffix: str, named: dict[str, Tensor], x: Tensor, entry: Any, blank: Any) -> Any:
            captured = capture_layer(*layer)
            values = captured_values(captured, lambda path: named[path], x.dtype)
            chains = (batch.lengths, batch.resets, new_seed(captured))
            reverse = self.reverse or suffix.endswith("_reverse")
            way = (captured.program, reverse, machine_type(x), torch.is_grad_enabled())
            found = unfold_op(x, list(entry), list(blank), values, *chains, *way)
            fields = len(entry)
            return found[:fields], found[fields : 2 * fields]

        x, last, steps = self._through(batch.steps(), batch, states, unfold)
        return batch.laid_out(x), last, self._all(steps, batch.laid_out) if all_states else None

    def _through(
        self, x: Tensor, batch: Batch, states: list[Tensor] | None, unfold: Callable[..., Any]
    ) -> tuple[Tensor, list[Tensor], list[Any]]:
        """x through all layers: the last one's outputs, the final states of all, and the states of all steps."""
        last: list[Any] = []
        steps: list[Any] = []
        for number in range(self.num_layers):
            layer = self._layer(number)
            x = below = self._dropped(x, number, batch)
            for suffix in self._suffixes:
                place = len(last)
                entry, blank = self._states_of(layer, place, states, batch.layout.batch, x)
                named = self._named(layer, f"_l{number}{suffix}")
                read = torch.cat([x, self._mask(x, batch, layer.state_sizes[0])], -1) if layer.masked else x
                rows, final = unfold(layer, f"_l{number}{suffix}", named, read, entry, blank)
                steps.append(rows)
                last.append(final)
            found = [rows[0] for rows in steps[-len(self._suffixes) :]]
            x = found[0] if len(found) == 1 else torch.cat(found, -1)
            if self.residual and x.shape == below.shape:
                x = x + below
        fields = range(len(layer.state_sizes))
        return x, [torch.stack([final[field] for final in last]) for field in fields], steps

    def _dropped(self, x: Tensor, number: int, batch: Batch) -> Tensor:
        """A layer's input in training."""
        if number and self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        if self.variational_dropout and self.training:
            x = x * self._mask(x, batch, x.shape[-1])
        return x

    def _mask(self, x: Tensor, batch: Batch, size: int) -> Tensor:
        """Of variational dropout: one for each sequence, at all of its steps."""
        mask = F.dropout(x.new_ones(batch.layout.batch, size), self.variational_dropout)
        return mask.expand(*x.shape[:-1], size) if x.dim() == 3 else mask[batch.sequences()]

    def _states_of(self, layer: Layer, place: int, states: Any, count: int, x: Tensor) -> tuple[Any, Any]:
        """The states that sequences enter a layer with, and the initial state, one row."""
        if self.learn_initial:
            blank = [getattr(self, f"initial_{name}")[place : place + 1].to(x.dtype) for name in layer.state_names]
        else:
            blank = [x.new_zeros(1, size) for size in layer.state_sizes]
        entry = [f.expand(count, -1) for f in blank] if states is None else [f[place].to(x.dtype) for f in states]
        return layer.State(*entry), layer.State(*blank)

    def _all(self, steps: list[Any], laid_out: Callable[[Tensor], Tensor]) -> Any:
        """The states of all steps and layers, as `all_states` returns them."""
        names = self._layer(0).state_names
        return STATES[names](*(torch.stack([laid_out(rows[f]) for rows in steps]) for f in range(len(names))))


def initialise_recurrent(module: nn.RNNBase, init: Init) -> None:
    """Draws the recurrent weights, gate by gate: "orthogonal", "identity", or a function of `torch.nn.init`."""
    known: dict[str, Callable[[Tensor], Any]] = {"orthogonal": nn.init.orthogonal_, "identity": nn.init.eye_}
    if isinstance(init, str) and init not in known:
        raise ArgumentError(f"Unknown recurrent_init {init!r}: {nearest(init, list(known))}.")
    draw = known[init] if isinstance(init, str) else init
    for name, weight in module.named_parameters():
        if name.startswith("weight_hh"):
            with torch.no_grad():
                for gate in weight.split(module.hidden_size):
                    draw(gate)


class RNN(Recurrent, nn.RNN):
    """`torch.nn.RNN` on this library's executors: the same arguments, weights and results.

    Args:
        all of `torch.nn.RNN`'s.
        zoneout, variational_dropout, weight_drop, layer_norm, residual, learn_initial, reverse, recurrent_init,
            cell, executor: as in `Recurrent`, by name only.

    Raises:
        ArgumentError: an option of this library that does not fit. Otherwise what torch raises.

    Example:
        >>> import torch, ritornello as rit
        >>> rnn = rit.nn.RNN(3, 4, num_layers=2, nonlinearity="relu")
        >>> outputs, last = rnn(torch.randn(5, 2, 3), lengths=[5, 2])
        >>> outputs.shape, last.shape
        (torch.Size([5, 2, 4]), torch.Size([2, 2, 4]))
    """


class GRU(Recurrent, nn.GRU):
    """`torch.nn.GRU` on this library's executors: the same arguments, weights and results.

    Args:
        all of `torch.nn.GRU`'s.
        reset: the reset gate acts "after" the recurrent product, as in torch (default), or "before" it, as in the paper
            (Cho et al. 2014).
        zoneout, variational_dropout, weight_drop, layer_norm, residual, learn_initial, reverse, recurrent_init,
            cell, executor: as in `Recurrent`, by name only.

    Raises:
        ArgumentError: an option of this library that does not fit. Otherwise what torch raises.

    Example:
        >>> import torch, ritornello as rit
        >>> gru = rit.nn.GRU(3, 4, bidirectional=True, batch_first=True)
        >>> outputs, last = gru(torch.randn(2, 5, 3))
        >>> outputs.shape, last.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 2, 4]))
    """

    own = ("reset",)
    beyond: ClassVar[dict[str, Any]] = {**Recurrent.beyond, "reset": "after"}

    def _extend(self, options: dict[str, Any]) -> None:
        if options["reset"] not in ("after", "before"):
            raise ArgumentError(
                f"Unknown reset {options['reset']!r}: {nearest(options['reset'], ['after', 'before'])}."
            )
        if options["reset"] == "before" and options["layer_norm"]:
            raise ArgumentError("reset='before' and layer_norm=True clash: the recurrent product has two parts then.")
        super()._extend(options)


class LSTM(Recurrent, nn.LSTM):
    """`torch.nn.LSTM` on this library's executors: the same arguments, weights and results.

    Args:
        all of `torch.nn.LSTM`'s.
        peephole: the gates see c, by `weight_ci_l0`, `weight_cf_l0` and `weight_co_l0` (Gers & Schmidhuber 2000).
        coupled: the forget gate is 1 - i (Greff et al. 2017); the weights have three gates: i, g, o.
        forget_bias: the sum of the forget gate's biases at first (Gers, Schmidhuber & Cummins 2000). Default: torch's.
        zoneout, variational_dropout, weight_drop, layer_norm, residual, learn_initial, reverse, recurrent_init,
            cell, executor: as in `Recurrent`, by name only.

    Raises:
        ArgumentError: an option of this library that does not fit. Otherwise what torch raises.

    Example:
        >>> import torch, ritornello as rit
        >>> lstm = rit.nn.LSTM(3, 4, peephole=True)
        >>> outputs, (h, c), states = lstm(torch.randn(5, 2, 3), all_states=True)
        >>> states.c.shape, bool((states.c[0, -1] == c[0]).all())
        (torch.Size([1, 5, 2, 4]), True)
    """

    forget_bias: float | None

    own = ("peephole", "coupled")
    beyond: ClassVar[dict[str, Any]] = {**Recurrent.beyond, "peephole": False, "coupled": False, "forget_bias": None}

    def _extend(self, options: dict[str, Any]) -> None:
        forget = options["forget_bias"]
        if forget is not None and options["coupled"]:
            raise ArgumentError("forget_bias and coupled=True clash: a coupled forget gate has no bias of its own.")
        if forget is not None and not self.bias:
            raise ArgumentError("forget_bias and bias=False clash: there is no bias to set.")
        super()._extend(options)

    def _initialise(self) -> None:
        super()._initialise()
        if self.forget_bias is None:
            return
        for name, bias in self.named_parameters():
            if name.startswith("bias_"):
                with torch.no_grad():
                    bias[self.hidden_size : 2 * self.hidden_size] = self.forget_bias if name[5:7] == "ih" else 0.0
