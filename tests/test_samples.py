"""Samples: numbers against ArviZ and closed forms, verdicts on made-up failures, files."""

from __future__ import annotations

import errno
import json
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from pysamp.samples import Samples
from pysamp.summary import WIDTH


@dataclass(frozen=True, eq=False)
class TwoHalves:
    """Modes x < 0 and x > 0 with weights 0.3 and 0.7; log Z = 1.5."""

    mode_weights: Tensor = field(default_factory=lambda: torch.tensor([0.3, 0.7]))
    event_shape: tuple[int, ...] = (1,)
    log_z: float = 1.5

    def log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * x[:, 0] ** 2

    def mode(self, x: Tensor) -> Tensor:
        return (x[:, 0] > 0).long()

    def observables(self, x: Tensor) -> dict[str, Tensor]:
        return {"energy": 0.5 * x[:, 0] ** 2}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_modes(n_chains: int, n_draws: int, plus: float = 0.7, **info) -> Samples:
    """Independent draws of the right law, unless `plus` is changed."""
    sign = torch.where(uniform(n_chains, n_draws) < plus, 1.0, -1.0)
    x = (sign * (2 + 0.1 * normal(n_chains, n_draws, seed=1)))[..., None]
    info = {"accept": torch.full((n_chains,), 0.6), "sampler": "Fake", "markov": True, **info}
    return Samples(x=x, log_prob=-0.5 * x[..., 0] ** 2, info=info, target=TwoHalves())


# ------------------------------------------------------------------------- numbers
def test_statistics_are_those_of_arviz():
    arviz = pytest.importorskip("arviz")
    walk = torch.zeros(4, 500, dtype=torch.float64)
    noise = normal(4, 500)
    for i in range(1, 500):
        walk[:, i] = 0.8 * walk[:, i - 1] + noise[:, i]
    s = Samples(x=walk[..., None], log_prob=-walk.square())
    row = {r["name"]: r for r in s.summary().rows}["x[0]"]
    data = walk.numpy()
    assert row["mean"] == pytest.approx(data.mean())
    assert row["sd"] == pytest.approx(data.std(ddof=1))
    for key, value in (
        ("mcse", arviz.mcse(data, method="mean")),
        ("ess_bulk", arviz.ess(data, method="bulk")),
        ("ess_tail", arviz.ess(data, method="tail")),
        ("rhat", arviz.rhat(data)),
    ):
        assert row[key] == pytest.approx(float(value), rel=1e-9), key
    # quantiles that interpolate at (i - 1/2)/n: numpy calls them Hazen's
    expected = np.quantile(data, [0.05, 0.5, 0.95], method="hazen")
    assert [row["q5"], row["q50"], row["q95"]] == pytest.approx(list(expected))


def test_weighted_statistics_of_a_tilted_normal():
    # N(0, 1) with weight exp(x) is N(1, 1); sd of the estimate by the delta method is 0.0132 here:
    # E[w²(x-1)²]/E[w]²/n = 2e/n.
    n = 31_000
    x = normal(n, 1)
    s = Samples(x=x[..., None], log_prob=-0.5 * x**2, log_weight=x + 100.0)
    row = {r["name"]: r for r in s.summary().rows}["x[0]"]
    error = math.sqrt(2 * math.e / n)
    assert row["mcse"] == pytest.approx(error, rel=0.1)
    assert abs(row["mean"] - 1) < 5 * error
    assert abs(row["sd"] - 1) < 5 * error
    assert abs(row["q50"] - 1) < 10 * error
    assert row["ess_bulk"] == pytest.approx(n / math.e, rel=0.1)  # E[w]²/E[w²] = 1/e
    assert math.isnan(row["rhat"])


def test_one_draw_per_chain_counts_every_chain():
    x = normal(2000, 1, 1)
    s = Samples(x=x, log_prob=-0.5 * x[..., 0] ** 2)
    row = {r["name"]: r for r in s.summary().rows}["x[0]"]
    assert row["ess_bulk"] == 2000
    assert row["mcse"] == pytest.approx(float(x.std() / math.sqrt(2000)))
    assert s.summary().verdict == []


def test_series_are_observables_then_log_prob_then_few_coordinates():
    names = [row["name"] for row in two_modes(4, 10).summary().rows]
    assert names == ["energy", "log_prob", "x[0]"]
    large = Samples(x=torch.zeros(2, 5, 3, 3), log_prob=torch.zeros(2, 5))
    assert [row["name"] for row in large.summary().rows] == ["log_prob"]


# ------------------------------------------------------------------------- verdicts
def only(verdict: list[str], *parts: str) -> None:
    """Every verdict matches one part, and every part one verdict."""
    assert len(verdict) == len(parts), verdict
    assert all(any(part in text for text in verdict) for part in parts), verdict


def test_good_draws_pass():
    summary = two_modes(16, 500).summary()
    assert summary.verdict == []
    assert summary.to_dict()["ok"] is True
    assert "nothing wrong was found" in str(summary)
    for mode, exact in zip(summary.modes, (0.3, 0.7), strict=True):
        assert mode["exact"] == pytest.approx(exact)
        assert abs(mode["z"]) < 4
        assert mode["error"] == pytest.approx(math.sqrt(0.21 / 8000), rel=0.2)


