"""What is looked at in lattice fields: correlations, cumulants, stiffness, vortices, finite-size scaling.

Fields are x (…, *shape), or (…, *shape, n) with n components a site, on a periodic lattice; functions of
them keep the leading axes, one result for each configuration, in float64. With V sites,

    structure factor   S(k) = (1/V) Σ_c |Σ_x φ_c(x) e^{−ikx}|²,     k_μ = 2π q_μ/L_μ,
    two-point function G(r) = (1/V) Σ_x φ(x)·φ(x + r),              the Fourier transform of S/V,
    length             ξ = √(S(0)/S(k_min) − 1) / (2 sin(π/L)),     Cooper, Freedman, Preston (1982),
    cumulant           U = 1 − ⟨m⁴⟩/(3⟨m²⟩²),                       Binder, Z. Phys. B 43, 119 (1981),
    helicity modulus   Υ = (1/dV) Σ_μ [⟨Σ_x cos Δ_μ⟩ − β⟨(Σ_x sin Δ_μ)²⟩],

Δ_μ(x) being the angle between the XY spins at x and x+μ (Fisher, Barber, Jasnow, Phys. Rev. A 8, 1111
(1973)). Vortices: Kosterlitz and Thouless, J. Phys. C 6, 1181 (1973). Crossings of U at two sizes: Binder
(1981). Data collapse: with Houdayer and Hartmann's quality, Phys. Rev. B 70, 014418 (2004), App. B.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pysamp import rng

MAX_LOST = 0.05  # of the resamples may lack a crossing before the error of it means nothing


# ---- correlations --------------------------------------------------------------------------------


def structure_factor(x: Tensor, shape: Sequence[int], n: int | None = None) -> Tensor:
    """S(k) at all momenta: (…, *shape) [, n] -> (…, *shape), k = 0 first, in the order of torch.fft.

    Raises ValueError for another shape. Cost: one FFT per component.
    """
    phi, shape = _grid(x, shape, n)  # (…, n, *shape)
    wave = torch.fft.fftn(phi, dim=tuple(range(-len(shape), 0)))
    return (wave.real.square() + wave.imag.square()).sum(-1 - len(shape)) / math.prod(shape)


def two_point(
    x: Tensor,
    shape: Sequence[int],
    n: int | None = None,
    *,
    axis: int | None = None,
    connected: bool = False,
) -> Tensor:
    """G(r) averaged over the place of x: (…, *shape), or (…, L_axis) for displacements along one axis.

    connected: less the square of the mean field, taken over all configurations given and all sites. That
    number fluctuates too: for errors put G and the mean field through `errors.jackknife`.
    """
    phi, shape = _grid(x, shape, n)
    d = len(shape)
    wave = torch.fft.fftn(phi, dim=tuple(range(-d, 0)))
    power = (wave.real.square() + wave.imag.square()).sum(-1 - d)
    found = torch.fft.ifftn(power, dim=tuple(range(-d, 0))).real / math.prod(shape)
    if connected:
        mean = phi.movedim(-1 - d, 0).flatten(1).mean(1)  # (n,)
        found = found - mean.square().sum()
    if axis is None:
        return found
    index: list[int | slice] = [0] * d
    index[_axis(axis, d)] = slice(None)
    return found[(..., *index)]


def second_moment_length(
    structure: Tensor, shape: Sequence[int], axis: int | None = None
) -> Tensor:
    """ξ from the mean structure factor (…, *shape) -> (…): along one axis, or from the mean of the axes.

    NaN where S(0) < S(k_min), as happens by chance in a short run without order. Raises ValueError for
    no axis on a lattice of unequal extents, whose smallest momenta differ.
    """
    shape = tuple(shape)
    d = len(shape)
    if tuple(structure.shape[structure.ndim - d :]) != shape:
        raise ValueError(f"structure must be (…, *{shape}), got {tuple(structure.shape)}")
    if axis is None and len(set(shape)) > 1:
        raise ValueError(f"axis must be given for the unequal extents {shape}")
    axes = list(range(d)) if axis is None else [_axis(axis, d)]
    flat = structure.double().flatten(structure.ndim - d)
    strides = [math.prod(shape[a + 1 :]) for a in range(d)]  # the place of q = 1 along each axis
    smallest = torch.stack([flat[..., strides[a]] for a in axes]).mean(0)
    return (flat[..., 0] / smallest - 1).sqrt() / (2 * math.sin(math.pi / shape[axes[0]]))


def binder(m2: Tensor, m4: Tensor) -> Tensor:
    """U from the means ⟨m²⟩ and ⟨m⁴⟩: 2/3 in perfect order, 0 for a Gaussian m of one component."""
    return 1 - m4 / (3 * m2 * m2)


# ---- XY spins ------------------------------------------------------------------------------------


def helicity(x: Tensor, shape: Sequence[int], beta: float, n: int | None = None) -> Tensor:
    """Υ of XY spins, in units of J, one contribution for each configuration (…): their mean is Υ.

    x: angles (…, *shape), or with n=2 vectors of length 1. Raises ValueError for another n.
    """
    steps, shape = _steps(x, shape, n)  # (…, d, *shape)
    d, v = len(shape), math.prod(shape)
    flat = steps.flatten(-d)
    return (flat.cos().sum(-1) - beta * flat.sin().sum(-1).square()).mean(-1) / v


def vortices(x: Tensor, shape: Sequence[int], n: int | None = None) -> Tensor:
    """Charges −1, 0, 1 of the plaquettes (int64): the turns of the spin on the way around each.

    x: angles (…, *shape), or with n=2 vectors of length 1, in two or three dimensions. The result is
    (…, plaquettes), by planes (0,1), (0,2), (1,2), in each by the site x from which the way goes to
    x+μ, x+μ+ν, x+ν and back: `reshape(…, planes, *shape)` puts it on the lattice. The charges of a
    plane of the torus add up to 0. A step of exactly π counts as +π.
    """
    steps, shape = _steps(x, shape, n)
    d = len(shape)
    if d < 2:
        raise ValueError(f"shape must have 2 or 3 extents for plaquettes, got {shape}")
    along = [steps.select(-1 - d, mu) for mu in range(d)]
    planes = [
        along[mu] + _ahead(along[nu], mu, d) - _ahead(along[mu], nu, d) - along[nu]
        for mu in range(d)
        for nu in range(mu + 1, d)
    ]
    turns = torch.stack(planes, -1 - d) / (2 * math.pi)
    return turns.round().long().flatten(-1 - d)


def vortex_density(x: Tensor, shape: Sequence[int], n: int | None = None) -> Tensor:
    """Vortices of either sign per plaquette: (…)."""
    return vortices(x, shape, n).abs().double().mean(-1)


def _steps(x: Tensor, shape: Sequence[int], n: int | None) -> tuple[Tensor, tuple[int, ...]]:
    """Angles from each spin to the next one along each axis, in (−π, π]: (…, d, *shape)."""
    if n not in (None, 2):
        raise ValueError(f"n must be None for angles or 2 for vectors, got {n}")
    phi, shape = _grid(x, shape, n)
    d = len(shape)
    parts = []
    for mu in range(d):
        here, there = phi, _ahead(phi, mu, d)
        if n is None:
            step = (there - here).squeeze(-1 - d)
            step = step - 2 * math.pi * (step / (2 * math.pi)).round()
        else:
            (a0, a1), (b0, b1) = here.unbind(-1 - d), there.unbind(-1 - d)
            step = torch.atan2(a0 * b1 - a1 * b0, a0 * b0 + a1 * b1)
        parts.append(torch.where(step <= -math.pi, step + 2 * math.pi, step))
    return torch.stack(parts, -1 - d), shape


def _ahead(x: Tensor, axis: int, d: int) -> Tensor:
    """The value at x + μ, on a torus."""
    return x.roll(-1, axis - d)


def _axis(axis: int, d: int) -> int:
    if not -d <= axis < d:
        raise ValueError(f"axis must lie in 0…{d - 1}, got {axis}")
    return axis % d


def _grid(x: Tensor, shape: Sequence[int], n: int | None) -> tuple[Tensor, tuple[int, ...]]:
    """Components in front of the lattice: (…, n, *shape) float64."""
    shape = tuple(shape)
    d = len(shape)
    event = shape if n is None else (*shape, n)
    if not 1 <= d <= 3 or x.ndim < len(event) or tuple(x.shape[x.ndim - len(event) :]) != event:
        wanted = ", ".join(map(str, event))
        raise ValueError(f"x must have shape (…, {wanted}) of 1 to 3 extents, got {tuple(x.shape)}")
    x = x.detach().double()
    return (x.unsqueeze(-1 - d) if n is None else x.movedim(-1, -1 - d)), shape


# ---- finite-size scaling -------------------------------------------------------------------------


@dataclass(frozen=True)
class Crossing:
    """Where two curves cross: x and their value y there, with standard errors.

    `chi2_per_dof` is that of the fits to their difference, about 1 where the polynomial fits; `lost` the
    fraction of the resamples without a crossing. The errors are NaN if that is more than 5 %.
    """

    x: float
    y: float
    x_error: float
    y_error: float
    chi2_per_dof: float
    lost: float


def crossing(
    x: Tensor,
    curve_a: Tensor,
    curve_b: Tensor,
    errors: tuple[Tensor, Tensor],
    *,
    degree: int = 2,
    n_resamples: int = 500,
    seed: int = 0,
) -> Crossing:
    """Where two measured curves cross, such as the cumulant at two sizes as functions of the temperature.

    Both curves are fitted by polynomials of the degree in x, weighted by their errors, and the root of
    the difference inside the range of x is taken, the one nearest to where the data themselves change
    sign. Errors: the same with the values drawn again, each with its own error (parametric bootstrap).

    Shapes: x, curve_a, curve_b (k,), errors two of (k,), k > degree. Raises ValueError if the curves do
    not cross inside the range.
    """
    given = (x, curve_a, curve_b, *errors)
    points = [torch.as_tensor(v).to("cpu", torch.float64) for v in given]
    x, a, b, error_a, error_b = points
    if x.ndim != 1 or any(v.shape != x.shape for v in points) or len(x) <= degree or degree < 1:
        raise ValueError(
            f"x, curve_a, curve_b and errors must all be (k,) with k > degree = {degree} ≥ 1, got "
            f"{[tuple(v.shape) for v in points]}"
        )
    if not all(bool(torch.isfinite(v).all()) for v in points):
        raise ValueError("x, curve_a, curve_b and errors must be finite")
    if not bool((error_a > 0).all() & (error_b > 0).all() & (x.diff() > 0).all()):
        raise ValueError("errors must be positive and x must increase")
    centre, half = (x[0] + x[-1]) / 2, (x[-1] - x[0]) / 2
    powers = ((x - centre) / half)[:, None] ** torch.arange(degree + 1)  # (k, degree + 1)
    fit_a, fit_b = (torch.linalg.pinv(powers / e[:, None]) / e for e in (error_a, error_b))

    def root(a: Tensor, b: Tensor) -> tuple[float, float] | None:
        """x and y of the crossing of the fits, x in units of the range."""
        of_a, of_b = fit_a @ a, fit_b @ b
        roots = _roots((of_a - of_b).tolist())
        if not roots:
            return None
        change = (a - b).sign()
        flips = torch.nonzero(change[1:] != change[:-1]).flatten().tolist()
        seen = [float((x[i] + x[i + 1]) / 2 - centre) / float(half) for i in flips] or [0.0]
        at = min(roots, key=lambda u: min(abs(u - s) for s in seen))
        values = at ** torch.arange(degree + 1, dtype=torch.float64)
        return at, float(values @ (of_a + of_b)) / 2

    found = root(a, b)
    if found is None:
        raise ValueError(f"curves do not cross between x = {float(x[0])} and {float(x[-1])}")
    noise = rng.normal(
        (n_resamples, 2, len(x)), seed=seed, stream="resample", dtype=torch.float64
    ) * torch.stack([error_a, error_b])
    again = [root(a + one[0], b + one[1]) for one in noise]
    kept = torch.tensor([pair for pair in again if pair is not None], dtype=torch.float64)
    lost = 1 - len(kept) / n_resamples
    spread = kept.std(0).tolist() if lost <= MAX_LOST else [math.nan, math.nan]
    residual = (a - powers @ (fit_a @ a)) / error_a, (b - powers @ (fit_b @ b)) / error_b
    free = 2 * (len(x) - degree - 1)
    chi2 = float(sum(r.square().sum() for r in residual)) / free if free else math.nan
    at, y = found
    return Crossing(float(centre + half * at), y, float(half) * spread[0], spread[1], chi2, lost)


def _roots(coefficients: list[float]) -> list[float]:
    """Real roots in [−1, 1] of Σ c_i u^i."""
    while coefficients and coefficients[-1] == 0:
        coefficients = coefficients[:-1]
    if len(coefficients) < 2:
        return []
    last = coefficients[-1]
    size = len(coefficients) - 1
    companion = torch.zeros(size, size, dtype=torch.float64)
    companion[:, -1] = torch.tensor([-c / last for c in coefficients[:-1]], dtype=torch.float64)
    companion[1:, :-1] = torch.eye(size - 1, dtype=torch.float64)
    values = torch.linalg.eigvals(companion).tolist()
    real = [z.real for z in values if abs(z.imag) <= 1e-9 * (1 + abs(z.real))]
    return sorted(u for u in real if -1 - 1e-12 <= u <= 1 + 1e-12)


def collapse(
    sizes: Sequence[int], x: Tensor, y: Tensor, *, x_c: float, nu: float, kappa: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Scaled coordinates u = (x − x_c) L^{1/ν} and y L^{κ/ν}: curves of all sizes fall onto one.

    κ is 0 for a cumulant or ξ/L, β for |m|, −γ for a susceptibility; x is a temperature or a coupling.
    Shapes: x, y (sizes, k) -> twice (sizes, k). Errors scale as y does.
    """
    if not (nu > 0 and math.isfinite(nu)):
        raise ValueError(f"nu must be positive and finite, got {nu}")
    x, y = torch.as_tensor(x).double(), torch.as_tensor(y).double()
    lengths = torch.as_tensor(list(sizes), dtype=torch.float64)
    x = x.expand_as(y)
    if y.ndim != 2 or len(lengths) != len(y) or not bool((lengths > 0).all()):
        raise ValueError(
            f"y must be (sizes, k) for {len(lengths)} positive sizes, got {tuple(y.shape)}"
        )
    return (x - x_c) * lengths[:, None] ** (1 / nu), y * lengths[:, None] ** (kappa / nu)


