"""Site moves: each leaves the exact density invariant, equals its C++ bit for bit, and reports rightly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor

import pysamp
from pysamp import rng
from pysamp.describe import describe, rebuild
from pysamp.mcmc import (
    HMC,
    MALA,
    Cycle,
    HeatBath,
    Metropolis,
    Multiplicative,
    OverRelaxation,
    ParallelTempering,
    State,
    SwendsenWang,
    Tunable,
    Wolff,
    fused,
    warm_up,
)
from pysamp.mcmc.base import replace
from pysamp.mcmc.metropolis import needs_scale
from pysamp.target import Counted, FunctionTarget, Tempered, Tilted
from pysamp.targets import ON, Phi4, SoftON

BACKENDS = ["native", "torch"]
ROWS = {"native": 8_000, "torch": 1_500}  # the torch text is held to the native one bit for bit
MEMBERS = (
    "event_shape", "log_prob", "observables", "record", "from_record", "derived", "site_colours",
    "n_components", "unit_length", "local_field", "quartic", "colours", "local_difference",
)  # fmt: skip


def on(backend, target):
    """The target, or for "torch" all of it but its C++ energy: moves are then those of moves.py."""
    if backend == "native":
        return target
    return SimpleNamespace(**{m: getattr(target, m) for m in MEMBERS if hasattr(target, m)})


def fields(target, rows, dtype=torch.float64, seed=3, first_chain=0):
    """Starting points: random spins, or normal fields."""
    base = target
    while isinstance(base, (Counted, Tempered, Tilted)):
        base = base.base
    if isinstance(base, ON):
        return base.start(rows, seed=seed, first_chain=first_chain, dtype=dtype)
    how = {"seed": seed, "first_chain": first_chain, "dtype": dtype}
    return rng.normal((rows, *target.event_shape), **how)


def after(kernel, target, x, n, seed=1):
    """The fields after n steps, and what was reported."""
    state, info = kernel.step(target, kernel.init(target, x, seed=seed), n)
    assert not torch.equal(state.x, x)
    return state.x, info


def within_five_sigma(values: Tensor, expected: float | Tensor, floor: float = 0.0) -> None:
    """Mean of i.i.d. rows within 5 standard errors, entry by entry; floor: what rounding may add."""
    values = values.double()
    error = values.std(0) / math.sqrt(len(values))
    assert bool((error > 0).all())
    gap = (values.mean(0) - expected).abs()
    assert bool((gap < 5 * error + floor).all()), f"{values.mean(0)} ± {error}, not {expected}"


# ---------------------------------------------------------------------------- one site
@dataclass(frozen=True)
class Lonely:
    """Spins that feel a given field and no neighbours: the conditional density of one site."""

    h: Tensor  # (V, n)
    unit_length: bool = True

    @property
    def event_shape(self):
        return tuple(self.h.shape)

    @property
    def site_colours(self):
        return (torch.arange(len(self.h)),)

    @property
    def n_components(self):
        return self.h.shape[1]

    def log_prob(self, x):
        return (x * self.h.to(x)).sum((1, 2))

    def local_field(self, x, sites):
        return self.h.to(x)[sites].expand(len(x), -1, -1)


STRENGTHS = (0.0, 1e-4, 0.02, 0.5, 3.0, 40.0)
DIRECTIONS = {
    1: [[1.0], [-1.0]],
    2: [[1.0, 0.0], [-0.6, 0.8], [0.0, -1.0]],
    3: [[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.48, -0.6, -0.64]],
    5: [[1.0, 0.0, 0.0, 0.0, 0.0], [-0.5, 0.5, 0.1, 0.7, 0.0]],
}


def moments_along(n: int, k: float) -> tuple[float, float]:
    """E cos and E cos² of the angle to h for the density exp(k cos) on the sphere in R^n."""
    if n == 1:
        return math.tanh(k), 1.0
    if k < 1e-3:
        return k / n, 1 / n
    if n == 3:
        langevin = 1 / math.tanh(k) - 1 / k
        return langevin, 1 - 2 * langevin / k
    ratio = float(special.ive(n / 2, k) / special.ive(n / 2 - 1, k))
    return ratio, 1 - (n - 1) * ratio / k


def assert_von_mises_fisher(kernel, n, strengths, rows, steps, dtype):
    directions = torch.tensor(DIRECTIONS[n], dtype=torch.float64)
    directions = directions / directions.norm(dim=1, keepdim=True)
    h = torch.cat([k * directions for k in strengths])  # (V, n)
    x, info = after(kernel, Lonely(h), fields(ON((len(h),), n, 1.0), rows, dtype), steps)
    x = x.double()
    assert ((x.norm(dim=2) - 1).abs() < 1e-5).all()
    axis = directions.repeat(len(strengths), 1)
    along = (x * axis).sum(2)
    rounding = 1e-6 if dtype == torch.float32 else 0.0
    expected = [moments_along(n, k) for k in strengths for _ in directions]
    first, second = torch.tensor(expected, dtype=torch.float64).T
    within_five_sigma(along, first, rounding)
    if n > 1:
        within_five_sigma(along.square(), second, rounding)
        across = x - along[..., None] * axis
        for c in range(n):
            some = axis[:, c].abs() < 1  # elsewhere nothing is across
            within_five_sigma(across[:, some, c], 0.0, rounding)
    return info


@pytest.mark.parametrize(("n", "steps", "rows"), [(1, 1, 5_000), (2, 12, 1_500), (3, 1, 5_000)])
def test_heat_baths_have_the_density_of_von_mises_and_fisher(n, steps, rows, dtype):
    """Steps enough to forget the start, as tries of n = 2 can be refused."""
    strengths = STRENGTHS[:-1] if n == 1 else STRENGTHS
    info = assert_von_mises_fisher(HeatBath(), n, strengths, rows, steps, dtype)
    if n == 2:
        assert 0.65 < float(info.accept.mean()) < 1
    else:
        assert (info.accept == 1).all()


@pytest.mark.parametrize(("n", "steps"), [(2, 50), (3, 100), (5, 300)])
def test_turns_have_the_density_of_von_mises_and_fisher(n, steps):
    info = assert_von_mises_fisher(Metropolis(2.0), n, (0.0, 0.5, 3.0), 600, steps, torch.float64)
    assert 0.5 < float(info.accept.mean()) < 0.95


def test_the_heat_bath_of_heisenberg_has_the_right_distribution_function(dtype):
    """P(cos ≤ c) = (e^{kc} − e^{−k})/(e^k − e^{−k}), Kolmogorov's distance at 5 / √N."""
    k = (0.02, 0.0312, 0.0313, 2.0, 20.0)
    h = torch.tensor([[0.0, 0.0, strength] for strength in k], dtype=torch.float64)
    rows = 20_000
    x, _ = after(HeatBath(), Lonely(h), fields(ON((len(k),), 3, 1.0), rows, dtype), 1)
    for v, strength in enumerate(k):  # on both sides of where the series ends
        c = x[:, v, 2].double().sort().values.numpy()
        exact = np.expm1(strength * (c + 1)) / np.expm1(2 * strength)
        assert np.abs(exact - (np.arange(rows) + 0.5) / rows).max() < 5 / math.sqrt(rows)


