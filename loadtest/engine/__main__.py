"""`python -m loadtest.engine DESCRIPTOR FIRST_NUMBER`: started by a Locust process, never by hand."""

import sys

from loadtest.engine.server import main

if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
