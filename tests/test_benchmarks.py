"""The benchmarks: kernels that are wrong are not timed, rows are complete, files compare, `bench` runs."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from pysamp import _native, backend, opponents, ops, quickbench, timing
from pysamp.mcmc.hmc import HMC
from pysamp.mcmc.langevin import MALA
from pysamp.timing import Case, DisagreementError, Variant

sys.path.append(str(Path(__file__).parents[1]))  # benchmarks/ is not part of the package

from benchmarks import bench, cases, compare, goals, machine, peers, plot, run

CPU = torch.device("cpu")
needs_native = pytest.mark.skipif(not quickbench.native_on(CPU), reason="no native kernels")

FIELDS = {
    "case", "variant", "size", "dtype", "device", "threads", "median", "q1", "q3", "clock", "wall",
    "first", "repeats", "calls", "steps", "unit", "work", "rate", "bytes", "flops", "ceiling",
    "fraction", "quick", "load", "goals", "left_out",
}  # fmt: skip


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(quickbench.SEED)
        yield


def _chain(n_chains: int = 64) -> tuple[quickbench.Problem, Case]:
    problem = quickbench.chain_problem(MALA(quickbench.MALA_STEP), n_chains, CPU)
    energy = opponents.chain_energy(quickbench.CHAIN)
    return problem, quickbench.mala_case("mala", "step·dim", problem, energy)


# ---------------------------------------------------------------------------- agreement
def _with(case: Case, change, agree: str) -> Case:
    """The case with one more variant: its definition, spoilt."""
    definition = case.variants[0]
    spoilt = Variant("spoilt", lambda n: change(definition.run(n)), 1, agree)
    return dataclasses.replace(case, variants=(definition, spoilt))


@pytest.mark.parametrize("agree", ["equal", "close", "law"])
def test_the_definition_agrees_with_itself(agree):
    timing.check(_with(_chain()[1], lambda x: x, agree))


@pytest.mark.parametrize("agree", ["equal", "close", "law"])
@pytest.mark.parametrize(
    "change",
    [torch.zeros_like, lambda x: x * math.nan, lambda x: x.flip(0) * 1.5, lambda x: x[1:]],
    ids=["zeros", "nan", "other", "shape"],
)
def test_wrong_numbers_disagree(agree, change):
    with pytest.raises(DisagreementError, match="mala: spoilt against torch"):
        timing.check(_with(_chain()[1], change, agree))


def test_equal_means_the_last_bit():
    def last_bit(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[3, 7] = torch.nextafter(x[3, 7], torch.tensor(9.0))
        return x

    case = _chain()[1]
    timing.check(_with(case, last_bit, "close"))
    with pytest.raises(DisagreementError, match="differ"):
        timing.check(_with(case, last_bit, "equal"))


def test_a_chain_with_another_step_size_disagrees_in_law():
    problem, case = _chain(512)
    other = dataclasses.replace(problem, kernel=MALA(1.5 * quickbench.MALA_STEP))
    other = dataclasses.replace(other, state=dataclasses.replace(problem.state, seed=77))
    wrong = Variant("wrong", other.run("torch"), 1)
    with pytest.raises(DisagreementError, match="five standard errors"):
        timing.check(dataclasses.replace(case, variants=(case.variants[0], wrong)))


def test_a_case_that_disagrees_is_not_timed(capsys, monkeypatch, tmp_path):
    def broken(on: bench.On) -> cases.Bench:
        made = bench.Bench(_with(_chain()[1], torch.zeros_like, "law"))
        return made.adding(Variant("never", lambda n: pytest.fail("it was run"), 1))

    monkeypatch.setattr(cases, "CASES", {"broken": broken})
    before = torch.get_num_threads()
    try:
        assert run.main(["broken", "--quick", "--out", str(tmp_path / "rows.jsonl")]) == 1
    finally:
        torch.set_num_threads(before)
    assert (tmp_path / "rows.jsonl").read_text() == ""
    captured = capsys.readouterr()
    assert "NOT TIMED" in captured.err
    assert "failed: broken" in captured.out


# ---------------------------------------------------------------------------- rows
@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Rows of the smallest real case that has a goal and a measured bound."""
    on = bench.On(CPU, threads=1, quick=True)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        case = cases.mala_chain_16(on)
        rows = run.measure(case, on, repeats=3, seconds=0.002, ceilings=run.Ceilings(on))
        return [row | machine.about(on) | {"date": "2000-01-01"} for row in rows]
    finally:
        torch.set_num_threads(before)


