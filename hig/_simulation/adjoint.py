r"""Products of the step Jacobians of a rollout: linear algebra, backwards in time.

A piece is a run of consecutive steps, :math:`A_t = \partial s_{t+1} / \partial s_t` of shape
(T, B, S, S) and :math:`B_t = \partial s_{t+1} / \partial c_t` of shape (T, B, S, C); time is the
first axis. Pieces come from the last to the first, so that they need not exist all at once.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

__all__ = ["Piece", "adjoint", "real_cotangents", "suffix_products", "whole_jacobian"]

Piece = tuple[Tensor, Tensor]


def whole_jacobian(pieces: Iterable[Piece]) -> tuple[Tensor, Tensor]:
    """The Jacobians of the final state by the initial one (B, S, S) and the controls (B, S, T * C).

    Args:
        pieces: the steps.
    """
    product: Tensor | None = None
    by_controls = []
    for piece in pieces:
        for runs in _runs(*piece):
            by_run, products = _within_runs(*runs)
            products = suffix_products(products, product)
            by_controls.append((products[1:] @ by_run).permute(1, 2, 0, 3).flatten(2))
            product = products[0]
    assert product is not None  # there is no rollout without a step
    return product, torch.cat(by_controls[::-1], 2)


def _runs(by_state: Tensor, by_control: Tensor) -> Iterator[Piece]:
    """Cut a piece into about as many runs as each has steps, (K, L, B, S, ...); the last first.

    On CUDA every step is a run.
    """
    times = len(by_state)
    length = 1 if by_state.is_cuda else round(times**0.5)
    shorter = times % length
    yield tuple(steps[shorter:].unflatten(0, (-1, length)) for steps in (by_state, by_control))
    if shorter:
        yield by_state[None, :shorter], by_control[None, :shorter]


def _within_runs(by_state: Tensor, by_control: Tensor) -> Piece:
    """The ends of all runs by their controls (K, B, S, L * C) and by their starts (K, B, S, S).

    No product but the latest is kept: memory, not arithmetic, would take most of the time.

    Args:
        by_state: (K, L, B, S, S).
        by_control: (K, L, B, S, C).
    """
    product, by_controls = by_state[:, -1], [by_control[:, -1]]
    for time in range(by_state.shape[1] - 2, -1, -1):
        by_controls.append(product @ by_control[:, time])
        product = product @ by_state[:, time]
    return torch.cat(by_controls[::-1], -1), product


def real_cotangents(of_final: Tensor, by_controls: Tensor) -> Tensor:
    """Cotangents of real controls, Re(w* J): (B, 1, S), (B, S, N) -> (B, 1, N).

    In real numbers: for many cotangents at once several times as fast as in complex ones.
    """
    if not by_controls.is_complex():
        return of_final @ by_controls
    parts = torch.cat([of_final.real, of_final.imag], -1)
    return parts @ torch.cat([by_controls.real, by_controls.imag], 1)


def adjoint(
    pieces: Iterable[Piece], of_final: Tensor, of_states: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Cotangents of the initial state (B, 1, S) and of the controls (B, T, 1, C).

    Args:
        pieces: the steps.
        of_final: cotangent of the final state, (B, 1, S).
        of_states: cotangents of all T + 1 states, (B, T + 1, 1, S), or None.
    """
    current, of_controls = of_final.mT, []  # columns, as the products of small matrices want them
    time = 0
    if of_states is not None:
        of_states = of_states.mT
        time = of_states.shape[1] - 1
        current = current + of_states[:, time]
    for by_state, by_control in pieces:
        after = []  # cotangents of the states after the steps, backwards
        for matrix in reversed(by_state.mH.unbind()):
            after.append(current)
            current = matrix @ current
            if of_states is not None:
                time -= 1
                current = current + of_states[:, time]
        of_piece = by_control.mH @ torch.stack(after[::-1])
        of_controls.append(of_piece.mT.transpose(0, 1))
    return current.mT, torch.cat(of_controls[::-1], 1)


def suffix_products(matrices: Tensor, last: Tensor | None = None) -> Tensor:
    """(T, B, S, S) -> (T + 1, B, S, S): entry t is last M_{T-1} ... M_t.

    Args:
        matrices: M.
        last: (B, S, S), the last entry of the result; the identity if None.
    """
    products = matrices.new_empty((len(matrices) + 1, *matrices.shape[1:]))
    if last is None:
        last = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    products[-1] = last
    if matrices.is_cuda:
        torch.matmul(last, _products_by_doubling(matrices), out=products[:-1])
        return products
    # Hundreds of small products: what counts is the way to each of them.
    for after, matrix, product in zip(
        reversed(products[1:].unbind()),
        reversed(matrices.unbind()),
        reversed(products[:-1].unbind()),
        strict=True,
    ):
        torch.bmm(after, matrix, out=product)
    return products


def _products_by_doubling(matrices: Tensor) -> Tensor:
    """M_{T-1} ... M_t for all t in log2(T) rounds: where each launch costs, not the work."""
    products, span = matrices, 1
    while span < len(matrices):
        products = torch.cat([products[span:] @ products[:-span], products[-span:]])
        span *= 2
    return products
