"""Invalid numbers are refused in one line, before any work."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from robustkd.core.errors import UsageError
from robustkd.core.validation import (
    LARGEST_SEED,
    check_count,
    check_names,
    check_not_negative,
    check_positive,
    check_seed,
    check_share,
    check_whole,
)


@pytest.mark.parametrize("check", [check_positive, check_not_negative])
@pytest.mark.parametrize("value", ["0.1", True, None, 1j, [1]])
def test_values_that_are_not_numbers_are_refused(check, value):
    with pytest.raises(UsageError, match=r"lr is .*; expected a number"):
        check(momentum=1, lr=value)


def test_a_number_that_no_float_can_hold_is_refused():
    with pytest.raises(UsageError, match="lr is too large; expected a number below 1e308"):
        check_positive(lr=10**400)


@pytest.mark.parametrize("value", [1.5, "1", True, None])
def test_values_that_are_not_whole_numbers_are_refused(value):
    with pytest.raises(UsageError, match=r"epochs is .*; expected a whole number"):
        check_whole(batch_size=np.int64(4), epochs=value)


@pytest.mark.parametrize(
    ("bounds", "accepted", "refused", "expected"),
    [
        ({}, (0.01, 1), (0, -0.1, 1.1), "above 0 and at most 1"),
        ({"zero": True}, (0, 0.5, 1), (-0.1, 1.1), "0 to 1"),
        ({"one": False}, (0.01, 0.99), (0.0, 1), "above 0 and below 1"),
        ({"zero": True, "one": False}, (0, 0.99), (-1, 1.0), "at least 0 and below 1"),
    ],
)
def test_a_share_is_within_its_bounds(bounds, accepted, refused, expected):
    for value in accepted:
        check_share(**bounds, rate=value)
    for value in (*refused, math.nan, math.inf):
        with pytest.raises(UsageError, match=f"^rate is {value}; expected {expected}$"):
            check_share(**bounds, cap=0.5, rate=value)


def test_a_count_is_a_whole_number_of_at_least_its_least():
    check_count(steps=1, epochs=np.int64(3))
    check_count(least=0, raises=0)
    with pytest.raises(UsageError, match=r"^steps is 1; expected at least 2$"):
        check_count(least=2, steps=1)
    with pytest.raises(UsageError, match=r"^steps is 1\.5; expected a whole number$"):
        check_count(steps=1.5)


@pytest.mark.parametrize("value", ["tone", ("tone", 1), {"tone": 1}, None])
def test_a_single_string_is_no_list_of_names(value):
    check_names(families=["tone"], found=())
    with pytest.raises(UsageError, match=r"^families is .*; expected a list of names$"):
        check_names(families=value)


CHANNELS = "a list of numbers, one for each channel"
NAMED = "expected a list of names"
FOR = "arch='wrn-10-1', classes=2, image_shape=(1, 8, 8)"
SHAPE = "expected (1 or 3, height, width) in pixels"
CALLED = (
    "expected one that can be called, such as CropFlip(pad=4, flip=True), or CropFlip() for none"
)
SIDE = "expected one whole number of pixels, for height and width"
ORDER = "expected a list of names, or the path of a file"
REFUSED = [
    ("DistillJob(*NAMES, seed=-1)", "seed is -1; expected at least 0"),
    ("DistillJob(*NAMES, seed=2**63)", f"seed is {2**63}; expected at most {LARGEST_SEED}"),
    ("DistillJob(*NAMES, seed=1.5)", "seed is 1.5; expected a whole number"),
    ("DistillJob(*NAMES, seed=True)", "seed is True; expected a whole number"),
    ("TrainingConfig(epochs=1.5)", "epochs is 1.5; expected a whole number"),
    ("TrainingConfig(epochs='1')", "epochs is '1'; expected a whole number"),
    ("TrainingConfig(batch_size=16.5)", "batch_size is 16.5; expected a whole number"),
    ("TrainingConfig(accumulate=1.5)", "accumulate is 1.5; expected a whole number"),
    ("TrainingConfig(lr='0.1')", "lr is '0.1'; expected a number"),
    ("TrainingConfig(ema='0.9')", "ema is '0.9'; expected a number"),
    ("TrainingConfig(warmup_epochs='1')", "warmup_epochs is '1'; expected a number"),
    ("TrainingConfig(precision='fp8')", "precision is 'fp8'; expected no, bf16, fp16"),
    ("TrainingConfig(batch_size=1)", "batch_size is 1; expected at least 2"),
    ("TrainingConfig(compile='no')", "compile is 'no'; expected True or False"),
    ("DistillJob(*NAMES, mean=0.5)", f"mean is 0.5; expected {CHANNELS}"),
    ("DistillJob(*NAMES, std='0.5')", f"std is '0.5'; expected {CHANNELS}"),
    ("DistillJob(*NAMES, std=['0.5'])", "std is '0.5'; expected a number"),
    ("DistillJob(*NAMES, method=None)", "method is None; expected a name"),
    ("DistillJob(*NAMES, teacher_taps='layer1')", f"teacher_taps is 'layer1'; {NAMED}"),
    (
        "DistillJob(*NAMES, allow_weak_sandbox='no')",
        "allow_weak_sandbox is 'no'; expected True or False",
    ),
    ("find_method(None)", "method is None; expected a name"),
    (
        "run('t.pt', 'digits', 'wrn-10-1', arch='wrn-10-1', student_taps='layer1')",
        f"student_taps is 'layer1'; {NAMED}",
    ),
    (
        "run('t.pt', 'digits', 'wrn-10-1', arch='wrn-10-1', mean=0.5)",
        f"mean is 0.5; expected {CHANNELS}",
    ),
    (
        "run('t.pt', 'digits', 'wrn-10-1', arch='wrn-10-1', method=None)",
        "method is None; expected a name",
    ),
    (
        "run('t.pt', 'digits', 'wrn-10-1', arch='wrn-10-1', track=['wandbb'], out=5)",
        "out is of type int; expected a path",
    ),
    (
        "run('t.pt', 'digits', 'wrn-10-1', arch='wrn-10-1', audit='no')",
        "audit is 'no'; expected True or False",
    ),
    ("check_services([None])", f"track is [None]; {NAMED}"),
    (
        "TrainingConfig(optimizer=None)",
        "optimizer is None; expected sgd or an optimiser of timm: for example adamw",
    ),
    (
        "with_defaults({'optimizer': None}, 'wrn-10-1')",
        "optimizer is None; expected sgd or an optimiser of timm: for example adamw",
    ),
    ("with_defaults({'epochs': '3'}, 'timm/test_vit')", "epochs is '3'; expected a whole number"),
    ("HardeningSettings(families='warp')", "families is 'warp'; expected a list of names"),
    ("HardeningSettings(share=0.0)", "share is 0.0; expected above 0 and at most 1"),
    ("detoxify(None, None, steps=0.5)", "steps is 0.5; expected a whole number"),
    ("detoxify(None, None, seed=0.5)", "seed is 0.5; expected a whole number"),
    ("detoxify(None, None, stages='layer1')", "stages is 'layer1'; expected a list of names"),
    (
        "find_perturbations(None, None, ('tone',), steps=1.5)",
        "steps is 1.5; expected a whole number",
    ),
    ("detoxify(None, None, precision='fp8')", "precision is 'fp8'; expected no, bf16, fp16"),
    (
        "detoxify(NET, DATA, objective='x')",
        "objective is of type str; expected a function",
    ),
    (
        "detoxify(NET, DATA, mask=float)",
        "mask is <class 'float'>; expected a class that inherits from FeatureMask",
    ),
    ("detoxify(NET, DATA, mask=3)", "mask is 3; expected a class that inherits from FeatureMask"),
    (
        "UniversalPerturbations(2, (1, 8, 8), fixed=UniversalPerturbations(2, (1, 8, 8)))",
        "fixed is of type UniversalPerturbations; expected what find_perturbations returns",
    ),
    (
        "distill(NET, DATA, hardening=0.5)",
        "hardening is of type float; expected UniversalPerturbations, whose argument fixed takes "
        "what find_perturbations returns",
    ),
    (
        "distill(NET, DATA, safeguard='bcu')",
        "safeguard is of type str; expected a Safeguard, such as start_safeguard makes",
    ),
    ("distill(NET, DATA, log=5)", "log is of type int; expected a path"),
    ("distill(NET, DATA, label=None)", "label is None; expected a name"),
    (
        "audit(NET, DATA, references=[NET])",
        "references is of type list; expected References, as make_references returns",
    ),
    ("audit(NET, DATA, effort='quick')", "effort is of type str; expected an Effort"),
    (
        "save_detoxified(NET, 'cleaned')",
        "teacher is of type Sequential; expected a DetoxifiedTeacher, such as the attribute "
        "teacher of what detoxify returns: robustkd.save takes plain networks",
    ),
    ("UniversalPerturbations(1, (1, 8, 8))", "classes is 1; expected at least 2"),
    ("UniversalPerturbations(2, (1, 8, 8), seed=-1)", "seed is -1; expected at least 0"),
    ("Teaching(epochs=0.5)", "epochs is 0.5; expected a whole number"),
    ("Blend(seed=0.5)", "seed is 0.5; expected a whole number"),
    ("wilson(0.5, 0)", "n is 0; expected at least 1"),
    ("wilson(1.5, 10)", "share is 1.5; expected 0 to 1"),
    ("NetworkDefence('clp', 'Teacher')", "on is 'Teacher'; expected teacher or student"),
    (
        "DistillJob(*NAMES, method='kd', defence='clp', on='both')",
        "on is 'both'; expected teacher or student",
    ),
    ("Reading(image_size=(16, 16))", f"image_size is (16, 16); {SIDE}"),
    ("Reading(image_size=16.5)", f"image_size is 16.5; {SIDE}"),
    ("Reading(image_size='16')", f"image_size is '16'; {SIDE}"),
    ("Reading(image_size=True)", f"image_size is True; {SIDE}"),
    ("Reading(channels='3')", "channels is '3'; expected 3 (colour) or 1 (grey)"),
    ("Reading(channels=2)", "channels is 2; expected 3 (colour) or 1 (grey)"),
    ("Reading(classes=5)", f"classes is 5; {ORDER}"),
    ("Reading(classes=['a', 1])", f"classes is ['a', 1]; {ORDER}"),
    ("Reading(split=5)", "split is 5; expected the path of a file"),
    ("Reading(workers=1.5)", "workers is 1.5; expected a whole number"),
    ("Reading(flip='no')", "flip is 'no'; expected True or False"),
    ("Reading(streaming='no')", "streaming is 'no'; expected True or False"),
    ("Reading(resize=None)", "resize is None; expected centred-square, squash"),
    ("Reading(crop='0.5')", "crop is '0.5'; expected a number"),
    ("Spec('resnet-8', 10.0, (1, 8, 8))", "classes is 10.0; expected a whole number"),
    ("Spec('resnet-8', True, (1, 8, 8))", "classes is True; expected a whole number"),
    ("Spec(8, 10, (1, 8, 8))", "arch is 8; expected a name"),
    ("Spec('resnet-8', 10, 8)", f"image shape is 8; {SHAPE}"),
    ("Spec('resnet-8', 10, (1, 8.0, 8))", f"image shape is (1, 8.0, 8); {SHAPE}"),
    ("Spec('resnet-8', 10, (1, 8, '8'))", f"image shape is (1, 8, '8'); {SHAPE}"),
    ("Spec('resnet-8', 10, (1, 8, 8), mean=0.5)", f"mean is 0.5; expected {CHANNELS}"),
    ("Spec('resnet-8', 10, (1, 8, 8), std=['1'])", "std is '1'; expected a number"),
    ("Spec('resnet-8', 2, (1, 8, 8), class_names='ab')", f"class_names is 'ab'; {NAMED}"),
    ("Spec('resnet-8', 2, (1, 8, 8), class_names=[1, 2])", f"class_names is [1, 2]; {NAMED}"),
    (
        "Spec('resnet-8', 2, (1, 8, 8), resize=None)",
        "resize is None; expected centred-square, squash",
    ),
    ("load_data('digits', train='100')", "train is '100'; expected a whole number"),
    ("load_data('digits', test=100.0)", "test is 100.0; expected a whole number"),
    ("load_data('digits').subset(train=20.5)", "train is 20.5; expected a whole number"),
    ("build(Spec('wrn-10-1', 2, (1, 8, 8)), seed=1.5)", "seed is 1.5; expected a whole number"),
    ("load_data('digits').subset(train=20, seed='0')", "seed is '0'; expected a whole number"),
    (f"load_teacher('t.pt', {FOR}, mean=0.5)", f"mean is 0.5; expected {CHANNELS}"),
    (f"load_teacher('t.pt', {FOR}, std=['0.5'])", "std is '0.5'; expected a number"),
    ("from_dataset(None, augmentation='none')", f"augmentation is 'none'; {CALLED}"),
    (
        "from_dataset(DataLoader([(0, 1)]))",
        "train is a DataLoader; expected its dataset: give loader.dataset",
    ),
    ("from_dataset(None, classes='ab')", f"classes is 'ab'; {NAMED}"),
    ("load_data('digits').with_augmentation('light')", f"augmentation is 'light'; {CALLED}"),
    ("load_data('digits', reading={})", "reading is of type dict; expected robustkd.Reading"),
]
"""Calls by a user who has no type checker, and the message of the error."""

SCRIPT = """
import sys
from pathlib import Path
from torch.utils.data import DataLoader
from robustkd import Reading, Spec, UniversalPerturbations, detoxify, find_perturbations
from robustkd import build, from_dataset, load_data, load_teacher, run
from torch import nn
from robustkd import audit, distill, save_detoxified
from robustkd.attacks import Blend, Teaching
from robustkd.core.errors import UsageError
from robustkd.core.method_names import NetworkDefence
from robustkd.core.method_settings import HardeningSettings
from robustkd.core.methods import find_method
from robustkd.core.statistics import wilson
from robustkd.pipeline.experiments import check_services
from robustkd.pipeline.job import DistillJob
from robustkd.training.config import TrainingConfig
from robustkd.training.recipes import with_defaults

