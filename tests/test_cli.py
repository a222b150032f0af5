import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stages import cli
from stages.network.memo import Memo

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("module", ["stages.cli", "stages.params", "stages.split", "stages.dataset.importing"])
def test_what_needs_no_tensorflow_imports_none(module):
    heavy = ("tensorflow", "keras", "mlflow", "matplotlib", "pandas", "sklearn", "scipy")
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for command in ("import", "predict", "cache", "champion", "compare", "ui"):
        assert f"    {command} " in text


def test_cache_shows_what_is_there_and_clears_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    facts = {"images": 5, "size": 96, "view": 1, "cut": "pooling", "engine": "litert"}
    with Memo(max_gb=1).writer("abcdef0123456789", (5, 4), np.float16, facts) as append:
        append(np.zeros((5, 4), np.float16))
    cli.main(["cache"])
    shown = capsys.readouterr().out
    assert "abcdef012345" in shown
    assert "5 images at 96 px, view 1, pooling, litert" in shown
    assert "1 entries" in shown
    cli.main(["cache", "--clear"])
    assert "cleared 1 entries" in capsys.readouterr().out
    assert Memo(max_gb=1).entries() == []


def test_a_users_mistake_is_one_line_and_exit_1(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["import", str(tmp_path / "nowhere")])
    assert exit_.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "nowhere" in err
