"""One measurement at a time: the law of the denoised points in closed form, scores by quadrature."""

import math

import pytest
import torch

import pysamp
from pysamp.samplers.oat import OAT, Denoised
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


@pytest.mark.parametrize("m, n_pairs", [(1, 256), (5, 64)])
def test_law_on_a_normal_target(m, n_pairs):
    """x̂ = (m v ȳ + σ² μ)/(m v + σ²) with ȳ ~ N(μ, v + σ²/m): mean μ, variance v²/(v + σ²/m).

    The bias of scores from k pairs adds about 2/k to the variance for m = 1, and less for more.
    """
    n, mu, v, sigma = 2048, 1.5, 0.6, 0.8
    sampler = OAT(sigma=sigma, n_measurements=m, n_steps=10, n_pairs=n_pairs)
    found = sampler.sample(normal([mu, -mu], v), n, seed=1)
    x = found.x[:, 0].double() * torch.tensor([1.0, -1.0])
    var = v**2 / (v + sigma**2 / m)
    assert ((x.mean(0) - mu).abs() < SE * math.sqrt(var / n)).all()
    assert ((x.var(0) - var).abs() < SE * var * math.sqrt(2 / (n - 1))).all()
    # the measurements of a point share its noise: without it the variance would be that of the target
    assert m > 1 or abs(v - var) > 2 * SE * var * math.sqrt(2 / (n - 1))
    assert f"{sigma / math.sqrt(m):.3g}" in found.info["notes"][0]


@pytest.mark.parametrize("friction, step_size", [(0.2, 0.7), (2.0, 1.5)])
def test_the_integrator_leaves_the_law_of_a_measurement(friction, step_size):
    """Many steps with any friction and step below the bound end in the same law."""
    n, v, sigma = 1024, 0.6, 0.8
    sampler = OAT(
        sigma=sigma,
        n_measurements=1,
        n_steps=30,
        n_pairs=64,
        friction=friction,
        step_size=step_size,
    )
    x = sampler.sample(normal([0.7], v), n, seed=2).x[:, 0, 0].double()
    var = v**2 / (v + sigma**2)
    assert abs(float(x.mean()) - 0.7) < SE * math.sqrt(var / n)
    assert abs(float(x.var()) - var) < SE * var * math.sqrt(2 / (n - 1))


def test_denoised_points_are_those_of_quadrature():
    target = GaussianMixture(
        torch.tensor([[-1.0], [2.0]]), torch.tensor([0.1, 0.4]), torch.tensor([1.0, 2.0])
    )
    n, sigma = 2000, 2.0
    denoise = Denoised(OAT(sigma=sigma, n_measurements=9), target, n, 3, 0, torch.empty(0))
    grid = torch.linspace(-12, 12, 20001, dtype=F64)[:, None]
    for m, y in ((1, 0.1), (4, 0.3), (9, 1.0)):
        log_q = target.log_prob(grid) - m * (grid[:, 0] - y) ** 2 / (2 * sigma**2)
        exact = float((torch.softmax(log_q, 0) * grid[:, 0]).sum())
        found = denoise(torch.full((n, 1), y), m)[:, 0].double()
        # an estimate of k points is biased by about (variance of one point's share) / k
        bias = 3 * float(found.var())
        assert abs(float(found.mean()) - exact) < SE * float(found.std()) / math.sqrt(n) + bias
        assert bias < 0.05 and float(found.std()) > 0
        # the smoothed score, by differences of the smoothed log density
        smooth = [
            torch.logsumexp(target.log_prob(grid) - m * (grid[:, 0] - at) ** 2 / (2 * sigma**2), 0)
            for at in (y - 1e-3, y + 1e-3)
        ]
        score = float(smooth[1] - smooth[0]) / 2e-3
        assert exact == pytest.approx(y + sigma**2 / m * score, abs=1e-4)