NAMES = (Path("teacher.pt"), "wrn-10-1", "wrn-10-1")
NET = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
DATA = load_data("digits", train=20, validation=20, test=20)
for call in sys.argv[1:]:
    try:
        eval(call)
        print("accepted")
    except UsageError as error:
        print(error)
"""


def test_calls_from_python_are_checked_before_any_work():
    # In a process of its own, since the types of all calls are checked in this one.
    calls = [call for call, _ in REFUSED]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *calls], capture_output=True, text=True, check=True
    )
    assert dict(zip(calls, done.stdout.splitlines(), strict=True)) == dict(REFUSED)
    check_seed(LARGEST_SEED)


NUMBERS = """
import json
import tempfile
from pathlib import Path
import numpy as np
import torch
import yaml
import robustkd
from robustkd.core.recorded_flags import recorded_flags
from robustkd.pipeline.job import DistillJob
from robustkd.training.config import TrainingConfig

of_numpy = {
    "training": TrainingConfig(epochs=np.int64(2), lr=np.float32(0.5), ema=np.float64(0.25)),
    "seed": np.int64(1),
    "mean": np.array([0.5], dtype=np.float32),
    "std": torch.tensor([0.25]),
    "teacher_taps": ["layer1"],
}
plain = {
    "training": TrainingConfig(epochs=2, lr=0.5, ema=0.25),
    "seed": 1,
    "mean": (0.5,),
    "std": (0.25,),
    "teacher_taps": ("layer1",),
}
for given in (of_numpy, plain):
    job = DistillJob(Path("teacher.pt"), "wrn-10-1", "wrn-10-1", **given)
    print(json.dumps(job.settings()), yaml.safe_dump(recorded_flags(job.flags())).split())
