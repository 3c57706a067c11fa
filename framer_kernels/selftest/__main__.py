"""The command's entry."""

import sys

from framer_kernels.selftest.command import main

sys.exit(main())
