"""Training of what is above the cut, on features: Adam, warm-up, cosine decay, early stopping, a
checkpoint every epoch."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from graft.features.blocks import Images
from graft.features.extractor import Features
from graft.network.checkpoint import Checkpoint
from graft.network.cut import Cut, split_at
from graft.scoring.calibration import calibrated_losses, fit_temperature, log_probabilities
from graft.scoring.history import History
from graft.scoring.predictions import Labelled, Predictions
from graft.scoring.results import TrainingResult
from graft.system.console import GraftError, Progress, log, warn

if TYPE_CHECKING:
    import keras

    from graft.params import Params

PREDICT_BATCH = 64
CLIP = 1.0  # of the gradients' global norm
# Of a head that is trained: what suits depends on the number of photos.
DECAYS = (0.0, 0.01, 0.1, 1.0)
# Mixup of images that are enlarged by MIXED or more: both sets of them that were tried gain by it,
# of three others one (see benchmarks/README.md).
MIXUP, MIXED = 0.2, 3
SHARES = (0.25, 0.5, 0.75)  # of the tuned weights in mixtures with those before training
# Times the validation loss before training, after its first epoch: too much where the end is no
# better.
TORN = 1.5


class LabelledImages(Images, Labelled, Protocol):
    """Images that can be read, and whose classes are known."""


@dataclass(frozen=True)
class Phase:
    """lr: peak learning rate, decayed to 0 along half a cosine over `epochs`. lr_key: the parameter
    that it came from. patience: epochs without a smaller validation loss before training stops.
    warmup: share of all steps over which the rate first rises to lr, in [0, 1).
    weight_decay: AdamW's, decoupled. label_smoothing: share of each label that is spread over all
    classes. mixup: a, where each example is mixed with another of its batch, label and all, its own
    share the larger part of a draw from Beta(a, a) (Zhang et al. 2018); 0: not mixed."""

    lr: float
    lr_key: str
    epochs: int
    patience: int
    warmup: float = 0.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0

    @classmethod
    def head(cls, params: Params) -> Phase:
        """No warm-up: the head starts from nothing that could be torn."""
        return cls(params.head.lr, "head.lr", params.head.epochs, params.head.patience)

    @classmethod
    def fine_tune(cls, params: Params, *, enlarged: float) -> Phase:
        """enlarged: `classifier.enlargement` of the images."""
        block = params.fine_tune
        mixup = MIXUP * (enlarged >= MIXED) if block.mixup == "auto" else float(block.mixup)
        return cls(params.lr, "lr", block.epochs if block.layers else 0, block.patience,
                   block.warmup, block.weight_decay, block.label_smoothing, mixup)  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """class_weights: one factor per class on the loss, or None."""

    phase: Phase
    batch_size: int
    seed: int
    class_weights: tuple[float, ...] | None = None

    @classmethod
    def of(cls, params: Params, phase: Phase, labels: np.ndarray) -> TrainConfig:
        """From params.yaml. labels: int (n,) of the training images, among which every class
        occurs."""
        weights = None
        if params.head.class_weights == "balanced":
            from sklearn.utils.class_weight import compute_class_weight

            weights = tuple(
                map(float, compute_class_weight("balanced", classes=np.unique(labels), y=labels))
            )
        return cls(phase, params.batch_size, params.seed, weights)


def train(
    model: keras.Model,
    cut: Cut,
    train: Features[LabelledImages],
    val: Features[LabelledImages],
    config: TrainConfig,
    *,
    checkpoint: Checkpoint,
    previous: History | None = None,
    on_epoch: Callable[[dict], None] | None = None,
) -> TrainingResult:
    """Train what is above `cut` in `model`, in place, and leave in it the weights of the epoch with
    the least validation loss.

    train, val: features at the cut, of image sets that know their labels. Epoch e takes view
    (i + e) mod views of training image i, and view 0 of val. checkpoint: what it holds of this very
    training is continued, and ends with the same bits as if never interrupted. previous: the curves
    so far; with them the weights before training are a candidate for the best, and the epochs count
    on. on_epoch: called with each epoch's row of the curves. Raises GraftError, naming lr and
    epoch, when the loss is no longer finite.
    """
    top = split_at(model, cut)[1]
    first = len(previous.rows) if previous else 0

    def report(row):
        if on_epoch:
            on_epoch({**row, "epoch": row["epoch"] + first})

    monitor = _fit(
        top, train, val, config, checkpoint=checkpoint, on_epoch=report, mix=previous is not None
    )
    predictions = Predictions.of(val.images, predict(top, val))
    history = previous.continued(monitor.rows) if previous else History(tuple(monitor.rows))
    temperature = fit_temperature(log_probabilities(predictions.probabilities), predictions.labels)
    return TrainingResult(history, predictions, temperature, len(monitor.rows))


def fit_head(
    model: keras.Model,
    cut: Cut,
    train_features: Features[LabelledImages],
    val: Features[LabelledImages],
    config: TrainConfig,
    *,
    checkpoint: Checkpoint,
    on_epoch: Callable[[dict], None] | None = None,
) -> TrainingResult:
    """`train` with each weight decay of DECAYS, from one start; the one with the least validation
    loss, after its temperature, stays. on_epoch: called with the rows of that one alone, once it is
    known.
    """
    variables = split_at(model, cut)[1].variables  # the random state of a dropout among them
    start = [variable.numpy() for variable in variables]
    tried = []
    for decay in DECAYS:
        _assign(variables, start)
        phase = dataclasses.replace(config.phase, weight_decay=decay)
        own = dataclasses.replace(config, phase=phase)
        result = train(model, cut, train_features, val, own, checkpoint=checkpoint.of(f"{decay:g}"))
        loss = calibrated_losses(result.predictions.probabilities, result.predictions.labels).mean()
        tried.append((loss, decay, result, [variable.numpy() for variable in variables]))
    loss, decay, result, weights = min(tried, key=lambda each: each[0])
    _assign(variables, weights)
    log(
        f"head: weight decay {decay:g} of {', '.join(f'{each:g}' for each in DECAYS)}, val loss "
        f"after temperature {loss:.4f}"
    )
    if on_epoch:
        for row in result.history.rows:
            on_epoch(row)
    return result


def _assign(variables, values):
    for variable, value in zip(variables, values):
        variable.assign(value)


def predict(top: keras.Model, features: Features, indices: np.ndarray | None = None) -> np.ndarray:
    """What `top` gives, float (n, C), for view 0 of all images or those at `indices`, int (n,). In
    batches of one size, padded: bits do not depend on company."""
    return _predictor(top, features, indices)()


def _predictor(top, features, chosen=None):
    """`predict` of these, to be called again and again as `top` changes."""
    import tensorflow as tf

    call = tf.function(
        lambda x: top(x, training=False), input_signature=[_signature(features)], autograph=False
    )

    def run():
        every = np.arange(len(features)) if chosen is None else chosen
        n, parts = len(every), []
        for start in range(0, n, PREDICT_BATCH):
            indices = np.minimum(np.arange(start, start + PREDICT_BATCH), n - 1)
            parts.append(call(_ready(features.take(every[indices]))).numpy()[: n - start])
        return np.concatenate(parts)

    return run


def _fit(top, train, val, config, *, checkpoint, on_epoch, mix):
    """Train; leave the chosen weights in `top`. mix: whether the weights before training, and
    mixtures with them, are candidates.

    Returns the TrainingMonitor.
    """
    import keras

    phase, config = config.phase, _divisible(config)
    steps = math.ceil(len(train) / config.batch_size)
    optimizer = keras.optimizers.AdamW(
        _rate(phase, steps * phase.epochs), weight_decay=phase.weight_decay, global_clipnorm=CLIP
    )
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    top.compile(
        optimizer=optimizer,
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=phase.label_smoothing),
        metrics=[keras.metrics.CategoricalAccuracy("accuracy")],
        # XLA makes training ten times slower on a CPU; "auto" leaves out what has no kernel on a
        # GPU.
        jit_compile="auto" if _has_gpu() else False,
    )
    top.optimizer.build(top.trainable_variables)
    monitor = TrainingMonitor(top, val, phase, checkpoint, on_epoch)
    first = monitor.resume(mix)
    if first < phase.epochs and not monitor.is_over():
        with Progress("training", steps * (phase.epochs - first), unit="step") as progress:
            top.fit(
                _dataset(train, config, top.output.shape[1], epoch=first),
                initial_epoch=first,
                epochs=phase.epochs,
                steps_per_epoch=steps,
                callbacks=[monitor.callback(progress)],
                shuffle=False,
                verbose=0,
            )
    monitor.choose(mix)
    return monitor


def _divisible(config):
    """`config` with a batch that the devices divide: Keras' symbolic build fails on any other."""
    import tensorflow as tf

    devices = tf.distribute.get_strategy().num_replicas_in_sync
    size = math.ceil(config.batch_size / devices) * devices
    if size != config.batch_size:
        log(
            f"batch_size {config.batch_size} is rounded up to {size}, a multiple of {devices} "
            "devices"
        )
    return dataclasses.replace(config, batch_size=size)


