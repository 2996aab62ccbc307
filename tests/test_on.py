"""O(n) models: closed forms, symmetries, what is measured, the limit of many components, refusals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor

import pysamp
from pysamp.check import check_target
from pysamp.mcmc import HMC, MALA, ULA, Metropolis, ParallelTempering
from pysamp.target import (
    Counted,
    HasBonds,
    HasLocalField,
    HasQuartic,
    HasRecord,
    HasSites,
    Tempered,
    Tilted,
    log_prob_and_score,
)
from pysamp.targets import ON, LargeN, Phi4, Phi4Chain, SoftON

SHAPES = [((7,), True), ((2,), True), ((3, 4), False), ((2, 5), True), ((3, 2, 4), True)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def spins(rows: int, *event: int, seed: int = 0) -> Tensor:
    x = noise(rows, *event, seed=seed)
    return x / x.norm(dim=-1, keepdim=True)


def rotation(n: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(noise(n, n, seed=seed))[0]


def bonds(shape: tuple[int, ...], periodic: bool) -> list[tuple[tuple[int, ...], ...]]:
    """Every bond once, as (site, site) or (site,) where it leads outside; plain index arithmetic."""
    found = []
    for site in itertools.product(*(range(length) for length in shape)):
        for axis, length in enumerate(shape):
            ahead = list(site)
            ahead[axis] += 1
            if ahead[axis] < length:
                found.append((site, tuple(ahead)))
            elif periodic:
                ahead[axis] = 0
                found.append((site, tuple(ahead)))
            else:
                first = list(site)
                first[axis] = 0
                found += [(site,), (tuple(first),)]
    return found


def plain_spins(x: Tensor, shape: tuple[int, ...], beta: float, periodic: bool) -> float:
    pairs = [bond for bond in bonds(shape, periodic) if len(bond) == 2]
    return beta * sum(float(x[a] @ x[b]) for a, b in pairs)


def plain_soft(x: Tensor, t: SoftON) -> float:
    h = 0.0
    for bond in bonds(t.shape, t.periodic):
        gap = x[bond[0]] - x[bond[1]] if len(bond) == 2 else x[bond[0]]
        h += 0.5 * float(gap @ gap)
    q = x.square().sum(-1)
    return -(h + float((0.5 * t.r * q + t.u / (4 * t.n) * q * q).sum()))


# ---------------------------------------------------------------------------- densities
@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize(("shape", "periodic"), SHAPES)
def test_spins_equal_a_plain_loop_and_have_the_symmetry_of_the_model(shape, periodic, n):
    target = ON(shape, n, 0.7, periodic)
    x = spins(4, *target.event_shape)
    value = target.log_prob(x)
    expected = [plain_spins(row, shape, 0.7, periodic) for row in x]
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(target.log_prob(x @ rotation(n)), value)
    if periodic:
        torch.testing.assert_close(target.log_prob(x.roll(1, 1)), value)
    aligned = torch.zeros(1, *target.event_shape, dtype=torch.float64)
    aligned[..., -1] = 1
    n_bonds = sum(len(bond) == 2 for bond in bonds(shape, periodic))
    assert float(target.log_prob(aligned)) == pytest.approx(0.7 * n_bonds)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(("shape", "periodic"), SHAPES)
def test_soft_fields_equal_a_plain_loop_and_have_the_symmetry_of_the_model(shape, periodic, n):
    target = ON.soft(shape, n, -0.8, 1.5, periodic)
    x = noise(4, *target.event_shape)
    value = target.log_prob(x)
    expected = [plain_soft(row, target) for row in x]
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(target.log_prob(x @ rotation(n)), value)
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(target.log_prob(leaf).sum(), leaf)
    torch.testing.assert_close(target.score(x), gradient)
    with pysamp.backend("torch"):
        assert torch.equal(target.log_prob(x), value)
        assert torch.equal(target.score(x), log_prob_and_score(target, x)[1])


def test_the_soft_model_of_one_component_is_lattice_phi4():
    """φ = √(2κ) χ, λ = u κ², (2d + r) κ = 1 − 2λ; the densities differ by the constant λ V."""
    kappa, lam, d = 0.25, 0.1, 2
    soft = ON.soft((3, 4), 1, (1 - 2 * lam) / kappa - 2 * d, lam / kappa**2)
    phi4 = Phi4((3, 4), kappa, lam)
    chi = noise(5, 3, 4)
    value = soft.log_prob(math.sqrt(2 * kappa) * chi[..., None])
    torch.testing.assert_close(value, phi4.log_prob(chi) + lam * 12)


@pytest.mark.parametrize(
    "target",
    [
        ON((4, 4), 1, 0.4),
        ON((3, 5), 2, -0.7),
        ON((3, 2, 4), 3, 0.7, periodic=False),
        ON((7,), 4, 0.6),
        ON.soft((3, 2, 2), 3, -1.0, 1.0),
        ON.soft((5,), 2, 0.5, 0.0),
        ON.large_n((4, 6), -2.0, 1.0),
        Tempered(ON((4, 3), 3, 0.6), 0.5),
        Tilted(ON.soft((4, 3), 2, -1.0, 1.0), noise(4, 3, 2), 0.7),
        Counted(ON((4, 3), 2, 0.5)),
    ],
    ids=repr,
)
def test_contract_holds(target):
    check_target(target)


# ---------------------------------------------------------------------------- sites
def with_site(x: Tensor, site: int, new: Tensor, n: int) -> Tensor:
    moved = x.reshape(len(x), -1, n).clone()
    moved[:, site] = new
    return moved.reshape(x.shape)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("make", [ON, SoftON], ids=["spins", "soft"])
def test_local_field_is_what_turns_feel(make, n):
    """log p(s_x → s') − log p = h·(s' − s) for |s'| = |s|, also tempered by a β for each chain."""
    base = make((4, 3), n, 0.7) if make is ON else make((4, 3), n, -0.5, 1.3)
    x = spins(3, *base.event_shape) * (1 if make is ON else 1.7)
    turned = spins(3, n, seed=5) * (1 if make is ON else 1.7)
    for target in (base, Tempered(base, torch.tensor([0.0, 0.4, 2.0])), Counted(base)):
        assert isinstance(target, HasLocalField)
        for site in (0, 5, 11):
            h = target.local_field(x, torch.tensor([site]))[:, 0]
            change = target.log_prob(with_site(x, site, turned, n)) - target.log_prob(x)
            expected = (h * (turned - x.reshape(3, -1, n)[:, site])).sum(1)
            torch.testing.assert_close(change, expected)
    assert not isinstance(Tilted(base, torch.zeros(base.event_shape), 1.0), HasLocalField)


