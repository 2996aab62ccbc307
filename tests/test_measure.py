"""Runs that keep observables: the same numbers as from x, windows, bounded memory, folders, summaries."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pysamp import chains, cli, errors, plan, plots, store
from pysamp.mcmc import HeatBath, Wolff
from pysamp.mcmc.base import Info, State
from pysamp.mcmc.langevin import MALA
from pysamp.mcmc.metropolis import Metropolis
from pysamp.mcmc.records import mean_record
from pysamp.mcmc.tempering import ParallelTempering
from pysamp.measure import Measures
from pysamp.plan import Plan
from pysamp.samples import Samples
from pysamp.sampling import resume, sample
from pysamp.summary import WIDTH
from pysamp.targets import ON, Funnel, Phi4

TARGET = Phi4((4, 4), kappa=0.2, lam=0.5)
NAMES = tuple(TARGET.from_record(torch.zeros(1, 9)))
SIZES = {"n_chains": 6, "n_draws": 10, "thin": 6, "warmup": 20, "seed": 3, "progress": False}


def observables(x: Tensor, target=TARGET) -> Tensor:
    """(chain, draw, *event) -> (chain, draw, K)"""
    found = target.from_record(target.record(x.flatten(0, 1)))
    return torch.stack(list(found.values()), -1).reshape(*x.shape[:2], -1)


# ------------------------------------------------------------------------- the same numbers
@pytest.mark.parametrize("kernel", [MALA(step_size=0.1), ParallelTempering(MALA(), n_rungs=3)])
def test_observables_are_those_of_the_draws_of_the_same_run(kernel):
    whole = sample(TARGET, kernel, **SIZES)
    kept = sample(TARGET, kernel, **SIZES, keep="observables")
    assert kept.names == NAMES
    assert torch.equal(kept.x, observables(whole.x))
    assert torch.allclose(kept.log_prob, whole.log_prob, rtol=1e-5)
    assert torch.equal(kept.info["accept"], whole.info["accept"])
    assert kept.info["evaluations"] == whole.info["evaluations"]
    assert kept.info["measure_every"] == 6
    assert "measure_every" not in whole.info and whole.names is None
    assert torch.equal(kept.observable("energy"), kept.x[..., NAMES.index("energy")])
    assert float(kept.observable("energy").std()) > 0.01
    assert not kept.observable("energy_within").any()


def windows(kernel, every: int) -> Tensor:
    """Means over windows of 6 steps of a run that keeps each `every`-th x, by the definition."""
    fine = sample(TARGET, kernel, **{**SIZES, "thin": every, "n_draws": 60 // every})
    series = observables(fine.x.double())
    parts = series.reshape(6, 10, 6 // every, len(NAMES))
    out = parts.mean(2)
    energy = parts[..., NAMES.index("energy")]
    out[..., NAMES.index("energy_within")] = energy.var(2, correction=0)
    return out


@pytest.mark.parametrize("kernel", [MALA(step_size=0.1), Metropolis(width=1.0)])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_draw_is_the_mean_over_its_window(kernel, every):
    kept = sample(TARGET, kernel, **SIZES, keep="observables", measure_every=every)
    expected = windows(kernel, every)
    assert torch.allclose(kept.x.double(), expected, rtol=2e-5, atol=1e-6)
    assert float(kept.observable("energy_within").mean()) > 1e-4
    energy = kept.observable("energy") * -16
    assert torch.allclose(kept.log_prob, energy, rtol=1e-5)


def test_a_window_measured_in_pieces_is_the_same_but_for_rounding(monkeypatch):
    whole = sample(TARGET, MALA(step_size=0.1), **SIZES, keep="observables", measure_every=2)
    made: list[tuple[int, int | None]] = []
    step = MALA.step

    def watched(kernel, target, state, n=1, *, thin=None):
        made.append((n, thin))
        return step(kernel, target, state, n, thin=thin)

    monkeypatch.setattr(MALA, "step", watched)
    state_bytes = 6 * 16 * 4
    for block, call, expected in (
        (2 * state_bytes, 1 << 16, [(4, 2), (2, 2)]),  # two states at a time
        (state_bytes, 1 << 16, [(2, 2)] * 3),
        (1 << 26, 5, [(4, 2), (2, 2)]),  # no call of more than 5 steps
        (1 << 26, 1, [(1, None), (1, 1)] * 3),
    ):
        made.clear()
        with monkeypatch.context() as m:
            m.setattr(plan, "BLOCK_BYTES", block)
            m.setattr(chains, "CALL_STEPS", call)
            m.setattr(plan, "BLOCK_STEPS", 1)
            parts = sample(
                TARGET, MALA(step_size=0.1), **SIZES, keep="observables", measure_every=2
            )
        assert made == [(20, None), *expected * 10]
        assert torch.allclose(parts.x, whole.x, rtol=1e-5, atol=1e-7)
        assert parts.info["evaluations"] == whole.info["evaluations"]


def test_mean_of_windows_is_that_of_their_union():
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(3, 12, 9, generator=generator, dtype=torch.float64)
    series[..., 1] = 0
    whole = mean_record(series, [1] * 12)
    assert torch.allclose(whole[:, 1], series[..., 0].var(1, correction=0))
    cuts = [(0, 2), (2, 7), (7, 12)]
    parts = torch.stack([mean_record(series[:, a:b], [1] * (b - a)) for a, b in cuts], 1)
    assert torch.allclose(mean_record(parts, [2, 5, 5]), whole)
    assert not torch.allclose(mean_record(parts, [1, 1, 1]), whole)


@dataclass(frozen=True)
class Fake:
    """A kernel that measures: its states count the steps, and so do its records."""

    calls: list

    def init(self, target, x, *, seed, first_chain=0):
        return State(torch.zeros_like(x), torch.zeros(len(x)), None, seed, 0, first_chain)

    def step(self, target, state, n=1, *, thin=None):
        self.calls.append(("step", n, thin))
        return replace(state, step=state.step + n), Info(torch.ones(state.n_chains), {})

    def measure(self, target, state, n, *, thin, every=1):
        self.calls.append(("measure", n, thin, every))
        at = torch.arange(state.step + every, state.step + n + 1, every).float()
        record = torch.zeros(state.n_chains, n // thin, 9)
        per = at.reshape(n // thin, thin // every)
        record[..., 0], record[..., 1] = per.mean(1), per.var(1, correction=0)
        new = replace(state, step=state.step + n)
        return new, Info(torch.ones(state.n_chains), {}, record, record[..., 0])


def test_kernel_that_measures_is_asked_for_windows_and_never_for_x(monkeypatch):
    assert isinstance(Fake([]), Measures) and isinstance(Metropolis(width=1.0), Measures)
    calls: list = []
    how = {**SIZES, "warmup": 0, "thin": 12, "keep": "observables", "measure_every": 4}
    whole = sample(TARGET, Fake(calls), **how)
    assert calls == [("measure", 120, 12, 4)]
    assert torch.equal(whole.log_prob[0], 12.0 * torch.arange(10) + 8)
    energy_within = whole.observable("energy_within")
    assert torch.allclose(energy_within, torch.tensor(32 / 3 / 16**2))  # of 4, 8, 12
    monkeypatch.setattr(plan, "BLOCK_STEPS", 1)
    for call_steps, expected in (
        (8, [("measure", 8, 8, 4), ("measure", 4, 4, 4)]),
        (3, [("step", 3, None), ("measure", 1, 1, 1)] * 3),
    ):
        calls.clear()
        monkeypatch.setattr(chains, "CALL_STEPS", call_steps)
        parts = sample(TARGET, Fake(calls), **how)
        assert calls == expected * 10
        assert torch.allclose(parts.x, whole.x)
        assert torch.allclose(parts.log_prob, whole.log_prob)


# ------------------------------------------------------------------------- targets without a record
@dataclass(frozen=True)
class Plain:
    event_shape: tuple[int, ...] = (2,)

    def log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * x.square().sum(1)

    def observables(self, x: Tensor) -> dict[str, Tensor]:
        return {"radius": x.square().sum(1).sqrt(), "first": x[:, 0]}


def test_target_with_observables_alone_keeps_them(tmp_path):
    whole = sample(Plain(), MALA(step_size=0.5), **SIZES)
    path = tmp_path / "run"
    for out in (None, path):
        kept = sample(Plain(), MALA(step_size=0.5), **SIZES, keep="observables", out=out)
        assert kept.names == ("radius", "first")
        assert torch.equal(kept.observable("first"), whole.x[..., 0])
        assert torch.equal(kept.log_prob, whole.log_prob)
    assert torch.equal(resume(path, Plain()).x, kept.x)
    assert [row["name"] for row in kept.summary().rows] == ["radius", "first", "log_prob"]


@pytest.mark.parametrize(
    ("target", "change", "match"),
    [
        (TARGET, {"keep": "all"}, "keep must be one of x, observables, got 'all'"),
        (TARGET, {"measure_every": 2}, "measure_every has a meaning with keep='observables' only"),
        (TARGET, {"keep": "observables", "measure_every": 4}, "must divide thin = 6, got 4"),
        (TARGET, {"keep": "observables", "measure_every": 0}, "measure_every must be at least 1"),
        (Plain(), {"keep": "observables", "measure_every": 2}, "must be thin = 6 for Plain"),
        (Funnel(), {"keep": "observables"}, "needs a target with observables, Funnel has none"),
    ],
)
def test_what_does_not_go_together_is_named(target, change, match):
    with pytest.raises(ValueError, match=match):
        sample(target, MALA(step_size=0.1), **SIZES, **change)


def test_observables_that_change_their_names_are_refused():
    @dataclass(frozen=True)
    class Fickle(Plain):
        def observables(self, x: Tensor) -> dict[str, Tensor]:
            return {f"of {len(x)}": x[:, 0]}

    with pytest.raises(ValueError, match=r"observables were \('of 1',\) and are now \('of 60',\)"):
        sample(Fickle(), MALA(step_size=0.1), **SIZES, keep="observables")


# ------------------------------------------------------------------------- memory
class Largest(TorchDispatchMode):
    """The most bytes of any tensor made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return out


