"""The contract of lattice targets: members that say something false are named."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pysamp.check import check_target
from pysamp.target import Tempered, Tilted
from pysamp.targets import ON, LargeN, Phi4, SoftON


@pytest.mark.parametrize(
    "target",
    [
        ON((4,), 1, 0.7),
        ON((4, 6), 2, -0.4),
        ON((2, 3, 4), 3, 0.7, periodic=False),
        ON.soft((4, 4), 2, -0.3, 0.5),
        ON.soft((3, 5), 3, 0.3, 0.5, periodic=False),
        ON.large_n((4, 4), 0.2, 0.4),
        Tempered(ON((4, 4), 2, 0.7), 0.4),
        Tilted(ON.soft((4, 4), 2, -0.3, 0.5), torch.zeros(4, 4, 2), 0.7),
    ],
    ids=lambda t: type(t).__name__,
)
def test_contract_holds(target):
    check_target(target)


class WrongField(ON):
    def local_field(self, x: Tensor, sites: Tensor) -> Tensor:
        return 1.1 * super().local_field(x, sites)


class WrongShape(ON):
    def local_field(self, x: Tensor, sites: Tensor) -> Tensor:
        return super().local_field(x, sites)[..., :1]


class OneColour(ON):
    @property
    def site_colours(self) -> tuple[Tensor, ...]:
        return (torch.arange(16),)


class TwiceASite(ON):
    @property
    def site_colours(self) -> tuple[Tensor, ...]:
        first, second = super().site_colours
        return first, second.roll(1).clamp(max=3)


class WrongQuartic(SoftON):
    def quartic(self, x: Tensor, sites: Tensor, component: int) -> tuple[Tensor, Tensor, Tensor]:
        a, b, c = super().quartic(x, sites, component)
        return (2 * a if component else a), b, c


class OneWay(ON):
    @property
    def couplings(self) -> tuple[float, Tensor]:
        coupling, table = super().couplings
        table = table.clone()
        table[3, 0] = 16  # no longer a neighbour
        return coupling, table


class OfAnother(Phi4):
    def record(self, x: Tensor) -> Tensor:
        return super().record(x) * 1.5


class WindowOfOne(Phi4):
    def record(self, x: Tensor) -> Tensor:
        return super().record(x) + torch.eye(9)[1].to(x)


class Rounded(Phi4):
    def record(self, x: Tensor) -> Tensor:
        return super().record(x).float()


class OtherNumbers(LargeN):
    def observables(self, x: Tensor) -> dict[str, Tensor]:
        found = super().observables(x)
        return found | {"energy": found["energy"] + 1}


@dataclass(frozen=True)
class Derived(Phi4):
    def derived(self, mean):
        return {"flat": torch.stack([mean["energy"], mean["energy²"]])}


XY, FIELD = ((4, 4), 2, 0.7), ((4, 4), 0.2, 0.5)


@pytest.mark.parametrize(
    ("target", "match"),
    [
        (WrongField(*XY), "local_field: row 0, "),
        (WrongShape(*XY), r"local_field: must be \(16, 8, 2\), got \(16, 8, 1\)"),
        (OneColour(*XY), r"local_field: row \d+, all sites of colour 0 \(do they interact\?\)"),
        (TwiceASite(*XY), "site_colours: must hold each of the 16 sites once"),
        (WrongQuartic((4, 4), 2, 0.3, 0.5), "quartic: row 0, .* but log_prob changes by"),
        (OneWay(*XY), "couplings: a bond is in the table from one of its ends only"),
        (OfAnother(*FIELD), "record: columns 0 and 1 of a single measurement must be log_prob"),
        (WindowOfOne(*FIELD), "record: columns 0 and 1"),
        (Rounded(*FIELD), r"record: must be \(16, 9\) torch.float64, got .* torch.float32"),
        (OtherNumbers((4, 4), 0.2, 0.4), "from_record: 'energy' differs from that of observables"),
        (Derived(*FIELD), "derived: 'flat' must have the shape of the means"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_false_is_named(target, match):
    with pytest.raises(ValueError, match=f"check_target: {match}"):
        check_target(target)
