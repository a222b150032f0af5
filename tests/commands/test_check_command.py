import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graft import params as parameters
from graft.commands import check, main
from graft.dataset import intake, manifest
from graft.dataset.labels import TABLE
from graft.system.console import GraftError

DVC = Path(sys.executable).with_name("dvc")


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
        path
    )


def photos(root, classes=("cat", "dog"), each=12, start=0):
    for c, label in enumerate(classes):
        for k in range(each):
            picture(root / label / f"{k}.png", start + 100 * c + k)
    return root


def run(capsys, *arguments):
    """(exit status, stdout, stderr) of `graft check`."""
    try:
        main.main(["check", *map(str, arguments)])
        status = 0
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


def test_classes_counts_damage_copies_time_and_the_next_command(clone, capsys, tmp_path_factory):
    root = photos(tmp_path_factory.mktemp("photos"))
    (root / "cat" / "half.png").write_bytes((root / "cat" / "0.png").read_bytes()[:900])
    (root / "dog" / "copy.png").write_bytes((root / "dog" / "0.png").read_bytes())
    status, out, err = run(capsys, root)
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert "  cat: 12 (train 8, val 2, test 2)" in lines and lines[0].startswith(
        "24 usable images in 2 classes"
    )
    assert (
        "1 x truncated:" in lines and "  dog/copy.png: set aside: same bytes as dog/0.png" in lines
    )
    assert any("minutes on" in line and "GB of disk" in line for line in lines)
    assert lines[-1] == f"run this next: dvc exp run -S data.path={root}"
    assert not (clone / "data" / "split").exists()


def test_small_and_lopsided_classes_are_warned_of(clone, capsys):
    photos(clone / "set", each=3)
    photos(clone / "set", ("emu",), each=70, start=1000)
    err = run(capsys, clone / "set")[2]
    assert "class 'cat' has 3 images (1 train, 1 val, 1 test): too few" in err
    assert "class 'emu' has 70 images, 'cat' 3: look at balanced_accuracy" in err


def test_an_unclear_layout_is_shown_with_the_options_of_this_command(clone, capsys):
    photos(clone / "set" / "animals", each=6)
    photos(clone / "set" / "things", ("car", "tree"), each=6, start=1000)
    status, out, err = run(capsys, "set")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert (
        "2 classes, animals, things: --layout classes" in err
        and "car, cat, dog, tree: --layout deepest" in err
    )
    status, out, _ = run(capsys, "set", "--layout", "deepest")
    assert status == 0 and "in 4 classes" in out
    assert (
        out.splitlines()[-1] == "run this next: dvc exp run -S data.path=set -S data.layout=deepest"
    )


def test_params_about_another_folder_do_not_count(clone, capsys):
    text = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(text.replace("labels: null", "labels: other.csv"))
    status, out, _ = run(capsys, photos(clone / "set"))
    assert (
        status == 0
        and out.splitlines()[-1]
        == "run this next: dvc exp run -S data.path=set -S data.labels=null"
    )
    (clone / "params.yaml").write_text(
        text.replace("path: data/raw/fashion", "path: set").replace(
            "labels: null", f"labels: {TABLE}"
        )
    )
    (clone / "set" / TABLE).write_text(
        "".join(
            ["file,label\n", *(f"{c}/{k}.png,{c}!\n" for c in ("cat", "dog") for k in range(12))]
        )
    )
    status, out, _ = run(capsys, "set")
    assert (
        status == 0
        and "cat!: 12" in out
        and out.splitlines()[-1] == "run this next: dvc exp run -S data.path=set"
    )


def test_a_table_may_be_named_from_here_or_from_the_folder(clone, capsys):
    photos(clone / "set" / "all", ("x",))
    (clone / "set" / "names.csv").write_text(
        "file,label\n" + "".join(f"{k}.png,{'ab'[k % 2]}\n" for k in range(12))
    )
    for given in ("names.csv", "set/names.csv", clone / "set" / "names.csv"):
        status, out, _ = run(capsys, "set", "--labels", given)
        assert (
            status == 0
            and out.splitlines()[-1]
            == "run this next: dvc exp run -S data.path=set -S data.labels=names.csv"
        )


