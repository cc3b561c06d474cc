r"""Products of the step Jacobians of a rollout, backwards in time.

A piece is a run of consecutive steps, :math:`A_t = \partial s_{t+1} / \partial s_t` of shape
(T, B, S, S) and :math:`B_t = \partial s_{t+1} / \partial c_t` of shape (T, B, S, C); time is the
first axis. Pieces come from the last to the first, so that they need not exist at the same time.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

__all__ = ["Piece", "adjoint", "real_cotangents", "suffix_products", "whole_jacobian"]

Piece = tuple[Tensor, Tensor]


def whole_jacobian(pieces: Iterable[Piece]) -> tuple[Tensor, Tensor]:
    r"""Jacobians of the final state by the initial one (B, S, S) and the controls (B, S, T * C).

    A control acts on the state after its own step, and all later steps carry that change to the
    end: :math:`\partial s_T / \partial c_t = A_{T-1} \cdots A_{t+1} B_t`.
    """
    product: Tensor | None = None
    by_controls = []
    for piece in pieces:
        for runs in _runs(*piece):
            by_run, products = _within_runs(*runs)
            # Entry k: from the start of run k to the final state; `product` is what follows the
            # last of these runs. A control in run k acts from its end, the start of run k + 1.
            products = suffix_products(products, product)
            # (K, B, S, L * C) -> (B, S, K * L * C): the runs in order of time, as within each run.
            by_controls.append((products[1:] @ by_run).permute(1, 2, 0, 3).flatten(2))
            product = products[0]
    assert product is not None  # every rollout has a step
    return product, torch.cat(by_controls[::-1], 2)


def _runs(by_state: Tensor, by_control: Tensor) -> Iterator[Piece]:
    """Split a piece into about as many runs as each has steps, (K, L, B, S, ...); the last first.

    All runs are multiplied at the same time: of T steps, √T products of √T matrices each within
    the runs and √T products of the runs, instead of T products of one matrix. On CUDA, where
    `suffix_products` needs few launches, every step is a run.
    """
    times = len(by_state)
    length = 1 if by_state.is_cuda else round(times**0.5)
    shorter = times % length
    yield tuple(steps[shorter:].unflatten(0, (-1, length)) for steps in (by_state, by_control))
    if shorter:
        yield by_state[None, :shorter], by_control[None, :shorter]


def _within_runs(by_state: Tensor, by_control: Tensor) -> Piece:
    """Jacobians of the ends of all runs by their controls (K, B, S, L * C) and starts (K, B, S, S).

    The Jacobians of the steps are (K, L, B, S, S) and (K, L, B, S, C).

    Only the latest product is kept: writing to memory would take longer than the arithmetic.
    """
    product, by_controls = by_state[:, -1], [by_control[:, -1]]
    for time in range(by_state.shape[1] - 2, -1, -1):
        by_controls.append(product @ by_control[:, time])
        product = product @ by_state[:, time]
    return torch.cat(by_controls[::-1], -1), product


def real_cotangents(of_final: Tensor, by_controls: Tensor) -> Tensor:
    """Cotangents of real controls, Re(w* J): (B, 1, S), (B, S, N) -> (B, 1, N).

    In real arithmetic, which is several times faster than complex for many cotangents at once.
    """
    if not by_controls.is_complex():
        return of_final @ by_controls
    # Re((a - ib)(c + id)) = ac + bd: real and imaginary parts stacked along the entries of the
    # state, of which the product is the sum.
    parts = torch.cat([of_final.real, of_final.imag], -1)
    return parts @ torch.cat([by_controls.real, by_controls.imag], 1)


def adjoint(
    pieces: Iterable[Piece], of_final: Tensor, of_states: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Cotangents of the initial state (B, 1, S) and of the controls (B, T, 1, C).

    From those of the final state (B, 1, S) and, unless None, of all states (B, T + 1, 1, S).
    """
    current, of_controls = of_final.mT, []  # columns: products of small matrices are faster so
    time = 0
    if of_states is not None:
        of_states = of_states.mT
        time = of_states.shape[1] - 1
        current = current + of_states[:, time]
    for by_state, by_control in pieces:
        after = []  # cotangents of the states after the steps, backwards
        # A cotangent of s_{t+1} gives A_tᴴ times it to s_t, to which s_t's own is added, and
        # B_tᴴ times it to c_t. The latter do not depend on one another: one product for the piece.
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
    """Products (T + 1, B, S, S) of each matrix with all later ones, ``last`` at the end."""
    products = matrices.new_empty((len(matrices) + 1, *matrices.shape[1:]))
    if last is None:
        last = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    products[-1] = last
    if matrices.is_cuda:
        torch.matmul(last, _products_by_doubling(matrices), out=products[:-1])
        return products
    # Hundreds of small products: the overhead of each call dominates, hence views made in advance.
    for after, matrix, product in zip(
        reversed(products[1:].unbind()),
        reversed(matrices.unbind()),
        reversed(products[:-1].unbind()),
        strict=True,
    ):
        torch.bmm(after, matrix, out=product)
    return products


def _products_by_doubling(matrices: Tensor) -> Tensor:
    """Products M_{T-1} ... M_t for all t in log2(T) rounds: more arithmetic, fewer launches."""
    products, span = matrices, 1
    # Entry t is the product of up to `span` matrices from t on. The product from t + span on,
    # times it, has up to twice as many; the last `span` entries have reached the end already.
    while span < len(matrices):
        products = torch.cat([products[span:] @ products[:-span], products[-span:]])
        span *= 2
    return products
