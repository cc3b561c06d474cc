import errno
import os
import subprocess
import sys

import pytest

import hig
from hig.files import _atomic_write, load_results, save_results


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_previous_results_survive_a_failed_write(tmp_path, monkeypatch):
    path = tmp_path / "a.pickle"
    save_results(path, {"seed": 1})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_atomic_write.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_results(path, {"seed": 2})
    assert load_results(path) == {"seed": 1}
    assert names(tmp_path) == ["a.pickle", "a.txt"]


@pytest.mark.parametrize("moment", ["os.fsync", "pathlib.Path.replace"])
def test_previous_file_survives_a_killed_process(moment, tmp_path):
    path = tmp_path / "a.bin"
    hig.files.write_atomically(path, b"old")
    code = (
        "import os, pathlib, signal, sys; from hig.files import write_atomically\n"
        f"{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(pathlib.Path(sys.argv[1]), b'new' * 1000)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    assert path.read_bytes() == b"old"
    (left,) = set(names(tmp_path)) - {"a.bin"}
    assert left.startswith(".a.bin.") and left.endswith(".tmp")


def test_the_bytes_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    path, sizes = tmp_path / "a.bin", []

    def fsync(descriptor):
        sizes.append(os.fstat(descriptor).st_size)
        assert not path.exists()

    monkeypatch.setattr(_atomic_write.os, "fsync", fsync)
    hig.files.write_atomically(path, b"12345")
    assert sizes == [5]
    assert names(tmp_path) == ["a.bin"] and path.read_bytes() == b"12345"
