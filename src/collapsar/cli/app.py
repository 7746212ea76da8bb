"""The application that the commands register with. A command's module is imported when the command is called."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import collapsar as cs

# Module and first words of every command, so that `--help` need not import them; a test keeps the two equal.
COMMANDS = {
    "demo": ("training", "Train five networks on imbalanced data and watch the small classes collapse."),
    "diagnose": ("diagnose", "Say which classes of a trained network have merged or vanished."),
    "audit": ("audit", "Say which classes of any trained classifier are dead, from its head alone."),
    "advise": ("advise", "Which classes merge at your penalties, and the least change that keeps them separated."),
    "solve": ("theory", "The exact optimum: which classes are separated, merged or vanished at this penalty."),
    "thresholds": ("theory", "The penalties lambda_z at which classes merge, vanish, and everything collapses."),
    "phase": ("phase", "Which classes stay separated, merge or vanish, over a grid of two parameters."),
    "train": ("training", "Train a network on imbalanced data with penalised features."),
    "report": ("report", "Write a page about trained networks, for any reader, and open it."),
    "explore": ("report", "Write a page that solves the model as you move its sliders, and open it."),
}
STUDIES = {
    "reproduce": "Train the networks behind a figure of Hong & Ling (2024).",
    "figures": "Pictures and tables of the theory.",
}


class Interrupted(Exception):  # noqa: N818 - not an error
    """Ctrl-C, and how to continue."""


def _added() -> dict[str, EntryPoint]:
    """Commands of other distributions: each entry point names a module that registers its own with ``app``."""
    return {entry.name: entry for entry in entry_points(group="collapsar.commands")}


class _Commands(TyperGroup):
    """Commands by name, imported when called; Ctrl-C ends with the message of the run that was stopped."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*COMMANDS, *_added()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The entry in `--help`; :meth:`resolve_command` has the command itself."""
        words = COMMANDS[cmd_name][1] if cmd_name in COMMANDS else STUDIES.get(cmd_name)
        known = cmd_name in COMMANDS or cmd_name in _added()
        return TyperCommand(cmd_name, help=words) if known else super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command, or say where to get it."""
        name = args[0] if args else ""
        if name in COMMANDS:
            import_module(f"collapsar.cli.{COMMANDS[name][0]}")
        elif (entry := _added().get(name)) is not None:
            entry.load()
        elif name in STUDIES:
            raise ValueError(f"`{name}` is part of the studies: in a clone of the repository, pip install ./studies")
        else:
            return super().resolve_command(ctx, args)
        return name, program().commands[name], args[1:]

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

A network trained to the end shrinks every class to one point. With imbalanced classes and penalties that are too
strong, the points of the small classes fall **onto each other**: the network can no longer tell them apart. That
happens at sharp thresholds, which `collapsar thresholds` computes; `collapsar solve` gives the exact geometry, with a
certificate; `collapsar train` and `collapsar demo` show it in a real network.

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


def program() -> Any:
    """The commands registered so far, ready to be called; made again only when there are more."""
    return _program(len(app.registered_commands), len(app.registered_groups))


@cache
def _program(_num_commands: int, _num_groups: int) -> Any:
    return typer.main.get_group(app)
