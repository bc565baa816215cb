"""This file holds the case `storages`: what the rounding of keys and values that are kept changes of the logits.

An error is the RMS of the differences over the RMS of the logits with float32. Activations are rounded to 8 bits, so
that a difference of any size may flip one: of random models with float16, that is nearly all of the error.
"""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import numpy as np

from bench.parity import FEW
from bench.result import Result, table
from nanochat import backends
from nanochat.config import ModelConfig
from nanochat.generation.engine import Engine
from nanochat.init import freeze
from nanochat.lm import from_pretrained
from nanochat.ops import Ops, Storage
from nanochat.proof.tolerances import rms_error
from nanochat.slots import slots
from nanochat.weights import Stored, Weights
from tests.parity.cases import CASES
from tests.parity.random_models import random_weights

__all__ = ["errors", "run", "table"]

_SHIPPED = "nanochat-tiny"
_TEXT = """\
fn main() {
    let mut seen: HashMap<String, usize> = HashMap::new();
    for word in "the quick brown fox jumps over the lazy dog".split_whitespace() {
        *seen.entry(word.to_owned()).or_insert(0) += 1;
    }
    match seen.get("fox") {
        Some(count) if *count > 1 => println!("{count} foxes"),
        Some(_) => return,
        None => panic!("no fox: {:?}", seen.len()),
    }
}
"""


def run(quick: bool) -> Iterator[Result]:
    """Random models that attend, a few if `quick`, and the one that ships."""
    ops: Ops[Any, Any, Any] = backends.get("reference")
    found: dict[Storage, list[float]] = {}
    for name in FEW if quick else CASES:
        config = CASES[name]
        if not any(slot.kind == "attention" for slot in slots(config)):
            continue
        generator = np.random.default_rng(1)
        ids = generator.integers(0, config.vocab_size, config.context_length).tolist()
        of_model = errors(config, freeze(random_weights(config)), ids, ops)
        for storage, error in of_model.items():
            found.setdefault(storage, []).append(error)
    shipped = from_pretrained(_SHIPPED, backend="reference")
    ids = shipped.encode_prompt(_TEXT)
    of_shipped = errors(shipped.config, shipped.weights, ids, ops)
    for storage, of_models in found.items():
        median = float(np.median(of_models))
        worst, best = max(of_models), min(of_models)
        yield _result(f"{storage}, {len(of_models)} random models", median, worst, best)
        yield _result(f"{storage}, {_SHIPPED}", of_shipped[storage])


def errors(
    config: ModelConfig, weights: Weights[Stored], ids: Sequence[int], ops: Ops[Any, Any, Any]
) -> dict[Storage, float]:
    """The error of the logits after each token, for each storage that rounds."""
    prepared = ops.prepare(weights)
    logits = {}
    for storage in get_args(Storage):
        engine = Engine(config, prepared, ops, kv_cache=storage)
        state = engine.new_state(rows=1, capacity=len(ids))
        logits[storage] = engine.step(state, [state.admit()], [ids], every=True)
    exact = logits.pop("float32")
    return {storage: rms_error(exact, rounded) for storage, rounded in logits.items()}


def _result(what: str, ours: float, low: float | None = None, high: float | None = None) -> Result:
    return Result(
        case="storages", what=what, unit="RMS error of logits", ours=ours, low=low, high=high
    )
