"""The model means what its options say, whatever the tokens are cut into."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.backends.reference.ops import IntegerLinear, ReferenceOps
from nanochat.backends.reference.state import ReferenceState
from nanochat.config import Mixer, ModelConfig, hybrid_pattern
from nanochat.init import freeze, init
from nanochat.model import TrainingOutputs, forward, losses, run_layer, training_outputs
from nanochat.ops import Slot
from nanochat.rotary import Rotation, rotation
from nanochat.slots import slots
from nanochat.ternary import dequantize
from nanochat.weights import (
    Site,
    Stored,
    Weights,
    map_leaves,
    named_leaves,
)
from tests.parity.random_models import random_weights
from tests.parity.rows import continue_rows, new_rows, run_step

Float = NDArray[np.float32]
Leaf = IntegerLinear | Float

OPS = ReferenceOps()
TOKENS = np.random.default_rng(0).integers(0, 50, (3, 9))

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "width": 128,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 32,
    "ffn_width": 256,
    "delta_heads": 2,
    "delta_key_dim": 16,
    "context_length": 32,
    "weight_block": 128,
}
LOOP = SMALL | {"num_layers": 3, "loop_count": 3, "loop_prelude": 1, "loop_coda": 1}
OPTIONS: dict[str, dict[str, Any]] = {
    "attention": SMALL,
    "delta": SMALL | {"layer_pattern": ("delta",)},
    "hybrid": SMALL | {"num_layers": 3, "layer_pattern": hybrid_pattern(delta=2)},
    "one stream": SMALL | {"num_streams": 1},
    "two streams": SMALL | {"num_streams": 2},
    "dynamic": SMALL | {"coefficients": "dynamic"},
    "sinkhorn": SMALL | {"mixer": "sinkhorn"},
    "identity": SMALL | {"mixer": "identity"},
    "everything BitNet": SMALL | {"sub_norm": True, "activation": "relu2_glu", "qk_norm": False},
    "gated attention": SMALL | {"attention_gate": True, "activation": "relu2"},
    "experts": SMALL | {"num_experts": 3, "expert_width": 128, "shared_expert_width": 128},
    "stretched, untied": SMALL | {"rope_scale": 4.0, "tie_embeddings": False},
    "loop": LOOP,
    "hybrid loop": LOOP | {"layer_pattern": ("delta", "delta", "attention")},
    "adaptive loop": LOOP | {"exit_threshold": 0.6},
    "adaptive loop, one stream": LOOP | {"exit_threshold": 0.6, "num_streams": 1},
}
each_option = pytest.mark.parametrize("option", OPTIONS)


def smooth(weights: Weights[Leaf]) -> Weights[Leaf]:
    """Return the same model without the rounding of activations.

    A difference in the last bit may flip a rounding, which moves the logits by a thousandth; without
    it the bounds can be tight.
    """
    return map_leaves(
        lambda _, leaf: (
            dequantize(leaf.codes, leaf.scales) if isinstance(leaf, IntegerLinear) else leaf
        ),
        weights,
    )


def packed_weights(config: ModelConfig) -> Weights[Stored]:
    return freeze(random_weights(config, seed=1))


def model(option: str) -> tuple[ModelConfig, Weights[Leaf]]:
    config = ModelConfig(**OPTIONS[option])
    return config, smooth(OPS.prepare(packed_weights(config)))


def run(
    config: ModelConfig,
    weights: Weights[Leaf],
    tokens: NDArray[np.int64],
    state: ReferenceState | None = None,
    ops: ReferenceOps = OPS,
) -> Float:
    if state is not None:
        return continue_rows(ops, weights, config, state, tokens)
    return forward(ops.tokens(tokens), weights, config, ops)


def train(config: ModelConfig, weights: Weights[Leaf]) -> TrainingOutputs[Float, Leaf]:
    return training_outputs(OPS.tokens(TOKENS), weights, config, OPS)


def read_out(x: Float, outputs: TrainingOutputs[Float, Leaf]) -> Float:
    """The logits of a hidden state."""
    return OPS.project(x, outputs.table)[0]


def fresh_state(config: ModelConfig, batch: int = 3) -> ReferenceState:
    state: ReferenceState = new_rows(OPS, config, batch, capacity=16)
    return state


def error(actual: Float, expected: Float) -> float:
    assert actual.shape == expected.shape
    return float(np.sqrt(np.square(actual - expected).mean() / np.square(expected).mean()))


def with_dense(weights: Weights[Leaf], ending: str, values: Sequence[float]) -> Weights[Leaf]:
    """Return the weights with every leaf whose name ends so replaced."""
    return map_leaves(
        lambda name, leaf: np.array(values, np.float32) if name.endswith(ending) else leaf, weights
    )


class Recorder(ReferenceOps):
    """Notes what the model asks for."""

    def __init__(self) -> None:
        self.used: list[int] = []
        self.num_projects = 0
        self.streams: list[Float] = []
        self.masks: list[Float] = []
        self.rotations: set[Rotation] = set()

    def project(self, x: Float, *linears: Leaf) -> tuple[Float, ...]:
        self.num_projects += 1
        return super().project(x, *linears)

    def rope(self, x: Float, *, rotation: Rotation, **place: Any) -> Float:
        self.rotations.add(rotation)
        return super().rope(x, rotation=rotation, **place)

    def attention(self, q: Float, k: Float, v: Float, *, slot: int, **place: Any) -> Float:
        self.used.append(slot)
        return super().attention(q, k, v, slot=slot, **place)

    def append_kv(self, k: Float, v: Float, *, state: ReferenceState, slot: int) -> None:
        # `attention` remembers by itself.
        if self.used[-1:] != [slot]:
            self.used.append(slot)
        super().append_kv(k, v, state=state, slot=slot)

    def short_conv(self, x: Float, kernel: Leaf, *, slot: int, **place: Any) -> Float:
        self.used.append(slot)
        return super().short_conv(x, kernel, slot=slot, **place)

    def delta_rule(
        self,
        q: Float,
        k: Float,
        v: Float,
        beta: Float,
        decay: Float,
        log_rate: Leaf,
        time_bias: Leaf,
        *,
        slot: int,
        **place: Any,
    ) -> Float:
        self.used.append(slot)
        return super().delta_rule(q, k, v, beta, decay, log_rate, time_bias, slot=slot, **place)

    def mhc_write(self, streams: Float, y: Float, post: Float, mix: Float | None) -> Float:
        self.streams.append(super().mhc_write(streams, y, post, mix))
        return self.streams[-1]

    def select(self, mask: Float, yes: Float, no: Float) -> Float:
        if not any(mask is known for known in self.masks):
            self.masks.append(mask)
        return super().select(mask, yes, no)


# However the tokens are cut.


@each_option
def test_a_later_token_does_not_change_earlier_logits(option: str) -> None:
    config, weights = model(option)
    changed = TOKENS.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 50

    logits, others = run(config, weights, TOKENS), run(config, weights, changed)

    assert error(others[:, :5], logits[:, :5]) < 1e-6
    assert error(others[:, 5:], logits[:, 5:]) > 1e-3


@each_option
@pytest.mark.parametrize(
    "cuts", [(1, 2, 3, 4, 5, 6, 7, 8), (4,), (1, 8)], ids=["ones", "halves", "ends"]
)
def test_chunks_of_tokens_give_the_logits_of_the_whole(option: str, cuts: tuple[int, ...]) -> None:
    config, weights = model(option)
    state = fresh_state(config)

    chunks = [run(config, weights, part, state) for part in np.split(TOKENS, cuts, axis=1)]

    assert error(np.concatenate(chunks, axis=1), run(config, weights, TOKENS)) < 1e-5
    assert [state.length(row) for row in state.rows] == [9, 9, 9]


@each_option
def test_a_batch_of_unequal_sequences_gives_the_logits_of_each(option: str) -> None:
    config, weights = model(option)
    state = fresh_state(config)
    for row, length in enumerate((7, 1, 4)):
        run_step(OPS, weights, config, state, [row], [TOKENS[row, :length]])

    logits = run(config, weights, np.stack([TOKENS[0, 7:9], TOKENS[1, 1:3], TOKENS[2, 4:6]]), state)

    whole = run(config, weights, TOKENS)
    expected = np.stack([whole[0, 7:9], whole[1, 1:3], whole[2, 4:6]])
    assert error(logits, expected) < 1e-5


@pytest.mark.parametrize("option", ["attention", "delta", "experts", "adaptive loop"])
def test_chunks_agree_with_rounded_activations_up_to_flipped_roundings(option: str) -> None:
    config = ModelConfig(**OPTIONS[option])
    weights, state = OPS.prepare(packed_weights(config)), fresh_state(config)

    chunks = [run(config, weights, part, state) for part in np.split(TOKENS, 9, axis=1)]

    # Measured on 160 models: at most 1e-3, and 1e-7 where no rounding flips.
    assert error(np.concatenate(chunks, axis=1), run(config, weights, TOKENS)) < 1e-2


@each_option
def test_only_the_last_logits_are_the_last_of_all(option: str) -> None:
    config, weights = model(option)

    last = forward(OPS.tokens(TOKENS), weights, config, OPS, only_last=True)

    assert last.shape == (3, 1, 50)
    assert error(last, run(config, weights, TOKENS)[:, -1:]) < 1e-6


@each_option
def test_slots_are_used_once_each_in_their_order(option: str) -> None:
    config, weights = model(option)
    ops = Recorder()

    run(config, weights, TOKENS, fresh_state(config), ops)

    assert ops.used == list(range(len(slots(config))))


def test_slots_describe_what_the_layers_remember() -> None:
    config = ModelConfig(**OPTIONS["hybrid loop"] | {"delta_value_dim": 64})

    described = slots(config)

    keys, values = (Slot(kind="conv", taps=4, features=features) for features in (32, 128))
    delta = (keys, keys, values, Slot(kind="delta", heads=2, key_dim=16, value_dim=64))
    attention = Slot(kind="attention", heads=2, key_dim=32)
    assert described == (*delta * 4, attention)


# Training and inference.


@each_option
def test_training_ends_with_the_logits_of_inference(option: str) -> None:
    config, weights = model(option)
    full = dataclasses.replace(config, exit_threshold=1.0)

    outputs = train(config, weights)

    assert len(outputs.steps) == config.loop_count
    assert error(read_out(outputs.steps[-1], outputs), run(full, weights, TOKENS)) < 1e-6


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_loop_step_gives_the_logits_of_a_model_of_so_many_steps(steps: int) -> None:
    config, weights = model("loop")
    shorter = dataclasses.replace(config, loop_count=steps)

    outputs = train(config, weights)

    assert error(read_out(outputs.steps[steps - 1], outputs), run(shorter, weights, TOKENS)) < 1e-6


def test_a_loop_is_its_layers_in_a_row() -> None:
    config, weights = model("loop")
    prelude, looped, coda = weights.layers
    unrolled = dataclasses.replace(weights, layers=(prelude, looped, looped, looped, coda))
    flat = ModelConfig(**SMALL | {"num_layers": 5})

    logits = run(config, weights, TOKENS)

    assert np.array_equal(logits, run(flat, unrolled, TOKENS))


@each_option
def test_losses_are_those_of_the_logits(option: str) -> None:
    config, weights = model(option)
    targets = np.random.default_rng(1).integers(-1, 50, TOKENS.shape)

    found = losses(OPS.tokens(TOKENS), OPS.tokens(targets), weights, config, OPS)

    logits = run(config, weights, TOKENS)
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    chosen = np.take_along_axis(shares, np.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    assert error(found, np.where(targets < 0, 0, -np.log(chosen))) < 1e-6


def test_survival_shrinks_from_step_to_step() -> None:
    config, weights = model("loop")

    first, second = train(config, weights).survival

    assert first.shape == second.shape == (3, 9, 1)
    assert first.max() < 1
    assert (second < first).all()
    assert second.min() > 0


def test_extra_heads_predict_every_token_and_touch_nothing_else() -> None:
    config = ModelConfig(**SMALL, num_ahead=2)
    weights = smooth(OPS.prepare(packed_weights(config)))
    without = dataclasses.replace(weights, ahead=())

    outputs = train(config, weights)

    assert [x.shape for x in outputs.ahead] == [(3, 9, config.width)] * 2
    assert error(outputs.ahead[0], outputs.ahead[1]) > 1e-2
    assert np.array_equal(outputs.steps[0], train(config, without).steps[0])


def test_extra_heads_are_causal() -> None:
    config = ModelConfig(**SMALL, num_ahead=1)
    weights = smooth(OPS.prepare(packed_weights(config)))
    changed = TOKENS.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 50

    (ahead,) = train(config, weights).ahead
    (other,) = training_outputs(OPS.tokens(changed), weights, config, OPS).ahead

    assert error(other[:, :5], ahead[:, :5]) < 1e-6


def sequential(tokens: NDArray[np.int64], **changes: object) -> tuple[Any, ...]:
    """What two sequential heads give."""
    config = ModelConfig(**{**SMALL, "num_ahead": 2, "ahead_kind": "sequential", **changes})  # type: ignore[arg-type]
    weights = smooth(OPS.prepare(packed_weights(config)))
    later = [OPS.tokens(np.roll(tokens, -n, axis=1)) for n in (1, 2)]
    return training_outputs(OPS.tokens(tokens), weights, config, OPS, later=later).ahead


def test_a_sequential_head_sees_the_tokens_up_to_those_that_it_predicts() -> None:
    changed = TOKENS.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 50

    heads, others = sequential(TOKENS), sequential(changed)

    for number, (ours, theirs) in enumerate(zip(heads, others, strict=True), 1):
        assert error(theirs[:, : 5 - number], ours[:, : 5 - number]) < 1e-6
        assert error(theirs[:, 5 - number], ours[:, 5 - number]) > 1e-3


def test_a_sequential_head_is_its_formula() -> None:
    config = ModelConfig(**{**SMALL, "num_ahead": 2, "ahead_kind": "sequential", "num_streams": 1})
    weights = smooth(OPS.prepare(packed_weights(config)))
    later = [OPS.tokens(np.roll(TOKENS, -n, axis=1)) for n in (1, 2)]

    def root(x: NDArray[np.float32], gain: Any) -> NDArray[np.float32]:
        deviation = np.sqrt((x * x).mean(axis=-1, keepdims=True) + config.norm_eps)
        return np.asarray(x / deviation * gain, np.float32)

    found = training_outputs(OPS.tokens(TOKENS), weights, config, OPS, later=later).ahead

    streams: list[NDArray[np.float32]] = []
    forward(OPS.tokens(TOKENS), weights, config, OPS, observe=streams.append)
    x = streams[-1]
    for head, join, ids, given in zip(weights.ahead, weights.joins, later, found, strict=True):
        (state,) = OPS.project(root(x, join.state_norm), join.state)
        (token,) = OPS.project(root(OPS.embed(ids, weights.embedding), join.token_norm), join.token)
        x, _ = run_layer(state + token, head, None, config, OPS, None)
        assert error(root(x, weights.norm), given) < 1e-5


def test_extra_heads_read_what_the_coda_writes() -> None:
    config = ModelConfig(**LOOP, num_ahead=1)
    weights = smooth(OPS.prepare(packed_weights(config)))
    first, looped, _ = weights.layers
    other_coda = dataclasses.replace(weights, layers=(first, looped, first))

    (ahead,) = train(config, weights).ahead

    assert error(train(config, other_coda).ahead[0], ahead) > 1e-2


def test_routing_holds_the_logits_of_every_mixture_that_ran() -> None:
    config = ModelConfig(**LOOP, num_experts=3, expert_width=128)
    weights = smooth(OPS.prepare(packed_weights(config)))

    routing = train(config, weights).routing

    # The prelude once; the loop and, for its logits, the coda at each of three steps.
    assert [logits.shape for logits in routing] == [(3, 9, 3)] * 7


def test_latent_weights_compute_what_their_rounded_form_computes() -> None:
    config = ModelConfig(**SMALL)
    latent = init(config, np.random.default_rng(3))

    logits = run(config, OPS.prepare(latent), TOKENS)

    assert np.array_equal(logits, run(config, OPS.prepare(freeze(latent)), TOKENS))


# Options, by hand.


def sigmoid(x: Float) -> Float:
    return OPS.gate(np.ones_like(x), x)


def plain_residual(config: ModelConfig, weights: Weights[Leaf]) -> Float:
    """Return the logits of an ordinary transformer with gated attention and sub-norms."""
    found = dict(named_leaves(weights))

    def norm(x: Float, name: str) -> Float:
        return OPS.rms_norm(x, found[name], eps=config.norm_eps)

    def linear(x: Float, name: str) -> Float:
        return OPS.project(x, found[name])[0]

    def heads(x: Float, name: str, count: int) -> Float:
        y = norm(linear(x, name).reshape(3, 9, count, 32), f"{name}_norm")
        return OPS.rope(y, rotation=rotation(config), state=None)

    x = OPS.embed(OPS.tokens(TOKENS), weights.embedding)
    for i in range(config.num_layers):
        mixer, network = f"layers.{i}.mixer", f"layers.{i}.network"
        h = norm(x, f"{mixer}_site.norm")
        q, k = heads(h, f"{mixer}.q", 4), heads(h, f"{mixer}.k", 2)
        v = linear(h, f"{mixer}.v").reshape(3, 9, 2, 32)
        y = OPS.attention(q, k, v, state=None, slot=0).reshape(3, 9, 128)
        y = norm(y * sigmoid(linear(h, f"{mixer}.gate")), f"{mixer}.sub_norm")
        x = OPS.add(x, linear(y, f"{mixer}.o"))
        h = norm(x, f"{network}_site.norm")
        gate, up = linear(h, f"{network}.gate"), linear(h, f"{network}.up")
        y = norm(gate * sigmoid(gate) * up, f"{network}.sub_norm")
        x = OPS.add(x, linear(y, f"{network}.down"))
    return linear(norm(x, "norm"), "embedding")


def test_one_stream_is_the_ordinary_residual() -> None:
    config = ModelConfig(**SMALL, num_streams=1, sub_norm=True, attention_gate=True)
    weights = smooth(OPS.prepare(packed_weights(config)))

    logits = run(config, weights, TOKENS)

    assert error(logits, plain_residual(config, weights)) < 1e-5


def test_the_ntk_scale_stretches_the_slowest_rotation_and_leaves_the_fastest() -> None:
    config, weights = model("stretched, untied")
    ops = Recorder()

    run(config, weights, TOKENS, ops=ops)

    (turned,) = ops.rotations
    original = 1e4 ** (-30 / 32)
    assert turned.frequencies[0] == 1
    assert turned.frequencies[-1] == pytest.approx(original / 4)


def test_an_untied_head_is_read_in_place_of_the_embedding() -> None:
    config, weights = model("stretched, untied")
    assert weights.head is not None
    tied = dataclasses.replace(weights, head=None)

    logits = run(config, weights, TOKENS)

    assert error(logits, run(config, tied, TOKENS)) > 0.1


# mHC.


def streams_of(config: ModelConfig, weights: Weights[Leaf]) -> list[Float]:
    ops = Recorder()
    run(config, weights, TOKENS, ops=ops)
    return ops.streams


def spread(streams: Float) -> float:
    """Return the RMS of the streams' differences from their mean, over the RMS of the mean."""
    mean = streams.mean(axis=2, keepdims=True)
    return float(np.sqrt(np.square(streams - mean).mean() / np.square(mean).mean()))


