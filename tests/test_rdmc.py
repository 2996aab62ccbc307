"""Reverse-diffusion Monte Carlo: its law on a normal target in closed form, its scores by quadrature."""

import math

import pytest
import torch

import pysamp
from pysamp.samplers.rdmc import RDMC, PosteriorMean
from pysamp.target import Counted
from pysamp.targets import GaussianMixture, TwoModes

F64 = torch.float64
SE = 5.0


def normal(mean, variance):
    return GaussianMixture(torch.tensor([mean], dtype=F64), torch.tensor([variance], dtype=F64))


class Interval:
    """The uniform density on low < x < high."""

    event_shape = (1,)

    def __init__(self, low, high):
        self.low, self.high = low, high

    def log_prob(self, x):
        inside = (x[:, 0] > self.low) & (x[:, 0] < self.high)
        return torch.where(inside, 0.0, -math.inf)

    def score(self, x):
        return torch.zeros_like(x)


def law_on_normal(mu, v, T, n_times, n_init, factor=2.0):
    """Mean and variance of the output for N(mu, v) with the exact score, step by step."""
    mean, var = 0.0, 1 - math.exp(-2 * T)

    def posterior(s):  # E[x_0 | x] = a + b x
        precision = 1 / v + 1 / math.expm1(2 * s)
        return mu / v / precision, math.exp(s) / math.expm1(2 * s) / precision

    for _ in range(n_init):
        a, b = posterior(T)
        shrink = 0.5 + 0.5 * math.exp(-T) * b
        mean = shrink * mean + 0.5 * math.exp(-T) * a
        var = shrink**2 * var + 1 - math.exp(-2 * T)
    delta = T / (n_times - 1)
    for k in range(n_times - 1):
        s = T * (1 - k / (n_times - 1))
        a, b = posterior(s)
        c = factor * math.expm1(delta) / (1 - math.exp(-2 * s))
        slope = math.exp(delta) + c * (math.exp(-s) * b - 1)
        mean = slope * mean + c * math.exp(-s) * a
        var = slope**2 * var + math.expm1(2 * delta)
    return mean, var


def test_the_recursion_of_the_oracle_converges_to_the_target():
    mean, var = law_on_normal(1.5, 0.6, 6.0, 4096, 0)
    assert mean == pytest.approx(1.5, abs=0.01) and var == pytest.approx(0.6, rel=0.01)


@pytest.mark.parametrize("horizon, n_times, n_init", [(0.223, 16, 6), (1.0, 32, 2)])
def test_law_on_a_normal_target(horizon, n_times, n_init):
    n, mu, v = 3072, 1.5, 0.6
    sampler = RDMC(horizon=horizon, n_times=n_times, n_init=n_init, n_points=32)
    found = sampler.sample(normal([mu, -mu], v), n, seed=1)
    x = found.x[:, 0].double() * torch.tensor([1.0, -1.0])
    mean, var = law_on_normal(mu, v, horizon, n_times, n_init)
    error = SE * var * math.sqrt(2 / (n - 1))
    assert ((x.mean(0) - mean).abs() < SE * math.sqrt(var / n)).all()
    assert ((x.var(0) - var).abs() < error).all()
    # a drift with 1 in place of 2 is seen by this test
    other_mean, other_var = law_on_normal(mu, v, horizon, n_times, n_init, factor=1.0)
    assert abs(other_var - var) > 2 * error or abs(other_mean - mean) > 0.3
    assert 0.55 < float(found.info["accept"].mean()) < 0.8


def test_posterior_means_are_those_of_quadrature():
    """E[x_0 | x] of two normal modes at three times, from many independent estimates."""
    target = GaussianMixture(
        torch.tensor([[-1.0], [2.0]]), torch.tensor([0.1, 0.4]), torch.tensor([1.0, 2.0])
    )
    n = 2000
    mean = PosteriorMean(RDMC(n_points=256, step_size=0.1), target, n, 3, 0, torch.empty(0))
    grid = torch.linspace(-12, 12, 20001, dtype=F64)[:, None]
    for s, x in ((1.0, 0.1), (0.4, 0.3), (0.1, 1.0)):
        centre, variance = math.exp(s) * x, math.expm1(2 * s)
        log_q = target.log_prob(grid) - (grid[:, 0] - centre) ** 2 / (2 * variance)
        exact = float((torch.softmax(log_q, 0) * grid[:, 0]).sum())
        found = mean(torch.full((n, 1), x), s)[:, 0].double()
        assert abs(float(found.mean()) - exact) < SE * float(found.std()) / math.sqrt(n)
        assert float(found.std()) > 0


def check_two_modes(n, n_points, seed):
    target = TwoModes(2)
    found = RDMC(horizon=0.3, n_times=32, n_points=n_points).sample(target, n, seed=seed)
    x = found.x[:, 0]
    first = target.mode(x) == 0
    assert abs(float(first.double().mean()) - 2 / 3) < SE * math.sqrt(2 / 9 / n)
    for mode, centre in ((first, -2 / 3), (~first, 4 / 3)):
        inside = x[mode].double()
        error = inside.std(0) / math.sqrt(len(inside))
        assert ((inside.mean(0) - centre).abs() < SE * error + 0.02).all()
        # 32 times leave the variance of 0.05 too large by less than a quarter
        assert ((inside.var(0) > 0.04) & (inside.var(0) < 0.075)).all()
    assert found.info["warnings"] == []
    assert torch.isfinite(found.log_prob).all()


