"""This file holds the text of a model card that is written at each push: sizes, what was measured, and how to use it.

Every number was counted or measured at the push; what was not is said not to have been, or left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nanochat.config import ModelConfig
from nanochat.cost import tensor_classes
from nanochat.publish.card import Evaluation

__all__ = ["BackendRow", "Example", "Facts", "FormatRow", "render", "tags", "untrue_tags"]

_NOT_MEASURED = "not measured"
# What stands in a recipe, and what it is called; numbers of tokens are made of them.
_RECIPE = {
    "steps": "steps",
    "batch_size": "sequences of a step",
    "length": "tokens of a sequence",
    "warmup_steps": "steps of rising learning rate",
    "decay_steps": "steps of falling learning rate",
    "matrix_rate": "learning rate of ternary matrices",
    "table_rate": "learning rate of embedding and head",
    "vector_rate": "learning rate of all other parameters",
    "weight_decay": "weight decay",
    "precision": "precision",
    "seed": "seed",
}


@dataclass(frozen=True, kw_only=True)
class FormatRow:
    """A format of the model in the repository.

    Parameters
    ----------
    place : str
        File or folder, or another repository.
    what : str
        What the format is.
    bytes : int
        Size of all its files.
    runtime : str
        What ran it at the push.
    error : float
        RMS ratio of its logits to those of the model, in that runtime.
    tolerance : float or None
        Up to what that runtime computes the same model.
    """

    place: str
    what: str
    bytes: int
    runtime: str
    error: float
    tolerance: float | None = None


@dataclass(frozen=True, kw_only=True)
class BackendRow:
    """A backend of this package.

    Parameters
    ----------
    backend : str
        Its name, and device.
    error : float or None
        Largest RMS error of a layer or of the logits beside the golden record; `None` if it was not measured.
    tokens_per_second : float or None
        When tokens are decoded one after the other; `None` if it was not measured.
    """

    backend: str
    error: float | None
    tokens_per_second: float | None


@dataclass(frozen=True, kw_only=True)
class Example:
    """Lines that were run, and what they printed.

    Parameters
    ----------
    language : {"python", "sh"}
        For the colours.
    code, output : str
        The lines, and standard output.
    """

    language: str
    code: str
    output: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the text is made of.

    Parameters
    ----------
    config : ModelConfig
        The model's.
    tokenizer : str
        What its tokenizer covers, in words.
    formats, backends, examples
        See the classes.
    num_decoded : int
        Tokens of which the speed is the median.
    machine, date, command : str
        Where, when, and by what command all of it was measured.
    recipe : mapping
        Fields of its training recipe; may be empty.
    recipe_file : str
        File of the repository that holds the whole of it; may be empty.
    evaluations : sequence of Evaluation
        What is known of its quality.
    """

    config: ModelConfig
    tokenizer: str
    formats: Sequence[FormatRow]
    backends: Sequence[BackendRow]
    examples: Sequence[Example]
    num_decoded: int
    machine: str
    date: str
    command: str
    recipe: Mapping[str, object]
    recipe_file: str
    evaluations: Sequence[Evaluation]


def tags(config: ModelConfig, formats: Iterable[str]) -> list[str]:
    """The tags that a configuration and formats give to a repository.

    Examples
    --------
    >>> from nanochat.presets import preset
    >>> tags(preset("tiny"), ["gguf"])
    ['nanochat-ternary', 'ternary', '1.58-bit', 'mhc', 'gguf']
    """
    told = _told(config)
    # The Hub's own names of the formats.
    names = {"gguf": "gguf", "onnx": "onnx", "mlx": "mlx", "web": "onnx"}
    names |= {"hf": "transformers", "transformers": "transformers"}
    found = [names[kind] for kind in formats if kind in names]
    always = ["nanochat-ternary", "ternary", "1.58-bit"]
    return list(dict.fromkeys([*always, *(tag for tag, is_so in told.items() if is_so), *found]))


def untrue_tags(config: ModelConfig) -> list[str]:
    """The tags that were true of another model only.

    Examples
    --------
    >>> from nanochat.presets import preset
    >>> untrue_tags(preset("tiny"))
    ['moe', 'deltanet', 'looplm']
    """
    return [tag for tag, is_so in _told(config).items() if not is_so]


def _told(config: ModelConfig) -> dict[str, bool]:
    return {
        "mhc": config.num_streams > 1,
        "moe": config.num_experts > 0,
        "deltanet": "delta" in config.layer_pattern,
        "looplm": config.loop_count > 1,
    }


