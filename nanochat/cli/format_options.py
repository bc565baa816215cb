"""This file holds the options of the formats on the command line, made of what each format declares."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, fields
from typing import Any, TypeVar, get_type_hints

import click

from nanochat.export.format import Format, literals
from nanochat.export.formats import FORMATS, format_named

__all__ = ["format_options", "read_format_options"]

Command = TypeVar("Command", bound=Callable[..., object])


def format_options(command: Command) -> Command:
    """Add every option of every format; one of the same name in several formats is added once."""
    named: dict[str, list[tuple[Format[Any], Field[Any]]]] = {}
    for form in _writable():
        for field in fields(form.options or object):
            named.setdefault(field.name, []).append((form, field))
    for name, uses in reversed(named.items()):
        command = _option(name, uses)(command)
    return command


def read_format_options(kind: str, given: Mapping[str, object]) -> object:
    """The options of a format, of those that were given.

    Raises
    ------
    click.UsageError
        If one has no meaning for it.
    InputError
        If one has a value that the format does not know.
    """
    form = format_named(kind)
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in chosen:
        takes = [f for f in _writable() if name in get_type_hints(f.options)]
        if form not in takes:
            formats = " and ".join(map(_words, takes))
            raise click.UsageError(f"--{name} is for {formats}, not for {kind}")
    options: object = form.choose(**chosen)
    return options


def _writable() -> Iterator[Format[Any]]:
    return (form for form in FORMATS.values() if form.options is not None)


def _words(form: Format[Any]) -> str:
    return form.aliases[0] if form.aliases else form.name


def _option(name: str, uses: list[tuple[Format[Any], Field[Any]]]) -> Callable[[Command], Command]:
    form, first = uses[0]
    formats = ", ".join(_words(form).upper() for form, _ in uses)
    default = first.metadata["default"] or first.default
    hint = get_type_hints(form.options)[name]
    text = f"{formats}: {first.metadata['help']}."
    if hint is bool:
        return click.option(f"--{name}", is_flag=True, default=None, help=text)
    known = dict.fromkeys(
        choice for one, _ in uses for choice in literals(get_type_hints(one.options)[name])
    )
    return click.option(
        f"--{name}",
        type=click.Choice(list(known)) if known else hint,
        help=f"{text}  [default: {default}]",
    )
