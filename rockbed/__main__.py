"""`python -m rockbed`: the command line."""

import sys

try:
    from rockbed.server.cli import main
except ModuleNotFoundError as error:
    if error.name != "typer":
        raise
    sys.exit("rockbed: the command line needs typer: pip install 'rockbed[server]'")

if __name__ == "__main__":
    main()
