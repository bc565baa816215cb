"""The tree of weights is walked in one order, and its names are the keys of every file."""

import dataclasses

import numpy as np
import pytest

from nanochat.config import ModelConfig
from nanochat.shapes import shapes
from nanochat.weights import Experts, Spec, Ternary, Weights, map_leaves, named_leaves

SMALL = ModelConfig(
    vocab_size=50,
    width=256,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    ffn_width=256,
    num_streams=2,
    num_experts=2,
    expert_width=256,
)


def names(weights: Weights[Spec]) -> list[str]:
    return [name for name, _ in named_leaves(weights)]


def test_names_are_dotted_paths_in_the_order_of_the_fields() -> None:
    assert names(shapes(SMALL)) == [
        "embedding",
        "layers.0.mixer_site.norm",
        "layers.0.mixer_site.mhc.read",
        "layers.0.mixer_site.mhc.write",
        "layers.0.mixer_site.mhc.mix",
        "layers.0.mixer.q",
        "layers.0.mixer.k",
        "layers.0.mixer.v",
        "layers.0.mixer.o",
        "layers.0.mixer.q_norm",
        "layers.0.mixer.k_norm",
        "layers.0.network_site.norm",
        "layers.0.network_site.mhc.read",
        "layers.0.network_site.mhc.write",
        "layers.0.network_site.mhc.mix",
        "layers.0.network.router",
        "layers.0.network.networks.0.gate",
        "layers.0.network.networks.0.up",
        "layers.0.network.networks.0.down",
        "layers.0.network.networks.1.gate",
        "layers.0.network.networks.1.up",
        "layers.0.network.networks.1.down",
        "norm",
    ]


def test_no_two_leaves_have_the_same_name() -> None:
    config = dataclasses.replace(
        SMALL, num_layers=12, layer_pattern=("delta", "attention"), num_ahead=2, loop_count=2
    )

    found = names(shapes(config))

    assert len(set(found)) == len(found)


def test_map_leaves_calls_the_function_in_the_order_of_the_names() -> None:
    called: list[str] = []

    map_leaves(lambda name, _: called.append(name), shapes(SMALL))

    assert called == names(shapes(SMALL))


def test_map_leaves_keeps_the_tree_and_replaces_the_leaves() -> None:
    tree = shapes(SMALL)

    mapped = map_leaves(lambda name, spec: (name, spec), tree)

    # A tuple at a leaf's place is a leaf of the new tree only.
    assert mapped.layers[0].mixer.q == ("layers.0.mixer.q", tree.layers[0].mixer.q)
    assert isinstance(mapped.layers[0].network, Experts)
    assert mapped.head is None


def test_a_tree_mapped_to_itself_is_equal() -> None:
    tree = shapes(SMALL)

    assert map_leaves(lambda _, spec: spec, tree) == tree


@pytest.mark.parametrize(("num_scales", "block"), [(1, 512), (2, 256), (4, 128)])
def test_a_ternary_matrix_knows_its_block(num_scales: int, block: int) -> None:
    leaf = Ternary(
        packed=np.zeros((3, 128), np.uint8),
        scales=np.ones((3, num_scales), np.float16),
        columns=512,
        activation_block=128,
    )

    assert leaf.weight_block == block
