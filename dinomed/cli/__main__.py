"""`python -m dinomed.cli` is `dinomed`."""

import sys

from dinomed.cli.main import main

sys.exit(main())
