import argparse
import os

import pytest
import torch

from experiments._cli.argument_types import (
    MOST,
    MOST_THREADS,
    average_argument,
    busy_argument,
    device_argument,
    kappa_argument,
    momentum_argument,
    positive_float,
    positive_int,
    rcond_argument,
    seed_argument,
    sketch_argument,
    threads_argument,
)

MOST_HERE = MOST_THREADS * os.cpu_count()


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (positive_int, "3", 3),
        (positive_int, str(MOST), MOST),
        (positive_float, "3e-4", 3e-4),
        (rcond_argument, "auto", "auto"),
        (rcond_argument, "0", 0.0),
        (sketch_argument, "4", 4),
        (sketch_argument, "auto", "auto"),
        (momentum_argument, "0.9", 0.9),
        (average_argument, "0.8", 0.8),
        (kappa_argument, "-1", -1.0),
        (seed_argument, "4294967295", 2**32 - 1),
        (busy_argument, "0", 0),
        (threads_argument, str(MOST_HERE), MOST_HERE),
        (device_argument, "cpu", "cpu"),
    ],
)
def test_values(kind, text, value):
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (positive_int, "two", "must be a whole number, got 'two'; give a number such as 10"),
        (positive_int, "9" * 20, f"must be at most {MOST}, got 999"),
        (positive_int, "9" * 5000, "must be a whole number, got '999"),
        (positive_float, "0", "must be positive and finite, got 0; give a number such as 0.5"),
        (positive_float, "nan", "must be positive and finite, got nan"),
        (positive_float, "inf", "must be positive and finite, got inf"),
        (sketch_argument, "0", "must be at least 1, got 0; give a number such as 4, or auto"),
        (sketch_argument, "all", "must be a whole number, got 'all'; give a number such as 4"),
        (average_argument, "0", "must be between 0 and 1, got 0; 0.8 averages"),
        (seed_argument, "4294967296", "must be from 0 to 2**32 - 1, got 4294967296"),
        (threads_argument, "0", "must be at least 1, got 0; give a number such as 1"),
        (threads_argument, str(MOST_HERE + 1), f"must be at most {MOST_HERE} on"),
        (device_argument, "tpu", "must be cpu, cuda or cuda:K, got 'tpu'; try cpu"),
        (device_argument, "cuda:x", "must be cpu, cuda or cuda:K, got 'cuda:x'"),
        (device_argument, "cuda:99", "cuda:99 is not available, torch"),
    ],
)
def test_errors(kind, text, message):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        kind(text)
    assert message in str(error.value)


def test_a_missing_device_names_the_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        argparse.ArgumentTypeError, match=r"cuda is not available.*use --device cpu"
    ):
        device_argument("cuda")