def test_a_certain_identity_in_lite_equals_the_identity_mixer() -> None:
    config, weights = model("attention")
    certain = with_dense(weights, ".mix", [0.0] + [-200.0] * 23)
    control = dataclasses.replace(config, mixer="identity")

    logits = run(config, certain, TOKENS)

    without = map_mixes_to_none(weights)
    assert np.array_equal(logits, run(control, without, TOKENS))


def map_mixes_to_none(weights: Weights[Leaf]) -> Weights[Leaf]:
    def site(old: Site[Leaf]) -> Site[Leaf]:
        assert old.mhc is not None
        return dataclasses.replace(old, mhc=dataclasses.replace(old.mhc, mix=None))

    layers = [
        dataclasses.replace(
            layer, mixer_site=site(layer.mixer_site), network_site=site(layer.network_site)
        )
        for layer in weights.layers
    ]
    return dataclasses.replace(weights, layers=tuple(layers))


@pytest.mark.parametrize("mixer", ["lite", "sinkhorn", "identity"])
@pytest.mark.parametrize("num_streams", [2, 4])
def test_streams_differ_from_the_first_site_on(mixer: Mixer, num_streams: int) -> None:
    config = ModelConfig(**SMALL, mixer=mixer, num_streams=num_streams)
    weights = OPS.prepare(init(config, np.random.default_rng(0)))

    streams = streams_of(config, weights)

    assert len(streams) == 4
    assert min(spread(after) for after in streams) > 1e-2


