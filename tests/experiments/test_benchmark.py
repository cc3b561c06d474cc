import json
import sys

import pytest
import torch

from experiments import benchmark
from experiments._measure import busy, busy_worker, command
from experiments._measure.benchmark_cases import Cases
from experiments._measure.timing import peak_bytes
from experiments._problems import PROBLEMS


@pytest.fixture
def one_process(monkeypatch):
    """One case has its memory measured in a process of its own; the others save the time."""
    original = command.in_own_process

    def peak(module, name, case, batch_size, device):
        if case == benchmark.ADAM:
            return original(module, name, case, batch_size, device)
        return peak_bytes(Cases(PROBLEMS[name](), batch_size, device).makers()[case](), device)

    monkeypatch.setattr(command, "in_own_process", peak)


def test_table_and_json(one_process, tmp_path, capsys):
    file = tmp_path / "new folder" / "benchmark.json"
    benchmark.main(
        ["nonlinear_oscillators", "--rounds", "1", "--batch-size", "2", "--json", str(file)]
    )
    printed = capsys.readouterr().out
    report = json.loads(file.read_text())
    (problem,) = report["problems"].values()
    rows = {row["case"]: row for row in problem["cases"]}
    assert problem["batch_size"] == 2
    assert rows[benchmark.TEXTBOOK]["speedup"] == 1
    assert rows[benchmark.ADAM]["of_adam"] == 1
    for case, row in rows.items():
        assert row["min_ms"] <= row["median_ms"] <= row["max_ms"]
        assert row["peak_mb"] >= 0
        assert f"| {case} |" in printed
    assert report["machine"]["torch"] in printed
    assert report["origin"].keys() == {"command", "revision", "started"}


def test_a_processor_clock_does_not_go_with_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SystemExit):
        benchmark.main(["--clock", "processor", "--device", "cuda"])
    assert "does not see the work of cuda; use the wall clock" in capsys.readouterr().err


def test_packages_to_compare_with_are_asked_for(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch_levenberg_marquardt", None)
    with pytest.raises(SystemExit):
        benchmark.main(["--peers"])
    assert "pip install 'hig[peers]'" in capsys.readouterr().err


def test_other_packages_table_and_json(tmp_path, capsys):
    for package in ("torch_levenberg_marquardt", "curvlinops", "torchjd.autogram"):
        pytest.importorskip(package)
    file = tmp_path / "peers.json"
    arguments = ["nonlinear_oscillators", "--peers", "--rounds", "1", "--batch-size", "2"]
    benchmark.main([*arguments, "--clock", "processor", "--json", str(file)])
    printed, report = capsys.readouterr().out, json.loads(file.read_text())
    problem = report["peers"]["nonlinear_oscillators"]
    assert problem["batch_size"] == 2
    assert report["machine"]["clock"] == "processor"
    assert report["machine"]["curvlinops-for-pytorch"] in printed
    for row in problem["cases"]:
        assert row["error"] < 1e-2, row["case"]
        assert f"| {row['case']} |" in printed


def test_next_to_busy_processes(monkeypatch, tmp_path, capsys):
    asked = []

    def steps(case, method, seconds, threads):
        asked.append((case, method, bool(threads)))
        return [0.001] if threads else [0.002, 0.004]

    monkeypatch.setattr(busy, "_steps", steps)
    file = tmp_path / "busy.json"
    benchmark.main(["nonlinear_oscillators", "--busy", "1", "--json", str(file)])
    found = json.loads(file.read_text())["problems"]["beside busy processes"]
    assert found["busy"] == 1
    assert [row["ratio"] for row in found["cases"]] == pytest.approx([3] * 4)
    cases = [("nonlinear_oscillators", method) for method in ("hig", "adam")]
    cases += [("128 rows", method) for method in ("hig", "adam")]
    turns = benchmark.BUSY_TURNS * [False, True]
    assert asked == [(*case, one) for case in cases for one in turns]
    assert "| hig, 128 rows | 3.0, 3.0 | 1.0, 1.0 | 3.00 |" in capsys.readouterr().out


def test_a_worker_is_a_script_of_its_own():
    (first, *_) = found = busy._steps(busy.SMALL, "hig", 0.01, {"OMP_NUM_THREADS": "1"})
    assert len(found) >= 3 and first > 0


@pytest.mark.parametrize("method", ["hig", "adam"])
def test_steps_of_a_worker(method, capsys):
    busy_worker.main("problems.nonlinear_oscillators:NonlinearOscillators", method, 0.01)
    assert len(json.loads(capsys.readouterr().out)) >= 3


def test_busy_processes_are_ended_after_an_error():
    with pytest.raises(KeyError), busy.busy_processes(1) as (process,):
        assert process.poll() is None
        raise KeyError
    assert process.poll() is not None
