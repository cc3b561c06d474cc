import os

import pytest

from experiments._saved.folders import make_folder, make_place


def test_makes_what_is_missing_and_leaves_what_is_there(tmp_path):
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "file").write_text("kept")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("below", "reason"), [("", "a file of this name exists"), ("new", "Not a directory")]
)
def test_a_file_in_the_way_is_an_error_message(below, reason, tmp_path):
    file = tmp_path / "run.pickle"
    file.write_bytes(b"results")
    with pytest.raises(SystemExit) as stop:
        make_folder(file / below)
    assert f"got {file / below}: {reason}; give another one" in stop.value.code
    assert file.read_bytes() == b"results"


def test_a_folder_that_cannot_be_written_to_is_an_error_message(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # which root may do everywhere
    with pytest.raises(SystemExit, match="--out must be a folder that can be written to, got"):
        make_folder(tmp_path)


def test_places_of_files(tmp_path):
    make_place(tmp_path / "new" / "file.json", "--json")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    with pytest.raises(SystemExit, match="error: --json must be a file, got the folder"):
        make_place(tmp_path, "--json")
