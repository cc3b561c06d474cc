"""The results page: every number from the files, the same bytes every time."""

import shutil

import numpy as np
import pytest

from experiments import __main__ as command
from experiments._saved.result_files import ResultFileError
from experiments._study.keep import keep
from experiments._study.kept import read_kept
from experiments._study.published import PUBLISHED
from experiments._study.report import report
from tests.experiments.study.made import Made


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path / "results" / "desk")


@pytest.fixture
def page(made, tmp_path):
    """The page of what has been made, by section, with tables as lists of cells."""

    def write(images=None):
        out = tmp_path / "study" / "desk"
        shutil.rmtree(out, ignore_errors=True)
        keep(made.folder, out)
        sections = {}
        for line in report(read_kept(out), images or {}).splitlines():
            if line.startswith("#"):
                name = line.lstrip("# ")
                sections[name] = []
            elif line.startswith("|") and not line.startswith("|-"):
                sections[name].append([cell.strip() for cell in line.strip("|").split(" | ")])
            elif line and not line.startswith("|-"):
                sections[name].append(line)
        return sections

    return write


def rows(section):
    """Those of the first table of a section, by the first cell; the header's is its name too."""
    header, *lines = [line for line in section if isinstance(line, list)]
    return {line[0]: dict(zip(header, line, strict=True)) for line in lines}


def test_numbers_of_a_comparison(made, page):
    for seed, end in enumerate((0.01, 0.03, 0.02)):
        made.run("comparison", "toy", losses=(1, 0.2, end), seed=seed)
        made.run("comparison", "toy", "adam", losses=(1, 0.5, 0.2 + end), seed=seed)
    made.run("comparison", "toy", "gn", losses=(1, 0.005, 0.5))
    made.run("comparison", "toy", "gn", losses=(1, 0.5, 0.4), seed=1, stopped="non-finite: loss")
    found = rows(page()["toy"])
    assert list(found) == ["HIG", "Adam", "Gauss–Newton"]
    assert found["HIG"]["final test loss"] == "0.02 (0.01 to 0.03)"
    assert found["HIG"]["s to 0.22"] == "10, 3 of 3"
    assert found["Adam"]["s to 0.22"] == "20, 2 of 3"
    assert found["HIG"]["steps"] == "8" and found["HIG"]["epochs"] == "4"
    assert found["HIG"]["settings"] == "lr 1, batch 64"
    assert found["Gauss–Newton"]["final test loss"] == "not finite (0.5 to not finite)"
    assert found["Gauss–Newton"]["best"] == "0.203 (0.005 to 0.4)"
    assert found["Gauss–Newton"]["diverged"] == "1 of 2"


def test_the_target_is_the_second_best_where_adam_is_the_best(made, page):
    made.run("comparison", "toy", losses=(1, 0.3))
    made.run("comparison", "toy", "adam", losses=(1, 0.2))
    made.run("comparison", "toy", "gn", losses=(1, 0.4))
    section = page()["toy"]
    assert "s to 0.3" in rows(section)["HIG"]
    assert "The seconds are those to a test loss of 0.3, where HIG ends." in section


def test_the_same_bytes_every_time(made, tmp_path):
    for seed in (0, 1):
        made.run("comparison", "poisson", seed=seed)
        for value in (0.5, 0.25):
            made.run("kappa", "poisson", seed=seed, settings={"kappa": value})
    texts = []
    for name in ("one", "two"):
        keep(made.folder, tmp_path / name / "desk")
        written = sorted((tmp_path / name).rglob("*.pickle"), reverse=name == "two")
        for path in written:  # the order in which files were written means nothing
            path.touch()
        line = ["report", str(tmp_path / name / "desk"), "--out", str(tmp_path / f"{name}.md")]
        assert command.main(line) == 0
        texts.append((tmp_path / f"{name}.md").read_bytes())
    assert texts[0] == texts[1] and b"# Results of the study: desk\n" in texts[0]


