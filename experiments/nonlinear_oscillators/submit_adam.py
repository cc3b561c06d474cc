"""Train the controller of nonlinear oscillators with Adam (published settings)."""

from experiments import submit
from problems import NonlinearOscillators

if __name__ == "__main__":
    submit(NonlinearOscillators(), "adam")
