import pytest

from experiments._saved.folders import make_folder


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
