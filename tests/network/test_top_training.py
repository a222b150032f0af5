import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from graft import params as parameters
from graft.features.cache import FeatureCache
from graft.features.extractor import FeatureExtractor
from graft.features.views import Augmentation
from graft.network import classifier, top_training
from graft.network.checkpoint import Checkpoint
from graft.network.cut import find_cut
from graft.network.top_training import Phase, TrainConfig
from graft.scoring.calibration import calibrated_losses, fit_temperature, log_probabilities
from graft.system import environment
from graft.system.console import GraftError
from tests import random_networks

ROOT = Path(__file__).parents[2]
POOL = Augmentation("horizontal", 0.05, 0.1, 0, 0, seed=5)


def phase(**changes):
    return Phase(**{"lr": 1e-3, "lr_key": "lr", "epochs": 3, "patience": 99, **changes})


def run(
    model,
    pixels,
    folder,
    plan=None,
    *,
    layers=0,
    seed=3,
    weights=None,
    name=None,
    learnable=False,
    fit="train",
    **options,
):
    """`train` on 24 images, 9 to validate, batches of 8; the checkpoint goes where training
    ends."""
    cut = find_cut(model, classifier.unfreeze(model, layers))
    sets = pixels(24, seed=1), pixels(9, seed=2, name="val")
    if learnable:  # the class is the brightest channel
        for images in sets:
            images.array //= 2
            images.array[np.arange(len(images)), :, :, images.labels] += 120
    extractor = FeatureExtractor(POOL, "litert", FeatureCache(folder / "features", max_gb=1))
    seen = [
        extractor.extract(model, [cut], images, views=views)[0]
        for images, views in zip(sets, (2, 1))
    ]
    checkpoint = Checkpoint("test", {"name": name or str(folder)})
    config = TrainConfig(plan or phase(), batch_size=8, seed=seed, class_weights=weights)
    result = getattr(top_training, fit)(model, cut, *seen, config, checkpoint=checkpoint, **options)
    checkpoint.remove()
    return result


