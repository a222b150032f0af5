import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """The root of a clone without any data, which is also the working folder; nothing of the user's
    environment counts."""
    shutil.copy(Path(__file__).parents[2] / "params.yaml", tmp_path)
    (tmp_path / "dvc.yaml").touch()
    for key in [key for key in os.environ if key.startswith(("MLFLOW_", "DVC_"))]:
        monkeypatch.delenv(key)
    monkeypatch.chdir(tmp_path)
    return tmp_path
