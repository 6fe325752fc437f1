"""Look at the data of a config, as a network gets them, with their annotations: boxes, masks, semantic maps, classes.

    python tools/browse_dataset.py configs/_base_/furniture14.py --out sheet.png
    python tools/browse_dataset.py CONFIG --split val --items 3 14 15 --show

Without --items, some that are spread evenly over the data set. Images, clouds, and what mmdet and mmseg read.
"""

import argparse
from pathlib import Path

from mmengine.config import DictAction

from attlas.files import PICTURES, check_out, save_figure

# The library is imported where it is used: Matplotlib and what the data need take seconds, and --help needs none of it.


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--split", choices=("train", "val", "test"), default="train", help="whose data (train)")
    parser.add_argument("--items", type=int, nargs="+", metavar="N", help="numbers of items, from 0")
    parser.add_argument("--count", type=int, default=15, metavar="N", help="items without --items (15)")
    parser.add_argument("--up", choices=("y", "z"), default="y", help="the axis that points up in clouds (y)")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--out", type=Path, default=Path("sheet.png"), help="the picture to write (sheet.png)")
    target.add_argument("--show", action="store_true", help="show them in a window instead")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing picture")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="override the config")
    return parser


def browse(args: argparse.Namespace) -> str:
    """Draw or show what was asked for; the line that says so."""
    out = None if args.show else check_out(args.out, PICTURES, args.overwrite)  # before the work, not after it
    from attlas import browsing
    from attlas.config import load_config

    dataset = browsing.config_dataset(load_config(args.config, args.cfg_options), args.split)
    items = browsing.choose(dataset, args.count, args.items)
    if out is None:
        browsing.show(dataset, items, args.up)
    else:
        save_figure(browsing.draw_items(dataset, items, args.up), out)
    name = type(dataset).__name__
    return f"{name}, {args.split}: {len(items)} of {len(dataset):,} items{'' if out is None else f' in {out}'}"


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    try:
        print(browse(args))
    except (ImportError, OSError, ValueError, KeyError, RuntimeError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
