"""The wheel in an empty environment, in an empty folder: `graft new`, `dvc repro`, and what else a
user types there."""

import json
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests import small_clone

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from what git knows, and nothing else that lies about."""
    base = tmp_path_factory.mktemp("wheel")
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, names):
        if not name.startswith("data/raw") and (ROOT / name).is_file():
            (base / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, base / "source" / name)
    options = [
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
    ]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, base / "dist", base / "source"], check=True
    )
    return next((base / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A folder with a `.venv` that has the wheel, and the other packages of this one."""
    folder = tmp_path_factory.mktemp("home")
    venv.create(folder / ".venv", with_pip=False)
    python = folder / ".venv" / "bin" / "python"
    options = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", *options, wheel], check=True
    )
    (site,) = (folder / ".venv" / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(
        "\n".join(path for path in sys.path if path.endswith("-packages"))
    )
    return folder


@pytest.mark.slow
def test_the_wheel_holds_the_repositorys_own_files(wheel):
    sys.path.append(str(ROOT))
    import setup

    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("graft/project/")]
        assert sorted(names) == sorted(
            f"graft/project/{path.as_posix()}" for path in setup.project_files()
        )
        for path in setup.project_files():
            assert archive.read(f"graft/project/{path.as_posix()}") == (ROOT / path).read_bytes(), (
                path
            )
        assert {
            name.split("/")[0] for name in archive.namelist() if not name.startswith("graft_vision")
        } == {"graft"}


@pytest.mark.slow
def test_a_new_project_runs_to_a_finished_card(environment, wheel):
    home = small_clone.Clone(environment, environment)
    home.env["PATH"] = f"{environment / '.venv' / 'bin'}:{home.env['PATH']}"
    python = str(environment / ".venv" / "bin" / "python")
    for label in sorted(
        path for path in (ROOT / "data" / "raw" / "fashion").iterdir() if path.is_dir()
    )[:6]:
        for photo in sorted(label.glob("*.png"))[:10]:
            (environment / "photos" / label.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, environment / "photos" / label.name)
    home.run("graft", "new", "flowers", "--data", "photos")
    project = small_clone.Clone(environment / "flowers", environment)
    project.env = home.env
    assert wheel.as_uri() in project.path("requirements.txt").read_text()

    project.run(python, "-m", "dvc", "repro")
    assert project.executed() == [
        "split",
        "train-head",
        "second-look",
        "fine-tune",
        "evaluate",
        "export",
    ]
    assert (
        "data/evaluate" in project.path("dvc.lock").read_text()
        and project.path("data/evaluate/card.html").exists()
    )
    project.run("git", "status", "--porcelain")
    assert {line.split()[1] for line in project.out.splitlines()} <= {
        "dvc.lock",
        *map(str, metrics()),
    }
    project.run(python, "-c", "import graft; print(graft.__file__)")
    assert str(environment / ".venv") in project.out

    project.run(python, "-m", "dvc", "exp", "run", "-S", "lr=1e-4")
    # Where both rates leave the head as it was, what would be exported is there already.
    assert project.executed() in (["fine-tune", "evaluate", "export"], ["fine-tune", "evaluate"])
    project.run("graft", "compare")
    assert "lr" in project.out
    project.run("graft", "preset", "fast")
    assert project.out.startswith("-S ")
    project.run("graft", "params", "lr")
    project.run("graft", "predict", str(environment / "photos"), "--output", "out.csv")
    assert len(project.path("out.csv").read_text().splitlines()) == 1 + 60

    noted = next(
        (environment / ".venv" / "lib").glob("python*/site-packages/graft_vision-*/direct_url.json")
    )
    noted.write_text(
        json.dumps({"url": wheel.as_uri(), "archive_info": {"hashes": {"sha256": "0" * 64}}})
    )
    project.run(python, "-m", "dvc", "repro", "--force", "split", check=False)
    assert (
        "error: requirements.txt: asks for graft-vision" in project.out
        and "--force-reinstall" in project.out
    )


def metrics():
    return [
        Path("data", stage, "metrics.json")
        for stage in ("split", "train-head", "second-look", "fine-tune", "evaluate")
    ] + [Path("data")]
