"""Experiments on two modes: published maps, rows, and every experiment in a size of seconds."""

import dataclasses
import importlib
import json
import math

import pytest
import torch

from pysamp import experiments
from pysamp.evaluate import Cell, aggregate
from pysamp.experiments import base, evaluation
from pysamp.experiments.evaluation import PUBLISHED, exact_draws, grid, importance, no_oracle
from pysamp.samplers import GaussianVI
from pysamp.targets import BracketTwoModes

# Sizes at which an experiment runs in seconds; its rows then need not pass.
TINY = {
    "evaluation/exact_draws": {"runs": 8, "dims": (4,), "a": (0.5, 5.25), "draws": 300_000},
    "evaluation/grid": {
        "dims": (4, 8), "a": (5.25, 10.0), "runs": 2, "t0": (0.6,), "particles": 32, "n_times": 16,
        "n_copies": 1, "chains": 16, "local": 50, "levels": 4, "rungs": 4, "ensembles": 16,
        "warmup": 20, "draws": 2, "thin": 1, "vi_steps": 30,
    },
    "evaluation/importance": {"runs": 4, "dims": (4,), "n": 4096},
    "evaluation/no_oracle": {
        "cells": ((4, 0.5), (8, 10.0)), "runs": 2, "chains": 8, "warmup": 4,
        "thin": 1,
    },
}  # fmt: skip


# ------------------------------------------------------------------------------------- published
def test_the_published_maps_are_whole():
    assert set(PUBLISHED) == {
        "MCMC", "IS-Gauss", "IS-NF", "VI-Gauss", "DDS", "SMC", "RE", "SLIPS",
    }  # fmt: skip
    for name, found in PUBLISHED.items():
        fine = name in ("SMC", "RE", "SLIPS")
        for table in (found.error, found.spread):
            assert tuple(table) == (evaluation.FINE_DIMS if fine else evaluation.DIMS)
            assert all(len(row) == len(evaluation.A) for row in table.values())
            assert all(0 <= value <= 100 * 2 / 3 for row in table.values() for value in row)
        assert found.reading in (0.2, 0.5)
    assert evaluation.published("SMC", 64, 10.0) == 11.4
    assert evaluation.published("RE", 256, 0.5) == 2.8
    assert evaluation.published("MCMC", 4, 0.5) == 4.8
    assert evaluation.published("MCMC", 128, 0.5) is None
    assert (
        evaluation.published("SMC", 64, 3.0) is None and evaluation.published("AIS", 4, 0.5) is None
    )


def test_moments_are_those_of_draws_and_seeds_are_apart():
    target = BracketTwoModes(6, a=2.0)
    known = evaluation.moments(target)
    x = target.sample(40_000, seed=1, dtype=torch.float64)
    spread = x.var(0).sqrt()
    # Largest of 6 means, and of 36 covariances, 5 standard errors each.
    assert float(((x.mean(0) - known.mean) / spread).abs().max()) < 5 / math.sqrt(40_000)
    scale = spread[:, None] * spread
    gap = (torch.cov(x.T) - torch.as_tensor(known.covariance)).abs() / scale
    assert float(gap.max()) < 5 * math.sqrt(2 / 40_000)
    with pytest.raises(TypeError, match="target must have moments, got object"):
        evaluation.moments(object())
    used = [s for seed in (0, 1) for part in (0, 1, 99) for s in evaluation.seeds(seed, 1000, part)]
    assert len(set(used)) == len(used)


def row(weight, seed, **more):
    """The row of a run of SMC in the cell d=4, a=5.25."""
    exact = [2 / 3, 1 / 3]
    return {
        "target": "BracketTwoModes", "parameters": {"dim": 4, "a": 5.25}, "sampler": "SMC",
        "budget": None, "seed": seed, "status": "done", "oracle_hints": ["moments"], "n": 2048,
        "weights": [weight, 1 - weight], "weights_exact": exact, "collapse": False, "gradients": 1,
        "evaluations": 1, "seconds": 1.0, "ess": 2048.0, "metrics": {}, "within_modes": None,
        **more,
    }  # fmt: skip


def cell(*weights) -> Cell:
    return aggregate([row(w, seed) for seed, w in enumerate(weights)])[0]


