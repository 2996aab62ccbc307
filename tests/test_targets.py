"""Targets: their contract, closed forms, wrappers, fingerprints; broken targets are caught."""

from __future__ import annotations

import inspect
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from scipy import integrate
from torch import Tensor

from pysamp import backend
from pysamp.check import check_target
from pysamp.fingerprint import fingerprint
from pysamp.mcmc.metropolis import Metropolis
from pysamp.target import (
    Boltzmann,
    Counted,
    FunctionTarget,
    HasBonds,
    HasLocal,
    HasLocalField,
    HasLogZ,
    HasModes,
    HasMoments,
    HasNative,
    HasObservables,
    HasQuartic,
    HasRecord,
    HasSampler,
    HasScore,
    HasSites,
    HasValueAndScore,
    Target,
    Tempered,
    Tilted,
    as_target,
    log_prob_and_score,
)
from pysamp.targets.bayes import LogisticRegression
from pysamp.targets.mixture import (
    BracketTwoModes,
    EightGaussians,
    GaussianMixture,
    ManyModes,
    TwoModes,
)
from pysamp.targets.on import ON
from pysamp.targets.phi4 import Phi4, Phi4Chain
from pysamp.targets.toy import Checkerboard, Funnel, Rings

ROOT = Path(__file__).resolve().parents[1]
CAPABILITIES = (
    HasScore, HasModes, HasSampler, HasLogZ, HasObservables, HasLocal, HasSites, HasLocalField,
    HasQuartic, HasBonds, HasRecord, HasMoments,
)  # fmt: skip


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def full_mixture(d: int = 3, k: int = 4) -> GaussianMixture:
    a = noise(k, d, d, seed=1)
    covariances = a @ a.mT + 0.5 * torch.eye(d, dtype=torch.float64)
    return GaussianMixture(3 * noise(k, d, seed=2), covariances, torch.arange(1.0, k + 1))


def diagonal_mixture() -> GaussianMixture:
    return GaussianMixture(2 * noise(3, 2, seed=3), noise(3, 2, seed=4).exp(), None)


@dataclass(frozen=True)
class Rosenbrock:
    """No capability at all: the score is autograd's."""

    event_shape: tuple[int, ...] = (2,)

    def log_prob(self, x: Tensor) -> Tensor:
        return -(100 * (x[:, 1] - x[:, 0] ** 2) ** 2 + (1 - x[:, 0]) ** 2)


@dataclass(frozen=True)
class Springs(Boltzmann):
    beta: float = 2.0
    event_shape: tuple[int, ...] = (3, 2)

    def energy(self, x: Tensor) -> Tensor:
        return 0.5 * (x * x).sum((1, 2)) + 0.25 * (x[:, 1:] - x[:, :-1]).pow(4).sum((1, 2))


TARGETS = {
    "eight": EightGaussians(),
    "two": TwoModes(8),
    "many": ManyModes(dim=3, n_modes=5),
    "diagonal": diagonal_mixture(),
    "full": full_mixture(),
    "rings": Rings(),
    "funnel": Funnel(),
    "funnel2": Funnel(dim=2, variance=1.0),
    "bracket": BracketTwoModes(6, a=0.5),
    "checkerboard": Checkerboard(),
    "logistic": LogisticRegression(noise(21, 4, seed=6), (noise(21, seed=7) > 0).double()),
    "rosenbrock": Rosenbrock(),
    "springs": Springs(),
    "chain": Phi4Chain(n_sites=9, a=0.1, beta=20.0, h=0.01),
    "lattice": Phi4(shape=(4, 6), kappa=0.25, lam=0.02),
    "odd lattice": Phi4(shape=(3, 5), kappa=0.25, lam=0.02),
    "even chain": Phi4Chain(n_sites=8),
    "ising": ON((4, 3), n=1, beta=0.4),
    "xy": ON((3, 2, 2), n=2, beta=0.7, periodic=False),
    "soft": ON.soft((3, 4), n=3, r=-1.0, u=2.0),
    "open soft": ON.soft((5,), n=1, r=-0.1, u=0.0, periodic=False),
    "large n": ON.large_n((4, 6), r=-1.0, u=2.0),
    "tempered": Tempered(full_mixture(), 0.3),
    "tilted": Tilted(full_mixture(), noise(3), 1.5),
    "counted": Counted(full_mixture()),
}


@pytest.mark.parametrize("name", TARGETS)
def test_contract_holds(name):
    target = TARGETS[name]
    assert isinstance(target, Target)
    check_target(target)
    check_target(target, dtype=torch.float64)
    check_target(target, dtype=torch.float32)


