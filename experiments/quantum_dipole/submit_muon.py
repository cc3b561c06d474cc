"""Train the controller of a quantum dipole with Muon, with AdamW for the biases."""

from experiments import submit
from problems import QuantumDipole

if __name__ == "__main__":
    submit(QuantumDipole(), "muon")
