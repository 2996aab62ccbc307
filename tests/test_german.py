"""Sparse logistic regression: density and score, reading of the credit data, the published posterior."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import pysamp
from pysamp import metrics
from pysamp.check import check_target
from pysamp.mcmc import HMC
from pysamp.target import HasObservables, log_prob_and_score
from pysamp.targets import SparseLogistic

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "german.data-numeric"


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def made(n=21, p=3, n_test=7):
    label = (noise(n + n_test, seed=2) > 0.3).double()
    x = noise(n + n_test, p, seed=1) + label[:, None]
    return SparseLogistic(x[:n], label[:n], x[n:], label[n:])


def written(folder, change=None):
    """A file of the right form with numbers of its own; `change(rows)` spoils it."""
    number = np.random.default_rng(3)
    rows = [
        [*map(str, number.integers(0, 9, 24)), str(label)] for label in number.integers(1, 3, 1000)
    ]
    if change:
        rows = change(rows) or rows
    path = folder / "german.data-numeric"
    path.write_text("".join("   ".join(row) + " \n" for row in rows))
    return path


# ------------------------------------------------------------------------------------- density
def test_density_is_that_of_the_model_written_out():
    target = made()
    x = noise(4, 7, seed=3)
    for row, value, test in zip(
        x.tolist(), target.log_prob(x).tolist(), target.predictive(x).tolist(), strict=True
    ):
        beta, scale, tau = row[:3], [math.exp(u) for u in row[3:6]], math.exp(row[6])
        logs = stats.norm.logpdf(beta).sum()
        # densities of λ and τ, times λ and τ for the logarithms as coordinates
        gamma = stats.gamma(0.5, scale=2.0)
        logs += sum(gamma.logpdf(s) + math.log(s) for s in [*scale, tau])
        assert float(target.log_prior(torch.tensor([row], dtype=torch.float64))) == pytest.approx(
            logs, rel=1e-12
        )
        weights = [tau * b * s for b, s in zip(beta, scale, strict=True)]
        for features, labels, found, prior in (
            (target.features, target.labels, value, logs),
            (target.test_features, target.test_labels, test, 0.0),
        ):
            total = prior
            for f, label in zip(features.tolist(), labels.tolist(), strict=True):
                p = 1 / (1 + math.exp(-sum(a * b for a, b in zip(f, weights, strict=True))))
                total += math.log(p if label else 1 - p)
            assert found == pytest.approx(total, rel=1e-10)
    check_target(target)


def test_score_is_the_gradient_and_the_prior_integrates_to_one():
    target = made()
    x = noise(6, 7, seed=4).requires_grad_()
    (slope,) = torch.autograd.grad(target.log_prob(x).sum(), x)
    value, score = log_prob_and_score(target, x.detach())
    torch.testing.assert_close(score, slope, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(value, target.log_prob(x.detach()), rtol=1e-13, atol=1e-13)
    # One feature of 0: the likelihood is constant, and three coordinates are left of the prior.
    flat = SparseLogistic(torch.zeros(3, 1), torch.tensor([0.0, 1.0, 1.0]))
    axes = torch.linspace(-8, 8, 33), torch.linspace(-40, 4, 89), torch.linspace(-40, 4, 89)
    grid = torch.cartesian_prod(*(a.double() for a in axes))
    cell = math.prod(float(a[1] - a[0]) for a in axes)
    assert float(flat.log_prior(grid).exp().sum()) * cell == pytest.approx(1.0, abs=1e-6)
    assert float(flat.log_prob(grid[:5])[0] - flat.log_prior(grid[:5])[0]) == pytest.approx(
        -3 * math.log(2)
    )


def test_predictions_and_observables():
    target = made()
    x = noise(5, 7, seed=5)
    assert isinstance(target, HasObservables)
    seen = target.observables(x)
    torch.testing.assert_close(seen["log_likelihood"], target.log_prob(x) - target.log_prior(x))
    assert torch.equal(seen["log_tau"], x[:, 6])
    torch.testing.assert_close(seen["log_lambda"], x[:, 3:6].mean(1))
    torch.testing.assert_close(target.pointwise(x).sum(1), target.predictive(x))
    torch.testing.assert_close(target.weights(x), x[:, 6:].exp() * x[:, 3:6].exp() * x[:, :3])
    bare = SparseLogistic(target.features, target.labels)
    with pytest.raises(ValueError, match="nothing to predict"):
        bare.predictive(x)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"features": torch.zeros(21)}, "features must be"),
        ({"labels": torch.zeros(20)}, "labels must be"),
        ({"labels": torch.full((21,), 2.0)}, "labels must be 0 or 1"),
        ({"features": torch.full((21, 3), math.nan)}, "features must be finite"),
        ({"test_labels": None}, "given together"),
        ({"test_features": torch.zeros(7, 2)}, r"test_features must be \(n, 3\)"),
    ],
)
def test_bad_data_are_named(change, match):
    target = made()
    names = ("features", "labels", "test_features", "test_labels")
    with pytest.raises(ValueError, match=match):
        SparseLogistic(**({name: getattr(target, name) for name in names} | change))


# ------------------------------------------------------------------------------------- files
def test_the_split_is_that_of_a_seeded_permutation(tmp_path):
    """train_test_split(random_state=42) of scikit-learn permutes with numpy and takes the first 250."""
    path = written(tmp_path)
    raw = np.loadtxt(path)
    target = SparseLogistic.from_uci(path)
    order = np.random.RandomState(42).permutation(1000)
    for rows, features, labels in (
        (np.sort(order[:250]), target.test_features, target.test_labels),
        (np.sort(order[250:]), target.features, target.labels),
    ):
        assert labels.tolist() == (2 - raw[rows, -1]).tolist()
        low, high = raw[:, :-1].min(0), raw[:, :-1].max(0)
        scaled = 2 * (raw[rows, :-1] - low) / (high - low) - 1
        torch.testing.assert_close(
            features[:, 1:], torch.from_numpy(scaled), rtol=1e-12, atol=1e-12
        )
        assert bool((features[:, 0] == 1).all())
    assert target.event_shape == (51,)


def spoil(row, column, text):
    def change(rows):
        rows[row][column] = text

    return change


@pytest.mark.parametrize(
    "change, match",
    [
        (spoil(6, 3, "x"), "line 7: expected numbers"),
        (spoil(6, 3, "nan"), "line 7: expected finite"),
        (spoil(998, -1, "3"), "line 999: the label must be 1 or 2, got 3"),
        (lambda rows: rows[:-1], "expected 1000 rows, got 999"),
        (lambda rows: [row[:-1] for row in rows], "line 1: expected 25 numbers, got 24"),
        (lambda rows: [["1", *row[1:]] for row in rows], "column 1 is constant"),
    ],
)
def test_bad_files_are_named(tmp_path, change, match):
    path = written(tmp_path, change)
    with pytest.raises(ValueError, match=match) as caught:
        SparseLogistic.from_uci(path)
    assert str(path) in str(caught.value)


def published():
    if not DATA.is_file():
        pytest.skip(f"needs {DATA.name}")
    return SparseLogistic.from_uci(DATA)


def test_published_data():
    target = published()
    assert tuple(target.features.shape) == (750, 25) and tuple(target.test_features.shape) == (
        250,
        25,
    )
    assert float(target.test_labels.sum()) == 178 and float(target.labels.sum()) == 700 - 178
    check_target(target)


# E and sd of τ λ_j β_j, j = 0 … 4: NUTS, 3 chains of 1500, of the specification.
WEIGHTS = ((0.269, 0.391), (0.830, 0.117), (-0.968, 0.367), (0.740, 0.193), (-0.324, 0.365))


@pytest.mark.slow
def test_published_posterior():
    """Check 14 of the specification."""
    target, n_chains, n_draws = published(), 64, 300
    samples = pysamp.sample(
        target, HMC(trajectory_length=2.0, inverse_mass="adapt"), n_chains=n_chains, n_draws=n_draws,
        warmup=400, seed=2, x0=0.1 * noise(n_chains, 51).float(), progress=False,
    )  # fmt: skip
    x = samples.x.double().flatten(0, 1)
    assert float(metrics.rhat(samples.x).max()) < 1.03

    def mean(values):
        chains = values.reshape(n_chains, n_draws).mean(1)
        assert float(chains.std()) / 8 < 0.02 * max(1.0, abs(float(chains.mean())))
        return float(chains.mean())

    assert mean(x[:, -1]) == pytest.approx(-0.951, abs=0.1)
    assert float(x[:, -1].std()) == pytest.approx(0.423, abs=0.05)
    assert mean(x[:, 25:50].mean(1)) == pytest.approx(-1.120, abs=0.05)
    weights = target.weights(x)
    for j, (expected, spread) in enumerate(WEIGHTS):
        assert mean(weights[:, j]) == pytest.approx(expected, abs=0.06)
        assert float(weights[:, j].std()) == pytest.approx(spread, rel=0.15)
    log_p = target.pointwise(x)  # (draws, 250)
    assert mean(log_p.mean(1)) == pytest.approx(-0.4930, abs=0.005)
    predictive = log_p.logsumexp(0) - math.log(len(x))
    assert float(predictive.mean()) == pytest.approx(-0.480, abs=0.005)
    assert float((predictive > math.log(0.5)).double().mean()) == pytest.approx(0.756, abs=0.013)
    assert mean(samples.log_prob.double()) == pytest.approx(-455.3, abs=1.5)
