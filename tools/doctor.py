"""Look at a training before it begins: classes, sizes, targets, schedule, and whether it can learn one batch by heart.

    python tools/doctor.py configs/retinanet/retinanet_shvit_coco.py --out targets.png
    python tools/doctor.py CONFIG --steps 200 --cfg-options train_dataloader.batch_size=4

It trains for a minute at most, and leaves nothing but --out. The exit status is 1 if something is wrong.
"""

import argparse
import sys
import warnings
from pathlib import Path

from mmengine.config import DictAction
from rich.console import Console

from attlas.config import load_config
from attlas.files import check_out, printable


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--steps", type=int, default=60, metavar="N", help="updates on one batch, 0 for none (60)")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="for a picture of targets behind the pipeline")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing picture")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="override the config")
    return parser


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of libraries; what matters is among the findings
    from attlas.backbones.channels import fill_channels  # not for --help
    from attlas.data import fill_classes_from_data
    from attlas.doctor import examine

    console, wrong = Console(highlight=False, soft_wrap=True), 0
    try:
        if args.steps < 0:
            raise ValueError(f"--steps must be at least 0, got {args.steps}")
        out = args.out and check_out(args.out, (".png",), args.overwrite)
        cfg = load_config(args.config, args.cfg_options)
        for name in ("model", "train_dataloader", "train_cfg", "optim_wrapper"):
            if cfg.get(name) is None:
                raise ValueError(f"{args.config} has no {name}: nothing to train.")
        fill_channels(cfg.model, cfg.get("default_scope"))
        fill_classes_from_data(cfg, "train")
        for finding in examine(cfg, args.steps, out):
            line = f"{'!' if finding.warning else ' '} {finding.about:10} {printable(finding.text, 1000)}"
            console.print(line, markup=False, style="bold red" if finding.warning else None)
            wrong += finding.warning
    except (ImportError, OSError, ValueError, KeyError) as error:
        parser.error(str(error))
    print(f"{wrong} of these need a look." if wrong else "Nothing wrong was found.")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