# ---------------------------------------------------------------------------- Ising, by enumeration
def ising_states(shape: tuple[int, ...]) -> Tensor:
    n_sites = math.prod(shape)
    bits = (torch.arange(2**n_sites)[:, None] >> torch.arange(n_sites)) & 1
    return (2.0 * bits - 1).reshape(-1, *shape, 1).double()


def assert_histogram(x: Tensor, shape: tuple[int, ...], beta: float) -> None:
    """Counts of (energy, magnetisation) against their exact probabilities, each within 5σ."""
    unit = ON(shape, 1, 1.0)

    def level(states):
        bond_sum, m = unit.log_prob(states).round().long(), states.sum((1, 2, 3)).round().long()
        return (bond_sum + 1000) * 1000 + m + 100

    states = ising_states(shape)
    p = torch.softmax(beta * unit.log_prob(states), 0)
    levels, where = level(states).unique(return_inverse=True)
    exact = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, where, p)
    found = torch.searchsorted(levels, level(x.double()))
    n = len(x)
    count = torch.bincount(found, minlength=len(levels)).double()
    error = (n * exact * (1 - exact)).sqrt()
    often = n * exact > 20
    assert often.sum() > 4
    assert ((count - n * exact).abs()[often] < 5 * error[often]).all()
    rare = n * exact[~often].sum()
    assert abs(count[~often].sum() - rare) < 5 * rare.sqrt() + 5


ISING = {
    "heat bath": HeatBath(),
    "metropolis": Metropolis(),
    "cycle": Cycle(Metropolis(), HeatBath()),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ISING)
@pytest.mark.parametrize(("shape", "beta"), [((3, 3), 0.45), ((4, 4), 0.35), ((3, 3), -0.4)])
def test_ising_moves_keep_the_exact_distribution(name, shape, beta, backend):
    """From exact draws; odd extents have three colours, and with β < 0 are frustrated."""
    states = ising_states(shape)
    target = ON(shape, 1, beta)
    p = torch.softmax(target.log_prob(states), 0)
    generator = torch.Generator().manual_seed(7)
    x = states[torch.multinomial(p, ROWS[backend], replacement=True, generator=generator)].float()
    x, info = after(ISING[name], on(backend, target), x, 3)
    assert_histogram(x, shape, beta)
    assert (x.abs() == 1).all()
    assert ((info.accept == 1).all()) == (name == "heat bath")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ISING)
def test_ising_moves_reach_the_exact_distribution_from_a_cold_start(name, backend):
    x, _ = after(
        ISING[name], on(backend, ON((3, 3), 1, 0.3)), torch.ones(ROWS[backend], 3, 3, 1), 60
    )
    assert_histogram(x, (3, 3), 0.3)


def test_flips_reach_the_exact_distribution_from_every_start():
    """Were flips at no cost in energy always taken, 8 of the 512 starts would flip for ever."""
    target = ON((3, 3), 1, 0.3)
    states = ising_states((3, 3)).repeat_interleave(60, 0).float()
    trapped = after(Metropolis(), target, states, 400)[0]
    assert_histogram(trapped, (3, 3), 0.3)
    ring = ON((4,), 1, 0.45)  # and 4 of 16
    x, _ = after(Metropolis(), ring, ising_states((4,)).repeat_interleave(500, 0), 200)
    every = ising_states((4,))
    p = torch.softmax(ring.log_prob(every), 0)
    energy = ring.log_prob(x)
    within_five_sigma(energy, (p * ring.log_prob(every)).sum())


