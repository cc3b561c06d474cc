"""The table of the study as command lines."""

import importlib
from dataclasses import replace

import pytest

from experiments._cli.arguments import parse
from experiments._problems import make
from experiments._study.jobs import (
    ablation_jobs,
    comparison_jobs,
    relay_jobs,
    tuning_jobs,
)
from experiments._study.table import PRESETS, TUNING_SEED, Ablation


def all_jobs(preset):
    grid = tuning_jobs(preset)
    won = {(job.folder, job.method): point for job, point in grid}
    relays = relay_jobs(preset, won)
    return [
        *(job for job, _ in grid),
        *comparison_jobs(preset, won),
        *ablation_jobs(preset, won),
        *(job.after for job in relays),
        *relays,
    ]


def given(job, option):
    return job.arguments[job.arguments.index(option) + 1]


@pytest.mark.parametrize("name", PRESETS)
def test_every_command_line_is_understood(name):
    preset = replace(PRESETS[name], device="cpu")
    problems = {}
    for job in all_jobs(preset):
        problem = problems.setdefault(job.folder, make(job.folder))
        assert importlib.util.find_spec(job.module), job.module
        _, settings, options = parse(problem, job.method, [*job.arguments, "--out", "x"])
        assert options.time_budget == pytest.approx(job.seconds)
        assert settings.batch_size > 0


@pytest.mark.parametrize("name", PRESETS)
def test_no_two_jobs_share_a_place(name):
    jobs = all_jobs(PRESETS[name])
    assert len({job.place for job in jobs}) == len(jobs) == len(set(jobs))
    assert all(not job.place.is_absolute() and ".." not in job.place.parts for job in jobs)


@pytest.mark.parametrize("name", PRESETS)
def test_tuning_sees_a_seed_of_its_own_and_the_same_budget_for_all(name):
    preset = PRESETS[name]
    grid = [job for job, _ in tuning_jobs(preset)]
    assert TUNING_SEED not in preset.seeds
    assert {given(job, "--seed") for job in grid} == {str(TUNING_SEED)}
    for folder in preset.seconds:
        assert len({job.seconds for job in grid if job.folder == folder}) <= 1


@pytest.mark.parametrize("name", ["desk", "paper"])
def test_first_order_methods_have_no_smaller_grid(name):
    points = {}
    for job, _ in tuning_jobs(PRESETS[name]):
        points.setdefault(job.folder, {}).setdefault(job.method, []).append(job)
    for methods in points.values():
        least = min(len(found) for method, found in methods.items() if method not in ("hig", "gn"))
        assert all(len(methods[method]) <= least for method in ("hig", "gn") if method in methods)


def test_points_of_the_grid_are_on_the_command_lines():
    preset = replace(PRESETS["desk"], factors=(0.5, 2.0), cutoffs=(1e-4,), rates=(0.25,))
    grid = [pair for pair in tuning_jobs(preset) if pair[0].folder == "poisson"]
    default = make("poisson").settings["hig"].lr
    points = [point for job, point in grid if job.method == "hig"]
    assert points == [{"lr": factor * default, "rcond": 1e-4} for factor in (0.5, 2.0)]
    points = [point for job, point in grid if job.method == "adam"]
    assert points == [{"lr": 0.25, "schedule": name} for name in ("constant", "cosine")]
    for job, point in grid:
        assert float(given(job, "--lr")) == pytest.approx(point["lr"])
        assert ("--schedule" in job.arguments) == ("schedule" in point)
        assert "schedule" not in point or given(job, "--schedule") == point["schedule"]
        assert "rcond" not in point or float(given(job, "--rcond")) == point["rcond"]


def test_winners_are_used_where_there_are_any():
    preset = PRESETS["smoke"]
    won = {"lr": 0.25, "schedule": "cosine"}
    jobs = comparison_jobs(preset, {("conditioning_toy", "adam"): won})
    with_rate = [job for job in jobs if "--lr" in job.arguments]
    assert {(job.folder, job.method) for job in with_rate} == {("conditioning_toy", "adam")}
    assert all((given(j, "--lr"), given(j, "--schedule")) == ("0.25", "cosine") for j in with_rate)


def test_ablations_run_all_pairs_and_vary_winners_once():
    values = {"--kappa": ("-1", "0"), "--rcond": ("1e-3", "1e-1", "auto")}
    preset = replace(
        PRESETS["smoke"], ablations=(Ablation("pairs", "conditioning_toy", "hig", values),)
    )
    won = {("conditioning_toy", "hig"): {"lr": 0.5, "rcond": 1e-7}}
    jobs = ablation_jobs(preset, won)
    assert len(jobs) == 2 * 3 * len(preset.seeds)
    assert {(given(job, "--kappa"), given(job, "--rcond")) for job in jobs} == {
        (kappa, rcond) for kappa in values["--kappa"] for rcond in values["--rcond"]
    }
    assert all(job.arguments.count("--rcond") == 1 for job in jobs)
    assert all(given(job, "--lr") == "0.5" for job in jobs)


def test_relays_begin_with_the_weights_of_another_method_after_half_the_time():
    preset = PRESETS["smoke"]
    won = {("conditioning_toy", "hig"): {"lr": 0.5}}
    for job, seed in zip(relay_jobs(preset, won), preset.seeds, strict=True):
        assert (job.after.method, job.method) == ("adam", "hig")
        assert given(job, "--seed") == given(job.after, "--seed") == str(seed)
        assert job.seconds == job.after.seconds == 0.5 * preset.seconds["conditioning_toy"]
        assert "--save-weights" in job.after.arguments
        assert given(job, "--lr") == "0.5"


def test_smoke_takes_seconds():
    assert sum(job.seconds for job in all_jobs(PRESETS["smoke"])) < 20


def test_desk_fits_into_three_hours_of_two_cores():
    seconds = sum(job.seconds for job in all_jobs(PRESETS["desk"]))
    starts = 4 * len(all_jobs(PRESETS["desk"]))  # seconds to import and to evaluate
    assert (seconds + starts) / 2 < 3 * 3600


def test_a_gpu_is_asked_for_where_the_preset_says():
    assert all(job.arguments.count("cuda") == 1 for job in all_jobs(PRESETS["paper"]))
