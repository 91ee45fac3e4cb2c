"""The ``sgl`` command, also by ``python -m sgl``; imports nothing itself, so that Ctrl-C always ends it quietly."""

import os
from typing import NoReturn


def program() -> NoReturn:
    """See `sgl.cli.main.program`."""
    try:
        from sgl.cli.main import program as run
    except KeyboardInterrupt:
        os._exit(130)
    run()


if __name__ == "__main__":
    program()
