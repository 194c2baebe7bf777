"""``aks evaluate --holdout device`` as a script: ``python scripts/evaluate_cross_gpu.py --json runs/cross_gpu.json``.

Takes every option of ``aks evaluate``; ``--holdout`` names another column to hold out.
"""

import sys

from aks.cli import main

if __name__ == "__main__":
    # First, because of an option given twice the last one holds.
    sys.argv[1:1] = ["evaluate", "--holdout", "device"]
    main()
