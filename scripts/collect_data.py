"""``aks collect`` as a script: ``python scripts/collect_data.py --minutes 30 --out runs/h200.db``."""

import sys

from aks.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "collect")
    main()