def _rate(phase, steps):
    """The learning rate over `steps` steps: up a straight line, down half a cosine (Loshchilov and
    Hutter 2017).

    Adam's first steps are as long as the rate, however small the gradient. At full rate they tear
    pretrained layers apart whose BatchNorm cannot follow, the more the deeper the unfreezing: the
    top 100 layers of MobileNetV2 on CIFAR-10 at 0.001 fell to chance in the first epochs; with a
    warm-up they learn. The first of w rising steps has 1/w of the peak, and the last of all more
    than nothing: a step at rate 0 is lost.
    """
    import keras

    rising = min(round(phase.warmup * steps), steps - 1)
    if rising < 2:
        return keras.optimizers.schedules.CosineDecay(phase.lr, max(1, steps))
    return keras.optimizers.schedules.CosineDecay(
        phase.lr / rising, steps - rising + 1, warmup_target=phase.lr, warmup_steps=rising - 1
    )


def _ready(values):
    """Half precision is how features are kept, not how they are computed with; pixels stay what
    they are.

    NumPy casts: TensorFlow's oneDNN reports an error for half precision on most processors before
    it falls back. A GPU takes half precision as it is, at half the bytes, and Keras casts there.
    """
    return values.astype(np.float32) if values.dtype == np.float16 and not _has_gpu() else values


