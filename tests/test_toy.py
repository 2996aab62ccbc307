"""Rings, the funnel, two modes of unlike covariances, the checkerboard: exact answers, native chains."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import pysamp
from pysamp import rng
from pysamp.mcmc import HMC, MALA, ULA, Metropolis
from pysamp.target import (
    HasMoments,
    HasNative,
    HasSampler,
    Target,
    Tempered,
    Tilted,
    log_prob_and_score,
)
from pysamp.targets import (
    BracketTwoModes,
    Checkerboard,
    EightGaussians,
    Funnel,
    GaussianMixture,
    LogisticRegression,
    Phi4Chain,
    Rings,
    TwoModes,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def within_five_sigma(values: Tensor, expected: float | Tensor) -> None:
    """Mean of i.i.d. rows within 5 standard errors of the expected value, entry by entry."""
    error = values.std(0) / math.sqrt(len(values))
    assert bool((error > 0).all())
    assert bool(((values.mean(0) - expected).abs() < 5 * error).all())


def full_mixture() -> GaussianMixture:
    a = noise(3, 2, 2, seed=1)
    return GaussianMixture(3 * noise(3, 2, seed=2), a @ a.mT + torch.eye(2).double(), torch.ones(3))


# ---------------------------------------------------------------------------- moments
@pytest.mark.parametrize(
    "target",
    [EightGaussians(), TwoModes(3), full_mixture(), BracketTwoModes(5, a=0.7), Rings(), Rings(2, 0.2),
     Funnel(), Funnel(3, 1.0), Checkerboard(), Checkerboard(6, 1.0, 0.2)],
    ids=lambda t: f"{type(t).__name__}{t.event_shape}",
)  # fmt: skip
def test_moments_are_those_of_the_draws(target):
    assert isinstance(target, HasMoments)
    assert isinstance(target, HasSampler)
    d = math.prod(target.event_shape)
    assert target.mean.shape == (d,) and target.mean.dtype == torch.float64
    assert target.covariance.shape == (d, d) and target.covariance.dtype == torch.float64
    x = target.sample(20_000, seed=2, dtype=torch.float64)
    offset = x - target.mean
    within_five_sigma(x, target.mean)
    within_five_sigma(offset[:, :, None] * offset[:, None, :], target.covariance)


# ---------------------------------------------------------------------------- two modes
def plain_bracket(x: Tensor, a: float, low: float, high: float) -> Tensor:
    """(n, 2): log densities of the components, without weights."""
    v = torch.linspace(low, high, x.shape[1], dtype=torch.float64)
    one = torch.distributions.Normal(-a, v.sqrt()).log_prob(x).sum(1)
    other = torch.distributions.Normal(a, v.flip(0).sqrt()).log_prob(x).sum(1)
    return torch.stack([one, other], 1)


@pytest.mark.parametrize("dim", [1, 4, 64])
def test_bracket_density_and_modes(dim):
    """E1 and the partition by the densities of the components, not by the nearest mean."""
    a = 0.4
    target = BracketTwoModes(dim, a)
    x = torch.cat([target.sample(200, seed=1, dtype=torch.float64), noise(200, dim)])
    parts = plain_bracket(x, a, 0.01, 0.2)
    expected = torch.logsumexp(parts + torch.tensor([2 / 3, 1 / 3], dtype=torch.float64).log(), 1)
    torch.testing.assert_close(target.log_prob(x), expected, rtol=1e-12, atol=1e-10)
    assert torch.equal(target.mode(x), (parts[:, 0] <= parts[:, 1]).long())
    nearest = (x.sum(1) > 0).long()
    assert dim == 1 or not torch.equal(target.mode(x), nearest)
    check_score(target, x[:40])


@pytest.mark.parametrize("dim", [4, 64])
def test_bracket_draws(dim):
    """E1: means and variances within the modes, to 5 standard errors."""
    target = BracketTwoModes(dim, 2.0)  # far apart: the label is the component
    x = target.sample(20_000, seed=4, dtype=torch.float64)
    label = target.mode(x)
    v = torch.linspace(0.01, 0.2, dim, dtype=torch.float64)
    within_five_sigma((label == 0).double(), 2 / 3)
    for k, (mean, variance) in enumerate([(-2.0, v), (2.0, v.flip(0))]):
        within_five_sigma(x[label == k], mean)
        within_five_sigma((x[label == k] - mean) ** 2, variance)


def test_bracket_weights_are_exact():
    # one dimension, equal variances: the regions are half lines
    for a in (0.05, 0.1, 0.3):
        missed = stats.norm.sf(a / 0.1)
        expected = [2 / 3 * (1 - missed) + missed / 3, 1 / 3 * (1 - missed) + 2 / 3 * missed]
        assert BracketTwoModes(1, a).mode_weights.tolist() == pytest.approx(expected, abs=1e-12)
        # all variances equal: a half space
        missed = stats.norm.sf(a * math.sqrt(5 / 0.3))
        weights = BracketTwoModes(5, a, low=0.3, high=0.3).mode_weights
        assert float(weights[0]) == pytest.approx((2 - missed) / 3, abs=1e-12)


@pytest.mark.parametrize(
    ("dim", "a", "points"), [(2, 0.3, 40_001), (2, 0.8, 40_001), (3, 0.2, 601)]
)
def test_bracket_weights_by_quadrature(dim, a, points):
    """The mass of a region: the trapezoidal rule over all coordinates but the first.

    For fixed other coordinates the boundary is a quadratic in x_0, so its mass is a sum of normal
    distribution functions.
    """
    v = torch.linspace(0.01, 0.2, dim, dtype=torch.float64)
    u = v.flip(0)
    nodes, weights = [], []
    for i in range(1, dim):
        t = torch.linspace(-9, 9, points, dtype=torch.float64)
        nodes.append(-a + v[i].sqrt() * t)
        weights.append(torch.exp(-0.5 * t * t) / math.sqrt(2 * math.pi) * (t[1] - t[0]))
    rest = torch.cartesian_prod(*nodes).reshape(-1, dim - 1)
    mass = torch.cartesian_prod(*weights).reshape(-1, dim - 1).prod(1)
    # 2 L(x_0) = (x_0 − a)²/u₀ − (x_0 + a)²/v₀ + rest of the sum > 0 in the first region
    constant = ((rest - a) ** 2 / u[1:] - (rest + a) ** 2 / v[1:]).sum(1)
    square, linear = 1 / u[0] - 1 / v[0], -2 * a * (1 / u[0] + 1 / v[0])
    constant = constant + a * a * (1 / u[0] - 1 / v[0])
    root = (linear**2 - 4 * square * constant).clamp_min(0).sqrt()
    assert float(square) < 0  # between the roots L > 0
    low, high = (-linear + root) / (2 * square), (-linear - root) / (2 * square)
    cdf = torch.special.ndtr((torch.stack([low, high]) + a) / v[0].sqrt())
    q = float((mass * (cdf[1] - cdf[0])).sum())
    weight = float(BracketTwoModes(dim, a).mode_weights[0])
    assert weight == pytest.approx((1 + q) / 3, abs=1e-6 if dim == 2 else 1e-5)
    assert 1e-7 < 1 - q < 0.2


def test_bracket_weights_are_those_of_draws():
    """E2: a = 0.5 in four dimensions. The specification gives 0.66647 from 4e6 draws, ± 0.0009."""
    target = BracketTwoModes(4, 0.5)
    weight = float(target.mode_weights[0])
    assert weight == pytest.approx(0.66647, abs=1e-4)
    n, inside = 1_000_000, 0
    for block in range(2):
        x = target.sample(n // 2, seed=8, first_chain=block * n // 2)
        inside += int((target.mode(x) == 0).sum())
    assert inside / n == pytest.approx(weight, abs=5 * math.sqrt(2 / 9 / n))
    assert float(BracketTwoModes(64, 10.0).mode_weights[0]) == pytest.approx(2 / 3, abs=1e-12)


def test_weight_errors_of_exact_draws():
    """E3: 2048 draws, 64 times: error 0.83 ± 0.22 and spread 1.04 ± 0.28 points."""
    target = BracketTwoModes(4, 2.875)
    x = target.sample(64 * 2048, seed=11)
    weights = 100 * (target.mode(x) == 0).double().reshape(64, 2048).mean(1)
    error = (weights - 100 * target.mode_weights[0]).abs().mean()
    assert float(error) == pytest.approx(0.83, abs=0.22)
    assert float(weights.std()) == pytest.approx(1.04, abs=0.28)


def test_bracket_in_float32():
    """256 dimensions, a = 10: exponents of 10⁶ between the components, digits kept in the modes."""
    target = BracketTwoModes(256, 10.0)
    x = target.sample(100, seed=1)
    low, score = log_prob_and_score(target, x)
    high, exact = log_prob_and_score(target, x.double())
    assert (low.double() - high).abs().max() < 2e-3  # log p is about 100, its terms reach 700
    torch.testing.assert_close(score.double(), exact, rtol=1e-4, atol=1e-3)
    assert (high[:, None] - plain_bracket(x.double(), 10.0, 0.01, 0.2)).abs().max() > 1e5
    assert torch.equal(target.mode(x), target.mode(x.double()))
    assert target.mode(x).unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0,), "dim must be an int of at least 1"), ((4, 0.0), "a must be positive and finite, got 0.0"),
     ((4, 1.0, -0.1), "low must be"), ((4, 1.0, 0.1, math.inf), "high must be")],
)  # fmt: skip
def test_bracket_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        BracketTwoModes(*arguments)


# ---------------------------------------------------------------------------- checkerboard
def soft_square(t: float, low: float, high: float, width: float) -> float:
    """Density of a uniform point of [low, high] plus noise."""
    z = (t - low) / (width * math.sqrt(2)), (t - high) / (width * math.sqrt(2))
    return (math.erf(z[0]) - math.erf(z[1])) / (2 * (high - low))


def plain_checkerboard(x: float, y: float, n: int, side: float, width: float) -> float:
    edge = [side * (i - n / 2) for i in range(n + 1)]
    black = [(i, j) for i in range(n) for j in range(n) if (i + j) % 2 == 0]
    terms = (
        soft_square(x, edge[i], edge[i + 1], width) * soft_square(y, edge[j], edge[j + 1], width)
        for i, j in black
    )
    return sum(terms) / len(black)


@pytest.mark.parametrize("target", [Checkerboard(), Checkerboard(2, 1.0, 0.25)])
def test_checkerboard_density(target):
    x = noise(30, 2) * target.n * target.side / 3
    expected = [plain_checkerboard(*row, target.n, target.side, target.width) for row in x.tolist()]
    torch.testing.assert_close(
        target.log_prob(x).exp(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )
    check_score(target, x)
    check_score(target, target.sample(30, seed=1, dtype=torch.float64))


def test_checkerboard_far_outside():
    """Where the distribution functions underflow: the tail of the noise at the nearest corner."""
    target = Checkerboard()
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        x = torch.tensor([[30.0, 30.0], [-9.0, 1.0]], dtype=dtype)
        value, score = log_prob_and_score(target, x)
        z = 26.0 / 0.1
        tail = stats.norm.logsf(z) - math.log(2)
        assert float(value[0]) == pytest.approx(2 * tail - math.log(8), rel=tolerance)
        mills = math.exp(stats.norm.logpdf(z) - stats.norm.logsf(z)) / 0.1
        assert score[0].tolist() == pytest.approx([-mills, -mills], rel=tolerance)
        assert torch.isfinite(score).all()


def test_checkerboard_weights():
    """The share of every domino, by quadrature of its rectangle, and by draws."""
    target = Checkerboard(4, 1.0, 0.25)
    node, step = np.polynomial.legendre.leggauss(40)

    def mass(left: float, right: float, low: float, high: float) -> float:
        xs, ys = (
            begin + (node + 1) * (end - begin) / 2 for begin, end in ((left, right), (low, high))
        )
        p = [[plain_checkerboard(x, y, 4, 1.0, 0.25) for x in xs] for y in ys]
        return float(step @ np.array(p) @ step) * (right - left) * (high - low) / 4

    rows = [(-5, -1), (-1, 0), (0, 1), (1, 5)]  # up to 12 widths outside
    expected = [mass(*domino, *row) for row in rows for domino in ((-5, 0), (0, 5))]
    assert target.mode_weights.tolist() == pytest.approx(expected, abs=1e-9)
    wide = Checkerboard(6, 2.0, 0.5)
    x = wide.sample(20_000, seed=3)
    share = torch.nn.functional.one_hot(wide.mode(x), 18).double()
    within_five_sigma(share, wide.mode_weights)
    assert wide.mode_weights.std() > 1e-3  # a corner domino is not an inner one
    centres = torch.tensor([[-3.0, -3.0], [1.0, -3.0], [-1.0, -1.0], [3.0, -1.0], [3.0, 3.0]])
    assert Checkerboard().mode(centres).tolist() == [0, 1, 2, 3, 7]
    assert Checkerboard().log_prob(centres).exp().tolist() == pytest.approx([1 / 32] * 5)
    assert Checkerboard().mode(torch.tensor([[1e9, 1e9], [-1e9, -1e9]])).tolist() == [7, 0]


def test_checkerboard_draws_do_not_depend_on_the_split():
    target = Checkerboard()
    whole = target.sample(40, seed=5)
    parts = [target.sample(25, seed=5), target.sample(15, seed=5, first_chain=25)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, target.sample(40, seed=6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3,), "n must be an even int"),
        ((4, 2.0, 0.0), "width must be"),
        ((4, 1.0, 0.3), "side must be"),
    ],
)
def test_checkerboard_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Checkerboard(*arguments)


# ---------------------------------------------------------------------------- scores
def check_score(target: Target, x: Tensor) -> None:
    """The score against central differences, to 1e-5 of its size."""
    score = log_prob_and_score(target, x)[1]
    assert torch.isfinite(score).all()
    h = 1e-5
    for i in range(x.shape[1]):
        step = torch.zeros_like(x)
        step[:, i] = h
        slope = (target.log_prob(x + step) - target.log_prob(x - step)) / (2 * h)
        scale = score.abs().amax(1).clamp_min(1.0)  # rounding of a difference of large values
        assert ((slope - score[:, i]).abs() <= 1e-5 * scale).all()


LOGISTIC = LogisticRegression(noise(40, 5, seed=1), (noise(40, seed=2) > 0).double())
SLIPS = {  # the targets of the paper
    "eight": EightGaussians(),
    "rings": Rings(),
    "funnel": Funnel(),
    "two modes": TwoModes(8),
    "logistic": LOGISTIC,
    "chain": Phi4Chain(n_sites=30, h=0.0025),
}


@pytest.mark.parametrize("name", SLIPS)
def test_scores_of_posteriors(name):
    """C3: log p(x) − ½ λ |x − c|², one centre and precision a row."""
    base = SLIPS[name]
    d = base.event_shape[0]
    x = 1.2 * noise(6, d, seed=3)
    check_score(base, x)
    precision = torch.tensor([0.0, 0.1, 0.5, 1.0, 3.0, 20.0], dtype=torch.float64)
    tilted = Tilted(base, noise(6, d, seed=4), precision)
    check_score(tilted, x)
    assert not torch.allclose(log_prob_and_score(tilted, x)[1], log_prob_and_score(base, x)[1])


# ---------------------------------------------------------------------------- native chains
NATIVE = {
    "rings": Rings(),
    "funnel": Funnel(5),
    "logistic": LOGISTIC,
    "bracket": BracketTwoModes(3),
}
KERNELS = {
    "MALA": MALA(0.01), "ULA": ULA(0.002), "HMC": HMC(0.05, 3), "Metropolis": Metropolis(0.2)
}  # fmt: skip


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_native_chains_follow_the_definition(name, kernel, native):
    """A few steps in float64, before rounding can turn a decision; plain, tempered and tilted."""
    base = NATIVE[name]
    assert isinstance(base, HasNative)
    x = rng.normal((19, *base.event_shape), seed=3, dtype=torch.float64)
    beta = torch.linspace(0.2, 1.0, 19, dtype=torch.float64)
    for target in (base, Tilted(Tempered(base, beta), 0.5 * x, 3 * beta)):
        state = kernel.init(target, x, seed=5, first_chain=2)
        found, info = kernel.step(target, state, 5)
        with pysamp.backend("torch"):
            expected, expected_info = kernel.step(target, state, 5)
        assert not torch.equal(found.x, state.x)
        torch.testing.assert_close(found.x, expected.x, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.log_prob, expected.log_prob, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(info.accept, expected_info.accept, rtol=1e-9, atol=1e-9)
        assert 0.05 < float(info.accept.mean()) <= 1


@pytest.mark.parametrize(
    "target", [Rings(), Funnel(4), LOGISTIC], ids=["rings", "funnel", "logistic"]
)
def test_native_densities_refuse_what_is_not_a_number(target, dtype, native):
    """NaN in any coordinate must reach log_prob, or a chain would accept it."""
    x = torch.zeros(*target.event_shape, dtype=dtype) + 0.5
    rows = torch.stack([x, *(x.index_fill(0, torch.tensor(i), math.nan) for i in range(len(x)))])
    value = target.log_prob(rows)
    assert torch.isfinite(value[0])
    assert torch.isnan(value[1:]).all()
