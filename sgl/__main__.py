"""Makes ``python -m sgl`` the ``sgl`` command."""

from sgl.cli.main import main

if __name__ == "__main__":
    main()
