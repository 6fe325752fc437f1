"""Look at clouds, images, what networks make of them, and at results; in a window, or as a picture (.png, .pdf, .svg).

    python tools/visualize.py cloud CONFIG --item 3 --out chair.png
    python tools/visualize.py normals --file chair.obj --window
    python tools/visualize.py samples CONFIG --item 3 --out layers.png
    python tools/visualize.py neighborhood CONFIG CHECKPOINT --item 3 --layer 1 --query 10 --out neighbors.png
    python tools/visualize.py turning CONFIG CHECKPOINT --against PointNet++=CONFIG:CHECKPOINT --item 3 --out strip.png
    python tools/visualize.py confusion results.npz [OTHER.npz ...] --out confusion.png
    python tools/visualize.py room --number 7 --out room.png
    python tools/visualize.py detections CONFIG CHECKPOINT --items 3 7 12 --out found.png
    python tools/visualize.py maps CONFIG CHECKPOINT --items 3 7 12 --out maps.png
    python tools/visualize.py segments CONFIG CHECKPOINT --items 3 7 --turned SO3 --out segments.png
    python tools/visualize.py strip CONFIG epoch_1.pth epoch_4.pth epoch_12.pth --item 7 --out strip.png
    python tools/visualize.py relation CONFIG CHECKPOINT --item 7 --layer 3 --out bias.png
    python tools/visualize.py keypoints CONFIG CHECKPOINT --file room.jpg --out keys.png
    python tools/visualize.py attention biformer_tiny --weights FILE --image cat.jpg --place 0.5 0.4 --out looks.png
    python tools/visualize.py saliency CHECKPOINT chair.jpg --method normgrad gradcam --target chair --out why.png
    python tools/visualize.py interpreter ia_red2_deit_small --weights FILE --image cat.jpg --out kept.png
    python tools/visualize.py tree dependencyvit_tiny --weights FILE --image cat.jpg --out tree.png
    python tools/visualize.py prompts tcpa_furniture.pth --image cat.jpg --size 64 --folder cats/ --out prompts.png
    python tools/visualize.py registers dinov2_base ph_reg_dinov2_base --weights A B --image cat.jpg --out registers.png
    python tools/visualize.py contrast VLM_FOLDER --image street.jpg --question "What does the sign say?" --out look.png
    python tools/visualize.py contrast deit_small --weights FILE --image cat.jpg --out look.png
    python tools/visualize.py restored CONFIG CHECKPOINT --item 2 --crop 200 160 64 --out restored.png
    python tools/visualize.py scanpaths CONFIG CHECKPOINT --items 3 7 --out paths.png
    python tools/visualize.py attribution hat.pth --against ffnet.pth --file cat.png --place 120 90 --out lam.png
    python tools/visualize.py matches CONFIG CHECKPOINT --items 0 7 --out matches.png
    python tools/visualize.py anomalies CONFIG CHECKPOINT --item 4 --out curve.png

Items are those of the config's test data; --file takes a mesh, a cloud or an image of yours instead.
"""

import argparse
import sys
from pathlib import Path

from attlas.files import PICTURES, check_out, save_figure

sys.path.insert(0, str(Path(__file__).resolve().parent))  # Python leaves it out with -P and PYTHONSAFEPATH

from visualizing import dense, images, shapes

# The library is imported where it is used: Open3D, Matplotlib and PyTorch Geometric take seconds, and --help needs none
# of them.


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (shapes, dense, images):
        group.add(commands)
    return parser


def run(args: argparse.Namespace) -> None:
    if args.out is None:
        args.draw(args)
    else:
        out = check_out(args.out, PICTURES, args.overwrite)  # before the work, not after it
        save_figure(args.draw(args), out)


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    try:
        run(args)
    except (ImportError, OSError, ValueError, KeyError, RuntimeError) as error:
        parser.error(str(error))
    if args.out:
        print(args.out)


if __name__ == "__main__":
    main()
