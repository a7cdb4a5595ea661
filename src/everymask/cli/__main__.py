"""`python -m everymask.cli`."""

import sys

from everymask.cli import main

sys.exit(main())
