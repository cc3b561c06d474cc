"""Print the peak memory in bytes of one case of the benchmark, in a process of its own."""

import sys

from experiments._measure.benchmark_cases import Cases
from experiments._measure.timing import peak_bytes
from experiments._problems import PROBLEMS

if __name__ == "__main__":
    name, case, batch_size, device = sys.argv[1:]
    step = Cases(PROBLEMS[name](), int(batch_size), device).makers()[case]()
    print(peak_bytes(step, device))