@pytest.fixture(autouse=True)
def clone(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


@pytest.fixture
def fresh(description):
    """A random classifier whose head is as a seed makes it."""
    with environment.training_scope(0):
        yield lambda seed=0: random_networks.build(description, seed=seed)


@pytest.fixture
def model(fresh):
    return fresh()


def test_fine_tuning_moves_the_top_kernels_and_no_batch_norm_and_nothing_below(
    model, pixels, tmp_path
):
    """BatchNorm that is left to itself drifts in 52 of 52 layers of MobileNetV2 (keras#20285)."""
    before = {v.path: v.numpy() for v in model.variables}
    run(model, pixels, tmp_path, layers=50)
    moved = {v.path for v in model.variables if not np.array_equal(before[v.path], v.numpy())}
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == 52
    assert not moved & {v.path for layer in norms for v in layer.variables}
    trained = {v.path for v in model.trainable_variables}
    assert len(trained) == 19
    assert moved - {path for path in moved if "seed_generator" in path} == trained


def test_tf_data_has_no_tuner_which_could_hold_up_the_end_of_training(
    model, pixels, tmp_path, monkeypatch
):
    fed, fit = [], keras.Model.fit
    monkeypatch.setattr(
        keras.Model, "fit", lambda top, data, **more: fed.append(data) or fit(top, data, **more)
    )
    run(model, pixels, tmp_path, phase(epochs=1))
    assert [data.options().autotune.enabled for data in fed] == [False]


def test_the_head_learns_and_the_result_says_so(model, pixels, tmp_path):
    result = run(model, pixels, tmp_path, phase(lr=0.02, epochs=12), learnable=True)
    rows = result.history.rows
    assert [row["epoch"] for row in rows] == list(range(12))
    assert (result.epochs, result.history.unfrozen_at) == (12, None)
    assert rows[-1]["train_loss"] < 0.6 * rows[0]["train_loss"]
    assert rows[-1]["train_accuracy"] > 0.8
    # Cosine decay from the peak to nothing.
    assert np.allclose(
        [row["lr"] for row in rows], 0.01 * (1 + np.cos(np.pi * np.arange(12) / 12)), rtol=1e-4
    )
    predictions = result.predictions
    assert predictions.paths == pixels(9, name="val").paths
    assert np.allclose(predictions.probabilities.sum(axis=1), 1, atol=1e-12)
    assert result.temperature == fit_temperature(
        log_probabilities(predictions.probabilities), predictions.labels
    )


@pytest.mark.parametrize(
    ("warmup", "steps", "rising"),
    [(1 / 3, 18, 6), (0.1, 20, 2), (0.999, 20, 19), (0.5, 2, 1), (0, 5, 0)],
)
def test_the_rate_rises_over_the_warm_up_and_falls_along_half_a_cosine_and_no_step_is_lost(
    warmup, steps, rising
):
    rate = top_training._rate(phase(lr=1e-3, warmup=warmup), steps)
    rates = np.array([float(rate(step)) for step in range(steps)])
    peak = max(0, rising - 1)
    expected = [
        *(np.arange(1, peak + 1) / rising),
        *((1 + np.cos(np.pi * np.arange(steps - peak) / (steps - peak))) / 2),
    ]
    assert np.allclose(rates, 1e-3 * np.array(expected), rtol=1e-5)
    assert rates.min() > 0


@pytest.mark.parametrize("warmup", [0.1, 0.999])
def test_any_warm_up_can_be_trained_with(model, pixels, tmp_path, warmup):
    (row,) = run(model, pixels, tmp_path, phase(epochs=1, warmup=warmup)).history.rows
    assert np.isfinite(row["train_loss"])


def test_the_weights_of_the_best_epoch_are_left_and_patience_ends_training(model, pixels, tmp_path):
    result = run(model, pixels, tmp_path, phase(lr=0.1, epochs=40, patience=2))
    losses = [row["val_loss"] for row in result.history.rows]
    best = int(np.argmin(losses))
    assert result.epochs == best + 3 < 40
    right = result.predictions.probabilities[np.arange(9), result.predictions.labels]
    assert np.isclose(-np.log(right).mean(), losses[best], rtol=1e-3)


def test_after_a_head_training_that_only_harms_changes_nothing_and_epochs_count_on(
    model, pixels, tmp_path
):
    head = run(model, pixels, tmp_path, phase(lr=0.01, epochs=10))
    before, seen = model.get_weights(), []
    tuned = run(
        model,
        pixels,
        tmp_path,
        phase(lr=5.0, epochs=1),
        previous=head.history,
        on_epoch=seen.append,
    )
    assert tuned.epochs == 1
    assert tuned.history.rows[:10] == head.history.rows
    assert (tuned.history.unfrozen_at, [row["epoch"] for row in seen]) == (10, [10])
    assert seen == list(tuned.history.fine_tuning)
    assert all(
        np.array_equal(a, b) for a, b in zip(before, model.get_weights()) if a.dtype.kind == "f"
    )
    assert np.array_equal(tuned.predictions.probabilities, head.predictions.probabilities)


@pytest.mark.parametrize(("lr", "torn"), [(5.0, True), (1e-4, False)])
def test_a_rate_that_tears_the_network_is_said_with_its_key(
    model, pixels, tmp_path, capsys, lr, torn
):
    head = run(model, pixels, tmp_path, phase(lr=0.01, epochs=10))
    run(model, pixels, tmp_path, phase(lr=lr, epochs=2), previous=head.history)
    assert ("tore the network" in capsys.readouterr().err) == torn


@pytest.mark.parametrize(
    ("losses", "accuracy", "torn"),
    [
        ([0.9] * 12, 0.75, True),
        ([0.02] * 11 + [3.0], 0.75, False),  # one photo of twelve: chance
        ([0.9] * 12, 1.0, False),  # smoothed labels make every photo less sure, and none wrong
    ],
)
def test_what_smoothing_or_chance_explains_is_not_called_torn(capsys, losses, accuracy, torn):
    rows = [{"val_loss": 0.9, "val_accuracy": accuracy}]
    before = {"start_losses": np.full(12, 0.03), "start_accuracy": 1.0}
    top_training.TrainingMonitor._warn_if_torn(
        SimpleNamespace(**before, losses=np.array(losses), rows=rows, phase=phase())
    )
    assert ("tore the network" in capsys.readouterr().err) == torn


def test_no_epochs_leave_the_head_and_its_curves_as_they_are(model, pixels, tmp_path):
    head = run(model, pixels, tmp_path)
    before, seen = model.get_weights(), []
    tuned = run(
        model,
        pixels,
        tmp_path,
        phase(epochs=0),
        layers=20,
        previous=head.history,
        on_epoch=seen.append,
    )
    assert (tuned.history, tuned.epochs, seen) == (head.history, 0, [])
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights()))
    assert np.allclose(tuned.predictions.probabilities, head.predictions.probabilities, rtol=1e-3)


