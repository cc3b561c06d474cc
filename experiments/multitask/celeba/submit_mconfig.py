"""Train to predict the attributes of CelebA's images with M-ConFIG (published settings)."""

from experiments import submit
from problems.multitask import CelebA

if __name__ == "__main__":
    submit(CelebA(), "mconfig")
