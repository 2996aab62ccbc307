"""Diagnostics against ArviZ, distances against SciPy, mode weights against their scatter."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from pysamp import metrics
from pysamp.metrics import convergence

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    arviz = pytest.importorskip("arviz")  # the oracle of this file

logging.getLogger("arviz").setLevel(logging.ERROR)  # it logs every NaN and every short chain

KINDS = ("bulk", "tail", "mean")


def ar1(shape: tuple[int, ...], rho: float, seed: int) -> Tensor:
    """Stationary Gaussian AR(1) chains of unit variance and autocorrelation rho^lag."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = noise.clone()
    for t in range(1, shape[1]):
        x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho**2) * noise[:, t]
    return x


def two_state(n_chains: int, n_draws: int, p: float, stay: float, seed: int) -> Tensor:
    """Stationary 0/1 chains with P(1) = p and autocorrelation stay^lag."""
    generator = torch.Generator().manual_seed(seed)
    fresh = torch.rand(n_chains, n_draws, generator=generator) < p
    keep = torch.rand(n_chains, n_draws, generator=generator) < stay
    state = fresh.clone()
    for t in range(1, n_draws):
        state[:, t] = torch.where(keep[:, t], state[:, t - 1], fresh[:, t])
    return state.double()


def check_against_arviz(x: Tensor) -> None:
    array = x.numpy()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        expected: dict[str, Any] = {kind: arviz.ess(array, method=kind) for kind in KINDS}
        expected |= {"rhat": arviz.rhat(array), "mcse": arviz.mcse(array)}
    ours = {kind: metrics.ess(x, kind) for kind in KINDS}  # type: ignore[arg-type]
    ours |= {"rhat": metrics.rhat(x), "mcse": metrics.mcse(x)}
    for name, value in ours.items():
        assert value.dtype == torch.float64
        # Chains that never move: the variance within them is 0 here and may be one rounding error
        # squared in ArviZ.
        reference = float(expected[name])
        reference = math.inf if name == "rhat" and reference > 1e10 else reference
        np.testing.assert_allclose(float(value), reference, rtol=1e-9, err_msg=name)


# ---- ArviZ ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_draws", [4, 5, 6, 7, 9, 20, 101, 400])
@pytest.mark.parametrize("n_chains", [1, 2, 5])
@pytest.mark.parametrize("rho", [-0.8, 0.3, 0.95])
def test_ar1_chains(n_chains: int, n_draws: int, rho: float) -> None:
    check_against_arviz(ar1((n_chains, n_draws), rho, seed=n_draws))


@pytest.mark.parametrize("n_draws", [4, 11, 100])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x: x.round(), id="ties"),
        pytest.param(lambda x: (x > 0).double(), id="binary"),
        pytest.param(lambda x: x + 9 * torch.arange(len(x))[:, None], id="stuck"),
        pytest.param(lambda x: (x > 0).double()[:, :1].expand_as(x), id="frozen"),
        pytest.param(lambda x: torch.full_like(x, 0.5), id="constant"),
        pytest.param(lambda x: x * 1e-17, id="tiny"),
        pytest.param(lambda x: x * 1e200, id="huge"),
        pytest.param(lambda x: x.masked_fill(x > 1, math.inf), id="inf"),
        pytest.param(lambda x: x.masked_fill(x > -0.2, math.inf), id="mostly-inf"),
        pytest.param(lambda x: x.masked_fill(x == x.max(), math.nan), id="nan"),
        pytest.param(lambda x: torch.full_like(x, -math.inf), id="all-inf"),
        pytest.param(lambda x: x.exp().square().square(), id="heavy-tail"),
    ],
)
def test_odd_inputs(change: Callable[[Tensor], Tensor], n_draws: int) -> None:
    check_against_arviz(change(ar1((4, n_draws), 0.6, seed=3)))


def test_float32_input_is_computed_in_float64() -> None:
    x = ar1((3, 150), 0.5, seed=4).float()
    for kind in KINDS:
        assert metrics.ess(x, kind).equal(metrics.ess(x.double(), kind))  # type: ignore[arg-type]
    assert metrics.rhat(x).equal(metrics.rhat(x.double()))
    check_against_arviz(x.double())


