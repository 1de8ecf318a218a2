"""Reading and rewriting of the intermediate features of any network, by module path.

A tap is the dotted path of a submodule whose output is read. Hooks exist only inside ``with``
blocks and are always removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from robustkd.core.errors import UsageError
from robustkd.core.names import nearest
from robustkd.core.types import Features


def module_at(model: nn.Module, name: str) -> nn.Module:
    """Return the submodule at a dotted path.

    Raises:
        UsageError: If there is none; the message suggests the nearest path.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name in modules:
        return modules[name]
    hint = nearest(name, filter(None, modules), otherwise="see robustkd list --taps")
    raise UsageError(f"no module {name!r} in {type(model).__name__}; {hint}")


@contextmanager
def frozen_modes(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Set a model to eval (or training) mode, and restore the mode of every submodule on exit."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


@contextmanager
def out_of_place(model: nn.Module) -> Iterator[None]:
    """Context manager that disables in-place activations."""
    # An in-place activation would overwrite the features that a tap before it has read.
    changed = [module for module in model.modules() if getattr(module, "inplace", False) is True]
    for module in changed:
        vars(module)["inplace"] = False
    try:
        yield
    finally:
        for module in changed:
            vars(module)["inplace"] = True


@contextmanager
def read(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Features]]:
    """Context manager that reads features during forward passes.

    Args:
        model: Any network.
        names: Module paths; each module must run once per forward pass.

    Yields:
        Features by module path; every forward pass clears and fills the dictionary.

    Raises:
        UsageError: If a path does not exist, or its module runs more than once per forward pass or
            does not return a single tensor.
    """
    features: dict[str, Features] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if not isinstance(output, Tensor):
                raise UsageError(
                    f"module {name!r} returns {type(output).__name__}; expected a tensor: "
                    "tap another module"
                )
            if name in features:
                raise UsageError(
                    f"module {name!r} runs more than once per forward pass; expected once: "
                    "tap another module"
                )
            # Cloned, because the network may change its output in place, as ``out += shortcut``.
            features[name] = output.clone()

        return hook

    with ExitStack() as stack:
        stack.enter_context(out_of_place(model))
        start = model.register_forward_pre_hook(lambda _module, _inputs: features.clear())
        stack.callback(start.remove)
        for name in names:
            stack.callback(module_at(model, name).register_forward_hook(keep(name)).remove)
        yield features


@contextmanager
def rewrite(model: nn.Module, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Context manager that replaces the output of each named module by a function of it.

    Args:
        model: Any network.
        changes: Functions of the output, by module path.

    Raises:
        UsageError: If a path does not exist.
    """

    def replace(change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        return lambda _module, _inputs, output: change(output)

    with ExitStack() as stack:
        for name, change in changes.items():
            stack.callback(module_at(model, name).register_forward_hook(replace(change)).remove)
        yield
