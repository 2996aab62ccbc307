"""Errors of Markov chains: times of AR(1) against the exact ones, blocks against closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pysamp import errors, metrics
from pysamp.errors import bootstrap, integrated_time, jackknife


def ar1(rho: float, n_chains: int, n_draws: int, seed: int = 0) -> Tensor:
    """x_t = ρ x_{t−1} + √(1 − ρ²) ε from its stationary law: ρ(t) = ρ^t, variance 1."""
    noise = torch.randn(
        n_chains, n_draws, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    x = noise.clone()
    for t in range(1, n_draws):
        x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho * rho) * noise[:, t]
    return x


def exact(rho: float) -> float:
    return 0.5 * (1 + rho) / (1 - rho)


# ------------------------------------------------------------------------- autocorrelation time
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, -0.6])
def test_time_of_a_chain_whose_time_is_known_and_its_error(rho):
    """200 estimates: unbiased to 5 standard errors and the cut of e^-5; their errors are their spread."""
    times = [integrated_time(x[None]) for x in ar1(rho, 200, 4000)]
    tau = torch.tensor([time.tau for time in times])
    claimed = torch.tensor([time.error for time in times])
    cut = 0.01 * exact(rho)  # e^-5 and what is left of the bias
    assert abs(float(tau.mean()) - exact(rho)) < 5 * float(tau.std()) / math.sqrt(200) + cut
    # the spread of 200 is known to 5 %, and the formula is exact for large windows only
    assert float(claimed.mean()) == pytest.approx(float(tau.std()), rel=0.3)
    assert all(time.warning is None for time in times)


def test_chains_are_averaged():
    rho = 0.8
    together = integrated_time(ar1(rho, 50, 2000))
    tau, error = together  # unpacks
    assert abs(tau - exact(rho)) < 5 * error + 0.01 * exact(rho)
    assert error < 0.05 * tau
    assert together.window >= 5 * tau - 1
    assert together.warning is None


def test_ess_of_time_is_that_of_arviz():
    arviz = pytest.importorskip("arviz")
    x = ar1(0.85, 8, 4000)
    assert x.numel() / (2 * integrated_time(x).tau) == pytest.approx(
        float(arviz.ess(x.numpy(), method="mean")), rel=0.1
    )
    assert x.numel() / (2 * integrated_time(x).tau) == pytest.approx(
        float(metrics.ess(x, "mean")), rel=0.1
    )


def test_sum_is_the_brute_force_one():
    x = ar1(0.5, 3, 40)
    centred = x - x.mean()
    covariance = [
        float((centred[:, t:] * centred[:, : 40 - t]).sum()) / (3 * (40 - t)) for t in range(40)
    ]
    time = integrated_time(x)
    tau = 0.5
    for window in range(1, 21):
        tau += covariance[window] / covariance[0]
        if window >= 5 * tau:
            break
    assert time.window == window < 20
    assert time.tau == pytest.approx(tau * (1 + (2 * window + 1) / 120), rel=1e-10)
    expected = math.sqrt(4 / 120 * (window + 0.5 - time.tau)) * time.tau
    assert time.error == pytest.approx(expected, rel=1e-10)


def test_short_and_stuck_and_broken_series_say_so():
    short = integrated_time(ar1(0.95, 1, 500))
    assert "500 draws per chain are fewer than 50 τ_int" in (short.warning or "")
    assert short.tau > 10
    steps = torch.tensor([-1.0, -1, 1, 1])[:, None] + 0.01 * ar1(0.0, 4, 200)
    stuck = integrated_time(steps)
    assert "stay correlated" in (stuck.warning or "")
    assert stuck.tau > 50
    assert math.isnan(stuck.error)
    constant = integrated_time(torch.full((3, 50), 0.1))
    assert math.isnan(constant.tau) and constant.warning == "the series is constant"
    broken = ar1(0.5, 2, 100)
    broken[1, 7] = math.nan
    assert math.isnan(integrated_time(broken).tau)
    assert "NaN" in (integrated_time(broken).warning or "")
    assert "fewer than 4" in (integrated_time(ar1(0.5, 9, 3)).warning or "")


def test_slow_mode_that_the_window_leaves_out_is_betrayed_by_the_chains():
    fast, slow = ar1(0.3, 50, 2000), ar1(0.999, 50, 2000, seed=1)
    assert integrated_time(fast).warning is None
    both = integrated_time(fast + 0.25 * slow)
    assert both.tau < 2000 / 50  # long enough by the look of one chain
    assert "chains differ" in (both.warning or "")


def test_alternating_series_has_a_time_below_one_half_and_above_zero():
    tau, error = integrated_time(ar1(-0.9, 20, 4000))
    assert abs(tau - exact(-0.9)) < 5 * error
    never = integrated_time(torch.tensor([1.0, -1.0]).repeat(2, 50))
    assert 0 < never.tau < 0.02
    assert "stay correlated" in (never.warning or "")


@pytest.mark.parametrize(
    ("x", "c", "match"),
    [
        (torch.zeros(5), 5.0, r"x must be \(chain, draw\)"),
        (torch.zeros(5, 0), 5.0, "not empty"),
        (torch.zeros(2, 5), 0.0, "c must be positive, got 0.0"),
    ],
)
def test_bad_series_are_named(x, c, match):
    with pytest.raises(ValueError, match=match):
        integrated_time(x, c)


def test_error_of_a_mean_is_the_spread_of_means():
    rho = 0.9
    x = ar1(rho, 300, 1500)
    found = [errors.mean(chain[None]) for chain in x]
    means = torch.stack([value for value, _ in found])
    claimed = torch.stack([error for _, error in found])
    spread = math.sqrt(2 * exact(rho) / 1500)
    assert float(means.std()) == pytest.approx(spread, rel=5 / math.sqrt(2 * 300))
    assert float(claimed.mean()) == pytest.approx(spread, rel=0.08)
    value, error = errors.mean(torch.full((2, 9), 3.0))
    assert (float(value), float(error)) == (3.0, 0.0)
    steps = torch.tensor([-1.0, -1, 1, 1])[:, None] + 0.01 * ar1(0.0, 4, 200)
    assert float(errors.mean(steps).error) > 0.5  # four numbers of spread 1


# ------------------------------------------------------------------------- blocks
def pair(seed: int, n_chains: int = 40, n_draws: int = 500) -> tuple[Tensor, Tensor]:
    a, b = ar1(0.7, n_chains, n_draws, seed), ar1(0.7, n_chains, n_draws, seed + 1)
    return 3 + a, 2 + 0.5 * a + 0.3 * b


def ratio(a: Tensor, b: Tensor) -> Tensor:
    return a / b


@pytest.mark.parametrize("n_chains", [1, 40])
def test_jackknife_of_a_ratio_is_the_delta_method(n_chains):
    """Var(ā/b̄) = (2 τ/N) (Σ_aa/b² − 2 a Σ_ab/b³ + a² Σ_bb/b⁴), all moments known."""
    a, b = pair(1, n_chains, 20_000 // n_chains)
    value, error = jackknife(ratio, a, b)
    slope_a, slope_b = 1 / 2, -3 / 4
    # b = 2 + a/2 + noise: along a and along the noise, both AR(1) with the same time
    variance = (slope_a + 0.5 * slope_b) ** 2 + (0.3 * slope_b) ** 2
    expected = math.sqrt(2 * exact(0.7) * variance / 20_000)
    assert float(value) == pytest.approx(float(a.mean() / b.mean()), rel=1e-12)
    assert abs(float(value) - 1.5) < 5 * expected
    n_blocks = len(errors.block_edges(n_chains, 20_000 // n_chains, None, exact(0.7))) - 1
    assert n_blocks >= 40
    # the error from B blocks is known to 1/√(2B); blocks of 10 τ lose 5 %
    assert float(error) == pytest.approx(expected, rel=5 / math.sqrt(2 * n_blocks) + 0.05)
    drawn = bootstrap(ratio, a, b, seed=3)
    assert float(drawn.value) == float(value)
    assert float(drawn.error) == pytest.approx(float(error), rel=5 / math.sqrt(2 * 500))


def test_error_of_a_mean_from_equal_blocks_is_their_spread():
    x = ar1(0.5, 6, 100)
    means = x.reshape(30, 20).mean(1)
    for unbiased in (False, True):
        value, error = jackknife(lambda m: m, x, n_blocks=30, unbiased=unbiased)
        assert float(value) == pytest.approx(float(x.mean()), rel=1e-9)
        assert float(error) == pytest.approx(float(means.std()) / math.sqrt(30), rel=1e-9)


def test_bias_of_a_square_is_removed_exactly():
    """x̄² exceeds μ² by var/N; for blocks the corrected value is x̄² − s²/B."""
    x = ar1(0.0, 4, 25)
    plain = jackknife(lambda m: m * m, x, n_blocks=20)
    better = jackknife(lambda m: m * m, x, n_blocks=20, unbiased=True)
    spread = float(x.reshape(20, 5).mean(1).var()) / 20
    assert float(plain.value) - float(better.value) == pytest.approx(spread, rel=1e-9)
    # also with blocks of unequal size, where the weights of Busing et al. matter
    odd = jackknife(lambda m: m, x[:, :7], n_blocks=5, unbiased=True)  # 28 = 5, 6, 5, 6, 6
    assert float(odd.value) == pytest.approx(float(x[:, :7].mean()), rel=1e-12)


def test_mappings_events_and_dicts_pass_through():
    x = torch.stack([ar1(0.3, 5, 200, seed) for seed in range(3)], -1)  # (5, 200, 3)

    def f(means: dict[str, Tensor], other: Tensor) -> dict[str, Tensor]:
        assert means["x"].dtype == torch.float64
        return {"sum": means["x"] + means["y"], "product": means["y"] * other}

    series = {"x": x.float(), "y": x[..., 0] + 2}
    for how in (jackknife, bootstrap):
        value, error = how(f, series, x[..., 1])
        assert list(value) == list(error) == ["sum", "product"]
        assert value["sum"].shape == error["sum"].shape == (3,)
        assert float(value["sum"][1]) == pytest.approx(
            float(x[..., 1].mean() + x[..., 0].mean() + 2)
        )
        assert 0.01 < float(error["sum"].max()) < 0.3
        assert bool((error["sum"] > 0).all())


def test_bootstrap_is_a_function_of_the_seed():
    a, b = pair(5, 4, 100)
    first, again = (bootstrap(ratio, a, b, seed=7, n_resamples=50) for _ in range(2))
    other = bootstrap(ratio, a, b, seed=8, n_resamples=50)
    assert torch.equal(first.error, again.error)
    assert not torch.equal(first.error, other.error)


def test_blocks_are_chains_or_long_pieces_of_them():
    def lengths(*args):
        edges = errors.block_edges(*args)
        assert edges[0] == 0 and edges[-1] == args[0] * args[1]
        return [b - a for a, b in pairwise(edges)]

    assert lengths(100, 7) == [7] * 100
    assert lengths(1000, 7) == [28] * 250  # at most 256 groups of whole chains
    short = lengths(4, 1000, None, 0.5)
    assert len(short) == 256 and set(short) == {15, 16}
    long = lengths(4, 1000, None, 10.0)
    assert len(long) == 40 and min(long) >= 100
    assert lengths(1, 1000, None, 20.0) == [50] * 20  # too few of 10 τ: shorter, 2 τ at least
    assert lengths(1, 100, None, 20.0) == [50, 50]
    assert lengths(2, 10, None, 50.0) == [10, 10]
    assert lengths(3, 5, 4) == [3, 4, 4, 4]
    stuck = torch.tensor([-1.0, -1, 1, 1])[:, None] + 0.01 * ar1(0.0, 4, 200)
    assert float(jackknife(lambda m: m, stuck).error) > 0.4
    for how in (jackknife, bootstrap):  # worth one block: the error is not known
        one = how(lambda m: m, ar1(0.999, 1, 50), tau=20.0)
        assert math.isnan(float(one.error)) and math.isfinite(float(one.value))


def test_bad_blocks_are_named():
    x = ar1(0.0, 2, 10)
    with pytest.raises(ValueError, match=r"n_blocks must lie in 2…20, the number of draws, got 21"):
        jackknife(ratio, x, x, n_blocks=21)
    with pytest.raises(TypeError, match=r"n_blocks must be an int, got 2\.0"):
        jackknife(ratio, x, x, n_blocks=2.0)
    with pytest.raises(ValueError, match=r"series must be .* of the same chains"):
        jackknife(ratio, x, x[:, :5])
    with pytest.raises(ValueError, match="series must not be empty"):
        jackknife(lambda: 0.0)
    with pytest.raises(ValueError, match="n_resamples must be an int of at least 2, got 1"):
        bootstrap(ratio, x, x, n_resamples=1)
    with pytest.raises(ValueError, match="tau must be positive, got -1"):
        jackknife(ratio, x, x, tau=-1.0)