def render(facts: Facts) -> str:
    """The text, in Markdown."""
    sections = [
        _use(facts),
        _sizes(facts),
        _formats(facts),
        _backends(facts),
        _training(facts),
        _limits(facts),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _use(facts: Facts) -> list[str]:
    lines = ["## Use", "", "`pip install nanochat-ternary`, then"]
    for example in facts.examples:
        printed = [f"    {line}" for line in _printable(example.output).rstrip("\n").split("\n")]
        lines += [
            "",
            f"```{example.language}",
            example.code,
            "```",
            "",
            "which prints",
            "",
            *printed,
        ]
    return [
        *lines,
        "",
        "These lines were run on the files of this repository before they were uploaded.",
    ]


def _sizes(facts: Facts) -> list[str]:
    config, classes = facts.config, tensor_classes(facts.config)
    rows = [
        (f"`{c.name}`", c.format, c.tensors, f"{c.parameters:,}", f"{c.bytes:,}") for c in classes
    ]
    parameters, size = sum(c.parameters for c in classes), sum(c.bytes for c in classes)
    return [
        "## Size",
        "",
        f"{parameters:,} parameters in {size:,} bytes of weights; a context of {config.context_length:,} tokens; a "
        f"vocabulary of {config.vocab_size:,}; {config.num_layers} layers of width {config.width}"
        + (f"; {config.num_streams} residual streams (mHC)." if config.num_streams > 1 else "."),
        "",
        *_table(("tensors", "stored as", "count", "parameters", "bytes"), rows),
    ]


def _formats(facts: Facts) -> list[str]:
    rows = [
        (f"`{f.place}`", f.what, f"{f.bytes:,}", f.runtime, _error(f.error, f.tolerance))
        for f in facts.formats
    ]
    return [
        "## Formats",
        "",
        *_table(("file or folder", "format", "bytes", "was run in", "RMS error of logits"), rows),
        "",
        "The error is relative to the RMS of the model's own logits for the same tokens. A runtime that rounds "
        "activations in another way, or not at all, differs by its rounding.",
    ]


def _backends(facts: Facts) -> list[str]:
    rows = [
        (
            b.backend,
            _NOT_MEASURED if b.error is None else _error(b.error),
            _NOT_MEASURED if b.tokens_per_second is None else _speed(b.tokens_per_second),
        )
        for b in facts.backends
    ]
    return [
        "## Backends",
        "",
        *_table(("backend", "RMS error beside the golden record", "tokens/s"), rows),
        "",
        f"On {facts.machine}, {facts.date}, by `{facts.command}`: the error is the largest of any layer, the speed the "
        f"median of {facts.num_decoded} tokens that were decoded one after the other. Backends add in "
        "another order; where an activation is rounded the other way for that, a token changes by up to 1e-2.",
    ]


def _training(facts: Facts) -> list[str]:
    rows = [(words, facts.recipe[key]) for key, words in _RECIPE.items() if key in facts.recipe]
    results = [(e.metric, f"{e.value:.4g}", e.dataset) for e in facts.evaluations]
    lines: list[str] = []
    if rows:
        lines += ["", *_table(("recipe", ""), rows)]
        if facts.recipe_file:
            lines += ["", f"All of it: [{facts.recipe_file}]({facts.recipe_file})."]
    if results:
        lines += ["", *_table(("result", "value", "on"), results)]
    return ["## Training", *lines] if lines else []


def _limits(facts: Facts) -> list[str]:
    config = facts.config
    return [
        "## Limits",
        "",
        f"- It sees at most {config.context_length:,} tokens at once.",
        f"- {facts.tokenizer}",
        f"- The matrices of its layers are ternary, with a scale for {config.weight_block} columns, and their input is "
        f"rounded to 8 bits in blocks of {config.activation_block}.",
    ]


def _speed(value: float) -> str:
    return f"{float(f'{value:.3g}'):,g}"


def _error(value: float, tolerance: float | None = None) -> str:
    text = f"{value:.1e}"
    return text if tolerance is None else f"{text} (at most {tolerance:.0e})"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    cells = [[_cell(value) for value in row] for row in (header, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + "---|" * len(header), *lines[1:]]


def _cell(value: object) -> str:
    return _printable(str(value)).replace("|", "\\|").replace("\n", " ")


def _printable(text: str) -> str:
    """The text without what would make a card a binary file, or its lines others."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
