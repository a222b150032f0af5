"""Show the feature cache, or clear it."""

import argparse
import datetime

from graft import params
from graft.features.cache import FeatureCache
from graft.system.console import log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clear", action="store_true", help="remove every entry")


def cache(args: argparse.Namespace) -> None:
    """`graft cache [--clear]`."""
    features = FeatureCache(max_gb=params.load().cache.max_gb)
    if args.clear:
        count, size = features.clear()
        log(f"cleared {count} entries, {size / 1e6:.1f} MB")
        return
    entries = features.entries()
    for entry in entries:
        segments = f"{entry['segments']} segment{'s' * (entry['segments'] != 1)}"
        used = datetime.datetime.fromtimestamp(entry["used"]).isoformat(" ", "minutes")
        log(
            f"{entry['key'][:12]}  {entry['bytes'] / 1e6:9.1f} MB  last used {used}  {segments} "
            f"at {entry['size']} px, view {entry['view']}, {entry['cut']}, {entry['runtime']}"
        )
    total = sum(entry["bytes"] for entry in entries)
    log(
        f"{len(entries)} entries, {total / 1e6:.1f} MB of {features.max_bytes / 1e6:.0f} MB, in "
        f"{features.folder}"
    )
