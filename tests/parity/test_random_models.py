"""What random weights must be: complete, legal, reproducible, and of a model whose logits have a scale."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.backends.reference.ops import ReferenceOps
from nanochat.checkpoint import require_complete
from nanochat.config import ModelConfig
from nanochat.model import forward
from nanochat.weights import Stored, Weights, named_leaves
from tests.parity.cases import CASES
from tests.parity.random_models import random_packed_weights


@pytest.mark.parametrize("option", sorted(CASES))
def test_random_weights_are_complete_and_legal_for_every_option(option: str) -> None:
    config = CASES[option]

    weights = random_packed_weights(config, 0)

    require_complete(config, weights)


def test_random_weights_of_a_seed_are_always_the_same() -> None:
    first, second = (dict(named_leaves(random_packed_weights(small(), 3))) for _ in range(2))

    assert all(
        np.array_equal(a, b)
        for name, leaf in first.items()
        for a, b in zip(vars(leaf).values(), vars(second[name]).values(), strict=True)
    )


@pytest.mark.parametrize("num_layers", [1, 12])
@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("num_streams", [1, 4])
def test_logits_of_random_weights_neither_explode_nor_vanish(
    num_streams: int, tie_embeddings: bool, num_layers: int
) -> None:
    config = small(num_streams=num_streams, tie_embeddings=tie_embeddings, num_layers=num_layers)

    logits = reference_logits(config, random_packed_weights(config, 0))

    assert 0.3 < logits.std() < 3


def small(**options: Any) -> ModelConfig:
    shape: dict[str, Any] = {
        "vocab_size": 300,
        "width": 256,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_width": 512,
        "context_length": 1024,
        "num_streams": 1,
        "tie_embeddings": False,
    }
    return ModelConfig(**shape | options)


def some_ids(count: int = 16) -> list[int]:
    ids: list[int] = np.random.default_rng(0).integers(0, 300, count).tolist()
    return ids


def reference_logits(config: ModelConfig, weights: Weights[Stored]) -> NDArray[np.float32]:
    ops = ReferenceOps()
    ids = ops.tokens(np.array([some_ids()]))
    logits: NDArray[np.float32] = ops.numpy(forward(ids, ops.prepare(weights), config, ops))[0]
    return logits
