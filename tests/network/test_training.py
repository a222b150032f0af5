import keras
import numpy as np
import pytest

from stages.console import GraftError
from stages.network import classifier, training
from stages.network.augmentation import Augmentation
from stages.network.memo import Memo
from stages.network.training import Checkpoint, Schedule

POOL = Augmentation("horizontal", 0.05, 0.1, 0, 0, seed=5)
LABELS = np.arange(24) % 3


def schedule(**changes):
    return Schedule(
        **{
            "lr": 1e-3,
            "epochs": 3,
            "patience": 99,
            "batch_size": 8,
            "seed": 3,
            "class_weights": None,
            "lr_key": "lr",
            **changes,
        }
    )


def run(model, pixels, folder, *, layers=0, plan=None, checkpoint=None, learnable=False, **options):
    sets = (pixels(24, seed=1), LABELS), (pixels(9, seed=2, name="val"), LABELS[:9])
    if learnable:  # the class is the brightest channel
        for images, labels in sets:
            images.array //= 2
            images.array[np.arange(len(labels)), :, :, labels] += 120
    checkpoint = checkpoint or Checkpoint("test", str(folder))
    results = training.train(
        model, layers, *sets, pool=POOL, views=2, schedule=plan or schedule(), engine="litert", memo=Memo(folder, max_gb=1),
        checkpoint=checkpoint, **options,
    )  # fmt: skip
    checkpoint.remove()
    return results


@pytest.fixture(autouse=True)
def clone(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


@pytest.fixture
def model(spec, bundled):
    with training.start(0):
        yield classifier.build(spec, weights=bundled)


def test_fine_tuning_moves_the_top_kernels_and_no_batch_norm_and_nothing_below(model, pixels, tmp_path):
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


def test_tf_data_has_no_tuner_which_could_hold_up_the_end_of_training(model, pixels, tmp_path, monkeypatch):
    fed, fit = [], keras.Model.fit
    monkeypatch.setattr(
        keras.Model, "fit", lambda tail, data, **more: fed.extend([data, more["validation_data"]]) or fit(tail, data, **more)
    )
    run(model, pixels, tmp_path, plan=schedule(epochs=1))
    assert [data.options().autotune.enabled for data in fed] == [False, False]


def test_the_head_learns_and_the_rows_say_so(model, pixels, tmp_path):
    rows, probabilities = run(model, pixels, tmp_path, plan=schedule(lr=0.02, epochs=12), learnable=True)
    assert [row["epoch"] for row in rows] == list(range(12))
    assert rows[-1]["train_loss"] < 0.6 * rows[0]["train_loss"]
    assert rows[-1]["train_accuracy"] > 0.8
    assert probabilities.shape == (9, 3)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-12)
    # Cosine decay from the peak to nothing.
    assert np.allclose([row["lr"] for row in rows], 0.01 * (1 + np.cos(np.pi * np.arange(12) / 12)), rtol=1e-4)


def test_the_rate_rises_over_the_warm_up_and_falls_along_half_a_cosine(model, pixels, tmp_path):
    rows, _ = run(model, pixels, tmp_path, plan=schedule(lr=1e-3, epochs=6, warmup=1 / 3))  # 3 steps per epoch
    rates = [0, 0.5e-3, 1e-3, *(1e-3 * (1 + np.cos(np.pi * part)) / 2 for part in (0.25, 0.5, 0.75))]
    np.testing.assert_allclose([row["lr"] for row in rows], rates, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.999])
def test_any_warm_up_leaves_a_step_at_the_peak(model, pixels, tmp_path, warmup):
    rows, _ = run(model, pixels, tmp_path, plan=schedule(epochs=1, warmup=warmup))
    assert np.isfinite(rows[0]["train_loss"])


def test_the_weights_of_the_best_epoch_are_left_and_patience_ends_training(model, pixels, tmp_path):
    rows, probabilities = run(model, pixels, tmp_path, plan=schedule(lr=0.1, epochs=40, patience=2))
    losses = [row["val_loss"] for row in rows]
    best = int(np.argmin(losses))
    assert len(rows) == best + 3 < 40
    right = probabilities[np.arange(9), LABELS[:9]]
    assert np.isclose(-np.log(right).mean(), losses[best], rtol=1e-3)


def test_with_a_baseline_training_that_only_harms_changes_nothing(model, pixels, tmp_path):
    run(model, pixels, tmp_path, plan=schedule(lr=0.01, epochs=10))
    before = [w.copy() for w in model.get_weights()]
    rows, _ = run(model, pixels, tmp_path, plan=schedule(lr=5.0, epochs=1), baseline=True)
    assert len(rows) == 1
    kept = [np.array_equal(a, b) for a, b in zip(before, model.get_weights()) if a.dtype.kind == "f"]
    assert all(kept)


def test_class_weights_are_scikit_learns_and_change_what_is_learnt(spec, bundled, pixels, tmp_path):
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert np.allclose(training.balanced(labels, 3), expected)
    results = []
    for weights in (None, (100.0, 1.0, 1.0)):
        with training.start(0):
            results.append(
                run(classifier.build(spec, weights=bundled), pixels, tmp_path, plan=schedule(lr=0.01, class_weights=weights))[1]
            )
    assert results[1][:, 0].mean() > results[0][:, 0].mean() + 0.1


def test_the_same_inputs_give_the_same_bits_and_another_seed_does_not(spec, bundled, pixels, tmp_path):
    weights = []
    for seed in (0, 0, 1):
        with training.start(seed):
            model = classifier.build(spec, weights=bundled)
            run(model, pixels, tmp_path, layers=20, plan=schedule(seed=seed))
            weights.append(np.concatenate([w.ravel() for w in model.get_weights()]))
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_killed_training_goes_on_and_ends_with_the_same_bits(spec, bundled, pixels, tmp_path, killed_after, capsys):
    def train(name, on_epoch=None):
        with training.start(0):
            model = classifier.build(spec, weights=bundled)
            seen = []
            rows, _ = run(model, pixels, tmp_path, layers=20, plan=schedule(epochs=4), checkpoint=Checkpoint("test", name),
                          on_epoch=lambda row: (seen.append(row["epoch"]), on_epoch and on_epoch(row)))  # fmt: skip
            return rows, model.get_weights(), seen

    def kill(row):
        if row["epoch"] == killed_after:
            raise KeyboardInterrupt

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("broken", kill)
    resumed = train("broken")
    assert f"resumed after epoch {killed_after} of 4" in capsys.readouterr().out
    assert resumed[0] == whole[0]
    assert resumed[2] == [0, 1, 2, 3]  # the log is whole too
    assert all(np.array_equal(a, b) for a, b in zip(resumed[1], whole[1]))


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_not_taken(tmp_path):
    mine = Checkpoint("fine-tune", {"lr": 1})
    mine.save({"rows": []}, {"now": [np.ones(2)], "best": []})
    assert mine.load()[1]["now"][0].tolist() == [1, 1]
    assert Checkpoint("fine-tune", {"lr": 2}).load() is None
    mine.path.write_bytes(mine.path.read_bytes()[:-40])
    assert mine.load() is None
    mine.remove()
    assert not mine.path.exists()


def test_a_loss_that_is_not_finite_stops_with_epoch_lr_and_key(model, pixels, tmp_path):
    model.layers[-1].kernel.assign(np.full((1280, 3), np.nan, np.float32))
    with pytest.raises(
        GraftError, match=r"the loss is nan in epoch 0 at lr 0.001: training diverged; lower head.lr in params.yaml"
    ):
        run(model, pixels, tmp_path, plan=schedule(lr_key="head.lr"))