def _has_gpu():
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def _signature(features):
    import tensorflow as tf

    wide = np.float32 if features.dtype == np.float16 and not _has_gpu() else features.dtype
    return tf.TensorSpec((None, *features.shape), tf.as_dtype(wide))


def _dataset(features, config, classes, *, epoch):
    """tf.data over shuffled batches (features, targets float32 (b, C), weights float32 (b,)),
    beginning with `epoch`.

    What epoch e sees depends on the seed and e alone, so that a resumed training sees what it would
    have seen.
    """
    import tensorflow as tf

    n, size = len(features), config.batch_size
    targets = np.eye(classes, dtype=np.float32)[features.images.labels]
    weights = np.array(config.class_weights or [1.0] * classes, np.float32)

    def batches():
        for e in itertools.count(epoch):
            rng = np.random.default_rng([config.seed, e])
            order = rng.permutation(n)
            for start in range(0, n, size):
                indices = order[start : start + size]
                # Each image goes through its views in turn, but not all in step: an epoch of
                # unaugmented images alone, every few epochs, makes the validation loss swing with
                # that period.
                seen = _ready(features.take(indices, (indices + e) % features.views))
                wanted = targets[indices]
                if config.phase.mixup:
                    seen, wanted = _mixed(seen, wanted, config.phase.mixup, rng)
                yield seen, wanted, wanted @ weights

    signature = (
        _signature(features),
        tf.TensorSpec((None, classes), tf.float32),
        tf.TensorSpec((None,), tf.float32),
    )
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    # There is nothing to tune, and now and then the tuner's thread held up the end of a training
    # until its own next turn. Its turns come 10 ms, 20 ms, 40 ms … apart: after 64 s of training it
    # was seen to wait for the 82nd.
    options.autotune.enabled = False
    return dataset.prefetch(4).with_options(options)


