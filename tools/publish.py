"""Turn a checkpoint of a training into a small file for others: weights alone, in half precision, as safetensors.

python tools/publish.py work_dirs/NAME/epoch_30.pth NAME.safetensors
"""

import argparse
from pathlib import Path

import torch

from attlas import checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--float32", action="store_true", help="keep full precision")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    try:
        if args.out.exists() and not args.overwrite:
            raise FileExistsError(f"{args.out} exists. To replace it: --overwrite.")
        weights = checkpoint.weights(checkpoint.read(args.checkpoint))
        if not args.float32:
            weights = {n: w.to(torch.float16) if w.dtype == torch.float32 else w for n, w in weights.items()}
        checkpoint.save(args.out, weights)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{args.out}: {len(weights)} tensors, {args.out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
