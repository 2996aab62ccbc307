"""`pysamp reproduce slips/…`: limits, files of data, formulas, every experiment in seconds."""

import dataclasses
import json
import math

import pytest
import torch

from pysamp import cli, experiments, metrics
from pysamp.experiments import base
from pysamp.experiments.base import Experiment, Outcome, equal, within
from pysamp.experiments.slips import common, phi4, two_modes
from pysamp.experiments.slips.common import GEOM11, STANDARD, Grid, Toy
from pysamp.targets import EightGaussians, LogisticRegression, Phi4Chain, TwoModes

SHORT = (Grid(STANDARD, 150.0, (0.1,)), Grid(GEOM11, 1 - 6.62e-3, (0.1,)))
# Sizes at which an experiment runs in a second or two; its rows then need not pass.
TINY = {
    "slips/eight_gaussians": {"n": 64, "n_times": 8, "grids": SHORT, "n_floors": 2},
    "slips/funnel": {"n": 64, "n_times": 8, "grids": SHORT, "n_floors": 2},
    "slips/logistic": {
        "n": 16, "n_times": 4, "n_chains": 8, "n_draws": 20, "grids": SHORT[1:], "names": ("Sonar",),
    },
    "slips/phi4": {
        "small": 16, "n": 16, "n_times": 4, "burn_in": 100, "n_chains": 8, "n_draws": 20,
        "warmup": 20, "n_sites": 8, "fields": (0.0025,), "slips_fields": (0.0, 0.0025),
    },
    "slips/rings": {"n": 64, "n_times": 8, "grids": SHORT, "n_floors": 2},
    "slips/rivals": {
        "n": 64, "n_levels": 4, "repeats": 2, "n_rdmc": 16, "rdmc_times": 3, "n_oat": 8,
        "measurements": 2, "dims": (4,), "n_floors": 2,
    },
    "slips/two_modes": {"n": 64, "n_times": 4, "dims": (4,), "repeats": 2},
}  # fmt: skip


def call(capsys, *args):
    code = cli.main([str(a) for a in args])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def data(tmp_path):
    """Files as those of the benchmark, of few rows and features."""
    folder = tmp_path / "data"
    folder.mkdir()
    for k, name in enumerate(("ionosphere.csv", "sonar.csv")):
        noise = torch.Generator().manual_seed(k)
        x = torch.randn(30, 3, generator=noise)
        y = (x.sum(1) + torch.randn(30, generator=noise) > 0).int()
        rows = [
            ",".join(["train" if i < 20 else "test", str(int(y[i])), *map(str, x[i].tolist())])
            for i in range(30)
        ]
        (folder / name).write_text("\n".join(["split,y,x0,x1,x2", *rows]) + "\n")
    return folder


# ------------------------------------------------------------------------------------- rows
def test_a_row_passes_between_its_limits_whatever_the_reference():
    assert within("x", 1.0, 0.1, 5.0, "published", high=1.0).ok
    assert not within("x", 1.01, 0.1, 5.0, "published", high=1.0).ok
    assert within("x", 1.0, 0.1, 5.0, "published", low=1.0).ok
    assert not within("x", 0.99, 0.1, 5.0, "published", low=1.0).ok
    assert not within("x", 1.0, 0.3, 1.0, "published", high=2.0, precision=0.2).ok
    for bad in (math.nan, math.inf, -math.inf):
        assert not within("x", bad, 0.1, 1.0, "published", high=math.inf).ok
        assert not within("x", bad, 0.1, 1.0, "published", low=-math.inf).ok
    rules = [within("x", 1, 1, 1, "", **limit).rule for limit in ({"high": 2.5}, {"low": 0.25})]
    assert rules == ["≤ 2.5", "≥ 0.25"]
    both = within("x", 1, 1, 1, "", low=0.6, high=0.75)
    assert both.rule == "0.6 … 0.75" and (both.to_dict()["low"], both.to_dict()["high"]) == (
        0.6,
        0.75,
    )
    assert equal("x", 1.4, 0.1, 1.0, "exact", precision=0.2).to_dict()["high"] == math.inf