def test_rows_have_every_field(rows):
    assert {"torch", "torch eager", "torch autograd"} <= {row["variant"] for row in rows}
    for row in rows:
        assert row.keys() == FIELDS | {"versions", "machine", "date"}
        assert json.loads(json.dumps(row, allow_nan=False)) == row
        assert 0 < row["q1"] <= row["median"] <= row["q3"]
        assert row["clock"] == "cpu"
        assert row["rate"] == pytest.approx(row["work"] / row["median"] / 1e9)
        assert row["bytes"] == 4 * 16 * 100 * 4  # field and score, in and out
        assert row["flops"] == pytest.approx(row["work"] * 1600 * cases.MALA_FLOPS)
        assert row["versions"]["torch"] == torch.__version__
        assert row["machine"]["cpu"]["name"]


@needs_native
def test_native_rows_have_bounds_and_goals(rows):
    native = next(row for row in rows if row["variant"] == "native")
    assert native["steps"] == native["work"] == 100
    assert native["ceiling"] == "random numbers" or machine.is_modelled(bench.On(CPU))
    assert 0 < native["fraction"] < 1.5  # a bound, but for the noise of two measurements
    assert [goal["id"] for goal in native["goals"]] == ["C14", "C14"]
    assert native["goals"][0]["reached"] == pytest.approx(native["median"] / 100)
    assert "C14" in run.table(rows)
    assert native["versions"]["compiler"]


def test_every_op_has_a_case():
    for name in ops.TABLE:
        assert any(case.startswith(f"{name}_") for case in cases.CASES), name


def test_every_goal_has_a_case():
    tables = (goals.CPU, goals.CUDA, goals.CPU_LIMIT, goals.CUDA_LIMIT)
    assert set().union(*tables) <= cases.CASES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in cases.CASES if "/" not in name])
def test_every_case_agrees(name):
    try:
        made = cases.CASES[name](bench.On(CPU, threads=2, quick=True))
    except bench.NotHereError:
        assert name == "mala_chain_4096" or not quickbench.native_on(CPU)
        return
    if not made.times_itself:
        timing.check(made.case)


def _machine(name: str) -> dict:
    return {"cpu": {"name": name, "family": 1, "model": 1}, "isa": "v4", "gpu": None}


def _row(variant: str, rate: float, **more) -> dict:
    """A row as `judge`, `compare` and `plot` read it: 1000 units a call, quartiles 2 % off."""
    median = 1000 / rate / 1e9
    row = {"case": "phi4_2d_16", "variant": variant, "size": "16", "dtype": "float32",
           "device": "cpu", "threads": 1, "median": median, "q1": 0.98 * median,
           "q3": 1.02 * median, "work": 1000, "rate": rate, "fraction": 0.5, "goals": [],
           "versions": {"git": "0", "torch": "0"}, "machine": _machine("A")}  # fmt: skip
    return row | more


def test_goals_are_judged():
    rows = [_row("native", 0.9), _row("jax", 0.1), _row("torch eager", 0.1)]
    goals.judge(rows, isa="x86-64-v4")
    judged = [(g["against"], g["must"], g["met"]) for g in rows[0]["goals"]]
    assert judged == [("jax", 8, True), ("torch eager", 10, False)]
    assert rows[0]["goals"][0]["reached"] == pytest.approx(9)

    without_peers = [_row("native", 0.9), _row("torch eager", 0.2)]
    goals.judge(without_peers, isa="x86-64-v3")
    assert [(g["must"], g["met"]) for g in without_peers[0]["goals"]] == [(5, None), (10, False)]

    many = [_row("native", 0.9, threads=4), _row("jax", 0.1, threads=4)]
    goals.judge(many, isa="x86-64-v4")
    assert many[0]["goals"] == []  # the goals are for one core

    scaling = [_row("native", 3.5, threads=4), _row("native 1 thread", 1.0)]
    for row in scaling:
        row["case"] = "phi4_2d_16_scaling"
    goals.judge(scaling, isa="x86-64-v4")
    (goal,) = scaling[0]["goals"]
    assert (goal["must"], goal["reached"], goal["met"]) == (pytest.approx(3.4), 3.5, True)


