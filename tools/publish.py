"""Turn a checkpoint of a training into a small file for others: weights in half precision, as safetensors, with the
names of the classes, or, of a restorer, with what made the pictures worse that it learned from. Tensors with values
beyond 2048, from where half precision tells no odd numbers, stay in float32.

python tools/publish.py work_dirs/NAME/epoch_30.pth NAME.safetensors
"""

import argparse
import json
from pathlib import Path

from attlas.files import check_out, printable

LARGEST = 2048  # up to which float16 holds all integers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--float32", action="store_true", help="keep full precision")
    parser.add_argument(
        "--leave-out",
        action="store_true",
        help="take the weights of a file that holds objects too, and leave these out",
    )
    parser.add_argument("--container", help="name under which the file has the weights, such as model_ema")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    import torch  # not for --help

    from attlas import checkpoint
    from attlas.inference import class_names, dataset_meta

    try:
        out = check_out(args.out, (".safetensors",), args.overwrite)
        left_out: set[str] | None = set() if args.leave_out else None
        found = checkpoint.read(args.checkpoint, left_out=left_out)
        weights, meta = checkpoint.weights(found, args.container), found.get("meta")
        for name, count in checkpoint.besides(found, args.container).items():
            print(f"The file holds {name} besides, with {count} tensors. To take that: --container {name}")
        facts = dataset_meta(meta) if isinstance(meta, dict) else {}
        kept = {name: facts[name] for name in ("scale", "degradation") if name in facts}
        if classes := class_names(meta) if isinstance(meta, dict) else ():
            kept["classes"] = classes
        if left_out:
            print(f"Left out: {', '.join(map(printable, sorted(left_out)))}")
        if not args.float32:
            full = [name for name, w in weights.items() if w.dtype == torch.float32]
            large = {name for name in full if weights[name].numel() and not weights[name].abs().max() <= LARGEST}
            weights = weights | {name: weights[name].half() for name in full if name not in large}
            for name in sorted(large):
                print(f"{printable(name)} stays in float32: it holds values beyond {LARGEST}")
        checkpoint.save(out, weights, {"dataset_meta": json.dumps(kept)} if kept else {})
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{out}: {len(weights)} tensors, {out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
