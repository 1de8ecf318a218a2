"""Folding of the BatchNorm layers of a frozen network into its convolutions."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from robustkd.core.types import Features, Images
from robustkd.models.features.taps import Reader, frozen_modes

_TOLERANCE = {"cpu": 1e-4}
_ROUNDED = 1e-2
"""Tolerance on other devices, whose convolutions may round their inputs to ten bits (TF32)."""
_WITH_ACTIVATION = ("timm.layers.norm_act", "BatchNormAct2d")
"""Module and class of timm's BatchNorm with dropout and an activation after it, in this order."""


class _Pair(NamedTuple):
    """Module paths of a convolution and of the BatchNorm that follows it."""

    conv: str
    norm: str


def folded(model: nn.Module, names: Sequence[str], example: Images) -> nn.Module | None:
    r"""Return a copy of a network in eval mode that has fewer layers and the same outputs.

    A BatchNorm in eval mode is an affine function of each channel, so that a convolution before it
    can compute it as well:

    .. math:: w' = w \, \gamma / \sqrt{v + \epsilon}, \quad
        b' = (b - m) \, \gamma / \sqrt{v + \epsilon} + \beta

    with the running mean m and variance v. The pairs are found by running the network, whose code
    may be of any kind: the output of the convolution has to be the input of the BatchNorm and of
    nothing else, a tap among them. Modules that run more than once, have hooks, or are taps stay as
    they are, and so do subclasses except timm's BatchNorm with an activation. A network whose code
    takes other paths for other values of the images may use an output elsewhere on a path that the
    example does not take; such networks are not supported.

    Args:
        model: Network, which is not changed. The copy is in eval mode, and shares all tensors but
            those of the folded layers with it.
        names: Module paths of the taps, which exist in the copy as well.
        example: A few images, N x C x H x W, for which both networks are compared.

    Returns:
        The copy; None if there is nothing to fold, the network cannot be copied, or logits or
        features of the copy differ by more than rounding: on the CPU 1e-4 of the largest value.
    """
    try:
        with torch.no_grad(), frozen_modes(model):
            pairs = _pairs(model, names, example)
            if not pairs:
                return None
            tensors = chain(model.parameters(), model.buffers())
            short = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
            for pair in pairs:
                _fold(short, pair)
            alike = _alike(_run(model, names, example), _run(short, names, example))
    except Exception:  # code of users: what fails for the copy need not fail for the network
        return None
    return short if alike else None


_PROPERTIES = (int, torch.Size, torch.dtype, torch.device, torch.layout)
"""Types of what a function returns that does not read the values of a tensor."""


def _is_property(func: Callable[..., object], result: object) -> bool:
    """Whether a function tells a tensor's shape or kind; comparisons return bools as well."""
    if isinstance(result, bool):
        return func.__name__ == "__get__" or func.__name__.startswith("is_")
    return isinstance(result, _PROPERTIES)


class _Uses(TorchFunctionMode):
    """Counts the functions that receive a tensor that is watched, but for those of its shape."""

    def __init__(self) -> None:
        super().__init__()
        self._watched: dict[int, tuple[str, Tensor]] = {}
        self._uses: Counter[str] = Counter()

    def watch(self, name: str, value: Tensor) -> None:
        """Count from now on; the tensor is kept, so that no other one has its identity."""
        self._watched[id(value)] = name, value

    def name_of(self, value: object) -> str | None:
        """Return the name of a watched tensor that has not been used yet; None of others."""
        name, _ = self._watched.get(id(value), (None, None))
        return name if name is not None and self._uses[name] == 0 else None

    def once(self, name: str) -> bool:
        """Whether one operation has received the tensor."""
        return self._uses[name] == 1

    def use(self, values: object) -> None:
        """Count one use of each watched tensor among some values."""
        given = {id(value) for value in tree_leaves(values)}
        self._uses.update(self._watched[key][0] for key in given & self._watched.keys())

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if not _is_property(func, result):
            self.use((args, kwargs or {}))
        return result


