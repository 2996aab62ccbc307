"""The command line: exit codes, one-line errors, run files, JSON, and a run from beginning to end."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from pysamp import _native, chains, cli, demo, exact, runfile, selftest, store
from pysamp.mcmc import HMC, MALA, Metropolis, ParallelTempering
from pysamp.targets import ON, EightGaussians, GaussianMixture, Phi4, Phi4Chain, TwoModes

TINY = """
target:
  name: GaussianMixture
  means: [[-1.0], [1.0]]
  covariances: [0.5, 0.5]
sampler: {name: MALA, step_size: 2e-1}
n_chains: 4
n_draws: 60
warmup: 10
seed: 3
dtype: float64
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def call(capsys, *args):
    """Exit code, stdout, stderr of one command line in this process."""
    code = cli.main([str(a) for a in args])
    out, err = capsys.readouterr()
    return code, out, err


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def refusal(path, *overrides):
    with pytest.raises(runfile.RunFileError) as caught:
        runfile.load(path, overrides)
    return str(caught.value)


# ------------------------------------------------------------------------------------- run files
def test_run_file_builds_what_it_describes(tmp_path):
    path = write(
        tmp_path,
        """
        target: {name: Phi4Chain, n_sites: 12, h: 25e-4}
        sampler:
          name: ParallelTempering
          kernel: {name: HMC, n_leapfrog: 7, step_size: 0.1}
          betas: [1, 0.5, 2.5e-1]
        n_chains: 1e1
        n_draws: 20
        dtype: float64
        """,
    )
    run = runfile.load(path)
    assert run.target == Phi4Chain(n_sites=12, h=0.0025)
    assert isinstance(run.sampler, ParallelTempering)
    assert run.sampler.betas == (1.0, 0.5, 0.25)
    assert isinstance(run.sampler.kernel, HMC)
    assert (run.sampler.kernel.n_leapfrog, run.sampler.kernel.step_size) == (7, 0.1)
    assert run.settings == {"n_chains": 10, "n_draws": 20, "dtype": torch.float64}


def test_short_forms_functions_and_tensors(tmp_path):
    run = runfile.load(write(tmp_path, "target: {name: TwoModes, dim: 3}\nsampler: MALA\n"))
    assert isinstance(run.sampler, MALA)
    assert torch.equal(run.target.means, TwoModes(3).means)
    run = runfile.load(
        write(
            tmp_path,
            """
            target: {name: GaussianMixture, means: [[0, 1e0], [2, 3]], covariances: [1, 0.5]}
            sampler: {name: ParallelTempering, kernel: MALA}
            """,
        )
    )
    assert torch.equal(run.target.means, torch.tensor([[0.0, 1], [2, 3]], dtype=torch.float64))
    assert isinstance(run.sampler.kernel, MALA)
    run = runfile.load(
        write(tmp_path, "target: {name: Phi4, shape: [4, 6], kappa: 0.2, lam: 1}\nsampler: MALA\n")
    )
    assert run.target == Phi4(shape=(4, 6), kappa=0.2, lam=1.0)


def test_lattice_of_spins_and_what_is_kept_of_it(tmp_path):
    """ON is a name here: YAML 1.1 would read a truth value."""
    path = write(
        tmp_path,
        """
        target: {name: ON, shape: [4, 4], n: 2, beta: 0.5, periodic: false}
        sampler: {name: Metropolis, width: 1}
        thin: 100
        keep: observables
        measure_every: 1e1
        """,
    )
    run = runfile.load(path)
    assert run.target == ON((4, 4), 2, 0.5, periodic=False)
    assert run.settings == {"thin": 100, "keep": "observables", "measure_every": 10}
    soft = runfile.load(path, ["target={name: SoftON, shape: [4], n: 3, r: -1, u: 1}"])
    assert soft.target == ON.soft((4,), 3, -1.0, 1.0)
    assert runfile.load(path, ["target=Phi4Chain"]).target == Phi4Chain()
    text = refusal(path, "measure_every=0")
    assert "measure_every must be a positive integer that divides thin, got 0" in text
    assert "did you mean keep?" in refusal(path, "kep=x")


