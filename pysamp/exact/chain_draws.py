"""Exact independent fields of the phi^4 chain: filtering forwards, sampling backwards.

With gamma of `chain.phi4_chain`, r = beta a d / 2, the site weight s and phi_0 = phi_{d+1} = 0,

    m_1(x) = exp(-r x^2) s(x),      m_{i+1}(x) = s(x) int m_i(y) exp(-r (x - y)^2) dy        (forwards)
    p(phi_i | phi_{i+1}, ...) ~ m_i(phi_i) exp(-r (phi_i - phi_{i+1})^2),   i = d ... 1      (backwards)

(Carter and Kohn 1994, doi 10.1093/biomet/81.3.541). Integrals are sums of Gauss rules of five nodes on
cells as wide as the narrowest conditional density. A draw is the inverse of the
distribution function: a cell from the masses of the cells, then a place in it by Newton's method, where
the logarithm of the density is the polynomial through the five nodes. Distribution functions come out
right to about 1e-8.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pysamp import rng
from pysamp.exact.arguments import check_chain

NODES = 5
DRAWS = 5  # step of the stream "target"; mixtures and Gaussians use those below
_EDGE = 1e-17  # mass of a cell at the end, of any site, that counts as zero
_SEEN = 40.0  # cells of a conditional density e^-40 lighter than its heaviest are left out
_MAX_CELLS = 2000
_BLOCK = 1 << 18  # numbers worked on at once: a few buffers of 2 MB stay in cache


@dataclass(frozen=True, eq=False)
class _Tables:
    """What draws need of each site; `window` cells from `first` hold the next site's law given y."""

    rate: float  # r
    x_max: float
    width: float  # of a cell
    log_m: Tensor  # (d, cells * NODES)
    first: Tensor  # (d, cells) int64, by the cell of y
    window: tuple[int, ...]  # (d,)


