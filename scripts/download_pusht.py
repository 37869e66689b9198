"""Download the 206 human PushT demonstrations of the Diffusion Policy paper (about 30 MB)."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from immiscible_policy.cli import report_failure
from immiscible_policy.data.install_pusht import PUSHT_STORE, PUSHT_URL, fetch_pusht
from immiscible_policy.download import DownloadError

EXAMPLES = f"""\
examples:
  python scripts/download_pusht.py                              # into data/pusht/, where training looks
  python scripts/download_pusht.py --archive ~/pusht.zip        # you fetched the archive yourself
  python scripts/download_pusht.py --directory /scratch/pusht   # then train with
      dataset.path=/scratch/pusht/{PUSHT_STORE}

An interrupted download continues when the command is run again. Before they are put in place, the recorded
actions, states and episode ends are compared with a digest of the 206 demonstrations.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--directory", type=Path, default=Path("data/pusht"), help="where to put it (default: %(default)s)"
    )
    parser.add_argument("--url", default=PUSHT_URL, help="http(s):// or file:// (default: %(default)s)")
    parser.add_argument("--archive", type=Path, help="use this zip instead of downloading; it is kept")
    parser.add_argument("--sha256", help="expected SHA-256 of the archive (we know of no published one)")
    parser.add_argument("--force", action="store_true", help="replace demonstrations that are already there")
    parser.add_argument("--any-content", action="store_true", help="accept other recordings in the same layout")
    parser.add_argument("--retries", type=int, default=4, help="attempts after the first (default: %(default)s)")
    parser.add_argument(
        "--retry-delay", type=float, default=2.0, help="seconds before the first retry (default: %(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        store = fetch_pusht(**vars(arguments))
    except (DownloadError, ValueError, OSError) as error:
        return report_failure(error)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue the download", file=sys.stderr)
        return 130
    print(f"demonstrations are in {store}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
