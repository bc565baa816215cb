"""This file holds how often a runtime chooses the tokens that the reference chooses, and by how much it errs if not.

The logits of two tokens may be as near to each other as the runtime's error. There it may choose the other, and then
its text is another one from there on. That is told from a mistake by the distance: see the row "tie" of the tolerances.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat.bundle import Bundle
from nanochat.generation.engine import Engine
from nanochat.ops import Ops
from nanochat.proof.parity import (
    Artefact,
    Rounding,
    UnroundedOps,
    compare,
    greedy,
    reference_backend,
)
from nanochat.proof.tolerances import TOLERANCES

__all__ = ["NUM_POSITIONS", "Agreement", "measure_agreement"]

NUM_POSITIONS = 200
# No line is there twice: a model that sees one again is as sure, or as unsure, as before.
_TEXT = """\
use std::collections::HashMap;

/// A point of the plane, in metres.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point { x: f64, y: f64 }

impl Point {
    pub fn distance(&self, other: Point) -> f64 {
        ((self.x - other.x).powi(2) + (self.y - other.y).powi(2)).sqrt()
    }
}

fn main() {
    let mut seen: HashMap<String, usize> = HashMap::new();
    for word in "the quick brown fox jumps over the lazy dog".split_whitespace() {
        *seen.entry(word.to_owned()).or_insert(0) += 1;
    }
    match seen.get("fox") {
        Some(count) if *count > 1 => println!("{count} foxes, 0123456789"),
        Some(_) => return,
        None => panic!("no fox: {:?}", seen.len()),
    }
    // Nothing else to do here; what follows is never read by anyone.
    unreachable!()
}
"""
_BEGINNING, _GENERATED = 8, 16
_ROWS: dict[Rounding, str] = {
    "same": "top-1",
    "other": "top-1, llama.cpp",
    "none": "top-1, no rounding",
}


@dataclass(frozen=True)
class Agreement:
    """What a runtime chooses, beside the reference.

    Parameters
    ----------
    share_same : float
        Share of the positions of a fixed text after which both find the same token most probable.
    least_same : float
        What it is held to.
    gap : float
        Where they find another one: how far the runtime's is below the best, by the reference's logits, in RMS errors
        of the runtime's logits there. The largest of these; 0 if there is none.
    same_text : bool
        Whether both write the same tokens after the text's beginning.
    text_gap : float
        As `gap`, at the token with which their texts part.
    """

    share_same: float
    least_same: float
    gap: float
    same_text: bool
    text_gap: float

    @property
    def chooses_the_same(self) -> bool:
        """Whether other tokens are few, and as near to the best as the runtime's error."""
        return self.share_same >= self.least_same and self.gap <= TOLERANCES["tie"].limit

    @property
    def writes_the_same(self) -> bool:
        """Whether the texts are the same, at least up to a tie."""
        return self.text_gap <= TOLERANCES["tie"].limit


def measure_agreement(source: Bundle, artefact: Artefact) -> Agreement:
    """Compare what is chosen after each of 200 tokens of a text, and in a text of 16 tokens of its own.

    The reference is that of `nanochat.proof.parity.check_parity`.
    """
    ops: Ops[Any, Any, Any] = reference_backend(source.config)[1]
    if artefact.rounding == "none":
        ops = UnroundedOps()
    reference = Engine(source.config, ops.prepare(source.weights), ops)
    ids = [*source.tokenizer.opening, *source.tokenizer.encode(_TEXT)][:NUM_POSITIONS]
    expected, found = reference.logits(ids), artefact.logits(ids)
    beginning = ids[:_BEGINNING]
    ours = greedy(reference, beginning, num_tokens=_GENERATED)
    theirs = artefact.greedy(beginning, num_tokens=_GENERATED)
    return Agreement(
        share_same=compare(expected, found).share_same_greedy,
        least_same=1 - TOLERANCES[_ROWS[artefact.rounding]].limit,
        gap=max(map(_gap, expected, found, found.argmax(axis=1))),
        same_text=ours == theirs,
        text_gap=_text_gap(reference, artefact, beginning, ours, theirs),
    )


def _text_gap(
    reference: Engine[Any, Any, Any],
    artefact: Artefact,
    beginning: Sequence[int],
    ours: Sequence[int],
    theirs: Sequence[int],
) -> float:
    for number, (token, other) in enumerate(zip(ours, theirs, strict=True)):
        if token != other:
            read = [*beginning, *ours[:number]]
            return _gap(reference.logits(read)[-1], artefact.logits(read)[-1], other)
    return 0.0


def _gap(expected: NDArray[np.float32], found: NDArray[np.float32], chosen: int) -> float:
    """How far the logit of the token `chosen` is below the best, in RMS errors of `found`."""
    gap = float(expected.max() - expected[chosen])
    error = float(np.sqrt(np.mean(np.square(found - expected, dtype=np.float64))))
    return gap / error if gap > 0 else 0.0
