"""What the source must look like: layers, owners of powers, tables that agree, budgets, words."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import subprocess
from pathlib import Path

import pytest

import pysamp
from pysamp import ops, rng

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pysamp"

# A module imports from rows above its own, and from its own package. A package counts as one.
ROWS = (
    ("_native",),
    ("reference",),
    ("energies", "couplings"),
    ("ops",),
    ("rng", "distributed"),
    ("capabilities", "yaml_file"),
    ("target", "metrics", "schedules", "exact", "verdict", "errors", "lattice"),
    ("fingerprint", "check", "summary"),
    ("describe", "samples"),
    ("tally",),
    ("targets", "nets", "train"),
    ("mcmc",),
    ("samplers", "theory"),
    ("plan", "store", "plots"),
    ("measure", "lattice_plots"),
    ("chains",),
    ("sampling",),
    ("opponents", "timing"),
    ("quickbench",),
    ("runfile", "demo", "selftest"),
    ("evaluate",),
    ("experiments",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, row in enumerate(ROWS) for name in row}

# Imports against the order, all inside functions so that no import cycle exists.
LAZY_UPWARDS = {
    ("samples", "plots"): "Samples.plot is a convenience, and matplotlib is slow to import",
}
# Who may look at the public face, pysamp/__init__.py, which itself may import from every row.
FACE_USERS = {
    "selftest": "reports the version",
    "quickbench": "reports the version",
    "runfile": "finds samplers by the names that users know",
    "cli": "prints the version",
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """The module or package of the order that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def in_folder(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports_of(node: ast.AST, lazy: bool = False) -> list[tuple[str, bool, int]]:
    """Dotted names imported at run time, whether inside a function, and the line."""
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            found += [(alias.name, lazy, child.lineno) for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: imports are absolute"
            found += [(f"{child.module}.{alias.name}", lazy, child.lineno) for alias in child.names]
        elif is_type_checking(child):
            found += [edge for other in child.orelse for edge in imports_of(other, lazy)]
        else:
            inside = lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            found += imports_of(child, inside)
    return found


def names_in(node: ast.AST) -> list[tuple[str, int]]:
    """Every dotted name that is read, and the line: torch.nn.init.normal_ is one of them."""
    return [
        (ast.unparse(part), part.lineno)
        for part in ast.walk(node)
        if isinstance(part, (ast.Attribute, ast.Name))
    ]


# ------------------------------------------------------------------------------------- layers
@pytest.mark.parametrize("path", MODULES, ids=in_folder)
def test_modules_import_from_lower_layers_only(path):
    own = name_of(path)
    if own == "__init__":
        return  # the face collects what is public from every row
    assert own in LEVEL, f"{in_folder(path)} has no row in ROWS"
    for dotted, lazy, line in imports_of(tree_of(path)):
        parts = dotted.split(".")
        if parts[0] != "pysamp":
            continue
        where = f"{in_folder(path)}:{line} imports {dotted}"
        other = parts[1] if len(parts) > 1 else "__init__"
        if other not in LEVEL:  # a name of the face, not a module
            assert own in FACE_USERS, f"{where}: only {sorted(FACE_USERS)} use the public face"
        elif other != own and LEVEL[other] >= LEVEL[own]:
            excused = lazy and (own, other) in LAZY_UPWARDS
            assert excused, f"{where}, which is not below {own}"


def test_exceptions_to_the_order_are_in_use():
    edges = {
        (name_of(path), [*dotted.split("."), "__init__"][1])
        for path in MODULES
        for dotted, _, _ in imports_of(tree_of(path))
        if dotted.split(".")[0] == "pysamp"
    }
    assert set(LAZY_UPWARDS) <= edges


# ------------------------------------------------------------------------------------- powers
RANDOM = (
    r"torch\.(rand|randn|randint|randperm|normal|bernoulli|multinomial|poisson)(_like)?",
    r"torch\.(cuda\.|random\.)?(manual_seed|manual_seed_all|seed|initial_seed|Generator)",
    r"torch\.nn\.init\..*|nn\.init\..*",
    r"(np|numpy)\.random(\..*)?",
    r".*\.(normal_|uniform_|random_|bernoulli_|exponential_|cauchy_|geometric_|log_normal_)",
)
PICKLE = (r"torch\.(save|load)", r"(pickle|cloudpickle|dill|joblib|shelve|marshal)(\..*)?")
OWNERS = {  # a pattern of dotted names, and the files of pysamp/ that may use them
    # a benchmark times against what one would write without pysamp
    "random numbers": (RANDOM, ("opponents.py", "quickbench.py")),
    "print": ((r"print", r"sys\.stdout(\..*)?", r"typer\.echo", r"typer\.secho"), ("cli.py",)),
    "torch.library": ((r"torch\.library(\..*)?",), ("ops.py",)),
    "optimiser steps": ((r"torch\.optim(\..*)?", r"optim(izer|iser)\.step"), ("train.py",)),
    # the command line meets numbers of torch and numpy without importing them
    "hasattr": ((r"hasattr",), ("cli.py",)),
}
BANNED_IMPORTS = {  # top-level modules, and the files of pysamp/ that may import them
    "random": (),
    "secrets": (),
    "zarr": ("store.py",),
}


@pytest.mark.parametrize("path", MODULES, ids=in_folder)
def test_powers_have_one_owner(path):
    inside = path.relative_to(PACKAGE).as_posix()
    for dotted, line in names_in(tree_of(path)):
        for power, (patterns, owners) in OWNERS.items():
            used = any(re.fullmatch(pattern, dotted) for pattern in patterns)
            assert not used or inside in owners, f"{in_folder(path)}:{line}: {dotted} ({power})"
    for dotted, _, line in imports_of(tree_of(path)):
        parts = dotted.split(".")
        native = any(re.fullmatch(r"_(cpu(_v[34])?|cuda)", part) for part in parts)
        assert not native or inside == "_native.py", f"{in_folder(path)}:{line}: {dotted}"
        owners = BANNED_IMPORTS.get(parts[0])
        assert owners is None or inside in owners, f"{in_folder(path)}:{line}: {dotted}"


def python_files() -> list[Path]:
    folders = ("pysamp", "tests", "benchmarks", "examples", "docs")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", python_files(), ids=in_folder)
def test_nothing_is_pickled(path):
    names = [*names_in(tree_of(path)), *((d, n) for d, _, n in imports_of(tree_of(path)))]
    for dotted, line in names:
        pickled = any(re.fullmatch(pattern, dotted) for pattern in PICKLE)
        assert not pickled, f"{in_folder(path)}:{line}: {dotted}"


def test_the_patterns_catch_what_they_name():
    caught = (
        "torch.rand torch.randn_like torch.manual_seed np.random.default_rng x.normal_ "
        "torch.nn.init.xavier_uniform_ torch.Generator torch.random.manual_seed"
    )
    for dotted in caught.split():
        assert any(re.fullmatch(pattern, dotted) for pattern in RANDOM), dotted
    for dotted in ("rng.normal", "ops.uniform", "torch.no_grad", "rng.STREAMS", "torch.nn.Linear"):
        assert not any(re.fullmatch(pattern, dotted) for pattern in RANDOM), dotted
    source = "if TYPE_CHECKING:\n    import a\ndef f():\n    from b import c\nimport d.e\n"
    assert imports_of(ast.parse(source)) == [("b.c", True, 4), ("d.e", False, 5)]


# ------------------------------------------------------------------------------------- tables
def test_every_op_has_samples_to_test_it_with():
    samples = importlib.import_module("op_samples").SAMPLES
    assert set(samples) == set(ops.TABLE)


def test_every_op_has_a_benchmark():
    tree = tree_of(ROOT / "benchmarks" / "cases.py")
    used = {dotted.rpartition(".")[2] for dotted, _ in names_in(tree)}
    used |= {
        word
        for part in ast.walk(tree)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
        for word in re.findall(r"\w+", part.value)
    }
    for op in ops.TABLE:
        assert any(word == op or word.startswith(f"{op}_") for word in used), op


def test_streams_of_python_are_those_of_c():
    text = (ROOT / "csrc" / "streams.h").read_text(encoding="utf-8")
    native = {name.lower(): int(number) for name, number in re.findall(r"(\w+) = (\d+),", text)}
    assert native == rng.STREAMS
    assert len(set(native.values())) == len(native)
    assert all(0 <= number < 200 for number in native.values())


# ------------------------------------------------------------------------------------- words
def public() -> list[str]:
    listed = getattr(pysamp, "__all__", None)
    return sorted(listed or [name for name in vars(pysamp) if not name.startswith("_")])


@pytest.mark.parametrize("name", public())
def test_what_is_public_is_documented(name):
    value = getattr(pysamp, name)
    if not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)):
        return
    text = (value.__doc__ or "").strip()
    # a dataclass without a docstring shows its signature instead
    signature = f"{getattr(value, '__name__', name)}("
    assert text.removeprefix(signature) == text != "", name


