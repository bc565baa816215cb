"""This file holds the case `sampling`: microseconds to draw a row's token, compiled, beside the reference's NumPy.

Logits follow Zipf's law, as the words of a text do: the token of rank r has the logit ``-1.1 * log(r)``, and a little
noise. The ranks are dealt anew for each row. Rows are drawn one after the other, on one thread.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.interleaved import Runner, interleaved, ratio
from bench.result import Result, table
from nanochat.backends.numba.ops import NumbaOps
from nanochat.draws import Draws, sample
from nanochat.generation.sampling import Sampler, Sampling, fill_draws

__all__ = ["run", "table"]

_ROWS = 16
_SETTINGS = {
    "greedy": Sampling(temperature=0.0),
    "temperature .7": Sampling(temperature=0.7),
    "temperature .7, top-p .95": Sampling(temperature=0.7, top_p=0.95),
    "temperature .7, top-p .95, top-k 40": Sampling(temperature=0.7, top_p=0.95, top_k=40),
}
# A row takes its model of 125M about two milliseconds in a step of 32 rows, which drawing shall not be felt in.
_TARGETS = {(32_768, "temperature .7, top-p .95"): 60.0}


def run(quick: bool) -> Iterator[Result]:
    """Vocabularies of three sizes, and the settings that people use."""
    for vocab_size in (4096, 32_768, 65_536):
        case = _Case(vocab_size)
        for name, settings in _SETTINGS.items():
            ours, reference = case.runners(settings)
            timings = interleaved({"ours": ours, "reference": reference}, turns=3 if quick else 20)
            mine = [1e6 * seconds / _ROWS for seconds in timings["ours"].turns]
            target = _TARGETS.get((vocab_size, name))
            value = float(np.median(mine))
            yield Result(
                case="sampling",
                what=f"{vocab_size} tokens, {name}",
                unit="us/row",
                ours=value,
                low=max(mine),
                high=min(mine),
                peer=1e6 * timings["reference"].seconds / _ROWS,
                peer_name="reference",
                # A target is of what stands alone, where there is one.
                ratio=None if target else ratio(timings["ours"], timings["reference"]),
                target=target,
                ok=target is None or value <= target,
            )


@dataclass(frozen=True)
class _Case:
    vocab_size: int

    def runners(self, settings: Sampling) -> tuple[Runner, Runner]:
        """Ours and the reference, whose picks are compared first."""
        ops, logits = NumbaOps(num_threads=1), self._logits()
        draws = Draws.greedy(_ROWS, vocab_size=self.vocab_size)
        fill_draws(draws, [Sampler(settings)] * _ROWS)

        def moved(draw: Callable[[], object]) -> Runner:
            def step() -> None:
                # Another draw each time: no branch is learned by heart.
                draws.position[:] += _ROWS
                draw()

            return Runner(run=step)

        draws.position[:] = np.arange(_ROWS)
        drawn, notes = ops.launch.note(lambda: ops.sample(logits, draws))
        if drawn.tokens.tolist() != sample(logits, draws).tokens.tolist():
            raise AssertionError(f"{settings} draws other tokens than the reference")
        return moved(lambda: notes.repeat(1)), moved(lambda: sample(logits, draws))

    def _logits(self) -> NDArray[np.float32]:
        rng = np.random.default_rng(0)
        ranks = np.arange(1, self.vocab_size + 1)
        rows = [rng.permutation(-1.1 * np.log(ranks)) for _ in range(_ROWS)]
        noise = 0.1 * rng.standard_normal((_ROWS, self.vocab_size))
        return (np.array(rows) + noise).astype(np.float32)
