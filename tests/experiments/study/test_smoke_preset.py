"""The smallest study for real: its runs, what is kept of them, figures and page."""

import subprocess
import sys

from experiments import __main__ as command
from experiments._study.kept import read_kept
from experiments._study.seeds import experiments
from experiments._study.table import PRESETS
from experiments._study.titles import title
from plots import study as figures


def test_from_its_runs_to_its_page(tmp_path):
    preset, out, kept = PRESETS["smoke"], tmp_path / "results", tmp_path / "kept"
    line = [sys.executable, "-m", "experiments.study", "--preset", "smoke", "--out", str(out)]
    first = subprocess.run(line, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    again = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "done" in first.stderr and "FAILED" not in first.stderr + again.stderr

    assert command.main(["keep", str(out / "smoke"), "--out", str(kept)]) == 0
    for comparison in preset.comparisons:
        found = experiments(read_kept(kept).compared[comparison.folder])
        assert {seeds.method for seeds in found} == set(comparison.methods)
        assert all(len(seeds.runs) == len(preset.seeds) for seeds in found)

    images, page = tmp_path / "images", tmp_path / "results.md"
    assert figures.main([str(kept), "--out", str(images)]) == 0
    assert command.main(["report", str(kept), "--out", str(page), "--images", str(images)]) == 0
    text = page.read_text()
    for comparison in preset.comparisons:
        assert f"## {title(comparison.folder)}\n" in text
    assert "## Every seed\n" in text and "![Every seed](images/robustness.png)" in text
    assert "| Conditioning toy, 1 s |   128 | HIG trust |    2 |" in text
    shown = {path.name for path in images.glob("*.png")}
    assert "conditioning_toy_saturation.png" in shown
    assert all(f"](images/{name})" in text for name in shown)
