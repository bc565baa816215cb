"""This file holds what a configuration costs, counted without building it: parameters, bytes and operations.

A token *uses* these leaves: the layers, those of a loop once for every step; of a mixture the router, the shared expert
and the chosen ones; the whole head, and one row of an embedding that is not the head as well; the exit gate where
tokens may leave early. It uses no extra heads. For n streams of width C, H query and G key heads of K features, and D
heads of K key and V value features:

* *stored bytes*: ternary ``R C / 4 + 2 R C / block``, 8-bit ``R C + 2 R C / block``, or ``R C + 4 R C / 16``, dense 4
  for each number, 2 in mHC projections and in tables and gates of 16 bits;
* *active parameters*: the numbers in all uses, counted at every use;
* *operations*: 2 for each active parameter; attention ``4 H K`` for each position in sight; the delta rule ``7 D K V``
  (1 to decay, 2 each to read, write and answer); an mHC site ``2 n C (n + 2)``, or ``4 n C`` if it does not mix. Norms,
  activations, rotations and coefficients are left out: a few for each feature;
* *state*: attention ``2 G K`` numbers for each token, with ``2 G`` scales of 4 bytes where they are int8, and one of 2
  bytes for every 32 where they are int4; for each sequence ``D K V`` numbers, and the inputs of the short convolutions,
  all but the last tap;
* *bytes read* for a token that is decoded alone: its uses, the keys and values in sight, and the rest of the state.
"""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

from nanochat.config import ModelConfig
from nanochat.errors import InputError
from nanochat.ops import Storage
from nanochat.shapes import run_order, shapes
from nanochat.slots import slots
from nanochat.ternary import KV_BLOCK
from nanochat.weights import DENSE_DTYPES, Experts, Layer, LeafKind, Spec, named_leaves

__all__ = ["Cost", "TensorClass", "cost", "leaf_bytes", "tensor_classes", "vector_bytes"]

