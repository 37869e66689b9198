"""Coverage over training seeds, by coupling: python scripts/coverage_table.py outputs/<date>/<time>_sweep

Reads the final evaluations of finished runs (run folders, or folders that hold runs) and prints a Markdown table: means
with 95% intervals over training seeds and episodes, and each coupling's paired difference from coupling=none. Runs that
differ in what else they were trained with stand in rows of their own, named by it. Runs of images, and those without a
finished evaluation, are left out with a warning.
"""

import argparse
import sys
from pathlib import Path

from immiscible_policy import cli
from immiscible_policy.evaluation.figure import coverage_curves
from immiscible_policy.evaluation.table import coverage_table, load_runs, markdown
from immiscible_policy.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold runs")
    parser.add_argument("--output", type=Path, help="also write the table's numbers to this JSON file")
    parser.add_argument("--figure", type=Path, help="also plot coverage while training to this PNG")
    arguments = parser.parse_args()
    try:
        runs = load_runs(arguments.folders)
        table = coverage_table(runs)
        if arguments.output:
            write_json(arguments.output, table)
        if arguments.figure:
            coverage_curves(runs, arguments.figure)
        print(markdown(table))
    except (ValueError, OSError) as error:
        cli.fail(str(error))


if __name__ == "__main__":
    sys.exit(cli.interruptible(main))
