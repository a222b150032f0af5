"""The benchmark's harness: that peers see graft's very split, and that the tables say what was
measured."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from benchmarks import bench, measure, results

REPOSITORY = Path(__file__).parents[1]


def write_photos(folder, paths):
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(folder / path)


@pytest.fixture
def split(tmp_path):
    """(manifest, data set of 12 pictures in two classes with the same names): a third each for
    training, validation, test."""
    data, manifest = tmp_path / "data", tmp_path / "manifest.csv"
    paths = [f"{label}/{i}.png" for label in ("a b", "ü") for i in range(6)]
    write_photos(data, paths)
    with manifest.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "split"])
        writer.writerows(
            [path, path.split("/")[0], ("train", "val", "test")[i % 3]]
            for i, path in enumerate(paths)
        )
    return manifest, data


def test_links_give_the_peers_the_photos_of_the_split(split, tmp_path):
    manifest, data = split
    bench.link_splits(manifest, data, tmp_path / "photos")
    found = {
        (link.parts[-3], link.parts[-2]): sorted(
            os.path.relpath(p.resolve(), data) for p in link.parent.iterdir()
        )
        for link in (tmp_path / "photos").glob("*/*/*")
    }
    assert found == {
        ("train", "a b"): ["a b/0.png", "a b/3.png"],
        ("train", "ü"): ["ü/0.png", "ü/3.png"],
        ("val", "a b"): ["a b/1.png", "a b/4.png"],
        ("val", "ü"): ["ü/1.png", "ü/4.png"],
        ("test", "a b"): ["a b/2.png", "a b/5.png"],
        ("test", "ü"): ["ü/2.png", "ü/5.png"],
    }


def small_backbone(size, alpha, weights):
    """Of MobileNetV2's shape, as far as the recipes are concerned: convolutions, BatchNorm, and
    layers by position."""
    import keras

    image = x = keras.Input((size, size, 3))
    for _ in range(3):
        x = keras.layers.Conv2D(4, 3, strides=2)(x)
        x = keras.layers.BatchNormalization()(x)
    return keras.Model(image, x)


@pytest.mark.parametrize(
    ("peer", "epochs", "moves"),
    [
        # Its BatchNorm drifts with the unfreezing.
        ("course", [1, 1], {"convolutions", "scales", "statistics"}),
        ("frozen", [1, 1], {"convolutions"}),
        ("cifar", [1], set()),
    ],
)
def test_a_peer_trains_as_its_recipe_says_and_is_tested_on_the_split(
    split, tmp_path, monkeypatch, peer, epochs, moves
):
    from graft.system.environment import quiet_tensorflow

    quiet_tensorflow()
    from benchmarks.peers import cifar, common, course

    manifest, data = split
    bench.link_splits(manifest, data, tmp_path / "photos")
    built = []

    def remember(*args):
        base = small_backbone(*args)
        built.append((base, base.get_weights()))
        return base

    monkeypatch.setattr(common, "backbone", remember)
    monkeypatch.setattr(course, "FINE_TUNE_AT", 3)
    options = {"image_size": 32, "epochs": epochs, "out": tmp_path / "out.json"}
    if peer == "cifar":
        cifar.train(tmp_path / "photos", None, **options)
    else:
        course.train(tmp_path / "photos", None, freeze_batchnorm=peer == "frozen", **options)

    result = json.loads((tmp_path / "out.json").read_text())
    assert result["epochs"] == epochs
    assert result["accuracy"] in (0.0, 0.25, 0.5, 0.75, 1.0)  # of four test photos
    assert result["test_files"] == sorted(
        bench.link_name(path) for path in bench.test_paths(manifest)
    )
    assert len(result["train_files"]) == 4
    ((base, before),) = built
    moved = [not np.array_equal(a, b) for a, b in zip(base.get_weights(), before)]
    kinds = [
        "statistics" if "moving" in w.path else "convolutions" if "conv" in w.path else "scales"
        for w in base.weights
    ]
    assert {kind for kind, it in zip(kinds, moved) if it} == moves
    assert not any(moved[:6])  # of the first convolution and its BatchNorm, below FINE_TUNE_AT


def test_the_peers_start_from_the_weights_that_they_are_given(tmp_path):
    from graft.system.environment import quiet_tensorflow

    quiet_tensorflow()
    import keras

    from benchmarks.peers import common

    given = keras.applications.MobileNetV2(
        input_shape=(32, 32, 3), alpha=0.35, include_top=False, weights=None
    )
    given.save_weights(tmp_path / "given.weights.h5")
    base = common.backbone(32, 0.35, tmp_path / "given.weights.h5")
    assert len(base.layers) == 154
    assert all(np.array_equal(a, b) for a, b in zip(base.get_weights(), given.get_weights()))


def test_a_subset_takes_the_same_share_of_every_class_and_is_part_of_a_larger_one(tmp_path):
    data = tmp_path / "set"
    for label, n in (("a", 20), ("b", 10)):
        (data / label).mkdir(parents=True)
        for i in range(n):
            (data / label / f"{i}.jpg").write_text(f"{label}{i}")

    def taken(n):
        folder = bench.subset(data, n, tmp_path / "subsets")
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")}

    six, nine = taken(6), taken(9)
    assert sorted(path[0] for path in six) == list("aaaabb")
    assert sorted(path[0] for path in nine) == list("aaaaaabbb")
    assert six < nine
    with pytest.raises(SystemExit, match="holds 30"):
        bench.subset(data, 31, tmp_path / "subsets")


def test_a_command_is_measured_whole(tmp_path):
    script = (
        "import time; print('epoch 1/2: loss 1, 0.5 s', flush=True); block = bytearray(200 << "
        "20); time.sleep(0.8)"
    )
    child = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {script!r}]); sys.exit(3)"
    )
    # From a process as small as the benchmark: what it forks starts with its own peak, and tests
    # are large.
    run = (
        "import json, os, sys; sys.path.insert(0, sys.argv[1]); from benchmarks import measure\n"
        "found = measure.run([sys.executable, '-c', sys.argv[2]], cwd='.', env=dict(os.environ), "
        "log='log')\n"
        "print(json.dumps({'status': found.status, 'lines': [text for _, text in found.lines], "
        "**found.facts()}))"
    )
    command = [sys.executable, "-c", run, REPOSITORY, child]
    found = json.loads(
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    )
    assert found["status"] == 3
    assert found["seconds"] >= 0.8
    assert 200 < found["largest_mib"] < 400  # of the child's child
    assert found["tree_mib"] >= 200
    assert found["lines"] == ["epoch 1/2: loss 1, 0.5 s"]
    assert (tmp_path / "log").read_text().endswith("epoch 1/2: loss 1, 0.5 s\n")


def test_the_log_tells_when_training_starts():
    lines = (
        (1.0, "Running stage 'fine-tune':"),
        (9.0, "train: activations of 42 images x 2 views reused"),
        (
            12.5,
            "epoch 1/20: loss 0.4965, accuracy 0.7381, val loss 0.9192, val accuracy 0.5556, 2.5 s",
        ),
        (14.0, "epoch 1/20: of a later stage, 1.0 s"),
        (20.0, "Running stage 'evaluate':"),
    )
    measured = measure.Measured(0, 31.0, 1.0, 1.0, None, 1.0, lines)
    assert bench.phases(measured) == {
        "training_starts": 10.0,
        "stages": {"fine-tune": 19.0, "evaluate": 11.0},
        "activations": ["train: activations of 42 images x 2 views reused"],
    }


def test_params_are_set_as_dvc_sets_them(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("lr: 3.0e-4  # peak\nexport:\n  formats: [keras, onnx]\n")
    bench.set_params(file, {"lr": "1e-5", "export.formats": "[keras]"})
    text = file.read_text()
    assert YAML(typ="safe").load(text) == {"lr": 1e-5, "export": {"formats": ["keras"]}}
    assert "# peak" in text
    with pytest.raises(SystemExit, match="no such key"):
        bench.set_params(file, {"export.format": "[keras]"})


SETTING = {
    "data": "flowers",
    "images": 3119,
    "image_size": 160,
    "alpha": 1.0,
    "weights": "w.h5",
    "set": [],
}


def row(what, repeat, seconds, accuracy=None, **facts):
    return {"what": what, "repeat": repeat, "setting": SETTING, "version": "v", "seconds": seconds,
            "cpu_seconds": 2 * seconds, "largest_mib": 1000, "anonymous_mib": None,
            "tree_mib": 1100, "accuracy": accuracy, **facts}  # fmt: skip


def test_tables(tmp_path):
    file = tmp_path / "results.jsonl"
    rows = [
        row("course", r, s, a, n=470, epochs=[5, 5])
        for r, s, a in ((1, 200.0, 0.84), (2, 220.0, 0.80), (3, 210.0, 0.82))
    ]
    rows += [
        row("first", r, s, 0.92, n=470, interval=[0.89, 0.94], epochs=[12, 8])
        for r, s in ((1, 100.0), (2, 99.0), (3, 126.0))
    ]
    rows += [row("next", 1, 40.0, 0.91, n=470, training_starts=15.0), row("sweep", 1, 320.0)]
    rows += [row("trunk graft to pooling", 1, 9.0, images_per_second=400.0, runtime="litert")]
    rows += [
        row("trunk predict to pooling", 1, 9.0, images_per_second=200.0, runtime="model.predict")
    ]
    # measured again: this one counts.
    rows += [row("next", 1, 50.0, 0.91, n=470, training_starts=16.0)]
    for line in rows:
        results.append(file, line)

    (summary,) = results.summarise(results.load(file))
    assert list(summary["whats"]) == [
        "course",
        "first",
        "next",
        "sweep",
        "trunk graft to pooling",
        "trunk predict to pooling",
    ]
    assert summary["whats"]["course"]["seconds"] == (210.0, 200.0, 220.0)
    ratios = {label: [round(v, 3) for v in values] for label, values in summary["ratios"].items()}
    assert ratios == {
        "time, first run / course": [0.5, 0.45, 0.6],  # of pairs, not of medians
        "test error, first run / course": [0.444, 0.4, 0.5],
        "time, next experiment / course": [0.25, 0.25, 0.25],
        "time, sweep of 8 / 8 x course": [0.2, 0.2, 0.2],
        "throughput, graft / model.predict, trunk to pooling": [2.0, 2.0, 2.0],
    }
    table = results.markdown([summary], "2 cores.")
    assert table.startswith("2 cores.\n\n### flowers, 3,119 images, 160 px, alpha 1.0\n")
    assert (
        "| peer (a): course recipe | 3 | 210.0 (200.0 to 220.0) | 420 (400 to 440) | 1000 |"
        in table
    )
    assert "| 0.9200, 95%: 0.890 to 0.940 | 470 | 12 + 8 |" in table
    assert "| time, first run / course | 0.50 (0.45 to 0.60) |" in table
    assert "without files" not in table  # a column that nothing fills is left out