print(recorded_flags({"a": np.array([1.0, 2.0]), "b": (), "c": None}))
data = robustkd.load_data("digits", train=np.int64(20))
print(data.size("train"), data.subset(train=np.int64(10), seed=np.int64(3)).size("train"))
spec = robustkd.Spec("wrn-10-1", 2, (1, 8, 8))
names = ["a", "b"]
listed = robustkd.Spec("wrn-10-1", 2, [1, 8, 8], mean=[0], std=[1], class_names=names, crop=1)
arrays = robustkd.Spec(
    "wrn-10-1", np.int64(2), np.array([1, 8, 8]), np.zeros(1), torch.ones(1), class_names=names
)
given = robustkd.Spec("wrn-10-1", 2, (1, 8, 8), (0.0,), (1.0,), ("a", "b"))
print(listed == arrays == given, hash(listed) == hash(arrays) == hash(given))
print(repr(listed) == repr(arrays) == repr(given))
with tempfile.TemporaryDirectory() as folder:
    torch.save(robustkd.build(spec, seed=np.int64(0)).network.state_dict(), f"{folder}/t.pt")
    for values in (np.array([0.5]), torch.tensor([0.5]), [0.5]):
        print(robustkd.load_teacher(
            f"{folder}/t.pt",
            arch="wrn-10-1",
            classes=2,
            image_shape=(1, 8, 8),
            mean=values,
            std=values,
        ).spec == spec)