def test_event_coordinates_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    x = ar1((4, 60, 2, 3), 0.7, seed=5)
    x[0, 0, 1, 2] = math.nan
    for block in (
        1 << 23,
        500,
        1,
    ):  # all at once, two at a time, one by one with one chain at a time
        monkeypatch.setattr(convergence, "_BLOCK", block)
        for f in (metrics.rhat, metrics.ess, metrics.mcse, lambda x: metrics.ess(x, "tail")):
            value = f(x)
            assert value.shape == (2, 3)
            alone = torch.stack([f(x[:, :, i, j]) for i in range(2) for j in range(3)])
            torch.testing.assert_close(value.flatten(), alone, rtol=1e-12, atol=0.0, equal_nan=True)
            assert value.isnan().sum() == 1
    check_against_arviz(x[:, :, 0, 1])


def test_one_chain_and_short_chains_have_no_rhat() -> None:
    assert metrics.rhat(ar1((1, 100), 0.2, seed=6)).isnan()
    assert metrics.rhat(ar1((4, 3), 0.2, seed=6)).isnan()
    assert metrics.ess(ar1((4, 3), 0.2, seed=6)).isnan()


# ---- closed forms --------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_ess_of_ar1_equals_its_closed_form(rho: float) -> None:
    n_chains, n_draws = 16, 2000
    x = ar1((n_chains, n_draws, 20), rho, seed=7)
    expected = n_chains * n_draws * (1 - rho) / (1 + rho)
    ratio = metrics.ess(x, "mean") / expected
    error = float(ratio.std()) / math.sqrt(20)
    # 5 standard errors, and 2 % for the bias of the truncated sum of autocorrelations.
    assert abs(float(ratio.mean()) - 1) < 5 * error + 0.02
    torch.testing.assert_close(
        metrics.mcse(x), x.flatten(0, 1).std(0) / metrics.ess(x, "mean").sqrt()
    )


def test_rhat_sees_location_and_scale() -> None:
    x = ar1((4, 500), 0.0, seed=8)
    assert 0.999 < float(metrics.rhat(x)) < 1.01
    shifted, stretched = x.clone(), x.clone()
    shifted[0] += 1.0
    stretched[0] *= 4.0  # only the folded draws show it
    assert float(metrics.rhat(shifted)) > 1.05
    assert float(metrics.rhat(stretched)) > 1.05
    assert metrics.rhat(torch.arange(4.0)[:, None].expand(4, 10)).isposinf()


def test_ess_weights() -> None:
    assert float(metrics.ess_weights(torch.zeros(7))) == 7.0
    log_weight = torch.tensor([0.0, math.log(2), math.log(3), -math.inf]) + 1000.0
    assert float(metrics.ess_weights(log_weight)) == pytest.approx(36 / 14, rel=1e-4)
    assert float(metrics.ess_weights(torch.full((3,), -math.inf))) == 0.0
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="log_weight"):
            metrics.ess_weights(torch.tensor([0.0, bad]))


# ---- mode weights --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """The mode is the integer nearest to the first coordinate; negative ones are no mode."""

    k: int = 2

    @property
    def mode_weights(self) -> Tensor:
        return torch.full((self.k,), 1 / self.k)

    def mode(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1)[:, 0].round().long().clamp(min=-1)


@dataclass(frozen=True)
class Output:
    x: Tensor
    log_weight: Tensor | None


def test_mode_weights_of_stuck_chains_have_the_error_of_their_number() -> None:
    x = (torch.arange(64) < 19).double()[:, None].expand(64, 1000)
    weights, errors = metrics.mode_weights(x, Cells())
    assert weights.tolist() == pytest.approx([45 / 64, 19 / 64], rel=1e-12)
    expected = math.sqrt(19 * 45 / 64**3)
    # A binomial is skew: four of its errors reach further on the side of 1/2.
    assert errors.tolist() == pytest.approx([1.1 * expected, 1.1 * expected], rel=0.1)
    # The same when a few chains leave their mode once.
    moving = x.clone()
    moving[:3, 500:] = 1 - moving[:3, 500:]
    assert float(metrics.mode_weights(moving, Cells())[1][0]) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("n_chains, n_draws, stay", [(64, 50, 1.0), (8, 400, 0.9), (16, 3, 0.5)])
def test_mode_weight_errors_cover(n_chains: int, n_draws: int, stay: float) -> None:
    p, n_repeats = 0.3, 300
    z = []
    for seed in range(n_repeats):
        x = two_state(n_chains, n_draws, p, stay, seed)
        weights, errors = metrics.mode_weights(x, Cells())
        z.append(float((weights[1] - p) / errors[1]))
    rms = math.sqrt(sum(v**2 for v in z) / n_repeats)
    # Standardised errors have unit variance; their rms has a standard error of 1 / sqrt(2 n).
    # Errors are the largest of several candidates, so they may be too large by the scatter between
    # those.
    assert 0.7 < rms < 1 + 5 / math.sqrt(2 * n_repeats)