def test_a_ladder_of_temperatures_in_one_batch():
    """One β for each chain, through Tempered."""
    beta = torch.tensor([0.2, 0.45]).repeat_interleave(10_000)
    target = Tempered(ON((3, 3), 1, 1.0), beta)
    for kernel in (HeatBath(), Metropolis()):
        x, _ = after(kernel, target, torch.ones(20_000, 3, 3, 1), 80)
        assert_histogram(x[:10_000], (3, 3), 0.2)
        assert_histogram(x[10_000:], (3, 3), 0.45)


# ---------------------------------------------------------------------------- spins, by quadrature
def angles(k: int) -> Tensor:
    return torch.arange(k, dtype=torch.float64) * (2 * math.pi / k)


def grid(*axes: Tensor) -> list[Tensor]:
    return [g.reshape(-1) for g in torch.meshgrid(*axes, indexing="ij")]


def xy_points(n_sites: int, k: int = 28) -> tuple[Tensor, Tensor]:
    """Every configuration of a product rule with θ_0 = 0, which converges exponentially."""
    theta = torch.stack(
        [torch.zeros(k ** (n_sites - 1)).double(), *grid(*[angles(k)] * (n_sites - 1))]
    )
    return torch.stack((theta.cos(), theta.sin()), -1).movedim(0, 1), torch.zeros(theta.shape[1])


def heisenberg_points(k: int = 20) -> tuple[Tensor, Tensor]:
    """Three spins: the first up, the second in the plane of x and z."""
    node, log_w = np.polynomial.legendre.leggauss(k)
    node, log_w = torch.from_numpy(node), torch.from_numpy(np.log(log_w))
    c1, c2, phi = grid(node, node, angles(k))
    w1, w2, _ = grid(log_w, log_w, angles(k))
    s1, s2 = (1 - c1 * c1).sqrt(), (1 - c2 * c2).sqrt()
    zero, one = torch.zeros_like(c1), torch.ones_like(c1)
    spins = [(zero, zero, one), (s1, zero, c1), (s2 * phi.cos(), s2 * phi.sin(), c2)]
    return torch.stack([torch.stack(spin, -1) for spin in spins], 1), w1 + w2


def pair_points(n: int, k: int = 60) -> tuple[Tensor, Tensor]:
    """Two spins at an angle of weight sin^{n−2}."""
    theta = (torch.arange(k, dtype=torch.float64) + 0.5) * (math.pi / k)
    x = torch.zeros(k, 2, n, dtype=torch.float64)
    x[:, 0, 0] = 1
    x[:, 1, 0], x[:, 1, 1] = theta.cos(), theta.sin()
    return x, (n - 2) * theta.sin().log()


def observed(target, x: Tensor, squares: bool = True) -> Tensor:
    """(n, K): observables of rotation invariants, and the square of the energy."""
    found = target.observables(x)
    found.pop("magnetisation", None)
    columns = [*found.values(), *([found["energy"] ** 2] if squares else [])]
    return torch.stack(columns, 1).double()


def exact_means(target, points: Tensor, log_weight: Tensor) -> Tensor:
    p = torch.softmax(target.log_prob(points) + log_weight, 0)
    return p @ observed(target, points)


def spin_cases():
    ring = ON((3,), 2, 1.1)
    square = ON((2, 2), 2, 0.4)
    three, pair = ON((3,), 3, 1.3), ON((2,), 5, 0.9)
    frustrated = ON((3,), 3, -1.2)
    points = {
        "ring": (ring, *xy_points(3, 40)),
        "square": (square, *xy_points(4)),
        "heisenberg": (three, *heisenberg_points()),
        "frustrated": (frustrated, *heisenberg_points()),
        "five": (pair, *pair_points(5)),
    }
    for name, (target, x, log_weight) in points.items():
        shape = (len(x), *target.event_shape)
        yield name, (target, exact_means(target, x.reshape(shape), log_weight))


