"""The public surface of ``hig.conflictfree``."""

import subprocess
import sys

import hig.conflictfree


def test_every_public_name_is_there_and_documented():
    for name in hig.conflictfree.__all__:
        assert (getattr(hig.conflictfree, name).__doc__ or "").strip(), name


def test_it_brings_nothing_in_but_torch_and_numpy():
    code = (
        "import sys, torch, numpy.random; before = set(sys.modules); import hig.conflictfree; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['hig']"
