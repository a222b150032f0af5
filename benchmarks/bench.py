"""Side by side: what people would write themselves (peers/) and graft, on the same photos, weights
and machine.

    python benchmarks/bench.py --data FOLDER --weights FILE.h5
    make bench BENCH="--data FOLDER --weights FILE.h5"

FOLDER: one sub-folder per class, or train/ val/ test/ of those. FILE: MobileNetV2 without its top,
of width --alpha. Every run is a process of its own; graft's are `dvc repro` and `dvc exp run` in a
fresh clone of this repository's HEAD, timed from outside. The split is graft's: peers are given
exactly its train, validation and test photos. Results go to OUT/results.jsonl after every run;
started again with the same arguments, the benchmark goes on where it was. See README.md beside this
file.
"""

import argparse
import csv
import hashlib
import json
import os
import platform
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from benchmarks import measure, results  # noqa: E402
from graft.commands.import_weights import bring  # noqa: E402
from graft.system.paths import WEIGHTS  # noqa: E402

SWEEP_LRS = ("1e-5", "3e-5", "5e-5", "1.5e-4", "2e-4", "5e-4", "1e-3", "2e-3")
NEXT_LR = "1e-4"
SPLITS = ("train", "val", "test")


def main():
    args = arguments()
    # So that the command under way is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for image_size in args.image_size:
        for images in args.images or [None]:
            Bench(args, image_size, images).run()
    print(f"tables: {args.out / 'results.md'}")


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="class-per-folder data set")
    parser.add_argument(
        "--weights", type=Path, required=True, help="MobileNetV2 without its top, .h5"
    )
    parser.add_argument("--alpha", type=float, default=1.0, help="width of the backbone")
    parser.add_argument("--image-size", type=int, nargs="+", default=[160], metavar="S")
    parser.add_argument(
        "--images",
        type=int,
        nargs="+",
        metavar="N",
        help="only so many images, the same share of every class",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--cases",
        type=_listed(results.CASES),
        default=["first", "next"],
        help=", ".join(results.CASES),
    )
    parser.add_argument(
        "--peers",
        type=_listed(results.PEERS),
        default=["course"],
        help=", ".join(results.PEERS) + "; or none",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="params of graft, e.g. fine_tune.epochs=8",
    )
    parser.add_argument(
        "--peer-epochs",
        type=int,
        nargs="+",
        metavar="E",
        help="of each phase, for a quick trial of the harness",
    )
    parser.add_argument(
        "--trunk",
        nargs="*",
        metavar="CUT",
        help="also the throughput up to these layers (default: pooling block_12_add)",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "benchmarks" / "work",
        help="folder for clones, links and logs",
    )
    args = parser.parse_args()
    for path in (args.data, args.weights):
        if not path.exists():
            parser.error(f"no such file or folder: {path}")
    if args.trunk == []:
        args.trunk = ["pooling", "block_12_add"]
    args.data, args.weights, args.out, args.work = (
        p.resolve() for p in (args.data, args.weights, args.out, args.work)
    )
    return args


def _listed(known):
    def parse(text):
        names = [] if text == "none" else text.split(",")
        if strays := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"{sorted(strays)[0]!r} is none of {', '.join(known)}")
        return names

    return parse