NO_PAPER = {  # plumbing of a package of algorithms
    "mcmc/base.py": "the protocol of a kernel",
    "mcmc/fused.py": "the calls of the native chains",
}
PAPER = re.compile(r"arxiv[: ]*\d{4}\.\d{4,5}|doi|\b(19|20)\d\d\b", re.IGNORECASE)


@pytest.mark.parametrize(
    "path",
    [
        path
        for package in ("targets", "mcmc", "samplers", "theory", "nets", "experiments")
        for path in sorted((PACKAGE / package).glob("*.py"))
        if path.name != "__init__.py" and path.relative_to(PACKAGE).as_posix() not in NO_PAPER
    ],
    ids=in_folder,
)
def test_algorithms_name_their_paper(path):
    header = ast.get_docstring(tree_of(path)) or ""
    assert PAPER.search(header), f"{in_folder(path)}: the header names no paper (authors and year)"


@pytest.mark.parametrize("path", MODULES, ids=in_folder)
def test_modules_say_what_they_are(path):
    assert ast.get_docstring(tree_of(path)), f"{in_folder(path)} has no header"


# ------------------------------------------------------------------------------------- budgets
LONGEST = 450
LONG_FILES: dict[str, tuple[int, str]] = {}  # longer than LONGEST: their limit, and the reason


