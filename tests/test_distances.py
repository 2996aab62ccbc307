"""Distances and bounds against closed forms, enumeration, POT, SciPy and ArviZ; floors of exact draws."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import torch
from torch import Tensor

from pysamp import metrics, targets
from pysamp.metrics import arrays, transport


def normals(n: int, d: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, d, generator=generator, dtype=torch.float64)


def integer_weights(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Repetitions (n,) from 0 to 3, and the log-weights that mean the same."""
    generator = torch.Generator().manual_seed(seed)
    repeats = torch.randint(0, 4, (n,), generator=generator)
    return repeats, repeats.double().log() - 12.5


def costs(x: Tensor, y: Tensor) -> np.ndarray:
    return ((x[:, None].numpy() - y[None].numpy()) ** 2).sum(2)


PAIRS: dict[str, Callable[..., Tensor]] = {
    "wasserstein2": metrics.wasserstein2,
    "sinkhorn2": lambda x, y, **w: metrics.sinkhorn2(x, y, 0.3, tolerance=1e-9, **w),
    "sinkhorn2 debiased": lambda x, y, **w: metrics.sinkhorn2(
        x, y, 0.3, tolerance=1e-9, debiased=True, **w
    ),
    "sliced_wasserstein2": metrics.sliced_wasserstein2,
    "sliced_ks": metrics.sliced_ks,
    "variance_gap": metrics.variance_gap,
    "mmd": lambda x, y, **w: metrics.mmd(x, y, 1.2, **w),
}


# ---- what holds for every distance ---------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRS)
def test_weights_are_repeated_points(name: str) -> None:
    distance = PAIRS[name]
    x, y = normals(30, 3, seed=1), normals(24, 3, seed=2, shift=0.5, scale=1.5)
    (times_x, log_x), (times_y, log_y) = integer_weights(30, 3), integer_weights(24, 4)
    weighted = distance(x, y, log_weight_x=log_x, log_weight_y=log_y)
    repeated = distance(x.repeat_interleave(times_x, 0), y.repeat_interleave(times_y, 0))
    assert float(repeated) > 0.05
    assert float(weighted) == pytest.approx(float(repeated), rel=1e-6)
    assert weighted.dtype == torch.float64 and weighted.shape == ()
    one_side = distance(x, y, log_weight_x=log_x)
    assert float(one_side) == pytest.approx(
        float(distance(x.repeat_interleave(times_x, 0), y)), rel=1e-6
    )


@pytest.mark.parametrize("name", PAIRS)
def test_distances_are_symmetric_and_vanish(name: str) -> None:
    distance = PAIRS[name]
    x, y = normals(40, 2, seed=5), normals(40, 2, seed=6, shift=1.0, scale=0.5)
    assert float(distance(x, y)) == pytest.approx(float(distance(y, x)), rel=1e-6)
    if name != "sinkhorn2":  # its plan spreads mass: that is what `debiased` takes out
        # Another order may round a projection otherwise: one of 40 points then changes its rank.
        bound = 1.01 / 40 if name == "sliced_ks" else 1e-4
        assert float(distance(x, x.flip(0))) < bound < 0.1 < float(distance(x, y))


@pytest.mark.parametrize("name", PAIRS)
def test_events_are_flattened_and_computed_in_float64(name: str) -> None:
    distance = PAIRS[name]
    x, y = normals(20, 6, seed=7).float(), normals(20, 6, seed=8, shift=1.0, scale=0.7).float()
    shaped = distance(x.reshape(20, 2, 3), y.reshape(20, 2, 3))
    assert float(shaped) == float(distance(x.double(), y.double()))


@pytest.mark.parametrize("name", PAIRS)
def test_blocks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    distance = PAIRS[name]
    x, y = normals(33, 2, seed=9), normals(21, 2, seed=10, shift=1.0, scale=1.3)
    whole = float(distance(x, y))
    monkeypatch.setattr(arrays, "BLOCK", 60)
    monkeypatch.setattr(transport, "_KEEP", 0)
    assert float(distance(x, y)) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_distances_refuse(name: str) -> None:
    distance = PAIRS[name]
    x = normals(5, 2, seed=11)
    with pytest.raises(ValueError, match="y must be finite, got 1 of 5"):
        distance(x, x.masked_fill(torch.arange(10).reshape(5, 2) == 3, math.nan))
    with pytest.raises(ValueError, match=r"x must be .* not empty"):
        distance(x[:0], x)
    with pytest.raises(ValueError, match="events of one size, got 2 and 1"):
        distance(x, x[:, :1])
    with pytest.raises(ValueError, match=r"log_weight_x must be \(5,\), got \(4,\)"):
        distance(x, x, log_weight_x=torch.zeros(4))
    with pytest.raises(ValueError, match="log_weight_y must have a finite entry"):
        distance(x, x, log_weight_y=torch.full((5,), -math.inf))
    with pytest.raises(ValueError, match=r"log_weight_y must be .* 1 NaN"):
        distance(x, x, log_weight_y=torch.tensor([0.0, math.nan, 0.0, 0.0, 0.0]))


