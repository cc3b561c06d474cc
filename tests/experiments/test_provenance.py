import os
import shlex
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest
import torch

from experiments._provenance import machine, origin
from experiments._provenance import revision as cached_revision

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
revision = cached_revision.__wrapped__


def git(folder, *line):
    identity = ["-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    environment = {key: value for key, value in os.environ.items() if key[:4] != "GIT_"}
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *line],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path):
    folder = tmp_path / "clone"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "file").write_text("one")
    git(folder, "add", "file")
    git(folder, "commit", "--quiet", "--message", "one")
    return folder


@needs_git
def test_the_revision_is_the_hash_of_the_commit_whatever_the_tags(clone):
    head = git(clone, "rev-parse", "HEAD")
    git(clone, "tag", "--annotate", "v1", "--message", "v1")
    assert len(head) == 40 and revision(clone) == head


@needs_git
def test_changes_are_marked_and_files_that_git_does_not_know_are_not(clone):
    head = git(clone, "rev-parse", "HEAD")
    (clone / "results").write_text("new")
    assert revision(clone) == head
    (clone / "file").write_text("two")
    assert revision(clone) == f"{head}-dirty"
    git(clone, "add", "file")
    assert revision(clone) == f"{head}-dirty"


@needs_git
def test_a_hook_of_another_repository_does_not_mislead(clone, tmp_path, monkeypatch):
    head = git(clone, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", "index")
    assert revision(clone) == head


@needs_git
def test_a_folder_within_the_repository_of_something_else_has_none(clone):
    (clone / "site-packages").mkdir()
    assert revision(clone / "site-packages") == "none"


@needs_git
def test_a_refusal_of_git_and_a_repository_without_commits(clone, tmp_path, monkeypatch):
    git(tmp_path, "init", "--quiet")
    assert revision(tmp_path) == "none"
    assert revision(clone) != "none"
    # A tree of another user, which git does not trust by default.
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    assert revision(clone) == "none"


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)])
def test_git_that_is_missing_or_hangs(error, tmp_path, monkeypatch):
    def run(*_, **__):
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    (tmp_path / ".git").mkdir()
    assert revision(tmp_path) == "none"


def test_the_command_can_be_pasted(monkeypatch):
    words = ["-m", "experiments.poisson.submit_hig", "--out", "my results", "--lr=1e-2"]
    monkeypatch.setattr(sys, "orig_argv", ["/opt/python/bin/python3.11", *words])
    command = origin()["command"]
    assert command.startswith("python -m experiments.poisson.submit_hig --out 'my results'")
    assert shlex.split(command) == ["python", *words]


def test_the_start_is_now_with_a_time_zone():
    started = datetime.fromisoformat(origin()["started"])
    assert abs(datetime.now().astimezone() - started) < timedelta(seconds=60)


def test_git_is_asked_once(monkeypatch):
    first = origin()["revision"]
    monkeypatch.setattr(subprocess, "run", None)
    assert origin()["revision"] == first


def test_facts_are_plain_and_true():
    facts = machine("cpu")
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert all(type(value) in (str, int) for value in facts.values()), facts
    assert facts["processor"]


def test_phiflow_where_it_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "phi", SimpleNamespace(__version__="3.4.0"))
    assert machine("cpu")["phiflow"] == "3.4.0"
    monkeypatch.delitem(sys.modules, "phi")
    assert "phiflow" not in machine("cpu")
