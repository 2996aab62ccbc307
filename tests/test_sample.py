"""The one entry point: right draws for any block size, bounded memory, bad arguments named."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from pysamp import chains, plan, rng, store
from pysamp.mcmc.base import Info, State
from pysamp.mcmc.langevin import MALA, ULA
from pysamp.mcmc.metropolis import Metropolis
from pysamp.mcmc.tempering import ParallelTempering
from pysamp.plan import Plan
from pysamp.samples import Samples
from pysamp.sampling import resume, sample
from pysamp.target import Target, Tempered, Tilted
from pysamp.targets.mixture import GaussianMixture
from pysamp.targets.phi4 import Phi4Chain

quick = {"n_chains": 8, "n_draws": 50, "warmup": 20, "progress": False}


def normal_target(dim: int = 2, variance: float = 0.25) -> GaussianMixture:
    return GaussianMixture(torch.ones(1, dim), torch.tensor([variance]))


def skewed(x: Tensor) -> Tensor:
    """A Gumbel density in each of two coordinates: mean Euler's gamma, variance pi²/6."""
    return (-x - torch.exp(-x)).sum(1)


# ------------------------------------------------------------------------- draws
def test_kernel_with_an_adapted_step_draws_from_the_target():
    s = sample(normal_target(), MALA(), n_chains=64, n_draws=400, warmup=300, progress=False)
    assert s.x.shape == (64, 400, 2)
    assert s.log_prob.shape == (64, 400)
    summary = s.summary()
    assert summary.verdict == []
    for row in summary.rows[-2:]:
        assert abs(row["mean"] - 1.0) < 5 * row["mcse"]
        assert abs(row["sd"] - 0.5) < 5 * 0.5 / math.sqrt(2 * row["ess_tail"])
    assert torch.allclose(s.log_prob.flatten(), normal_target().log_prob(s.flat()), atol=1e-5)
    assert 0.3 < float(s.info["accept"].mean()) < 0.9
    assert float(torch.as_tensor(s.info["scale"]).mean()) > 0
    assert s.info["sampler"] == "MALA"
    assert s.info["seed"] == 0
    assert s.info["dtype"] == "float32"
    assert s.info["seconds"] > 0
    assert s.info["backend"] in ("native", "torch")


def test_callable_target():
    s = sample(
        skewed, MALA(), event_shape=(2,), n_chains=64, n_draws=400, warmup=300,
        dtype=torch.float64, progress=False,
    )  # fmt: skip
    assert s.x.dtype == torch.float64
    rows = {row["name"]: row for row in s.summary().rows}
    for name in ("x[0]", "x[1]"):
        assert abs(rows[name]["mean"] - 0.5772156649) < 5 * rows[name]["mcse"]
        assert rows[name]["sd"] == pytest.approx(math.pi / math.sqrt(6), rel=0.1)


def test_cost_is_counted_exactly():
    s = sample(skewed, MALA(step_size=0.1), event_shape=(2,), thin=3, **quick)
    steps = 20 + 3 * 50
    assert s.info["evaluations"] == 8 * (1 + steps)  # one at the start, one a step
    assert s.info["gradients"] == 8 * (1 + steps)


def test_draws_are_every_thin_th_state():
    kernel = MALA(step_size=0.1)
    target = normal_target()
    s = sample(target, kernel, thin=5, **quick)
    x0 = rng.normal((8, 2), seed=0, stream="start")
    state = kernel.init(target, x0, seed=0)
    state, _ = kernel.step(target, state, 20)
    for i in range(50):
        state, _ = kernel.step(target, state, 5)
        assert torch.equal(s.x[:, i], state.x)


def test_seed_decides():
    a, b = (sample(normal_target(), MALA(step_size=0.1), seed=5, **quick) for _ in range(2))
    c = sample(normal_target(), MALA(step_size=0.1), seed=6, **quick)
    assert torch.equal(a.x, b.x)
    assert not torch.equal(a.x, c.x)


def test_starting_points_are_used():
    x0 = torch.full((8, 2), 3.0)
    s = sample(normal_target(), MALA(step_size=1e-8), x0=x0, n_draws=5, warmup=0, progress=False)
    assert s.n_chains == 8
    assert torch.allclose(s.x, torch.tensor(3.0), atol=1e-2)


