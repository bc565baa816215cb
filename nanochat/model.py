"""This file holds the model: one function of tokens and weights, written in the operations of `nanochat.ops`.

`forward` runs it for inference, with a state between calls; `losses` scores whole sequences without their logits;
`training_outputs` gives everything that a training loss needs. All walk the same layers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Generic, TypeVar

from nanochat.config import ModelConfig
from nanochat.ops import Ops, feed_forward
from nanochat.rotary import rotation
from nanochat.shapes import delta_key_heads, head_format
from nanochat.weights import (
    Attention,
    Delta,
    Exit,
    Experts,
    FeedForward,
    Join,
    Layer,
    Signs,
    Site,
    Weights,
)

__all__ = [
    "LayerRunner",
    "TrainingOutputs",
    "forward",
    "forward_ahead",
    "hidden_states",
    "losses",
    "read_ahead",
    "run_layer",
    "training_outputs",
]

Array = TypeVar("Array")
Leaf = TypeVar("Leaf")
State = TypeVar("State")

# `run_layer`, or what does the same.
LayerRunner = Callable[[Any, Any, Any, ModelConfig, Any, Any], tuple[Any, tuple[Any, ...]]]


@dataclass(frozen=True, kw_only=True)
class TrainingOutputs(Generic[Array, Leaf]):
    """What a training loss needs: hidden states, not logits, which `Ops.cross_entropy` forms in pieces.

    Parameters
    ----------
    steps : tuple of arrays (B, T, C)
        What is read out after each loop step; one for a model without a loop.
    survival : tuple of arrays (B, T, 1)
        Probability of still being in the loop after each step but the last.
    ahead : tuple of arrays (B, T, C)
        What is read out for the tokens after the next one.
    routing : tuple of arrays (B, T, experts)
        Router logits of every mixture of experts, in the order in which they ran.
    table : leaf
        Reads out `steps` and `ahead`.
    """

    steps: tuple[Array, ...]
    survival: tuple[Array, ...]
    ahead: tuple[Array, ...]
    routing: tuple[Array, ...]
    table: Leaf


def forward(
    tokens: Array,
    weights: Weights[Leaf],
    config: ModelConfig,
    ops: Ops[Array, Leaf, State],
    state: State | None = None,
    *,
    only_last: bool = False,
    segments: Array | None = None,
    observe: Callable[[Array], None] | None = None,
) -> Array:
    """Logits of the next token after every token, (B, T, vocabulary), or after the last one only.

    Parameters
    ----------
    tokens : array of the backend, shape (B, T)
        From ``ops.tokens``; with a state, the flat tokens of its step, (1, N).
    weights : tree of the backend's leaves
        From ``ops.prepare``.
    state : state of the backend, optional
        From ``ops.new_state(slots(config), ...)``. The rows of its step are continued; call its `end` after it.
    only_last : bool
        Give (B, 1, vocabulary), with a state (1, M, vocabulary), which spares the head's work on a long prompt.
    segments : array of the backend, shape (B, T), optional
        Without a state, the number of each token's document in a packed row; see `nanochat.ops.Ops`.
    observe : callable, optional
        Called with what each layer gives, (B, T, n, C), or (B, T, C) for one stream, in the order in which they run.
    """
    walk = _Walk(config, ops, state, weights.signs, observe, segments)
    x = walk.through(tokens, weights)
    hidden = walk.hidden(ops.last(x, state=state) if only_last else x, weights)
    return ops.project(hidden, _table(weights))[0]


def forward_ahead(
    tokens: Array,
    weights: Weights[Leaf],
    config: ModelConfig,
    ops: Ops[Array, Leaf, State],
    state: State,
    *,
    only_last: bool,
) -> tuple[Array, tuple[Array, ...]]:
    """As `forward`, and what each extra head has of the same tokens, (1, N, C) or (1, M, C), for `read_ahead`.

    The state has slots for the heads, from ``slots(config, ahead=True)``.
    """
    walk = _Walk(config, ops, state, weights.signs)
    x = walk.close(walk.through(tokens, weights))
    heads = [walk.layer(x, layer) for layer in weights.ahead]
    if only_last:
        x, *heads = (ops.last(y, state=state) for y in (x, *heads))
    return ops.project(walk.normed(x, weights), _table(weights))[0], tuple(heads)


def read_ahead(
    x: Array, weights: Weights[Leaf], config: ModelConfig, ops: Ops[Array, Leaf, State]
) -> Array:
    """Logits of what extra heads have, (..., C) to (..., vocabulary).

    Those of head i, from 0, after the token at position t, are of the token at t + 2 + i.

    References
    ----------
    .. [1] F. Gloeckle et al., "Better & Faster Large Language Models via Multi-token Prediction", 2024, section 2.
       arXiv:2404.19737
    """
    hidden = _Walk(config, ops, None, weights.signs).normed(x, weights)
    return ops.project(hidden, _table(weights))[0]


def hidden_states(
    tokens: Array,
    weights: Weights[Leaf],
    config: ModelConfig,
    ops: Ops[Array, Leaf, State],
    segments: Array | None = None,
) -> Array:
    """What the head would read out after every token of whole sequences, (B, T, C).

    `segments` is as in `forward`.
    """
    walk = _Walk(config, ops, None, weights.signs, segments=segments)
    return walk.hidden(walk.through(tokens, weights), weights)


def losses(
    tokens: Array,
    targets: Array,
    weights: Weights[Leaf],
    config: ModelConfig,
    ops: Ops[Array, Leaf, State],
) -> Array:
    """Nats that each target costs after the tokens up to its place, (B, T): `Ops.cross_entropy` instead of logits."""
    hidden = hidden_states(tokens, weights, config, ops)
    return ops.cross_entropy(hidden, _table(weights), targets)


def training_outputs(
    tokens: Array,
    weights: Weights[Leaf],
    config: ModelConfig,
    ops: Ops[Array, Leaf, Any],
    segments: Array | None = None,
    *,
    later: Sequence[Array] = (),
    layer: LayerRunner | None = None,
) -> TrainingOutputs[Array, Leaf]:
    """Run every loop step and every extra head on whole sequences; no token leaves the loop early.

    `segments` is as in `forward`. `later` are the tokens that come 1, 2, ... after each, for every sequential head; at
    the end of a row, any. `layer` stands for `run_layer`: the same compiled, say.
    """
    run, routing = layer or run_layer, list[Array]()
    walk = _Walk(config, ops, None, weights.signs, segments=segments)

    def through(x: Array, layers: tuple[Layer[Leaf], ...]) -> Array:
        for each in layers:
            x, found = run(x, each, weights.signs, config, ops, segments)
            routing.extend(found)
        return x

    prelude, looped, coda = _stages(weights, config)
    x = through(walk.open(tokens, weights), prelude)
    steps: list[Array] = []
    survival: list[Array] = []
    trunk = x
    for step in range(config.loop_count):
        x = through(x, looped)
        trunk = through(x, coda)
        steps.append(walk.hidden(trunk, weights))
        if weights.exit is not None and step < config.loop_count - 1:
            survival.append(walk.survive(x, weights.exit, survival[-1] if survival else None))
    before = walk.close(trunk)
    if weights.joins:
        ahead = list[Array]()
        for head, join, ids in zip(weights.ahead, weights.joins, later, strict=True):
            before = through(walk.joined(before, ids, join, weights), (head,))
            ahead.append(before)
    else:
        ahead = [through(before, (head,)) for head in weights.ahead]
    return TrainingOutputs(
        steps=tuple(steps),
        survival=tuple(survival),
        ahead=tuple(walk.normed(each, weights) for each in ahead),
        routing=tuple(routing),
        table=_table(weights),
    )


def run_layer(
    x: Array,
    layer: Layer[Leaf],
    signs: Signs[Leaf] | None,
    config: ModelConfig,
    ops: Ops[Array, Leaf, Any],
    segments: Array | None,
) -> tuple[Array, tuple[Array, ...]]:
    """One layer on whole sequences, (B, T, n, C) or (B, T, C), and the router logits of its experts.

    Whatever it reads is an argument, so one compiled version serves all layers of a kind.
    """
    walk = _Walk(config, ops, None, signs, segments=segments)
    return walk.layer(x, layer), tuple(walk.routing)


def _table(weights: Weights[Leaf]) -> Leaf:
    return weights.embedding if weights.head is None else weights.head


def _stages(
    weights: Weights[Leaf], config: ModelConfig
) -> tuple[tuple[Layer[Leaf], ...], tuple[Layer[Leaf], ...], tuple[Layer[Leaf], ...]]:
    prelude, coda = config.loop_prelude, config.num_layers - config.loop_coda
    return weights.layers[:prelude], weights.layers[prelude:coda], weights.layers[coda:]


# Of a model whose inputs are not rotated.
_UNTURNED: Signs[None] = Signs(stream=None, attention=None, delta=None, network=None)


class _Walk(Generic[Array, Leaf, State]):
    """One pass over the layers: what is fixed for it, and the place in the state that comes next."""

    def __init__(
        self,
        config: ModelConfig,
        ops: Ops[Array, Leaf, State],
        state: State | None,
        signs: Signs[Leaf] | None,
        observe: Callable[[Array], None] | None = None,
        segments: Array | None = None,
    ) -> None:
        self.segments = segments
        self.signs: Signs[Leaf] | Signs[None] = signs or _UNTURNED
        self.config = config
        self.ops = ops
        self.state = state
        self.observe = observe
        self.rotation = rotation(config)
        self.routing: list[Array] = []
        self.slot: Iterator[int] = count()
        # Keys and values of the looped layers at this loop step, when tokens may leave the loop early.
        self.keys: list[tuple[Array, Array]] = []
        self.frozen: tuple[Array, list[tuple[Array, Array]]] | None = None

    def open(self, tokens: Array, weights: Weights[Leaf]) -> Array:
        x = self.embedded(tokens, weights)
        return self.ops.mhc_open(x, self.config.num_streams) if self.config.num_streams > 1 else x

    def embedded(self, tokens: Array, weights: Weights[Leaf]) -> Array:
        ops, config = self.ops, self.config
        x = ops.embed(tokens, weights.embedding)
        signs = self.signs.stream
        if signs is not None and config.table_format == "ternary":
            x = ops.rotate(x, signs, block=config.rotation_block, inverse=True)
        return self.scaled(x, config.embedding_scale)

    def joined(self, x: Array, tokens: Array, join: Join[Leaf], weights: Weights[Leaf]) -> Array:
        """What a sequential head reads: what the one before it gives, with the embeddings of tokens."""
        ops, eps, signs = self.ops, self.config.norm_eps, self.signs.stream
        state = self.turned(ops.rms_norm(x, join.state_norm, eps=eps), signs)
        y = ops.rms_norm(self.embedded(tokens, weights), join.token_norm, eps=eps)
        token = self.turned(y, signs)
        return ops.add(ops.project(state, join.state)[0], ops.project(token, join.token)[0])

    def close(self, x: Array) -> Array:
        return self.ops.mhc_close(x) if self.config.num_streams > 1 else x

    def through(self, tokens: Array, weights: Weights[Leaf]) -> Array:
        """The streams after all layers, and as many loop steps as the tokens need."""
        prelude, looped, coda = _stages(weights, self.config)
        x = self.layers(self.open(tokens, weights), prelude)
        return self.layers(self.loop(x, looped, weights.exit), coda)

    def hidden(self, x: Array, weights: Weights[Leaf]) -> Array:
        return self.normed(self.close(x), weights)

    def normed(self, x: Array, weights: Weights[Leaf]) -> Array:
        """What the head multiplies of what the layers give, (B, T, C)."""
        y = self.ops.rms_norm(x, weights.norm, eps=self.config.norm_eps)
        y = self.scaled(y, 1 / self.config.logit_scale)
        return self.turned(y, self.signs.stream) if head_format(self.config) == "ternary" else y

    def scaled(self, x: Array, factor: float) -> Array:
        return x if factor == 1 else self.ops.scale(x, factor)

    def turned(self, x: Array, signs: Leaf | None) -> Array:
        """The input of ternary linears, rotated if the model is."""
        if signs is None:
            return x
        return self.ops.rotate(x, signs, block=self.config.rotation_block, inverse=False)

    def layers(self, x: Array, layers: tuple[Layer[Leaf], ...]) -> Array:
        for layer in layers:
            x = self.layer(x, layer)
            if self.observe is not None:
                self.observe(x)
        return x

    def layer(self, x: Array, layer: Layer[Leaf]) -> Array:
        mixer = self.attention if isinstance(layer.mixer, Attention) else self.delta
        x = self.site(x, layer.mixer_site, partial(mixer, layer.mixer))  # type: ignore[arg-type]
        network = self.experts if isinstance(layer.network, Experts) else self.feed_forward
        return self.site(x, layer.network_site, partial(network, layer.network))  # type: ignore[arg-type]

    def site(self, x: Array, site: Site[Leaf], network: Callable[[Array], Array]) -> Array:
        ops, config = self.ops, self.config
        if site.mhc is None:
            y = network(ops.rms_norm(x, site.norm, eps=config.norm_eps))
            return ops.add(x, self.scaled(y, config.residual_scale))
        u, post, mix = ops.mhc_read(
            x,
            site.mhc,
            mixer=config.mixer,
            iterations=config.sinkhorn_iterations,
            eps=config.norm_eps,
        )
        y = network(ops.rms_norm(u, site.norm, eps=config.norm_eps))
        return ops.mhc_write(x, self.scaled(y, config.residual_scale), post, mix)

    def attention(self, w: Attention[Leaf], x: Array) -> Array:
        ops, config = self.ops, self.config
        linears = (w.q, w.k, w.v) if w.gate is None else (w.q, w.k, w.v, w.gate)
        x = self.turned(x, self.signs.stream)
        q, k, v, *gates = ops.project(x, *linears)
        q = ops.split_heads(q, config.num_heads)
        k = ops.split_heads(k, config.num_kv_heads)
        v = ops.split_heads(v, config.num_kv_heads)
        if w.q_norm is not None and w.k_norm is not None:
            q = ops.rms_norm(q, w.q_norm, eps=config.norm_eps)
            k = ops.rms_norm(k, w.k_norm, eps=config.norm_eps)
        q = ops.rope(q, rotation=self.rotation, state=self.state, segments=self.segments)
        k = ops.rope(k, rotation=self.rotation, state=self.state, segments=self.segments)
        k, v = self._of_remaining(k, v)
        y = ops.attention(q, k, v, state=self.state, slot=next(self.slot), segments=self.segments)
        y = ops.merge_heads(y)
        if gates:
            y = ops.gate(y, gates[0])
        return self._output(y, w.sub_norm, self.signs.attention, w.o)

    def delta(self, w: Delta[Leaf], x: Array) -> Array:
        ops, config, state = self.ops, self.config, self.state
        key_heads = delta_key_heads(config)
        turned = self.turned(x, self.signs.stream)
        q, k, v, gate = ops.project(turned, w.q, w.k, w.v, w.gate)
        # Rotated inputs are those of ternary matrices.
        read = turned if config.delta_gates == "ternary" else x
        beta, decay = ops.project(read, w.beta, w.decay)
        conv = partial(ops.short_conv, state=state, segments=self.segments)
        q = conv(q, w.q_conv, slot=next(self.slot))
        k = conv(k, w.k_conv, slot=next(self.slot))
        v = conv(v, w.v_conv, slot=next(self.slot))
        y = ops.delta_rule(
            ops.split_heads(q, key_heads),
            ops.split_heads(k, key_heads),
            ops.split_heads(v, config.delta_heads),
            beta,
            decay,
            w.log_rate,
            w.time_bias,
            state=state,
            slot=next(self.slot),
            segments=self.segments,
        )
        y = ops.merge_heads(ops.rms_norm(y, w.norm, eps=config.norm_eps))
        return self._output(ops.swiglu(gate, y), w.sub_norm, self.signs.delta, w.o)

    def feed_forward(self, w: FeedForward[Leaf], x: Array) -> Array:
        config = self.config
        return feed_forward(
            self.turned(x, self.signs.stream),
            w,
            self.ops,
            activation=config.activation,
            eps=config.norm_eps,
            turn=lambda y: self.turned(y, self.signs.network),
        )

    def experts(self, w: Experts[Leaf], x: Array) -> Array:
        ops = self.ops
        (logits,) = ops.project(x, w.router)
        self.routing.append(logits)
        y = ops.experts(
            x,
            logits,
            w.networks,
            top_k=self.config.experts_per_token,
            activation=self.config.activation,
            eps=self.config.norm_eps,
        )
        return y if w.shared is None else ops.add(y, self.feed_forward(w.shared, x))

    def _output(self, y: Array, sub_norm: Leaf | None, signs: Leaf | None, linear: Leaf) -> Array:
        if sub_norm is not None:
            y = self.ops.rms_norm(y, sub_norm, eps=self.config.norm_eps)
        return self.ops.project(self.turned(y, signs), linear)[0]

    def survive(self, x: Array, gate: Exit[Leaf], previous: Array | None) -> Array:
        ops = self.ops
        normed = ops.rms_norm(self.close(x), gate.norm, eps=self.config.norm_eps)
        (logits,) = ops.project(normed, gate.weight)
        return ops.survival(previous, ops.add(logits, ops.parameter(gate.bias)))

    def loop(self, x: Array, layers: tuple[Layer[Leaf], ...], gate: Exit[Leaf] | None) -> Array:
        """Run the looped layers, stopping as soon as every token of this call has left the loop.

        A token that left at some step keeps its stream, and its keys and values of that step stand for it at the later
        ones. So a token's result depends on itself and on earlier tokens alone: prefill, decoding and batches agree.
        """
        steps, threshold = self.config.loop_count, self.config.exit_threshold
        if gate is None or threshold >= 1.0:
            for _ in range(steps):
                x = self.layers(x, layers)
            return x

        def step(x: Array, left: Array | None) -> Array:
            self.frozen = None if left is None else (left, self.keys)
            self.keys = []
            return self.layers(x, layers)

        def survive(x: Array, previous: Array | None) -> Array:
            return self.survive(x, gate, previous)

        def finish(number: int) -> None:
            self._remember(self.keys, number)

        x = self.ops.loop(x, step, survive, finish, steps=steps, threshold=threshold)
        self.frozen = None
        return x

    def _of_remaining(self, k: Array, v: Array) -> tuple[Array, Array]:
        if self.config.exit_threshold >= 1.0:
            return k, v
        if self.frozen is not None:
            left, earlier = self.frozen
            old_k, old_v = earlier[len(self.keys)]
            k, v = self.ops.select(left, old_k, k), self.ops.select(left, old_v, v)
        self.keys.append((k, v))
        return k, v

    def _remember(self, keys: list[tuple[Array, Array]], steps: int) -> None:
        for _ in range(steps):
            for k, v in keys:
                slot = next(self.slot)
                if self.state is not None:
                    self.ops.append_kv(k, v, state=self.state, slot=slot)
