"""The cells of lattices in the benchmarks: opponents agree, rows are complete, figures are drawn."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from test_benchmarks import CPU, FIELDS, _row, _write, needs_native

from pysamp import quickbench, timing
from pysamp.timing import DisagreementError, Variant

sys.path.append(str(Path(__file__).parents[1]))  # benchmarks/ is not part of the package

from benchmarks import (
    bench,
    cases,
    lattice,
    lattice_torch,
    layouts,
    limits,
    plot,
    plot_lattice,
    run,
)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(quickbench.SEED)
        yield


QUICK = bench.On(CPU, threads=1, quick=True)


@pytest.mark.parametrize("name", lattice.WORKS)
def test_opponents_on_lattices_agree(name):
    """Native, eager, and the formulas that torch.compile and JAX have in common."""
    case = lattice.agreement(QUICK, name, 2, 128)
    work = lattice.WORKS[name]
    variants = [v for v in case.variants if v.name in ("torch", "native", "torch eager")]
    if work.kind == "sites":
        begin = lattice.typical if work.check == "close" else lattice.hot
        problem = begin(work, (8, 8), 128, CPU)
        c = lattice.Couplings.of(problem.target, work.width)
        half = lattice_torch.plain(name, c)
        plain = lattice_torch.sweeping(half, problem.target, problem.state.x)
        variants.append(Variant("formulas", plain, 1, work.check))
    timing.check(dataclasses.replace(case, variants=tuple(variants)))


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("name", lattice.WORKS)
def test_peers_on_lattices_agree(name, d):
    timing.check(lattice.agreement(QUICK, name, d))


@pytest.mark.parametrize("name", ["ising_metropolis", "xy_over_relaxation", "phi4_measured"])
def test_an_opponent_that_does_nothing_disagrees(name):
    case = lattice.agreement(QUICK, name, 2, 128)
    x = lattice.hot(lattice.WORKS[name], (8, 8), 128, CPU).state.x
    still = (
        torch.zeros_like(case.variants[0].run(1)).expand(-1, 60, -1) if "measured" in name else x
    )
    idle = Variant("idle", lambda n: still, 1, lattice.WORKS[name].check)
    with pytest.raises(DisagreementError, match="idle against torch"):
        timing.check(dataclasses.replace(case, variants=(case.variants[0], idle)))


def test_masked_updates_are_split_ones():
    """Both reflect every site once, and nothing is random."""
    work = lattice.WORKS["heisenberg_over_relaxation"]
    problem = lattice.typical(work, (4, 4, 4), 10, CPU)
    x, c = problem.state.x, lattice.Couplings.of(problem.target)
    half = lattice_torch.in_place("heisenberg_over_relaxation", c)
    masked = lattice_torch.masked(problem.target, c, "heisenberg_over_relaxation", x)
    split = lattice_torch.sweeping(half, problem.target, x)
    torch.testing.assert_close(masked(1), split(1), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(masked(1), x, atol=0.1)


def test_energies_of_fields_are_the_density():
    for shape in ((6, 8), (4, 4, 6)):
        target = lattice.WORKS["phi4_hmc"].model(shape)
        x = lattice.hot_start(target, 5, CPU).double()
        log_prob, score = target.log_prob_and_score(x)
        found = lattice_torch.phi4_energy(target)(x.flatten(1))
        torch.testing.assert_close(found, (log_prob, score.flatten(1)), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(lattice_torch.phi4_score(target)(x.flatten(1)), score.flatten(1))
        record = target.record(x)[:, lattice.COLUMNS]
        torch.testing.assert_close(lattice_torch.phi4_observables(target, x), record)


def test_rows_of_a_cell():
    case = lattice.cell("lattice", "ising_wolff", (8, 8), 4, QUICK)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = run.measure(case, QUICK, 2, 0.001, run.Ceilings(QUICK))
    finally:
        torch.set_num_threads(before)
    assert {"torch eager"} <= {row["variant"] for row in rows}
    for row in rows:
        assert row.keys() == FIELDS
        assert (row["case"], row["unit"]) == ("lattice/ising_wolff/8x8/4", "flipped site")
        # at the critical point of so small a lattice clusters fill more than a tenth of it
        assert 0.1 < row["work"] / (row["steps"] * 4 * 64) < 1
        assert row["left_out"]["torch.compile"] == "its steps are not compiled"


def test_what_takes_too_long_or_too_much_memory_is_left_out(monkeypatch):
    monkeypatch.setattr(lattice, "LIMIT", 1e-9)
    case = lattice.cell("lattice", "phi4_metropolis", (8, 8), 4, QUICK)
    assert not {"torch eager", "jax", "numba"} & {v.name for v in case.case.variants}
    assert case.left_out["torch eager"] == "a step would take 0.0 s"
    monkeypatch.setattr(lattice, "MEMORY", 1000)
    with pytest.raises(bench.NotHereError, match="GiB"):
        lattice.cell("lattice", "phi4_metropolis", (8, 8), 4, QUICK)


def test_cells_are_those_that_were_asked_for():
    for name in lattice.WORKS:
        for shape in ("64x64", "128x128", "512x512", "32x32x32"):
            for chains in (1, 64, 4096):
                key = f"lattice/{name}/{shape}/{chains}"
                large = (shape, chains) == ("512x512", 4096) and name != "phi4_metropolis"
                assert (key in cases.CASES) != large
    assert "scaling/phi4_metropolis/16x16/100000" in cases.CASES
    assert "layouts/ising_metropolis/1024x1024/32" in cases.CASES


@needs_native
def test_layouts_give_the_same_bits():
    for name in layouts.MOVES:
        timing.check(layouts.layout(name, (6, 6), 3, QUICK).case)


def test_limits_count_what_was_counted_elsewhere():
    assert limits.LIMITS.keys() == lattice.WORKS.keys()
    # 140 in the compiled loop of φ⁴ in two dimensions, and 223 for two in three: within a tenth
    assert limits.phi4_metropolis(2) == pytest.approx(140, rel=0.1)
    assert all(limit(3) > limit(2) > 0 for limit in limits.LIMITS.values())


def _cell_row(case: str, variant: str, ns: float) -> dict:
    return _row(variant, 1 / ns, case=case, unit="site update")


def test_figures_of_cells(tmp_path):
    rows = [_cell_row(f"scaling/phi4/16x16/{n}", "native", 1 + 8 / n) for n in (100, 1, 10)]
    rows += [_cell_row(f"lattice/phi4/64x64/{n}", v, 2) for n in (1, 64) for v in ("native", "jax")]
    for n, sites in ((1, 1.0), (32, 4.0)):
        times = {"native": min(sites, 2.0), "native chains": 2.0, "native sites": sites}
        rows += [_cell_row(f"layouts/phi4/16x16/{n}", v, ns) for v, ns in times.items()]
    curve = plot_lattice.costs(rows)["phi4 16x16"]["native"]
    assert [(n, pytest.approx(ns)) for n, ns, _, _ in curve] == [(1, 9), (10, 1.8), (100, 1.08)]
    assert all(low < ns < high for _, ns, low, high in curve)
    found = plot_lattice.crossovers(rows)["phi4"]["16x16"]
    assert [(n, pytest.approx(r), sites) for n, r, sites in found] == [
        (1, 0.5, True),
        (32, 2, False),
    ]
    assert plot.bars(rows) == {}
    assert plot.main([_write(tmp_path / "rows.jsonl", *rows)]) == 0
    for kind in plot_lattice.FIGURES:
        assert (tmp_path / f"rows-{kind}.png").stat().st_size > 5000
