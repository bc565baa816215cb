"""Each operation of the reference equals a formula in float64, written out as loops."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from nanochat.backends.reference.ops import (
    IntegerLinear,
    Leaf,
    ReferenceOps,
    permutation_matrices,
)
from nanochat.backends.reference.state import ReferenceState
from nanochat.errors import ContextLengthError
from nanochat.ops import Slot, Storage
from nanochat.rotary import Rotation
from nanochat.ternary import (
    KV_BLOCK,
    quantize,
    quantize_activations,
    quantize_kv,
    quantize_table,
)
from nanochat.weights import FeedForward, Mhc
from tests.parity.rows import flat, state_of_lengths, stepping

Float = NDArray[np.float32]
Double = NDArray[np.float64]

OPS = ReferenceOps()
UNHURRIED = settings(deadline=None, max_examples=60, database=None)
# Logits of every size that float32 sigmoids and softmaxes tell apart, and more.
LOGITS = st.floats(-200, 200, width=32)


def normal(seed: int, *shape: int) -> Float:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def error(actual: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Return the RMS of the difference over the RMS of what was expected."""
    assert actual.shape == expected.shape
    wide = expected.astype(np.float64)
    return float(np.sqrt(np.square(actual - wide).mean() / np.square(wide).mean()))


def sigmoid(x: float | np.floating) -> float:
    return 1 / (1 + math.exp(-float(x)))


def state_of(*slots: Slot, lengths: tuple[int, ...] = (0,), capacity: int = 16) -> ReferenceState:
    state: ReferenceState = state_of_lengths(OPS, slots, lengths, capacity)
    # What stands beyond a row's length must not matter.
    poisoned = [
        array
        for slot, kept in zip(slots, state.arrays, strict=True)
        for array in kept
        if slot.kind == "attention"
    ]
    for array in poisoned:
        array[:] = np.nan
    return state


# The border.


def test_arrays_are_copied_in_and_out() -> None:
    values = normal(0, 2, 3)

    inside = OPS.array(values)
    outside = OPS.numpy(inside)
    values[:] = 0
    inside[:] = 1

    assert np.array_equal(outside, normal(0, 2, 3))


def test_rows_keep_what_they_remember_whoever_is_admitted_later() -> None:
    slots = (Slot(kind="attention", heads=1, key_dim=2), Slot(kind="conv", taps=3, features=2))
    state = OPS.new_state(slots, rows=3, capacity=16)
    x, k = normal(0, 1, 3, 2), normal(1, 1, 3, 1, 2)
    with stepping(state, [state.admit()], [3]):
        OPS.append_kv(k, k, state=state, slot=0)
        OPS.short_conv(x, normal(2, 2, 3), state=state, slot=1)

    state.admit()
    with stepping(state, [state.admit()], [3]):
        OPS.append_kv(-k, -k, state=state, slot=0)
        OPS.short_conv(-x, normal(2, 2, 3), state=state, slot=1)

    assert [state.length(row) for row in state.rows] == [3, 0, 3]
    assert np.array_equal(state.kept(0, 0, 3)[1], k[0])
    assert np.array_equal(state.kept(0, 2, 3)[1], -k[0])
    inputs = np.stack([x[0, 1:], np.zeros((2, 2), np.float32), -x[0, 1:]])
    assert np.array_equal(state.arrays[1][0][:3], inputs)


def test_a_row_that_is_admitted_again_remembers_nothing() -> None:
    state = OPS.new_state([Slot(kind="conv", taps=2, features=1)], rows=1, capacity=16)
    with stepping(state, [state.admit()], [1]):
        OPS.short_conv(normal(0, 1, 1, 1), normal(1, 1, 2), state=state, slot=0)
    state.release(0)

    state.admit()

    assert state.length(0) == 0
    assert not state.arrays[0][0].any()


def test_a_fork_is_a_copy() -> None:
    state = OPS.new_state([Slot(kind="conv", taps=2, features=1)], rows=2, capacity=16)
    first = state.admit()

    second = state.fork(first)
    with stepping(state, [second], [4]):
        OPS.short_conv(normal(0, 1, 4, 1), normal(1, 1, 2), state=state, slot=0)

    assert [state.length(row) for row in (first, second)] == [0, 4]
    assert not state.arrays[0][0][first].any()
    assert state.arrays[0][0][second].all()


# Tables, norms, linears.


def test_embed_gives_the_rows_of_a_dense_table() -> None:
    table = normal(0, 5, 3)

    x = OPS.embed(OPS.tokens(np.array([[4, 0], [1, 1]])), table)

    assert np.array_equal(x, np.array([[table[4], table[0]], [table[1], table[1]]]))