def check_two_modes(n, n_pairs, n_measurements, seed):
    target = TwoModes(2)
    sampler = OAT(sigma=1.8, n_measurements=n_measurements, n_pairs=n_pairs)
    found = sampler.sample(target, n, seed=seed)
    x = found.x[:, 0]
    first = target.mode(x) == 0
    # estimates of the score are biased by the reciprocal of their effective points, at most 3 percent
    least = float(found.info["points_ess"].min())
    assert least > 30
    assert abs(float(first.double().mean()) - 2 / 3) < SE * math.sqrt(2 / 9 / n) + 1 / least
    for mode, centre in ((first, -2 / 3), (~first, 4 / 3)):
        inside = x[mode].double()
        assert (
            (inside.mean(0) - centre).abs() < SE * inside.std(0) / len(inside) ** 0.5 + 0.02
        ).all()
    assert found.info["warnings"] == []


@pytest.mark.slow
def test_two_modes_have_their_weights():
    check_two_modes(1024, 1024, 24, seed=1)


def test_draws_do_not_depend_on_the_split_or_the_backend():
    target = TwoModes(3)
    sampler = OAT(n_measurements=3, n_steps=2, n_pairs=8)
    whole = sampler.sample(target, 11, seed=9)
    parts = [sampler.sample(target, n, seed=9, first_chain=first) for n, first in ((4, 0), (7, 4))]
    assert torch.equal(whole.x, torch.cat([part.x for part in parts]))
    with pysamp.backend("torch"):
        again = sampler.sample(target, 11, seed=9)
    assert torch.equal(whole.x, again.x)
    assert not torch.equal(whole.x, sampler.sample(target, 11, seed=10).x)
    double = sampler.sample(target, 11, seed=9, dtype=F64)
    assert double.x.dtype == F64 and whole.x.dtype == torch.float32
    assert whole.x.shape == (11, 1, 3) and whole.info["points_ess"].shape == (3,)


def test_budget_and_cost():
    counted = Counted(TwoModes(2))
    sampler = OAT(n_steps=2, n_pairs=8).for_budget(10, 2000)
    assert sampler.n_measurements == 4
    found = sampler.sample(counted, 10, seed=0)
    assert found.info["gradients"] == counted.gradients == 0
    assert found.info["evaluations"] == counted.evaluations == 10 * (4 * 16 * 3 + 1)
    least = 10 * (16 * 3 + 1)
    assert OAT(n_steps=2, n_pairs=8).for_budget(10, least).n_measurements == 1
    with pytest.raises(ValueError, match=f"gradients must be at least {least} for n = 10 draws"):
        OAT(n_steps=2, n_pairs=8).for_budget(10, least - 1)


def test_few_points_are_called_out():
    found = OAT(sigma=1.8, n_measurements=2, n_steps=2, n_pairs=64).sample(TwoModes(8), 50, seed=0)
    assert any("weights of modes are not to be trusted" in t for t in found.info["warnings"])


def test_estimates_without_density_are_called_out():
    denoise = Denoised(OAT(n_measurements=2), Interval(0.0, 1.0), 2, 0, 0, torch.empty(0))
    first = denoise(torch.full((2, 1), 0.5), 1)
    assert ((first > 0) & (first < 1)).all() and denoise.lost == 0
    second = denoise(torch.tensor([[0.5], [60.0]]), 1)
    assert denoise.lost == 1 and float(second[1]) == 60.0
    assert any("1 of 4 estimates" in text for text in denoise.faults())
    with pytest.raises(ValueError, match=r"no finite log_prob at any of 512 points .* draw 7"):
        OAT().sample(Interval(50.0, 51.0), 3, seed=0, first_chain=7)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sigma": 0.0}, "sigma must be positive and finite, got 0.0"),
        ({"n_measurements": 0}, "n_measurements must be an int of at least 1, got 0"),
        ({"n_steps": 0}, "n_steps must be an int of at least 1, got 0"),
        ({"n_pairs": 0}, "n_pairs must be an int of at least 1, got 0"),
        ({"step_size": 2.0}, "step_size must be below 2, where the integrator is stable, got 2.0"),
        ({"friction": -1.0}, "friction must be positive and finite, got -1.0"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        OAT(**change)