def collapse_quality(u: Tensor, y: Tensor, error: Tensor) -> float:
    """How well scaled curves fall onto one: mean square distance in units of the errors, 1 if they do.

    Each point is compared with the weighted straight line through the neighbours, left and right, that it
    has in the curves of other sizes; points without any are left out. NaN if all are.

    Shapes: u, y, error (sizes, k), u increasing along k.
    """
    if y.ndim != 2 or u.shape != y.shape or error.shape != y.shape:
        raise ValueError(
            f"u, y and error must all be (sizes, k), got {[tuple(t.shape) for t in (u, y, error)]}"
        )
    if not bool((error > 0).all()) or not bool((u.diff(dim=1) > 0).all()):
        raise ValueError("error must be positive and u must increase along each curve")
    u, y, weight = u.double(), y.double(), error.double() ** -2
    n_sizes, k = u.shape
    terms = []
    for j in range(n_sizes):
        sums = torch.zeros(5, k, dtype=torch.float64, device=u.device)  # of w: 1, u, y, u², uy
        for i in (i for i in range(n_sizes) if i != j):
            right = torch.searchsorted(u[i].contiguous(), u[j].contiguous())
            inside = (right > 0) & (right < k)
            for at in (right.clamp(1, k - 1) - 1, right.clamp(1, k - 1)):
                w = torch.where(inside, weight[i, at], 0.0)
                a, b = u[i, at], y[i, at]
                sums += w * torch.stack([torch.ones_like(a), a, b, a * a, a * b])
        w, wu, wy, wuu, wuy = sums
        determinant = w * wuu - wu * wu
        line = (wuu * wy - wu * wuy + u[j] * (w * wuy - wu * wy)) / determinant
        variance = (wuu - 2 * u[j] * wu + u[j].square() * w) / determinant
        distance = (y[j] - line).square() / (1 / weight[j] + variance)
        terms.append(distance[w > 0])
    return float(torch.cat(terms).mean())