def code_files() -> list[Path]:
    native = [path for path in (ROOT / "csrc").iterdir() if path.suffix in (".h", ".cpp")]
    return [*MODULES, *sorted(native)]


@pytest.mark.parametrize("path", code_files(), ids=in_folder)
def test_files_stay_short(path):
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    limit, _ = LONG_FILES.get(in_folder(path), (LONGEST, ""))
    assert n_lines <= limit, f"{in_folder(path)} has {n_lines} lines: does it hold two ideas?"
    if in_folder(path) in LONG_FILES:
        assert n_lines > LONGEST, f"{in_folder(path)} needs no exception any more"


# ------------------------------------------------------------------------------------- native
@pytest.mark.parametrize("path", sorted((ROOT / "csrc").iterdir()), ids=in_folder)
def test_kernels_know_nothing_of_python(path):
    if path.name in ("bindings.h", "bindings.cpp"):
        return
    includes = re.findall(r'#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(encoding="utf-8"))
    for name in includes:
        foreign = re.match(r"pybind11/|Python\.h|torch/|ATen/|c10/|dlpack/|bindings\.h", name)
        assert not foreign, f"{in_folder(path)} includes {name}"


def test_no_kernel_is_compiled_with_contraction():
    """One fused multiply-add would break the equality of backends."""
    for path in (ROOT / "CMakeLists.txt", ROOT / "examples/native_target/CMakeLists.txt"):
        text = path.read_text(encoding="utf-8")
        assert "-ffp-contract=off" in text, in_folder(path)
        assert "fast-math" not in re.sub(r"#.*", "", text), in_folder(path)
    assert "--fmad=false" in (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------- text
LOCAL = {  # what only makes sense on one machine
    "an absolute path": re.compile(
        r"(?<![\w.~$}\]\"'/-])/(?:home|root|work|Users|mnt|scratch|workspace|tmp|opt)/"
        r"|[\"'`( ]/(?:home|root|work|Users|mnt|scratch|workspace|tmp|opt)/"
    ),
    "a package index": re.compile(
        r"(?:extra-)?index-url|find-links|https?://[^\s\"')]*(?:artifactory|nexus|/simple\b|registry)"
    ),
    "an address": re.compile(r"\b(?:10|172|192)\.\d{1,3}\.\d{1,3}\.\d{1,3}\b(?!\.)"),
}
# The CPU build of torch has an index of its own, which the README and CI must name.
ALLOWED = re.compile(r"(?:extra-)?index-url[= ]+https://download\.pytorch\.org/whl/\w+")


def test_files_of_the_project_name_no_machine():
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others",
         "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    paths = [ROOT / name for name in listing.split("\0") if name]
    assert Path(__file__).resolve() in paths
    for path in paths:
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path == Path(__file__).resolve():
            continue  # it holds the patterns
        for number, line in enumerate(text.splitlines(), 1):
            for what, pattern in LOCAL.items():
                found = pattern.search(ALLOWED.sub("", line))
                assert not found, f"{in_folder(path)}:{number}: {what}: {line.strip()[:80]}"
