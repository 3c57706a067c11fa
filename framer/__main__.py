"""``python -m framer``: the command ``framer``, where its script is not on the path."""

import sys

from framer.cli import main

if __name__ == "__main__":
    sys.exit(main())
