"""Logistic regression: density, predictions, reading of data, its chains against quadrature."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import pysamp
from pysamp.check import check_target
from pysamp.mcmc import HMC, MALA
from pysamp.target import HasNative, log_prob_and_score
from pysamp.targets import LogisticRegression

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def made(n: int = 21, p: int = 4, n_test: int = 7, **how: float) -> LogisticRegression:
    label = (noise(n + n_test, seed=2) > 0.3).double()
    x = noise(n + n_test, p, seed=1) + label[:, None]
    return LogisticRegression(x[:n], label[:n], x[n:], label[n:], **how)


def plain_log_likelihood(x: list[float], features: Tensor, labels: Tensor) -> float:
    """Term by term, by probabilities."""
    total = 0.0
    for row, label in zip(features.tolist(), labels.tolist(), strict=True):
        t = sum(w * f for w, f in zip(x[:-1], row, strict=True)) + x[-1]
        p = 1 / (1 + math.exp(-t))
        total += math.log(p if label == 1 else 1 - p)
    return total


def plain_log_prior(x: list[float], prior_sd: float, bias_sd: float) -> float:
    def normal(v: float, sd: float) -> float:
        return -0.5 * (v / sd) ** 2 - math.log(sd * math.sqrt(2 * math.pi))

    return sum(normal(w, prior_sd) for w in x[:-1]) + normal(x[-1], bias_sd)


@pytest.mark.parametrize("how", [{}, {"prior_sd": 0.3, "bias_sd": 7.0}])
def test_density_equals_a_plain_loop(how):
    target = made(**how)
    check_target(target)
    prior = (how.get("prior_sd", 1.0), how.get("bias_sd", 2.5))
    x = noise(6, 5, seed=3)
    for row, value, test, posterior in zip(
        x.tolist(),
        target.log_prob(x).tolist(),
        target.predictive(x).tolist(),
        target.test_log_posterior(x).tolist(),
        strict=True,
    ):
        train = plain_log_likelihood(row, target.features, target.labels)
        assert value == pytest.approx(train + plain_log_prior(row, *prior), rel=1e-12)
        expected = plain_log_likelihood(row, target.test_features, target.test_labels)
        assert test == pytest.approx(expected, rel=1e-12)
        assert posterior == pytest.approx(expected + plain_log_prior(row, *prior), rel=1e-12)


def test_certain_and_impossible_labels_keep_their_digits():
    """Where probabilities are 0 or 1 in floating point: log sigmoid(−t) = −t."""
    target = LogisticRegression(torch.tensor([[1.0]]), torch.tensor([0.0]))
    x = torch.tensor([[800.0, 0.0], [-800.0, 0.0]], dtype=torch.float64)
    prior = plain_log_prior([800.0, 0.0], 1.0, 2.5)
    for dtype in (torch.float32, torch.float64):
        value, score = log_prob_and_score(target, x.to(dtype))
        assert value.tolist() == pytest.approx([prior - 800, prior], rel=1e-6)
        assert score[:, 0].tolist() == pytest.approx([-801.0, 800.0])
        assert score[:, 1].tolist() == pytest.approx([-1.0, 0.0])


def test_native_parameters(native):
    """The flat parameters alone give the density back, and both backends agree."""
    target = made()
    assert isinstance(target, HasNative)
    n, d = target.native.layout
    flat = torch.tensor(target.native.params, dtype=torch.float64)
    assert (target.native.name, n, d) == ("logistic", 21, 5)
    assert len(flat) == 3 + 24 * d
    rows = flat[3:].reshape(3, d, 8).permute(0, 2, 1).reshape(24, d)
    assert not rows[21:].any()
    x = noise(9, d)
    square = flat[0] * (x[:, :-1] ** 2).sum(1) + flat[1] * x[:, -1] ** 2
    likelihood = -torch.log1p(torch.exp(-x @ rows[:21].T)).sum(1)
    torch.testing.assert_close(target.log_prob(x), likelihood - square / 2 - flat[2])
    for dtype in (torch.float32, torch.float64):
        got = log_prob_and_score(target, x.to(dtype))
        with pysamp.backend("torch"):
            expected = log_prob_and_score(target, x.to(dtype))
        for g, e in zip(got, expected, strict=True):
            torch.testing.assert_close(g, e)


def test_many_rows_in_float32(native):
    """100 000 rows: sums of parts, so that no digit is lost to a long sum."""
    x, label = noise(100_000, 2, seed=1), (noise(100_000, seed=2) > 0).double()
    target = LogisticRegression(x, label)
    theta = noise(5, 3, seed=3)
    exact = target.log_prob(theta)
    assert exact.max() < -50_000
    gap = (target.log_prob(theta.float()).double() - target.log_prob(theta.float().double())).abs()
    assert (gap < 1e-6 * exact.abs()).all()


# ---------------------------------------------------------------------------- the posterior itself
def test_chains_have_the_moments_of_quadrature():
    """One weight and a bias: means, variances and the predictive score, within 5 standard errors."""
    label = (noise(12, seed=2) > 0.3).double()
    x = noise(12, 1, seed=1) + label[:, None]
    target = LogisticRegression(x[:9], label[:9], x[9:], label[9:])
    w, b = torch.linspace(-5, 7, 301).double(), torch.linspace(-9, 9, 301).double()
    grid = torch.cartesian_prod(w, b)
    p = torch.softmax(target.log_prob(grid), 0)
    exact = [p @ f(grid) for f in FUNCTIONS] + [p @ target.predictive(grid)]
    kernel = MALA(0.4)
    state = kernel.init(target, noise(512, 2, seed=4), seed=6)
    state, _ = kernel.step(target, state, 500)
    _, info = kernel.step(target, state, 2000, thin=10)
    flat = info.x.reshape(-1, 2)
    for f, expected in zip([*FUNCTIONS, target.predictive], exact, strict=True):
        chains = f(flat).reshape(512, -1).mean(1)  # independent
        error = float(chains.std()) / math.sqrt(512)
        assert 0 < error < 0.02
        assert float(chains.mean()) == pytest.approx(float(expected), abs=5 * error)


FUNCTIONS = (
    lambda x: x[:, 0], lambda x: x[:, 1], lambda x: x[:, 0] ** 2, lambda x: x[:, 1] ** 2,
    lambda x: x[:, 0] * x[:, 1],
)  # fmt: skip


# ---------------------------------------------------------------------------- reading
GOOD = "split,y,x0,x1\ntrain,1,0.5,-2\ntest,0,1,1e-3\ntrain,0,0,3\n\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "data.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_a_table(tmp_path):
    target = LogisticRegression.from_csv(write(tmp_path, GOOD), prior_sd=2.0)
    assert target.features.tolist() == [[0.5, -2.0], [0.0, 3.0]]
    assert target.labels.tolist() == [1.0, 0.0]
    assert target.test_features.tolist() == [[1.0, 1e-3]]
    assert target.test_labels.tolist() == [0.0]
    assert (target.event_shape, target.prior_sd, target.bias_sd) == ((3,), 2.0, 2.5)
    shuffled = "x1,y,split,x0\n-2,1,train,0.5\n1e-3,0,test,1\n3,0,train,0\n"
    again = LogisticRegression.from_csv(write(tmp_path, shuffled), prior_sd=2.0)
    assert torch.equal(again.features, target.features)
    alone = LogisticRegression.from_csv(write(tmp_path, "split,y,x0\ntrain,1,2\n"))
    with pytest.raises(ValueError, match="test_features and test_labels were not given"):
        alone.predictive(torch.zeros(1, 2))
    assert alone.log_prob(torch.zeros(1, 2)).shape == (1,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("split,x0\ntrain,1\n", "column y is missing, got split,x0"),
        ("y,x0\n1,1\n", "column split is missing"),
        ("split,y\ntrain,1\n", "column x0 is missing"),
        ("split,y,x0,x2\ntrain,1,0,0\n", "column x1 is missing"),
        ("", "column split is missing"),
        ("split,y,x0\n", "no row of the split train"),
        ("split,y,x0\ntest,1,0\n", "no row of the split train"),
        ("split,y,x0\ntrain,1,0\ntrain,2,0\n", "line 3: y must be 0 or 1, got 2"),
        ("split,y,x0\ntrain,1,0\nvalidate,1,0\n", "line 3: split must be train or test, got 'val"),
        ("split,y,x0\ntrain,1,abc\n", "line 2, column x0: expected a number, got 'abc'"),
        ("split,y,x0\ntrain,,1\n", "line 2, column y: expected a number, got ''"),
        ("split,y,x0\ntrain,1,nan\n", "line 2, column x0: expected a finite number, got 'nan'"),
        ("split,y,x0\ntrain,1,1e999\n", "line 2, column x0: expected a finite number"),
        ("split,y,x0\ntrain,1\n", "line 2: expected 3 cells, got 2"),
    ],
)
def test_refuses_a_bad_table(text, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        LogisticRegression.from_csv(write(tmp_path, text))
    assert "data.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), torch.zeros(3)), "features must be"),
        ((torch.zeros(0, 2), torch.zeros(0)), "features must be"),
        ((torch.zeros(3, 2), torch.zeros(2)), "labels must be .3,., one for each row"),
        ((torch.zeros(3, 2), torch.tensor([0, 1, 3])), "labels must be 0 or 1, got 3.0 in row 2"),
        ((torch.tensor([[0.0], [math.inf]]), torch.zeros(2)), "finite, got inf in row 1, column 0"),
        ((torch.zeros(3, 2), torch.zeros(3), torch.zeros(3, 2)), "given together"),
        ((torch.zeros(3, 2), torch.zeros(3), torch.zeros(3, 1), torch.zeros(3)), "test_features"),
        ((torch.zeros(3, 2), torch.zeros(3), torch.zeros(1, 2), torch.ones(1) * 2), "test_labels"),
        ((torch.zeros(3, 2), torch.zeros(3), None, None, 0.0), "prior_sd must be positive"),
        ((torch.zeros(3, 2), torch.zeros(3), None, None, 1.0, math.nan), "bias_sd must be"),
    ],
)
def test_refuses_bad_data(arguments, message):
    with pytest.raises(ValueError, match=message):
        LogisticRegression(*arguments)


# ---------------------------------------------------------------------------- the published data
PUBLISHED = {  # shapes, sums of features and labels: the fingerprints of the fixed split
    "ionosphere": ((280, 33), 71, 2403.3296, 552.6864, 98, 28),
    "sonar": ((166, 60), 42, 2805.7333, 705.1564, 85, 26),
}


def published(name: str) -> LogisticRegression:
    path = DATA / f"{name}.csv"
    if not path.is_file():
        pytest.skip(f"needs {path.name}")
    return LogisticRegression.from_csv(path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_data(name):
    target = published(name)
    shape, n_test, train_sum, test_sum, train_ones, test_ones = PUBLISHED[name]
    assert tuple(target.features.shape) == shape
    assert tuple(target.test_features.shape) == (n_test, shape[1])
    assert float(target.features.sum()) == pytest.approx(train_sum, abs=1e-4)
    assert float(target.test_features.sum()) == pytest.approx(test_sum, abs=1e-4)
    assert (int(target.labels.sum()), int(target.test_labels.sum())) == (train_ones, test_ones)
    check_target(target)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected", "error", "train"),
    [("ionosphere", -87.917, 0.016, -124.114), ("sonar", -111.006, 0.024, -174.424)],
)
def test_published_posteriors(name, expected, error, train):
    """Long HMC against long HMC: the specification's own values and standard errors."""
    target = published(name)
    kernel = HMC(0.08, 25) if name == "ionosphere" else HMC(0.04, 40)
    state = kernel.init(target, torch.zeros(256, *target.event_shape), seed=1)
    state, _ = kernel.step(target, state, 200)
    _, info = kernel.step(target, state, 1200, thin=4)
    assert float(info.accept.mean()) > 0.7
    draws = info.x.double()  # (256, 300, d)
    value = target.test_log_posterior(draws.flatten(0, 1)).reshape(256, -1)
    own = float(value.mean(1).std()) / 16
    assert own < 3 * error
    assert float(value.mean()) == pytest.approx(expected, abs=5 * math.hypot(own, error))
    train_value = target.log_prob(draws.flatten(0, 1)).reshape(256, -1).mean(1)
    own = float(train_value.std()) / 16
    assert float(train_value.mean()) == pytest.approx(train, abs=5 * math.hypot(own, 0.03))
