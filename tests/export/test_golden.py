"""The golden record says what a model computes, and survives as text."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from nanochat import ternary
from nanochat.backends.reference.ops import ReferenceOps
from nanochat.bundle import NUM_TOKENS, golden_from_json
from nanochat.errors import FormatError
from nanochat.generation.engine import Engine
from nanochat.proof.golden import record, tensor_digest
from nanochat.weights import Dense, Int8, Ternary, named_leaves
from tests.parity.random_models import random_bundle

LOOP = {"num_layers": 3, "loop_count": 2, "loop_prelude": 1, "loop_coda": 1}


@pytest.mark.parametrize(
    ("options", "layers"),
    [({}, 2), ({"num_streams": 4}, 2), (LOOP, 4)],
    ids=["plain", "streams", "loop"],
)
def test_a_record_holds_the_reference_s_logits_and_every_layer(
    options: dict[str, Any], layers: int
) -> None:
    source = random_bundle(**options)
    ops = ReferenceOps()

    golden = record(source)

    logits = Engine(source.config, ops.prepare(source.weights), ops).logits(golden.tokens)
    assert golden.greedy == tuple(logits.argmax(axis=1))
    assert len(golden.tokens) == NUM_TOKENS
    assert len(golden.layers) == layers
    np.testing.assert_allclose(
        golden.rms, np.sqrt(np.square(logits, dtype=np.float64).mean(axis=1)), rtol=1e-5
    )
    np.testing.assert_allclose(np.array(golden.logits)[:, [0, -1]], logits[:, [0, -1]], rtol=1e-5)


def test_a_record_is_the_same_after_a_trip_through_text() -> None:
    golden = record(random_bundle())

    assert golden_from_json(golden.to_json(), "text") == golden
    assert "\n" not in golden.to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"format": 3},
        {"tokens": [1, 2]},
        {"tokens": [1.5] * 8},
        {"layers": 3},
        {"logits": [["x"] * 64] * 8},
        {"logits": []},
        {"logits": [[0.5] * 64] * 7},
        {"logits": [[0.5] * 64] * 7 + [[0.5]]},
        {"layers": []},
        {"layers": [[0.5] * 63]},
        {"pairs": [0.5] * 64},
        {"pairs": None},
        {"tensors": {"a": 1}},
        {"rms": None},
        {"rms": [0.5]},
        {"rms": [0.5] * 7 + [float("nan")]},
        {"pairs": [0.5] * 255 + [float("inf")]},
        {"pairs": [0.5] * 255 + ["-inf"]},
        {"layers": [[0.5] * 63 + [1e300]]},
    ],
    ids=lambda change: f"{change!r:.60}",
)
def test_a_damaged_record_is_refused(change: dict[str, object]) -> None:
    fields = json.loads(record(random_bundle()).to_json()) | change

    with pytest.raises(FormatError, match="export the model again"):
        golden_from_json(json.dumps(fields), "x.gguf")


def test_a_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(FormatError, match=r"x\.gguf"):
        golden_from_json("{", "x.gguf")


def test_the_digest_of_a_ternary_leaf_depends_on_every_code_and_scale() -> None:
    codes = np.random.default_rng(0).integers(-1, 2, (3, 512)).astype(np.int8)
    codes[0, :256] = 0
    scales = np.full((3, 2), 0.5, np.float16)
    leaf = Ternary(packed=ternary.pack(codes), scales=scales, columns=512, activation_block=128)
    other_codes, other_scales, other_zero = codes.copy(), scales.copy(), scales.copy()
    other_codes[2, 511] = 1 - other_codes[2, 511] if other_codes[2, 511] else 1
    other_scales[2, 1] = 0.25
    other_zero[0, 0] = 0.25

    def changed(**fields: Any) -> str:
        return tensor_digest(dataclasses.replace(leaf, **fields))

    assert changed(packed=ternary.pack(other_codes)) != tensor_digest(leaf)
    assert changed(scales=other_scales) != tensor_digest(leaf)
    # A block of zeros is zeros, whatever its scale.
    assert changed(scales=other_zero) == tensor_digest(leaf)


def test_the_digest_of_other_leaves_depends_on_their_numbers() -> None:
    table = Int8(
        codes=np.ones((2, 4), np.int8), scales=np.ones((2, 1), np.float16), activation_block=4
    )
    dense = Dense(values=np.ones(4, np.float32))

    assert tensor_digest(
        dataclasses.replace(table, scales=np.zeros(2, np.float16))
    ) != tensor_digest(table)
    assert tensor_digest(
        dataclasses.replace(table, codes=np.zeros((2, 4), np.int8))
    ) != tensor_digest(table)
    assert tensor_digest(Dense(values=np.zeros(4, np.float32))) != tensor_digest(dense)


def test_a_record_has_a_digest_of_every_tensor() -> None:
    source = random_bundle(num_streams=2, coefficients="dynamic", num_experts=2, expert_width=256)

    golden = record(source)

    assert golden.tensors == {
        name: tensor_digest(leaf) for name, leaf in named_leaves(source.weights)
    }
