"""Train the control of a reaction with diffusion with Gauss–Newton steps."""

from experiments import submit
from problems import ReactionDiffusion

if __name__ == "__main__":
    submit(ReactionDiffusion(), "gn")
