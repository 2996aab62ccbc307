"""Schedules of the observation process against their definitions, by differences and quadrature."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad

from pysamp.schedules import (
    Geometric,
    GeometricInfinite,
    Schedule,
    Standard,
    alpha,
    log_concave_times,
    schedule_of,
    snr_grid,
)

SCHEDULES = [
    Standard(), Geometric(1, 1), Geometric(2, 1), Geometric(1, 0.5), Geometric(1, 2),
    Geometric(2.5, 1), GeometricInfinite(2), GeometricInfinite(3.5),
]  # fmt: skip


def float64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def times(schedule: Schedule) -> torch.Tensor:
    return float64(1e-4, 0.03, 0.35, 0.5, 0.9, 0.99) * (1 if schedule.t_gen == 1 else 30)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_alpha_and_its_derivative(schedule):
    t = times(schedule)
    torch.testing.assert_close(alpha(schedule, t) ** 2, t * schedule.snr(t), rtol=1e-12, atol=0)
    h = 1e-5 * t
    # fourth order, so that the difference is good to 1e-10
    f = [alpha(schedule, t + k * h) for k in (-2, -1, 1, 2)]
    slope = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)
    torch.testing.assert_close(schedule.d_alpha(t), slope, rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_time_is_the_inverse_of_snr(schedule):
    t = times(schedule)
    torch.testing.assert_close(schedule.time(schedule.snr(t)), t, rtol=1e-10, atol=0)


def test_closed_forms_of_the_inverse():
    v = float64(1e-6, 0.1, 1.0, 150.0)
    torch.testing.assert_close(Geometric(1, 1).time(v), v / (1 + v), rtol=1e-14, atol=0)
    expected = (-v + (v**2 + 4 * v).sqrt()) / 2
    torch.testing.assert_close(Geometric(2, 1).time(v), expected, rtol=1e-10, atol=0)
    assert Standard().time(v).equal(v)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_grid_is_equidistant_in_log_snr(schedule):
    end = 0.995 if schedule.t_gen == 1 else 150.0
    grid = snr_grid(schedule, 0.1, end, 33)
    steps = schedule.snr(grid.t).log().diff()
    torch.testing.assert_close(steps, steps.mean().expand(32), rtol=1e-9, atol=0)
    torch.testing.assert_close(grid.t[[0, -1]], float64(0.1, end), rtol=1e-12, atol=0)
    torch.testing.assert_close(grid.alpha, alpha(schedule, grid.t), rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_variance_of_a_step_is_the_integral(schedule):
    end = 0.9934 if schedule.t_gen == 1 else 150.0
    for n_times in (9, 257):
        t = snr_grid(schedule, 0.05, end, n_times).t
        v = schedule.noise(t[:-1], t[1:])
        for k in range(0, n_times - 1, 8):
            a, b = float(t[k]), float(t[k + 1])
            integrand = lambda s: 1 / float(alpha(schedule, float64(s))) ** 2  # noqa: E731
            integral, _ = quad(integrand, a, b, epsabs=0, epsrel=1e-12)
            expected = float(alpha(schedule, float64(b))) ** 2 * integral
            assert float(v[k]) == pytest.approx(expected, rel=1e-8)


def test_log_concave_times():
    sigma, big, tau = 1.3, 1.2, 0.9
    t_q, t_p = log_concave_times(Standard(), sigma, big, tau)
    # X = ±R in one dimension: curvature of −log p at its flattest, by the two-point mixture at 0
    assert t_q == pytest.approx(sigma**2 * (big**2 - tau**2) / tau**4)
    assert t_p == pytest.approx(sigma**2 / (big**2 - tau**2))

    def curvature(
        variance: float, mean: float
    ) -> float:  # −(log p)″ at 0 of ±mean with this variance
        return 1 / variance - mean**2 / variance**2

    # the law of Y_t has modes ±α R of variance α² τ² + σ² t
    at = lambda t: curvature(t**2 * tau**2 + sigma**2 * t, t * big)  # noqa: E731
    assert at(0.999 * t_p) > 0 > at(1.001 * t_p)
    # the posterior gains the curvature g²/σ²
    posterior = lambda t: curvature(tau**2, big) + t / sigma**2  # noqa: E731
    assert posterior(1.001 * t_q) > 0 > posterior(0.999 * t_q)


def test_schedules_by_name():
    assert schedule_of("standard") == Standard()
    assert schedule_of("geom(1, 1)") == Geometric(1, 1)
    assert schedule_of("geom(2,0.5)") == Geometric(2, 0.5)
    assert schedule_of("geom-inf(2)") == GeometricInfinite(2)
    assert schedule_of(Geometric(2, 1)) == Geometric(2, 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Geometric(0.5, 1), ["a", "0.5"]),
        (lambda: Geometric(1, 0), ["b", "0"]),
        (lambda: Geometric(1, "x"), ["b", "x"]),
        (lambda: Geometric(1, math.nan), ["b", "nan"]),
        (lambda: GeometricInfinite(0.5), ["a", "0.5"]),
        (lambda: Standard(2.0), ["a", "2.0"]),
        (lambda: snr_grid(Standard(), 0.1, 10, 1), ["n_times", "1"]),
        (lambda: snr_grid(Standard(), 0.0, 10, 5), ["t0", "0.0"]),
        (lambda: snr_grid(Geometric(), 1.0, 2.0, 5), ["t0", "1.0"]),
        (lambda: snr_grid(Geometric(), 0.5, 0.4, 5), ["t_end", "0.4"]),
        (lambda: snr_grid(Geometric(), 0.5, 1.0, 5), ["t_end", "1.0"]),
        (lambda: log_concave_times(Standard(), 1.0, 1.0, 2.0), ["tau", "2.0"]),
        (lambda: schedule_of("geom"), ["schedule", "geom"]),
        (lambda: schedule_of("geom(1.2.3, 1)"), ["schedule", "1.2.3"]),
        (lambda: schedule_of(3), ["schedule", "3"]),
    ],
)
def test_bad_input_names_the_argument(make, words):
    with pytest.raises((ValueError, TypeError)) as error:
        make()
    assert all(word in str(error.value) for word in words)