def test_problems_stand_in_the_order_of_the_publication(made, page):
    for folder in ("cart_pole", "a_new_one", "pinn/burgers", "poisson", "nonlinear_oscillators"):
        made.run("comparison", folder)
    titles = list(page())[1:6]
    assert titles == [
        "Nonlinear oscillators", "Poisson", "Physics-informed network: Burgers", "Cart-pole",
        "a_new_one",
    ]  # fmt: skip


def test_published_numbers_stand_next_to_ours(made, page):
    made.run("comparison", "conditioning_toy")
    made.run("comparison", "conditioning_toy", "lm")
    section = page()["Conditioning toy"]
    elsewhere = {name: row["elsewhere"] for name, row in rows(section).items()}
    losses = PUBLISHED["conditioning_toy"].losses
    assert elsewhere == {"HIG": losses["hig"], "Levenberg–Marquardt": "–"}
    assert section[-1].startswith("Elsewhere: losses after 20 s at λ = 0.01, [Schnell")


def test_where_hig_does_not_win(made, page):
    made.run("comparison", "poisson", losses=(1, 0.5, 0.4))
    made.run("comparison", "poisson", "adam", losses=(1, 0.1, 0.1))
    made.run("comparison", "poisson", "lm", losses=(1, 0.2, 0.2))
    made.run("comparison", "cart_pole", losses=(1, 0.5, 0.1))
    made.run("comparison", "cart_pole", "adam", losses=(1, 0.3, 0.3))
    made.run("comparison", "toy", "adam")
    made.run("comparison", "quantum_dipole", losses=(1, np.nan))
    made.run("comparison", "quantum_dipole", "adam", losses=(1, 0.5))
    section = page()["Problems on which HIG does not win"]
    lost = {name: list(row.values())[1:] for name, row in rows(section).items()}
    assert lost == {
        "Poisson": [
            "Adam (4 times), Levenberg–Marquardt (2 times)",
            "Adam (alone), Levenberg–Marquardt (alone)",
        ],
        "Quantum dipole": ["Adam (alone)", "Adam (alone)"],
        "Cart-pole": ["none", "Adam (2 times)"],
    }
    assert section[-1] == "HIG is not compared on: toy."


def test_hig_may_win_everywhere(made, page):
    made.run("comparison", "poisson")
    made.run("comparison", "poisson", losses=(1, 0.1, 0.001), settings={"lr": 2.0}, label="HIG (2)")
    assert page()["Problems on which HIG does not win"][-1] == "There are none in this study."


def test_ablations_with_the_lowest_in_bold(made, page):
    made.run("comparison", "toy")
    ends = {"auto": (0.3, 0.1), 0.01: (0.2, np.nan), 1e-6: (0.4, 0.5)}
    for value, losses in ends.items():
        for folder, end in zip(("toy", "poisson"), losses, strict=True):
            made.run("rcond", folder, losses=(1, end), settings={"rcond": value})
    table = rows(page()["rcond"])
    assert list(table) == ["1e-6", "0.01", "auto"]
    assert [row["toy"] for row in table.values()] == ["0.4", "**0.2**", "0.3"]
    assert [row["Poisson"] for row in table.values()] == ["0.5", "not finite", "**0.1**"]


def test_ablations_of_two_settings_are_a_matrix(made, page):
    made.run("comparison", "toy")
    for (kappa, rcond), end in {(-1.0, 0.1): 3, (-1.0, 0.2): 1, (0.0, 0.1): 2}.items():
        made.run("both", "toy", losses=(9, end), settings={"kappa": kappa, "rcond": rcond})
    header, *lines = [line for line in page()["both"] if isinstance(line, list)]
    assert header == ["kappa \\ rcond", "0.1", "0.2"]
    assert lines == [["-1", "3", "**1**"], ["0", "2", "–"]]