FIELDS = {
    "phi4": Phi4((4, 3), 0.2, 0.4),
    "chain": Phi4Chain(6, h=0.3),
    "soft": ON.soft((3, 3), 3, -0.5, 1.3, periodic=False),
    "large n": ON.large_n((4, 3), -1.0, 2.0),
}


@pytest.mark.parametrize("name", FIELDS)
def test_conditional_densities_are_quartic(name):
    """log p changes by −A Δv² − B Δv⁴ + b Δv, also tempered and tilted with numbers for each chain."""
    base = FIELDS[name]
    m = base.n_components
    rows = torch.tensor([0.0, 0.4, 2.0], dtype=torch.float64)
    centre = noise(3, *base.event_shape, seed=8)
    x, new = noise(3, *base.event_shape), noise(3, seed=4)
    for target in (
        base,
        Tempered(base, rows),
        Tilted(base, centre[0], 0.9),
        Tilted(Tempered(base, rows), centre, rows),
        Counted(Tilted(base, centre, rows)),
    ):
        assert isinstance(target, HasQuartic)
        assert isinstance(target, HasSites)
        for site, a in ((0, 0), (4, m - 1)):
            square, fourth, linear = torch.broadcast_tensors(
                *target.quartic(x, torch.tensor([site]), a), torch.zeros(3, 1)
            )[:3]
            flat = x.reshape(3, -1).clone()
            old = flat[:, site * m + a].clone()
            flat[:, site * m + a] = new
            change = target.log_prob(flat.reshape(x.shape)) - target.log_prob(x)
            expected = (
                -square[:, 0] * (new**2 - old**2)
                - fourth[:, 0] * (new**4 - old**4)
                + linear[:, 0] * (new - old)
            )
            torch.testing.assert_close(change, expected)


