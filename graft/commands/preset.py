"""Print a preset of configs/ as flags: dvc exp run $(graft preset best)."""

import argparse
import json
import re
from pathlib import Path

from graft import params
from graft.network import backbones
from graft.system.console import GraftError, log

CONFIGS = Path("configs")
# What a shell leaves whole in $(…) without quotes, and DVC takes as one value instead of a sweep.
WHOLE = re.compile(r"[A-Za-z0-9_./:@+-]+")
REFUSED = "--no-preset"  # no flag of DVC's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of a file in configs/, without .yaml")


def preset(args: argparse.Namespace) -> None:
    """`graft preset NAME`: `-S key=value …` in one line. Raises GraftError as `flags` does.

    Then it prints a flag that DVC refuses: `dvc exp run $(graft preset NAME)` would run without any
    otherwise.
    """
    try:
        log(" ".join(flags(args.name)))
    except GraftError:
        log(REFUSED)
        raise


def flags(name: str) -> list[str]:
    """["-S", "key=value", …] of configs/`name`.yaml. Raises GraftError for an unknown name, for
    params that do not fit or whose package is missing, and for values that a shell would take
    apart."""
    known = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    if name not in known:
        raise GraftError(
            f"no preset {name!r} in {CONFIGS}/; there are "
            f"{', '.join(known) or 'none: run from the root'}"
        )
    path = CONFIGS / f"{name}.yaml"
    values, given = params.load_part(path)
    backbones.check(given)
    return [
        word
        for key, value in values.items()
        for word in ("-S", f"{key}={_shown(path, key, value)}")
    ]


def _shown(path, key, value):
    if isinstance(value, list):
        return f"[{','.join(_shown(path, key, each) for each in value)}]"
    text = value if isinstance(value, str) else json.dumps(value)
    if not WHOLE.fullmatch(text):
        raise GraftError(
            f"{path}: {key}: a shell would take {text!r} apart; give it by hand: dvc exp run -S "
            f"'{key}=…'"
        )
    return text