# ------------------------------------------------------------------------------------- formulas
def test_the_weight_of_the_start_is_that_of_its_side():
    """Points y/α ~ N(0, σ²/t0), each taken to the nearer mode."""
    d, t0, sigma, n = 16, 0.2, two_modes.sigma_of(16), 200_000
    assert sigma == pytest.approx(1.352, abs=5e-4)
    noise = torch.randn(n, d, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    start = sigma / math.sqrt(t0) * noise
    share = float((TwoModes(d).mode(start) == 0).double().mean())
    expected = two_modes.weight_of_start(d, t0, sigma)
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / n)
    assert expected == pytest.approx(0.6702, abs=2e-3)
    best = two_modes.best_t0(d, sigma)
    assert two_modes.weight_of_start(d, best, sigma) == pytest.approx(2 / 3, rel=1e-12)


def test_the_free_field_has_the_coupling_of_the_chain():
    target = Phi4Chain(12)
    d, coupling = 12, 20 * 0.1 * 12
    precision = torch.linalg.inv(phi4.free_field(target).covariance)
    off = torch.diag(precision, 1)
    torch.testing.assert_close(off, torch.full_like(off, -coupling))
    assert float(torch.diag(precision, 2).abs().max()) < 1e-9 * coupling
    wave = torch.sin(torch.arange(1, d + 1, dtype=torch.float64) * math.pi / (d + 1))
    amplitude = wave / wave.square().sum()  # projects on the half wave
    covariance = phi4.free_field(target).covariance
    assert float(amplitude @ covariance @ amplitude) == pytest.approx(1.0, rel=1e-9)
    # Its energy and that of the chain differ by functions of single sites only.
    x = torch.randn(3, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x.requires_grad_()
    rest = target.log_prob(x) + 0.5 * ((x @ precision) * x).sum(1)
    (slope,) = torch.autograd.grad(rest.sum(), x, create_graph=True)
    (mixed,) = torch.autograd.grad(slope[:, 4].sum(), x)
    others = [i for i in range(d) if i != 4]
    assert float(mixed[:, others].abs().max()) < 1e-9 * coupling


def test_a_scan_finds_the_best_start_and_its_floor():
    target = EightGaussians()
    ends = {0.1: 3.0, 0.3: 1.0}
    settings = Toy(64, 4, 0.1, (Grid(STANDARD, 150.0, tuple(ends)),), 3)
    floor = common.noise_floor(lambda x, y: (x - y).norm(), target, settings, 0)
    assert len(floor.values) == 3 and floor.low < floor.mean < floor.high
    floor = metrics.Floor(2.0, 1.9, 2.1, (1.9, 2.0, 2.1))
    seen = []

    def metric(x, exact):
        assert x.shape == exact.shape == (64, 2) and x.dtype == torch.float64
        return ends[settings.grids[0].t0[len(seen) - 1]]

    found = common.scan(
        target, metric, floor, settings, seed=0, device=None, progress=seen.append, sigma=7.0
    )
    assert found.best.t0 == 0.3 and found.at(STANDARD, 0.1).value == 3.0
    assert not found.row("x", 3.0, 0.1).ok and found.row("x", 2.05, 0.1).ok
    assert [line.split(" = ")[1] for line in seen] == ["0.1", "0.3"]


@pytest.mark.parametrize(
    "grids, schedules", [(common.TOYS, 3), (common.HARD, 3), (common.some(common.HARD, GEOM11), 1)]
)
def test_published_grids_are_runs_of_the_method(grids, schedules):
    assert len(grids) == schedules
    for grid, t0 in common.start_times(grids):
        sampler = common.published(grid, t0, 16, sigma=1.0)
        assert sampler.output == "mean" and sampler.n_copies == 4 and sampler.n_init == 10
        assert sampler.last_time() == grid.t_end


# ------------------------------------------------------------------------------------- experiments
def test_every_module_is_an_experiment():
    names = [name for name in experiments.names() if name.startswith("slips/")]
    assert names == sorted(TINY)
    for name in names:
        experiment = experiments.find(name)
        assert set(experiment.settings) == set(base.SCALES)
        assert 0 < len(experiment.title) < 80 and 0 < len(experiment.source) <= 100


@pytest.mark.parametrize("name", sorted(TINY))
def test_experiments_run(name, tmp_path, monkeypatch, data):
    experiment = experiments.find(name)
    tiny = dataclasses.replace(experiment.settings["quick"], **TINY[name])
    monkeypatch.setitem(experiment.settings, "quick", tiny)
    said = []
    given = {"data": data} if experiment.data else {}
    report = experiments.reproduce(name, seed=1, out=tmp_path, progress=said.append, **given)
    assert said and report["rows"]
    text = experiments.text(report)
    assert max(map(len, text.splitlines())) <= 100
    assert all(row["quantity"] in text for row in report["rows"])
    assert len({row["quantity"] for row in report["rows"]}) == len(report["rows"])
    assert all(math.isfinite(row["ours"]) for row in report["rows"])
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["settings"] == json.loads(json.dumps(dataclasses.asdict(tiny)))
    assert [row["quantity"] for row in saved["rows"]] == [r["quantity"] for r in report["rows"]]
    for figure in saved["figures"]:
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")


def test_the_weights_on_two_modes_are_those_of_the_start():
    """The finding of the page, at a size of a second: far from 2/3, and where the formula says."""
    target, d, n = TwoModes(8), 8, 1024
    sampler = common.published(
        Grid(STANDARD, 150.0, (0.03,)), 0.03, 8, R=two_modes.radius(d), tau=math.sqrt(0.05)
    )
    x = common.draws(sampler.sample(target, n, seed=5))
    weight = float((target.mode(x) == 0).double().mean())
    expected = two_modes.weight_of_start(d, 0.03, two_modes.sigma_of(d))
    sd = math.sqrt(expected * (1 - expected) / n)
    assert abs(weight - expected) < 5 * sd < abs(weight - 2 / 3) + 2 * sd


def test_hmc_of_logistic_regression_measures_what_the_target_says(data):
    from pysamp.experiments.slips import logistic

    target = LogisticRegression.from_csv(data / "sonar.csv")
    settings = logistic.Settings(8, 4, 16, 200, SHORT, 1.0)
    found = logistic._hmc(target, settings, 0, None)
    prior = found["log p(test) + log prior"][0] - found["log p(test)"][0]
    # log prior of the same draws: below its largest value, by half a number per parameter at most.
    top = float(target.log_prior(torch.zeros(1, 4, dtype=torch.float64)))
    assert top - 4 < prior < top
    assert all(error > 0 for _, error in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(TINY) - {"slips/logistic"}))
