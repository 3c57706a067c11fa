"""``python -m framer.training``: ``train.py`` where there is no source tree, and what launchers can start."""

import sys

from framer.training.command import main

if __name__ == "__main__":
    sys.exit(main())
