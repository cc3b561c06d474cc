"""Train the controller of a quantum dipole with Adagrad."""

from experiments import submit
from problems import QuantumDipole

if __name__ == "__main__":
    submit(QuantumDipole(), "adagrad")