@pytest.mark.parametrize("name", TARGETS)
def test_score_equals_autograd(name):
    target = TARGETS[name]
    x = noise(7, *target.event_shape, seed=5).requires_grad_(True)
    (expected,) = torch.autograd.grad(target.log_prob(x).sum(), x)
    with torch.no_grad():
        value, score = log_prob_and_score(target, x)
    assert score.abs().max() > 0.1
    assert not value.requires_grad
    assert not score.requires_grad
    torch.testing.assert_close(score, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(value, target.log_prob(x).detach(), rtol=1e-13, atol=1e-12)


# ---------------------------------------------------------------------------- closed forms
@pytest.mark.parametrize(
    ("target", "edge"),
    [
        (EightGaussians(), 15.0),
        (Rings(), 5.5),
        (TwoModes(2), 4.0),
        (diagonal_mixture(), 20.0),
        (ManyModes(n_modes=6), 18.0),
        (full_mixture(d=2), 25.0),
    ],
    ids=["eight", "rings", "two", "diagonal", "many", "full"],
)
def test_normalised_in_two_dimensions(target, edge):
    """The trapezoidal rule converges exponentially: the density is smooth and ends inside."""
    t = torch.linspace(-edge, edge, 600, dtype=torch.float64)  # even: never at the rings' origin
    x = torch.cartesian_prod(t, t)
    p = target.log_prob(x).exp().reshape(len(t), len(t))
    total = integrate.trapezoid(integrate.trapezoid(p, t), t)
    assert math.log(total) == pytest.approx(target.log_z, abs=1e-6)
    label = target.mode(x).reshape(len(t), len(t))
    for k, weight in enumerate(target.mode_weights):
        share = integrate.trapezoid(integrate.trapezoid(p * (label == k), t), t)
        if isinstance(target, Rings) or target.means.abs().max() == 10:  # hardly overlapping
            assert share == pytest.approx(float(weight), abs=5e-4)


def test_funnel_is_normalised():
    target = Funnel(dim=2, variance=1.0)

    def density(y: float, z: float) -> float:
        return float(target.log_prob(torch.tensor([[z, y]], dtype=torch.float64)).exp())

    def edge(z: float) -> float:
        return 9 * math.exp(z / 2)

    total, _ = integrate.dblquad(density, -6, 6, lambda z: -edge(z), edge, epsabs=1e-6)
    assert total == pytest.approx(1.0, abs=1e-6)


def test_mixture_equals_torch_distributions():
    for target in (full_mixture(), diagonal_mixture(), TwoModes(16)):
        k, d = target.means.shape
        covariance = target.covariances
        if covariance.ndim < 3:
            covariance = torch.diag_embed(covariance.reshape(k, -1).expand(k, d))
        mixture = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(target.mode_weights),
            torch.distributions.MultivariateNormal(target.means, covariance),
        )
        x = 3 * noise(50, d)
        torch.testing.assert_close(target.log_prob(x), mixture.log_prob(x))


def test_mixture_keeps_its_digits_far_away_in_float32():
    """An expanded quadratic form would lose all of them."""
    target = GaussianMixture(torch.full((1, 2), 3000.0), torch.ones(1))
    x = target.means + torch.tensor([[0.5, -0.25]])
    exact = -math.log(2 * math.pi) - 0.5 * (0.25 + 0.0625)
    assert target.log_prob(x.float()).item() == pytest.approx(exact, rel=1e-6)


def within_five_sigma(values: Tensor, expected: float | Tensor) -> None:
    """Mean of i.i.d. rows within 5 standard errors of the expected value, entry by entry."""
    error = values.std(0) / math.sqrt(len(values))
    assert bool((error > 0).all())
    assert bool(((values.mean(0) - expected).abs() < 5 * error).all())


@pytest.mark.parametrize(
    "target",
    [EightGaussians(), TwoModes(4), ManyModes(dim=3), full_mixture(), diagonal_mixture()],
    ids=["eight", "two", "many", "full", "diagonal"],
)
def test_mixture_draws_have_the_exact_moments(target):
    k, d = target.means.shape
    x = target.sample(20_000, seed=3, dtype=torch.float64)
    covariance = target.covariances
    if covariance.ndim < 3:
        covariance = torch.diag_embed(covariance.reshape(k, -1).expand(k, d))
    weights, means = target.mode_weights, target.means
    within_five_sigma(x, weights @ means)
    second = covariance + means[:, :, None] * means[:, None, :]
    within_five_sigma(x[:, :, None] * x[:, None, :], torch.einsum("k,kij->ij", weights, second))


def test_rings_draws_have_the_exact_moments():
    target = Rings()
    x = target.sample(20_000, seed=1, dtype=torch.float64)
    r = x.norm(dim=1)
    within_five_sigma(r, 2.5)
    within_five_sigma(r**2, 7.5 + 0.15**2)
    within_five_sigma(x, 0.0)
    within_five_sigma(x[:, 0] * x[:, 1], 0.0)
    share = torch.nn.functional.one_hot(target.mode(x), 4).double()
    within_five_sigma(share, target.mode_weights)