def test_overrides(tiny):
    run = runfile.load(
        tiny, ["sampler.step_size=5e-2", "n_draws=7", "target=EightGaussians", "device=cpu"]
    )
    assert run.sampler.step_size == 0.05
    assert run.settings["n_draws"] == 7
    assert run.settings["device"] == "cpu"
    assert torch.equal(run.target.means, EightGaussians().means)
    run = runfile.load(tiny, ["sampler=Metropolis", "sampler.width=0.3"])
    assert isinstance(run.sampler, Metropolis)
    assert run.sampler.width == 0.3
    assert isinstance(runfile.load(tiny).target, GaussianMixture)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("n_chains: 4", "n_chians: 4", 7, ["n_chians", "value 4", "did you mean n_chains?"]),
        ("step_size", "stepsize", 6, ["sampler.stepsize", "'2e-1'", "did you mean step_size?"]),
        ("name: MALA", "name: mala", 6, ["sampler.name", "'mala'", "did you mean MALA?"]),
        ("GaussianMixture", "GaussMixture", 3, ["'GaussMixture'", "mean GaussianMixture?"]),
        ("n_draws: 60", "n_draws: many", 8, ["n_draws must be a positive integer", "'many'"]),
        ("n_draws: 60", "n_draws: 2.5", 8, ["n_draws must be a positive integer", "2.5"]),
        ("n_draws: 60", "n_draws: true", 8, ["n_draws must be a positive integer", "True"]),
        ("warmup: 10", "warmup: -1", 9, ["warmup must be an integer, 0 or more", "-1"]),
        ("float64", "float16", 11, ["dtype must be float32 or float64", "'float16'"]),
        ("2e-1", "small", 6, ["sampler.step_size must be", "a number", "'small'"]),
        ("2e-1", "-0.5", 6, ["step_size must be positive", "-0.5"]),
        ("[0.5, 0.5]", "[0.5, -0.5]", 5, ["covariances must be positive"]),
        ("[0.5, 0.5]", "half", 5, ["target.covariances must be a list of numbers", "'half'"]),
        ("seed: 3", "n_draws: 5", 10, ["n_draws is given twice"]),
    ],
)
def test_wrong_entry_is_named_with_its_line(tmp_path, old, new, line, words):
    assert old in TINY
    path = write(tmp_path, TINY.replace(old, new))
    text = refusal(path)
    assert f"run.yaml, line {line}:" in text
    for word in words:
        assert word in text


def test_wrong_files_and_overrides(tiny, tmp_path):
    assert "no_such.yaml" in refusal(tmp_path / "no_such.yaml")
    assert "target is missing" in refusal(write(tmp_path, "sampler: MALA\n"))
    assert "means is missing" in refusal(
        write(tmp_path, "sampler: MALA\ntarget: {name: GaussianMixture, covariances: [1]}\n")
    )
    assert "target.name is missing" in refusal(write(tmp_path, "sampler: MALA\ntarget: {dim: 2}\n"))
    assert "line 2" in refusal(write(tmp_path, "target: {name: a\nsampler: ]\n"))
    assert "mapping" in refusal(write(tmp_path, "- 1\n"))
    unsafe = write(tmp_path, "target: !!python/object/apply:os.getcwd []\nsampler: MALA\n")
    assert "not valid YAML" in refusal(unsafe)
    text = refusal(tiny, "sampler.stepsize=0.1")
    assert text.startswith("-o sampler.stepsize=0.1: ")
    assert "did you mean step_size?" in text
    assert "key=value" in refusal(tiny, "n_draws")
    assert "n_draws is 60" in refusal(tiny, "n_draws.x=1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("target: {name: [Phi4Chain]}\nsampler: MALA\n", "unknown target ['Phi4Chain']"),
        ("sampler: MALA\n1: 2\n", "line 2: keys must be words"),
        ("sampler: MALA\n? [a, b]\n: 2\n", "line 2: keys must be words"),
        ("target: &a {name: Tempered, base: *a}\nsampler: MALA\n", "target.base contains itself"),
        ("target: &a [1, *a]\nsampler: MALA\n", "target.1 contains itself"),
    ],
)
def test_yaml_that_is_no_run_file_is_one_error(tmp_path, text, words):
    assert words in refusal(write(tmp_path, text))


def test_odd_yaml_of_overrides(tiny):
    assert "contains itself" in refusal(tiny, "target=&a {name: Tempered, base: *a}")
    assert "keys must be words" in refusal(tiny, "target={1: 2}")


def test_lists_may_hold_mappings_and_keys_may_be_merged(tmp_path):
    run = runfile.load(
        write(
            tmp_path,
            """
            target: {name: Phi4, shape: [4], kappa: 0.2, lam: 1}
            sampler: &s {name: MALA, <<: {step_size: 0.3}}
            """,
        )
    )
    assert run.sampler.step_size == 0.3


