"""`python -m torpor` is `torpor`."""

from torpor.cli import main

if __name__ == "__main__":
    main()
