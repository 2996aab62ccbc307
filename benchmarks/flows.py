"""Coupling flows: images with their ln det, and the gradient that training takes. The unit is a sample.

All variants but zuko and normflows evaluate the same network with the same weights and are compared number
by number. Those two have couplings of their own form, with the same number of couplings and the same layers
of numbers in each network; only their speed is compared.

"torch" is pysamp's own definition, which is written to be fast too. "torch eager" is a network of linear
layers on halves, as one writes it by hand, with updates in place where no gradient is needed. "torch.mm"
does as many multiplications and additions by products of n × 128 and 128 × 128 numbers, and nothing else.

flops: two for each weight and sample, and three times as many for a gradient, whatever a kernel makes of
it: a native gradient takes four, as it keeps nothing of the way there. Biases and tanh are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks import peers
from benchmarks.bench import Bench, On, compiled, installed
from pysamp import _native, couplings, nets, ops, rng
from pysamp.quickbench import SEED, native_on
from pysamp.timing import Case, Variant

RATE = (
    0.02  # of gradient descent: three steps change ln q by far more than what is called agreement
)
Layers = Sequence[tuple[Tensor, Tensor]]  # of a network: weights (out, in) and biases (out,)
Net = Sequence[Sequence[Layers]]  # the networks of each coupling


def flow_of(
    on: On, dim: int, n_blocks: int, hidden: int, depth: int, conditioner: str
) -> nets.RealNVP:
    """Weights large enough that no number of a pass is tiny."""
    flow = nets.RealNVP(
        dim, n_blocks, hidden, depth, conditioner=conditioner, init_scale=1.0, seed=SEED
    )
    return flow.to(on.device)


def layers_of(flow: nets.RealNVP) -> list[list[list[tuple[Tensor, Tensor]]]]:
    """Its weights as linear layers have them; copies."""
    h, k = flow.shape.hidden, range(flow.shape.nets)
    found = []
    for first, bias, *rest in flow.shape.unpack(flow.weights.detach()):
        parts = [[(first[:, i * h : (i + 1) * h], bias[i * h : (i + 1) * h])] for i in k]
        for weight, shift in zip(rest[::2], rest[1::2], strict=True):
            for i in k:
                parts[i].append((weight[i], shift[i]))
        found.append([[(w.T.contiguous(), b.clone()) for w, b in part] for part in parts])
    return found


def products_of(shape: couplings.Shape) -> int:
    """Multiplications of a sample and a pass: the weights without the biases."""
    sizes = [part for c in range(shape.n_couplings) for part in shape.parameters(c)[::2]]
    return sum(torch.Size(size).numel() for size in sizes)


# ---------------------------------------------------------------------------- plain torch
def _raw(u: Tensor, networks: Sequence[Layers]) -> tuple[Tensor, Tensor]:
    found = []
    for (weight, bias), *rest in networks:
        value = linear(u, weight, bias)
        for weight, bias in rest:
            value = linear(torch.relu(value), weight, bias)
        found.append(value)
    scale, shift = found if len(found) == 2 else found[0].chunk(2, 1)
    return scale, shift


def plain(x: Tensor, net: Net, a: float, inverse: bool) -> tuple[Tensor, Tensor]:
    halves, log_det = list(x.chunk(2, 1)), x.new_zeros(len(x))
    for c in range(len(net))[:: -1 if inverse else 1]:
        v, (scale, shift) = halves[c % 2], _raw(halves[1 - c % 2], net[c])
        s, t = a * torch.tanh(scale), a * shift
        if inverse:
            halves[c % 2], log_det = v * torch.exp(-s) - t, log_det - s.sum(1)
        else:
            halves[c % 2], log_det = (v + t) * torch.exp(s), log_det + s.sum(1)
    return torch.cat(halves, 1), log_det


def in_place(x: Tensor, net: Net, a: float, inverse: bool) -> tuple[Tensor, Tensor]:
    """The same where no gradient is needed. S and T get last layers of their own: no strides after them."""
    halves, log_det = [half.contiguous() for half in x.chunk(2, 1)], x.new_zeros(len(x))
    for c in range(len(net))[:: -1 if inverse else 1]:
        found = []
        for networks in net[c]:
            value = halves[1 - c % 2]
            for weight, bias in networks[:-1]:
                value = linear(value, weight, bias).relu_()
            weight, bias = networks[-1]
            k = halves[c % 2].shape[1]
            found += [linear(value, w, b) for w, b in zip(weight.split(k), bias.split(k))]
        s, shift = found[0].tanh_().mul_(-a if inverse else a), found[1].mul_(a)
        log_det.add_(s.sum(1))
        s.exp_()
        v = halves[c % 2]
        halves[c % 2] = s.mul_(v).sub_(shift) if inverse else shift.add_(v).mul_(s)
    return torch.cat(halves, 1), log_det


def _products(n: int, flops: float, device: torch.device) -> Callable[[], None]:
    """n rows times 128 × 128 numbers, until as many operations are done."""
    x, w = torch.ones((n, 128), device=device), torch.full((128, 128), 1 / 128, device=device)
    out = torch.empty_like(x)
    times = max(1, round(flops / (2 * 128 * 128)))

    def run() -> None:
        for _ in range(times):
            torch.mm(x, w, out=out)

    return run


def _repeated(call: Callable[[], Any]) -> Callable[[int], Any]:
    def run(n: int) -> Any:
        with torch.no_grad():
            for _ in range(n):
                out = call()
        return out

    return run


# ---------------------------------------------------------------------------- images and ln det
def inference(
    on: On, name: str, dim: int, n_blocks: int, n: int, inverse: bool,
    hidden: int = 128, depth: int = 4, conditioner: str = "joint",
) -> Bench:  # fmt: skip
    flow = flow_of(on, dim, n_blocks, hidden, depth, conditioner)
    a, x = 1 / n_blocks, rng.normal((n, dim), seed=SEED, stream="user", device=on.device)
    net, way = layers_of(flow), flow.inverse if inverse else flow.forward
    flops, n_couplings = 2.0 * products_of(flow.shape), 2 * n_blocks
    steps = max(1, round(2e9 / (flops * n)))

    def ours(backend: Literal["native", "torch"]) -> Callable[[int], Any]:
        def call() -> Any:
            with _native.backend(backend):
                return way(x)

        return _repeated(call)

    variants = [Variant("torch", ours("torch"), steps)]
    if native_on(on.device):
        variants.append(Variant("native", ours("native"), steps, "close"))
    eager = _repeated(lambda: in_place(x, net, a, inverse))
    variants.append(Variant("torch eager", eager, steps, "close"))
    fast = compiled(on, plain)
    if fast is not None:
        run = _repeated(lambda: fast(x, net, a, inverse))
        variants.append(Variant("torch.compile", run, steps, "close"))
    found = installed(jax=(steps, lambda: peers.setup_jax_flow(net, a, x, inverse)))
    variants += [replace(v, agree="close") for v in found]
    sizes = (dim, n_couplings, (hidden,) * (depth - 2))
    variants += installed(
        zuko=(steps, lambda: peers.setup_zuko(*sizes, x, inverse)),
        normflows=(steps, lambda: peers.setup_normflows(*sizes, x, inverse)),
    )
    products = _products(n, flops, on.device)
    variants.append(Variant("torch.mm", _repeated(lambda: (products(), (x, x[:, 0]))[1]), steps))
    return _bench(on, name, flow, n, variants, flops, check_steps=1)


def _bench(
    on: On, name: str, flow: nets.RealNVP, n: int, variants: list[Variant], flops: float,
    check_steps: int,
) -> Bench:  # fmt: skip
    shape = flow.shape
    size = f"{shape.dim}, {shape.n_couplings} couplings, {n} samples"
    if any(v.name in ("zuko", "normflows") for v in variants):
        size += "; other networks in zuko, normflows"
    case = Case(name, size, "sample", n, tuple(variants), lambda x: {}, check_steps)
    moved = 4.0 * n * (2 * shape.dim + 1)  # points in, images and ln det out
    return Bench(case, flops=flops, step_bytes=moved, multiply_adds=flops / 2)


# ---------------------------------------------------------------------------- training
def points(on: On, dim: int, n: int) -> Tensor:
    """Bananas."""
    z = rng.normal((n, dim), seed=SEED, stream="user", device=on.device)
    one, other = z.chunk(2, 1)
    return torch.cat((one, 0.5 * other + one.square()), 1)


def training(
    on: On, name: str, dim: int, n_blocks: int, hidden: int, n: int, depth: int = 3,
    conditioner: str = "separate",
) -> Bench:  # fmt: skip
    """Steps of gradient descent on −mean ln q(x), the forward KL divergence; ln q of the last step."""
    flow = flow_of(on, dim, n_blocks, hidden, depth, conditioner)
    net, x, a = layers_of(flow), points(on, dim, n), 1 / n_blocks
    flops = 3 * 2.0 * products_of(flow.shape)
    steps = max(1, round(1e9 / (flops * n)))

    def ours(backend: Literal["native", "torch"]) -> Callable[[int], Any]:
        def run(n: int) -> Tensor:
            with _native.backend(backend):
                return peers.descend(flow.log_prob, x, [flow.weights], RATE, n)

        return run

    def by_hand(stack: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[int], Tensor]:
        leaves = [t.requires_grad_() for c in net for part in c for pair in part for t in pair]

        def log_prob(x: Tensor) -> Tensor:
            z, log_det = stack(x, net, a, True)
            return flow.base.log_prob(z) + log_det

        return lambda n: peers.descend(log_prob, x, leaves, RATE, n)

    variants = [Variant("torch", ours("torch"), steps)]
    if native_on(on.device):
        variants.append(Variant("native", ours("native"), steps, "close"))
    found = installed(jax=(steps, lambda: peers.setup_jax_training(net, a, x, RATE)))
    variants += [replace(v, agree="close") for v in found]
    variants.append(Variant("torch eager", by_hand(plain), steps, "close"))
    fast = compiled(on, plain)
    if fast is not None:
        variants.append(Variant("torch.compile", by_hand(fast), steps, "close"))
    sizes = (dim, 2 * n_blocks, (hidden,) * (depth - 2))  # their scales have no bound: short steps
    variants += installed(
        zuko=(steps, lambda: peers.setup_zuko(*sizes, x, rate=1e-4)),
        normflows=(steps, lambda: peers.setup_normflows(*sizes, x, rate=1e-4)),
    )
    products = _products(n, flops, on.device)
    variants.append(Variant("torch.mm", _repeated(lambda: (products(), x[:, 0])[1]), steps))
    return _bench(on, name, flow, n, variants, flops, check_steps=3)


# ---------------------------------------------------------------------------- the cases
def realnvp_64_forward(on: On) -> Bench:
    """z to x, the direction of sampling. 459 kFLOP a sample."""
    return inference(on, "realnvp_64_forward", 64, 4, 65_536 if on.cuda else 4096, False)


def realnvp_64_inverse(on: On) -> Bench:
    """x to z, the direction of densities."""
    return inference(on, "realnvp_64_inverse", 64, 4, 65_536 if on.cuda else 4096, True)


def realnvp_128_forward(on: On) -> Bench:
    return inference(on, "realnvp_128_forward", 128, 8, 65_536 if on.cuda else 4096, False)


def realnvp_128_inverse(on: On) -> Bench:
    return inference(on, "realnvp_128_inverse", 128, 8, 65_536 if on.cuda else 4096, True)


def realnvp_train_16(on: On) -> Bench:
    return training(on, "realnvp_train_16", 16, 5, 64, 2048)


def realnvp_train_64(on: On) -> Bench:
    return training(on, "realnvp_train_64", 64, 5, 128, 4096)


def affine_couplings_walkers(on: On) -> Bench:
    """64 points, as many as walkers: what a call costs counts."""
    return inference(on, "affine_couplings_walkers", 16, 5, 64, True, 64, 3, "separate")


def affine_couplings_vjp_batch(on: On) -> Bench:
    """The gradients of points and weights alone, from those of images and ln det."""
    flow, n = flow_of(on, 16, 5, 64, 3, "separate"), 2048
    x, of_image = (
        rng.normal((n, 16), seed=SEED, stream="user", step=k, device=on.device) for k in (0, 1)
    )
    weights, layout = flow.weights.detach(), flow.shape.layout()
    given = (x, weights, 1 / 5, layout, True)
    image, log_det = couplings.affine_couplings(*given)

    def over(backend: Literal["native", "torch"]) -> Callable[[int], Any]:
        def call() -> tuple[Tensor, Tensor]:
            with _native.backend(backend):
                return ops.affine_couplings_vjp(*given, image, of_image, log_det, True)

        return _repeated(call)

    flops = 3 * 2.0 * products_of(flow.shape)
    variants = [Variant("torch", over("torch"), 4)]
    if native_on(on.device):
        variants.append(Variant("native", over("native"), 4, "close"))
    return _bench(on, "affine_couplings_vjp_batch", flow, n, variants, flops, check_steps=1)
