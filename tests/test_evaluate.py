"""Evaluations: rows and what repetitions make of them, budgets, hints, files, kills, processes, figures."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pysamp import cli, distributed, evaluate, metrics
from pysamp.evaluate import Entry, Exact, Problem, aggregate, plots, rows, suite, table
from pysamp.evaluate import file as evaluation_file
from pysamp.evaluate.run import mode_weights
from pysamp.mcmc import HMC, MALA, Metropolis, ParallelTempering
from pysamp.samples import Samples
from pysamp.sampling import sample
from pysamp.targets import BracketTwoModes, EightGaussians, Funnel, TwoModes
from pysamp.targets.bayes import LogisticRegression
from pysamp.yaml_file import RunFileError

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks" / "evaluation"


# ------------------------------------------------------------------------- samplers that do as told
@dataclass(frozen=True)
class Fraction:
    """Draws of which a fraction lies in mode 0, and the rest in mode 1; no noise in the weights."""

    first: float
    length: int = 1

    def sample(self, target, n, *, seed, device=None, dtype=None):
        if not 0 <= self.first <= 1:
            raise ValueError(f"first must lie in [0, 1], got {self.first}")
        k = round(n * self.first)
        x = target.sample(8 * n, seed=seed)
        label = target.mode(x)
        x = torch.cat([x[label == 0][:k], x[label == 1][: n - k]])
        info = {"evaluations": n * self.length, "gradients": n * self.length}
        return Samples(x[:, None], target.log_prob(x)[:, None], None, info)

    def for_budget(self, n, gradients):
        if gradients < n:
            raise ValueError(f"gradients must be at least {n}, got {gradients}")
        return replace(self, length=gradients // n)


class Broken:
    def sample(self, target, n, *, seed, device=None, dtype=None):
        raise RuntimeError(f"no draw of seed {seed}")


class Weighted:
    """Uniform on a box with importance weights; `spike` gives one draw nearly all of the weight."""

    def __init__(self, spike=False):
        self.spike = spike

    def sample(self, target, n, *, seed, device=None, dtype=None):
        base = target.sample(n, seed=seed)
        x = base if self.spike else -base  # the mirror image: weights put it right
        log_p, log_q = target.log_prob(x), target.log_prob(-x)
        log_weight = torch.zeros(n) if self.spike else log_p - log_q
        log_weight[0] = 14.0 if self.spike else log_weight[0]
        info = {"evaluations": n, "gradients": 0, "log_z": 0.0, "log_z_error": 0.1}
        return Samples(x[:, None], log_p[:, None], log_weight[:, None], info)


class NotFinite:
    def sample(self, target, n, *, seed, device=None, dtype=None):
        x = target.sample(n, seed=seed)
        x[: n // 4] = math.nan
        info = {"evaluations": n, "gradients": 0, "warnings": ["a quarter was lost"]}
        return Samples(x[:, None], target.log_prob(x)[:, None], None, info)


def problem(dim=2, a=1.0):
    return Problem(TwoModes(dim, a), "TwoModes", {"dim": dim, "a": a})


def one(entry, **how):
    """The cell of one sampler on two well separated modes."""
    found = aggregate(suite([problem()], [entry], **{"n": 600, "seeds": 4, **how}))
    assert len(found) == 1
    return found[0]


def without_time(found):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


# ------------------------------------------------------------------------- what repetitions say
def row(seed, w=(0.25, 0.75), **more):
    base = {
        "target": "T", "parameters": {"d": 1}, "sampler": "s", "budget": None, "seed": seed,
        "status": "done", "oracle": False, "oracle_hints": [], "n": 10_000, "weights": list(w),
        "weights_exact": [0.25, 0.75], "collapse": False, "ess": 10_000.0, "weighted": False,
        "evaluations": 10.0, "gradients": 20.0, "seconds": 1.0, "metrics": {},
    }  # fmt: skip
    return {**base, **more}


def test_error_and_spread_are_those_of_the_paper():
    found = [row(s, (w, 1 - w)) for s, w in enumerate((0.20, 0.24, 0.31))]
    (cell,) = aggregate(found)
    assert cell.error == pytest.approx(100 * (0.05 + 0.01 + 0.06) / 3)
    assert cell.spread == pytest.approx(100 * np.std([0.20, 0.24, 0.31], ddof=1))
    assert abs(cell.bias) == pytest.approx(0.0, abs=1e-9)
    assert (cell.runs, cell.failed, cell.cost) == (3, 0, 20.0)
    assert cell.floor_spread == pytest.approx(100 * math.sqrt(0.25 * 0.75 / 10_000))
    assert cell.floor_error == pytest.approx(cell.floor_spread * math.sqrt(2 / math.pi))


def test_floor_of_many_modes_is_that_of_multinomial_draws():
    exact = np.full(8, 1 / 8)
    draws = np.random.default_rng(0).multinomial(500, exact, size=20_000) / 500
    worst = 100 * np.abs(draws - exact).max(1)
    error, spread = rows.floor_of(exact, 500)
    assert error == pytest.approx(worst.mean(), rel=0.03)  # modes are not quite independent
    assert spread == pytest.approx(100 * draws.std(0).mean(), rel=0.02)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ([{"collapse": True}] * 3 + [{}], "missed mode 3/4"),
        ([{"nonfinite_draws": 5}] + [{}] * 3, "not finite 1/4"),
        ([{"weighted": True, "ess": 40.0}] * 4, "degenerate weights (ESS 40)"),
        ([{"weights": [0.35, 0.65]}] * 4, "biased +10.0 (mode 0)"),
        ([{"weights": [w, 1 - w]} for w in (0.1, 0.4, 0.1, 0.4)], "spread ×40.0"),
        ([{"within_modes": {"variance_ratio": [0.5, 1.0], "draws": 4000}}] * 4, "variance inside"),
        ([{"log_z": 1.0 + i / 100, "log_z_exact": 0.0} for i in range(4)], "log Z wrong"),
        ([{"weights": [0.25 + e, 0.75 - e]} for e in (0.012, 0.018)], "error ×4.3"),
        ([{"weights": [0.25 + e, 0.75 - e]} for e in (0.03, 0.032, 0.029, 0.031)], "biased +3.1"),
        (
            [
                {"metrics": {"mmd": {"value": v, "floor": {"mean": 1, "low": 0.8, "high": 1.3}}}}
                for v in (1.5, 2.2)
            ],
            "mmd above floor",
        ),
        ([{"status": "failed", "reason": "no"}] + [{}] * 3, "failed 1/4"),
    ],
)
def test_faults_are_told_apart(changes, fault):
    found = [row(s, **change) for s, change in enumerate(changes)]
    (cell,) = aggregate(found)
    assert len(cell.faults) == 1 and fault in cell.faults[0], cell.faults
    assert cell.collapse == ("missed" in fault)


def test_good_repetitions_have_no_fault():
    found = [row(s, (0.25 + e, 0.75 - e)) for s, e in enumerate((0.004, -0.004, 0.002, -0.001))]
    for r in found:
        r["within_modes"] = {"variance_ratio": [0.93, 1.08], "draws": 300}
        r["metrics"] = {"mmd": {"value": 1.7, "floor": {"mean": 1, "low": 0.8, "high": 1.3}}}
        r |= {"log_z": -0.01 * r["seed"] + 0.015, "log_z_exact": 0.0}
    assert aggregate(found)[0].faults == []


# ------------------------------------------------------------------------- runs
def test_exact_draws_have_the_error_of_independent_draws():
    """Check E3: n = 2048, 64 repetitions; both numbers have a relative error of 1/√128 or less."""
    cell = one(Entry("exact", Exact()), n=2048, seeds=64)
    assert cell.error == pytest.approx(
        0.83, abs=5 * 0.83 * 0.756 / 8
    )  # sd of |N|: 0.756 of its mean
    assert cell.spread == pytest.approx(1.04, abs=5 * 1.04 / math.sqrt(128))
    assert cell.floor_error == pytest.approx(0.83, abs=0.01)
    assert cell.floor_spread == pytest.approx(1.04, abs=0.01)
    assert cell.faults == []
    assert cell.oracle == ["exact draws"]


def test_chains_that_start_in_one_mode_stay_there_and_this_is_said():
    """Check E6, as far as two modes of one width: 33.3 points, no spread, a mode missed."""
    local = Entry("local", MALA(), n_chains=32, n_draws=8, warmup=100, x0=0)
    found = suite([problem(8, 2.875)], [local], n=256, seeds=3)
    (cell,) = aggregate(found)
    assert cell.error == pytest.approx(100 / 3) and cell.spread == pytest.approx(0.0, abs=1e-9)
    assert cell.collapse and cell.faults == ["missed mode 3/3"]
    assert all(r["oracle"] and r["oracle_hints"] == ["x0: exact draws of mode 0"] for r in found)
    assert all(r["n"] == 256 and r["weights"] == [1.0, 0.0] for r in found)
    assert all(any("never visited" in said for said in r["verdict"]) for r in found)
    assert all(r["gradients"] > 32 * 100 and 0.2 < r["accept"] < 0.9 for r in found)
    other = suite([problem(8, 2.875)], [replace(local, x0=1)], n=256, seeds=1)
    assert other[0]["weights"] == [0.0, 1.0]


def test_row_holds_what_a_reader_needs():
    (found,) = suite([problem()], [Entry("half", Fraction(0.5))], n=600, seeds=[7])
    assert json.loads(json.dumps(found)) == found
    assert (found["target"], found["parameters"]) == ("TwoModes", {"dim": 2, "a": 1.0})
    assert (found["sampler"], found["budget"], found["seed"]) == ("half", None, 7)
    assert found["status"] == "done" and found["n"] == 600
    assert found["weights"] == [0.5, 0.5]
    assert found["weights_exact"] == pytest.approx([2 / 3, 1 / 3])
    assert found["mode_weight_error"] == pytest.approx(100 / 6)
    assert found["total_variation"] == pytest.approx(1 / 6)
    assert found["collapse"] is False and found["oracle"] is False
    assert (found["evaluations"], found["gradients"]) == (600, 600)
    assert found["log_z_exact"] == 0.0 and found["log_z"] is None
    assert found["description"]["fields"] == {"first": 0.5, "length": 1}
    assert found["within_modes"]["modes"] == 2
    low, high = found["within_modes"]["variance_ratio"]
    assert 1 - 5 * math.sqrt(2 / 300) < low <= high < 1 + 5 * math.sqrt(2 / 300)
    assert {"pysamp", "torch"} <= set(found["versions"])
    assert found["device"] == "cpu" and found["dtype"] == "float32"


def test_one_that_raises_is_a_row_and_the_others_go_on():
    entries = [Entry("broken", Broken()), Entry("half", Fraction(0.5))]
    found = suite([problem()], entries, n=1000, seeds=2)
    assert [r["status"] for r in found] == ["failed", "failed", "done", "done"]
    assert found[1]["reason"] == "RuntimeError: no draw of seed 1"
    text = table(found)
    assert "failed 2/2" in text and "broken in 2 runs, first" in text
    assert "RuntimeError: no draw of seed 0" in " ".join(text.split())
    assert "biased -16.7 (mode 0)" in text
    assert max(map(len, text.splitlines())) <= 100


def test_draws_that_are_not_finite_are_in_no_mode():
    found = suite([problem()], [Entry("ill", NotFinite())], n=800, seeds=2)
    for r in found:
        assert sum(r["weights"]) == pytest.approx(0.75)
        assert r["nonfinite_draws"] == 200
        assert r["total_variation"] > 0.25 - 1e-9
        assert "a quarter was lost" in r["verdict"]
    assert "not finite 2/2" in aggregate(found)[0].faults


def test_weights_of_draws_are_used_and_bad_ones_are_told():
    target = TwoModes(2, 0.3)
    samples = Weighted().sample(target, 20_000, seed=1)
    weight = torch.softmax(samples.log_weight[:, 0].double(), 0)
    label = target.mode(samples.x[:, 0])
    expected = torch.stack([weight[label == k].sum() for k in range(2)])
    found, bad = mode_weights(samples, target)
    assert torch.allclose(found, expected, atol=1e-12) and bad == 0
    assert float(found[0]) == pytest.approx(2 / 3, abs=0.1) and float(found[0]) != 2 / 3
    cell = one(Entry("spike", Weighted(spike=True)))
    assert any("degenerate weights (ESS 1)" in fault for fault in cell.faults)
    assert any("missed" in fault for fault in cell.faults)
    samples = replace(samples, log_weight=torch.full_like(samples.log_prob, math.nan))
    with pytest.raises(ValueError, match="log_weight must have a finite entry"):
        mode_weights(samples, target)


def test_distances_stand_beside_their_noise_floor():
    entries = [Entry("exact", Exact()), Entry("half", Fraction(0.5)), Entry("ill", NotFinite())]
    names = ["wasserstein2", "sliced_ks", "mmd", "ksd"]
    found = suite([problem()], entries, n=512, n_metric=256, seeds=2, metrics=names)
    for r in found:
        assert list(r["metrics"]) == names
        for m in r["metrics"].values():
            assert m["n"] == 256 and 0 < m["floor"]["low"] < m["floor"]["mean"] < m["floor"]["high"]
    cells = {cell.sampler: cell.metrics for cell in aggregate(found)}
    target, floor = TwoModes(2), cells["exact"]["wasserstein2"]
    pairs = [target.sample(512, seed=(1 << 44) + r).split(256) for r in range(8)]
    values = [float(metrics.wasserstein2(x, y)) for x, y in pairs]
    assert floor["floor_low"] == min(values) and floor["floor_high"] == max(values)
    for name in names:
        exact, half = cells["exact"][name], cells["half"][name]
        width = exact["floor_high"] - exact["floor_low"]  # of 8 values: nearly 3 sd
        assert abs(exact["mean"] - exact["floor_mean"]) < 5 / 3 * width
        if name != "ksd":  # which does not see weights
            assert half["mean"] > half["floor_high"]
        assert cells["ill"][name]["mean"] is None
    assert "wasserstein2 not finite (floor" in table(found)


def test_posterior_of_held_out_data_is_a_metric():
    features = torch.tensor([[1.0], [-1.0], [0.5]])
    labels = torch.tensor([1.0, 0.0, 1.0])
    target = LogisticRegression(features, labels, features[:1], labels[:1])
    entry = Entry("mala", MALA(0.1), n_chains=16, n_draws=4, warmup=100)
    problems = [Problem(target, "data"), Problem(replace_test(target), "no data"), problem()]
    found = suite(problems, [entry], n=64, seeds=1, metrics=["test_log_posterior"])
    assert [list(r["metrics"]) for r in found] == [["test_log_posterior"], [], []]
    value = found[0]["metrics"]["test_log_posterior"]
    draws = sample(target, MALA(0.1), n_chains=16, n_draws=4, warmup=100, progress=False)
    assert value["value"] == pytest.approx(float(target.test_log_posterior(draws.flat()).mean()))
    assert value["floor"] is None and value["n"] == 64


def replace_test(target):
    return LogisticRegression(target.features, target.labels)


# ------------------------------------------------------------------------- budgets
@pytest.mark.parametrize(
    "kernel",
    [MALA(), HMC(n_leapfrog=5), Metropolis(), ParallelTempering(MALA(), n_rungs=3, swap_every=2)],
    ids=lambda kernel: type(kernel).__name__,
)
def test_kernels_spend_the_budget_that_they_are_given(kernel):
    budget = 12_000
    entry = Entry("kernel", kernel, n_chains=8, n_draws=4)
    (found,) = suite([problem()], [entry], n=32, seeds=1, budgets=[budget])
    assert found["status"] == "done", found.get("reason")
    spent = found["gradients"] or found["evaluations"]
    assert 0.9 * budget < spent <= 1.01 * budget
    assert found["n"] == 32 and found["budget"] == budget


def test_samplers_are_made_as_long_as_the_budget_allows():
    entry = Entry("half", Fraction(0.5))
    found = suite([problem()], [entry], n=100, seeds=1, budgets=[50, 1000, 3000])
    assert [r["status"] for r in found] == ["failed", "done", "done"]
    assert "gradients must be at least 100, got 50" in found[0]["reason"]
    assert [r["gradients"] for r in found[1:]] == [1000, 3000]
    assert found[2]["description"]["fields"]["length"] == 30
    with pytest.raises(ValueError, match="broken cannot be given a budget: it has no for_budget"):
        suite([problem()], [Entry("broken", Broken())], budgets=[1000])
    with pytest.raises(ValueError, match=r"warmup=5 of k has no meaning beside budgets"):
        suite([problem()], [Entry("k", MALA(), warmup=5)], budgets=[1000])
    kernel = Entry("k", MALA(), n_chains=8, n_draws=4)
    (small,) = suite([problem()], [kernel], n=32, seeds=1, budgets=[60])
    assert "budget must be at least 72" in small["reason"]
    (least,) = suite([problem()], [kernel], n=32, seeds=1, budgets=[72])
    assert least["status"] == "done"


# ------------------------------------------------------------------------- hints
def test_best_value_of_a_grid_is_an_oracle_and_its_runs_are_in_the_row():
    entry = Entry("tuned", Fraction(0.5), tune=("first", (0.1, 0.7, 0.9)))
    found = suite([problem()], [entry], n=100, seeds=3)
    for r in found:
        tuning = r["tuning"]
        assert tuning["values"][tuning["chosen"]] == 0.7
        assert tuning["errors"] == pytest.approx([2 / 3 - 0.1, 0.7 - 2 / 3, 0.9 - 2 / 3])
        assert tuning["gradients"] == 3 * 4 * 100
        assert r["oracle_hints"] == ["first: chosen by the exact answer"]
        assert r["weights"] == pytest.approx([0.7, 0.3])
    entry = Entry("tuned", Fraction(0.5), tune=("first", (2.0, -1.0)))
    (failed,) = suite([problem()], [entry], n=10, seeds=1)
    assert "no value of first can be used" in failed["reason"]
    (failed,) = suite([problem()], [Entry("t", Broken(), tune=("first", (1,)))], n=9, seeds=1)
    assert "tune needs a sampler that is a dataclass, got Broken" in failed["reason"]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (lambda: Entry("x", Fraction(0.5), n=0), "n must be at least 1, got 0"),
        (lambda: Entry("x", Fraction), "sampler is the class Fraction"),
        (lambda: Entry("x", Fraction(0.5), tune=("first", ())), "tune must have values"),
        (lambda: Entry("x", Fraction(0.5), thin=2).make(TwoModes(2)), "thin of x has no meaning"),
        (lambda: Entry("x", lambda target: 3).make(TwoModes(2)), "must be a kernel or a sampler"),
    ],
)
def test_entries_that_mean_nothing_are_refused(entry, text):
    with pytest.raises((ValueError, TypeError), match=text):
        entry()


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"seeds": [1 << 32]}, "seeds must be below 2"),
        ({"seeds": [3, 3]}, "two runs have the same names"),
        ({"budgets": []}, "budgets must not be empty"),
        ({"metrics": ["sliced_kz"]}, "unknown metric 'sliced_kz'"),
        ({"metrics": ["test_log_posterior"]}, "no target has test data"),
        ({"n_metric": 1}, "n_metric must be at least 2"),
        ({"device": "tpu"}, "device must be"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(how, text):
    with pytest.raises(ValueError, match=text):
        suite([problem()], [Entry("half", Fraction(0.5))], **how)


# ------------------------------------------------------------------------- the paper
@pytest.mark.slow
def test_local_chains_on_the_target_of_the_paper():
    """Check E6: one mode of two that lie apart; an error of 2 to 9 points where they overlap.

    4096 steps for the latter: 2048 leave 13 points, at the best of all step sizes.
    """
    local = Entry("local", MALA(), n_chains=1024, n_draws=16, warmup=4096, x0=0)
    apart = Problem(BracketTwoModes(8, 2.875), "BracketTwoModes", {"dim": 8, "a": 2.875})
    near = Problem(BracketTwoModes(4, 0.5), "BracketTwoModes", {"dim": 4, "a": 0.5})
    far, close = aggregate(suite([apart, near], [local], n=16_384, seeds=4))
    assert far.error == pytest.approx(33.3, abs=0.1) and far.spread == pytest.approx(0, abs=1e-6)
    assert far.collapse and not close.collapse
    assert 2 < close.error < 9


@pytest.mark.slow
def test_exact_draws_of_the_target_of_the_paper():
    """Check E3: error 0.83 ± 0.22 and spread 1.04 ± 0.28 points for 2048 draws."""
    p = Problem(BracketTwoModes(16, 5.25), "BracketTwoModes")
    (cell,) = aggregate(suite([p], [Entry("exact", Exact())], n=2048, seeds=64))
    assert cell.error == pytest.approx(0.83, abs=0.22)
    assert cell.spread == pytest.approx(1.04, abs=0.28)
    assert cell.faults == []


# ------------------------------------------------------------------------- folders
def test_folder_goes_on_where_it_was_left(tmp_path):
    entries = [Entry("half", Fraction(0.5)), Entry("exact", Exact())]
    how = {"n": 64, "seeds": 3, "out": tmp_path / "e"}
    said: list[str] = []
    whole = suite([problem()], entries, **how, progress=said.append)
    assert len(said) == 6 and len(whole) == 6
    file = tmp_path / "e" / "rows-0.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    failed = {**json.loads(lines[1]), "status": "failed", "reason": "no"}
    file.write_bytes(lines[0] + json.dumps(failed).encode() + b"\n" + lines[2][:40])  # torn
    assert len(evaluate.read(tmp_path / "e")) == 2
    said.clear()
    again = suite([problem()], entries, **how, progress=said.append)
    assert len(said) == 5  # all but the first: the failed one is tried again
    assert without_time(again) == without_time(whole)
    assert without_time(evaluate.read(tmp_path / "e")) == without_time(whole)


def test_folder_of_another_evaluation_is_refused_with_the_difference(tmp_path):
    entries = [Entry("half", Fraction(0.5))]
    suite([problem()], entries, n=64, seeds=2, out=tmp_path / "e")
    with pytest.raises(ValueError, match=r"another evaluation.*\n.*n: recorded 64, given 65"):
        suite([problem()], entries, n=65, seeds=2, out=tmp_path / "e")
    other = [Entry("half", Fraction(0.25))]
    with pytest.raises(ValueError, match=r"sampler.first: recorded 0.5, given 0.25"):
        suite([problem()], other, n=64, seeds=2, out=tmp_path / "e")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="is not empty and holds no evaluation"):
        suite([problem()], entries, out=tmp_path / "full")
    with pytest.raises(FileNotFoundError, match=r"has no evaluation\.json"):
        evaluate.read(tmp_path / "full")
    with (
        rows.writing(tmp_path / "e", 0),
        pytest.raises(RuntimeError, match="written by another process"),
    ):
        suite([problem()], entries, n=64, seeds=2, out=tmp_path / "e")
    (tmp_path / "e" / "rows-0.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"rows-0\.jsonl, line 1 is damaged"):
        evaluate.read(tmp_path / "e")


# ------------------------------------------------------------------------- run as a script
class Dies(Fraction):
    """Dies as by kill -9 at one seed."""

    def sample(self, target, n, *, seed, device=None, dtype=None):
        if seed == 3 and "DIE" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        return Fraction.sample(self, target, n, seed=seed)


def on_ranks(size, work):
    """Exit codes of `work` in `size` forks of this process, which has not yet used torch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            me = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank}
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
            os.environ.update({key: str(value) for key, value in {**address, **me}.items()})
            try:
                torch.set_num_threads(1)
                work()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def main(root: Path) -> None:
    entries = [
        Entry("dies", Dies(0.5)),
        Entry("local", MALA(0.1), n_chains=4, n_draws=4, warmup=0),
        Entry("tuned", Fraction(0.5), tune=("first", (0.2, 0.6))),
    ]

    def work(out):
        def run():
            found = suite([problem()], entries, n=64, seeds=5, out=out)
            name = f"{out.name if out else 'memory'}.{os.environ['RANK']}.json"
            (root / name).write_text(json.dumps(found))

        return run

    codes = {"one": on_ranks(1, work(root / "one")), "three": on_ranks(3, work(root / "three"))}
    codes["memory"] = on_ranks(3, work(None))
    os.environ["DIE"] = "1"
    codes["killed"] = on_ranks(1, work(root / "killed"))
    del os.environ["DIE"]
    codes["resumed"] = on_ranks(2, work(root / "killed"))
    (root / "codes.json").write_text(json.dumps(codes))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One script, imported once, that forks all groups of processes."""
    root = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, __file__, str(root)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    codes = json.loads((root / "codes.json").read_text())
    assert codes.pop("killed") == [-signal.SIGKILL]
    assert all(code == 0 for group in codes.values() for code in group), done.stderr
    return root


def test_processes_share_the_runs_and_see_the_same_rows(root):
    expected = json.loads((root / "one.0.json").read_text())
    assert len(expected) == 15 and {r["status"] for r in expected} == {"done"}
    for name in ("three", "memory"):
        for rank in range(3):
            found = json.loads((root / f"{name}.{rank}.json").read_text())
            assert without_time(found) == without_time(expected)
    shares = [
        len((root / "three" / f"rows-{rank}.jsonl").read_text().splitlines()) for rank in range(3)
    ]
    assert sum(shares) == 15 and min(shares) > 0


def test_evaluation_killed_in_a_run_goes_on_with_another_number_of_processes(root):
    expected = json.loads((root / "one.0.json").read_text())
    assert (root / "killed" / "rows-1.jsonl").exists()
    for rank in range(2):
        found = json.loads((root / f"killed.{rank}.json").read_text())
        assert without_time(found) == without_time(expected)


def test_alone_is_a_world_of_one(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with distributed.alone():
        assert distributed.world() == distributed.World()
    with pytest.raises(ValueError, match="RANK must be set"):
        distributed.world()


# ------------------------------------------------------------------------- files
FILE = """
targets:
  - {name: TwoModes, dim: {grid: [2, 4]}, a: {grid: [0.5, 1e0, 2]}}
  - EightGaussians
