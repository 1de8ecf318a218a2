"""Checks before a run is resumed: the same inputs, files of this user, and the environment."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from robustkd.core.environment import environment, is_kernel_choice
from robustkd.core.errors import InputError, UsageError
from robustkd.core.files import read_json, write_json
from robustkd.core.types import DataSource, Split
from robustkd.core.user_key import user_key
from robustkd.data import Pictures
from robustkd.pipeline.run_files import INPUTS, LAST, SEAL, SEALED, has
from robustkd.pipeline.seal import TRUST, Seal, listed

_VERSION = re.compile(r"[\w.+:/ -]{1,60}", re.ASCII)
"""Pattern of the environment values that are shown in messages."""

_log = logging.getLogger(__name__)


def check_same(folder: Path, inputs: Mapping[str, Mapping[str, object]]) -> None:
    """Check that a run was started with the same inputs.

    Settings with their default values are not recorded, so a kind or a setting may be missing on
    either side.

    Raises:
        UsageError: If its settings differ.
        InputError: If the teacher or the data differ.
    """
    if not has(folder, INPUTS):
        return
    before, now = read_json(folder / INPUTS), json.loads(json.dumps(inputs))
    for kind in (*now, *(kind for kind in before if kind not in now)):
        known, facts = (_of_kind(side, kind) for side in (before, now))
        for name in (*facts, *(name for name in known if name not in facts)):
            if known.get(name) != facts.get(name):
                raise _differs(folder, kind, name, known, facts)


def check_same_images(folder: Path, clean: DataSource) -> None:
    """Check that the images are those with which a run was started.

    This is part of what `check_same` checks. It comes before the teacher is measured on the images,
    whose message would name a consequence, such as a low accuracy.

    Raises:
        InputError: If they differ.
    """
    before = _data_before(folder)
    if not before:
        return
    now = json.loads(json.dumps(facts_of_images(clean)))
    for name in now:
        if name in before and before[name] != now[name]:
            raise _differs(folder, "data", name, before, now)


def facts_of_images(clean: DataSource) -> dict[str, object]:
    """Return properties of the data that do not depend on the models: for a folder, with a hash."""
    content = clean.content() if isinstance(clean, Pictures) else None
    return {
        "classes": list(clean.classes),
        "shape": list(clean.image_shape),
        "sizes": {part: clean.size(part) for part in get_args(Split)},
        **({} if content is None else {"content": content}),
    }


def _differs(
    folder: Path,
    kind: str,
    name: str,
    known: Mapping[str, object],
    facts: Mapping[str, object],
) -> UsageError | InputError:
    error = UsageError if kind == "settings" else InputError
    absent = "the default" if kind == "settings" else "none"
    was, value = (_brief(of[name]) if name in of else absent for of in (known, facts))
    return error(
        f"{folder} was started with {_plain(kind)} {_plain(name)} {was}, now it is "
        f"{value}; use the same, or start a new run with --out"
    )


def _of_kind(inputs: Mapping[str, object], kind: str) -> Mapping[str, object]:
    found = inputs.get(kind)
    return found if isinstance(found, dict) else {}


def named_as_before(folder: Path, clean: DataSource) -> DataSource:
    """Return the data with the name that it had when a run was started, if it has been moved.

    The name is part of the results and of the student's file. Data counts as moved if it is a
    folder of the same content.
    """
    before = _data_before(folder)
    name, content = before.get("name"), before.get("content")
    if not isinstance(clean, Pictures) or not isinstance(name, str) or content is None:
        return clean
    if name == clean.name or clean.content() != content:
        return clean
    return clean.renamed(name)


def as_recorded(
    folder: Path, inputs: Mapping[str, Mapping[str, object]]
) -> Mapping[str, Mapping[str, object]]:
    """Return the inputs of a resumed run, without the hash that older versions did not record."""
    before, now = _data_before(folder), dict(inputs.get("data", {}))
    if before and "content" not in before:
        now.pop("content", None)
    return {**inputs, "data": now} if "data" in inputs else inputs


def _data_before(folder: Path) -> Mapping[str, object]:
    """Return the properties of the data of a run; empty if they are not recorded."""
    if not has(folder, INPUTS):
        return {}
    found = read_json(folder / INPUTS).get("data")
    return found if isinstance(found, dict) else {}


def key_of_user(*, resuming: bool) -> bytes | None:
    """Return the user's key; without one, a new run logs a warning and gets None."""
    try:
        return user_key()
    except InputError as error:
        if resuming:
            raise InputError(
                f"the origin of the run cannot be verified: {error}; or {TRUST}"
            ) from error
        _log.warning("%s: this run can be resumed only with --trust-run", error)
        return None


def check_seal(folder: Path, seal: Seal, *, trust: bool) -> None:
    """Refuse a folder unless a run of this user with the same settings wrote its files."""
    if trust:
        _log.warning("%s is resumed without verifying who wrote its files (--trust-run)", folder)
        seal.trust(SEALED)
    elif not has(folder, SEAL) and not any(has(folder, name) for name in (*SEALED, LAST)):
        seal.write()  # the run was killed before it wrote a sealed file
    else:
        try:
            seal.open()
        except InputError as error:
            raise InputError(
                f"{folder} was not written by a run of yours, or not with these settings: {error}; "
                f"start a new run with --out, or {TRUST}"
            ) from error


def unchanged(folder: Path, name: str) -> bool:
    """Return whether a file of a finished run is the one that its seal lists, if there is a seal.

    Who wrote the seal is not checked, so that the runs of others can be read: this finds files that
    were edited or mixed up, and no forgery.
    """
    return not has(folder, SEAL) or listed(folder, name)


def note_environment(path: Path) -> None:
    """Write the environment, or log what has changed since the run was started."""
    now = environment()
    if not has(path.parent, path.name):
        write_json(path, now)
        return
    # One process is not recorded.
    before, now = {"processes": 1, **read_json(path)}, {"processes": 1, **now}
    set_before = (name for name in before if is_kernel_choice(name) and name not in now)
    for name in (*now, *set_before):
        if before.get(name) != now.get(name):
            _log.warning(
                "%s was %s when the run was started and is %s now: the student may differ in its "
                "last bits from that of an uninterrupted run",
                *(name, shown(before.get(name)), shown(now.get(name))),
            )


def shown(value: object) -> str:
    """Return a version or a count as text, or a placeholder for anything else."""
    if value is None:
        return "not set"
    text = str(value) if isinstance(value, str | int) else ""
    return text if _VERSION.fullmatch(text) else "something unknown"


def _plain(name: str) -> str:
    """Return a name, which may come from the folder of somebody else, as short printable text."""
    return _brief(name)[1:-1] if len(name) <= 60 else f"{_brief(name[:60])[1:-1]}..."


def _brief(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
