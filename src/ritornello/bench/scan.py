"""`jax.lax.scan`, where JAX is installed: the same steps, compiled by XLA."""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ritornello.bench.contenders import SCAN, Answer, Case, Contender
from ritornello.bench.steps import before, step_of


def version() -> str | None:
    """JAX's version; None where it is not installed."""
    if importlib.util.find_spec("jax") is None or importlib.util.find_spec("jaxlib") is None:
        return None
    from importlib.metadata import version

    return version("jax")


@lru_cache(maxsize=1)
def load(threads: int) -> Any:
    """JAX on the CPU. Its workers are those of the cores that it sees when it starts: as many as `threads`."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    jax = importlib.import_module("jax")
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    few = len(cores) > threads
    try:
        if few:
            os.sched_setaffinity(0, sorted(cores)[:threads])
        jax.devices("cpu")
        jax.jit(lambda x: x @ x)(jax.numpy.ones((512, 512))).block_until_ready()
    finally:
        if few:
            os.sched_setaffinity(0, cores)
    return jax


def operations(jax: Any) -> SimpleNamespace:
    """JAX's words for what steps are made of."""
    np = jax.numpy

    def norm(value: Any, gain: Any, bias: Any = 0) -> Any:
        wide = value.astype(np.promote_types(value.dtype, np.float32))
        centred = wide - wide.mean(-1, keepdims=True)
        scaled = centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
        return (scaled * gain + bias).astype(value.dtype)

    return SimpleNamespace(
        sigmoid=jax.nn.sigmoid,
        tanh=np.tanh,
        exp=np.exp,
        expm1=np.expm1,
        sqrt=np.sqrt,
        rsqrt=jax.lax.rsqrt,
        softplus=jax.nn.softplus,
        linear=lambda x, weight, bias=None: x @ weight.T if bias is None else x @ weight.T + bias,
        chunk=lambda value, count: np.split(value, count, -1),
        parts=lambda value, size: np.split(value, [size], -1),
        concatenate=np.concatenate,
        zeros_like=np.zeros_like,
        norm=norm,
    )


def lax_scan(case: Case, threads: int) -> Contender | None:
    """The case by `lax.scan`, compiled, ragged sequences padded; None where the cell's step is not written for it."""
    write = step_of(case.cell)
    if write is None:
        return None
    jax = load(threads)
    if case.x.dtype == torch.float64:
        jax.config.update("jax_enable_x64", True)
    np, o = jax.numpy, operations(jax)
    steps, batch = case.x.shape[:2]
    sizes = case.cell.state_sizes

    def there(tensor: Tensor) -> Any:
        wide = tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float()
        return np.asarray(wide.numpy(), dtype=str(tensor.dtype).removeprefix("torch."))

    def back(array: Any) -> Tensor:
        wide = array if case.x.dtype == torch.float64 else array.astype("float32")
        return torch.tensor(importlib.import_module("numpy").asarray(wide)).to(case.x.dtype)

    lengths = None if case.lengths is None else np.asarray(case.lengths.numpy())

    def run(x: Any, w: dict[str, Any]) -> Any:
        step = write(o, w)

        def body(state: Any, p: Any) -> Any:
            new = step(p, state)
            return new, new[0]

        start = tuple(np.zeros((batch, size), x.dtype) for size in sizes)
        outputs = jax.lax.scan(body, start, before(o, w, x, case.cell))[1]
        if lengths is None:
            return outputs
        return np.where((np.arange(steps)[:, None] < lengths)[:, :, None], outputs, 0)

    def both(x: Any, w: dict[str, Any], weights: Any) -> Any:
        outputs, pull = jax.vjp(run, x, w)
        return outputs, pull(weights)

    x, weights = there(case.x), there(case.weights)
    w = {name: there(value) for name, value in case.cell.named_parameters()}
    began = time.perf_counter()
    forward = jax.jit(run).lower(x, w).compile()
    between = time.perf_counter()
    forward_and_backward = jax.jit(both).lower(x, w, weights).compile()
    compile_s = (between - began, time.perf_counter() - between)

    def answer(found: Any) -> Answer:
        outputs, (dx, dw) = found
        return Answer(back(outputs), {"x": back(dx), **{name: back(value) for name, value in dw.items()}})

    return Contender(
        SCAN,
        lambda: jax.block_until_ready(forward(x, w)),
        lambda: jax.block_until_ready(forward_and_backward(x, w, weights)),
        back,
        answer,
        compile_s=compile_s,
    )
