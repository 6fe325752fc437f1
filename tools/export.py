"""Export a network: by torch.export (.pt2), which keeps the operators of Attlas, or to ONNX (.onnx), which needs none.

python tools/export.py biformer_tiny biformer_tiny.onnx --weights biformer_tiny_best.pth
python tools/export.py configs/hornet/hornet_furniture_views.py hornet.pt2 --size 64
"""

import argparse
import logging
import warnings
from pathlib import Path

import torch

from attlas.files import check_out, replacing


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="a variant (attlas.backbones.list() names all), or a config with a backbone")
    parser.add_argument("out", type=Path, metavar="OUT.onnx|OUT.pt2")
    parser.add_argument("--weights", type=Path, help="a checkpoint of the authors or of ours")
    parser.add_argument(
        "--size", type=int, nargs="+", default=[224], metavar="PIXELS", help="of the image, fixed (224)"
    )
    parser.add_argument("--batch", type=int, default=1, help="images at a time, fixed (1)")
    parser.add_argument("--num-classes", type=int, help="of the head")
    parser.add_argument("--dense", action="store_true", help="without a head: maps of all levels")
    parser.add_argument("--fuse", action="store_true", help="merge batch norms into convolutions first")
    parser.add_argument("--overwrite", action="store_true")
    return parser


def largest_difference(outputs, expected) -> float:
    """Relative to the largest value of each output."""
    pairs = zip(outputs, expected if isinstance(expected, tuple) else (expected,))
    return float(torch.stack([(a - b).abs().max() / b.abs().max().clamp(min=1e-12) for a, b in pairs]).max())  # or NaN


def export(network: torch.nn.Module, image: torch.Tensor, out: Path) -> float:
    """Write the file, run it, and return how much it differs from the network."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of PyTorch, about itself
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which we do without
    with torch.no_grad(), replacing(out) as temporary:
        expected = network(image)
        program = torch.export.export(network, (image,))
        if out.suffix == ".pt2":
            torch.export.save(program, temporary)
            outputs = torch.export.load(temporary).module()(image)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        else:
            import onnxruntime

            from attlas.kernels.dispatch import decompositions

            written_out = program.run_decompositions(decompositions())
            torch.onnx.export(written_out, (image,), temporary, dynamo=True, external_data=False, verbose=False)
            session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
            arrays = session.run(None, {session.get_inputs()[0].name: image.numpy()})
            outputs = tuple(map(torch.from_numpy, arrays))
        difference = largest_difference(outputs, expected)
        if not difference < 1e-2:
            raise RuntimeError(f"what was exported differs from the network by {difference:.1e}: nothing was written")
    return difference


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    from attlas.backbones.zoo import find  # not for --help

    try:
        out = check_out(args.out, (".onnx", ".pt2"), args.overwrite)
        if len(args.size) > 2 or min(*args.size, args.batch) < 1:
            raise ValueError("--size takes one number, or height and width; these and --batch must be positive")
        options = dict(num_classes=None, out_indices=None) if args.dense else {}
        if args.num_classes is not None:
            options["num_classes"] = args.num_classes
        network = find(args.network, args.weights, **options)
        if args.fuse:
            network.fuse()
        image = torch.randn(args.batch, network.in_channels, args.size[0], args.size[-1])
        difference = export(network, image, out)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        parser.error(str(error))
    print(
        f"{out}: {out.stat().st_size / 2**20:.1f} MiB, for {tuple(image.shape)}; "
        f"differs from the network by {difference:.1e} of the largest value"
    )


if __name__ == "__main__":
    main()
