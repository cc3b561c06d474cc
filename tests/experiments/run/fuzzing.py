"""Mutated result files, weights files and checkpoints, and a process that loads them under guard.

``python -m tests.experiments.run.fuzzing KIND FIRST COUNT FOLDER`` loads the cases from FIRST on
and prints as JSON how they ended; it ends with status 1 at the first that breaks a rule.
"""

import codecs
import io
import json
import pickle
import pickletools
import random
import resource
import struct
import sys
import time
import types
import warnings
import zipfile
from collections import Counter, OrderedDict
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import nn

import hig
from experiments._run import checkpoint, weights

KINDS = ("results", "weights", "checkpoint")
MEMORY = 512 * 2**20  # what loading may ask for, and far more than the files need
SECONDS = 20.0  # of one file, and of this process alone
RUN = {"method": "hig", "lr": "1.0"}

NAMES = [
    ("os", "system"), ("posix", "mkdir"), ("builtins", "eval"), ("builtins", "exec"),
    ("builtins", "getattr"), ("builtins", "bytearray"), ("__builtin__", "apply"),
    ("canary", "touch"), ("canary", "Touched"), ("subprocess", "Popen"), ("functools", "partial"),
    ("copyreg", "_reconstructor"), ("copyreg", "__newobj__"), ("operator", "attrgetter"),
    ("numpy", "load"), ("numpy", "ndarray"), ("numpy", "dtype"), ("torch", "load"),
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"), ("_codecs", "encode"), ("builtins", "set"),
    ("__builtin__", "set"), ("builtins", "complex"), ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"), ("torch", "FloatStorage"), ("torch", "FloatTensor"),
    ("torch", "Size"), ("torch.storage", "_load_from_bytes"), ("hig.files._numpy_pickle", "_Array"),
]  # fmt: skip
TEXTS = [
    "O8", "V8", "S0", "U0", "U1", "S2147483647", "U536870911", "f8", "f2", "f16", "c16", "b1",
    "M8", "m8", "i4", ">", "<", "=", "|", "latin1",
    "archive", "storage", "0", "1", "touch /tmp/touched", "x" * 300, "é\ud800", "",
]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 3, 255, 2**16, 2**31 - 1, -(2**31), 2**31, 2**40, 2**62, 2**63, -(2**63)]
HUGE = [2**31 - 1, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1]


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def plain_results():
    numbers = np.random.default_rng(0)
    return {
        "label": "HIG", "seed": 3, "epochs": np.arange(4.0), "test_loss": numbers.random(4),
        "order": np.asfortranarray(numbers.random((3, 4))), "empty": np.zeros((0, 3), np.float32),
        "swapped": np.arange(3, dtype=">i4"), "names": np.array(["x1"]), "none": np.str_(""),
        "flags": np.array([True]), "time": np.float32(1.5), "count": np.int64(7), "bytes": b"\xff",
        "sim_par": {"rcond": 1e-6, "sizes": (20, 20), 3: None, (1, "a"): [1j, 10**30, -5, True]},
        "kinds": [{1, "a"}, frozenset({(1, 2)}), [(), ({},)], {"x": [1.0, float("nan")]}],
    }  # fmt: skip


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


TARGET = network()


def plain_state():
    trained = network()
    optimizer = torch.optim.Adam(trained.parameters())
    trained(torch.randn(8, 2)).sum().backward()
    optimizer.step()
    return {
        "network": trained.state_dict(), "optimizer": optimizer.state_dict(), "steps": 3,
        "random": torch.get_rng_state(), "none": None, "kinds": [{"a": (1, 2.5)}, "text", 1j],
        "more": [torch.tensor([True]), torch.zeros(2, dtype=torch.bfloat16), torch.eye(3)[:, 1]],
    }  # fmt: skip


