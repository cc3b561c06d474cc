"""Controls of a simulator: few tensors through which alone its outputs depend on the parameters."""

from collections.abc import Sequence

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from hig._torch.autograd_graph import leaves, reachable_nodes
from hig.errors import described

__all__ = ["controls", "refusal"]

Found = Sequence[tuple[Tensor, int]]


def controls(values: Tensor) -> Tensor:
    """Name the controls of a simulator, and return them unchanged.

    If all outputs of a sample depend on the parameters through C controls of this sample alone,
    and there are more outputs than controls, an exact step needs C rows per sample and C backward
    passes through the network, whatever the number of outputs. Steps find out by themselves where
    the controls are the output of the last ``torch.nn.Linear`` or convolution; otherwise name them
    in the closure::

        field = simulate(hig.controls(amplitudes(network(inputs))))

    Tensors named in several calls are taken together. Controls that turn out not to be all that
    the outputs depend on change nothing; a note in the report says so.

    Args:
        values: (batch, ...), with its graph.

    Returns:
        The same tensor.

    Raises:
        TypeError: it is not a tensor.
    """
    if not isinstance(values, Tensor):
        raise TypeError(f"controls must be a tensor (batch, ...), got {described(values)}")
    if has_torch_function_unary(values):  # a capture of the closure, or a subclass
        named: Tensor = handle_torch_function(controls, (values,), values)
        return named
    return values


def refusal(found: Found, prediction: Tensor, parameters: Sequence[Tensor]) -> str:
    """Return why tensors are not the controls of a prediction (B, ...); empty if they may be.

    Args:
        found: the tensors, each with its version.
        prediction: the prediction, with its graph.
        parameters: the trained parameters.
    """
    samples, outputs, tensors = len(prediction), prediction[0].numel(), [t for t, _ in found]
    if any(t.ndim < 2 or len(t) % samples for t in tensors):
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        return f"they have shape {shapes}, and the batch has {samples} samples"
    size = sum(tensor.numel() for tensor in tensors) // samples
    if not 0 < size < outputs:
        return f"{size} controls are not fewer than {outputs} outputs per sample"
    if any(tensor._version != version for tensor, version in found):
        return "they were changed in place after they were named"
    edges = [(t.grad_fn, t.output_nr) for t in tensors]
    beyond = reachable_nodes(prediction, *edges)
    known = {id(parameter) for parameter in parameters}
    of_leaves = any(id(leaf) in known for leaf in leaves(beyond))
    if of_leaves or any(p.grad_fn in beyond for p in parameters if not p.is_leaf):
        return "the outputs depend on parameters in another way too"
    if len(edges) > 1:
        for tensor in tensors:
            behind = reachable_nodes(tensor) - {tensor.grad_fn}
            if any(node in behind for node, _ in edges):
                return "some of them depend on others"
    return ""
