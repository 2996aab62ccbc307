"""`pysamp reproduce`: rules of a row, reports, exit codes, and every experiment in a size of seconds."""

import dataclasses
import importlib
import json
import math

import pytest
import torch

from pysamp import cli, experiments
from pysamp.experiments import base, scaling
from pysamp.experiments.base import Chains, Experiment, Outcome, equal, near, with_error
from pysamp.experiments.lattice import chain_1d, xy_helicity
from pysamp.targets import ON

# Sizes at which an experiment runs in a second or two; its rows then need not pass.
TINY = {
    "lattice/chain_1d": {"chains": Chains(20, 10, n_chains=20)},
    "lattice/dynamic_exponents": {
        "metropolis": (4, 6), "swendsen_wang": (4, 6), "wolff": (4, 6), "local_draws": 200,
        "cluster_draws": 200, "n_chains": 20,
    },
    "lattice/free_field": {"chains": Chains(20, 10, n_chains=20)},
    "lattice/ising_2d": {"chains": Chains(20, 10, n_chains=20), "sizes": (4,), "betas": (0.4,)},
    "lattice/ising_2d_binder": {"chains": Chains(60, 20, n_chains=20), "sizes": (4, 8), "reach": 1.0},
    "lattice/ising_3d_binder": {
        "spins": Chains(60, 20, n_chains=20), "sizes": (3, 6), "field": Chains(60, 20, n_chains=20),
        "field_sizes": (3, 6), "reach": 1.5,
    },
    "lattice/large_n": {"chains": Chains(20, 10, n_chains=20), "shape": (3, 4)},
    "lattice/xy_helicity": {
        "chains": Chains(20, 10, n_chains=20), "sizes": (4, 6), "fit_from": 4,
        "temperatures": (0.8, 1.0),
    },
}  # fmt: skip

# Those whose fields forget their start within the warm-up above.
EQUILIBRATED = ("lattice/chain_1d", "lattice/free_field")


def call(capsys, *args):
    code = cli.main([str(a) for a in args])
    out, err = capsys.readouterr()
    return code, out, err


# ------------------------------------------------------------------------------------- rows
def test_a_row_passes_within_five_standard_errors_and_with_a_small_one():
    assert equal("x", 1.49, 0.1, 1.0, "exact", precision=0.2).ok
    assert not equal("x", 1.51, 0.1, 1.0, "exact", precision=0.2).ok
    assert not equal("x", 1.0, 0.3, 1.0, "exact", precision=0.2).ok  # says nothing
    both = equal("x", 1.6, 0.1, 1.0, "published", precision=0.2, reference_error=0.1)
    assert both.ok and both.z == pytest.approx(0.6 / math.hypot(0.1, 0.1))
    assert near("x", 1.04, 0.01, 1.0, "published", tolerance=0.05).ok
    assert not near("x", 1.06, 0.01, 1.0, "published", tolerance=0.05).ok
    assert not near("x", 1.0, 0.06, 1.0, "published", tolerance=0.05).ok
    for value, error in ((math.nan, 0.1), (1.0, math.nan), (math.inf, 0.1)):
        assert not equal("x", value, error, 1.0, "exact", precision=0.2).ok
        assert not near("x", value, error, 1.0, "exact", tolerance=0.2).ok


@pytest.mark.parametrize(
    "value, error, text",
    [
        (1.234567, 0.000123, "1.23457(12)"),
        (-0.5, 0.0996, "-0.50(10)"),
        (12.3456, 1.24, "12.3(1.2)"),
        (12345.6, 78.9, "12346(79)"),
        (5.0, 0.996, "5.0(10)"),
        (5.0, 9.97, "5(10)"),
        (0.22165462, 2e-8, "0.221654620(20)"),
        (2.0, 0.0, "2"),
        (math.nan, 0.1, "nan(0.1)"),
    ],
)
def test_numbers_carry_their_errors(value, error, text):
    assert with_error(value, error) == text


