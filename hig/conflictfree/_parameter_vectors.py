"""Conversion of parameters and gradients of a network to one vector, and back."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from hig.arguments import check_choice, check_tensor
from hig.conflictfree._coverage import coverage_of, note_coverage
from hig.conflictfree._non_finite import watch
from hig.errors import described

__all__ = [
    "apply_gradient_vector",
    "apply_gradient_vector_para_based",
    "apply_para_vector",
    "covered_by",
    "flattened",
    "get_gradient_vector",
    "get_para_vector",
    "overwrite",
    "put_gradient",
    "slices",
    "tensors_of",
    "trainable",
]


class HasParameters(Protocol):
    """An object with a method ``parameters``, such as a module."""

    def parameters(self) -> Iterable[Tensor]:
        """All tensors that are trained."""


Parameters = HasParameters | Tensor | Iterable[Tensor]


def tensors_of(network: Parameters) -> list[Tensor]:
    """Return the parameters of a network, or the tensors of an iterable, each once.

    ``network`` has a method ``parameters``, or is tensors, in and outside of modules; a TypeError
    if one is not real and floating-point.
    """
    tensors: list[Tensor]
    if isinstance(network, list):
        tensors = network
    elif isinstance(network, Tensor):
        tensors = [network]
    elif callable(method := getattr(network, "parameters", None)):
        tensors = list(method())
    elif isinstance(network, Iterable):
        tensors = list(network)
    else:
        raise TypeError(
            f"parameters must be a module or tensors, got {described(network)}; pass "
            "network.parameters(), or an object that has this method"
        )
    for parameter in tensors:
        if not isinstance(parameter, Tensor) or not parameter.is_floating_point():
            type_name = getattr(parameter, "dtype", type(parameter).__name__)
            raise TypeError(
                f"expected a module or real floating-point tensors, got {type_name}; pass "
                "[*network.parameters(), more, ...]"
            )
    return list({id(parameter): parameter for parameter in tensors}.values())


def trainable(parameters: Parameters) -> list[Tensor]:
    """Return the parameters that require a gradient, each once.

    Raises:
        TypeError: see :func:`tensors_of`.
        ValueError: no parameter requires a gradient.
    """
    tensors = tensors_of(parameters)
    trained = [parameter for parameter in tensors if parameter.requires_grad]
    if not tensors:
        raise ValueError(
            "no parameter that requires a gradient was given, and no other; pass a network, or a "
            "list: a generator such as network.parameters() is exhausted after one pass"
        )
    if not trained:
        raise ValueError(
            f"no parameter that requires a gradient was given: all {len(tensors)} are frozen; call "
            "requires_grad_() on those that are to be trained"
        )
    return trained


def slices(vector: Tensor, parameters: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pair each parameter with its part of a vector (P,); a ValueError for another number P."""
    sizes = check_entries(vector, parameters)
    parts = zip(parameters, vector.detach().split(sizes), strict=True)
    return ((parameter, part.view(parameter.shape)) for parameter, part in parts)


def check_entries(vector: Tensor, parameters: list[Tensor]) -> list[int]:
    """Return the number of entries of each parameter; a ValueError if the sum is not P."""
    sizes = [parameter.numel() for parameter in parameters]
    if vector.shape != (sum(sizes),):
        raise ValueError(
            f"the vector has shape {tuple(vector.shape)}, the {len(sizes)} parameters it is for "
            f"have {sum(sizes)} entries; take the same parameters and the same none_grad_mode as "
            "where the vector was made ('zero' where only some losses reach a parameter)"
        )
    return sizes


def get_para_vector(network: Parameters) -> Tensor:
    """Copy all parameters into one vector.

    Args:
        network: a module, or an iterable of tensors.

    Returns:
        (P,), without a graph.

    Raises:
        ValueError: there is no parameter.
    """
    return _concatenate(tensors_of(network))


def get_gradient_vector(network: Parameters, none_grad_mode: str = "skip") -> Tensor:
    """Copy all gradients into one vector.

    Args:
        network: a module, or an iterable of tensors.
        none_grad_mode: how to handle parameters whose ``.grad`` is None: "skip" them, use "zero"
            for them, or "raise". If only some of several losses depend on a parameter, "zero"
            gives vectors of the same length.

    Returns:
        (P,), or shorter with "skip".

    Raises:
        RuntimeError: a gradient is None with "raise", or every one with "skip".
        ValueError: an unknown mode.
    """
    check_choice(none_grad_mode, "none_grad_mode", ("raise", "zero", "skip"))
    parts, covered = [], []
    for parameter in tensors_of(network):
        gradient = parameter.grad
        covered.append(gradient is not None or none_grad_mode == "zero")
        if gradient is not None:
            parts.append(gradient if gradient.layout == torch.strided else flattened(gradient))
        elif none_grad_mode == "zero":
            parts.append(torch.zeros_like(parameter))
        elif none_grad_mode == "raise":
            raise RuntimeError(
                f"a parameter of shape {tuple(parameter.shape)} has no gradient; call backward "
                "first, or choose none_grad_mode 'zero' or 'skip'"
            )
    if not parts:
        raise RuntimeError(
            "no parameter has a gradient; call backward first, or choose none_grad_mode 'zero'"
        )
    return note_coverage(_concatenate(parts), None if all(covered) else tuple(covered))


