"""A hostile shell: what another project has exported, or left in the home folder, changes no
number."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What people export for other projects, and what Keras keeps in the home folder.
EXPORTED = {
    "KERAS_BACKEND": "torch",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "TF_USE_LEGACY_KERAS": "1",
    "KERAS_MAX_EPOCHS": "1",
    "KERAS_MAX_STEPS_PER_EPOCH": "1",
    "TF_XLA_FLAGS": "--tf_xla_auto_jit=2",
    "MPLBACKEND": "module://no_such_module",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
}
KEPT = {
    "backend": "jax",
    "floatx": "float16",
    "image_data_format": "channels_first",
    "epsilon": 0.5,
}


@pytest.fixture
def hostile(tmp_path):
    """An environment for a process, its home folder and its working folder included."""
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text(json.dumps(KEPT))
    (tmp_path / "matplotlibrc").write_text("backend: no_such_backend\naxes.facecolor: red\n")
    return {**os.environ, **EXPORTED, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}


def python(code, environment, folder):
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True
    )
    return done.returncode, done.stdout.strip(), done.stderr


def test_what_decides_numbers_is_set_outright(hostile, tmp_path):
    code = (
        "import json, os\nfrom graft.system import environment\n"
        "environment.quiet_mlflow(); environment.quiet_tensorflow()\n"
        "import keras, matplotlib; from keras.src.backend import config\n"
        "print(json.dumps([keras.config.backend(), keras.config.floatx(), "
        "keras.config.image_data_format(), keras.config.epsilon(), "
        "keras.config.dtype_policy().name, config.max_epochs(), config.max_steps_per_epoch(), "
        "os.environ['TF_ENABLE_ONEDNN_OPTS'], 'TF_XLA_FLAGS' in os.environ, "
        "matplotlib.get_backend(), os.environ['MLFLOW_ENABLE_ASYNC_LOGGING']]))"
    )
    status, out, error = python(code, hostile, tmp_path)
    assert status == 0, error
    found = [
        "tensorflow",
        "float32",
        "channels_last",
        1e-7,
        "float32",
        None,
        None,
        "1",
        False,
        "agg",
        "false",
    ]
    assert json.loads(out.splitlines()[-1]) == found


def test_keras_that_was_imported_on_another_backend_is_said(hostile, tmp_path):
    """As in a notebook that used it before graft."""
    code = (
        "from graft.system import environment\nimport keras\nkeras.config.backend = lambda: 'jax'\n"
        "from graft.system.console import GraftError\n"
        "try: environment.reset_keras()\nexcept GraftError as error: print(error)"
    )
    status, out, error = python(code, {**hostile, "KERAS_BACKEND": "tensorflow"}, tmp_path)
    assert status == 0, error
    assert out.startswith("Keras runs on jax in this process; import graft first")


LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
CODE = "from graft.system.console import entry, log\nentry(lambda: log('gr\\xfcn'))()"


@pytest.mark.parametrize(
    ("changes", "status", "out"),
    [
        ({}, 0, "grün"),
        ({"PYTHONIOENCODING": "ascii"}, 0, r"gr\xfcn"),
        ({"LC_ALL": "C", "LANG": ""}, 0, "grün"),
        (LOCALE, 1, ""),
    ],
)
def test_a_locale_without_utf_8_is_refused_in_a_line(changes, status, out, tmp_path):
    """There a folder `grün` would become a class of another name, and so another data set."""
    found = python(CODE, {**os.environ, "PYTHONPATH": str(ROOT), **changes}, tmp_path)
    assert found[:2] == (status, out)
    assert ("export PYTHONUTF8=1" in found[2]) == bool(status)
    assert "Traceback" not in found[2]


@pytest.mark.parametrize("option", ["-O", "-OO"])
def test_the_command_works_without_asserts_and_docstrings(option, tmp_path):
    command = [sys.executable, option, "-m", "graft.commands.main", "--help"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "predict" in done.stdout) == (0, True), done.stderr


def test_no_check_is_an_assert():
    """`python -O` drops them."""
    sources = [p for folder in ("graft", "stages") for p in (ROOT / folder).rglob("*.py")]
    assert [
        str(p)
        for p in sources
        if re.search(r"^\s+assert\b", p.read_text(encoding="utf-8"), re.MULTILINE)
    ] == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_where_home_cannot_be_written_matplotlib_keeps_its_things_with_the_cache(
    tmp_path, monkeypatch
):
    from graft.system import environment, paths

    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    environment.set_tensorflow_environment()
    assert "MPLCONFIGDIR" not in os.environ
    monkeypatch.setenv("HOME", "/proc")  # in which not even root can make a folder
    environment.set_tensorflow_environment()
    assert os.environ["MPLCONFIGDIR"] == str(paths.cache() / "matplotlib")
