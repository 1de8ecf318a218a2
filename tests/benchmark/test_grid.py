"""Grid files: the cells that they describe, errors, and what a cell's name depends on."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from robustkd import data
from robustkd.attacks import ATTACKS, Backdoored, BadNets, Blend, Teaching
from robustkd.attacks.base import Build
from robustkd.attacks.data_poisoning import DirtyLabel
from robustkd.attacks.registry import AttackRow, can_be_second
from robustkd.benchmark import Cell, load_grid
from robustkd.benchmark.attacked_teachers import attack_to_folder, sgd_rate
from robustkd.benchmark.cache import Store
from robustkd.benchmark.cells import TEACHER
from robustkd.benchmark.grid import Block
from robustkd.benchmark.run_cell import make_teacher
from robustkd.core.errors import InputError, UsageError
from robustkd.core.method_settings import DetoxSettings, HardeningSettings
from robustkd.core.methods import METHODS
from robustkd.core.plain_yaml import parse
from robustkd.core.targets import Target
from robustkd.core.types import DataSource

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GRIDS = sorted(path.stem for path in BENCHMARKS.glob("*.yaml"))
SECOND = ", ".join(name for name, row in ATTACKS.items() if "second" in row.arguments)
BLOCK = {
    "data": {"digits": {"train": 40}},
    "pairs": [["wrn-10-1", "wrn-10-1"]],
    "attacks": {"badnets": None, "adba": {"cap": 0.2}},
    "methods": ["ofd", "default"],
    "seeds": [0, 1],
    "teaching": {"epochs": 2},
    "training": {"epochs": 1},
}


def load(folder: Path, content: object) -> list[Cell]:
    file = folder / "grid.yaml"
    file.write_text(
        content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    )
    return load_grid(file)


def test_everything_is_crossed_with_the_teacher_first_and_seeds_outermost(tmp_path):
    cells = load(tmp_path, BLOCK)
    seen = [(c.teacher.setting.seed, c.teacher.attack, c.method) for c in cells]
    assert seen == [
        (seed, attack, method)
        for seed in (0, 1)
        for attack in ("badnets", "adba")
        for method in (TEACHER, "ofd", "default")
    ]


def test_an_attack_gets_its_own_arguments_over_those_of_all(tmp_path):
    cells = load(
        tmp_path, BLOCK | {"attacks": {"badnets": None, "adba": {"epochs": 7, "cap": 0.2}}}
    )
    arguments = {cell.teacher.attack: cell.teacher.attacking for cell in cells}
    assert arguments == {"badnets": {"epochs": 2}, "adba": {"epochs": 7, "cap": 0.2}}


def test_only_attacks_that_train_students_receive_the_students_architecture(tmp_path):
    cells = load(tmp_path, BLOCK | {"pairs": [["wrn-16-1", "wrn-10-1"]]})
    known = {cell.teacher.attack: cell.teacher.surrogate for cell in cells}
    assert known == {"badnets": None, "adba": "wrn-10-1"}


@pytest.mark.parametrize("given", [{}, {"lr": 0.3}])
def test_an_unusual_learning_rate_is_part_of_the_name(given, tmp_path):
    arguments = {"teaching": {"epochs": 2, **given}, "training": {"epochs": 1, **given}}
    block = BLOCK | arguments | {"attacks": {"badnets": None, "adaptive-harden": None}}
    usual, slow = "wrn-10-1", "mobilenet-v2-0.25"
    for pair in ([usual, slow], [slow, usual]):
        rates = [given if arch == usual else {"lr": 0.02, **given} for arch in pair]
        for cell in load(tmp_path, block | {"pairs": [pair]}):
            assert cell.teacher.attacking == {"epochs": 2, **rates[0]}
            assert cell.training == {"epochs": 1, **rates[1]}
            if cell.teacher.rehearsal is not None:
                assert cell.teacher.rehearsal.training == cell.training


def test_a_transformer_as_a_student_is_trained_as_distill_trains_it(tmp_path):
    pairs = {"pairs": [["wrn-10-1", "timm/test_vit"]], "attacks": {"badnets": None}}
    for cell in load(tmp_path, BLOCK | pairs):
        assert (cell.training["optimizer"], cell.training["lr"]) == ("adamw", 0.001)
        assert cell.training["epochs"] == BLOCK["training"]["epochs"]
        assert "lr" not in cell.teacher.attacking


def test_attacks_on_a_transformer_warn(tmp_path, caplog):
    sgd_rate.cache_clear()
    assert sgd_rate("timm/test_vit") == 0.02
    assert "attacks train timm/test_vit by SGD, with which it may stay inaccurate" in caplog.text
    assert sgd_rate("timm/resnet10t") == 0.02


def test_the_attackers_students_in_a_grid_have_their_own_learning_rate(tmp_path):
    slow = BLOCK | {"pairs": [["wrn-10-1", "mobilenet-v2-0.25"]], "attacks": {"adba": None}}
    (rate,) = {cell.teacher.attacking.get("surrogate_lr") for cell in load(tmp_path, slow)}
    assert rate == 0.02
    for given in ({"surrogate_lr": 0.3}, {"lr": 0.3}):
        own = slow | {"attacks": {"adba": given}}
        for cell in load(tmp_path, own):
            assert {key: cell.teacher.attacking.get(key) for key in given} == given
            assert cell.teacher.attacking.get("surrogate_lr") == given.get("surrogate_lr")


def test_further_blocks_override_settings_and_repeat_no_cell(tmp_path):
    also = [{"seeds": [1, 2], "attacks": {"badnets": None}}]
    cells = load(tmp_path, BLOCK | {"also": also})
    assert len(cells) == 12 + 3
    assert len({cell.name for cell in cells}) == len(cells)
    assert [cell.teacher.setting.seed for cell in cells[12:]] == [2, 2, 2]


def test_two_cells_that_would_be_one_line_of_a_table_are_refused(tmp_path):
    also = [{"seeds": [0], "attacks": {"badnets": None}, "training": {"epochs": 2}}]
    with pytest.raises(UsageError, match=r"two different cells of digits, wrn-10-1 to wrn-10-1, "):
        load(tmp_path, BLOCK | {"also": also})


def test_data_and_attacks_with_nothing_after_their_name_use_all(tmp_path):
    given = {**BLOCK, "attacks": {"badnets": None}, "data": {"digits": None}}
    empty = {**given, "attacks": {"badnets": {}}, "data": {"digits": {}}}
    assert load(tmp_path, given) == load(tmp_path, empty)
    assert load(tmp_path, given)[0].teacher.setting.sizes == {}


@pytest.mark.parametrize("key", ["data", "pairs", "attacks", "methods", "seeds"])
def test_a_key_that_is_missing_is_named_with_an_example(key, tmp_path):
    rest = {name: value for name, value in BLOCK.items() if name != key}
    with pytest.raises(UsageError, match=rf": {key} is missing; expected [^\n]+, such as [^\n]+$"):
        load(tmp_path, rest)


@pytest.mark.parametrize("word", ["no", "false", "'no'"])
def test_no_and_false_mean_no_mixed_precision(word, tmp_path):
    cells = load(tmp_path, yaml.safe_dump(BLOCK) + f"precision: {word}\n")
    assert cells[0].teacher.setting.precision == "no"


@pytest.mark.parametrize(
    ("word", "meant"), [("true", True), ("yes", True), ("on", True), ("off", False), ("no", False)]
)
def test_augment_accepts_every_boolean_word_of_yaml(word, meant, tmp_path):
    cells = load(tmp_path, yaml.safe_dump(BLOCK) + f"augment: {word}\n")
    assert cells[0].teacher.setting.augment is meant


def test_a_number_with_an_exponent_needs_no_point(tmp_path):
    text = yaml.safe_dump({**BLOCK, "training": {}}).replace("training: {}", "training: {lr: 1e-3}")
    assert load(tmp_path, text)[1].training == {"lr": 0.001}


@pytest.mark.parametrize("name", GRIDS)
def test_the_committed_grids_are_grids(name, tmp_path):
    content = parse((BENCHMARKS / f"{name}.yaml").read_text(), anchors=True, exponents=True)
    if "path" in content["data"]:
        # Images that are not part of the repository; any folder stands for them.
        for label in ("dark", "bright"):
            for split in ("train", "test"):
                folder = tmp_path / "images" / split / label
                folder.mkdir(parents=True)
                for index in range(4):
                    Image.new("RGB", (32, 32), (60 * index, 0, 0)).save(folder / f"{index}.png")
        content["data"] = {"path": "images"}
        content["target"] = 0
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content))
    cells = load_grid(file)
    assert len({cell.name for cell in cells}) == len(cells) >= 9


# Names.


def test_an_attack_that_was_revised_makes_other_cells_of_its_own(tmp_path, monkeypatch):
    cells = load(tmp_path, BLOCK)
    before = [cell.name for cell in cells]
    monkeypatch.setitem(ATTACKS, "adba", replace(ATTACKS["adba"], revision=1))
    for cell, name in zip(cells, before, strict=True):
        assert (cell.name != name) == (cell.teacher.attack == "adba")
        assert cell.teacher.configuration().get("revision") == cell.configuration().get("revision")


def test_revised_hardening_renames_the_cells_that_depend_on_it(tmp_path, monkeypatch):
    attacks = {name: {} for name in ("ckd", "adaptive-detox", "adaptive-harden")}
    methods = ["kd", "paper", "default", "both"]
    cells = load(tmp_path, {**BLOCK, "attacks": attacks, "methods": methods})
    before = [cell.name for cell in cells]
    monkeypatch.setattr("robustkd.benchmark.cells._HARDENED", 99)
    for cell, name in zip(cells, before, strict=True):
        met = cell.method in ("default", "both") or cell.teacher.attack == "adaptive-harden"
        assert (cell.name != name) == met


@pytest.mark.parametrize("expects", ["additions", "kd+ofd"])
def test_a_grid_says_which_hardening_attackers_expect(expects, tmp_path):
    attacks = {name: {} for name in ("ckd", "adaptive-detox", "adaptive-harden")}
    cells = load(tmp_path, {**BLOCK, "attacks": attacks, "expects": expects})
    found = {cell.teacher.attack: cell.teacher.rehearsal for cell in cells}
    methods = {attack: known and known.method for attack, known in found.items()}
    stored = {"kd+ofd": "mix"}.get(expects, expects)
    assert methods == {"ckd": None, "adaptive-detox": "both", "adaptive-harden": stored}


def test_a_name_depends_on_everything_that_the_result_depends_on(tmp_path):
    cell = replace(load(tmp_path, BLOCK)[1], method="both")
    setting = cell.teacher.setting
    changed = [
        replace(cell, student="wrn-16-1"),
        replace(cell, method="default"),
        replace(cell, training={"epochs": 2}),
        replace(cell, detoxing={"steps": 2}),
        *(
            replace(cell, teacher=replace(cell.teacher, **change))
            for change in (
                {"arch": "wrn-16-1"},
                {"attack": "blend"},
                {"attacking": {"epochs": 3}},
                {"target": 1},
                {"setting": replace(setting, seed=1)},
                {"setting": replace(setting, threads=2)},
                {"setting": replace(setting, precision="bf16")},
                {"setting": replace(setting, sizes={"train": 41})},
            )
        ),
    ]
    names = {cell.name, *(other.name for other in changed)}
    assert len(names) == 1 + len(changed)
    assert replace(cell, training=dict(cell.training)).name == cell.name


def test_the_next_class_is_a_target_of_its_own(tmp_path):
    block = BLOCK | {"attacks": {"badnets": None, "adaptive-tone": None}}
    one, following = (load(tmp_path, block | {"target": target}) for target in (1, "next"))
    assert {cell.teacher.target for cell in following} == {"next"}
    assert not {cell.name for cell in one} & {cell.name for cell in following}
    configuration = following[0].configuration()
    assert json.loads(json.dumps(configuration))["teacher"]["target"] == "next"
    both = block | {"target": 1, "also": [{"target": "next"}]}
    with pytest.raises(UsageError, match=r"two different cells of digits, .*; put them into sep"):
        load(tmp_path, both)


def test_a_second_trigger_is_an_attack_of_its_own(tmp_path):
    two = {"tone": {"second": "blend", "second_target": 3, "second_rate": 0.1}}
    plain = load(tmp_path, BLOCK | {"attacks": {"tone": None}})
    cells = load(tmp_path, BLOCK | {"attacks": {"tone": None}, "also": [{"attacks": two}]})
    assert [cell.name for cell in cells[: len(plain)]] == [cell.name for cell in plain]
    second = cells[len(plain)].teacher
    assert second.names == ("tone (with blend)", "blend (with tone)")
    assert plain[0].teacher.names == ("tone",)
    assert dict(second.attacking) == {"epochs": 2, **two["tone"]}
    assert second.configuration()["attacking"] == second.attacking
    swapped = {"blend": {"second": "tone", "second_target": 3}}
    with pytest.raises(
        UsageError, match=r"two different cells of digits, .*, blend \(with tone\), "
    ):
        load(tmp_path, BLOCK | {"attacks": two, "also": [{"attacks": swapped}]})


def test_a_teacher_with_two_triggers_is_named_by_the_version_of_both_attacks(tmp_path, monkeypatch):
    two = BLOCK | {"attacks": {"badnets": {"second": "blend", "second_target": 3}}}
    before = load(tmp_path, two)[0].name
    for name in ("badnets", "blend"):
        with monkeypatch.context() as patch:
            patch.setitem(ATTACKS, name, replace(ATTACKS[name], revision=7))
            assert load(tmp_path, two)[0].name != before


def test_the_teachers_own_cell_does_not_depend_on_how_students_learn(tmp_path):
    cell = load(tmp_path, BLOCK)[0]
    assert cell.method == TEACHER
    assert replace(cell, training={"epochs": 9}, detoxing={"steps": 9}).name == cell.name


def test_a_method_that_cleans_nothing_does_not_depend_on_how_others_clean(tmp_path):
    cell = load(tmp_path, BLOCK)[1]
    assert METHODS[cell.method].detox is None
    assert replace(cell, detoxing={"steps": 9}).name == cell.name


def test_everything_in_a_name_can_be_written_as_json(tmp_path):
    for cell in load(tmp_path, BLOCK | {"methods": list(METHODS)}):
        assert json.loads(json.dumps(cell.configuration()))["method"] == cell.method


def test_an_attack_of_ones_own_is_named_by_its_settings(tmp_path, monkeypatch):
    plain = load(tmp_path, BLOCK)[0]
    names = [plain.name]
    for alpha in (0.1, 0.9):
        own = AttackRow(DirtyLabel(Blend(alpha)), "own")
        monkeypatch.setitem(ATTACKS, plain.teacher.attack, own)
        names.append(plain.name)
        assert repr(own.attack) in str(plain.configuration())
    assert len(set(names)) == 3


def attack_to_small_folder(name: str, out: Path, settings: dict[str, str | int | float]) -> None:
    attack_to_folder(
        name,
        arch="wrn-10-1",
        surrogate="wrn-10-1",
        source=data.load("digits", train=20, validation=20, test=20),
        out=out,
        target=1,
        seed=0,
        settings=settings,
    )


def test_a_trigger_that_cannot_be_saved_is_refused_before_the_training(tmp_path, monkeypatch):
    own = AttackRow(DirtyLabel(lambda images: images), "own")
    monkeypatch.setitem(ATTACKS, "own", own)
    message = "^the trigger is of type function, which cannot be saved; add its type to robustkd"
    with pytest.raises(UsageError, match=message):
        attack_to_small_folder("own", tmp_path / "own", {})
    assert not (tmp_path / "own").exists()
    with pytest.raises(UsageError, match="which cannot be saved"):
        load(tmp_path, BLOCK | {"attacks": {"own": {}}})


def test_a_second_trigger_that_cannot_be_saved_is_refused_before_the_training(
    tmp_path, monkeypatch
):
    own = AttackRow(DirtyLabel(lambda images: images), "own")
    monkeypatch.setitem(ATTACKS, "own", own)
    two = {"second": "own", "second_target": 3}
    message = "second: the trigger is of type function, which cannot be saved; add its type"
    with pytest.raises(UsageError, match=f"^{message}"):
        attack_to_small_folder("tone", tmp_path / "own", two)
    assert not (tmp_path / "own").exists()
    with pytest.raises(UsageError, match=f": attacks.tone: {message}"):
        load(tmp_path, BLOCK | {"attacks": {"tone": two}})


@dataclass(frozen=True)
class TwoByItself:
    """An attack of a user's own that returns two triggers, although no setting adds one."""

    def __call__(
        self, build: Build, data: DataSource, *, target: Target, teaching: Teaching
    ) -> Backdoored:
        del data, teaching
        return Backdoored(build(), BadNets(), target, others=((Blend(), 3),))


