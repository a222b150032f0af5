"""Search for better parameters: trials are experiments up to fine-tune, judged on validation
photos."""

import argparse
import contextlib
import io
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
EPOCHS = "fine_tune.epochs"
SHARE = 4  # of short trials, one in so many is trained in full


@dataclass(frozen=True)
class Search:
    """epochs: of a trial, fewer than today's; None: each is trained in full."""

    study: Study
    run: StudyRun
    metric: str
    epochs: int | None

    def experiment(self, trial: Trial, *, full: bool = False) -> str:
        name = f"{self.study.name}-{trial.number}"
        return f"{name}-full" if full and self.epochs else name

    def overrides(self, trial: Trial, *, full: bool = False) -> dict[str, str]:
        short = {} if full or self.epochs is None else {EPOCHS: str(self.epochs)}
        return _overrides(trial.values) | short


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
        "--trial-epochs",
        type=int,
        metavar="N",
        help=f"a trial is trained for N epochs; the best of every {SHARE}, and today's params, "
        "then in full (default: every trial is)",
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
    _check_epochs(args.trial_epochs, space, flat[EPOCHS])
    # May differ from clone to clone.
    elsewhere = ("data.path", *(key for key in flat if key.startswith("tracking.")))
    fixed = {key: value for key, value in flat.items() if key not in elsewhere}
    told = (args.metric, *([args.trial_epochs] if args.trial_epochs else []))
    name = args.name or study_name(space, fixed, *told, dvc_lock.code_digest())
    folder = paths.root().resolve() / "mlruns"
    folder.mkdir(exist_ok=True)
    study = Study(
        name,
        space,
        {key: flat[key] for key in space},
        args.storage or f"sqlite:///{folder / 'tune.db'}",
    )
    search = Search(study, StudyRun(base, name, space), args.metric, args.trial_epochs)
    os.environ |= client.lend()
    log(
        f"tune: study {name}, {len(study.finished())} of {args.trials} trials done; what they "
        f"print is in {study.folder}"
    )
    try:
        _search(search, args.trials, base.seed)
        if study.running():
            numbers = ", ".join(map(str, study.running()))
            log(
                f"tune: trials {numbers} are under way elsewhere; after them the same command "
                "runs the best one through"
            )
            return
        _conclude(search, base)
    except KeyboardInterrupt:
        log("tune: interrupted; the same command goes on with the study")
        raise
    finally:
        search.run.end()


def _search(search: Search, trials: int, seed: int) -> None:
    study, failed = search.study, 0
    while True:
        with study.next(trials, seed) as trial:
            if trial is None:
                return
            try:
                same = study.seen(trial)
                figures = _figures(search, trial if same is None else same, trial.log)
            except GraftError as error:
                study.fail(trial)
                failed += 1
                if trial.number == 0 or failed == FAILURES:
                    raise
                warn(f"trial {trial.number} ({_shown(trial.values)}) failed: {error}")
                continue
            failed = 0
            study.finish(trial, _value(search, figures))
            search.run.record(trial.number, search.experiment(trial), figures)
            log(
                f"tune: trial {trial.number}: {_shown(trial.values)}: {_told(figures)}; best so "
                f"far: trial {study.leading(1)[0].number}"
            )


def _figures(
    search: Search, trial: Trial, file: BinaryIO | None, *, full: bool = False
) -> dict[str, float]:
    """Of the trial's experiment, which is run if it was not before; what it prints into `file`."""
    name = search.experiment(trial, full=full)
    commit = experiments.commit(name) or experiments.run(
        name, search.overrides(trial, full=full), cast(BinaryIO, file), UP_TO
    )
    lock = experiments.read(commit, dvc_lock.DVC_LOCK)
    if not search.study.same_images(_manifest_digest(lock)):
        raise GraftError(
            "its validation photos are not those of the trials before: the data have changed; "
            "--name OTHER"
        )
    seen = _predictions(commit)
    # By its own temperature, as epochs are chosen: overconfidence alone is no fault of a trial.
    losses = calibrated_losses(seen.probabilities, seen.labels)
    return {"loss": float(losses.mean()), "accuracy": float(seen.correct.mean())}


def _value(search, figures):
    """What is made small."""
    return METRICS[search.metric] * figures[search.metric]


def _told(figures):
    return ", ".join(f"{key} {figures[key]:.4f}" for key in METRICS)


def _best(search: Search) -> Trial | None:
    """The best trial; of short ones, among those that are worth it and today's params, once they
    are trained in full. None where another worker trains one of these."""
    study = search.study
    if search.epochs is None:
        return study.leading(1)[0]
    worth = study.leading(math.ceil(len(study.finished()) / SHARE))
    first = Trial(0, study.start)
    values = {}
    for trial in (first, *(trial for trial in worth if trial.number)):
        with contextlib.ExitStack() as held:
            file = study.hold(f"{trial.number:04}-full.log", held)
            if file is None:
                return None
            figures = _figures(search, trial, file, full=True)
        search.run.record(
            trial.number,
            search.experiment(trial, full=True),
            {f"full_{key}": value for key, value in figures.items()},
        )
        log(f"tune: trial {trial.number} in full: {_shown(trial.values)}: {_told(figures)}")
        values[_value(search, figures), trial.number] = trial
    return values[min(values)]


def _conclude(search: Search, base: Params) -> None:
    """The best trial through evaluate and export, and whether the search has gained anything."""
    study, best = search.study, _best(search)
    if best is None:
        log("tune: another worker trains the best trials in full")
        return
    search.run.end(best=search.experiment(best, full=True))
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
    search.run.record(best.number, name, {})
    first = experiments.commit(search.experiment(Trial(0, {}), full=True))
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


def _check_epochs(epochs, space, today):
    """Raise GraftError for --trial-epochs that make no trial shorter."""
    if epochs is None:
        return
    if EPOCHS in space:
        raise GraftError(f"--trial-epochs {epochs}: {EPOCHS} is searched; one of the two")
    if not 1 <= epochs < today:
        raise GraftError(
            f"--trial-epochs {epochs}: no whole number from 1 to below {EPOCHS}, which is {today}"
        )


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
