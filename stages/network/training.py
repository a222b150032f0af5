"""Training of a tail on remembered activations: Adam, cosine decay, early stopping, a checkpoint after every epoch."""

import contextlib
import hashlib
import json
import math
import os
import time
import zipfile
from dataclasses import dataclass

import numpy as np

from stages import paths
from stages.console import GraftError, Progress, log
from stages.network import activations
from stages.network.classifier import find_cut, split_at, unfreeze


@dataclass(frozen=True)
class Schedule:
    """lr: peak learning rate, decayed to 0 along half a cosine over `epochs`. lr_key: the parameter that it came from.
    warmup: share of all steps over which the rate first rises from 0 to lr, in [0, 1).
    patience: epochs without a smaller validation loss before training stops.
    class_weights: one factor per class on the loss, or None."""

    lr: float
    epochs: int
    patience: int
    batch_size: int
    seed: int
    class_weights: tuple[float, ...] | None
    lr_key: str
    warmup: float = 0.0


@contextlib.contextmanager
def start(seed):
    """Seed everything, make TensorFlow give the same bits for the same inputs, and yield where models live in this block.

    With GPUs: half precision where it is safe; with several of them in this host: MirroredStrategy over all.
    """
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # already initialised
            tf.config.experimental.set_memory_growth(gpu, True)
    keras.mixed_precision.set_global_policy("mixed_float16" if gpus else "float32")
    strategy = tf.distribute.MirroredStrategy() if len(gpus) > 1 else tf.distribute.get_strategy()
    with strategy.scope():
        yield strategy


def train(
    model, layers, train, val, *, pool, views, schedule, engine, memo, checkpoint, also=(), on_epoch=None, baseline=False
):
    """Unfreeze the top `layers` of the classifier's backbone and train what is above the cut, on remembered activations.

    train, val: (images, labels): `activations.Images` and int64 (n,).
    pool: augmentation.Augmentation, its `views` views per image.
    also: further numbers of layers at whose cut the activations are computed in the same pass, for a stage to come.
    The other arguments are those of `fit` and `activations.recall`. Trains `model` in place.
    Returns (rows of the curves, probabilities float64 (n, C) on val).
    """
    unfreeze(model, layers)
    cuts = [find_cut(model, n) for n in (layers, *also)]
    cuts = [cut for i, cut in enumerate(cuts) if cut.name not in {c.name for c in cuts[:i]}]
    options = {"augmentation": pool, "engine": engine, "memo": memo}
    known = activations.recall(model, cuts, train[0], views=max(1, views), label="train", **options)[0]
    seen = activations.recall(model, cuts, val[0], views=1, label="val", **options)[0]
    tail = split_at(model, cuts[0])[1]
    rows = fit(tail, known, train[1], seen, val[1], schedule, checkpoint=checkpoint, on_epoch=on_epoch, baseline=baseline)
    return rows, predict(tail, seen, len(val[1]))


def balanced(labels, classes):
    """Weights n / (C n_c) per class, as scikit-learn's "balanced". labels: int (n,); classes: C. Every class must occur."""
    counts = np.bincount(labels, minlength=classes)
    return tuple(float(len(labels) / (classes * count)) for count in counts)


def fit(tail, train, train_labels, val, val_labels, schedule, *, checkpoint, on_epoch=None, baseline=False):
    """Train `tail` in place and leave in it the weights of the epoch with the smallest validation loss.

    tail: Keras model from activations (b, …) to probabilities (b, C), its layers frozen or not as they are to be.
    train, val: `activations.Activations`; epoch e takes view (i + e) mod views of training image i, and view 0 of val.
    train_labels, val_labels: int (n,).
    checkpoint: a Checkpoint; what it holds of this very training is continued, and ends with the same bits as if never
        interrupted.
    on_epoch: called with each epoch's row. baseline: whether the weights before training count as a candidate for the best.
    Returns the rows: [{epoch, lr, train_loss, train_accuracy, val_loss, val_accuracy}], epochs from 0.
    Raises GraftError, naming lr and epoch, when the loss is no longer finite.
    """
    import keras
    import tensorflow as tf

    steps = math.ceil(len(train_labels) / schedule.batch_size)
    tail.compile(
        optimizer=keras.optimizers.Adam(_rate(schedule, steps * schedule.epochs)),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        # XLA makes training ten times slower on a CPU.
        jit_compile=bool(tf.config.list_physical_devices("GPU")),
    )
    tail.optimizer.build(tail.trainable_variables)
    validation = _dataset(val, val_labels, schedule, epochs=None)
    watch = _watch(schedule, checkpoint, on_epoch, steps)
    watch.set_model(tail)
    first = watch.resume()
    if first == 0 and baseline:
        watch.keep_best(tail.evaluate(validation, verbose=0, return_dict=True)["loss"])
    if first < schedule.epochs and not watch.is_over():
        tail.fit(
            _dataset(train, train_labels, schedule, epochs=first),
            initial_epoch=first,
            epochs=schedule.epochs,
            steps_per_epoch=steps,
            validation_data=validation,
            class_weight=dict(enumerate(schedule.class_weights)) if schedule.class_weights else None,
            callbacks=[watch],
            shuffle=False,
            verbose=0,
        )
    watch.restore_best()
    return watch.rows