def test_streams_that_are_treated_alike_stay_equal_for_ever() -> None:
    config, weights = model("attention")
    alike = with_dense(with_dense(weights, ".read", [-1.0] * 4), ".write", [0.5] * 4)

    streams = streams_of(config, alike)

    assert max(spread(after) for after in streams) < 1e-6


def test_mixing_logits_have_no_effect_on_equal_streams_and_hence_no_gradient() -> None:
    config, weights = model("attention")
    alike = with_dense(with_dense(weights, ".read", [-1.0] * 4), ".write", [0.5] * 4)
    other_mix = np.random.default_rng(9).standard_normal(24).tolist()

    mixed, alike_mixed = (with_dense(w, ".mix", other_mix) for w in (weights, alike))

    assert error(run(config, alike_mixed, TOKENS), run(config, alike, TOKENS)) < 1e-5
    assert error(run(config, mixed, TOKENS), run(config, weights, TOKENS)) > 1e-2


def test_dynamic_coefficients_start_as_the_static_ones() -> None:
    static = ModelConfig(**SMALL)
    dynamic = dataclasses.replace(static, coefficients="dynamic")

    logits = run(dynamic, OPS.prepare(init(dynamic, np.random.default_rng(0))), TOKENS)

    assert np.array_equal(
        logits, run(static, OPS.prepare(init(static, np.random.default_rng(0))), TOKENS)
    )


