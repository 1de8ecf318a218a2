"""Unknown names of keyword arguments."""

from __future__ import annotations

import re

import pytest

from robustkd.core.errors import UsageError
from robustkd.core.names import check_options


def test_known_options_are_accepted():
    check_options(["epochs", "lr"], ["lr", "epochs", "seed"])
    check_options([], [])


@pytest.mark.parametrize(
    ("name", "hint"),
    [("epoch", "did you mean 'epochs'?"), ("zzz", "expected one of epochs, lr")],
)
def test_an_unknown_option_is_named_with_the_nearest_or_with_all(name, hint):
    with pytest.raises(UsageError, match=f"^{re.escape(f'unknown option {name!r}; {hint}')}$"):
        check_options(["lr", name], ["epochs", "lr"])
