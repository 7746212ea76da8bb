"""The application that the commands register with."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import collapsar as cs

__all__ = ["Interrupted", "app"]


class Interrupted(Exception):  # noqa: N818 - no error
    """Ctrl-C, and how to go on."""


class _Commands(TyperGroup):
    """Typer by itself ends at Ctrl-C without a word, and a run that was stopped has something to say."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Say where the commands of the studies come from, where they are not installed."""
        if args and args[0] in ("figures", "reproduce") and self.get_command(ctx, args[0]) is None:
            raise ValueError(f"`{args[0]}` comes with the studies: in a clone of the repository, pip install ./studies")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted(str(error) or "interrupted") from None


app = typer.Typer(
    name="collapsar",
    cls=_Commands,
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""
Predict, measure and prevent the collapse of classes in classifiers trained on imbalanced data.

A network trained to the end shrinks every class to one point. With imbalanced classes and too strong penalties, the
points of the small classes fall **onto each other**: the network can no longer tell them apart. That happens at sharp
thresholds, which `collapsar thresholds` computes; `collapsar solve` gives the exact geometry, with a certificate;
`collapsar train` and `collapsar demo` show it in a real network.

Start with `collapsar demo`.
""",
)


@app.callback()
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(cs.__version__)
        raise typer.Exit