# Adaptive depth.


def with_stay_logit(weights: Weights[Leaf], logit: float) -> Weights[Leaf]:
    """Return the weights with an exit gate that answers the same for every token."""
    assert weights.exit is not None
    gate = dataclasses.replace(
        weights.exit,
        weight=np.zeros((1, 128), np.float32),
        bias=np.array([logit], np.float32),
    )
    return dataclasses.replace(weights, exit=gate)


def test_some_tokens_leave_early_and_others_do_not_in_the_tests_above() -> None:
    config, weights = model("adaptive loop")
    ops = Recorder()

    run(config, weights, TOKENS, ops=ops)

    first, second = ops.masks
    assert 0 < first.mean() < second.mean() < 1


def test_a_token_never_returns_to_the_loop() -> None:
    config, weights = model("adaptive loop")
    ops = Recorder()

    run(config, weights, TOKENS, ops=ops)

    first, second = ops.masks
    assert second[first].all()


def test_leaving_after_the_first_step_equals_a_loop_of_one_step() -> None:
    config, weights = model("adaptive loop")
    leaving = with_stay_logit(weights, -20.0)
    single = dataclasses.replace(config, loop_count=1, exit_threshold=1.0)

    logits = run(config, leaving, TOKENS)

    assert np.array_equal(logits, run(single, leaving, TOKENS))


