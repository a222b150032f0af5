"""The process around the work: what TensorFlow, Keras and MLflow are told before their import, seeds, what converters print."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hide what converters and runtimes print, from Python's logging to C++ straight to stderr; errors still raise.

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


def set_tensorflow_environment() -> None:
    """Environment for TensorFlow, to be set before its import; what the user has set stays."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    # Off by default on some processors. On 2 cores of an AMD EPYC it trains the top 50 layers at 160 px 1.6 times as fast for
    # MobileNetV2 and 1.9 times for InceptionV3, and the small network of the demo as fast as without.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def quiet_tensorflow() -> None:
    """Import TensorFlow without its start-up chatter (a dozen lines on machines without a GPU)."""
    set_tensorflow_environment()
    with silence():
        import tensorflow

        tensorflow.config.list_physical_devices()


def quiet_mlflow() -> None:
    """Environment for MLflow, to be set before its import; what the user has set stays."""
    for key, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # 2 + 4 + 8 s; the default of 7 stalls a stage for minutes
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(key, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)


@contextlib.contextmanager
def training_scope(seed: int) -> Iterator[tf.distribute.Strategy]:
    """Seed everything, and yield where models live in this block.

    Without a GPU, TensorFlow gives the same bits for the same inputs. With one, results agree within tolerance only:
    gradients of pooling and of depthwise convolutions have no deterministic kernels there that are fast. Half precision
    is then used where it is safe; with several GPUs in this host, MirroredStrategy over all.
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
    """Seed everything; models in this block compute in float32 on one device, on GPUs too: formats are compared to 1e-4."""
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