def test_funnel_draws_have_the_exact_moments():
    target = Funnel()
    x = target.sample(20_000, seed=1, dtype=torch.float64)
    z, white = x[:, :1], x[:, 1:] * torch.exp(-0.5 * x[:, :1])
    within_five_sigma(z, 0.0)
    within_five_sigma(z**2, 3.0)
    within_five_sigma(white, 0.0)
    within_five_sigma(white**2, 1.0)
    within_five_sigma(z * white**2, 0.0)
    within_five_sigma(white[:, :-1] * white[:, 1:], 0.0)


@pytest.mark.parametrize("target", [full_mixture(), TwoModes(3), Rings(), Funnel()])
def test_draws_do_not_depend_on_the_split(target):
    whole = target.sample(40, seed=5)
    parts = [target.sample(25, seed=5), target.sample(15, seed=5, first_chain=25)]
    assert whole.dtype == torch.float32
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-6, atol=1e-6)
    assert not torch.equal(whole, target.sample(40, seed=6))


def test_the_published_means_and_weights():
    eight, two = EightGaussians(), TwoModes(5, a=1.5)
    assert eight.means[0].tolist() == pytest.approx([0, 10])
    assert eight.means[2].tolist() == pytest.approx([10, 0])
    assert float(eight.covariances[0]) == 0.7
    assert two.mode_weights.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert (two.mode_weights @ two.means).abs().max() < 1e-14
    assert float(two.means[1, 0] - two.means[0, 0]) == pytest.approx(2 * 1.5)


def test_modes():
    for target in (EightGaussians(), TwoModes(6), ManyModes(dim=5, n_modes=7, box=30.0)):
        k = len(target.mode_weights)
        assert torch.equal(target.mode(target.means), torch.arange(k))
        assert float(target.mode_weights.sum()) == pytest.approx(1)
    x = torch.tensor([[0.0, 0.4], [1.4, 0.0], [0.0, -1.6], [9.0, 0.0]])
    assert Rings().mode(x).tolist() == [0, 0, 1, 3]
    first, second = ManyModes(seed=1), ManyModes(seed=2)
    assert torch.equal(first.means, ManyModes(seed=1).means)
    assert not torch.equal(first.means, second.means)
    assert first.means.abs().max() <= 10
    assert first.mode_weights.std() > 0


def test_rings_stay_finite_at_the_origin():
    x = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    value, score = log_prob_and_score(Rings(), x)
    assert torch.isfinite(value).all()
    assert torch.isfinite(score).all()
    (gradient,) = torch.autograd.grad(Rings().log_prob(x).sum(), x)
    assert torch.isfinite(gradient).all()


def test_mixture_is_the_same_on_both_backends():
    target, x = diagonal_mixture(), noise(40, 2)
    with backend("torch"):
        reference = log_prob_and_score(target, x)
    for got, expected in zip(log_prob_and_score(target, x), reference, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_mixture_native_parameters():
    """The flat parameters alone give the density back; a full covariance has no native form."""
    target = diagonal_mixture()
    assert isinstance(target, HasNative)
    k, d = target.native.layout
    flat = torch.tensor(target.native.params, dtype=torch.float64)
    assert target.native.name == "mixture"
    assert len(flat) == k * (1 + 2 * d)
    log_scale, means, precision = flat[:k], flat[k:][: k * d], flat[k + k * d :]
    x = noise(9, d)
    square = (x[:, None] - means.reshape(k, d)) ** 2 * precision.reshape(k, d)
    expected = torch.logsumexp(log_scale - 0.5 * square.sum(-1), 1)
    torch.testing.assert_close(target.log_prob(x), expected)
    assert isinstance(TwoModes(3), HasNative)
    assert not isinstance(full_mixture(), HasNative)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), torch.ones(3)), "means"),
        ((torch.zeros(2, 3), torch.ones(3)), "covariances"),
        ((torch.zeros(2, 3), torch.tensor([1.0, -1.0])), "positive"),
        ((torch.zeros(1, 2), torch.tensor([[[1.0, 2.0], [2.0, 1.0]]])), "positive definite"),
        ((torch.zeros(1, 2), torch.tensor([[[1.0, 0.5], [0.0, 1.0]]])), "symmetric"),
        ((torch.zeros(2, 3), torch.ones(2), torch.tensor([1.0, 0.0])), "weights"),
        ((torch.zeros(2, 3), torch.ones(2), torch.ones(3)), "weights"),
        ((torch.full((2, 3), math.nan), torch.ones(2)), "finite"),
    ],
)
def test_mixture_refuses_bad_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)


