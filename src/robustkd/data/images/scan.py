"""Scanning of untrusted folders with one folder per class.

The classes are numbered in the order of their sorted names, as in torchvision's ImageFolder.
"""

from __future__ import annotations

import codecs
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from heapq import nsmallest
from pathlib import Path

from robustkd.core import folders, trees
from robustkd.core.errors import InputError, quoted
from robustkd.core.names import composed, unfit
from robustkd.data.images.filenames import SortedNames
from robustkd.data.images.left_out import counted
from robustkd.data.images.listing import Folder, Listing, list_files, shown

EXTENSIONS = (
    *(".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif"),
    *(".tiff", ".webp"),
)
"""Extensions of the formats that are read: those of torchvision's ImageFolder and others."""

_MOST_LISTED = 5
_MOST_SOUGHT = 10_000
"""Names in folders that are no data among which an image is sought."""
MOST_TEXT = 1 << 24
"""Largest size in bytes of a text file such as a list of class names."""
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LONGEST_SHOWN = 200
_LONGEST_KIND = 12


def folder_names(root: Path, part: str = "") -> tuple[str, ...]:
    """Return the sorted names of the folders within ``root / part``.

    Args:
        root: The data set's folder, with no link in its path.
        part: Folder below it.

    Raises:
        InputError: If the folder cannot be read, a name cannot be printed, or there is an entry
            that `scan` refuses.
    """
    names = [name for name, is_folder in _entries(root, part) if is_folder]
    for name in names:
        if not name.isprintable():
            raise InputError(
                f"{shown(root / part)}: the name of the folder {name!r} has characters that "
                "cannot be printed; rename it"
            )
        expected = unfit(name)
        if expected is not None:
            raise InputError(
                f"{shown(root / part)}: the name of the folder {quoted_name(name)} has "
                f"{len(name)} characters; expected {expected}: rename it"
            )
    return tuple(sorted(names))


def class_folders(root: Path, part: str = "") -> tuple[str, ...]:
    """Return the sorted names of the class folders within ``root / part``.

    Arguments are those of :func:`folder_names`.

    Raises:
        InputError: As :func:`folder_names`, or if two names differ only in Unicode's form, which
            makes them names of the same class.
    """
    names = folder_names(root, part)
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(composed(name), name)
        if other != name:
            raise InputError(
                f"{shown(root / part)}: the names of the folders {quoted(other)} and "
                f"{quoted(name)} differ only in how Unicode writes their accents, so they are the "
                "same class; merge the folders"
            )
    return names


