"""The textbook's equations of back-propagation through time, in NumPy, beside every exact adjoint.

The network of Goodfellow, Bengio & Courville, section 10.2.2: a = b + W h⁽ᵗ⁻¹⁾ + U x⁽ᵗ⁾, h = tanh(a), o = c + V h,
ŷ = softmax(o), L = -Σ log ŷ_y. `rit.Elman` calls the textbook's U `W` and its W `U`. Numbers in brackets are those of
`docs/bptt.md`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from comparison import assert_close
from torch import Tensor

import ritornello as rit

F64 = torch.float64
T, X, H, K = 7, 3, 4, 5  # steps, inputs, hidden units, classes
EXACT = [(way, executor) for way in ("full", "checkpointed", "forward") for executor in ("cpu", "reference")]


class Network(NamedTuple):
    """A network of one sequence, and what the textbook calls its parts; h[t] is the state after step t."""

    W: np.ndarray
    U: np.ndarray
    b: np.ndarray
    V: np.ndarray
    c: np.ndarray
    x: np.ndarray
    y: np.ndarray
    h: np.ndarray

    def parts(self) -> dict[str, Tensor]:
        """As torch's leaves; h0 the initial state."""
        found = {name: getattr(self, name) for name in ("W", "U", "b", "V", "c", "x")} | {"h0": self.h[0]}
        return {name: torch.tensor(value, requires_grad=True) for name, value in found.items()}

    def derivative(self, t: int) -> np.ndarray:
        """diag(1 - (h⁽ᵗ⁾)²)."""
        return np.diag(1 - self.h[t] ** 2)


@pytest.fixture(scope="module")
def net() -> Network:
    r = np.random.default_rng(0)
    W, U, b, V, c = (r.normal(size=shape) * 0.7 for shape in ((H, H), (H, X), (H,), (K, H), (K,)))
    x, y = r.normal(size=(T + 1, X)), r.integers(K, size=T + 1)  # x[0] and y[0] stand for nothing
    h = [r.normal(size=H) * 0.5]
    for t in range(1, T + 1):
        h.append(np.tanh(b + W @ h[-1] + U @ x[t]))
    return Network(W, U, b, V, c, x, y, np.array(h))


@pytest.fixture(scope="module")
def textbook(net: Network) -> dict[str, np.ndarray]:
    """[B2] to [B5], as they stand there."""
    d_o, d_h = np.zeros((T + 1, K)), np.zeros((T + 2, H))
    for t in range(T, 0, -1):
        o = net.c + net.V @ net.h[t]
        y_hat = np.exp(o - o.max()) / np.exp(o - o.max()).sum()
        d_o[t] = y_hat - (np.arange(K) == net.y[t])  # [B2]
        if t == T:
            d_h[t] = net.V.T @ d_o[t]  # [B3]
        else:
            d_h[t] = net.W.T @ net.derivative(t + 1) @ d_h[t + 1] + net.V.T @ d_o[t]  # [B4]
    steps = range(1, T + 1)
    d_x = np.stack([np.zeros(X), *(net.U.T @ net.derivative(t) @ d_h[t] for t in steps)])
    return {  # [B5]
        "W": sum(np.outer(net.derivative(t) @ d_h[t], net.h[t - 1]) for t in steps),
        "U": sum(np.outer(net.derivative(t) @ d_h[t], net.x[t]) for t in steps),
        "b": sum(net.derivative(t) @ d_h[t] for t in steps),
        "V": sum(np.outer(d_o[t], net.h[t]) for t in steps),
        "c": sum(d_o[t] for t in steps),
        "x": d_x,
        "h0": net.W.T @ net.derivative(1) @ d_h[1],  # [B4] once more
        "o": d_o[1:],
        "h": d_h[1 : T + 1],
    }