# ------------------------------------------------------------------------------------- fits
def test_fits_recover_what_was_put_in():
    x = torch.tensor([1.0, 2.0, 4.0, 7.0], dtype=torch.float64)
    error = torch.tensor([0.1, 0.2, 0.1, 0.3], dtype=torch.float64)
    value, _, chi2 = scaling.least_squares(scaling.polynomial(x, 2), 1 + 2 * x + 3 * x**2, error)
    assert [*value.tolist(), chi2] == pytest.approx([1, 2, 3, 0], abs=1e-8)
    # The weighted mean, and one degree of freedom a point but one.
    y = torch.tensor([1.0, 1.5, 0.9, 1.3], dtype=torch.float64)
    value, spread, chi2 = scaling.least_squares(scaling.polynomial(x, 0), y, error)
    w = error**-2
    mean = float((w * y).sum() / w.sum())
    assert float(value[0]) == pytest.approx(mean, rel=1e-12)
    assert float(spread[0]) == pytest.approx(float(w.sum()) ** -0.5, rel=1e-12)
    assert chi2 == pytest.approx(float((w * (y - mean) ** 2).sum()) / 3, rel=1e-12)
    lengths = torch.tensor([8.0, 12, 16, 32], dtype=torch.float64)
    for c in (None, 2.0):
        y = 0.7 * lengths**2.17 * (1 if c is None else (5 * lengths**-2).exp())
        z, _, chi2, curve = scaling.power((8, 12, 16, 32), y, error, c)
        assert (z, chi2) == pytest.approx((2.17, 0), abs=1e-8)
        torch.testing.assert_close(curve(lengths), y)


def test_logarithmic_corrections_are_recovered():
    lengths = torch.tensor([8.0, 16, 32, 64], dtype=torch.float64)
    error = torch.full_like(lengths, 0.001)
    for c in (-2.0, 0.5, 4.0):
        y = 1 + 1 / (2 * lengths.log() + c)
        constant, spread, chi2 = xy_helicity.fit_constant(lengths, y, error)
        assert constant == pytest.approx(c, abs=1e-6) and chi2 < 1e-9
        # χ² rises by 1 at one standard error, to first order.
        _, _, up = xy_helicity.fit_constant(lengths, y, error)
        moved = 1 + 1 / (2 * lengths.log() + c + 1e-3 * spread)
        rise = float((((moved - y) / error) ** 2).sum())
        assert rise + up == pytest.approx(1e-6, rel=0.01)
        amplitude, width = xy_helicity.fit_amplitude(lengths, 0.64 * y, error)
        assert amplitude == pytest.approx(0.64, abs=1e-3) and width > 0
    # Below the jump no C fits, and χ² says so.
    assert xy_helicity.fit_constant(lengths, torch.full_like(lengths, 0.9), error)[2] > 1e4
    t = torch.tensor([0.8, 0.9, 0.95, 1.1], dtype=torch.float64)
    best, spread = xy_helicity.least(t, 3 + ((t - 0.91) / 0.02) ** 2)
    assert (best, spread) == pytest.approx((0.91, 0.02), rel=1e-9)