# ---------------------------------------------------------------------------- phi^4
def plain_chain(x: list[float], a: float, beta: float, h: float) -> float:
    """The formula of the SLIPS and LRDS papers, term by term."""
    d = len(x)
    padded = [0.0, *x, 0.0]
    gradient = sum((padded[i] - padded[i - 1]) ** 2 for i in range(1, d + 2))
    potential = sum((1 - v * v) ** 2 / 4 + h * v for v in x)
    return -beta * (a * d / 2 * gradient + potential / (a * d))


def plain_lattice(x: Tensor, kappa: float, lam: float) -> float:
    """S = sum_x [-2 kappa phi_x sum_mu phi_{x+mu} + phi_x^2 + lam (phi_x^2 - 1)^2], periodic."""
    rows, columns = x.shape
    action = 0.0
    for i in range(rows):
        for j in range(columns):
            phi = float(x[i, j])
            forward = float(x[(i + 1) % rows, j]) + float(x[i, (j + 1) % columns])
            action += -2 * kappa * phi * forward + phi**2 + lam * (phi**2 - 1) ** 2
    return -action


def test_phi4_chain_equals_a_plain_loop():
    target = Phi4Chain(n_sites=7, a=0.2, beta=11.0, h=0.03)
    x = noise(5, 7)
    expected = torch.tensor([plain_chain(row.tolist(), 0.2, 11.0, 0.03) for row in x])
    torch.testing.assert_close(target.log_prob(x), expected.double(), rtol=1e-5, atol=0)
    flat = Phi4Chain(n_sites=7, a=0.2, beta=11.0, h=0.0)
    torch.testing.assert_close(flat.log_prob(x), flat.log_prob(-x))
    assert (target.log_prob(x) - target.log_prob(-x)).abs().min() > 1e-3


@pytest.mark.parametrize("shape", [(4, 6), (3, 5), (4, 5)])
def test_phi4_lattice_equals_a_plain_loop_and_its_symmetries(shape):
    target = Phi4(shape=shape, kappa=0.27, lam=0.3)
    x = noise(4, *shape)
    expected = torch.tensor([plain_lattice(row, 0.27, 0.3) for row in x], dtype=torch.float64)
    value = target.log_prob(x)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(target.log_prob(-x), value)
    torch.testing.assert_close(target.log_prob(x.roll((1, 2), (1, 2))), value)
    if shape[0] == shape[1]:
        torch.testing.assert_close(target.log_prob(x.mT), value)


@pytest.mark.parametrize(
    "target",
    [Phi4Chain(n_sites=6, a=0.1, beta=20.0, h=0.02), Phi4Chain(n_sites=5, a=0.1, beta=20.0, h=0.0)]
    + [Phi4(shape=shape, kappa=0.2, lam=0.1) for shape in ((4, 4), (3, 5), (4, 3))],
)
def test_phi4_local_moves(target):
    assert isinstance(target, HasLocal)
    size = math.prod(target.event_shape)
    sites = torch.cat(target.colours)
    assert torch.equal(sites.sort().values, torch.arange(size))
    x = noise(3, *target.event_shape)
    flat = x.reshape(3, size)

    hessian = torch.autograd.functional.hessian(
        lambda y: target.log_prob(y.reshape(1, *target.event_shape)).sum(), flat[0]
    )
    for colour in target.colours:
        block = hessian[colour][:, colour]
        assert (block - torch.diag(block.diagonal())).abs().max() < 1e-12  # no interaction
        new = flat[:, colour] + noise(3, len(colour), seed=8)
        difference = target.local_difference(x, colour, new)
        assert difference.shape == (3, len(colour))
        for j, site in enumerate(colour.tolist()):
            moved = flat.clone()
            moved[:, site] = new[:, j]
            change = target.log_prob(moved.reshape(x.shape)) - target.log_prob(x)
            torch.testing.assert_close(difference[:, j], change, rtol=1e-9, atol=1e-9)


def test_phi4_observables():
    target = Phi4(shape=(3, 4), kappa=0.2, lam=0.1)
    x = noise(6, 3, 4)
    values = target.observables(x)
    assert all(value.shape == (6,) for value in values.values())
    torch.testing.assert_close(values["energy"] * 12, -target.log_prob(x))
    chain = Phi4Chain(n_sites=8, a=0.1, beta=20.0, h=0.0)
    y = noise(6, 8)
    torch.testing.assert_close(chain.observables(y)["energy"] * 8, -chain.log_prob(y))
    label = chain.mode(torch.stack([torch.ones(8), -torch.ones(8)]).double())
    assert label[0] != label[1]
    assert chain.mode_weights.tolist() == pytest.approx([0.5, 0.5])


