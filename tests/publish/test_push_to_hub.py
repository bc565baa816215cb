"""A model in memory is published, and comes back by its name as it was."""

import inspect
from dataclasses import fields

import numpy as np
import pytest

import nanochat
from nanochat.bundle import Bundle
from nanochat.errors import InputError
from nanochat.lm import Model
from nanochat.publish.options import PushOptions
from tests.parity.random_models import random_bundle
from tests.zoo.hub_state import Hub


@pytest.fixture(scope="module")
def source() -> Bundle:
    return random_bundle(context_length=48)


def model_of(source: Bundle, *, licence: str) -> Model:
    return Model(
        source.config,
        source.weights,
        source.tokenizer,
        backend="reference",
        name="mine",
        licence=licence,
    )


def test_a_model_in_memory_is_published_and_loaded_by_its_name(hub: Hub, source: Bundle) -> None:
    model = model_of(source, licence="unknown")

    address = model.push_to_hub("you/mine", licence="MIT", languages=["en"], datasets=["a/b"])
    loaded = nanochat.from_pretrained("you/mine", backend="reference", verify=True)

    assert address.startswith(f"{hub.url}/you/mine/commit/")
    assert loaded.licence == "MIT"
    np.testing.assert_array_equal(loaded.logits([1, 2, 3]), model.logits([1, 2, 3]))
    card = hub.files("you/mine")["README.md"].decode()
    assert "license: mit" in card
    assert "a/b" in card


def test_a_pull_request_gives_its_address(hub: Hub, source: Bundle) -> None:
    model_of(source, licence="MIT").push_to_hub("you/mine")

    address = model_of(source, licence="MIT").push_to_hub("you/mine", create_pr=True)

    assert address == f"{hub.url}/you/mine/discussions/1"


@pytest.mark.parametrize(
    ("own", "given", "message"),
    [("unknown", None, "licence"), ("MIT", "Apache-2.0", "MIT")],
    ids=["none", "another"],
)
def test_a_model_needs_one_licence(
    own: str, given: str | None, message: str, hub: Hub, source: Bundle
) -> None:
    with pytest.raises(InputError, match=message):
        model_of(source, licence=own).push_to_hub("you/mine", licence=given)

    assert not hub.repos


def test_every_option_of_a_publication_is_an_argument() -> None:
    given = [*inspect.signature(Model.push_to_hub).parameters]

    assert given == ["self", "repo", *(field.name for field in fields(PushOptions))]
