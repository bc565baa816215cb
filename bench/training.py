"""This file holds the case `training`: what the logs of the shipped model and of its unquantised twin say.

The logs are those of the two runs, whose commands are in `zoo/weights/nanochat-tiny/README.md`. Only what mixing does
to the logits is computed anew, from the shipped weights.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.curves import Curve, draw_curves
from bench.result import Result, table
from nanochat import from_pretrained
from nanochat.export.formats import load
from nanochat.lm import Model
from nanochat.proof.tolerances import rms_error
from nanochat.zoo.hub import resolve

__all__ = ["LOGS", "plot", "run", "table"]

_RUST = "impl Point {\n    fn new(x: u32, y: u32) -> Self {\n        Point { x, y }\n    }\n}\n"

LOGS = Path(__file__).parent / "results" / "training"


@dataclass(frozen=True)
class _Log:
    evaluations: list[dict[str, float]]
    divergence: list[tuple[float, list[float]]]
    mixing: list[tuple[float, float]]


def run(quick: bool) -> Iterator[Result]:  # noqa: ARG001
    """Held-out bits per byte of both, and what the log says of mHC."""
    ternary, twin = _read("tiny-ternary.jsonl"), _read("tiny-float.jsonl")
    last, last_twin = ternary.evaluations[-1], twin.evaluations[-1]
    ours, peer = last["held_out_bits_per_byte"], last_twin["held_out_bits_per_byte"]
    yield Result(
        case="training",
        what=f"held out, ternary after {last['tokens'] / 1e6:.2f}M tokens",
        unit="bits per byte",
        ours=ours,
        peer=peer,
        peer_name=f"unquantised twin after {last_twin['tokens'] / 1e6:.2f}M tokens",
        ratio=peer / ours,
        ok=last["tokens"] == last_twin["tokens"],
    )
    _, streams = ternary.divergence[-1]
    yield Result(
        case="training",
        what="distance of the streams from their mean, smallest of all sites, at the end",
        unit="RMS ratio",
        ours=min(streams),
        target=0.01,
        ok=min(streams) > 0.01,
    )
    gradients = [gradient for _, gradient in ternary.mixing]
    yield Result(
        case="training",
        what="gradient norm of the mixing logits, smallest of all steps",
        unit="norm",
        ours=min(gradients),
        target=0.0,
        ok=min(gradients) > 0,
    )
    yield Result(
        case="training",
        what="change of the logits if all mixing matrices were the identity",
        unit="RMS ratio",
        ours=_without_mixing(),
    )


def _without_mixing() -> float:
    """RMS ratio on a short piece of Rust, on the reference backend."""
    model = from_pretrained("nanochat-tiny", backend="reference")
    parts = load(resolve("nanochat-tiny"))
    unmixed = Model(
        replace(parts.config, mixer="identity"),
        parts.weights,
        parts.tokenizer,
        backend="reference",
    )
    ids = model.encode_prompt(_RUST)
    return rms_error(unmixed.logits(ids), model.logits(ids))


def plot(_: Sequence[Result], path: Path) -> None:
    """Draw held-out bits per byte of both runs, the streams' divergence, and the mixing gradient."""
    ternary, twin = _read("tiny-ternary.jsonl"), _read("tiny-float.jsonl")
    bits = [
        Curve(name, [(e["tokens"] / 1e6, e["held_out_bits_per_byte"]) for e in log.evaluations])
        for name, log in (("ternary", ternary), ("unquantised twin", twin))
    ]
    sites = len(ternary.divergence[0][1])
    streams = [
        Curve(
            f"site {site}", [(tokens / 1e6, values[site]) for tokens, values in ternary.divergence]
        )
        for site in (0, sites // 2, sites - 1)
    ]
    mixing = [Curve("mixing logits", [(tokens / 1e6, norm) for tokens, norm in ternary.mixing])]
    draw_curves(
        {
            "held-out bits per byte": bits,
            "RMS distance of the streams from their mean": streams,
            "gradient norm": mixing,
        },
        path,
        x_label="million tokens",
    )


def _read(name: str) -> _Log:
    """One run's log; evaluations do not repeat the token count, so it is taken from the step before."""
    evaluations: list[dict[str, float]] = []
    divergence: list[tuple[float, list[float]]] = []
    mixing: list[tuple[float, float]] = []
    tokens = 0.0
    for text in (LOGS / name).read_text().splitlines():
        line = json.loads(text)
        tokens = line.get("tokens", tokens)
        if "held_out_bits_per_byte" in line:
            bits = line["held_out_bits_per_byte"]
            evaluations.append({"tokens": tokens, "held_out_bits_per_byte": bits})
            divergence.append((tokens, line["stream_divergence"]))
        elif "gradient_norm_mix" in line:
            mixing.append((tokens, line["gradient_norm_mix"]))
    return _Log(evaluations=evaluations, divergence=divergence, mixing=mixing)