def test_rows_stand_beside_the_published_error_with_room_for_noise():
    assert PUBLISHED["SMC"].error[4][2] == 2.1
    (good,) = evaluation.limited([cell(0.68, 0.64, 0.70, 0.65)], "SMC")
    assert good.quantity == "SMC (oracle) d=4 a=5.25" and good.reference == 2.1
    assert good.ours == pytest.approx((1.3333 + 2.6667 + 3.3333 + 1.6667) / 4, abs=1e-3)
    assert good.error > 0 and good.rule == "≤ 4.15" and good.ok
    (bad,) = evaluation.limited([cell(0.62, 0.62, 0.73, 0.72)], "SMC")
    assert not bad.ok and bad.ours > 4.15
    assert list(evaluation.limited([cell(0.6, 0.7)], "AIS")) == []
    # Runs that all failed have no error, and a row that does not pass.
    lost = aggregate([{**row(0.6, 0), "status": "failed", "reason": "ValueError: no"}])
    (none,) = evaluation.limited(lost, "SMC")
    assert math.isnan(none.ours) and not none.ok


def test_shapes_inside_modes_fail_where_variances_are_off():
    shape = {"variance_ratio": [0.97, 1.05], "draws": 5000.0}
    rows = [*grid._shape([row(0.6, 0, within_modes=shape)], "SMC")]
    assert [r.ok for r in rows] == [True, True] and [r.ours for r in rows] == [0.97, 1.05]
    narrow = {"variance_ratio": [0.1, 1.3], "draws": 5000.0}
    both = [row(0.6, 0, within_modes=shape), row(0.6, 1, within_modes=narrow)]
    rows = [*grid._shape(both, "SMC")]
    assert [r.ok for r in rows] == [False, False] and [r.ours for r in rows] == [0.1, 1.3]
    assert [*grid._shape([row(0.6, 0)], "SMC")] == []


# ------------------------------------------------------------------------------------- parts
def test_draws_of_a_fit_lose_their_weights_only():
    target = BracketTwoModes(4, a=2.875)
    fit = GaussianVI(n_steps=20)
    kept, bare = (s.sample(target, 50, seed=3) for s in (fit, grid.Unweighted(fit)))
    assert kept.log_weight is not None and bare.log_weight is None
    assert torch.equal(kept.x, bare.x) and bare.info["elbo"] == kept.info["elbo"]


def test_ladders_grow_with_the_root_of_the_dimension():
    assert no_oracle.rungs(4) == 16 and no_oracle.rungs(64) == 56 and no_oracle.rungs(256) == 111


def test_where_modes_overlap_their_weight_is_counted_as_computed():
    settings = exact_draws.Settings(2, (4,), (0.5,), draws=300_000)
    counted, computed = exact_draws.overlap(settings, seed=5)
    assert computed.ok and abs(computed.ours - 2 / 3) > 1e-4  # not that of the component
    assert counted.ok and counted.error == pytest.approx(math.sqrt(2 / 9 / 300_000), rel=1e-2)


# ------------------------------------------------------------------------------------- experiments
def test_all_experiments_on_two_modes_are_here():
    names = [name for name in experiments.names() if name.startswith("evaluation/")]
    assert names == sorted(TINY)
    for name in names:
        experiment = experiments.find(name)
        module = importlib.import_module("pysamp.experiments." + name.replace("/", "."))
        assert experiment is module.EXPERIMENT and "2504.08916" in module.__doc__
        assert set(experiment.settings) == set(base.SCALES)


@pytest.mark.parametrize("name", sorted(TINY))
def test_experiments_run(name, tmp_path, monkeypatch):
    experiment = experiments.find(name)
    tiny = dataclasses.replace(experiment.settings["quick"], **TINY[name])
    monkeypatch.setitem(experiment.settings, "quick", tiny)
    said = []
    report = experiments.reproduce(name, seed=1, out=tmp_path, progress=said.append)
    assert said and report["rows"] and not any("failed" in line for line in said)
    text = experiments.text(report)
    assert max(map(len, text.splitlines())) <= 100
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["data"]["cells"] and saved["figures"]
    for figure in saved["figures"]:
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")
    told = {c["sampler"] for c in saved["data"]["cells"] if c["oracle"]}
    assert "PT powers" not in told and "SLIPS" not in told
    assert told <= {r["quantity"].split(" d=")[0] for r in saved["rows"]} | set(told)
    if name in ("evaluation/exact_draws", "evaluation/importance"):
        for one in report["rows"]:
            assert not one["rule"].startswith("5σ") or one["ok"], one


def test_proposals_of_importance_sampling_have_the_moments_that_they_claim():
    target = BracketTwoModes(8, a=1.0)
    full, diagonal = importance.full(target).proposal, importance.diagonal(target).proposal
    matrix = torch.as_tensor(target.covariance)
    assert torch.equal(torch.as_tensor(full.covariance), matrix)
    assert torch.equal(torch.as_tensor(diagonal.covariance), matrix.diagonal())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TINY))
def test_experiments_reproduce_what_was_published(name, tmp_path):
    report = experiments.reproduce(name, out=tmp_path)
    assert report["ok"], experiments.text(report)
