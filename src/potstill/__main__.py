"""`python -m potstill`: the command line."""

from potstill.cli import main

if __name__ == "__main__":
    main()
