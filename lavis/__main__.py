"""`python -m lavis` is the `lavis` command."""

import sys

from lavis.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
