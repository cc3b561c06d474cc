"""The machine of pickle opcodes against Python's own, and what it refuses."""

import pickle
import pickletools
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from hig import UnsafeResultError
from hig.files import unpickle
from hig.files._numpy_pickle import FUNCTIONS, build
from hig.files._safe_unpickler import _OPERATIONS, _PUSHED, MOST_IN_A_KEY
from tests.hig.files.test_results import assert_same

LEAVES = some.one_of(
    some.none(), some.booleans(), some.integers(), some.floats(allow_nan=False), some.text(),
    some.binary(max_size=300), some.complex_numbers(allow_nan=False), some.integers(2**60, 2**900),
)  # fmt: skip
KEYS = some.recursive(
    LEAVES,
    lambda inner: some.one_of(some.tuples(inner, inner), some.frozensets(inner)),
    max_leaves=4,
)
VALUES = some.recursive(
    KEYS,
    lambda inner: some.one_of(
        some.lists(inner), some.dictionaries(KEYS, inner), some.sets(KEYS), some.tuples(inner),
        some.lists(inner, max_size=5).map(tuple),
    ),
)  # fmt: skip


def load(data):
    return unpickle(data, FUNCTIONS, build)


@settings(max_examples=40, deadline=None)
@given(value=VALUES)
def test_it_reads_what_python_writes(value):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert_same(load(pickle.dumps(value, protocol)), value)
        unframed = pickletools.optimize(pickle.dumps([value, value], protocol))
        assert_same(load(unframed), [value, value])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("length", [1, 3, 5])
def test_tuples_and_dicts_that_hold_themselves(protocol, length):
    value = (*range(length - 1), [])
    value[-1].extend((value, {"a": value}))
    found = load(pickle.dumps(value, protocol))
    assert found[-1][0] is found[-1][1]["a"] is found and found[:-1] == value[:-1]


REFUSED = {
    "OBJ", "INST", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "DUP", "NEXT_BUFFER",
    "READONLY_BUFFER",
}  # fmt: skip


def test_every_opcode_is_known_or_refused():
    assert {opcode.name for opcode in pickletools.opcodes} == {*_OPERATIONS} | _PUSHED | REFUSED


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"(cbuiltins\nset\no.", "OBJ"),
        (b"(ibuiltins\nset\n.", "INST"),
        (b"cbuiltins\nset\n)\x81.", "NEWOBJ"),
        (b"cbuiltins\nset\n)}\x92.", "NEWOBJ_EX"),
        (b"\x82\x01.", "EXT1"),
        (b"\x83\x01\x00.", "EXT2"),
        (b"\x84\x01\x00\x00\x00.", "EXT4"),
        (b"Pa\n.", "PERSID"),
        (b"K\x01Q.", "a persistent id"),
        (b"\x97.", "NEXT_BUFFER"),
        (b"N\x98.", "READONLY_BUFFER"),
        (b"]2.", "DUP"),
        (b"cbuiltins\neval\n.", "builtins.eval"),
        (b"\x8c\x08builtins\x8c\x0cset.__init__\x93.", "builtins.set.__init__"),
        (b"]\x8c\x03set\x93.", "set"),
        (b"c\x1b[2J\n\x1b\n.", r"\\x1b\[2J"),  # no code for the terminal either
    ],
)
def test_what_is_refused(data, name):
    with pytest.raises(UnsafeResultError, match=name):
        load(data)


@pytest.mark.parametrize(
    "data",
    [
        b"", b".", b"(.", b"K\x01", b"0.", b"1.", b"h\x05.", b"]K\x01s.", b"}(K\x01u.", b"N]R.",
        b"cbuiltins\nset\nK\x01R.", b"N)R.", b"K\x01K\x02a.", b"}]Ns.", b"\x8f(]\x90.", b"\x87.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", b"\x8e\x00\x00\x00\x00\x00\x01\x00\x00.",
        b"\x8b\xff\xff\xff\x7f.", b"cset\n.", b"I" + b"9" * 5000 + b"\n.",
    ],
)  # fmt: skip
def test_garbage(data):
    with pytest.raises(ValueError):
        load(data)


