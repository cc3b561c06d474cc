"""Train the controller of the oscillators with half-inverse gradients in Kronecker factors."""

from experiments import submit
from problems import NonlinearOscillators

if __name__ == "__main__":
    submit(NonlinearOscillators(), "khig")
