#!/usr/bin/env bash
# torch 2.13.0 (CPU): second derivatives by jvp of jvp are wrong for layer_norm, linalg.solve and every
# autograd.Function with a jvp of its own, silently.
#
# torch.func.jvp documents that it composes with itself for higher order derivatives. Nested, the second derivative
# of layer_norm is off by a third of its size, that of linalg.solve by half of it, and that of a Function whose jvp
# is written with differentiable operations is zero. Reverse mode of reverse mode is right for all three.
# Guess before running: right values for the first two, an error for the Function.
# Seen: 0.38 and 0.5 relative error; 0.0 where 12.0 is right. Physics-informed networks with a normalisation, or with an
# activation of one's own, get a wrong Laplacian from it.
#
#   findings/torch_forward_mode_of_forward_mode.sh      exit 0: as described, 1: something has changed, 2: could not install
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env" &&
    "$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 || exit 2
cat >"$folder/finding.py" <<'END'
import torch
from torch.func import grad, jvp

assert torch.__version__.startswith("2.13.0"), torch.__version__
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
one, step = torch.tensor(1.0), 1e-4


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * cotangent

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * tangent


def second(function, place, direction):
    def first(x):
        return jvp(function, (x,), (direction,))[1]

    return jvp(first, (place,), (direction,))[1]


def difference(function, place, direction):
    ahead, here, behind = (function(place + s * step * direction) for s in (1, 0, -1))
    return (ahead - 2 * here + behind) / step**2


def error(function, place, direction):
    expected = difference(function, place, direction)
    return float((second(function, place, direction) - expected).norm() / expected.norm())


place, direction = torch.randn(4), torch.randn(4)
norm = error(lambda x: torch.nn.functional.layer_norm(x, (4,)), place, direction)
matrix, change, side = torch.randn(4, 4) + 4 * torch.eye(4), torch.randn(4, 4), torch.randn(4)
solve = error(lambda x: torch.linalg.solve(matrix + x * change, side), torch.tensor(0.3), one)
cube = float(second(Cube.apply, torch.tensor(2.0), one))
reverse = float(grad(grad(Cube.apply))(torch.tensor(2.0)))

print(f"layer_norm: relative error {norm:.2g}; linalg.solve: {solve:.2g}")
print(f"cube at 2 by a Function: {cube}, reverse mode twice {reverse}, right is 12")
as_described = norm > 0.1 and abs(solve - 0.5) < 0.01 and cube == 0 and abs(reverse - 12) < 1e-9
raise SystemExit(0 if as_described else 1)
END
OMP_NUM_THREADS=1 "$folder/env/bin/python" "$folder/finding.py"
