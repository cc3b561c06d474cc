#!/usr/bin/env bash
# TorchJD 0.18.0 (torch 2.13.0, CPU): the Gram matrix of a network with complex weights is wrong, without an error.
#
# autogram.Engine computes J J^T of a batch without J. For a complex weight, as in Fourier neural operators, J has a
# column for the real and one for the imaginary part of each entry. The engine multiplies the complex gradients of two
# outputs without conjugating one of them, and returns a complex matrix; with real and imaginary parts as one real
# weight it is right.
# Guess before running: right, or refused.
# Seen: a complex weight: off by 1.6 times the norm of the right matrix, its real view: by 0.
#
#   findings/torchjd_autogram_complex_parameters.sh    exit 0: as described, 1: it has changed, 2: could not install
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env" &&
    "$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 torchjd==0.18.0 || exit 2
cat >"$folder/finding.py" <<'END'
from importlib.metadata import version

import torch
from torchjd.autogram import Engine

assert version("torchjd") == "0.18.0" and torch.__version__.startswith("2.13.0")
torch.set_default_dtype(torch.float64)


class Spectral(torch.nn.Module):
    """Multiply the Fourier modes of a signal by a weight."""

    def __init__(self, real):
        super().__init__()
        weight = torch.view_as_complex(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))
        self.weight = torch.nn.Parameter(torch.view_as_real(weight) if real else weight)

    def forward(self, x):
        weight = self.weight if self.weight.is_complex() else torch.view_as_complex(self.weight)
        return torch.fft.irfft(torch.fft.rfft(x) * weight, n=8)


def error(real):
    network = Spectral(real)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    rows = []
    for output in network(x).flatten():
        (row,) = torch.autograd.grad(output, network.weight, retain_graph=True)
        rows.append((torch.view_as_real(row) if row.is_complex() else row).flatten())
    jacobian = torch.stack(rows)
    expected = jacobian @ jacobian.T
    gram = Engine(network, batch_dim=0).compute_gramian(network(x)).reshape(24, 24)
    return float((gram - expected).norm() / expected.norm())


complex_weight, real_weight = error(real=False), error(real=True)
print(f"complex weight: off by {complex_weight:.2g}; its real view: off by {real_weight:.1g}")
raise SystemExit(0 if complex_weight > 0.01 and real_weight < 1e-12 else 1)
END
OMP_NUM_THREADS=1 "$folder/env/bin/python" "$folder/finding.py"
