"""Train the controller of nonlinear oscillators with Adagrad."""

from experiments import submit
from problems import NonlinearOscillators

if __name__ == "__main__":
    submit(NonlinearOscillators(), "adagrad")