def _rate(schedule, steps):
    """The learning rate over `steps` steps: up a straight line, down half a cosine (Loshchilov and Hutter 2017).

    Adam's first steps are as long as the rate, however small the gradient. At full rate they tear pretrained layers apart whose
    BatchNorm cannot follow, the more the deeper the unfreezing: the top 100 layers of MobileNetV2 on CIFAR-10 at 0.001 fell to
    chance in the first epochs; with a warm-up they learn.
    """
    import keras

    rising = min(round(schedule.warmup * steps), steps - 1)
    if rising < 1:
        return keras.optimizers.schedules.CosineDecay(schedule.lr, max(1, steps))
    return keras.optimizers.schedules.CosineDecay(0.0, steps - rising, warmup_target=schedule.lr, warmup_steps=rising)


def predict(tail, activations, n, *, batch_size=64):
    """Probabilities float64 (n, C) of `tail` on view 0 of the n remembered images; rows sum to 1."""
    import tensorflow as tf

    call = tf.function(lambda x: tail(x, training=False), input_signature=[_signature(activations)], autograph=False)
    batches = [call(_ready(activations.take(np.arange(i, min(i + batch_size, n)), 0))).numpy() for i in range(0, n, batch_size)]
    probabilities = np.concatenate(batches).astype(np.float64)
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def log_of(probabilities):
    """Natural logarithm, with an exact 0 taken as the smallest positive float32, so that it stays finite."""
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))


def _ready(values):
    """Half precision is how activations are kept, not how they are computed with; pixels stay what they are.

    NumPy casts: TensorFlow's oneDNN reports an error for half precision on most processors before it falls back.
    """
    return values.astype(np.float32) if values.dtype == np.float16 else values


def _signature(activations):
    import tensorflow as tf

    return tf.TensorSpec((None, *activations.shape), tf.uint8 if activations.dtype == np.uint8 else tf.float32)


def _dataset(activations, labels, schedule, *, epochs):
    """tf.data over shuffled batches; `epochs` is the epoch to begin with, or None for one ordered pass (validation).

    The order of epoch e depends on the seed and e alone, so that a resumed training sees what it would have seen.
    """
    import tensorflow as tf

    n, size = len(labels), schedule.batch_size

    def batches():
        epoch = epochs
        while True:
            order = np.arange(n) if epoch is None else np.random.default_rng([schedule.seed, epoch]).permutation(n)
            for start in range(0, n, size):
                indices = order[start : start + size]
                # Each image goes through its views in turn, but not all in step: an epoch of unaugmented images alone, every
                # few epochs, makes the validation loss swing with that period.
                view = 0 if epoch is None else (indices + epoch) % activations.views
                yield _ready(activations.take(indices, view)), labels[indices]
            if epoch is None:
                return
            epoch += 1

    signature = (_signature(activations), tf.TensorSpec((None,), tf.int64))
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    if epochs is None:
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(math.ceil(n / size)))
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    # There is nothing to tune, and now and then the tuner's thread held up the end of a training until its own next turn. Its
    # turns come 10 ms, 20 ms, 40 ms … apart: after 64 s of training it was seen to wait for the 82nd.
    options.autotune.enabled = False
    return dataset.prefetch(4).with_options(options)


