"""Costs equal what one counts by hand, and the bytes of arrays."""

import dataclasses
from typing import Any, get_args

import numpy as np
import pytest

from nanochat.backends.reference.ops import ReferenceOps
from nanochat.config import ModelConfig, TableFormat
from nanochat.cost import Cost, cost, vector_bytes
from nanochat.errors import InputError
from nanochat.init import freeze
from nanochat.presets import PRESETS, preset
from nanochat.shapes import num_parameters
from nanochat.slots import slots
from nanochat.weights import named_leaves
from tests.parity.cases import CASES
from tests.parity.random_models import random_weights

# Attention: q and o 256 x 256, k and v 128 x 256. Network: three of 512 x 256 (or 256 x 512).
SMALL: dict[str, Any] = {
    "vocab_size": 100,
    "width": 256,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn_width": 512,
    "num_streams": 1,
}
TERNARY = 256 * 256 * 3 + 512 * 256 * 3
# A layer's two gains of 256 and QK-norms of 64.
DENSE = 2 * 256 + 2 * 64
TABLE = 100 * 256
# Two bits a weight and two bytes for every 256 of them.
TERNARY_BYTES = TERNARY // 4 + TERNARY // 256 * 2
TABLE_BYTES = 100 * (256 + 2)

every_case = pytest.mark.parametrize("config", CASES.values(), ids=CASES)


def small(context: int = 10, **options: object) -> Cost:
    return cost(ModelConfig(**SMALL | options), context=context)


def test_parameters_are_counted_by_kind() -> None:
    counted = small()

    assert counted.ternary_parameters == 2 * TERNARY
    assert counted.int8_parameters == TABLE
    assert counted.dense_parameters == 2 * DENSE + 256


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_by_kind_add_up(name: str) -> None:
    config = preset(name)

    assert cost(config, context=1).parameters == num_parameters(config)


def test_bytes_are_counted_by_kind() -> None:
    counted = small()

    assert counted.ternary_bytes == 2 * TERNARY_BYTES
    assert counted.int8_bytes == TABLE_BYTES
    assert counted.dense_bytes == 4 * (2 * DENSE + 256)
    assert counted.stored_bytes == 2 * TERNARY_BYTES + TABLE_BYTES + 4 * (2 * DENSE + 256)


@every_case
def test_bytes_are_those_of_the_arrays_of_a_model(config: ModelConfig) -> None:
    sizes = {"Ternary": 0, "Int8": 0, "Dense": 0}
    for _, leaf in named_leaves(freeze(random_weights(config))):
        arrays = [part for part in vars(leaf).values() if isinstance(part, np.ndarray)]
        sizes[type(leaf).__name__] += sum(array.nbytes for array in arrays)

    counted = cost(config, context=1)

    assert [counted.ternary_bytes, counted.int8_bytes, counted.dense_bytes] == list(sizes.values())


@pytest.mark.parametrize(
    ("weight_block", "num_scales"),
    [(128, 256 * 3 * 2 + 512 * 2 * 2 + 256 * 4), ("row", 768 + 1280)],
)
def test_smaller_blocks_have_more_scales(weight_block: int | str, num_scales: int) -> None:
    counted = small(num_layers=1, weight_block=weight_block)

    assert counted.ternary_bytes == TERNARY // 4 + 2 * num_scales


def test_a_dense_table_has_four_bytes_a_number() -> None:
    counted = small(table_format="dense")

    assert counted.int8_bytes == 0
    assert counted.dense_bytes == 4 * (2 * DENSE + 256 + TABLE)


def test_a_projection_has_two_bytes_a_number() -> None:
    static, dynamic = (
        small(num_streams=4, coefficients=coefficients) for coefficients in ("static", "dynamic")
    )

    # Each of four sites has 32 rows of four streams, and three gates.
    more = 4 * (32 * 4 * 256 * 2 + 3 * 4)
    assert dynamic.dense_bytes - static.dense_bytes == more
    assert dynamic.read_bytes_per_token - static.read_bytes_per_token == more


