import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from graft import params, run
from graft.commands import new as command
from graft.system import installed
from graft.system.console import GraftError

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))
import setup  # noqa: E402


@pytest.fixture
def new(tmp_path, monkeypatch):
    """new(FOLDER, PHOTOS): the command, as an installed wheel runs it, without a name for git's
    commits."""
    template = tmp_path / "installed" / "project"
    for path in setup.project_files():
        (template / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, template / path)
    monkeypatch.setattr(command, "PROJECT", template)
    monkeypatch.setattr(installed, "pin", lambda extras: f"graft-vision[{','.join(extras)}]==1.2.0")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "a").mkdir(parents=True)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return lambda folder, data="photos": command.new(
        parser.parse_args([str(folder), "--data", str(data)])
    )


def test_a_project_is_the_repositorys_own_recipes_committed(new, tmp_path, capsys):
    new("deep/flowers")
    folder = tmp_path / "deep" / "flowers"
    assert f"cd {folder} && dvc repro" in capsys.readouterr().out
    for path in setup.project_files():
        if path.name not in ("dvc.yaml", "params.yaml"):
            assert (folder / path).read_bytes() == (ROOT / path).read_bytes(), path
    assert {path.parts[0] for path in setup.project_files()} == {
        "stages", "configs", "data", ".dvc", "dvc.yaml", "params.yaml", ".gitignore", ".dvcignore"
    }  # fmt: skip
    git = ["git", "-C", str(folder)]
    assert subprocess.check_output([*git, "status", "--porcelain"]) == b""
    assert subprocess.check_output([*git, "log", "--format=%s"], text=True) == "A new project\n"
    assert len((folder / "README.md").read_text().strip().splitlines()) <= 10
    assert (folder / "requirements.txt").read_text() == "graft-vision[onnx]==1.2.0\n"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["flowers"]
    own = (ROOT / "params.yaml").read_text()
    path = params.load(ROOT / "params.yaml").data.path
    assert (folder / "params.yaml").read_text() == own.replace(
        f"path: {path}", f"path: {tmp_path / 'photos'}"
    )


def test_stages_depend_on_the_pin_in_place_of_the_library(new, tmp_path):
    new("flowers")
    made, own = (
        YAML(typ="safe").load(folder / "dvc.yaml") for folder in (tmp_path / "flowers", ROOT)
    )
    for name, stage in own["stages"].items():
        kept = [
            dep
            for dep in stage["deps"]
            if not dep.startswith("graft/") and not dep.startswith("requirements")
        ]
        found = made["stages"][name].pop("deps")
        assert (
            found.count("requirements.txt") == 1
            and [dep for dep in found if dep != "requirements.txt"] == kept
        )
        assert len(kept) < len(stage.pop("deps"))
    assert made == own  # nothing else differs


@pytest.mark.parametrize(
    ("folder", "data", "message"),
    [
        ("full", "photos", "full: is there already, and not empty; name another folder"),
        ("full/file", "photos", "is there already, and not empty"),
        ("flowers", "nowhere", "--data nowhere: no such folder"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(folder, data, message, new, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("of somebody")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(GraftError, match=message):
        new(folder, data)
    assert sorted(tmp_path.rglob("*")) == before


def test_without_git_it_is_one_line(new, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GraftError, match="git is missing"):
        new("flowers")


def test_a_step_that_fails_leaves_nothing(new, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(GraftError, match=r"-m dvc init: exit status 1"):
        new("flowers")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["installed", "photos"]


def test_without_the_packages_of_onnx_the_project_exports_none(new, tmp_path, monkeypatch, capsys):
    (tmp_path / "flowers").mkdir()  # an empty one may be there
    monkeypatch.setattr(command, "missing", lambda packages: ["tf2onnx"])
    new("flowers")
    assert "onnx" not in params.load(tmp_path / "flowers" / "params.yaml").export.formats
    assert "model.onnx is left out" in capsys.readouterr().out


def test_a_stage_refuses_another_graft_than_the_pinned_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requirements.txt").write_text("graft-vision==0.0.1\n")
    with pytest.raises(
        GraftError,
        match=r"requirements.txt: asks for graft-vision==0.0.1, and graft .* is installed",
    ):
        run.execute(lambda *_: pytest.fail("ran"), params.load(ROOT / "params.yaml"))
