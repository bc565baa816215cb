"""A backend is added in one folder: it is found, chosen, described, planned for and run, and nothing else names it."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import nanochat
from nanochat import backends
from nanochat.backends.describe import describe, faster
from nanochat.cli.doctor import doctor
from nanochat.config import ModelConfig
from nanochat.cost import cost, leaf_bytes
from nanochat.errors import BackendError, MemoryShortageError
from nanochat.generation.engine import Engine
from nanochat.init import freeze, init
from nanochat.memory import needed_bytes, require_room, runtime_bytes
from nanochat.model import forward
from nanochat.presets import preset
from nanochat.shapes import shapes
from nanochat.slots import slots
from tests.backends.null.ops import NullOps
from tests.parity.cases import CASES

every_case = pytest.mark.parametrize("config", CASES.values(), ids=CASES)


@pytest.fixture
def _added(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder beside this file, as if it lay in `backends`."""
    path = [*backends.__path__, str(Path(__file__).parent)]
    monkeypatch.setattr(backends, "__path__", path)
    monkeypatch.setattr(backends, "BACKENDS", backends.discover())


# What a folder is for everybody else.


@pytest.mark.usefixtures("_added")
def test_a_folder_is_a_backend_by_its_name() -> None:
    ops = backends.get("null")

    assert isinstance(ops, NullOps)
    assert set(backends.names()) == {"torch", "mlx", "numba", "reference", "null"}
    assert backends.choose("null") == ("null", "asked for")
    assert backends.choose("auto")[0] != "null"


@pytest.mark.usefixtures("_added")
def test_what_a_new_backend_does_not_say_is_refused_with_its_name() -> None:
    with pytest.raises(BackendError, match="backend 'null' chooses its threads itself"):
        backends.get("null", num_threads=2)


@pytest.mark.usefixtures("_added")
def test_a_new_backend_is_described() -> None:
    found = describe(backends.get("null"))

    assert (found["backend"], found["device"], found["calls"]) == ("null", "cpu", 0)
    assert faster(found)[-1].startswith("compiled CPU kernels are faster: ")


@pytest.mark.usefixtures("_added", "soon_measured")
def test_the_doctor_tries_a_new_backend() -> None:
    told = json.loads(CliRunner().invoke(doctor, ["--json"]).stdout)

    assert {"name": "null", "ready": True, "detail": "cpu"} in told["backends"]


@pytest.mark.usefixtures("_added")
def test_a_new_backend_is_planned_for() -> None:
    config = preset("small-560m")
    needed = needed_bytes(config, "null", context=256)

    require_room("m", config, "null", free=needed)
    with pytest.raises(MemoryShortageError, match="GB on backend null"):
        require_room("m", config, "null", free=needed - 1)
    with pytest.raises(MemoryShortageError, match="choose backend null"):
        require_room("m", config, "reference", free=needed, others=["null"])

    assert runtime_bytes("null") == 0


@pytest.mark.usefixtures("_added")
def test_a_model_runs_on_a_new_backend() -> None:
    model = nanochat.from_pretrained("nanochat-tiny", backend="null")

    model.generate("fn main() {", max_tokens=2)

    assert describe(model.engine)["backend"] == "null"
    assert int(str(describe(model.engine)["calls"])) > 100


# What a model asks of it.


@every_case
def test_a_model_has_logits_for_every_token_and_uses_each_slot_once(config: ModelConfig) -> None:
    ops = NullOps()
    weights = ops.prepare(freeze(init(config, np.random.default_rng(0))))

    logits = forward(ops.tokens(np.zeros((2, 9), np.int64)), weights, config, ops)

    kinds = Counter(slot.kind for slot in slots(config))
    used = ops.calls
    assert logits == (2, 9, config.vocab_size)
    assert (used["attention"], used["short_conv"], used["delta_rule"]) == (
        kinds["attention"],
        kinds["conv"],
        kinds["delta"],
    )
    assert used["mhc_read"] == used["mhc_write"]


@every_case
def test_a_token_reads_as_many_bytes_as_its_cost_says(config: ModelConfig) -> None:
    ops = NullOps()
    engine = Engine(config, ops.prepare(freeze(init(config, np.random.default_rng(0)))), ops)
    state, _ = engine.prefill([1, 2, 3], capacity=5)
    before = ops.read_bytes

    logits = engine.decode([4], state)

    embedding = shapes(config).embedding
    # Of a tied model, the cost counts the row of the token with the head, which holds it.
    row = leaf_bytes(embedding) // config.vocab_size if config.tie_embeddings else 0
    assert logits.shape == (1, config.vocab_size)
    assert ops.read_bytes - before == cost(config, context=4).read_bytes_per_token + row
