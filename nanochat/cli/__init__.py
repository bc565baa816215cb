"""This package holds the command line: `nanochat VERB`, each verb in a module that is imported when it is used."""

import sys
from collections.abc import Sequence
from importlib import import_module

import click

from nanochat import __version__
from nanochat.cli.run import Group, run

__all__ = ["main"]

_VERBS = {
    "generate": ("nanochat.cli.generate", "generate", "Continue a text."),
    "chat": ("nanochat.cli.generate", "chat", "Talk with a model."),
    "serve": ("nanochat.cli.serve", "serve", "Serve models to OpenAI's clients."),
    "models": ("nanochat.cli.models", "models", "List the models that have a name."),
    "info": ("nanochat.cli.info", "info", "Show the size and cost of a preset or a model."),
    "export": ("nanochat.cli.export", "export", "Write a model as GGUF, ONNX, MLX ... for others."),
    "data": ("nanochat.cli.data", "data", "Turn text into training data."),
    "train": ("nanochat.cli.train", "train", "Train a model."),
    "check": ("nanochat.cli.check", "check", "Train, export and run a small model, as a trial."),
    "eval": ("nanochat.cli.evaluate", "evaluate", "Measure how good a model's programs are."),
    "judge": ("nanochat.cli.evaluate", "judge", "Judge programs again, without the model."),
    "rl": (
        "nanochat.cli.rl",
        "reinforce",
        "Train a model by what a compiler says of its programs.",
    ),
    "learn": ("nanochat.cli.learn", "learn", "Learn lessons for prompts, weights untouched."),
    "report": ("nanochat.cli.report", "report", "Compare training runs on a page."),
    "tune": ("nanochat.cli.tune", "tune", "Measure what is fastest on this processor."),
    "doctor": ("nanochat.cli.doctor", "doctor", "Show what this machine can run, and why."),
}
_EPILOG = """\b
Examples:
  nanochat generate nanochat-tiny "fn main() {"
  nanochat chat microsoft/bitnet-b1.58-2B-4T
  nanochat doctor
"""


class _LateGroup(Group):
    """The verbs, known by name and by a line of help before their modules are imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module, attribute, _ = _VERBS[cmd_name]
        try:
            command: click.Command = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise click.UsageError(
                f"{cmd_name} cannot run, because {error.name} is not installed", ctx
            ) from error
        return command

    def verbs(self, ctx: click.Context) -> dict[str, str]:  # noqa: ARG002
        return {name: text for name, (_, _, text) in _VERBS.items()}


@click.group(cls=_LateGroup, epilog=_EPILOG)
@click.version_option(__version__, message="nanochat %(version)s")
def _nanochat() -> None:
    """Ternary language models: generate, chat, train and export."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `nanochat` and end the process with its exit code."""
    sys.exit(run(_nanochat, "nanochat", arguments))
