import hashlib
import subprocess
import sys

import pytest

from stages.tracking import facts


def test_digest_of_file_and_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_bytes(b"one")
    assert facts.digest(tmp_path / "a" / "x.txt") == hashlib.sha256(b"one").hexdigest()
    before = facts.digest(tmp_path / "a")
    (tmp_path / "a" / "cache.pyc").write_bytes(b"ignored")
    assert facts.digest(tmp_path / "a") == before
    (tmp_path / "a" / "x.txt").rename(tmp_path / "a" / "y.txt")
    assert facts.digest(tmp_path / "a") != before


def test_model_digest_is_of_weights_then_json(tmp_path):
    (tmp_path / "model.weights.h5").write_bytes(b"weights")
    (tmp_path / "model.json").write_bytes(b"{}")
    (tmp_path / "metrics.json").write_bytes(b"not part of the model")
    assert facts.model_digest(tmp_path) == hashlib.sha256(b"weights{}").hexdigest()


def test_data_facts(params, manifest):
    found = facts.data_facts(params)
    assert (found.name, found.path) == ("digits", "data/raw/digits")
    assert found.counts == {"images": 9, "classes": 2, "train": 3, "val": 3, "test": 3}
    assert found.digest == hashlib.sha256(manifest.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("a/0.png,a,train", "a/0.png,a,val", True),  # what is trained on does not matter
        ("b/5.png,b,test", "b/5.png,b,val", False),  # one test image less
        ("b/5.png,b,test", "b/5.png,a,test", False),  # another label
        (f"{5:064x}", f"{6:064x}", False),  # other bytes
        ("a/0.png,a,train", "c/0.png,c,train", False),  # another class list
    ],
)
def test_test_digest(params, clone, manifest, old, new, same):
    before = facts.data_facts(params).test_digest
    manifest.write_text(manifest.read_text().replace(old, new))
    assert (facts.data_facts(params).test_digest == before) is same


def test_no_manifest_no_facts(params):
    assert facts.data_facts(params) is None


def test_flat_metrics():
    nested = {"accuracy": 0.5, "keras": {"mb": 2, "name": "x", "ok": True}, "list": [1], "none": None}
    assert facts.flat_metrics(nested) == {"accuracy": 0.5, "keras/mb": 2}


def test_stage_keys_are_those_of_dvc_yaml(params, clone):
    (clone / "dvc.yaml").write_text(
        "stages:\n  split: {cmd: x, params: [seed, data]}\n  fine-tune: {cmd: x, params: [lr, head.class_weights, trunk]}\n"
    )
    assert set(facts.stage_keys("split", params)) == {"seed", *(k for k in params.flat() if k.startswith("data."))}
    tuned = facts.stage_keys("fine-tune", params)
    assert tuned == {"lr": 1e-4, "head.class_weights": "balanced", "trunk.engine": "auto"}
    assert facts.stage_keys("no such stage", params) == params.flat()


@pytest.fixture
def locked(clone):
    """A clone in which DVC itself ran one stage that depends on a file, a folder and two params."""
    (clone / "dvc.yaml").write_text(
        "stages:\n  evaluate:\n    cmd: echo done > out.txt\n    deps: [in.txt, code]\n"
        "    params: [lr, data.path]\n    outs: [out.txt]\n"
    )
    (clone / "in.txt").write_text("one")
    (clone / "code" / "deep").mkdir(parents=True)
    (clone / "code" / "a.py").write_text("a")
    (clone / "code" / "deep" / "ü b.py").write_text("b")
    (clone / ".dvcignore").write_text("__pycache__\n*.pyc\n")
    for command in (["init", "-q", "--no-scm"], ["repro", "-q"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], check=True, cwd=clone, capture_output=True)
    return clone


def test_lock_matches_what_dvc_recorded(locked):
    assert facts.matches_lock("evaluate") and not facts.matches_lock("export")
    (locked / "code" / "__pycache__").mkdir()
    (locked / "code" / "__pycache__" / "a.pyc").write_bytes(b"x")
    assert facts.matches_lock("evaluate")
    for file, new in (("in.txt", "two"), ("code/deep/ü b.py", "c"), ("params.yaml", None)):
        before = (locked / file).read_text(encoding="utf-8")
        (locked / file).write_text(new or before.replace("lr: 1.0e-4", "lr: 1.0e-05"), encoding="utf-8")
        assert not facts.matches_lock("evaluate"), file
        (locked / file).write_text(before, encoding="utf-8")
    assert facts.matches_lock("evaluate")


def test_lock_of_a_missing_dependency(locked):
    (locked / "in.txt").unlink()
    assert not facts.matches_lock("evaluate")
