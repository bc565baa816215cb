"""A text has one score, by losses that a backend forms and by the logits of a graph."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.backends.reference.ops import ReferenceOps
from nanochat.config import ModelConfig
from nanochat.errors import InputError
from nanochat.generation.engine import Engine, Runner
from nanochat.generation.scoring import score
from nanochat.init import freeze
from tests.parity.cases import CASES
from tests.parity.random_models import random_weights


class Graph(Engine):  # type: ignore[type-arg]
    """A runner that has logits and nothing else, as a graph."""

    losses = Runner.losses


def engine(config: ModelConfig) -> Engine:  # type: ignore[type-arg]
    ops = ReferenceOps()
    return Engine(config, ops.prepare(freeze(random_weights(config))), ops)


@pytest.mark.parametrize("option", ["grouped_query_attention", "untied", "adaptive_exit"])
@pytest.mark.parametrize("length", [2, 65, 100, 161])
def test_losses_and_logits_give_one_score(option: str, length: int) -> None:
    model = engine(CASES[option])
    ids = np.random.default_rng(0).integers(0, 67, length).tolist()

    found = score(model, ids, num_bytes=length)

    graph = Graph(model.config, model.weights, model.ops)
    expected = score(graph, ids, num_bytes=length)
    assert found.tokens == expected.tokens == length - 1
    assert found.nats == pytest.approx(expected.nats, rel=1e-6)


def test_a_backend_is_asked_for_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine(CASES["untied"])

    def refuse(ids: Sequence[int]) -> NDArray[np.float32]:
        raise AssertionError(ids)

    monkeypatch.setattr(model, "logits", refuse)

    assert score(model, [1, 2, 3], num_bytes=3).nats > 0


def test_one_token_alone_has_no_losses() -> None:
    with pytest.raises(InputError, match="no token"):
        engine(CASES["untied"]).losses([1])