"""


def test_numbers_of_numpy_are_written_as_plain_numbers():
    # In a process of its own, since the types of all fields are checked in this one.
    done = subprocess.run(
        [sys.executable, "-c", NUMBERS], capture_output=True, text=True, check=True
    )
    of_numpy, plain, flags, subsets, hashes, shown, *teachers = done.stdout.splitlines()
    assert of_numpy == plain
    assert flags == "{'a': array([1., 2.])}"
    assert subsets == "20 10"
    assert (hashes, shown) == ("True True", "True")
    assert teachers == ["True"] * 3


SEEDS = """
from dataclasses import replace
import numpy as np
import torch
from robustkd import UniversalPerturbations, Spec, audit, build, detoxify, distill
from robustkd import find_perturbations, load_data
from robustkd.attacks import Blend, Teaching
from robustkd.evaluation.audit import Effort, make_references
from robustkd.teacher.defences.registry import DEFENCES

data = load_data("digits", train=32, validation=20, test=20)
def net():
    return build(Spec("wrn-10-1", 10, data.image_shape), seed=0)

def state(module):
    return [value.tolist() for value in module.state_dict().values()]

def brief(defence):
    once = {name: 1 for name in ("epochs", "rounds", "steps", "mask_steps", "generator_steps",
        "unlearn_epochs", "noise_steps") if hasattr(defence, name)}
    if hasattr(defence, "tuning"):
        once["tuning"] = replace(defence.tuning, epochs=1)
    return replace(defence, **once)

