"""Architectures from the user's own code, which no file can name.

``package.module:callable`` runs code. Model files, configurations and results contain plain strings
only, and a plain string of this form is refused wherever a network is built. Only an instance of
:class:`OwnCode` is accepted, which is created by the command line or by the user's Python code.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable

import torch
from torch import nn

from robustkd.core.errors import UsageError
from robustkd.models.classifier import check_logits

_FEW = 2
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class OwnCode(str):
    """Name ``package.module:callable`` of a function of the user that builds a network.

    The function is called as ``callable(num_classes=...)``. The arguments ``in_chans=`` (1 or 3)
    and ``img_size=`` (height, width) are passed if its signature has them. It returns an
    ``nn.Module`` that maps normalised images to logits. The module is searched for on Python's
    path, and then in the working directory.

    Raises:
        UsageError: If the string has another form.
    """

    __slots__ = ()

    def __new__(cls, name: str) -> OwnCode:
        """Check the form of the name, without importing anything."""
        if not _NAME.fullmatch(name):
            raise UsageError(f"own code is {name!r}; expected package.module:callable")
        return super().__new__(cls, name)

    def build(self, *, classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        """Import and call the function.

        Raises:
            UsageError: If it cannot be imported or called, or does not return an ``nn.Module`` that
                maps images to logits.
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
            raise UsageError(f"{self} returns {type(network).__name__}; expected an nn.Module")
        self._check_outputs(network, classes, image_shape)
        return network

    def _check_outputs(
        self, network: nn.Module, classes: int, image_shape: tuple[int, int, int]
    ) -> None:
        """Raise an error for a network that returns something else than logits."""
        try:
            where = next((each.device for each in network.parameters()), None)
            # A copy, since a forward pass may change buffers.
            with torch.no_grad():
                found = copy.deepcopy(network).eval()(torch.zeros(_FEW, *image_shape, device=where))
        except Exception:  # with other images, or on another device, it may work
            return
        check_logits(found, _FEW, classes, f"the network of {self}")

    def _find(self) -> Callable[..., object]:
        module, _, path = self.partition(":")
        # The working directory comes last, so that no file in it replaces an installed module. It
        # stays on the path, since the user's module may import other modules later.
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            found: object = importlib.import_module(module)
            for name in path.split("."):
                found = getattr(found, name)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"{self} cannot be imported: {error}") from error
        if not callable(found):
            raise UsageError(f"{self} is of type {type(found).__name__}; expected a callable")
        return found
