"""The code of the registered model, which travels with it (MLflow's "models from code"; no pickle
is involved).

It needs nothing of the project but the files beside it: NumPy, pandas, Pillow, Keras and TensorFlow
do.
"""

import base64
import binascii
import contextlib
import importlib.util
import json
import os
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# What decides numbers is set outright, whatever the shell says.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel
from PIL import Image

CHUNK = 32  # images per call of the network


class ImageClassifier(PythonModel):
    """Image classifier: `predict(images)` says what each image shows.

    images: one image or several (list, tuple, NumPy array, pandas Series, DataFrame of one column),
    each of them
        - bytes of an image file (JPEG, PNG, WebP, BMP, GIF, TIFF),
        - a str: the same in base64 (what JSON can carry), with or without "data:image/…;base64,",
        - pixels, (height, width, 3) RGB, whole numbers 0..255, any size; an array or nested lists,
        - a `pathlib.Path`. A str is never taken for a path: who may send requests shall not read
          the server's disk.
    A server takes them as `inputs` or `instances` (a list, or {"image": [...]} and [{"image": …},
    …]) and as `dataframe_split` or `dataframe_records` of one column.
    Returns a DataFrame, one row per image: `label`, the likeliest class; `confidence`, its
    probability; `probabilities`, a dict {class: probability} in the order of the classes; and where
    the model carries what it takes, `known`, a p-value: the share of photos of these classes that
    look at least as strange to it. Near 0, the image shows none of them.
    Of several images, one that cannot be used has None for label, confidence and known, no
    probabilities, and a further column `problem` says why, "" for the others.
    Raises MlflowException (a server answers 400) that names its position where no image can be
    used.
    """

    # Else MLflow warns at every load: no type hint of its says "bytes, base64 or pixels".
    _skip_type_hint_validation = True

    def load_context(self, context):
        import keras
        import tensorflow as tf

        _reset(keras)
        path = context.artifacts["model"]
        with zipfile.ZipFile(path) as archive:
            description = json.loads(archive.read("graft.json"))
        self.classes, self.size, self.resize = (
            description[key] for key in ("classes", "image_size", "resize")
        )
        self.reading = {
            "max_megapixels": description.get("max_megapixels", 120.0),
            "white": description.get("white", 0),
        }
        model = keras.saving.load_model(path, compile=False)
        spec = tf.TensorSpec((None, self.size, self.size, 3), "uint8")
        self.known = None
        if "known" in context.artifacts:
            code = _module(context.artifacts["known_code"], "graft_known")
            self.known, last = code.Known.read(context.artifacts["known"]), model.layers[-1]
            names = {layer.name for layer in model.layers}
            pooled = model.get_layer("pooled" if "pooled" in names else "pooling").output
            model = keras.Model(model.input, [model.output, pooled, last.input])
            # Known is measured before any temperature, which the kernel holds already.
            scale = description["temperature"] if description["calibrated"] else 1.0
            self.kernel, self.bias = (weight * scale for weight in last.get_weights())
        self.network = tf.function(
            lambda images: model(images, training=False), input_signature=[spec]
        )
        self.one_large = threading.Lock()
        self.decoder = _module(context.artifacts["pixels"], "graft_pixels")

    def predict(self, context, model_input, params=None):
        images = _as_list(model_input)
        rows, known, problems = [], [], {}

        def read(position, image):
            try:
                return self._pixels(position, image)
            except MlflowException as error:
                # Of one photo: the others of the batch have their answers.
                problems[position] = error
                return np.zeros((self.size, self.size, 3), np.uint8)

        with ThreadPoolExecutor(thread_name_prefix="decode") as pool:
            for start in range(0, len(images), CHUNK):
                chunk = images[start : start + CHUNK]
                batch = np.stack(list(pool.map(read, range(start, start + len(chunk)), chunk)))
                if self.known is None:
                    rows.append(self.network(batch).numpy())
                    continue
                probabilities, pooled, last = (tensor.numpy() for tensor in self.network(batch))
                rows.append(probabilities)
                known.append(self.known.p_values(pooled, last @ self.kernel + self.bias))
        if images and len(problems) == len(images):
            raise problems[0]
        probabilities = np.concatenate(rows) if rows else np.empty((0, len(self.classes)))
        best = probabilities.argmax(axis=1)
        more = (
            {} if self.known is None else {"known": np.concatenate(known) if known else np.empty(0)}
        )
        found = pd.DataFrame(
            {
                "label": pd.Series([self.classes[k] for k in best], dtype=object),
                "confidence": probabilities[np.arange(len(best)), best].astype(float),
                "probabilities": [
                    dict(zip(self.classes, map(float, row))) for row in probabilities
                ],
                **more,
            }
        )
        return _with_problems(
            found, {position: error.message for position, error in problems.items()}
        )

    def _pixels(self, position, image):
        """One image as uint8 (S, S, 3)."""
        try:
            if isinstance(image, str):
                image = _from_base64(image)
            if isinstance(image, (bytes, bytearray, memoryview, Path)):
                # A few kilobytes can hold a hundred megapixels: several of these at once would take
                # gigabytes.
                with self.one_large if self.decoder.is_large(image) else contextlib.nullcontext():
                    return self.decoder.load(image, self.size, resize=self.resize, **self.reading)
            return self.decoder.fit(Image.fromarray(_checked(image)), self.size, self.resize)
        except (ValueError, TypeError, OSError, self.decoder.ImageProblem) as error:
            raise _invalid(f"image {position}: {error}") from None


