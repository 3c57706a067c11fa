"""Trains a model with FRAMER: deepspeed train.py --config configs/quickstart.yaml [key=value ...]."""

import sys

from framer.training.command import main

if __name__ == "__main__":
    sys.exit(main())