@dataclass(frozen=True)
class OnCircle:
    event_shape: tuple[int, ...] = (2,)

    def log_prob(self, x: Tensor) -> Tensor:
        return -1e4 * (x.square().sum(1) - 1).square()

    def start(self, n, *, seed, first_chain, device, dtype):
        angle = torch.arange(first_chain, first_chain + n, dtype=dtype, device=device)
        return torch.stack([angle.cos(), angle.sin()], 1)


def test_target_may_make_its_own_start():
    s = sample(OnCircle(), MALA(step_size=1e-9), n_chains=5, n_draws=3, warmup=0, progress=False)
    assert torch.allclose(s.x.square().sum(-1), torch.tensor(1.0), atol=1e-3)
    assert torch.allclose(s.x[:, 0, 0], torch.arange(5.0).cos(), atol=1e-3)


def test_start_that_is_being_differentiated_leaves_no_graph():
    x0 = torch.full((4, 2), 0.5, requires_grad=True)
    for kernel in (MALA(step_size=0.1), Metropolis(width=0.5)):
        s = sample(skewed, kernel, event_shape=(2,), x0=x0, n_draws=3, warmup=2, progress=False)
        assert not s.x.requires_grad
        assert not s.log_prob.requires_grad


# ------------------------------------------------------------------------- values for each chain
def test_a_beta_for_each_chain_gives_each_its_own_width(tmp_path):
    """x ~ N(1, v/β): chain by chain, in memory and through a folder."""
    beta = torch.tensor([0.25, 1.0, 4.0, 16.0]).repeat(16)
    target = Tempered(normal_target(1), beta)
    sizes = {"n_chains": 64, "n_draws": 300, "warmup": 100, "progress": False}
    step = 0.25 / beta  # of the order of the variance
    s = sample(target, MALA(step_size=step), **sizes)
    for part in range(4):
        draws = s.x[part::4, ::10, 0].double()  # decorrelated: 16 chains of 30
        size = draws.numel()
        variance = 0.25 / float(beta[part])
        assert abs(float(draws.mean()) - 1) < 5 * math.sqrt(2 * variance / size)
        assert abs(float(draws.var()) / variance - 1) < 5 * math.sqrt(2 * 2 / size)
    again = sample(target, MALA(step_size=step), **sizes, out=tmp_path / "run")
    assert torch.equal(again.x, s.x)
    assert torch.equal(resume(tmp_path / "run").x, s.x)


def test_a_centre_for_each_chain_pulls_each_to_its_own_place():
    """A tilt of precision 1/v halves the variance and doubles the pull: mean (1 + centre)/2."""
    centre = torch.linspace(-3, 3, 8)[:, None].expand(8, 2).contiguous()
    for precision in (4.0, torch.full((8,), 4.0)):
        target = Tilted(normal_target(), centre, precision)
        s = sample(target, MALA(), n_chains=8, n_draws=2000, warmup=200, progress=False)
        error = math.sqrt(0.125 * 3 / 2000)  # a correlation time of about 3
        assert float((s.x.mean(1) - (1 + centre) / 2).abs().max()) < 5 * error


def wrapped(n: int) -> list[tuple[str, Target]]:
    chain = Phi4Chain(4)
    return [
        ("beta of Tempered", Tempered(chain, torch.linspace(0.2, 1, n))),
        ("centre of Tilted", Tilted(chain, torch.zeros(n, 4), 1.0)),
        ("precision of Tilted", Tempered(Tilted(chain, torch.zeros(4), torch.ones(n)), 0.5)),
    ]


def test_values_for_each_chain_are_counted():
    for name, target in wrapped(8):
        s = sample(target, MALA(), n_chains=8, n_draws=5, warmup=10, progress=False)
        assert s.x.std() > 0.1
        with pytest.raises(ValueError, match=f"{name} has 8 rows, but n_chains is 6"):
            sample(target, MALA(), n_chains=6, progress=False)
        with pytest.raises(ValueError, match=f"{name} must be one for all chains with Parallel"):
            sample(target, ParallelTempering(MALA()), n_chains=8, progress=False)