def elman(parts: dict[str, Tensor], adjoint: Any, executor: str) -> rit.Unfold:
    unfold = rit.Unfold(rit.Elman(X, H), adjoint=adjoint, executor=executor).double()
    with torch.no_grad():
        unfold.cell.W.weight.copy_(parts["U"])
        unfold.cell.U.weight.copy_(parts["W"])
        unfold.cell.W.bias.copy_(parts["b"])
    return unfold


@pytest.mark.parametrize(("adjoint", "executor"), EXACT)
def test_every_exact_adjoint_gives_the_textbooks_gradients(
    net: Network, textbook: dict[str, np.ndarray], adjoint: str, executor: str
) -> None:
    parts = net.parts()
    unfold = elman(parts, adjoint, executor)
    outputs, _ = unfold(parts["x"][1:], parts["h0"])
    o = parts["c"] + outputs @ parts["V"].T
    o.retain_grad()
    torch.nn.functional.cross_entropy(o, torch.tensor(net.y[1:]), reduction="sum").backward()  # [B1]: dL/dL_t = 1
    cell = unfold.cell
    found = {"W": cell.U.weight, "U": cell.W.weight, "b": cell.W.bias, "o": o}
    found |= {name: parts[name] for name in ("V", "c", "x", "h0")}
    for name, tensor in found.items():
        assert_close(tensor.grad, textbook[name], name)


def test_the_gradients_of_the_hidden_states_too(net: Network, textbook: dict[str, np.ndarray]) -> None:
    """∇_h⁽ᵗ⁾ L holds what comes back from all later steps: seen where the cell is called by hand."""
    parts = net.parts()
    cell = elman(parts, "full", "reference").cell
    state, states = cell.State(parts["h0"][None]), []
    for t in range(1, T + 1):
        state = cell(parts["x"][t : t + 1], state)
        state.h.retain_grad()
        states.append(state.h)
    o = parts["c"] + torch.cat(states) @ parts["V"].T
    torch.nn.functional.cross_entropy(o, torch.tensor(net.y[1:]), reduction="sum").backward()
    assert_close(torch.cat([h.grad for h in states]), textbook["h"])


def products(net: Network, t: int, k: int) -> np.ndarray:
    """∂h_t/∂h_k = Π from i = t down to k + 1 of diag(1 - h_i²) W; the order matters."""
    found = np.eye(H)
    for i in range(t, k, -1):
        found = found @ net.derivative(i) @ net.W
    return found


def immediate(net: Network, k: int) -> np.ndarray:
    """∂⁺h_k/∂W, h_{k-1} held fixed: (H, H · H)."""
    return np.einsum("ij,k->ijk", net.derivative(k), net.h[k - 1]).reshape(H, H * H)


@pytest.mark.parametrize("adjoint", ["full", "forward"])
def test_forward_accumulation_is_the_sum_over_products(net: Network, adjoint: str) -> None:
    """[B7] a_t = b_t + c_t a_{t-1} = b_t + Σ_{i<t} (Π_{j = t down to i + 1} c_j) b_i, for a_t = ∂h_t/∂W."""
    parts = net.parts()
    unfold = elman(parts, adjoint, "auto")
    outputs, _ = unfold(parts["x"][1:], parts["h0"])
    step = np.zeros((H, H * H))
    for t in range(1, T + 1):
        step = immediate(net, t) + net.derivative(t) @ net.W @ step
        closed = immediate(net, t) + sum(products(net, t, i) @ immediate(net, i) for i in range(1, t))
        np.testing.assert_allclose(step, closed, rtol=1e-12)
        rows = [torch.autograd.grad(outputs[t - 1, k], unfold.cell.U.weight, retain_graph=True)[0] for k in range(H)]
        assert_close(torch.stack(rows).flatten(1), closed)
    backwards = np.linalg.multi_dot([products(net, k + 1, k) for k in range(T)])
    assert np.abs(backwards - products(net, T, 0)).max() > 0.01, "in the other order it would be something else"


