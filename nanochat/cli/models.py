"""This file holds `nanochat models`: the models that have a name."""

import dataclasses
from typing import TYPE_CHECKING

import click

from nanochat.cli.group import Group
from nanochat.cli.options import as_json_option, backend_option, model_argument
from nanochat.cli.output import format_bytes, format_count, print_json, print_table
from nanochat.cli.run import as_file_errors
from nanochat.errors import InputError

if TYPE_CHECKING:
    from nanochat.zoo.catalog import Entry

__all__ = ["models"]


@click.group(cls=Group)
def models() -> None:
    """List the models that have a name, show one of them, and check a model's files."""


@models.command("list")
@as_json_option
def list_models(*, as_json: bool) -> None:
    """List all models, the one that comes with the package first."""
    from nanochat.zoo.catalog import CATALOG

    if as_json:
        print_json({"models": [_describe(entry) for entry in CATALOG.values()]})
        return
    rows = [(entry.name, _where(entry), entry.description) for entry in CATALOG.values()]
    print_table(rows, header=("name", "weights", "what it is"))


@models.command()
@click.argument("name")
@as_json_option
def show(name: str, *, as_json: bool) -> None:
    """Show one model by its name."""
    from nanochat.zoo.catalog import CATALOG, similar

    if name not in CATALOG:
        close = " or ".join(similar(name)) or "one of " + ", ".join(CATALOG)
        raise InputError(f"no model of the catalog is named {name!r:.200}: choose {close}")
    description = _describe(CATALOG[name])
    if as_json:
        print_json(description)
        return
    description["parameters"] = format_count(int(str(description["parameters"])))
    description["bytes"] = format_bytes(int(str(description["bytes"])))
    print_table(list(description.items()))


@models.command()
@model_argument
@backend_option
@as_json_option
def verify(model: str, *, backend: str, as_json: bool) -> None:
    """Check the files of MODEL, and that they compute what they did when they were written.

    MODEL is a model directory, an exported folder, a .gguf or .onnx file, or a model's name. Sizes and hashes are those
    of nanochat.json, if there is one; codes and numbers must be legal; the golden record is run on the backend. A
    mismatch names the file, the tensor or the layer.
    """
    from nanochat.export.check import check_model
    from nanochat.zoo.hub import resolve

    with as_file_errors():
        checked = check_model(resolve(model, backend=backend), backend=backend)
    if as_json:
        print_json(dataclasses.asdict(checked))
        return
    hashes = f"{checked.files} as they were written"
    golden = f"agrees on {checked.backend}, largest RMS error {checked.golden or 0:.1e}"
    print_table(
        [
            ("model", checked.path),
            ("tensors", f"{checked.tensors} whole and legal"),
            ("files", "no nanochat.json to compare them with" if checked.files is None else hashes),
            ("golden record", "none" if checked.golden is None else golden),
        ]
    )


def _where(entry: "Entry") -> str:
    return "included" if entry.ships else entry.repo or "not published"


def _describe(entry: "Entry") -> dict[str, object]:
    from nanochat.cost import tensor_classes
    from nanochat.presets import preset

    config = preset(entry.preset)
    classes = tensor_classes(config)
    return {
        **dataclasses.asdict(entry),
        "weights": _where(entry),
        "parameters": sum(c.parameters for c in classes),
        "bytes": sum(c.bytes for c in classes),
        "context_length": config.context_length,
    }
