"""Matching of a state dict with the architecture that the user names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from robustkd.core.errors import InputError, quoted
from robustkd.models.checks import check_names
from robustkd.models.classifier import Spec
from robustkd.models.registry import layout
from robustkd.teacher.match_order import SHORTCUT_PLACES, in_order
from robustkd.teacher.normalisation import pairs_in

_COUNTER = "num_batches_tracked"
# Buffers that profilers (thop) and averaged networks leave in a state dict.
_NOTES = frozenset({"total_ops", "total_params", "n_averaged"})
# Float32 weights, their averages and two moments of an optimiser are four copies, or eight in
# float64; there is also some room for settings and training curves.
_MOST_COPIES = 16
_ROOM = 64 << 20
_MOST_PREFIXES = 8
_LARGEST_COUNT = 1 << 30


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a network of a spec needs.

    Attributes:
        spec: Architecture, classes and input; its normalisation is ignored.
        tensors: Every parameter and buffer, usually on the device ``meta``, in the network's order.
        head: Names of the tensors whose shapes depend on the number of classes.
        counted: Source of the number of classes, for messages.
    """

    spec: Spec
    tensors: Mapping[str, Tensor]
    head: Collection[str]
    counted: str

    @classmethod
    def by(cls, spec: Spec, counted: str = "the data") -> Wanted:
        """Build the network of a spec without memory, and describe it."""
        tensors = layout(spec).network.state_dict()
        other = layout(replace(spec, classes=spec.classes + 1)).network.state_dict()
        head = {name for name, tensor in other.items() if tensor.shape != tensors[name].shape}
        return cls(spec, tensors, head, counted)

    @property
    def most_bytes(self) -> int:
        """Largest accepted file size in bytes, which includes an optimiser's state."""
        return _ROOM + _MOST_COPIES * sum(int(tensor.nbytes) for tensor in self.tensors.values())


@dataclass(frozen=True, slots=True)
class Plan:
    """Which tensor of a file is which of a network.

    Attributes:
        names: Name in the file of each tensor of the network that the file has.
        filled: Batch counters that the file lacks, as old files do.
        prefix: Prefix that was removed from the names.
        ignored: Names in the file that are not part of the network.
        normalisation: Names in the file of means and standard deviations, in turn; empty if it has
            none.
        by_order: Whether the names differ, so that tensors were matched by order and shape.
    """

    names: Mapping[str, str]
    filled: tuple[str, ...] = ()
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    normalisation: tuple[str, ...] = ()
    by_order: bool = False

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Parts of the prefix, outermost first."""
        return tuple(f"{part}." for part in self.prefix.split(".")[:-1])


@dataclass(frozen=True, slots=True)
class Matched:
    """A state dict that matches a network exactly.

    Attributes:
        tensors: Every parameter and buffer of the network.
        converted: Number of tensors that were converted from another type than float32, by type.
    """

    tensors: Mapping[str, Tensor]
    converted: Mapping[str, int]


def plans(
    tensors: Mapping[str, Tensor], wanted: Wanted, path: Path, *, ordered: bool = True
) -> list[Plan]:
    """Match the names, shapes and types of a state dict with a network, strictly.

    A common prefix is removed if all names of the network are then present. If there is no such
    prefix, and the order and the shapes of all tensors are those of the network, they are matched
    by order.

    Args:
        tensors: Tensors by the names in the file, in the file's order; values are not read.
        wanted: The network.
        path: The file, for messages.
        ordered: Whether the order of the tensors is that of a network.

    Returns:
        One plan, or several if the state dict has several such networks under different prefixes.

    Raises:
        InputError: If names, shapes or types differ, or if the head is missing or has another
            number of classes.
    """
    counts = _shared(tensors, wanted)
    prefixes = _complete(counts, wanted)
    if not prefixes and ordered:
        plain = _without_notes(tensors, wanted)
        for place in SHORTCUT_PLACES:
            names = in_order(plain, wanted.tensors, wanted.head, place)
            if names is not None:
                plan = replace(_plan(tensors, wanted, names), by_order=True)
                apply(plan, tensors, wanted, path)
                return [plan]
    fitting, errors = [], []
    for prefix in prefixes or [_likeliest(counts)]:
        try:
            fitting.append(_by_name(tensors, wanted, prefix, path, ordered=ordered))
        except InputError as error:
            errors.append(error)
    if not fitting:
        raise errors[0]
    return fitting


def apply(plan: Plan, tensors: Mapping[str, Tensor], wanted: Wanted, path: Path) -> Matched:
    """Rename and convert the tensors of a file as planned, and check that they fit.

    Raises:
        InputError: If the tensors do not fit.
    """
    found = {name: tensors[own] for name, own in plan.names.items() if own in tensors}
    found, converted = to_float32(found, path)
    found = _as_integers(found, wanted)
    found |= {name: torch.zeros_like(wanted.tensors[name], device="cpu") for name in plan.filled}
    _check(found, wanted, path)
    return Matched(found, converted)


def select_outputs(weights: Matched, wanted: Wanted, outputs: Sequence[int]) -> Matched:
    """Return the weights of a network that has only some of the outputs, in the given order.

    Args:
        weights: Tensors of a network of all classes.
        wanted: This network.
        outputs: Numbers of the outputs, from 0; empty for all.
    """
    if not outputs:
        return weights
    rows = torch.tensor(outputs)
    tensors = {
        name: tensor[rows] if name in wanted.head else tensor
        for name, tensor in weights.tensors.items()
    }
    return replace(weights, tensors=tensors)


def with_head(weights: Matched, head: Mapping[str, Tensor]) -> Matched:
    """Return weights with another head.

    Args:
        weights: Tensors of a network.
        head: Tensors of the other head, by the names of the network.
    """
    return replace(weights, tensors={**weights.tensors, **head})


def to_float32(
    tensors: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Convert floating-point tensors to float32, and count those of each other type.

    Raises:
        InputError: If weights are quantised.
    """
    counts = Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values() if _other(t))
    if small := [name for name, t in tensors.items() if t.dtype in (torch.int8, torch.uint8)]:
        raise InputError(
            f"{path} has {tensors[small[0]].dtype} values in {small[0]!r}; quantised weights "
            "cannot be distilled from: give the float ones"
        )
    return {name: t.float() if _other(t) else t for name, t in tensors.items()}, dict(counts)


