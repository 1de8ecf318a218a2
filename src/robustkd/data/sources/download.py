"""Locating the files of public data sets, and downloading them by torchvision."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from robustkd.core.errors import InputError

DATA_VARIABLE = "ROBUSTKD_DATA"


@contextlib.contextmanager
def downloading(refusal: Callable[[str], InputError]) -> Iterator[None]:
    """Handle the output and the errors of a download by torchvision.

    Args:
        refusal: Function that makes the error from the reason.

    Raises:
        InputError: If the download fails.
    """
    try:
        # torchvision prints its progress to stdout, which is for results.
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (OSError, RuntimeError, ValueError, HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise refusal(f"download failed: {reason}") from error


@dataclass(frozen=True)
class Official:
    """A data set that torchvision can download.

    Attributes:
        title: Name of the data set, for messages.
        folder: Name of the folder in its archive.
        marks: Paths within this folder that must exist.
        fetch: Function that downloads the data set into a folder and unpacks it.
    """

    title: str
    folder: str
    marks: tuple[str, ...]
    fetch: Callable[[Path], object]

    def locate(self, root: Path | None) -> Path:
        """Return the folder that contains `folder`.

        Args:
            root: That folder, or `folder` itself; nothing else is searched. None searches the
                folder in the environment variable ROBUSTKD_DATA, then ``~/.cache/robustkd``, and
                then downloads to the latter.

        Raises:
            InputError: If the data set is not found and the download fails.
        """
        if root is not None:
            itself = Path(os.path.abspath(root))
            if self._is_in(root):
                return root
            if itself.name == self.folder and self._is_in(itself.parent):
                return itself.parent
            raise InputError(
                f"{root}: no {self.title} here, expected the folder {self.folder} with "
                f"{', '.join(self.marks)}; correct --data-root or leave it out"
            )
        cache = Path.home() / ".cache" / "robustkd"
        chosen = os.environ.get(DATA_VARIABLE)
        searched = [*([Path(chosen)] if chosen else []), cache]
        for place in searched:
            if self._is_in(place):
                return place

        def refusal(reason: str) -> InputError:
            places = ", ".join(str(place / self.folder) for place in searched)
            return InputError(
                f"{self.title} is in none of {places} ({reason}); pass --data-root or set "
                f"{DATA_VARIABLE} to the folder that holds {self.folder}"
            )

        with downloading(refusal):
            self.fetch(cache)
        if not self._is_in(cache):
            raise refusal("the download is incomplete")
        return cache

    def check_marks(self, root: Path) -> None:
        """Raise an error for tables and folders of the data set that are links.

        Args:
            root: The data set's folder.

        Raises:
            InputError: If one of `marks`, or one of its parent folders, is a link.
        """
        for mark in self.marks:
            place = root
            for part in mark.split("/"):
                place = place / part
                if place.is_symlink():
                    raise InputError(f"{place} is a link; replace it by a copy of what is meant")

    @contextlib.contextmanager
    def reading(self, place: Path) -> Iterator[None]:
        """Turn errors of torchvision's reader into one-line messages.

        Raises:
            InputError: If the files are damaged.
        """
        try:
            yield
        except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{place / self.folder} holds no intact {self.title} ({reason}); replace it, or "
                "remove it to download it again"
            ) from error

    def _is_in(self, place: Path) -> bool:
        return all((place / self.folder / mark).exists() for mark in self.marks)