_FLOAT32_BYTES = 4
_SCALE_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model costs; the formulas are those of `nanochat.cost`.

    `context` is the tokens in sight of a token, itself included. Parameters are trained numbers, by the form in which
    they are stored, and bytes of them include scales. `kv_bytes_per_token` is what each token leaves behind, in all
    layers and loop steps, `state_bytes` what a sequence keeps whatever its length, and `read_bytes_per_token` the
    weights and state that a token reads when it is decoded alone. `attention_flops` are those of the operations that
    grow with the context.
    """

    context: int
    ternary_parameters: int
    int8_parameters: int
    dense_parameters: int
    ternary_bytes: int
    int8_bytes: int
    dense_bytes: int
    active_parameters: int
    flops_per_token: int
    attention_flops: int
    kv_bytes_per_token: int
    state_bytes: int
    read_bytes_per_token: int

    @property
    def parameters(self) -> int:
        """All trained numbers; see `nanochat.shapes.num_parameters`."""
        return self.ternary_parameters + self.int8_parameters + self.dense_parameters

    @property
    def weight_bytes_per_token(self) -> int:
        """Of what a token reads, the weights: all but keys, values and state."""
        return self.read_bytes_per_token - self.context * self.kv_bytes_per_token - self.state_bytes

    def seconds_per_token(self, *, weights: float, read: float, attention: float) -> float:
        """What a token takes at least that is decoded alone: weights and state at the speed of memory.

        What a sequence keeps whatever its length is written, too.

        Parameters
        ----------
        weights, read : float
            Bytes a second at which weights are multiplied, and at which everything else is read.
        attention : float
            Operations of attention a second.
        """
        seen = self.context * self.kv_bytes_per_token / read
        looking = max(seen, self.attention_flops / attention)
        return self.weight_bytes_per_token / weights + 2 * self.state_bytes / read + looking

    @property
    def stored_bytes(self) -> int:
        """Size of the stored weights."""
        return self.ternary_bytes + self.int8_bytes + self.dense_bytes


@dataclass(frozen=True, kw_only=True)
class TensorClass:
    """The tensors that stand in the same place of every layer: how many, and what they hold together.

    `name` is their path without the layer's number, such as ``layers.mixer.q``, and `format` their kind in words.
    """

    name: str
    kind: LeafKind
    format: str
    tensors: int
    parameters: int
    bytes: int


def cost(config: ModelConfig, *, context: int, kv_cache: Storage = "float32") -> Cost:
    """What a model of this configuration costs, with so many tokens in sight, and keys and values kept in `kv_cache`.

    Examples
    --------
    >>> from nanochat.presets import preset
    >>> tiny = cost(preset("tiny"), context=1024)
    >>> tiny.parameters, tiny.stored_bytes, tiny.kv_bytes_per_token
    (5771648, 2291200, 6144)
    """
    if not 1 <= context <= config.context_length:
        raise InputError(
            f"context={context}: a token of this model sees between 1 and {config.context_length} tokens; choose one "
            "of these counts"
        )
    leaves = [spec for _, spec in named_leaves(shapes(config))]
    used = _used(config)
    active = sum(math.prod(spec.shape) for spec in used)
    kv_bytes, rest = _kv_bytes(config, kv_cache), _state_numbers(config)
    attention = _attention_flops(config, context)
    others = _delta_flops(config) + _stream_flops(config)
    return Cost(
        context=context,
        ternary_parameters=_numbers(leaves, "ternary"),
        int8_parameters=_numbers(leaves, "int8"),
        dense_parameters=_numbers(leaves, "dense"),
        ternary_bytes=_bytes(leaves, "ternary"),
        int8_bytes=_bytes(leaves, "int8"),
        dense_bytes=_bytes(leaves, "dense"),
        active_parameters=active,
        flops_per_token=2 * active + attention + others,
        attention_flops=attention,
        kv_bytes_per_token=kv_bytes,
        state_bytes=rest * _FLOAT32_BYTES,
        read_bytes_per_token=sum(leaf_bytes(spec) for spec in used)
        + kv_bytes * context
        + rest * _FLOAT32_BYTES,
    )


def tensor_classes(config: ModelConfig) -> list[TensorClass]:
    """What a model of this configuration stores, by the place of its tensors, in the order of the weights."""
    groups: dict[tuple[str, str], list[Spec]] = {}
    for path, spec in named_leaves(shapes(config)):
        name = ".".join(part for part in path.split(".") if not part.isdigit())
        groups.setdefault((name, _format(spec)), []).append(spec)
    return [
        TensorClass(
            name=name,
            kind=specs[0].kind,
            format=form,
            tensors=len(specs),
            parameters=sum(math.prod(spec.shape) for spec in specs),
            bytes=sum(leaf_bytes(spec) for spec in specs),
        )
        for (name, form), specs in groups.items()
    ]


def _format(spec: Spec) -> str:
    if spec.kind == "dense":
        return spec.dtype
    if spec.kind == "int8":
        whole = spec.weight_block == spec.shape[1]
        return (
            f"int8, a {spec.dtype} scale per {'row' if whole else f'{spec.weight_block} columns'}"
        )
    return f"ternary, 2 bits, a float16 scale per {spec.weight_block} columns"


def _numbers(leaves: Iterable[Spec], kind: LeafKind) -> int:
    return sum(math.prod(spec.shape) for spec in leaves if spec.kind == kind)


def _bytes(leaves: Iterable[Spec], kind: LeafKind) -> int:
    return sum(leaf_bytes(spec) for spec in leaves if spec.kind == kind)


def leaf_bytes(spec: Spec) -> int:
    """Bytes of a leaf in a model directory."""
    size = DENSE_DTYPES[spec.dtype].itemsize
    if spec.kind == "dense":
        return math.prod(spec.shape) * size
    rows, columns = spec.shape
    blocks = columns // spec.weight_block
    if spec.kind == "int8":
        return rows * (columns + blocks * size)
    return rows * (-(-columns // 4) + blocks * _SCALE_BYTES)


def _used(config: ModelConfig) -> list[Spec]:
    """What one token uses, a leaf as often as it is used."""
    tree = shapes(config)
    layers = [_of_one_token(layer, config) for layer in tree.layers]
    tree_of_token = dataclasses.replace(
        tree,
        # The head of a tied model is the embedding, so its row is counted there.
        embedding=dataclasses.replace(
            tree.embedding, shape=(0 if tree.head is None else 1, config.width)
        ),
        layers=tuple(layers[number] for number in run_order(config)),
        head=tree.embedding if tree.head is None else tree.head,
        exit=None,
        ahead=(),
        joins=(),
        # They are few, and stay in the cache.
        signs=None,
    )
    used = [spec for _, spec in named_leaves(tree_of_token)]
    if tree.exit is not None and config.exit_threshold < 1:
        used += [tree.exit.norm, tree.exit.weight, tree.exit.bias] * (config.loop_count - 1)
    return used


def _of_one_token(layer: Layer[Spec], config: ModelConfig) -> Layer[Spec]:
    if not isinstance(layer.network, Experts):
        return layer
    # All experts have the same shape, so any will do.
    chosen = layer.network.networks[: config.experts_per_token]
    return dataclasses.replace(layer, network=dataclasses.replace(layer.network, networks=chosen))


def vector_bytes(numbers: int, storage: Storage) -> int:
    """Bytes of one key or value of so many numbers, with its scales; see `nanochat.ops.Slot`."""
    match storage:
        case "float32":
            return 4 * numbers
        case "float16":
            return 2 * numbers
        case "int8":
            return numbers + _FLOAT32_BYTES
        case "int4":
            return -(-numbers // 2) + 2 * -(-numbers // KV_BLOCK)


def _kv_bytes(config: ModelConfig, storage: Storage) -> int:
    """Bytes of the keys and values of one token."""
    kept = (slot for slot in slots(config) if slot.kind == "attention")
    return sum(2 * slot.heads * vector_bytes(slot.key_dim, storage) for slot in kept)


def _state_numbers(config: ModelConfig) -> int:
    """Numbers remembered for each sequence whatever its length."""
    rest = 0
    for slot in slots(config):
        if slot.kind == "conv":
            rest += (slot.taps - 1) * slot.features
        elif slot.kind == "delta":
            rest += slot.heads * slot.key_dim * slot.value_dim
    return rest


def _attention_flops(config: ModelConfig, context: int) -> int:
    layers = sum(slot.kind == "attention" for slot in slots(config))
    return layers * 4 * config.num_heads * config.head_dim * context


def _delta_flops(config: ModelConfig) -> int:
    kept = (slot for slot in slots(config) if slot.kind == "delta")
    return sum(7 * slot.heads * slot.key_dim * slot.value_dim for slot in kept)


def _stream_flops(config: ModelConfig) -> int:
    n = config.num_streams
    if n == 1:
        return 0
    mixing = 0 if config.mixer == "identity" else n
    return 2 * len(run_order(config)) * 2 * n * config.width * (mixing + 2)
