"""Kernel estimates of total variation, Gaussian KL, free energies, acceptance: closed forms and scipy."""

import math

import pytest
import torch
from scipy import stats

from pysamp import metrics
from pysamp.metrics.densities import scott


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------------------- bandwidth
def test_scott_is_that_of_the_package_of_the_paper():
    """0 … 8: the value in the documentation of KDEpy's scotts_rule."""
    x = torch.arange(9, dtype=torch.float64)[None]
    weight = torch.full((9,), 1 / 9, dtype=torch.float64)
    assert float(scott(x, weight)) == pytest.approx(1.76474568962182, rel=1e-12)


def test_scott_of_weights_is_that_of_repeated_points():
    x = normal(1, 400, seed=1)
    counts = torch.arange(400) % 4 + 1
    repeated = x.repeat_interleave(counts, dim=1)
    weight = counts / counts.sum().double()
    equal = torch.full((repeated.shape[1],), 1 / repeated.shape[1], dtype=torch.float64)
    kish = float(1 / weight.square().sum())
    # The quantiles differ by at most a spacing of the points, the number of points is another one.
    ratio = float(scott(x, weight) / scott(repeated, equal)) * (kish / repeated.shape[1]) ** 0.2
    assert ratio == pytest.approx(1.0, abs=0.01)


# ---------------------------------------------------------------------------- total variation
def test_sliced_total_variation_is_that_of_scipys_kernel_estimates():
    x, y = normal(700, 1, seed=1) * 1.3 + 0.4, normal(900, 1, seed=2)
    low, high = (float(f(torch.cat([x, y]) - y.mean())) for f in (torch.min, torch.max))
    grid = torch.linspace(low, high, 2048, dtype=torch.float64).numpy()
    densities = []
    for sample in (x, y):
        width = float(scott(sample.T, torch.full((len(sample),), 1 / len(sample)).double()))
        centred = (sample - y.mean())[:, 0]
        densities.append(stats.gaussian_kde(centred.numpy(), width / float(centred.std()))(grid))
    expected = 0.5 * (high - low) * abs(densities[0] - densities[1]).mean()
    found = metrics.sliced_total_variation(x, y, 4)  # directions on a line: ± 1
    assert float(found) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("shift, scale", [(1.0, 1.0), (0.0, 2.0)])
def test_total_variation_of_gaussians(shift, scale):
    x, y = normal(200_000, 1, seed=3) * scale + shift, normal(200_000, 1, seed=4)
    h = float(scott(y.T, torch.full((len(y),), 1 / len(y)).double()))
    own, other = math.sqrt(scale**2 * (1 + h**2)), math.sqrt(1 + h**2)  # blurred by the kernel
    t = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    p, q = (torch.exp(-0.5 * ((t - m) / s) ** 2) / s for m, s in ((shift, own), (0.0, other)))
    expected = 0.5 * float((p - q).abs().sum()) * 1e-3 / math.sqrt(2 * math.pi)
    # |p − q| dt of noise: about (draws in a bandwidth)^(-1/2), here 0.002.
    assert float(metrics.sliced_total_variation(x, y, 2)) == pytest.approx(expected, abs=0.006)


def test_noise_floor_is_that_of_the_specification():
    """0.028 for 1100 draws in 16 dimensions against 11 000."""
    x, y = normal(8, 1100, 16, seed=5), normal(11_000, 16, seed=6)
    found = metrics.sliced_total_variation(x, y, 32)
    assert found.shape == (8,)
    assert float(found.mean()) == pytest.approx(0.028, abs=0.0025)
    alone = metrics.sliced_total_variation(x[3], y, 32)
    assert alone.ndim == 0 and float(alone) == pytest.approx(float(found[3]), abs=2e-4)


