"""This file holds the verdicts on a completion, from the worst to the best."""

from typing import Literal, get_args

__all__ = ["COMPILES", "RUNS", "VERDICTS", "Verdict"]

Verdict = Literal[
    # It never closed its function.
    "open",
    # Too large, or it holds what no completion needs (nanochat.rust.bounds).
    "refused",
    # The compiler found an error: in the text, in its meaning; or failed itself, or took too long.
    "parse",
    "type",
    "compiler-crash",
    "compile-limit",
    # It ran, and panicked, died otherwise, or did not end.
    "panic",
    "crash",
    "limit",
    # It ended, but what it printed is wrong.
    "wrong",
    "pass",
    # No verdict: the machine failed, not the completion. Counted nowhere, and rewarded with nothing.
    "infrastructure",
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
# Those whose completion type-checks together with its prompt, and those that return on all inputs.
COMPILES: tuple[Verdict, ...] = ("panic", "crash", "limit", "wrong", "pass")
RUNS: tuple[Verdict, ...] = ("wrong", "pass")
