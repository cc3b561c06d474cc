"""The table of the study as command lines."""

import importlib
from dataclasses import replace

import pytest

from experiments._arguments import parse
from experiments._problems import make
from experiments._study.jobs import ablation_jobs, comparison_jobs, default_lr, tuning_jobs
from experiments._study.table import PRESETS, TUNING_SEED


def all_jobs(preset):
    grid = tuning_jobs(preset)
    won = {(job.folder, job.method): 0.5 for job in grid}
    return [*grid, *comparison_jobs(preset, won), *ablation_jobs(preset, won)]


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
    grid = tuning_jobs(preset)
    assert TUNING_SEED not in preset.seeds
    assert {job.arguments[job.arguments.index("--seed") + 1] for job in grid} == {str(TUNING_SEED)}
    per_method = {}
    for job in grid:
        per_method.setdefault((job.folder, job.method), []).append(job.seconds)
    assert all(len(found) == len(preset.factors) for found in per_method.values())
    for folder in preset.seconds:
        seconds = {s for (f, _), found in per_method.items() if f == folder for s in found}
        assert len(seconds) <= 1


def test_rates_of_the_grid_are_around_the_default():
    grid = [j for j in tuning_jobs(PRESETS["desk"]) if (j.folder, j.method) == ("poisson", "adam")]
    rates = [float(job.arguments[job.arguments.index("--lr") + 1]) for job in grid]
    expected = [factor * default_lr("poisson", "adam") for factor in PRESETS["desk"].factors]
    assert rates == pytest.approx(expected)


def test_winners_are_used_where_there_are_any():
    preset = PRESETS["smoke"]
    jobs = comparison_jobs(preset, {("conditioning_toy", "adam"): 0.25})
    with_rate = {(job.folder, job.method) for job in jobs if "--lr" in job.arguments}
    assert with_rate == {("conditioning_toy", "adam")}
    assert all("0.25" in job.arguments for job in jobs if "--lr" in job.arguments)


def test_desk_fits_into_three_hours_of_two_cores():
    seconds = sum(job.seconds for job in all_jobs(PRESETS["desk"]))
    starts = 4 * len(all_jobs(PRESETS["desk"]))  # seconds to import and to evaluate
    assert (seconds + starts) / 2 < 3 * 3600


def test_a_gpu_is_asked_for_where_the_preset_says():
    assert all(job.arguments.count("cuda") == 1 for job in all_jobs(PRESETS["paper"]))
