"""Gradients of several losses as one matrix."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import Node

from hig._torch.autograd_graph import reachable_nodes
from hig._torch.ranks import ProcessGroup, Ranks, check_process_group
from hig.arguments import check_choice
from hig.conflictfree._parameter_vectors import Parameters, flattened, trainable
from hig.errors import described

__all__ = ["METHODS", "differentiate", "listed", "loss_gradients"]

METHODS = ("auto", "batched", "separate")


def loss_gradients(
    losses: Sequence[Tensor] | Tensor,
    parameters: Parameters,
    *,
    method: str = "auto",
    retain_graph: bool = False,
    process_group: ProcessGroup = "auto",
) -> Tensor:
    """Compute the gradients of several losses, one per row.

    Args:
        losses: m scalars, or a tensor (m,), each with a graph.
        parameters: a module, or an iterable of tensors; P entries in total in those that require
            a gradient, the others have no column.
        method: "separate": one backward pass per loss, through its own graph; "batched": one
            vectorised pass through the graph of all losses, in which NaN and Inf of one loss may
            spread to the rows of others, or separate passes if the graph cannot be vectorised;
            "auto": batched on a GPU for losses that share most of their graph, as kernel launches
            dominate there, else separate.
        retain_graph: keep the graphs for another pass.
        process_group: process ranks whose gradients are averaged, as in
            ``DistributedDataParallel``: a group of torch.distributed, "auto" for the default
            group if there is one, or None for this process alone. All process ranks call this
            with the same number of losses.

    Returns:
        (m, P), the same on all process ranks; zero if a loss does not depend on a parameter.

    Raises:
        RankError: another process rank failed.
        TypeError: losses or parameters are not real floating-point tensors, or parameters are
            sharded across process ranks.
        ValueError: a loss is not a scalar or has no graph, nothing requires a gradient, or the
            process ranks differ in the number of losses or entries.
    """
    check_process_group(process_group)
    ranks = Ranks(process_group)
    return differentiate(listed(losses), trainable(parameters), method, retain_graph, ranks)[0]


def listed(losses: Iterable[Tensor]) -> list[Tensor]:
    """Return several losses as a list; a TypeError for a single one, a mapping or no iterable."""
    remedy = "pass a list of losses, [loss] for a single one"
    if isinstance(losses, Mapping):
        remedy = "pass list(losses.values()), in the same order in every step"
    elif isinstance(losses, Iterable) and getattr(losses, "ndim", True):
        return list(losses)
    raise TypeError(f"losses must be a list of scalars, got {described(losses)}; {remedy}")


def differentiate(
    losses: list[Tensor],
    parameters: list[Tensor],
    method: str,
    retain_graph: bool,
    ranks: Ranks,
) -> tuple[Tensor, list[bool]]:
    """Compute gradients (m, P), averaged over all process ranks, and which parameters they reach.

    Arguments are those of :func:`loss_gradients`. A parameter is reached if a loss of any process
    rank depends on it.

    ``torch.autograd.grad`` does not trigger the hooks of ``DistributedDataParallel`` that average
    gradients: this function averages them itself.

    Raises:
        RankError: another process rank failed.
        TypeError: a loss is not a real floating-point tensor, or a parameter is sharded.
        ValueError: a loss is not a scalar or has no graph; or process ranks differ in the number
            of losses.
    """
    with ranks.agreement():
        _check(losses)
        _check_whole(parameters, losses, ranks)
        matrix, reached = _differentiate(losses, parameters, method, retain_graph)
    if ranks.size == 1:
        return matrix, reached
    ranks.agree_on(
        {
            "the number of losses": (matrix.shape[0], "a loss without samples is 0 * prediction"),
            "the number of entries": (matrix.shape[1], "freeze the same parameters on all ranks"),
        }
    )
    wanted = torch.tensor(reached, dtype=torch.int32, device=matrix.device)
    return ranks.total(matrix) / ranks.size, ranks.total(wanted).bool().tolist()


def _differentiate(
    losses: list[Tensor], parameters: list[Tensor], method: str, retain_graph: bool
) -> tuple[Tensor, list[bool]]:
    check_choice(method, "method", METHODS)
    # On a CPU a vectorised pass is not faster, except for graphs so small that neither matters.
    on_gpu = losses[0].is_cuda
    if method == "batched" or (method == "auto" and on_gpu and _fewer_launches(losses)):
        try:
            return _batched(losses, parameters)
        except RuntimeError:
            # Not vectorisable, or out of memory. A broken graph raises again in separate passes.
            pass
    return _separate(losses, parameters, retain_graph)


def _check(losses: list[Tensor]) -> None:
    if not losses:
        raise ValueError("there must be at least one loss, got none")
    for number, loss in enumerate(losses):
        if not isinstance(loss, Tensor) or not loss.is_floating_point():
            type_name = getattr(loss, "dtype", type(loss).__name__)
            raise TypeError(
                f"loss {number} must be a real floating-point tensor, got {type_name}; compute it "
                "from the parameters by torch functions, without item or numpy"
            )
        if loss.numel() != 1:
            raise ValueError(
                f"loss {number} must be a scalar, got shape {tuple(loss.shape)}; take its mean"
            )
        if not loss.requires_grad:
            raise ValueError(
                f"loss {number} carries no gradient graph; compute it from the parameters without "
                "detach, item or no_grad"
            )


def _check_whole(parameters: list[Tensor], losses: list[Tensor], ranks: Ranks) -> None:
    """Raise if a process rank has only a part of a parameter (FSDP, tensor parallelism)."""
    remedy = (
        "and angles between gradients need all of its entries; keep whole parameters on every "
        "process rank, as DistributedDataParallel does"
    )
    for number, parameter in enumerate(parameters):
        # By their attributes: the modules that define these types are slow to import.
        if hasattr(parameter, "device_mesh") or getattr(parameter, "_is_flat_param", False):
            type_name = type(parameter).__name__
            raise TypeError(
                f"parameter {number} is sharded across process ranks ({type_name}), {remedy}"
            )
    # FSDP gathers whole parameters from the forward pass to its backward pass.
    if ranks.size > 1 and any(
        "RegisterPostBackward" in node.name() for loss in losses for node in reachable_nodes(loss)
    ):
        raise TypeError(f"a parameter is sharded across process ranks (FSDP), {remedy}")


def _separate(
    losses: list[Tensor], parameters: list[Tensor], retain_graph: bool
) -> tuple[Tensor, list[bool]]:
    rows, reached = [], [False] * len(parameters)
    for loss, shared in zip(losses, _shared_with_later(losses), strict=True):
        # A graph that is freed during the pass lets its memory be reused: retaining costs 20 %.
        keep = retain_graph or shared
        gradients = torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True)
        reached = [a or b is not None for a, b in zip(reached, gradients, strict=True)]
        rows.append(_joined(gradients, parameters))
    matrix = rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)
    return matrix, reached


def _batched(losses: list[Tensor], parameters: list[Tensor]) -> tuple[Tensor, list[bool]]:
    selections = torch.eye(len(losses), dtype=losses[0].dtype, device=losses[0].device)
    gradients = torch.autograd.grad(
        losses,
        parameters,
        [s.view(-1, *loss.shape) for s, loss in zip(selections, losses, strict=True)],
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=True,
    )
    matrix = torch.cat(
        [
            parameter.new_zeros((len(losses), parameter.numel()))
            if gradient is None
            else gradient.reshape(len(losses), -1)
            for gradient, parameter in zip(gradients, parameters, strict=True)
        ],
        dim=1,
    )
    return matrix, [gradient is not None for gradient in gradients]


def _joined(gradients: Sequence[Tensor | None], parameters: list[Tensor]) -> Tensor:
    return torch.cat(
        [
            torch.zeros_like(parameter).reshape(-1) if gradient is None else flattened(gradient)
            for gradient, parameter in zip(gradients, parameters, strict=True)
        ]
    )


def _fewer_launches(losses: list[Tensor]) -> bool:
    """Return whether a vectorised pass runs at most half as many graph nodes as separate passes.

    It runs every node once, for m cotangents; separate passes run a node once per loss that
    depends on it. For losses with only parameters in common it saves no launch, and costs m
    times the arithmetic.
    """
    together: set[Node] = set()
    apart = 0
    for loss in losses:
        seen = _nodes(loss)
        together |= seen
        apart += len(seen)
    return 2 * len(together) <= apart


def _shared_with_later(losses: list[Tensor]) -> list[bool]:
    """Return for each loss whether a later one needs a part of its graph."""
    later: set[Node] = set()
    shared = []
    for loss in reversed(losses):
        nodes = _nodes(loss)
        shared.append(not nodes.isdisjoint(later))
        later |= nodes
    return shared[::-1]


def _nodes(loss: Tensor) -> set[Node]:
    """Nodes of the graph of a loss that compute something, without those of parameters."""
    return {node for node in reachable_nodes(loss) if not hasattr(node, "variable")}
