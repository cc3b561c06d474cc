"""Train the controller of nonlinear oscillators with Muon, with AdamW for the biases."""

from experiments import submit
from problems import NonlinearOscillators

if __name__ == "__main__":
    submit(NonlinearOscillators(), "muon")
