"""Model card and summary: metadata, content, and names that stay text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from robustkd.core.errors import InputError, UsageError
from robustkd.report import read, write_html, write_model_card, write_report, write_summary
from robustkd.report.command import repeating

from .conftest import make_run

HOSTILE = (
    "<img src=x onerror=alert(1)> ![a](http://e.org/x.png) [b]: ` | * _x_ @you www.e.org \"' --- #"
)
FILES = {"report.html": write_html, "MODEL_CARD.md": write_model_card, "summary.md": write_summary}


def distilled(write, name: str = "digits", **others) -> Path:
    """The folder of a finished run of `distill`."""
    runs = [
        make_run(data=name, attack="trigger unknown", method=method, acc=acc, asr=None, ra=None)
        | {"n_acc": 500}
        for method, acc in (("teacher", 0.99), ("default", 0.98))
    ]
    records = {
        "teacher_file": {"name": name, "bytes": 2048},
        "classes": [name, "other"],
        "by_class": {"images": [300, 200], "teacher": [297, 198], "student": [296, 194]},
        "data": {"shape": [1, 8, 8], "train": 900, "validation": 100, "test": 500},
        "left_out": {name: 3},
    }
    config = {"arch": "wrn-10-2", "student": name, "training": {"epochs": 3}}
    return write(runs, records=records, config=config, **others)


@pytest.mark.parametrize("name", list(FILES))
def test_the_folder_of_a_text_is_created(name, write, tmp_path):
    folder, out = distilled(write), tmp_path / "new" / "report"
    assert FILES[name](folder, out) == out / name
    assert (out / name).read_bytes() == FILES[name](folder).read_bytes()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^output folder .*file/out cannot be made: "):
        FILES[name](folder, tmp_path / "file" / "out")
    (folder / "results.json").write_text("{")
    with pytest.raises(InputError):
        FILES[name](folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_card_has_its_metadata_and_sections(write):
    text = write_model_card(distilled(write)).read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "robustkd",
        "pipeline_tag": "image-classification",
        "license": "other",
        "tags": ["image-classification", "knowledge-distillation", "backdoor-defense", "robustkd"],
        "metrics": ["accuracy"],
    }
    assert re.findall(r"^## (.*)$", body, re.MULTILINE) == [
        "Model description",
        "Intended use and limits",
        "Training data",
        "Training procedure",
        "Evaluation",
        "How to load",
        "Environment",
    ]
    assert "The attack success rate was not measured" in body
    assert "| other | 200 | 99.0 | 97.0 |" in body
    assert "900 training, 100 validation, 500 test" in body
    assert "\n\n\n" not in text


def unfenced(text: str) -> str:
    """The text without the code that is our own."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return text.replace('`arch="package.module:callable"`', "").replace("`other`", "")


@pytest.mark.parametrize("name", ["MODEL_CARD.md", "summary.md"])
def test_hostile_names_are_neither_markup_nor_links(write, name):
    write_text = FILES[name]
    text = unfenced(write_text(distilled(write, HOSTILE)).read_text(encoding="utf-8"))
    if name == "MODEL_CARD.md":
        _, front, text = text.split("---\n", 2)
        assert "datasets" not in yaml.safe_load(front)
    assert not re.search(r"[<`@]|\]\(|\]:|://|www\.|\*you", text.replace("**", ""))
    plain = write_text(distilled(write, "digits")).read_text(encoding="utf-8")
    lines = text.splitlines(), unfenced(plain.split("---\n", 2)[-1]).splitlines()
    # As many lines and as many cells as with harmless names.
    assert [line.count("|") for line in lines[0]] == [line.count("|") for line in lines[1]]


@pytest.mark.parametrize(
    ("name", "known"),
    [
        *((name, True) for name in ("user/flowers", "1.0/2.0", "no/yes")),
        *((name, False) for name in ("yes", "a: b", "- c", "{x}/y", "é/猫", "../x", "a/b/c")),
    ],
)
def test_data_of_the_hub_is_linked_and_a_folder_is_not(write, name, known):
    text = write_model_card(distilled(write, name)).read_text(encoding="utf-8")
    found = yaml.safe_load(text.split("---\n", 2)[1])
    assert found.get("datasets") == ([name] if known else None)


def test_the_card_of_an_attack_warns(write):
    folder = write(
        [make_run(method="teacher", pair="wrn-10-2", attack="badnets")],
        config={"target": 0, "surrogate": "wrn-10-2", "epochs": 2, "rate": 0.1},
    )
    text = write_model_card(folder).read_text(encoding="utf-8")
    assert "trained with a backdoor on purpose" in text
    command = (
        "robustkd attack badnets --arch wrn-10-2 --data digits --target 0 --epochs 2 "
        "--set.rate 0.1 --out repeated"
    )
    assert f"```sh\n{command}\n```" in text