def test_devices_agree(device: torch.device) -> None:
    x, y = normals(30, 2, seed=46), normals(24, 2, seed=47, shift=1.0, scale=0.5)
    log_weight = normals(30, 1, seed=48)[:, 0]
    for name, distance in PAIRS.items():
        value = distance(x.to(device), y.to(device), log_weight_x=log_weight.to(device))
        assert value.device.type == device.type, name
        expected = float(distance(x, y, log_weight_x=log_weight))
        assert expected > 0.05
        assert float(value) == pytest.approx(expected, rel=1e-6), name
    for f in (metrics.log_z_error, metrics.pareto_k, metrics.elbo):
        assert float(f(log_weight.to(device))) == pytest.approx(float(f(log_weight)), rel=1e-9)
    value = metrics.ksd(x.to(device), -x.to(device), log_weight=log_weight.to(device))
    expected = float(metrics.ksd(x, -x, log_weight=log_weight))
    assert float(value) == pytest.approx(expected, rel=1e-9)
    target = bracket()
    draws = target.sample(500, seed=12)
    found = metrics.within_modes(draws.to(device), target)
    torch.testing.assert_close(found.shift.cpu(), metrics.within_modes(draws, target).shift)


# ---- exact transport -----------------------------------------------------------------------------


def test_wasserstein_is_the_best_of_all_permutations() -> None:
    x, y = normals(6, 2, seed=12), normals(6, 2, seed=13, shift=0.5)
    cost = costs(x, y)
    best = min(sum(cost[i, p[i]] for i in range(6)) for p in itertools.permutations(range(6)))
    assert float(metrics.wasserstein2(x, y)) == pytest.approx(math.sqrt(best / 6), rel=1e-12)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_wasserstein_of_a_shift_is_its_length(d: int) -> None:
    x, shift = normals(50, d, seed=14), normals(1, d, seed=15, shift=3.0)
    length = float(torch.linalg.vector_norm(shift))
    assert float(metrics.wasserstein2(x, x + shift)) == pytest.approx(length, rel=1e-12)
    log_weight = normals(50, 1, seed=16)[:, 0]
    weighted = metrics.wasserstein2(
        x, x + shift, log_weight_x=log_weight, log_weight_y=log_weight + 4
    )
    assert float(weighted) == pytest.approx(length, rel=1e-9)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("n, m", [(40, 40), (20, 40), (30, 47), (1, 9)])
@pytest.mark.parametrize("weighted", [False, True])
def test_wasserstein_equals_pot(d: int, n: int, m: int, weighted: bool) -> None:
    ot = pytest.importorskip("ot")
    x, y = normals(n, d, seed=17), normals(m, d, seed=18, shift=1.0, scale=2.0)
    log_x = 2 * normals(n, 1, seed=19)[:, 0] if weighted else torch.zeros(n)
    log_y = 2 * normals(m, 1, seed=20)[:, 0] if weighted else torch.zeros(m)
    a, b = torch.softmax(log_x.double(), 0).numpy(), torch.softmax(log_y.double(), 0).numpy()
    expected = math.sqrt(ot.emd2(a, b, costs(x, y)))
    value = metrics.wasserstein2(x, y, log_weight_x=log_x, log_weight_y=log_y)
    assert float(value) == pytest.approx(expected, rel=1e-9)


def test_wasserstein_adds_arcs_until_it_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """From one arc a point the optimum is still found, and too few rounds are said."""
    x = targets.EightGaussians().sample(90, seed=1, dtype=torch.float64)
    log_x = normals(40, 1, seed=21)[:, 0]
    full = float(metrics.wasserstein2(x[:40], x[40:], log_weight_x=log_x))
    monkeypatch.setattr(transport, "_NEAREST", 1)
    monkeypatch.setattr(transport, "_ADDED", 1)
    assert float(metrics.wasserstein2(x[:40], x[40:], log_weight_x=log_x)) == pytest.approx(
        full, rel=1e-9
    )
    monkeypatch.setattr(transport, "_ROUNDS", 1)
    with pytest.raises(RuntimeError, match="not solved in 1 rounds"):
        metrics.wasserstein2(x[:40], x[40:], log_weight_x=log_x)


