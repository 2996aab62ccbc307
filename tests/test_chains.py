"""Native chains equal torch chains bit for bit (level B), and are functions of (seed, chain, step)."""

from dataclasses import dataclass

import pytest
import torch

import pysamp
from pysamp import rng
from pysamp.mcmc import HMC, MALA, ULA, Metropolis, Multiplicative
from pysamp.target import Counted, Tempered, Tilted, log_prob_and_score
from pysamp.targets import EightGaussians, Phi4, Phi4Chain

N_CHAINS = 37  # no multiple of a vector width

TARGETS = {
    "chain": Phi4Chain(100, h=0.0025),
    "odd chain": Phi4Chain(33),
    "2-d": Phi4((8, 6), 0.25, 0.02),
    "2-d odd": Phi4((5, 7), 0.25, 0.1),
    "3-d": Phi4((5, 4, 3), 0.18, 0.1),
    "ring": Phi4((7,), 0.3, 0.1),
    "open": Phi4((5, 3), 0.25, 0.02, periodic=False),
    "more than a chunk of sum32": Phi4((4200,), 0.3, 0.1),
}


def kernels(target):
    h = 0.002 if isinstance(target, Phi4Chain) else 0.02
    return {
        "MALA": MALA(h),
        "MALA adapted": MALA(h, adapt=Multiplicative()),
        "ULA": ULA(h),
        "HMC": HMC(10 * h, 5),
        "Metropolis all": Metropolis(0.05, moves="all"),
        "Metropolis site": Metropolis(0.8),
    }


KERNELS = sorted(kernels(TARGETS["chain"]))


def start(kernel, target, device, dtype, n_chains=N_CHAINS, first_chain=3):
    x = rng.normal(
        (n_chains, *target.event_shape), seed=5, stream="start", first_chain=first_chain,
        device=device, dtype=dtype,
    )  # fmt: skip
    return kernel.init(target, x, seed=2**50 + 77, first_chain=first_chain)


def assert_same_state(a, b):
    assert torch.equal(a.x, b.x), f"{(a.x != b.x).sum()} of {a.x.numel()} coordinates differ"
    assert torch.equal(a.log_prob, b.log_prob)
    assert (a.score is None) == (b.score is None)
    if a.score is not None:
        assert torch.equal(a.score, b.score)
    assert (a.step, a.seed, a.first_chain) == (b.step, b.seed, b.first_chain)
    assert a.aux.keys() == b.aux.keys()
    assert all(torch.equal(a.aux[name], b.aux[name]) for name in a.aux)


