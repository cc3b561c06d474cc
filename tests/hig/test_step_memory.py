"""A step on a large network stays far below the size of its Jacobian."""

import subprocess
import sys
from pathlib import Path

import pytest

# 1024 rows, 9.8 million parameters: the Jacobian alone would be 40 GB in float32.
LARGE_STEP = """
import torch, hig
from pathlib import Path

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

torch.manual_seed(0)
sizes = [64, 2200, 2200, 2200]
layers = [m for a, b in zip(sizes, sizes[1:]) for m in (torch.nn.Linear(a, b), torch.nn.Tanh())]
network = torch.nn.Sequential(*layers, torch.nn.Linear(2200, 8))
inputs = torch.randn(128, 64)

def closure():
    prediction = network(inputs)
    return (prediction - 1).square().mean(), prediction

optimizer = hig.HIG(network.parameters(), step_rule="trust")
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
optimizer.step(closure)
assert optimizer.report.rows == 1024 and optimizer.report.columns > 9.8e6
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's accounting")
def test_a_step_with_ten_million_parameters():
    done = subprocess.run(
        [sys.executable, "-c", LARGE_STEP], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 1.5e9