def test_a_result_with_more_triggers_than_rows_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(ATTACKS, "own", AttackRow(TwoByItself(), "own"))
    message = (
        "^attack 'own' returns 2 triggers; expected 1, since only the settings second and "
        "second_target add another one$"
    )
    with pytest.raises(UsageError, match=message):
        attack_to_small_folder("own", tmp_path / "own", {})
    assert not list((tmp_path / "own").glob("*.safetensors"))
    (cell, *_) = load(tmp_path, BLOCK | {"attacks": {"own": None}})
    with pytest.raises(UsageError, match=message):
        make_teacher(cell.teacher, Store(tmp_path / "cache"))


def test_a_preset_that_changes_is_another_cell(tmp_path, monkeypatch):
    cell = load(tmp_path, BLOCK)[2]
    before = cell.name
    changed = replace(METHODS["default"], hardening=HardeningSettings(epsilon=0.5))
    monkeypatch.setitem(METHODS, "default", changed)
    assert cell.name != before


@pytest.mark.parametrize(
    ("attack", "part", "other"),
    [
        ("adaptive-harden", {"hardening": HardeningSettings(epsilon=0.5)}, True),
        ("adaptive", {"hardening": HardeningSettings(epsilon=0.5)}, True),
        ("adaptive-detox", {"hardening": HardeningSettings(epsilon=0.5)}, False),
        ("adaptive-detox", {"detox": DetoxSettings(cap=0.5)}, True),
        ("ckd", {"hardening": HardeningSettings(epsilon=0.5)}, False),
    ],
)
def test_a_defence_that_was_rehearsed_is_part_of_every_cell_of_the_teacher(
    attack, part, other, tmp_path, monkeypatch
):
    """The ordinary students of a teacher that met another defence are others as well."""
    cells = load(tmp_path, {**BLOCK, "attacks": {attack: {}}, "methods": ["no-teacher", "kd"]})
    before = [(cell.name, cell.teacher.configuration()) for cell in cells]
    for name in ("default", "both"):
        monkeypatch.setitem(METHODS, name, replace(METHODS[name], **part))
    after = [(cell.name, cell.teacher.configuration()) for cell in cells]
    assert [one[0] != two[0] for one, two in zip(before, after, strict=True)] == [other] * 6
    assert (before[0][1] != after[0][1]) is other


