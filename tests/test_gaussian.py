"""The normal density against scipy, and its bridge to other densities."""

import math

import pytest
import torch
from scipy.stats import multivariate_normal

from pysamp import backend, rng
from pysamp.check import check_target
from pysamp.describe import describe, rebuild
from pysamp.mcmc.langevin import MALA, Multiplicative
from pysamp.target import Counted, FunctionTarget, HasNative, log_prob_and_score
from pysamp.targets import Phi4, TwoModes
from pysamp.targets.gaussian import Bridged, Gaussian

F64 = torch.float64
SE = 5.0
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
MATRIX = torch.tensor([[2.0, 0.6, -0.3], [0.6, 1.0, 0.2], [-0.3, 0.2, 0.5]], dtype=F64)
FORMS = {
    "one variance": 0.7,
    "variances": torch.tensor([0.5, 2.0, 1.5], dtype=F64),
    "matrix": MATRIX,
}


def matrix_of(form):
    covariance = torch.as_tensor(FORMS[form], dtype=F64)
    return covariance if covariance.ndim == 2 else torch.diag(covariance.expand(3))


def points(n, dtype=F64, seed=1):
    return 2 * rng.normal((n, 3), seed=seed, stream="user", dtype=dtype)


# ---------------------------------------------------------------------------- the density
@pytest.mark.parametrize("form", FORMS)
def test_density_is_that_of_scipy(form):
    g, x = Gaussian(MEAN, FORMS[form]), points(50)
    matrix = matrix_of(form)
    known = multivariate_normal(MEAN.numpy(), matrix.numpy())
    torch.testing.assert_close(g.log_prob(x), torch.as_tensor(known.logpdf(x.numpy())))
    torch.testing.assert_close(g.score(x), -torch.linalg.solve(matrix, (x - MEAN).T).T)
    torch.testing.assert_close(g.precision, torch.linalg.inv(matrix))
    assert g.log_norm == pytest.approx(-float(g.log_prob(MEAN[None])[0]), abs=1e-12)
    assert g.largest_variance == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]))
    assert g.log_z == 0
    check_target(g)


@pytest.mark.parametrize("form", FORMS)
def test_draws_have_their_moments(form, dtype):
    g, n = Gaussian(MEAN, FORMS[form]), 40_000
    x = g.sample(n, seed=3, dtype=dtype).double()
    matrix = matrix_of(form)
    assert bool(((x.mean(0) - MEAN).abs() < SE * (matrix.diagonal() / n).sqrt()).all())
    centred = x - MEAN
    found = centred.T @ centred / n
    variance = matrix.diagonal()[:, None] * matrix.diagonal() + matrix**2  # n Var of an entry
    assert bool(((found - matrix).abs() < SE * (variance / n).sqrt()).all())
    assert float((found - matrix).abs().max()) > 0


def test_draws_do_not_depend_on_how_they_are_split():
    g = Gaussian(MEAN, MATRIX)
    parts = [g.sample(k, seed=2, first_chain=first) for first, k in ((0, 4), (4, 3))]
    torch.testing.assert_close(torch.cat(parts), g.sample(7, seed=2))


def test_the_simplest_form_counts():
    """A matrix that is diagonal is native, and a multiple of 1 has one variance."""
    assert Gaussian(MEAN, 0.7).variance == 0.7
    assert Gaussian(MEAN, 0.7 * torch.eye(3)).variance == pytest.approx(0.7)
    assert Gaussian(MEAN, torch.full((3,), 0.7)).variance == pytest.approx(0.7)
    assert Gaussian(MEAN, FORMS["variances"]).variance is None
    assert Gaussian(MEAN, MATRIX).variance is None
    natives = [Gaussian(MEAN, c) for c in (0.7, FORMS["variances"], torch.diag(MEAN**2))]
    assert all(isinstance(g, HasNative) for g in natives)
    assert not isinstance(Gaussian(MEAN, MATRIX), HasNative)


def test_events_of_any_shape():
    g = Gaussian(MEAN.repeat(2).reshape(2, 3), torch.arange(1.0, 7.0))
    flat = Gaussian(MEAN.repeat(2), torch.arange(1.0, 7.0))
    x = rng.normal((5, 2, 3), seed=1, dtype=F64)
    assert g.event_shape == (2, 3)
    torch.testing.assert_close(g.log_prob(x), flat.log_prob(x.flatten(1)))
    torch.testing.assert_close(g.place(x).flatten(1), flat.place(x.flatten(1)))
    check_target(g)


def test_described_and_rebuilt():
    again = rebuild(describe(Gaussian(MEAN, MATRIX)))
    assert torch.equal(again.log_prob(points(5)), Gaussian(MEAN, MATRIX).log_prob(points(5)))


