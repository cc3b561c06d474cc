"""Facts about the machine that a timing or a result depends on."""

import os
import platform
import sys
from pathlib import Path

import numpy as np
import torch

import hig


def machine(device: str) -> dict[str, str | int]:
    """Versions, device and thread count, in plain Python; PhiFlow's where it has been imported.

    Args:
        device: torch device of the run.
    """
    phiflow = sys.modules.get("phi")
    on_gpu = torch.device(device).type == "cuda"
    return {
        "hig": hig.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        **({"phiflow": phiflow.__version__} if phiflow else {}),
        "platform": platform.platform(terse=True),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(torch.device(device)) if on_gpu else "cpu",
        "cuda": torch.version.cuda or "none",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