@pytest.mark.parametrize(("threshold", "steps"), [(0.2, 1), (0.3, 2), (0.43, 2), (0.45, 3)])
def test_a_token_leaves_once_its_exit_probability_reaches_the_threshold(
    threshold: float, steps: int
) -> None:
    config, weights = model("adaptive loop")
    adaptive = dataclasses.replace(config, exit_threshold=threshold)
    shorter = dataclasses.replace(config, loop_count=steps, exit_threshold=1.0)
    # A token stays with probability 3/4, so 1/4 and then 7/16 have left.
    undecided = with_stay_logit(weights, float(np.log(3)))

    logits = run(adaptive, undecided, TOKENS)

    assert np.array_equal(logits, run(shorter, undecided, TOKENS))


def test_leaving_early_skips_the_remaining_steps() -> None:
    config, weights = model("adaptive loop")
    staying, leaving = Recorder(), Recorder()

    run(config, with_stay_logit(weights, 20.0), TOKENS, fresh_state(config), staying)
    run(config, with_stay_logit(weights, -20.0), TOKENS, fresh_state(config), leaving)

    # A layer projects four times (q k v, o, gate up, down), the exit gate and the head once each.
    assert staying.num_projects == (1 + 3 + 1) * 4 + 2 + 1
    assert leaving.num_projects == (1 + 1 + 1) * 4 + 1 + 1


def test_never_leaving_equals_a_threshold_of_one() -> None:
    config, weights = model("adaptive loop")
    staying = with_stay_logit(weights, 20.0)
    full = dataclasses.replace(config, exit_threshold=1.0)

    logits = run(config, staying, TOKENS)

    assert np.array_equal(logits, run(full, staying, TOKENS))


def test_a_threshold_of_one_runs_every_step_even_for_tokens_sure_to_leave() -> None:
    config, weights = model("adaptive loop")
    full = dataclasses.replace(config, exit_threshold=1.0)
    ops = Recorder()

    run(full, with_stay_logit(weights, -20.0), TOKENS, ops=ops)

    assert ops.num_projects == (1 + 3 + 1) * 4 + 1


@pytest.mark.parametrize("row", range(3))
def test_a_sequence_does_not_depend_on_when_the_others_leave(row: int) -> None:
    config, weights = model("adaptive loop")

    together = run(config, weights, TOKENS)
    alone = run(config, weights, TOKENS[row : row + 1])

    assert error(alone, together[row : row + 1]) < 1e-5
