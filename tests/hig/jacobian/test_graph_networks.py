"""Networks of the field: every weight is a layer, and exact, in both precisions."""

import copy

import pytest
import torch

import hig
from hig._jacobian.capture import Capture, ForwardPass
from hig._jacobian.engine import build_jacobian
from hig._jacobian.exactness import ExactnessMemory
from hig._torch.autograd_graph import real_size
from hig._torch.batched_vjp import BatchedVJP
from tests.hig.field_networks import NETWORKS, build, cast
from tests.textbook import relative_error, textbook_jacobian


def found_by(engine, network, predict, dtype, scales=1.0, memory=None, chunk=None):
    names, parameters = zip(*network.named_parameters(), strict=True)
    with Capture(parameters) as capture:
        prediction = predict(network, dtype) * scales
    forward = ForwardPass(capture.uses, prediction, parameters, names)
    found = build_jacobian(forward, engine, BatchedVJP(chunk), memory or ExactnessMemory())
    ordered = [parameters[index] for index in found.order]
    return found, prediction, ordered


@pytest.mark.parametrize("name", NETWORKS)
def test_all_are_layers_and_exact(name):
    network, predict = build(name)
    memory = ExactnessMemory()
    for _ in range(2):  # what is remembered of the graph gives the same
        found, prediction, parameters = found_by("auto", network, predict, torch.float64, 1, memory)
        assert found.engine == "layerwise", found.notes
        expected = textbook_jacobian(prediction, parameters)
        jacobian = found.jacobian
        weights = torch.linspace(-1, 1, len(expected), dtype=torch.float64)
        direction = torch.linspace(1, 2, expected.shape[1], dtype=torch.float64)
        with torch.no_grad():
            assert relative_error(jacobian.dense(), expected) < 1e-9
            assert relative_error(jacobian.gram(), expected @ expected.T) < 1e-9
            assert relative_error(jacobian.normal(), expected.T @ expected) < 1e-9
            assert relative_error(jacobian.vjp(weights), expected.T @ weights) < 1e-9
            assert relative_error(jacobian.jvp(direction), expected @ direction) < 1e-9


@pytest.mark.parametrize("name", NETWORKS)
def test_each_row_in_float32_at_scales_1e6_apart(name):
    network, predict = build(name)
    shape = predict(network, torch.float64).shape
    scales = torch.logspace(0, -6, shape.numel(), dtype=torch.float64).view(shape)
    expected = textbook_jacobian(predict(network, torch.float64) * scales, network.parameters())
    coarse = cast(copy.deepcopy(network), torch.float32)
    found, _, _ = found_by("auto", coarse, predict, torch.float32, scales.float())
    assert found.engine == "layerwise", found.notes
    pieces = expected.split([real_size(p) for p in network.parameters()], 1)
    expected = torch.cat([pieces[index] for index in found.order], 1)
    errors = (found.jacobian.dense() - expected).norm(dim=1) / expected.norm(dim=1)
    assert errors.max() < 0.01


@pytest.mark.parametrize("name", ["group norm", "operator network", "weight norm", "Fourier layer"])
@pytest.mark.parametrize("chunk", [1, 2])
def test_passes_in_chunks(name, chunk):
    network, predict = build(name)
    found, prediction, parameters = found_by("auto", network, predict, torch.float64, chunk=chunk)
    expected = textbook_jacobian(prediction, parameters)
    assert relative_error(found.jacobian.dense(), expected) < 1e-9


@pytest.mark.parametrize("engine", ["auto", "rows"])
def test_a_complex_weight_is_trained_as_its_real_view(engine):
    steps = []
    for name in ("Fourier layer", "Fourier layer, real"):
        network, predict = build(name)
        optimizer = hig.HIG(network.parameters(), momentum=0.9, engine=engine)

        def closure(network=network, predict=predict):
            prediction = predict(network, torch.float64)
            return (prediction - 1).square().sum(1).mean(), prediction

        for _ in range(4):
            optimizer.step(closure)
        state = copy.deepcopy(optimizer.state_dict())
        optimizer.load_state_dict(state)
        optimizer.step(closure)
        found = [p.detach() for p in network.parameters()]
        found = [torch.view_as_real(p) if p.is_complex() else p for p in found]
        steps.append(torch.cat([p.flatten() for p in found]))
    assert relative_error(*steps) < 1e-9


OPTIMIZERS = {
    "Gauss-Newton": lambda p: hig.GaussNewton(p, rcond=1e-4),
    "Levenberg-Marquardt": hig.LevenbergMarquardt,
    "sketch": lambda p: hig.HIG(p, sketch=2),
    "products": lambda p: hig.HIG(p, method="lanczos"),
    "svd": lambda p: hig.HIG(p, method="svd", step_rule="line_search"),
    "kronecker": lambda p: hig.KroneckerHIG(p, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_optimisers_take_complex_parameters(name):
    found = []
    for network_name in ("Fourier layer", "Fourier layer, real"):
        network, predict = build(network_name)
        optimizer = OPTIMIZERS[name](network.parameters())
        torch.manual_seed(0)

        def closure(network=network, predict=predict):
            prediction = predict(network, torch.float64)
            return (prediction - 1).square().sum(1).mean(), prediction

        found.append([float(optimizer.step(closure)) for _ in range(4)])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0][-1] < found[0][0]