SPINS = dict(spin_cases())
TURN = Metropolis(2.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "kernel", "steps"),
    [
        ("ring", HeatBath(), 16),
        ("ring", TURN, 60),
        ("ring", Metropolis(math.pi), 60),
        ("ring", Cycle(HeatBath(), OverRelaxation(), OverRelaxation()), 16),
        ("square", HeatBath(), 16),
        ("square", Cycle(TURN, OverRelaxation()), 48),
        ("heisenberg", HeatBath(), 16),
        ("heisenberg", TURN, 90),
        ("heisenberg", Cycle(HeatBath(), OverRelaxation(), TURN), 16),
        ("frustrated", HeatBath(), 24),
        ("five", TURN, 150),
        ("five", Cycle(TURN, OverRelaxation()), 150),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_spins_have_the_exact_moments(name, kernel, steps, backend):
    target, expected = SPINS[name]
    x, info = after(kernel, on(backend, target), fields(target, ROWS[backend]), steps)
    within_five_sigma(observed(target, x), expected)
    assert info.accept.mean() > 0.3


# ---------------------------------------------------------------------------- fields, by quadrature
def line(edge: float, k: int) -> Tensor:
    return torch.linspace(-edge, edge, k, dtype=torch.float64)


def two_soft_points() -> tuple[Tensor, Tensor]:
    """Two sites in R², the first along an axis: weight r."""
    r, a, b = grid((torch.arange(40, dtype=torch.float64) + 0.5) / 10, line(4, 41), line(4, 41))
    return torch.stack((r, torch.zeros_like(r), a, b), 1).reshape(-1, 2, 2), r.log()


SOFT_PAIR = ON.soft((2,), 2, -1.5, 2.0)
SOFT_ONE = ON.soft((2,), 1, -1.5, 2.0)
PHI4 = Phi4((3,), 0.15, 0.7)
CENTRE = torch.tensor([0.7, -0.2, 0.4], dtype=torch.float64)
FIELDS = {
    "phi4": (PHI4, torch.stack(grid(*[line(3.2, 33)] * 3), 1), torch.zeros(33**3)),
    "open": (
        Phi4((3,), 0.15, 0.7, periodic=False),
        torch.stack(grid(*[line(3.2, 33)] * 3), 1),
        torch.zeros(33**3),
    ),
    "soft": (SOFT_PAIR, *two_soft_points()),
    "one": (SOFT_ONE, torch.stack(grid(*[line(4, 81)] * 2), 1)[..., None], torch.zeros(81**2)),
    "free": (Phi4((3,), 0.15, 0.0), torch.stack(grid(*[line(6, 31)] * 3), 1), torch.zeros(31**3)),
}
STEP = Metropolis(1.2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "kernel", "steps"),
    [
        ("phi4", HeatBath(), 30),
        ("phi4", STEP, 80),
        ("phi4", Cycle(STEP, HeatBath()), 30),
        ("open", HeatBath(), 30),
        ("soft", HeatBath(), 40),
        ("soft", STEP, 120),
        ("soft", Cycle(HeatBath(), OverRelaxation(), OverRelaxation()), 40),
        ("one", HeatBath(), 40),
        ("one", STEP, 120),
        ("free", HeatBath(), 30),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_fields_have_the_exact_moments(name, kernel, steps, backend):
    target, points, log_weight = FIELDS[name]
    expected = exact_means(target, points, log_weight)
    x, info = after(kernel, on(backend, target), fields(target, ROWS[backend]), steps)
    within_five_sigma(observed(target, x), expected)
    assert info.accept.mean() > 0.3
    if name == "free":
        assert (info.accept == 1).all()


@pytest.mark.parametrize("kernel", [HeatBath(), STEP], ids=["heat bath", "metropolis"])
def test_fields_are_tempered_and_tilted(kernel):
    """A β, a centre and a precision for each chain: two halves with densities of their own."""
    beta = torch.tensor([0.4, 1.6], dtype=torch.float64)
    precision = torch.tensor([1.5, 0.3], dtype=torch.float64)
    centre = torch.stack((CENTRE, -2 * CENTRE))
    points = FIELDS["phi4"][1]
    halves = torch.arange(2).repeat_interleave(6_000)
    batch = Tilted(Tempered(PHI4, beta[halves]), centre[halves], precision[halves])
    x, _ = after(kernel, batch, fields(batch, 12_000), 80)
    for half in (0, 1):
        target = Tilted(Tempered(PHI4, float(beta[half])), centre[half], float(precision[half]))
        p = torch.softmax(target.log_prob(points), 0)
        mine = x[halves == half]
        within_five_sigma(mine, p @ points)
        within_five_sigma(mine[:, :, None] * mine[:, None, :], torch.einsum(
            "p,pi,pj->ij", p, points, points
        ))  # fmt: skip


@pytest.mark.parametrize(("r", "u"), [(-4.0, 4.0), (-12.0, 14.0)])
def test_two_peaks_of_a_conditional_density(r, u):
    """v⁴ far from Gaussian, and starts far from where the density is: no chain stands still."""
    target = ON.soft((2,), 1, r, u)
    points = torch.stack(grid(line(3.5, 141), line(3.5, 141)), 1)[..., None]
    p = torch.softmax(target.log_prob(points), 0)
    x, info = after(HeatBath(), target, 2 * fields(target, 8_000), 60)
    within_five_sigma(observed(target, x), p @ observed(target, points))
    inside = (points.abs() < 0.5).double()[..., 0]
    within_five_sigma((x.abs() < 0.5).double()[..., 0], p @ inside)
    assert float(info.accept.min()) > 0.1


# ---------------------------------------------------------------------------- over-relaxation
@pytest.mark.parametrize(
    "target",
    [ON((3, 4), 2, 0.7), ON((5,), 5, 0.7, periodic=False), ON.soft((3, 3), 3, -1.0, 2.0)],
    ids=repr,
)
def test_reflections_keep_the_energy_and_the_lengths(target):
    x = fields(target, 50)
    x1, info = after(OverRelaxation(), target, x, 3)
    torch.testing.assert_close(target.log_prob(x1), target.log_prob(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x1.norm(dim=-1), x.norm(dim=-1), rtol=1e-12, atol=1e-12)
    assert (x1 - x).abs().amax((-1, -2)).min() > 0.01
    assert (info.accept == 1).all()
    assert (info.extra["nonfinite"] == 0).all()


def test_a_spin_without_a_field_turns_round():
    """h = 0 leaves no axis to reflect about: s → −s, which keeps the uniform density."""
    x = fields(ON((4,), 3, 1.0), 5)
    turned, _ = after(OverRelaxation(), Lonely(torch.zeros(4, 3)), x, 1)
    torch.testing.assert_close(turned, -x)


@pytest.mark.parametrize("n", [3, 4, 5])
@pytest.mark.parametrize("reflections", [1, 2, 5])
def test_metropolis_in_a_cycle_turns_in_every_plane(n, reflections):
    """Planes chosen by the bare counter would repeat with the cycle, and some never come."""
    target = ON((4, 4), n, 0.5)
    x = torch.zeros(8, 4, 4, n)
    x[..., -1] = 1.0
    kernel = Cycle(Metropolis(2.0), *[OverRelaxation()] * reflections)
    x, _ = after(kernel, target, x, 200)
    assert bool((x.abs().amax((0, 1, 2)) > 0.5).all())


@pytest.mark.parametrize("layout", ["chains", "sites"])
def test_records_of_large_fields_are_exact(layout, native):
    """Many equal terms: one float32 accumulator would be off by 1e-3 of them."""
    target = ON((192, 160), 1, 0.7)
    x = torch.ones(17, *target.event_shape)
    state = HeatBath().init(target, x, seed=1)
    end, info = fused.sweeps(target, state, ("heat_bath",), 4, 4, None, 4, in_lanes=layout)
    exact = target.record(end.double())
    torch.testing.assert_close(info.x[:, 0].double(), exact, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("kernel", [OverRelaxation(), Metropolis(3.0), HeatBath()])
def test_lengths_do_not_drift(kernel):
    target = ON((3, 3), 3, 0.7)
    x, _ = after(kernel, target, fields(target, 20, torch.float32), 3000)
    assert (x.double().norm(dim=-1) - 1).abs().max() < 3e-6


# ---------------------------------------------------------------------------- the two backends
LATTICES = [((6,), False), ((7,), True), ((3, 5), True), ((4, 6), False), ((3, 2, 4), True)]


def bit_targets(shape, periodic):
    yield from (ON(shape, n, 0.8, periodic) for n in (1, 2, 3, 5))
    yield from (SoftON(shape, n, -1.0, 1.5, periodic) for n in (1, 2, 3))
    yield Phi4(shape, 0.2, 0.3, periodic)


def bit_kernels(target):
    yield from (HeatBath(), Metropolis(0.9)) if target.n_components < 4 else (Metropolis(0.9),)
    if target.n_components > 1:
        yield Cycle(Metropolis(0.9), OverRelaxation(), OverRelaxation())


def assert_same(found, expected):
    (state, info), (other, report) = found, expected
    assert torch.equal(state.x, other.x), f"{(state.x != other.x).sum()} numbers differ"
    assert torch.equal(state.log_prob, other.log_prob)
    assert torch.equal(info.accept, report.accept)
    assert torch.equal(info.extra["nonfinite"], report.extra["nonfinite"])
    assert state.step == other.step
    if info.x is not None:
        assert torch.equal(info.x, report.x)
        assert torch.equal(info.log_prob, report.log_prob)


@pytest.mark.parametrize("rows", [3, 37])
@pytest.mark.parametrize(("shape", "periodic"), LATTICES)
def test_native_equals_torch(shape, periodic, rows, device, dtype, native):
    if not hasattr(native, "spins_sweeps"):
        pytest.skip("the native module has no sweeps")
    for target in bit_targets(shape, periodic):
        for kernel in bit_kernels(target):
            x = fields(target, rows, dtype, first_chain=2).to(device)
            state = replace(kernel.init(target, x, seed=2**50 + 7, first_chain=2), step=11)
            found = kernel.step(target, state, 6, thin=3)
            assert not torch.equal(found[0].x, x), "nothing moved"
            with pysamp.backend("torch"):
                assert_same(found, kernel.step(target, state, 6, thin=3))


def test_native_equals_torch_when_tempered_and_tilted(device, dtype, native):
    if not hasattr(native, "spins_sweeps"):
        pytest.skip("the native module has no sweeps")
    rows = 21
    beta = torch.linspace(0.1, 1.7, rows, device=device)
    for base in bit_targets((3, 5), periodic=True):
        centre = rng.normal((rows, *base.event_shape), seed=8, device=device)
        targets = [Tempered(base, beta)]
        if not isinstance(base, ON):
            targets += [
                Tilted(base, centre[0], 0.7),
                Tilted(Tempered(base, beta), centre, beta + 1),
            ]
        for target in targets:
            for kernel in bit_kernels(target):
                if isinstance(target, Tilted) and isinstance(kernel, Cycle):
                    continue
                x = fields(target, rows, dtype).to(device)
                state = kernel.init(target, x, seed=5)
                found = kernel.step(target, state, 5)
                with pysamp.backend("torch"):
                    assert_same(found, kernel.step(target, state, 5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_are_functions_of_seed_chain_and_counter(backend, dtype):
    with pysamp.backend(backend):
        for target in (ON((3, 4), 3, 0.7), ON((4, 3), 1, 0.4), SoftON((3, 3), 2, -1.0, 1.0)):
            kernel = Cycle(HeatBath(), Metropolis(0.9))
            x = fields(target, 9, dtype)
            whole = kernel.step(target, kernel.init(target, x, seed=4), 6)[0]
            single = kernel.init(target, x, seed=4)
            for _ in range(6):
                single, _ = kernel.step(target, single)
            assert torch.equal(whole.x, single.x)
            parts = []
            for first, rows in ((0, 4), (4, 5)):
                state = kernel.init(target, x[first : first + rows], seed=4, first_chain=first)
                parts.append(kernel.step(target, state, 6)[0].x)
            assert torch.equal(whole.x, torch.cat(parts))
            by_hand = x
            for t in range(6):  # kernel i of step t has the counter 2t + i
                for i, part in enumerate(kernel.kernels):
                    state = replace(part.init(target, by_hand, seed=4), step=2 * t + i)
                    by_hand = part.step(target, state)[0].x
            assert torch.equal(whole.x, by_hand)


# ---------------------------------------------------------------------------- measurements
@pytest.mark.parametrize("backend", BACKENDS)
def test_records_are_means_over_windows(backend):
    cases = [
        (ON((3, 4), 1, 0.4), HeatBath()),
        (ON((3, 4), 2, 0.7), Cycle(HeatBath(), OverRelaxation())),
        (SoftON((3, 3), 3, -1.0, 1.0), Metropolis(0.9)),
        (Phi4((3, 4), 0.2, 0.3), HeatBath()),
        (Phi4((3, 4), 0.2, 0.3), Metropolis(0.1, moves="all")),
        (Phi4((3, 4), 0.2, 0.3), Cycle(HMC(0.1, 2), HeatBath())),
    ]
    with pysamp.backend(backend):
        for target, kernel in cases:
            state = kernel.init(target, fields(target, 5), seed=6)
            new, info = kernel.measure(target, state, 12, thin=6, every=2)
            expected, kept = kernel.step(target, state, 12, thin=2)
            assert torch.equal(new.x, expected.x)
            assert new.step == 12
            torch.testing.assert_close(info.accept, kept.accept)
            record = torch.stack([target.record(kept.x[:, k]) for k in range(6)], 1)
            record = record.reshape(5, 2, 3, 9)
            mean = record.mean(2)
            mean[..., 1] = record[..., 0].var(2, correction=0)
            torch.testing.assert_close(info.x, mean, rtol=1e-9, atol=1e-9)
            assert torch.equal(info.log_prob, info.x[..., 0])
            plain, _ = kernel.measure(target, state, 12, thin=6)
            assert torch.equal(plain.x, new.x)


def test_measurements_that_do_not_fit():
    target = Phi4((3, 4), 0.2, 0.3)
    state = HeatBath().init(target, fields(target, 2), seed=0)
    with pytest.raises(ValueError, match="every must divide thin = 6, got every = 4"):
        HeatBath().measure(target, state, 12, thin=6, every=4)
    with pytest.raises(ValueError, match="thin must divide n = 12, got thin = 5"):
        OverRelaxation().measure(ON((3,), 2, 1.0), state, 12, thin=5)
    with pytest.raises(ValueError, match="measure needs a target with a record, got Tempered"):
        Metropolis(0.5).measure(Tempered(target, 0.5), state, 12, thin=6)


@pytest.mark.parametrize("n", [1, 2])
def test_moves_are_counted(n):
    counted, soft = Counted(ON((3, 4), n, 0.7)), Counted(SoftON((3, 4), 3, 1.0, 1.0))
    x, y = fields(counted, 5), fields(soft, 5)
    state, other = HeatBath().init(counted, x, seed=0), HeatBath().init(soft, y, seed=0)
    assert counted.counts.local_moves == soft.counts.local_moves == 0
    with pysamp.backend("torch"):
        HeatBath().step(counted, state, 4)
        assert counted.counts.local_moves == 4 * 5 * 12
        Metropolis(0.5).step(counted, state, 2)
        assert counted.counts.local_moves == 6 * 5 * 12
        HeatBath().step(soft, other, 2)
        Metropolis(0.5).step(soft, other, 1)
        assert soft.counts.local_moves == 3 * 5 * 36
        OverRelaxation().step(soft, other, 1)
        assert soft.counts.local_moves == 3 * 5 * 36 + 5 * 12


# ---------------------------------------------------------------------------- cycles
@pytest.mark.parametrize(
    "kernel",
    [
        Cycle(HMC(0.5, 3), HeatBath(), Wolff()),
        Cycle(SwendsenWang(), MALA(0.2), STEP),
        Cycle(Metropolis(0.6, moves="all"), Metropolis(0.9)),
    ],
    ids=["hmc", "mala", "metropolis"],
)
def test_cycles_of_other_kernels_keep_the_density(kernel):
    target, points, log_weight = FIELDS["phi4"]
    x, info = after(kernel, target, fields(target, 3_000), 30)
    within_five_sigma(observed(target, x), exact_means(target, points, log_weight))
    assert (info.accept > 0.2).all()
    assert (info.accept < 1).all()
    assert (info.extra["nonfinite"] == 0).all()
    clusters = isinstance(kernel.kernels[0], SwendsenWang) or isinstance(kernel.kernels[-1], Wolff)
    assert ("cluster_size" in info.extra) == clusters


def test_an_acceptance_is_that_of_what_can_be_refused():
    target = ON((4, 4), 3, 0.7)
    x = fields(target, 40)
    alone = after(Metropolis(0.9), target, x, 8)[1].accept.mean()
    with_others = after(Cycle(OverRelaxation(), Metropolis(0.9), HeatBath()), target, x, 8)[1]
    assert abs(float(with_others.accept.mean() - alone)) < 0.05
    mixed = after(Cycle(Wolff(), Metropolis(0.9), OverRelaxation()), target, x, 8)[1]
    assert abs(float(mixed.accept.mean() - alone)) < 0.05
    assert (after(Cycle(Wolff(), HeatBath()), target, x, 3)[1].accept == 1).all()


def test_a_cycle_has_the_scale_of_its_kernel():
    fixed = Cycle(HeatBath(), OverRelaxation())
    assert not isinstance(fixed, Tunable)
    loose = Cycle(Metropolis(), OverRelaxation(), Metropolis(), OverRelaxation())
    assert isinstance(loose, Tunable)
    assert loose.scale() is None
    found = loose.with_scale(0.7)
    assert [k.width for k in found.kernels if isinstance(k, Metropolis)] == [0.7, 0.7]
    rows = found.with_scale(torch.tensor([0.5, 0.6])).with_scale(torch.tensor([0.1, 0.2]))
    assert torch.equal(rows.scale(), torch.tensor([0.1, 0.2]))
    both = Cycle(HMC(0.1), Metropolis())
    assert both.with_scale(0.3).kernels[0].step_size == 0.1
    assert both.target_accept(PHI4) == 0.44
    nested = Cycle(Cycle(HeatBath(), OverRelaxation()), Metropolis(0.5))
    assert [type(k) for k in nested.kernels] == [HeatBath, OverRelaxation, Metropolis]


def test_warm_up_finds_the_width_of_a_cycle():
    target = ON((4, 4), 2, 4.0)
    for kernel in (Metropolis(), Cycle(Metropolis(), OverRelaxation(), Metropolis())):
        x, _ = after(HeatBath(), target, fields(target, 64, torch.float32), 50)
        tuned, _, report = warm_up(kernel, target, kernel.init(target, x, seed=1), 120)
        assert report["accept"] == pytest.approx(0.44, abs=0.06)
        assert 0.3 < tuned.scale() < 2


def test_cycles_are_written_down_and_read_back():
    kernel = Cycle(Metropolis(0.5), OverRelaxation(), Cycle(HeatBath(), Wolff()))
    found = rebuild(describe(kernel))
    assert describe(found) == describe(kernel)
    assert [type(k) for k in found.kernels] == [Metropolis, OverRelaxation, HeatBath, Wolff]
    loose = rebuild(describe(Cycle(Metropolis(), OverRelaxation(), Metropolis())))
    assert loose.scale() is None


def test_a_long_cycle_is_the_same_natively_and_in_torch():
    target = ON((3, 4), 2, 0.7)
    kernel = Cycle(HeatBath(), *[OverRelaxation()] * 19)
    state = kernel.init(target, fields(target, 3), seed=1)
    found, info = kernel.step(target, state, 2)
    with pysamp.backend("torch"):
        expected, report = kernel.step(target, state, 2)
    assert torch.equal(found.x, expected.x)
    assert torch.equal(info.accept, report.accept)


def test_parallel_tempering_takes_site_moves():
    """Hot rungs of an Ising model, against the enumeration at β = 1."""
    target = ON((3, 3), 1, 0.45)
    for kernel in (HeatBath(), Metropolis()):
        ladder = ParallelTempering(kernel, betas=(1.0, 0.6, 0.3))
        x, _ = after(ladder, target, torch.ones(6_000, 3, 3, 1), 30)
        assert_histogram(x, (3, 3), 0.45)


# ---------------------------------------------------------------------------- widths
def test_who_needs_a_width():
    xy, ising, field = ON((4,), 2, 1.0), ON((4,), 1, 1.0), Phi4((4,), 0.2, 0.1)
    assert not needs_scale(Metropolis(), ising)
    assert not needs_scale(Metropolis(), Counted(Tempered(ising, 0.5)))
    assert needs_scale(Metropolis(), xy)
    assert needs_scale(Metropolis(), field)
    assert not needs_scale(Metropolis(0.5), xy)
    assert not needs_scale(HeatBath(), xy)
    assert not needs_scale(Cycle(Metropolis(), Wolff()), ising)
    assert needs_scale(Cycle(Metropolis(), Wolff()), xy)
    assert needs_scale(MALA(), field)
    assert Metropolis().largest_scale(xy) == math.pi
    assert Metropolis().largest_scale(field) == math.inf
    assert Cycle(Metropolis(), Wolff()).largest_scale(ising) == 0
    after(Metropolis(), ising, fields(ising, 5), 3)
    with pytest.raises(ValueError, match="width must be given, or be adapted"):
        after(Metropolis(), xy, fields(xy, 5), 3)


def test_a_turn_is_at_most_a_half_turn():
    target = ON((4,), 2, 1.0)
    x = fields(target, 3, torch.float32)
    with pytest.raises(ValueError, match=r"width must be at most π, a half turn, .* got 3\.2"):
        Metropolis(3.2).init(target, x, seed=0)
    state = Metropolis(math.pi).init(target, x, seed=0)
    for width in (torch.tensor(math.pi), torch.tensor([0.5, math.pi, 1.0])):
        Metropolis(width).step(target, state, 2)
    with pytest.raises(ValueError, match="width must be at most π"):
        Metropolis(torch.tensor([0.5, 3.3, 1.0])).step(target, state)


def test_one_width_for_each_chain(dtype):
    """Chains of a narrow width are accepted more often than those of a wide one."""
    target = ON((4, 4), 3, 1.5)
    width = torch.tensor([0.2, 2.5], dtype=dtype).repeat_interleave(20)
    info = after(Metropolis(width), target, fields(target, 40, dtype), 30)[1]
    assert info.accept[:20].min() > info.accept[20:].max() + 0.2


# ---------------------------------------------------------------------------- refusals
def refused(kernel, target, text, x=None):
    x = fields(target, 2) if x is None else x
    with pytest.raises(ValueError, match=text):
        kernel.init(target, x, seed=0)
    state = State(x, target.log_prob(x), None, 0)
    with pytest.raises(ValueError, match=text):
        kernel.step(target, state)


def test_targets_without_the_move_are_refused():
    plain = FunctionTarget(lambda x: -x.square().sum(1), (4,))
    xy, ising, five = ON((4,), 2, 1.0), ON((4,), 1, 1.0), ON((4,), 5, 1.0)
    soft = SoftON((4,), 2, 1.0, 1.0)
    tilted = Tilted(soft, torch.zeros(4, 2), 1.0)
    refused(HeatBath(), plain, "HeatBath needs the sites of a lattice field .* got FunctionTarget")
    refused(OverRelaxation(), plain, "OverRelaxation needs the sites")
    refused(OverRelaxation(), ising, "OverRelaxation needs at least 2 components, got 1 of ON")
    refused(OverRelaxation(), PHI4, "OverRelaxation needs at least 2 components, got 1 of Phi4")
    refused(OverRelaxation(), tilted, "OverRelaxation needs the local field .* Tilted has not")
    refused(HeatBath(), five, "at most 3 components, got 5 of ON: take Metropolis")
    refused(HeatBath(), Tilted(xy, torch.zeros(4, 2), 1.0), "HeatBath needs the local field")
    refused(Metropolis(0.5), Tilted(xy, torch.zeros(4, 2), 1.0), "Metropolis needs the local field")
    refused(Cycle(HeatBath(), OverRelaxation()), tilted, "OverRelaxation needs the local field")
    refused(
        Metropolis(0.5, moves="site"), plain, "moves='site' needs a target with local_difference"
    )
    without = SimpleNamespace(site_colours=(torch.arange(4),), n_components=1, unit_length=False)
    without.log_prob, without.event_shape = plain.log_prob, (4,)
    refused(
        HeatBath(), without, r"HeatBath needs conditional densities \(quartic\)", torch.ones(2, 4)
    )


def test_conditional_densities_without_an_integral_are_refused():
    flat = Tempered(PHI4, 0.0)
    for target in (flat, Counted(flat), Tempered(PHI4, torch.tensor([0.5, 0.0]))):
        with pytest.raises(ValueError, match=r"B > 0, or with B = 0 and A > 0, got .*B = 0\.0"):
            HeatBath().init(target, fields(PHI4, 2), seed=0)
    HeatBath().init(Tilted(flat, torch.zeros(3), 4.0), fields(PHI4, 2), seed=0)


def test_starts_that_are_no_spins_are_refused():
    xy, ising = ON((3, 4), 2, 1.0), ON((3, 4), 1, 1.0)
    x = fields(xy, 3)
    x[1, 2, 0] *= 1.1
    for kernel in (HeatBath(), OverRelaxation(), Metropolis(0.5), Cycle(HeatBath(), Wolff())):
        with pytest.raises(
            ValueError, match=r"spins of length 1, got length 1.1 at site 8 of chain 11"
        ):
            kernel.init(xy, x, seed=0, first_chain=10)
    near = torch.ones(2, 3, 4, 1) * (1 - 1e-6)
    with pytest.raises(ValueError, match=r"spins of length 1, got length 0\.999999 at site 0"):
        HeatBath().init(ising, near, seed=0)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Cycle(), ValueError, "at least one kernel, got none"),
        (lambda: Cycle(HeatBath), TypeError, "kernels must be kernels, got <class"),
        (lambda: Cycle(HeatBath(), 3), TypeError, "kernels must be kernels, got 3"),
        (
            lambda: Cycle(HMC(), Metropolis()),
            ValueError,
            "one scale at most .* those of HMC and Metropolis",
        ),
        (
            lambda: Cycle(Metropolis(torch.ones(3)), Metropolis(torch.ones(3))),
            ValueError,
            "one scale at most",
        ),
        (
            lambda: Cycle(MALA(adapt=Multiplicative()), HeatBath()),
            ValueError,
            "kernels must not adapt by themselves",
        ),
    ],
)
def test_bad_cycles(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_a_cycle_cannot_tell_two_acceptances_apart():
    x = fields(PHI4, 3)
    with pytest.raises(ValueError, match=r"Metropolis must be given its scale, as HeatBath"):
        Cycle(Metropolis(), HeatBath()).init(PHI4, x, seed=0)
    with pytest.raises(TypeError, match=r"nothing in State\.aux, got ParallelTempering"):
        Cycle(ParallelTempering(Metropolis(0.5)), HeatBath()).init(PHI4, x, seed=0)
    three = ON((4,), 3, 1.0)  # here the heat bath refuses nothing
    Cycle(Metropolis(), HeatBath()).init(three, fields(three, 3), seed=0)
