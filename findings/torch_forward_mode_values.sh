#!/usr/bin/env bash
# torch 2.13.0 (CPU): forward-mode derivatives of three operations have wrong values, without an error.
#
# The pages on forward-mode AD say that an operation without a formula raises an error. These return numbers:
# torch.cholesky_inverse a tangent that is off by several times its size (its backward pass is right), scatter_reduce
# with reduce="prod" zeros (right: products of the other factors), torch.special.bessel_j0 zeros (right: -J1; its
# result does not even require a gradient in reverse mode).
# Guess before running: an error for the last two, the right value for the first, which has a formula.
# Seen: cholesky_inverse off by 7.1 times its size, its backward pass by 2e-10; zeros for the other two.
#
#   findings/torch_forward_mode_values.sh      exit 0: as described, 1: something has changed, 2: could not install
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env" &&
    "$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 || exit 2
cat >"$folder/finding.py" <<'END'
import torch
from torch.func import jvp

assert torch.__version__.startswith("2.13.0"), torch.__version__
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)


def error(found, expected):
    return float((found - expected).norm() / expected.norm())


matrix = torch.randn(4, 4) + 4 * torch.eye(4)
factor, tangent, step = torch.linalg.cholesky(matrix @ matrix.T), torch.randn(4, 4).tril(), 1e-6
ahead, behind = (torch.cholesky_inverse(factor + s * step * tangent) for s in (1, -1))
difference = (ahead - behind) / (2 * step)
forward = error(jvp(torch.cholesky_inverse, (factor,), (tangent,))[1], difference)
jacobian = torch.autograd.functional.jacobian(torch.cholesky_inverse, factor)
backward = error((jacobian * tangent).sum((2, 3)), difference)

index, source = torch.tensor([0, 0, 1]), torch.tensor([2.0, 3.0, 4.0])
product = jvp(
    lambda s: torch.ones(2).scatter_reduce(0, index, s, "prod"), (source,), (torch.ones(3),)
)[1]
place = torch.tensor([0.5, 1.5])
bessel = jvp(torch.special.bessel_j0, (place,), (torch.ones(2),))[1]

print(f"cholesky_inverse: forward mode off by {forward:.2g}, backward pass by {backward:.1g}")
print(f"scatter_reduce (prod): {product.tolist()}, right is [5.0, 1.0]")
print(f"bessel_j0: {bessel.tolist()}, right is {(-torch.special.bessel_j1(place)).tolist()}")
as_described = forward > 0.1 and backward < 1e-7 and not product.any() and not bessel.any()
raise SystemExit(0 if as_described else 1)
END
OMP_NUM_THREADS=1 "$folder/env/bin/python" "$folder/finding.py"
