"""This file holds the run of a command: every mistake of a user becomes one line and an exit code.

Codes: 0 done, 1 the work failed, 2 wrong use, 3 nothing proven (of `models verify`), 130 interrupted (Ctrl-C; of
`data prepare`, and of `train`, for what is saved goes on alike, SIGTERM too), 141 the reader of the output went away.
"""

import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TextIO, cast

import click
from click.shell_completion import CompletionItem, shell_complete

from nanochat.cli.output import NoticeHandler
from nanochat.errors import (
    ConfigError,
    FormatError,
    InputError,
    NanochatError,
    SaveError,
    did_you_mean,
    how_to_install,
)
from nanochat.text.controls import without_controls

__all__ = ["INTERRUPTED", "Group", "as_file_errors", "missing", "require_packages", "run"]

INTERRUPTED = 130

# Which extra brings a package that the package runs without.
_EXTRAS = {
    "httptools": "serve",
    "llguidance": "serve",
    "lm_eval": "eval",
    "mlx": "mlx",
    "mlx_lm": "runtimes",
    "msgspec": "serve",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxruntime_genai": "runtimes",
    "prometheus_client": "serve",
    "pydantic": "train",
    "safetensors": "train",
    "starlette": "serve",
    "tensorboard": "tensorboard",
    "torch": "torch",
    "transformers": "runtimes",
    "triton": "cuda",
    "uvicorn": "serve",
}
_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
_LEVELS = ("debug", "info", "warning", "error")


def run(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command, which its user started by this name, and return its exit code.

    Without `arguments`, it gets those of the process.
    """
    _open_streams()
    variable = f"_{name}_COMPLETE".replace("-", "_").upper()
    if (instruction := os.environ.get(variable)) is not None:
        return shell_complete(command, dict(_SETTINGS), name, variable, instruction)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character is no reason to stop.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        _start_logging()
        words = list(sys.argv[1:] if arguments is None else arguments)
        with command.make_context(name, words, **_SETTINGS) as context:
            command.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as request:
        return int(request.exit_code)
    except click.ClickException as error:
        return _fail(_with_help(error), error.exit_code)
    except (InputError, ConfigError) as error:
        return _fail(str(error), 2)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return 141
    except NanochatError as error:
        return _fail(str(error), 1)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _EXTRAS:
            raise
        return _fail(missing(package), 1)
    except MemoryError:
        return _fail("out of memory: use a smaller model, a shorter context or fewer prompts", 1)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        code = _fail(f"{error.strerror or error}{where}", 1)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        return code
    finally:
        _stop_logging()
    return 0


def require_packages(extra: str, *packages: str) -> None:
    """Refuse to begin what needs packages of an extra that are not installed, naming all of them."""
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        raise click.ClickException(_missing(extra, absent))


def missing(package: str) -> str:
    """What to say where a package is missing: all that are of its extra, and the command that brings them."""
    extra = _EXTRAS[package]
    absent = [name for name, of in _EXTRAS.items() if of == extra and find_spec(name) is None]
    return _missing(extra, [package, *absent])


def _missing(extra: str, packages: Sequence[str]) -> str:
    names = sorted(set(packages))
    are = "package" if len(names) == 1 else "packages"
    return f"the {are} {' and '.join(names)} must be installed: {how_to_install(extra)}"


@contextmanager
def as_file_errors() -> Iterator[None]:
    """Report a configuration that cannot work as a fault of the file that holds it, not of the command's use."""
    try:
        yield
    except ConfigError as error:
        raise FormatError(str(error)) from error


class _ClosedInput(io.TextIOBase):
    """Standard input that was closed: whoever reads it is told what to pass instead."""

    @property
    def buffer(self) -> io.TextIOBase:
        return self

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]  # as of any text stream
        del size
        raise InputError(
            "standard input is closed: pipe something in, or pass it as an option (--prompt, --message, a file)"
        )

    read = readline


class _ClosedOutput(io.TextIOBase):
    """Standard output that was closed: a result for it is an error, and no result is none."""

    def write(self, text: str) -> int:
        if not text:
            return 0
        raise SaveError(
            "standard output is closed, so the result is lost: leave it open, or send it to a file or /dev/null"
        )


def _open_streams() -> None:
    """Put something in the place of streams that are closed, before files that are opened take their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free, which is this one.
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = cast(TextIO, _ClosedInput())
    if sys.stdout is None:
        sys.stdout = cast(TextIO, _ClosedOutput())
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123  # as long as the process runs


def _drop_output() -> None:
    """Let the interpreter, which flushes once more when it ends, do so without an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _start_logging() -> None:
    level = os.environ.get("NANOCHAT_LOG", "info").lower()
    if level not in _LEVELS:
        raise InputError(f"NANOCHAT_LOG={level!r}: choose one of {', '.join(_LEVELS)}")
    handler = NoticeHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("nanochat")
    logger.handlers = [handler]
    logger.setLevel(level.upper())


def _stop_logging() -> None:
    logger = logging.getLogger("nanochat")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.NOTSET)


def _with_help(error: click.ClickException) -> str:
    message = error.format_message().rstrip(".")
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{message}; see {error.ctx.command_path} --help"
    return message


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {without_controls(' '.join(message.split()))}", err=True)
    return code


class Group(click.Group):
    """Without arguments it shows its help; a verb that is not there is answered with those that are."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"subcommand_metavar": "VERB [ARGUMENTS]...", **kwargs})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Show the help if there is nothing to parse."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help())
            ctx.exit()
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb."""
        verbs = self.list_commands(ctx)
        if args[0] not in verbs:
            raise click.UsageError(
                f"there is no verb {args[0]!r}{did_you_mean(args[0], verbs)}: choose from {', '.join(verbs)}",
                ctx,
            )
        return super().resolve_command(ctx, args)

    def verbs(self, ctx: click.Context) -> dict[str, str]:
        """The verbs, each with its first sentence."""
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        return {name: verb.get_short_help_str(limit=1000) for name, verb in found if verb}

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs, with whole sentences."""
        with formatter.section("Verbs"):
            formatter.write_dl([*self.verbs(ctx).items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The verbs that begin so, and the options."""
        verbs = self.verbs(ctx).items()
        found = [
            CompletionItem(name, help=text) for name, text in verbs if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)
