"""Names that are known without torch are those of the registries."""

from __future__ import annotations

import re

import pytest

from robustkd import data, models
from robustkd.core import known_names
from robustkd.core.errors import UsageError
from robustkd.teacher.defences import registry


def test_the_names_are_those_of_the_registries():
    assert data.names() == known_names.DATA
    assert tuple(registry.DEFENCES) == known_names.DEFENCES
    assert list(known_names.ARCHITECTURES) == list(models.FAMILIES)


@pytest.mark.parametrize("family", known_names.ARCHITECTURES)
def test_an_example_belongs_to_its_family(family):
    for arch in known_names.ARCHITECTURES[family].examples:
        found = known_names.family_of(arch)
        assert found is not None
        assert found[0] == family
        known_names.check_architecture(arch)


@pytest.mark.parametrize(
    ("arch", "hint"),
    [
        ("wrn-10-l", "did you mean 'wrn-10-1'?"),
        ("wrn-16", "did you mean 'wrn-16-2'?"),
        ("a b", "for example 'wrn-10-1'"),
    ],
)
def test_the_nearest_architecture_is_suggested(arch, hint):
    for check in (known_names.check_architecture, models.check_name):
        with pytest.raises(
            UsageError, match=f"^unknown architecture '{arch}'; .*: {re.escape(hint)}$"
        ):
            check(arch)


def test_a_library_name_without_its_prefix_is_checked_by_the_registry():
    known_names.check_architecture("resnet18")
    with pytest.raises(UsageError, match=r"did you mean 'torchvision/resnet18'\?$"):
        models.check_name("resnet18")


def test_data_are_names_folders_or_data_sets_of_the_hub(tmp_path):
    for name in ("digits", "hf:a/b@c", str(tmp_path), "./anything"):
        known_names.check_data(name)
    with pytest.raises(UsageError, match=r"^unknown data source 'zzz'; .*, or give a folder$"):
        known_names.check_data("zzz")
    assert not known_names.is_folder("digits")
    assert known_names.is_folder(str(tmp_path))
