"""Base of data sources that take their images from another source."""

from __future__ import annotations

from robustkd.core.types import DataSource


class Wrapper:
    """Part of a `robustkd.core.types.DataSource` that is the same in the source that it wraps.

    It has the names of the classes, the shape, and how images were read, so that a model for the
    wrapped images is described like one for the source. A subclass adds ``size`` and ``batches``.

    Attributes:
        source: The other source.
    """

    source: DataSource

    @property
    def name(self) -> str:
        """Short name of the source."""
        return self.source.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.source.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        return self.source.image_shape

    @property
    def resize(self) -> str:
        """How images were brought to this shape; empty if the source does not tell."""
        return str(getattr(self.source, "resize", ""))

    @property
    def crop(self) -> float:
        """Share of each image that is kept."""
        return float(getattr(self.source, "crop", 1.0))

    @property
    def interpolation(self) -> str:
        """Filter for resampling."""
        return str(getattr(self.source, "interpolation", "bilinear"))
