r"""The same computation by this package and by others, side by side.

Three things that more than one package computes, on the residual :math:`r` = prediction - target
of a batch, with its Jacobian J by the parameters of the network:

- a Levenberg–Marquardt step :math:`(J^T J + \lambda)^{-1} J^T r`, with the new loss measured;
- the same direction alone, without a trial of it;
- the Gram matrix :math:`J J^T` of all outputs of all samples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.utils import parameters_to_vector

import hig
from experiments._measure.joint_jacobian import obtain
from experiments._run.batches import check_batch_size
from problems import Batch, Problem, samples

STEP = "Levenberg–Marquardt step"
DIRECTION = "damped Gauss–Newton direction"
GRAM = "Gram matrix"

# Error of the direction; the residual of the conjugate gradients is chosen to reach it.
LANCZOS_TOLERANCE, CG_TOLERANCE = 1e-3, 1e-4

# Module to import, and name of its package.
PACKAGES = {
    "torch_levenberg_marquardt": "torch-levenberg-marquardt",
    "curvlinops": "curvlinops-for-pytorch",
    "torchjd.autogram": "torchjd",
    "conflictfree.grad_operator": "conflictfree",
}

Compute = Callable[[], Tensor]


@dataclass(frozen=True)
class PeerCase:
    """One way to compute one of the three.

    Attributes:
        quantity: `STEP`, `DIRECTION` or `GRAM`; the first case of each is this package's own.
        case: Who computes it, and how.
        make: Makes the function that computes it, always from the same weights: the step or
            direction (P,), or the matrix (n, n).
        note: Remark for the comparison.
    """

    quantity: str
    case: str
    make: Callable[[], Compute]
    note: str = ""


def require_peers() -> None:
    """Import the packages that are compared with; an ImportError says how to get them."""
    for module, package in PACKAGES.items():
        try:
            import_module(module)
        except ImportError as error:
            raise ImportError(
                f"the comparison needs the package {package}, which is not installed or not "
                f"complete ({error}); get it with: pip install 'hig[peers]'"
            ) from error


class Simulated(nn.Module):
    """A network followed by the simulator: the model that other packages train."""

    def __init__(self, problem: Problem, network: nn.Module):
        super().__init__()
        self.problem, self.network = problem, network

    def forward(self, batch: Batch) -> Tensor:
        """Prediction (B, ...) for a batch."""
        return self.problem.predict(self.network, batch).contiguous()  # some call view on it


class PeerCases:
    """All cases on one fixed batch, each with its own copy of the network.

    Args:
        problem: A problem that `torch.func` can trace, whose batches have a ``target`` of the
            shape of the prediction.
        batch_size: Samples of the batch.
        device: Torch device.
        dtype: Of weights and data.
        damping: λ, with which the first trial of the step should succeed: every further one
            changes the result.
        seed: Seed of weights and data.
    """

    def __init__(
        self,
        problem: Problem,
        batch_size: int,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        damping: float = 1.0,
        seed: int = 0,
    ):
        self.problem, self.device, self.dtype, self.seed = problem, device, dtype, seed
        train, _ = problem.data(torch.Generator().manual_seed(seed))
        check_batch_size(batch_size, train)
        # Through float32, so that all precisions compute the same.
        self.batch = {
            key: value[:batch_size].float().to(device, dtype) for key, value in train.items()
        }
        self.damping = damping

    def cases(self) -> list[PeerCase]:
        """All cases; those of one quantity follow one another."""
        plain = self.problem.plain()
        found = []
        for quantity, name, make, others in (
            (STEP, "hig.LevenbergMarquardt", self.step, self._step_peers()),
            (DIRECTION, "hig.record, Damped", self.direction, self._direction_peers()),
            (GRAM, "hig, layer by layer", self.gram, self._gram_peers()),
        ):
            found.append(PeerCase(quantity, name, lambda make=make: make(self.problem)))
            if plain != self.problem:
                found.append(
                    PeerCase(
                        quantity,
                        f"{name}, plain loop",
                        lambda make=make: make(plain),
                        "autograd through the time loop, without hig.rollout",
                    )
                )
            found.extend(others)
        return found

    def reference(self) -> dict[str, Tensor]:
        """Each quantity by plain linear algebra on the dense Jacobian, in float64.

        The Jacobian is that of `torch.func`, which `hig.rollout` leaves the time loop to.
        """
        model = Simulated(self.problem, self._network()).double()
        batch = {key: value.double() for key, value in self.batch.items()}

        def output(values: dict[str, Tensor], sample: dict[str, Tensor]) -> Tensor:
            single = {key: value[None] for key, value in sample.items()}
            return functional_call(model, values, (single,))[0]

        values = {name: value.detach() for name, value in model.named_parameters()}
        blocks = vmap(jacrev(output), in_dims=(None, 0))(values, batch).values()
        residual = (model(batch) - batch["target"]).detach().flatten()
        jacobian = torch.cat([block.reshape(len(residual), -1) for block in blocks], 1)
        gram = jacobian @ jacobian.T
        shifted = gram + self.damping * torch.eye(len(gram)).to(gram)
        direction = jacobian.T @ torch.linalg.solve(shifted, residual)
        return {STEP: direction, DIRECTION: direction, GRAM: gram}

    # -- this package --------------------------------------------------------------------------

    def step(self, problem: Problem) -> Compute:
        """A step of `hig.LevenbergMarquardt` at a loss of half the sum of squares."""
        network = self._network()
        parameters = list(network.parameters())
        start = parameters_to_vector(parameters).detach()
        optimizer = hig.LevenbergMarquardt(
            parameters, lr=1.0, damping=self.damping, step_rule="fixed"
        )

        def compute() -> Tensor:
            _put(start, parameters)
            optimizer.filter = hig.Damped(self.damping)
            optimizer.step(lambda: self._loss_and_prediction(problem, network))
            return start - parameters_to_vector(parameters).detach()

        return compute

    def direction(self, problem: Problem, method: str | hig.Lanczos = "auto") -> Compute:
        """The direction that `hig.record` puts into ``.grad``."""
        network = self._network()
        parameters = list(network.parameters())

        def compute() -> Tensor:
            network.zero_grad()
            with hig.record(parameters) as record:
                loss, prediction = self._loss_and_prediction(problem, network)
            record.backward(loss, prediction, filter=hig.Damped(self.damping), method=method)
            return parameters_to_vector([parameter.grad for parameter in parameters])

        return compute

    def gram(self, problem: Problem) -> Compute:
        """Prediction, Jacobian and Gram matrix as in a step, and nothing after them."""
        network = self._network()

        def compute() -> Tensor:
            # A new search every time, as in the first step.
            found = obtain(network, lambda: problem.predict(network, self.batch), "auto")()
            with torch.no_grad():
                return found.jacobian.gram()

        return compute

    # -- others --------------------------------------------------------------------------------

    def torch_lm(self, solver: str) -> Compute:
        """A training step of torch-levenberg-marquardt."""
        from torch_levenberg_marquardt.damping import StandardDampingStrategy
        from torch_levenberg_marquardt.training import LevenbergMarquardtModule

        # It divides JᵀJ and Jᵀr by the number of samples before it adds the damping.
        damping = StandardDampingStrategy(starting_value=self.damping / samples(self.batch))
        module = LevenbergMarquardtModule(
            Simulated(self.problem, self._network()),
            damping_strategy=damping,
            solve_method=solver,
        )
        start = module.flat_params.clone()

        def compute() -> Tensor:
            module.flat_params.copy_(start)
            module.backup_parameters()
            damping.reset()
            module.training_step(self.batch, self.batch["target"])
            return start - module.flat_params

        return compute

    def curvlinops(self, tolerance: float = CG_TOLERANCE) -> Compute:
        """The damped Gauss–Newton matrix of curvlinops, inverted by its conjugate gradients."""
        from curvlinops import CGInverseLinearOperator, GGNLinearOperator
        from curvlinops.examples import IdentityLinearOperator

        model, loss = Simulated(self.problem, self._network()), nn.MSELoss(reduction="sum")
        parameters = list(model.parameters())
        identity = IdentityLinearOperator(
            [parameter.shape for parameter in parameters], parameters[0].device, self.dtype
        )

        def compute() -> Tensor:
            gradient = torch.autograd.grad(
                loss(model(self.batch), self.batch["target"]), parameters
            )
            matrix = GGNLinearOperator(
                model,
                loss,
                parameters,
                [(self.batch, self.batch["target"])],
                check_deterministic=False,
                num_data=samples(self.batch),
                batch_size_fn=samples,
            )
            # Without the half, matrix and gradient are twice those of the others. The smallest
            # divisor allowed is 1e-10 by default, which ends small dampings early.
            inverse = CGInverseLinearOperator(
                matrix + 2 * self.damping * identity, tolerance=tolerance, eps=1e-30
            )
            return parameters_to_vector(inverse @ list(gradient))

        return compute

    def torchjd(self) -> Compute:
        """The Gram matrix by TorchJD's engine."""
        from torchjd.autogram import Engine

        network = self._network()
        engine = Engine(network, batch_dim=0)
        return lambda: engine.compute_gramian(self.problem.predict(network, self.batch))

    # -- details -------------------------------------------------------------------------------

    def _step_peers(self) -> list[PeerCase]:
        name = "torch-levenberg-marquardt"
        return [
            PeerCase(STEP, f"{name}, QR", lambda: self.torch_lm("qr"), "its default; J dense"),
            PeerCase(STEP, f"{name}, Cholesky", lambda: self.torch_lm("cholesky"), "J dense"),
        ]

    def _direction_peers(self) -> list[PeerCase]:
        lanczos = hig.Lanczos(tolerance=LANCZOS_TOLERANCE)
        return [
            PeerCase(
                DIRECTION,
                f"hig.record, Lanczos to {LANCZOS_TOLERANCE:.0e}",
                lambda: self.direction(self.problem, lanczos),
                "products with J alone",
            ),
            PeerCase(
                DIRECTION,
                f"curvlinops, CG to {CG_TOLERANCE:.0e}",
                self.curvlinops,
                "products with JᵀJ alone; each simulates again",
            ),
        ]

    def _gram_peers(self) -> list[PeerCase]:
        return [
            PeerCase(GRAM, "torchjd.autogram.Engine", self.torchjd, "J dense, layer after layer")
        ]

    def _loss_and_prediction(self, problem: Problem, network: nn.Module) -> tuple[Tensor, Tensor]:
        prediction = problem.predict(network, self.batch)
        return 0.5 * (prediction - self.batch["target"]).square().sum(), prediction

    def _network(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return self.problem.network().to(self.device, self.dtype)


@torch.no_grad()
def _put(vector: Tensor, parameters: list[nn.Parameter]) -> None:
    parts = vector.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.copy_(part.view_as(parameter))
