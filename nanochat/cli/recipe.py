"""This file holds the argument and options that say what a run trains."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanochat.cli.options import Command
from nanochat.cli.output import write

if TYPE_CHECKING:
    from nanochat.training.settings import Settings

__all__ = [
    "change_of",
    "changes_option",
    "config_argument",
    "data_option",
    "device_option",
    "preset_option",
    "settings_option",
]


def _directories(
    _: click.Context, __: click.Parameter, given: tuple[str, ...]
) -> Path | dict[str, Path] | None:
    """The one directory, or several by their names."""
    # A directory may have an equals sign in its name.
    parts = [("", "", each) if Path(each).is_dir() else each.rpartition("=") for each in given]
    found = {name: Path(directory) for name, __, directory in parts}
    for directory in found.values():
        if not directory.is_dir():
            raise click.BadParameter(f"there is no directory {directory}: prepare the data first")
    if len(given) == 1 and "" in found:
        return found[""]
    if "" in found:
        raise click.BadParameter(
            f"several data need names: write --data NAME={found['']} in place of --data {found['']}"
        )
    if len(found) < len(given):
        raise click.BadParameter("two data have the same name: write another for one of them")
    return found or None


def change_of(setting: str) -> tuple[str, object]:
    """Name and value of ``NAME=VALUE``; a value that is no JSON is a text."""
    name, equals, text = setting.partition("=")
    if not equals:
        raise click.UsageError(f"--set {setting}: write NAME=VALUE")
    try:
        return name, json.loads(text)
    except ValueError:
        return name, text


def _changes(
    _: click.Context, __: click.Parameter, given: tuple[str, ...]
) -> list[tuple[str, object]]:
    return [*map(change_of, given)]


def settings_option(settings: "Callable[[], Settings]") -> Callable[[Command], Command]:
    """``--settings``, which lists all of a recipe's and exits; it is called late, since they take time to import."""

    def show(context: click.Context, _: click.Parameter, asked: bool) -> None:
        if not asked or context.resilient_parsing:
            return
        found = settings()
        listing = context.make_formatter()
        listing.write_text("Settings for --set NAME=VALUE, with their defaults.")
        for prefix, title in found.titles():
            groups = [
                (each.names, f"{each.meaning}  [{each.kind}]") for each in found.groups(prefix)
            ]
            with listing.section(title.rstrip(".")):
                listing.write_dl(groups)
        write(listing.getvalue().lstrip("\n"))
        context.exit()

    return click.option(
        "--settings",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="List all settings with their defaults, and exit.",
    )


config_argument = click.argument(
    "config", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=False
)
preset_option = click.option(
    "--preset",
    help="Start from this preset's shape, such as tiny, or that of a model of the catalog.",
)
changes_option = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_changes,
    help="Change a setting of the recipe, or model.NAME of the model; repeatable.  [see --settings]",
)
data_option = click.option(
    "--data",
    multiple=True,
    metavar="[NAME=]DIRECTORY",
    callback=_directories,
    help="Tokens, from `nanochat data prepare`; several have names, which data.mixture weighs.  [default: those of "
    "CONFIG's text, in the run's directory]",
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute; auto is CUDA if it is there.",
)
