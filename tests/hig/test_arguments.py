"""Every argument is checked where it is given, and the text names it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hig
from hig.arguments import (
    FRACTION,
    KAPPA,
    NON_NEGATIVE,
    POSITIVE,
    check_choice,
    check_count,
    check_function,
    check_number,
    check_parameters,
    check_path,
    check_same_device,
    check_tensor,
)
from hig.conflictfree import (
    AlternatingBackward,
    ConFIGOperator,
    LatestLossRecorder,
    MomentumLossRecorder,
    OrderedSliceSelector,
    PseudoMomentumOperator,
    TrackSpecific,
)

OTHERS = st.sampled_from(
    [None, True, False, "", "0.5", b"1", 0.5j, [], [0.5], {}, torch.ones(2), np.ones(2), object()]
)
WHOLE = st.integers(-(2**70), 2**70)


def outside(within):
    """Numbers that are not in a range, of Python and of numpy, and what is no number."""
    numbers = st.floats() | WHOLE | st.floats(width=32).map(np.float32)
    return OTHERS | numbers.filter(lambda number: not within.holds(number))


def no_count(least=1):
    fractions = st.floats().filter(lambda number: not isinstance(number, int))
    return OTHERS | fractions | WHOLE.filter(lambda number: number < least)


def no_choice(*allowed):
    others = OTHERS.filter(lambda value: not (value is None and None in allowed))
    return others | st.floats() | st.text().filter(lambda text: text not in allowed)


def parameters():
    return [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(2))]


OPEN = type(FRACTION)("in (0, 1)", lambda x: 0 < x < 1)
ENGINE = no_choice("auto", "layerwise", "rows")
METHOD = no_choice("auto", "gram", "svd", "lanczos")
RULE = no_choice("fixed", "trust", "line_search", None)
RATE = outside(NON_NEGATIVE).filter(lambda lr: not isinstance(lr, torch.Tensor))
COMMON = {
    "params": st.sampled_from([None, 3, "x", torch.ones(2), torch.nn.Linear(2, 2), {}, [], ["x"]]),
    "lr": RATE.filter(lambda lr: lr is not None),
    "engine": ENGINE,
    "method": METHOD,
    "step_rule": RULE,
    "momentum": outside(FRACTION).filter(lambda value: value is not None),
    "momentum_kind": no_choice("plain", "projected", None),
    "sketch": no_count().filter(lambda value: value is not None and not callable(value)),
    "chunk": no_count().filter(lambda value: value is not None),
    "process_group": OTHERS.filter(lambda value: value is not None),
    "reduction": no_choice("mean", "sum"),
}
FOR_ONE_LOSS = ("reduction", "momentum", "momentum_kind", "sketch")
FOR_SEVERAL = {name: values for name, values in COMMON.items() if name not in FOR_ONE_LOSS}
FILTER = {"rcond": outside(FRACTION), "kappa": outside(KAPPA)}
ARGUMENTS = {
    hig.HIG: COMMON | FILTER,
    hig.GaussNewton: COMMON | {"rcond": FILTER["rcond"]},
    hig.LevenbergMarquardt: COMMON | {"damping": outside(POSITIVE), "rcond": FILTER["rcond"]},
    hig.MultiHIG: FOR_SEVERAL | FILTER | {"operator": OTHERS},
    hig.KroneckerHIG: {
        "params": COMMON["params"],
        "lr": RATE,
        "kappa": outside(KAPPA),
        "damping": outside(POSITIVE),
        "betas": OTHERS | st.tuples(outside(FRACTION), outside(FRACTION)),
        "eps": outside(NON_NEGATIVE),
        "graft": no_choice(None, "eigenbasis", "global", "layer"),
        "decay": outside(FRACTION),
        "probe_every": no_count(),
        "refresh_every": no_count(),
        "metric_root": OTHERS.filter(lambda value: value is not None),
        "seed": no_count(0),
        "process_group": COMMON["process_group"],
    },
    hig.Lanczos: {"tolerance": outside(OPEN), "steps": no_count()},
    hig.HalfInverse: FILTER,
    hig.Damped: {"damping": outside(POSITIVE), "rcond": outside(FRACTION)},
    hig.LinearStep: {"matrices": OTHERS},
    hig.record: {"parameters": COMMON["params"]},
    PseudoMomentumOperator: {
        "num_vectors": no_count(),
        "beta_1": outside(FRACTION),
        "beta_2": outside(FRACTION),
        "gradient_operator": OTHERS.filter(lambda value: value is not None),
        "loss_recorder": OTHERS.filter(lambda value: value is not None),
    },
    AlternatingBackward: {"num_losses": no_count()},
    LatestLossRecorder: {"num_losses": no_count()},
    MomentumLossRecorder: {
        "betas": outside(FRACTION).filter(
            lambda value: not isinstance(value, torch.Tensor | np.ndarray | list | dict | bytes)
        )
    },
    TrackSpecific: {"track_id": OTHERS | st.floats()},
}
NEEDED = {
    hig.HIG: {"params": parameters},
    hig.GaussNewton: {"params": parameters},
    hig.LevenbergMarquardt: {"params": parameters},
    hig.MultiHIG: {"params": parameters},
    hig.KroneckerHIG: {"params": parameters},
    hig.LinearStep: {"matrices": lambda: torch.diag_embed},
    PseudoMomentumOperator: {"num_vectors": lambda: 2},
    AlternatingBackward: {"parameters": parameters, "num_losses": lambda: 2},
    MomentumLossRecorder: {"num_losses": lambda: 2},
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, arguments in ARGUMENTS.items() for name in arguments],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
@given(data=st.data())
def test_what_a_constructor_refuses(kind, name, data):
    value = data.draw(ARGUMENTS[kind][name])
    arguments = {key: make() for key, make in NEEDED.get(kind, {}).items()}
    with pytest.raises((TypeError, ValueError)) as caught:
        kind(**{**arguments, name: value})
    text = str(caught.value)
    argument = "param" if name in ("params", "parameters") else name
    assert argument in text
    assert "must" in text or argument == "param"  # torch's own text for other items of a list
    assert "'<=' not supported" not in text and "ambiguous" not in text


class Half:
    """An object that is neither engine nor rule."""

    def take(self, trial):
        raise NotImplementedError


def weight():
    return torch.nn.Parameter(torch.ones(2))


def optimizer(kind=hig.HIG, **options):
    return kind([weight()], **options)


def filtered(**options):
    return hig.half_inverse(torch.ones(2, 3), torch.ones(2), **options)


def diagnosed(**options):
    """Of a batch that is never computed."""
    return hig.diagnose([weight()], lambda: pytest.fail("the closure was called"), **options)


def recorded(**options):
    with hig.record([weight()]) as record:
        prediction = torch.ones(2, 2) @ record._parameters[0]
    record.backward(prediction.square().sum(), prediction, **options)


TEXTS = {
    optimizer: [
        ({"lr": -1.0}, ValueError, "lr must be non-negative and finite, got -1.0; 1.0 is the"),
        ({"lr": torch.ones(2)}, TypeError, "lr must be a number, .* got a tensor of shape"),
        ({"rcond": 2.0}, ValueError, r"rcond must be in \[0, 1\), got 2.0; 1e-6 suits"),
        ({"rcond": "Auto"}, TypeError, "rcond must be a number.*, and 'auto' chooses one"),
        ({"kappa": 2.0}, ValueError, r"kappa must be in \[-1, 1\], got 2.0; -0.5 is the half-inv"),
        ({"engine": "magic"}, ValueError, r"engine must be one of \('auto', 'layerwise', 'rows'\)"),
        ({"engine": None}, ValueError, "engine must be one of .* got None"),
        ({"engine": Half()}, TypeError, r"engine must be .* method jacobian\(forward\), got Half"),
        ({"method": "qr"}, ValueError, r"'lanczos'\) or a hig.Lanczos, got 'qr'"),
        ({"step_rule": "best"}, ValueError, "step_rule must be one of .* or a rule of your own"),
        ({"step_rule": Half()}, TypeError, "step_rule must be one of .*, or an object with take"),
        ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), got 1.0; 0.9 keeps much"),
        ({"momentum": "0.5"}, TypeError, "momentum must be a number"),
        ({"momentum_kind": "nesterov"}, ValueError, r"momentum_kind must .*'plain', 'projected'\)"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1, got 0; or None"),
        ({"chunk": 1.5}, TypeError, "chunk must be a whole number, got 1.5; or None"),
        ({"process_group": 2}, TypeError, "process_group must be .* got 2"),
        ({"reduction": "max"}, ValueError, r"reduction must be one of \('mean', 'sum'\)"),
        ({"cuda_graph": 1}, TypeError, "cuda_graph must be True or False, got 1; True records"),
        (
            {"kind": hig.LevenbergMarquardt, "damping": 0.0},
            ValueError,
            "damping must be positive and finite, got 0.0; use GaussNewton",
        ),
        ({"kind": hig.MultiHIG, "operator": "config"}, TypeError, "operator must map"),
        (
            {"kind": hig.MultiHIG, "operator": ConFIGOperator},
            TypeError,
            "got the class ConFIGOperator; make one",
        ),
        (
            {"kind": hig.MultiHIG, "operator": PseudoMomentumOperator(2)},
            TypeError,
            r"without a memory.*take ConFIGOperator\(\), PCGradOperator",
        ),
    ],
    filtered: [
        ({"rcond": 2.0}, ValueError, r"rcond must be in \[0, 1\), got 2.0"),
        ({"kappa": -3}, ValueError, r"kappa must be in \[-1, 1\], got -3"),
        ({"method": "qr"}, ValueError, r"method must be one of .* got 'qr'"),
    ],
    hig.half_inverse: [
        (
            {"jacobian": np.zeros((2, 3)), "loss_gradient": torch.ones(2)},
            TypeError,
            "jacobian must be a tensor, got ndarray; wrap it",
        ),
        (
            {"jacobian": torch.ones(2, 3, device="meta"), "loss_gradient": torch.ones(2)},
            TypeError,
            "jacobian must be .* got one on the dev",
        ),
        (
            {"jacobian": torch.ones(2, 3), "loss_gradient": torch.ones(2, device="meta")},
            TypeError,
            "loss_gradient must be .* in memory",
        ),
        (
            {"jacobian": torch.ones(2, 3).to_sparse(), "loss_gradient": torch.ones(2)},
            TypeError,
            r"jacobian .*torch.sparse_coo.*to_dense",
        ),
        (
            {"jacobian": torch.ones(0, 4), "loss_gradient": torch.ones(0), "rcond": 2.0},
            ValueError,
            "rcond must be",
        ),
    ],
    diagnosed: [
        ({"kappas": []}, ValueError, "kappas must name at least one exponent"),
        ({"kappas": [2.0]}, ValueError, r"kappa must be in \[-1, 1\]"),
        ({"engine": "fast"}, ValueError, "engine must be one of"),
    ],
    hig.record: [
        ({"parameters": []}, ValueError, r"must hold a parameter, .*call network.parameters\(\)"),
        (
            {"parameters": [("weight", weight())]},
            TypeError,
            "record takes parameters, got a tuple of 2",
        ),
        (
            {"parameters": [{"params": []}]},
            TypeError,
            r"record takes parameters, got dict; pass network.parameters\(\)",
        ),
    ],
    recorded: [
        ({"filter": 3}, TypeError, "filter must be a spectral filter, got 3; such as"),
        ({"filter": "half"}, TypeError, "filter must be a spectral filter, got 'half'"),
        ({"filter": hig.HalfInverse}, TypeError, "got the class HalfInverse"),
        ({"filter": None}, TypeError, "filter must be a spectral filter, got None"),
        ({"filter": hig.HalfInverse(), "chunk": 0}, ValueError, "chunk must be at least 1"),
    ],
    hig.HalfInverse: [
        ({"rcond": float("nan")}, ValueError, r"rcond must be in \[0, 1\), got nan; 1e-6 suits"),
        ({"rcond": 1.0}, ValueError, r"rcond must be in \[0, 1\), got 1.0"),
        ({"kappa": float("inf")}, ValueError, r"in \[-1, 1\], got inf; -0.5 is the half-inverse"),
    ],
    hig.Damped: [
        ({"rcond": -1e-9}, ValueError, r"rcond must be in \[0, 1\), got -1e-09; 1e-6 suits"),
        ({"damping": float("inf")}, ValueError, "positive and finite, got inf; use GaussNewton"),
    ],
}


@pytest.mark.parametrize(
    ("call", "options", "error", "match"),
    [(call, *case) for call, cases in TEXTS.items() for case in cases],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_texts(call, options, error, match):
    with pytest.raises(error, match=match):
        call(**options)


def test_parameters_on_two_devices_are_refused():
    two = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2, device="meta"))]
    with pytest.raises(ValueError, match="got parameter 0 on cpu and parameter 1 on meta; move"):
        hig.HIG(two)
    with pytest.raises(ValueError, match="got state on cpu and controls on meta"):
        hig.rollout(lambda s, c: s, torch.ones(2, 3), torch.ones(2, 4, device="meta"))


@pytest.mark.parametrize(
    ("step", "error", "match"),
    [
        (None, TypeError, "step must be a function"),
        (lambda s, c: None, TypeError, "as one tensor, got NoneType"),
        (lambda s, c: torch.cat([s, s], 1), ValueError, r"\(2, 3\), got \(2, 6\)"),
    ],
)
@pytest.mark.parametrize("method", ["auto", "loop"])
def test_steps_that_are_no_steps_without_a_gradient(step, error, match, method):
    with pytest.raises(error, match=match):
        hig.rollout(step, torch.ones(2, 3), torch.ones(2, 4), method=method)


def test_learning_rates_may_be_tensors():
    assert hig.HIG(parameters(), lr=torch.tensor(0.5)).param_groups[0]["lr"] == 0.5


# -- the checks themselves -------------------------------------------------------------------------


def test_numbers():
    for value in (0, 0.5, np.float32(0.25), np.int64(0)):
        check_number(value, "x", FRACTION, "try 0.5")
    with pytest.raises(TypeError, match=r"^x must be a number, in \[0, 1\), got '0.5'; try 0.5$"):
        check_number("0.5", "x", FRACTION, "try 0.5")
    with pytest.raises(ValueError, match=r"^x must be in \[0, 1\), got nan; try 0.5$"):
        check_number(math.nan, "x", FRACTION, "try 0.5")


@pytest.mark.parametrize("digits", [400, 5000])
@pytest.mark.parametrize("within", [POSITIVE, NON_NEGATIVE, FRACTION])
def test_whole_numbers_beyond_floats(within, digits):
    with pytest.raises(ValueError, match=r"x must be .*, got a whole number of \d+ bits; try 1"):
        check_number(10**digits, "x", within, "try 1")
    with pytest.raises(ValueError, match="got a whole number of"):
        check_count(-(10**digits), "x")


STEPPING = [hig.HIG, hig.GaussNewton, hig.LevenbergMarquardt, hig.MultiHIG, hig.KroneckerHIG]


@pytest.mark.parametrize("kind", STEPPING)
def test_closures_and_parameters_of_other_kinds(kind):
    for value in (None, 5, "x", b"x", torch.ones(2)):
        with pytest.raises(TypeError, match="closure must be a function of no arguments that"):
            kind(parameters()).step(value)
    for value in (b"x", np.ones(2), [torch.ones(2), 3]):
        with pytest.raises(TypeError, match=r"params must .* network.parameters\(\)"):
            kind(value)


@pytest.mark.parametrize("kind", STEPPING)
def test_learning_rates_beyond_what_the_parameters_hold(kind):
    for lr in (1e300, 10**400, 10**40, torch.tensor(1e300, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"lr must be (non-negative|at most 3.4e\+38, the)"):
            kind(parameters(), lr=lr)
    optimizer = kind(parameters())
    for lr, match in ((1e39, "at most"), (math.nan, "non-negative and finite, got nan; 1.0 is")):
        optimizer.param_groups[0]["lr"] = lr  # as a scheduler does
        with pytest.raises(ValueError, match=f"lr must be {match}"):
            optimizer.step(lambda: pytest.fail("the closure was called"))
    kind([p.detach().double().requires_grad_() for p in parameters()], lr=1e300)
    half = [p.detach().half().requires_grad_() for p in parameters()]
    kind(half, lr=65504.0)
    with pytest.raises(ValueError, match="lr must be at most"):
        kind(half, lr=7e4)


@pytest.mark.parametrize("kind", STEPPING)
def test_settings_that_groups_do_not_have(kind):
    """They would have no effect, as a misspelled one."""
    first, second = parameters()
    for key in ("rcond", "lrr", "weight_decay", 3):
        with pytest.raises(ValueError, match=rf"take 'params', 'lr'.*, got {key!r}; check its"):
            kind([{"params": [first], key: 1e-3}])
    optimizer = kind([{"params": [first], "lr": 0.5}])
    with pytest.raises(ValueError, match="got 'lrr'"):
        optimizer.add_param_group({"params": [second], "lrr": 0.1})
    with pytest.raises(ValueError, match="got one without 'params'"):
        optimizer.add_param_group({"lr": 0.1})
    assert len(optimizer.param_groups) == 1
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10, cycle_momentum=False)
    torch.optim.swa_utils.SWALR(optimizer, 0.1)
    kind(optimizer.param_groups)  # as they are after a scheduler
    optimizer.add_param_group({"params": second})
    assert kind([{"params": [("a", first)]}]).param_groups[0]["param_names"] == ["a"]
    named = kind([("a", first), ("b", second)])
    kind(named.param_groups)


def test_counts():
    assert check_count(np.int64(3), "count") == 3
    assert check_count(torch.tensor(3), "count") == 3
    assert check_count(-3, "count", least=None) == -3
    with pytest.raises(TypeError, match=r"count must be a whole number, got 3\.0$"):
        check_count(3.0, "count")
    with pytest.raises(TypeError, match="got True; take more"):
        check_count(True, "count", "take more")
    with pytest.raises(ValueError, match="count must be at least 1, got -2; take more"):
        check_count(-2, "count", "take more")


def test_choices_functions_and_paths():
    check_choice(None, "x", ("a", None))
    check_function(len, "x", "(list) -> int")
    assert check_path("a/b") == check_path(Path("a/b")) == Path("a/b")
    with pytest.raises(ValueError, match=r"x must be one of \('a',\) or b, got a list of 1"):
        check_choice(["a"], "x", ("a",), " or b")
    with pytest.raises(TypeError, match=r"x must be a function \(list\) -> int, got 3; define"):
        check_function(3, "x", "(list) -> int")
    with pytest.raises(TypeError, match="path must be a str or a path, got 3"):
        check_path(3)


def test_parameters_and_tensors():
    given = iter(parameters())
    assert len(check_parameters(given, "params")) == 2
    with pytest.raises(ValueError, match=r"params must hold a parameter, got none; .*generator"):
        check_parameters(given, "params")
    check_tensor(torch.ones(2, dtype=torch.float16), "x", 1)
    with pytest.raises(TypeError, match=r"x must be real floating point, got torch.int64"):
        check_tensor(torch.ones(2, dtype=torch.int64), "x")
    with pytest.raises(ValueError, match=r"x must have 2 axes, got shape \(2,\)"):
        check_tensor(torch.ones(2), "x", 2)
    check_same_device({"a": torch.ones(1), "b": torch.ones(2)})


@pytest.mark.parametrize("value", [None, 3, [], object()])
def test_paths_and_bytes_of_files(value, tmp_path):
    with pytest.raises(TypeError, match="path must be a str or a path"):
        hig.save_results(value, {})
    with pytest.raises(TypeError, match="path must be a str or a path"):
        hig.load_results(value)
    with pytest.raises(TypeError, match="path must be a str or a path"):
        hig.files.write_atomically(value, b"")
    with pytest.raises(TypeError, match="data must be bytes"):
        hig.files.write_atomically(tmp_path / "file", value)
    with pytest.raises(IsADirectoryError, match="path must be that of a file"):
        hig.files.write_atomically(tmp_path, b"")
    with pytest.raises(TypeError, match="data must be bytes"):
        hig.files.unpickle(value, {}, lambda *_: None)
    hig.files.write_atomically(str(tmp_path / "file"), b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("n", [0, -1, 4, 1.5, None, True, "1"])
def test_slices(n):
    with pytest.raises((TypeError, ValueError), match="n must be"):
        OrderedSliceSelector().select(n, [1, 2, 3])
