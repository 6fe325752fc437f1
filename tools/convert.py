"""Turn an authors' checkpoint into a safetensors file under Attlas' names, and say what became of every name.

python tools/convert.py biformer_tiny biformer_tiny_best.pth biformer_tiny.safetensors
"""

import argparse
from pathlib import Path
from typing import Any

from attlas.files import check_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", help="what the file is of (attlas.backbones.list() names all)")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--num-classes", type=int, help="of the file's head (1000)")
    parser.add_argument("--dense", action="store_true", help="the file is of a backbone for dense prediction")
    parser.add_argument("--container", help="name under which the file has the weights, such as model_ema")
    parser.add_argument("--names", action="store_true", help="print every renamed tensor, old and new")
    parser.add_argument(
        "--incomplete", action="store_true", help="write the file even if names are missing or left over"
    )
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    from attlas import checkpoint  # not for --help
    from attlas.backbones.zoo import create, load

    try:
        out = check_out(args.out, (".safetensors",), args.overwrite)
        options: dict[str, Any] = dict(num_classes=None) if args.dense else {}
        if args.num_classes is not None:
            options["num_classes"] = args.num_classes
        network = create(args.variant, **options)
        account = load(network, args.checkpoint, args.container)
        if args.names:
            for old, new in account.renamed.items():
                print(f"{old} -> {new}")
        if not (account.complete or args.incomplete):
            raise ValueError(
                "the account above is not complete: nothing was written. To write it all the same: --incomplete"
            )
        checkpoint.save(out, network.state_dict(), {"variant": args.variant, "source": args.checkpoint.name})
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{out}: {len(network.state_dict())} tensors, {out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
