"""Write the furnished rooms as clouds of labelled points, for the configs `*_room_clouds.py`.

python tools/make_room_clouds.py data/room_clouds
"""

import argparse
from pathlib import Path


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the folder to write")
    parser.add_argument("--train", type=int, default=96, metavar="N", help="rooms to train on (96)")
    parser.add_argument("--test", type=int, default=32, metavar="N", help="rooms to test on (32)")
    parser.add_argument("--points", type=int, default=40_000, metavar="N", help="points of a room (40000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the series of rooms (0)")
    return parser


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    try:
        from rich.console import Console  # not for --help
        from rich.progress import Progress

        from attlas.dense.room_clouds import write_room_clouds

        with Progress(console=Console(stderr=True), transient=True) as bar:
            job = bar.add_task("rooms", total=args.train + args.test)
            write_room_clouds(args.root, args.train, args.test, args.points, args.seed, lambda: bar.advance(job))
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{args.train} rooms to train on and {args.test} to test on, of {args.points:,} points each: {args.root}")


if __name__ == "__main__":
    main()
