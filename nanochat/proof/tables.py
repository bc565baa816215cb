"""This file holds tables that are rounded to 8 bits because somebody asked for it, and what that does to a model.

Tables are kept as they are stored. One of float32 or of 16 bits a number takes two to four times the memory of 8 bits,
and as much longer to be read for every token.
"""

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanochat import ternary
from nanochat.bundle import Bundle
from nanochat.errors import ConfigError, InputError
from nanochat.generation.engine import Engine, Runner
from nanochat.init import widened
from nanochat.proof.golden import spread
from nanochat.proof.tolerances import rms_error
from nanochat.shapes import head_format
from nanochat.weights import Int8, Stored

__all__ = ["RoundedTables", "measured", "with_int8_tables"]

_LOGGER = logging.getLogger(__name__)
# Tokens whose logits are compared.
_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class RoundedTables:
    """What the rounding of a model's tables changed; errors are RMS errors over the RMS of what was rounded.

    `stored` is how the embedding was stored, `tables` the error of each table, and `logits` that of the logits of 256
    tokens spread over the vocabulary.
    """

    stored: str
    tables: dict[str, float]
    logits: float


def with_int8_tables(bundle: Bundle, tables: str = "int8") -> Bundle:
    """The model with embedding and head in 8 bits, one scale for each row.

    Raises
    ------
    ConfigError
        If a table has fewer bits already.
    InputError
        If something else is asked for.
    """
    if tables != "int8":
        raise InputError(
            f'tables={tables!r:.40}: tables are rounded to "int8", or stay as they are stored'
        )
    config, weights = bundle.config, bundle.weights
    for name, form in (("table_format", config.table_format), ("head_format", head_format(config))):
        if form == "ternary":
            raise ConfigError(
                f'{name}="ternary": the table has 2 bits a weight, and 8 would only take more memory; leave tables out'
            )

    def rounded(name: str, leaf: Stored) -> Stored:
        if isinstance(leaf, Int8) and leaf.scales.shape[1] == 1:
            return leaf
        values = widened(name, leaf)
        codes, scales = ternary.quantize_table(values, block=values.shape[1], name=name)
        block = config.activation_block
        return Int8(
            codes=codes,
            scales=scales,
            activation_block=values.shape[1] if block == "token" else block,
        )

    return dataclasses.replace(
        bundle,
        config=dataclasses.replace(config, table_format="int8", head_format="table"),
        weights=dataclasses.replace(
            weights,
            embedding=rounded("embedding", weights.embedding),
            head=None if weights.head is None else rounded("head", weights.head),
        ),
        # It is of the model before.
        golden=None,
        graph=None,
    )


def measured(engine: Runner[Any], before: Bundle, after: Bundle) -> RoundedTables:
    """What the rounding changed, computed by the model at work; the log says it, too."""
    if not isinstance(engine, Engine):
        raise InputError(
            'tables="int8" is for backends that hold weights, and this one runs a graph: choose another backend, or '
            "leave tables out"
        )
    tree, ops = engine.weights, engine.ops
    errors: dict[str, float] = {}
    for name in ("embedding", "head"):
        old, new = getattr(before.weights, name), getattr(after.weights, name)
        if old is None:
            continue
        errors[name] = rms_error(widened(name, new), widened(name, old))
        tree = ops.replace(tree, name, old)
    ids = spread(before.config.vocab_size, min(_TOKENS, before.config.context_length)).tolist()
    original = Engine(before.config, tree, ops)
    found = RoundedTables(
        stored=before.config.table_format,
        tables=errors,
        logits=rms_error(np.asarray(engine.logits(ids)), np.asarray(original.logits(ids))),
    )
    _LOGGER.warning(
        "%s: tables of %s are rounded to 8 bits; relative errors: %s, logits of %d tokens %.1e",
        before.name,
        found.stored,
        ", ".join(f"{name} {error:.1e}" for name, error in errors.items()),
        len(ids),
        found.logits,
    )
    return found
