"""Two phases of a φ⁴ field: MALA misses one, a flow learned while sampling finds the weights and log Z.

The target is the φ⁴ chain of Grenioux, Durmus, Moulines, Gabrié (2023), arXiv 2302.04763, with N = 64,
a = 0.1, β = 20, in a field h = 0.0025: its phases weigh 0.687 and 0.313 by transfer matrix. MALA starts in
one of them and never crosses the barrier. Replica exchange carries fields over through hotter copies.
Flow-MCMC starts walkers in both phases, half and half, learns a flow from them, and proposes with it; the
global moves set the weights right, and importance sampling with the flow gives log Z. The verdicts are
those that `Samples.summary` gives of any run.
"""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pysamp import _native
from pysamp.mcmc.hmc import HMC
from pysamp.mcmc.langevin import MALA
from pysamp.mcmc.tempering import ParallelTempering
from pysamp.nets import Normal, RealNVP
from pysamp.plots import plot_demo
from pysamp.samplers.flow_mcmc import FlowMCMC
from pysamp.samples import Samples
from pysamp.sampling import sample
from pysamp.targets.phi4 import Phi4Chain
from pysamp.timing import using_threads
from pysamp.verdict import MIN_ESS, RHAT_BAD, RHAT_GOOD, Z_LIMIT

MARK = "demo.txt"  # a folder with this file is ours to overwrite


N_SITES = 64


@dataclass(frozen=True)
class Size:
    """How much is drawn.

    The ladder is dense because exchanges cost next to nothing: with 32 rungs 4 of 5 are accepted, and
    copies travel rather than diffuse. Of the same cost, few long tempered chains are judged more
    sharply than many short ones: R-hat looks at each chain by itself.
    """

    chains: int = 64  # of MALA, whose steps are short: every thin-th is kept
    draws: int = 500
    thin: int = 100
    warmup: int = 3000
    tempered_chains: int = 4
    tempered_draws: int = 10_000
    tempered_warmup: int = 500
    n_rungs: int = 32
    training: int = 400  # steps of 1024 walkers
    flow_chains: int = 16
    flow_draws: int = 6000


FULL = Size()
TENTH = Size(  # for pure torch
    warmup=300, thin=10, tempered_draws=1000, tempered_warmup=100, training=200, flow_draws=3000
)
THREADS = 1  # a call does 0.3 ms of work: waking a second thread costs as much as it saves


def demo(
    out: str | Path, *, seed: int = 0, size: Size | None = None, progress: bool = True
) -> dict[str, Any]:
    """Run the samplers into the folder `out`, with a figure; return their numbers and the exact ones.

    "ok" is True if MALA was reported as wrong, and the two others agree with every exact value within 4
    of their standard errors. Without native kernels a tenth is drawn.
    Raises FileExistsError if `out` holds anything but an earlier demonstration.
    """
    if size is None:
        size = FULL if _native.backend_name() == "native" else TENTH
    out = Path(out)
    _clear(out)
    target = Phi4Chain(n_sites=N_SITES, a=0.1, beta=20.0, h=0.0025)
    plus = torch.ones(N_SITES)
    tempered = ParallelTempering(
        HMC(n_leapfrog=24), n_rungs=size.n_rungs, beta_min=0.2, swap_every=4
    )
    flow = FlowMCMC(
        RealNVP(N_SITES, hidden=64, base=Normal.from_precision(target.coupled_precision)),
        start=torch.stack([plus, -plus]), n_steps=size.training, sampler="ex2", n_candidates=5,
        n_chains=size.flow_chains,
    )  # fmt: skip
    of_mala = {
        "n_chains": size.chains, "n_draws": size.draws, "warmup": size.warmup, "thin": size.thin,
        "x0": plus.expand(size.chains, -1),
    }  # fmt: skip
    of_tempering = {
        "n_chains": size.tempered_chains, "n_draws": size.tempered_draws,
        "warmup": size.tempered_warmup,
    }  # fmt: skip
    of_flow = {"n_chains": size.flow_chains, "n_draws": size.flow_draws}
    plan: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        ("MALA", MALA(), of_mala),
        ("tempered HMC", tempered, of_tempering),
        ("flow-MCMC", flow, of_flow),
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
        "log_z": target.log_z,
    }
    flagged = bool(rows[0]["verdict"])
    wrong = [
        f"{row['sampler']}: {key.replace('_', ' ')}"
        for row in rows[1:]
        for key, value in exact.items()
        if key in row and not abs(row[key] - value) <= Z_LIMIT * row[f"{key}_error"]
    ]
    return {
        "target": repr(target),
        "seed": seed,
        "backend": _native.backend_name(),
        "exact": exact,
        "rows": rows,
        "folder": str(out),
        "figure": str(out / "demo.png"),
        "local_flagged": flagged,
        "disagree": wrong,
        "ok": flagged and not wrong,
    }


_FOLDERS = {"MALA": "mala", "tempered HMC": "tempered-hmc", "flow-MCMC": "flow-mcmc"}


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
    more: dict[str, Any] = {k: facts[k] for k in ("log_z", "log_z_error") if k in facts}
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
        **more,
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
        cells = [f"{r[key]:.4f} ± {r[key + '_error']:.4f}" if key in r else "–" for r in rows]
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
        measured("log Z", "log_z"),
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
    lines.append(f"look: pysamp summary {last}   pysamp plot {last}")
    if report["backend"] == "torch":
        lines.append("pure torch, without native kernels: a tenth of the draws; see pysamp doctor")
    if not report["local_flagged"]:
        lines.append("FAILED: MALA was not reported as wrong")
    if report["disagree"]:
        wrong = "; ".join(report["disagree"])
        lines.append(f"FAILED: more than {Z_LIMIT:g} errors from the exact values: {wrong}")
    return "\n".join(lines)


def _in_a_word(row: dict[str, Any]) -> str:
    if row["ok"]:
        return "ok"
    if any("never visited" in sentence for sentence in row["verdict"]):
        return "a phase missed"
    return "not mixed" if row["rhat_max"] > RHAT_BAD else "draw longer"
