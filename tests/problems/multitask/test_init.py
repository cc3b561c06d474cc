import subprocess
import sys

from problems import multitask


def test_every_public_name_is_there_and_documented():
    for name in multitask.__all__:
        assert (getattr(multitask, name).__doc__ or "").strip(), name


def test_neither_phiflow_nor_pillow_is_imported():
    code = "import sys, problems.multitask; print({'phi', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
