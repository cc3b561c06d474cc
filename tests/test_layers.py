"""Imports point down: plots -> result files; experiments -> problems -> hig -> torch, numpy."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "hig": {"hig", "torch", "numpy"},
    "problems": {"problems", "hig", "torch", "numpy", "phi", "PIL"},
    "experiments": {
        "experiments", "problems", "hig", "torch", "numpy", "tqdm", "pytorch_optimizer", "filelock",
        "torch_levenberg_marquardt", "curvlinops", "torchjd",  # to compare with
        "submitit",  # for clusters
    },
    "plots": {"plots", "hig", "numpy", "matplotlib"},
}  # fmt: skip


def imports_of(path):
    """Top-level names of everything a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("floor", ALLOWED)
def test_imports_point_down(floor):
    files = sorted((ROOT / floor).rglob("*.py"))
    assert files
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in files
        for name in imports_of(path)
        if name not in ALLOWED[floor] and name not in sys.stdlib_module_names
    }
    assert found == set()


def test_plots_take_nothing_but_the_result_files_from_hig():
    for path in (ROOT / "plots").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "hig":
                assert {alias.name for alias in node.names} <= {
                    "load_results", "CorruptResultError", "UnsafeResultError",
                }  # fmt: skip


def test_other_floors_see_the_public_modules_of_hig():
    seen = {
        (str(path.relative_to(ROOT)), node.module)
        for floor in ("problems", "experiments", "plots")
        for path in (ROOT / floor).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and re.match(r"hig\.(.*\.)?_", node.module or "")
    }
    # The Gram matrix alone, which is no step, is measured against that of other packages.
    assert {file for file, _ in seen} == {"experiments/_measure/peers.py"}


def test_hig_brings_nothing_in_but_torch_and_numpy_and_is_quick():
    code = (
        "import sys, time; start = time.process_time(); import torch; "
        "before, between = set(sys.modules), time.process_time(); "
        "import hig; print((time.process_time() - between) / (between - start)); "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(*(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ratio, *new = done.stdout.split()
    assert set(new) - {"numpy"} == {"hig"}
    assert float(ratio) < 0.25  # of what torch takes


def test_every_public_name_is_there_and_documented():
    import hig

    for name in hig.__all__:
        assert (getattr(hig, name).__doc__ or "").strip(), name
