"""This file holds the evaluation of a model in training: what it makes of held-out text."""

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from nanochat.backends.reference.ops import pieces as parts_of
from nanochat.backends.torch.linears import Leaf
from nanochat.backends.torch.ops import TorchOps
from nanochat.data.shards import Shards
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
    held_out: Shards,
    *,
    batch_size: int,
    length: int,
    num_windows: int,
    interruption: Interruption,
    watch: Callable[[int, int], None],
) -> dict[str, float]:
    """Bits per byte of the first windows of a text, nats and accuracy of their tokens.

    Whole windows are scored in whole batches, each without what stood before it. `watch` is called with the number of
    those that are done and of all, at the start and after each batch.
    """
    length = min(length, held_out.num_tokens - 1)
    num_batches = math.ceil(num_windows / batch_size)
    total = min(num_batches * batch_size, len(held_out.window_starts(length)))
    nats = num_right = num_tokens = num_bytes = done = 0.0
    watch(0, total)
    # A pass without gradients would be compiled anew. So would another size: the last batch is filled with what has no
    # targets.
    with model.rounded():
        for inputs, targets, lengths in itertools.islice(
            held_out.windows(batch_size, length), num_batches
        ):
            rest = ((0, batch_size - len(inputs)), (0, 0))
            given = np.pad(inputs, rest), np.pad(targets, rest, constant_values=-1)
            tokens, ids = (torch.from_numpy(each).to(model.ops.device) for each in given)
            with interruption.abandonable(), compiling():
                lost, right = model(tokens, partial(_scored, model), ids)
                nats += float(lost)
                num_right += int(right)
            num_tokens += targets.size
            num_bytes += int(lengths.sum())
            done += len(inputs)
            watch(int(done), total)
            interruption.check()
    return {
        HELD_OUT: nats / math.log(2) / num_bytes,
        "held_out_nats_per_token": nats / num_tokens,
        "held_out_perplexity": math.exp(min(nats / num_tokens, 700.0)),
        "held_out_accuracy": num_right / num_tokens,
        "held_out_tokens": int(num_tokens),
    }


def looks(
    model: LanguageModel, tokens: Tensor, held_out: Shards, sample_tokens: int
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


def _sample(model: LanguageModel, held_out: Shards, max_tokens: int) -> str:
    """The beginning of the held-out text, and how the model goes on with it, always the same way."""
    inputs, _, _ = next(held_out.windows(1, min(_PROMPT, held_out.num_tokens - 1)))
    tokenizer, ops, config = held_out.tokenizer, TorchOps(str(model.ops.device)), model.config
    engine = Engine(config, ops.prepare(freeze(model.stored())), ops)
    ids = inputs[0].tolist()
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
