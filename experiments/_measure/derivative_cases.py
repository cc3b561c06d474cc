"""Operations of torch, as functions of float64 tensors, for `experiments.derivatives`.

Inputs keep away from kinks and ties. Matrices that an operation reads a triangle of, or takes to be
symmetric, are made so inside of the function: derivatives are those by all entries.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fft, linalg, special

Case = tuple[Callable, tuple[Tensor, ...]]


def operations() -> dict[str, Case]:
    """Functions and their inputs by the name of the operation, grouped by kind."""
    groups = (_pointwise, _reductions, _layers, _linear_algebra, _indexing, _losses, _complex)
    return {name: case for group in groups for name, case in group().items()}


def _random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _positive(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 + 0.6 * torch.sigmoid(_random(*shape, seed=seed))


def _pointwise() -> dict[str, Case]:
    x, y, unit = _random(3, 4), _random(3, 4, seed=1), _positive(3, 4)
    plain = (
        "sin cos tan sinh cosh tanh exp exp2 expm1 sigmoid atan asinh erf erfc sinc abs square "
        "neg deg2rad nan_to_num"
    )
    inside = (
        "log log2 log10 log1p sqrt rsqrt asin acos atanh reciprocal lgamma digamma erfinv logit i0"
    )
    smooth = "entr erfcx i0e i1 i1e log_ndtr ndtr ndtri psi gammaln"
    active = (
        "relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign tanhshrink "
        "logsigmoid hardtanh hardswish hardsigmoid softshrink hardshrink"
    )
    cases: dict[str, Case] = {n: (getattr(torch, n), (x,)) for n in plain.split()}
    cases |= {n: (getattr(torch, n), (unit,)) for n in inside.split()}
    cases |= {f"special.{n}": (getattr(special, n), (unit,)) for n in smooth.split()}
    cases |= {n: (getattr(F, n), (x,)) for n in active.split()}
    return cases | {
        "gelu (tanh)": (lambda a: F.gelu(a, approximate="tanh"), (x,)),
        "glu": (lambda a: F.glu(a, -1), (x,)),
        "prelu": (F.prelu, (x, unit[0, :1])),
        "polygamma": (lambda a: torch.polygamma(2, a), (unit,)),
        "mvlgamma": (lambda a: torch.mvlgamma(a + 1, 2), (unit,)),
        "special.zeta": (lambda a: special.zeta(torch.tensor(2.5).to(a), a), (unit,)),
        "special.bessel_j0": (special.bessel_j0, (unit,)),
        "special.airy_ai": (special.airy_ai, (unit,)),
        "igamma": (lambda a: torch.igamma(torch.tensor(1.5).to(a), a), (unit,)),
        "igamma (by its exponent)": (lambda a: torch.igamma(a, torch.ones_like(a)), (unit,)),
        "atan2": (torch.atan2, (x, y)),
        "hypot": (torch.hypot, (x, y)),
        "logaddexp": (torch.logaddexp, (x, y)),
        "pow": (torch.pow, (unit, y)),
        "xlogy": (torch.xlogy, (x, unit)),
        "maximum": (torch.maximum, (x, y)),
        "fmod": (lambda a: torch.fmod(a, 0.7), (x,)),
        "remainder": (torch.remainder, (x, unit)),
        "clamp": (lambda a: a.clamp(-0.5, 0.5), (x,)),
        "lerp": (torch.lerp, (x, y, unit)),
        "addcdiv": (torch.addcdiv, (x, y, unit)),
        "where": (lambda a, b: torch.where(a > 0, a * b, b.sin()), (x, y)),
        "copysign": (torch.copysign, (x, y)),
        "frac": (torch.frac, (x,)),
        "float_power": (torch.float_power, (unit, y)),
    }


def _reductions() -> dict[str, Case]:
    x, unit = _random(3, 4), _positive(3, 4)
    names = "sum mean prod var std logsumexp amax median nanmedian norm cumsum cumprod"
    cases: dict[str, Case] = {
        n: (lambda a, n=n: _first(getattr(torch, n)(a, dim=1)), (x,)) for n in names.split()
    }
    return cases | {
        "max": (lambda a: a.max(1).values, (x,)),
        "mode": (lambda a: a.mode(1).values, (x,)),
        "kthvalue": (lambda a: a.kthvalue(2, 1).values, (x,)),
        "quantile": (lambda a: a.quantile(0.3, 1), (x,)),
        "cummax": (lambda a: a.cummax(1).values, (x,)),
        "logcumsumexp": (lambda a: a.logcumsumexp(1), (x,)),
        "softmax": (lambda a: a.softmax(1), (x,)),
        "log_softmax": (lambda a: a.log_softmax(1), (x,)),
        "norm (p = 3)": (lambda a: a.norm(p=3, dim=1), (x,)),
        "renorm": (lambda a: a.renorm(2, 0, 0.5), (x,)),
        "dist": (torch.dist, (x, unit)),
        "cdist": (torch.cdist, (x, unit)),
        "pdist": (F.pdist, (x,)),
        "pairwise_distance": (F.pairwise_distance, (x, unit)),
        "cosine_similarity": (F.cosine_similarity, (x, unit)),
        "trapezoid": (lambda a: torch.trapezoid(a, dim=1), (x,)),
        "cumulative_trapezoid": (lambda a: torch.cumulative_trapezoid(a, dim=1), (x,)),
        "gradient": (lambda a: torch.gradient(a, dim=1)[0], (x,)),
        "corrcoef": (torch.corrcoef, (x,)),
        "cov": (torch.cov, (x,)),
    }


def _first(found: Tensor | tuple[Tensor, ...]) -> Tensor:
    return found if isinstance(found, Tensor) else found[0]


def _layers() -> dict[str, Case]:
    x, line, image = _random(3, 4), _random(2, 2, 7), _random(2, 2, 6, 6)
    weight, bias = _positive(4), _random(4, seed=1)
    kernel = _random(2, 2, 3, 3, seed=1)
    grid = 0.8 * torch.tanh(_random(2, 3, 3, 2, seed=2))
    tokens = _random(1, 2, 3, 4, seed=3)
    unit = _positive(2, seed=4)
    spread = torch.randperm(144, generator=torch.Generator().manual_seed(0)).double()
    apart = spread.view(2, 2, 6, 6) / 7  # no ties for the poolings
    inverse = _random(2, 2, 3, 3, seed=5)
    return {
        "linear": (F.linear, (x, _random(2, 4), _random(2))),
        "bilinear": (F.bilinear, (x, _random(3, 2), _random(2, 4, 2))),
        "layer_norm": (lambda a, w, b: F.layer_norm(a, (4,), w, b), (x, weight, bias)),
        "rms_norm": (lambda a, w: F.rms_norm(a, (4,), w), (x, weight)),
        "group_norm": (lambda a, w: F.group_norm(a, 2, w), (x, weight)),
        "instance_norm": (F.instance_norm, (line,)),
        "batch_norm (training)": (lambda a: F.batch_norm(a, None, None, training=True), (line,)),
        "batch_norm (evaluation)": (
            lambda a: F.batch_norm(a, torch.zeros(2).double(), torch.ones(2).double()), (line,)
        ),
        "local_response_norm": (lambda a: F.local_response_norm(a, 2), (line,)),
        "normalize": (F.normalize, (x,)),
        "scaled_dot_product_attention": (F.scaled_dot_product_attention, (tokens,) * 3),
        "conv1d": (F.conv1d, (line, _random(3, 2, 3))),
        "conv2d": (lambda a, k: F.conv2d(a, k, padding=1, stride=2), (image, kernel)),
        "conv3d": (F.conv3d, (_random(1, 2, 3, 3, 3), _random(2, 2, 2, 2, 2))),
        "conv_transpose2d": (lambda a, k: F.conv_transpose2d(a, k, stride=2), (image, kernel)),
        "unfold": (lambda a: F.unfold(a, 2), (image,)),
        "fold": (lambda a: F.fold(F.unfold(a, 2) * 2, (6, 6), 2), (image,)),
        "avg_pool2d": (lambda a: F.avg_pool2d(a, 2), (image,)),
        "max_pool1d": (lambda a: F.max_pool1d(a[0], 2), (apart,)),
        "max_pool2d": (lambda a: F.max_pool2d(a, 2), (apart,)),
        "lp_pool2d": (lambda a: F.lp_pool2d(a, 2, 2), (image,)),
        "adaptive_avg_pool2d": (lambda a: F.adaptive_avg_pool2d(a, 4), (image,)),
        "adaptive_max_pool2d": (lambda a: F.adaptive_max_pool2d(a, 4), (apart,)),
        **{
            f"interpolate ({mode})": (
                lambda a, mode=mode: F.interpolate(a, scale_factor=1.5, mode=mode), (image,)
            )
            for mode in ("nearest", "bilinear", "bicubic", "area")
        },
        "grid_sample": (lambda a, g: F.grid_sample(a, g, align_corners=False), (image, grid)),
        "grid_sample (bicubic)": (
            lambda a, g: F.grid_sample(a, g, "bicubic", align_corners=False), (image, grid)
        ),
        "grid_sample (3-D)": (
            lambda a, g: F.grid_sample(a.unsqueeze(2), g.unsqueeze(1), align_corners=False),
            (image, torch.cat([grid, grid[..., :1]], -1)),
        ),
        "affine_grid": (
            lambda a: F.affine_grid(a, [2, 1, 3, 3], align_corners=False), (_random(2, 2, 3),)
        ),
        "pixel_shuffle": (lambda a: F.pixel_shuffle(a.view(1, 4, 6, 6), 2), (image,)),
        "pad (reflect)": (lambda a: F.pad(a, (1, 1, 1, 1), "reflect"), (image,)),
        "pad (replicate)": (lambda a: F.pad(a, (1, 1, 1, 1), "replicate"), (image,)),
        "pad (circular)": (lambda a: F.pad(a, (1, 1, 1, 1), "circular"), (image,)),
        "gru_cell": (
            lambda a, h, w, u: torch.gru_cell(a, h, w, u),
            (x, _random(3, 2), _random(6, 4), _random(6, 2)),
        ),
        "lstm_cell": (
            lambda a, h, w, u: torch.lstm_cell(a, (h, h.sin()), w, u)[0],
            (x, _random(3, 2), _random(8, 4), _random(8, 2)),
        ),
        "prelu (channels)": (lambda a, w: F.prelu(a, w), (inverse, unit)),
    }  # fmt: skip


def _linear_algebra() -> dict[str, Case]:
    a, b = _random(3, 3) + 2 * torch.eye(3, dtype=torch.float64), _random(3, 2, seed=1)
    wide = _random(3, 4, seed=2)

    def spd(m: Tensor) -> Tensor:
        return m @ m.mT + torch.eye(3, dtype=m.dtype)

    return {
        "matmul": (torch.matmul, (a, b)),
        "einsum": (lambda m, v: torch.einsum("ij,jk->ki", m, v), (a, b)),
        "kron": (torch.kron, (a, b)),
        "cross": (lambda m: linalg.cross(m, m.sin()), (a,)),
        "linalg.inv": (linalg.inv, (a,)),
        "linalg.pinv": (linalg.pinv, (wide,)),
        "linalg.pinv (hermitian)": (lambda m: linalg.pinv(spd(m), hermitian=True), (a,)),
        "linalg.det": (linalg.det, (a,)),
        "linalg.slogdet": (lambda m: linalg.slogdet(m).logabsdet, (a,)),
        "linalg.solve": (linalg.solve, (a, b)),
        "linalg.solve_triangular": (
            lambda m, v: linalg.solve_triangular(m.tril(), v, upper=False), (a, b)
        ),
        "triangular_solve": (lambda m, v: torch.triangular_solve(v, m.triu())[0], (a, b)),
        "linalg.lu_solve": (lambda m, v: linalg.lu_solve(*linalg.lu_factor(m), v), (a, b)),
        "linalg.lstsq": (lambda m, v: linalg.lstsq(m, v).solution, (a, b)),
        "linalg.lstsq (tall)": (lambda m, v: linalg.lstsq(m.mT, v).solution, (wide, wide.mT + 1)),
        "linalg.cholesky": (lambda m: linalg.cholesky(spd(m)), (a,)),
        "cholesky": (lambda m: torch.cholesky(spd(m)), (a,)),
        "cholesky_inverse": (lambda m: torch.cholesky_inverse(m.tril()), (a,)),
        "cholesky_inverse (upper)": (
            lambda m: torch.cholesky_inverse(m.triu(), upper=True), (a,)
        ),
        "cholesky_solve": (lambda m, v: torch.cholesky_solve(v, m.tril()), (a, b)),
        "linalg.ldl_solve": (
            lambda m, v: linalg.ldl_solve(*linalg.ldl_factor(spd(m)), v), (a, b)
        ),
        "linalg.qr": (linalg.qr, (a,)),
        "linalg.householder_product": (
            lambda m, t: linalg.householder_product(m.tril(), t), (a, _positive(3))
        ),
        "ormqr": (lambda m, t, v: torch.ormqr(m.tril(), t, v), (a, _positive(3), b)),
        "geqrf": (lambda m: torch.geqrf(m)[0], (a,)),
        "linalg.eigh": (lambda m: linalg.eigh(spd(m)).eigenvectors.square(), (a,)),
        "linalg.eigvalsh": (lambda m: linalg.eigvalsh(spd(m)), (a,)),
        "linalg.eigvals": (linalg.eigvals, (a,)),
        "linalg.svdvals": (linalg.svdvals, (wide,)),
        "linalg.svd": (lambda m: linalg.svd(m, full_matrices=False).U.square(), (wide,)),
        "linalg.matrix_exp": (linalg.matrix_exp, (a,)),
        "linalg.matrix_power": (lambda m: linalg.matrix_power(m, 3), (a,)),
        "linalg.matrix_norm (nuclear)": (lambda m: linalg.matrix_norm(m, "nuc"), (a,)),
        "linalg.matrix_norm (2)": (lambda m: linalg.matrix_norm(m, 2), (a,)),
        "linalg.cond": (linalg.cond, (a,)),
        "linalg.multi_dot": (lambda m, v: linalg.multi_dot([m, m, v]), (a, b)),
        "linalg.vander": (lambda v: linalg.vander(v), (_random(3),)),
        "linalg.tensorsolve": (
            lambda m, v: linalg.tensorsolve(m.view(3, 1, 3), v[:, :1]), (a, b)
        ),
        "logdet": (lambda m: torch.logdet(spd(m)), (a,)),
        "sparse.mm": (lambda m, v: torch.sparse.mm(m.to_sparse(), v), (a, b)),
    }  # fmt: skip


def _indexing() -> dict[str, Case]:
    x, y = _random(3, 4), _random(3, 4, seed=1)
    index = torch.tensor([[0, 2, 1, 0], [1, 1, 0, 2], [2, 0, 2, 1]])
    row = torch.tensor([2, 0, 0])
    reduce = ("sum", "prod", "mean", "amax")
    return {
        "sort": (lambda a: a.sort(1).values, (x,)),
        "topk": (lambda a: a.topk(2, 1).values, (x,)),
        "gather": (lambda a: a.gather(0, index), (x,)),
        "scatter": (lambda a, b: a.scatter(0, index[:1], b[:1]), (x, y)),
        "scatter_add": (lambda a, b: a.scatter_add(0, index, b), (x, y)),
        **{
            f"scatter_reduce ({how})": (
                lambda a, b, how=how: a.scatter_reduce(0, index, b, how), (x, y)
            )
            for how in reduce
        },
        "index_select": (lambda a: a.index_select(0, row), (x,)),
        "index_add": (lambda a, b: a.index_add(0, row, b), (x, y)),
        "index_put": (lambda a, b: a.index_put((row,), b, accumulate=True), (x, y)),
        "index_reduce (prod)": (lambda a, b: a.index_reduce(0, row, b, "prod"), (x, y)),
        "segment_reduce": (
            lambda a: torch.segment_reduce(a, "sum", lengths=torch.tensor([1, 2])), (x,)
        ),
        "masked_fill": (lambda a: a.masked_fill(a > 0, 2.0) * a, (x,)),
        "take_along_dim": (lambda a: torch.take_along_dim(a, index, 0), (x,)),
        "put": (lambda a, b: a.put(torch.tensor([0, 5, 7, 2]), b[0]), (x, y)),
        "diagonal_scatter": (lambda a, b: a.diagonal_scatter(b.sum(1)), (x, y)),
        "select_scatter": (lambda a, b: a.select_scatter(b[0], 0, 1), (x, y)),
        "embedding": (lambda a: F.embedding(index, a), (x,)),
        "embedding_bag": (lambda a: F.embedding_bag(index, a, mode="mean"), (x,)),
        "embedding_bag (max)": (lambda a: F.embedding_bag(index, a, mode="max"), (x,)),
        "roll": (lambda a: a.roll(1, 1), (x,)),
        "tril": (torch.tril, (x,)),
        "as_strided": (lambda a: (2 * a).as_strided((2, 3), (1, 2)), (x,)),
        "repeat_interleave": (lambda a: a.repeat_interleave(2, 1), (x,)),
        "copy_ (in place)": (lambda a: torch.zeros_like(a).copy_(a).mul_(a.sin()), (x,)),
    }  # fmt: skip


def _losses() -> dict[str, Case]:
    x, y, unit = _random(3, 4), _random(3, 4, seed=1), _positive(3, 4)
    sign = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    classes = torch.tensor([1, 3, 0])
    plain = "mse_loss l1_loss smooth_l1_loss huber_loss soft_margin_loss"
    cases: dict[str, Case] = {n: (getattr(F, n), (x, y)) for n in plain.split()}
    cases["soft_margin_loss"] = (lambda a: F.soft_margin_loss(a, sign[:, None].expand(3, 4)), (x,))
    return cases | {
        "cross_entropy": (lambda a: F.cross_entropy(a, classes), (x,)),
        "cross_entropy (probabilities)": (lambda a, p: F.cross_entropy(a, p), (x, unit)),
        "nll_loss": (lambda a: F.nll_loss(a, classes), (x,)),
        "gaussian_nll_loss": (F.gaussian_nll_loss, (x, y, unit)),
        "poisson_nll_loss": (F.poisson_nll_loss, (x, unit)),
        "kl_div": (F.kl_div, (x, unit)),
        "binary_cross_entropy": (F.binary_cross_entropy, (unit, unit.flip(0))),
        "binary_cross_entropy_with_logits": (
            F.binary_cross_entropy_with_logits, (x, unit)
        ),
        "hinge_embedding_loss": (
            lambda a: F.hinge_embedding_loss(a, sign[:, None].expand(3, 4)), (x,)
        ),
        "cosine_embedding_loss": (lambda a, b: F.cosine_embedding_loss(a, b, sign), (x, y)),
        "margin_ranking_loss": (lambda a, b: F.margin_ranking_loss(a[:, 0], b[:, 0], sign), (x, y)),
        "triplet_margin_loss": (F.triplet_margin_loss, (x, y, unit)),
        "multi_margin_loss": (lambda a: F.multi_margin_loss(a, classes), (x,)),
        "multilabel_margin_loss": (
            lambda a: F.multilabel_margin_loss(a, torch.tensor([[1, 3, -1, 0]] * 3)), (x,)
        ),
        "multilabel_soft_margin_loss": (F.multilabel_soft_margin_loss, (x, unit)),
        "ctc_loss": (
            lambda a: F.ctc_loss(
                a.view(4, 1, 3).log_softmax(2), torch.tensor([[1, 2]]), torch.tensor([4]),
                torch.tensor([2]),
            ),
            (x,),
        ),
    }  # fmt: skip


def _complex() -> dict[str, Case]:
    x, y, signal = _random(3, 4), _random(3, 4, seed=1), _random(2, 8)
    a = _random(3, 3) + 2 * torch.eye(3, dtype=torch.float64)
    names = "fft ifft rfft hfft ihfft fft2 rfft2 fftshift"
    cases: dict[str, Case] = {f"fft.{n}": (getattr(fft, n), (signal,)) for n in names.split()}
    unary = "exp sin tanh sqrt log reciprocal sgn angle abs"

    def z(u: Tensor, v: Tensor) -> Tensor:
        return torch.complex(u, v)

    cases |= {
        f"{n} (complex)": (lambda u, v, n=n: getattr(torch, n)(z(u, v)), (x, y))
        for n in unary.split()
    }
    return cases | {
        "fft.irfft": (lambda u: fft.irfft(fft.rfft(u) * u[:, :5]), (signal,)),
        "stft": (
            lambda u: torch.stft(
                u, 4, window=torch.hann_window(4).to(u), return_complex=True
            ),
            (signal,),
        ),
        "polar": (torch.polar, (x.abs(), y)),
        "view_as_complex": (lambda u: torch.view_as_complex(u.view(3, 2, 2)).square(), (x,)),
        "linalg.solve (complex)": (
            lambda u, v: linalg.solve(z(u, v), z(v, u)), (a, a.roll(1, 0) / 3)
        ),
        "linalg.eigh (complex)": (
            lambda u, v: linalg.eigvalsh(z(u, v) @ z(u, v).mH), (a, a.roll(1, 0) / 3)
        ),
        "linalg.matrix_exp (complex)": (
            lambda u, v: linalg.matrix_exp(z(u, v)), (a, a.roll(1, 0) / 3)
        ),
        "cumprod (complex)": (lambda u, v: torch.cumprod(z(u, v), 1), (x, y)),
    }  # fmt: skip
