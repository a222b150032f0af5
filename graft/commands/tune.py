"""Search for better parameters: trials are experiments up to fine-tune, judged on validation
photos."""

import argparse
import contextlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, cast

from graft import params as parameters
from graft.forkserver import client
from graft.params import Params
from graft.scoring.calibration import calibrated_losses
from graft.scoring.predictions import Predictions
from graft.scoring.statistics import Comparison, compare_predictions
from graft.system import paths
from graft.system.console import GraftError, log, warn
from graft.tracking import dvc_lock, experiments
from graft.tracking.study import Choice, Range, Study, StudyRun, Trial, Value, study_name

UP_TO = "fine-tune"
STAGES = ("split", "train-head", UP_TO)  # whose params a trial can be told by
SETS_IMAGES = ("seed", "data")  # change the validation photos, on which trials are compared
RANGE = re.compile(r"([-+.\deE]+)\.\.([-+.\deE]+?)(:log)?")
WORD = re.compile(r"[\w.+/-]+")  # what neither a shell nor Hydra takes apart
FAILURES = 3  # in a row: something else is wrong than the params
METRICS = {"loss": 1.0, "accuracy": -1.0}  # sign with which less is better


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-S",
        dest="space",
        action="append",
        required=True,
        metavar="KEY=LOW..HIGH[:log]|A,B,C",
        help="what is searched",
    )
    parser.add_argument(
        "--trials",
        type=int,
        default=20,
        help="of the study, those of earlier and other runs among them",
    )
    parser.add_argument(
        "--metric",
        choices=METRICS,
        default="loss",
        help="of the validation photos (default: %(default)s)",
    )
    parser.add_argument(
        "--name", help="of the study; by default made of params, code and what is searched"
    )
    parser.add_argument(
        "--storage",
        help="address of a database for workers on several machines (default: mlruns/tune.db)",
    )


def tune(args: argparse.Namespace) -> None:
    """`graft tune --trials N -S KEY=LOW..HIGH[:log] -S KEY=A,B,C`. The same command goes on with
    the study, or joins it.

    Raises GraftError for params that there are not or that trials are not told by, values that do
    not fit, and where too many trials fail.
    """
    base = parameters.load()
    space = dict(_dimension(text, base) for text in args.space)
    flat = base.flat()
    # May differ from clone to clone.
    elsewhere = ("data.path", *(key for key in flat if key.startswith("tracking.")))
    fixed = {key: value for key, value in flat.items() if key not in elsewhere}
    name = args.name or study_name(space, fixed, args.metric, dvc_lock.code_digest())
    folder = paths.root().resolve() / "mlruns"
    folder.mkdir(exist_ok=True)
    study = Study(
        name,
        space,
        {key: flat[key] for key in space},
        args.storage or f"sqlite:///{folder / 'tune.db'}",
    )
    run = StudyRun(base, name, space)
    os.environ |= client.lend()
    log(
        f"tune: study {name}, {len(study.finished())} of {args.trials} trials done; what they "
        f"print is in {study.folder}"
    )
    try:
        _search(study, run, args.trials, args.metric, base.seed)
        if study.running():
            numbers = ", ".join(map(str, study.running()))
            log(
                f"tune: trials {numbers} are under way elsewhere; after them the same command "
                "runs the best one through"
            )
            return
        _conclude(study, run, base)
    except KeyboardInterrupt:
        log("tune: interrupted; the same command goes on with the study")
        raise
    finally:
        run.end()


def _search(study: Study, run: StudyRun, trials: int, metric: str, seed: int) -> None:
    failed = 0
    while True:
        with study.next(trials, seed) as trial:
            if trial is None:
                return
            try:
                value, figures = _value(study, trial, metric)
            except GraftError as error:
                study.fail(trial)
                failed += 1
                if trial.number == 0 or failed == FAILURES:
                    raise
                warn(f"trial {trial.number} ({_shown(trial.values)}) failed: {error}")
                continue
            failed = 0
            study.finish(trial, value)
            run.record(trial.number, _experiment(study, trial), figures)
            best = study.best().number
            told = ", ".join(f"{key} {figures[key]:.4f}" for key in METRICS)
            log(
                f"tune: trial {trial.number}: {_shown(trial.values)}: {told}; best so far: trial "
                f"{best}"
            )


def _value(study: Study, trial: Trial, metric: str) -> tuple[float, dict[str, float]]:
    """(what is made small, the figures) of a trial, run if no earlier one was the same."""
    same = study.seen(trial)
    name = _experiment(study, trial if same is None else same)
    commit = experiments.commit(name) or experiments.run(
        name, _overrides(trial.values), cast(BinaryIO, trial.log), UP_TO
    )
    lock = experiments.read(commit, dvc_lock.DVC_LOCK)
    if not study.same_images(_manifest_digest(lock)):
        raise GraftError(
            "its validation photos are not those of the trials before: the data have changed; "
            "--name OTHER"
        )
    seen = _predictions(commit)
    # By its own temperature, as epochs are chosen: overconfidence alone is no fault of a trial.
    figures = {
        "loss": calibrated_losses(seen.probabilities, seen.labels).mean(),
        "accuracy": seen.correct.mean(),
    }
    return METRICS[metric] * float(figures[metric]), {key: float(figures[key]) for key in METRICS}


