"""The commands that work on a store, in the order of `rockbed --help`."""

import typer

from rockbed.server.cli_bench import bench
from rockbed.server.cli_care import check, compact, flush, shrink
from rockbed.server.cli_copies import checkpoint, export, import_, restore
from rockbed.server.cli_look import groups, stats
from rockbed.server.cli_options import unfolded
from rockbed.server.cli_rows import drop, get, put
from rockbed.server.cli_top import top

_PANELS = {
    "Look": (groups, stats, top, check, bench),
    "Rows": (get, put, drop, shrink),
    "Disk": (flush, compact),
    "Copies": (checkpoint, restore, export, import_),
}


def add_commands(app: typer.Typer) -> None:
    """Make them commands of the application."""
    for panel, commands in _PANELS.items():
        for command in commands:
            name = command.__name__.rstrip("_")
            # -5 is a key, and no option
            settings = {"ignore_unknown_options": True} if command is get else None
            app.command(name, rich_help_panel=panel, context_settings=settings)(unfolded(command))