# ---------------------------------------------------------------------------- wrappers
def test_tempered_and_tilted():
    base, x = full_mixture(), noise(5, 3)
    value, score = base.log_prob(x), base.score(x)
    beta = torch.tensor([0.0, 0.2, 0.5, 1.0, 2.0])
    for factor in (0.3, beta):
        tempered = Tempered(base, factor)
        got, gradient = log_prob_and_score(tempered, x)
        rows = torch.as_tensor(factor).double().expand(5)
        torch.testing.assert_close(got, rows * value)
        torch.testing.assert_close(tempered.log_prob(x), rows * value)
        torch.testing.assert_close(gradient, rows[:, None] * score)
    for centre in (noise(3, seed=1), noise(5, 3, seed=2)):
        for precision in (0.7, beta):
            tilted = Tilted(base, centre, precision)
            p = torch.as_tensor(precision).double().expand(5)
            got, gradient = log_prob_and_score(tilted, x)
            torch.testing.assert_close(got, value - p / 2 * (x - centre).pow(2).sum(1))
            torch.testing.assert_close(tilted.log_prob(x), got)
            torch.testing.assert_close(gradient, score - p[:, None] * (x - centre))
    assert not isinstance(Tilted(TwoModes(3), noise(3), 1.0), HasNative)
    on_lattice = Tilted(Springs(), noise(4, 3, 2), beta[:4])
    assert on_lattice.log_prob(noise(4, 3, 2)).shape == (4,)
    assert on_lattice.log_prob(noise(4, 3, 2, seed=1)).unique().numel() == 4