def test_what_the_phases_take_from_the_params(model):
    params = parameters.load(ROOT / "params.yaml")
    head, tuned = Phase.head(params), Phase.fine_tune(params, enlarged=1.0)
    assert (head.lr, head.lr_key, head.epochs, head.warmup) == (
        params.head.lr,
        "head.lr",
        params.head.epochs,
        0.0,
    )
    assert (tuned.lr, tuned.lr_key, tuned.warmup) == (params.lr, "lr", params.fine_tune.warmup)
    still = params.model_copy(
        update={"fine_tune": params.fine_tune.model_copy(update={"layers": 0})}
    )
    assert Phase.fine_tune(still, enlarged=4.0).epochs == 0
    assert (head.mixup, tuned.mixup, Phase.fine_tune(params, enlarged=3.0).mixup) == (0, 0, 0.2)
    assert Phase.fine_tune(params, enlarged=2.9).mixup == 0
    chosen = params.model_copy(
        update={"fine_tune": params.fine_tune.model_copy(update={"mixup": 0.4})}
    )
    assert {Phase.fine_tune(chosen, enlarged=each).mixup for each in (1.0, 4.0)} == {0.4}


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_an_example_is_mixed_with_another_label_and_all_and_its_own_share_is_the_larger(dtype):
    wanted = np.eye(64, dtype=np.float32)
    seen = np.broadcast_to(200 * wanted[:, None, None], (64, 2, 3, 64)).astype(dtype)
    mixed, targets = top_training._mixed(seen, wanted, 0.2, np.random.default_rng(0))
    assert mixed.dtype == dtype and targets.dtype == np.float32
    assert np.allclose(mixed, 200 * targets[:, None, None], atol=0.5 if dtype == np.uint8 else 1e-4)
    assert np.allclose(targets.sum(axis=1), 1)
    own = targets.diagonal()
    assert own.min() >= 0.5 and own.max() <= 1
    assert (targets.argmax(axis=1) == np.arange(64)).all()
    # Of max(b, 1 - b), b from Beta(0.2, 0.2), three tenths of the draws lie below 0.88.
    assert 0.1 < (own < 0.88).mean() < 0.4


def test_the_targets_and_weights_of_a_batch(model, pixels, tmp_path):
    """A mixed example weighs what its labels do, in their shares."""
    images, weights = pixels(24, seed=1), (5.0, 1.0, 2.0)
    cut = find_cut(model, classifier.unfreeze(model, 0))
    extractor = FeatureExtractor(POOL, "litert", FeatureCache(tmp_path, max_gb=1))
    (features,) = extractor.extract(model, [cut], images)
    for mixup in (0.0, 1.0):
        config = TrainConfig(phase(mixup=mixup), batch_size=8, seed=3, class_weights=weights)
        batches = top_training._dataset(features, config, 3, epoch=0).take(3)
        _, targets, weighed = (np.concatenate(each) for each in zip(*batches.as_numpy_iterator()))
        assert np.allclose(weighed, targets @ np.array(weights))
        assert sorted(targets.argmax(axis=1)) == sorted(images.labels)
        assert (targets.max(axis=1) == 1).all() == (mixup == 0)


