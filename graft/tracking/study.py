"""A search over parameters: Optuna proposes, experiments of DVC answer.

The study is a database, so that it can be gone on with, and so that every process that opens it is
a worker.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from graft.system import paths
from graft.system.console import GraftError
from graft.system.environment import missing
from graft.tracking import store

if TYPE_CHECKING:
    import optuna

    from graft.params import Params

Value = float | int | str | bool | None
PATIENCE = 10.0  # seconds that the one who made a study may take to put its first trial into it
# A third of the trials, at most ten, are drawn at random before the estimator is trusted.
RANDOM_SHARE, MOST_RANDOM = 3, 10


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; log: even in their logarithm; whole: integers."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def suggest(self, trial: optuna.Trial, key: str) -> Value:
        if self.whole:
            return trial.suggest_int(key, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    def widened(self, value: Value) -> Range:
        """A range that holds `value`, a number, too."""
        number: Any = value
        return Range(min(self.low, number), max(self.high, number), self.log, self.whole)


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Value, ...]

    def suggest(self, trial: optuna.Trial, key: str) -> Value:
        return trial.suggest_categorical(key, self.values)

    def widened(self, value: Value) -> Choice:
        return self if value in self.values else Choice((*self.values, value))


@dataclass(frozen=True)
class Trial:
    """One point of the search. number 0 is where it starts from. log: for what it prints; who holds
    it holds the trial."""

    number: int
    values: Mapping[str, Value]
    log: BinaryIO | None = None


class Study:
    """The search called `name` for the least value over `space`, from the point `start`, in the
    database at `storage`."""

    def __init__(
        self,
        name: str,
        space: Mapping[str, Range | Choice],
        start: Mapping[str, Value],
        storage: str,
    ) -> None:
        """Raises GraftError where Optuna is not installed, or the database cannot be used."""
        try:
            import optuna
        except ImportError:
            raise GraftError("graft tune needs optuna: pip install 'graft-vision[tune]'") from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # The driver that SQLAlchemy takes by default; ours is its successor.
        if missing(["psycopg2"]):
            storage = storage.replace("postgresql://", "postgresql+psycopg://", 1)
        self.name, self.space, self.start, self.storage = name, dict(space), dict(start), storage
        self.folder = paths.cache() / "tune" / name
        with self._failures(), store.lock("tune"):
            self._study = self._begun()

    def _begun(self):
        """The study; who makes it, and nobody else, puts trial 0 into it."""
        import optuna

        try:
            made = optuna.create_study(
                study_name=self.name, storage=self.storage, direction="minimize"
            )
        except optuna.exceptions.DuplicatedStudyError:
            made = optuna.load_study(study_name=self.name, storage=self.storage)
            until = time.monotonic() + PATIENCE
            while not made.get_trials(deepcopy=False) and time.monotonic() < until:
                time.sleep(0.1)
        if not made.get_trials(deepcopy=False):
            made.enqueue_trial(self.start)
        return made

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (StorageInternalError, SQLAlchemyError, ImportError) as error:
            # The last: its driver is not installed.
            raise GraftError(
                f"--storage {store.shown(self.storage)}: cannot be used: {store.first_line(error)}"
            ) from None

    @contextlib.contextmanager
    def next(self, trials: int, seed: int) -> Iterator[Trial | None]:
        """A trial to be run in this block, and by nobody else; None where the study has as many as
        `trials`.

        One that a process of this clone has left unfinished comes first. What a block leaves by an
        exception stays unfinished, unless it was told `failed`.
        """
        with contextlib.ExitStack() as held:
            with self._failures(), store.lock("tune"):
                trial = self._unfinished(held) or self._asked(held, trials, seed)
            yield trial

    def _unfinished(self, held):
        for frozen in self._study.get_trials(deepcopy=False, states=self._states("RUNNING")):
            name = _log_name(frozen.number)
            file = self.hold(name, held) if (self.folder / name).exists() else None
            if file is not None:
                return Trial(frozen.number, frozen.params, file)
        return None

    def _asked(self, held, trials, seed):
        """A new trial. Its draw depends on the seed, its number, and the trials before it: two
        workers draw differently."""
        import optuna

        states = self._study.get_trials(deepcopy=False)
        if sum(t.state.name != "WAITING" for t in states) >= trials:
            return None
        asked = self._study.ask()
        drawn = int.from_bytes(
            hashlib.sha256(f"{seed} {asked.number}".encode()).digest()[:4], "big"
        )
        startup = min(MOST_RANDOM, max(1, trials // RANDOM_SHARE))
        self._study.sampler = optuna.samplers.TPESampler(
            seed=drawn, n_startup_trials=startup, constant_liar=True
        )
        space = {
            k: each.widened(self.start[k]) if asked.number == 0 else each
            for k, each in self.space.items()
        }
        values = {key: each.suggest(asked, key) for key, each in space.items()}
        return Trial(asked.number, values, self.hold(_log_name(asked.number), held))

    def hold(self, name: str, held: contextlib.ExitStack) -> BinaryIO | None:
        """The file `name` of the study, held until `held` ends and no process writes to it any
        more; None if it is held.

        So what a killed worker has started, and what runs on, keeps it held.
        """
        import fcntl

        self.folder.mkdir(parents=True, exist_ok=True)
        file = held.enter_context((self.folder / name).open("ab"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        return file

    def seen(self, trial: Trial) -> Trial | None:
        """The first finished trial with the same values."""
        same = [t for t in self._frozen(self.finished()) if t.params == trial.values]
        return Trial(same[0].number, same[0].params) if same else None

    def finish(self, trial: Trial, value: float) -> None:
        with self._failures():
            self._study.tell(trial.number, value)

    def fail(self, trial: Trial) -> None:
        import optuna

        with self._failures():
            self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)

    def finished(self) -> dict[int, float]:
        """{number of a trial: its value}"""
        with self._failures():
            return {
                t.number: t.value
                for t in self._study.get_trials(deepcopy=False, states=self._states("COMPLETE"))
            }

    def running(self) -> list[int]:
        """Numbers of the trials that somebody runs, or has left unfinished."""
        with self._failures():
            return [
                t.number
                for t in self._study.get_trials(deepcopy=False, states=self._states("RUNNING"))
            ]

    def best(self) -> Trial:
        """The trial of least value, the first of equal ones."""
        done = self.finished()
        (best,) = self._frozen([min(done, key=lambda number: (done[number], number))])
        return Trial(best.number, best.params)

    def same_images(self, digest: str) -> bool:
        """Whether every trial so far was measured on the same images, by the `digest` of their
        list."""
        with self._failures(), store.lock("tune"):
            known = self._study.user_attrs.setdefault("images", digest)
            self._study.set_user_attr("images", known)
        return known == digest

    def _frozen(self, numbers):
        return [t for t in self._study.get_trials(deepcopy=False) if t.number in numbers]

    @staticmethod
    def _states(*names):
        import optuna

        return [optuna.trial.TrialState[name] for name in names]


def _log_name(number):
    return f"{number:04}.log"


def study_name(space: Mapping[str, Range | Choice], *more: object) -> str:
    """The same for the same search, whoever starts it: `tune-` and eight digits of its digest."""
    text = json.dumps(
        [{key: repr(each) for key, each in space.items()}, *more], sort_keys=True, default=str
    )
    return f"tune-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class StudyRun:
    """The study's run in MLflow: a step of its curves is a trial, and the trials' experiments are
    its children."""

    def __init__(self, params: Params, name: str, space: Mapping[str, Range | Choice]) -> None:
        """Raises GraftError where the store cannot be reached."""
        self.connection = store.connect(params)
        with store.lock():
            found = self.connection.search(kind="study", study=name)
            if found:
                self.run_id = found[0].info.run_id
                self.connection.client.update_run(self.run_id, status="RUNNING")
            else:
                tags = {
                    "kind": "study",
                    "study": name,
                    "mlflow.source.type": "LOCAL",
                    "mlflow.source.name": "graft tune",
                }
                self.run_id = self.connection.client.create_run(
                    self.connection.experiment_id, tags=tags, run_name=name
                ).info.run_id
                for key, each in space.items():
                    self.connection.client.log_param(self.run_id, key, each)

    def record(self, number: int, experiment: str, metrics: Mapping[str, float]) -> None:
        """A finished trial. Raises GraftError where the store fails."""
        client = self.connection.client
        with store.failures(self.connection.uri):
            for key, value in metrics.items():
                client.log_metric(self.run_id, key, value, step=number)
            for row in self.connection.search(kind="pipeline", pipeline=experiment):
                client.set_tag(row.info.run_id, "mlflow.parentRunId", self.run_id)

    def end(self, **tags: object) -> None:
        for key, value in tags.items():
            self.connection.client.set_tag(self.run_id, key, value)
        self.connection.client.set_terminated(self.run_id)
