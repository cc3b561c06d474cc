"""Train the controller of a quantum dipole with RMSprop."""

from experiments import submit
from problems import QuantumDipole

if __name__ == "__main__":
    submit(QuantumDipole(), "rmsprop")
