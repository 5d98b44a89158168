"""Entry point of ``python -m optuna_miha``."""

import sys

from optuna_miha._cli.main import main

if __name__ == "__main__":
    sys.exit(main())
