"""``python -m lowland``."""

from __future__ import annotations

import sys

from lowland.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