def everything(whole, real):
    seed = whole(3)
    found = find_perturbations(net(), data, ("tone", "generator"), seed=seed, steps=whole(1))
    hardening = UniversalPerturbations(
        whole(10), data.image_shape, seed=seed, share=real(0.5), fixed=found
    )
    yield "hardening", state(hardening)
    made = distill(
        net(), data, teacher=net(), losses={"kd": real(0.5)}, hardening=hardening, seed=seed,
        epochs=whole(1), batch_size=whole(16),
    )
    yield "distill", state(made.student)
    settings = {"steps": whole(1), "raises": whole(0), "batch_size": whole(16), "cap": real(0.5)}
    yield "detoxify", state(detoxify(net(), data, seed=seed, **settings).teacher)
    effort = Effort(strengths=(0.5,), steps=2, references=1, margins=1)
    references = make_references(data, effort, seed=seed)
    yield "audit", str(audit(net(), data, seed=seed, references=references, effort=effort).verdict)
    yield "Teaching", (Teaching(seed=seed), type(Teaching(seed=seed).seed))
    yield "subset", data.subset(train=whole(20), seed=seed).size("train")
    yield "type", type(Blend(seed=seed).seed)
    yield "Blend", Blend(seed=seed)(torch.zeros(1, *data.image_shape)).tolist()
    for name in ("anp", "fst", "bti-dbf", "universal", "ft", "rnp", "nad"):
        yield name, state(brief(DEFENCES[name].defence)(net(), data, seed=seed).network)

