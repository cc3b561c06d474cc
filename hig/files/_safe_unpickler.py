"""Restricted pickle interpreter: only allow-listed callables are executed.

``pickle.Unpickler.find_class`` can restrict the names in a pickle, but not its memory, time and
recursion. Bounds for these depend on the objects that the opcodes make, not on the opcodes alone,
so this interpreter checks and reads in one pass.
"""

import pickletools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hig.errors import UnsafeResultError, described

__all__ = ["unpickle"]

# Largest number of values in a key. Hashing visits all of them, as often and as deep as they occur.
MOST_IN_A_KEY = 1000

# Largest number of values that are hashed and compared, per byte of the file and in any file.
# Integers and strings count once more per COUNTED_ONCE of their bytes. Tuples do not cache hashes.
HASHED, ALWAYS_HASHED, COUNTED_ONCE = 32, 100_000, 64

# Largest number of bytes or items that calls copy, per byte of the file.
COPIES = 4

# Errors that invalid data cause, apart from ValueError. An invalid escape in an old string opcode
# is a DeprecationWarning, which is an error if warnings are errors.
_GARBAGE = (AttributeError, DeprecationWarning, LookupError, OverflowError, TypeError)

Functions = Mapping[tuple[str, str], Callable[..., Any]]

_SIZED = (bytes, bytearray, str, list, tuple, dict, set, frozenset)


def unpickle(
    data: bytes,
    functions: Functions,
    build: Callable[[Any, Any], None],
    persistent_load: Callable[[Any], Any] | None = None,
) -> Any:
    """Read a pickle of plain Python values and of calls of allow-listed functions.

    Args:
        data: Bytes of the pickle.
        functions: The function to call for a name in the pickle, by (module, name).
        build: Called with an object and its state in the pickle.
        persistent_load: Called with a persistent id; None if the pickle may not have any.

    Returns:
        The value of the pickle.

    Raises:
        UnsafeResultError: It has another name, or another opcode; the text is its name alone.
        ValueError: It is not a complete pickle, has impossible values, or needs far more memory
            or comparisons than it has bytes.
        TypeError: `data` is not bytes-like.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"data must be bytes, got {described(data)}; read a file in mode 'rb'")
    machine = _Machine(len(data), functions, build, persistent_load)
    try:
        return _run(machine, data)
    except _GARBAGE as error:
        raise ValueError(f"not a complete pickle: {type(error).__name__} {error}") from error


def _run(machine: "_Machine", data: bytes) -> Any:
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in _PUSHED:
            machine.stack.append(argument)
        elif opcode.name in _OPERATIONS:
            _OPERATIONS[opcode.name](machine, argument)
        else:
            raise UnsafeResultError(f"the opcode {opcode.name}")
    return machine.stack.pop()


def _length(value: Any) -> int:
    """Number of bytes or characters that hashing or comparing a value reads."""
    if type(value) is int:
        return value.bit_length() // 8
    return len(value) if isinstance(value, str | bytes) else 0


class _Named:
    """Function of a name in the pickle; not hashable, so that it stays out of sets and keys."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, function: Callable[..., Any]):
        self.function = function


