import pytest

import hig
from experiments._saved.result_files import ERRORS, ResultFileError, files_in, read


def test_files_and_those_in_folders(tmp_path):
    for name in ("b", "a", "below/c"):
        hig.save_results(tmp_path / f"{name}.pickle", {})
    named = tmp_path / "below" / "c.pickle"
    assert list(files_in([named, tmp_path])) == [
        (named, False), (tmp_path / "a.pickle", True), (tmp_path / "b.pickle", True),
    ]  # fmt: skip


def test_a_folder_without_result_files_names_those_below(tmp_path):
    with pytest.raises(ResultFileError, match=r"has no result files \(\*\.pickle\).*another"):
        list(files_in([tmp_path]))
    hig.save_results(tmp_path / "below" / "c.pickle", {})
    with pytest.raises(ResultFileError, match=f"give one of {tmp_path / 'below'}"):
        list(files_in([tmp_path]))


def test_reads_and_says_what_cannot_be_read(tmp_path):
    path = tmp_path / "run.pickle"
    hig.save_results(path, {"seed": 3})
    assert read(path) == {"seed": 3}
    with pytest.raises(ResultFileError, match=f"the text next to a result file; give {path}"):
        read(tmp_path / "run.txt")
    (tmp_path / "broken.pickle").write_bytes(path.read_bytes()[:-5])
    for name in ("none.pickle", "broken.pickle", "."):
        with pytest.raises(ERRORS, match=str(tmp_path)):
            read(tmp_path / name)