def test_wasserstein_of_gaussians_on_the_line() -> None:
    level = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    z = torch.special.ndtri(level)[:, None]
    expected = math.sqrt(1.5**2 + (2.0 - 0.5) ** 2)  # (m - m')^2 + (s - s')^2
    assert float(metrics.wasserstein2(2 * z, 0.5 * z + 1.5)) == pytest.approx(expected, rel=1e-3)


# ---- entropic transport --------------------------------------------------------------------------


def pot_plan(x: Tensor, y: Tensor, a: Tensor, b: Tensor, epsilon: float) -> np.ndarray:
    ot = pytest.importorskip("ot")
    return ot.sinkhorn(
        a.numpy(), b.numpy(), costs(x, y), epsilon, method="sinkhorn_log",
        stopThr=1e-11, numItermax=20_000,
    )  # fmt: skip


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 30.0])
def test_sinkhorn_equals_pot(epsilon: float) -> None:
    x, y = normals(25, 2, seed=22), normals(30, 2, seed=23, shift=1.0)
    log_x = normals(25, 1, seed=24)[:, 0]
    a, b = torch.softmax(log_x, 0), torch.full((30,), 1 / 30, dtype=torch.float64)
    plan = pot_plan(x, y, a, b, epsilon)
    value = metrics.sinkhorn2(x, y, epsilon, log_weight_x=log_x, tolerance=1e-9)
    assert float(value) == pytest.approx(math.sqrt((plan * costs(x, y)).sum()), rel=1e-6)

    def minimum(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> float:
        plan = pot_plan(x, y, a, b, epsilon)
        independent = np.outer(a.numpy(), b.numpy())
        entropy = scipy.special.rel_entr(plan, independent).sum()
        return float((plan * costs(x, y)).sum() + epsilon * entropy)

    expected = minimum(x, a, y, b) - 0.5 * (minimum(x, a, x, a) + minimum(y, b, y, b))
    debiased = metrics.sinkhorn2(x, y, epsilon, log_weight_x=log_x, tolerance=1e-9, debiased=True)
    assert float(debiased) ** 2 == pytest.approx(expected, rel=1e-5)


def test_sinkhorn_lies_between_its_limits() -> None:
    x, y = normals(60, 2, seed=25), normals(60, 2, seed=26, shift=1.0)
    exact, independent = float(metrics.wasserstein2(x, y)), math.sqrt(costs(x, y).mean())
    values = [
        float(metrics.sinkhorn2(x, y, e, tolerance=1e-5)) for e in (0.003, 0.05, 0.5, 5.0, 1e4)
    ]
    assert values == sorted(values)
    assert values[0] == pytest.approx(exact, rel=0.01) and values[-1] == pytest.approx(
        independent, rel=1e-3
    )
    assert exact < 0.8 * independent


def test_sinkhorn_with_modes_of_other_weights() -> None:
    """The hard case: mass has to go from mode to mode, through exp(-1000) at epsilon 0.05."""
    both = targets.EightGaussians().sample(200, seed=2, dtype=torch.float64)
    x, y = both[:100], both[100:]
    exact = float(metrics.wasserstein2(x, y))
    value = float(metrics.sinkhorn2(x, y, 0.05))
    assert exact > 1.0, "modes must differ in weight here"
    assert value == pytest.approx(exact, rel=0.01)


def test_sinkhorn_says_when_it_has_not_converged() -> None:
    both = targets.EightGaussians().sample(60, seed=3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"after 5 steps .* raise max_steps or epsilon"):
        metrics.sinkhorn2(both[:30], both[30:], max_steps=5)
    x = normals(4, 1, seed=27)
    for bad in ({"epsilon": 0.0}, {"epsilon": math.inf}, {"tolerance": 1.0}, {"max_steps": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            metrics.sinkhorn2(x, x, **bad)  # type: ignore[arg-type]


# ---- sliced --------------------------------------------------------------------------------------


def test_sliced_wasserstein_of_a_shift() -> None:
    n, d, length = 4000, 5, 3.0
    x = normals(20, d, seed=28)
    shift = length * torch.eye(d, dtype=torch.float64)[2]
    value = float(metrics.sliced_wasserstein2(x, x + shift, n_directions=n, seed=1)) ** 2
    # (u . t)^2 on the sphere: mean |t|^2 / d, variance 2 (d - 1) / (d^2 (d + 2)) |t|^4.
    error = length**2 * math.sqrt(2 * (d - 1) / (d**2 * (d + 2)) / n)
    assert abs(value - length**2 / d) < 5 * error
    assert value != float(metrics.sliced_wasserstein2(x, x + shift, n_directions=n, seed=2)) ** 2


def test_one_dimension_needs_no_slices() -> None:
    x, y = normals(40, 1, seed=29), normals(55, 1, seed=30, shift=0.4)
    sliced = metrics.sliced_wasserstein2(x, y, n_directions=3)
    torch.testing.assert_close(sliced, metrics.wasserstein2(x, y))
    torch.testing.assert_close(metrics.sliced_ks(x, y, 3), metrics.ks_statistic(x[:, 0], y[:, 0]))
    with pytest.raises(ValueError, match="n_directions must be at least 1, got 0"):
        metrics.sliced_ks(x, y, 0)


def test_weighted_ks() -> None:
    x, y = normals(40, 1, seed=31)[:, 0], normals(30, 1, seed=32, shift=0.3)[:, 0]
    times, log_weight = integer_weights(40, 33)
    repeated = x.repeat_interleave(times)
    expected = scipy.stats.ks_2samp(repeated.numpy(), y.numpy(), method="asymp").statistic
    value = metrics.ks_statistic(x, y, log_weight_x=log_weight)
    assert float(value) == pytest.approx(expected, rel=1e-12)
    expected = scipy.stats.ks_1samp(repeated.numpy(), scipy.stats.norm.cdf).statistic
    value = metrics.ks_against(x, torch.special.ndtr, log_weight=log_weight)
    assert float(value) == pytest.approx(expected, rel=1e-12)


def test_histogram_distance_is_that_of_numpy() -> None:
    x, exact = normals(500, 1, seed=34, scale=1.6)[:, 0], normals(400, 1, seed=35)[:, 0]
    times, log_weight = integer_weights(500, 36)
    limits = (float(exact.min()), float(exact.max()))
    for log_w, times_x in ((None, torch.ones_like(times)), (log_weight, times)):
        counts, _ = np.histogram(x.numpy(), 256, limits, weights=times_x.numpy())
        reference, _ = np.histogram(exact.numpy(), 256, limits)
        assert counts.sum() < times_x.sum(), "some draws must be out of range"
        f, g = (np.cumsum(h) / h.sum() for h in (counts, reference))
        expected = float(np.abs(f - g).max())
        value = float(metrics.sliced_ks_histogram(x, exact, 4, log_weight_x=log_w))
        # On the direction -1 the bins are closed on the other side: one draw may change its bin.
        assert value == pytest.approx(expected, abs=2 / 400)
        assert expected > 0.05
    outside = metrics.sliced_ks_histogram(x + 100, exact, 4)
    assert float(outside) == 1.0
    with pytest.raises(ValueError, match="exact must hold draws that differ"):
        metrics.sliced_ks_histogram(x, torch.zeros(9))
    with pytest.raises(ValueError, match="n_bins must be at least 2, got 1"):
        metrics.sliced_ks_histogram(x, exact, n_bins=1)


def test_variance_gap_sees_nothing_but_variances() -> None:
    x = torch.tensor([[3.0, 0.0], [-3.0, 0.0]])
    y = torch.tensor([[0.0, 1.0], [0.0, -1.0]]) + 7
    assert float(metrics.variance_gap(x, y)) == pytest.approx(math.sqrt(4.5) - math.sqrt(0.5))
    assert float(metrics.variance_gap(x, x.flip(1) + 100)) < 1e-12


# ---- kernels -------------------------------------------------------------------------------------


def test_mmd_is_its_sum_over_pairs() -> None:
    x, y, h = normals(7, 3, seed=37), normals(5, 3, seed=38, shift=0.5), 1.3
    k = {
        (s, t): np.exp(-costs(p, q) / (2 * h * h))
        for s, p in (("x", x), ("y", y))
        for t, q in (("x", x), ("y", y))
    }
    biased = k["x", "x"].mean() + k["y", "y"].mean() - 2 * k["x", "y"].mean()
    assert float(metrics.mmd(x, y, h)) == pytest.approx(math.sqrt(biased), rel=1e-12)
    unbiased = (k["x", "x"].sum() - 7) / 42 + (k["y", "y"].sum() - 5) / 20 - 2 * k["x", "y"].mean()
    assert float(metrics.mmd_squared(x, y, h)) == pytest.approx(unbiased, rel=1e-12)
    median = float(np.median(scipy.spatial.distance.pdist(y.numpy())))
    lower = float(np.sort(scipy.spatial.distance.pdist(y.numpy()))[4])  # of 10, torch's median
    assert metrics.median_distance(y) == pytest.approx(lower) and lower <= median
    assert float(metrics.mmd(x, y)) == pytest.approx(float(metrics.mmd(x, y, lower)), rel=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_mmd_of_gaussians(shift: float) -> None:
    n, d, h, n_repeats = 200, 3, 1.5, 40
    values = torch.stack(
        [
            metrics.mmd_squared(normals(n, d, 2 * r), normals(n, d, 2 * r + 1, shift), h)
            for r in range(n_repeats)
        ]
    )
    # E k(X, Y) of Gaussians apart by t: (h^2 / (h^2 + 2))^(d / 2) exp(-|t|^2 / (2 (h^2 + 2))).
    apart = math.exp(-d * shift**2 / (2 * (h**2 + 2)))
    expected = 2 * (h**2 / (h**2 + 2)) ** (d / 2) * (1 - apart)
    error = float(values.std()) / math.sqrt(n_repeats)
    assert 0 < error < 0.005
    assert abs(float(values.mean()) - expected) < 5 * error


def test_mmd_refuses() -> None:
    x = normals(4, 1, seed=39)
    with pytest.raises(ValueError, match="bandwidth must be positive"):
        metrics.mmd(x, x, -1.0)
    with pytest.raises(ValueError, match="median distance is 0"):
        metrics.mmd(x, torch.zeros(5, 1))
    with pytest.raises(ValueError, match="x must hold at least 2 points of weight"):
        metrics.mmd_squared(x, x, 1.0, log_weight_x=torch.tensor([0.0] + 3 * [-math.inf]))
    with pytest.raises(ValueError, match="x must hold at least 2 points, got 1"):
        metrics.median_distance(x[:1])


def stein_matrix(x: Tensor, s: Tensor, scale: float, exponent: float) -> np.ndarray:
    """k_p(x_i, x_j) from derivatives of the kernel by automatic differentiation."""
    n, d = x.shape
    out = np.empty((n, n))
    for i, j in itertools.product(range(n), range(n)):
        p, q = x[i].clone().requires_grad_(), x[j].clone().requires_grad_()
        k = (scale**2 + (p - q).square().sum()) ** exponent
        by_p = torch.autograd.grad(k, p, create_graph=True)[0]
        by_q = torch.autograd.grad(k, q, create_graph=True)[0]
        mixed = sum(torch.autograd.grad(by_p[a], q, retain_graph=True)[0][a] for a in range(d))
        out[i, j] = float((s[i] @ s[j] * k + s[i] @ by_q + s[j] @ by_p + mixed).detach())
    return out


@pytest.mark.parametrize("scale, exponent", [(1.0, -0.5), (0.7, -0.3)])
def test_ksd_is_its_sum_over_pairs(scale: float, exponent: float) -> None:
    x, s = normals(6, 3, seed=40), normals(6, 3, seed=41)
    matrix = stein_matrix(x, s, scale, exponent)
    how = {"scale": scale, "exponent": exponent}
    value = float(metrics.ksd(x, s, **how))
    assert value == pytest.approx(math.sqrt(matrix.mean()), rel=1e-10)
    unbiased = (matrix.sum() - np.trace(matrix)) / 30
    assert float(metrics.ksd_squared(x, s, **how)) == pytest.approx(unbiased, rel=1e-9)
    # Only differences of positions count, also far from the origin.
    assert float(metrics.ksd(x + 1e5, s, **how)) == pytest.approx(value, rel=1e-8)
    log_weight = normals(6, 1, seed=42)[:, 0]
    w = torch.softmax(log_weight, 0).numpy()
    weighted = float(metrics.ksd(x, s, log_weight=log_weight, **how))
    assert weighted == pytest.approx(math.sqrt(w @ matrix @ w), rel=1e-10)


def test_ksd_of_exact_draws_has_mean_zero() -> None:
    n_repeats = 60
    draws = [normals(150, 2, seed=r) for r in range(n_repeats)]
    exact = torch.stack([metrics.ksd_squared(x, -x) for x in draws])
    wrong = torch.stack([metrics.ksd_squared(1.2 * x, -1.2 * x) for x in draws])
    error = float(exact.std()) / math.sqrt(n_repeats)
    assert 0 < error < 0.01
    assert abs(float(exact.mean())) < 5 * error
    assert float(wrong.mean()) > 10 * error


def test_ksd_refuses() -> None:
    x = normals(4, 2, seed=43)
    with pytest.raises(ValueError, match=r"score must have the shape of x, \(4, 2\), got \(4,\)"):
        metrics.ksd(x, x[:, 0])
    with pytest.raises(ValueError, match="score must be finite"):
        metrics.ksd(x, x / 0)
    with pytest.raises(ValueError, match="scale must be positive"):
        metrics.ksd(x, x, scale=0.0)
    with pytest.raises(ValueError, match=r"exponent must lie in \(-1, 0\), got 0.5"):
        metrics.ksd(x, x, exponent=0.5)
    with pytest.raises(ValueError, match="x must hold at least 2 points"):
        metrics.ksd_squared(x[:1], x[:1])


# ---- mode weights --------------------------------------------------------------------------------


def test_comparisons_of_mode_weights() -> None:
    exact = torch.tensor([2 / 3, 1 / 3], dtype=torch.float64)
    assert float(metrics.mode_weight_error(torch.tensor([1.0, 0.0]), exact)) == pytest.approx(1 / 3)
    assert float(metrics.mode_weight_error(torch.tensor([0.0, 1.0]), exact)) == pytest.approx(2 / 3)
    assert float(metrics.mode_weight_error(exact, exact)) == 0.0
    assert float(metrics.mode_coverage(torch.tensor([1.0, 0.0, 0.0]))) == 0.0
    assert float(metrics.mode_coverage(torch.full((5,), 0.1))) == pytest.approx(1.0)
    entropy = scipy.stats.entropy(exact.numpy(), base=2)
    assert float(metrics.mode_coverage(exact)) == pytest.approx(entropy)
    other = torch.tensor([0.1, 0.9], dtype=torch.float64)
    expected = scipy.spatial.distance.jensenshannon(exact.numpy(), other.numpy(), base=2) ** 2
    assert float(metrics.jensen_shannon(exact, other)) == pytest.approx(expected)
    assert float(metrics.jensen_shannon(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))) == 1.0
    assert float(metrics.jensen_shannon(torch.zeros(2), exact)) == 1.0, "all draws are in no mode"


def test_collapse() -> None:
    exact = torch.tensor([2 / 3, 1 / 3])
    assert metrics.collapsed(torch.tensor([0.9991, 0.0009]), exact)
    assert metrics.collapsed(torch.tensor([0.9991, 0.0009]))
    assert not metrics.collapsed(torch.tensor([0.9989, 0.0011]), exact)
    light = torch.tensor([0.999, 0.0008, 0.0002])
    assert metrics.collapsed(light) and not metrics.collapsed(light, light)
    assert metrics.collapsed(torch.tensor([0.9998, 0.0002, 0.0]), light)
    for bad in (0.0, 1.0):
        with pytest.raises(ValueError, match="threshold must lie"):
            metrics.collapsed(exact, threshold=bad)
    with pytest.raises(ValueError, match=r"weights must be \(k,\)"):
        metrics.collapsed(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="weights must be finite"):
        metrics.mode_weight_error(torch.tensor([math.nan, 1.0]), exact)
    with pytest.raises(ValueError, match="weights must be of 2 modes or more"):
        metrics.mode_coverage(torch.zeros(3))


# ---- normalising constants -----------------------------------------------------------------------


def test_bounds_of_gaussians() -> None:
    """p = e^3 N(m, 1), q = N(0, 1): log w = 3 + m x - m^2 / 2, ELBO and EUBO 3 -+ m^2 / 2."""
    n, m = 40_000, 0.8
    draws = normals(n, 1, seed=44)[:, 0]

    def log_weight(x: Tensor) -> Tensor:
        return 3 + m * x - m**2 / 2

    error = m / math.sqrt(n)  # log w is Gaussian of standard deviation m
    assert abs(float(metrics.elbo(log_weight(draws))) - (3 - m**2 / 2)) < 5 * error
    assert abs(float(metrics.eubo(log_weight(draws + m))) - (3 + m**2 / 2)) < 5 * error
    value, own_error = metrics.log_z(log_weight(draws))
    expected = math.sqrt(math.expm1(m**2) / n)  # sd(w) / E w of a lognormal
    assert float(own_error) == pytest.approx(expected, rel=0.05)
    assert abs(float(value) - 3) < 5 * expected
    assert float(metrics.log_z_error(log_weight(draws))) == float(own_error)


def test_log_z_errors_cover() -> None:
    n_repeats, z = 300, []
    for seed in range(n_repeats):
        x = normals(500, 1, seed)[:, 0]
        # Pairs of rows are the same draw twice: rows of two draws must be taken as one.
        log_weight = (0.5 * x - 0.125)[:, None].expand(-1, 2)
        value, error = metrics.log_z(log_weight)
        z.append(float(value / error))
    rms = math.sqrt(sum(v**2 for v in z) / n_repeats)
    assert abs(rms - 1) < 5 / math.sqrt(2 * n_repeats)


def test_log_z_at_the_edges() -> None:
    value, error = metrics.log_z(torch.full((7,), 2000.0))
    assert (float(value), float(error)) == (2000.0, 0.0)
    value, error = metrics.log_z(torch.tensor([0.0, -math.inf]))
    assert (float(value), float(error)) == (pytest.approx(-math.log(2)), pytest.approx(1.0))
    for lost in (torch.tensor([1.0]), torch.full((3,), -math.inf)):
        assert float(metrics.log_z_error(lost)) == math.inf
    assert float(metrics.log_z(torch.full((3,), -math.inf))[0]) == -math.inf
    assert float(metrics.elbo(torch.tensor([0.0, -math.inf]))) == -math.inf
    assert float(metrics.eubo(torch.tensor([0.0, math.inf]))) == math.inf
    for f in (metrics.elbo, metrics.log_z, metrics.pareto_k):
        with pytest.raises(ValueError, match=r"log_weight must be .* 1 \+inf"):
            f(torch.tensor([0.0, math.inf]))
    with pytest.raises(ValueError, match="1 -inf"):
        metrics.eubo(torch.tensor([0.0, -math.inf]))
    with pytest.raises(ValueError, match="log_weight must be"):
        metrics.log_z(torch.zeros(2, 2, 2))


@pytest.mark.parametrize("k", [0.2, 0.6, 1.1])
def test_tail_index_equals_arviz(k: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arviz = pytest.importorskip("arviz")
    generator = torch.Generator().manual_seed(round(10 * k))
    for n in (30, 1000, 20_000):
        u = torch.rand(n, generator=generator, dtype=torch.float64)
        log_weight = -k * u.log() + 500  # weights u^-k have the tail index k
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, expected = arviz.psislw(log_weight.numpy().copy())
        assert float(metrics.pareto_k(log_weight)) == pytest.approx(float(expected), rel=1e-6)
    assert abs(float(metrics.pareto_k(log_weight)) - k) < 0.2


def test_tail_index_at_the_edges() -> None:
    assert float(metrics.pareto_k(torch.zeros(100))) == -math.inf
    one = torch.full((100,), -math.inf)
    assert float(metrics.pareto_k(one)) == math.inf
    one[3] = 0.0
    assert float(metrics.pareto_k(one)) == math.inf
    assert float(metrics.pareto_k(torch.tensor([0.0, 1.0]))) == math.inf


# ---- against exact draws -------------------------------------------------------------------------


@dataclass(frozen=True)
class Changed:
    """Exact draws of a target, changed by a function."""

    target: targets.GaussianMixture
    change: Callable[[Tensor], Tensor]

    def sample(self, n: int, *, seed: int) -> Tensor:
        return self.change(self.target.sample(n, seed=seed))


def bracket() -> targets.GaussianMixture:
    d = 4
    v = torch.linspace(0.01, 0.2, d, dtype=torch.float64)
    means = 2.0 * torch.tensor([[-1.0], [1.0]]).expand(2, d)
    return targets.GaussianMixture(means, torch.stack([v, v.flip(0)]), torch.tensor([2.0, 1.0]))


def test_within_modes_of_exact_draws_is_noise() -> None:
    target = bracket()
    found = metrics.within_modes(target.sample(3000, seed=5), target, n_exact=30_000, seed=6)
    assert int(found.n.sum()) == 3000 and int(found.n_exact.sum()) == 30_000
    torch.testing.assert_close(found.ess, found.n.double())
    noise = (1 / found.ess + 1 / found.n_exact).sqrt()  # (k,)
    assert bool((found.worst_shift < 5 * noise).all()) and bool((found.worst_shift > 0).all())
    low, high = found.ratio_range
    assert bool((low > 1 - 5 * math.sqrt(2) * noise).all())
    assert bool((high < 1 + 5 * math.sqrt(2) * noise).all())
    # sqrt(n) times the distance exceeds 2.0 with a probability of 2 exp(-8).
    assert bool((found.ks < 2.0 * noise[:, None]).all()) and bool((found.ks > 0).all())


def test_within_modes_sees_one_wrong_mode() -> None:
    target = bracket()
    x = target.sample(4000, seed=7)
    shrunk = x.clone()
    inside = target.mode(x) == 0
    shrunk[inside, 3] = -2 + 0.9 * (x[inside, 3] + 2)  # the loosest coordinate of mode 0
    shrunk[inside, 1] += 0.1
    found = metrics.within_modes(shrunk, target, seed=8)
    assert float(found.variance_ratio[0, 3]) == pytest.approx(0.81, abs=0.05)
    sd = math.sqrt(0.01 + 0.19 / 3)
    assert float(found.shift[0, 1]) == pytest.approx(0.1 / sd, abs=0.1)
    assert float(found.ks[0, 1]) > float(found.ks[1].max())
    assert bool(((found.variance_ratio[1] - 1).abs() < 0.2).all())


def test_within_modes_with_weights_and_lost_modes() -> None:
    target = bracket()
    x = target.sample(60, seed=9)
    times, log_weight = integer_weights(60, 10)
    weighted = metrics.within_modes(x, target, log_weight=log_weight, seed=11)
    repeated = metrics.within_modes(x.repeat_interleave(times, 0), target, seed=11)
    torch.testing.assert_close(weighted.shift, repeated.shift)
    torch.testing.assert_close(weighted.ks, repeated.ks)
    one = x[target.mode(x) == 0]
    found = metrics.within_modes(one, target)
    assert found.n.tolist() == [len(one), 0] and found.ess.tolist() == [len(one), 0]
    assert bool(found.shift[1].isnan().all()) and not bool(found.shift[0].isnan().any())
    assert found.ratio_range[0].isnan().tolist() == [False, True]


def test_within_modes_refuses() -> None:
    target = bracket()
    with pytest.raises(TypeError, match=r"target must have .* got Funnel"):
        metrics.within_modes(torch.zeros(3, 10), targets.Funnel())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_exact must be larger: mode"):
        metrics.within_modes(torch.zeros(3, 4), target, n_exact=2)
    with pytest.raises(ValueError, match=r"x must be \(n, \*\(4,\)\), got \(3, 5\)"):
        metrics.within_modes(torch.zeros(3, 5), target)


def test_noise_floor_is_the_metric_of_two_halves() -> None:
    target = bracket()
    floor = metrics.noise_floor(metrics.mmd, target, 50, repeats=3, seed=4, bandwidth=0.5)
    both = target.sample(100, seed=6)
    assert floor.values[2] == float(metrics.mmd(both[:50], both[50:], 0.5))
    assert floor.low == min(floor.values) > 0 and floor.high == max(floor.values)
    assert floor.mean == pytest.approx(sum(floor.values) / 3)
    wrong = Changed(target, lambda x: 2 * x)
    assert metrics.noise_floor(metrics.mmd, wrong, 50, repeats=3, seed=4).values != floor.values
    with pytest.raises(TypeError, match=r"target must have exact draws .* got object"):
        metrics.noise_floor(metrics.mmd, object(), 9)  # type: ignore[arg-type]
    for bad in ({"n": 0}, {"n": 9, "repeats": 0}):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            metrics.noise_floor(metrics.mmd, target, **bad)  # type: ignore[arg-type]


# Values found with another implementation, at n = 1024.
FLOORS = {
    "8 Gaussians": (metrics.wasserstein2, targets.EightGaussians(), 1.43),
    "rings": (metrics.wasserstein2, targets.Rings(), 0.33),
    "funnel": (metrics.sliced_ks_histogram, targets.Funnel(), 0.031),
}


@pytest.mark.parametrize("name", FLOORS)
def test_floors_at_1024(name: str) -> None:
    metric, target, expected = FLOORS[name]
    repeats = 8
    floor = metrics.noise_floor(metric, target, 1024, repeats=repeats)
    spread = float(np.std(floor.values, ddof=1))
    assert 0 < spread < 0.3 * expected
    # Both are means of a few values.
    assert abs(floor.mean - expected) < 5 * spread * math.sqrt(2 / repeats)
    assert floor.low <= expected + spread and floor.high >= expected - spread


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, expected", [("8 Gaussians", 0.92), ("rings", 0.177), ("funnel", 0.0148)]
)
def test_floors_at_4096(name: str, expected: float) -> None:
    metric, target, at_1024 = FLOORS[name]
    floor = metrics.noise_floor(metric, target, 4096, repeats=4, seed=20)
    spread = float(np.std(floor.values, ddof=1))
    assert floor.mean < 0.8 * at_1024
    # The other implementation's value may be that of one pair.
    assert abs(floor.mean - expected) < 5 * spread * math.sqrt(1 + 1 / 4)


@pytest.mark.slow
def test_weighted_transport_of_thousands_of_points() -> None:
    ot = pytest.importorskip("ot")
    both = targets.EightGaussians().sample(2500, seed=1, dtype=torch.float64)
    x, y, log_weight = both[:1000], both[1000:], normals(1000, 1, seed=45)[:, 0]
    mass = torch.softmax(log_weight, 0).numpy()
    expected = ot.emd2(mass, np.full(1500, 1 / 1500), costs(x, y), numItermax=10**7)
    value = metrics.wasserstein2(x, y, log_weight_x=log_weight)
    assert float(value) == pytest.approx(math.sqrt(expected), rel=1e-9)