def test_one_after_the_other(made, page):
    made.run("comparison", "toy", losses=(1, 0.3))
    made.run("comparison", "toy", "adam", losses=(1, 0.4))
    made.run("relay_first", "toy", "adam", losses=(1, 0.5))
    later = {"pretraining": "Adam (lr 1)", "pretraining_time": 10.0, "label": "HIG (after Adam)"}
    made.run("relay", "toy", losses=(0.5, 0.2), **later)
    found = page({"toy_relay": "relay.png", "toy_loss": "loss.png"})
    assert found["One after the other"][-1] == "![toy: relay](relay.png)"
    assert found["toy"][-1] == "![toy: loss](loss.png)"
    lines = [line[1:3] for line in found["One after the other"] if isinstance(line, list)]
    assert lines[1:] == [
        ["Adam, then HIG", "0.2"], ["HIG alone", "0.3"], ["Adam alone", "0.4"],
    ]  # fmt: skip
    assert "relay first" not in found


def test_the_grid_and_its_winners(made, page):
    made.run("comparison", "poisson", settings={"lr": 0.1, "rcond": 1e-6})
    tried = [{"lr": 0.1, "rcond": 1e-6, "loss": 0.5}, {"lr": 1.0, "rcond": 1e-6, "loss": None}]
    entry = {"problem": "poisson", "method": "hig", "won": {"lr": 0.1, "rcond": 1e-6}}
    made.winners([{**entry, "tried": tried}])
    (line,) = rows(page()["The grid"]).values()
    assert list(line.values())[1:] == [
        "HIG", "**lr 0.1, rcond 1e-6: 0.5** †lr; lr 1, rcond 1e-6: not finite",
    ]  # fmt: skip


def test_longer_runs_of_the_best_of_the_grid(made, page):
    made.run("comparison", "poisson", settings={"lr": 0.1})
    losses = {0.1: 0.5, 1.0: 0.4, 3.0: 0.6, 0.03: 0.7}
    tried = [{"lr": lr, "loss": loss} for lr, loss in losses.items()]
    finals = [{"lr": 1.0, "loss": 0.3}, {"lr": 0.1, "loss": 0.2}]
    entry = {"problem": "poisson", "method": "hig", "won": {"lr": 0.1}}
    made.winners([{**entry, "tried": tried, "finals": finals}])
    (line,) = rows(page()["The grid"]).values()
    assert list(line.values())[2] == (
        "**lr 0.1: 0.5 → 0.2**; lr 1: 0.4 → 0.3; lr 3: 0.6; lr 0.03: 0.7"
    )


def test_circumstances_come_from_the_files(made, page):
    made.run("comparison", "toy", machine={"processor": "an abacus", "threads": 2})
    found = rows(page()["Results of the study: desk"])
    assert found["processor"]["value"] == "an abacus" and found["threads"]["value"] == "2"
    assert found["seeds"]["value"] == "0" and found["torch"]["value"] == "not recorded"
    assert found["revision"]["value"] == "abc"
    assert found["runs reported here"]["value"] == "1, 0.00556 h of training"


def test_differences_by_chance_are_reported(made, page):
    facts = {"settings": {"kappa": -1}}
    made.run("comparison", "toy")
    for part, end, revision in (("a", 0.2, "abc"), ("b", 0.5, "abd")):
        made.run(part, "toy", losses=(1, end), **facts, origin={"revision": revision})
    first, *_ = page()["Results of the study: desk"]
    assert "differ in nothing (1 sets) end up to 2.5 times apart" in first
    found = rows(page()["Results of the study: desk"])
    assert found["revision"]["value"] == "abc (2 of 3), abd (1 of 3)"


def test_an_ablation_has_its_common_settings(made, page):
    made.run("comparison", "toy")
    for kappa in (0, 1):
        settings = {"kappa": kappa, "step_rule": "trust", "time_budget": 9.0}
        made.run("kappa", "toy", settings=settings)
    text = "losses of HIG with the step rule trust at the end of 9 s of training; all other"
    assert text in page()["kappa"][0]