def test_two_modes_have_their_weights():
    check_two_modes(1024, 192, seed=1)


@pytest.mark.slow
def test_two_modes_have_their_weights_within_two_percent():
    check_two_modes(16384, 1024, seed=2)


def test_draws_do_not_depend_on_the_split_or_the_backend():
    target = TwoModes(3)
    sampler = RDMC(horizon=0.3, n_times=5, n_init=2, n_points=8)
    whole = sampler.sample(target, 11, seed=9)
    parts = [sampler.sample(target, n, seed=9, first_chain=first) for n, first in ((4, 0), (7, 4))]
    assert torch.equal(whole.x, torch.cat([part.x for part in parts]))
    assert torch.equal(whole.info["accept"], torch.cat([part.info["accept"] for part in parts]))
    with pysamp.backend("torch"):
        again = sampler.sample(target, 11, seed=9)
    assert torch.equal(whole.x, again.x)
    assert not torch.equal(whole.x, sampler.sample(target, 11, seed=10).x)
    double = sampler.sample(target, 11, seed=9, dtype=F64)
    assert double.x.dtype == F64 and whole.x.dtype == torch.float32
    assert whole.x.shape == (11, 1, 3) and len(whole.info["times"]) == 6
    assert whole.info["times"][0] == pytest.approx(0.3)
    assert whole.info["times"][-1] == pytest.approx(0.3 / 4)


def test_cost_is_what_the_docstring_says():
    counted = Counted(TwoModes(2))
    sampler = RDMC(n_times=6, n_init=3, n_points=16, n_copies=2, n_steps=4)
    found = sampler.sample(counted, 10, seed=0)
    times = 3 + 6 - 1
    assert found.info["gradients"] == counted.gradients == 10 * times * 2 * 5
    assert found.info["evaluations"] == counted.evaluations == 10 * (times * (16 + 2 * 5) + 1)


def test_a_budget_is_kept():
    sampler = RDMC(n_init=3, n_points=16, n_copies=2, n_steps=4)
    for budget in (2000, 10_000):
        fitted = sampler.for_budget(10, budget)
        found = fitted.sample(TwoModes(2), 10, seed=0)
        step = 10 * (16 + 2 * 5)
        assert budget - step < found.info["evaluations"] <= budget
        assert (fitted.n_init, fitted.n_points, fitted.horizon) == (3, 16, sampler.horizon)
    least = 10 * (4 * 26 + 1)
    assert sampler.for_budget(10, least).n_times == 2
    with pytest.raises(ValueError, match=f"gradients must be at least {least} for n = 10 draws"):
        sampler.for_budget(10, least - 1)


def test_few_points_are_called_out():
    found = RDMC(horizon=0.7, n_times=3, n_init=1, n_steps=4).sample(TwoModes(16), 50, seed=0)
    assert float(found.info["points_ess"][0]) < 3
    assert any("weights of modes are not to be trusted" in t for t in found.info["warnings"])


def test_posteriors_without_density_go_on_from_where_their_chains_are():
    target = Interval(0.0, 1.0)
    like = torch.empty(0)
    mean = PosteriorMean(RDMC(n_steps=4, n_copies=2), target, 5, 0, 0, like)
    inside = mean(torch.full((5, 1), 0.5), 0.2)
    assert ((inside > 0) & (inside < 1)).all() and mean.faults() == []
    x = torch.tensor([[0.5], [60.0], [0.4], [-60.0], [0.3]])
    outside = mean(x, 0.1)
    assert mean.lost == 2 and ((outside > 0) & (outside < 1)).all()
    assert any("2 of 10 posteriors" in text for text in mean.faults())
    with pytest.raises(ValueError, match=r"no finite log_prob at any of 128 points .* draw 7"):
        RDMC().sample(Interval(50.0, 51.0), 3, seed=0, first_chain=7)


def test_draws_outside_the_support_are_called_out():
    found = RDMC(horizon=0.1, n_times=2, n_init=0, n_steps=4).sample(Interval(0, 1), 400, seed=0)
    bad = int((~torch.isfinite(found.log_prob)).sum())
    assert bad > 0
    assert any(f"{bad} of 400 draws have no finite log_prob" in t for t in found.info["warnings"])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"horizon": 0.0}, "horizon must be positive and finite, got 0.0"),
        ({"n_times": 1}, "n_times must be an int of at least 2, got 1"),
        ({"n_init": -1}, "n_init must be an int of at least 0, got -1"),
        ({"n_points": 0}, "n_points must be an int of at least 1, got 0"),
        ({"n_copies": 2.0}, "n_copies must be an int of at least 1, got 2.0"),
        ({"n_steps": 1}, "n_steps must be an int of at least 2, got 1"),
        ({"step_size": math.inf}, "step_size must be positive and finite, got inf"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        RDMC(**change)
    with pytest.raises(ValueError, match="n must be a positive int, got 0"):
        RDMC().sample(TwoModes(2), 0, seed=0)
