"""A made-up study, as the command leaves it and as it is kept."""

import json

import numpy as np

import hig
from tests.experiments.made import results_of_a_run


class Made:
    """Writes runs below a folder, each at a place of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.count = 0
        folder.mkdir(parents=True)
        self.winners([])

    def winners(self, entries):
        (self.folder / "winners.json").write_text(json.dumps(entries))

    def run(self, part, folder, method="hig", losses=(1.0, 0.1, 0.01), seed=0, **changes):
        """A run of a part; ``settings`` are added to those of all runs."""
        self.count += 1
        place = self.folder / part / folder / f"{method}_{self.count}"
        settings = {"lr": 1.0, "batch_size": 64, "train_size": 128, "out": str(place), "seed": seed}
        sim_par = settings | changes.pop("settings", {})
        name = changes.pop("label", {"hig": "HIG", "adam": "Adam"}.get(method, method))
        origin = {"command": f"python -m x --out {place}", "revision": "abc"}
        facts = {"label": name, "sim_par": sim_par, "origin": origin} | changes
        run = results_of_a_run(losses, seed=seed, **facts)
        hig.save_results(place / "run.pickle", run | {"method": method, "problem": folder})
        return place

    def whole(self, part, folder, seed=0, steps=1700, **changes):
        """A run with everything that is large."""
        parts = {
            "step_time": np.linspace(0, 20, steps),
            "rank": np.arange(steps),
            "step_size": np.ones(steps),
            "rows": 40,
            "spectrum": {"epochs": np.arange(2.0), "singular_values": np.ones((2, 40)), "rcond": 0},
            "example": {
                "time": np.arange(3.0),
                "state": np.arange(24.0).reshape(2, 3, 4),
                "state_names": ["a", "b", "c", "d"],
            },
            "test_activation_mean": np.ones((3, 7)),
        }
        return self.run(part, folder, seed=seed, **parts | changes)
