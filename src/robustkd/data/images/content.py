"""Hash of the content of an image folder, which does not depend on the place of the folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping

from robustkd.core.progress import track
from robustkd.core.types import Split
from robustkd.data.images.listing import Encoded
from robustkd.data.images.loader import Part
from robustkd.data.images.pixels import MAX_BYTES

_AT_ONCE = 1024


def content_sha256(parts: Mapping[Split, Part]) -> str:
    """Return the SHA-256, in hexadecimal, of names, classes and bytes of all images.

    Of a file that is larger than any image that is decoded, only the first bytes and the size are
    used. A file that cannot be read counts as such.

    Args:
        parts: Splits by name.
    """
    digest = hashlib.sha256()
    images = sum(map(len, parts.values()))
    with track("hash the images", -(-images // _AT_ONCE)) as update:
        for place, line in enumerate(_lines(parts)):
            digest.update(line)
            if place % _AT_ONCE == 0:
                update()
    return digest.hexdigest()


def _lines(parts: Mapping[Split, Part]) -> Iterator[bytes]:
    for split, part in sorted(parts.items()):
        labels = part.labels
        for row in range(len(part)):
            name = part.name(row).encode("utf-8", "surrogateescape")
            # The name comes last, and its length is stated, so that no two lists give equal bytes.
            found = _image(part.files, int(part.rows[row]))
            yield f"{split} {labels[row]} {found} {len(name)} ".encode() + name


def _image(files: Encoded, row: int) -> str:
    try:
        with files.open(row) as stream:
            content = stream.read(MAX_BYTES + 1)
            size = stream.seek(0, os.SEEK_END)
    except OSError:
        return "unreadable"
    return f"{size} {hashlib.sha256(content).hexdigest()}"