def read_text(path: Path, *, most: int) -> str:
    """Read a text file, which may also be a pipe.

    Args:
        path: The file.
        most: Largest size in bytes.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is larger or not in UTF-8.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError("it is too large")
    return _decoded(content)


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = "in UTF-16" if content.startswith(_UTF_16) else "not in UTF-8"
        raise ValueError(f"it is {found}; save it in UTF-8") from error


def read_lines(path: Path, *, links: bool = True) -> tuple[str, ...]:
    """Read the lines of a small text file, without empty lines at its end.

    A byte order mark at the start, which some editors write, is ignored.

    Args:
        path: The file.
        links: If True, the path was given by the user and may be a link or a pipe; if False, it
            must be a regular file.

    Raises:
        InputError: If the file is missing, too large, or not a text.
    """
    try:
        if links:
            return text_lines(read_text(path, most=MOST_TEXT))
        with folders.Folder.at(path.parent) as folder:
            return text_lines(_decoded(folder.read(path.name, most=MOST_TEXT)))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> InputError:
    """Return the error for a file that cannot be read as text."""
    return InputError(f"{shown(path)} cannot be read as text ({reason(error)}); correct it")


def text_lines(text: str) -> tuple[str, ...]:
    """Return the lines of a text, without empty lines at its end."""
    lines = text.splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    return tuple(lines)


def check_same_classes(
    found: Sequence[str], expected: Sequence[str], *, it: str, other: str, advice: str
) -> None:
    """Raise an error if two places do not have the same classes, in any order.

    Raises:
        InputError: If a class is missing or unknown.
    """
    missing, unknown = set(expected) - set(found), set(found) - set(expected)
    if missing:
        raise InputError(f"{it} lacks the class {_some(missing)} that {other} has; add it{advice}")
    if unknown:
        raise InputError(
            f"{it} has the class {_some(unknown)} that {other} lacks; remove it{advice}"
        )


def scan(
    root: Path, part: str, classes: Sequence[str], *, skipped: Counter[str] | None = None
) -> Listing:
    """List every image below ``root / part / CLASS``, by class and sorted within a class.

    Hidden entries and files without the extension of an image are ignored. Links to files within
    ``root`` are followed. Any other entry that is neither a file nor a folder is refused, so that
    there are no loops and no files from outside.

    Args:
        root: The data set's folder, with no link in its path.
        part: Folder below it that holds the class folders.
        classes: Names of the class folders, in the order of their numbers.
        skipped: Gets the number of ignored files by extension; hidden entries are not counted,
            see `hidden_folders_with_images`.

    Raises:
        InputError: If a class has no image, or an entry is refused.
    """
    walk = _walk(root, part, classes, _counter(skipped))
    return list_files(root, walk, classes=len(classes))


def image_names(root: Path, path: str, skipped: Counter[str] | None = None) -> list[str]:
    """Return the sorted names of the images directly in ``root / path``.

    Args:
        root: The data set's folder, with no link in its path.
        path: Folder below it.
        skipped: As in `scan`.

    Raises:
        InputError: As `scan`.
    """
    return list(_sorted_entries(root, path, _counter(skipped))[0])


def images_below(root: Path, path: str, skipped: Counter[str] | None = None) -> list[str]:
    """Return the names, relative to ``root``, of the images in ``root / path`` and its folders.

    Arguments and errors are those of :func:`image_names`.
    """
    found = _below(root, path, _counter(skipped))
    return [f"{place}/{name}" for place, files in found for name in files]


def holds_images(root: Path, path: str) -> bool:
    """Return whether ``root / path`` or a folder below it has an image; only the first is sought.

    Folders below that cannot be read, or that hold links which leave ``root``, are no data and are
    left out. The search ends after some ten thousand names.

    Arguments and errors, those of ``root / path`` itself, are as for :func:`image_names`.
    """
    waiting, left = [path], _MOST_SOUGHT
    while waiting:
        place = waiting.pop()
        try:
            for name, is_folder in _entries(root, place):
                if is_folder:
                    waiting.append(f"{place}/{name}")
                elif _is_image(name):
                    return True
                left -= 1
                if not left:
                    return False
        except InputError:
            if place == path:
                raise
    return False


def hidden_folders_with_images(root: Path, part: str) -> int:
    """Return the number of folders within ``root / part`` that `scan` ignores as hidden ones.

    Those without images are not counted, nor those that cannot be read.

    Args:
        root: The data set's folder, with no link in its path.
        part: Folder below it.
    """
    try:
        with trees.Tree(root).folder(part) as folder, os.scandir(folder.descriptor) as entries:
            names = [
                entry.name
                for entry in entries
                if entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return 0
    return sum(_may_hold_images(root, f"{part}/{name}" if part else name) for name in names)


def _may_hold_images(root: Path, path: str) -> bool:
    try:
        return holds_images(root, path)
    except InputError:
        return False


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _counter(skipped: Counter[str] | None) -> Counter[str]:
    return Counter() if skipped is None else skipped


def _below(root: Path, top: str, skipped: Counter[str]) -> Iterator[tuple[str, SortedNames]]:
    """Yield each folder from ``top`` on that has images, with their names."""
    waiting = [top]
    while waiting:
        path = waiting.pop()
        files, inner = _sorted_entries(root, path, skipped)
        waiting += (f"{path}/{folder}" for folder in reversed(inner))
        if files:
            yield path, files


def _walk(root: Path, part: str, classes: Sequence[str], skipped: Counter[str]) -> Iterator[Folder]:
    for label, name in enumerate(classes):
        top = f"{part}/{name}" if part else name
        empty, before = True, Counter(skipped)
        for path, files in _below(root, top, skipped):
            empty = False
            yield Folder(path, files, label)
        if empty:
            other = skipped - before
            has = f"it has {counted(other)}; " if other else ""
            remove = "remove the class from all splits" if part else "remove the folder"
            raise InputError(
                f"{shown(root / top)}: no images ({', '.join(EXTENSIONS)}); {has}add some, or "
                f"{remove}"
            )


def _sorted_entries(root: Path, path: str, skipped: Counter[str]) -> tuple[SortedNames, list[str]]:
    """Return the names of the image files and of the folders in one folder; count other files."""
    inner: list[str] = []

    def files() -> Iterator[str]:
        for name, is_folder in _entries(root, path):
            if is_folder:
                inner.append(name)
            elif _is_image(name):
                yield name
            else:
                skipped[_kind(name)] += 1

    return SortedNames(files()), sorted(inner)


def _kind(name: str) -> str:
    """Return the extension of a file in lower case, as far as a report can show it."""
    extension = os.path.splitext(name)[1].lower()
    if not extension:
        return "files without extension"
    return extension if unfit(extension) is None and len(extension) <= _LONGEST_KIND else "others"


def check_inside(root: Path, path: str) -> None:
    """Raise an error for a folder behind a link, or with a link that leaves ``root``.

    Raises:
        InputError: As `scan`.
    """
    for _ in _entries(root, path):
        pass


def _entries(root: Path, path: str) -> Iterator[tuple[str, bool]]:
    """Yield the visible names in a folder below ``root``, and whether they are folders."""
    place = root / path
    try:
        with trees.Tree(root).folder(path) as folder, os.scandir(folder.descriptor) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    yield entry.name, _is_folder(entry, place, root)
    except OSError as error:
        # Unlike Path.is_symlink, this is False for a path that is too long.
        if os.path.islink(place):
            raise _refusal(place, "is a link to a folder") from error
        raise InputError(
            f"{shown(place)} cannot be read ({reason(error)}); expected a folder of images"
        ) from error


def _is_folder(entry: os.DirEntry[str], folder: Path, root: Path) -> bool:
    """Return whether an entry is a folder; refuse anything else but files within ``root``."""
    if entry.is_dir(follow_symlinks=False):
        return True
    if entry.is_file(follow_symlinks=False):
        return False
    # Made only here: a path per file would take time, and memory for names that Python interns.
    place = folder / entry.name
    if entry.is_symlink():
        goal = Path(os.path.realpath(place))
        if not goal.is_relative_to(root):
            raise _refusal(place, "is a link that leaves the folder")
        # Unlike Path.is_file, this is False if a parent folder may not be searched.
        if not os.path.isfile(goal):
            raise _refusal(place, "is a link to something else than a file")
    else:
        raise _refusal(place, "is neither a file nor a folder")
    return False


def _refusal(place: Path, problem: str) -> InputError:
    return InputError(f"{shown(place)} {problem}; replace it by a copy of what is meant")


def reason(error: Exception) -> str:
    """Return the reason of an error on one line."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())


def _some(names: set[str]) -> str:
    """Return some of the names in quotes, for one line."""
    first = nsmallest(_MOST_LISTED, names)
    more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
    return ", ".join(map(quoted_name, first)) + more


def quoted_name(name: str) -> str:
    """Return the name of a class in quotes; a very long one is cut."""
    return repr(name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}...")