def test_embed_gives_codes_times_scale_of_an_8_bit_table() -> None:
    codes, scales = quantize_table(normal(0, 5, 8), block=4)
    table = IntegerLinear(codes=codes, scales=scales, activation_block=4)

    x = OPS.embed(OPS.tokens(np.array([[4, 0, 2]])), table)

    expected = [
        [float(code) * float(scales[i, c // 4]) for c, code in enumerate(codes[i])]
        for i in (4, 0, 2)
    ]
    assert x.dtype == np.float32
    assert np.array_equal(x, np.array([expected], np.float32))


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_rms_norm_divides_by_the_root_of_mean_square_plus_eps(eps: float) -> None:
    x, gain = normal(0, 2, 3, 7), normal(1, 7)

    y = OPS.rms_norm(x, gain, eps=eps)

    expected = np.empty((2, 3, 7))
    for b, t in np.ndindex(2, 3):
        square = sum(float(value) ** 2 for value in x[b, t]) / 7
        for c in range(7):
            expected[b, t, c] = float(x[b, t, c]) / math.sqrt(square + eps) * float(gain[c])
    assert error(y, expected) < 1e-6


def contract(x: Float, linear: IntegerLinear) -> Double:
    """Return the product of the numerics contract, for a single token."""
    block = linear.activation_block
    q, s = quantize_activations(x[None], block=block)
    columns = linear.codes.shape[1]
    weight_block = columns // linear.scales.shape[1]
    y = np.zeros(linear.codes.shape[0])
    for r in range(linear.codes.shape[0]):
        for b in range(columns // block):
            total = sum(
                int(linear.codes[r, c]) * int(q[0, c]) for c in range(b * block, (b + 1) * block)
            )
            y[r] += total * float(s[0, b]) * float(linear.scales[r, b * block // weight_block])
    return y


@pytest.mark.parametrize(
    ("columns", "weight_block", "activation_block"),
    [(512, 256, 128), (512, 256, 256), (256, 128, 128), (384, 384, 128), (20, 20, 20)],
    ids=["contract", "equal blocks", "weights by 128", "row by 128", "row and token"],
)
def test_project_follows_the_numerics_contract(
    columns: int, weight_block: int, activation_block: int
) -> None:
    x = normal(0, 1, 3, columns)
    codes, scales = quantize(normal(1, 5, columns), block=weight_block)
    linear = IntegerLinear(codes=codes, scales=scales, activation_block=activation_block)

    (y,) = OPS.project(x, linear)

    assert y.dtype == np.float32
    assert error(y, np.array([[contract(token, linear) for token in x[0]]])) < 1e-6


def test_project_with_an_8_bit_table_follows_the_same_contract() -> None:
    x = normal(0, 1, 2, 256)
    codes, scales = quantize_table(normal(1, 5, 256), block=256)
    table = IntegerLinear(codes=codes, scales=scales, activation_block=128)

    (logits,) = OPS.project(x, table)

    assert error(logits, np.array([[contract(token, table) for token in x[0]]])) < 1e-6


def test_project_does_not_round_the_input_of_a_dense_linear() -> None:
    x, weight = normal(0, 2, 3, 5), normal(1, 4, 5)

    (y,) = OPS.project(x, weight)

    expected = np.empty((2, 3, 4))
    for b, t, r in np.ndindex(2, 3, 4):
        expected[b, t, r] = sum(float(x[b, t, c]) * float(weight[r, c]) for c in range(5))
    assert error(y, expected) < 1e-6


def test_project_gives_one_result_for_each_linear_in_order() -> None:
    x, first, second = normal(0, 1, 2, 4), normal(1, 3, 4), normal(2, 5, 4)

    together = OPS.project(x, first, second)

    assert np.array_equal(together[0], OPS.project(x, first)[0])
    assert np.array_equal(together[1], OPS.project(x, second)[0])


def test_a_token_that_is_not_finite_does_not_touch_the_others() -> None:
    x = normal(0, 1, 3, 128)
    codes, scales = quantize(normal(1, 5, 128), block=128)
    linear = IntegerLinear(codes=codes, scales=scales, activation_block=128)
    (expected,) = OPS.project(x, linear)
    x[0, 1, 7] = np.nan

    with np.errstate(invalid="ignore"):
        (y,) = OPS.project(x, linear)

    assert np.isnan(y[0, 1]).all()
    assert np.array_equal(y[0, ::2], expected[0, ::2])


def test_heads_are_consecutive_features() -> None:
    x = np.arange(12, dtype=np.float32).reshape(1, 2, 6)

    heads = OPS.split_heads(x, 3)

    assert heads[0, 0].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert np.array_equal(OPS.merge_heads(heads), x)


def test_last_keeps_only_the_last_token_of_every_sequence() -> None:
    x = normal(0, 2, 3, 4, 5)

    assert np.array_equal(OPS.last(x, state=None), x[:, 2:3])


def test_last_keeps_only_the_last_token_of_every_row() -> None:
    x = normal(0, 1, 6, 4)
    state = state_of(lengths=(3, 0, 5))

    with stepping(state, [2, 0, 1], [3, 1, 2]):
        y = OPS.last(x, state=state)

    assert np.array_equal(y, x[:, [2, 3, 5]])


# Attention.


def plain_rotation(dims: int, theta: float, magnitude: float = 1.0) -> Rotation:
    frequencies = [theta ** (-2 * i / dims) for i in range(dims // 2)]
    return Rotation(frequencies=tuple(frequencies), magnitude=magnitude)


def rotated(x: Float, positions: list[list[int]], rotation: Rotation) -> Double:
    y = x.astype(np.float64)
    half = rotation.dims // 2
    for b, t, h, i in np.ndindex(*x.shape[:3], half):
        angle = positions[b][t] * rotation.frequencies[i]
        pair = complex(x[b, t, h, i], x[b, t, h, i + half]) * complex(
            math.cos(angle), math.sin(angle)
        )
        pair *= rotation.magnitude
        y[b, t, h, i], y[b, t, h, i + half] = pair.real, pair.imag
    return y


@pytest.mark.parametrize("features", [2, 6, 64])
@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_rope_rotates_half_split_pairs(features: int, theta: float) -> None:
    x = normal(0, 2, 5, 3, features)

    y = OPS.rope(x, rotation=plain_rotation(features, theta), state=None)

    assert y.dtype == np.float32
    expected = rotated(x, [[0, 1, 2, 3, 4]] * 2, plain_rotation(features, theta))
    assert error(y, expected) < 1e-6


def test_rope_leaves_further_features_and_lengthens_those_that_it_rotates() -> None:
    x = normal(0, 2, 5, 3, 10)
    rotation = plain_rotation(6, 100.0, magnitude=1.25)

    y = OPS.rope(x, rotation=rotation, state=None)

    assert error(y, rotated(x, [[0, 1, 2, 3, 4]] * 2, rotation)) < 1e-6
    assert np.array_equal(y[..., 6:], x[..., 6:])


def test_rope_counts_positions_from_the_length_of_each_sequence() -> None:
    x = normal(0, 2, 2, 1, 8)
    rotation = plain_rotation(8, 100.0)

    state = state_of(lengths=(3, 11))
    with stepping(state, [0, 1], [2, 2]):
        y = OPS.rope(flat(x), rotation=rotation, state=state).reshape(x.shape)

    assert error(y, rotated(x, [[3, 4], [11, 12]], rotation)) < 1e-6


def attended(q: Float, k: Float, v: Float, start: int) -> Double:
    """Return causal attention of one sequence: q (T, H, K) begins at position `start` of k and v (S, G, K)."""
    length, heads, features = q.shape
    share = heads // k.shape[1]
    y = np.zeros(q.shape)
    for t, h in np.ndindex(length, heads):
        scores = []
        for s in range(start + t + 1):
            dot = sum(float(q[t, h, i]) * float(k[s, h // share, i]) for i in range(features))
            scores.append(math.exp(dot / math.sqrt(features)))
        for s, score in enumerate(scores):
            y[t, h] += score / sum(scores) * v[s, h // share].astype(np.float64)
    return y


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (4, 2), (6, 2), (4, 1)])
def test_attention_is_causal_and_query_head_h_reads_key_head_h_over_share(
    heads: int, kv_heads: int
) -> None:
    q = normal(0, 2, 5, heads, 6)
    k, v = normal(1, 2, 5, kv_heads, 6), normal(2, 2, 5, kv_heads, 6)

    y = OPS.attention(q, k, v, state=None, slot=0)

    expected = np.array([attended(q[b], k[b], v[b], 0) for b in range(2)])
    assert error(y, expected) < 1e-6


def test_attention_of_large_scores_does_not_overflow() -> None:
    q = normal(0, 1, 3, 1, 4) * np.float32(1e3)
    k, v = normal(1, 1, 3, 1, 4) * np.float32(1e3), normal(2, 1, 3, 1, 4)

    y = OPS.attention(q, k, v, state=None, slot=0)

    assert np.isfinite(y).all()


def test_attention_with_a_state_sees_what_each_sequence_remembers() -> None:
    lengths, slot = (4, 1), Slot(kind="attention", heads=2, key_dim=6)
    state = state_of(slot, lengths=lengths)
    old_k, old_v = normal(3, 2, 4, 2, 6), normal(4, 2, 4, 2, 6)
    for b, length in enumerate(lengths):
        for array, old in zip(state.arrays[0], (old_k, old_v), strict=True):
            array[state.table[b, 0], :length] = old[b, :length]
    q, k, v = normal(0, 2, 3, 4, 6), normal(1, 2, 3, 2, 6), normal(2, 2, 3, 2, 6)

    with stepping(state, [0, 1], [3, 3]):
        y = OPS.attention(flat(q), flat(k), flat(v), state=state, slot=0)

    expected = [
        attended(
            q[b],
            np.concatenate([old_k[b, : lengths[b]], k[b]]),
            np.concatenate([old_v[b, : lengths[b]], v[b]]),
            lengths[b],
        )
        for b in range(2)
    ]
    assert error(y.reshape(q.shape), np.array(expected)) < 1e-6


def test_remembered_keys_and_values_stand_where_attention_would_put_them() -> None:
    slot = Slot(kind="attention", heads=1, key_dim=2)
    attending, remembering = state_of(slot, lengths=(2, 5)), state_of(slot, lengths=(2, 5))
    k, v = normal(0, 1, 6, 1, 2), normal(1, 1, 6, 1, 2)

    with stepping(attending, [0, 1], [3, 3]):
        OPS.attention(k, k, v, state=attending, slot=0)
    with stepping(remembering, [0, 1], [3, 3]):
        OPS.append_kv(k, v, state=remembering, slot=0)

    assert np.array_equal(attending.arrays, remembering.arrays, equal_nan=True)


def kept(x: Float, storage: Storage) -> Float:
    """What a state holds after it was given the vectors (T, K)."""
    slot = Slot(kind="attention", heads=1, key_dim=x.shape[1], storage=storage)
    state = state_of(slot)
    with stepping(state, [0], [len(x)]):
        OPS.append_kv(x[None, :, None], x[None, :, None], state=state, slot=0)
    keys, values = (array[:, 0] for array in state.kept(0, 0, len(x)))
    assert np.array_equal(keys, values, equal_nan=True)
    return keys


def test_float32_keys_are_kept_as_they_are() -> None:
    x = normal(0, 3, 5)

    assert np.array_equal(kept(x, "float32"), x)


def test_float16_keys_are_rounded_half_to_even() -> None:
    x = np.array([[1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-11, 65519, -65520, 2**-25]], np.float32)

    assert kept(x, "float16").tolist() == [[1, 1 + 2**-9, -1, 65504, -np.inf, 0]]


def test_int8_keys_are_rounded_half_to_even_with_one_scale_a_vector() -> None:
    x = np.array([[127, 0.5, 1.5, -2.5], [0, 0, 0, 0], [0, -0.254, 0.1, 0.004]], np.float32)

    rounded = kept(x, "int8")

    assert rounded[:2].tolist() == [[127, 0, 2, -2], [0, 0, 0, 0]]
    np.testing.assert_allclose(
        rounded[2], np.array([0, -127, 50, 2], np.float32) * 0.254 / 127, rtol=1e-6
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_int8_key_that_is_not_finite_is_nan_as_a_whole(bad: float) -> None:
    rounded = kept(np.array([[1, 2, bad], [1, 2, 127]], np.float32), "int8")

    assert np.isnan(rounded[0]).all()
    assert rounded[1].tolist() == [1, 2, 127]


@pytest.mark.parametrize("width", [1, 32, 33, 70])
def test_int4_keys_are_what_their_codes_stand_for(width: int) -> None:
    x = normal(0, 5, width)

    codes, scales = quantize_kv(x)
    expected = [
        [code * scales[row, column // KV_BLOCK] for column, code in enumerate(of_row)]
        for row, of_row in enumerate(codes)
    ]
    assert np.array_equal(kept(x, "int4"), np.array(expected, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_int4_key_that_is_not_finite_is_nan_in_its_block(bad: float) -> None:
    x = np.full((1, 40), 7, np.float32)
    x[0, 2] = bad

    rounded = kept(x, "int4")[0]

    assert np.isnan(rounded[:32]).all()
    assert rounded[32:].tolist() == [7] * 8


def test_attention_without_a_state_rounds_nothing() -> None:
    q, k, v = (normal(seed, 1, 3, 1, 4) for seed in range(3))
    state = state_of(Slot(kind="attention", heads=1, key_dim=4, storage="int8"))

    alone = OPS.attention(q, k, v, state=None, slot=0)
    with stepping(state, [0], [3]):
        rounded = OPS.attention(q, k, v, state=state, slot=0)

    assert 1e-4 < error(rounded, alone) < 2e-2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_query_reads_no_value_after_its_own(bad: float) -> None:
    q, k, v = (normal(seed, 1, 5, 2, 4) for seed in range(3))
    clean = OPS.attention(q, k, v, state=None, slot=0)
    k[0, 3], v[0, 3] = bad, bad

    y = OPS.attention(q, k, v, state=None, slot=0)

    assert np.array_equal(y[:, :3], clean[:, :3])
    assert not np.isfinite(y[:, 3:]).any()


def test_a_state_refuses_more_tokens_than_its_capacity() -> None:
    state = state_of(Slot(kind="attention", heads=1, key_dim=2), lengths=(2, 14))

    with pytest.raises(
        ContextLengthError, match=r"14 tokens seen and 3 more .* state of 16: shorten"
    ):
        state.begin([0, 1], [3, 3])


# Gated DeltaNet.


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 3, 7])
def test_short_conv_is_a_causal_filter_of_each_feature(taps: int, length: int) -> None:
    x, kernel = normal(0, 2, length, 5), normal(1, 5, taps)

    y = OPS.short_conv(x, kernel, state=None, slot=0)

    expected = np.empty(x.shape)
    for b, t, f in np.ndindex(*x.shape):
        inputs = [float(x[b, s, f]) if s >= 0 else 0.0 for s in range(t - taps + 1, t + 1)]
        total = sum(float(kernel[f, j]) * inputs[j] for j in range(taps))
        expected[b, t, f] = total * sigmoid(total)
    assert error(y, expected) < 1e-6


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_short_conv_continues_where_its_state_ended(taps: int, cut: int) -> None:
    x, kernel = normal(0, 2, 7, 5), normal(1, 5, taps)
    state = state_of(Slot(kind="conv", taps=taps, features=5), lengths=(0, 0))

    parts = []
    for part in (x[:, :cut], x[:, cut:]):
        with stepping(state, [0, 1], [part.shape[1]] * 2):
            y = OPS.short_conv(flat(part), kernel, state=state, slot=0)
        parts.append(y.reshape(part.shape))

    whole = OPS.short_conv(x, kernel, state=None, slot=0)
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


def delta_inputs(length: int) -> tuple[Float, Float, Float, Float, Float, Float, Float]:
    q, k, v = normal(0, 2, length, 3, 4), normal(1, 2, length, 3, 4), normal(2, 2, length, 3, 5)
    beta, decay = normal(3, 2, length, 3), normal(4, 2, length, 3)
    return q, k, v, beta, decay, normal(5, 3), normal(6, 3)


def test_the_delta_rule_is_the_matrix_form_of_the_paper() -> None:
    q, k, v, beta, decay, log_rate, time_bias = delta_inputs(6)

    y = OPS.delta_rule(q, k, v, beta, decay, log_rate, time_bias, state=None, slot=0)

    expected = np.empty(v.shape)
    for b, h in np.ndindex(2, 3):
        state = np.zeros((5, 4))
        for t in range(6):
            query, key = q[b, t, h].astype(np.float64), k[b, t, h].astype(np.float64)
            query /= math.sqrt(np.square(query).sum() + 1e-6) * math.sqrt(4)
            key /= math.sqrt(np.square(key).sum() + 1e-6)
            softplus = math.log1p(math.exp(float(decay[b, t, h]) + float(time_bias[h])))
            a, s = math.exp(-math.exp(log_rate[h]) * softplus), sigmoid(beta[b, t, h])
            # S_t = S_{t-1} (alpha (I - beta k k^T)) + beta v k^T, equation 10.
            state = state @ (a * (np.eye(4) - s * np.outer(key, key)))
            state += s * np.outer(v[b, t, h], key)
            expected[b, t, h] = state @ query
    assert error(y, expected) < 1e-6


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_the_delta_rule_continues_where_its_state_ended(cut: int) -> None:
    q, k, v, beta, decay, log_rate, time_bias = delta_inputs(6)
    slot = Slot(kind="delta", heads=3, key_dim=4, value_dim=5)
    state = state_of(slot, lengths=(0, 0))

    parts = []
    for part in (slice(cut), slice(cut, None)):
        given = [flat(x[:, part]) for x in (q, k, v, beta, decay)]
        with stepping(state, [0, 1], [given[0].shape[1] // 2] * 2):
            y = OPS.delta_rule(
                given[0],
                given[1],
                given[2],
                given[3],
                given[4],
                log_rate,
                time_bias,
                state=state,
                slot=0,
            )
        parts.append(y.reshape(2, -1, 3, 5))

    whole = OPS.delta_rule(q, k, v, beta, decay, log_rate, time_bias, state=None, slot=0)
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


def test_a_key_of_zeros_reads_and_writes_nothing() -> None:
    q, k, v, beta, decay, log_rate, time_bias = delta_inputs(2)

    y = OPS.delta_rule(q, k * 0, v, beta, decay, log_rate, time_bias, state=None, slot=0)

    assert not y.any()


# Networks.


@pytest.mark.parametrize("logit", [-80.0, -16.0, -3.0, 0.0, 3.0, 16.0, 80.0])
def test_a_gate_is_accurate_at_every_size_of_its_logit(logit: float) -> None:
    x = np.array([1.5], np.float32)

    y = OPS.gate(x, np.array([logit], np.float32))

    assert float(y[0]) == pytest.approx(1.5 * sigmoid(logit), rel=1e-6, abs=0)


@pytest.mark.parametrize("logit", [-1e4, -200.0, 200.0, 1e4])
def test_a_gate_saturates_without_overflow(logit: float) -> None:
    y = OPS.gate(np.array([1.5], np.float32), np.array([logit], np.float32))

    assert y.tolist() == [1.5 if logit > 0 else 0.0]


def test_swiglu_is_silu_of_the_gate_times_up() -> None:
    gate, up = normal(0, 2, 3, 7) * 4, normal(1, 2, 3, 7)

    y = OPS.swiglu(gate, up)

    expected = [g * sigmoid(g) * u for g, u in zip(gate.flat, up.flat, strict=True)]
    assert error(y, np.array(expected).reshape(2, 3, 7)) < 1e-6


def test_relu2_squares_what_is_positive() -> None:
    x, up = normal(0, 2, 3, 7), normal(1, 2, 3, 7)

    alone, gated = OPS.relu2(x, None), OPS.relu2(x, up)

    expected = np.array([max(float(value), 0.0) ** 2 for value in x.flat]).reshape(2, 3, 7)
    assert error(alone, expected) < 1e-6
    assert error(gated, expected * up) < 1e-6


def network(factor: int, width: int) -> FeedForward[Leaf]:
    """Multiplies the squares of positive features by a factor."""
    one = np.eye(width, dtype=np.float32)
    return FeedForward(gate=None, up=one, down=one * np.float32(factor), sub_norm=None)


def mixed(x: Float, logits: Float, factors: list[int], top_k: int) -> Float:
    networks = [network(factor, x.shape[-1]) for factor in factors]
    return OPS.experts(x, logits, networks, top_k=top_k, activation="relu2", eps=1e-6)


@pytest.mark.parametrize("top_k", [1, 2, 3, 5])
def test_experts_are_weighted_by_the_softmax_of_the_chosen_logits(top_k: int) -> None:
    x, logits = np.abs(normal(0, 2, 4, 6)), normal(1, 2, 4, 5)

    y = mixed(x, logits, [10**e for e in range(5)], top_k)

    expected = np.zeros(x.shape)
    for b, t in np.ndindex(2, 4):
        scores = [float(score) for score in logits[b, t]]
        chosen = sorted(range(5), key=lambda e: -scores[e])[:top_k]
        total = sum(math.exp(scores[e]) for e in chosen)
        for e in chosen:
            expected[b, t] += math.exp(scores[e]) / total * 10**e * x[b, t] ** 2
    assert error(y, expected) < 1e-6


def test_equal_logits_choose_the_first_experts() -> None:
    x, logits = (
        np.abs(normal(0, 1, 3, 4)),
        np.array([[[1, 1, 1, 1], [0, 2, 1, 1], [1, 0, 1, 1]]], np.float32),
    )

    y = mixed(x, logits, [10**e for e in range(4)], 2)

    top = math.e / (1 + math.e)
    factors = np.array([0.5 * 1 + 0.5 * 10, top * 10 + (1 - top) * 100, 0.5 * 1 + 0.5 * 100])
    assert error(y, x * x * factors[None, :, None]) < 1e-6


def test_equal_logits_of_many_experts_choose_the_first() -> None:
    x, logits = np.abs(normal(0, 1, 8, 4)), np.random.default_rng(1).integers(0, 2, (1, 8, 100))

    y = mixed(x, logits.astype(np.float32), list(range(100)), 3)

    first_ones = [np.flatnonzero(scores)[:3].mean() for scores in logits[0]]
    assert error(y, x * x * np.array(first_ones)[None, :, None]) < 1e-6


def test_an_expert_sees_only_the_tokens_that_chose_it() -> None:
    x = np.arange(3, dtype=np.float32).reshape(1, 3, 1)
    logits = np.array([[[9, 0, 0], [0, 0, 9], [9, 0, 0]]], np.float32)
    networks = [network(1, 1), network(1, 1), network(1, 1)]
    seen: dict[int, list[float]] = {}

    class Watching(ReferenceOps):
        def project(self, x: Float, *linears: Leaf) -> tuple[Float, ...]:
            seen[id(linears[0])] = x[..., 0].ravel().tolist()
            return super().project(x, *linears)

    Watching().experts(x, logits, networks, top_k=1, activation="relu2", eps=1e-6)

    assert [seen.get(id(each.up), []) for each in networks] == [[0, 2], [], [1]]


# mHC.


def static_site(n: int, mix: Float | None) -> Mhc[IntegerLinear | Float]:
    return Mhc(read=normal(1, n), write=normal(2, n), mix=mix, projection=None, gates=None)


def lite(logits: Float, n: int) -> Float:
    _, _, mix = OPS.mhc_read(
        np.zeros((1, 1, n, 4), np.float32),
        static_site(n, logits),
        mixer="lite",
        iterations=0,
        eps=1e-6,
    )
    assert mix is not None
    return mix


def test_permutations_are_in_lexicographic_order() -> None:
    matrices = permutation_matrices(4)

    # Row i of the matrix has its 1 at the image of i.
    images = matrices.argmax(axis=2)
    assert matrices.sum(axis=2).tolist() == [[1] * 4] * 24
    assert images.tolist() == [list(image) for image in itertools.permutations(range(4))]
    assert images[[0, 9, 23]].tolist() == [[0, 1, 2, 3], [1, 2, 3, 0], [3, 2, 1, 0]]


@pytest.mark.parametrize("n", [2, 4])
def test_streams_open_as_copies_and_close_as_their_mean(n: int) -> None:
    x, streams = normal(0, 2, 3, 5), normal(1, 2, 3, n, 5)

    opened, closed = OPS.mhc_open(x, n), OPS.mhc_close(streams)

    assert opened.shape == (2, 3, n, 5)
    assert np.array_equal(opened, np.stack([x] * n, axis=2))
    expected = np.zeros((2, 3, 5))
    for i in range(n):
        expected += streams[:, :, i].astype(np.float64) / n
    assert error(closed, expected) < 1e-6


@pytest.mark.parametrize("n", [2, 4])
def test_a_static_site_reads_by_sigmoid_and_writes_by_twice_sigmoid(n: int) -> None:
    streams = normal(0, 2, 3, n, 5)
    site = static_site(n, None)

    u, post, mix = OPS.mhc_read(streams, site, mixer="identity", iterations=0, eps=1e-6)

    expected = np.zeros((2, 3, 5))
    for i in range(n):
        expected += sigmoid(normal(1, n)[i]) * streams[:, :, i].astype(np.float64)
    assert mix is None
    assert error(u, expected) < 1e-6
    assert error(post, np.array([2 * sigmoid(q) for q in normal(2, n)])) < 1e-6


@pytest.mark.parametrize("n", [2, 4])
def test_the_lite_matrix_is_a_blend_of_permutations(n: int) -> None:
    logits = normal(3, math.factorial(n))

    mix = lite(logits, n)

    expected = np.zeros((n, n))
    total = sum(math.exp(logit) for logit in logits)
    for k, image in enumerate(itertools.permutations(range(n))):
        for i in range(n):
            expected[i, image[i]] += math.exp(logits[k]) / total
    assert error(mix, expected) < 1e-6


@UNHURRIED
@given(arrays(np.float32, 24, elements=LOGITS))
def test_rows_and_columns_of_the_lite_matrix_of_four_streams_sum_to_one(logits: Float) -> None:
    mix = lite(logits, 4).astype(np.float64)

    assert mix.min() >= 0
    assert np.abs(mix.sum(axis=0) - 1).max() < 1e-6
    assert np.abs(mix.sum(axis=1) - 1).max() < 1e-6


@UNHURRIED
@given(arrays(np.float32, 2, elements=LOGITS))
def test_rows_and_columns_of_the_lite_matrix_of_two_streams_sum_to_one(logits: Float) -> None:
    mix = lite(logits, 2).astype(np.float64)

    assert mix.min() >= 0
    assert np.abs(mix.sum(axis=0) - 1).max() < 1e-6
    assert np.abs(mix.sum(axis=1) - 1).max() < 1e-6


@pytest.mark.parametrize("k", range(24))
def test_a_certain_permutation_moves_the_streams_as_it_says(k: int) -> None:
    logits = np.full(24, -200, np.float32)
    logits[k] = 0
    streams, nothing = normal(0, 1, 2, 4, 3), np.zeros((1, 2, 3), np.float32)

    moved = OPS.mhc_write(streams, nothing, np.zeros(4, np.float32), lite(logits, 4))

    image = list(itertools.permutations(range(4)))[k]
    assert np.array_equal(moved, streams[:, :, image])


def sinkhorn(logits: Float, n: int, iterations: int) -> Float:
    _, _, mix = OPS.mhc_read(
        np.zeros((1, 1, n, 4), np.float32),
        static_site(n, logits),
        mixer="sinkhorn",
        iterations=iterations,
        eps=1e-6,
    )
    assert mix is not None
    return mix


@pytest.mark.parametrize("iterations", [1, 3, 20])
@pytest.mark.parametrize("n", [2, 4])
def test_sinkhorn_divides_by_column_sums_then_row_sums(n: int, iterations: int) -> None:
    logits = normal(3, n * n)

    mix = sinkhorn(logits, n, iterations)

    expected = [[math.exp(logits[i * n + j]) for j in range(n)] for i in range(n)]
    for _ in range(iterations):
        columns = [sum(row[j] for row in expected) for j in range(n)]
        expected = [[row[j] / columns[j] for j in range(n)] for row in expected]
        expected = [[value / sum(row) for value in row] for row in expected]
    assert error(mix, np.array(expected)) < 1e-6


@UNHURRIED
@given(arrays(np.float32, 16, elements=st.floats(-2, 2, width=32)))
def test_sinkhorn_of_moderate_logits_is_doubly_stochastic(logits: Float) -> None:
    mix = sinkhorn(logits, 4, 20).astype(np.float64)

    # Columns carry the error of stopping after 20 iterations.
    assert np.abs(mix.sum(axis=1) - 1).max() < 1e-6
    assert np.abs(mix.sum(axis=0) - 1).max() < 1e-2


@UNHURRIED
@given(arrays(np.float32, 16, elements=st.floats(-40, 40, width=32)))
def test_sinkhorn_of_any_sane_logits_is_finite_with_exact_rows(logits: Float) -> None:
    mix = sinkhorn(logits, 4, 20).astype(np.float64)

    assert mix.min() >= 0
    assert np.abs(mix.sum(axis=1) - 1).max() < 1e-6


def test_a_dynamic_site_adds_gated_projections_of_the_normed_streams() -> None:
    n, width, eps = 2, 3, 1e-3
    streams, projection, gates = normal(0, 2, 3, n, width), normal(4, 6, n * width), normal(5, 3)
    site: Mhc[IntegerLinear | Float] = Mhc(
        read=normal(1, n), write=normal(2, n), mix=normal(3, 2), projection=projection, gates=gates
    )

    u, post, mix = OPS.mhc_read(streams, site, mixer="lite", iterations=0, eps=eps)

    bias = np.concatenate([normal(1, n), normal(2, n), normal(3, 2)]).astype(np.float64)
    expected_u, expected_post = np.empty((2, 3, width)), np.empty((2, 3, n))
    expected_mix = np.empty((2, 3, n, n))
    for b, t in np.ndindex(2, 3):
        flat = streams[b, t].reshape(-1).astype(np.float64)
        found = projection.astype(np.float64) @ (flat / math.sqrt(np.square(flat).mean() + eps))
        p, q, r = np.split(bias + np.repeat(gates, 2) * found, 3)
        expected_u[b, t] = sum(sigmoid(p[i]) * streams[b, t, i] for i in range(n))
        expected_post[b, t] = [2 * sigmoid(logit) for logit in q]
        stay = sigmoid(r[0] - r[1])
        expected_mix[b, t] = [[stay, 1 - stay], [1 - stay, stay]]
    assert mix is not None
    assert error(u, expected_u) < 1e-6
    assert error(post, expected_post) < 1e-6
    assert error(mix, expected_mix) < 1e-6


def test_a_write_mixes_first_and_adds_then() -> None:
    streams, y, post, mix = normal(0, 2, 3, 4, 5), normal(1, 2, 3, 5), normal(2, 4), normal(3, 4, 4)

    written = OPS.mhc_write(streams, y, post, mix)

    expected = np.empty(streams.shape)
    for b, t, i, c in np.ndindex(*streams.shape):
        expected[b, t, i, c] = float(post[i]) * float(y[b, t, c])
        expected[b, t, i, c] += sum(float(mix[i, j]) * float(streams[b, t, j, c]) for j in range(4))
    assert error(written, expected) < 1e-6


def test_a_write_with_coefficients_of_each_token_uses_them() -> None:
    streams, y = normal(0, 2, 3, 2, 5), normal(1, 2, 3, 5)
    post, mix = normal(2, 2, 3, 2), normal(3, 2, 3, 2, 2)

    written = OPS.mhc_write(streams, y, post, mix)

    single = OPS.mhc_write(streams[1:, 2:], y[1:, 2:], post[1, 2], mix[1, 2])
    assert error(written[1:, 2:], single) < 1e-6


def test_a_write_without_a_matrix_leaves_the_streams_where_they_are() -> None:
    streams, y, post = normal(0, 2, 3, 4, 5), normal(1, 2, 3, 5), normal(2, 4)

    written = OPS.mhc_write(streams, y, post, None)

    assert np.array_equal(written, OPS.mhc_write(streams, y, post, np.eye(4, dtype=np.float32)))


# Adaptive depth.


def test_survival_multiplies_the_probabilities_of_staying() -> None:
    first, second = normal(0, 2, 3, 1), normal(1, 2, 3, 1)

    survival = OPS.survival(OPS.survival(None, first), second)

    expected = [sigmoid(a) * sigmoid(b) for a, b in zip(first.flat, second.flat, strict=True)]
    assert error(survival, np.array(expected).reshape(2, 3, 1)) < 1e-6


def test_select_takes_whole_tokens_by_the_mask() -> None:
    yes, no = normal(0, 1, 3, 2, 4), normal(1, 1, 3, 2, 4)
    mask = np.array([[[True], [True], [False]]])

    chosen = OPS.select(mask, yes, no)

    assert np.array_equal(chosen[0], np.stack([yes[0, 0], yes[0, 1], no[0, 2]]))
