"""A parameter as `dvc exp run -S` takes it: two readers, the shell and Hydra, each with quotes of
its own."""

import re
import shlex

# Needs no quotes of either reader, and is a word to Hydra, no number or truth.
PLAIN = re.compile(r"(?!(null|true|false|nan|inf)$)[a-z_/][\w./-]*", re.ASCII | re.IGNORECASE)


def override(key: str, value: str | None) -> str:
    """`key=value` as it is typed behind `-S`, whatever `value` holds but "${", which no quotes keep
    DVC from reading."""
    if value is None:
        return f"{key}=null"
    if PLAIN.fullmatch(value):
        return f"{key}={value}"
    # it's: one pair of quotes within the other, not three of them.
    if "'" in value and not set(value) & set('"$`!\\'):
        inner = _quoted(value, "'")
        return f'"{key}={inner}"'
    inner = _quoted(value, '"')
    return shlex.quote(f"{key}={inner}")


def _quoted(value, quote):
    """As Hydra reads it: a backslash counts before a quote and nowhere else."""
    return (
        quote
        + re.sub(rf"(\\*)({quote}|$)", lambda m: m[1] * 2 + (f"\\{quote}" if m[2] else ""), value)
        + quote
    )