def pickles(kind, folder):
    """Whole pickles to mutate, of every protocol and of both spellings of numpy's names."""
    if kind == "checkpoint":
        return [pickle_of(archive_of({"run": RUN, "state": plain_state()}))]
    values = plain_results()
    if kind == "weights":
        latest = weights.snapshot(network(), 2.0, 0.5)
        run = {"problem": "chain", "label": "Adam", "seed": 3}
        path = weights.save(folder / "whole.pickle", latest, run, None)
        values = hig.load_results(path)
    evil = {**values, "x": Calls(sys.modules["canary"].touch, "a")}
    found = [pickle.dumps(v, protocol=n) for n in range(6) for v in (values, evil)]
    return [*found, *(data.replace(b"numpy._core", b"numpy.core") for data in found[:6])]


def archive_of(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def pickle_of(archive):
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        return members.read("archive/data.pkl")


# Mutations of bytes.


def some_slice(luck, data, most=200):
    start = luck.randrange(len(data) + 1)
    return start, min(len(data), start + luck.randint(1, most))


def flip(luck, data, _):
    data = bytearray(data)
    for _ in range(luck.randint(1, 8)):
        data[luck.randrange(len(data))] ^= 1 << luck.randrange(8)
    return bytes(data)


def overwrite(luck, data, _):
    data = bytearray(data)
    for _ in range(luck.randint(1, 8)):
        data[luck.randrange(len(data))] = luck.choice((0, 0xFF, luck.randrange(256)))
    return bytes(data)


def insert(luck, data, _):
    start, _ = some_slice(luck, data)
    return data[:start] + luck.randbytes(luck.randint(1, 9)) + data[start:]


def delete(luck, data, _):
    start, end = some_slice(luck, data)
    return data[:start] + data[end:]


def repeat(luck, data, _):
    start, end = some_slice(luck, data)
    return data[:end] + data[start:end] * luck.randint(1, 3) + data[end:]


def truncate(luck, data, _):
    return data[: luck.randrange(len(data))]


def splice(luck, data, other):
    return data[: luck.randrange(len(data))] + other[luck.randrange(len(other)) :]


BYTES = [flip, overwrite, insert, delete, repeat, truncate, splice]


# Mutations of opcodes.


def operations(data):
    """The pieces of a pickle, one for each opcode, with its name; the rest is one more."""
    found, starts = [], []
    try:
        for opcode, _, position in pickletools.genops(data):
            found.append(opcode.name)
            starts.append(position)
    except (ValueError, IndexError, OverflowError, SyntaxError):
        found.append("REST")
        starts.append(starts[-1] + 1 if starts else 0)
    ends = [*starts[1:], len(data)]
    return [(n, data[s:e]) for n, s, e in zip(found, starts, ends, strict=True)]


def text(value):
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value):
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def named(luck):
    module, name = luck.choice(NAMES)
    if luck.random() < 0.5:
        return f"c{module}\n{name}\n".encode()
    return text(module) + text(name) + b"\x93"


def snippet(luck):
    """Opcodes to put anywhere."""
    size = luck.choice(HUGE)
    eight, four = struct.pack("<Q", size), struct.pack("<I", size & 0xFFFFFFFF)
    module, name = luck.choice(NAMES)
    depth = luck.choice((3, 100, 30000))
    return luck.choice([
        named(luck), named(luck) + b")R", named(luck) + text("a") + b"\x85R",
        named(luck) + b"]\x85R",
        named(luck) + number(luck.choice(NUMBERS)) + b"\x85R", named(luck) + b")\x81",
        named(luck) + b")}\x92", b"(" + named(luck) + b"o", b"b", b"}b", b"R", b"\x93", b"o",
        f"(i{module}\n{name}\n".encode(), f"({'K' + chr(1)}i{module}\n{name}\n".encode(),
        b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00", b"P0\n", b"Q", b"\x97", b"\x98",
        b"\x8d" + eight, b"\x8e" + eight, b"\x96" + eight, b"\x95" + eight, b"B" + four,
        b"T" + four, b"X" + four, b"\x8b" + four, b"r" + four, b"j" + four, b"p99999999999\n",
        b"(", b"0", b"1", b"2", b".", b"t", b"l", b"d", b"s", b"u", b"a", b"e", b"\x90", b"\x91",
        b"}" + b")" + b"\x85" * depth + b"Ns", b"\x8f(" + b")" + b"\x85" * depth + b"\x90",
        b"}" + b")" + b"\x942\x86" * 40 + b"Ns", b"]" + b"]a" * depth, b"(" * depth,
        b")" + b"\x85" * depth, b"N\x85", b"I" + b"9" * depth + b"\n", b"L" + b"9" * depth + b"L\n",
        b"F1e999\n", b"Vabc\\u12\n", b"S'\\d'\n", b"\x80" + bytes([luck.randrange(256)]),
        text(luck.choice(TEXTS)), number(luck.choice(NUMBERS)),
    ])  # fmt: skip