def test_a_chain_that_stands_still_is_at_distance_one():
    y = normal(2000, 3, seed=7)
    stuck = torch.cat([normal(40, 3, seed=8), normal(1, 3, seed=9).expand(160, 3)])
    still = normal(1, 3, seed=1).expand(200, 3)
    moving = normal(200, 3, seed=2)
    found = metrics.sliced_total_variation(torch.stack([stuck, still, moving]), y, 16)
    assert found[:2].tolist() == [1.0, 1.0] and 0 < float(found[2]) < 0.2


def test_weights_make_another_density():
    y = normal(20_000, 2, seed=3)
    wide = 1.5 * normal(20_000, 2, seed=4)
    log_weight = -0.5 * wide.square().sum(1) * (1 - 1 / 1.5**2)
    plain = float(metrics.sliced_total_variation(wide, y, 16))
    weighted = float(metrics.sliced_total_variation(wide, y, 16, log_weight_x=log_weight))
    assert plain > 0.15 > 0.03 > weighted
    equal = torch.full((20_000,), 3.0)
    same = float(metrics.sliced_total_variation(wide, y, 16, log_weight_x=equal))
    assert same == pytest.approx(plain, abs=1e-12)


def test_bad_samples_are_named():
    y = normal(10, 3)
    with pytest.raises(ValueError, match=r"x must be \(n, \*event\) or"):
        metrics.sliced_total_variation(normal(2, 2, 10, 3), y)
    with pytest.raises(ValueError, match="exact must hold draws that differ"):
        metrics.sliced_total_variation(y, torch.ones(10, 3))
    with pytest.raises(ValueError, match="n_grid"):
        metrics.sliced_total_variation(y, y, n_grid=8)
    with pytest.raises(ValueError, match="one size"):
        metrics.sliced_total_variation(normal(10, 2), y)
    with pytest.raises(ValueError, match="log_weight_x"):
        metrics.sliced_total_variation(y, y, log_weight_x=torch.zeros(3))
    with pytest.raises(ValueError, match="finite"):
        metrics.sliced_total_variation(y * math.nan, y)


