"""This file holds each operation of the ONNX graph against the reference, on the same input.

An operation alone has no rounding upstream that could flip, so the tolerances are those of float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from nanochat.backends.reference.ops import ReferenceOps
from nanochat.config import Mixer, ModelConfig
from nanochat.export.onnx.ops import OnnxOps
from nanochat.export.onnx.ort import OrtOps
from nanochat.export.onnx.standard import SESSION_CONFIG, StandardOps
from nanochat.proof.parity import compare
from nanochat.rotary import rotation
from nanochat.slots import slots
from tests.parity.random_models import random_weights

# B sequences, T tokens, C width, H heads, G key heads, K head features, E experts.
B, T, C, H, G, K, E = 2, 5, 256, 4, 2, 64, 4

# Of the operations, the weights, the state, which the reference does without, and the inputs.
Operation = Callable[[Any, Any, Any, Sequence[Any]], Any]


def config(**changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {
        "vocab_size": 37,
        "width": C,
        "num_layers": 1,
        "num_heads": H,
        "num_kv_heads": G,
        "head_dim": K,
        "ffn_width": 256,
        "weight_block": 128,
        "num_streams": 4,
    }
    return ModelConfig(**{**fields, **changes})


def run_reference(
    operation: Operation, model: ModelConfig, inputs: Sequence[NDArray[Any]]
) -> NDArray[np.float32]:
    ops = ReferenceOps()
    result: NDArray[np.float32] = operation(
        ops, ops.prepare(random_weights(model)), None, list(inputs)
    )
    return result


def run_graph(
    operation: Operation, model: ModelConfig, inputs: Sequence[NDArray[Any]], ops: OnnxOps
) -> NDArray[np.float32]:
    state = ops.new_state(slots(model), rows=B, capacity=T)
    feed: dict[str, NDArray[Any]] = {"attention_mask": np.ones((B, T), np.int64)}
    arguments: list[Any] = []
    for i, values in enumerate(inputs):
        if values.dtype == np.int64:
            arguments.append(ops.input_ids)
            feed["input_ids"] = values
        else:
            shape = ("batch", "tokens", *values.shape[2:])
            arguments.append(ops.graph.input(f"x{i}", shape, dtype=np.float32))
            feed[f"x{i}"] = values
    y = operation(ops, ops.prepare(random_weights(model)), state, arguments)
    ops.graph.output(y, "y")
    file = ops.graph.model("operation", version="0", metadata={}).SerializeToString()
    options = onnxruntime.SessionOptions()
    for key, value in SESSION_CONFIG.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    free = {"batch": B, "tokens": T, "past": 0}
    for entry in session.get_inputs():
        if entry.name not in feed:
            sizes = [free[dim] if isinstance(dim, str) else dim for dim in entry.shape]
            dtype = np.int64 if entry.name == "input_ids" else np.float32
            feed[entry.name] = np.zeros(sizes, dtype)
    result: NDArray[np.float32] = session.run(["y"], feed)[0]
    return result


def normal(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal((B, T, *shape), np.float32)


def assert_parity(
    operation: Operation, model: ModelConfig, *inputs: NDArray[Any], tolerance: float = 1e-6
) -> None:
    expected = run_reference(operation, model, inputs)

    for ops in (OrtOps(), StandardOps()):
        actual = run_graph(operation, model, inputs, ops)

        assert compare(expected, actual).rms_ratio <= tolerance, ops


@pytest.mark.parametrize("table_format", ["int8", "dense"])
def test_embed(table_format: str) -> None:
    ids = np.random.default_rng(0).integers(0, 37, (B, T))
    model = config(table_format=table_format)

    assert_parity(lambda ops, w, _, x: ops.embed(x[0], w.embedding), model, ids, tolerance=0)


def test_rms_norm() -> None:
    assert_parity(lambda ops, w, _, x: ops.rms_norm(x[0], w.norm, eps=1e-6), config(), normal(C))


@pytest.mark.parametrize("weight_block", [128, 256, "row"])
def test_a_ternary_product(weight_block: object) -> None:
    x = normal(C) * np.logspace(-3, 3, C, dtype=np.float32)
    # A block of zeros, which has no scale.
    x[0, 0, :128] = 0
    model = config(weight_block=weight_block)

    assert_parity(lambda ops, w, _, x: ops.project(x[0], w.layers[0].mixer.q)[0], model, x)


@pytest.mark.parametrize("table_format", ["int8", "dense"])
def test_the_product_with_a_head(table_format: str) -> None:
    model = config(table_format=table_format, tie_embeddings=False)

    assert_parity(lambda ops, w, _, x: ops.project(x[0], w.head)[0], model, normal(C))


@pytest.mark.parametrize("dims", [K, K // 2])
def test_rope_far_into_the_angles(dims: int) -> None:
    model = config(rope_theta=2.0, rope_dims=dims, rope_magnitude=1.2)

    assert_parity(
        lambda ops, _, state, x: ops.rope(x[0], rotation=rotation(model), state=state),
        model,
        normal(H, K),
    )


def test_a_rotation_of_inputs() -> None:
    model = config(rotation_block=32)

    assert_parity(
        lambda ops, w, _, x: ops.rotate(x[0], w.signs.stream, block=32, inverse=False),
        model,
        normal(C),
    )


def test_a_lookup_that_is_rotated_back() -> None:
    model = config(rotation_block=64)

    assert_parity(
        lambda ops, w, _, x: ops.rotate(x[0], w.signs.stream, block=64, inverse=True),
        model,
        normal(C),
    )


def test_attention() -> None:
    assert_parity(
        lambda ops, _, state, x: ops.attention(*x, state=state, slot=0),
        config(),
        normal(H, K),
        normal(G, K),
        normal(G, K),
    )


@pytest.mark.parametrize("taps", [1, 2, 4])
def test_short_conv(taps: int) -> None:
    model = config(layer_pattern=("delta",), delta_heads=2, delta_conv_width=taps)

    assert_parity(
        lambda ops, w, state, x: ops.short_conv(
            x[0], w.layers[0].mixer.q_conv, state=state, slot=0
        ),
        model,
        normal(128),
    )


def test_delta_rule() -> None:
    model = config(layer_pattern=("delta",), delta_heads=4, delta_key_dim=24, delta_value_dim=64)

    assert_parity(
        lambda ops, w, state, x: ops.delta_rule(
            *x, w.layers[0].mixer.log_rate, w.layers[0].mixer.time_bias, state=state, slot=3
        ),
        model,
        normal(4, 24),
        normal(4, 24),
        normal(4, 64),
        normal(4),
        4 * normal(4),
    )


def test_swiglu() -> None:
    x, y = 8 * normal(C), normal(C + 1)[..., :C]

    assert_parity(lambda ops, _w, _s, x: ops.swiglu(*x), config(), x, y)


def test_relu2() -> None:
    assert_parity(lambda ops, _w, _s, x: ops.relu2(x[0], None), config(), normal(C))


def test_gate() -> None:
    assert_parity(lambda ops, _w, _s, x: ops.gate(*x), config(), normal(C), 8 * normal(C))


@pytest.mark.parametrize("top_k", [1, 2, E])
def test_experts_of_which_some_have_no_token(top_k: int) -> None:
    model = config(num_experts=E, expert_width=256)
    logits = normal(E)
    # Nobody chooses the last one, unless all are chosen; equal ones are taken in order.
    logits[..., -1] = -9
    logits[0, :, 1] = logits[0, :, 0]

    def operation(ops: Any, w: Any, _: Any, x: Sequence[Any]) -> Any:
        networks = w.layers[0].network.networks
        return ops.experts(x[0], x[1], networks, top_k=top_k, activation="swiglu", eps=1e-6)

    assert_parity(operation, model, normal(C), logits)


@pytest.mark.parametrize("coefficients", ["static", "dynamic"])
@pytest.mark.parametrize("mixer", ["lite", "sinkhorn", "identity"])
@pytest.mark.parametrize("n", [2, 4])
def test_an_mhc_site(n: int, mixer: Mixer, coefficients: str) -> None:
    model = config(num_streams=n, mixer=mixer, coefficients=coefficients)

    def operation(ops: Any, w: Any, _: Any, x: Sequence[Any]) -> Any:
        site = w.layers[0].mixer_site.mhc
        u, post, mix = ops.mhc_read(x[0], site, mixer=mixer, iterations=20, eps=1e-6)
        return ops.mhc_write(x[0], u, post, mix)

    assert_parity(operation, model, normal(n, C))


def test_streams_open_and_close() -> None:
    assert_parity(lambda ops, _w, _s, x: ops.mhc_close(ops.mhc_open(x[0], 4)), config(), normal(C))


def test_last() -> None:
    expected = normal(C)

    actual = run_graph(
        lambda ops, _w, _s, x: ops.last(x[0], state=None), config(), [expected], OrtOps()
    )

    np.testing.assert_array_equal(actual, expected[:, -1:])


@pytest.mark.parametrize("operation", ["tokens", "numpy", "loop"])
def test_an_operation_on_numbers_has_no_meaning_in_a_graph(operation: str) -> None:
    with pytest.raises(AssertionError, match=f"{operation} has no meaning"):
        getattr(StandardOps(), operation)(
            None, **({"steps": 2, "threshold": 0.5} if operation == "loop" else {})
        )