# Refusals.

SEEDS = "expected a list of at least one seed, such as [0, 1, 2]"
METHODS_EXPECTED = "expected a list of at least one method, such as [mix, default]"
PAIR = "expected a teacher and a student, such as [wrn-16-2, wrn-10-1]"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sedes": [1]}, "unknown key 'sedes'; did you mean 'seeds'?"),
        (
            {"pairs": [["wrn-10-1", "some.module:network"]]},
            "pairs: 'some.module:network' is code, which a grid cannot name",
        ),
        ({"seeds": []}, f"seeds is []; {SEEDS}"),
        ({"seeds": 3}, f"seeds is 3; {SEEDS}"),
        ({"seeds": None}, f"seeds is empty; {SEEDS}"),
        ({"seeds": [-1]}, "seeds.0 is -1; expected at least 0"),
        ({"methods": "kd"}, f"methods is 'kd'; {METHODS_EXPECTED}"),
        ({"methods": []}, f"methods is []; {METHODS_EXPECTED}"),
        ({"pairs": [["wrn-10-1"]]}, f"pairs.0 is ['wrn-10-1']; {PAIR}"),
        ({"pairs": [["a", "b", "c"]]}, f"pairs.0 is ['a', 'b', 'c']; {PAIR}"),
        ({"pairs": ["wrn-10-1"]}, f"pairs.0 is 'wrn-10-1'; {PAIR}"),
        ({"pairs": [[1, "wrn-10-1"]]}, "pairs.0.0 is 1; expected a name"),
        (
            {"data": "digits"},
            "data is 'digits'; expected data sets with numbers of images, such as "
            "{digits: {train: 400}}",
        ),
        (
            {"data": {"digits": 40}},
            "data.digits is 40; expected numbers of images, such as {train: 400}, or nothing to "
            "use all",
        ),
        ({"data": {"digits": {"test": "a"}}}, "data.digits.test is 'a'; expected a whole number"),
        ({"data": {3: {}}}, "data has the key 3; expected a name"),
        ({"data": {None: {}}}, "data has an empty key; expected a name"),
        ({"training": {1.5: 2}}, "training has the key 1.5; expected a name"),
        (
            {"data": {"digits": {None: 2}}},
            "data.digits has an empty key; expected train, validation or test",
        ),
        *(
            ({key: 2}, f"the key {key} is not a string; expected {', '.join(Block.model_fields)}")
            for key in (1, 1.5)
        ),
        ({None: 2}, f"a key is empty; expected {', '.join(Block.model_fields)}"),
        (
            {"target": None},
            "target is empty; expected the number of a class, or next for the next class of each "
            "image",
        ),
        (
            {"attacks": ["badnets"]},
            "attacks is ['badnets']; expected at least one attack with its arguments, such as "
            "{badnets: {}}",
        ),
        (
            {"attacks": {"badnets": 3}},
            "attacks.badnets is 3; expected arguments of the attack, such as {epochs: 10}, or "
            "nothing",
        ),
        ({"teaching": 3}, "teaching is 3; expected numbers and names, such as {epochs: 10}"),
        ({"precision": "fp8"}, "precision is 'fp8'; expected no, bf16 or fp16"),
        ({"augment": "maybe"}, "augment is 'maybe'; expected true or false"),
        ({"expects": ["kd"]}, "expects is ['kd']; expected a name"),
        ({"attacks": {"badnet": None}}, "unknown attack 'badnet'; did you mean 'badnets'?"),
        ({"expects": "aditions"}, "unknown method 'aditions'; did you mean 'additions'?"),
        ({"methods": ["defualt"]}, "unknown method 'defualt'; did you mean 'default'?"),
        (
            {"data": {"digits": {"tests": 3}}},
            "data.digits has the key 'tests'; expected train, validation or test",
        ),
        (
            {"also": [{"threads": 0}]},
            "also.0: threads is 0; expected 1 to 1024",
        ),
        ({"also": 3}, "also: expected a list of blocks"),
        (
            {"training": {"epoch": 4}},
            "training has no 'epoch'; expected "
            "epochs, batch_size, lr, momentum, weight_decay, schedule, temperature",
        ),
        (
            {"detoxing": {"cap": 0.9}},  # the preset's own
            "detoxing has no 'cap'; expected "
            "variance_weight, growth, raises, lowerings, bisections, steps, batch_size, lr",
        ),
        (
            {"attacks": {"ckd": {"cap": True}}},
            "attacks.ckd.cap is True; expected a number or a name",
        ),
        (
            {"attacks": {"adaptive": {"build_surrogate": 3}}},
            "attack 'adaptive' has no argument 'build_surrogate'",
        ),
        ({"teaching": {"epochs": "four"}}, "teaching.epochs is 'four'; expected a whole number"),
        ({"training": {"batch_size": 1}}, "training.batch_size is 1; expected at least 2"),
        ({"teaching": {"lr": "tiny"}}, "teaching.lr is 'tiny'; expected a number"),
        ({"training": {"epochs": 0}}, "training.epochs is 0; expected at least 1"),
        (
            {"training": {"schedule": "cosin"}},
            "training.schedule is 'cosin'; expected cosine or step or constant",
        ),
        ({"training": {"temperature": 0}}, "training.temperature is 0; expected more than 0"),
        ({"training": {"momentum": 2}}, "training.momentum is 2; expected above 0 and below 1"),
        ({"training": {"weight_decay": -3}}, "training.weight_decay is -3; expected at least 0"),
        ({"detoxing": {"growth": 0.5}}, "detoxing.growth is 0.5; expected more than 1"),
        ({"detoxing": {"raises": -1}}, "detoxing.raises is -1; expected at least 0"),
        (
            {"detoxing": {"batch_size": 1}},
            "detoxing.batch_size is 1; expected at least 2",
        ),
        ({"teaching": {"steps": 3}}, "attack 'badnets' has no argument 'steps'"),
        ({"attacks": {"ckd": {"epochs": 0}}}, "attacks.ckd.epochs is 0; expected at least 1"),
        (
            {"attacks": {"ckd": {"epochs": "four"}}},
            "attacks.ckd.epochs is 'four'; expected a whole number",
        ),
        ({"attacks": {"ckd": {"lr": -1}}}, "attacks.ckd.lr is -1; expected more than 0"),
        *(
            (
                {"target": target},
                f"target is {target!r}; expected the number of a class, or next for the next class "
                "of each image",
            )
            for target in (True, -1, 1.5, "Next", "3", ["next"])
        ),
        (
            {"target": "next"},
            "target is next, and attack 'adba' has one target class; give its number, or use one "
            f"of {', '.join(name for name, row in ATTACKS.items() if row.next_class)}",
        ),
        (
            {"attacks": {"badnets": None}, "also": [{"attacks": {"sig": None}}], "target": "next"},
            "also.0: target is next, and attack 'sig' has one target class; give its number, or "
            f"use one of {', '.join(name for name, row in ATTACKS.items() if row.next_class)}",
        ),
        (
            {"attacks": {"sig": {"second": "blend", "second_target": 3}}},
            f"attacks.sig: this attack cannot have a second trigger; use one of {SECOND}",
        ),
        (
            {
                "attacks": {"badnets": None, "sig": None},
                "teaching": {"second": "blend", "second_target": 3},
            },
            f"attacks.sig: this attack cannot have a second trigger; use one of {SECOND}",
        ),
        (
            {"attacks": {"tone": {"second": "wanet", "second_target": 3}}},
            "attacks.tone: second is 'wanet', which cannot be a second trigger; use one of "
            f"{', '.join(name for name, row in ATTACKS.items() if can_be_second(row))}",
        ),
        (
            {"attacks": {"tone": {"second": "blend"}}},
            "attacks.tone: second is given and second_target is not; add it, or leave both out",
        ),
        (
            {"attacks": {"tone": {"second": "blend", "second_target": "3"}}},
            "attacks.tone: second_target is '3'; expected a whole number",
        ),
        (
            {"attacks": {"tone": {"second": "blend", "second_target": 0}}},
            "attacks.tone: target and second_target are both 0; expected two different classes",
        ),
        (
            {"attacks": {"tone": None}, "teaching": {"second": "blend", "second_target": 0}},
            "attacks.tone: target and second_target are both 0; expected two different classes",
        ),
        (
            {"attacks": {"tone": {"second": "blend", "second_target": 3}}, "target": "next"},
            "attacks.tone: target is next, and each of two triggers has one target class; give the "
            "number of a class",
        ),
        ({"seeds": [2**40]}, "seeds.0 is 1099511627776; expected less than 2147483648"),
        ({"threads": 10**6}, "threads is 1000000; expected 1 to 1024"),
        ({"teaching": {"epochz": 4}}, "attack 'badnets' has no argument 'epochz'"),
        ({"attacks": {"flow": {"family": "tone"}}}, "attack 'flow' has no argument 'family'"),
        (
            {"attacks": {"adaptive-tone": {"family": "patch"}}},
            "attack 'adaptive-tone' has no argument 'family'",
        ),
        ({"attacks": {"ckd": {"cap": "x"}}}, "attacks.ckd: cap is 'x'; expected a number"),
        (
            {"attacks": {"ckd": {"cap": 2.0}}},
            "attacks.ckd: cap is 2.0; expected above 0 and at most 1",
        ),
        (
            {"attacks": {"adba": {"build_surrogate": 3}}},
            "attack 'adba' has no argument 'build_surrogate'",
        ),
    ],
)
def test_wrong_keys_and_values_are_named(change, message, tmp_path):
    with pytest.raises(UsageError) as error:
        load(tmp_path, BLOCK | change)
    assert str(error.value) == f"{tmp_path / 'grid.yaml'}: {message}"