def _watch(schedule, checkpoint, on_epoch, steps):
    """The callback that keeps curves, best weights and checkpoint; made in a function because its base class needs Keras."""
    import keras

    class Watch(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.rows, self.best_loss, self.best, self.waited = [], math.inf, None, 0

        def on_train_begin(self, logs=None):
            self.progress = Progress("training", steps * (schedule.epochs - len(self.rows)), unit="step").__enter__()

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch, self.lr, self.started = epoch, float(self.model.optimizer.learning_rate), time.monotonic()

        def on_train_batch_end(self, batch, logs=None):
            self.progress.advance()
            if not math.isfinite(logs["loss"]):
                self.progress.__exit__()
                raise GraftError(
                    f"the loss is {logs['loss']} in epoch {self.epoch} at lr {self.lr:.3g}: training diverged; "
                    f"lower {schedule.lr_key} in params.yaml"
                )

        def on_epoch_end(self, epoch, logs=None):
            row = {"epoch": epoch, "lr": self.lr, "train_loss": logs["loss"], "train_accuracy": logs["accuracy"],
                   "val_loss": logs["val_loss"], "val_accuracy": logs["val_accuracy"]}  # fmt: skip
            row = {key: value if key == "epoch" else float(value) for key, value in row.items()}
            if not math.isfinite(row["val_loss"]):
                raise GraftError(
                    f"the validation loss is {row['val_loss']} in epoch {epoch} at lr {self.lr:.3g}; "
                    f"lower {schedule.lr_key} in params.yaml"
                )
            self.rows.append(row)
            self.waited = 0 if self.keep_best(row["val_loss"]) else self.waited + 1
            log(
                f"epoch {epoch + 1}/{schedule.epochs}: loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.4f}, "
                f"val loss {row['val_loss']:.4f}, val accuracy {row['val_accuracy']:.4f}, "
                f"{time.monotonic() - self.started:.1f} s"
            )
            if on_epoch:
                on_epoch(row)
            checkpoint.save(self._state(), self._arrays())
            if self.is_over():
                self.model.stop_training = True

        def on_train_end(self, logs=None):
            self.progress.__exit__()

        def is_over(self):
            return self.waited >= schedule.patience

        def keep_best(self, loss):
            if loss >= self.best_loss:
                return False
            self.best_loss, self.best = float(loss), [v.numpy() for v in self.model.trainable_variables]
            return True

        def restore_best(self):
            for variable, value in zip(self.model.trainable_variables, self.best):
                variable.assign(value)

        def resume(self):
            """Take up the checkpoint of this training, if there is one. Returns the epoch to go on with."""
            held = checkpoint.load()
            if held is None:
                return 0
            state, arrays = held
            for variable, value in zip(self._moving(), arrays["now"]):
                variable.assign(value)
            self.rows, self.best_loss, self.waited = state["rows"], state["best_loss"], state["waited"]
            self.best = arrays["best"]
            log(f"resumed after epoch {len(self.rows)} of {schedule.epochs}")
            for row in self.rows:
                if on_epoch:
                    on_epoch(row)
            return len(self.rows)

        def _moving(self):
            """Everything that a step changes: weights, Adam's state, and the states of the random generators (dropout)."""
            generators = [v for v in self.model.non_trainable_variables if "seed_generator_state" in v.path]
            return [*self.model.trainable_variables, *self.model.optimizer.variables, *generators]

        def _state(self):
            return {"rows": self.rows, "best_loss": self.best_loss, "waited": self.waited}

        def _arrays(self):
            return {"now": [v.numpy() for v in self._moving()], "best": self.best}

    return Watch()


class Checkpoint:
    """One file under `.cache/checkpoints/`, outside DVC's outs, which DVC deletes before a stage runs.

    name: of the stage. identity: everything that determines the training; only the same training is ever continued.
    """

    def __init__(self, name, identity):
        key = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:32]
        self.path = paths.cache() / "checkpoints" / f"{name}-{key}.npz"

    def save(self, state, arrays):
        """Write atomically. state: what JSON can hold. arrays: {name: list of arrays}."""
        flat = {f"{name}/{i}": array for name, group in arrays.items() for i, array in enumerate(group)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as file:
            np.savez(file, state=np.array(json.dumps(state)), **flat)
        part.replace(self.path)

    def load(self):
        """(state, arrays) as saved, or None if there is no checkpoint that can be read."""
        try:
            with np.load(self.path, allow_pickle=False) as held:
                state = json.loads(str(held["state"]))
                groups = {}
                for name in held.files:
                    if "/" in name:
                        group, i = name.split("/")
                        groups.setdefault(group, {})[int(i)] = held[name]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return state, {group: [members[i] for i in range(len(members))] for group, members in groups.items()}

    def remove(self):
        self.path.unlink(missing_ok=True)
