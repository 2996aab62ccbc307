"""Exact draws of the φ⁴ chain: their distribution functions, moments of the transfer matrix, weights."""

import math
from itertools import pairwise

import pytest
import torch
from scipy import integrate, stats

from pysamp import exact, metrics, rng
from pysamp.check import check_target
from pysamp.exact import phi4_chain, phi4_chain_draws
from pysamp.target import HasSampler
from pysamp.targets import Phi4Chain

A, BETA = 0.1, 20.0


def z_score(values, expected):
    """Distance of the mean of independent values in standard errors."""
    values = values.double()
    error = float(values.std()) / math.sqrt(len(values))
    assert error > 0
    return (float(values.mean()) - expected) / error


def energy(phi, a=A, beta=BETA, h=0.0):
    """−log p written out as the sum it is: (n, d) -> (n,)"""
    d = phi.shape[1]
    ends = torch.nn.functional.pad(phi, (1, 1))
    bonds = (ends[:, 1:] - ends[:, :-1]).square().sum(1)
    return beta * (a * d / 2 * bonds + ((1 - phi**2) ** 2 / 4 + h * phi).sum(1) / (a * d))


def below(log_density, x, lo=-4.0, hi=4.0):
    """∫_{lo}^{x} / ∫_{lo}^{hi} by adaptive quadrature."""

    def f(t):
        return math.exp(log_density(t))

    cuts = sorted({lo, -1.0, 0.0, 1.0, hi, x})
    parts = [integrate.quad(f, p, q, epsabs=0, epsrel=1e-11)[0] for p, q in pairwise(cuts)]
    return sum(part for part, q in zip(parts, cuts[1:], strict=True) if q <= x) / sum(parts)


@pytest.mark.parametrize("beta, h", [(20.0, 0.0), (20.0, 0.01), (1.5, 0.4), (0.02, 0.0)])
def test_a_site_is_the_inverse_of_its_distribution_function(beta, h):
    a = 0.3
    u = rng.uniform((12, 1), seed=4, stream="target", step=5, dtype=torch.float64)[:, 0]
    draws = phi4_chain_draws(1, a, beta, h, 12, seed=4, dtype=torch.float64)[:, 0]

    def log_density(x):
        return -beta * (a * x * x + ((1 - x * x) ** 2 / 4 + h * x) / a)

    reach = 4.0 if beta > 1 else 8.0
    for value, wanted in zip(draws.tolist(), u.tolist(), strict=True):
        assert below(log_density, value, -reach, reach) == pytest.approx(wanted, abs=1e-7)


def test_the_first_of_two_sites_is_drawn_given_the_second():
    a, beta, h = 0.4, 3.0, 0.2
    c = 2 * a
    u = rng.uniform((12, 2), seed=9, stream="target", step=5, dtype=torch.float64)
    draws = phi4_chain_draws(2, a, beta, h, 12, seed=9, dtype=torch.float64)

    def site(x):
        return -beta * (c * x * x / 2 + ((1 - x * x) ** 2 / 4 + h * x) / c)

    for (first, second), wanted in zip(draws.tolist(), u[:, 0].tolist(), strict=True):

        def given(x, y=second):
            return site(x) - beta * c / 2 * (x - y) ** 2

        assert below(given, first) == pytest.approx(wanted, abs=1e-7)


def test_two_and_three_sites_have_the_moments_of_quadrature():
    a, beta, h = 0.4, 3.0, 0.2
    n = 40_000
    two = phi4_chain_draws(2, a, beta, h, n, seed=1, dtype=torch.float64)
    known = exact.moments_2d(lambda x: -energy(x, a, beta, h), (-4.0, -4.0), (4.0, 4.0), 400)
    for i in range(2):
        assert abs(z_score(two[:, i], float(known.mean[i]))) < 5
        for j in range(2):
            product = (two[:, i] - known.mean[i]) * (two[:, j] - known.mean[j])
            assert abs(z_score(product, float(known.cov[i, j]))) < 5
    both = known.weight(lambda x: (x > 0).all(1))
    assert abs(z_score((two > 0).all(1), both)) < 5

    axis = torch.linspace(-3.5, 3.5, 101, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis, axis)
    weight = torch.softmax(-energy(grid, a, beta, h), 0)
    three = phi4_chain_draws(3, a, beta, h, n, seed=2, dtype=torch.float64)
    for f in (
        lambda x: x[:, 0] * x[:, 2],
        lambda x: x[:, 1] ** 2,
        lambda x: x[:, 0] * x[:, 1] ** 3,
    ):
        assert abs(z_score(f(three), float(weight @ f(grid)))) < 5


