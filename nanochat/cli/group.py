"""This file holds a command that only leads to others."""

from typing import Any

import click

__all__ = ["Group"]


class Group(click.Group):
    """Without arguments it shows its help; a verb that is not there is answered with those that are."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"subcommand_metavar": "VERB [ARGUMENTS]...", **kwargs})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Show the help if there is nothing to parse."""
        if not args:
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
                f"there is no verb {args[0]!r}: choose from {', '.join(verbs)}", ctx
            )
        return super().resolve_command(ctx, args)
