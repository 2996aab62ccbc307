"""The run folder: killed anywhere it goes on to the same bits; it refuses what is not its run."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pysamp import chains, plan, store
from pysamp.describe import NotRebuildableError, describe, differences, rebuild
from pysamp.mcmc.langevin import MALA
from pysamp.mcmc.tempering import ParallelTempering
from pysamp.samples import Samples
from pysamp.sampling import resume, sample
from pysamp.targets.mixture import GaussianMixture

SIZES = {"n_chains": 5, "n_draws": 22, "warmup": 12, "thin": 2, "seed": 3, "progress": False}


def kernel() -> ParallelTempering:
    """With all a kernel may have: a scale to be found, tensors of its own, a ladder that moves."""
    return ParallelTempering(MALA(), n_rungs=3)


def mixture() -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
    return GaussianMixture(means, torch.tensor([0.5, 0.3]), torch.tensor([0.25, 0.75]))


def same(a: Samples, b: Samples) -> bool:
    keys = ("accept", "nonfinite", "scale")
    return (
        torch.equal(a.x, b.x)
        and torch.equal(a.log_prob, b.log_prob)
        and all(torch.equal(torch.as_tensor(a.info[k]), torch.as_tensor(b.info[k])) for k in keys)
        and a.info["evaluations"] == b.info["evaluations"]
    )


# ------------------------------------------------------------------------- run as a script
class Trap:
    """Kills this process, as kill -9 would, at the n-th thing that happens to the run."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0
        # Small blocks, each saved at once: more moments at which to die.
        plan.BLOCK_STEPS, chains.CHECKPOINT_SECONDS = 8, 0.0
        for owner, name in (
            (os, "fsync"),
            (os, "replace"),
            (ParallelTempering, "step"),
            (MALA, "init"),
        ):
            setattr(owner, name, self.before(getattr(owner, name)))
        import zarr.storage._local as local

        for owner, name in ((Path, "write_bytes"), (Path, "write_text"), (local, "_put")):
            setattr(owner, name, self.half(getattr(owner, name)))

    def now(self) -> bool:
        self.seen += 1
        return self.seen == self.at

    def before(self, call):
        def trapped(*args, **kwargs):
            if self.now():
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return trapped

    def half(self, call):
        """Die with half of the bytes written, under the name of a temporary file."""

        def trapped(path, data, *args, **kwargs):
            if self.now():
                content = data.encode() if isinstance(data, str) else None
                content = content or bytes(getattr(data, "as_buffer_like", lambda: data)())
                path.parent.mkdir(parents=True, exist_ok=True)
                torn = path if path.suffix == ".tmp" else path.with_suffix(".dead.partial")
                with open(torn, "wb") as file:
                    file.write(content[: len(content) // 2])
                    file.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(path, data, *args, **kwargs)

        return trapped


def begin_or_resume(folder: Path) -> Samples:
    if (folder / "manifest.json").exists():
        return resume(folder, progress=False)
    return sample(mixture(), kernel(), out=folder, **SIZES)


def forked(work) -> int:
    """Run `work` in a fork of this process, which has imported torch but not yet used it."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        torch.set_num_threads(1)
        os._exit(work() or 0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def main(root: Path) -> None:
    def reference() -> None:
        trap = Trap(0)
        whole = begin_or_resume(root / "whole")
        (root / "events").write_text(str(trap.seen))
        whole.save(root / "whole.safetensors")

    def dying(at: int):
        def run() -> None:
            Trap(at)
            begin_or_resume(root / f"run{moment}")

        return run

    def last() -> int:
        samples = begin_or_resume(root / f"run{moment}")
        left = [
            str(p) for p in (root / f"run{moment}").rglob("*") if p.suffix in (".tmp", ".partial")
        ]
        whole = Samples.load(root / "whole.safetensors")
        return 0 if same(samples, whole) and not left else 9

    assert forked(reference) == 0
    events = int((root / "events").read_text())
    outcomes = []
    for moment in sorted(random.Random(5).sample(range(1, events + 1), 10)):
        killed = [forked(dying(moment)), forked(dying(7))]  # and once more, soon after resuming
        outcomes.append({"moment": moment, "killed": killed, "equal": forked(last)})
    Path(root / "outcomes.json").write_text(json.dumps({"events": events, "outcomes": outcomes}))


def test_killed_at_any_moment_resumes_to_the_same_bits(tmp_path):
    run = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "outcomes.json").read_text())
    assert report["events"] > 100
    for outcome in report["outcomes"]:
        assert outcome["killed"][0] == -signal.SIGKILL, (outcome, run.stderr)
        assert outcome["equal"] == 0, (outcome, run.stderr)
    assert sum(o["killed"][1] == -signal.SIGKILL for o in report["outcomes"]) > 4


# ------------------------------------------------------------------------- refusals
@pytest.fixture
def done(tmp_path):
    """A finished small run."""
    path = tmp_path / "run"
    return path, sample(mixture(), MALA(step_size=0.1), out=path, **SIZES)


def test_folder_gives_the_draws_of_a_run_in_memory(done):
    path, streamed = done
    in_memory = sample(mixture(), MALA(step_size=0.1), **SIZES)
    assert same(streamed, in_memory)
    assert same(resume(path), in_memory)
    assert in_memory.x.std() > 0.3
    assert store.read_manifest(path)["status"] == "done"
    metrics = json.loads((path / "metrics.json").read_text())
    assert metrics["accept"] == pytest.approx(float(in_memory.info["accept"].mean()))
    assert metrics["evaluations"] == in_memory.info["evaluations"]


def test_same_run_again_is_refused_with_a_hint_to_resume(done):
    path, _ = done
    with pytest.raises(FileExistsError, match=r"holds this same run, which is done.*resume"):
        sample(mixture(), MALA(step_size=0.1), out=path, **SIZES)


def test_another_configuration_is_refused_with_every_difference(done):
    path, _ = done
    other = GaussianMixture(torch.zeros(1, 2), torch.ones(1))
    with pytest.raises(FileExistsError) as error:
        sample(other, MALA(step_size=0.2), out=path, **{**SIZES, "seed": 4})
    text = str(error.value)
    assert "sampler.step_size: recorded 0.1, given 0.2" in text
    assert "seed: recorded 3, given 4" in text
    assert "target.means.tensor: recorded '[[-1.0, 0.0], [1.0, 0.5]]', given '[[0.0, 0.0]]'" in text


def test_foreign_folder_and_file_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"not empty and holds no run \(it has notes.txt\)"):
        sample(mixture(), MALA(step_size=0.1), out=tmp_path, **SIZES)
    with pytest.raises(FileExistsError, match="is a file"):
        sample(mixture(), MALA(step_size=0.1), out=tmp_path / "notes.txt", **SIZES)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(FileNotFoundError, match="no run folder"):
        resume(tmp_path)


def test_resume_with_another_target_is_refused_and_shows_the_difference(done):
    path, _ = done
    weights = torch.tensor([0.5, 0.5])
    other = GaussianMixture(mixture().means, mixture().covariances, weights)
    with pytest.raises(ValueError, match="another target") as error:
        resume(path, target=other)
    assert "target.weights.tensor: recorded '[0.25, 0.75]', given '[0.5, 0.5]'" in str(error.value)
    with pytest.raises(ValueError, match=r"step_size: recorded 0\.1, given 0\.2"):
        resume(path, sampler=MALA(step_size=0.2))


def harmonic(x: Tensor) -> Tensor:
    return -0.5 * (x * x).sum(1)


def test_users_function_must_be_given_again_and_be_the_same(tmp_path):
    path = tmp_path / "run"
    made = sample(harmonic, MALA(step_size=0.5), event_shape=(3,), out=path, **SIZES)
    with pytest.raises(ValueError, match=r"target=\.\.\.") as error:
        resume(path)
    assert "fn is " in str(error.value)
    assert "harmonic" in str(error.value)
    assert same(resume(path, target=harmonic), made)
    with pytest.raises(ValueError, match="fingerprint: recorded"):
        resume(path, target=lambda x: -0.6 * (x * x).sum(1))


@dataclass(frozen=True)
class Mine:
    beta: float = 1.0
    event_shape: tuple[int, ...] = (2,)

    def log_prob(self, x: Tensor) -> Tensor:
        return -self.beta * (x * x).sum(1)


def test_users_class_is_not_imported_by_resume(tmp_path):
    sample(Mine(), MALA(step_size=0.1), out=tmp_path / "run", **SIZES)
    with pytest.raises(ValueError, match="Mine, from outside pysamp"):
        resume(tmp_path / "run")
    with pytest.raises(ValueError, match=r"target\.beta: recorded 1\.0, given 2\.0"):
        resume(tmp_path / "run", target=Mine(beta=2.0))


def test_two_writers_of_one_part_are_refused(done):
    path, _ = done
    with (
        store.lock(path, 0),
        pytest.raises(RuntimeError, match=f"process {os.getpid()} on"),
        store.lock(path, 0),
    ):
        pass
    with store.lock(path, 0), store.lock(path, 1):
        pass


# ------------------------------------------------------------------------- changed and damaged
def edit(path: Path, change) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def half(tmp_path, monkeypatch):
    """A run that was interrupted after 8 of its draws."""
    path = tmp_path / "half"
    monkeypatch.setattr(plan, "BLOCK_STEPS", 8)  # 4 draws of 2 steps
    monkeypatch.setattr(chains, "CHECKPOINT_SECONDS", 0.0)
    step, calls = MALA.step, [0]

    def dies(*args, **kwargs):
        calls[0] += 1
        if calls[0] == 4:  # after warm-up and two blocks
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    with monkeypatch.context() as m:
        m.setattr(MALA, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            sample(mixture(), MALA(step_size=0.1), out=path, **SIZES)
    assert store.load_checkpoint(path, 0).n_draws == 8
    return path


@pytest.mark.parametrize(
    ("key", "value", "was"),
    [("thin", 1, 2), ("n_chains", 8, 5), ("seed", 4, 3), ("n_draws", 8, 22)],
)
def test_manifest_changed_under_a_run_is_refused_with_the_difference(half, key, value, was):
    edit(half, lambda m: m["config"].update({key: value}))
    for use in (resume, store.read):
        with pytest.raises(ValueError, match=f"config.{key}: recorded {was}, given {value}"):
            use(half)
    edit(half, lambda m: m["config"].update({key: was}))
    whole = sample(mixture(), MALA(step_size=0.1), **SIZES)
    assert same(resume(half, progress=False), whole)


def test_sampler_changed_in_the_manifest_is_refused(done):
    path, _ = done
    edit(path, lambda m: m["config"]["sampler"]["fields"].update(step_size=0.2))
    with pytest.raises(ValueError, match=r"sampler\.step_size: recorded 0\.1, given 0\.2"):
        resume(path)


def chunk(path: Path, name: str, k: int) -> Path:
    deeper = ["0"] if name == "x" else []
    return path.joinpath("draws.zarr", "rank0", name, "c", "0", str(k), *deeper)


@pytest.mark.parametrize("name", ["x", "log_prob"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda file: os.truncate(file, 8)])
def test_draws_that_are_missing_are_refused(half, name, damage):
    file = chunk(half, name, 1)
    content = file.read_bytes()
    damage(file)
    for use in (store.read, resume):
        with pytest.raises(ValueError, match=rf"draws 4 to 7 are missing: .*{name}/c/0/1.* not wh"):
            use(half)
    file.write_bytes(content)
    chunk(half, name, 2).unlink(missing_ok=True)  # not yet counted on
    whole = sample(mixture(), MALA(step_size=0.1), **SIZES)
    assert same(resume(half, progress=False), whole)
    file.unlink()
    with pytest.raises(ValueError, match="draws 4 to 7 are missing"):
        resume(half)


def test_draws_that_are_not_a_number_are_not_missing(tmp_path):
    """A sampler may fail and say so; its NaN are read back as they are."""
    samples = Samples(torch.full((3, 2, 1), torch.nan), torch.full((3, 2), torch.nan))
    store.create(tmp_path / "run", {}, [(0, 3)])
    store.save_whole(tmp_path / "run", samples, 1 << 20)
    assert store.read(tmp_path / "run").x.isnan().all()


@pytest.mark.parametrize("content", [b"", b"\0" * 4, b"\xff" * 50, "half"])
def test_damaged_checkpoint_is_named(half, content):
    file = half / "checkpoint" / "rank0.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    for use in (resume, store.read):
        with pytest.raises(ValueError, match=r"rank0\.safetensors is damaged: "):
            use(half)


@pytest.mark.parametrize(
    "content", [b"", b"[1, 2]", b"{", b"\xff\xfe", b"{}", b'{"format": 1, "status": "done"}']
)
def test_damaged_manifest_is_named(done, content):
    path, _ = done
    (path / "manifest.json").write_bytes(content)
    for use in (resume, store.read):
        with pytest.raises(ValueError, match=r"manifest\.json is damaged: "):
            use(path)


@pytest.mark.parametrize("entry", ["status", "config", "parts", "versions", "block", "info"])
def test_entry_that_the_manifest_lacks_is_named(half, entry):
    edit(half, lambda m: m.pop(entry))
    with pytest.raises(ValueError, match=rf"manifest\.json is damaged: .*{entry}"):
        resume(half, progress=False)


@pytest.mark.parametrize("entry", ["target", "sampler", "thin", "seed", "dtype"])
def test_entry_that_the_configuration_lacks_is_named(half, entry):
    edit(half, lambda m: m["config"].pop(entry))
    with pytest.raises(ValueError, match=rf"manifest\.json is damaged: it has no entry '{entry}'"):
        resume(half, progress=False)


def test_lost_draws_and_files_in_place_of_folders_are_named(half, tmp_path):
    shutil.rmtree(half / "draws.zarr")
    for use in (resume, store.read):
        with pytest.raises(ValueError, match=r"draws\.zarr/rank0/x is damaged: "):
            use(half)
    (tmp_path / "file").write_text("text")
    for use in (resume, store.read):
        with pytest.raises(FileNotFoundError, match="file is no run folder"):
            use(tmp_path / "file")


def test_run_that_failed_before_its_first_checkpoint_makes_way_for_another(tmp_path):
    """A wrong start, or a density that raises, must not cost the name of the folder."""
    path = tmp_path / "run"

    def half_line(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0, -x[:, 0], -torch.inf)

    start = -torch.ones(5, 1)
    arguments = {**SIZES, "event_shape": (1,), "out": path}
    with pytest.raises(ValueError, match="log_prob = -inf"):
        sample(half_line, MALA(step_size=0.1), x0=start, **arguments)
    assert store.read_manifest(path)["status"] == "failed"
    with pytest.raises(ValueError, match="log_prob = -inf"):
        sample(half_line, MALA(step_size=0.1), x0=start, **arguments)
    made = sample(harmonic, MALA(step_size=0.2), **arguments)
    assert same(made, sample(harmonic, MALA(step_size=0.2), **{**arguments, "out": None}))
    with pytest.raises(FileExistsError, match="another run"):
        sample(harmonic, MALA(step_size=0.3), **arguments)


# ------------------------------------------------------------------------- full disk
@pytest.mark.parametrize("what", ["draws", "checkpoint"])
def test_full_disk_says_so_and_the_run_goes_on_later(tmp_path, monkeypatch, what):
    import zarr.storage._local as local

    monkeypatch.setattr(plan, "BLOCK_STEPS", 8)
    monkeypatch.setattr(chains, "CHECKPOINT_SECONDS", 0.0)
    calls = [0]

    def full(call, after):
        def write(*args, **kwargs):
            calls[0] += 1
            if calls[0] > after:
                raise OSError(errno.ENOSPC, "No space left on device")
            return call(*args, **kwargs)

        return write

    path = tmp_path / "run"
    with monkeypatch.context() as m:
        if what == "draws":
            m.setattr(local, "_put", full(local._put, 8))
        else:
            m.setattr(Path, "write_bytes", full(Path.write_bytes, 3))
        with pytest.raises(OSError, match="no space left while writing the run folder") as error:
            sample(mixture(), MALA(), out=path, **SIZES)
    assert error.value.errno == errno.ENOSPC
    assert str(path) in str(error.value)
    assert "pysamp.resume" in str(error.value)
    manifest = store.read_manifest(path)
    assert manifest["status"] == "failed"
    assert "no space left" in manifest["error"]
    assert 0 < store.load_checkpoint(path, 0).n_draws < SIZES["n_draws"]
    assert same(resume(path, progress=False), sample(mixture(), MALA(), **SIZES))
    assert "error" not in store.read_manifest(path)


# ------------------------------------------------------------------------- format
def test_folder_opens_with_zarr_and_xarray(done):
    path, samples = done
    xarray = pytest.importorskip("xarray")
    data = xarray.open_zarr(path / "draws.zarr", group="rank0", consolidated=False)
    assert data["x"].dims == ("chain", "draw", "x_dim_0")
    assert data.attrs["first_chain"] == 0
    assert torch.equal(torch.from_numpy(data["x"].values), samples.x)


def test_x_is_read_when_used_and_in_blocks(done, monkeypatch):
    path, samples = done
    from pysamp import samples as module

    monkeypatch.setattr(module, "BLOCK_BYTES", 8 * SIZES["n_chains"] * 2 * 4)  # 4 draws at a time
    read = []
    parts = store._Parts.read
    monkeypatch.setattr(store._Parts, "read", lambda *args: read.append(args[1:]) or parts(*args))
    fresh = store.read(path, mixture())
    assert fresh.event_shape == (2,)
    assert fresh.n_draws == SIZES["n_draws"]
    assert not read
    fresh.summary()
    assert read == [(a, min(a + 4, 22)) for a in range(0, 22, 4)]
    assert torch.equal(torch.cat(list(fresh.blocks()), 1), samples.x)


def test_no_draws_yet(tmp_path):
    store.create(tmp_path / "run", {}, [(0, 4)])
    with pytest.raises(ValueError, match="holds no draws yet"):
        store.read(tmp_path / "run")


def test_checkpoint_round_trip(tmp_path):
    store.create(tmp_path / "run", {}, [(0, 2)])
    assert store.load_checkpoint(tmp_path / "run", 0) is None
    tally = store.Tally(once={"scale": torch.tensor([0.1, 0.2])})
    tally.add({"accept": torch.tensor([0.5, 1.0]), "nonfinite": torch.tensor([1, 0])}, 4)
    tally.add({"accept": torch.tensor([1.0, 0.0]), "nonfinite": torch.tensor([0, 2])}, 12)
    state = {
        "x": torch.arange(6.0).reshape(2, 3) / 7,
        "score": None,
        "step": 2**40,
        "aux": {"a": torch.arange(2)},
    }
    store.save_checkpoint(
        tmp_path / "run", 0, store.Checkpoint(16, state, {"scale": 0.1 + 0.2}, tally)
    )
    back = store.load_checkpoint(tmp_path / "run", 0)
    assert torch.equal(back.state["x"], state["x"])
    assert torch.equal(back.state["aux"]["a"], torch.arange(2))
    assert back.state["score"] is None
    assert back.state["step"] == 2**40
    assert back.kernel == {"scale": 0.1 + 0.2}
    assert back.n_draws == 16
    info = store.merge_info([2, 2], [back.tally, back.tally])
    assert info["accept"].tolist() == [0.875, 0.25, 0.875, 0.25]  # (4·0.5 + 12·1)/16, …
    assert info["nonfinite"].tolist() == [1, 2, 1, 2]
    assert info["scale"].tolist() == back.tally.once["scale"].tolist() * 2


# ------------------------------------------------------------------------- descriptions
def test_descriptions_rebuild_to_the_same_bits():
    thirds = torch.arange(1, 7, dtype=torch.float64).reshape(3, 2) / 3  # no short decimals
    target = GaussianMixture(thirds, thirds + 0.1, torch.tensor([0.25, 0.25, 0.5]))
    tree = json.loads(json.dumps(describe(target)))
    again = rebuild(tree)
    assert differences(tree, describe(again)) == []
    for value in (0.1 + 0.2, float("inf"), (1, (2.5, None)), [True, "a"], {"k": (1,)}):
        assert rebuild(json.loads(json.dumps(describe(value)))) == value
    for tensor in (torch.zeros(0, 3), torch.tensor([float("nan"), 1e-45]), torch.tensor([True])):
        back = rebuild(json.loads(json.dumps(describe(tensor))))
        assert back.dtype == tensor.dtype
        assert back.shape == tensor.shape
        assert torch.equal(back.nan_to_num(), tensor.nan_to_num())


@pytest.mark.parametrize(
    "path", ["os:system", "pysamp.store:os", "pysamp.samples:replace_file", "builtins:dict"]
)
def test_rebuild_imports_only_dataclasses_of_pysamp(path):
    with pytest.raises(NotRebuildableError):
        rebuild({"class": path, "fields": {}})


def test_differences_name_every_leaf():
    a = {"n": 1, "s": {"class": "A", "fields": {"h": 0.1, "old": 2}}}
    b = {"n": 1, "s": {"class": "A", "fields": {"h": 0.2, "new": 3}}}
    assert differences(a, b) == [
        "s.h: recorded 0.1, given 0.2",
        "s.new: recorded 'nothing', given 3",
        "s.old: recorded 2, given 'nothing'",
    ]
    assert differences({"a": 1}, {"a": 1.0})
    assert differences({"a": True}, {"a": 1})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