def _as_integers(found: Mapping[str, Tensor], wanted: Wanted) -> dict[str, Tensor]:
    """Convert tensors of float numbers that are integers in the network, such as its counters.

    A conversion of a whole state dict to half precision converts them, too. A batch counter may
    have become infinite or negative, and is then 0: the outputs do not depend on it. Other tensors
    are converted if no value changes.
    """
    made = dict(found)
    for name, tensor in found.items():
        kind = wanted.tensors[name].dtype
        if kind.is_floating_point or kind.is_complex or not tensor.is_floating_point():
            continue
        if name.endswith(_COUNTER):
            tensor = tensor.nan_to_num(0, 0, 0).clamp(0, _LARGEST_COUNT)
        whole = tensor.to(kind)
        # A tensor on the device ``meta`` has no values to compare.
        if tensor.is_meta or name.endswith(_COUNTER) or torch.equal(whole.to(tensor.dtype), tensor):
            made[name] = whole
    return made


def _other(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float32


def _shared(tensors: Collection[str], wanted: Wanted) -> Counter[str]:
    """Count, for each prefix in the file, the names of the network that follow it."""
    counts = Counter[str]()
    # A hostile file has names of very many parts.
    deepest = max((name.count(".") for name in wanted.tensors), default=0) + 1
    for name in tensors:
        parts = name.rsplit(".", deepest)[-deepest:]
        for place in range(len(parts)):
            end = ".".join(parts[place:])
            if end in wanted.tensors and not end.endswith(_COUNTER):
                counts[name[: len(name) - len(end)]] += 1
    return counts


def _complete(counts: Mapping[str, int], wanted: Wanted) -> list[str]:
    """Return the prefixes under which all names of the network are present, shortest first."""
    needed = sum(not name.endswith(_COUNTER) for name in wanted.tensors)
    complete = [prefix for prefix, count in counts.items() if count == needed]
    return sorted(complete, key=lambda prefix: (len(prefix), prefix))[:_MOST_PREFIXES]


def _likeliest(counts: Mapping[str, int]) -> str:
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")


def _by_name(
    tensors: Mapping[str, Tensor], wanted: Wanted, prefix: str, path: Path, *, ordered: bool
) -> Plan:
    """Plan for the names under a prefix.

    Raises:
        InputError: If they do not fit.
    """
    under = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    plan = _plan(tensors, wanted, {name: under[name] for name in wanted.tensors if name in under})
    plan = replace(plan, prefix=prefix)
    missing = wanted.tensors.keys() - plan.names.keys() - set(plan.filled)
    tops = {name.partition(".")[0] for name in wanted.tensors}
    # An additional tensor in a module that the network has shows that the architecture is another
    # one. Other additional tensors are not part of the network. If tensors are missing, all
    # additional ones are reported.
    ignored = set(plan.ignored)
    left = {name: tensors[own] for name, own in under.items() if own in ignored}
    strange = {
        name: tensor
        for name, tensor in left.items()
        if missing or (name.partition(".")[0] in tops and not _is_note(name, tensor))
    }
    found = {name: tensors[own] for name, own in plan.names.items()}
    found, _ = to_float32(found, path)
    found = _as_integers(found, wanted)
    found |= {name: wanted.tensors[name] for name in plan.filled}
    _check_head(found | strange, wanted, path, _others(plan, tensors), ordered=ordered)
    check_names(wanted.tensors, found | strange, path, wanted.spec.arch)
    return plan


def _plan(tensors: Mapping[str, Tensor], wanted: Wanted, names: Mapping[str, str]) -> Plan:
    """Complete a plan: missing counters, tensors that are not used, and a normalisation."""
    # If no name matches, missing counters are not worth reporting.
    lacking = [name for name in wanted.tensors if names and name.endswith(_COUNTER)]
    used = set(names.values())
    rest = [name for name in tensors if name not in used]
    own = pairs_in(
        rest,
        tensors,
        first=next(iter(names.values()), ""),
        channels=wanted.spec.image_shape[0],
        own=wanted.tensors,
    )
    return Plan(
        names,
        filled=tuple(name for name in lacking if name not in names),
        ignored=tuple(name for name in rest if name not in own),
        normalisation=own,
    )


def _is_note(name: str, tensor: Tensor) -> bool:
    return name.rpartition(".")[2] in _NOTES and tensor.numel() == 1


def _others(plan: Plan, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names in the file that no plan explains, such as those of another head."""
    return [
        name
        for name in plan.ignored
        if not name.endswith(_COUNTER) and not _is_note(name, tensors[name])
    ]


def _without_notes(tensors: Mapping[str, Tensor], wanted: Wanted) -> dict[str, Tensor]:
    """Return the tensors without those of profilers and without a normalisation."""
    channels = wanted.spec.image_shape[0]
    own = pairs_in(tensors, tensors, first="", channels=channels, own=wanted.tensors)
    return {n: t for n, t in tensors.items() if n not in own and not _is_note(n, t)}


def _check(tensors: Mapping[str, Tensor], wanted: Wanted, path: Path) -> None:
    """Check that tensors are exactly those of the network."""
    _check_head(tensors, wanted, path, (), ordered=True)
    check_names(wanted.tensors, tensors, path, wanted.spec.arch)


def _check_head(
    tensors: Mapping[str, Tensor],
    wanted: Wanted,
    path: Path,
    others: Sequence[str],
    *,
    ordered: bool,
) -> None:
    """Raise a specific error if only the head or the classes of a file do not match.

    Args:
        tensors: Tensors by the names of the network.
        wanted: The network.
        path: The file, for messages.
        others: Names in the file that are not used.
        ordered: Whether the order of the tensors is that of a network.
    """
    head = set(wanted.head)
    if not wanted.tensors.keys() - head <= tensors.keys():
        return
    if head and not tensors.keys() & head:
        lacking = f"{path} has no head ({', '.join(sorted(head))})"
        if not others:
            raise InputError(f"{lacking}: it ends in features; give a whole classifier")
        by_name = "" if ordered else " (tensors of safetensors files are matched by name)"
        raise InputError(
            f"{lacking}, but has {quoted(others[0])}: the head of its network has other names or "
            f"other layers{by_name}; give --arch MODULE:FUNCTION with a function that builds this "
            "network"
        )
    for name in tensors.keys() & head:
        found, fitting = tensors[name].shape, wanted.tensors[name].shape
        more = ", or name its outputs with --class-names" if found[0] > fitting[0] else ""
        if found != fitting and found[1:] == fitting[1:]:
            raise InputError(
                f"{path} is a model of {found[0]} classes; {wanted.counted} has "
                f"{wanted.spec.classes}: use the data that it was trained for{more}"
            )
