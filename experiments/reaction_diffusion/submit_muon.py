"""Train the control of a reaction with diffusion with Muon, with AdamW for the biases."""

from experiments import submit
from problems import ReactionDiffusion

if __name__ == "__main__":
    submit(ReactionDiffusion(), "muon")
