"""This file holds `nanochat serve`: models behind an HTTP API that OpenAI's clients know."""

import contextlib
import dataclasses
import logging
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click

from nanochat.cli.options import (
    Command,
    backend_option,
    tables_option,
    threads_option,
    unpinned_option,
)
from nanochat.cli.output import note
from nanochat.cli.run import require_packages
from nanochat.errors import InputError, did_you_mean
from nanochat.ops import Storage

__all__ = ["serve"]

_EXAMPLES = """\b
Examples:
  nanochat serve nanochat-tiny
  nanochat serve prism-ml/Ternary-Bonsai-8B-gguf --kv-cache int8 --max-rows 16
  nanochat serve path/to/model --host 0.0.0.0 --api-key-file keys.txt
"""
_PACKAGES = ("httptools", "llguidance", "msgspec", "prometheus_client", "starlette", "uvicorn")


class _Bytes(click.ParamType[int]):
    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from nanochat.serve.settings import read_size

        try:
            return read_size(str(value))
        except InputError as error:
            self.fail(str(error), param, ctx)


def _settings_options(command: Command) -> Command:
    """Add an option for each field of the settings."""
    from nanochat.serve.settings import SIZES, Settings

    hints = get_type_hints(Settings, include_extras=True)
    for each in reversed(dataclasses.fields(Settings)):
        flag = "--" + each.name.replace("_", "-")
        kind, text = get_args(hints[each.name])
        options: dict[str, Any] = {"help": text, "default": each.default}
        if kind is bool:
            if each.default:
                flag = f"{flag}/--no-{flag[2:]}"
            options |= {"is_flag": True, "show_default": bool(each.default)}
        elif each.name in SIZES:
            options |= {"type": _Bytes(), "show_default": bool(each.default)}
        elif each.default == ():
            options["multiple"] = True
        elif each.default is None:
            options["type"] = click.Path(path_type=Path)
        else:
            options |= {"type": kind, "show_default": "[default" not in text and each.default != ""}
        command = click.option(flag, each.name, **options)(command)
    return command


def _read_config(context: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    """Take the keys of a TOML file as defaults of the options."""
    if value is None:
        return
    require_packages("serve", *_PACKAGES)
    try:
        given = tomllib.loads(value.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{value}: {error}: pass a file in TOML") from error
    names = {parameter.name for parameter in context.command.params} - {"config", "models"}
    found = {name.replace("-", "_"): setting for name, setting in given.items()}
    for name in found.keys() - names:
        known = [str(each) for each in names]
        raise InputError(
            f"{value}: there is no setting {name!r:.80}{did_you_mean(name, known)}: name one of "
            f"{', '.join(sorted(known))}"
        )
    from nanochat.serve.options import typed_options

    try:
        context.default_map = typed_options(found, is_text=False)
    except InputError as error:
        raise InputError(f"{value}: {error}") from error


@click.command(epilog=_EXAMPLES, context_settings={"auto_envvar_prefix": "NANOCHAT_SERVE"})
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="A TOML file of these options, such as max-rows = 16; each may be a variable NANOCHAT_SERVE_MAX_ROWS, too.",
)
@click.option(
    "--served-name",
    multiple=True,
    help="A name by which requests name the model, in place of its own; repeatable.",
)
@backend_option
@threads_option
@click.option(
    "--kv-cache",
    type=click.Choice(get_args(Storage)),
    default="float32",
    show_default=True,
    help="What keys and values are kept in; the narrow ones round, and leave room for more texts.",
)
@tables_option
@unpinned_option
@_settings_options
def serve(models: Sequence[str], **given: Any) -> None:
    """Serve models over HTTP, as OpenAI's clients ask for them; each answer is what it would be alone.

    Ends with SIGTERM or Ctrl-C once all answers are written, and at once with a second one.
    """
    require_packages("serve", *_PACKAGES)

    from nanochat.serve.options import made_options
    from nanochat.serve.run import serve
    from nanochat.serve.workers import run_workers

    options = made_options({**given, **({"model": models} if models else {})})
    # What a server is asked is nobody else's business; the last one repeats what clients send as "tracestate".
    for name in ("uvicorn", "uvicorn.error", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("opentelemetry.trace.span").setLevel(logging.ERROR)
    settings = options.settings
    if settings.workers > 1:
        code = run_workers(sys.argv[1:], workers=settings.workers, port=settings.port, say=_say)
        raise click.exceptions.Exit(code)
    serve(settings, options.models, _say)


def _say(text: str) -> None:
    """Tell people, if it can be: whoever is served shall not suffer from a full disk, or a reader who has left."""
    with contextlib.suppress(OSError):
        note(text)
