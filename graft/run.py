"""What every stage has around it, so that a recipe holds nothing but its method."""

from collections.abc import Callable

from graft import params as parameters
from graft.forkserver import client
from graft.params import Params
from graft.system import installed
from graft.system.console import GraftError, entry
from graft.system.environment import (
    full_precision,
    missing,
    quiet_tensorflow,
    set_tensorflow_environment,
    training_scope,
)
from graft.tracking.runs import StageRun, stage_run

Recipe = Callable[[Params, StageRun], object]
Check = Callable[[Params], object]
PLAIN = ("split",)  # stages without a network
EXACT = ("export",)  # whose network is compared to the last digits
ONNX = ("onnx", "tf2onnx", "onnxruntime")
# Packages to write and check a format, and the extra of graft's that has them.
EXTRAS = {
    "onnx": (ONNX, "onnx"),
    "onnx_any_size": (ONNX, "onnx"),
    "openvino": (("openvino", *ONNX[:2]), "openvino"),
    "coreml": (("coremltools",), "coreml"),
}


def run_stage(recipe: Recipe, *, check: Check | None = None) -> None:
    """Run `recipe`, a function of (params, run) named like its stage, on params.yaml; in the fork
    server if there is one.

    check: what refuses parameters before any work. A mistake of the user ends the process with one
    line and exit status 1.
    """

    @entry
    def main() -> None:
        execute(recipe, parameters.load(), check)

    client.run(f"stages.{recipe.__name__}", main)


def execute(recipe: Recipe, params: Params, check: Check | None = None) -> None:
    """The stage `recipe` in this process: checked, recorded in MLflow, TensorFlow quiet and seeded.

    Raises GraftError for a mistake of the user, a tracking server that cannot be reached among
    them, before any work.
    """
    set_tensorflow_environment()
    installed.check_pin()
    _check_formats(params)
    if check is not None:
        check(params)
    stage = recipe.__name__.replace("_", "-")
    with stage_run(stage, params) as run:
        if stage in PLAIN:
            recipe(params, run)
            return
        quiet_tensorflow()
        with full_precision(params.seed) if stage in EXACT else training_scope(params.seed):
            recipe(params, run)


def _check_formats(params):
    """Raise GraftError where a package is missing that export will need: in the first stage, not
    after hours of training."""
    for format in params.export.formats:
        packages, extra = EXTRAS.get(format, ((), ""))
        if lacking := missing(packages):
            names = " and ".join(lacking)
            raise GraftError(
                f"export.formats: {format} needs {names}; pip install 'graft-vision[{extra}]', or "
                "drop it from export.formats"
            )