def test_class_weights_balance_and_change_what_is_learnt(fresh, pixels, tmp_path):
    params = parameters.load(ROOT / "params.yaml")
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    for setting, expected in (("balanced", (7 / 12, 7 / 6, 7 / 3)), ("none", None)):
        changed = params.model_copy(
            update={"head": params.head.model_copy(update={"class_weights": setting})}
        )
        config = TrainConfig.of(changed, Phase.head(changed), labels)
        assert config.class_weights == (expected and pytest.approx(expected))
    plain, weighted = (
        run(fresh(), pixels, tmp_path, phase(lr=0.01), weights=weights)
        .predictions.probabilities[:, 0]
        .mean()
        for weights in (None, (100.0, 1.0, 1.0))
    )
    assert weighted > plain + 0.1


def test_the_same_inputs_give_the_same_bits_and_another_seed_does_not(fresh, pixels, tmp_path):
    weights = []
    for seed in (0, 0, 1):
        model = fresh(seed)
        run(model, pixels, tmp_path, layers=20, seed=seed)
        weights.append(np.concatenate([w.ravel() for w in model.get_weights()]))
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


@pytest.mark.parametrize("mixup", [0.0, 0.3])
def test_a_killed_training_goes_on_and_ends_with_the_same_bits(
    fresh, pixels, tmp_path, capsys, mixup
):
    def train(name, killed_after=None):
        seen = []

        def on_epoch(row):
            seen.append(row["epoch"])
            if row["epoch"] == killed_after:
                raise KeyboardInterrupt

        model = fresh()
        result = run(
            model,
            pixels,
            tmp_path,
            phase(epochs=4, mixup=mixup),
            layers=20,
            name=name,
            on_epoch=on_epoch,
        )
        return result.history, model.get_weights(), seen

    whole = train("whole")
    for killed_after in (1, 2):  # twice: the second time while it goes on from the first
        with pytest.raises(KeyboardInterrupt):
            train("broken", killed_after)
    assert "resumed after epoch 1 of 4" in capsys.readouterr().out
    resumed = train("broken")
    assert "resumed after epoch 2 of 4" in capsys.readouterr().out
    assert resumed[0] == whole[0]
    assert resumed[2] == [0, 1, 2, 3]  # the log is whole too
    assert all(np.array_equal(a, b) for a, b in zip(resumed[1], whole[1]))


def test_a_prediction_does_not_depend_on_its_company(model, pixels, tmp_path):
    cut = find_cut(model, 50)
    top = top_training.split_at(model, cut)[1]
    extractor = FeatureExtractor(POOL, "litert", FeatureCache(tmp_path, max_gb=1))
    predicted = [
        top_training.predict(top, extractor.extract(model, [cut], pixels(n, seed=4))[0])
        for n in (3, 70)
    ]
    few, many = pixels(3, seed=4).array, pixels(70, seed=4).array[:3]
    assert np.array_equal(few, many)
    assert np.array_equal(predicted[0], predicted[1][:3])


def test_a_loss_that_is_not_finite_stops_with_epoch_lr_and_key(model, pixels, tmp_path):
    model.layers[-1].kernel.assign(np.full((1280, 3), np.nan, np.float32))
    words = (
        r"the loss is nan in epoch 0 at lr 0.001: training diverged; lower head.lr in params.yaml"
    )
    with pytest.raises(GraftError, match=words):
        run(model, pixels, tmp_path, phase(lr_key="head.lr"))