def _pairs(model: nn.Module, names: Sequence[str], example: Images) -> list[_Pair]:
    """Return the convolutions and BatchNorms that can be folded, by running the network once."""
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    able = {
        module: path
        for module, (path, *others) in paths.items()
        if not others and path not in names and _is_plain(module)
    }
    runs: Counter[str] = Counter()
    found: list[_Pair] = []

    def before(module: nn.Module, given: tuple[Any, ...]) -> None:
        conv = uses.name_of(given[0]) if given else None
        if conv is not None and isinstance(module, nn.BatchNorm2d):
            found.append(_Pair(conv, able[module]))

    def after(module: nn.Module, _given: object, output: Tensor) -> None:
        runs[able[module]] += 1
        if isinstance(module, nn.Conv2d):
            uses.watch(able[module], output)

    def tapped(_module: nn.Module, _given: object, output: object) -> None:
        uses.use(output)

    with ExitStack() as stack:
        for module in able:
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        # A tap that contains the convolution may return its output, which then has to stay.
        for name in names:
            tap = model.get_submodule(name)
            stack.callback(tap.register_forward_hook(tapped).remove)
        uses = stack.enter_context(_Uses())
        model(example)
    return [
        pair for pair in found if uses.once(pair.conv) and runs[pair.conv] == runs[pair.norm] == 1
    ]


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is a convolution or a BatchNorm of PyTorch that computes nothing else."""
    if module._forward_hooks or module._forward_pre_hooks or module.training:
        return False
    if isinstance(module, nn.BatchNorm2d):
        measured = module.running_mean is not None and module.running_var is not None
        return measured and _after(module) is not None
    return type(module) is nn.Conv2d


def _after(norm: nn.BatchNorm2d) -> nn.Module | None:
    """Return what a BatchNorm computes after the normalisation; None if that is not known.

    timm's BatchNorm with an activation is known by its name, since timm need not be installed. Its
    parts keep their module paths.
    """
    kind = type(norm)
    if kind is nn.BatchNorm2d:
        return nn.Identity()
    if (kind.__module__, kind.__qualname__) == _WITH_ACTIVATION:
        return nn.Sequential(OrderedDict(norm.named_children()))
    return None


def _fold(model: nn.Module, pair: _Pair) -> None:
    """Let the convolution compute the BatchNorm as well, which becomes the identity."""
    conv, norm = (model.get_submodule(path) for path in pair)
    if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
        raise TypeError(f"{pair} are not a convolution and a BatchNorm")
    like = conv.weight

    def wide(given: Tensor | None, default: float | int) -> Tensor:
        if given is None:
            return torch.full((conv.out_channels,), default, dtype=torch.float64)
        return given.detach().cpu().double()

    factor = wide(norm.weight, 1) * (wide(norm.running_var, 1) + norm.eps).rsqrt()
    bias = (wide(conv.bias, 0) - wide(norm.running_mean, 0)) * factor + wide(norm.bias, 0)
    weight = wide(like, 1) * factor.view(-1, 1, 1, 1)
    conv.weight = nn.Parameter(weight.to(like), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(like), requires_grad=False)
    parent, _, name = pair.norm.rpartition(".")
    setattr(model.get_submodule(parent), name, _after(norm))


def _run(model: nn.Module, names: Sequence[str], example: Images) -> tuple[Features, ...]:
    """Return the logits and the features of some images."""
    with Reader(model, names) as reader:
        logits, features = reader(example)
    return (logits, *features)


def _alike(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether tensors are equal up to rounding."""
    for one, other in zip(ones, others, strict=True):
        tolerance = _TOLERANCE.get(one.device.type, _ROUNDED)
        if one.shape != other.shape or not bool(one.isfinite().all()):
            return False
        if not bool((one - other).abs().max() <= tolerance * one.abs().max()):
            return False
    return True