@pytest.mark.parametrize(
    "base", [Phi4((4, 6), 0.25, 0.5), Phi4Chain(n_sites=9)], ids=["2d", "chain"]
)
def test_single_site_moves_pass_through_the_wrappers(base):
    """As differences of log_prob, and with one beta, centre and precision for each chain."""
    x, event = noise(4, *base.event_shape), base.event_shape
    per_chain = torch.tensor([0.0, 0.3, 1.0, 2.0], dtype=torch.float64)
    for target in (
        Tempered(base, 0.4),
        Tempered(base, per_chain),
        Tilted(base, noise(*event, seed=1), 0.7),
        Tilted(base, noise(4, *event, seed=2), per_chain),
        Tilted(Tempered(base, per_chain), noise(4, *event, seed=2), per_chain),
    ):
        assert isinstance(target, HasLocal)
        site = torch.tensor([3])
        new = noise(4, 1, seed=3)
        moved = x.reshape(4, -1).clone()
        moved[:, 3] = new[:, 0]
        expected = target.log_prob(moved.reshape(x.shape)) - target.log_prob(x)
        got = target.local_difference(x, site, new)[:, 0]
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    check_target(Tempered(base, 0.4), points=x)  # a batch of its own size: no values per chain
    check_target(Tilted(base, noise(*event, seed=1), 0.7), points=x)
    for wrapper in (Tempered(TwoModes(3), 0.5), Tilted(TwoModes(3), noise(3), 1.0)):
        assert not isinstance(wrapper, HasLocal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sweeps_of_wrapped_fields_are_the_same_on_both_backends(dtype):
    """One beta, centre and precision for each chain; equal to the last bit."""
    base = Phi4((4, 5), 0.25, 0.5)
    x = noise(7, 4, 5).to(dtype)
    beta, precision = torch.rand((2, 7), generator=torch.Generator().manual_seed(5)) + 0.2
    centre = noise(7, 4, 5, seed=1)
    kernel = Metropolis(0.9, moves="site")
    both = Tilted(Tempered(base, 0.3), centre[0], 1.7)
    for target in (Tempered(base, beta), Tilted(base, centre, precision), both):
        state = kernel.init(target, x, seed=3, first_chain=11)
        native, info = kernel.step(target, state, 6, thin=2)
        with backend("torch"):
            reference, expected = kernel.step(target, state, 6, thin=2)
        assert torch.equal(native.x, reference.x)
        assert torch.equal(native.log_prob, reference.log_prob)
        assert torch.equal(info.x, expected.x)
        assert torch.equal(info.log_prob, expected.log_prob)
        assert torch.equal(info.accept, expected.accept)
        assert 0.1 < info.accept.mean() < 0.95
        assert not torch.equal(native.x, x)


def test_wrappers_refuse_what_does_not_fit():
    base = TwoModes(3)
    for make in (
        lambda: Tempered(base, -1.0),
        lambda: Tempered(base, torch.tensor([1.0, math.nan])),
        lambda: Tempered(base, torch.ones(2, 1)),
        lambda: Tilted(base, torch.zeros(4), 1.0),
        lambda: Tilted(base, torch.zeros(3), -1.0),
        lambda: Tempered(base, torch.ones(4)).log_prob(noise(5, 3)),
        lambda: Tilted(base, torch.zeros(4, 3), 1.0).log_prob(noise(5, 3)),
        lambda: Tilted(base, torch.zeros(3), torch.ones(4)).log_prob(noise(5, 3)),
    ):
        with pytest.raises(ValueError, match=r"beta|precision|centre"):
            make()


def test_counted_counts_rows_exactly():
    counted = Counted(full_mixture())
    x = noise(7, 3)
    counted.log_prob(x)
    assert (counted.evaluations, counted.gradients) == (7, 0)
    counted.score(x[:2])
    assert (counted.evaluations, counted.gradients) == (7, 2)
    log_prob_and_score(counted, x)
    assert (counted.evaluations, counted.gradients) == (14, 9)
    y = x.clone().requires_grad_(True)
    counted.log_prob(y).sum().backward()
    assert (counted.evaluations, counted.gradients) == (21, 16)
    by_autograd = Counted(Rosenbrock())
    log_prob_and_score(Tempered(by_autograd, 0.5), noise(4, 2))
    assert (by_autograd.evaluations, by_autograd.gradients) == (4, 4)
    lattice = Counted(Phi4(shape=(4, 4), kappa=0.2, lam=0.1))
    colour = lattice.colours[0]
    lattice.local_difference(noise(3, 4, 4), colour, noise(3, len(colour)))
    assert lattice.counts.local_moves == 3 * len(colour)
    assert lattice.evaluations == 0


@pytest.mark.parametrize("name", TARGETS)
def test_counted_has_the_capabilities_of_its_base(name):
    base = TARGETS[name]
    counted = Counted(base)
    for capability in CAPABILITIES:
        assert isinstance(counted, capability) == isinstance(base, capability), capability
    assert not isinstance(counted, HasNative)
    x = noise(3, *base.event_shape)
    torch.testing.assert_close(counted.log_prob(x), base.log_prob(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", TARGETS)
def test_capabilities_are_visible_statically(name):
    """From Python 3.12 on, isinstance with a protocol reads members without running properties."""
    members = {HasNative: "native", HasScore: "score", HasModes: "mode", HasLocal: "colours"}
    members |= {HasSites: "site_colours", HasBonds: "couplings", HasQuartic: "quartic"}
    for target in (TARGETS[name], Counted(TARGETS[name])):
        for capability, member in members.items():
            absent = object()
            static = inspect.getattr_static(target, member, absent) is not absent
            assert static == isinstance(target, capability), (type(target), capability)


def test_boltzmann_has_one_temperature():
    x = noise(4, 3, 2)
    cold, warm = Springs(beta=3.0), Springs(beta=1.0)
    assert isinstance(cold, HasValueAndScore)
    torch.testing.assert_close(cold.log_prob(x), 3 * warm.log_prob(x))
    torch.testing.assert_close(cold.score(x), 3 * warm.score(x))
    torch.testing.assert_close(warm.log_prob(x), -warm.energy(x))


# ---------------------------------------------------------------------------- value and score
def test_log_prob_and_score_refuses_what_it_cannot_differentiate():
    x = noise(4, 2)
    cases = {
        "not differentiable": lambda x: x.detach().sum(1),
        "shape": lambda x: -x.pow(2),
        "the dtype of x": lambda x: (x > 0).sum(1),
        "Tensor": lambda x: 1.0,
    }
    for message, fn in cases.items():
        with pytest.raises((ValueError, TypeError), match=message):
            log_prob_and_score(FunctionTarget(fn, (2,)), x)
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="not differentiable"):
        log_prob_and_score(FunctionTarget(lambda x: weight.sum().expand(len(x)), (2,)), x)


def test_autograd_leaves_nothing_behind_and_works_in_every_grad_mode():
    weight = torch.full((2,), 2.0, dtype=torch.float64, requires_grad=True)
    target = FunctionTarget(lambda x: -(weight * x * x).sum(1), (2,))
    x = noise(3, 2).requires_grad_(True)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            value, score = log_prob_and_score(target, x * 1)
        torch.testing.assert_close(score, -4 * x.detach())
        assert not value.requires_grad
        assert not score.requires_grad
    assert weight.grad is None
    assert x.grad is None
    value, score = log_prob_and_score(target, x[:0])
    assert value.shape == (0,)
    assert score.shape == (0, 2)


def test_as_target():
    target = TwoModes(3)
    assert as_target(target) is target
    assert as_target(target, (3,)) is target
    wrapped = as_target(lambda x: -x.pow(2).sum(1), [4])
    assert wrapped.event_shape == (4,)
    for bad, shape, error in (
        (lambda x: x, None, ValueError),
        (lambda x: x, 3, ValueError),
        (lambda x: x, (0,), ValueError),
        (target, (4,), ValueError),
        (Rosenbrock, None, TypeError),
        (3.0, (1,), TypeError),
    ):
        with pytest.raises(error, match=r"event_shape|class|float"):
            as_target(bad, shape)


# ---------------------------------------------------------------------------- broken targets
@dataclass(frozen=True)
class Normal:
    """A correct standard normal whose parts the cases below replace."""

    event_shape: tuple[int, ...] = (3,)

    def log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * x.pow(2).sum(1)


class WrongSign(Normal):
    def score(self, x: Tensor) -> Tensor:
        return x


class OneWrongEntry(Normal):
    def score(self, x: Tensor) -> Tensor:
        return torch.cat([-x[:, :2], -1.001 * x[:, 2:]], dim=1)


class ScoreOfTheMean(Normal):
    def score(self, x: Tensor) -> Tensor:
        return -x + 0.1 * x.mean(0)


class WrongWeights(Normal):
    mode_weights = torch.tensor([0.5, 0.6])

    def mode(self, x: Tensor) -> Tensor:
        return (x[:, 0] > 0).long()


class WrongLabel(WrongWeights):
    mode_weights = torch.tensor([0.5, 0.5])

    def mode(self, x: Tensor) -> Tensor:
        return 2 * (x[:, 0] > 0).long()


class FloatLabel(WrongLabel):
    def mode(self, x: Tensor) -> Tensor:
        return (x[:, 0] > 0).double()


class FlatSampler(Normal):
    def sample(self, n: int, *, seed: int) -> Tensor:
        return noise(n, seed=seed)


class DeafSampler(Normal):
    def sample(self, n: int, *, seed: int) -> Tensor:
        return noise(n, 3)


class WrongObservable(Normal):
    def observables(self, x: Tensor) -> dict[str, Tensor]:
        return {"field": x}


class WrongLogZ(Normal):
    log_z = math.inf


class Coupled(Normal):
    """Sites 0 and 1 interact and share a colour."""

    colours = (torch.arange(3),)

    def log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * x.pow(2).sum(1) + x[:, 0] * x[:, 1]

    def local_difference(self, x: Tensor, sites: Tensor, new: Tensor) -> Tensor:
        field = torch.stack([x[:, 1], x[:, 0], 0 * x[:, 0]], dim=1)[:, sites]
        return -0.5 * (new**2 - x[:, sites] ** 2) + field * (new - x[:, sites])


def in_place(x: Tensor) -> Tensor:
    x -= 1
    return -x.pow(2).sum(1)


BROKEN = {
    "mean of the batch": (lambda x: -(x - x.mean(0)).pow(2).sum(1), "rows.*row 0"),
    "weak leak": (lambda x: -x.pow(2).sum(1) + 1e-3 * x.sum(), "rows"),
    "order of the batch": (
        lambda x: -x.pow(2).sum(1) * (1 + torch.arange(len(x), dtype=x.dtype)),
        "rows.*row 1",
    ),
    "shape (n, 1)": (lambda x: -x.pow(2).sum(1, keepdim=True), r"shape.*\(16,\)"),
    "scalar": (lambda x: -x.pow(2).sum(), "shape"),
    "in place": (in_place, "in place"),
    "nan": (lambda x: torch.log(x[:, 0]), "finite.*nan"),
    "inf": (lambda x: math.inf + x[:, 0], "finite.*inf"),
    "nowhere": (lambda x: x[:, 0] - math.inf, "points="),
    "float64": (lambda x: -x.double().pow(2).sum(1), "float32.*float64"),
    "float32": (lambda x: -x.float().pow(2).sum(1), "float64.*float32"),
    "overflow in float32": (lambda x: torch.log((x + 200).exp().sum(1)), "finite|precision"),
    "empty batch": (lambda x: -x.pow(2).sum(1) - 0 * x.max(), "empty batch"),
    "strides": (lambda x: -x.view(-1).view(x.shape).pow(2).sum(1), "strided"),
    "half detached": (lambda x: -(x * x.detach()).sum(1), "score.*row"),
    "wrong sign": (WrongSign(), "score.*coordinate 0"),
    "one wrong entry": (OneWrongEntry(), "score.*coordinate 2"),
    "score of the mean": (ScoreOfTheMean(), "score|rows"),
    "weights": (WrongWeights(), "mode_weights"),
    "label": (WrongLabel(), "labels"),
    "float label": (FloatLabel(), "int64"),
    "sampler shape": (FlatSampler(), "sampler"),
    "sampler seed": (DeafSampler(), "same draws"),
    "observable": (WrongObservable(), "observables"),
    "log_z": (WrongLogZ(), "log_z"),
    "colours": (Coupled(), "interact"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_targets_are_caught(name):
    target, message = BROKEN[name]
    shape = None if isinstance(target, Normal) else (3,)
    with pytest.raises(ValueError, match=f"check_target: .*({message})"):
        check_target(target, event_shape=shape)


LINEAR = torch.nn.Linear(4, 1)


@pytest.mark.parametrize(
    ("fn", "shape", "options"),
    [
        (lambda x: -x.abs().sum(1), (5,), {}),
        (lambda x: -0.5 * x * x, (), {}),
        (lambda x: 1e8 - 0.5e-6 * x.pow(2).sum(1), (2,), {}),
        (lambda x: -5e11 * x.pow(2).sum(1), (2,), {}),
        (lambda x: torch.where((x > 0).all(1), -x.sum(1), -math.inf), (3,), {}),
        (lambda x: (x[:, 0].floor() + x[:, 1].floor()) % 2, (2,), {}),
        (lambda x: -x.pow(2).sum((1, 2, 3)), (3, 4, 5), {}),
        (lambda x: -x.float().pow(2).sum(1).to(x), (30,), {}),
        (lambda x: LINEAR(x)[:, 0], (4,), {"dtype": torch.float32}),
        (
            lambda x: torch.where((x - 50).abs().amax(1) < 1, 0 * x[:, 0], -math.inf),
            (2,),
            {"points": torch.full((3, 2), 50.1)},
        ),
    ],
    ids=["kink", "scalar", "flat", "stiff", "half line", "steps", "3d", "quantised", "net", "box"],
)
def test_unusual_but_correct_targets_pass(fn, shape, options):
    check_target(fn, event_shape=shape, **options)


# ---------------------------------------------------------------------------- fingerprint
def make_lambda(scale: float):
    return lambda x: -scale * x.pow(2).sum(1)


GLOBAL_SCALE = 1.0


def reads_a_global(x: Tensor) -> Tensor:
    return -GLOBAL_SCALE * x.pow(2).sum(1)


def test_fingerprints_tell_targets_apart(monkeypatch):
    assert fingerprint(TwoModes(3)) == fingerprint(TwoModes(3))
    used = TwoModes(3)
    used.log_prob(noise(2, 3).float())
    assert fingerprint(used) == fingerprint(TwoModes(3)) == fingerprint(Counted(used))
    distinct = [
        TwoModes(3),
        TwoModes(3, variance=0.05000001),
        Funnel(),
        Funnel(variance=3.0000001),
        Rings(),
        Springs(),
        Springs(beta=2.5),
        Tempered(Rings(), 0.5),
        Tempered(Rings(), torch.tensor([0.5, 1.0])),
        Tilted(Rings(), torch.zeros(7, 2), 1.0),
        Phi4(shape=(4, 4), kappa=0.2, lam=0.1),
        FunctionTarget(make_lambda(1.0), (2,)),
        FunctionTarget(make_lambda(2.0), (2,)),
        FunctionTarget(lambda x: -x.cos().sum(1), (2,)),
        FunctionTarget(lambda x: -x.sin().sum(1), (2,)),
        FunctionTarget(lambda x: LINEAR(x)[:, 0], (4,)),
        FunctionTarget(reads_a_global, (2,)),
    ]
    prints = [fingerprint(target) for target in distinct]
    assert len(set(prints)) == len(prints)
    assert prints[11] == fingerprint(FunctionTarget(make_lambda(1.0), (2,)))
    monkeypatch.setattr(sys.modules[__name__], "GLOBAL_SCALE", 1.5)
    assert fingerprint(FunctionTarget(reads_a_global, (2,))) != prints[-1]


PROGRAM = """
import torch
from pysamp.fingerprint import fingerprint
from pysamp.target import FunctionTarget, Tempered
from pysamp.targets.mixture import EightGaussians
from pysamp.targets.toy import Funnel
def build(scale, names):
    return lambda x: -(scale * x).pow(2).sum(1) if "a" in {"a", "b", "c"} else names
function = FunctionTarget(build(torch.tensor([1.0, 2.0]), {"p", "q", "r"}), (2,))
targets = [Tempered(EightGaussians(), 0.5), Funnel(), function]
prints = [fingerprint(target) for target in targets]
"""


def test_fingerprints_are_the_same_in_another_process():
    """Another hash seed orders sets of strings differently."""
    here: dict = {}
    exec(PROGRAM, here)
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", PROGRAM + "print(*prints)"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == here["prints"]
    assert len(set(here["prints"])) == 3


def test_an_exact_answer_out_of_reach_does_not_stop_a_run():
    """The transfer matrix underflows at this β; sampling the density needs none of it."""
    target = Phi4Chain(100, 0.1, 1e6, 0.0025)
    with pytest.raises(ValueError, match="underflows"):
        _ = target.log_z
    counted = Counted(target)
    x = torch.zeros(3, 100)
    assert torch.equal(counted.log_prob(x), target.log_prob(x))
    assert counted.evaluations == 3
    assert not hasattr(counted, "log_z")
