"""Train the controller of a quantum dipole with Levenberg–Marquardt steps."""

from experiments import submit
from problems import QuantumDipole

if __name__ == "__main__":
    submit(QuantumDipole(), "lm")
