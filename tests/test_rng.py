"""The random stream: known answers, equality across backends, invariance, and statistics."""

import math
import pathlib
import re

import pytest
import torch
from scipy import stats

import pysamp
from pysamp import reference, rng

# counter, key, answer: Philox4x32-10 of the published known-answer file of Random123
KNOWN = [
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0 << 32 | 0xA4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers_of_the_reference(counter, key, answer):
    words = reference.philox(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(w) for w in words) == answer


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers_of_the_kernels(counter, key, answer, device):
    block, chain, step, stream = counter
    with pysamp.backend("native"):
        words = rng.bits((1, 4), seed=key, stream=stream >> 24, substep=stream & 0xFFFFFF, step=step,
                         first_chain=chain, first=4 * block, device=device)  # fmt: skip
    assert tuple(int(w) & 0xFFFFFFFF for w in words[0]) == answer


@pytest.mark.parametrize("kind", ["uniform", "normal", "log_uniform"])
def test_known_answers_reach_every_kernel(kind, device, dtype, native):
    """The vector kernels (lanes over blocks, lanes over chains) use the words of the known answers."""
    for n_chains, n in [(1, 5000), (300, 3), (40, 21)]:
        options = {
            "seed": 2**64 - 1,
            "stream": "check",
            "step": 77,
            "dtype": dtype,
            "device": device,
        }
        words = rng.bits((n_chains, 4 * n), seed=2**64 - 1, stream="check", step=77, device=device)
        words = words.long() & 0xFFFFFFFF
        found = getattr(rng, kind)((n_chains, n), **options)
        if dtype == torch.float32:
            u = (words[:, :n] >> 9).double() / 2**23 + 2.0**-24
        else:
            high, low = words[:, 0::2][:, :n], words[:, 1::2][:, :n]
            u = ((high << 20) | (low >> 12)).double() / 2**52 + 2.0**-53
        if kind == "uniform":
            assert torch.equal(found.double(), u)
        elif kind == "log_uniform" and dtype == torch.float64:
            torch.testing.assert_close(found, u.log())
        elif kind == "log_uniform":
            u = ((words[:, :n] >> 1).double() + 0.5) / 2**31
            torch.testing.assert_close(found.double(), u.log(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["uniform", "normal", "log_uniform"])
def test_backends_agree_to_the_last_bit(kind, device, dtype, native):
    options = {"seed": 99, "stream": 201, "step": 3, "dtype": dtype, "device": device}
    draw = getattr(rng, kind)
    for shape in [(1, 300_001), (1000, 7), (64, 100)]:
        found = draw(shape, **options)
        with pysamp.backend("torch"):
            assert torch.equal(found, draw(shape, **options))


@pytest.mark.parametrize("module", ["_cpu", "_cpu_v3", "_cpu_v4"])
def test_every_instruction_set_gives_the_same_bits(module, dtype):
    import importlib

    capability = torch.backends.cpu.get_cpu_capability()
    runs = {
        "_cpu": True,
        "_cpu_v3": capability in ("AVX2", "AVX512"),
        "_cpu_v4": capability == "AVX512",
    }
    try:
        kernels = importlib.import_module(f"pysamp.{module}")
    except ImportError as error:
        pytest.skip(f"{module} was not built: {error}")
    if not runs[module]:
        pytest.skip(f"{module} needs more than this CPU has ({capability})")
    for name in ("uniform", "normal", "log_uniform"):
        for shape in [(3, 1001), (50, 5)]:
            out = torch.empty(shape, dtype=dtype)
            getattr(kernels, name)(out, 5, 6, 7, 8, 9)
            expected = getattr(reference, name)(out, *shape, 5, 6, 7, 8, 9)
            assert torch.equal(out, expected), name


def test_rows_are_global_chains(device, dtype):
    options = {"seed": 4, "stream": "start", "step": 9, "dtype": dtype, "device": device}
    whole = rng.normal((10, 3, 5), **options)
    parts = [rng.normal((n, 3, 5), first_chain=f, **options) for f, n in [(0, 1), (1, 6), (7, 3)]]
    assert torch.equal(whole, torch.cat(parts))


def test_numbers_of_a_row_can_be_skipped(device, dtype):
    options = {"seed": 4, "step": 9, "dtype": dtype, "device": device}
    for draw in (rng.uniform, rng.normal, rng.log_uniform):
        whole = draw((3, 50), **options)
        for first in (1, 2, 3, 4, 17):
            assert torch.equal(draw((3, 20), first=first, **options), whole[:, first : first + 20])


def test_streams_steps_seeds_and_substeps_differ():
    base = {"seed": 1, "stream": 1, "step": 1, "substep": 1}
    draws = [rng.uniform((1, 64), **base)]
    for name, value in [
        ("seed", 2),
        ("seed", 1 + 2**40),
        ("stream", 2),
        ("step", 2),
        ("substep", 2),
    ]:
        draws.append(rng.uniform((1, 64), **{**base, name: value}))
    table = torch.cat(draws)
    assert len({tuple(row.tolist()) for row in table}) == len(draws)
    correlation = torch.corrcoef(table)
    off = correlation[~torch.eye(len(draws), dtype=torch.bool)]
    assert off.abs().max() < 5 / math.sqrt(64)


def test_streams_are_those_of_the_header():
    header = pathlib.Path(pysamp.include_path(), "streams.h").read_text()
    listed = {n.lower(): int(v) for n, v in re.findall(r"^\s+([A-Z]+) = (\d+),", header, re.M)}
    assert listed == rng.STREAMS


@pytest.mark.parametrize("seed", range(4))
def test_uniforms_are_uniform(seed, dtype):
    u = rng.uniform((1, 1 << 18), seed=seed, dtype=dtype).flatten()
    assert u.min() > 0 and u.max() < 1
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-4
    assert abs(u.mean() - 0.5) < 5 * math.sqrt(1 / 12 / u.numel())


@pytest.mark.parametrize("seed", range(4))
def test_normals_are_normal(seed, dtype):
    z = rng.normal((1, 1 << 18), seed=seed, dtype=dtype).flatten().double()
    n = z.numel()
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-4
    for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((z**power).mean() - mean) < 5 * math.sqrt(variance / n), power
    pairs = z.reshape(-1, 2)  # the two of a Box–Muller pair
    assert abs((pairs[:, 0] * pairs[:, 1]).mean()) < 5 / math.sqrt(n / 2)
    squares = pairs**2 - 1
    assert abs((squares[:, 0] * squares[:, 1]).mean()) < 5 * 2 / math.sqrt(n / 2)
    angle = torch.atan2(pairs[:, 1], pairs[:, 0]) / (2 * math.pi) + 0.5
    assert stats.kstest(angle.numpy(), "uniform").pvalue > 1e-4


def test_log_uniform_reaches_the_tail():
    """The smallest float32 argument is 2⁻³², so radii reach 6.7σ; ln u is never positive."""
    word = torch.tensor([[0, 1, 2, 0xFFFFFFFF]])
    smallest = reference._unit_for_log(word)
    assert smallest[0, 0] == 2.0**-32
    assert smallest[0, 3] == 1.0
    assert reference.log_portable(smallest)[0, 3] == 0.0
    assert math.sqrt(-2 * float(reference.log_portable(smallest)[0, 0])) > 6.6


def test_portable_functions_are_accurate(dtype):
    eps = torch.finfo(dtype).eps
    x = torch.logspace(-9, 9, 200_001, dtype=torch.float64).to(dtype)
    error = (reference.log_portable(x).double() - x.double().log()).abs()
    assert (error / x.double().log().abs().clamp(min=0.1)).max() < 4 * eps
    y = torch.linspace(-80, 80, 200_001, dtype=torch.float64).to(dtype)
    exact = y.double().exp()
    assert ((reference.exp_portable(y).double() - exact) / exact).abs().max() < 4 * eps
    special = torch.tensor([math.nan, -math.inf, -1e4], dtype=dtype)
    assert torch.equal(reference.exp_portable(special), torch.zeros(3, dtype=dtype))


def test_square_roots_are_correctly_rounded(dtype):
    x = rng.uniform((1, 1 << 17), seed=3, dtype=dtype)[0] * 50
    found = reference.sqrt_rn(x)
    import numpy as np

    assert np.array_equal(found.numpy(), np.sqrt(x.numpy()))  # numpy's is the instruction's


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": -1}, r"seed must lie in 0…2\^64 − 1, got -1"),
        ({"seed": 2**64}, "seed must lie in"),
        ({"step": 2**32}, r"step must lie in 0…2\^32 − 1, got 4294967296"),
        ({"stream": 256}, "stream must lie in 0…255, got 256"),
        ({"stream": "noise"}, "got 'noise'"),
        ({"substep": 2**24}, "substep must lie in"),
        ({"first_chain": -1}, "first_chain must keep chains below"),
        ({"first": -1}, "first must not be negative, .*got -1"),
        (
            {"dtype": torch.float16},
            "dtype must be torch.float32 or torch.float64, got torch.float16",
        ),
        ({"shape": ()}, r"shape must be \(n_chains, …\)"),
        ({"shape": (2, -3)}, "without negative sizes"),
    ],
)
def test_bad_addresses(change, text):
    arguments = {"shape": (2, 3), "seed": 0, **change}
    with pytest.raises(ValueError, match=text):
        rng.normal(arguments.pop("shape"), **arguments)


def test_numbers_beyond_the_block_counter_are_refused(dtype, native, device):
    per_block = 4 if dtype == torch.float32 else 2
    last = per_block * 2**32
    rng.normal((1, 4), seed=1, first=last - 4, dtype=dtype, device=device)
    for first in (last - 3, 2**63 - 8):
        with pytest.raises(ValueError, match="must keep blocks of"):
            rng.normal((1, 4), seed=1, first=first, dtype=dtype, device=device)
        with pytest.raises(ValueError, match=r"first: the counter ends at 2\^32 blocks"):
            native.normal(torch.empty(1, 4, dtype=dtype, device=device), 1, 0, 0, 0, first)
    out = torch.empty(1, 4, dtype=dtype, device=device)
    with pytest.raises(ValueError, match="step: the counter ends"):
        native.normal(out, 1, 2**62, 0, 0, 0)
    with pytest.raises(ValueError, match="first_chain: the counter ends"):
        native.normal(out, 1, 0, 0, 2**63 - 1, 0)
