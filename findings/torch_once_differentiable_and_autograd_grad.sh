#!/usr/bin/env bash
# torch 2.13.0 (CPU): once_differentiable raises in backward(), but autograd.grad returns a wrong second derivative.
#
# The notes on extending torch say of once_differentiable that an attempt to differentiate the backward pass
# raises an error. With tensor.backward() it does. torch.autograd.grad(..., inputs) looks for paths to the inputs alone,
# on which the node that raises does not lie: it leaves the term out, and returns the rest as if it were all.
# Guess before running: the same error from both.
# Seen for f = x**3 at 2: d/dx (x f') is 36, autograd.grad returns 12 and backward() raises.
#
#   findings/torch_once_differentiable_and_autograd_grad.sh      exit 0: as described, 1: something has changed, 2: could not install
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env" &&
    "$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 || exit 2
cat >"$folder/finding.py" <<'END'
import torch
from torch.autograd.function import once_differentiable

assert torch.__version__.startswith("2.13.0"), torch.__version__
torch.set_default_dtype(torch.float64)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * cotangent


x, weight = (torch.tensor(value, requires_grad=True) for value in (2.0, 1.0))
(first,) = torch.autograd.grad(weight * Cube.apply(x), x, create_graph=True)
(found,) = torch.autograd.grad(x * first, x, retain_graph=True)
try:
    (x * first).backward()
    raised = ""
except RuntimeError as error:
    raised = str(error)

print(f"first derivative {first.item()}; d/dx (x f') by autograd.grad {found.item()}, right is 36")
print(f"backward(): {raised or 'no error'}")
raise SystemExit(0 if found.item() == 12 and "once_differentiable" in raised else 1)
END
OMP_NUM_THREADS=1 "$folder/env/bin/python" "$folder/finding.py"
