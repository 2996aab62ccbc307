"""The same chains by JAX and blackjax, and flows by JAX, zuko and normflows: setup_x(...) -> run_x(n).

Written as a competent user writes them: one `jit` around a `lax.scan` over the steps, gradients by
JAX. run_x(n) makes n steps from the same start and returns a NumPy array; each n is compiled once.
Peers draw from their own generators. Sweeps of a lattice are lattice_jax.py and lattice_numba.py.

`available` says which are installed; the others have no variants.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pysamp.quickbench import SEED
from pysamp.targets import GaussianMixture, Phi4, Phi4Chain

Run = Callable[[int], Any]  # an array, or a tuple of arrays or tensors
PEERS = ("jax", "blackjax", "numba", "zuko", "normflows")


def available(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def versions() -> dict[str, str]:
    """Of the peers that are here."""
    from importlib.metadata import version

    return {name: version(name) for name in PEERS if available(name)}


# ---------------------------------------------------------------------------- densities in JAX
def _jax_log_prob(target: Phi4 | Phi4Chain | GaussianMixture) -> Callable[[Any], Any]:
    """log p of one event, flattened: (d,)."""
    import jax
    import jax.numpy as jnp

    if isinstance(target, Phi4Chain):
        stiffness, _, _, quartic, _ = target.native.params

        def of_chain(x: Any) -> Any:
            bonds = jnp.diff(jnp.pad(x, 1))
            return -(0.5 * stiffness * (bonds**2).sum() + quartic * ((x**2 - 1) ** 2).sum())

        return of_chain
    if isinstance(target, Phi4):

        def of_field(x: Any) -> Any:
            phi = x.reshape(target.shape)
            ahead = sum(jnp.roll(phi, -1, axis) for axis in range(phi.ndim))
            square = phi * phi
            sites = square + target.lam * (square - 1) ** 2 - 2 * target.kappa * phi * ahead
            return -sites.sum()

        return of_field
    k, d = target.means.shape
    params = np.array(target.native.params, dtype=np.float32)
    log_scale, mean, precision = np.split(params, [k, k + k * d])
    mean, precision = mean.reshape(k, d), precision.reshape(k, d)

    def of_mixture(x: Any) -> Any:
        return jax.nn.logsumexp(log_scale - 0.5 * ((x - mean) ** 2 * precision).sum(1))

    return of_mixture


def jax_scan(step: Callable[[Any, Any], Any], start: Any, position: Callable[[Any], Any]) -> Run:
    """run(n): n times state = step(key, state), in one compiled call."""
    import jax

    key = jax.random.key(SEED)

    @functools.partial(jax.jit, static_argnums=2)
    def many(key: Any, state: Any, n: int) -> Any:
        def body(state: Any, key: Any) -> tuple[Any, None]:
            return step(key, state), None

        return jax.lax.scan(body, state, jax.random.split(key, n))[0]

    def run(n: int) -> np.ndarray:
        return np.array(jax.block_until_ready(position(many(key, start, n))))

    return run


def _walkers(target: Phi4 | Phi4Chain | GaussianMixture, x: Tensor) -> tuple[Any, Any]:
    """Batched x -> (log p, gradient), and the start (x, log p, gradient)."""
    import jax

    energy = jax.vmap(jax.value_and_grad(_jax_log_prob(target)))
    x0 = jax.numpy.asarray(x.cpu().numpy())
    return energy, (x0, *jax.jit(energy)(x0))


def _select(move: Any, new: Any, old: Any) -> Any:
    import jax.numpy as jnp

    return tuple(
        jnp.where(move.reshape(-1, *(1,) * (a.ndim - 1)), a, b)
        for a, b in zip(new, old, strict=True)
    )


# ---------------------------------------------------------------------------- chains in JAX
def setup_jax_ula(target: Phi4Chain, x: Tensor, h: float) -> Run:
    import jax

    energy, start = _walkers(target, x)

    def step(key: Any, state: Any) -> Any:
        x, _, score = state
        y = x + h * score + math.sqrt(2 * h) * jax.random.normal(key, x.shape)
        return (y, *energy(y))

    return jax_scan(step, start, lambda state: state[0])


def setup_jax_mala(target: Phi4Chain | GaussianMixture, x: Tensor, h: float) -> Run:
    import jax
    import jax.numpy as jnp

    energy, start = _walkers(target, x)

    def step(key: Any, state: Any) -> Any:
        x, log_prob, score = state
        for_noise, for_accept = jax.random.split(key)
        noise = jax.random.normal(for_noise, x.shape)
        y = x + h * score + math.sqrt(2 * h) * noise
        log_prob_y, score_y = energy(y)
        back = x - y - h * score_y
        log_ratio = (log_prob_y - log_prob) + 0.5 * (noise**2).sum(1) - (back**2).sum(1) / (4 * h)
        move = jnp.log(jax.random.uniform(for_accept, log_prob.shape)) < log_ratio
        return _select(move, (y, log_prob_y, score_y), state)

    return jax_scan(step, start, lambda state: state[0])


def setup_jax_hmc(target: Phi4 | Phi4Chain, x: Tensor, eps: float, n_leapfrog: int) -> Run:
    import jax
    import jax.numpy as jnp

    energy, start = _walkers(target, x)

    def step(key: Any, state: Any) -> Any:
        x, log_prob, score = state
        for_momentum, for_accept = jax.random.split(key)
        p = jax.random.normal(for_momentum, x.shape)
        before = (p**2).sum(1)

        def leapfrog(_: int, walk: Any) -> Any:
            y, p, _, score = walk
            p = p + 0.5 * eps * score
            y = y + eps * p
            log_prob, score = energy(y)
            return y, p + 0.5 * eps * score, log_prob, score

        walk = jax.lax.fori_loop(0, n_leapfrog, leapfrog, (x, p, log_prob, score))
        y, p, log_prob_y, score_y = walk
        log_ratio = (log_prob_y - log_prob) + 0.5 * (before - (p**2).sum(1))
        move = jnp.log(jax.random.uniform(for_accept, log_prob.shape)) < log_ratio
        return _select(move, (y, log_prob_y, score_y), state)

    return jax_scan(step, start, lambda state: state[0])


# ---------------------------------------------------------------------------- blackjax
def _blackjax(algorithm: Any, x: Tensor) -> Run:
    import jax

    start = jax.vmap(algorithm.init)(jax.numpy.asarray(x.cpu().numpy()))

    def step(key: Any, state: Any) -> Any:
        return jax.vmap(algorithm.step)(jax.random.split(key, len(x)), state)[0]

    return jax_scan(step, start, lambda state: state.position)


def setup_blackjax_mala(target: Phi4Chain | GaussianMixture, x: Tensor, h: float) -> Run:
    import blackjax

    return _blackjax(blackjax.mala(_jax_log_prob(target), h), x)


def setup_blackjax_hmc(target: Phi4 | Phi4Chain, x: Tensor, eps: float, n_leapfrog: int) -> Run:
    import blackjax

    masses = np.ones(x.shape[1], dtype=np.float32)
    return _blackjax(blackjax.hmc(_jax_log_prob(target), eps, masses, n_leapfrog), x)


# ---------------------------------------------------------------------------- flows in JAX
def _jax_stack(net: Any, a: float, x: Any, inverse: bool) -> tuple[Any, Any]:
    """flows.plain: net holds (weights (in, out), biases) of each layer, network and coupling."""
    import jax
    import jax.numpy as jnp

    halves, log_det = list(jnp.split(x, 2, axis=1)), jnp.zeros(len(x))
    for c in range(len(net))[:: -1 if inverse else 1]:
        found = []
        for (weight, bias), *rest in net[c]:
            value = jnp.matmul(halves[1 - c % 2], weight, precision="highest") + bias
            for weight, bias in rest:
                value = jnp.matmul(jax.nn.relu(value), weight, precision="highest") + bias
            found.append(value)
        scale, shift = found if len(found) == 2 else jnp.split(found[0], 2, axis=1)
        s, t, v = a * jnp.tanh(scale), a * shift, halves[c % 2]
        halves[c % 2] = v * jnp.exp(-s) - t if inverse else (v + t) * jnp.exp(s)
        log_det = log_det + (-s if inverse else s).sum(1)
    return jnp.concatenate(halves, 1), log_det


def _jax_net(net: Any) -> Any:
    import jax.numpy as jnp

    def array(t: Tensor) -> Any:
        return jnp.asarray(t.detach().cpu().numpy())

    return [[[(array(w.T), array(b)) for w, b in part] for part in c] for c in net]


def setup_jax_flow(net: Any, a: float, x: Tensor, inverse: bool) -> Run:
    import jax

    weights, points = _jax_net(net), jax.numpy.asarray(x.cpu().numpy())
    stack = jax.jit(lambda weights, x: _jax_stack(weights, a, x, inverse))

    def run(n: int) -> Any:
        for _ in range(n):
            out = stack(weights, points)
        return tuple(np.array(part) for part in jax.block_until_ready(out))

    return run


def setup_jax_training(net: Any, a: float, x: Tensor, rate: float) -> Run:
    import jax
    import jax.numpy as jnp

    start, points = _jax_net(net), jnp.asarray(x.cpu().numpy())

    def loss(weights: Any, x: Any) -> tuple[Any, Any]:
        z, log_det = _jax_stack(weights, a, x, True)
        log_q = log_det - 0.5 * ((z**2).sum(1) + z.shape[1] * math.log(2 * math.pi))
        return -log_q.mean(), log_q

    @jax.jit
    def step(weights: Any, x: Any) -> tuple[Any, Any]:
        (_, log_q), gradient = jax.value_and_grad(loss, has_aux=True)(weights, x)
        return jax.tree.map(lambda w, g: w - rate * g, weights, gradient), log_q

    def run(n: int) -> np.ndarray:
        weights = start
        for _ in range(n):
            weights, log_q = step(weights, points)
        return np.array(jax.block_until_ready((weights, log_q))[1])

    return run


# ---------------------------------------------------------------------------- zuko and normflows
def descend(
    log_prob: Callable[[Tensor], Tensor], x: Tensor, weights: Sequence[Tensor], rate: float, n: int
) -> Tensor:
    """ln q(x) in the last of n steps of gradient descent on −mean ln q(x), which are undone."""
    start = [w.detach().clone() for w in weights]
    for _ in range(n):
        log_q = log_prob(x)
        gradients = torch.autograd.grad(-log_q.mean(), weights)
        with torch.no_grad():
            torch._foreach_add_(list(weights), gradients, alpha=-rate)
    with torch.no_grad():
        torch._foreach_copy_(list(weights), start)
    return log_q.detach()


def setup_zuko(
    dim: int, n_couplings: int, hidden: tuple[int, ...], x: Tensor, inverse: bool = True,
    rate: float | None = None,
) -> Run:  # fmt: skip
    """Its RealNVP: images of x, or steps of training where there is a `rate`."""
    import zuko

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        flow = zuko.flows.RealNVP(dim, transforms=n_couplings, hidden_features=hidden)
    flow = flow.to(x.device)
    if rate is not None:
        weights = list(flow.parameters())
        return lambda n: descend(lambda x: flow().log_prob(x), x, weights, rate, n)

    @torch.no_grad()
    def run(n: int) -> tuple[Tensor, Tensor]:
        for _ in range(n):
            transform = flow().transform  # from x to z
            out = (transform if inverse else transform.inv).call_and_ladj(x)
        return out

    return run


def setup_normflows(
    dim: int, n_couplings: int, hidden: tuple[int, ...], x: Tensor, inverse: bool = True,
    rate: float | None = None,
) -> Run:  # fmt: skip
    """Its affine couplings, which move one half and the other in turn."""
    import normflows

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        layers = [
            normflows.flows.AffineCouplingBlock(
                normflows.nets.MLP([dim // 2, *hidden, dim]),
                split_mode="channel" if k % 2 else "channel_inv",
            )
            for k in range(n_couplings)
        ]
    base = normflows.distributions.DiagGaussian(dim, trainable=False)
    flow = normflows.NormalizingFlow(base, layers).to(x.device)
    if rate is not None:
        weights = list(flow.parameters())
        return lambda n: descend(flow.log_prob, x, weights, rate, n)

    @torch.no_grad()
    def run(n: int) -> tuple[Tensor, Tensor]:
        call = flow.inverse_and_log_det if inverse else flow.forward_and_log_det
        for _ in range(n):
            out = call(x)
        return out

    return run