@pytest.mark.parametrize("kernel", [MALA(step_size=0.01), Metropolis(width=1.0)])
@pytest.mark.parametrize("every", [8, 1])
def test_no_tensor_grows_with_the_number_of_draws(monkeypatch, kernel, every):
    target = Phi4((16, 16), kappa=0.2, lam=0.5)
    one = 32 * 256 * 4  # x of all chains
    monkeypatch.setattr(plan, "BLOCK_BYTES", 2 * one)
    sizes = {**SIZES, "n_chains": 32, "n_draws": 60, "thin": 8, "warmup": 0}
    with Largest() as seen:
        s = sample(target, kernel, **sizes, keep="observables", measure_every=every)
    assert s.x.shape == (32, 60, len(NAMES))
    # two states, in float64, with a zero for the outside; all x would be 60 states
    assert one <= seen.bytes <= 2 * 2 * 1.1 * one


@pytest.mark.parametrize("records", [True, False])
def test_calls_of_the_largest_runs_are_bounded(records):
    """10⁵ chains of 10⁶ sweeps, a draw every 10⁴, on a lattice of 32² and measured every 10 or once."""
    for every in (10, 10_000):
        sizes = Plan(
            100_000, 100, 1000, 10_000, 0, (32, 32), torch.float32, torch.device("cpu"),
            NAMES, every, records,
        )  # fmt: skip
        calls = list(chains._calls(sizes.block(), sizes))
        assert sum(steps for steps, _ in calls) == 10_000
        assert sum(count for _, count in calls) == 10_000 // every
        held = 9 if records else max(count for _, count in calls) * 1024
        assert held * 100_000 * 4 <= max(plan.BLOCK_BYTES, 1024 * 100_000 * 4)  # or a single state
        assert sizes.draw_bytes() == 100_000 * 4 * len(NAMES)
        assert sizes.chunk() * sizes.draw_bytes() <= plan.BLOCK_BYTES