def phi4_chain_draws(
    n_sites: int, a: float, beta: float, h: float, n: int, *, seed: int, first_chain: int = 0,
    device: torch.device | str | None = None, dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """n independent fields of the chain of `phi4_chain`, (n, n_sites); arithmetic in float64.

    Row r is a function of the seed and of first_chain + r: its sites are made of n_sites uniforms.

    Raises ValueError for parameters out of range, or so cold that more than 2000 cells were needed.
    Cost: for each site of each field about 200 exponentials, in 40 cells of 5 nodes; once for the
    parameters, kept for later calls, a product of a square matrix of all nodes, 500 for 100 sites, and
    a vector for each site.
    """
    check_chain(n_sites, a, beta, h)
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ValueError(f"n must be an int of at least 0, got {n!r}")
    tables = _tables(n_sites, float(a), float(beta), float(h))
    how: dict[str, Any] = {"seed": seed, "stream": "target", "step": DRAWS, "device": device}
    u = rng.uniform((n, n_sites), first_chain=first_chain, dtype=torch.float64, **how)
    out = torch.empty_like(u)
    draw = _Conditional(tables, u.device)
    y = u.new_zeros(n)  # phi_{d+1}
    for site in reversed(range(n_sites)):
        rows = max(1, _BLOCK // (tables.window[site] * NODES))
        for begin in range(0, n, rows):
            part = slice(begin, begin + rows)
            out[part, site] = draw(site, y[part], u[part, site])
        y = out[:, site]
    return out.to(dtype)


# ---- forwards ------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def _tables(n_sites: int, a: float, beta: float, h: float) -> _Tables:
    c = a * n_sites
    x_max = 1.7
    while True:
        # Largest second derivative of -log p of a site between two fixed ones, met at the ends.
        stiffness = beta * (2 * c + max(2.0, 3 * x_max**2 - 1) / c)
        cells = 2 * math.ceil(x_max * math.sqrt(stiffness))
        if cells > _MAX_CELLS:
            raise ValueError(
                f"phi4_chain_draws needs {cells} cells, more than {_MAX_CELLS}, for "
                f"{n_sites=}, {a=}, {beta=}, {h=}"
            )
        found, edge = _filtered(n_sites, c, beta, h, x_max, cells)
        if edge < _EDGE:
            return found
        x_max *= 1.15


def _filtered(
    n_sites: int, c: float, beta: float, h: float, x_max: float, cells: int
) -> tuple[_Tables, float]:
    """The tables on 2 x_max, and the largest mass of a cell at either end."""
    rate, width = beta * c / 2, 2 * x_max / cells
    node, weight = _gauss()
    left = width * torch.arange(cells, dtype=torch.float64) - x_max
    x = (left[:, None] + width * node).reshape(-1)  # (cells * NODES,)
    log_weight = (width * weight).log().repeat(cells)
    log_site = -beta / c * ((1 - x**2) ** 2 / 4 + h * x)
    bond = torch.exp(-rate * (x[:, None] - x) ** 2)
    message = -rate * x**2
    messages = []
    for _ in range(n_sites):
        messages.append(message + log_site)
        inside = messages[-1] + log_weight
        top = inside.max()
        message = (bond @ (inside - top).exp()).log() + top
    log_m = torch.stack(messages)  # (d, cells * NODES)

    # The chain is its own mirror image: what site i hears from the right, site d - 1 - i hears from the
    # left.
    log_p = log_m + (log_m - log_site).flip(0) + log_weight
    mass = torch.softmax(log_p, 1).reshape(n_sites, cells, NODES).sum(2)
    edge = float(torch.maximum(mass[:, 0], mass[:, -1]).max())

    first = torch.empty(n_sites, cells, dtype=torch.int64)
    window = []
    borders = torch.cat([left, left.new_tensor([x_max])])  # (cells + 1,) values of y
    at = torch.arange(cells)
    for site, log_row in enumerate(log_m + log_weight):
        joint = log_row - rate * (borders[:, None] - x) ** 2
        heavy = joint.reshape(cells + 1, cells, NODES).amax(2)
        seen = heavy > heavy.amax(1, keepdim=True) - _SEEN  # (cells + 1, cells)
        low = torch.where(seen, at, cells).amin(1)
        high = torch.where(seen, at, -1).amax(1)
        low = torch.minimum(low[1:], low[:-1])  # of both borders of the cell of y
        high = torch.maximum(high[1:], high[:-1])
        window.append(int((high - low).max()) + 1)
        first[site] = low.clamp(max=cells - window[-1])
    return _Tables(rate, x_max, width, log_m, first, tuple(window)), edge


@functools.lru_cache(maxsize=1)
def _gauss() -> tuple[Tensor, Tensor]:
    """Nodes and weights of the Gauss rule on (0, 1)."""
    node, weight = np.polynomial.legendre.leggauss(NODES)
    return torch.from_numpy((node + 1) / 2), torch.from_numpy(weight / 2)


# ---- backwards -----------------------------------------------------------------------------------


class _Conditional:
    """phi_i given phi_{i+1} = y: the value at which its distribution function is u."""

    def __init__(self, tables: _Tables, device: torch.device) -> None:
        self.tables = tables
        self.log_m, self.first = tables.log_m.to(device), tables.first.to(device)
        node, weight = (part.to(device) for part in _gauss())
        self.node, self.weight = node, weight
        cells = max(tables.window)
        places = torch.arange(cells, dtype=torch.float64, device=device)
        self.places = (tables.width * (places[:, None] + node)).reshape(
            -1
        )  # from the first cell on
        self.log_weight = weight.log().repeat(cells)
        powers = node[:, None] ** torch.arange(NODES, device=device)  # (node, power)
        self.coefficients = torch.linalg.inv(powers).T.contiguous()  # values @ this: a polynomial

    def __call__(self, site: int, y: Tensor, u: Tensor) -> Tensor:
        """y, u (n,) -> (n,)"""
        t = self.tables
        cells = self.first.shape[1]
        cell = ((y + t.x_max) / t.width).floor().long().clamp(0, cells - 1)
        first, window = self.first[site][cell], t.window[site]  # (n,)
        left = t.width * first - t.x_max
        places = self.places[: window * NODES]
        # log m in all windows: rows of a view, so that no index of n x window is made
        log_p = self.log_m[site].unfold(0, window * NODES, NODES)[first]  # (n, window * NODES)
        distance = (left - y)[:, None] + places
        log_p.addcmul_(distance, distance, value=-t.rate)
        top = log_p.amax(1, keepdim=True)
        p = (log_p - top + self.log_weight[: window * NODES]).exp_()
        mass = p.reshape(len(y), window, NODES).sum(2)
        below = mass.cumsum(1)  # (n, window)
        wanted = u * below[:, -1]
        # Without the last edge no rounding of the sum can push a draw past the last cell.
        chosen = torch.searchsorted(below[:, :-1].contiguous(), wanted[:, None], right=True)
        own = mass.gather(1, chosen)[:, 0]
        rest = ((wanted - (below.gather(1, chosen)[:, 0] - own)) / own).clamp(0.0, 1.0)
        inside = chosen * NODES + torch.arange(NODES, device=y.device)
        log_own = log_p.gather(1, inside) - top  # (n, NODES)
        return left + t.width * (chosen[:, 0] + self._place(log_own, rest))

    def _place(self, log_p: Tensor, share: Tensor) -> Tensor:
        """Where in its cell (0, 1) the distribution function is `share` of the mass of the cell.

        From the root for the exponential with the slope of the middle, which log p is nearly; Newton's
        method then doubles the digits each time.
        """
        c = (log_p - log_p.amax(1, keepdim=True)) @ self.coefficients  # (n, power)
        nodes = self.node.expand(len(c), NODES)
        total = _polynomial(c, nodes).exp() @ self.weight
        half = nodes.new_full((len(c), 1), 0.5)
        slope = c[:, 1] + (c[:, 2:] * half ** torch.arange(1, NODES - 1, device=c.device)
                           * torch.arange(2, NODES, device=c.device)).sum(1)  # fmt: skip
        flat = slope.abs() < 1e-8
        safe = torch.where(flat, 1.0, slope)
        at = torch.where(flat, share, torch.log1p(share * torch.expm1(safe)) / safe)
        for _ in range(4):
            below = at * (_polynomial(c, at[:, None] * nodes).exp() @ self.weight)
            density = _polynomial(c, at[:, None])[:, 0].exp()
            at = (at - (below - share * total) / density).clamp(0.0, 1.0)
        return at


def _polynomial(c: Tensor, t: Tensor) -> Tensor:
    """sum_k c_k t^k, (n, powers) and (n, k) -> (n, k)"""
    value = c[:, -1:].expand_as(t)
    for k in range(c.shape[1] - 2, -1, -1):
        value = value * t + c[:, k : k + 1]
    return value