def test_stuck_chains_are_told():
    side = torch.where(torch.arange(8) < 4, 1.0, -1.0)[:, None]
    x = (side * (2 + 0.1 * normal(8, 500)))[..., None]
    s = Samples(x=x, log_prob=-0.5 * x[..., 0] ** 2, target=TwoHalves())
    text = " ".join(s.summary().verdict)
    assert "chains have not mixed: R-hat inf (mode indicator" in text
    assert "no chain ever changed mode: weights only reflect the starting points" in text
    assert "too few effective draws" in text
    # 4 of 8 in each mode is no proof of a wrong weight, and must not be told as one
    assert "mode weights are wrong" not in text


def test_missed_mode_is_told_though_chains_agree():
    s = two_modes(16, 500, plus=1.0)
    only(s.summary().verdict, "mode 0 (weight 0.3) was never visited")


def test_rare_mode_that_was_not_due_is_not_held_against_the_sampler():
    s = two_modes(16, 500, plus=1.0)
    rare = TwoHalves(mode_weights=torch.tensor([1e-4, 1 - 1e-4]))
    assert s.summary(rare).verdict == []


def test_wrong_mode_weights_are_told():
    s = two_modes(16, 500, plus=0.5)
    verdict = s.summary().verdict
    only(verdict, "mode weights are wrong: mode ")
    assert "against 0." in verdict[0]
    assert "exact" in verdict[0]


def test_short_chains_are_told_apart_from_unmixed_ones():
    shift = torch.linspace(-0.35, 0.35, 4, dtype=torch.float64)[:, None]
    x = normal(4, 1000) + shift
    s = Samples(x=x[..., None], log_prob=-x.square())
    only(
        s.summary().verdict,
        "chains are too short to agree: R-hat 1.0",
        "too few effective draws: 96 (x[0], bulk), want 400",
    )


@pytest.mark.parametrize(
    ("accept", "nonfinite", "part"),
    [
        (
            torch.zeros(16),
            0,
            "no proposal was ever accepted (acceptance 0): the step size or width",
        ),
        (torch.zeros(16), 9, "log_prob was NaN or +inf at 9 proposals: check the target"),
        (torch.tensor([0.0] * 3 + [0.6] * 13), 0, "3 of 16 chains never accepted"),
        (torch.full((16,), 0.02), 0, "acceptance is only 0.02"),
        (torch.full((16,), 0.6), 5, "5 proposals had log_prob NaN or +inf"),
    ],
)
def test_acceptance_that_is_wrong_is_told(accept, nonfinite, part):
    counts = torch.zeros(16)
    counts[0] = nonfinite
    verdict = two_modes(16, 500, accept=accept, nonfinite=counts).summary().verdict
    assert any(part in text for text in verdict), verdict


def test_gap_in_a_ladder_is_told():
    swaps = torch.tensor([[0.3, 0.0, 0.4], [0.3, 0.02, 0.4]]).repeat(8, 1)
    summary = two_modes(16, 500, swap_accept=swaps).summary()
    only(summary.verdict, "rungs 1 and 2 of the ladder hardly ever swap (acceptance 0.01)")
    assert "swaps       0.30, 0.01, 0.40" in str(summary)


def test_draws_that_are_not_finite_are_told():
    s = two_modes(4, 100)
    s.x[0, 3] = math.nan
    assert any("1 of 400 draws are not finite" in text for text in s.summary().verdict)


def test_degenerate_weights_are_told():
    n = 5000
    log_weight = torch.full((n, 1), -50.0)
    log_weight[7] = 0.0
    s = Samples(x=normal(n, 1, 1), log_prob=torch.zeros(n, 1), log_weight=log_weight)
    only(s.summary().verdict, "importance weights are degenerate: 1.0 effective draws of 5000")


def test_wrong_log_z_is_told():
    good = two_modes(16, 500, log_z=1.45, log_z_error=0.02).summary()
    assert good.verdict == []
    assert "log Z       1.45 ± 0.02   exact 1.5" in str(good)
    only(
        two_modes(16, 500, log_z=1.3, log_z_error=0.02).summary().verdict,
        "log Z is wrong: 1.3 ± 0.02 against 1.5 exact",
    )


def test_few_draws_and_single_chains_are_told():
    assert any("mixing cannot be judged" in t for t in two_modes(500, 2).summary().verdict)
    assert any("one chain only" in note for note in two_modes(1, 500).summary().notes)
    assert any("ULA" in n for n in two_modes(4, 500, sampler="ULA").summary().notes)


# ------------------------------------------------------------------------- text and JSON
def test_text_fits_the_page_and_holds_the_numbers():
    s = two_modes(16, 500, evaluations=123456, gradients=12, seconds=1.5, backend="torch", seed=7)
    x = s.x.clone()
    x[0, 0] = -123456789.123
    wide = Samples(x=x, log_prob=s.log_prob * 1e12, info=s.info, target=s.target)
    for summary in (s.summary(), wide.summary()):
        text = str(summary)
        assert max(len(line) for line in text.splitlines()) <= WIDTH == 100
        for part in ("evaluations 123,456", "gradients 12", "wall 1.50 s", "seed 7", "verdict"):
            assert part in text
    assert "median 0.600" in str(s.summary())