# ------------------------------------------------------------------------- folders and files
def interrupted(monkeypatch, path, at: int, **how) -> None:
    """The run in a folder, cut at its call number `at`."""
    step, calls = MALA.step, [0]

    def dies(*args, **kwargs):
        calls[0] += 1
        if calls[0] == at:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    with monkeypatch.context() as m:
        m.setattr(MALA, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            sample(TARGET, MALA(step_size=0.1), **how, out=path)


def test_interrupted_run_goes_on_to_the_same_bits(monkeypatch, tmp_path):
    how = {**SIZES, "n_draws": 22, "keep": "observables", "measure_every": 3}
    monkeypatch.setattr(plan, "BLOCK_STEPS", 12)  # 2 draws
    monkeypatch.setattr(chains, "CHECKPOINT_SECONDS", 0.0)
    whole = sample(TARGET, MALA(step_size=0.1), **how)
    path = tmp_path / "run"
    interrupted(monkeypatch, path, at=6, **how)
    done = store.load_checkpoint(path, 0).n_draws
    assert 0 < done < 22
    part = store.read(path)
    assert part.names == NAMES and part.x.shape == (6, done, len(NAMES))
    again = resume(path, progress=False)
    assert again.names == NAMES
    assert torch.equal(again.x, whole.x) and torch.equal(again.log_prob, whole.log_prob)
    assert torch.equal(again.info["accept"], whole.info["accept"])
    config = store.read_manifest(path)["config"]
    assert (config["names"], config["measure_every"]) == (list(NAMES), 3)


def test_files_hold_several_blocks_where_draws_are_small(monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "BLOCK_STEPS", 1)  # a call a draw
    monkeypatch.setattr(plan, "MAX_CHUNKS", 4)
    monkeypatch.setattr(chains, "CHECKPOINT_SECONDS", 0.0)
    how = {**SIZES, "keep": "observables"}
    whole = sample(TARGET, MALA(step_size=0.1), **how)
    path = tmp_path / "run"
    interrupted(monkeypatch, path, at=7, **how)  # of 1 for the warm-up and 10
    assert store.load_checkpoint(path, 0).n_draws == 3  # 10 draws in 4 files of 3
    assert torch.equal(resume(path, progress=False).x, whole.x)
    files = list((path / "draws.zarr" / "rank0" / "x" / "c" / "0").iterdir())
    assert len(files) == 4


def test_folder_of_draws_is_as_before_and_names_are_part_of_a_run(tmp_path):
    sample(TARGET, MALA(step_size=0.1), **SIZES, out=tmp_path / "x")
    manifest = store.read_manifest(tmp_path / "x")
    assert not {"names", "measure_every", "keep"} & manifest["config"].keys()
    assert "chunk" not in manifest
    assert store.read(tmp_path / "x").names is None
    path = tmp_path / "o"
    sample(TARGET, MALA(step_size=0.1), **SIZES, keep="observables", out=path)
    with pytest.raises(FileExistsError, match="measure_every: recorded 6, given 2"):
        sample(TARGET, MALA(step_size=0.1), **SIZES, keep="observables", measure_every=2, out=path)
    with pytest.raises(FileExistsError, match=r"names: recorded .* given 'nothing'"):
        sample(TARGET, MALA(step_size=0.1), **SIZES, out=path)


def test_samples_carry_their_names_into_files(tmp_path):
    kept = sample(TARGET, MALA(step_size=0.1), **SIZES, keep="observables")
    kept.save(tmp_path / "kept.safetensors")
    again = Samples.load(tmp_path / "kept.safetensors")
    assert again.names == NAMES and torch.equal(again.x, kept.x)
    assert "energy" in repr(again)
    plain = sample(TARGET, MALA(step_size=0.1), **SIZES)
    plain.save(tmp_path / "plain.safetensors")
    assert Samples.load(tmp_path / "plain.safetensors").names is None
    arviz = pytest.importorskip("arviz")
    found = kept.to_arviz()
    assert set(found.posterior.data_vars) == set(NAMES)
    assert found.posterior["energy"].shape == (6, 10)
    assert float(arviz.ess(found, var_names=["energy"])["energy"]) > 0
    with pytest.raises(ValueError, match=r"name must be one of \('energy'.*got 'mass'"):
        kept.observable("mass")
    with pytest.raises(ValueError, match="name must be one of no observables"):
        plain.observable("energy")
    with pytest.raises(ValueError, match=r"names must be \(8,\) different ones"):
        replace(kept, names=("a", "b"))


# ------------------------------------------------------------------------- summaries
LONG = {**SIZES, "n_chains": 24, "n_draws": 300, "thin": 4, "warmup": 100}


@pytest.mark.parametrize("how", [{}, {"keep": "observables"},
                                 {"keep": "observables", "measure_every": 2}])  # fmt: skip
def test_summary_has_times_and_response_functions(how):
    s = sample(TARGET, Metropolis(width=1.5), **LONG, **how)
    summary = s.summary()
    rows = {row["name"]: row for row in summary.rows}
    assert "energy_within" not in rows
    v = 16
    values = s.x if how else observables(s.x)
    series = {name: values[..., k].double() for k, name in enumerate(NAMES)}
    m2, m4 = (series[f"magnetisation{p}"].mean() for p in "²⁴")
    energy = series["energy"]
    expected = {
        "susceptibility": v * (m2 - series["|magnetisation|"].mean() ** 2),
        "specific heat": v * ((energy**2 + series["energy_within"]).mean() - energy.mean() ** 2),
        "Binder": 1 - m4 / (3 * m2 * m2),
        "correlation length": (m2 / series["structure"].mean() - 1).sqrt() / math.sqrt(2),
    }
    assert [row["name"] for row in summary.derived] == list(expected)
    for row in summary.derived:
        assert row["value"] == pytest.approx(float(expected[row["name"]]), rel=1e-5)
        assert 0.001 < row["error"] < 0.2
    # by hand for one: chains are the blocks
    chi = [v * (m.square().mean() - m.mean() ** 2) for m in _without(series["|magnetisation|"])]
    if "measure_every" not in how:
        error = math.sqrt(23) * float(torch.stack(chi).std(correction=0))
        assert summary.derived[0]["error"] == pytest.approx(error, rel=1e-4)
    times = {time["name"]: time for time in summary.times}
    assert list(times) == ["energy", "|magnetisation|"]
    tau = errors.integrated_time(energy)
    assert times["energy"]["tau"] == pytest.approx(tau.tau, rel=1e-4)
    assert rows["energy"]["mcse"] >= 0.99 * float(errors.mean(energy, tau).error)
    assert rows["energy"]["mcse"] == pytest.approx(float(errors.mean(energy, tau).error), rel=0.2)
    text = str(summary)
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    for word in ("τ_int       energy", "            |m|", "derived     susceptibility", "m⁴"):
        assert word in text
    found = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert found["derived"][2]["name"] == "Binder"
    assert found["times"][0]["tau"] > 0.4


def _without(series: Tensor) -> list[Tensor]:
    return [torch.cat([series[:i], series[i + 1 :]]) for i in range(len(series))]


def test_windows_lose_nothing_of_the_specific_heat():
    """⟨e²⟩ of windows is that of all measurements, not of their means."""
    kernel = Metropolis(width=1.5)
    plain = sample(TARGET, kernel, **{**LONG, "thin": 1, "n_draws": 1200})
    means = sample(TARGET, kernel, **LONG, keep="observables", measure_every=1)
    heat = [s.summary().derived[1] for s in (plain, means)]
    assert heat[0]["name"] == heat[1]["name"] == "specific heat"
    assert heat[1]["value"] == pytest.approx(heat[0]["value"], rel=1e-4)
    assert float(means.observable("energy").var()) < 0.95 * float(
        TARGET.observables(plain.flat())["energy"].var()
    )


def test_xy_model_has_a_stiffness():
    target = ON((4, 4), 2, beta=1.2)
    s = sample(target, Metropolis(width=1.5), **LONG, keep="observables")
    derived = {row["name"]: row for row in s.summary().derived}
    expected = -s.observable("energy").double().mean() / 2
    expected -= 1.2 * s.observable("current²").double().mean()
    assert derived["helicity"]["value"] == pytest.approx(float(expected), rel=1e-5)
    assert 0.4 < derived["helicity"]["value"] < 1 and derived["helicity"]["error"] < 0.05


def test_run_too_short_for_its_memory_is_told():
    s = sample(TARGET, MALA(step_size=1e-3), **{**LONG, "thin": 1, "n_draws": 60})
    text = " ".join(s.summary().verdict)
    assert "τ_int of " in text and "is not resolved, nor are the errors: 60 draws" in text
    how = {**LONG, "n_draws": 1000, "thin": 8}
    good = sample(TARGET, Metropolis(width=1.5), **how, keep="observables")
    assert good.summary().verdict == []


def test_without_the_target_there_are_times_but_no_response_functions():
    s = sample(TARGET, Metropolis(width=1.5), **LONG, keep="observables")
    alone = replace(s, target=None).summary()
    assert [time["name"] for time in alone.times] == ["energy", "|magnetisation|"]
    assert alone.times == s.summary().times and alone.derived == []
    short = replace(s, x=s.x[:, :2], log_prob=s.log_prob[:, :2]).summary()  # mixing is not known
    assert all(math.isnan(time["tau"]) for time in short.times)
    assert len(short.derived) == 4 and short.derived[0]["error"] > 0
    assert not any("τ_int" in text for text in short.verdict)


def test_draws_with_weights_have_no_times():
    s = sample(TARGET, MALA(step_size=0.1), **SIZES)
    weighted = replace(s, log_weight=torch.zeros(6, 10))
    assert weighted.summary().times == weighted.summary().derived == []


# ------------------------------------------------------------------------- command line and figure
LATTICE = """
target: {name: ON, shape: [4, 4], n: 2, beta: 1.0}
sampler: {name: Metropolis, width: 1.5}
n_chains: 24
n_draws: 200
thin: 4
warmup: 100
keep: observables
measure_every: 2
"""


def test_run_file_of_a_lattice_from_beginning_to_figure(capsys, tmp_path):
    file, folder = tmp_path / "xy.yaml", tmp_path / "run"
    file.write_text(LATTICE)
    assert cli.main(["run", str(file), "--out", str(folder)]) == 0
    out, _ = capsys.readouterr()
    for word in ("thin 4, measured every 2", "τ_int ", "susceptibility", "helicity", "verdict"):
        assert word in out
    assert cli.main(["summary", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr()[0])
    assert {row["name"] for row in found["derived"]} >= {"Binder", "helicity", "specific heat"}
    assert found["measure_every"] == 2
    assert cli.main(["resume", str(folder), "--json"]) == 0
    again = json.loads(capsys.readouterr()[0])
    assert again["derived"] == found["derived"] and again["status"] == "done"
    assert cli.main(["run", str(file), "--out", str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr()[0])["rows"] == found["rows"]
    assert cli.main(["plot", str(folder)]) == 0
    assert (folder / "summary.png").stat().st_size > 10_000
    file.write_text(LATTICE.replace("keep: observables", "keep: everything"))
    capsys.readouterr()
    assert cli.main(["run", str(file)]) == 2
    assert "keep must be x or observables, got 'everything'" in capsys.readouterr()[1]


def test_figure_shows_energy_and_size_first(monkeypatch, tmp_path):
    s = sample(TARGET, Metropolis(width=1.5), **{**LONG, "n_draws": 40}, keep="observables")
    shown = []
    trace = plots._traces

    def traced(*args, **kwargs):
        shown.append(kwargs["name"])
        return trace(*args, **kwargs)

    monkeypatch.setattr(plots, "_traces", traced)
    s.plot(tmp_path / "run.png")
    assert shown == ["energy", "|magnetisation|"]


@pytest.mark.parametrize("keep", ["x", "observables"])
def test_one_phase_of_a_broken_symmetry_is_said(keep):
    target = ON((8, 8), 1, 0.6)
    settings = {"n_draws": 300, "warmup": 50, "keep": keep, "progress": False}
    one = sample(target, HeatBath(), x0=torch.ones(16, 8, 8, 1), **settings)
    assert any("mean is 0 by symmetry" in line for line in one.summary().verdict)
    both = sample(target, Wolff(), n_chains=16, **settings)
    assert not any("symmetry" in line for line in both.summary().verdict)