def test_a_file_that_is_not_a_grid_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"grid.yaml cannot be read as YAML: while parsing"):
        load(tmp_path, "a: [")
    with pytest.raises(UsageError, match=r"grid.yaml: expected keys such as 'attacks', not list$"):
        load(tmp_path, "[1]")
    with pytest.raises(InputError, match=r"none.yaml cannot be read: No such file"):
        load_grid(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({"seeds": list(range(4000)), "methods": ["ofd"] * 4000}, "32,008,000"),
        ({"also": [{}] * 2000}, "10,008"),
    ],
)
def test_a_grid_of_too_many_cells_is_refused(change, count, tmp_path, monkeypatch):
    monkeypatch.setattr(Block, "cells", lambda _: pytest.fail("a cell was created"))
    message = f"{count} cells or more; expected at most 10,000: split the grid$"
    with pytest.raises(UsageError, match=message):
        load(tmp_path, BLOCK | change)


def test_an_attack_that_is_given_twice_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"says 'ckd' twice, in line 3; leave one of them$"):
        load(tmp_path, "attacks:\n  ckd: {cap: 0.1}\n  ckd: {cap: 0.2}\n")


def test_a_key_with_line_breaks_is_reported_in_one_line(tmp_path):
    with pytest.raises(UsageError) as error:
        load(tmp_path, BLOCK | {"teaching": {"epo\n2": [1.5]}})
    assert str(error.value).isprintable()
