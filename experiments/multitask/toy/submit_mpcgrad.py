"""Descend the landscape of two losses with M-PCGrad (settings of our own choice)."""

from experiments import submit
from problems.multitask import Toy

if __name__ == "__main__":
    submit(Toy(), "mpcgrad")
