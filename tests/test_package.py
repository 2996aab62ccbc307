"""What is in the wheel: its links, its symbols, and how it behaves where kernels are missing."""

import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import torch

import pysamp
from pysamp import _native

PACKAGE = pathlib.Path(_native.__file__).parent


def modules():
    """The compiled modules, in the package or where an editable install keeps them."""
    found = []
    for name in ("_cpu", "_cpu_v3", "_cpu_v4", "_cuda"):
        spec = importlib.util.find_spec(f"pysamp.{name}")
        if spec is not None:
            found.append(pathlib.Path(spec.origin))
    return found


def run(code, **environment):
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run([sys.executable, "-c", code], env=here, capture_output=True, text=True)


def test_no_torch_and_no_cuda_library_is_linked():
    """One wheel serves every torch and imports without a driver."""
    DynamicSection = pytest.importorskip("elftools.elf.dynamic").DynamicSection
    ELFFile = pytest.importorskip("elftools.elf.elffile").ELFFile
    paths = modules()
    if not paths:
        pytest.skip("no compiled module: nothing is linked")
    for path in paths:
        with path.open("rb") as file:
            dynamic = ELFFile(file).get_section_by_name(".dynamic")
            assert isinstance(dynamic, DynamicSection)
            needed = [tag.needed for tag in dynamic.iter_tags("DT_NEEDED")]
        assert needed, path
        for library in needed:
            assert not re.search(r"torch|c10|cuda|cudart|nvrtc", library), f"{path.name}: {library}"


def test_nothing_but_the_init_function_is_exported():
    """No symbol of one instruction set can serve another."""
    ELFFile = pytest.importorskip("elftools.elf.elffile").ELFFile
    for path in modules():
        with path.open("rb") as file:
            table = ELFFile(file).get_section_by_name(".dynsym")
            names = {
                symbol.name
                for symbol in table.iter_symbols()
                if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] != "STB_LOCAL"
            }
        ours = {n for n in names if "pysamp" in n and not n.startswith("PyInit_")}
        assert not ours, f"{path.name} exports {sorted(ours)[:3]}"


def test_the_baseline_module_holds_no_avx():
    """x86-64 means SSE2: not one instruction of a later vector extension."""
    tool = shutil.which("objdump")
    baseline = [p for p in modules() if p.name.startswith("_cpu.")]
    if tool is None or not baseline:
        pytest.skip("needs objdump and the baseline module")
    from importlib import import_module

    if import_module("pysamp._cpu").isa != "baseline":
        pytest.skip("a development build for this machine alone")
    text = subprocess.run(
        [tool, "-d", "--no-show-raw-insn", str(baseline[0])],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "mulps" in text
    assert not re.search(r"%[yz]mm|\tv[a-z]+ ", text)


def test_without_compiled_modules_pysamp_runs_in_torch_and_says_so_once(tmp_path):
    shutil.copytree(
        PACKAGE, tmp_path / "pysamp", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]) if len(sys.argv) > 1 else None\n"
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    import pysamp as ps\n"
        "    samples = ps.sample(ps.targets.Phi4Chain(6), ps.MALA(0.01), n_chains=4, n_draws=5,\n"
        "                        progress=False)\n"
        "    ps.sample(ps.targets.Phi4((4, 4), 0.2, 0.1), ps.Metropolis(0.5), n_chains=4, n_draws=2,\n"
        "              progress=False)\n"
        "said = [w for w in seen if 'pure torch' in str(w.message)]\n"
        "assert len(said) == 1, [str(w.message) for w in seen]\n"
        "print(ps.__file__, samples.info['backend'], samples.x.isfinite().all().item())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "pysamp" / "__init__.py"), "torch", "True"]
    environment["PYSAMP_BACKEND"] = "native"
    done = subprocess.run(
        [sys.executable, "-c", "import pysamp; pysamp.backend"],
        env=environment, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode != 0
    assert "native kernels are required" in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("PYSAMP_BACKEND", "cpu", "PYSAMP_BACKEND must be one of native, torch, got 'cpu'"),
        ("PYSAMP_REQUIRE", "gpu", "PYSAMP_REQUIRE must be one of cpu, cuda, got 'gpu'"),
    ],
)
def test_bad_environment(name, value, text):
    done = run("import pysamp; pysamp.backend", **{name: value})
    assert done.returncode != 0
    assert text in done.stderr


def test_a_missing_device_can_be_made_an_error():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    done = run("import pysamp; pysamp.backend", PYSAMP_REQUIRE="cuda")
    assert done.returncode != 0
    assert "PYSAMP_REQUIRE=cuda, but" in done.stderr


def test_backend_is_a_context():
    before = _native.backend_name()
    with pysamp.backend("torch"):
        assert _native.backend_name() == "torch"
        assert _native.module_for(torch.device("cpu")) is None
    assert _native.backend_name() == before
    with pytest.raises(ValueError, match="backend must be 'native' or 'torch', got 'cuda'"):
        pysamp.backend("cuda").__enter__()


def test_public_names():
    for name in pysamp.__all__:
        assert getattr(pysamp, name) is not None
    assert len(pysamp.__all__) <= 45  # a kernel or sampler for each method
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        pysamp.nonsense  # noqa: B018
    assert importlib.metadata.version("pysamp") == pysamp.__version__


def test_names_do_not_depend_on_what_was_imported_first():
    code = (
        "import pysamp.sampling, pysamp.samples, pysamp.selftest, pysamp as ps\n"
        "assert callable(ps.sample) and callable(ps.resume) and callable(ps.doctor)\n"
        "assert ps.targets.Phi4Chain and ps.metrics.rhat and ps.rng.normal and ps.exact.phi4_chain\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_headers_are_at_hand():
    headers = {p.name for p in pathlib.Path(pysamp.include_path()).glob("*.h")}
    assert {"bindings.h", "chains.h", "energy.h", "hd.h", "launch.h", "philox.h"} <= headers


def test_a_backend_is_chosen_for_one_thread_alone():
    import threading

    inside, leave, seen = threading.Event(), threading.Event(), []

    def other():
        with pysamp.backend("torch"):
            inside.set()
            leave.wait(10)
            seen.append(_native.backend_name())

    before = _native.backend_name()
    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(10)
    assert _native.backend_name() == before
    leave.set()
    thread.join()
    assert seen == ["torch"]
    assert _native.backend_name() == before
