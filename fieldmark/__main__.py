"""``python -m fieldmark``: the same as the ``fieldmark`` command."""

from fieldmark.cli import main

if __name__ == "__main__":
    main()
