"""Two phases, three samplers: a φ⁴ chain where MALA and HMC are wrong and say so, and tempering is right.

The target is the chain of d = 100 sites of Grenioux, Noble, Gabrié, Durmus (arXiv 2402.10758) with
a = 0.1, β = 20 and h = 0.0025, whose phases weigh 0.6855 and 0.3145 by transfer matrix. Neither local
sampler ever crosses the barrier, so their weights are those of the starting points. Replica exchange
around the same HMC carries fields over through hotter copies. The verdicts are those that
`Samples.summary` gives of any run.
"""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pysamp import _native
from pysamp.mcmc.base import Kernel
from pysamp.mcmc.hmc import HMC
from pysamp.mcmc.langevin import MALA
from pysamp.mcmc.tempering import ParallelTempering
from pysamp.plots import plot_demo
from pysamp.samples import Samples
from pysamp.sampling import sample
from pysamp.targets.phi4 import Phi4Chain
from pysamp.timing import using_threads
from pysamp.verdict import MIN_ESS, RHAT_BAD, RHAT_GOOD, Z_LIMIT

MARK = "demo.txt"  # a folder with this file is ours to overwrite


@dataclass(frozen=True)
class Size:
    """How much is drawn.

    The ladder is dense because exchanges cost next to nothing: with 32 rungs 4 of 5 are accepted, and
    copies travel rather than diffuse. Of the same cost, few long tempered chains are judged more
    sharply than many short ones: R-hat looks at each chain by itself.
    """

    chains: int = 64  # of the local samplers
    draws: int = 500
    thin: int = 100  # of MALA, whose steps are short
    warmup: int = 3000
    tempered_chains: int = 4
    tempered_draws: int = 10_000
    tempered_warmup: int = 500
    n_rungs: int = 32


FULL = Size()
TENTH = Size(warmup=300, thin=10, tempered_draws=1000, tempered_warmup=100)  # for pure torch
THREADS = 1  # a call does 0.3 ms of work: waking a second thread costs as much as it saves


def demo(
    out: str | Path, *, seed: int = 0, size: Size | None = None, progress: bool = True
) -> dict[str, Any]:
    """Run the samplers into the folder `out`, with a figure; return their numbers and the exact ones.

    "ok" is True if both local samplers were reported as unmixed, and the tempered one agrees with
    every exact value within 4 of its standard errors. Without native kernels a tenth is drawn.
    Raises FileExistsError if `out` holds anything but an earlier demonstration.
    """
    if size is None:
        size = FULL if _native.backend_name() == "native" else TENTH
    out = Path(out)
    _clear(out)
    target = Phi4Chain(n_sites=100, a=0.1, beta=20.0, h=0.0025)
    local = {"n_chains": size.chains, "n_draws": size.draws, "warmup": size.warmup}
    hmc = HMC(n_leapfrog=24)
    tempered = ParallelTempering(hmc, n_rungs=size.n_rungs, beta_min=0.2, swap_every=4)
    long = {
        "n_chains": size.tempered_chains,
        "n_draws": size.tempered_draws,
        "warmup": size.tempered_warmup,
    }
    plan: tuple[tuple[str, Kernel, dict[str, Any]], ...] = (
        ("MALA", MALA(), {**local, "thin": size.thin}),
        ("HMC", hmc, {**local, "thin": 4}),
        ("tempered HMC", tempered, long),
    )
    results: dict[str, Samples] = {}
    rows = []
    with using_threads(THREADS):
        for name, sampler, sizes in plan:
            folder = out / _FOLDERS[name]
            sizes |= {"seed": seed, "out": folder, "progress": progress}
            results[name] = sample(target, sampler, **sizes)
            rows.append(_row(name, results[name], folder))
        plot_demo(results, out / "demo.png")

    exact = {
        "weight_plus": target.exact.weight_plus,
        "mid_square": target.exact.mid_square,
        "energy": target.exact.energy / target.n_sites,
    }
    flagged = all(row["rhat_max"] > RHAT_BAD and row["verdict"] for row in rows[:-1])
    agrees = all(
        abs(rows[-1][key] - value) <= Z_LIMIT * rows[-1][f"{key}_error"]
        for key, value in exact.items()
    )
    return {
        "target": repr(target),
        "seed": seed,
        "backend": _native.backend_name(),
        "exact": exact,
        "rows": rows,
        "folder": str(out),
        "figure": str(out / "demo.png"),
        "local_flagged": flagged,
        "tempered_agrees": agrees,
        "ok": flagged and agrees,
    }


