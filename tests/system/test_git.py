import subprocess

import pytest

from graft.system import git

COMMIT = [
    "-c",
    "user.name=a",
    "-c",
    "user.email=a@b",
    "commit",
    "-q",
    "--allow-empty",
    "-m",
    "first",
]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    for name in git.REDIRECTING:
        monkeypatch.delenv(name, raising=False)
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        subprocess.run(["git", "init", "-q"], cwd=tmp_path / name, check=True)
        subprocess.run(["git", *COMMIT[:-1], name], cwd=tmp_path / name, check=True)
    monkeypatch.chdir(tmp_path / "here")
    git._say_dubious.cache_clear()
    return tmp_path


def test_the_repository_is_that_of_the_working_folder(repository, monkeypatch):
    """Inside a hook of another repository git's own variables point there."""
    monkeypatch.setenv("GIT_DIR", str(repository / "there" / ".git"))
    assert git.output("log", "-1", "--format=%s") == "here\n"


def test_outside_a_repository_there_is_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert git.output("rev-parse", "HEAD") is None


def test_without_git_there_is_nothing(repository, monkeypatch):
    monkeypatch.setenv("PATH", str(repository))
    assert git.output("rev-parse", "HEAD") is None


def test_a_dubious_repository_is_said_once(repository, monkeypatch, capsys):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own tests do so
    monkeypatch.setenv("HOME", str(repository))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.delenv("GIT_CONFIG_GLOBAL", raising=False)
    monkeypatch.delenv("SUDO_UID", raising=False)
    assert git.output("rev-parse", "HEAD") is None
    assert git.output("status") is None
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1
    assert f"git config --global --add safe.directory {repository / 'here'}" in said
