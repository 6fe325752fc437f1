"""What a network costs, part by part: parameters, multiply-adds, activations, time.

python tools/analyze.py biformer_tiny
python tools/analyze.py configs/hornet/hornet_furniture_views.py --size 96
python tools/analyze.py nat_mini --size 800 1333 --dense --batch 1
"""

import argparse
from typing import TYPE_CHECKING

import torch
from rich.table import Table

if TYPE_CHECKING:
    from attlas.backbones.inspection.costs import Part


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "network",
        help="a checkpoint of a training, a config with a backbone, or a variant (attlas.backbones.list() names all)",
    )
    parser.add_argument("--size", type=int, nargs="+", default=[224], metavar="PIXELS", help="of the image (224)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dense", action="store_true", help="without a head: maps of all levels")
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed runs, the fastest of which counts; 0 for none (5)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def table(parts: "list[Part]", batch: int) -> Table:
    found = Table("part", "parameters", "MACs", "activations", "ms", "time", "output", box=None)
    for column in found.columns[1:6]:
        column.justify = "right"
    whole = parts[-1].seconds
    for part in parts:
        found.add_row(
            part.name,
            f"{part.params:,}",
            f"{part.macs / batch / 1e6:,.1f}",
            f"{part.activations / batch / 1e6:,.2f}",
            f"{part.seconds * 1e3:,.1f}",
            f"{part.seconds / whole:.0%}" if whole else "",
            " x ".join(map(str, part.shape)),
            style="bold" if part is parts[-1] else None,
        )
    return found


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    from attlas.backbones.inspection.costs import PeakMemory, analyze  # not for --help
    from attlas.backbones.zoo import find
    from attlas.files import console

    try:
        if len(args.size) > 2 or min(*args.size, args.batch) < 1:
            raise ValueError("--size takes one number, or height and width; these and --batch must be positive")
        options = dict(num_classes=None, out_indices=None) if args.dense else {}
        network = find(args.network, **options).to(args.device)
        image = torch.zeros(args.batch, network.in_channels, args.size[0], args.size[-1], device=args.device)
        parts = analyze(network, image, args.repeats)
        with PeakMemory([image, *network.parameters(), *network.buffers()]) as memory, torch.no_grad():
            network(image)
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError) as error:  # the last: PyTorch without CUDA
        parser.error(str(error))
    console().print(table(parts, args.batch))
    where = torch.cuda.get_device_name() if image.is_cuda else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{args.batch} x {args.size[0]} x {args.size[-1]} pixels, {where}. MACs (multiply-adds) and activations in "
        f"millions for one image, ms for the batch. Peak memory of the maps: {memory.peak / 2**20:.1f} MiB."
    )


if __name__ == "__main__":
    main()
