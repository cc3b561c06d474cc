#!/usr/bin/env bash
# torch 2.13.0 (CPU): pullbacks that torch.func vectorises over cotangents are wrong for two operations, silently.
#
# torch.func documents vmap as doing to each entry what the function does to one. For torch.cdist the pullback
# of vjp, vmapped over cotangents, differs from the same pullback called once per cotangent by more than its own
# size. For torch.linalg.lu_solve vmapped over samples and cotangents it is right for the first sample and
# thousands of times too large for the others, the right-hand side being the differentiated input.
# Guess before running: equal up to rounding, as for the other 250 operations that were tried.
# Seen: relative errors of 1.3 (cdist) and 2e-16, 2.8e3, 8.0e4 (lu_solve, three samples); no warning.
#
#   findings/torch_vmap_of_vjp_of_cdist_and_lu_solve.sh      exit 0: as described, 1: something has changed, 2: could not install
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env" &&
    "$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 || exit 2
cat >"$folder/finding.py" <<'END'
import torch
from torch.func import vjp, vmap

assert torch.__version__.startswith("2.13.0"), torch.__version__
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)


def error(found, expected):
    return float((found - expected).norm() / expected.norm())


points, others = torch.randn(3, 4, 2), torch.randn(5, 2)
cotangents = torch.randn(6, 4, 5)


def pulled_back(sample):
    pullback = vjp(lambda p: torch.cdist(p, others), sample)[1]
    return vmap(lambda cotangent: pullback(cotangent)[0])(cotangents)


found = vmap(pulled_back)(points)
expected = torch.stack(
    [
        torch.stack([vjp(lambda p: torch.cdist(p, others), sample)[1](c)[0] for c in cotangents])
        for sample in points
    ]
)
cdist = error(found, expected)

matrices = torch.randn(3, 4, 4) + 4 * torch.eye(4)
sides, cotangents = torch.randn(3, 4, 2), torch.randn(6, 4, 2)


def solved_back(matrix, side):
    factors, pivots = torch.linalg.lu_factor(matrix)
    pullback = vjp(lambda b: torch.linalg.lu_solve(factors, pivots, b), side)[1]
    return vmap(lambda cotangent: pullback(cotangent)[0])(cotangents)


found = vmap(solved_back)(matrices, sides)
expected = torch.stack([torch.linalg.solve(m.T, cotangents) for m in matrices])
lu_solve = [error(one, exact) for one, exact in zip(found, expected)]
alone = error(torch.stack([solved_back(m, s) for m, s in zip(matrices, sides)]), expected)

print(f"cdist: vmap against one by one, relative error {cdist:.2g}")
print("lu_solve: by sample", [f"{one:.2g}" for one in lu_solve], f"; sample after sample {alone:.2g}")
as_described = cdist > 0.5 and lu_solve[0] < 1e-12 < 10 < min(lu_solve[1:]) and alone < 1e-12
raise SystemExit(0 if as_described else 1)
END
OMP_NUM_THREADS=1 "$folder/env/bin/python" "$folder/finding.py"