@pytest.mark.parametrize("n_sites, h, n", [(16, 0.0, 60_000), (64, 0.0025, 4000), (100, 0.0, 2000)])
def test_fields_have_the_moments_of_the_transfer_matrix(n_sites, h, n):
    known = phi4_chain(n_sites, A, BETA, h)
    phi = Phi4Chain(n_sites, h=h).sample(n, seed=3, dtype=torch.float64)
    mid = phi[:, n_sites // 2]
    assert abs(z_score(mid**2, known.mid_square)) < 5
    assert abs(z_score(mid, known.mid_mean)) < 5
    assert abs(z_score(energy(phi, h=h), known.energy)) < 5
    assert abs(z_score(mid > 0, known.weight_plus)) < 5
    if n_sites == 16:  # check 10 of the specification, three standard errors
        assert float((mid**2).mean()) == pytest.approx(0.9588, abs=0.003)
        assert float(energy(phi).mean()) / BETA == pytest.approx(1.1886, abs=0.006)
    cumulative = known.mid_density.cumsum(0) - known.mid_density / 2
    cumulative = cumulative * (known.mid_grid[1] - known.mid_grid[0])
    place = torch.searchsorted(known.mid_grid, mid.clamp(-2.5, 2.5)).clamp(1, len(cumulative) - 1)
    left, right = known.mid_grid[place - 1], known.mid_grid[place]
    cdf = torch.lerp(cumulative[place - 1], cumulative[place], (mid - left) / (right - left))
    uniform = cdf.clamp(0, 1).sort().values
    ks = float(stats.kstest(uniform.numpy(), "uniform").statistic)
    assert ks * math.sqrt(n) < 2.74  # Kolmogorov's law at 5 standard errors, p = 6e-7
    # The chain is its own mirror image.
    assert abs(z_score(phi[:, 2] - phi[:, -3], 0.0)) < 5
    assert abs(z_score(phi[:, 1] ** 2 - phi[:, -2] ** 2, 0.0)) < 5


def test_reweighting_gives_the_ratio_of_normalising_constants_and_the_free_energy():
    n, n_sites, h = 20_000, 16, 0.005
    phi = Phi4Chain(n_sites).sample(n, seed=8, dtype=torch.float64)
    log_weight = -BETA * h * phi.sum(1) / (A * n_sites)
    value, error = metrics.log_z(log_weight)
    exact_ratio = phi4_chain(n_sites, A, BETA, h).log_z - phi4_chain(n_sites, A, BETA, 0.0).log_z
    assert abs(float(value) - exact_ratio) < 5 * float(error) < 0.1
    plus = (phi[:, n_sites // 2] > 0)[:, None]
    value, error = metrics.free_energy_difference(plus, log_weight[:, None])
    known = phi4_chain(n_sites, A, BETA, h).log_ratio
    assert known == pytest.approx(1.6615, abs=1e-4)
    assert abs(float(value) - known) < 5 * float(error) < 0.15


def test_rows_are_functions_of_the_seed_and_the_chain():
    target = Phi4Chain(7, h=0.02)
    whole = target.sample(3000, seed=5, dtype=torch.float64)
    parts = [
        target.sample(m, seed=5, first_chain=f, dtype=torch.float64) for f, m in ((0, 1), (1, 2999))
    ]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=0, atol=1e-12)
    assert torch.equal(target.sample(3000, seed=5), whole.float())
    assert not torch.equal(whole, target.sample(3000, seed=6, dtype=torch.float64))
    assert target.sample(0, seed=5).shape == (0, 7)
    assert isinstance(target, HasSampler)
    check_target(target)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"n_sites": 0}, "n_sites"), ({"a": -0.1}, "a must"), ({"beta": 0.0}, "beta must"),
        ({"h": math.nan}, "h must"), ({"n": -1}, "n must"), ({"n": 2.0}, "n must"),
        ({"beta": 1e8}, "needs .* cells"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(change, match):
    arguments = {"n_sites": 4, "a": 0.1, "beta": 20.0, "h": 0.0, "n": 3} | change
    with pytest.raises((ValueError, TypeError), match=match):
        phi4_chain_draws(**arguments, seed=0)


def test_the_coupled_precision_is_the_chain_without_its_single_sites():
    target = Phi4Chain(9, a=0.13, beta=3.0)
    c = 9 * 0.13
    x = target.sample(5, seed=1, dtype=torch.float64) + 0.3
    precision = target.coupled_precision
    rest = target.log_prob(x) + 0.5 * ((x @ precision) * x).sum(1)
    own = -3.0 / c * ((1 - x**2) ** 2 / 4 - x**2 / 2).sum(1)
    torch.testing.assert_close(rest, own, rtol=0, atol=1e-10)
    # Check 10 of the specification: energy and gradient to 1e-10.
    x.requires_grad_()
    (slope,) = torch.autograd.grad(-energy(x, 0.13, 3.0).sum(), x)
    torch.testing.assert_close(target.score(x.detach()), slope, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        target.log_prob(x.detach()), -energy(x.detach(), 0.13, 3.0), rtol=0, atol=1e-10
    )
