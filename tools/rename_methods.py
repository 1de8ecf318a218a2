"""Give methods other names in stored results, whose settings stay the same.

    python -m tools.rename_methods default=additions transformations=default RESULTS...

Each of the RESULTS is a folder with a ``results.json`` and, if a grid wrote it, with ``cells``. A
cell's name contains its method and the hash of its configuration, so its file is renamed too. After
it, ``robustkd bench GRID --tables-only`` writes the tables of a grid again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustkd.benchmark.cells import digest
from robustkd.core.errors import InputError, UsageError
from robustkd.core.method_names import split_name


def rename(folder: Path, names: Mapping[str, str]) -> int:
    """Rename the methods of the results in a folder.

    All files are read and checked before the first is written.

    Args:
        folder: A folder of results.
        names: New names of methods by old ones, all of them applied at once.

    Returns:
        Number of results with another name.

    Raises:
        InputError: If there are no results, or a cell's name does not fit its configuration.
    """
    files = [*folder.glob("cells/*.json"), *folder.glob("former/*.json"), *folder.glob("*.json")]
    if not files:
        raise InputError(f"{folder}: expected results.json or cells")
    written: dict[Path, str] = {}
    count = 0
    for path in sorted(files):
        content = json.loads(path.read_text(encoding="utf-8"))
        cell = content.get("cell")
        runs = content.get("runs", [content["run"]] if "run" in content else [])
        if cell is not None and _name(cell) != path.stem:
            raise InputError(f"{path}: the name does not fit the configuration, {_name(cell)}")
        before = json.dumps(content)
        rehearsal = cell["teacher"].get("rehearsal") if cell is not None else None
        for part in (*runs, cell, rehearsal):
            if part is not None and "method" in part:
                part["method"] = _renamed(part["method"], names)
        config = content.get("config", {})
        if isinstance(config.get("methods"), list):
            config["methods"] = [_renamed(method, names) for method in config["methods"]]
        changed = json.dumps(content) != before
        count += changed
        place = path.with_name(f"{_name(cell)}.json") if cell is not None else path
        text = json.dumps(content, indent=1) + "\n" if changed else path.read_text("utf-8")
        written[place] = text
    if len(written) != len(files):
        raise InputError(f"{folder}: two results would have the same name")
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")
    for path in set(files) - set(written):
        path.unlink()
    return count


def _renamed(method: str, names: Mapping[str, str]) -> str:
    """Return the new name of a method, which may have a defence in front."""
    defence, base = split_name(method)
    base = names.get(base, base)
    return base if defence is None else defence.around(base)


def _name(cell: Mapping[str, Any]) -> str:
    """Return the name of a cell, which ends in the hash of its configuration."""
    teacher = cell["teacher"]
    words = (teacher["attack"], cell["method"], f"seed-{teacher['setting']['seed']}")
    return f"{'.'.join(words)}.{digest(cell)}"


def main(arguments: list[str]) -> int:
    """Rename methods in the given folders of results."""
    try:
        pairs = [part.split("=") for part in arguments if "=" in part]
        folders = [Path(part) for part in arguments if "=" not in part]
        if not pairs or not folders or any(len(pair) != 2 for pair in pairs):
            raise UsageError("expected OLD=NEW, once or more, and at least one folder")
        names = dict(pairs)
        for folder in folders:
            print(f"{folder}: {rename(folder, names)} results renamed")
    except (InputError, UsageError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