class Bench:
    """All runs of one setting: a data set of one size, at one image size."""

    def __init__(self, args, image_size, images):
        self.args, self.image_size = args, image_size
        self.commit = git("rev-parse", "HEAD")
        if git("status", "--porcelain", "--", "stages", "graft", "dvc.yaml", "params.yaml"):
            print(
                "note: changes that are not committed are not measured; the clones are of HEAD",
                flush=True,
            )
        self.data = subset(args.data, images, args.work / "data") if images else args.data
        count = sum(path.is_file() for path in self.data.rglob("*"))
        self.setting = {
            "data": args.data.name,
            "images": count,
            "image_size": image_size,
            "alpha": args.alpha,
            "weights": args.weights.name,
            "set": args.set,
        }
        name = f"{args.data.name}-{count}-{image_size}px"
        self.work = args.work / f"{name}-{digest(json.dumps([self.setting, str(args.data)]))}"
        self.logs = args.work / "logs" / self.work.name
        for folder in (self.logs, args.out):
            folder.mkdir(parents=True, exist_ok=True)
        self.file = args.out / "results.jsonl"
        self.versions = {
            "graft": self.commit[:12],
            "peers": digest(
                "".join(
                    path.read_text(encoding="utf-8")
                    for path in sorted((ROOT / "benchmarks" / "peers").glob("*.py"))
                )
            ),
        }

    def run(self):
        print(
            f"{self.setting['data']}: {self.setting['images']} images at {self.image_size} px",
            flush=True,
        )
        self.photos, self.test = self.split()
        units = [
            self.graft,
            *(lambda repeat, peer=peer: self.peer(peer, repeat) for peer in self.args.peers),
        ]
        if self.args.trunk:
            units.append(self.trunk)
        for repeat in range(1, self.args.repeats + 1):
            # In turn, and in the other order every second time: what a machine does as it gets warm
            # strikes both alike.
            for unit in units if repeat % 2 else reversed(units):
                unit(repeat)
        shutil.rmtree(self.work, ignore_errors=True)

    # -- what is kept ------------------------------------------------------------------------------

    def rows(self):
        return [row for row in results.load(self.file) if row["setting"] == self.setting]

    def done(self, what, repeat):
        version = self.version(what)
        return any(
            r["what"] == what and r["repeat"] == repeat and r["version"] == version
            for r in self.rows()
        )

    def version(self, what):
        return self.versions["peers" if what in results.PEERS else "graft"]

    def keep(self, what, repeat, measured, **facts):
        row = {
            "what": what,
            "repeat": repeat,
            "setting": self.setting,
            "version": self.version(what),
            **(measured.facts() if measured else {}),
            **facts,
        }
        results.append(self.file, row)
        summaries = results.summarise(results.load(self.file))
        (self.args.out / "results.json").write_text(
            json.dumps(summaries, indent=1) + "\n", encoding="utf-8"
        )
        (self.args.out / "results.md").write_text(
            results.markdown(summaries, machine()), encoding="utf-8"
        )
        accuracy = (
            f", test accuracy {row['accuracy']:.4f}" if row.get("accuracy") is not None else ""
        )
        rate = f", {row['images_per_second']:.0f} images/s" if "images_per_second" in row else ""
        print(
            f"  {repeat}/{self.args.repeats} {what}: {row['seconds']:.1f} s, {row['largest_mib']} "
            f"MiB{accuracy}{rate}",
            flush=True,
        )

    def command(self, command, name, cwd, **more):
        log = self.logs / f"{name}.log"
        env = {**environment(self.args.work), **more}
        measured = measure.run([str(part) for part in command], cwd=cwd, env=env, log=log)
        if measured.status:
            tail = "\n".join(text for _, text in measured.lines[-15:])
            sys.exit(
                f"{tail}\nerror: {name} ended with status {measured.status}; the whole log: {log}"
            )
        return measured

    # -- graft -------------------------------------------------------------------------------------

    def clone(self, name):
        """A fresh clone of HEAD with this setting's params, committed. No cache, no outputs, no
        MLflow database."""
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        git("clone", "--quiet", "--no-tags", str(ROOT), str(folder))
        git("checkout", "--quiet", self.commit, cwd=folder)
        for key, value in (
            ("user.name", "benchmark"),
            ("user.email", "benchmark@localhost"),
            ("commit.gpgsign", "false"),
        ):
            git("config", key, value, cwd=folder)
        values = {
            "data.path": str(self.data),
            "image_size": self.image_size,
            "backbone.name": "mobilenet_v2",
            "backbone.alpha": self.args.alpha,
            "backbone.weights": self.args.weights.name,
        }
        set_params(
            folder / "params.yaml", {**values, **dict(pair.split("=", 1) for pair in self.args.set)}
        )
        file, *_ = bring(self.args.weights, folder / WEIGHTS)
        # The queue works in a copy.
        self.command(dvc("add", file.relative_to(folder)), f"{name}-weights", folder)
        commit(folder, "setting")
        return folder

    def split(self):
        """Split as graft does. Returns (folder of links to the photos, train/ val/ test/; the paths
        of the test photos)."""
        photos, copy = self.work / "photos", self.work / "manifest.csv"
        if not copy.exists():
            folder = self.clone("split")
            self.command(dvc("repro", "split"), "split", folder)
            link_splits(folder / "data" / "split" / "manifest.csv", self.data, photos)
            shutil.copy(folder / "data" / "split" / "manifest.csv", copy)
            shutil.rmtree(folder)
        return photos, test_paths(copy)

    def graft(self, repeat):
        cases = [case for case in self.args.cases if not self.done(case, repeat)]
        if not cases:
            return
        folder = self.work / f"clone-{repeat}"
        # No marker while a case runs: a clone in which one was interrupted holds checkpoints that
        # would make it quicker.
        ready = folder / ".git" / "ready"
        if "first" in cases or not ready.exists():
            folder = self.clone(f"clone-{repeat}")
            measured = self.command(dvc("repro"), f"first-{repeat}", folder)
            commit(folder, "first")
            if "first" in cases:
                self.keep("first", repeat, measured, **self.outcome(folder), **phases(measured))
            ready.touch()
        for case in (case for case in self.args.cases if case in cases and case != "first"):
            ready.unlink()
            getattr(self, case)(repeat, folder)
            ready.touch()
        shutil.rmtree(folder, ignore_errors=True)

    def nothing(self, repeat, folder):
        self.keep("nothing", repeat, self.command(dvc("repro"), f"nothing-{repeat}", folder))

    def next(self, repeat, folder):
        measured = self.command(dvc("exp", "run", "-S", f"lr={NEXT_LR}"), f"next-{repeat}", folder)
        self.keep("next", repeat, measured, lr=NEXT_LR, **self.outcome(folder), **phases(measured))

    def sweep(self, repeat, folder):
        commands = [shlex.join(dvc("exp", "run", "-S", f"lr={lr}")) for lr in SWEEP_LRS]
        measured = self.command(["sh", "-ec", "\n".join(commands)], f"sweep-{repeat}", folder)
        self.keep("sweep", repeat, measured, lr=SWEEP_LRS)

    def queue(self, repeat, folder):
        # Other values than the loop's, or there would be nothing left to do.
        values = ",".join(f"{float(lr) * 1.1:.3g}" for lr in SWEEP_LRS)
        git("checkout", "--quiet", "--", "params.yaml", "dvc.lock", cwd=folder)
        commands = [
            dvc("exp", "run", "--queue", "-S", f"lr={values}"),
            dvc("exp", "run", "--run-all", "--jobs", "2"),
        ]
        measured = self.command(
            ["sh", "-ec", "\n".join(map(shlex.join, commands))], f"queue-{repeat}", folder
        )
        self.keep("queue", repeat, measured, lr=values.split(","))

    def outcome(self, folder):
        """What graft found in the clone `folder`: test accuracy with its interval, and epochs
        [head, fine-tuning]."""
        if test_paths(folder / "data" / "split" / "manifest.csv") != self.test:
            sys.exit(f"error: {folder} was tested on other photos than the peers")
        found = json.loads(
            (folder / "data" / "evaluate" / "metrics.json").read_text(encoding="utf-8")
        )
        head, both = (
            len((folder / "data" / stage / "curves.csv").read_text(encoding="utf-8").splitlines())
            - 1
            for stage in ("train-head", "fine-tune")
        )
        return {
            "accuracy": found["accuracy"],
            "interval": [found["accuracy_low"], found["accuracy_high"]],
            "n": found["n"],
            "head_accuracy": found["head_accuracy"],
            "epochs": [head, both - head],
        }

    # -- peers -------------------------------------------------------------------------------------

    def peer(self, name, repeat):
        if self.done(name, repeat):
            return
        out = self.work / "peer.json"
        command = [sys.executable, ROOT / "benchmarks" / "peers" / f"{name}.py", self.photos,
                   self.args.weights, "--alpha", self.args.alpha, "--seed", 41 + repeat, "--out",
                   out]  # fmt: skip
        if name != "cifar":
            command += ["--image-size", self.image_size]
        if name == "frozen":
            command += ["--epochs", *self.graft_epochs()]
        elif self.args.peer_epochs:
            command += ["--epochs", *self.args.peer_epochs[: 1 if name == "cifar" else 2]]
        measured = self.command(command, f"{name}-{repeat}", ROOT)
        found = json.loads(out.read_text(encoding="utf-8"))
        names = {link_name(path) for path in self.test}
        if set(found["test_files"]) != names:
            read = len(found["test_files"])
            sys.exit(
                f"error: {name} was tested on {read} photos, graft on {len(names)}; Keras reads "
                "JPEG, PNG, BMP and GIF alone"
            )
        self.keep(
            name, repeat, measured, accuracy=found["accuracy"], n=len(names), epochs=found["epochs"]
        )

    def graft_epochs(self):
        rows = [row for row in self.rows() if row["what"] == "first"]
        if not rows:
            sys.exit(
                "error: peer `frozen` trains for as many epochs as graft: add `first` to --cases"
            )
        return rows[-1]["epochs"]

    def trunk(self, repeat):
        for cut in self.args.trunk:
            for side in ("graft", "predict") if repeat % 2 else ("predict", "graft"):
                what = f"trunk {side} to {cut}"
                if self.done(what, repeat):
                    continue
                out = self.work / "trunk.json"
                command = [sys.executable, ROOT / "benchmarks" / "trunk.py", side,
                           self.photos / "train", self.args.weights, "--alpha", self.args.alpha,
                           "--image-size", self.image_size, "--cut", cut, "--out", out]  # fmt: skip
                measured = self.command(command, f"trunk-{side}-{cut}-{repeat}", ROOT)
                self.keep(what, repeat, measured, **json.loads(out.read_text(encoding="utf-8")))


