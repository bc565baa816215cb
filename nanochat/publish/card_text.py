"""This file holds the text of a model card that is written at each push: how to use it, sizes, and what was measured.

Every number was counted or measured at the push; what was not is said not to have been, or left out.
"""

from collections.abc import Iterable, Mapping, Sequence

from nanochat.config import ModelConfig
from nanochat.cost import tensor_classes
from nanochat.publish.measure import NUM_DECODED, BackendRow, Example
from nanochat.publish.options import Evaluation
from nanochat.publish.stage import FormatRow
from nanochat.publish.training_log import RECIPE
from nanochat.text.codec import TextCodec
from nanochat.text.tokenizer import Tokenizer

__all__ = [
    "backends",
    "formats",
    "limits",
    "sizes",
    "tags",
    "training",
    "use",
]

# Settings of a recipe, their names of before settings stood in groups, and what they are called here.
_RECIPE = {
    ("steps", "steps"): "steps",
    ("data.batch_size", "batch_size"): "sequences of a step",
    ("data.length", "length"): "tokens of a sequence",
    ("schedule.warmup_steps", "warmup_steps"): "steps of rising learning rate",
    ("schedule.decay_steps", "decay_steps"): "steps of falling learning rate",
    ("optimizer.matrices.rate", "matrix_rate"): "learning rate of ternary matrices",
    ("optimizer.embedding.rate", "table_rate"): "learning rate of the embedding",
    ("optimizer.norms.rate", "vector_rate"): "learning rate of the norms",
    ("optimizer.matrices.weight_decay", "weight_decay"): "weight decay of ternary matrices",
    ("precision.weights", "precision"): "weights",
    ("seed", "seed"): "seed",
}


def tags(config: ModelConfig) -> tuple[list[str], list[str]]:
    """The tags that are true of a model with this configuration, and those that could be of another only.

    Examples
    --------
    >>> from nanochat.presets import preset
    >>> tags(preset("tiny"))
    (['nanochat-ternary', 'ternary', '1.58-bit', 'mhc'], ['moe', 'deltanet', 'looplm'])
    """
    told = {
        "mhc": config.num_streams > 1,
        "moe": config.num_experts > 0,
        "deltanet": "delta" in config.layer_pattern,
        "looplm": config.loop_count > 1,
    }
    true = [tag for tag, is_true in told.items() if is_true]
    untrue = [tag for tag, is_true in told.items() if not is_true]
    return ["nanochat-ternary", "ternary", "1.58-bit", *true], untrue


def use(examples: Iterable[Example]) -> str:
    """How to use it, by lines that were run."""
    shown = "\n\n".join(
        f"```{example.language}\n{example.code}\n```\n\nwhich prints\n\n"
        + "\n".join(f"    {line}" for line in _printable(example.output).rstrip("\n").split("\n"))
        for example in examples
    )
    return (
        f"## Use\n\n`pip install nanochat-ternary`, then\n\n{shown}\n\n"
        "These lines were run on the files of this repository before they were uploaded."
    )


def sizes(config: ModelConfig) -> str:
    """Parameters and bytes."""
    classes = tensor_classes(config)
    parameters, size = sum(c.parameters for c in classes), sum(c.bytes for c in classes)
    streams = f"; {config.num_streams} residual streams (mHC)" if config.num_streams > 1 else ""
    table = _table(
        ("tensors", "stored as", "count", "parameters", "bytes"),
        [(f"`{c.name}`", c.format, c.tensors, f"{c.parameters:,}", f"{c.bytes:,}") for c in classes],
    )  # fmt: skip
    return (
        f"## Size\n\n{parameters:,} parameters in {size:,} bytes of weights; a context of {config.context_length:,} "
        f"tokens; a vocabulary of {config.vocab_size:,}; {config.num_layers} layers of width {config.width}{streams}."
        f"\n\n{table}"
    )


def formats(rows: Iterable[FormatRow]) -> str:
    """What the repository holds, and how exact it is."""
    table = _table(
        ("file or folder", "format", "bytes", "was run in", "RMS error of logits"),
        [(f"`{f.place}`", f.what, f"{f.bytes:,}", f.runtime, _error(f.error, f.tolerance)) for f in rows],
    )  # fmt: skip
    return (
        f"## Formats\n\n{table}\n\n"
        "The error is relative to the RMS of the model's own logits for the same tokens. A runtime that rounds "
        "activations in another way, or not at all, differs by its rounding."
    )


def backends(rows: Iterable[BackendRow], *, measured: str) -> str:
    """How exact and how fast it is on each backend, of which `measured` says where, when and by what command."""
    table = _table(
        ("backend", "RMS error beside the golden record", "tokens/s"),
        [(b.backend, _error(b.error), _speed(b.tokens_per_second)) for b in rows],
    )
    return (
        f"## Backends\n\n{table}\n\n"
        f"{measured}: the error is the largest of any layer, the speed the median of {NUM_DECODED} tokens that were "
        "decoded one after the other. Backends add in another order; where an activation is rounded the other way for "
        "that, a token changes by up to 1e-2."
    )


def training(recipe: Mapping[str, object], evaluations: Sequence[Evaluation]) -> str:
    """How it was trained and what it reached, as far as it is known; the repository holds the whole recipe."""
    found = {words: _setting(recipe, *places) for places, words in _RECIPE.items()}
    rows = [(words, value) for words, value in found.items() if value is not None]
    results = [(e.metric, f"{e.value:.4g}", e.dataset) for e in evaluations]
    parts = [_table(("recipe", ""), rows)] if rows else []
    parts += [f"All of it: [{RECIPE}]({RECIPE})."] if rows else []
    parts += [_table(("result", "value", "on"), results)] if results else []
    return "\n\n".join(["## Training", *parts]) if parts else ""


def _setting(recipe: Mapping[str, object], *places: str) -> object:
    """What stands at the first of those places where something stands that is no group."""
    for place in places:
        found: object = recipe
        for part in place.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        if found is not None and not isinstance(found, Mapping):
            return found
    return None


def limits(config: ModelConfig, tokenizer: TextCodec) -> str:
    """What it cannot do."""
    # Of tokenizers of others it is not known.
    covers = " and covers any text, byte by byte" if isinstance(tokenizer, Tokenizer) else ""
    return (
        f"## Limits\n\n- It sees at most {config.context_length:,} tokens at once.\n"
        f"- Its tokenizer has {tokenizer.vocab_size:,} tokens{covers}.\n"
        f"- The matrices of its layers are ternary, with a scale for {config.weight_block} columns, and their input is "
        f"rounded to 8 bits in blocks of {config.activation_block}."
    )


def _speed(value: float | None) -> str:
    return "not measured" if value is None else f"{float(f'{value:.3g}'):,g}"


def _error(value: float | None, tolerance: float | None = None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.1e}" if tolerance is None else f"{value:.1e} (at most {tolerance:.0e})"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def _cell(value: object) -> str:
    return _printable(str(value)).replace("|", "\\|").replace("\n", " ")


def _printable(text: str) -> str:
    """The text without what would make a card a binary file, or its lines others."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
