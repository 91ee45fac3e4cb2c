"""Makes ``python -m sgl`` the ``sgl`` command."""

from sgl.cli.main import program

if __name__ == "__main__":
    program()
