"""Train the controller of a quantum dipole with plain gradient descent."""

from experiments import submit
from problems import QuantumDipole

if __name__ == "__main__":
    submit(QuantumDipole(), "sgd")
