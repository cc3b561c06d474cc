"""Several tasks for one network."""

from problems.multitask.celeba import CelebA
from problems.multitask.toy import Toy

__all__ = ["CelebA", "Toy"]