def assert_same_info(a, b):
    for name in ("accept", "x", "log_prob"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert a.extra.keys() == b.extra.keys()
    for name in a.extra:
        assert torch.equal(a.extra[name], b.extra[name]), name


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_native_equals_torch(name, target, device, dtype, native):
    kernel = kernels(target)[name]
    n_chains, n = (3, 3) if target.event_shape == (4200,) else (N_CHAINS, 12)
    state = start(kernel, target, device, dtype, n_chains)
    found, found_info = kernel.step(target, state, n, thin=3)
    assert not torch.equal(found.x, state.x), "the chain did not move: nothing was compared"
    with pysamp.backend("torch"):
        expected, expected_info = kernel.step(target, state, n, thin=3)
    assert_same_state(found, expected)
    assert_same_info(found_info, expected_info)


@pytest.mark.parametrize("name", ["MALA", "ULA", "HMC", "Metropolis all", "Metropolis site"])
def test_native_equals_torch_when_tempered_and_tilted(name, device, dtype, native):
    """One inverse temperature, centre and precision per chain."""
    for base in (TARGETS["chain"], TARGETS["2-d odd"]):
        kernel = kernels(base)[name]
        options = {"seed": 8, "device": device, "dtype": dtype}
        beta = rng.uniform((N_CHAINS, 1), **options)[:, 0] + 0.5
        centre = rng.normal((N_CHAINS, *base.event_shape), **options)
        target = Tilted(Tempered(base, beta), centre, 5 * beta)
        state = start(kernel, target, device, dtype)
        found, info = kernel.step(target, state, 10, thin=5)
        with pysamp.backend("torch"):
            expected, expected_info = kernel.step(target, state, 10, thin=5)
        assert_same_state(found, expected)
        assert_same_info(info, expected_info)
        plain, _ = kernel.step(base, start(kernel, base, device, dtype), 10)
        assert not torch.equal(plain.x, found.x)


@pytest.mark.parametrize("name", KERNELS)
def test_fused_steps_equal_single_steps(name, device, dtype):
    for target in (TARGETS["chain"], TARGETS["2-d odd"], EightGaussians()):
        if name == "Metropolis site" and isinstance(target, type(EightGaussians())):
            continue
        kernel = kernels(target)[name]
        fused, info = kernel.step(target, start(kernel, target, device, dtype), 12, thin=1)
        state = start(kernel, target, device, dtype)
        for k in range(12):
            state, _ = kernel.step(target, state)
            assert torch.equal(info.x[:, k], state.x)
            assert torch.equal(info.log_prob[:, k], state.log_prob)
        assert_same_state(fused, state)


@pytest.mark.parametrize("name", KERNELS)
def test_splitting_the_batch_changes_nothing(name, device, dtype):
    target = TARGETS["2-d"]
    kernel = kernels(target)[name]
    whole, _ = kernel.step(target, start(kernel, target, device, dtype, 21, 0), 7)
    parts = [
        kernel.step(target, start(kernel, target, device, dtype, n, first), 7)[0]
        for first, n in [(0, 1), (1, 15), (16, 5)]
    ]
    assert torch.equal(whole.x, torch.cat([p.x for p in parts]))
    assert torch.equal(whole.log_prob, torch.cat([p.log_prob for p in parts]))


def test_threads_change_nothing():
    target, kernel = TARGETS["chain"], MALA(0.002)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(
                kernel.step(target, start(kernel, target, "cpu", torch.float32, 200), 30)[0]
            )
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert_same_state(results[0], other)


@pytest.mark.parametrize("module", ["_cpu", "_cpu_v3", "_cpu_v4"])
def test_every_instruction_set_gives_the_same_chain(module, dtype, monkeypatch):
    import importlib

    needs = {"_cpu": (), "_cpu_v3": ("AVX2", "AVX512"), "_cpu_v4": ("AVX512",)}[module]
    capability = torch.backends.cpu.get_cpu_capability()
    if needs and capability not in needs:
        pytest.skip(f"{module} needs more than this CPU has ({capability})")
    try:
        kernels_module = importlib.import_module(f"pysamp.{module}")
    except ImportError as error:
        pytest.skip(f"{module} was not built: {error}")
    for target in (TARGETS["chain"], TARGETS["3-d"]):
        for name, kernel in kernels(target).items():
            state = start(kernel, target, "cpu", dtype)
            expected, _ = kernel.step(target, state, 5)
            with monkeypatch.context() as patch:
                patch.setattr(pysamp._native, "_cpu", kernels_module)
                found, _ = kernel.step(target, state, 5)
            assert torch.equal(found.x, expected.x), name


def test_mixture_chain_is_close_to_torch(device, dtype, native):
    """Level C: densities agree to rounding, so short chains do too."""
    target = EightGaussians()
    for kernel in (MALA(0.3), HMC(0.4, 4), Metropolis(1.0), ULA(0.05)):
        state = start(kernel, target, device, dtype)
        found, _ = kernel.step(target, state, 5)
        with pysamp.backend("torch"):
            expected, _ = kernel.step(target, state, 5)
        torch.testing.assert_close(found.x, expected.x)
        torch.testing.assert_close(found.log_prob, expected.log_prob)


def test_state_keeps_the_density_of_its_point(device, dtype):
    for target in (*TARGETS.values(), EightGaussians()):
        for kernel in kernels(target).values():
            if kernel_needs_sites(kernel, target):
                continue
            state, _ = kernel.step(target, start(kernel, target, device, dtype, 5), 4)
            log_prob, score = log_prob_and_score(target, state.x)
            torch.testing.assert_close(state.log_prob, log_prob)
            if state.score is not None:
                torch.testing.assert_close(state.score, score)


def kernel_needs_sites(kernel, target):
    return isinstance(kernel, Metropolis) and not isinstance(target, (Phi4, Phi4Chain))


def test_counted_targets_are_counted_on_the_native_path():
    counted = Counted(TARGETS["chain"])
    state = start(MALA(0.002), counted, "cpu", torch.float32, 8)
    before = (counted.counts.evaluations, counted.counts.gradients)
    MALA(0.002).step(counted, state, 10)
    HMC(0.002, 4).step(counted, state, 10)
    evaluations, gradients = counted.counts.evaluations, counted.counts.gradients
    assert (evaluations - before[0], gradients - before[1]) == (160, 80 + 320)


# --- what can go wrong -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Wall:
    """A Gaussian with NaN beyond x = 1 and +∞ beyond x = 2: as a failing simulation code behaves."""

    event_shape: tuple[int, ...] = (1,)

    def log_prob(self, x):
        value = -0.5 * (x**2).sum(1)
        value = torch.where(x[:, 0] > 1, torch.nan, value)
        return torch.where(x[:, 0] > 2, torch.inf, value)


def test_proposals_without_a_finite_density_are_refused_and_counted():
    x = torch.zeros(64, 1)
    for kernel in (MALA(0.8), HMC(0.8, 2), Metropolis(3.0), ULA(0.8)):
        state, info = kernel.step(Wall(), kernel.init(Wall(), x, seed=1), 50)
        assert torch.isfinite(state.x).all() and torch.isfinite(state.log_prob).all()
        assert (state.x <= 1).all()
        assert info.extra["nonfinite"].sum() > 0
        assert torch.isfinite(info.accept).all()


def test_a_native_chain_that_diverges_is_refused_and_counted(native, device):
    """Steps far too large overflow φ⁴ to infinity: the chain stays where it was."""
    target = TARGETS["chain"]
    for kernel in (ULA(1e12), MALA(1e12), HMC(1e12, 3)):
        state = start(kernel, target, device, torch.float32)
        new, info = kernel.step(target, state, 5)
        assert torch.equal(new.x, state.x)
        assert (info.extra["nonfinite"] == 5).all() or (info.accept == 0).all()


def test_a_start_without_a_finite_density_names_the_chain():
    x = torch.zeros(5, 100)
    x[3, 7] = torch.nan
    for kernel in kernels(TARGETS["chain"]).values():
        with pytest.raises(
            ValueError, match=r"x0 has no finite log_prob in 1 of 5 chains: chain 13"
        ):
            kernel.init(TARGETS["chain"], x, seed=0, first_chain=10)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: MALA(-0.1), "step_size must be positive and finite, got -0.1"),
        (lambda: MALA(float("nan")), "step_size must be positive and finite, got nan"),
        (lambda: HMC(0.1, 0), "n_leapfrog must be a positive integer, got 0"),
        (lambda: HMC(torch.tensor([0.1, -0.2])), "step_size must be positive and finite"),
        (lambda: ULA(None), "step_size must be given for ULA, got None"),
        (lambda: Metropolis(0.0), "width must be positive and finite, got 0.0"),
        (
            lambda: Metropolis(1.0, moves="pairs"),
            "moves must be 'auto', 'site' or 'all', got 'pairs'",
        ),
        (lambda: Multiplicative(factor=0.9), "factor must be finite and exceed 1, got 0.9"),
        (lambda: Multiplicative(target=1.2), "must lie in"),
        (lambda: Multiplicative(cap=0.0), "cap must be positive, got 0.0"),
    ],
)
def test_bad_parameters(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_bad_steps():
    target, kernel = TARGETS["ring"], MALA(0.01)
    state = start(kernel, target, "cpu", torch.float32)
    with pytest.raises(ValueError, match="n must be a positive number of steps, got 0"):
        kernel.step(target, state, 0)
    with pytest.raises(ValueError, match="thin must divide n = 7, got thin = 2"):
        kernel.step(target, state, 7, thin=2)
    with pytest.raises(ValueError, match=r"step_size must be a number or one per chain \(37,\)"):
        MALA(torch.ones(5)).step(target, state)
    with pytest.raises(ValueError, match="step_size must be given, or be adapted"):
        MALA().step(target, state)
    with pytest.raises(ValueError, match="moves='site' needs a target with local_difference"):
        Metropolis(1.0, moves="site").init(EightGaussians(), torch.zeros(2, 2), seed=0)


def test_the_step_counter_has_an_end(native, device):
    target, kernel = TARGETS["ring"], MALA(0.01)
    state = start(kernel, target, device, torch.float32)
    late = pysamp.mcmc.base.replace(state, step=2**32 - 2)
    kernel.step(target, late, 2)
    with pytest.raises(ValueError, match=r"step: the counter ends at 2\^32 transitions"):
        kernel.step(target, late, 3)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_state_without_a_score_is_refused(backend):
    target = TARGETS["ring"]
    state = start(Metropolis(0.1), target, "cpu", torch.float32)
    with pysamp.backend(backend):
        for kernel in (MALA(0.01), ULA(0.01), HMC(0.01, 2)):
            with pytest.raises(ValueError, match="state has no score"):
                kernel.step(target, state)


def test_bindings_refuse_tensors_that_do_not_fit(native, device):
    """The last line of defence below Python: wrong sizes are an error, not a crash."""
    target, n = TARGETS["ring"], 4
    x, one = torch.zeros(n, 7, device=device), torch.ones(n, device=device)
    params = torch.tensor(target.native.params, device=device)
    table = torch.empty(0, dtype=torch.int32, device=device)
    good = [x, one, x, one, params, table, [7, 2, 1, 1], None, None, None, None, 0, 0, 0, 3, 0, 1,
            [1.0, 0.0, 0.0, 0.0], 0, x.clone(), one.clone(), x.clone(), one.clone(), one.clone(), None,
            None, None, None]  # fmt: skip
    native.phi4_mala(*good)
    mean = [*good]
    mean[18], mean[27] = 4, x.clone()
    for call, index, bad, text in [
        (good, 1, one[:-1], "log_prob: expected shape"),
        (good, 1, None, "log_prob: this chain needs it"),
        (good, 2, None, "score"),
        (good, 3, one[:-1], "scale: expected shape"),
        (good, 6, [6, 2, 1, 1], "expected events of 6 sites"),
        (good, 7, one[:-1], "beta: expected shape"),
        (good, 8, x, "centre and precision go together"),
        (good, 10, torch.eye(7, device=device), "matrix needs centre"),
        (good, 12, -1, "step: the counter"),
        (good, 13, 2**32, "first_chain: the counter"),
        (good, 14, 0, "n_steps must be positive"),
        (good, 16, 0, "n_leapfrog must be positive"),
        (good, 19, x[:, :-1].contiguous(), "x_out: expected shape"),
        (good, 20, one[:-1], "log_prob_out: expected shape"),
        (good, 22, one[:-1], "accept: expected shape"),
        (good, 25, torch.zeros(n, 3, 7, device=device), "thin must divide"),
        (mean, 14, 3, "n_mean must lie in"),
        (good, 27, x[:, :-1].contiguous(), "n_mean must lie in"),
    ]:
        arguments = [*call]
        arguments[index] = bad
        with pytest.raises(ValueError, match=text):
            native.phi4_mala(*arguments)


def test_bindings_refuse_tables_and_orders_that_point_outside(native):
    target, n = TARGETS["2-d odd"], 3
    sites, energy = 35, target.native
    x, one = torch.zeros(n, sites), torch.ones(n)
    params = torch.tensor(energy.params)
    table = torch.tensor(energy.table, dtype=torch.int32)
    order = torch.cat(target.colours).int()
    starts = [0, *torch.tensor([len(c) for c in target.colours]).cumsum(0).tolist()]

    def sweep(table, order, layout):
        native.phi4_sweeps(x, one, params, table, layout, order, starts, [0], None, None, None, 0, 0,
                           0, 1, 0, 0, 0, x.clone(), one.clone(), one.clone(), None, None,
                           None)  # fmt: skip

    layout = list(energy.layout)
    sweep(table, order, layout)
    for bad in (-1, 10**6, sites + 1):
        with pytest.raises(ValueError, match=f"table: neighbour {bad} is no site"):
            sweep(torch.where(table == 3, bad, table).int(), order, layout)
        with pytest.raises(ValueError, match=f"order: every site once, got {bad}"):
            sweep(table, torch.where(order == 3, bad, order).int(), layout)
    with pytest.raises(ValueError, match="order: every site once, got 4"):
        sweep(table, torch.where(order == 3, 4, order).int(), layout)
    with pytest.raises(ValueError, match="periodic is 0 or 1"):
        sweep(table, order, [*layout[:2], 7, 1])


def test_more_colours_than_the_kernel_knows_are_swept_in_torch():
    @dataclass(frozen=True)
    class Finely:
        base: Phi4
        event_shape: tuple[int, ...] = (6, 6)

        @property
        def native(self):
            return self.base.native

        @property
        def colours(self):
            return tuple(torch.arange(36).split(5))

        def log_prob(self, x):
            return self.base.log_prob(x)

        def local_difference(self, x, sites, new):
            return self.base.local_difference(x, sites, new)

    kernel, target = Metropolis(0.8), Finely(Phi4((6, 6), 0.25, 0.1))
    state, _ = kernel.step(target, start(kernel, target, "cpu", torch.float32), 3)
    with pysamp.backend("torch"):
        expected, _ = kernel.step(target, start(kernel, target, "cpu", torch.float32), 3)
    assert_same_state(state, expected)


@pytest.mark.parametrize("kernel", [MALA(0.1), HMC(0.1), ULA(0.1), Metropolis(0.5)])
@pytest.mark.parametrize(
    ("log_prob", "error", "text"),
    [
        (
            lambda x: -0.5 * (x.double() ** 2).sum(-1),
            ValueError,
            "the dtype of x, got torch.float64",
        ),
        (lambda x: -0.5 * (x**2).sum(-1, keepdim=True), ValueError, r"must return shape \(7,\)"),
        (lambda x: torch.zeros(len(x), dtype=torch.int64), ValueError, "got torch.int64"),
        (lambda x: None, TypeError, "must return a Tensor, got NoneType"),
        (lambda x: (x**2).sum(), ValueError, r"must return shape \(7,\)"),
    ],
)
def test_a_log_prob_of_another_kind_is_refused(kernel, log_prob, error, text):
    from pysamp.target import FunctionTarget

    for target in (FunctionTarget(log_prob, (2,)), Counted(FunctionTarget(log_prob, (2,)))):
        with pytest.raises(error, match=text):
            kernel.init(target, torch.ones(7, 2), seed=0)


def test_step_sizes_of_another_kind_are_refused():
    for bad in (True, "0.1"):
        with pytest.raises(TypeError, match="step_size must be a positive number"):
            MALA(bad)
    with pytest.raises(ValueError, match="n_leapfrog must be a positive integer, got True"):
        HMC(0.1, True)
    with pytest.raises(ValueError, match="factor must be finite and exceed 1, got inf"):
        Multiplicative(factor=float("inf"))
    assert torch.equal(MALA([0.1, 0.2]).step_size, torch.tensor([0.1, 0.2]))
    assert MALA(1).step_size == 1.0


def test_a_target_first_used_in_inference_mode_still_has_gradients():
    for target in (Phi4Chain(6, h=0.123), EightGaussians()):
        with torch.inference_mode():
            target.log_prob(torch.zeros(2, *target.event_shape))
        x = torch.ones(2, *target.event_shape, requires_grad=True)
        target.log_prob(x).sum().backward()
        assert x.grad.abs().sum() > 0
