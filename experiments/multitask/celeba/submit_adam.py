"""Train to predict the attributes of CelebA's images with Adam (published settings)."""

from experiments import submit
from problems.multitask import CelebA

if __name__ == "__main__":
    submit(CelebA(), "adam")
