"""What Ray costs: features of the same photos in this process, and by one and two workers of a
cluster of this machine.

    python benchmarks/cluster.py --data FOLDER [--images 1000] [--executors local,1,2]

FOLDER: one sub-folder per class. The default network up to the default cut, one view, each case in
a process of its own with an empty cache. Seconds of processors are those of the whole tree of
processes, Ray's own servers among them, sampled every half second; the case of 8 photos is what
starting costs. The files that come out are compared byte for byte.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)


def extract(data: Path, n: int, executor: str, folder: Path) -> None:
    """Features of n photos into the cache `folder`; executor: local, or a number of workers."""
    from graft.dataset.images import ImageSet
    from graft.dataset.manifest import Manifest, ManifestRow
    from graft.description import Description
    from graft.features.cache import FeatureCache
    from graft.features.extractor import FeatureExtractor
    from graft.features.views import Augmentation
    from graft.network import classifier
    from graft.network.cut import find_cut
    from graft.system import prefetch
    from graft.system.environment import quiet_tensorflow

    quiet_tensorflow()
    photos = sorted(
        path for path in data.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    )
    photos = photos[:: max(1, len(photos) // n)][:n]
    rows = tuple(
        ManifestRow(
            p.relative_to(data).as_posix(),
            "a",
            "train",
            hashlib.sha256(p.read_bytes()).hexdigest(),
            0,
            0,
        )
        for p in photos
    )
    description = Description("efficientnet_lite0", 1.0, 224, ("a", "b"), 0, 0.2, "crop")
    model = classifier.build(description, weights="packaged")
    images = ImageSet(Manifest(rows, ("a",)), data.resolve(), 224, resize="crop")
    if executor != "local":
        prefetch.use_at_most(int(executor))
    still = Augmentation("none", 0, 0, 0, 0, 0)
    where = "local" if executor == "local" else "ray"
    FeatureExtractor(still, "litert", FeatureCache(folder, max_gb=100), None, where).extract(
        model, [find_cut(model, 46)], images
    )


def measured(*command: str) -> tuple[float, float]:
    """(seconds by the clock, seconds of processors) of a command and all that descends from it."""
    import psutil

    started, seconds = time.monotonic(), {}
    process = subprocess.Popen([sys.executable, *command], stdout=sys.stderr)
    while process.poll() is None:
        try:
            for each in [
                psutil.Process(process.pid),
                *psutil.Process(process.pid).children(recursive=True),
            ]:
                times = each.cpu_times()
                seconds[each.pid, each.create_time()] = times.user + times.system
        except psutil.Error:
            pass
        time.sleep(0.5)
    if process.returncode:
        sys.exit(process.returncode)
    return time.monotonic() - started, sum(seconds.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--executors", default="local,1,2")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        extract(args.data, int(args.one[0]), args.one[1], Path(args.one[2]))
        return
    digests = set()
    for executor in args.executors.split(","):
        for n in (8, args.images):
            with tempfile.TemporaryDirectory(prefix="graft-bench-") as folder:
                wall, cpu = measured(
                    __file__, "--data", str(args.data), "--one", str(n), executor, folder
                )
                blobs = sorted(
                    (path.name, hashlib.sha256(path.read_bytes()).hexdigest())
                    for path in Path(folder).rglob("*.seg")
                )
            print(
                f"{executor:>5}: {n} photos, {wall:.1f} s by the clock, {cpu:.1f} s of processors",
                flush=True,
            )
        digests.add(str(blobs))
    print("the files are the same" if len(digests) == 1 else "the files differ")


if __name__ == "__main__":
    main()