def of_opcodes(luck, data, other):
    pieces = operations(data)
    for _ in range(luck.randint(1, 3)):
        index = luck.randrange(len(pieces))
        name = pieces[index][0]
        change = luck.randrange(7)
        if change == 0:
            pieces.insert(index, ("NEW", snippet(luck)))
        elif change == 1 and len(pieces) > 1:
            del pieces[index]
        elif change == 2:
            pieces.insert(index, luck.choice(pieces))
        elif change == 3:
            there = luck.randrange(len(pieces))
            pieces[index], pieces[there] = pieces[there], pieces[index]
        elif change == 4:
            pieces.insert(index, luck.choice(operations(other)))
        else:  # what the opcode is about
            pieces[index] = (name, about(luck, name, pieces[index][1]))
    return b"".join(piece for _, piece in pieces)


def about(luck, name, piece):
    if "GLOBAL" in name:
        return named(luck)
    if "UNICODE" in name or "STRING" in name:
        return text(luck.choice([*TEXTS, *luck.choice(NAMES)]))
    if "INT" in name or "LONG" in name:
        return number(luck.choice(NUMBERS))
    if "TUPLE" in name:
        return luck.choice([b"\x85", b"\x86", b"\x87", b"t", b")"])
    return piece + snippet(luck)


def mutated(luck, wholes):
    """A mutated pickle, of opcodes more often than of bytes."""
    data, other = luck.choice(wholes), luck.choice(wholes)
    change = luck.choice(BYTES) if luck.random() < 0.4 else of_opcodes
    data = change(luck, data, other)
    return flip(luck, data, other) if data and luck.random() < 0.1 else data


# Checkpoints: the archive, what is in it, and the checksum before it.


def archive_mutated(luck, archive, wholes):
    """An archive whose members are changed, dropped, doubled, renamed or compressed."""
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        found = {name: members.read(name) for name in members.namelist()}
    if luck.random() < 0.8:
        found["archive/data.pkl"] = mutated(luck, wholes)
    else:
        name, data = luck.choice(list(found.items()))
        changed = luck.choice([data[:-1], data + b"\x00" * 8, b"", data * 3, bytes(10**6)])
        found[luck.choice([name, "archive/data/0", "evil/data.pkl", "../x"])] = changed
        if luck.random() < 0.3:
            del found[name]
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if luck.random() < 0.05 else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as members:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in found.items():
            for _ in range(1 + (luck.random() < 0.005)):
                members.writestr(name, data)
    return file.getvalue()


def checkpoint_mutated(luck, archive, wholes):
    way = luck.random()
    if way < 0.1:
        whole = checkpoint.MAGIC + sha256(archive).digest() + archive
        return luck.choice(BYTES)(luck, whole, whole)
    if way < 0.3:
        archive = luck.choice(BYTES)(luck, archive, archive)
    else:
        archive = archive_mutated(luck, archive, wholes)
    return checkpoint.MAGIC + sha256(archive).digest() + archive


def case(kind, index, wholes, archive):
    """The bytes of a file; they follow from kind and index alone."""
    luck = random.Random(f"{kind} {index}")
    if kind == "checkpoint":
        return checkpoint_mutated(luck, archive, wholes)
    return mutated(luck, wholes)