def test_what_temp_and_queue_do_not_see_is_said(clone, capsys):
    photos(clone / "data" / "raw" / "set")
    assert "dvc add data/raw/set first" in run(capsys, "data/raw/set")[1]
    (clone / "data" / "raw" / "set.dvc").touch()
    assert "dvc add" not in run(capsys, "data/raw/set")[1]


def latin(folder):
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(b"x")


HAZARDS = {
    "latin": (latin, r"caf\\udce9.png its name is not UTF-8; rename it"),
    "dangling": (lambda f: (f / "x.png").symlink_to("nowhere"), "cat/x.png is a link to nothing"),
    "itself": (lambda f: (f / "x.png").symlink_to("x.png"), "cat/x.png is a link to nothing"),
    "loop": (lambda f: (f / "up").symlink_to(f.parent), "cat/up is a link to a folder"),
    "folder": (
        lambda f: (f / "more").symlink_to(f.parent / "dog"),
        "cat/more is a link to a folder: .*; copy the folder",
    ),
    "pipe": (lambda f: os.mkfifo(f / "p.png"), "cat/p.png is a pipe, socket or device"),
    "ignore": (lambda f: (f / ".dvcignore").touch(), "cat/.dvcignore belongs to the root"),
}


@pytest.mark.skipif(
    sys.platform != "linux", reason="makes names and files that only Linux's file systems hold"
)
@pytest.mark.parametrize("make, words", HAZARDS.values(), ids=HAZARDS)
def test_what_dvc_dies_of_is_refused_in_one_line(clone, make, words):
    make(photos(clone / "set") / "cat")
    with pytest.raises(GraftError, match=words) as caught:
        check.refuse_hazards(clone / "set")
    assert "\n" not in str(caught.value)


def test_a_link_to_a_file_is_no_hazard(clone):
    (photos(clone / "set") / "cat" / "x.png").symlink_to("0.png")
    check.refuse_hazards(clone / "set")


@pytest.mark.parametrize(
    "name, refused",
    [
        ("dvc.yaml", True),
        ("cat/dvc.lock", True),
        ("cat/x.dvc", True),
        ("kept.dvc", False),
        ("params.yaml", False),
    ],
)
def test_what_dvc_would_take_for_its_own_is_refused_within_the_project(clone, name, refused):
    photos(clone / "set")
    (clone / "set" / name).write_text(
        "outs:\n- path: kept\n" if name == "kept.dvc" else "stages: [1]"
    )
    check.refuse_hazards(clone / "set")  # absolute: outside of the project
    if refused:
        with pytest.raises(GraftError, match=f"{name} is read by DVC as a part of this project"):
            check.refuse_hazards(Path("set"))
    else:
        check.refuse_hazards(Path("set"))


@pytest.mark.parametrize("path, told", [
    ("cat/CON.png", "cat/CON.png"), ("nul/1.png", "nul"), ("cat/a:b.png", "cat/a:b.png"),
    ("dog./1.png", "dog."), ("dog /1.png", "dog "), ("cat/a\nb.png", r"cat/a\nb.png"),
    ("cat/what?.png", "cat/what?.png"), ("cat/com1", "cat/com1"), ("concert/1.png", ""),
    ("cat/.png", ""), ("cat/it's (1), [a] & b.png", ""), ("ü/りんご.png", ""),
    ("cat/com10.png", ""),
])  # fmt: skip
def test_names_that_other_systems_cannot_take_are_warned_of(path, told):
    lines = check.awkward_names([path, "cat/0.png"])
    assert len(lines) == bool(told) and all(
        f"1 names that Windows cannot hold, e.g. {told!r}" in line or f"e.g. '{told}'" in line
        for line in lines
    )


def test_names_that_differ_by_capitals_or_accents_are_warned_of(clone, capsys):
    (line,) = check.awkward_names(
        ["a/x.png", "a/X.png", "a/u\u0308.png", "a/\u00fc.png", "b/x.png"]
    )
    assert (
        line.startswith("2 names differ from another")
        and "'a/x.png'" in line
        and "'a/X.png'" in line
    )
    photos(clone / "set")
    picture(clone / "set" / "cat" / "a|b.png", 999)
    assert "warning: 1 names that Windows cannot hold, e.g. 'cat/a|b.png'" in run(capsys, "set")[2]