# ---------------------------------------------------------------------------- Gaussian KL
def test_gaussian_kl_is_that_of_torch():
    x, root = normal(50, 4, seed=1), normal(4, 4, seed=2)
    mean, covariance = normal(4, seed=3), root @ root.T
    exact = torch.distributions.MultivariateNormal(mean, covariance)
    fitted = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov())
    forwards, backwards = metrics.gaussian_kl(x.reshape(50, 2, 2), mean.reshape(2, 2), covariance)
    kl = torch.distributions.kl_divergence
    torch.testing.assert_close(forwards, kl(exact, fitted), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(backwards, kl(fitted, exact), rtol=1e-10, atol=1e-10)
    weight = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own = x.T.cov(aweights=weight)
    fitted = torch.distributions.MultivariateNormal((weight / weight.sum()) @ x, own)
    forwards, _ = metrics.gaussian_kl(x, mean, covariance, log_weight=weight.log())
    torch.testing.assert_close(forwards, kl(exact, fitted), rtol=1e-10, atol=1e-10)


def test_gaussian_kl_of_too_few_points_is_infinite():
    few = normal(3, 4, seed=1)
    found = metrics.gaussian_kl(few[[0, 1, 2, 2, 1, 0]], torch.zeros(4), torch.eye(4))
    assert [float(v) for v in found] == [math.inf, math.inf]
    with pytest.raises(ValueError, match="mean and covariance"):
        metrics.gaussian_kl(few, torch.zeros(3), torch.eye(4))
    with pytest.raises(ValueError, match="positive definite"):
        metrics.gaussian_kl(few, torch.zeros(4), -torch.eye(4))


# ---------------------------------------------------------------------------- free energies
def bernoulli(n, p, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, generator=generator, dtype=torch.float64) < p


def test_free_energy_of_independent_draws():
    n, p = 40_000, 0.2
    value, error = metrics.free_energy_difference(bernoulli(n, p, 1)[:, None])
    assert float(error) == pytest.approx(1 / math.sqrt(n * p * (1 - p)), rel=0.05)
    assert abs(float(value) - math.log(0.8 / 0.2)) < 5 * float(error)


def test_free_energy_by_reweighting():
    """Weights e^g inside move the difference by −g; their inequality costs draws."""
    n, p, g = 40_000, 0.5, 1.3
    inside = bernoulli(n, p, 2)
    log_weight = torch.where(inside, g, 0.0).double() + 5.0
    value, error = metrics.free_energy_difference(inside[:, None], log_weight[:, None])
    assert abs(float(value) + g) < 5 * float(error)
    spread = float(torch.stack([
        metrics.free_energy_difference(bernoulli(n, p, s)[:, None],
                                       torch.where(bernoulli(n, p, s), g, 0.0).double()[:, None])[0]
        for s in range(3, 40)
    ]).std())  # fmt: skip
    # At least the spread of repeated runs, known to 12 %, and not out of proportion to it.
    assert 0.65 * spread < float(error) < 2 * spread


def test_free_energy_of_chains_counts_their_autocorrelation():
    """A two-state chain that leaves with probability 0.02: τ_int = 24.5, variance 49 times as large."""
    n_chains, n = 20, 4000
    flips = bernoulli(n_chains * n, 0.02, 3).reshape(n_chains, n).cumsum(1) % 2 == 1
    value, error = metrics.free_energy_difference(flips ^ bernoulli(n_chains, 0.5, 4)[:, None])
    expected = math.sqrt(49 / (n_chains * n * 0.25))
    assert 0.7 * expected < float(error) < 2 * expected
    assert abs(float(value)) < 5 * float(error)


def test_a_state_that_was_never_seen_has_no_free_energy():
    inside = torch.zeros(4, 10, dtype=torch.bool)
    value, error = metrics.free_energy_difference(inside)
    assert float(value) == math.inf and float(error) == math.inf
    value, error = metrics.free_energy_difference(~inside)
    assert float(value) == -math.inf and float(error) == math.inf
    # Chains that never change sides count as one draw each.
    inside[:2] = True
    _, error = metrics.free_energy_difference(inside)
    assert float(error) >= 1 / math.sqrt(4 * 0.25)


def test_bad_states_are_named():
    with pytest.raises(ValueError, match="inside must be"):
        metrics.free_energy_difference(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="inside must be"):
        metrics.free_energy_difference(torch.zeros(3, dtype=torch.bool))
    inside = torch.ones(3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="log_weight must be"):
        metrics.free_energy_difference(inside, torch.zeros(3))
    with pytest.raises(ValueError, match="finite entry"):
        metrics.free_energy_difference(inside, torch.full((3, 4), -math.inf))
    with pytest.raises(ValueError, match="NaN"):
        metrics.free_energy_difference(inside, torch.full((3, 4), math.nan))


# ---------------------------------------------------------------------------- acceptance
@pytest.mark.parametrize(
    "d, s, accept", [(1, 2.0, 0.59033), (1, 0.5, 0.59033), (10, 1.2, 0.57491), (32, 1.2, 0.30747)]
)
def test_acceptance_of_gaussian_proposals(d, s, accept):
    """2 I(d/2, d/2; 1/(1 + s²)): check 2 of the specification for pairs of draws."""
    n = 100_000
    x, y = normal(n, d, seed=1), s * normal(n, d, seed=2)
    curvature = -0.5 * (1 - 1 / s**2)
    value, error = metrics.independent_accept(*(curvature * t.square().sum(1) for t in (x, y)))
    wide = max(s, 1 / s)
    assert accept == pytest.approx(2 * stats.beta.cdf(1 / (1 + wide**2), d / 2, d / 2), abs=1e-5)
    assert abs(float(value) - accept) < 5 * float(error) < 0.01
    with pytest.raises(ValueError, match="must both be"):
        metrics.independent_accept(torch.zeros(3), torch.zeros(4))
