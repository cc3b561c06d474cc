"""Train the controller of nonlinear oscillators with Adadelta."""

from experiments import submit
from problems import NonlinearOscillators

if __name__ == "__main__":
    submit(NonlinearOscillators(), "adadelta")
