"""This file holds `nanochat info`: how large a model is and what a token costs."""

import dataclasses
from typing import TYPE_CHECKING

import click

from nanochat.cli.options import as_json_option, find_config, find_stated
from nanochat.cli.output import format_bytes, format_count, print_json, print_table, write
from nanochat.export.stock.architectures import stock_runtimes

if TYPE_CHECKING:
    from nanochat.config import ModelConfig

__all__ = ["info"]

_EXAMPLES = """\b
Examples:
  nanochat info small-560m
  nanochat info nanochat-tiny
  nanochat info path/to/model --json
"""


@click.command(epilog=_EXAMPLES)
@click.argument("model", metavar="PRESET-OR-MODEL")
@click.option(
    "--context",
    type=click.IntRange(min=1),
    help="Tokens in sight of the token whose cost is counted.  [default: the whole context]",
)
@as_json_option
def info(model: str, *, context: int | None, as_json: bool) -> None:
    """Show the parameters, bytes and cost of a preset or a model, without loading its weights.

    A preset is a shape to train, such as tiny; a model is a directory, a .gguf file, a name that `nanochat models list`
    shows, or OWNER/NAME on the Hugging Face Hub. A preset comes first, so write ./tiny for a directory of that name.
    """
    from nanochat.config import config_to_dict
    from nanochat.cost import cost, tensor_classes
    from nanochat.generation.stated import in_words

    config = find_config(model)
    classes = tensor_classes(config)
    costs = cost(config, context=config.context_length if context is None else context)
    stated, where = find_stated(model)
    by_format: dict[str, int] = {}
    for c in classes:
        by_format[c.format] = by_format.get(c.format, 0) + c.bytes
    if as_json:
        print_json(
            {
                "name": model,
                "parameters": costs.parameters,
                "bytes": costs.stored_bytes,
                "bytes_by_format": by_format,
                "cost": dataclasses.asdict(costs),
                "tensors": [vars(c) for c in classes],
                "config": config_to_dict(config),
                "sampling": stated,
                "sampling_from": where if stated else "",
                "obstacles": stock_runtimes(config),
            }
        )
        return
    _print_shape(config)
    rows = [(c.name, c.format, c.tensors, c.parameters, format_bytes(c.bytes)) for c in classes]
    print_table(rows, header=("tensors", "format", "count", "parameters", "bytes"))
    write("\n")
    print_table(
        [
            ("parameters", format_count(costs.parameters)),
            ("bytes", format_bytes(costs.stored_bytes)),
            *((f"  {name}", format_bytes(count)) for name, count in by_format.items()),
            ("longest context", f"{config.context_length} tokens"),
            *([("sampling", f"{in_words(stated)} ({where})")] if stated else []),
        ]
    )
    write(f"\nOne token after {costs.context - 1} others:\n")
    print_table(
        [
            ("  active parameters", format_count(costs.active_parameters)),
            ("  floating-point operations", format_count(costs.flops_per_token)),
            ("  bytes read when decoded alone", format_bytes(costs.read_bytes_per_token)),
            ("  keys and values that it leaves", format_bytes(costs.kv_bytes_per_token)),
            ("  state of a sequence besides", format_bytes(costs.state_bytes)),
        ]
    )


def _print_shape(config: "ModelConfig") -> None:
    heads = f"{config.num_heads} of {config.head_dim}, {config.num_kv_heads} for keys and values"
    loops = f", {config.loop_count} loops" if config.loop_count > 1 else ""
    network = f"{config.ffn_width} wide"
    if config.num_experts:
        network = f"{config.num_experts} experts {config.expert_width} wide, {config.experts_per_token} a token"
    print_table(
        [
            ("layers", f"{config.num_layers}{loops}"),
            ("width", config.width),
            ("heads", heads),
            ("network", network),
            ("residual streams", config.num_streams),
            ("vocabulary", config.vocab_size),
            *(
                (f"runs in stock {name}", f"no: {text}" if text else "yes")
                for name, text in stock_runtimes(config).items()
            ),
        ]
    )
    write("\n")
