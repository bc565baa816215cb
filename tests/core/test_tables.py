"""Tables that are rounded to 8 bits because somebody asked: what changes, and that it is said."""

import logging
from pathlib import Path
from typing import Any

import pytest

from nanochat.errors import ConfigError, InputError
from nanochat.lm import Model
from nanochat.weights import Int8
from tests.core.command_line import GREEDY, Run
from tests.parity.random_models import random_bundle


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("form", ["dense", "float16", "bfloat16", "int8_32", "int8_16"])
def test_tables_are_rounded_and_the_errors_are_said(
    form: Any, tied: bool, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = random_bundle(table_format=form, tie_embeddings=tied)

    with caplog.at_level(logging.WARNING):
        model = Model.from_bundle(bundle, backend=backend, tables="int8")

    assert model.config.table_format == "int8"
    assert isinstance(model.weights.embedding, Int8)
    said = model.describe()["rounded_tables"]
    assert isinstance(said, dict)
    assert said["stored"] == form
    assert set(said["tables"]) == ({"embedding"} if tied else {"embedding", "head"})
    assert all(0 < error < 0.01 for error in said["tables"].values())
    assert 0 < said["logits"] < 0.05
    assert "are rounded to 8 bits; relative errors: embedding" in caplog.text


def test_tables_of_one_scale_a_row_stay_as_they_are() -> None:
    bundle = random_bundle()

    model = Model.from_bundle(bundle, backend="reference", tables="int8")

    said = model.describe()["rounded_tables"]
    assert isinstance(said, dict)
    assert (said["tables"], said["logits"]) == ({"embedding": 0.0}, 0.0)


def test_tables_stay_as_they_are_stored_unless_somebody_asks() -> None:
    model = Model.from_bundle(random_bundle(table_format="float16"), backend="reference")

    assert model.config.table_format == "float16"
    assert model.describe()["rounded_tables"] is None


def test_ternary_tables_are_not_widened() -> None:
    with pytest.raises(ConfigError, match=r'table_format="ternary".*leave tables out'):
        Model.from_bundle(random_bundle(table_format="ternary"), tables="int8")


def test_tables_of_no_known_kind_are_refused() -> None:
    with pytest.raises(InputError, match=r"tables='int4': tables are rounded to \"int8\""):
        Model.from_bundle(random_bundle(), tables="int4")  # type: ignore[arg-type]


def test_the_command_line_has_the_option(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model"
    Model.from_bundle(random_bundle(table_format="float16"), backend="reference").save_pretrained(
        path
    )

    done = run("generate", path, "fn", "--max-tokens", 2, "--tables", "int8", *GREEDY)

    assert done.code == 0, done.err
    assert "are rounded to 8 bits" in done.err