# ------------------------------------------------------------------------- blocks
def test_a_draw_of_many_steps_is_made_in_several_calls(monkeypatch):
    """One call would hold off an interrupt for all of thin, and count in float32 beyond 2^24."""
    sizes = {**quick, "n_draws": 4, "thin": 25}
    whole = sample(normal_target(), MALA(step_size=0.3), **sizes)
    assert 1 << 10 <= chains.CALL_STEPS <= 1 << 22
    monkeypatch.setattr(chains, "CALL_STEPS", 10)
    monkeypatch.setattr(plan, "BLOCK_STEPS", 10)
    made: list[int] = []
    step = MALA.step

    def watched(kernel, target, state, n=1, *, thin=None):
        made.append(n)
        return step(kernel, target, state, n, thin=thin)

    monkeypatch.setattr(MALA, "step", watched)
    parts = sample(normal_target(), MALA(step_size=0.3), **sizes)
    assert made == [20] + [10, 10, 5] * 4  # warm-up, then the draws
    assert torch.equal(parts.x, whole.x)
    assert parts.info["evaluations"] == whole.info["evaluations"]
    assert torch.allclose(parts.info["accept"], whole.info["accept"], rtol=1e-6)
    assert 0.05 < float(whole.info["accept"].mean()) < 0.999


def test_draws_do_not_depend_on_blocks_or_checkpoints(monkeypatch, tmp_path):
    whole = sample(normal_target(), MALA(), **quick)
    for steps, seconds in ((7, 0.0), (7, 1e9), (1, 0.0)):
        monkeypatch.setattr(plan, "BLOCK_STEPS", steps)
        monkeypatch.setattr(chains, "CHECKPOINT_SECONDS", seconds)
        path = tmp_path / f"{steps}-{seconds}"
        assert torch.equal(sample(normal_target(), MALA(), **quick, out=path).x, whole.x)


def test_memory_is_bounded_by_blocks(monkeypatch, tmp_path):
    """No fused call returns more than BLOCK_BYTES, and no more than that waits to be written."""
    for module in (plan, chains):
        monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 8 * 2 * 6)  # six draws of 8 float32 chains
    made, written = [], []
    step = MALA.step
    append = store.Writer.append

    def watched(*args, **kwargs):
        state, info = step(*args, **kwargs)
        if info.x is not None:
            made.append(info.x.numel() * 4)
        return state, info

    def writing(self, first, **values):
        written.append(values["x"].numel() * 4)
        return append(self, first, **values)

    monkeypatch.setattr(MALA, "step", watched)
    monkeypatch.setattr(store.Writer, "append", writing)
    sample(normal_target(), MALA(step_size=0.1), **quick, out=tmp_path / "run")
    assert max(made) == max(written) == plan.BLOCK_BYTES
    assert sum(made) == 4 * 8 * 2 * 50


def test_block_is_a_function_of_the_sizes_alone():
    sizes = Plan(1000, 10_000, 0, 1, 0, (100,), torch.float32, torch.device("cpu"))
    assert sizes.block() == plan.BLOCK_STEPS
    assert replace(sizes, thin=plan.BLOCK_STEPS * 3).block() == 1
    assert replace(sizes, event_shape=(10_000,)).block() == 1
    assert replace(sizes, n_draws=5).block() == 5


# ------------------------------------------------------------------------- bad arguments
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"n_chains": 0}, ValueError, "n_chains must be at least 1, got 0"),
        ({"n_chains": 2.0}, TypeError, "n_chains must be an int, got 2.0"),
        ({"n_draws": -3}, ValueError, "n_draws must be at least 1, got -3"),
        ({"warmup": -1}, ValueError, "warmup must be at least 0, got -1"),
        ({"thin": 0}, ValueError, "thin must be at least 1, got 0"),
        ({"thin": True}, TypeError, "thin must be an int, got True"),
        ({"seed": -1}, ValueError, r"seed must be in \[0, 2\*\*64\), got -1"),
        ({"seed": "a"}, TypeError, "seed must be an int, got 'a'"),
        ({"dtype": torch.float16}, ValueError, "got torch.float16"),
        ({"device": "gpu"}, ValueError, "device must be such as 'cpu' or 'cuda', got 'gpu'"),
        ({"event_shape": (3,)}, ValueError, "event_shape"),
        ({"x0": [0.0]}, TypeError, "x0 must be a Tensor, got list"),
        ({"x0": torch.zeros(8, 3)}, ValueError, r"x0 must have shape \(8, 2\).*got \(8, 3\)"),
        ({"x0": torch.zeros(4, 2)}, ValueError, r"got \(4, 2\)"),
        ({"x0": torch.zeros(8, 2, dtype=torch.int64)}, ValueError, "got torch.int64"),
        (
            {"x0": torch.zeros(8, 2), "dtype": torch.float64},
            ValueError,
            "x0 must have dtype torch.float64, got torch.float32",
        ),
        ({"x0": torch.full((8, 2), math.nan)}, ValueError, "x0 must be finite, got .* at chain 0"),
    ],
)
def test_bad_arguments_are_named_with_their_value(change, error, match):
    with pytest.raises(error, match=match):
        sample(normal_target(), MALA(step_size=0.1), **{**quick, **change})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_absent_cuda_is_named():
    with pytest.raises(ValueError, match="device='cuda' was asked for, but torch sees no CUDA"):
        sample(normal_target(), MALA(step_size=0.1), device="cuda", **quick)


