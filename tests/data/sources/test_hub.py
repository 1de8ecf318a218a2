"""Data sets of the hub, read from a local folder in the hub's form: no network, no script."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
import torch

from robustkd.core.errors import InputError, UsageError
from robustkd.data import Reading, open_source, split_text
from robustkd.data.sources import hub
from robustkd.data.sources.hub import load_hub
from tests.data.images.image_files import picture
from tests.data.sources.hub_files import encoded, write_hub

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")
SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def hub_names(monkeypatch):
    """The check of names as it is for users; elsewhere here, a local folder stands for the hub."""


@pytest.fixture(autouse=True)
def folders_for_the_hub(request, monkeypatch):
    if "hub_names" not in request.fixturenames:
        monkeypatch.setattr(
            hub,
            "_builder",
            lambda name, revision: datasets.load_dataset_builder(name, revision=revision),
        )


def test_splits_labels_and_pixels(tmp_path):
    folder = write_hub(tmp_path / "insects", {"train": 10, "validation": 4, "test": 6})
    data = open_source(f"hf:{folder}@main")
    assert data.classes == ("ant", "bee")
    assert data.image_shape == (3, 12, 12)
    assert split_text(data) is None
    for k, split in enumerate(SPLITS):
        batch = next(data.batches(split, batch_size=99))
        assert batch.labels.tolist() == [i % 2 for i in range(data.size(split))]
        for i, image in enumerate(batch.images):
            pixels = torch.from_numpy(picture(100 * k + i, 12)).permute(2, 0, 1)
            assert torch.equal(image * 255, pixels.float())
    assert data.parts["test"].name(5) == "test/5"


def test_missing_splits_are_held_out_identically_in_all_workers(tmp_path):
    folder = write_hub(tmp_path / "insects", {"train": 40, "valid": 4})
    data = load_hub(f"hf:{folder}@v1", Reading(streaming=True, workers=2))
    assert [data.size(split) for split in SPLITS] == [36, 4, 4]
    record = json.loads("".join(split_text(data)))
    assert set(record) == {"format", "seed", "share", "test"}
    assert all(re.fullmatch(r"train/\d+", name) for name in record["test"])
    alone = load_hub(f"hf:{folder}@v1")
    for one, other in zip(
        data.batches("train", batch_size=5), alone.batches("train", batch_size=5), strict=True
    ):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.rows, other.rows)


@pytest.mark.parametrize(
    "name", ["hf:", "hf:user/flowers", "hf:@main", "hf:user/flowers@", "hf:a@b@c"]
)
def test_a_name_without_a_revision_is_refused(name):
    message = (
        f"{name!r}: expected hf:NAME@REVISION, e.g. hf:user/flowers@1f0c2b7 with the commit of "
        "the version that you mean"
    )
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        open_source(name)


def test_a_data_set_that_is_a_script_is_refused_and_not_run(tmp_path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    canary = tmp_path / "canary"
    (folder / "scripted.py").write_text(f"open({str(canary)!r}, 'w')\n")
    with pytest.raises(InputError) as caught:
        open_source(f"hf:{folder}@main")
    assert str(caught.value).startswith(f"hf:{folder}@main cannot be loaded: ")
    assert "\n" not in str(caught.value)
    assert not canary.exists()


def test_a_data_set_in_another_form_is_refused_before_it_is_read(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "train.csv").write_text("image,kind\na.png,0\n")
    message = f"hf:{folder}@main cannot be loaded: stored as csv, expected parquet or arrow"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        open_source(f"hf:{folder}@main")


def test_a_missing_data_set_is_reported_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"^hf:nobody/nothing@main cannot be loaded: [^\n]+$"):
        open_source("hf:nobody/nothing@main")


def test_paths_instead_of_bytes_are_never_opened(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(picture(0, 12)))
    folder = write_hub(tmp_path / "insects", {"train": 20, "validation": 4})
    features = datasets.Features(
        {"image": datasets.Image(), "kind": datasets.ClassLabel(names=["ant", "bee"])}
    )
    rows = {"image": [{"bytes": None, "path": str(secret)}] * 4, "kind": [0, 1, 0, 1]}
    table = datasets.Dataset.from_dict(rows, features=features).with_format("arrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(table[:], folder / "test-00000-of-00001.parquet")
    data = open_source(f"hf:{folder}@main")
    with pytest.raises(InputError, match=r"of 4 images cannot be decoded, .*test/\d \("):
        list(data.batches("test", batch_size=4))


def test_missing_columns_and_splits_are_reported(tmp_path):
    folder = write_hub(tmp_path / "a", {"validation": 4})
    with pytest.raises(InputError, match=r"has no split train, only validation$"):
        open_source(f"hf:{folder}@main")
    plain = datasets.Dataset.from_dict({"text": ["a", "b"], "kind": [0, 1]})
    (tmp_path / "b").mkdir()
    plain.to_parquet(str(tmp_path / "b" / "train-00000-of-00001.parquet"))
    message = r"has 0 columns of kind Image, expected 1; its columns are text, kind$"
    with pytest.raises(InputError, match=message):
        open_source(f"hf:{tmp_path / 'b'}@main")


def test_class_names_that_cannot_be_printed_are_refused(tmp_path):
    folder = write_hub(tmp_path / "a", {"train": 8}, classes=("a", "b\x1b[2J"))
    message = r"the class name 'b\\x1b\[2J' cannot be shown, expected a printable name; use another"
    with pytest.raises(InputError, match=message):
        open_source(f"hf:{folder}@main")


def test_a_table_that_repeats_a_row_millions_of_times_is_refused(tmp_path):
    folder = write_hub(tmp_path / "a", {"train": 8})
    path = folder / "train-00000-of-00001.parquet"
    table = pyarrow.parquet.read_table(path)
    many = table.take(pyarrow.array(np.zeros(100_000, dtype=np.int64)))
    pyarrow.parquet.write_table(many, path, compression="zstd")
    assert path.stat().st_size < 200_000
    message = r"cannot be loaded: a file has 100,000 rows in [\d,]+ bytes, fewer than images take$"
    with pytest.raises(InputError, match=message):
        open_source(f"hf:{folder}@main")
    assert not list((tmp_path / "cache").glob("**/*.arrow"))


@pytest.mark.parametrize("name", ["insects", "user/insects"])
def test_a_local_folder_is_never_taken_for_a_data_set_of_the_hub(
    name, tmp_path, monkeypatch, hub_names
):
    """The library would take it, whatever the revision says."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write_hub(tmp_path / name, {"train": 20})
    monkeypatch.chdir(tmp_path)
    message = (
        f"hf:{name}@0123abc cannot be loaded: the working directory has a folder of that name; "
        "start from another one"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        open_source(f"hf:{name}@0123abc")


@pytest.mark.parametrize("name", ["/etc", "../a", "./a", "a/../b", "a/b/c", "user/.", "a b", "-a"])
def test_paths_are_no_names_of_the_hub(name, hub_names):
    message = (
        f"hf:{name}@main cannot be loaded: the hub's names are NAME or USER/NAME; give a folder "
        "without hf:"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        open_source(f"hf:{name}@main")


def test_without_the_extra_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = "hf:a needs the package datasets, which is not installed; pip install 'robustkd[hf]'"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        open_source("hf:a@b")


def test_versions_that_run_scripts_are_refused(monkeypatch):
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    message = "datasets 3.6.0 runs scripts of data sets; pip install 'datasets>=4'"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        open_source("hf:a@b")
