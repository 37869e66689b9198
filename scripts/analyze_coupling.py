"""What couplings do to the noise of a data set: distance, alignment, moments, skew, miscibility, t-SNE.

Couples batches of the data by each coupling and measures the noises: how much nearer they are and how much of that is
only shorter noise, whether they are still N(0, I), how much of them the data or the condition now predicts. Nothing is
trained. Writes table.md, analysis.json and figures to the output folder, and prints the tables.
"""

import argparse
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from immiscible_policy import cli
from immiscible_policy.coupling import Coupling
from immiscible_policy.coupling.miscibility import tracked_noises
from immiscible_policy.coupling.spec import available, parse_coupling
from immiscible_policy.coupling.survey import STATISTICS
from immiscible_policy.evaluation.coupling_data import NamedData, array_data, pusht_data
from immiscible_policy.evaluation.coupling_figure import plot_tsne
from immiscible_policy.evaluation.coupling_report import analyze, markdown, tracked_data, write_report
from immiscible_policy.run_setup import set_threads

EPILOG = f"""\
data
  pusht              action windows of the default policy, normalised as it does; the condition is its observation
  cifar10            images from a folder of parquet files; the condition is the class
  NAME.npy           an array (N, ...) of normalised floats
  NAME.npz           arrays data and, if you like, condition (N, ...) or labels (N,)

couplings, written as tables show them (nested ones too: "Mixture(KNN(k=8), p=0.5)")
  {", ".join(available())}

statistics; "independent" is what noise gives that knows nothing of the data
{chr(10).join(f"  {name:<20} {meaning}" for name, meaning in STATISTICS.items())}

examples
  python scripts/analyze_coupling.py --data pusht --batch-size 64
  python scripts/analyze_coupling.py --data cifar10 --path data/cifar10 --couplings "KNN(k=4)" "KNN(k=8)"
  python scripts/analyze_coupling.py --data cifar10 --normalize standardized --clusters 20 --kl 50000 --output out
  python scripts/analyze_coupling.py --data actions.npz --couplings Independent "KNN(k=2, metric='inner')" --tsne 6
"""
DEFAULT_COUPLINGS = ["Independent()", "KNN(k=2)", "KNN(k=2, metric='inner')", "KNN(k=8)", "LinearAssignment()"]


def load(arguments: argparse.Namespace) -> NamedData:
    """The data that ``--data`` names."""
    if arguments.data == "pusht":
        return pusht_data(arguments.path)
    if arguments.data == "cifar10":
        from image_diffusion.cifar10 import load_cifar10, normalized

        images = load_cifar10(arguments.path or "data/cifar10", arguments.split)
        described = f"CIFAR-10: {len(images):,} {arguments.split} images, normalised: {arguments.normalize}"
        return NamedData(normalized(images.images, arguments.normalize), images.labels, described)
    if Path(arguments.data).suffix in (".npy", ".npz"):
        return array_data(Path(arguments.data))
    raise ValueError(f"--data must be pusht, cifar10, or a path to a .npy or .npz file, got {arguments.data!r}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="pusht, cifar10, or a .npy or .npz file")
    parser.add_argument("--path", help="where pusht's demonstrations or cifar10's parquet files are")
    parser.add_argument("--split", choices=("train", "test"), default="train", help="of cifar10 (default: train)")
    kinds = "of cifar10: to [-1, 1] (default), to mean 0 and variance 1 by channel, to [0, 1]"
    parser.add_argument("--normalize", choices=("symmetric", "standardized", "unit"), default="symmetric", help=kinds)
    parser.add_argument("--couplings", nargs="+", metavar="COUPLING", default=DEFAULT_COUPLINGS)
    about = "what a coupling sees at once; several give a row each (default: 256)"
    parser.add_argument("--batch-size", type=int, nargs="+", default=[256], metavar="B", help=about)
    about = "noises for the table, by coupling and batch size (default: 10240)"
    parser.add_argument("--noises", type=int, default=10_240, metavar="N", help=about)
    parser.add_argument("--seed", type=int, default=0, help="of the batches and the noise (default: 0)")
    about = "also the distances between the noise clusters of T data (default: 0, leave out)"
    parser.add_argument("--clusters", type=int, default=0, metavar="T", help=about)
    parser.add_argument(
        "--cluster-noises", type=int, default=2_000, metavar="N", help="noises for each (default: 2000)"
    )
    about = "also a Gaussian fit to N noises, N well above the dimension (default: 0, leave out)"
    parser.add_argument("--kl", type=int, default=0, metavar="N", help=about)
    about = "also t-SNE of 100 noises for each of T data (default: 0, leave out)"
    parser.add_argument("--tsne", type=int, default=0, metavar="T", help=about)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/coupling"), help="folder (default: outputs/coupling)"
    )
    return parser.parse_args()


def named_coupling(text: str) -> tuple[str, Coupling]:
    """A coupling under its repr, or under the text itself where that is shorter (and a call)."""
    coupling = parse_coupling(text)
    full = repr(coupling)
    return text if text.endswith(")") and len(text) < len(full) else full, coupling


def progress(steps: Iterable[int], name: str) -> Iterable[int]:
    return tqdm(steps, desc=name[:40], leave=False, disable=None)


def run(arguments: argparse.Namespace) -> None:
    couplings = dict(named_coupling(text.strip()) for text in arguments.couplings)
    set_threads(arguments.threads)
    named = load(arguments)
    print(f"{named.description}\n")
    sizes = (arguments.batch_size, arguments.noises, arguments.seed)
    optional = (arguments.clusters, arguments.cluster_noises, arguments.kl)
    analysis = analyze(named.data, couplings, named.condition, *sizes, *optional, progress)
    analysis["data"] = named.description
    analysis["command"] = " ".join(["python", *map(quoted, sys.argv)])
    analysis["versions"] = {name: version(name) for name in ("immiscible-policy", "torch", "numpy", "scipy")}
    written = write_report(arguments.output, analysis)
    if arguments.tsne:
        tracked = tracked_data(len(named.data), arguments.tsne, arguments.seed)
        inputs = (named.data, tracked, 100, arguments.batch_size[0], named.condition, arguments.seed, progress)
        written.append(arguments.output / "tsne.png")
        plot_tsne({name: tracked_noises(coupling, *inputs) for name, coupling in couplings.items()}, written[-1])
    print(markdown(analysis))
    print("written: " + ", ".join(map(str, written)))


def quoted(text: str) -> str:
    return f'"{text}"' if any(character in text for character in " '()*") else text


def main() -> None:
    arguments = parse_arguments()
    try:
        run(arguments)
    except (ValueError, TypeError, OSError) as error:
        cli.fail(str(error))


if __name__ == "__main__":
    sys.exit(cli.interruptible(main))
