"""Train the controller of a quantum dipole with Adam (published settings)."""

from experiments import submit
from problems import QuantumDipole

if __name__ == "__main__":
    submit(QuantumDipole(), "adam")
