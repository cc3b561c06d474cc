"""Measure one step of a case of ``experiments.benchmark --memory`` in a process of its own."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from statistics import median

import torch

import hig
from experiments._measure.command import in_own_process, table
from experiments._measure.memory_cases import MEMORY_CASES
from experiments._measure.timing import peak_bytes

CHUNKS = (1, 4, 16, 64, 256)


def measure_point(name: str, samples: int, extent: int, chunk: int | None) -> dict[str, float]:
    """Take one step of Gauss-Newton on one thread, ``chunk`` backward passes in one batch.

    Returns:
        ``seconds`` of processor time, ``peak_bytes`` of the step, and ``jacobian_bytes``.
    """
    torch.set_num_threads(1)
    kind = MEMORY_CASES[name]
    case = kind.build(samples, extent)
    parameters = list(case.network.parameters())
    case.closure()[0].backward()  # libraries load when first used
    for parameter in parameters:
        parameter.grad = None
    optimizer = hig.GaussNewton(
        parameters, rcond=1e-4, engine=kind.engine, method="gram", step_rule="fixed", chunk=chunk
    )
    spent = []

    def step() -> None:
        start = time.process_time()
        optimizer.step(case.closure)
        spent.append(time.process_time() - start)

    peak = peak_bytes(step, "cpu")
    columns = sum(parameter.numel() for parameter in parameters)
    size = case.rows * columns * parameters[0].element_size()
    return {"seconds": spent[0], "peak_bytes": peak, "jacobian_bytes": size}


def compare_chunks(
    name: str, samples: int, extent: int, chunks: Sequence[int] = CHUNKS, rounds: int = 1
) -> list[dict[str, object]]:
    """Measure a case by default and with fixed chunks, in turn, each time in a fresh process.

    Returns:
        A row for the default and each chunk: ``case``, ``chunk``, ``seconds`` (median over the
        rounds), ``of_best`` (median over the rounds of the time relative to the fixed chunk that
        is best in the median), ``beside_mb`` (the largest peak over the rounds, without the
        Jacobian) and ``jacobian_mb``.
    """
    points: dict[int | None, list[Mapping[str, float]]] = {None: [], **{c: [] for c in chunks}}
    for _ in range(rounds):
        for chunk, found in points.items():
            request = json.dumps([name, samples, extent, chunk])
            found.append(in_own_process("memory_point", request))
    seconds = {chunk: [p["seconds"] for p in found] for chunk, found in points.items()}
    best = seconds[min(chunks, key=lambda chunk: median(seconds[chunk]))]
    return [
        {
            "case": MEMORY_CASES[name].title,
            "chunk": chunk,
            "seconds": median(seconds[chunk]),
            "of_best": median(a / b for a, b in zip(seconds[chunk], best, strict=True)),
            "beside_mb": max(p["peak_bytes"] - p["jacobian_bytes"] for p in found) / 2**20,
            "jacobian_mb": found[0]["jacobian_bytes"] / 2**20,
        }
        for chunk, found in points.items()
    ]


def memory_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Format the rows as a Markdown table."""
    columns = {
        "case": "{case}",
        " J, MB": "{jacobian_mb:.1f}",
        " chunk": "{chunk}",
        " peak besides J, MB": "{beside_mb:.0f}",
        " processor s": "{seconds:.2f}",
        " of the best fixed chunk": "{of_best:.2f}",
    }
    return table(columns, [{**row, "chunk": row["chunk"] or "default"} for row in rows])


if __name__ == "__main__":
    print(json.dumps(measure_point(*json.loads(sys.argv[1]))))