class _Machine:
    """Stack, memo and remaining budgets of one pickle."""

    def __init__(
        self,
        size: int,
        functions: Functions,
        build: Callable[[Any, Any], None],
        persistent_load: Callable[[Any], Any] | None,
    ):
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under the marks
        self.memo: dict[int, Any] = {}
        self.room = COPIES * size
        self.work = HASHED * size + ALWAYS_HASHED
        self.weights: dict[int, tuple[frozenset[Any], int]] = {}  # by id, which each keeps in use
        self.functions, self.build, self.persistent_load = functions, build, persistent_load

    def marked(self) -> list[Any]:
        """Pop all items above the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def target(self, expected: type) -> Any:
        """Return the top of the stack, which must be of exactly one type."""
        if type(self.stack[-1]) is not expected:
            raise TypeError(
                f"a {type(self.stack[-1]).__name__} in the place of a {expected.__name__}"
            )
        return self.stack[-1]

    def set_items(self, items: Sequence[Any]) -> None:
        """Add alternating keys and values to the dict on top of the stack."""
        pairs = list(zip(items[::2], items[1::2], strict=True))
        for key, _ in pairs:
            self.weigh(key)
        self.target(dict).update(pairs)

    def weigh(self, key: Any) -> int:
        """Charge a key to the budget before it is hashed, without recursion.

        Returns:
            The number of values in it, with long ones counted several times.

        Raises:
            ValueError: It is a tuple of too many values, or the budget is spent.
        """
        values, weight = [key], 0
        for item in values:  # the list grows by the items of nested tuples
            weight += self.weights[id(item)][1] if id(item) in self.weights else 1
            weight += _length(item) // COUNTED_ONCE
            if type(item) is tuple:
                values += item
                if len(values) > MOST_IN_A_KEY:
                    raise ValueError(f"a key of more than {MOST_IN_A_KEY} values")
        self.work -= weight
        if self.work < 0:
            raise ValueError("it asks for far more comparisons than it has bytes")
        return weight

    def hashed(self, set_type: Callable[..., Any], items: Sequence[Any] = ()) -> Any:
        """Make a set or frozenset, with its items charged to the budget."""
        weight = sum(map(self.weigh, items))
        made = set_type(items)
        if set_type is frozenset:
            self.weights[id(made)] = made, weight + 1
        return made

    def name(self, module: Any, name: Any) -> None:
        """Push the function of an allow-listed name."""
        known = type(module) is type(name) is str and (module, name) in self.functions
        if not known:
            raise UnsafeResultError(repr(f"{module}.{name}"[:100]))
        self.stack.append(_Named(self.functions[module, name]))

    def spend(self, values: Any) -> Any:
        """Charge values to the budget before a call copies them."""
        if type(values) is not tuple:
            raise TypeError(f"a {type(values).__name__} in the place of a tuple")
        self.room -= sum(len(value) for value in values if type(value) in _SIZED)
        if self.room < 0:
            raise ValueError("it asks for far more memory than it takes itself")
        return values


Operation = Callable[[_Machine, Any], Any]


def _mark(machine: _Machine, _: Any) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _pop(machine: _Machine, _: Any) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.marked()


def _put(machine: _Machine, index: Any) -> None:
    machine.memo[len(machine.memo) if index is None else index] = machine.stack[-1]


def _tuple(length: int) -> Operation:
    def made(machine: _Machine, _: Any) -> None:
        items = [machine.stack.pop() for _ in range(length)]
        machine.stack.append(tuple(reversed(items)))

    return made


def _dict(machine: _Machine, _: Any) -> None:
    items = machine.marked()
    machine.stack.append({})
    machine.set_items(items)


def _append(machine: _Machine, _: Any) -> None:
    item = machine.stack.pop()
    machine.target(list).append(item)


def _extend(machine: _Machine, _: Any) -> None:
    items = machine.marked()
    machine.target(list).extend(items)


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items([key, value])


def _add(machine: _Machine, _: Any) -> None:
    items = machine.marked()
    for item in items:
        machine.weigh(item)
    machine.target(set).update(items)


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.name(module, name)


def _call(machine: _Machine, _: Any) -> None:
    arguments = machine.spend(machine.stack.pop())
    function = machine.target(_Named).function
    hashing = function is set or function is frozenset
    made = machine.hashed(function, *arguments) if hashing else function(*arguments)
    machine.stack[-1] = made


def _build(machine: _Machine, _: Any) -> None:
    state = machine.stack.pop()
    machine.spend(state if type(state) is tuple else ())
    machine.build(machine.stack[-1], state)


def _persistent(machine: _Machine, _: Any) -> None:
    if machine.persistent_load is None:
        raise UnsafeResultError("a persistent id")
    machine.stack.append(machine.persistent_load(machine.stack.pop()))


def _frozenset(machine: _Machine, _: Any) -> None:
    made = machine.hashed(frozenset, machine.marked())
    machine.stack.append(made)


def _pushing(make: Callable[[], Any]) -> Operation:
    return lambda machine, _: machine.stack.append(make())


def _pushing_marked(make: Callable[[list[Any]], Any]) -> Operation:
    def pushed(machine: _Machine, _: Any) -> None:
        made = make(machine.marked())  # before `machine.stack` is read: it replaces the stack
        machine.stack.append(made)

    return pushed


# The opcodes that Python's picklers write for such values, in any of the protocols 0 to 5: first
# those that push their argument, then all others.
_PUSHED = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_OPERATIONS: dict[str, Operation] = {
    "PROTO": lambda *_: None,
    "FRAME": lambda *_: None,
    "STOP": lambda *_: None,
    "NONE": _pushing(lambda: None),
    "NEWTRUE": _pushing(lambda: True),
    "NEWFALSE": _pushing(lambda: False),
    "EMPTY_LIST": _pushing(list),
    "EMPTY_DICT": _pushing(dict),
    "EMPTY_TUPLE": _pushing(tuple),
    "EMPTY_SET": _pushing(set),
    "MARK": _mark,
    "POP": _pop,
    "POP_MARK": lambda machine, _: machine.marked(),
    "LIST": _pushing_marked(list),
    "TUPLE": _pushing_marked(tuple),
    "FROZENSET": _frozenset,
    "DICT": _dict,
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": _append,
    "APPENDS": _extend,
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.marked()),
    "ADDITEMS": _add,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _put),
    **dict.fromkeys(
        ("GET", "BINGET", "LONG_BINGET"),
        lambda machine, index: machine.stack.append(machine.memo[index]),
    ),
    "GLOBAL": lambda machine, names: machine.name(*names.split(" ", 1)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _call,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