samplers:
  - {label: local, name: MALA, x0: mode 1, n_chains: 8, n_draws: 4, warmup: 20}
  - {name: ParallelTempering, kernel: MALA, n_rungs: 3, n_chains: 8, n_draws: 4, warmup: 20}
  - {name: exact, n: 1e2}
n: 32
seeds: 2
"""


def write(tmp_path, text):
    path = tmp_path / "e.yaml"
    path.write_text(text)
    return path


def test_file_builds_what_it_describes(tmp_path):
    made = evaluation_file.load(write(tmp_path, FILE), ["n=64", "samplers.1.n_rungs=5"])
    assert [str(p) for p in made.problems[:2]] == ["TwoModes dim=2 a=0.5", "TwoModes dim=2 a=1"]
    assert len(made.problems) == 7 and made.problems[6].parameters == {}
    assert torch.equal(made.problems[5].target.means, TwoModes(4, 2.0).means)
    local, ladder, exact = made.samplers
    assert (local.label, local.x0, local.n_chains, local.warmup) == ("local", 1, 8, 20)
    assert local.hints == ["x0: exact draws of mode 1"]
    assert isinstance(ladder.make(made.problems[0].target), ParallelTempering)
    assert ladder.make(made.problems[0].target).n_rungs == 5
    assert ladder.label == "ParallelTempering" and ladder.hints == []
    assert exact.n == 100 and exact.hints == ["exact draws"]
    assert {k: v for k, v in made.settings.items() if k != "config"} == {"n": 64, "seeds": 2}
    other = evaluation_file.load(write(tmp_path, FILE), ["n=64", "samplers.1.n_rungs=5", "out=x"])
    assert other.out == "x" and other.settings["config"] == made.settings["config"]


@pytest.mark.parametrize(
    ("old", "new", "line", "text"),
    [
        ("EightGaussians", "EigthGaussians", 4, "did you mean EightGaussians?"),
        ("dim: {grid: [2, 4]}", "dimm: {grid: [2, 4]}", 3, "unknown key targets.0.dimm"),
        ("dim: {grid: [2, 4]}", "dim: {grid: []}", 3, "dim must be {grid: [values]}"),
        ("dim: {grid: [2, 4]}", "dim: {grid: [0]}", 3, "dim must be at least 1, got 0"),
        ("kernel: MALA", "kernel: MALLA", 7, "kernel must be a Kernel, written {name: …}, got 'MALLA'"),
        ("name: ParallelTempering", "name: ParallelTemperin", 7, "did you mean ParallelTempering?"),
        ("n_rungs: 3", "n_rung: 3", 7, "did you mean n_rungs?"),
        ("warmup: 20}\n  - {name: P", "warm_up: 20}\n  - {name: P", 6, "did you mean warmup?"),
        ("x0: mode 1", "x0: 1", 6, "x0 must be such as 'mode 0'"),
        ("n_chains: 8, n_draws: 4, warmup: 20}\n  - {name: P", "n_chains: 0}\n  - {name: P", 6,
         "n_chains must be a positive integer, got 0"),
        ("name: exact, n: 1e2", "name: exact, thin: 2", 8, "unknown key samplers.2.thin"),
        ("seeds: 2", "seed: 2", 10, "did you mean seeds?"),
        ("n: 32", "n: many", 9, "n must be a positive integer, got 'many'"),
        ("n: 32", "budgets: 3", 9, "budgets must be a list of numbers of gradients, got 3"),
        ("n_rungs: 3", "n_rungs: {oracle: 3}", 7, "n_rungs must be {oracle: [values]}"),
        ("n_rungs: 3", "n_rungs: {oracle: [1]}", 7, "n must be at least 2 rungs"),
        ("label: local", "label: 3", 6, "label must be a word, got 3"),
    ],
)  # fmt: skip
def test_file_is_refused_with_line_and_nearest_word(tmp_path, old, new, line, text):
    assert old in FILE
    with pytest.raises(RunFileError) as caught:
        evaluation_file.load(write(tmp_path, FILE.replace(old, new)))
    assert f"line {line}:" in str(caught.value) and text in str(caught.value)


def test_words_of_the_truth_make_an_oracle(tmp_path):
    text = """
    targets: [{name: TwoModes, dim: 2, a: {grid: [1, 2]}}]
    samplers:
      - {name: MALA, step_size: true sd}
      - {label: best, name: MALA, step_size: {oracle: [1e-2, 0.1]}}
    """
    made = evaluation_file.load(write(tmp_path, text))
    told, best = made.samplers
    for a, p in zip((1, 2), made.problems, strict=True):
        draws = p.target.sample(200_000, seed=0).double()
        sd = math.sqrt(float(draws.var(0).mean()))
        assert told.make(p.target).step_size == pytest.approx(sd, rel=5 / math.sqrt(400_000))
        assert told.make(p.target).step_size == pytest.approx(math.sqrt(8 / 9 * a**2 + 0.05))
    assert told.hints == ["step_size: true sd"]
    assert best.tune == ("step_size", (0.01, 0.1))
    unknown = text.replace("targets: [", "targets: [{name: Phi4Chain, n_sites: 4}, ")
    with pytest.raises(RunFileError, match="the moments of Phi4Chain are not known"):
        evaluation_file.load(write(tmp_path, unknown))


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.yaml")), ids=lambda path: path.stem)
def test_files_of_the_benchmarks_describe_what_there_is(path):
    made = evaluation_file.load(path)
    assert len({entry.label for entry in made.samplers}) == len(made.samplers)
    assert all(p.target.event_shape for p in made.problems)


# ------------------------------------------------------------------------- figures and commands
def test_figures_are_made_from_rows_alone(tmp_path):
    problems = [problem(d, a) for d in (2, 4) for a in (0.5, 2.0)]
    entries = [Entry("half", Fraction(0.5)), Entry("one", Fraction(1.0)), Entry("exact", Exact())]
    found = json.loads(json.dumps(suite(problems, entries, n=64, seeds=2, budgets=[100, 400])))
    names = [path.name for path in plots.figures(found, tmp_path)]
    assert names == ["map-TwoModes-1e+02.png", "map-TwoModes-4e+02.png", "budget-TwoModes.png"]
    assert all((tmp_path / name).stat().st_size > 10_000 for name in names)
    cells = [cell for cell in aggregate(found) if cell.budget == 100]
    figure = plots.error_map(cells, ["a", "dim"])
    maps = [ax for ax in figure.axes if len(ax.texts) == 4]
    assert [ax.get_title(loc="left") for ax in maps] == [
        "half: error", "spread", "one: error", "spread", "exact (oracle): error", "spread",
    ]  # fmt: skip
    assert [text.get_text() for text in maps[0].texts] == ["17"] * 4
    assert [text.get_text() for text in maps[2].texts] == ["33"] * 4
    hatched = [sum(bool(patch.get_hatch()) for patch in ax.patches) for ax in maps]
    assert hatched == [0, 0, 4, 4, 0, 0]
    spread = [c.spread for c in cells if c.sampler == "exact"]
    assert [float(text.get_text()) for text in maps[5].texts] == pytest.approx(spread, abs=0.5)


def test_runs_are_shown_one_by_one_where_nothing_varies(tmp_path):
    entries = [Entry("exact", Exact()), Entry("broken", Broken())]
    p = Problem(EightGaussians(), "EightGaussians")
    found = suite([p, Problem(Funnel(), "Funnel")], entries, n=256, seeds=3)
    assert [path.name for path in plots.figures(found, tmp_path)] == ["runs-EightGaussians.png"]
    text = table(found)
    assert "Funnel" in text  # which has no modes, and says so by a dash


def test_command_runs_reads_and_fails(tmp_path, capsys):
    path = write(tmp_path, FILE)
    out = tmp_path / "out"
    small = ["-o", "targets=[{name: TwoModes, dim: 2, a: {grid: [0.5, 2]}}]", "-o", "seeds=1"]
    assert cli.main(["evaluate", str(path), *small, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "local   ORACLE: x0: exact draws of mode 1" in printed.out
    assert "6/6  TwoModes dim=2 a=2, exact, seed 0" in printed.err
    assert (out / "map-TwoModes.png").exists()
    assert cli.main(["evaluate", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["failed"] == 0 and len(report["cells"]) == 6
    assert {cell["sampler"] for cell in report["cells"]} == {"local", "ParallelTempering", "exact"}
    assert cli.main(["evaluate", str(path), "--out", str(out)]) == 2
    assert "holds another evaluation" in capsys.readouterr().err
    bad = [*small, "-o", "samplers.0.x0=mode 5", "--out", str(tmp_path / "bad")]
    assert cli.main(["evaluate", str(path), *bad]) == 1
    assert "x0 must be one of the 2 modes, got mode 5" in " ".join(
        capsys.readouterr().out.replace("\n", " ").split()
    )
    assert cli.main(["evaluate", str(tmp_path / "none.yaml")]) == 2
    assert cli.main(["evaluate", str(tmp_path), "-o", "n=3"]) == 2


if __name__ == "__main__":
    main(Path(sys.argv[1]))
