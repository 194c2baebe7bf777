"""``aks train`` as a script: ``python scripts/train.py --data data/gemm/h200.parquet --out runs/gemm``."""

import sys

from aks.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
