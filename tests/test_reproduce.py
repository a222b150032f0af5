"""`make reproduce`: it finds what differs, and on few tiny pictures nothing does."""

import hashlib

import pytest
from ruamel.yaml import YAML

from benchmarks import reproduce
from tests import small_clone


def outputs(folder, **files):
    """A clone's folder with these outputs, `data/` before their names, and the dvc.lock that
    fits."""
    entries = []
    for name, content in files.items():
        path = folder / "data" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        out = path if path.parent.name == "data" else path.parent
        digest = hashlib.md5(content.encode()).hexdigest()
        entries.append({"path": out.relative_to(folder).as_posix(), "md5": digest})
    YAML().dump({"schema": "2.0", "stages": {"one": {"outs": entries}}}, folder / "dvc.lock")
    return folder


def test_what_differs_is_named_down_to_the_file(tmp_path):
    one = outputs(tmp_path / "one", table="1", plots__a="same", model="x")
    other = outputs(tmp_path / "other", table="2", plots__a="same", model="x")
    assert reproduce.different(one, other) == ["data/table"]
    (other / "data/plots/b").write_text("one more")
    outputs(other, table="1", model="x", plots__a="other")
    assert reproduce.different(one, other) == ["data/plots/a", "data/plots/b"]


def test_a_digest_that_differs_is_named_where_the_files_are_gone(tmp_path):
    one, other = outputs(tmp_path / "one", table="1"), outputs(tmp_path / "other", table="2")
    for clone in (one, other):
        (clone / "data/table").unlink()
    assert reproduce.different(one, other) == ["data/table"]


@pytest.mark.parametrize(
    ("accuracy", "head", "n", "agree"),
    [
        (0.86, 0.84, 300, True),
        (0.86, 0.79, 300, False),
        (0.91, 0.84, 300, False),
        (0.86, 0.84, 299, False),
    ],
)
def test_figures_agree_within_the_committed_interval(accuracy, head, n, agree):
    committed = {
        "n": 300,
        "accuracy": 0.85,
        "accuracy_low": 0.8,
        "accuracy_high": 0.9,
        "head_accuracy": 0.85,
    }
    assert (
        reproduce.figures_agree(committed, {"n": n, "accuracy": accuracy, "head_accuracy": head})
        is agree
    )


@pytest.mark.slow
def test_two_clones_under_other_conditions_make_the_same_bytes(tmp_path, capfd):
    source = small_clone.make(tmp_path)
    assert reproduce.main(["--source", str(source.folder), "--into", str(tmp_path / "clones")]) == 0
    said = capfd.readouterr().out
    assert "the two have the same" in said and "no dvc.lock and figures are committed" in said
