"""Cases of the benchmark: one training step, taken in several ways."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

import hig
from experiments._methods import METHODS
from experiments._run.batches import check_batch_size
from experiments._run.step import outputs_closure, repeatable_step
from problems import Problem, Settings, samples

TEXTBOOK, ADAM = "textbook (all rows, SVD)", "Adam, as written down"

Step = Callable[[], object]


class Cases:
    """Steps of one problem on one fixed batch; each takes its own copy of the network."""

    def __init__(self, problem: Problem, batch_size: int, device: str, seed: int = 0):
        self.problem, self.device, self.seed = problem, device, seed
        train, _ = problem.data(torch.Generator().manual_seed(seed))
        self.batch = {
            key: value[:batch_size].to(device, torch.float32) for key, value in train.items()
        }
        self.settings = problem.settings["hig"]
        check_batch_size(batch_size, train)
        self._plain = problem.plain()

    def makers(self) -> dict[str, Callable[[], Step]]:
        """Constructors of the steps, by the name of the case."""
        makers = {
            TEXTBOOK: self.textbook,
            "HIG rows": lambda: self.half_inverse(engine="rows"),
            "HIG layerwise": lambda: self.half_inverse(engine="layerwise"),
            "HIG auto": self.half_inverse,
            "HIG auto, trust": lambda: self.half_inverse(step_rule="trust"),
            ADAM: lambda: self.adam(self._plain),
            "eigh alone": self.eigh,
        }
        if torch.device(self.device).type == "cuda" and self.problem.traceable:
            makers["HIG auto, CUDA graph"] = self.recorded
        if self._plain != self.problem:
            makers["Adam, fast simulation"] = lambda: self.adam(self.problem)
        return makers

    def textbook(self) -> Step:
        """The published algorithm, written down directly: every output's gradient, then an SVD."""
        network = self.network()

        def step() -> None:
            jacobian, gradient = self._textbook_jacobian(network)
            with torch.no_grad():
                left, values, right = torch.linalg.svd(jacobian, full_matrices=False)
                keep = values > self.settings.rcond * values[0]
                powers = torch.where(keep, values, 1).rsqrt() * keep
                direction = right.T @ (powers * (left.T @ gradient.flatten()))
                torch.nn.utils.vector_to_parameters(
                    torch.nn.utils.parameters_to_vector(network.parameters())
                    - self.settings.lr * direction,
                    network.parameters(),
                )

        return step

    def _textbook_jacobian(self, network: nn.Module) -> tuple[Tensor, Tensor]:
        """J (n, P) and the gradient of the loss by the prediction."""
        with torch.no_grad():
            prediction = self._plain.predict(network, self.batch)
        prediction.requires_grad_()
        (gradient,) = torch.autograd.grad(self._plain.loss(prediction, self.batch), prediction)
        rows = self._vectorised_rows if self.problem.traceable else self._sample_rows
        blocks = rows(network)
        return torch.cat([block.reshape(prediction.numel(), -1) for block in blocks], 1), gradient

    def _vectorised_rows(self, network: nn.Module) -> list[Tensor]:
        """The rows of every parameter, (B, ..., *parameter), by torch.func."""

        def output(values: dict[str, Tensor], sample: dict[str, Tensor]) -> Tensor:
            def run(inputs: Tensor) -> Tensor:
                return functional_call(network, values, (inputs,))

            single = {key: value[None] for key, value in sample.items()}
            return self._plain.predict(run, single)[0]

        parameters = dict(network.named_parameters())
        return list(vmap(jacrev(output), in_dims=(None, 0))(parameters, self.batch).values())

    def _sample_rows(self, network: nn.Module) -> list[Tensor]:
        """Rows of every parameter, by sample, for simulators that torch.func cannot trace."""
        rows = []
        for index in range(samples(self.batch)):
            single = {key: value[index : index + 1] for key, value in self.batch.items()}
            prediction = self._plain.predict(network, single)
            select = torch.eye(prediction.numel(), device=self.device)
            rows.append(
                torch.autograd.grad(
                    prediction,
                    list(network.parameters()),
                    select.view(-1, *prediction.shape),
                    is_grads_batched=True,
                )
            )
        return [torch.stack(parts) for parts in zip(*rows, strict=True)]

    def half_inverse(self, **options: str) -> Step:
        """A step of HIG at the published settings."""
        return self._step(self.problem, "hig", replace(self.settings, **options))

    def recorded(self) -> Step:
        """A step of HIG as a CUDA graph."""
        network, settings = self.network(), self.settings
        optimizer = hig.HIG(
            network.parameters(), settings.lr, settings.rcond, step_rule="fixed", cuda_graph=True
        )
        closure = outputs_closure(self.problem, network, self.batch)
        return lambda: optimizer.step(closure)

    def adam(self, problem: Problem) -> Step:
        """A step of Adam on the same batch, as written down or through ``hig.rollout``."""
        return self._step(problem, "adam", problem.settings["adam"])

    def _step(self, problem: Problem, method: str, settings: Settings) -> Step:
        return repeatable_step(problem, METHODS[method], self.network(), settings, self.batch)

    def eigh(self) -> Step:
        """The decomposition of a Gram matrix of the same size, in float64, and nothing else."""
        rows = self.problem.predict(self.network(), self.batch).numel()
        generator = torch.Generator().manual_seed(self.seed)
        factor = torch.randn(rows, 2 * rows, generator=generator, dtype=torch.float64)
        scales = torch.logspace(0, -6, rows, dtype=torch.float64)[:, None]
        gram = (scales * factor @ factor.T * scales.T).to(self.device)
        return lambda: torch.linalg.eigh(gram)

    def network(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return self.problem.network().to(self.device)