def test_bad_targets_and_samplers_are_named():
    with pytest.raises(TypeError, match="sampler is the class MALA: pass an instance"):
        sample(normal_target(), MALA, **quick)
    with pytest.raises(TypeError, match=r"sampler must be a kernel .* got str"):
        sample(normal_target(), "MALA", **quick)
    with pytest.raises(ValueError, match="event_shape must be given"):
        sample(skewed, MALA(step_size=0.1), **quick)
    with pytest.raises(ValueError, match="MALA has no step size or width and warmup=0"):
        sample(normal_target(), MALA(), **{**quick, "warmup": 0})


def test_start_outside_the_support_names_the_chain():
    def half_line(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0, -x[:, 0], -math.inf)

    x0 = torch.ones(8, 1)
    x0[5] = -1
    with pytest.raises(ValueError, match="chain 5 has log_prob = -inf"):
        sample(half_line, MALA(step_size=0.1), event_shape=(1,), x0=x0, **quick)


@dataclass(frozen=True)
class Broken:
    """A kernel that forgets to return its states."""

    def init(self, target, x, *, seed, first_chain=0):
        return State(x, target.log_prob(x), None, seed, 0, first_chain)

    def step(self, target, state, n=1, *, thin=None):
        return state, Info(torch.ones(state.n_chains), {})


def test_kernel_that_breaks_its_contract_is_named():
    with pytest.raises(TypeError, match=r"Broken\.step with thin=1 must fill x and log_prob"):
        sample(normal_target(), Broken(), **{**quick, "warmup": 0})


def test_bias_of_ula_is_noted():
    s = sample(normal_target(), ULA(step_size=0.01), **quick)
    assert any("no accept/reject step" in note for note in s.summary().notes)


@pytest.mark.parametrize(
    "change",
    [{"thin": 2**64}, {"n_draws": 2**70}, {"warmup": 2**32}, {"n_draws": 2**31, "thin": 2}],
)
def test_more_steps_than_the_counter_has_are_refused_at_once(change):
    sizes = {**quick, **change}
    text = "{warmup} + {n_draws} * {thin}".format(**{"thin": 1, **sizes})
    with pytest.raises(
        ValueError, match=f"at most 4294967296 steps of MALA, got {re.escape(text)}"
    ):
        sample(normal_target(), MALA(step_size=0.1), **sizes)


def test_counters_of_a_ladder_are_used_up_by_its_rungs_and_its_steps_between_swaps():
    ladder = ParallelTempering(MALA(step_size=0.1), n_rungs=4, swap_every=8)
    with pytest.raises(ValueError, match=r"steps of ParallelTempering, got 20 \+ 536870912 \* 1"):
        sample(normal_target(), ladder, **{**quick, "n_draws": 2**29})
    with pytest.raises(ValueError, match=r"n_chains .* 2\*\*32 in all, got 2147483648 of 4 rungs"):
        sample(normal_target(), ladder, **{**quick, "n_chains": 2**31})
    with pytest.raises(ValueError, match=r"n_chains must be at most 2\*\*32, got 4294967297"):
        sample(normal_target(), MALA(step_size=0.1), **{**quick, "n_chains": 2**32 + 1})
    with pytest.raises(ValueError, match=r"n_chains \* n_draws must be at most 2\*\*32 draws"):
        sample(normal_target(), Exact(), n_draws=2**40)