def test_one_stray_draw_does_not_make_a_weight_certain() -> None:
    x = torch.zeros(4, 1000)
    assert metrics.mode_weights(x, Cells())[1].tolist() == [0.75, 0.75]
    x[0, 0] = 1.0
    weights, errors = metrics.mode_weights(x, Cells())
    assert weights.tolist() == pytest.approx([1 - 1 / 4000, 1 / 4000])
    assert bool((errors > 0.5 / 4).all()), "1/2 must stay within four errors"
    # Many stray draws say more.
    x[:, ::20] = 1.0
    assert float(metrics.mode_weights(x, Cells())[1][1]) < 0.01


@pytest.mark.parametrize("p", [0.5, 0.3])
@pytest.mark.parametrize(
    ("n_chains", "switches"), [(4, 0.3), (4, 1), (2, 3), (1, 3), (1, 6), (4, 3), (4, 10), (1, 20)]
)
def test_four_errors_are_rarely_exceeded_however_few_the_switches(
    n_chains: int, switches: float, p: float
) -> None:
    n_draws, n_repeats = 500, 150
    stay = 1 - switches / (2 * n_draws * p * (1 - p))
    x = two_state(n_chains * n_repeats, n_draws, p, stay, seed=round(100 * switches) + n_chains)
    z = []
    for chains in x.reshape(n_repeats, n_chains, n_draws):
        weights, errors = metrics.mode_weights(chains, Cells())
        z.append(float((weights[1] - p) / errors[1]))
    # 0.1 % over all rows of 1500 repeats each, where the other errors alone give up to 11 %.
    assert sum(abs(v) > 4 for v in z) <= 1
    rms = math.sqrt(sum(v**2 for v in z) / n_repeats)
    assert 0.5 < rms < 1.15 + 5 / math.sqrt(2 * n_repeats), "errors must not be too large, either"


def test_mode_weights_when_a_mode_was_never_seen() -> None:
    weights, errors = metrics.mode_weights(torch.zeros(50, 200), Cells())
    assert weights.tolist() == [1.0, 0.0]
    assert errors.tolist() == pytest.approx([3 / 50, 3 / 50])
    assert metrics.mode_weights(torch.zeros(2, 10**4), Cells())[1].tolist() == [1.0, 1.0]
    # Chains that move between two modes still say nothing about a third.
    weights, errors = metrics.mode_weights(two_state(10, 500, 0.5, 0.1, seed=1), Cells(3))
    assert float(weights[2]) == 0.0
    assert float(errors[2]) == pytest.approx(0.3)
    assert 0.0 < float(errors[0]) < 0.05


def test_mode_weights_of_independent_draws_are_binomial() -> None:
    x = torch.zeros(1000, 1, 4)
    x[:250] = 1.0
    x[250:300] = -1.0  # in no mode
    weights, errors = metrics.mode_weights(x, Cells())
    assert weights.tolist() == pytest.approx([0.7, 0.25])
    assert errors.tolist() == pytest.approx(
        [math.sqrt(0.21 / 1000), math.sqrt(0.1875 / 1000)], rel=0.08
    )


def test_weighted_mode_weights() -> None:
    # Proposal weight 1/2 each, target weights (0.8, 0.2): importance weights 1.6 and 0.4 by mode.
    p, n_repeats, n = 0.2, 200, 400
    z, sizes = [], []
    for seed in range(n_repeats):
        x = two_state(n, 1, 0.5, 0.0, seed)
        log_weight = torch.where(x > 0.5, math.log(0.4), math.log(1.6)) - 700.0
        weights, errors = metrics.mode_weights(Output(x, log_weight), Cells())
        as_argument = metrics.mode_weights(x, Cells(), log_weight)
        assert weights.equal(as_argument[0]) and errors.equal(as_argument[1])
        z.append(float((weights[1] - p) / errors[1]))
        sizes.append(float(errors[1]))
    # Delta method: E[w^2 (I - p)^2] = (1.6^2 p^2 + 0.4^2 (1 - p)^2) / 2; Kish: p (1 - p) E[w^2].
    # The larger one is reported.
    delta = math.sqrt((1.6**2 * p**2 + 0.4**2 * (1 - p) ** 2) / 2 / n)
    kish = math.sqrt(p * (1 - p) * (1.6**2 + 0.4**2) / 2 / n)
    assert np.mean(sizes) == pytest.approx(max(delta, kish), rel=0.02)
    rms = math.sqrt(sum(v**2 for v in z) / n_repeats)
    expected = delta / max(delta, kish)
    assert abs(rms - expected) < 5 * expected / math.sqrt(2 * n_repeats)


