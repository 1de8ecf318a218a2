"""Architectures that are the user's own code, and why a file can never name one.

``package.module:callable`` runs code. So a plain string of that form, which is what every model
file, config or result holds, is refused wherever a network is built; only an :class:`OwnCode` is
accepted, and only the command line and the user's own Python make one.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable

from torch import nn

from robustkd.core.errors import UsageError

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class OwnCode(str):
    """A callable ``package.module:callable`` that the user, and no file, has named.

    It is called as ``callable(num_classes=...)``, with ``in_chans=`` (1 or 3) and ``img_size=``
    (height, width) as well where its signature names them, and returns an ``nn.Module`` that maps
    normalised images to logits. The module is searched for where Python does, then in the working
    directory.

    Raises:
        UsageError: If the string has another form.
    """

    __slots__ = ()

    def __new__(cls, name: str) -> OwnCode:
        """Check the form; nothing is imported yet."""
        if not _NAME.fullmatch(name):
            raise UsageError(f"own code is {name!r}; expected package.module:callable")
        return super().__new__(cls, name)

    def build(self, *, classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        """Import and call it.

        Raises:
            UsageError: If it cannot be imported or called, or gives no module.
        """
        make = self._find()
        takes = inspect.signature(make).parameters
        offered = {"in_chans": image_shape[0], "img_size": image_shape[1:]}
        wanted = {name: value for name, value in offered.items() if name in takes}
        try:
            network = make(num_classes=classes, **wanted)
        except TypeError as error:
            raise UsageError(f"{self} cannot be called with num_classes=: {error}") from error
        if not isinstance(network, nn.Module):
            raise UsageError(f"{self} gives a {type(network).__name__}; expected an nn.Module")
        return network

    def _find(self) -> Callable[..., object]:
        module, _, path = self.partition(":")
        # Last, so that no file of a folder of downloads takes the place of an installed module;
        # and to stay, since the module may import its neighbours later.
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            found: object = importlib.import_module(module)
            for name in path.split("."):
                found = getattr(found, name)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"{self} cannot be imported: {error}") from error
        if not callable(found):
            raise UsageError(f"{self} is a {type(found).__name__}; expected a callable")
        return found