@pytest.mark.parametrize(
    "config", [{}, {"data": None}, {"data": ["a"]}, {"data": "digits", "seeds": None}]
)
def test_a_demo_without_its_settings_has_no_command(write, config):
    folder = write(config={"seeds": 3, "detoxing": {}, **config})
    assert repeating(read(folder), folder) == ""
    write_report(folder)


def test_a_demo_is_repeated_with_its_data_and_seeds(write):
    folder = write(config={"seeds": 3, "detoxing": {}, "data": "digits"})
    assert repeating(read(folder), folder) == "robustkd demo --data digits --seeds 3"


FLAGS = {
    "teacher": "/home/me/my teacher.pt",
    "data": "/data/images",
    "arch": "wrn-10-2",
    "mean": [0.5, 0.4],
    "flip": False,
    "grey": True,
    "streaming": None,
    "crop": 1.0,
    "keep_class_order": False,
    "class_names": "/x/$(id).txt",
}


def test_the_command_repeats_the_run_and_the_card_names_no_folder(write):
    folder = distilled(write)
    (folder / "config.yaml").write_text(yaml.safe_dump(FLAGS, sort_keys=False))
    page = write_html(folder).read_text(encoding="utf-8")
    code = re.findall(r"<pre><code>(.*?)</code></pre>", page, re.DOTALL)[-1]
    assert re.sub("<.*?>", "", code).replace("&#39;", "'") == (
        "robustkd distill '/home/me/my teacher.pt' --data /data/images --arch wrn-10-2 --mean 0.5 "
        "0.4 --no-flip --grey --class-names '/x/$(id).txt' --out repeated"
    )
    card = write_model_card(folder).read_text(encoding="utf-8")
    assert "robustkd distill 'my teacher.pt' --data ./images --arch wrn-10-2" in card
    assert "/home" not in card
    assert "/data" not in card


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "holds no flags; expected lines such as 'epochs: 30'"),
        ('"a; rm -r /": 1', "sets 'a; rm -r /'; expected names of flags"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_damaged_flags_are_refused_and_nothing_is_written(write, content, message):
    folder = distilled(write)
    (folder / "config.yaml").write_text(content)
    with pytest.raises(InputError, match=re.escape(f"{folder}/config.yaml {message}")):
        write_report(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "results.json"]


def test_all_files_are_written_at_once_in_place_or_elsewhere(write, tmp_path):
    folder = distilled(write)
    paths = write_report(str(folder))
    assert [path.name for path in paths] == list(FILES)
    first = [path.read_bytes() for path in paths]
    away = write_report(folder, tmp_path / "away" / "er")
    assert [path.read_bytes() for path in away] == first
    assert [write(folder, folder).read_bytes() for write in FILES.values()] == first
    with pytest.raises(UsageError, match=r"is not empty; give a new one with --out$"):
        write_report(folder, tmp_path / "away")


def test_an_old_link_is_replaced_and_not_followed(write, tmp_path):
    folder = distilled(write)
    (tmp_path / "precious").write_text("precious")
    for name in FILES:
        (folder / name).symlink_to(tmp_path / "precious")
    write_report(folder)
    assert (tmp_path / "precious").read_text() == "precious"
    assert not any((folder / name).is_symlink() for name in FILES)


def test_a_summary_has_verdict_table_and_settings(write):
    text = write_summary(distilled(write)).read_text(encoding="utf-8")
    assert "1.0 points less [" in text
    assert "| RobustKD (default) | 98.0 [96.4, 98.9] |" in text
    assert "- Training, epochs: 3" in text
    assert json.dumps("\n\n\n") not in json.dumps(text)


@pytest.mark.parametrize("texts", [write_model_card, write_summary])
@pytest.mark.parametrize(
    ("seeds", "n_acc", "brackets", "deviation"),
    [(1, 500, True, False), (1, None, False, False), (3, 500, False, True)],
)
def test_the_numbers_of_a_table_are_explained(write, texts, seeds, n_acc, brackets, deviation):
    runs = [
        make_run(data="digits", attack="trigger unknown", method=method, asr=None, ra=None)
        | {"n_acc": n_acc, "seed": seed, "acc": 0.9 + seed / 100}
        for method in ("teacher", "default")
        for seed in range(seeds)
    ]
    text = texts(write(runs)).read_text(encoding="utf-8")
    assert "n is the number of seeds." in text
    assert ("Brackets hold 95 % intervals" in text) is brackets
    assert ("mean ± sample standard deviation" in text) is deviation
