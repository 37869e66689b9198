"""Reports as web pages: python scripts/report.py outputs/<date>/<time>_<name>

Writes report.html, one file that needs no network, into each folder given: a training run's (finished or not), or one
that holds several, as a sweep's does. The runs of such an experiment get theirs too, unless it is up to date.
"""

import argparse
import sys
from pathlib import Path

from immiscible_policy import cli
from immiscible_policy.evaluation.report import MAX_EMBEDDED_MB, write_reports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold runs")
    parser.add_argument(
        "--max-embedded-mb",
        type=float,
        default=MAX_EMBEDDED_MB,
        help="megabytes of pictures and videos put into a file (default %(default)g); what is left is linked beside it",
    )
    arguments = parser.parse_args()
    try:
        for folder in arguments.folders:
            for path, problems in write_reports(folder, arguments.max_embedded_mb):
                print(f"report     {path}")
                for problem in problems:
                    print(f"warning: {path.parent}: {problem}", file=sys.stderr)
    except (ValueError, OSError) as error:
        cli.fail(str(error))


if __name__ == "__main__":
    sys.exit(cli.interruptible(main))