for (name, of_numpy), (_, plain) in zip(
    everything(np.int64, np.float64), everything(int, float), strict=True
):
    if of_numpy != plain:
        print(name, "differs")
print("done")
"""


def test_numbers_of_numpy_give_the_results_of_plain_numbers():
    # In a process of its own, since the types of all calls are checked in this one.
    done = subprocess.run(
        [sys.executable, "-c", SEEDS], capture_output=True, text=True, check=False
    )
    assert (done.stdout.splitlines(), done.returncode) == (["done"], 0), done.stderr


TABLES = """
from dataclasses import fields, is_dataclass, replace
from robustkd.attacks import ATTACKS, Teaching
from robustkd.core.errors import UsageError
from robustkd.core.method_settings import DetoxSettings, HardeningSettings
from robustkd.evaluation.audit.effort import Effort
from robustkd.student.safeguards import SAFEGUARDS
from robustkd.teacher.defences.registry import DEFENCES
from robustkd.training.config import TrainingConfig

def settings(owner, where):
    for field in fields(owner):
        value = getattr(owner, field.name)
        if is_dataclass(value):
            yield from settings(value, f"{where}.{field.name}")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield owner, field.name, value, where

def wrong(name, value):
    yield from ("1", None, True, float("nan"), float("inf"), -1)
    if isinstance(value, int):
        yield from (0.5, 1.0)
        if name not in ("seed", "raises", "lowerings", "bisections", "references"):
            yield 0

owners = {f"attack {name}": row.attack for name, row in ATTACKS.items()}
owners |= {f"defence {name}": row.defence for name, row in DEFENCES.items()}
owners |= {f"safeguard {name}": row.settings for name, row in SAFEGUARDS.items()}
owners |= {"detox": DetoxSettings(), "hardening": HardeningSettings(), "training": TrainingConfig()}
owners |= {"teaching": Teaching(), "effort": Effort()}
count = 0
for where, owner in owners.items():
    for owner, name, value, place in settings(owner, where):
        for bad in wrong(name, value):
            count += 1
            try:
                replace(owner, **{name: bad})
                print(f"{place}: {name}={bad!r} is accepted")
            except UsageError as error:
                if not str(error).startswith(f"{name} is "):
                    print(f"{place}: {name}={bad!r}: {error}")
print(count > 1000)
"""


def test_every_number_of_every_table_is_checked():
    # In a process of its own, since the types of all fields are checked in this one.
    done = subprocess.run(
        [sys.executable, "-c", TABLES], capture_output=True, text=True, check=False
    )
    assert (done.stdout.splitlines(), done.stderr) == (["True"], "")