def _mixed(seen, wanted, a, rng):
    """Each example of a batch mixed with another: features (pixels rounded) and targets alike."""
    own = rng.beta(a, a, len(seen)).astype(np.float32)
    own, other = np.maximum(own, 1 - own), rng.permutation(len(seen))
    shares = own.reshape(-1, *[1] * (seen.ndim - 1))
    mixed = shares * seen + (1 - shares) * seen[other]
    if seen.dtype == np.uint8:
        mixed = np.rint(mixed)
    own = own[:, np.newaxis]
    return mixed.astype(seen.dtype), own * wanted + (1 - own) * wanted[other]


class TrainingMonitor:
    """Keeps curves, best weights and checkpoint of one training of `model`, compiled; chooses what
    it ends with.

    Candidates are compared by the log loss of the validation images after the temperature that fits
    each best.
    """

    def __init__(
        self,
        model: keras.Model,
        val: Features[LabelledImages],
        phase: Phase,
        checkpoint: Checkpoint,
        on_epoch: Callable[[dict], None],
    ):
        self.model, self.phase, self.checkpoint, self.on_epoch = model, phase, checkpoint, on_epoch
        self.labels, self.predict = val.images.labels, _predictor(model, val)
        self.start, self.best, self.waited = self._weights(), self._weights(), 0
        self.rows: list[dict[str, Any]] = []
        self.losses = np.full(len(self.labels), np.inf)
        # Until `resume` judges what a mixture starts with.
        self.start_losses, self.start_accuracy = self.losses, 0.0

    def callback(self, progress: Progress) -> keras.callbacks.Callback:
        """The same as Keras takes it; a subclass of its own class would need Keras when this module
        is imported."""
        import keras

        def on_train_batch_end(batch, logs):
            progress.advance()
            self._require_finite("loss", logs["loss"])

        return keras.callbacks.LambdaCallback(
            on_epoch_begin=self.on_epoch_begin,
            on_epoch_end=self.on_epoch_end,
            on_train_batch_end=on_train_batch_end,
        )

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.epoch, self.lr, self.started = (
            epoch,
            float(self.model.optimizer.learning_rate),
            time.monotonic(),
        )

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        probabilities = self.predict()
        self._require_finite("validation loss", float(probabilities.sum()))
        row = {
            "epoch": epoch,
            "lr": self.lr,
            "train_loss": float(logs["loss"]),
            "train_accuracy": float(logs["accuracy"]),
            **self._validation(probabilities),
        }
        self.rows.append(row)
        losses = calibrated_losses(probabilities, self.labels)
        self.waited += 1
        if losses.mean() < self.losses.mean():
            self.losses, self.best, self.waited = losses, self._weights(), 0
        log(
            f"epoch {epoch + 1}/{self.phase.epochs}: loss {row['train_loss']:.4f}, accuracy "
            f"{row['train_accuracy']:.4f}, val loss {row['val_loss']:.4f}, val accuracy "
            f"{row['val_accuracy']:.4f}, {time.monotonic() - self.started:.1f} s"
        )
        self.on_epoch(row)
        state = {"rows": self.rows, "waited": self.waited}
        self.checkpoint.save(
            state, {"now": self._moving(), "best": self.best, "losses": [self.losses]}
        )
        if self.is_over():
            self.model.stop_training = True

    def _validation(self, probabilities):
        right = np.maximum(
            probabilities[np.arange(len(self.labels)), self.labels], np.finfo(np.float32).tiny
        )
        accuracy = (probabilities.argmax(axis=1) == self.labels).mean()
        return {
            "val_loss": float(-np.log(right.astype(np.float64)).mean()),
            "val_accuracy": float(accuracy),
        }

    def _require_finite(self, what, value):
        if not math.isfinite(value):
            raise GraftError(
                f"the {what} is {value} in epoch {self.epoch} at lr {self.lr:.3g}: training "
                f"diverged; lower {self.phase.lr_key} in params.yaml"
            )

    def is_over(self) -> bool:
        return self.waited >= self.phase.patience

    def choose(self, mix: bool) -> None:
        """Leave the best weights in the model: of an epoch, or mixed with those before training
        (WiSE-FT, Wortsman et al. 2022).

        Those before training give way only where the gain exceeds its standard error over the
        images: less is noise.
        """
        if not mix:
            return self._put(self.best)
        found = {"epoch": (self.losses, self.best)} if self.rows else {}
        for name, tuned in (("best", self.best), ("last", self._weights())) if self.rows else ():
            for share in SHARES:
                self._put([(1 - share) * a + share * b for a, b in zip(self.start, tuned)])
                found[f"{name}, {share:g} of it"] = (
                    calibrated_losses(self.predict(), self.labels),
                    self._weights(),
                )
        if not found:
            return self._put(self.start)
        name = min(found, key=lambda key: found[key][0].mean())
        losses, weights = found[name]
        gain = self.start_losses - losses
        kept = gain.mean() <= gain.std() / math.sqrt(len(gain))
        self._put(self.start if kept else weights)
        self._warn_if_torn()
        why = "the gain is within its standard error" if gain.mean() > 0 else "it is no worse"
        log(
            f"validation loss after temperature: {self.start_losses.mean():.4f} before, "
            f"{losses.mean():.4f} after ({name}): {f'the head stays, {why}' if kept else 'taken'}"
        )

    def _warn_if_torn(self):
        """Steps that are too long undo what the layers knew; where the rest of the training cannot
        mend it, say what would.

        Not of a rise that photos this few show by chance, nor of one that turns no photo wrong:
        smoothed labels raise the loss.
        """
        before, first, last = (
            self.start_losses.mean(),
            self.rows[0]["val_loss"],
            self.rows[-1]["val_loss"],
        )
        rise, wrong = (
            self.losses - self.start_losses,
            self.rows[0]["val_accuracy"] < self.start_accuracy,
        )
        sure = rise.mean() > 2 * rise.std() / math.sqrt(len(rise))
        if first > TORN * before and last > before and wrong and sure:
            warn(
                f"the first epoch tore the network: validation loss {before:.4f} before it, "
                f"{first:.4f} after, {last:.4f} at the end; a lower {self.phase.lr_key} (now "
                f"{self.phase.lr:g}) may gain what this one loses"
            )

    def _put(self, weights):
        _assign(self.model.trainable_variables, weights)

    def _weights(self):
        return [v.numpy() for v in self.model.trainable_variables]

    def resume(self, mix: bool) -> int:
        """Take up the checkpoint of this training, if there is one. Returns the epoch to go on
        with."""
        if mix:
            before = self.predict()
            self.start_losses = calibrated_losses(before, self.labels)
            self.start_accuracy = self._validation(before)["val_accuracy"]
        like = {"now": self._moving(), "best": self.start, "losses": [self.losses]}
        held = self.checkpoint.load(like)
        if held is None:
            return 0
        state, arrays = held
        _assign(self._variables(), arrays["now"])
        self.rows, self.waited, self.best, (self.losses,) = (
            state["rows"],
            state["waited"],
            arrays["best"],
            arrays["losses"],
        )
        log(f"resumed after epoch {len(self.rows)} of {self.phase.epochs}")
        for row in self.rows:
            self.on_epoch(row)
        return len(self.rows)

    def _variables(self):
        """Everything that a step changes: weights, the optimiser's state, and the states of the
        random generators (dropout)."""
        generators = [
            v for v in self.model.non_trainable_variables if "seed_generator_state" in v.path
        ]
        return [*self.model.trainable_variables, *self.model.optimizer.variables, *generators]

    def _moving(self):
        return [v.numpy() for v in self._variables()]
