"""Archives of tensors, as torch.save writes them, read with distrust.

``torch.load`` with ``weights_only=True`` runs no foreign code, but a file made for it can still end
the process, by a tuple of great depth as a key or an archive that is not what its tables say, or
ask for any amount of memory. Here it is given what has been read before, piece by piece.
"""

import io
import warnings
import zipfile

import torch

import hig

_DATA = "archive/data.pkl"

# Bytes of an element of each kind of storage.
_SIZES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2}
_SIZES |= {"Char": 1, "Byte": 1, "Bool": 1, "ComplexFloat": 8, "ComplexDouble": 16}

# All names in an archive of tensors and plain Python, and what is enough for a look at the rest.
_NAMES = {
    ("collections", "OrderedDict"): lambda *_: {},
    ("torch._utils", "_rebuild_tensor_v2"): lambda *_: None,
    ("torch._utils", "_rebuild_parameter"): lambda *_: None,
    ("torch", "Size"): tuple,
    ("__builtin__", "complex"): complex,
    **{("torch", f"{kind}Storage"): size for kind, size in _SIZES.items()},
}


def read(contents: bytes) -> object:
    """Read what ``torch.save`` wrote into a file of ``io.BytesIO``.

    Args:
        contents: Tensors and plain Python.

    Returns:
        What is in it, tensors on the CPU.

    Raises:
        UnsafeResultError: It asks for a name or an opcode that tensors and plain Python do not
            need; the text is its name alone.
        UnpicklingError: Torch refuses it.
        BadZipFile, ValueError and others: It is no whole archive.
    """
    members = _members(contents)

    def storage(saved_id: tuple) -> None:
        _, kind, key, _, count = saved_id
        size = len(members[f"archive/data/{key}" if type(key) is str else ""])
        if kind.function * count != size:
            raise ValueError(f"a storage of {size} bytes for {count} of {kind.function}")

    hig.unpickle(members[_DATA], _NAMES, build=lambda *_: None, persistent_load=storage)
    clean = io.BytesIO()
    with zipfile.ZipFile(clean, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    clean.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other pickle protocols
        return torch.load(clean, map_location="cpu", weights_only=True)


def _members(contents: bytes) -> dict[str, bytes]:
    """The files in an archive by name; their checksums are compared."""
    with zipfile.ZipFile(io.BytesIO(contents)) as archive:
        infos = archive.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise ValueError("it is compressed, as torch.save does not")
        if sum(info.file_size for info in infos) > len(contents):
            raise ValueError("its parts are larger than the whole")
        return {info.filename: archive.read(info) for info in infos}
