"""The package's front door: its version, its names, and its type marker."""

import re
from importlib.resources import files

import pytest

import mixattn


def test_the_version_is_a_release_number():
    assert re.fullmatch(r"\d+\.\d+\.\d+", mixattn.__version__)


@pytest.mark.parametrize("name", mixattn.__all__)
def test_every_exported_name_is_there(name):
    assert getattr(mixattn, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Transformers'"):
        mixattn.Transformers  # noqa: B018


@pytest.mark.parametrize("package", ["mixattn", "serving", "train", "pallas_kernels"])
def test_the_packages_are_marked_as_typed(package):
    assert (files(package) / "py.typed").is_file()