def _with_problems(found, problems):
    """`found` with a column `problem` where there is one: its row has neither label nor confidence,
    and no probabilities."""
    if not problems:
        return found
    found = found.astype(object)  # None, where NaN would be no JSON
    for position in problems:
        (
            found.at[position, "label"],
            found.at[position, "confidence"],
            found.at[position, "probabilities"],
        ) = None, None, {}
        if "known" in found:
            found.at[position, "known"] = None
    return found.assign(problem=[problems.get(position, "") for position in range(len(found))])


def _invalid(message):
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


def _reset(keras):
    """Keras' own defaults, whatever ~/.keras/keras.json of another project says."""
    if keras.config.backend() != "tensorflow":
        raise MlflowException(
            f"this model needs Keras on TensorFlow, but Keras runs on {keras.config.backend()} in "
            "this process"
        )
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    keras.config.set_epsilon(1e-7)


def _module(path, name):
    """A file of the project that travels along. Not through sys.path: two versions may be loaded in
    one process."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _as_list(images):
    if isinstance(images, pd.DataFrame):
        if images.shape[1] != 1:
            raise _invalid(f"a DataFrame of images must have one column, not {images.shape[1]}")
        images = images.iloc[:, 0]
    if isinstance(images, dict):  # {"image": …} of a JSON request
        if len(images) != 1:
            raise _invalid(f"a dict of images must have one key, not {len(images)}")
        return _as_list(next(iter(images.values())))
    if isinstance(images, (bytes, bytearray, memoryview, str, Path)):
        return [images]
    if isinstance(images, (list, tuple)) and images and isinstance(images[0], (list, tuple)):
        images = _nested(images)
    if isinstance(images, np.ndarray):
        if images.ndim == 0:
            return _as_list(images.item())
        if images.ndim == 3 and images.dtype.kind in "uif":  # one image
            return [images]
    return list(images)


def _nested(lists):
    """Nested lists as one array, where they make one: pixels of one image, or of several of one
    size."""
    try:
        return np.asarray(lists)
    except ValueError:
        return lists


def _from_base64(text):
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(
            "a str must hold the bytes of an image file in base64; give a path as pathlib.Path"
        ) from None


def _checked(image):
    pixels = np.asarray(image)
    if (
        pixels.dtype.kind not in "uif"
        or pixels.ndim != 3
        or pixels.shape[2] != 3
        or 0 in pixels.shape
    ):
        found = f"{pixels.dtype} {pixels.shape}"
        raise ValueError(
            "neither an image file's bytes, nor base64, nor RGB pixels (height, width, 3), but "
            f"{found}"
        )
    if pixels.dtype != np.uint8:
        if (
            not np.isfinite(pixels).all()
            or pixels.min() < 0
            or pixels.max() > 255
            or (pixels != np.floor(pixels)).any()
        ):
            raise ValueError("pixels must be whole numbers 0..255, not scaled")
        pixels = pixels.astype(np.uint8)
    return np.ascontiguousarray(pixels)


mlflow.models.set_model(ImageClassifier())
