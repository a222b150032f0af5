"""Pictures that nobody here made: the test suites of Pillow and of gdk-pixbuf, hundreds of them
broken on purpose.

They are fetched when the test runs, by the ordinary clients, and kept nowhere.
"""

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graft import params as parameters
from graft.dataset import intake, layout
from graft.description import Description
from graft.serving import predict, readers

from .pictures import folder

ROOT = Path(__file__).parents[2]
SECONDS, MEGABYTES = 5, 1000  # that one file may take
MEASURE = """
import json, resource, sys, time, warnings
from pathlib import Path
from graft import pixels
from graft.dataset import scan

warnings.simplefilter("ignore")
# A picture that takes more ends here, and not the machine.
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
base, rows = peak(), []
for path in sorted(p for p in Path(sys.argv[1]).rglob("*") if p.is_file()):
    before = time.process_time()
    problem = scan.examine(path).problem
    try:
        pixels.load(path, 224)
        served = ""
    except pixels.ImageProblem as error:
        served = error.kind
    rows.append((path.name, problem, served, time.process_time() - before, peak() - base))
print(json.dumps(rows))
"""


def fetched(command, where):
    """Run a package client that leaves one archive in `where`; skips the test where it cannot be
    had."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} here")
    try:
        done = subprocess.run(
            command, cwd=where, capture_output=True, text=True, timeout=300, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"{' '.join(command[:3])} took more than five minutes")
    files = list(where.iterdir())
    if done.returncode or not files:
        pytest.skip(
            f"{' '.join(command[:3])} did not bring it: "
            f"{(done.stderr or done.stdout).strip()[-200:]}"
        )
    return files[0]


def pillow(tmp_path):
    where = tmp_path / "sdist"
    where.mkdir()
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        "pillow",
        "pillow==13.0.0",
    ]
    with tarfile.open(fetched(command, where)) as archive:
        images = [m for m in archive if "/Tests/images/" in m.name and m.isfile()]
        archive.extractall(tmp_path / "out", images, filter="data")
    return tmp_path / "out"


def gdk_pixbuf(tmp_path):
    where = tmp_path / "deb"
    where.mkdir()
    package = fetched(["apt-get", "download", "gdk-pixbuf-tests"], where)
    if shutil.which("dpkg") is None:
        pytest.skip("no dpkg here")
    subprocess.run(["dpkg", "-x", package, tmp_path / "out"], check=True)
    return tmp_path / "out"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="measures memory by getrusage")
@pytest.mark.parametrize("corpus, least", [(pillow, 900), (gdk_pixbuf, 300)])
def test_every_picture_of_a_corpus_is_a_photo_or_a_problem(tmp_path, corpus, least):
    data = folder(tmp_path / "data", each=10)
    corpus(tmp_path).rename(data / "corpus")
    inside = [file.path for file in layout.walk(data / "corpus").files]
    assert len(inside) > least

    done = subprocess.run(
        [sys.executable, "-c", MEASURE, data / "corpus"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [row for row in rows if row[3] > SECONDS or row[4] > MEGABYTES] == []
    # `predict` reads what `split` reads. It also decodes in full what split may take at a part of
    # its size.
    assert [row for row in rows if not row[1] and row[2] not in ("", "too_large")] == []

    data_params = parameters.load(ROOT / "params.yaml").data.model_copy(
        update={"path": str(data), "layout": "classes"}
    )
    taken = intake.take_in(data_params, seed=42, cache_file=None)
    listed = {row.path for row in taken.manifest.rows} | {
        problem.path for problem in taken.problems
    }
    Image.init()
    called = {
        suffix
        for suffix, kind in Image.registered_extensions().items()
        if kind not in ("PDF", "MPEG", "HDF5", "GRIB", "BUFR")
    }
    lost = [
        path
        for path in inside
        if f"corpus/{path}" not in listed and Path(path).suffix.lower() in called
    ]
    assert lost == []
    assert taken.found.files == len(listed) + taken.found.non_images + taken.found.hidden

    classes = ("a", "b")
    description = Description("none", 1.0, 32, classes, 0, 0.0, "squash")
    model = readers.Loaded(
        "none", description, lambda batch: np.full((len(batch), 2), 0.5, np.float32)
    )
    files = list(predict.Sources([data / "corpus"]))
    told = list(predict.predict(model, files))
    assert len(told) == len(files) > least / 2 and all(
        bool(row.predicted) != bool(row.problem) for row in told
    )