# ---------------------------------------------------------------------------- the bridge
@pytest.mark.parametrize("form", FORMS)
def test_bridge_between_gaussians(form):
    """Precisions mix: the density at λ is a Gaussian that is known."""
    base, reference, x = Gaussian(-MEAN, MATRIX), Gaussian(MEAN, FORMS[form]), points(20)
    lam = torch.linspace(0, 1, 20, dtype=F64)
    bridged = Bridged(base, reference, lam)
    log_prob, score = bridged.log_prob_and_score(x)
    torch.testing.assert_close(bridged.log_prob(x), log_prob)
    a, b = torch.linalg.inv(MATRIX), torch.linalg.inv(matrix_of(form))
    for k, weight in enumerate(lam.tolist()):
        precision = weight * a + (1 - weight) * b
        centre = torch.linalg.solve(precision, (weight * -a + (1 - weight) * b) @ MEAN)
        torch.testing.assert_close(score[k], -precision @ (x[k] - centre))
        one = Bridged(base, reference, weight)
        there = torch.stack([x[k], centre])
        torch.testing.assert_close(one.log_prob(there)[0], log_prob[k])
        drop = -0.5 * (x[k] - centre) @ precision @ (x[k] - centre)
        torch.testing.assert_close(one.log_prob(there)[0] - one.log_prob(there)[1], drop)
    at_mean = Bridged(base, reference, 0.0).log_prob(MEAN[None])
    assert float(at_mean[0]) == 0  # without the constant of the reference
    torch.testing.assert_close(log_prob[-1], base.log_prob(x[-1:])[0])


@pytest.mark.parametrize("form", FORMS)
def test_bridge_keeps_the_contract_of_a_target(form):
    for lam in (0.0, 0.3, 1.0):
        check_target(Bridged(TwoModes(3), Gaussian(MEAN, FORMS[form]), lam))


def test_at_the_reference_the_base_counts_for_nothing():
    """Also where its density is 0 and its score NaN."""
    base = FunctionTarget(lambda x: torch.where(x[:, 0] > 0, 0.0 * x[:, 0], -torch.inf), (3,))
    g, x = Gaussian(MEAN, MATRIX), points(50)
    log_prob, score = log_prob_and_score(Bridged(base, g, torch.zeros(50)), x)
    torch.testing.assert_close(log_prob, g.log_prob(x) + g.log_norm)
    torch.testing.assert_close(score, g.score(x))
    assert bool((Bridged(base, g, 0.5).log_prob(x) == -math.inf).any())


@pytest.mark.parametrize("form", FORMS)
def test_native_and_torch_agree(form, dtype):
    """Counted alike, and to rounding (the mixture is no more than that itself)."""
    x, lam = points(9, dtype), torch.linspace(0.1, 1, 9)
    results = []
    for way in ("native", "torch"):
        target = Counted(TwoModes(3, variance=0.4))
        bridged = Bridged(target, Gaussian(MEAN, FORMS[form]), lam)
        with backend(way):
            out = MALA(adapt=Multiplicative()).advance(bridged, x, 0.1, 20, seed=4)
        results.append((out, target.evaluations, target.gradients))
    (a, *costs), (b, *others) = results
    assert costs == others == [9 * 21, 9 * 21]
    assert not torch.equal(a.x, x)
    close = {"rtol": 2e-4, "atol": 2e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    for one, other in ((a.x, b.x), (a.log_prob, b.log_prob), (a.step_size, b.step_size)):
        torch.testing.assert_close(one, other, **close)


def test_native_and_torch_agree_to_the_last_bit_on_a_field():
    target, reference = Phi4((3, 4), 0.2, 0.5), Gaussian(torch.full((3, 4), 0.1), 0.8)
    x, outs = rng.normal((7, 3, 4), seed=1), []
    for way in ("native", "torch"):
        with backend(way):
            outs.append(MALA().advance(Bridged(target, reference, 0.3), x, 0.05, 20, seed=4))
    assert torch.equal(outs[0].x, outs[1].x)
    assert torch.equal(outs[0].log_prob, outs[1].log_prob)
    assert not torch.equal(outs[0].x, x)


# ---------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("mean", "covariance", "text"),
    [
        (MEAN, torch.ones(2), r"covariance must be \(\), \(3,\) or \(3, 3\) .* got shape \(2,\)"),
        (torch.tensor(1.0), 1.0, r"mean must be \(d,\) with d > 0, got shape \(\)"),
        (torch.zeros(0), 1.0, "mean must be"),
        (MEAN, -1.0, "covariance must have positive variances, got -1.0"),
        (MEAN, torch.tensor([1.0, 0.0, 1.0]), "positive variances"),
        (MEAN, math.nan, "covariance must be finite, got nan"),
        (torch.tensor([math.inf, 0.0]), 1.0, "mean must be finite"),
        (MEAN, MATRIX + torch.triu(MATRIX, 1), "covariance must be symmetric"),
        (MEAN, MATRIX - 2 * torch.eye(3), "covariance must be positive definite, least eigenvalue"),
    ],
)
def test_bad_gaussians(mean, covariance, text):
    with pytest.raises(ValueError, match=text):
        Gaussian(mean, covariance)


def test_bad_bridges():
    g, base = Gaussian(MEAN, 1.0), TwoModes(3)
    for lam in (-0.1, 1.5, math.nan, torch.tensor([0.5, 2.0])):
        with pytest.raises(ValueError, match=r"lam must lie in \[0, 1\]"):
            Bridged(base, g, lam)
    with pytest.raises(ValueError, match=r"lam must be a number or \(n,\)"):
        Bridged(base, g, torch.ones(2, 2))
    with pytest.raises(
        ValueError, match=r"reference must have the event shape .* \(2,\), got \(3,\)"
    ):
        Bridged(TwoModes(2), g, 0.5)
    with pytest.raises(TypeError, match="reference must be a Gaussian, got float"):
        Bridged(base, 1.0, 0.5)
    with pytest.raises(ValueError, match="lam has 4 entries but x has 5 rows"):
        Bridged(base, g, torch.full((4,), 0.5)).log_prob(points(5))
