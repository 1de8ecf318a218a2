"""The command that repeats a run."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from robustkd.core.errors import InputError, printable, quoted
from robustkd.core.known_names import DATA, HUB
from robustkd.core.yaml_files import read_yaml
from robustkd.report.facts import kind_of
from robustkd.report.results import Results

_CONFIG = "config.yaml"
_FLAG = re.compile(r"(set\.)?[a-z][a-z0-9_]{0,40}")
_PATHS = ("teacher", "data", "data_root", "class_names", "split", "student_weights")
_USUAL: Mapping[str, object] = {"crop": 1.0, "flip": True, "method": "default", "seed": 0}
_TURNED_OFF = ("flip", "streaming", "audit")
"""Flags that have a form with ``--no-``."""
_OF_ATTACKS = (
    *("target", "second", "second_target"),
    *("epochs", "batch_size", "lr", "surrogate"),
)


def repeating(results: Results, folder: Path, *, private: bool = False) -> str:
    """Return the command line that repeats a run; empty if it is unknown, or there is none.

    Args:
        results: The results.
        folder: The run folder, with ``config.yaml`` if ``robustkd distill`` wrote it.
        private: If True, name files without their folders, for texts that are published.

    Raises:
        InputError: If ``config.yaml`` is damaged.
    """
    kind = kind_of(results)
    if kind == "demo":
        data, seeds = (results.config.get(name) for name in ("data", "seeds"))
        if not isinstance(data, str) or not isinstance(seeds, int):
            return ""
        return _line("demo", {"data": data, "seeds": seeds}, private=private)
    if kind == "attack":
        return _attack(results, private=private)
    if kind == "distill" and os.path.lexists(folder / _CONFIG):
        flags = _flags(folder / _CONFIG)
        if "data" not in flags:  # they came from Python code
            return ""
        return _line("distill", {**flags, "out": "repeated"}, private=private)
    return ""


def _attack(results: Results, *, private: bool) -> str:
    flags = results.config.get("flags")
    if flags is None:
        return _attack_without_flags(results, private=private)
    if not isinstance(flags, dict):
        raise InputError("results.json: config.flags is no object; expected flags and values")
    _check_names(flags, "results.json: config.flags")
    return _line(_attack_words(results), {**flags, "out": "repeated"}, private=private)


def _attack_words(results: Results) -> str:
    """Return the command with the name of the attack; with two triggers, runs have other names."""
    name = results.config.get("attack", results.runs[0].attack)
    return f"attack {shlex.quote(str(name))}"


def _attack_without_flags(results: Results, *, private: bool) -> str:
    """Return the command of results that do not say how images are read, such as older ones."""
    run, config = results.runs[0], results.config
    if run.data not in DATA:
        return ""
    known = {name: config[name] for name in _OF_ATTACKS if name in config}
    if known.get("surrogate") == run.pair:
        del known["surrogate"]
    further = (name for name in config if name not in ("attack", *_OF_ATTACKS))
    own = {f"set.{name}": config[name] for name in further}
    flags = {"arch": run.pair, "data": run.data, "seed": run.seed, **known, **own}
    return _line(_attack_words(results), {**flags, "out": "repeated"}, private=private)


def _flags(path: Path) -> dict[str, object]:
    content = read_yaml(path, links=False)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no flags; expected lines such as 'epochs: 30'")
    _check_names(content, path)
    return content


def _check_names(flags: Mapping[object, object], file: object) -> None:
    for name in flags:
        if not isinstance(name, str) or _FLAG.fullmatch(name) is None:
            raise InputError(f"{file} sets {quoted(str(name))}; expected names of flags")


def _line(command: str, flags: Mapping[str, object], *, private: bool) -> str:
    words = [f"robustkd {command}"]
    for name, value in flags.items():
        if private and name in _PATHS and isinstance(value, str):
            value = _without_folder(name, value)
        if value is None or (name in _USUAL and _USUAL[name] == value):
            continue
        words += _words(name, value)
    return printable(" ".join(words))


def _without_folder(name: str, path: str) -> str:
    """Return the last part of a path; data stays recognisable as a folder or a name."""
    if name == "data" and path.startswith(HUB):
        return path
    last = os.path.basename(path.rstrip("/")) or path
    return f"./{last}" if name == "data" and last != path else last


def _words(name: str, value: object) -> Iterator[str]:
    # The names of an attack's settings are those of its arguments.
    flag = f"--{name if name.startswith('set.') else name.replace('_', '-')}"
    if name == "teacher":
        yield shlex.quote(str(value))
    elif isinstance(value, bool):
        if value or name in _TURNED_OFF:
            yield shlex.quote(flag if value else f"--no-{flag[2:]}")
    elif isinstance(value, list):
        yield from map(shlex.quote, (flag, *map(str, value)))
    elif str(value).startswith("-"):
        yield shlex.quote(f"{flag}={value}")
    else:
        yield from map(shlex.quote, (flag, str(value)))
