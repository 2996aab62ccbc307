"""The torch definition of native random numbers, sums and elementary functions, and what lattices share.

Each function states its operations in the order of the C++ function of the same name, one rounding
each, so that both give the same bits where the design asks for it (levels A and B). torch.sqrt on the
CPU is not correctly rounded everywhere, hence `sqrt_rn`. Random numbers are Philox4x32-10 (Salmon,
Moraes, Dror, Shaw, SC 2011, doi 10.1145/2063384.2063405).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

MASK32 = 0xFFFFFFFF

# --- Portable functions (csrc/maths.h); coefficients from docs/polynomials.py, here in decimal -----

_LOG32 = (-0.0790274366736412, 0.12622319161891937, -0.12998183071613312, 0.14214496314525604,
          -0.166412815451622, 0.20001044869422913, -0.25000306963920593, 0.3333333134651184)  # fmt: skip
_LOG64 = (0.14616576421644387, 0.15331711346672997, 0.18182889433757515, 0.22222211130560726,
          0.28571428626001427, 0.3999999999989945, 0.666666666666667)  # fmt: skip
_EXP32 = (
    0.0013941108481958508,
    0.008375126868486404,
    0.04166635125875473,
    0.16666415333747864,
    0.5,
    1.0,
    1.0,
)
_EXP64 = (2.0921580223873196e-09, 2.5114869891253472e-08, 2.755725190339742e-07,
          2.7557224957303822e-06, 2.4801587350111637e-05, 0.0001984126990921828,
          0.0013888888888871887, 0.008333333333309526, 0.04166666666666669,
          0.16666666666666702, 0.5, 1.0, 1.0)  # fmt: skip
_SIN32 = (
    0.00015167170204222202,
    -0.004674143623560667,
    0.07968991994857788,
    -0.6459637880325317,
    1.5707963705062866,
)
_COS32 = (
    -2.3824151867302135e-05,
    0.000917722936719656,
    -0.02086268737912178,
    0.2536693215370178,
    -1.2337005138397217,
    1.0,
)
_SIN64 = (5.87297574479995e-12, -6.684416831856085e-10, 5.6921364280986254e-08,
          -3.5988430204672576e-06, 0.0001604411847130916, -0.004681754135304255,
          0.07969262624616565, -0.6459640975062462, 1.5707963267948966)  # fmt: skip
_COS64 = (-5.125127010709076e-13, 6.562384296775584e-11, -6.386561085053795e-09,
          4.7108744806670773e-07, -2.5202042359954066e-05, 0.000919260274835918,
          -0.02086348076335242, 0.253669507901048, -1.2337005501361697, 1.0)  # fmt: skip


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    total = x * coefficients[0] + coefficients[1]
    for c in coefficients[2:]:
        total = total * x + c
    return total


def sqrt_rn(x: Tensor) -> Tensor:
    """Correctly rounded square root of positive numbers."""
    if x.dtype == torch.float32:
        # a float32 root lies at least four float64 ulps from a rounding boundary of float32
        return x.double().sqrt().float()
    root = x.sqrt()
    high = root * 134217729.0  # Veltkamp's split: root = high + low, 26 bits each
    high = high - (high - root)
    low = root - high
    square = root * root
    error = ((high * high - square) + (high * low) * 2.0) + low * low
    residual = torch.where(root > 0, (x - square) - error, torch.zeros_like(x))
    return torch.where(root > 0, root + residual / (root * 2.0), root)


def log_portable(x: Tensor) -> Tensor:
    """ln x of positive normal numbers, by + and × (÷ in float64)."""
    if x.dtype == torch.float32:
        i = x.view(torch.int32) + (0x3F800000 - 0x3F3504F3)
        e = ((i >> 23) - 127).to(torch.float32)
        m = ((i & 0x007FFFFF) + 0x3F3504F3).view(torch.float32)
        f = m - 1.0
        tail = f + f * f * (_horner(_LOG32, f) * f - 0.5)
        return e * 0.6931471824645996 + tail
    i = x.view(torch.int64) + (0x3FF0000000000000 - 0x3FE6A09E667F3BCD)
    e = ((i >> 52) - 1023).to(torch.float64)
    m = ((i & 0x000FFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD).view(torch.float64)
    f = m - 1.0
    s = f / (f + 2.0)
    z = s * s
    tail = s * 2.0 + s * z * _horner(_LOG64, z)
    return e * 0.6931471803691238 + (tail + e * 1.9082149292705877e-10)


def exp_portable(x: Tensor) -> Tensor:
    """e^x by + and ×; 0 below the normal range and for NaN."""
    single = x.dtype == torch.float32
    low, high = (-87.0, 88.0) if single else (-708.0, 709.0)
    inside = x > low
    y = torch.where(inside, x, torch.full_like(x, low))
    y = torch.where(y < high, y, torch.full_like(x, high))
    if single:
        t = y * 1.4426950216293335 + 12582912.0
        n = t - 12582912.0
        r = (y - n * 0.693115234375) - n * 3.194618329871446e-05
        k = t.view(torch.int32) - 0x4B400000
        p = (_horner(_EXP32, r).view(torch.int32) + (k << 23)).view(torch.float32)
    else:
        t = y * 1.4426950408889634 + 6755399441055744.0
        n = t - 6755399441055744.0
        r = (y - n * 0.6931471803691238) - n * 1.9082149292705877e-10
        k = t.view(torch.int64) - 0x4338000000000000
        p = (_horner(_EXP64, r).view(torch.int64) + (k << 52)).view(torch.float64)
    return torch.where(inside, p, torch.zeros_like(x))


def sin_quarter(y: Tensor) -> Tensor:
    """sin(πy/2) for |y| ≤ 1."""
    return y * _horner(_SIN32 if y.dtype == torch.float32 else _SIN64, y * y)


def cos_quarter(y: Tensor) -> Tensor:
    """cos(πy/2) for |y| ≤ 1."""
    return _horner(_COS32 if y.dtype == torch.float32 else _COS64, y * y)


# --- Random numbers (csrc/philox.h) ----------------------------------------------------------------


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 of int64 tensors that hold 32-bit words; broadcasts. Four words in [0, 2³²)."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & MASK32, (seed >> 32) & MASK32
    for _ in range(10):
        p0 = c0 * 0xD2511F53  # int64 products wrap: their 64 bits are those of the unsigned product
        p1 = c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((p1 >> 32) & MASK32) ^ c1 ^ k0,
            p1 & MASK32,
            ((p0 >> 32) & MASK32) ^ c3 ^ k1,
            p0 & MASK32,
        )
        k0 = (k0 + 0x9E3779B9) & MASK32
        k1 = (k1 + 0xBB67AE85) & MASK32
    return c0, c1, c2, c3


def _blocks(
    n: int, per_block: int, n_chains: int, seed: int, step: int, stream: int, first_chain: int,
    first: int, device: torch.device,
) -> tuple[Tensor, int]:  # fmt: skip
    """Words of the blocks that hold numbers first … first + n: (n_chains, blocks, 4); and the offset."""
    first_block = first // per_block
    last_block = (first + n + per_block - 1) // per_block
    block = torch.arange(first_block, last_block, device=device)[None, :]
    chain = torch.arange(first_chain, first_chain + n_chains, device=device)[:, None]
    step_word = torch.full((1, 1), step, dtype=torch.int64, device=device)
    stream_word = torch.full((1, 1), stream, dtype=torch.int64, device=device)
    words = torch.stack(
        torch.broadcast_tensors(*philox((block, chain, step_word, stream_word), seed))
    )
    return words.permute(1, 2, 0), first - first_block * per_block


def _mantissa_to_unit(mantissa: Tensor, dtype: torch.dtype) -> Tensor:
    """(m + ½)·2⁻ᵏ with k = 23 (float32) or 52 (float64): exact, in the open interval (0, 1)."""
    if dtype == torch.float32:
        one_to_two = (mantissa | 0x3F800000).to(torch.int32).view(torch.float32)
        return (one_to_two - 1.0) + 5.960464477539063e-08
    return ((mantissa | 0x3FF0000000000000).view(torch.float64) - 1.0) + 1.1102230246251565e-16


def _signed32(word: Tensor) -> Tensor:
    """A word in [0, 2³²) as the int32 of the same bits."""
    return (word - ((word >> 31) << 32)).to(torch.int32)


def _unit_for_log(word: Tensor) -> Tensor:
    """(⌊u/2⌋ + ½)·2⁻³¹ in float32: keeps its resolution near 0, so radii reach 6.7σ."""
    return ((word >> 1).to(torch.int32).to(torch.float32) + 0.5) * 4.656612873077393e-10


def _box_muller(u: Tensor, y: Tensor, flip: Tensor) -> tuple[Tensor, Tensor]:
    """√(−2 ln u) (± cos(πy/2), sin(πy/2)) for y in [−1, 1): `flip` reflects the half circle."""
    radius = sqrt_rn(log_portable(u) * -2.0)
    cos = cos_quarter(y)
    return radius * torch.where(flip, -cos, cos), radius * sin_quarter(y)


def bits(
    like: Tensor,
    n_chains: int,
    n: int,
    seed: int,
    step: int,
    stream: int,
    first_chain: int,
    first: int,
) -> Tensor:
    words, offset = _blocks(n, 4, n_chains, seed, step, stream, first_chain, first, like.device)
    return _signed32(words.flatten(1)[:, offset : offset + n])


def _joined(words: Tensor) -> Tensor:
    """(…, 4) words -> (…, 2) int64, the first word of each pair as the high half."""
    return (words[..., 0::2] << 32) | words[..., 1::2]


def _units(words: Tensor, dtype: torch.dtype) -> Tensor:
    """The uniforms of blocks (…, 4): one a word in float32, one for two words in float64."""
    if dtype == torch.float32:
        return _mantissa_to_unit(words >> 9, dtype)
    return _mantissa_to_unit((_joined(words) >> 12) & 0xFFFFFFFFFFFFF, dtype)


def uniform(
    like: Tensor,
    n_chains: int,
    n: int,
    seed: int,
    step: int,
    stream: int,
    first_chain: int,
    first: int,
) -> Tensor:
    dtype, k = like.dtype, 4 if like.dtype == torch.float32 else 2
    words, offset = _blocks(n, k, n_chains, seed, step, stream, first_chain, first, like.device)
    return _units(words, dtype).flatten(1)[:, offset : offset + n].contiguous()


def log_uniform(
    like: Tensor,
    n_chains: int,
    n: int,
    seed: int,
    step: int,
    stream: int,
    first_chain: int,
    first: int,
) -> Tensor:
    dtype, k = like.dtype, 4 if like.dtype == torch.float32 else 2
    words, offset = _blocks(n, k, n_chains, seed, step, stream, first_chain, first, like.device)
    u = _unit_for_log(words) if dtype == torch.float32 else _units(words, dtype)
    return log_portable(u.flatten(1)[:, offset : offset + n].contiguous())


def normal(
    like: Tensor,
    n_chains: int,
    n: int,
    seed: int,
    step: int,
    stream: int,
    first_chain: int,
    first: int,
) -> Tensor:
    dtype, k = like.dtype, 4 if like.dtype == torch.float32 else 2
    words, offset = _blocks(n, k, n_chains, seed, step, stream, first_chain, first, like.device)
    if dtype == torch.float32:
        u, v = words[..., 0::2], words[..., 1::2]  # (n_chains, blocks, 2) each
        y = _signed32(v).to(torch.float32) * 4.656612873077393e-10
        first_of_pair, second = _box_muller(_unit_for_log(u), y, (v & 1).bool())
    else:
        unit = _units(words, dtype)
        u, v = unit[..., 0::2], unit[..., 1::2]
        first_of_pair, second = _box_muller(
            u.contiguous(), v.contiguous() * 2.0 - 1.0, (words[..., 3::4] & 1).bool()
        )
    out = torch.stack((first_of_pair, second), dim=-1)  # (n_chains, blocks, pairs, 2)
    return out.flatten(1)[:, offset : offset + n].contiguous()


# --- Sums in a fixed order (csrc/launch.h) ---------------------------------------------------------


def sum32(x: Tensor) -> Tensor:
    """Row sums (n, m) -> (n,): 32 accumulators, then a butterfly; in chunks of 4096 by the same rule."""
    n, m = x.shape
    if m > 4096:
        chunks = [sum32(x[:, begin : begin + 4096]) for begin in range(0, m, 4096)]
        return sum32(torch.stack(chunks, dim=1))
    rounds = max(1, (m + 31) // 32)
    padded = torch.nn.functional.pad(x, (0, 32 * rounds - m)).reshape(n, rounds, 32)
    part = padded[:, 0]
    for k in range(1, rounds):
        part = part + padded[:, k]
    for half in (16, 8, 4, 2, 1):
        part = part[:, :half] + part[:, half : 2 * half]
    return part[:, 0]


# --- Lattices (csrc/lattice.h, csrc/sweeps.h) ------------------------------------------------------


@functools.lru_cache(maxsize=64)
def lattice_neighbours(shape: tuple[int, ...], periodic: bool) -> Tensor:
    """(n_sites, 2d) flat neighbour numbers, −μ and +μ in turn; n_sites stands for outside."""
    n_sites = int(torch.tensor(shape).prod())
    site = torch.arange(n_sites).reshape(shape)
    columns = []
    for axis, length in enumerate(shape):
        along = torch.arange(length).reshape([-1 if a == axis else 1 for a in range(len(shape))])
        for shift in (-1, 1):
            moved = site.roll(-shift, axis)
            if not periodic:
                edge = along == (0 if shift < 0 else length - 1)
                moved = torch.where(edge, torch.full_like(moved, n_sites), moved)
            columns.append(moved.reshape(-1))
    return torch.stack(columns, dim=1)


def neighbour_sum(x: Tensor, neighbours: Tensor) -> Tensor:
    """Σ_y φ_y over neighbours, in the order of the functor: (n, n_sites, m), (k, z) -> (n, k, m)."""
    outside = torch.nn.functional.pad(x, (0, 0, 0, 1))  # zeros
    y = [outside[:, neighbours[:, k]] for k in range(neighbours.shape[1])]
    if len(y) == 2:
        return y[0] + y[1]
    total = (y[0] + y[1]) + (y[2] + y[3])
    return total if len(y) == 4 else total + (y[4] + y[5])


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ_c a_c b_c over the last axis, in the order of the components."""
    total = a[..., 0] * b[..., 0]
    for c in range(1, a.shape[-1]):
        total = total + a[..., c] * b[..., c]
    return total


def scatter(counter: int) -> int:
    """A counter over all 32-bit words, by the golden ratio: steps of any K fall everywhere evenly."""
    return counter * 2654435761 & MASK32


def renormalises(counter: int) -> bool:
    """Whether the lengths of spins are set back to 1 after this sweep: one in 16."""
    return scatter(counter) >> 28 == 0
