"""What one must know to rebuild a classifier and to use it correctly: `model.json`, and what every
exported file carries."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from graft.system.console import GraftError

FILES = {
    "keras": "model.keras",
    "h5": "model.h5",
    "saved_model": "saved_model",
    "tflite": "model.tflite",
    "tflite_fp16": "model_fp16.tflite",
    "tflite_int8": "model_int8.tflite",
    "tflite_dynamic": "model_dynamic.tflite",
    "onnx": "model.onnx",
    "onnx_any_size": "model_any_size.onnx",
    "saved_model_any_size": "saved_model_any_size",
    "openvino": "openvino",
    "coreml": "model.mlpackage",
}
ANY_SIZE = ("onnx_any_size", "saved_model_any_size")  # formats that make the photo small themselves
LABELS = "labels.txt"
EMBEDDED = "graft.json"  # the description's name inside exported files
VERSION = 2
INPUT = "uint8 RGB pixels (n, image_size, image_size, 3), 0..255; the model scales them itself"
INPUT_ANY_SIZE = (
    "uint8 RGB pixels (height, width, 3) of one photo, 0..255; the model makes it small and "
    "scales it itself"
)
OUTPUT = "float32 probabilities (n, classes)"
OUTPUT_8_BITS = "uint8 (n, classes): 256 times the probability, 255 at most"  # of tflite_int8


@dataclass(frozen=True)
class Description:
    """A classifier.

    alpha: width of the backbone. image_size: side S in pixels of the square input. classes: name of
    each output. hidden_units: of the dense layer before the softmax, 0 for none. dropout: rate in
    [0, 1). resize: how a photo becomes S x S, one of squash, crop, pad. trainable_layers: how many
    of the backbone's top layers were trained; 0 means the head alone. temperature: T of
    softmax(logits / T), fitted on the validation images; 1.0 = none. calibrated: whether the
    outputs are divided by it already. max_megapixels: larger photos are refused before they are
    decoded, in prediction as in training (params.data.max_megapixels; see pixels.open_rgb for what
    counts). white: the 16-bit sample that is white in files that state none, in the training
    photos; 0 = none was of that kind.
    """

    backbone: str
    alpha: float
    image_size: int
    classes: tuple[str, ...]
    hidden_units: int
    dropout: float
    resize: str
    trainable_layers: int = 0
    temperature: float = 1.0
    calibrated: bool = False
    white: int = 0
    # As pixels.MAX_MEGAPIXELS: models that were exported before know no other.
    max_megapixels: float = 120.0

    def replace(self, **changes: Any) -> Description:
        return dataclasses.replace(self, **changes)

    def to_json(self, format: str = "") -> str:
        """The same text for the same description, with what goes in and comes out in words: of
        `format`, one of FILES."""
        goes_in = INPUT_ANY_SIZE if format in ANY_SIZE else INPUT
        comes_out = OUTPUT_8_BITS if format == "tflite_int8" else OUTPUT
        tree = {
            **dataclasses.asdict(self),
            "input": goes_in,
            "output": comes_out,
            "version": VERSION,
        }
        return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: object) -> Description:
        """What `to_json` wrote. Raises GraftError, naming `where`, for anything else."""
        try:
            tree = json.loads(text)
            known = {
                field.name: tree[field.name]
                for field in dataclasses.fields(cls)
                if field.name in tree
            }
            return cls(**{**known, "classes": tuple(tree["classes"])})
        except (ValueError, TypeError, KeyError) as error:
            raise GraftError(
                f"{where}: not the description of a classifier, or damaged: {error}"
            ) from None

    def labels_text(self) -> str:
        """One class name per line, in the order of the outputs; a line break in a name becomes a
        space."""
        return "".join(" ".join(name.splitlines()) + "\n" for name in self.classes)