def test_dict_is_json():
    s = two_modes(1, 500, scale=torch.tensor([0.1]))  # one chain: R-hat is NaN
    out = json.loads(json.dumps(s.summary().to_dict(), allow_nan=False))
    assert out["rows"][0]["rhat"] is None
    assert out["accept"] == pytest.approx(0.6)
    assert out["scale"] == pytest.approx([0.1])
    assert out["n_draws"] == 500


# ------------------------------------------------------------------------- draws
def test_flat_keeps_the_order_of_chains():
    x = torch.arange(24.0).reshape(2, 3, 4)
    s = Samples(x=x, log_prob=torch.zeros(2, 3))
    assert torch.equal(s.flat(), x.reshape(6, 4))


def test_resample_gives_each_draw_its_share():
    weight = torch.tensor([[0.1, 0.45, 0.2], [0.0, 0.05, 0.2]], dtype=torch.float64)
    x = torch.arange(6.0).reshape(2, 3, 1)
    s = Samples(x=x, log_prob=torch.zeros(2, 3), log_weight=weight.log() + 3)
    n = 1001
    counts = torch.bincount(s.resample(n, seed=4).long().flatten(), minlength=6)
    assert int(counts.sum()) == n
    assert bool(((counts - n * weight.flatten()).abs() < 1).all())  # systematic: never off by one
    assert counts[3] == 0
    assert torch.equal(s.resample(9, seed=1), s.resample(9, seed=1))
    equal = Samples(x=x, log_prob=torch.zeros(2, 3)).resample(6, seed=0)
    assert torch.equal(equal, x.reshape(6, 1))


def test_resample_refuses_what_it_cannot_do():
    s = Samples(x=torch.zeros(1, 2, 1), log_prob=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="n must be a positive int, got 0"):
        s.resample(0)
    empty = Samples(x=s.x, log_prob=s.log_prob, log_weight=torch.full((1, 2), -math.inf))
    with pytest.raises(ValueError, match="log_weight"):
        empty.resample(3)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"x": torch.zeros(3), "log_prob": torch.zeros(3)}, r"got shape \(3,\)"),
        ({"x": torch.zeros(2, 0, 1), "log_prob": torch.zeros(2, 0)}, "not empty"),
        ({"x": torch.zeros(2, 3, 1), "log_prob": torch.zeros(2, 2)}, r"log_prob must be \(2, 3\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(fields, match):
    with pytest.raises(ValueError, match=match):
        Samples(**fields)


# ------------------------------------------------------------------------- files
def test_save_and_load_keep_every_bit(tmp_path):
    s = two_modes(3, 7, seconds=0.1 + 0.2, warm_up={"steps": 5, "scale": torch.tensor([1.0, 2.0])})
    weighted = Samples(s.x, s.log_prob, log_weight=normal(3, 7), info=s.info)
    weighted.save(tmp_path / "a.safetensors")
    back = Samples.load(tmp_path / "a.safetensors", target=TwoHalves())
    assert torch.equal(back.x, s.x)
    assert torch.equal(back.log_prob, s.log_prob)
    assert torch.equal(back.log_weight, weighted.log_weight)
    assert back.info["seconds"] == 0.1 + 0.2
    assert back.info["sampler"] == "Fake"
    assert torch.equal(back.info["warm_up"]["scale"], torch.tensor([1.0, 2.0]))
    assert back.summary().modes
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    s = two_modes(3, 7)
    s.save(path)
    before = path.read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    from pysamp import samples as module

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        two_modes(4, 8).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_load_refuses_other_files(tmp_path):
    path = tmp_path / "torn.safetensors"
    two_modes(3, 7).save(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        Samples.load(path)
    with pytest.raises(TypeError, match=r"info\.fn must be a tensor, a number"):
        two_modes(3, 7, fn=print).save(tmp_path / "b.safetensors")


def test_arviz_sees_the_same_numbers():
    arviz = pytest.importorskip("arviz")
    s = two_modes(4, 50)
    data = Samples(s.x, s.log_prob, log_weight=torch.zeros(4, 50), target=s.target).to_arviz()
    assert data["posterior"]["x"].dims[:2] == ("chain", "draw")
    assert np.array_equal(data["posterior"]["x"].values, s.x.numpy())
    assert np.array_equal(data["sample_stats"]["lp"].values, s.log_prob.numpy())
    assert np.allclose(data["posterior"]["energy"].values, 0.5 * s.x[..., 0].numpy() ** 2)
    assert "log_weight" in data["sample_stats"]
    table = arviz.summary(data, var_names=["energy"], round_to=10)
    row = s.summary().rows[0]
    assert row["ess_bulk"] == pytest.approx(table["ess_bulk"].iloc[0], rel=1e-6)
