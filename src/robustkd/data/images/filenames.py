"""File names on disk, so that a million names take hardly more memory than a few.

The names are in an anonymous temporary file that is removed with the process. Processes share the
file and read it by position, so that they do not affect each other.
"""

from __future__ import annotations

import os
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator
from heapq import merge
from itertools import islice
from multiprocessing.context import assert_spawning
from multiprocessing.reduction import DupFd
from tempfile import TemporaryFile, gettempdir
from typing import IO, Protocol, runtime_checkable

from robustkd.core.errors import InputError, temporary_advice

_STEP = 64
"""Distance between two names whose position is kept; as many names are read at once."""
_SORTED_AT_ONCE = 64 * _STEP


class Names:
    """A sequence of file names, to which only the process that made it can append.

    It takes eight bytes of memory for every 64 names.

    Raises:
        InputError: If no temporary file can be created.
    """

    def __init__(self) -> None:
        try:
            # A finalizer closes the file when the names are no longer used.
            self._hold(TemporaryFile(prefix="robustkd-"))  # noqa: SIM115
        except OSError as error:
            raise _not_kept(error) from error
        self._places = array("q")
        self._count = self._end = 0

    def _hold(self, file: IO[bytes]) -> None:
        self._file = file
        weakref.finalize(self, file.close)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> str:
        if not 0 <= row < self._count:
            raise IndexError(f"row {row} of {self._count} names")
        return self._block(row // _STEP)[row % _STEP]

    def read(self, first: int, last: int) -> Iterator[str]:
        """Yield the names from row ``first``, a multiple of 64, up to but excluding ``last``."""
        for start in range(first, last, _STEP):
            yield from self._block(start // _STEP)[: last - start]

    def extend(self, names: Iterable[str], *, prefix: str = "") -> int:
        """Append names, and return their number.

        Args:
            names: File names, or paths.
            prefix: Prefix of each name: empty, or the path of a folder that ends in ``/``.

        Raises:
            InputError: If there is no space for them.
        """
        before, left = self._count, iter(names)
        try:
            while some := list(islice(left, _STEP - self._count % _STEP)):
                if self._count % _STEP == 0:
                    self._places.append(self._end)
                # No file system allows a zero byte in a name.
                text = prefix + f"\0{prefix}".join(some) + "\0"
                self._end += self._file.write(os.fsencode(text))
                self._count += len(some)
            self._file.flush()
        except OSError as error:
            raise _not_kept(error) from error
        return self._count - before

    def _block(self, number: int) -> list[str]:
        start, *rest = self._places[number : number + 2]
        end = rest[0] if rest else self._end
        read = os.pread(self._file.fileno(), end - start, start)
        return os.fsdecode(read).split("\0")[:-1]

    def __reduce__(self) -> tuple[Callable[..., Names], tuple[object, ...]]:
        # An open file can only be passed to a worker process that is being started.
        assert_spawning(self)
        return _received, (DupFd(self._file.fileno()), self._places, self._count, self._end)


@runtime_checkable
class _Descriptor(Protocol):
    def detach(self) -> int: ...


def _received(descriptor: _Descriptor, places: array[int], count: int, end: int) -> Names:
    """Return the names of another process, for reading."""
    names = Names.__new__(Names)
    names._hold(os.fdopen(descriptor.detach(), "rb"))
    names._places, names._count, names._end = places, count, end
    return names


class SortedNames:
    """Names in increasing order, of which only some thousands are in memory at a time.

    Blocks of names are sorted and written to disk, and then merged.

    Args:
        names: In any order.

    Raises:
        InputError: If there is no space for them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        left = iter(names)
        self._runs: Names | None = None
        while len(latest := sorted(islice(left, _SORTED_AT_ONCE))) == _SORTED_AT_ONCE:
            self._runs = self._runs or Names()
            self._runs.extend(latest)
            latest.clear()
        self._latest = latest

    def __len__(self) -> int:
        return len(self._runs or ()) + len(self._latest)

    def __iter__(self) -> Iterator[str]:
        runs = self._runs
        if runs is None:
            return iter(self._latest)
        starts = range(0, len(runs), _SORTED_AT_ONCE)
        return merge(*(runs.read(start, start + _SORTED_AT_ONCE) for start in starts), self._latest)


def _not_kept(error: OSError) -> InputError:
    return InputError(
        f"{gettempdir()}: the names of the images cannot be kept in a temporary file there "
        f"({error.strerror}); {temporary_advice(error)}"
    )