def test_xla_is_left_to_keras_on_a_gpu_and_off_on_a_cpu(model, pixels, tmp_path, monkeypatch):
    """Some gradients have no deterministic XLA kernel, and on a CPU XLA trains ten times slower."""
    import tensorflow as tf

    said, compile = [], keras.Model.compile

    def spy(top, **how):
        said.append(how.pop("jit_compile"))
        compile(top, **how, jit_compile=False)

    monkeypatch.setattr(keras.Model, "compile", spy)
    run(model, pixels, tmp_path, phase(epochs=0))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [object()])
    run(model, pixels, tmp_path, phase(epochs=0))
    assert said == [False, "auto"]


@pytest.mark.slow
def test_a_gpu_is_fed_half_precision_which_gives_the_same_bits(
    fresh, pixels, tmp_path, monkeypatch
):
    compile = keras.Model.compile
    monkeypatch.setattr(
        keras.Model, "compile", lambda top, **how: compile(top, **{**how, "jit_compile": False})
    )
    fed, ready = [], top_training._ready
    monkeypatch.setattr(top_training, "_ready", lambda values: fed.append(ready(values)) or fed[-1])
    results = []
    for gpu in (False, True):
        monkeypatch.setattr(top_training, "_has_gpu", lambda gpu=gpu: gpu)
        results.append(run(fresh(), pixels, tmp_path / str(gpu)))
        assert {values.dtype for values in fed} == {np.dtype(np.float16 if gpu else np.float32)}
        fed.clear()
    assert results[0].history == results[1].history
    assert np.array_equal(
        results[0].predictions.probabilities, results[1].predictions.probabilities
    )


@pytest.mark.slow
def test_several_devices_get_a_batch_that_they_divide(description, tmp_path):
    """Keras' symbolic build fails on a batch of 8 for 3 devices; a process of its own, since
    devices are made once."""
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}, {str(ROOT / "tests" / "network")!r}]
from pathlib import Path
from graft.system import environment
environment.quiet_tensorflow()
import tensorflow as tf
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)
import test_top_training as here
from conftest import Pixels
from graft.description import Description
from graft.network import classifier
import numpy as np

def pixels(n, *, seed=0, name="set"):
    rng = np.random.default_rng(seed)
    return Pixels(rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), name)

with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1", "CPU:2"]).scope():
    model = classifier.build(Description(*{tuple(vars(description).values())!r}))
    result = here.run(model, pixels, Path({str(tmp_path)!r}), here.phase(epochs=2), layers=20)
print(result.epochs, np.isfinite([row["val_loss"] for row in result.history.rows]).all())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "batch_size 8 is rounded up to 9, a multiple of 3 devices" in done.stdout
    assert done.stdout.splitlines()[-1] == "2 True"


def test_a_trained_head_has_the_weight_decay_that_validation_chose(
    fresh, pixels, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(top_training, "DECAYS", (0.0, 0.5, 5.0))
    told, seen = [], {}

    def one(decays, **options):
        monkeypatch.setattr(top_training, "DECAYS", decays)
        return run(
            fresh(), pixels, tmp_path, phase(lr=0.05), learnable=True, fit="fit_head", **options
        )

    for decay in (0.0, 0.5, 5.0):
        seen[decay] = one((decay,), name=f"{decay} alone")
    losses = {
        decay: calibrated_losses(r.predictions.probabilities, r.predictions.labels).mean()
        for decay, r in seen.items()
    }
    best = min(losses, key=losses.get)
    assert len({round(loss, 6) for loss in losses.values()}) == 3
    chosen = one((0.0, 0.5, 5.0), on_epoch=told.append)
    assert chosen.history == seen[best].history and told == list(chosen.history.rows)
    np.testing.assert_array_equal(
        chosen.predictions.probabilities, seen[best].predictions.probabilities
    )
    assert f"head: weight decay {best:g} of 0, 0.5, 5, " in capsys.readouterr().out
    assert not list((tmp_path / ".cache" / "checkpoints").glob("*"))
