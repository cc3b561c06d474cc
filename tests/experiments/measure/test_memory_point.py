"""The comparison of chunks runs on small sizes, and measures what it says."""

import json

import pytest
import torch

import hig
from experiments import benchmark
from experiments._measure import memory_point
from experiments._measure.memory_cases import MEMORY_CASES
from experiments._measure.memory_point import compare_chunks, measure_point, memory_table

SIZES = {"equation": (6, 5), "equation_rows": (6, 5), "loop": (2, 40), "loop_rows": (2, 40)}


@pytest.mark.parametrize("name", MEMORY_CASES)
def test_every_case_takes_its_route(name):
    kind = MEMORY_CASES[name]
    case = kind.build(*SIZES.get(name, (2, 6)))
    loss, prediction = case.closure()
    assert case.rows == prediction.numel()
    assert loss.requires_grad
    optimizer = hig.GaussNewton(
        case.network.parameters(), rcond=1e-4, engine=kind.engine, step_rule="fixed"
    )
    optimizer.step(case.closure)
    fewer = optimizer.report.fewer_rows  # of the four numbers that steer the loop
    assert (fewer is not None) == name.startswith("loop")
    assert (fewer.samples * fewer.outputs if fewer else optimizer.report.rows) == case.rows
    assert ("rows" in optimizer.report.engine) == name.endswith("rows")


def test_a_point(monkeypatch):
    threads = torch.get_num_threads()
    found = measure_point("fields", 2, 6, 4)
    torch.set_num_threads(threads)
    assert found["seconds"] > 0
    assert found["peak_bytes"] >= 0
    assert found["jacobian_bytes"] == 4 * (2 * 2 * 36) * 882


def test_rows_and_table(monkeypatch):
    def here(_, request):  # the command below has processes of its own
        threads = torch.get_num_threads()
        try:
            return measure_point(*json.loads(request))
        finally:
            torch.set_num_threads(threads)

    monkeypatch.setattr(memory_point, "in_own_process", here)
    rows = compare_chunks("equation", 6, 5, chunks=(1, 2), rounds=1)
    assert [row["chunk"] for row in rows] == [None, 1, 2]
    assert min(row["of_best"] for row in rows[1:]) == 1
    table = memory_table(rows)
    assert len(table.splitlines()) == 2 + 3
    assert "| default |" in table and "| 2 |" in table


def test_the_command(tmp_path, capsys, monkeypatch):
    def few(name, samples, extent, rounds):
        assert extent > SIZES[name][1]
        return compare_chunks(name, samples, SIZES[name][1], (4,), rounds)

    monkeypatch.setattr(benchmark, "compare_chunks", few)
    file = tmp_path / "memory.json"
    benchmark.main(["loop", "--memory", "--batch-size", "1", "--json", str(file)])
    report = json.loads(file.read_text())
    assert report["memory"]["loop"]["batch_size"] == 1
    assert report["rounds"] == 1
    assert report["machine"]["clock"] == "processor, one thread"
    assert len(report["memory"]["loop"]["cases"]) == 2
    assert "| default |" in capsys.readouterr().out
