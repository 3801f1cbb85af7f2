"""Asking before something is lost."""

import sys

import typer

from rockbed.server.cli_errors import WrongUsage


def must_be_able_to_ask(what: str) -> None:
    """Raise WrongUsage where nobody can answer."""
    if not sys.stdin.isatty():
        raise WrongUsage(f"{what}: nobody can be asked here (stdin is no terminal): give --yes")


def typed(question: str) -> str:
    """What is typed after a question on stderr; an empty answer is one, too."""
    answer: str = typer.prompt(question, default="", show_default=False, err=True)
    return answer.strip()
