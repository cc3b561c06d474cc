"""What `python -m experiments keep` has written, read again."""

from pathlib import Path

from experiments._saved.result_files import SUFFIX, ResultFileError, read
from experiments._saved.runs import Run, run_of
from experiments._study.keep import COMPARISON
from experiments._study.titles import place


def kept_runs(study: Path) -> dict[str, dict[str, list[Run]]]:
    """Runs by part and by folder of the submit scripts, in the order of the results page.

    Args:
        study: Folder that ``python -m experiments keep`` has filled.

    Raises:
        ResultFileError: There are no runs of a comparison, or a file is of no training run.
        OSError: A file cannot be read.
        CorruptResultError: It is no result file.
        UnsafeResultError: It asks for more than plain Python and numpy.
    """
    found: dict[str, dict[str, list[Run]]] = {}
    for path in sorted(study.rglob(f"*{SUFFIX}")):
        part, *folder = path.parent.relative_to(study).parts or ("",)
        run = run_of(path, read(path), "test")
        found.setdefault(part, {}).setdefault("/".join(folder), []).append(run)
    if COMPARISON not in found:
        raise ResultFileError(
            f"{study} has no result files in {COMPARISON}/; give what python -m experiments keep "
            "has written"
        )
    return {
        part: dict(sorted(runs.items(), key=lambda item: place(item[0])))
        for part, runs in found.items()
    }