def test_signs_of_a_rotation_are_stored_and_cost_a_token_nothing() -> None:
    plain = small()
    # Of what a norm gives, of what attention does, and of a network's hidden features.
    signs = 256 + 4 * 64 + 512

    rotated = small(rotation_block=128)

    numbers, size = plain.dense_parameters + signs, plain.dense_bytes + 4 * signs
    assert rotated == dataclasses.replace(plain, dense_parameters=numbers, dense_bytes=size)


def test_a_token_uses_all_layers_the_head_and_one_row_of_the_embedding() -> None:
    untied = small(tie_embeddings=False)

    assert untied.active_parameters == 2 * (TERNARY + DENSE) + 256 + TABLE + 256


def test_a_token_uses_every_parameter_of_a_dense_tied_model_once() -> None:
    assert small().active_parameters == small().parameters


def test_the_head_of_a_tied_model_holds_the_row_of_the_embedding() -> None:
    assert small(tie_embeddings=False).active_parameters == small().active_parameters + 256


def test_a_token_uses_its_experts_the_router_and_the_shared_one() -> None:
    counted = small(num_experts=8, experts_per_token=2, expert_width=256, shared_expert_width=512)

    attention, expert, shared = 256 * 256 * 3, 256 * 256 * 3, 512 * 256 * 3
    layer = attention + 2 * expert + shared + 8 * 256 + DENSE
    assert counted.active_parameters == 2 * layer + 256 + TABLE
    assert counted.ternary_parameters == 2 * (attention + 8 * expert + shared)


def test_a_looped_layer_is_used_at_every_step_but_stored_once() -> None:
    counted = small(num_layers=4, loop_count=3, loop_prelude=1, loop_coda=1)

    # The prelude, two layers three times, the coda; nothing leaves early, so the gate is idle.
    assert counted.active_parameters == 8 * (TERNARY + DENSE) + 256 + TABLE
    assert counted.ternary_parameters == 4 * TERNARY
    assert counted.dense_parameters == 4 * DENSE + 256 + (256 + 256 + 1)


def test_the_exit_gate_is_used_after_every_step_but_the_last() -> None:
    full = small(loop_count=3)
    adaptive = small(loop_count=3, exit_threshold=0.9)

    assert adaptive.active_parameters - full.active_parameters == 2 * (256 + 256 + 1)


def test_extra_heads_are_stored_but_not_used() -> None:
    counted = small(num_ahead=1)

    assert counted.ternary_parameters == 3 * TERNARY
    assert counted.active_parameters == small().active_parameters


@pytest.mark.parametrize("context", [1, 7, 2048])
def test_attention_takes_operations_for_each_position_in_sight(context: int) -> None:
    counted = small(context)

    attention = 2 * 4 * (4 * 64) * context
    assert counted.flops_per_token == 2 * counted.active_parameters + attention


@pytest.mark.parametrize("key_heads", [1, 2])
def test_the_delta_rule_takes_the_same_operations_at_any_context(key_heads: int) -> None:
    options: dict[str, Any] = {
        "layer_pattern": ("delta",),
        "delta_heads": 2,
        "delta_key_heads": key_heads,
        "delta_value_dim": 128,
    }

    counted = small(1, **options)

    assert counted.flops_per_token == 2 * counted.active_parameters + 2 * 7 * 2 * 64 * 128
    assert small(2048, **options) == dataclasses.replace(counted, context=2048)


@pytest.mark.parametrize(
    ("mixer", "num_streams", "of_a_site"),
    [
        ("lite", 4, 6 * 2 * 4 * 256),
        ("sinkhorn", 2, 4 * 2 * 2 * 256),
        ("identity", 4, 2 * 2 * 4 * 256),
    ],
)
def test_streams_take_operations_at_every_site(
    mixer: str, num_streams: int, of_a_site: int
) -> None:
    counted = small(mixer=mixer, num_streams=num_streams)

    attention = 2 * 4 * (4 * 64) * 10
    streams = 2 * 2 * of_a_site
    assert counted.flops_per_token == 2 * counted.active_parameters + attention + streams