def nested(depth):
    return b")" + b"\x85" * depth


@pytest.mark.parametrize(
    "data",
    [
        b"}" + nested(10**5) + b"Ns.",  # of which Python's own dies
        b"}(" + nested(10**5) + b"Nu.",
        b"(" + nested(10**5) + b"Nd.",
        b"\x8f(" + nested(10**5) + b"\x90.",
        b"(" + nested(10**5) + b"\x91.",
        b"cbuiltins\nset\n]" + nested(10**5) + b"a\x85R.",
        b"})" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"Ns.",  # 2**60 empty tuples
    ],
)
def test_keys_of_great_depth_or_repetition(data):
    with pytest.raises(ValueError, match=f"a key of more than {MOST_IN_A_KEY} values"):
        load(data)


def test_keys_of_reasonable_size():
    for key in (tuple(range(MOST_IN_A_KEY - 1)), "a" * 10**6, frozenset(range(10**4))):
        assert load(pickle.dumps({key: 1})) == {key: 1}
    deep = load(nested(10**5) + b".")  # as a value it may be as deep as it likes
    assert type(deep) is tuple


BIG = b"\x8b" + (20_000).to_bytes(4, "little") + b"\x7f" * 20_000  # an integer of so many bytes


@pytest.mark.parametrize(
    ("key", "again"),
    [
        (b"(" + b"h\x00" * 900 + b"t", b"}(" + b"h\x01N" * 2000 + b"u."),
        (b"(" + b"h\x00" * 900 + b"t", b"}" + b"h\x01Ns" * 2000 + b"."),
        (b"(" + b"h\x00" * 900 + b"t", b"\x8f(" + b"h\x01" * 2000 + b"\x90."),
        (b"(" + b"h\x00" * 900 + b"t", b"(" + b"h\x01" * 2000 + b"\x91."),
        (b"(" + b"h\x00" * 900 + b"t", b"cbuiltins\nset\n](" + b"h\x01" * 2000 + b"e\x85R."),
        # Two equal frozensets are compared element by element.
        (
            b"((" + b"h\x00" * 900 + b"t\x91\x94((" + BIG + b"\x94" + b"h\x02" * 899 + b"t\x91",
            b"}h\x01Ns" + b"h\x03Ns" * 2000 + b".",
        ),
        (BIG[:-1] + b"\x7e", b"}" + b"h\x01Ns" * 50_000 + b"."),
    ],
)
def test_the_same_large_key_again_and_again(key, again):
    with pytest.raises(ValueError, match="far more comparisons than it has bytes"):
        load(b"\x80\x04" + BIG + b"\x940" + key + b"\x940" + again)


def test_many_reasonable_keys():
    key = ("a name of some length", 1, 2.5, frozenset(["b", 3]))
    value = [{key: i, "another name": i} for i in range(20_000)]
    assert load(pickle.dumps(value)) == value


def test_a_few_bytes_ask_for_no_copies_of_the_rest():
    text = b"X\x10\x27\x00\x00" + b"a" * 10000 + b"q\x00"
    copy = b"c_codecs\nencode\nh\x00X\x01\x00\x00\x00l\x86R"
    assert load(text + copy + b".") == b"a" * 10000
    with pytest.raises(ValueError, match="far more memory than it takes itself"):
        load(text + copy * 100 + b".")
    with pytest.raises(ValueError, match="far more memory"):
        load(b"](" + b"K\x01" * 1000 + b"eq\x00" + b"cbuiltins\nset\nh\x00\x85R" * 500 + b".")


def test_other_functions_and_persistent_ids():
    state = {}
    data = pickle.dumps(OrderedDict(a=1), protocol=2)
    functions = {("collections", "OrderedDict"): dict}
    assert unpickle(data, functions, state.setdefault) == {"a": 1}
    assert unpickle(b"K\x02Q.", {}, build, lambda value: value + 1) == 3
