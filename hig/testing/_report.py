"""Report of the checks of a simulator."""

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Check", "SimulatorReport", "Verdict"]

Verdict = Literal["ok", "note", "fail"]


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: name of the check, one or two words.
        verdict: ``"ok"``; ``"note"`` if steps are as accurate as the simulation, but slower or
            with restrictions; ``"fail"`` if they would be wrong or impossible.
        found: description of the result.
        remedy: advice on changes; empty if none is needed.
    """

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"\n{'':27}-> {self.remedy}" if self.remedy else ""
        return f"{self.verdict:<5} {self.name:<20} {self.found}{remedy}"


@dataclass(frozen=True)
class SimulatorReport:
    """Results of `check_simulator`; prints as a table.

    Attributes:
        checks: all checks that were made; after a failure, dependent checks are skipped.
        engine: the choice of ``engine="auto"`` for a plain network before the simulator,
            ``"layerwise"`` or ``"rows"``; ``"none"`` if there is no derivative.
        batched: whether many backward passes run at a time.
        methods: values of ``method`` that the simulator allows.
        passes: number of backward passes of a step: one per row if samples influence one another,
            else one per output, and one to check the factors of layers. A black box that is known
            to be linear, sample by sample, needs the latter only in the first two steps and in
            every 64th.
        simulations: number of simulations of the check.
        backward_calls: number of backward passes of the check; those in one batch count as one.
    """

    checks: list[Check] = field(default_factory=list)
    engine: Literal["layerwise", "rows", "none"] = "none"
    batched: bool = False
    methods: tuple[str, ...] = ()
    passes: int = 0
    simulations: int = 0
    backward_calls: int = 0

    @property
    def passed(self) -> bool:
        """Return whether all checks have passed, with notes or without."""
        return not self.failures

    @property
    def failures(self) -> list[Check]:
        """The checks that have failed."""
        return [check for check in self.checks if check.verdict == "fail"]

    @property
    def notes(self) -> list[Check]:
        """The checks that passed with a restriction."""
        return [check for check in self.checks if check.verdict == "note"]

    def __str__(self) -> str:
        lines = [str(check) for check in self.checks]
        names = ", ".join(check.name for check in self.failures)
        if self.engine == "none":
            return "\n".join([*lines, f"not ready for a half-inverse step: {names}; {self._cost}"])
        how = "in batches" if self.batched else "one by one"
        ready = "ready" if self.passed else f"not ready ({names})"
        if self.passed and self.notes:
            ready += f", with notes ({', '.join(check.name for check in self.notes)})"
        lines.append(
            f"{ready}: engine {self.engine}, {self.passes} backward passes a step {how}, "
            f"method {', '.join(self.methods)}; {self._cost}"
        )
        return "\n".join(lines)

    @property
    def _cost(self) -> str:
        return f"checked by {self.simulations} simulations, {self.backward_calls} backward passes"