# ---------------------------------------------------------------------------- compare, plot
def _write(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_compare_exit_codes(tmp_path, capsys):
    old = _write(tmp_path / "old", _row("native", 1.0), _row("jax", 0.1))
    same = _write(tmp_path / "same", _row("native", 0.97), _row("jax", 0.1))
    slower = _write(tmp_path / "slower", _row("native", 0.8), _row("jax", 0.1))
    peer = _write(tmp_path / "peer", _row("native", 1.3), _row("jax", 0.05))
    other = _write(tmp_path / "other", _row("native", 1.0, case="another"))
    wide = _write(tmp_path / "wide", _row("native", 0.8, q1=0.9e-6))

    assert compare.main([old, same]) == 0  # within the tolerance
    assert compare.main([old, wide]) == 0  # within the spread: q1 reaches below the old q3
    assert compare.main([old, peer]) == 0  # a peer that slows down is no fault of ours
    assert "faster" in capsys.readouterr().out
    assert compare.main([old, slower]) == 1
    assert "slower: phi4_2d_16, native" in capsys.readouterr().out
    assert compare.main([old, slower, "--tolerance", "0.5"]) == 0
    assert compare.main([old, other]) == 2


def test_compare_refuses_two_machines(tmp_path, capsys):
    old = _write(tmp_path / "old", _row("native", 1.0))
    new = _write(tmp_path / "new", _row("native", 0.5, machine=_machine("B")))
    assert compare.main([old, new]) == 2
    assert "different machines" in capsys.readouterr().err
    assert compare.main([old, new, "--any-machine"]) == 1


def test_the_figure_shows_ratios(tmp_path):
    rows = [_row("native", 0.9), _row("jax", 0.1), _row("torch", 0.01), _row("torch eager", 0.3)]
    goals.judge(rows, isa="x86-64-v4")
    found = plot.bars(rows)
    assert list(found) == ["phi4_2d_16"]
    assert [(name, pytest.approx(ratio)) for name, ratio, _, _ in found["phi4_2d_16"]] == [
        ("torch eager", 3), ("jax", 9),
    ]  # fmt: skip
    assert all(low < ratio < high for _, ratio, low, high in found["phi4_2d_16"])
    assert plot.main([_write(tmp_path / "rows.jsonl", *rows)]) == 0
    assert (tmp_path / "rows.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="native"):
        plot.draw([_row("jax", 1.0)], tmp_path / "none.png")


# ---------------------------------------------------------------------------- opponents and peers
def test_opponents_compute_the_densities_they_claim():
    problem = quickbench.mixture_problem(4, 3, 50, CPU)
    mixture, x = problem.target, problem.state.x.double()
    chain, y = quickbench.CHAIN, quickbench.chain_problem(MALA(1e-4), 20, CPU).state.x.double()
    energies = [
        (mixture, x, opponents.mixture_energy(mixture, x)),
        (mixture, x, opponents.expanded_mixture_energy(mixture, x)),
        (mixture, x, opponents.by_autograd(opponents.mixture_log_prob(mixture, x))),
        (chain, y, opponents.chain_energy(chain)),
        (chain, y, opponents.by_autograd(opponents.chain_log_prob(chain))),
    ]
    with backend("torch"):
        for target, points, energy in energies:
            log_prob, score = target.log_prob_and_score(points)
            torch.testing.assert_close(energy(points), (log_prob, score), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(opponents.chain_score(chain)(y), chain.score(y))


@pytest.mark.parametrize("half", [opponents.half_sweep, opponents.plain_half_sweep])
@pytest.mark.parametrize("shape", [(6, 8), (4, 4, 6)])
def test_opponents_sweep_the_lattice(half, shape):
    problem = quickbench.sites_problem(shape, 400, CPU)
    case = quickbench.sites_case("sites", problem)
    target, x, width = problem.target, problem.state.x, problem.kernel.width
    sweeps = opponents.sweeping(half, target, width, x)
    assert torch.equal(sweeps(0), x)  # split into colours and merged again
    assert not torch.equal(sweeps(1), x)
    timing.check(
        dataclasses.replace(case, variants=(case.variants[0], Variant("eager", sweeps, 1)))
    )


@pytest.mark.parametrize("name", ["jax", "blackjax"])
def test_peers_agree_in_law(name):
    pytest.importorskip(name, reason=f"the peer {name} is not installed")
    hmc = quickbench.chain_problem(HMC(quickbench.HMC_STEP, n_leapfrog=3), 500, CPU)
    mala, _ = _chain(500)
    x, h = mala.state.x, mala.kernel.step_size
    found = {
        "jax": lambda: [
            (mala, peers.setup_jax_mala(mala.target, x, h)),
            (hmc, peers.setup_jax_hmc(hmc.target, hmc.state.x, quickbench.HMC_STEP, 3)),
        ],
        "blackjax": lambda: [
            (mala, peers.setup_blackjax_mala(mala.target, x, h)),
            (hmc, peers.setup_blackjax_hmc(hmc.target, hmc.state.x, quickbench.HMC_STEP, 3)),
        ],
    }
    for problem, setup in found[name]():
        case = quickbench.of_problem("peer", "step", 1, problem, None, (1, 1, 1))
        variants = (case.variants[0], Variant(name, setup, 1))
        timing.check(dataclasses.replace(case, variants=variants))


# ---------------------------------------------------------------------------- pysamp bench
def test_quick_reports_rates_of_agreeing_kernels():
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    report = quickbench.quick(seconds=0.002, repeats=2, n_chains=64)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert [row["case"] for row in report["cases"]] == [
        "normal_fill", "phi4_2d_sites", "mala_chain", "hmc_chain", "mala_mixture",
    ]  # fmt: skip
    for row in report["cases"]:
        assert row["torch"] > 0
        assert row["torch eager"] > 0
        if report["native"]:
            assert row["native/torch"] == pytest.approx(row["native"] / row["torch"])
            assert row["agreement"] in ("to the last bit", "to rounding")
    text = quickbench.text(report)
    assert max(map(len, text.splitlines())) <= 100
    assert "φ⁴ chain, HMC" in text
    assert ("to the last bit" in text) and (report["native"] or "pysamp doctor" in text)


def test_quick_without_native_kernels_says_so(monkeypatch):
    monkeypatch.setattr(quickbench, "native_on", lambda device: False)
    report = quickbench.quick(seconds=0.001, repeats=1, n_chains=64)
    assert all(row["native"] is None for row in report["cases"])
    assert "native/torch" not in report["cases"][0]
    assert "pysamp doctor" in quickbench.text(report)


@needs_native
def test_quick_refuses_a_kernel_that_is_wrong(monkeypatch):
    real = _native._cpu

    class Spoilt:
        """The module, but for normals that are a little too large."""

        isa = real.isa

        def __getattr__(self, name):
            return getattr(real, name)

        def normal(self, out, *address):
            real.normal(out, *address)
            out.mul_(1.000001)

    monkeypatch.setattr(_native, "_cpu", Spoilt())
    with pytest.raises(DisagreementError, match="normal_fill: native against torch"):
        quickbench.quick(seconds=0.001, repeats=1, n_chains=64)


def test_rates_are_written_with_three_digits():
    rates = (None, 12.3456, 1234.5, 0.99999e6, 4.7e9)
    assert [quickbench.si(rate) for rate in rates] == ["–", "12.3", "1.23 k", "1 M", "4.7 G"]
