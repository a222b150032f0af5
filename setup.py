"""The wheel holds what `graft new` makes a project of, from the repository's own files: no second
copy of them is kept."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
INTO = "graft/project"
FILES = (
    "dvc.yaml",
    "params.yaml",
    ".gitignore",
    ".dvcignore",
    ".dvc/config",
    "data/.gitignore",
    "data/weights/README.md",
)
FOLDERS = ("stages/*.py", "configs/*.yaml", "data/*/.gitignore")


def project_files(root=ROOT):
    """The paths, relative to `root`, of what a new project begins with."""
    found = [root / name for name in FILES] + sorted(
        path for pattern in FOLDERS for path in root.glob(pattern)
    )
    return [path.relative_to(root) for path in found if path.parent.name != "raw"]


class WithProject(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            for path in project_files():
                target = Path(self.build_lib, INTO, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / path, target)


if __name__ == "__main__":
    setup(cmdclass={"build_py": WithProject})
