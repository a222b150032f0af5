"""The process around the work: what TensorFlow, Keras and MLflow are told before their import,
seeds, what converters print."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from graft.system import paths
from graft.system.console import GraftError

if TYPE_CHECKING:
    import tensorflow as tf


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hide what converters and runtimes print, from Python's logging to C++ straight to stderr;
    errors still raise.

    What they wrote is shown after all if the block fails, since it may say why.
    """
    import tempfile
    import warnings

    loggers = [logging.getLogger(name) for name in ("absl", "tensorflow", "tf2onnx")]
    levels = [logger.level for logger in loggers]
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as sink, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(sink.fileno(), 2)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            sink.seek(0)
            os.write(kept, sink.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


# What decides the bytes of results is set outright: a shell, or another project's settings, may say
# something else.
DECISIVE = {
    "KERAS_BACKEND": "tensorflow",
    # Off by default on some processors. On 2 cores of an AMD EPYC it trains the top 50 layers at
    # 160 px 1.6 times as fast for MobileNetV2 and 1.9 times for InceptionV3, and the small network
    # of the demo as fast as without.
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "MPLBACKEND": "agg",  # matplotlib does not even import under a name that it does not know
}
# What would train less, with another Keras, or with another rounding, without a word.
MISLEADING = (
    "KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH", "KERAS_NNX_ENABLED", "TF_USE_LEGACY_KERAS",
    "TF_KERAS", "TF_XLA_FLAGS", "XLA_FLAGS", "TF_ENABLE_AUTO_MIXED_PRECISION",
    "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "TF_SET_ONEDNN_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "NVIDIA_TF32_OVERRIDE",
)  # fmt: skip


def missing(packages: Iterable[str]) -> list[str]:
    """Those of `packages` that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def set_tensorflow_environment() -> None:
    """Environment for TensorFlow, Keras and matplotlib, to be set before their import.

    What decides bytes is set outright (DECISIVE, MISLEADING); how much TensorFlow says is the
    user's.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.update(DECISIVE)
    for name in MISLEADING:
        os.environ.pop(name, None)
    if "MPLCONFIGDIR" not in os.environ and not _can_be_made("~/.config/matplotlib"):
        # Else matplotlib makes a temporary folder, says so, and each process that forks tries to
        # remove it once more.
        os.environ["MPLCONFIGDIR"] = str(paths.cache() / "matplotlib")


def _can_be_made(folder):
    """Whether there is such a folder that can be written; made if it can be, as matplotlib does at
    its import."""
    try:
        Path(folder).expanduser().mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return False
    return os.access(Path(folder).expanduser(), os.W_OK)


def quiet_tensorflow() -> None:
    """Import TensorFlow and Keras without their start-up chatter (a dozen lines on machines without
    a GPU), Keras as it comes.

    Raises GraftError where Keras runs on something else than TensorFlow already, in a notebook say.
    """
    set_tensorflow_environment()
    with silence():
        import keras  # noqa: F401
        import tensorflow

        tensorflow.config.list_physical_devices()
    reset_keras()


def reset_keras() -> None:
    """Keras' own defaults, whatever ~/.keras/keras.json of another project says of number type,
    axes and epsilon.

    Raises GraftError where Keras does not run on TensorFlow: it was imported before graft could
    choose.
    """
    import keras

    if keras.config.backend() != "tensorflow":
        raise GraftError(
            f"Keras runs on {keras.config.backend()} in this process; import graft first, or set "
            "KERAS_BACKEND=tensorflow"
        )
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    keras.config.set_epsilon(1e-7)


def quiet_mlflow() -> None:
    """Environment for MLflow, to be set before its import; what the user has set stays, but for
    what would lose records."""
    # Values would be lost at the end of a process.
    os.environ["MLFLOW_ENABLE_ASYNC_LOGGING"] = "false"
    # The pins are ours, and resolving needs a network.
    os.environ["MLFLOW_LOCK_MODEL_DEPENDENCIES"] = "false"
    # A model says nothing of the shell it was made in.
    os.environ["MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING"] = "false"
    for key, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        # 2 + 4 + 8 s; the default of 7 stalls a stage for minutes.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(key, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It prints a traceback of every error of the database that it raises, too.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def training_scope(seed: int) -> Iterator[tf.distribute.Strategy]:
    """Seed everything, and yield where models live in this block.

    Without a GPU, TensorFlow gives the same bits for the same inputs. With one, results agree
    within tolerance only: gradients of pooling and of depthwise convolutions have no deterministic
    kernels there that are fast. Half precision is then used where it is safe; with several GPUs in
    this host, MirroredStrategy over all.
    """
    import keras
    import tensorflow as tf

    gpus = _seeded(seed)
    keras.mixed_precision.set_global_policy("mixed_float16" if gpus else "float32")
    strategy = tf.distribute.MirroredStrategy() if len(gpus) > 1 else tf.distribute.get_strategy()
    with strategy.scope():
        yield strategy


@contextlib.contextmanager
def full_precision(seed: int) -> Iterator[None]:
    """Seed everything; models in this block compute in float32 on one device, on GPUs too: formats
    are compared to 1e-4."""
    import keras
    import tensorflow as tf

    _seeded(seed)
    keras.mixed_precision.set_global_policy("float32")
    tf.config.experimental.enable_tensor_float_32_execution(False)  # 10 bits of a GPU's products
    yield


def _seeded(seed):
    """Random numbers, and how kernels and memory are used. Returns the GPUs."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        tf.config.experimental.enable_op_determinism()
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # already initialised
            tf.config.experimental.set_memory_growth(gpu, True)
    return gpus