def test_weighted_mode_weights_of_one_heavy_draw() -> None:
    x = two_state(100, 1, 0.5, 0.0, seed=2)
    log_weight = torch.zeros(100, 1)
    log_weight[int(x.flatten().argmax())] = 30.0
    weights, errors = metrics.mode_weights(x, Cells(), log_weight)
    assert float(weights[1]) > 0.999
    # One effective draw: the delta method alone would claim certainty.
    assert float(errors[1]) >= 0.999 * math.sqrt(float(weights[1] * weights[0]))
    log_weight = log_weight.masked_fill(log_weight == 0.0, -math.inf)
    weights, errors = metrics.mode_weights(x, Cells(), log_weight)
    assert weights.tolist() == [0.0, 1.0] and errors.tolist() == [1.0, 1.0]


def test_equal_log_weights_change_nothing() -> None:
    x = two_state(6, 100, 0.4, 0.6, seed=3)
    plain = metrics.mode_weights(x, Cells())
    weighted = metrics.mode_weights(Output(x, torch.full((6, 100), -12.5)), Cells())
    torch.testing.assert_close(plain, weighted, rtol=1e-12, atol=0.0)


def test_mode_weights_refuses() -> None:
    x = torch.zeros(2, 5)
    with pytest.raises(TypeError, match="target"):
        metrics.mode_weights(x, object())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="samples"):
        metrics.mode_weights([0.0], Cells())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x must be"):
        metrics.mode_weights(x[0], Cells())
    with pytest.raises(ValueError, match=r"target.mode must return -1 to 1, got 2 to 2"):
        metrics.mode_weights(x + 2, Cells())
    with pytest.raises(ValueError, match="log_weight must be"):
        metrics.mode_weights(x, Cells(), torch.zeros(2))
    with pytest.raises(ValueError, match="-inf everywhere"):
        metrics.mode_weights(x, Cells(), torch.full((2, 5), -math.inf))


# ---- distances -----------------------------------------------------------------------------------


def test_total_variation() -> None:
    tv = metrics.total_variation
    assert float(tv(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))) == 1.0
    a = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    assert float(tv(a, a)) == 0.0
    assert float(tv(a, a.flip(0))) == pytest.approx(0.1)
    assert float(tv(torch.tensor([0.25, 0.25]), torch.tensor([0.5, 0.5]))) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="weights"):
        tv(a, a[:2])
    with pytest.raises(ValueError, match="reference"):
        tv(a, a - 0.25)


@pytest.mark.parametrize("n, m", [(1, 9), (50, 80), (1000, 999)])
@pytest.mark.parametrize("ties", [False, True])
def test_two_sample_ks_equals_scipy(n: int, m: int, ties: bool) -> None:
    x, y = ar1((1, n), 0.0, seed=9)[0], 0.3 + 1.2 * ar1((1, m), 0.0, seed=10)[0]
    if ties:
        x, y = x.round(), y.round()
    expected = scipy.stats.ks_2samp(x.numpy(), y.numpy(), method="asymp").statistic
    assert expected > 0.05
    assert float(metrics.ks_statistic(x, y)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [1, 17, 1000])
def test_one_sample_ks_equals_scipy(n: int) -> None:
    x = 0.2 + ar1((1, n), 0.0, seed=11)[0]
    expected = scipy.stats.ks_1samp(x.numpy(), scipy.stats.norm.cdf).statistic
    assert float(metrics.ks_against(x, torch.special.ndtr)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: metrics.rhat(torch.zeros(5)), "x must be"),
        (lambda: metrics.ess(torch.zeros(0, 5)), "x must be"),
        (lambda: metrics.ess(torch.zeros(2, 5), "median"), "kind"),  # type: ignore[arg-type]
        (lambda: metrics.ks_statistic(torch.zeros(0), torch.zeros(3)), "x must"),
        (lambda: metrics.ks_statistic(torch.zeros(3), torch.tensor([math.nan])), "y must"),
        (lambda: metrics.ks_against(torch.zeros(3), lambda x: x + 2), "cdf"),
    ],
)
def test_refuses(call: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