def dvc(*words):
    return [sys.executable, "-m", "dvc", *words]


def environment(work):
    """That of a user in this interpreter's environment, without settings of an outer DVC or
    MLflow."""
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("DVC_", "MLFLOW_", "GIT_", "PYTHONPATH"))
    }
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    # No file's hash is known from elsewhere, and nothing is left behind.
    env["DVC_SITE_CACHE_DIR"] = str(work / "site-cache")
    env["DVC_NO_ANALYTICS"] = "1"
    env["PYTHONUNBUFFERED"] = "1"  # lines are timed as they are printed
    env.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return env


def git(*words, cwd=ROOT):
    done = subprocess.run(["git", *words], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


def commit(folder, message):
    git("add", "--all", cwd=folder)
    git("commit", "--quiet", "--allow-empty", "--message", message, cwd=folder)


def set_params(file, values):
    """Set dotted keys in a params.yaml, its comments kept; texts are read as YAML, as
    `dvc exp run -S` reads them."""
    from ruamel.yaml import YAML

    yaml = YAML()
    tree = yaml.load(file)
    for key, value in values.items():
        block = tree
        *outer, last = key.split(".")
        for name in outer:
            block = block[name]
        if last not in block:
            sys.exit(f"error: --set {key}: no such key in params.yaml")
        block[last] = YAML(typ="safe").load(value) if isinstance(value, str) else value
    yaml.dump(tree, file)


def subset(folder, n, into):
    """`n` images of `folder`, the same share of each of its leaf folders, drawn once and for all:
    hard links below `into`.

    A smaller subset is, but for rounding, a part of a larger one.
    """
    leaves = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            leaves[path.parent].append(path)
    total = sum(map(len, leaves.values()))
    if n > total:
        sys.exit(f"error: --images {n}: {folder} holds {total}")
    shares = {leaf: n * len(paths) / total for leaf, paths in leaves.items()}
    take = {leaf: int(share) for leaf, share in shares.items()}
    for leaf in sorted(leaves, key=lambda leaf: take[leaf] - shares[leaf])[
        : n - sum(take.values())
    ]:
        take[leaf] += 1
    target = into / f"{folder.name}-{n}"
    shutil.rmtree(target, ignore_errors=True)
    for leaf, paths in leaves.items():
        random.Random(leaf.relative_to(folder).as_posix()).shuffle(paths)
        for path in paths[: take[leaf]]:
            copy = target / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                copy.hardlink_to(path)
            except OSError:  # another file system
                shutil.copy(path, copy)
    return target


def read_manifest(file):
    with Path(file).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_paths(manifest):
    return sorted(row["path"] for row in read_manifest(manifest) if row["split"] == "test")


def link_name(path):
    """A name for `path` (POSIX, relative to the data set) in a flat folder; its suffix stays the
    last."""
    return f"{digest(path)}-{Path(path).name}"


def link_splits(manifest, data, folder):
    """`folder`/split/class/ of symbolic links to the photos of graft's manifest; a folder of every
    class in every split."""
    shutil.rmtree(folder, ignore_errors=True)
    rows = read_manifest(manifest)
    for split in SPLITS:
        for label in {row["label"] for row in rows}:
            (folder / split / label).mkdir(parents=True)
    for row in rows:
        (folder / row["split"] / row["label"] / link_name(row["path"])).symlink_to(
            Path(data).resolve() / row["path"]
        )


def phases(measured):
    """From the log of a dvc command: seconds until the first epoch, seconds of each stage, what was
    said of activations."""
    found, stages = {}, []
    for at, text in measured.lines:
        # Printed when the epoch ends, with the seconds it took.
        epoch = re.match(r"epoch 1/\d+: .*, ([\d.]+) s$", text)
        if epoch and "training_starts" not in found:
            found["training_starts"] = round(at - float(epoch[1]), 2)
        if stage := re.match(r"Running stage '([\w-]+)'", text):
            stages.append((stage[1], at))
    ends = [at for _, at in stages[1:]] + [measured.seconds]
    found["stages"] = {name: round(end - at, 2) for (name, at), end in zip(stages, ends)}
    found["activations"] = [text for _, text in measured.lines if ": activations of " in text]
    return found


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def machine():
    from importlib.metadata import version

    packages = ", ".join(
        f"{name} {version(name)}" for name in ("tensorflow", "keras", "mlflow", "dvc")
    )
    return (
        f"{os.cpu_count()} cores ({processor()}), Python {platform.python_version()}, {packages}. "
        "Medians, smallest to largest in brackets."
    )


def processor():
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
