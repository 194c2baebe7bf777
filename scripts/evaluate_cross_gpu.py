"""Hold out a column of the data (by default the GPU), train on the rest, and score on what was held out."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from aks.core.errors import AksError
from aks.evaluate.run import evaluate_holdout
from aks.evaluate.tables import print_generalization
from aks.ops import find_op


def main(arguments: list[str] | None = None) -> int:
    """Run, print the tables, and return the exit status: 2 if the data does not allow it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="+", type=Path, help="measurement files, one a GPU: data/gemm/*.parquet")
    parser.add_argument("--op", default="gemm", help="default: %(default)s")
    parser.add_argument("--holdout", default="device", metavar="COLUMN", help="device, family, dtype, n, ...")
    parser.add_argument("--regime", default="cold", choices=["cold", "warm", "chain"], help="default: %(default)s")
    parser.add_argument("--groups", type=int, default=5, help="trainings at most; more values share one (default: 5)")
    parser.add_argument("--ladder", action="store_true", help="score the learned baselines too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all rows there")
    options = parser.parse_args(arguments)
    try:
        op = find_op(options.op)
        result = evaluate_holdout(
            op,
            options.data,
            options.holdout,
            regime=options.regime,
            max_groups=options.groups,
            ladder=options.ladder,
            progress=lambda text: print(f"holding out {text}", file=sys.stderr),
        )
    except AksError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_generalization(result, op.problem_type.AXES[0])
    if options.json:
        options.json.write_text(json.dumps(result.to_json(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
