"""Archives of tensors, as torch.save writes them, read with distrust.

``torch.load`` with ``weights_only=True`` runs no foreign code, but a file made for it can still end
the process, by a tuple of great depth as a key or an archive that contradicts its tables, or
ask for any amount of memory. Here it gets a copy that has been read before, piece by piece.
"""

import io
import warnings
import zipfile
from collections import OrderedDict

import torch
from torch import Tensor

import hig

_DATA = "archive/data.pkl"

# Bytes of an element of each kind of storage.
_SIZES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2}
_SIZES |= {"Char": 1, "Byte": 1, "Bool": 1, "ComplexFloat": 8, "ComplexDouble": 16}

_STORAGE = object()


def _tensor(
    storage: object, offset: int, size: tuple, stride: tuple, gradient: bool, hooks: dict
) -> None:
    """Refuse values that torch makes no tensor of; it would print some of them, at any length."""
    numbers = (offset, *size, *stride)
    plain = storage is _STORAGE and type(size) is type(stride) is tuple and type(gradient) is bool
    if not plain or hooks or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("a tensor of something else than a storage and its shape")


# All names in an archive of tensors and plain Python, and stand-ins that suffice for the rest.
_NAMES = {
    ("collections", "OrderedDict"): lambda *_: {},
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("__builtin__", "complex"): complex,
    **{("torch", f"{kind}Storage"): size for kind, size in _SIZES.items()},
}


_LEAVES = (type(None), bool, int, float, complex, str, bytes, Tensor)
_HOLDERS = (dict, OrderedDict, list, tuple)


def read(contents: bytes) -> object:
    """Read tensors, onto the CPU, and plain Python that ``torch.save`` wrote.

    Raises:
        UnsafeResultError: It asks for a name or an opcode that tensors and plain Python do not
            need; the text is its name alone.
        UnpicklingError: Torch refuses it.
        BadZipFile, ValueError and others: It is not a whole archive.
    """
    members = _members(contents)

    def storage(saved_id: tuple) -> object:
        _, kind, key, _, count = saved_id
        size = len(members[f"archive/data/{key}" if type(key) is str else ""])
        if kind.function * count != size:
            raise ValueError(f"a storage of {size} bytes for {count} of {kind.function}")
        return _STORAGE

    hig.files.unpickle(members[_DATA], _NAMES, build=lambda *_: None, persistent_load=storage)
    clean = io.BytesIO()
    with zipfile.ZipFile(clean, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    clean.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other pickle protocols
        found = torch.load(clean, map_location="cpu", weights_only=True)
    _require_plain(found)
    return found


def _require_plain(value: object) -> None:
    """Refuse objects that are not values, such as the functions that make tensors."""
    found, seen = [value], set()
    for item in found:  # grows meanwhile
        kind = type(item)
        if kind not in (*_LEAVES, *_HOLDERS):
            raise hig.UnsafeResultError(f"a value that is a {kind.__name__}")
        if kind in _HOLDERS and id(item) not in seen:
            seen.add(id(item))
            found += [*item, *item.values()] if isinstance(item, dict) else item


def _members(contents: bytes) -> dict[str, bytes]:
    """The files in an archive by name; their checksums are compared."""
    with zipfile.ZipFile(io.BytesIO(contents)) as archive:
        infos = archive.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise ValueError("it is compressed, as torch.save does not")
        if sum(info.file_size for info in infos) > len(contents):
            raise ValueError("its parts are larger than the whole")
        return {info.filename: archive.read(info) for info in infos}
