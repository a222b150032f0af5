"""A clone of the project on few tiny pictures and one epoch, in which DVC runs as a user runs
it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
CLASSES = ("blue bird", "grün")
CHANGES = {
    "data": {"path": "data/raw/tiny", "val_fraction": 0.25, "test_fraction": 0.25},
    "image_size": 32,
    "batch_size": 8,
    "augment": {"views": 2},
    "fine_tune": {"layers": 20, "epochs": 1},
    "evaluate": {"bootstrap": 100},
    "export": {"formats": ["keras", "h5", "saved_model", "tflite"]},
}


def pictures(folder):
    """12 pictures of each class, bluish and greenish, and a damaged one."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 120, (6, 6, 3), dtype=np.uint8)
            pixels[..., 2 - k] += 120
            Image.fromarray(pixels).resize((40, 36), Image.Resampling.BILINEAR).save(
                folder / name / f"{i} ä.png"
            )
    (folder / CLASSES[0] / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")


def merge(tree, changes):
    for key, value in changes.items():
        if isinstance(value, dict):
            merge(tree[key], value)
        else:
            tree[key] = value


class Clone:
    """A clone with commands run in it; `out` holds what the last one printed."""

    def __init__(self, folder, home):
        self.folder = folder
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "GIT_"))
        }
        self.env = kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(home),
            "PYTHONPATH": "",
            "GIT_CONFIG_GLOBAL": os.devnull,
            **{
                f"GIT_{who}_{what}": "test@localhost"
                for who in ("AUTHOR", "COMMITTER")
                for what in ("NAME", "EMAIL")
            },
        }

    def run(self, *command, check=True, timeout=600):
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=timeout
        )
        self.out = done.stdout + done.stderr
        assert done.returncode == 0 or not check, f"{command} failed:\n{self.out}"
        return done

    def dvc(self, *arguments, **options):
        return self.run(sys.executable, "-m", "dvc", *arguments, **options)

    def executed(self):
        """The stages that the last command ran, by the lines that DVC prints."""
        return [
            line.split("'")[1] for line in self.out.splitlines() if line.startswith("Running stage")
        ]

    def path(self, name):
        return self.folder / name

    def json(self, name):
        return json.loads(self.path(name).read_text(encoding="utf-8"))


def make(base, changes=None):
    """A Clone in `base`, committed to git, whose params.yaml says CHANGES and `changes`; nothing
    has run in it."""
    folder = base / "a clone"  # DVC itself fails in --temp where the path is not ASCII
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file() and name != "dvc.lock":
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    pictures(folder / "data" / "raw" / "tiny")
    yaml = YAML()
    tree = yaml.load(folder / "params.yaml")
    merge(tree, CHANGES)
    merge(tree, changes or {})
    yaml.dump(tree, folder / "params.yaml")
    made = Clone(folder, base)
    made.run("git", "init", "-q")
    made.run("git", "add", "-A")
    # Where it is committed, --temp and --queue find it.
    made.run("git", "add", "-f", "data/raw/tiny")
    made.run("git", "commit", "-q", "-m", "start")
    return made
