"""Families that the tests share."""

from pathlib import Path

import pytest

from dispatch_rl.config import FamilyConfig
from dispatch_rl.decoding.families import Family, load_family
from tests.families import family_config, save_family
from tests.recordings import recorded
from tests.statics import eager, taped

__all__ = ["eager", "recorded", "taped"]


@pytest.fixture(scope="session")
def pocket() -> Family:
    """The family that ships with the package."""
    return load_family(FamilyConfig())


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of small runs, whose names must differ, and of the recordings that they share."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family made elsewhere: other architectures, sizes and vocabulary, padded to unequal sizes."""
    return save_family(tmp_path_factory.mktemp("other-family"))


@pytest.fixture(scope="session")
def other(other_folder: Path) -> Family:
    """That family, loaded."""
    return load_family(family_config(other_folder))
