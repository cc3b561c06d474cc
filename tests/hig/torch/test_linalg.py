"""Decompositions that are tried again; see test_decompose.py for what becomes of them."""

import pytest
import torch

from hig import DecompositionError
from hig._torch.linalg import eigenvalues, eigenvectors, thin_svd, with_cpu_fallback
from tests.faults import no_convergence

FORMS = {"eigh": eigenvectors, "eigvalsh": eigenvalues, "svd": thin_svd}


def spd(*shape, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(*shape, shape[-1], generator=generator, dtype=torch.float64)
    return scale * found @ found.mT


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("shape", [(5,), (3, 4)])
@pytest.mark.parametrize("name", FORMS)
def test_the_second_attempt_finds_the_same(name, shape, scale, monkeypatch):
    matrix, notes = spd(*shape, scale=scale), []
    expected = FORMS[name](matrix)
    original, seen = getattr(torch.linalg, name), []

    def fails_first(given, **options):
        seen.append(given)
        if len(seen) == 1:
            raise torch.linalg.LinAlgError("no convergence\nsecond line")
        return original(given, **options)

    monkeypatch.setattr(torch.linalg, name, fails_first)
    found = with_cpu_fallback(FORMS[name], matrix, notes)
    assert notes == ["decomposition repeated on the CPU: no convergence"]
    assert float(seen[1].abs().max()) == 1.0
    values = 1 if name == "svd" else 0
    torch.testing.assert_close(found[values], expected[values], rtol=1e-10, atol=1e-12 * scale)
    if name != "eigvalsh":  # vectors up to signs
        parts = found if name == "svd" else (found[1], found[0], found[1].mT)
        again = parts[0] * parts[1].unsqueeze(-2) @ parts[2]
        torch.testing.assert_close(again, matrix, rtol=1e-10, atol=1e-11 * scale)


@pytest.mark.parametrize("form", FORMS.values())
def test_never(form, monkeypatch):
    text = r"\(3, 3\).* did not converge on cpu nor on the CPU.*try another batch"
    with no_convergence(monkeypatch), pytest.raises(DecompositionError, match=text) as caught:
        with_cpu_fallback(form, spd(3), [])
    assert isinstance(caught.value.__cause__, torch.linalg.LinAlgError)
