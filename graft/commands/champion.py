"""Show the champion and its history; set or roll it back."""

import argparse

from graft import params
from graft.system.console import log
from graft.tracking import champion as registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--set", metavar="VERSION", help="make this version (a number or an alias) the champion"
    )
    choice.add_argument(
        "--rollback", action="store_true", help="give the alias back to the champion before"
    )


def champion(args: argparse.Namespace) -> None:
    """`graft champion [--set VERSION | --rollback]`. Raises GraftError for a version that is not in
    the registry."""
    given = params.load()
    if args.set:
        log(registry.set_champion(given, args.set))
    elif args.rollback:
        log(registry.rollback(given))
    else:
        log(registry.show(given))
