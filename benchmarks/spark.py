"""A folder of photos through `mlflow.pyfunc.spark_udf`, on Spark in this machine: does it answer as
the model alone does?

    pip install pyspark        # and a Java, 17 or later
    python benchmarks/spark.py PHOTOS [--model models:/graft@champion] [--workers 2]

Prints photos per second, the start of the workers included, and on how many photos label and
probability are the same as `predict` gives in this process; ends with status 1 where one differs. A
photo that cannot be read has no confidence in both.
"""

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from graft.serving import pyfunc  # noqa: E402
from graft.system.environment import quiet_mlflow  # noqa: E402
from graft.tracking import registry, store  # noqa: E402

SUFFIXES = "{jpg,jpeg,png,JPG,JPEG,PNG}"
CLOSE = 1e-4  # of a probability: photos come in other batches


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, help="folder")
    parser.add_argument("--model", default="models:/graft@champion")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    rows, seconds = predicted(args)
    paths = sorted(rows)
    alone = pyfunc.load_mlflow(args.model).predict(
        [Path(path.removeprefix("file:")) for path in paths]
    )
    answers = zip(paths, alone["label"], alone["confidence"])
    pairs = [(rows[path], label, confidence) for path, label, confidence in answers]
    others = [pair for pair in pairs if not _equal(*pair)]
    for row, label, confidence in others:
        print(f"with Spark {row['label']!r} {row['confidence']}, without {label!r} {confidence}")
    same = len(rows) - len(others)
    print(
        f"{len(rows)} photos in {seconds:.1f} s, {len(rows) / seconds:.1f} a second; {same} as "
        "without Spark"
    )
    sys.exit(same != len(rows))


def _equal(row, label, confidence):
    if label is None:  # of which MLflow makes the text "None"
        return row["confidence"] is None
    return row["label"] == label and abs(row["confidence"] - confidence) < CLOSE


def predicted(args):
    """({path: row of label, confidence, probabilities}, seconds)."""
    quiet_mlflow()
    import mlflow
    from pyspark.sql import SparkSession

    store.use()
    os.environ["PYSPARK_PYTHON"] = sys.executable  # the workers'
    spark = (
        SparkSession.builder.master(f"local[{args.workers}]")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "64")
        .getOrCreate()
    )
    try:
        classify = mlflow.pyfunc.spark_udf(
            spark, registry.files_of(args.model), env_manager="local"
        )
        found = (
            spark.read.format("binaryFile")
            .option("recursiveFileLookup", "true")
            .option("pathGlobFilter", f"*.{SUFFIXES}")
        )
        photos = found.load(str(args.photos.resolve())).repartition(args.workers)
        started = time.monotonic()
        rows = photos.select("path", classify("content").alias("answer")).collect()
        return {row["path"]: row["answer"].asDict() for row in rows}, time.monotonic() - started
    finally:
        spark.stop()


if __name__ == "__main__":
    main()