def apply_gradient_vector(
    network: Parameters,
    grad_vec: Tensor,
    none_grad_mode: str = "skip",
    zero_grad_mode: str = "pad_value",
) -> None:
    """Overwrite the gradients with the parts of a vector.

    Args:
        network: a module, or an iterable of tensors, as for ``get_gradient_vector``.
        grad_vec: (P,).
        none_grad_mode: "skip" if the vector has no entries for parameters whose ``.grad`` is
            None, "zero" if it has.
        zero_grad_mode: the gradient of such parameters with "zero": "pad_value" for their part of
            the vector, "pad_zero" for zeros, "skip" for none. Frozen parameters stay without.

    Raises:
        TypeError: ``grad_vec`` is not a real floating-point tensor.
        ValueError: the vector has another length, or a mode is unknown; no gradient has changed.
    """
    check_choice(none_grad_mode, "none_grad_mode", ("zero", "skip"))
    check_choice(zero_grad_mode, "zero_grad_mode", ("skip", "pad_zero", "pad_value"))
    check_tensor(grad_vec, "grad_vec")
    parameters = tensors_of(network)
    if none_grad_mode == "skip":
        parameters = covered_by(grad_vec, parameters)
    overwrite(parameters, grad_vec, zero_grad_mode)


def apply_gradient_vector_para_based(network: Parameters, grad_vec: Tensor) -> None:
    """Overwrite the gradients of all parameters, including those without one so far.

    Args:
        network: a module, or an iterable of tensors.
        grad_vec: (P,).

    Raises:
        TypeError: ``grad_vec`` is not a real floating-point tensor.
        ValueError: the vector has another length; no gradient has changed.
    """
    apply_gradient_vector(network, grad_vec, none_grad_mode="zero")


def apply_para_vector(network: Parameters, para_vec: Tensor) -> None:
    """Copy a vector into the parameters.

    Args:
        network: a module, or an iterable of tensors.
        para_vec: (P,).

    Raises:
        TypeError: ``para_vec`` is not a real floating-point tensor.
        ValueError: the vector has another length; no parameter has changed.
    """
    check_tensor(para_vec, "para_vec")
    with torch.no_grad():
        parameters = tensors_of(network)
        check_entries(para_vec, parameters)
        copy_parts(para_vec, parameters)


def overwrite(parameters: list[Tensor], vector: Tensor, mode: str = "pad_value") -> None:
    """Overwrite ``.grad`` with the parts of a vector (P,); a ValueError for another number P.

    ``mode`` concerns parameters without a gradient so far, see :func:`apply_gradient_vector`.
    """
    present = [parameter.grad for parameter in parameters]
    dense = [g for g in present if g is not None and g.layout == torch.strided]
    if len(dense) == len(present) and vector.shape == (sum([g.numel() for g in dense]),):
        watch(parameters, vector)
        with torch.no_grad():
            copy_parts(vector, dense)
        return
    parts = slices(vector, parameters)
    watch(parameters, vector)
    with torch.no_grad():
        for (parameter, part), gradient in zip(parts, present, strict=True):
            if gradient is not None and gradient.layout == torch.strided:
                gradient.copy_(part)
            elif gradient is not None or mode != "skip":
                put_gradient(parameter, torch.zeros_like(part) if mode == "pad_zero" else part)


def copy_parts(vector: Tensor, tensors: list[Tensor]) -> None:
    """Copy a vector (P,) into tensors, part by part; requires disabled gradient mode."""
    if tensors:
        # One call for all tensors: in small networks the calls take longer than the copies.
        torch._foreach_copy_(tensors, _unflatten_dense_tensors(vector.detach(), tensors))


def put_gradient(parameter: Tensor, gradient: Tensor, add: bool = False) -> None:
    """Copy into ``.grad``, or add to it; requires disabled gradient mode.

    A parameter that is frozen and has no gradient is unchanged.
    """
    present = parameter.grad
    if present is None:
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
    elif present.layout != torch.strided:  # sparse, of an embedding; a direction is dense
        total = present.to_dense() + gradient if add else gradient.to(parameter.dtype, copy=True)
        parameter.grad = total
    elif add:
        present += gradient
    else:
        present.copy_(gradient)


def covered_by(vector: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Return the parameters that a vector covers, if those without a gradient were skipped."""
    coverage = coverage_of(vector)
    if coverage is not None and len(coverage) == len(parameters):
        return [p for p, covered in zip(parameters, coverage, strict=True) if covered]
    return [parameter for parameter in parameters if parameter.grad is not None]


def flattened(gradient: Tensor) -> Tensor:
    """Flatten a gradient to a vector; sparse ones, as of embeddings, become dense."""
    return (gradient if gradient.layout == torch.strided else gradient.to_dense()).reshape(-1)


def _concatenate(parts: list[Tensor]) -> Tensor:
    if not parts:
        raise ValueError("there is no parameter; pass a network or [*network.parameters(), ...]")
    with torch.no_grad():
        if len(parts) == 1:  # torch would return a view of a single tensor, not a copy
            return torch.cat([parts[0].reshape(-1)])
        vector: Tensor = _flatten_dense_tensors(parts)
        return vector