@pytest.mark.parametrize(("shape", "periodic"), SHAPES)
def test_colours_hold_every_site_once_and_no_neighbours(shape, periodic):
    target = ON.soft(shape, 3, 1.0, 1.0, periodic)
    _, table = target.couplings
    n_sites = math.prod(shape)
    assert torch.equal(torch.cat(target.site_colours).sort().values, torch.arange(n_sites))
    assert torch.equal(torch.cat(target.colours).sort().values, torch.arange(3 * n_sites))
    for colour in target.site_colours:
        inside = torch.zeros(n_sites + 1, dtype=torch.bool)
        inside[colour] = True
        assert not inside[table[colour]].any()


def test_couplings():
    """Where a reflection changes the density only through J φ_x·φ_y, and nowhere else."""
    for target in (ON((3, 4), 2, 0.7), ON.soft((3, 4), 2, 1.0, 1.0), Phi4((3, 4), 0.2, 0.1)):
        j, table = target.couplings
        assert table.shape == (12, 4)
        x = noise(2, *target.event_shape)
        phi = torch.nn.functional.pad(x.reshape(2, 12, -1), (0, 0, 0, 1))
        sign = torch.where(torch.arange(12) < 5, -1.0, 1.0)  # reflect five sites
        turned = phi * torch.cat((sign, torch.ones(1)))[:, None]

        def coupled(phi, j=j, table=table):
            return 0.5 * j * (phi[:, :12, None] * phi[:, table]).sum((1, 2, 3))

        change = target.log_prob(turned[:, :12].reshape(x.shape)) - target.log_prob(x)
        torch.testing.assert_close(change, coupled(turned) - coupled(phi))
        assert Tempered(target, 0.3).couplings == target.couplings
        assert not isinstance(Tilted(target, x[0], 1.0), HasBonds)
    assert isinstance(Phi4Chain(5), HasBonds)
    assert not isinstance(Phi4Chain(5, h=0.1), HasBonds)
    assert not isinstance(Counted(Phi4Chain(5, h=0.1)), HasBonds)


# ---------------------------------------------------------------------------- what is measured
MEASURED = [
    ON((4, 6), 1, 0.4),
    ON((3, 5), 2, 0.7),
    ON((3, 2, 4), 2, 0.7, periodic=False),
    ON.soft((4, 3), 3, -1.0, 1.0),
    Phi4((6,), 0.2, 0.1),
    Phi4Chain(7),
    LargeN((4, 4), 0.5, 1.0),
]


@pytest.mark.parametrize("target", MEASURED, ids=repr)
def test_records_equal_plain_sums(target):
    lattice = target.event_shape if target.n_components == 1 else target.event_shape[:-1]
    shape = lattice[:-1] if isinstance(target, ON) and target.n == 1 else lattice
    m, d, v = target.n_components, len(shape), math.prod(shape)
    x = noise(4, *target.event_shape)
    if isinstance(target, ON):
        x = spins(4, *target.event_shape)
    field = x.reshape(4, *shape, m).numpy()
    record = target.record(x)
    assert record.shape == (4, 9)
    assert record.dtype == x.dtype
    mean = field.reshape(4, v, m).mean(1)
    wave = np.fft.fftn(field, axes=tuple(range(1, d + 1)))
    structure, current = np.zeros(4), np.zeros(4)
    for axis in range(d):
        k = tuple(int(a == axis) for a in range(d))
        structure += (np.abs(wave[(slice(None), *k)]) ** 2).sum(-1) / (d * v * v)
        if m > 1:
            ahead = np.roll(field, -1, 1 + axis)
            if not getattr(target, "periodic", True):
                last = [slice(None)] * ahead.ndim
                last[1 + axis] = slice(-1, None)
                ahead[tuple(last)] = 0
            twist = field[..., 0] * ahead[..., 1] - field[..., 1] * ahead[..., 0]
            current += twist.reshape(4, v).sum(1) ** 2 / (d * v)
    size = np.sqrt((mean**2).sum(1))
    expected = [
        target.log_prob(x).numpy(), np.zeros(4), mean[:, 0], size, size**2, size**4,
        (field**2).sum(-1).reshape(4, v).mean(1), structure, current,
    ]  # fmt: skip
    np.testing.assert_allclose(record.numpy().T, np.stack(expected), rtol=1e-12, atol=1e-12)
    names = target.from_record(record)
    assert all(value.shape == (4,) for value in names.values())
    assert ("magnetisation" in names) == (m == 1)
    assert ("phi²" in names) == (not isinstance(target, ON))
    assert ("current²" in names) == (isinstance(target, ON) and target.n == 2)
    unit = target.beta * v if isinstance(target, ON) else v
    torch.testing.assert_close(names["energy"], -target.log_prob(x) / unit)
    observed = target.observables(x)
    assert set(names) - set(observed) == {"energy_within"}
    assert all(torch.equal(names[name], observed[name]) for name in names if name in observed)
    window = record[None].repeat(2, 1, 1)
    window[..., 1] = 3.0
    torch.testing.assert_close(
        target.from_record(window)["energy_within"], torch.full((2, 4), 3.0 / unit**2).double()
    )
    assert isinstance(Counted(target), HasRecord)


