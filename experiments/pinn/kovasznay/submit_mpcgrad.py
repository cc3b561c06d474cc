"""Train a solution of Kovasznay flow with M-PCGrad (published settings)."""

from experiments import submit
from problems.pinn import Kovasznay

if __name__ == "__main__":
    submit(Kovasznay(), "mpcgrad")
