"""Controls of a simulator: few tensors through which alone its outputs depend on the parameters."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from hig._torch.autograd_graph import leaves, reachable_nodes
from hig.errors import described

__all__ = ["Controls", "controls"]


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


@dataclass
class Controls:
    """Tensors through which alone a prediction may depend on the parameters.

    Attributes:
        named: those named by :func:`controls`, each with its version.
        last: the output of the last layer, with its version.
    """

    named: list[tuple[Tensor, int]] = field(default_factory=list)
    last: tuple[Tensor, int] | None = None

    def name(self, values: Tensor) -> None:
        """Add named controls."""
        self.named.append((values, values._version))

    def see(self, output: Tensor) -> None:
        """Note the output of a layer; that of the last one is kept."""
        self.last = output, output._version

    def tensors(self) -> list[Tensor]:
        """Return the named controls, else the output of the last layer, if there is one."""
        return [tensor for tensor, _ in self._found()]

    def refusal(self, prediction: Tensor, parameters: Sequence[Tensor]) -> str:
        """Return why these are not controls of a prediction (B, ...); empty if they may be.

        Args:
            prediction: the prediction, with its graph.
            parameters: the trained parameters.
        """
        samples, outputs, tensors = len(prediction), prediction[0].numel(), self.tensors()
        if any(t.ndim < 2 or len(t) % samples for t in tensors):
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
            return f"they have shape {shapes}, and the batch has {samples} samples"
        size = sum(tensor.numel() for tensor in tensors) // samples
        if not 0 < size < outputs:
            return f"{size} controls are not fewer than {outputs} outputs per sample"
        if any(tensor._version != version for tensor, version in self._found()):
            return "they were changed in place after they were named"
        edges = [(t.grad_fn, t.output_nr) for t in tensors]
        known = {id(parameter) for parameter in parameters}
        beyond = reachable_nodes(prediction, *edges)
        if any(id(leaf) in known for leaf in leaves(beyond)) or any(
            parameter.grad_fn in beyond for parameter in parameters if not parameter.is_leaf
        ):
            return "the outputs depend on parameters in another way too"
        if len(edges) > 1 and any(
            edge[0] in reachable_nodes(tensor) - {tensor.grad_fn}
            for tensor in tensors
            for edge in edges
        ):
            return "some of them depend on others"
        return ""

    def _found(self) -> list[tuple[Tensor, int]]:
        return self.named or ([] if self.last is None else [self.last])