def test_experiments_reproduce_what_was_published(name, tmp_path):
    report = experiments.reproduce(name, out=tmp_path)
    missed = [row for row in report["rows"] if not row["ok"]]
    assert report["ok"] and not missed, experiments.text(report)


# ------------------------------------------------------------------------------------- files of data
@dataclasses.dataclass(frozen=True)
class Nothing:
    n: int = 1


@pytest.fixture
def fake(monkeypatch):
    """An experiment that needs two files, and the folders that it was given."""
    given = []

    def run(settings, *, seed, device, progress, data):
        given.append(data)
        return Outcome([equal("a number", 1.0, 0.1, 1.0, "made up", precision=1.0)])

    made = Experiment(
        "made up", "Nobody (1900)", {"quick": Nothing(), "paper": Nothing()}, run,
        ("ionosphere.csv", "sonar.csv"),
    )  # fmt: skip
    monkeypatch.setattr(experiments, "find", lambda name: made)
    return given


def test_data_are_given_by_an_option(fake, data, tmp_path, capsys):
    code, _, _ = call(capsys, "reproduce", "fake", "--data", data, "--out", tmp_path / "a")
    assert code == 0 and fake == [data]
    code, _, err = call(capsys, "reproduce", "fake", "--out", tmp_path / "b")
    assert code == 2 and "--data DIR" in err and "ionosphere.csv, sonar.csv" in err
    (data / "sonar.csv").unlink()
    code, _, err = call(capsys, "reproduce", "fake", "--data", data, "--out", tmp_path / "c")
    assert code == 2 and "sonar.csv is missing" in err and str(data) in err
    assert len(fake) == 1 and not (tmp_path / "b").exists() and not (tmp_path / "c").exists()


def test_data_that_nothing_needs_are_refused(data):
    with pytest.raises(ValueError, match="data has no meaning for slips/rings"):
        experiments.reproduce("slips/rings", data=data)
