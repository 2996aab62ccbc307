"""Figures: written whole, with the colours of what they must show, and no global state."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from pysamp import plots, rng
from pysamp.mcmc import MALA
from pysamp.samples import Samples
from pysamp.sampling import sample
from pysamp.targets import EightGaussians, Funnel, Phi4Chain

EXACT = (0.0, 0.0, 0.0)


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def share(image, colour):
    """Fraction of the pixels that have exactly this colour."""
    return float((np.abs(image[..., :3] - np.array(colour)).max(-1) < 0.01).mean())


def drawn(path):
    image = imread(path)
    assert image.shape[0] > 600
    assert image.shape[1] > 900
    assert 0.3 < share(image, (1.0, 1.0, 1.0)) < 0.98  # neither empty nor flooded
    return image


def normal_samples(target, n_chains, n_draws):
    event = target.event_shape
    x = rng.normal((n_chains, n_draws, *event), seed=1, dtype=torch.float64)
    return Samples(x, target.log_prob(x.flatten(0, 1)).reshape(n_chains, n_draws), target=target)


def test_field_with_modes(tmp_path):
    target = Phi4Chain(n_sites=16, beta=2.0, h=0.0025)
    samples = sample(target, MALA(), n_chains=8, n_draws=100, warmup=100, seed=0, progress=False)
    path = tmp_path / "field.png"
    samples.plot(path)
    image = drawn(path)
    for colour in (plots.BLUE, plots.VERMILLION, plots.GREEN):
        assert share(image, rgb(colour)) > 1e-4, colour
    assert share(image, EXACT) > 1e-3
    without = tmp_path / "bare.png"
    plots.plot_samples(Samples(samples.x, samples.log_prob), without)
    assert share(drawn(without), EXACT) < share(image, EXACT)  # no exact curves, no modes


def test_plane_with_exact_draws_and_many_kinds_of_samples(tmp_path):
    plots.plot_samples(normal_samples(EightGaussians(), 4, 50), tmp_path / "plane.png")
    drawn(tmp_path / "plane.png")
    # independent weighted draws: one per chain, no traces, no autocorrelation
    target = Funnel()
    independent = normal_samples(target, 500, 1)
    weight = target.log_prob(independent.flat())[:, None]
    weighted = Samples(independent.x, independent.log_prob, weight, target=target)
    plots.plot_samples(weighted, tmp_path / "weighted.png")
    drawn(tmp_path / "weighted.png")
    # broken draws must still give a figure: it is how one looks for the cause
    broken = normal_samples(EightGaussians(), 2, 30)
    broken.x[0, 3:] = float("nan")
    broken.log_prob[0, 3:] = float("nan")
    plots.plot_samples(Samples(broken.x, broken.log_prob), tmp_path / "broken.png")
    drawn(tmp_path / "broken.png")


def test_a_scalar_event(tmp_path):
    x = rng.normal((3, 40), seed=2)
    plots.plot_samples(Samples(x, -0.5 * x * x), tmp_path / "scalar.svg")
    assert (tmp_path / "scalar.svg").read_text().startswith("<?xml")


def test_demo_figure(tmp_path):
    target = Phi4Chain(n_sites=10, beta=20.0, h=0.0025)
    results = {
        name: sample(target, MALA(), n_chains=6, n_draws=60, warmup=60, seed=s, progress=False)
        for s, name in enumerate(("MALA", "HMC", "tempered"))
    }
    path = tmp_path / "demo.png"
    plots.plot_demo(results, path)
    image = drawn(path)
    for colour in (plots.VERMILLION, plots.BLUE, plots.GREEN):
        assert share(image, rgb(colour)) > 1e-4, colour
    assert share(image, EXACT) > 1e-3
    with pytest.raises(ValueError, match="Phi4Chain"):
        plots.plot_demo({"x": normal_samples(Funnel(), 2, 10)}, path)


def test_autocorrelation_of_known_chains():
    # AR(1): rho(lag) = a^lag; the standard error of rho at n = 2e5 is below (1 + a)/(1 - a)/sqrt(n)
    a, n = 0.8, 50_000
    noise = rng.normal((4, n), seed=5, dtype=torch.float64).numpy()
    x = np.empty_like(noise)
    x[:, 0] = noise[:, 0]
    for t in range(1, n):
        x[:, t] = a * x[:, t - 1] + np.sqrt(1 - a * a) * noise[:, t]
    rho = plots._autocorrelations(torch.from_numpy(x))
    expected = a ** np.arange(10)
    assert rho[0] == pytest.approx(1.0, abs=1e-12)
    assert np.abs(rho[:10] - expected).max() < 5 * 3 / np.sqrt(4 * n)
    # chains that stand in two places never lose their correlation
    stuck = torch.ones(4, 100, dtype=torch.float64) * torch.tensor([[-1.0], [1], [1], [-1]])
    stuck = stuck + 0.1 * rng.normal((4, 100), seed=6, dtype=torch.float64)
    assert plots._autocorrelations(stuck)[1:].min() > 0.9
    assert plots._autocorrelations(torch.ones(2, 10)) is None


def test_nothing_global_changes(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.plot_samples(normal_samples(Funnel(), 2, 20), tmp_path / "x.png")
    assert dict(matplotlib.rcParams) == before
    import sys

    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


def test_unknown_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"x\.nonsense"):
        plots.plot_samples(normal_samples(Funnel(), 2, 20), tmp_path / "x.nonsense")
    assert not (tmp_path / "x.nonsense").exists()
