"""Two phases, two samplers: the φ⁴ chain where plain MALA is wrong and says so, and tempering is right.

The target is the chain of d = 100 sites of Grenioux, Noble, Gabrié, Durmus (arXiv 2402.10758) with
a = 0.1, β = 20 and h = 0.0025, whose phases weigh 0.6855 and 0.3145 by transfer matrix. MALA never
crosses the barrier, so its weights are those of its starting points; replica exchange carries fields
over through hotter copies. Both verdicts come from `Samples.summary`, the same for every run.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pysamp import store
from pysamp.mcmc.langevin import MALA
from pysamp.mcmc.tempering import ParallelTempering
from pysamp.plots import plot_demo
from pysamp.sample import sample
from pysamp.samples import Samples
from pysamp.summary import MIN_ESS, RHAT_GOOD, Z_LIMIT
from pysamp.targets.phi4 import Phi4Chain

PLAIN, TEMPERED = "MALA", "tempered MALA"
MARK = "demo.txt"  # a folder with this file is ours to overwrite


@dataclass(frozen=True)
class Size:
    """How much is drawn; the default takes seconds on two cores."""

    n_chains: int = 64
    n_draws: int = 500
    warmup: int = 500
    thin: int = 10
    betas: tuple[float, ...] = (1.0, 0.8, 0.64, 0.5, 0.4, 0.3)


def demo(out: str | Path, *, seed: int = 0, size: Size = Size(), progress: bool = True) -> dict[str, Any]:
    """Run both samplers into the folder `out`, with a figure, and return their numbers beside the exact ones.

    "ok" is True if MALA was reported as not mixed and the tempered chain agrees with every exact
    value within 4 of its standard errors. Raises FileExistsError if `out` holds anything else.
    """
    out = Path(out)
    _clear(out)
    target = Phi4Chain(n_sites=100, a=0.1, beta=20.0, h=0.0025)
    samplers = {PLAIN: MALA(), TEMPERED: ParallelTempering(MALA(), betas=size.betas)}
    folders = {PLAIN: out / "mala", TEMPERED: out / "tempered"}
    results: dict[str, Samples] = {}
    for name, sampler in samplers.items():
        results[name] = sample(
            target,
            sampler,
            n_chains=size.n_chains,
            n_draws=size.n_draws,
            warmup=size.warmup,
            thin=size.thin,
            seed=seed,
            out=folders[name],
            progress=progress,
        )
    rows = [_row(name, results[name], folders[name]) for name in results]
    exact = target.exact
    report = {
        "target": repr(target),
        "seed": seed,
        "exact": {
            "weight_plus": exact.weight_plus,
            "mid_square": exact.mid_square,
            "energy": exact.energy / target.n_sites,
        },
        "rows": rows,
        "folder": str(out),
        "figure": str(out / "demo.png"),
    }
    plot_demo(results, out / "demo.png")
    plain, tempered = rows
    report["mala_flagged"] = not plain["ok"]
    report["tempered_agrees"] = all(
        abs(tempered[key] - value) <= Z_LIMIT * tempered[f"{key}_error"]
        for key, value in report["exact"].items()
    )
    report["ok"] = report["mala_flagged"] and report["tempered_agrees"]
    return report


def _clear(out: Path) -> None:
    """Make the folder; one that an earlier demonstration wrote is emptied."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).exists())):
        raise FileExistsError(f"out={out} exists and was not written by the demonstration")
    for folder in ("mala", "tempered"):
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
        return f"{head:<24}" + "".join(f"{cell:>22}" for cell in cells) + f"{reference:>16}"

    def measured(head: str, key: str, digits: int) -> str:
        cells = [f"{r[key]:.{digits}f} ± {r[key + '_error']:.{digits}f}" for r in rows]
        return line(head, cells, f"{exact[key]:.{digits}f}")

    def plain(head: str, key: str, form: str, wanted: str = "") -> str:
        return line(head, [format(r[key], form) for r in rows], wanted)

    lines = [
        f"{report['target']}: two phases",
        "",
        line("", [r["sampler"] for r in rows], "exact or wanted"),
        plain("acceptance", "accept", ".3f"),
        measured("weight of the + phase", "weight_plus", 4),
        measured("E[φ_mid²]", "mid_square", 4),
        measured("mean energy per site", "energy", 4),
        plain("changes of phase", "mode_changes", ",d"),
        plain("R-hat, largest", "rhat_max", ".3f", f"< {RHAT_GOOD}"),
        plain("ESS bulk, smallest", "ess_bulk_min", ",.0f", f"> {MIN_ESS}"),
        plain("ESS per second", "ess_per_second", ",.0f"),
        plain("seconds", "seconds", ".1f"),
        line("verdict", [_short(r) for r in rows]),
        "",
    ]
    for r in rows:
        found = "; ".join(r["verdict"][:2]) or "nothing wrong was found"
        lines.append(f"{r['sampler']}: {found}")
    lines += [
        "",
        f"figure: {report['figure']}",
        f"runs saved: {' and '.join(r['folder'] for r in rows)}",
        f"  look: pysamp summary {rows[1]['folder']}    "
        f"after an interruption: pysamp resume {rows[1]['folder']}",
    ]
    if not report["mala_flagged"]:
        lines.append("FAILED: MALA was not reported as unmixed")
    if not report["tempered_agrees"]:
        lines.append("FAILED: tempering does not agree with the exact values within 4 errors")
    return "\n".join(lines)


def _short(row: dict[str, Any]) -> str:
    return "ok" if row["ok"] else "wrong" if row["rhat_max"] > 1.1 else "too short"