def test_every_public_sampler_and_target_can_be_named():
    assert {"MALA", "ULA", "HMC", "Metropolis", "ParallelTempering"} <= set(runfile.samplers())
    found = runfile.targets()
    assert {"Phi4Chain", "Phi4", "GaussianMixture", "EightGaussians", "Funnel"} <= set(found)
    assert "lattice_colours" not in found
    for name, make in found.items():
        assert "log_prob" in dir(runfile.made_by(make)), name


# ------------------------------------------------------------------------------------- errors
def test_input_errors_are_one_line_and_exit_code_2(capsys, tiny, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    cases = [
        (["run", tmp_path / "absent.yaml"], "absent.yaml"),
        (["run", tiny, "-o", "sampler.step_sise=1"], "did you mean step_size?"),
        (["run", tiny, "-o", "device=abacus", "--out", tmp_path / "a"], "'abacus'"),
        (["run", tiny, "--out", tmp_path / "taken"], "taken"),
        (["summary", tmp_path / "nowhere"], "nowhere"),
        (["resume", tmp_path], "manifest.json"),
        (["plot", tmp_path / "nowhere"], "nowhere"),
        (["cite", "MALLA"], "did you mean MALA?"),
        (["demo", "--out", tmp_path / "taken"], "was not written by the demonstration"),
        (["demo", "--seed", "-1"], "--seed"),
        (["run"], "FILE"),
        (["no-such-command"], "no-such-command"),
        (["run", tiny, "--no-such-option"], "--no-such-option"),
    ]
    for args, word in cases:
        code, out, err = call(capsys, *args)
        assert code == 2, (args, err)
        assert out == "", args
        assert err.startswith("error: "), (args, err)
        assert err.count("\n") == 1, (args, err)
        assert word in err, (args, err)
    assert (tmp_path / "taken" / "notes.txt").read_text() == "mine"


def test_no_arguments_show_the_help(capsys):
    code, out, err = call(capsys)
    assert (code, err) == (0, "")
    assert "Usage: pysamp" in out


def test_debug_shows_the_traceback(capsys, tmp_path):
    code, _, err = call(capsys, "run", tmp_path / "absent.yaml", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: ")


def test_a_run_that_fails_exits_with_1(capsys, tiny, tmp_path, monkeypatch):
    def broken(self, target, state, n=1, *, thin=None):
        raise RuntimeError("the kernel broke")

    monkeypatch.setattr(MALA, "step", broken)
    code, out, err = call(capsys, "run", tiny, "--out", tmp_path / "r")
    assert (code, out, err) == (1, "", "error: the kernel broke\n")
    monkeypatch.setenv("RANK", "3")
    code, out, err = call(capsys, "run", tiny, "--out", tmp_path / "r3")
    assert (code, out, err) == (1, "", "error (rank 3): the kernel broke\n")


def test_other_ranks_are_silent(capsys, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert call(capsys, "run", tiny, "--out", tmp_path / "r") == (0, "", "")
    assert call(capsys, "run", tmp_path / "absent.yaml") == (2, "", "")


def test_a_rank_that_is_no_number_is_an_error_of_one_line_where_it_matters(
    capsys, tiny, tmp_path, monkeypatch
):
    monkeypatch.setenv("RANK", "x")
    code, out, err = call(capsys, "targets")
    assert (code, err) == (0, "") and "Phi4Chain" in out
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, err = call(capsys, "run", tiny, "--out", tmp_path / "a")
    assert (code, out) == (2, "")
    assert err == "error: RANK must be set by torchrun to a number, got 'x'\n"


def test_missing_kernels_that_were_demanded_are_an_error_of_one_line(capsys, monkeypatch):
    def demand():
        raise RuntimeError("native kernels are required, but none could be imported")

    monkeypatch.setattr(selftest, "doctor", demand)
    code, out, err = call(capsys, "doctor")
    assert (code, out) == (1, "")
    assert err.startswith("error: native kernels are required")


# ------------------------------------------------------------------------------------- a whole run
def test_run_summary_plot_resume(capsys, tiny, tmp_path):
    folder = tmp_path / "run"
    code, out, err = call(capsys, "run", tiny, "--out", folder, "-o", "n_draws=80")
    assert (code, err) == (0, "")
    assert "4 chains × 80 draws" in out
    assert "verdict" in out
    assert f"pysamp plot {folder}" in out

    code, text, _ = call(capsys, "summary", folder)
    assert code == 0
    assert text.splitlines()[0] == out.splitlines()[0]
    code, text, err = call(capsys, "summary", folder, "--json")
    assert (code, err) == (0, "")
    found = json.loads(text)
    assert found["status"] == "done"
    assert found["n_draws"] == 80
    samples = store.read(folder)
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["x[0]"]["mean"] == pytest.approx(float(samples.x.mean()), rel=1e-12)
    assert len(found["modes"]) == 2  # the target was rebuilt from the folder

    code, text, _ = call(capsys, "plot", folder)
    assert (code, text) == (0, f"figure: {folder / 'summary.png'}\n")
    assert (folder / "summary.png").stat().st_size > 10_000
    code, text, err = call(capsys, "plot", folder, "--out", tmp_path / "x.nonsense")
    assert (code, text) == (2, "")
    assert "x.nonsense" in err

    code, text, _ = call(capsys, "resume", folder)
    assert code == 0
    assert text == out
    code, text, err = call(capsys, "run", tiny, "--out", folder, "-o", "n_draws=80")
    assert code == 2
    assert "this same run" in err


def test_interrupted_run_says_how_to_go_on_and_goes_on(capsys, tiny, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    big = ["-o", "n_draws=400"]
    assert call(capsys, "run", tiny, *big, "--out", whole)[0] == 0

    step = MALA.step
    calls = 0

    def interrupted(self, target, state, n=1, *, thin=None):
        nonlocal calls
        calls += thin is not None
        if calls == 3:
            raise KeyboardInterrupt
        return step(self, target, state, n, thin=thin)

    monkeypatch.setattr(chains, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(MALA, "step", interrupted)
    code, out, err = call(capsys, "run", tiny, *big, "--out", cut)
    assert (code, out) == (1, "")
    assert err == f"error: interrupted; go on with: pysamp resume {cut}\n"
    monkeypatch.setattr(MALA, "step", step)

    code, out, _ = call(capsys, "summary", cut)
    assert code == 0
    assert "256 draws" in out
    assert f"go on with: pysamp resume {cut}" in out
    assert call(capsys, "resume", cut)[0] == 0
    assert torch.equal(store.read(cut).x, store.read(whole).x)


def test_default_folder_and_the_one_in_the_file(capsys, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "run", tiny)[0] == 0
    assert (tmp_path / "runs" / "tiny" / "manifest.json").is_file()
    assert call(capsys, "run", tiny, "-o", "out=elsewhere")[0] == 0
    assert (tmp_path / "elsewhere" / "manifest.json").is_file()


# ------------------------------------------------------------------------------------- the others
def test_doctor(capsys, monkeypatch):
    code, out, err = call(capsys, "doctor", "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report["ok"] is True
    assert report["torch"] == torch.__version__
    if _native.backend_name() == "native":
        assert {row["op"] for row in report["selftest"]} >= {"normal", "sum32", "phi4"}
        assert all(row["ok"] for row in report["selftest"])
    if not torch.cuda.is_available():
        assert report["cuda"]["devices"] == []
    code, out, _ = call(capsys, "doctor")
    assert code == 0
    assert "nothing wrong was found" in out
    assert max(map(len, out.splitlines())) <= 100

    def one_wrong():
        return [("phi4", "cpu", "float32", False, "largest difference 0.5")]

    monkeypatch.setattr(selftest.ops, "selftest", one_wrong)
    with _native.backend("native"):
        code, out, _ = call(capsys, "doctor")
    assert code == 1
    assert "phi4 on cpu in float32: largest difference 0.5" in " ".join(out.split())
    assert "mend" in out


def test_doctor_without_compiled_modules(monkeypatch):
    bare = {
        "backend": "torch",
        "machine": "x86_64",
        "cpu_capability": "AVX2",
        "cpu_module": None,
        "cpu_isa": None,
        "cpu_reason": "No module named 'pysamp._cpu'",
        "cuda_module": False,
        "cuda_architectures": None,
        "cuda_reason": "No module named 'pysamp._cuda'",
        "cuda_available": False,
    }
    monkeypatch.setattr(_native, "info", lambda: bare)
    monkeypatch.delenv("PYSAMP_BACKEND", raising=False)
    monkeypatch.delenv("PYSAMP_REQUIRE", raising=False)
    report = selftest.doctor()
    assert report["ok"] is True
    assert report["selftest"] == []
    assert selftest.BUILD in selftest.text(report)
    monkeypatch.setenv("PYSAMP_REQUIRE", "cpu")
    report = selftest.doctor()
    assert report["ok"] is False
    assert report["faults"][0]["command"] == selftest.BUILD
    assert "PYSAMP_REQUIRE=cpu" in report["faults"][0]["cause"]


def test_targets_lists_parameters_formula_and_what_is_exact(capsys):
    code, out, _ = call(capsys, "targets")
    assert code == 0
    block = next(b for b in out.split("\n\n") if b.startswith("Phi4Chain("))
    assert block.splitlines()[0] == "Phi4Chain(n_sites=100, a=0.1, beta=20.0, h=0.0)"
    assert "log p = −β [" in block
    assert "[native kernel; exact mode weights; exact log Z; exact draws]" in block
    board = next(b for b in out.split("\n\n") if b.startswith("Checkerboard("))
    assert "native" not in board
    assert "exact draws" in board


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("MALA", ["pysamp.mcmc.langevin", "Roberts and Tweedie", "1996"]),
        ("hmc", ["pysamp.mcmc.hmc", "Duane"]),
        ("ParallelTempering", ["Swendsen and Wang"]),
        ("EightGaussians", ["2402.10758"]),
        ("adapt", ["Hoffman and Gelman"]),
    ],
)
def test_cite(capsys, method, words):
    code, out, _ = call(capsys, "cite", method)
    assert code == 0
    for word in words:
        assert word in out


def test_bench_prints_one_object(capsys, monkeypatch):
    from pysamp import quickbench

    tiny = {"cases": [], "cpu": "none", "rate": float("nan")}
    monkeypatch.setattr(quickbench, "quick", lambda: tiny)
    code, out, err = call(capsys, "bench", "--quick", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"cases": [], "cpu": "none", "rate": None}


SMALL = demo.Size(
    chains=8,
    draws=40,
    warmup=100,
    tempered_chains=2,
    tempered_draws=40,
    tempered_warmup=20,
    n_rungs=4,
    training=4,
    flow_chains=4,
    flow_draws=10,
)


def test_demo_writes_its_folder_and_reports_honestly(capsys, tmp_path, monkeypatch):
    full = demo.demo
    monkeypatch.setattr(demo, "demo", lambda out, seed: full(out, seed=seed, size=SMALL))
    out = tmp_path / "d"
    code, text, _ = call(capsys, "demo", "--out", out, "--json")
    report = json.loads(text)
    assert code == (0 if report["ok"] else 1)
    mala, tempered, flow = report["rows"]
    reference = exact.phi4_chain(64, 0.1, 20.0, 0.0025)
    assert report["exact"]["weight_plus"] == pytest.approx(0.31327, abs=1e-5)
    assert report["exact"]["log_z"] == pytest.approx(-119.79467, abs=1e-4)
    assert report["exact"]["energy"] == pytest.approx(reference.energy / 64)
    for row in (mala, tempered, flow):
        assert (tmp_path / "d" / row["folder"].rsplit("/", 1)[-1] / "manifest.json").is_file()
        assert len(row["verdict"]) > 0  # so few draws are never enough
        assert not row["ok"]
    assert mala["mode_changes"] == 0
    assert mala["weight_plus"] == 1.0
    assert "log_z" in flow and "log_z" not in tempered
    assert (out / "demo.png").stat().st_size > 20_000

    code, text, _ = call(capsys, "demo", "--out", out)  # overwrites what it wrote itself
    assert "flow-MCMC" in text
    assert "0.3133" in text
    assert "-119.79" in text
    assert max(map(len, text.splitlines()[:16])) <= 100
    assert ("FAILED" in text) == (code == 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_demo_is_right_for_any_seed(tmp_path, seed):
    report = demo.demo(tmp_path / "d", seed=seed, progress=False)
    mala, tempered, flow = report["rows"]
    assert report["ok"]
    assert any("never visited" in sentence for sentence in mala["verdict"])
    for row in (tempered, flow):
        assert row["ok"], row["verdict"]
        assert row["weight_plus_error"] < 0.03
        # three standard errors: ten fixed seeds, all seen to hold
        error = row["weight_plus"] - report["exact"]["weight_plus"]
        assert abs(error) < 3 * row["weight_plus_error"]
    assert abs(flow["log_z"] - report["exact"]["log_z"]) < 0.1


# ------------------------------------------------------------------------------------- processes
def python(*args, **env):
    return subprocess.run(
        [sys.executable, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **env},
    )


def test_help_needs_no_torch():
    code = (
        "import sys, pysamp.cli; code = pysamp.cli.main(['--help'])\n"
        "sys.exit(code or 10 * ('torch' in sys.modules or 'zarr' in sys.modules))"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    for command in (
        "doctor",
        "demo",
        "run",
        "resume",
        "summary",
        "plot",
        "bench",
        "targets",
        "cite",
    ):
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE), command


def test_module_runs_and_progress_is_plain_lines(tiny, tmp_path):
    done = python("-m", "pysamp", "run", tiny, "--out", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    assert "verdict" in done.stdout
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert (tmp_path / "r" / "manifest.json").is_file()
