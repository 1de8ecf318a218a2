"""Tables of architectures in docs, from the results of ``tools.network_pairs``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from robustkd.core.errors import InputError


def pairs_tables(path: Path) -> str:
    """Return two Markdown tables: pairs with sizes and seconds, and networks with taps.

    Raises:
        InputError: If the file is missing or damaged.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["pairs"]
        whole = [row for row in rows if "error" not in row]
        return "\n".join([_table(_HEAD, map(_pair, rows)), _table(_TAPS_HEAD, _networks(whole))])
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not what tools.network_pairs writes") from error


_HEAD = (
    "teacher", "student", "images", "parameters, M", "MMACs", "taps", "s, probing",
    "s, detoxification", "s, distillation", "s, with hardening",
)  # fmt: skip
_TAPS_HEAD = ("network", "images", "taps (channels x height x width)")


def _pair(row: Mapping[str, Any]) -> list[str]:
    names = [f"`{row['teacher']}`", f"`{row['student']}`"]
    if "error" in row:
        return [*names, f"failed: {row['error']}", *[""] * (len(_HEAD) - 3)]
    both = ("teacher", "student")
    parameters = " to ".join(f"{row[f'{role}_parameters'] / 1e6:.2f}" for role in both)
    macs = " to ".join(f"{row[f'{role}_macs'] / 1e6:,.0f}" for role in both)
    taps = " to ".join(str(len(row[f"{role}_taps"])) for role in both)
    seconds = [f"{row['seconds'][name]:.1f}" for name in ("taps", "detox", "distil", "harden")]
    return [*names, _times(row["image"]), parameters, macs, taps, *seconds]


def _networks(rows: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """One row a network, in the order in which they first occur."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for role in ("teacher", "student"):
            taps = ", ".join(
                f"`{name.removeprefix('network.')}` ({_times(shape)}{_order(kind)})"
                for name, (*shape, kind) in row[f"{role}_taps"].items()
            )
            key = row[role], _times(row["image"])
            found.setdefault(key, [f"`{key[0]}`", key[1], taps])
    return list(found.values())


def _order(kind: str) -> str:
    return {"NCHW": "", "NHWC": ", channels last", "NTC": ", tokens"}[kind]


def _times(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