def test_folders_that_are_not_there(clone, capsys, monkeypatch):
    photos(clone / "photos")
    (clone / "photos.zip").touch()
    for given, words in {
        "phots": "no such folder; did you mean photos?",
        "nowhere/at/all": "no such folder; name a folder of photos",
        "photos.zip": "not a folder; unpack it: graft import photos.zip",
        "photos/cat/0.png": "not a folder; name the folder that it lies in",
    }.items():
        status, _, err = run(capsys, given)
        assert status == 1 and words in err
    monkeypatch.setenv("HOME", str(clone))
    for given in ("~/photos", "$HOME/photos"):
        assert check.find_folder(given) == Path("photos")
        assert "DVC takes" in capsys.readouterr().err
    (clone / "x${y}").mkdir()
    with pytest.raises(GraftError, match="rename it"):
        check.find_folder("x${y}")


NAMES = ["it's (1), a", 'say "x" {c}[d]#', "back\\'s trail\\", 'it\'s "$x"', "ü 図=1"]


@pytest.mark.slow
def test_the_command_that_is_shown_works_with_the_real_dvc(tmp_path, capsys, monkeypatch):
    """For each odd name, a stage that depends on ${data.path} gets it as it is."""
    clone = tmp_path / "clone"
    clone.mkdir()
    text = (Path(__file__).parents[2] / "params.yaml").read_text()
    (clone / "params.yaml").write_text(text)
    (clone / "show.py").write_text(
        "from ruamel.yaml import YAML; print('GOT', "
        "ascii(YAML(typ='safe').load(open('params.yaml'))['data']['path']))\n"
    )
    stage = (
        f"stages:\n  split:\n    cmd: {sys.executable} show.py\n    deps: ['${{data.path}}']\n    "
        "params: [data]\n"
    )
    (clone / "dvc.yaml").write_text(stage)
    monkeypatch.chdir(clone)
    for key in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(key, "x")
    for command in (
        ["git", "init", "-q"],
        [DVC, "init", "-q"],
        ["git", "add", "-A"],
        ["git", "commit", "-qm", "x"],
    ):
        subprocess.run(command, check=True)
    for name in NAMES:
        folder = photos(tmp_path / "sets" / name, each=6)
        check.check(main.parser().parse_args(["check", str(folder)]))
        line = capsys.readouterr().out.splitlines()[-1].removeprefix("run this next: ")
        shown = line.replace("dvc", shlex.quote(str(DVC)), 1)
        done = subprocess.run(shown, shell=True, capture_output=True, text=True)
        assert f"GOT {str(folder)!a}" in done.stdout, (line, done.stderr[-500:])
        subprocess.run(["git", "checkout", "-q", "params.yaml"], check=True)


def test_deep_lists_photos_across_the_split_that_look_alike_to_the_network(
    clone, capsys, tmp_path_factory
):
    root = photos(tmp_path_factory.mktemp("photos"))
    data = parameters.load().data.model_copy(update={"path": root.as_posix()})
    rows = intake.take_in(data, seed=parameters.load().seed, cache_file=None).manifest
    status, _, err = run(capsys, root, "--deep")
    assert status == 1 and "is not of the photos of" in err
    manifest.write(rows, clone / "data" / "split")
    features = np.random.default_rng(0).normal(size=(24, 300))
    one, other, third = (
        next(i for i, row in enumerate(rows.rows) if row.split == name)
        for name in ("train", "test", "val")
    )
    features[other] = features[one] + 0.3 * features[other]
    (clone / "data" / "second-look").mkdir(parents=True)
    np.save(clone / "data" / "second-look" / "features.npy", features.astype(np.float16))
    status, out, _ = run(capsys, root, "--deep")
    assert status == 0 and "1 pairs of photos in different splits look alike" in out
    assert f"  train {rows.rows[one].path} ~ test {rows.rows[other].path}\n" in out
    (root / rows.rows[third].path).unlink()
    assert run(capsys, root, "--deep")[0] == 1
