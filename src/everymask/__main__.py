"""`python -m everymask`, which `torchrun -m everymask` needs."""

import sys

from everymask.cli import main

sys.exit(main())