def test_figures_are_shown_where_there_are_any(made, page, tmp_path):
    made.run("comparison", "pinn/burgers")
    for value in (1, 2):
        made.run("kappa", "toy", settings={"kappa": value})
    folder = tmp_path / "docs" / "images"
    folder.mkdir(parents=True)
    for name in ("pinn_burgers_loss", "ablation_kappa", "ablation_rcond"):
        (folder / f"{name}.png").touch()
    page()
    line = ["report", str(tmp_path / "study" / "desk"), "--images", str(folder)]
    assert command.main([*line, "--out", str(tmp_path / "docs" / "results.md")]) == 0
    text = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    shown = [line for line in text.splitlines() if line.startswith("![")]
    assert shown == [
        "![Physics-informed network: Burgers: loss](images/pinn_burgers_loss.png)",
        "![Ablation: kappa](images/ablation_kappa.png)",
    ]


def test_errors(made, tmp_path, capsys):
    with pytest.raises(ResultFileError, match="no result files in comparison/; give the output"):
        report(read_kept(tmp_path), {})
    out = tmp_path / "page.md"
    assert command.main(["report", str(tmp_path), "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith("error: ") and not out.exists()


@pytest.fixture
def command_fails(made, tmp_path, capsys):
    """A call of the command on a study that is kept, with further arguments; returns its error."""
    made.run("comparison", "toy")
    keep(made.folder, tmp_path / "kept")
    out = tmp_path / "page.md"

    def call(*given, study=tmp_path / "kept", out=out):
        assert command.main(["report", str(study), "--out", str(out), *map(str, given)]) == 2
        assert not (tmp_path / "page.md").exists()
        return capsys.readouterr().err

    return call


def test_what_is_no_kept_study(made, command_fails, tmp_path):
    (made.folder / "tuning").mkdir()
    text = command_fails(study=made.folder)
    assert f"first python -m experiments keep {made.folder} --out DIR" in text
    for text, fault in {
        "{": "is not a grid of a study",
        '{"a": 1}': "is not a grid of a study",
        '[{"method": "none"}]': "is not a grid of a study",
        '[{"method": "hig", "tried": [{"lr": 1}], "won": {}}]': "an entry is not whole",
    }.items():
        (tmp_path / "kept" / "winners.json").write_text(text)
        text = command_fails()
        assert fault in text and "winners.json" in text
    (tmp_path / "kept" / "winners.json").unlink()
    assert "there is no" in command_fails()


def test_pages_and_figures_in_the_wrong_place(command_fails, tmp_path):
    figures = tmp_path / "figures"
    assert "has no figures" in command_fails("--images", figures)
    figures.mkdir()
    (figures / "toy_loss.png").touch()
    elsewhere = tmp_path / "docs" / "page.md"
    assert "is not below the folder" in command_fails("--images", figures, out=elsewhere)
    other = tmp_path / "other.md"
    assert "No such file" in command_fails("--into", other)
    other.write_bytes(b"\xff\xfe")
    assert f"{other} is not a text in UTF-8" in command_fails("--into", other)
    assert "would replace the page that its table" in command_fails("--into", other, out=other)
    assert other.read_bytes() == b"\xff\xfe"


def test_missing_runs_of_a_preset_are_listed(made, page):
    made.run("comparison", "smoke_control")
    made.run("dtype", "quantum_dipole")
    ((missing, *_), *_) = [
        [line for line in section if "Not run yet" in line] for section in page().values()
    ]
    compared, *others = missing.split("; ")
    assert compared.startswith("**Not run yet:** comparison (Nonlinear oscillators, Poisson")
    assert "Cart-pole" in compared and "Smoke control" not in compared
    assert "dtype (Nonlinear oscillators)" in others
    assert others[0].startswith("relay (Nonlinear oscillators")


def test_a_study_of_another_name_misses_nothing(tmp_path):
    made = Made(tmp_path / "results" / "mine")
    made.run("comparison", "smoke_control")
    keep(made.folder, tmp_path / "mine")
    assert "Not run yet" not in report(read_kept(tmp_path / "mine"), {})