_FOLDERS = {"MALA": "mala", "HMC": "hmc", "tempered HMC": "tempered-hmc"}


def _clear(out: Path) -> None:
    """Make the folder; one that an earlier demonstration wrote is emptied."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).exists())):
        raise FileExistsError(f"out={out} exists and was not written by the demonstration")
    for folder in _FOLDERS.values():
        shutil.rmtree(out / folder, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text("Written by `pysamp demo`, which overwrites this folder.\n")


def _row(name: str, samples: Samples, folder: Path) -> dict[str, Any]:
    summary = samples.summary()
    values = {row["name"]: row for row in summary.rows}
    plus = summary.modes[1]
    ess = min(row["ess_bulk"] for row in summary.rows)
    facts = summary.facts
    return {
        "sampler": name,
        "folder": str(folder),
        "accept": facts["accept"],
        "weight_plus": plus["weight"],
        "weight_plus_error": plus["error"],
        "mid_square": values["phi_mid²"]["mean"],
        "mid_square_error": values["phi_mid²"]["mcse"],
        "energy": values["energy"]["mean"],
        "energy_error": values["energy"]["mcse"],
        "mode_changes": facts["mode_changes"],
        "rhat_max": facts["rhat_max"],
        "ess_bulk_min": ess,
        "ess_per_second": ess / facts["seconds"],
        "seconds": facts["seconds"],
        "ok": not summary.verdict,
        "verdict": summary.verdict,
    }


# ---------------------------------------------------------------------------- text
def text(report: dict[str, Any]) -> str:
    """The table for people, at most 100 columns wide."""
    rows, exact = report["rows"], report["exact"]

    def line(head: str, cells: list[str], reference: str = "") -> str:
        return (
            f"{head:<22}" + "".join(f"{cell:>20}" for cell in cells) + f"{reference:>17}"
        ).rstrip()

    def measured(head: str, key: str) -> str:
        cells = [f"{r[key]:.4f} ± {r[key + '_error']:.4f}" for r in rows]
        return line(head, cells, f"{exact[key]:.4f}")

    def plain(head: str, key: str, form: str, wanted: str = "") -> str:
        return line(head, [format(r[key], form) for r in rows], wanted)

    lines = [
        f"{report['target']}: two phases",
        "",
        line("", [r["sampler"] for r in rows], "exact or wanted"),
        plain("acceptance", "accept", ".3f"),
        measured("weight of + phase", "weight_plus"),
        measured("E[φ_mid²]", "mid_square"),
        measured("mean energy per site", "energy"),
        plain("changes of phase", "mode_changes", ",d"),
        plain("R-hat, largest", "rhat_max", ".3f", f"< {RHAT_GOOD}"),
        plain("ESS bulk, smallest", "ess_bulk_min", ",.0f", f"> {MIN_ESS}"),
        plain("ESS per second", "ess_per_second", ",.0f"),
        plain("seconds", "seconds", ".1f"),
        line("verdict", [_in_a_word(r) for r in rows]),
        "",
    ]
    for r in rows:
        found = "; ".join(r["verdict"]) or "nothing wrong was found"
        lines += textwrap.wrap(f"{r['sampler']}: {found}", 100, subsequent_indent="    ")
    last = rows[-1]["folder"]
    lines += ["", f"runs saved: {report['folder']}   figure: {report['figure']}"]
    lines.append(f"look: pysamp summary {last}   after an interruption: pysamp resume {last}")
    if report["backend"] == "torch":
        lines.append("pure torch, without native kernels: a tenth of the draws; see pysamp doctor")
    if not report["local_flagged"]:
        lines.append("FAILED: a local sampler was not reported as unmixed")
    if not report["tempered_agrees"]:
        lines.append("FAILED: tempering does not agree with the exact values within 4 errors")
    return "\n".join(lines)


def _in_a_word(row: dict[str, Any]) -> str:
    if row["ok"]:
        return "ok"
    return "not mixed" if row["rhat_max"] > RHAT_BAD else "draw longer"
