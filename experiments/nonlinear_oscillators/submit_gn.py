"""Train the controller of nonlinear oscillators with Gauss–Newton steps (published settings)."""

from experiments import submit
from problems import NonlinearOscillators

if __name__ == "__main__":
    submit(NonlinearOscillators(), "gn")