def test_keys_and_values_are_kept_for_every_layer_and_loop_step() -> None:
    # Two key heads of 64, keys and values, four bytes each.
    of_a_layer = 2 * 2 * 64 * 4

    assert small().kv_bytes_per_token == 2 * of_a_layer
    assert small(loop_count=3).kv_bytes_per_token == 6 * of_a_layer
    assert small().state_bytes == 0


def test_half_precision_halves_keys_and_values_only() -> None:
    config = ModelConfig(**SMALL, layer_pattern=("delta", "attention"))

    full, half = cost(config, context=10), cost(config, context=10, kv_cache="float16")

    assert half.kv_bytes_per_token * 2 == full.kv_bytes_per_token
    assert half.state_bytes == full.state_bytes


def test_int8_keys_and_values_have_a_scale_for_every_head() -> None:
    counted = cost(ModelConfig(**SMALL), context=10, kv_cache="int8")

    # Two layers of two key heads; keys and values of 64 bytes and a float32 scale.
    assert counted.kv_bytes_per_token == 2 * 2 * 2 * (64 + 4)


@pytest.mark.parametrize(("numbers", "size"), [(1, 3), (32, 18), (33, 21), (64, 36), (128, 72)])
def test_4_bit_keys_and_values_have_a_scale_for_every_32_numbers(numbers: int, size: int) -> None:
    assert vector_bytes(numbers, "int4") == size


def test_delta_layers_keep_a_matrix_a_head_and_the_inputs_of_their_convolutions() -> None:
    counted = small(layer_pattern=("delta",), delta_heads=2, delta_value_dim=128)

    # Queries and keys have 128 channels, values 256; a filter of four taps looks back at three inputs.
    of_a_layer = 2 * 64 * 128 + 3 * (128 + 128 + 256)
    assert counted.state_bytes == 2 * of_a_layer * 4
    assert counted.kv_bytes_per_token == 0


@every_case
def test_a_sequence_keeps_the_bytes_of_the_arrays_of_its_state(config: ModelConfig) -> None:
    kept = slots(config)
    state = ReferenceOps().new_state(kept, rows=1, capacity=1)
    pairs = list(zip(kept, state.arrays, strict=True))

    counted = cost(config, context=1)

    # Of attention, what a position keeps; of all others, what a row does.
    of_attention = [arrays for slot, arrays in pairs if slot.kind == "attention"]
    of_others = [arrays for slot, arrays in pairs if slot.kind != "attention"]
    assert counted.kv_bytes_per_token == sum(x[0, 0].nbytes for each in of_attention for x in each)
    assert counted.state_bytes == sum(x[0].nbytes for each in of_others for x in each)


@pytest.mark.parametrize("table_format", get_args(TableFormat))
def test_a_decoded_token_reads_all_bytes_of_a_tied_model(table_format: TableFormat) -> None:
    counted = small(10, table_format=table_format)

    assert counted.weight_bytes_per_token == counted.stored_bytes


def test_a_decoded_token_reads_its_weights_and_the_state_in_sight() -> None:
    counted = small(10)

    weights = 2 * TERNARY_BYTES + TABLE_BYTES + 4 * (2 * DENSE + 256)
    assert counted.read_bytes_per_token == weights + 10 * counted.kv_bytes_per_token


def test_a_loop_reads_its_weights_at_every_step() -> None:
    counted = small(10, num_layers=1, loop_count=3)

    weights = 3 * (TERNARY_BYTES + 4 * DENSE) + TABLE_BYTES + 4 * 256
    assert counted.read_bytes_per_token == weights + 10 * counted.kv_bytes_per_token


@pytest.mark.parametrize("context", [0, -1, 2049])
def test_a_context_that_the_model_does_not_have_is_refused(context: int) -> None:
    with pytest.raises(InputError, match=f"context={context}: .* between 1 and 2048"):
        small(context)
