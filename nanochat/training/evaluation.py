"""This file holds the evaluation of a model in training: what it makes of held-out text."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanochat.backends.reference.ops import pieces as parts_of
from nanochat.backends.torch.linears import Leaf
from nanochat.backends.torch.ops import TorchOps
from nanochat.data.batch import Layout
from nanochat.data.mixture import Mixture
from nanochat.errors import TrainingError
from nanochat.generation.engine import Engine
from nanochat.generation.session import generate
from nanochat.init import freeze
from nanochat.model import TrainingOutputs
from nanochat.training.interruption import Interruption
from nanochat.training.layers import compiling
from nanochat.training.module import LanguageModel
from nanochat.training.monitoring import stream_divergence
from nanochat.training.run_log import HELD_OUT

__all__ = ["looks", "scores"]

# Tokens of held-out text that a sample continues, and its temperature.
_PROMPT, _TEMPERATURE = 12, 0.7


def scores(
    model: LanguageModel,
    held_out: Mixture,
    *,
    batch_size: int,
    layout: Layout,
    num_windows: int,
    interruption: Interruption,
    watch: Callable[[int, int], None],
) -> dict[str, float]:
    """Bits per byte of the first sequences of a text, nats and accuracy of their tokens.

    Sequences are scored in whole batches, each without what stood before it, and of each of several sources there is
    one at least. `watch` is called with the number of sequences that are done and of all, at the start and after each
    batch.

    Raises
    ------
    TrainingError
        If none of them has a target.
    """
    num_batches = max(len(held_out.sources), math.ceil(num_windows / batch_size))
    total = sum(rows for _, rows in held_out.turns(batch_size, layout)[:num_batches])
    num_right = num_tokens = done = 0
    # Of each source.
    nats: dict[str, float] = defaultdict(float)
    num_bytes: dict[str, int] = defaultdict(int)
    watch(0, total)
    # A pass without gradients would be compiled anew. So would another size: the last batch is filled with what has no
    # targets.
    with model.rounded():
        for name, batch, lengths in itertools.islice(
            held_out.in_order(batch_size, layout), num_batches
        ):
            inputs, ids, segments = (
                None if each is None else _on_device(each, batch_size, filler, model)
                for each, filler in ((batch.inputs, 0), (batch.targets, -1), (batch.segments, 0))
            )
            with interruption.abandonable(), compiling():
                lost, right = model(
                    inputs, partial(_scored, model), ids, segments=segments, has_heads=False
                )
                nats[name] += float(lost)
                num_right += int(right)
            num_tokens += int((batch.targets >= 0).sum())
            num_bytes[name] += int(lengths.sum())
            done += len(batch.inputs)
            watch(done, total)
            interruption.check()
    # Of conversations, some sequences hold no answer.
    if not any(num_bytes.values()):
        raise TrainingError(
            f"nothing is to be predicted in {done} sequences of the held-out text of {held_out}: pass a larger "
            "run.evaluation_windows, or data.packing=best-fit"
        )
    each = sum(nats.values()) / num_tokens
    return {
        HELD_OUT: sum(nats.values()) / math.log(2) / sum(num_bytes.values()),
        "held_out_nats_per_token": each,
        "held_out_perplexity": math.exp(min(each, 700.0)),
        "held_out_accuracy": num_right / num_tokens,
        "held_out_tokens": num_tokens,
        **{
            f"{HELD_OUT}_{name}": nats[name] / math.log(2) / num_bytes[name]
            for name in num_bytes
            if name and num_bytes[name]
        },
    }


def looks(
    model: LanguageModel, tokens: Tensor, held_out: Mixture, sample_tokens: int
) -> dict[str, object]:
    """The state of mHC on a sequence (1, T), and a text of so many tokens that goes on with the held-out text."""
    found: dict[str, object] = {}
    if model.config.num_streams > 1:
        divergence, gain = stream_divergence(model, tokens)
        found |= {
            "stream_divergence": [round(each, 5) for each in divergence],
            "composite_gain": gain,
        }
    if sample_tokens and model.precision == "ternary":
        found["sample"] = _sample(model, held_out, sample_tokens)
    return found


def _sample(model: LanguageModel, held_out: Mixture, max_tokens: int) -> str:
    """The beginning of the held-out text, and how the model goes on with it, always the same way."""
    _, batch, _ = next(held_out.in_order(1, Layout(length=_PROMPT)))
    tokenizer, ops, config = held_out.tokenizer, TorchOps(str(model.ops.device)), model.config
    engine = Engine(config, ops.prepare(freeze(model.stored())), ops)
    ids = batch.inputs[0].tolist()
    # A young model ends a text at once.
    pieces = generate(
        engine,
        tokenizer,
        [ids],
        max_tokens=min(max_tokens, config.context_length - len(ids)),
        temperature=_TEMPERATURE,
        seed=0,
        ignore_eos=True,
    )
    return tokenizer.decode(ids) + "".join(piece.text for piece in pieces)


def _on_device(
    rows: NDArray[np.int64], batch_size: int, filler: int, model: LanguageModel
) -> Tensor:
    """Rows as a tensor of so many."""
    rest = ((0, batch_size - len(rows)), (0, 0))
    return torch.from_numpy(np.pad(rows, rest, constant_values=filler)).to(model.ops.device)


def _scored(
    model: LanguageModel, outputs: TrainingOutputs[Tensor, Leaf], targets: Tensor
) -> tuple[Tensor, Tensor]:
    """The nats of all targets together, and how many of them were the most probable token."""
    x = outputs.steps[-1].detach()
    lost = model.ops.cross_entropy(x, outputs.table, targets).detach().double().sum()
    rows, ids = x.flatten(0, 1), targets.flatten()
    right = ids.new_zeros(())
    with torch.no_grad():
        for part in parts_of(len(rows), model.config.vocab_size):
            (logits,) = model.ops.project(rows[part], outputs.table)
            right += (logits.argmax(dim=-1) == ids[part]).sum()
    return lost, right