# ------------------------------------------------------------------------------------- measuring
def test_measured_means_and_errors_are_those_of_the_draws():
    target, chains = ON((6,), 1, 0.8), Chains(n_draws=50, warmup=10, n_chains=24)
    kernel = chain_1d.cases()[0].kernel
    kept = base.measure(target, kernel, chains, seed=3)
    seen = base.measure(target, kernel, chains, seed=3, fields=lambda x: {"first": x[:, 0, 0]})
    assert tuple(kept.series["energy"].shape) == (24, 50)
    for name in ("energy", "energy²", "magnetisation²", "specific heat", "Binder"):
        torch.testing.assert_close(kept.mean[name], seen.mean[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(kept.error[name], seen.error[name], rtol=1e-4, atol=1e-6)
    per_chain = kept.series["energy"].mean(1)
    assert float(kept.error["energy"]) == pytest.approx(
        float(per_chain.std() / math.sqrt(24)), rel=1e-9
    )
    assert set(seen.series["first"].unique().tolist()) == {-1.0, 1.0}


# ------------------------------------------------------------------------------------- experiments
def test_every_module_is_an_experiment():
    names = experiments.names()
    assert set(TINY) == {name for name in names if name.startswith("lattice/")}
    for name in names:
        experiment = experiments.find(name)
        module = importlib.import_module("pysamp.experiments." + name.replace("/", "."))
        assert experiment is module.EXPERIMENT
        assert set(experiment.settings) == set(base.SCALES)
        assert 0 < len(experiment.title) < 80 and 0 < len(experiment.source) <= 100


@pytest.mark.parametrize("name", sorted(TINY))
def test_experiments_run(name, tmp_path, monkeypatch):
    experiment = experiments.find(name)
    tiny = dataclasses.replace(experiment.settings["quick"], **TINY[name])
    monkeypatch.setitem(experiment.settings, "quick", tiny)
    said = []
    report = experiments.reproduce(name, seed=1, out=tmp_path, progress=said.append)
    assert said and report["rows"]
    text = experiments.text(report)
    assert max(map(len, text.splitlines())) <= 100
    assert all(row["quantity"] in text for row in report["rows"])
    # At these sizes errors are too large for the rules, but a wrong kernel or answer would stand out.
    if name in EQUILIBRATED:
        for row in report["rows"]:
            assert not row["rule"].startswith("5σ") or not abs(row["z"]) > 6, row
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["settings"] == json.loads(json.dumps(dataclasses.asdict(tiny)))
    assert saved["seed"] == 1 and saved["seconds"] >= 0 and saved["date"] and saved["versions"]
    assert [row["quantity"] for row in saved["rows"]] == [r["quantity"] for r in report["rows"]]
    assert saved["figures"]
    for figure in saved["figures"]:
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TINY))
def test_experiments_reproduce_what_was_published(name, tmp_path):
    report = experiments.reproduce(name, out=tmp_path)
    missed = [row for row in report["rows"] if not row["ok"]]
    assert report["ok"] and not missed, experiments.text(report)


# ------------------------------------------------------------------------------------- command line
@dataclasses.dataclass(frozen=True)
class Nothing:
    n: int = 1


@pytest.fixture
def fake(monkeypatch):
    """An experiment whose one row is off by what is put into the list."""
    off = [0.0]

    def run(settings, *, seed, device, progress):
        progress(f"running {settings.n}, seed {seed}")
        row = equal("a number", 1 + off[0], 0.1, 1.0, "made up", precision=1.0)
        return Outcome([row], {"nan": math.nan})

    made = Experiment("made up", "Nobody (1900)", {"quick": Nothing(), "paper": Nothing(2)}, run)
    monkeypatch.setattr(experiments, "find", lambda name: made)
    return off


def test_exit_code_says_whether_a_row_failed(fake, capsys, tmp_path):
    code, out, err = call(capsys, "reproduce", "fake", "--out", tmp_path / "a")
    assert code == 0 and "1 of 1 rows pass" in out and "running 1, seed 0" in err
    fake[0] = 0.6
    code, out, _ = call(
        capsys,
        "reproduce",
        "fake",
        "--out",
        tmp_path / "b",
        "--json",
        "--scale",
        "paper",
        "--seed",
        5,
    )
    report = json.loads(out)
    assert code == 1 and report["ok"] is False and report["rows"][0]["ok"] is False
    assert report["settings"] == {"n": 2} and report["seed"] == 5
    assert report["data"] == {"nan": None}
    assert json.loads((tmp_path / "b" / "results.json").read_text()) == report


def test_list_and_refusals(capsys, tmp_path, fake):
    code, out, _ = call(capsys, "reproduce", "--list")
    assert code == 0 and all(name in out for name in TINY)
    code, _, err = call(capsys, "reproduce", "fake", "--scale", "huge", "--out", tmp_path / "c")
    assert code == 2 and "scale must be one of quick, paper, got 'huge'" in err
    assert not (tmp_path / "c").exists()


def test_unknown_names_get_the_nearest_one(capsys):
    code, _, err = call(capsys, "reproduce", "lattice/ising2d")
    assert code == 2 and "did you mean lattice/ising_2d?" in err