@pytest.mark.parametrize("executor", ["cpu", "reference"])
def test_influence_at_a_distance_is_a_product_of_jacobians(net: Network, executor: str) -> None:
    """[V1], first part: ∂h_t/∂h_k, from an unfolding that begins at h_k."""
    parts = net.parts()
    unfold = elman(parts, "full", executor)
    for t, k in ((1, 0), (5, 2), (T, 0)):
        x = parts["x"][k + 1 : t + 1].detach()
        found = torch.autograd.functional.jacobian(lambda h, x=x: unfold(x, h)[1].h, torch.tensor(net.h[k]))
        assert_close(found, products(net, t, k))


def test_the_gradient_is_a_sum_over_losses_and_the_steps_before_them(
    net: Network, textbook: dict[str, np.ndarray]
) -> None:
    """[V1], second part: ∂E/∂θ = Σ_t Σ_{k≤t} (∂E_t/∂o_t)(∂o_t/∂h_t)(∂h_t/∂h_k)(∂⁺h_k/∂θ); truncated, fewer."""

    def terms(reach: Any) -> np.ndarray:
        d_o = textbook["o"]
        pairs = [(t, k) for t in range(1, T + 1) for k in range(max(1, reach(t)), t + 1)]
        return sum(d_o[t - 1] @ net.V @ products(net, t, k) @ immediate(net, k) for t, k in pairs).reshape(H, H)

    np.testing.assert_allclose(terms(lambda t: 1), textbook["W"], rtol=1e-10, atol=1e-12)
    k1, k2 = 2, 3  # [B8]: the window of step t ends at ⌈t / k1⌉ k1, and k2 steps end there
    parts = net.parts()
    unfold = elman(parts, rit.Truncated(k1, k2), "cpu")
    o = parts["c"] + unfold(parts["x"][1:], parts["h0"])[0] @ parts["V"].T
    torch.nn.functional.cross_entropy(o, torch.tensor(net.y[1:]), reduction="sum").backward()
    truncated = terms(lambda t: -(-t // k1) * k1 - k2 + 1)
    assert_close(unfold.cell.U.weight.grad, truncated)
    assert np.abs(truncated - textbook["W"]).max() > 0.01


def test_influence_is_bounded_by_a_power(net: Network) -> None:
    """[V2] ‖∂h_t/∂h_k‖ ≤ (γ_θ γ_φ)^(t-k), by autograd and by the closed form; with equality for a rotation."""
    unfold = elman(net.parts(), "full", "cpu")
    gamma_w = np.linalg.norm(net.W, 2)
    for t in range(1, T + 1):
        for k in range(t):
            gamma_phi = max(np.linalg.norm(net.derivative(i), 2) for i in range(k + 1, t + 1))
            x = torch.tensor(net.x[k + 1 : t + 1])
            jacobian = torch.autograd.functional.jacobian(lambda h, x=x: unfold(x, h)[1].h, torch.tensor(net.h[k]))
            norm = float(torch.linalg.matrix_norm(jacobian, 2))
            assert 0 < norm <= (gamma_w * gamma_phi) ** (t - k) * (1 + 1e-12)
            np.testing.assert_allclose(norm, np.linalg.norm(products(net, t, k), 2), rtol=1e-9)


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.25])
def test_gradients_vanish_and_explode_as_the_bound_says(scale: float) -> None:
    """A linear recurrence by a scaled permutation: the bound is attained, 0.8^60 = 1.5e-6 and 1.25^60 = 6.5e5."""
    unfold = rit.Unfold(rit.Elman(2, 3, nonlinearity="relu")).double()
    with torch.no_grad():
        unfold.cell.U.weight.copy_(scale * torch.eye(3, dtype=F64).roll(1, 0))
        unfold.cell.W.weight.zero_()
        unfold.cell.W.bias.fill_(0.1)
    state = torch.ones(1, 3, dtype=F64, requires_grad=True)
    _, last = unfold(torch.zeros(60, 1, 2, dtype=F64), state)
    gradient = torch.autograd.grad(last.h[0, 0], state)[0]
    np.testing.assert_allclose(gradient.norm(), scale**60, rtol=1e-10)
