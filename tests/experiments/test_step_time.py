import numpy as np

import hig
from experiments import step_time
from experiments._provenance import machine
from problems import NonlinearOscillators

TINY = NonlinearOscillators(time_steps=6, dt=0.5, hidden=(5,), train_size=8, test_size=1)


def test_result_files_and_the_command_to_draw_them(tmp_path, capsys):
    line = ["conditioning_toy", "--methods", "adam", "hig", "--batch-sizes", "4", "2", "4"]
    step_time.main([*line, "--rounds", "3", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    paths = sorted(tmp_path.glob("*.pickle"))
    assert [path.stem for path in paths] == [
        "conditioning_toy_adam_step_time",
        "conditioning_toy_hig_step_time",
    ]
    for path, method in zip(paths, ("adam", "hig"), strict=True):
        results = hig.load_results(path)
        assert (results["problem"], results["method"]) == ("conditioning_toy", method)
        assert results["machine"] == machine("cpu")
        assert results["origin"].keys() == {"command", "revision", "started"}
        assert results["batch_size"].tolist() == [2, 4]
        assert results["batch_size"].dtype == np.int64
        assert results["rows"].tolist() == [4, 8]
        assert np.all(results["seconds_per_step_min"] > 0)
        assert np.all(results["seconds_per_step_min"] <= results["seconds_per_step"])
        assert np.all(results["seconds_per_step"] <= results["seconds_per_step_max"])
        assert str(path) in printed
    assert "python -m plots.step_time" in printed
    assert "batch 2: HIG " in printed


def measure(methods, sizes, memory=1.0):
    said = []
    return step_time.step_times(TINY, methods, sizes, 1, "cpu", memory, said.append), said


def test_large_gram_matrices_are_left_out_for_jacobian_methods():
    # Four numbers per sample: 16 rows take 2,048 bytes, 32 rows 8,192.
    results, said = measure(["gn", "adam", "hig"], [4, 8], memory=8e-6)
    assert results["hig"]["batch_size"].tolist() == results["gn"]["batch_size"].tolist() == [4]
    assert results["adam"]["batch_size"].tolist() == [4, 8]
    assert (
        "batch 8 is left out for Gauss–Newton, HIG: the Gram matrix of 32 rows takes 8.19e-06 GB, "
        "more than --memory 8e-06"
    ) in said


def test_sizes_beyond_the_training_data_are_left_out():
    results, said = measure(["adam"], [8, 9])
    assert results["adam"]["batch_size"].tolist() == [8]
    assert "batch 9 is left out: the training data has 8 samples" in said


def test_methods_without_any_size_have_no_result():
    results, _ = measure(["hig", "adam"], [8], memory=1e-9)
    assert set(results) == {"adam"}
