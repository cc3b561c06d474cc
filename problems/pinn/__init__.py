"""Physics-informed networks: a differential equation is the simulator, the network its solution."""

from problems.pinn._jets import Jet, jet
from problems.pinn._physics_informed import PhysicsInformed
from problems.pinn.beltrami import Beltrami
from problems.pinn.burgers import Burgers
from problems.pinn.kovasznay import Kovasznay
from problems.pinn.schroedinger import Schroedinger

__all__ = [
    "Beltrami",
    "Burgers",
    "Jet",
    "Kovasznay",
    "PhysicsInformed",
    "Schroedinger",
    "jet",
]
