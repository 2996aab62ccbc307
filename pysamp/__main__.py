"""`python -m pysamp` and `torchrun -m pysamp`: the same as the command `pysamp`."""

import sys

from pysamp.cli import main

sys.exit(main())
