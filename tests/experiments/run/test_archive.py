"""Archives that torch.save did not write, under a checksum that is right."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from hashlib import sha256

import pytest
import torch

import hig
from experiments._run import archive
from experiments._run.checkpoint import MAGIC, load

RUN = {"method": "hig"}


def torch_bytes(value, **options):
    file = io.BytesIO()
    torch.save({"run": RUN, "state": value}, file, **options)
    return file.getvalue()


def rewritten(change, compression=zipfile.ZIP_STORED, value=None):
    """An archive of a state, its members changed; a None leaves one out."""
    value = {"a": torch.arange(1000.0)} if value is None else value
    with zipfile.ZipFile(io.BytesIO(torch_bytes(value))) as old:
        members = {name: old.read(name) for name in old.namelist()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as new:
        for name, data in (members | change(members)).items():
            if data is not None:
                new.writestr(name, data)
    return file.getvalue()


DATA, STORAGE = "archive/data.pkl", "archive/data/0"


class Calls:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def refused(contents, folder, error, match):
    path = folder / "a.checkpoint"
    path.write_bytes(MAGIC + sha256(contents).digest() + contents)
    with pytest.raises(error, match=rf"a\.checkpoint .*{match}.*start again"):
        load(path, RUN)
    assert [file.name for file in folder.iterdir()] == [path.name]


def test_what_torch_writes_is_read():
    value = {
        "a": OrderedDict(b=torch.eye(3, dtype=torch.float64)[:, 1]), "c": [1, (2.5, None, True)],
        "half": torch.ones(2, dtype=torch.bfloat16), "whole": torch.tensor(3), "text": "x",
        "complex": 1j, "shared": [torch.zeros(2)] * 2, "long": 10**30, "empty": torch.empty(0, 3),
    }  # fmt: skip
    found = archive.read(torch_bytes(value))["state"]
    assert found.keys() == value.keys() and str(found) == str(value)
    assert found["shared"][0] is found["shared"][1] and type(found["a"]) is OrderedDict


@pytest.mark.parametrize(
    "call",
    [
        (os.mkdir, "executed"),
        (eval, "1"),
        (getattr, "a", "upper"),
        (pickle.loads, pickle.dumps(Calls(os.mkdir, "executed"))),
        (torch.FloatTensor, 10**9),  # torch would make it
        (bytearray, 10**9),
        (torch.device, "cpu"),
    ],
)
def test_calls(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    match = "does not need, nothing of it was run"
    refused(torch_bytes({"a": Calls(*call)}), tmp_path, hig.UnsafeResultError, match)


def test_a_pickle_in_the_place_of_a_storage_stays_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = pickle.dumps(Calls(os.mkdir, "executed")).ljust(4000, b".")
    found = archive.read(rewritten(lambda _: {STORAGE: evil}))
    assert found["state"]["a"].numpy().tobytes() == evil
    assert list(tmp_path.iterdir()) == []
    for contents in (evil, torch_bytes({}, _use_new_zipfile_serialization=False)):
        refused(contents, tmp_path, hig.CorruptResultError, "is not a file of torch.save")


def nested(depth):
    return b"\x80\x02}" + b")" + b"\x85" * depth + b"Ns."


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda _: {DATA: nested(10**5)}, "a key of more than"),  # of which the process would die
        (
            lambda m: {DATA: m[DATA].replace(b"M\xe8\x03", b"J\x00\x00\x00\x10")},
            "a storage of 4000",
        ),
        (lambda m: {DATA: m[DATA].replace(b"K\x01\x85", b"J\xff\xff\xff\xff\x85")}, "a tensor of"),
        (
            lambda m: {DATA: m[DATA].replace(b"ctorch\nFloatStorage", b"ctorch\nLongStorage")},
            "of 8",
        ),
        (lambda _: {STORAGE: b"abc"}, "a storage of 3 bytes"),
        (lambda _: {STORAGE: None}, "data/0"),
        (lambda _: {DATA: None}, "data.pkl"),
        (lambda _: {DATA: b"\x80\x02]."}, "has no run"),
        (lambda _: {"archive/byteorder": b"middle"}, "endian"),
    ],
)
def test_members_that_are_not_as_they_should_be(change, match, tmp_path):
    contents = rewritten(change)
    assert contents != rewritten(lambda _: {})
    refused(contents, tmp_path, hig.CorruptResultError, match)


def test_functions_are_no_values(tmp_path):
    evil = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\ns."
    contents = rewritten(lambda _: {DATA: evil})
    refused(contents, tmp_path, hig.UnsafeResultError, "a value that is a function")


def test_compressed_archives_may_be_bombs(tmp_path):
    bomb = rewritten(lambda _: {STORAGE: bytes(10**7)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 10**5
    refused(bomb, tmp_path, hig.CorruptResultError, "it is compressed")
    contents = bytearray(rewritten(lambda _: {}))
    place = contents.index(b"PK\x01\x02") + 24  # the size in the table, of the first member
    contents[place : place + 4] = (10**9).to_bytes(4, "little")
    refused(bytes(contents), tmp_path, hig.CorruptResultError, "larger than the whole")