# Loading under guard.

SEEN = []  # what was executed or opened for writing, and calls of the canary
_watching = False

# All that loading a file has to do with the world outside.
HARMLESS = {"builtins.id"}


def watch(event, arguments):
    if not _watching or event in HARMLESS:
        return
    reading = event == "open" and (arguments[1] in ("r", "rb") or not arguments[2] & 3)
    if not reading:
        SEEN.append(f"{event}{arguments!r}"[:200])


def touch(*arguments):
    SEEN.append(f"canary{arguments!r}")


def plant_canary():
    canary = types.ModuleType("canary")
    canary.touch, touch.__module__ = touch, "canary"
    canary.Touched = type("Touched", (), {"__init__": touch, "__setstate__": touch})
    sys.modules["canary"] = canary


PLAIN = (type(None), bool, int, float, complex, str, bytes)


def assert_plain(value, kind):
    """Nothing but what a file of this kind may hold, all of it in memory that is there."""
    found, seen = [value], set()
    for item in found:  # grows meanwhile
        if id(item) in seen:
            continue
        seen.add(id(item))
        known = type(item)
        if known in (dict, OrderedDict):
            found += [*item.keys(), *item.values()]
        elif known in (list, tuple, set, frozenset, torch.Size):
            found += item
        elif kind == "checkpoint" and known in (torch.Tensor, nn.Parameter):
            storage = item.detach().untyped_storage()
            torch.empty(0, dtype=torch.uint8).set_(storage).sum()
        elif isinstance(item, np.ndarray | np.generic):
            assert item.dtype.kind in "biufcSU", item.dtype
            bytes(item.data if isinstance(item, np.ndarray) else item.tobytes())
        else:
            assert known in PLAIN, known


def load(kind, path):
    """Load a file; returns how that ended."""
    try:
        if kind == "results":
            found = hig.load_results(path)
            assert type(found) is dict
        elif kind == "checkpoint":
            found = checkpoint.load(path, RUN)
            assert type(found) is dict
        else:
            pretraining = weights.load(path, "chain")
            found = vars(pretraining) | {"path": None}
            pretraining.put_into(TARGET)
    except (hig.UnsafeResultError, hig.CorruptResultError) as error:
        assert str(path) in str(error), error
        return type(error).__name__
    except (weights.WeightsError, checkpoint.CheckpointError) as error:
        assert str(path) in str(error), error
        return type(error).__name__
    assert_plain(found, kind)
    return "loaded"


def limit_memory():
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


def main(kind, first, count, folder):
    """Load the cases; what is loaded once before brings in all modules that are needed."""
    global _watching
    torch.set_num_threads(1)
    plant_canary()
    folder = Path(folder)
    archive = archive_of({"run": RUN, "state": plain_state()}) if kind == "checkpoint" else b""
    wholes = pickles(kind, folder)
    path, last = folder / "case", folder / "last"
    whole = checkpoint.MAGIC + sha256(archive).digest() + archive
    path.write_bytes(whole if kind == "checkpoint" else wholes[4])
    assert load(kind, path) == "loaded"
    for encoding in ("cp437", "raw_unicode_escape"):
        codecs.lookup(encoding)  # Python looks for them when they are needed
    sys.addaudithook(watch)
    if sys.platform == "linux":
        limit_memory()
    ends, slowest = Counter(), 0.0
    for index in range(first, first + count):
        path.write_bytes(case(kind, index, wholes, archive))
        last.write_text(str(index))  # for whoever finds this process dead
        started, _watching = time.process_time(), True
        try:
            ends[load(kind, path)] += 1
        finally:
            _watching = False
            seconds = time.process_time() - started
        slowest = max(slowest, seconds)
        assert not SEEN, SEEN
        assert seconds < SECONDS, seconds
    print(json.dumps({**ends, "slowest": slowest}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
