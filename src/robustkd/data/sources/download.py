"""Where the files of a public data set are: given, found, or fetched by torchvision."""

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
    """Let torchvision download within the block; a failure becomes one line.

    Args:
        refusal: Makes the error from the reason.

    Raises:
        InputError: The download failed.
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
    """A data set that torchvision knows by the name of its folder.

    Attributes:
        title: What people call it.
        folder: Name of the folder that its archive unpacks to.
        marks: Paths within this folder that show that it is there.
        fetch: Downloads it below a folder and unpacks it.
    """

    title: str
    folder: str
    marks: tuple[str, ...]
    fetch: Callable[[Path], object]

    def locate(self, root: Path | None) -> Path:
        """The folder in which `folder` is.

        Args:
            root: That folder, or `folder` itself; nothing else is searched. None searches the
                folder that the environment variable ROBUSTKD_DATA names, then
                ``~/.cache/robustkd``, then downloads to there.

        Raises:
            InputError: It is nowhere, and the download fails.
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
        """Refuse tables and folders of the data set that are links, since they may lead elsewhere.

        Args:
            root: The data set's folder.

        Raises:
            InputError: One of `marks`, or a folder on the way to it, is a link.
        """
        for mark in self.marks:
            place = root
            for part in mark.split("/"):
                place = place / part
                if place.is_symlink():
                    raise InputError(f"{place} is a link; replace it by a copy of what is meant")

    @contextlib.contextmanager
    def reading(self, place: Path) -> Iterator[None]:
        """What torchvision's reader raises within the block becomes one line.

        Raises:
            InputError: The files are damaged.
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