@pytest.mark.parametrize(
    ("kernel", "shapes"),
    [
        (MALA(torch.full((3,), 0.1)), r"\(8,\), got \(3,\)"),
        (ULA(torch.full((3,), 0.1)), r"\(8,\), got \(3,\)"),
        (Metropolis(torch.full((8, 1), 0.1)), r"\(8,\), got \(8, 1\)"),
        (
            ParallelTempering(MALA(torch.full((3,), 0.1)), n_rungs=4),
            r"\(4,\) or \(8, 4\), got \(3,\)",
        ),
    ],
)
def test_scales_that_do_not_fit_are_refused_before_a_folder_is_made(kernel, shapes, tmp_path):
    with pytest.raises(ValueError, match=f"the step size or width of .* have shape {shapes}"):
        sample(normal_target(), kernel, **quick, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------- samplers
@dataclass(frozen=True)
class Exact:
    """Independent weighted draws, by way of the target's own sampler."""

    weighted: bool = False

    def sample(self, target, n: int, *, seed: int) -> Samples:
        x = target.sample(n, seed=seed)[:, None]
        weight = torch.linspace(-1, 0, n, dtype=torch.float64)[:, None] if self.weighted else None
        info = {
            "evaluations": n,
            "log_z": 0.0,
            "log_z_error": 0.1,
            "accept": torch.linspace(0.1, 1, n),
        }
        return Samples(x, target.log_prob(x[:, 0])[:, None], weight, info)


@dataclass(frozen=True, eq=False)
class Trained:
    log: list

    @property
    def fitted(self) -> bool:
        return "fit" in self.log

    def fit(self, target, *, seed: int) -> None:
        self.log.append("fit")

    def sample(self, target, n: int, *, seed: int) -> Samples:
        self.log.append("sample")
        return Exact().sample(target, n, seed=seed)


def test_sampler_makes_all_draws_at_once():
    s = sample(normal_target(), Exact(), n_chains=30, n_draws=10, seed=3)
    assert s.x.shape == (300, 1, 2)
    assert torch.equal(s.x[:, 0], normal_target().sample(300, seed=3))
    assert s.info["sampler"] == "Exact"
    assert s.info["seed"] == 3
    assert s.target is not None


def test_learned_sampler_is_fitted_once():
    log: list = []
    for _ in range(2):
        sample(normal_target(), Trained(log), n_chains=4)
    assert log == ["fit", "sample", "sample"]


def test_sampler_into_a_folder(tmp_path):
    sampler = Exact(weighted=True)
    path = tmp_path / "run"
    s = sample(normal_target(), sampler, n_chains=300, seed=3, out=path)
    direct = sample(normal_target(), sampler, n_chains=300, seed=3)
    for other in (s, resume(path, sampler=sampler)):
        assert torch.equal(other.x, direct.x)
        assert torch.equal(other.log_prob, direct.log_prob)
        assert torch.equal(other.log_weight, direct.log_weight)  # float64 beside float32 draws
        assert other.info["accept"].shape == (300,)
        assert other.info["log_z_error"] == 0.1
    with pytest.raises(ValueError, match=r"Exact, from outside pysamp.*sampler=\.\.\."):
        resume(path)


def test_killed_sampler_run_begins_again(tmp_path):
    class DeathError(Exception):
        pass

    @dataclass(frozen=True)
    class Fragile(Exact):
        def sample(self, target, n, *, seed):
            if not (tmp_path / "once").exists():
                (tmp_path / "once").touch()
                raise DeathError
            return Exact.sample(self, target, n, seed=seed)

    with pytest.raises(DeathError):
        sample(normal_target(), Fragile(), n_chains=20, out=tmp_path / "run")
    assert "DeathError" in store.read_manifest(tmp_path / "run")["error"]
    s = resume(tmp_path / "run", sampler=Fragile())
    assert torch.equal(s.x, Exact().sample(normal_target(), 20, seed=0).x)


def test_arguments_without_meaning_for_a_sampler_are_refused():
    with pytest.raises(ValueError, match="warmup=5 has no meaning for Exact"):
        sample(normal_target(), Exact(), warmup=5)
    with pytest.raises(ValueError, match="thin=2 has no meaning for Exact"):
        sample(normal_target(), Exact(), thin=2)


@pytest.mark.parametrize("kernel", [MALA(0.1), Metropolis(0.5)])
def test_a_target_that_couples_its_rows_is_refused(kernel):
    """A mean over the batch, as a normalisation layer would take it, makes chains depend on each other."""

    def coupled(x):
        return -((x - x.mean(0)) ** 2).sum(1)

    def normalised(x):
        return -((x - x.mean(0)) ** 2 / x.var(0)).sum(1)

    same = {"x0": torch.zeros(5, 3)}
    for target, more in ((coupled, {}), (normalised, {}), (coupled, same)):
        with pytest.raises(ValueError, match="depends on the other rows of the batch"):
            sample(target, kernel, event_shape=(3,), n_chains=5, n_draws=4, progress=False, **more)