def test_current_is_the_sum_of_sines():
    target = ON((3, 4), 2, 1.0)
    angle = 3 * noise(5, 3, 4)
    x = torch.stack((angle.cos(), angle.sin()), -1)
    sines = [(angle.roll(-1, axis) - angle).sin().sum((1, 2)) ** 2 for axis in (1, 2)]
    torch.testing.assert_close(target.observables(x)["current²"], sum(sines) / (2 * 12))


def ising_states(n_sites: int) -> Tensor:
    bits = (torch.arange(2**n_sites)[:, None] >> torch.arange(n_sites)) & 1
    return 2.0 * bits.double() - 1


def exact_means(target: ON, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    values = target.from_record(target.record(x))
    values["energy²"] = values["energy"] ** 2 + values["energy_within"]
    return {name: (weight * value).sum() for name, value in values.items()}


def test_response_functions_are_derivatives_of_the_free_energy():
    """Exact sums over 3×3 Ising spins; derivatives by finite differences of log Z."""
    states, v, beta = ising_states(9).reshape(-1, 3, 3, 1), 9, 0.5

    def log_z(beta: float, h: float = 0.0) -> float:
        weight = ON((3, 3), 1, beta).log_prob(states) + h * states.sum((1, 2, 3))
        return float(torch.logsumexp(weight, 0))

    target = ON((3, 3), 1, beta)
    p = torch.softmax(target.log_prob(states), 0)
    mean = exact_means(target, states, p)
    found = target.derived(mean)
    step = 1e-4
    slope = (log_z(beta + step) - log_z(beta - step)) / (2 * step)
    curve = (log_z(beta + step) - 2 * log_z(beta) + log_z(beta - step)) / step**2
    assert float(mean["energy"]) == pytest.approx(-slope / v, rel=1e-7)
    assert float(found["specific heat"]) == pytest.approx(beta**2 * curve / v, rel=1e-4)
    field = (log_z(beta, step) - 2 * log_z(beta) + log_z(beta, -step)) / step**2  # V² ⟨m²⟩
    expected = beta * v * (field / v**2 - float(mean["|magnetisation|"]) ** 2)
    assert float(found["susceptibility"]) == pytest.approx(expected, rel=1e-4)
    m = states.sum((1, 2, 3)) / v
    binder = 1 - float((p * m**4).sum() / (3 * (p * m**2).sum() ** 2))
    assert float(found["Binder"]) == pytest.approx(binder)
    wave = torch.exp(2j * math.pi * torch.arange(3) / 3)
    f = (states[..., 0] * wave[:, None]).sum((1, 2)).abs().square() / v**2  # equal along both axes
    length = math.sqrt(float((p * m**2).sum() / (p * f).sum()) - 1) / (2 * math.sin(math.pi / 3))
    assert float(found["correlation length"]) == pytest.approx(length)
    assert "correlation length" not in ON((3, 4), 1, beta).derived(mean)
    assert "correlation length" not in ON((3, 3), 1, beta, periodic=False).derived(mean)
    assert "helicity" not in found


def test_helicity_is_the_stiffness_against_a_twist():
    """A ring of 3: Z(φ) = Σ_m I_m(β)³ e^{3imφ} with a twist φ on every bond, so Υ = 3⟨m²⟩/β."""
    beta, k = 1.3, 64
    angle = torch.arange(k, dtype=torch.float64) * (2 * math.pi / k)
    a, b = (grid.reshape(-1) for grid in torch.meshgrid(angle, angle, indexing="ij"))
    theta = torch.stack((torch.zeros_like(a), a, b), 1)
    x = torch.stack((theta.cos(), theta.sin()), -1)
    target = ON((3,), 2, beta)
    mean = exact_means(target, x, torch.softmax(target.log_prob(x), 0))
    m = np.arange(-30, 31)
    weight = special.iv(np.abs(m), beta) ** 3
    expected = 3 * (m**2 * weight).sum() / weight.sum() / beta
    assert float(target.derived(mean)["helicity"]) == pytest.approx(expected, rel=1e-12)


def test_response_functions_of_fields_have_no_beta():
    target = ON.soft((4, 4), 2, -1.0, 1.0)
    x = noise(500, 4, 4, 2)
    values = target.observables(x)
    mean = {name: value.mean() for name, value in values.items()}
    mean["energy²"] = values["energy"].square().mean()
    found = target.derived(mean)
    var = values["energy"].var(correction=0)
    torch.testing.assert_close(found["specific heat"], 16 * var)
    spread = mean["magnetisation²"] - mean["|magnetisation|"] ** 2
    torch.testing.assert_close(found["susceptibility"], 16 * spread)


# ---------------------------------------------------------------------------- many components
@pytest.mark.parametrize(
    ("shape", "r", "u"), [((16, 16), -5.0, 1.0), ((6,), 0.3, 4.0), ((4, 3, 5), -1.0, 2.0)]
)
def test_the_mass_solves_the_gap_equation(shape, r, u):
    target = ON.large_n(shape, r, u)
    total = 0.0
    for q in itertools.product(*(range(length) for length in shape)):
        k2 = sum(
            4 * math.sin(math.pi * a / length) ** 2 for a, length in zip(q, shape, strict=True)
        )
        total += 1 / (k2 + target.mass_squared)
    assert target.mass_squared > 0
    assert r + u * total / math.prod(shape) == pytest.approx(target.mass_squared, rel=1e-9)


def test_without_coupling_the_mass_is_r():
    assert ON.large_n((4, 4), 0.7, 0.0).mass_squared == pytest.approx(0.7, rel=1e-15)


def test_large_n_is_a_normalised_gaussian():
    target = LargeN((3, 4), -0.5, 1.0)
    size = 12
    hessian = torch.autograd.functional.hessian(
        lambda y: target.log_prob(y.reshape(1, 3, 4)).sum(), torch.zeros(size).double()
    )
    log_z = 0.5 * size * math.log(2 * math.pi) - 0.5 * float(torch.logdet(-hessian))
    assert target.log_z == pytest.approx(log_z, rel=1e-12)
    eigenvalues = torch.linalg.eigvalsh(-hessian)
    torch.testing.assert_close(eigenvalues, (1 / target.propagator).flatten().sort().values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_n_draws_have_the_exact_spectrum(dtype):
    target = LargeN((4, 3, 5), -1.0, 2.0)
    n = 20_000
    x = target.sample(n, seed=3, dtype=dtype)
    assert x.dtype == dtype
    wave = torch.fft.fftn(x.double(), dim=(1, 2, 3))
    power = wave.abs().square() / 60
    error = power.std(0) / math.sqrt(n)
    assert bool(((power.mean(0) - target.propagator).abs() < 5 * error).all())
    mean = x.double().mean(0)
    assert bool((mean.abs() < 5 * x.double().std(0) / math.sqrt(n)).all())
    parts = [target.sample(25, seed=5), target.sample(15, seed=5, first_chain=25)]
    torch.testing.assert_close(target.sample(40, seed=5), torch.cat(parts), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------- starts
def test_starts_are_random_spins():
    for n in (1, 2, 3, 5):
        target = ON((4, 5), n, 0.5)
        x = target.start(2000, seed=1, dtype=torch.float64)
        assert x.shape == (2000, 4, 5, n)
        length = x.norm(dim=-1)
        assert (length - 1).abs().max() < (1e-300 if n == 1 else 1e-14)
        flat = x.reshape(-1, n)
        assert (flat.mean(0).abs() < 5 / math.sqrt(n * len(flat))).all()
        if n > 1:
            second = flat.square()
            error = second.std(0) / math.sqrt(len(flat))
            assert ((second.mean(0) - 1 / n).abs() < 5 * error).all()
        halves = [target.start(700, seed=1, dtype=torch.float64)]
        halves.append(target.start(1300, seed=1, first_chain=700, dtype=torch.float64))
        assert torch.equal(x, torch.cat(halves))
        assert not torch.equal(x, target.start(2000, seed=2, dtype=torch.float64))
    assert target.start(3, seed=1).dtype == torch.float32


# ---------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ON((4, 1), 2, 0.5), "shape must be 1 to 3 extents of at least 2"),
        (lambda: ON((2, 2, 2, 2), 2, 0.5), "shape must be 1 to 3 extents"),
        (lambda: ON((4,), 0, 0.5), "n must be from 1 to 8 components, got 0"),
        (lambda: ON((4,), 9, 0.5), "n must be from 1 to 8 components, got 9"),
        (lambda: ON((4,), True, 0.5), "n must be from 1 to 8"),
        (lambda: ON((4,), 2, math.inf), "beta must be finite, got inf"),
        (lambda: ON((4,), 2, 0.0), "beta must not be 0"),
        (lambda: ON.soft((4,), 2, math.nan, 1.0), "r must be finite"),
        (lambda: ON.soft((4,), 2, 1.0, -1.0), "u must not be negative, got -1.0"),
        (lambda: ON.soft((4,), 2, 0.0, 0.0), "r must exceed -?0.0 where u = 0, got 0.0"),
        (lambda: ON.soft((4,), 2, -0.5, 0.0, periodic=False), "r must exceed -0.38"),
        (lambda: ON.large_n((4,), 0.0, 0.0), "r must be positive where u = 0, got 0.0"),
        (lambda: ON.large_n((4,), 1.0, -2.0), "u must not be negative, got -2.0"),
        (lambda: ON((4,), 2, 0.5).log_prob(torch.zeros(3, 4)), r"x must have shape \(n, 4, 2\)"),
    ],
)
def test_bad_arguments(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize(
    "kernel",
    [MALA(0.1), ULA(0.1), HMC(0.1), Metropolis(0.1, moves="all"), ParallelTempering(MALA(0.1))],
    ids=lambda kernel: type(kernel).__name__,
)
def test_kernels_that_would_leave_the_spheres_are_refused(kernel):
    base = ON((3, 4), 2, 0.5)
    for target in (
        base,
        Counted(base),
        Tempered(base, 0.5),
        Tilted(base, torch.zeros(3, 4, 2), 1.0),
    ):
        with pytest.raises(ValueError, match=r"spins of length 1 off their spheres.*HeatBath"):
            kernel.init(target, base.start(2, seed=0), seed=0)


def test_a_free_phi4_field_without_an_integral_is_refused():
    for shape, periodic, kappa in [((4, 4), True, 0.25), ((4, 4), True, -0.25), ((5,), True, 0.5)]:
        with pytest.raises(ValueError, match="kappa must lie below"):
            Phi4(shape, kappa, 0.0, periodic)
    Phi4((5,), -0.55, 0.0)  # a ring of odd length is frustrated
    Phi4((4, 4), 0.3, 0.0, periodic=False)
    with pytest.raises(ValueError, match="kappa must lie below"):
        Phi4((4, 4), 0.31, 0.0, periodic=False)


def test_the_susceptibility_of_an_antiferromagnet_is_positive():
    mean = {"magnetisation²": 0.02, "|magnetisation|": 0.1, "magnetisation⁴": 0.001, "energy": 1.0,
            "energy²": 1.1, "structure": 0.01}  # fmt: skip
    found = ON((4, 4), 1, -0.5).derived({k: torch.tensor(v) for k, v in mean.items()})
    assert float(found["susceptibility"]) == pytest.approx(0.5 * 16 * 0.01)
