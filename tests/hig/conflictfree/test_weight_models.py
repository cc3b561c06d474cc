"""Weight models."""

import pytest
import torch

from hig.conflictfree import EqualWeight, WeightModel


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
def test_equal_weights(dtype, device):
    found = EqualWeight().get_weights(gradients=torch.zeros(3, 4, dtype=dtype), device=device)
    assert torch.equal(found, torch.ones(3, dtype=dtype))


def test_what_is_refused():
    with pytest.raises(ValueError, match="EqualWeight needs the gradients, got None"):
        EqualWeight().get_weights()
    with pytest.raises(TypeError, match="gradients must be a tensor"):
        EqualWeight().get_weights([1.0])
    with pytest.raises(NotImplementedError, match="must define get_weights"):
        WeightModel().get_weights(torch.ones(2, 2))
