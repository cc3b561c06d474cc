import errno
import hashlib
import io
from dataclasses import replace

import pytest
import torch

import hig
from experiments import Options
from experiments._methods import METHODS
from experiments._run import checkpoint
from experiments._run.checkpoint import MAGIC, CheckpointError, Checkpoints, identity, load, save
from hig.files import _atomic_write as _atomic
from problems import Settings
from problems.multitask import CelebA
from tests.experiments.runs import TINY, settings

RUN = {"method": "hig", "lr": "1.0"}
STATE = {
    "steps": 3, "none": None, "nested": [{"a": (1, 2.5)}, "text"],
    "tensor": torch.arange(4, dtype=torch.float64), "bytes": torch.get_rng_state(),
}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run_seed0.checkpoint"
    save(path, RUN, STATE)
    return path


def with_digest(contents):
    return MAGIC + hashlib.sha256(contents).digest() + contents


def test_what_is_saved_is_loaded(path):
    found = load(path, RUN)
    assert found.keys() == STATE.keys()
    assert torch.equal(found["tensor"], STATE["tensor"])
    assert found["nested"] == STATE["nested"] and found["steps"] == 3
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_without_a_file_there_is_nothing_to_resume_from(tmp_path):
    assert load(tmp_path / "none.checkpoint", RUN) is None


def test_another_run_is_refused_with_all_that_differs(path):
    with pytest.raises(CheckpointError) as error:
        load(path, {"method": "gn", "lr": "1.0", "kappa": "-0.5"})
    text = str(error.value)
    assert "kappa is -0.5, there none; method is gn, there hig" in text
    assert "lr" not in text.split("run:")[1].split(";")[0]
    assert "remove it" in text and str(path) in text


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_truncated_files(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(hig.CorruptResultError, match=r"run_seed0\.checkpoint .*start again remove"):
        load(path, RUN)


def test_no_flipped_bit_goes_unnoticed(path):
    data = path.read_bytes()
    for position in range(0, len(data), 97):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(hig.CorruptResultError, match="start again"):
            load(path, RUN)


def torch_bytes(value):
    contents = io.BytesIO()
    torch.save(value, contents)
    return contents.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04 no archive", torch_bytes([1]), torch_bytes({"run": RUN}), b"\x80\x04."],
)
def test_foreign_files(path, data):
    for written in (data, with_digest(data)):
        path.write_bytes(written)
        with pytest.raises((hig.CorruptResultError, hig.UnsafeResultError), match="start again"):
            load(path, RUN)


def test_all_that_decides_on_the_course_is_compared():
    options = Options(out="results", epochs=3)
    chosen = METHODS["hig"].complete(settings("hig"))

    def of(problem=TINY, method="hig", settings=chosen, options=options):
        return identity(problem, method, settings, options, None)

    same = of()
    assert same["epochs"] == "3" and same["time_steps"] == "8" and "time_budget" not in same
    for field, value in [
        ("epochs", 4), ("seed", 1), ("dtype", "float64"), ("average", 0.5), ("evaluate_every", 2.0),
        ("clock", "processor"), ("device", "cuda"),
    ]:  # fmt: skip
        assert of(options=replace(options, **{field: value})) != same, field
    for field, value in [("out", "x"), ("quiet", True), ("threads", 1), ("resume", True)]:
        assert of(options=replace(options, **{field: value})) == same, field
    assert of(problem=replace(TINY, dt=0.25)) != same
    assert of(settings=replace(chosen, lr=3.0)) != same
    assert of(settings=replace(chosen, published=True)) == same
    faces = [identity(CelebA(folder=f), "adam", Settings(1, 1.0), options, None) for f in "ab"]
    assert faces[0] == faces[1]  # where the files are makes no other run


class Clock:
    """Clock that is set by hand."""

    seconds = 0.0

    def __call__(self):
        return self.seconds


def test_checkpoints_take_a_hundredth_of_the_time(tmp_path):
    clock, warnings = Clock(), []

    def state():
        clock.seconds += 3.0
        return STATE

    checkpoints = Checkpoints(tmp_path / "a.pickle", RUN, 60.0, warnings.append, clock)
    clock.seconds = 59.9
    assert not checkpoints.due
    clock.seconds = 60.0
    assert checkpoints.due
    checkpoints.write(state)  # until 63
    clock.seconds = 362.0
    assert not checkpoints.due
    clock.seconds = 363.0
    assert checkpoints.due
    checkpoints.write(lambda: STATE)  # in no time
    clock.seconds = 363.0 + 60.0
    assert checkpoints.due
    assert checkpoints.load()["steps"] == 3 and not warnings


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    warnings, clock = [], Clock()
    checkpoints = Checkpoints(tmp_path / "a.pickle", RUN, 60.0, warnings.append, clock)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_atomic.os, "fsync", full)
        checkpoints.write(lambda: STATE)
        assert "No space left on device" in warnings[-1] and "there is none yet" in warnings[-1]
    checkpoints.write(lambda: {"steps": 1})
    with monkeypatch.context() as patch:
        patch.setattr(_atomic.os, "fsync", full)
        checkpoints.write(lambda: {"steps": 2})
    assert "the previous one is unchanged" in warnings[-1] and len(warnings) == 2
    assert checkpoints.load() == {"steps": 1}
    assert not checkpoints.due  # not again in every step


def test_removing_takes_leftovers_along_and_nothing_else(tmp_path):
    others = ["a.pickle", ".b.checkpoint.1.tmp", "aa.checkpoint"]
    for name in ("a.checkpoint", "a.before_fault", ".a.checkpoint.0f.tmp", *others):
        (tmp_path / name).touch()
    for _ in range(2):
        checkpoint.remove(tmp_path / "a.pickle")
    assert {path.name for path in tmp_path.iterdir()} == set(others)
