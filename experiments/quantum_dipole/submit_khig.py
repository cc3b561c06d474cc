"""Train the controller of a quantum dipole with half-inverse gradients in Kronecker factors."""

from experiments import submit
from problems import QuantumDipole

if __name__ == "__main__":
    submit(QuantumDipole(), "khig")
