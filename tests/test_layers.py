"""Imports point down: plots -> result files; experiments -> problems -> hig -> torch, numpy.

Inside of hig the rooms stand on floors, and no import points up.
"""

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

GROUND = {"_torch", "arguments", "errors"}
# What each room of hig may import next to itself.
ROOMS = {
    "errors": set(),
    "arguments": {"errors"},
    "_torch": {"arguments", "errors"},
    "files": {"arguments", "errors"},
    "_simulation": GROUND,
    "_jacobian": GROUND,
    "_spectral": GROUND,
    "conflictfree": GROUND,
    "testing": GROUND | {"_simulation"},
    "_step": GROUND | {"_jacobian", "_spectral"},
    "_kronecker": GROUND | {"_step", "_jacobian"},
    "_optim": GROUND | {"_step", "_jacobian", "_spectral", "_kronecker", "conflictfree"},
}
MOST_FOLDERS = 11  # so that the first level of hig is read at a glance
MOST_FILES_OF_A_STEP = 23


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


def modules_imported_by(path):
    """Full names of the modules of hig that a file imports, those for annotations included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(name):
    """The room of a module of hig, such as "_step"; None for others."""
    parts = name.split(".")
    return parts[1] if parts[0] == "hig" and len(parts) > 1 and parts[1] in ROOMS else None


def test_the_rooms_are_those_of_the_table():
    inside = [path for path in (ROOT / "hig").iterdir() if path.name != "__pycache__"]
    folders = {path.name for path in inside if path.is_dir()}
    files = {path.stem for path in inside if path.suffix == ".py"} - {"__init__"}
    assert folders | files == set(ROOMS)
    assert len(folders) <= MOST_FOLDERS
    assert files == {"arguments", "errors"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_in_one_sentence_what_it_is(room):
    face = ROOT / "hig" / room / "__init__.py"
    if face.exists():
        first = ast.get_docstring(ast.parse(face.read_text())).split("\n\n")[0]
        assert first.endswith((".", "?")), first


@pytest.mark.parametrize("room", ROOMS)
def test_imports_between_rooms_point_down(room):
    place = ROOT / "hig" / room
    files = sorted(place.rglob("*.py")) or [place.with_suffix(".py")]
    found = {
        (str(path.relative_to(ROOT)), other)
        for path in files
        for other in map(room_of, modules_imported_by(path))
        if other not in {None, room, *ROOMS[room]}
    }
    assert found == set()


def test_no_circle_between_the_files_of_hig():
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "hig").rglob("*.py")
    }
    after = {}
    for name, path in files.items():
        named = modules_imported_by(path)
        modules = {full if full in files else full.rpartition(".")[0] for full in named}
        after[name] = {other for other in modules if other in files and other != name}
    remaining = dict(after)
    while remaining:
        free = [name for name, others in remaining.items() if not others & remaining.keys()]
        assert free, f"a circle among {sorted(remaining)}"
        for name in free:
            del remaining[name]


ENTERED = """
import sys
from pathlib import Path

import torch

import hig

root = Path(hig.__file__).parent
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
inputs = torch.randn(5, 3)
optimizer = hig.HIG(network.parameters(), lr=0.1, step_rule="trust")


def closure():
    prediction = network(inputs)
    return 0.5 * (prediction - 1).square().sum(), prediction


def note(frame, event, _):
    name = frame.f_code.co_filename
    if event == "call" and name.startswith(str(root)):
        entered.add(str(Path(name).relative_to(root)))


# The first steps also look at buffers, at free memory and at the sizes of the autograd graph.
for _ in range(30):
    optimizer.step(closure)
entered = set()
sys.setprofile(note)
optimizer.step(closure)
while optimizer.report.gain_ratio is None:  # a step whose trial is evaluated
    optimizer.step(closure)
sys.setprofile(None)
print(*sorted(entered))
"""


def test_a_step_enters_few_files():
    """Count the files of hig in which a step with the trust rule runs code."""
    command = [sys.executable, "-c", ENTERED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    entered = done.stdout.split()
    assert "_step/trust.py" in entered
    assert len(entered) <= MOST_FILES_OF_A_STEP, done.stdout


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
    # The Jacobian alone, which is no step, is measured against that of other packages.
    assert {file for file, _ in seen} == {"experiments/_measure/joint_jacobian.py"}


def test_hig_brings_nothing_in_but_torch_and_numpy_and_is_quick():
    code = (
        "import gc, sys, time; start = time.process_time(); import torch; "
        "gc.freeze(); "  # a collection of what torch has made would be counted
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
