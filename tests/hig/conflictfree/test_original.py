"""Names, and values of single calls, of ``conflictfree`` and of this package."""

import importlib
import inspect

import conflictfree
import pytest
import torch

import hig.conflictfree
from tests.hig.conflictfree.matrices import STRUCTURES, random_matrix
from tests.hig.conflictfree.original import (
    LENGTHS,
    OPERATORS,
    OURS,
    THEIRS,
    get,
    of,
    ones,
    weights_model,
)
from tests.textbook import relative_error

pytestmark = pytest.mark.usefixtures("least_squares")


MODULES = [
    "grad_operator", "length_model", "loss_recorder", "momentum_operator", "utils", "weight_model",
]  # fmt: skip


def public_names(module):
    """Names of the package itself that a wildcard import of one of its modules brings."""
    original = importlib.import_module(f"{THEIRS}.{module}")
    return [
        name
        for name, value in vars(original).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith(THEIRS)
    ]


NAMES = [(module, name) for module in MODULES for name in public_names(module)]


def callables(thing):
    """The thing itself, and its public methods."""
    yield "", thing
    if inspect.isclass(thing):
        for name, value in inspect.getmembers(thing, inspect.isfunction):
            if not name.startswith("_"):
                yield name, value


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_name_is_there_with_its_arguments_and_their_defaults(module, name):
    assert conflictfree.__name__ == THEIRS
    theirs, ours = get(THEIRS, module, name), get(OURS, module, name)
    assert getattr(hig.conflictfree, name) is ours
    assert name in importlib.import_module(f"{OURS}.{module}").__all__
    found = dict(callables(ours))
    for method, original in callables(theirs):
        if inspect.isclass(original) and original.__init__ is object.__init__:
            continue
        parameters = inspect.signature(original).parameters.values()
        mine = list(inspect.signature(found[method]).parameters.values())
        for parameter, own in zip(parameters, mine, strict=False):
            assert own.name == parameter.name
            if parameter.default is inspect.Parameter.empty:
                assert own.default in (inspect.Parameter.empty, None)
            elif isinstance(parameter.default, (int, float, str, bool, type(None))):
                assert own.default == parameter.default
            else:
                assert own.default is None  # an object that all calls share, in the original
        assert len(mine) >= len(parameters)


@pytest.mark.parametrize("shape", [(2, 6), (3, 30), (5, 100)])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_on_matrices(name, structure, shape):
    rows = STRUCTURES[structure](shape)
    results = []
    for package in (THEIRS, OURS):
        operator = OPERATORS[name](of(package))
        if name.startswith("config"):
            operator.weight_model = ones(package, torch.float64)
        results.append(operator.calculate_gradient(rows))
    assert relative_error(results[1], results[0]) < 1e-6


@pytest.mark.parametrize("shape", [(2, 6), (3, 30)])
@pytest.mark.parametrize("name", LENGTHS)
def test_length_models_on_matrices(name, shape):
    rows = STRUCTURES["badly scaled"](shape)
    results = []
    for package in (THEIRS, OURS):
        update = get(package, "grad_operator", "ConFIG_update")
        model = LENGTHS[name](of(package))
        results.append(update(rows, ones(package, torch.float64), model))
        length = model.get_length(target_vector=rows.sum(0), gradients=rows)
        results.append(torch.atleast_1d(length * 1.0))
    assert relative_error(results[2], results[0]) < 1e-9
    assert relative_error(results[3], results[1]) < 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_the_double_update(seed):
    rows = random_matrix((2, 10), seed)
    results = []
    for package in (THEIRS, OURS):
        update = get(package, "grad_operator", "ConFIG_update_double")
        weights = weights_model(package, torch.float64)
        results.append(update(rows[0], rows[1], weight_model=weights, losses=[0.3, 2.0]))
    assert relative_error(results[1], results[0]) < 1e-9
