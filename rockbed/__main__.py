"""`python -m rockbed`: the command line."""

import sys

try:
    from rockbed.server.cli import main
except ModuleNotFoundError as error:
    if error.name not in ("prometheus_client", "typer"):
        raise
    sys.exit(f"rockbed: the command line needs {error.name}: pip install 'rockbed[server]'")

if __name__ == "__main__":
    main()
