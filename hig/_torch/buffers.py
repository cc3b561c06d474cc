"""Restoring the tensors that a closure changes in place, such as running statistics."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

__all__ = ["WRITING_ARGUMENTS", "Buffers", "may_write", "written_by"]

# Named arguments that ask a function to write to an argument.
WRITING_ARGUMENTS = frozenset({"out", "max_norm"})


class Buffers(TorchFunctionMode):
    """Watches a computation and undoes its side effects on tensors.

    Running statistics, vectors of a power iteration, counters, moving averages: only the closure
    knows which tensors it changes. While the context is open, every tensor without a graph is
    copied before the first operation that writes to it, unless an operation inside has made it. The
    buffers of each module that is called are noted too, as some modules rebind the name of a buffer
    to another tensor. State outside of torch (counters in Python, lists) is not seen.

    Args:
        parameters: tensors to ignore.
    """

    def __init__(self, parameters: Iterable[Tensor]):
        super().__init__()
        self._left_alone = {id(parameter) for parameter in parameters}
        self._saved: dict[int, _Saved] = {}
        self._made: set[int] = set()  # results of the computation itself
        self._owners: dict[int, ReferenceType[Tensor]] = {}  # by their storage
        self._modules: dict[torch.nn.Module, dict[str, Tensor | None]] = {}

    def __enter__(self) -> "Buffers":
        """Start to watch."""
        # Compiled code would not be seen.
        self._eager = torch.compiler.set_stance("force_eager")
        self._eager.__enter__()
        self._hook = register_module_forward_pre_hook(
            _NoteModule(self._modules, self._save_scripted)
        )
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Stop to watch."""
        super().__exit__(*exception)
        self._hook.remove()
        self._eager.__exit__(*exception)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func``, after copying the tensors it may write to."""
        if may_write(func) or (kwargs and not WRITING_ARGUMENTS.isdisjoint(kwargs)):
            with torch._C.DisableTorchFunctionSubclass():
                for tensor in written_by(func, args, kwargs):
                    self._save(tensor)
                if may_write(func) == "alias":
                    self._note_owner(args)
        result = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            self._note_made(func, result, args, kwargs)
        return result

    @torch.no_grad()
    def restore(self) -> bool:
        """Restore all that was changed while the context was open; return whether anything was.

        Versions are restored too: the graph of an earlier call holds the same values.
        """
        changed = False
        with torch._C.DisableTorchFunctionSubclass():
            for saved in list(self._saved.values()):
                changed |= saved.restore()
        for module, buffers in self._modules.items():
            for name, buffer in buffers.items():
                if name in module._buffers and module._buffers[name] is not buffer:
                    module._buffers[name] = buffer
                    changed = True
        self._saved.clear()
        self._made.clear()
        self._owners.clear()
        self._modules.clear()
        return changed

    def _note_owner(self, args: tuple[Any, ...]) -> None:
        """Remember the owner of the storage that an alias shares: torch does not link them."""
        for tensor in _tensors(args[:1]):
            if tensor.grad_fn is None and _has_storage(tensor):
                self._owners.setdefault(tensor.untyped_storage()._cdata, ref(tensor))

    def _note_made(
        self,
        func: Callable[..., Any],
        result: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
    ) -> None:
        """Note the tensors that a call has made: without a graph nothing else marks them.

        Once such a tensor is gone, its id is that of a younger one. The exception are attributes:
        ``.grad`` may be older than its wrapper in Python, which has the id.
        """
        made = _tensors(result)
        if not made:
            return
        if getattr(func, "__name__", "") == "__get__" and id(args[0]) not in self._made:
            self._made.difference_update(map(id, made))
            return
        taken = {id(tensor) for tensor in _tensors((args, kwargs))}
        self._made.update(id(tensor) for tensor in made if id(tensor) not in taken)

    def _save_scripted(self, module: torch.nn.Module) -> None:
        """Copy the buffers of a scripted module, whose operations are not seen."""
        for buffer in module.buffers():
            self._save(buffer)

    @torch.no_grad()
    def _save(self, tensor: Tensor) -> None:
        if self._owners and _has_storage(tensor):
            owner = self._owners.get(tensor.untyped_storage()._cdata)
            owning = None if owner is None else owner()
            tensor = tensor if owning is None else owning
        key = id(tensor)
        if key in self._left_alone or key in self._saved or key in self._made:
            return
        saved = self._saved

        def gone(_: ReferenceType[Tensor]) -> None:
            saved.pop(key, None)  # a temporary of the computation, with its copy

        saved[key] = _Saved(tensor, gone)


class _Saved:
    """Saved values of a tensor, which is weakly held."""

    def __init__(self, tensor: Tensor, gone: Callable[[ReferenceType[Tensor]], None]):
        self._tensor = ref(tensor, gone)
        self._value = tensor.detach().clone()
        self._version = None if tensor.is_inference() else tensor._version

    def restore(self) -> bool:
        """Restore the values, and the version that graphs know them by."""
        tensor = self._tensor()
        if tensor is None:
            return False
        if tensor.shape == self._value.shape and tensor.dtype == self._value.dtype:
            tensor.detach().copy_(self._value)
        else:
            tensor.data = self._value
        if self._version is not None:
            torch._C._autograd._unsafe_set_version_counter((tensor,), (self._version,))
        return True


class _NoteModule:
    """Hook that notes the buffers of each module before its first call, in the creating thread."""

    def __init__(
        self,
        modules: dict[torch.nn.Module, dict[str, Tensor | None]],
        scripted: Callable[[torch.nn.Module], None],
    ):
        self._modules, self._save_scripted = modules, scripted
        self._thread = threading.get_ident()

    def __call__(self, module: torch.nn.Module, inputs: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        if isinstance(module, torch.jit.ScriptModule):
            self._save_scripted(module)
        elif module not in self._modules:
            self._modules[module] = dict(module._buffers)


def written_by(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None
) -> Iterator[Tensor]:
    """Yield the tensors without a graph that a call may write to, in a `TorchFunctionMode`.

    Args:
        func: the function.
        args: its arguments.
        kwargs: its keyword arguments.
    """
    effect = may_write(func)
    places: Any = ()
    if effect == "any":
        places = (args, kwargs)
    elif effect == "first":
        places = args[:1]
    elif kwargs:
        places = (kwargs.get("out"), args if kwargs.get("max_norm") is not None else None)
    for tensor in _tensors(places):
        owner = tensor if tensor._base is None else tensor._base
        if owner.grad_fn is None:
            yield owner


def _has_storage(tensor: Tensor) -> bool:
    # Inside vmap, grad and the like a tensor is a wrapper without a storage of its own.
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return tensor.layout == torch.strided and not wrapped


# Functions that change an argument although neither their name nor an argument "out" says so.
_CHANGE_STATISTICS = ("batch_norm", "instance_norm", "moving_avg_obs", "embedding_renorm")
_CHANGE_SELF = {"__setitem__", "__set__", "numpy", "__array__", "__dlpack__"} | {
    f"__i{operation}__"
    for operation in (
        "add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "and", "or", "xor",
        "lshift", "rshift", "matmul",
    )
}  # fmt: skip
_ALIASES = ("detach", "__get__")  # the second is that of ``.data``, among others


@lru_cache(maxsize=4096)
def may_write(func: Callable[..., Any]) -> str:
    """Return which arguments a function may write to: "first", "any", "alias" (a view) or ""."""
    schema = getattr(func, "_schema", None)
    if schema is not None:
        return "any" if schema.is_mutable else ""
    if isinstance(func, torch._ops.OpOverloadPacket):  # the overload is not yet resolved
        schemas = [getattr(func, name)._schema for name in func.overloads()]
        return "any" if any(schema.is_mutable for schema in schemas) else ""
    name = getattr(func, "__name__", "")
    if any(part in name for part in _CHANGE_STATISTICS):
        return "any"
    if name in _CHANGE_SELF or (name.endswith("_") and not name.endswith("__")):
        return "first"
    return "alias" if name in _ALIASES else ""


def _tensors(values: Any) -> list[Tensor]:
    """Return all tensors in nested tuples, lists and dictionaries."""
    found, pending = [], [values]
    for value in pending:  # which grows; called for every operation, so without recursion
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            pending.extend(value)
        elif isinstance(value, dict):
            pending.extend(value.values())
    return found
