"""Lines about files in a folder of images that are left out."""

from __future__ import annotations

from collections.abc import Mapping

from robustkd.core.types import DataSource

UNREAD = (
    *(".apng", ".avif", ".avifs", ".cr2", ".cr3", ".dcm", ".dds", ".dng", ".exr", ".hdr", ".heic"),
    *(".heif", ".hif", ".ico", ".j2c", ".j2k", ".jp2", ".jpf", ".jpx", ".jxl", ".nef", ".pbm"),
    *(".pcx", ".pfm", ".psd", ".qoi", ".raw", ".svg", ".tga", ".xbm", ".xcf", ".xpm"),
)
"""Extensions of image formats that are not read."""


def skipped_files(clean: DataSource) -> dict[str, int]:
    """Return the number of files and folders of the data that were left out, by kind."""
    return dict(getattr(clean, "skipped", {}))


def left_out_lines(name: str, skipped: Mapping[str, int]) -> list[str]:
    """Return a line about images in formats that are not read, and one about other files.

    >>> left_out_lines("images", {".avif": 15})
    ['data: left out of images, since this format is not read: 15 .avif; convert to PNG or JPEG']

    Args:
        name: Name of the data.
        skipped: Number of files and folders that were left out, by kind.
    """
    images = {kind: count for kind, count in skipped.items() if kind in UNREAD}
    others = {kind: count for kind, count in skipped.items() if kind not in UNREAD}
    lines = []
    if images:
        formats = "this format is" if len(images) == 1 else "these formats are"
        lines.append(
            f"data: left out of {name}, since {formats} not read: {counted(images)}; convert to "
            "PNG or JPEG"
        )
    if others:
        lines.append(
            f"data: left out of {name}, since they are not images of a class: {counted(others)}"
        )
    return lines


def counted(kinds: Mapping[str, int]) -> str:
    """Return numbers by kind on one line.

    >>> counted({".txt": 2, ".avif": 15})
    '15 .avif, 2 .txt'
    """
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
