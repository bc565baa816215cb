"""This file holds the model directories that tests of the command line share."""

from pathlib import Path

import pytest

from nanochat.export.directory import save_model
from tests.parity.random_models import answering_bundle, random_model


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "random"
    random_model().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def large_context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that can write for a long time."""
    path = tmp_path_factory.mktemp("models") / "random"
    random_model(context_length=16_384).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def polite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers everything with wxyz."""
    path = tmp_path_factory.mktemp("models") / "polite"
    save_model(path, answering_bundle())
    return path