def _conclude(study: Study, run: StudyRun, base: Params) -> None:
    """The best trial through evaluate and export, and whether the search has gained anything."""
    best = study.best()
    run.end(best=_experiment(study, best))
    if best.number == 0:
        log(
            f"tune: today's params are the best of {len(study.finished())} trials: nothing was "
            "gained, nothing to change"
        )
        return
    name = f"{study.name}-best"
    log(
        f"tune: trial {best.number} is the best: {_shown(best.values)}; it runs through evaluate "
        f"and export, as {name}"
    )
    with contextlib.ExitStack() as held:
        file = study.hold("best.log", held)
        if file is None:
            log("tune: another worker does that")
            return
        commit = experiments.commit(name) or experiments.run(name, _overrides(best.values), file)
    run.record(best.number, name, {})
    first = experiments.commit(_experiment(study, Trial(0, {})))
    options = {"resamples": base.evaluate.bootstrap, "seed": base.seed}
    log(gain(compare_predictions(_predictions(first), _predictions(commit), **options)))
    log(f"tune: to take it over: dvc exp apply {name}")


def gain(c: Comparison) -> str:
    """What the search has gained in accuracy over trial 0, in a line."""
    sure = (
        "it gained"
        if c.low > 0
        else "it lost"
        if c.high < 0
        else "whether it gained anything is not settled"
    )
    return (
        f"tune: validation accuracy against today's params {c.difference:+.4f} (95% interval "
        f"{c.low:+.4f} to {c.high:+.4f}, n = {c.n}): {sure}; the figure leans upwards, since the "
        "same photos chose the trial"
    )


def _predictions(commit):
    with tempfile.TemporaryDirectory(prefix="graft-") as folder:
        file = Path(folder) / "predictions.csv"
        file.write_text(
            experiments.read(commit, paths.FINE_TUNE / "predictions.csv"),
            encoding="utf-8",
            newline="",
        )
        return Predictions.read(file)


def _manifest_digest(lock: str) -> str:
    from ruamel.yaml import YAML

    deps = YAML(typ="safe").load(io.StringIO(lock))["stages"][UP_TO]["deps"]
    return next(
        dep["md5"] for dep in deps if dep["path"] == (paths.SPLIT / "manifest.csv").as_posix()
    )


def _experiment(study, trial):
    return f"{study.name}-{trial.number}"


def _overrides(values: Mapping[str, Value]) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()
    }


def _shown(values: Mapping[str, Value]) -> str:
    return " ".join(
        f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={w}"
        for (k, v), w in zip(values.items(), _words(values))
    )


def _words(values):
    return _overrides(values).values()


def _dimension(text: str, base: Params) -> tuple[str, Range | Choice]:
    """(key, its values) of KEY=LOW..HIGH[:log] or KEY=A,B,C; today's value is among the latter."""
    key, _, given = text.partition("=")
    flat = base.flat()
    if key not in flat:
        near = parameters.nearest(key)
        raise GraftError(
            f"-S {text}: no such parameter; "
            + (f"did you mean {near[0]}?" if near else "graft params lists them")
        )
    if any(key == name or key.startswith(f"{name}.") for name in SETS_IMAGES):
        raise GraftError(f"-S {text}: changes the validation photos, on which trials are compared")
    if not any(key in dvc_lock.stage_keys(stage, base) for stage in STAGES):
        raise GraftError(
            f"-S {text}: no stage up to {UP_TO} reads it, so that it changes no trial's figures"
        )
    today = flat[key]
    found = RANGE.fullmatch(given)
    dimension = _range(text, found, today) if found else _choice(text, given, today)
    for value in _ends(dimension):
        _check(key, value)
    return key, dimension


def _range(text, found, today):
    try:
        whole = isinstance(today, int) and not isinstance(today, bool)
        low, high = ((int if whole else float)(end) for end in found.groups()[:2])
    except ValueError:
        raise GraftError(
            f"-S {text}: {'whole ' * whole}numbers are wanted on both sides of .."
        ) from None
    if isinstance(today, bool) or not isinstance(today, (int, float)):
        raise GraftError(
            f"-S {text}: today's value is {json.dumps(today)}, no number: name the values, "
            "KEY=A,B,C"
        )
    if not low < high:
        raise GraftError(f"-S {text}: the range must rise")
    if found[3] and min(low, today) <= 0:
        raise GraftError(
            f"-S {text}: only numbers above 0 have a logarithm, today's {today} among them"
        )
    return Range(low, high, bool(found[3]), whole)


def _choice(text, given, today):
    from ruamel.yaml import YAML

    words = given.split(",")
    if not all(WORD.fullmatch(word) for word in words):
        raise GraftError(f"-S {text}: neither KEY=LOW..HIGH[:log] nor KEY=A,B,C")
    values = tuple(dict.fromkeys(YAML(typ="safe").load(word) for word in words))
    return Choice(values).widened(today)


def _ends(dimension: Range | Choice) -> Iterator[Value]:
    yield from (dimension.low, dimension.high) if isinstance(dimension, Range) else dimension.values


def _check(key, value):
    """Raise GraftError, naming the key, for a value that params.yaml would refuse."""
    tree = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    with tempfile.TemporaryDirectory(prefix="graft-") as folder:
        file = Path(folder) / "params.json"  # which is YAML
        file.write_text(json.dumps(tree))
        try:
            parameters.load_part(file)
        except GraftError as error:
            raise GraftError(f"-S {str(error).removeprefix(f'{file}: ')}") from None
