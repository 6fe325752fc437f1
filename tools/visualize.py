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
import math
import os
from pathlib import Path

from attlas.files import PICTURES, check_out, save_figure

# The library is imported where it is used: Open3D, Matplotlib and PyTorch Geometric take seconds, and --help needs none
# of them.


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    # config, checkpoint: None for a command without, "" for one that needs it, "?" for one that may do without
    def command(
        name: str, help: str, config: str | None, checkpoint: str | None, window: bool
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help)
        if config is not None:
            sub.add_argument("config", type=Path, nargs=config or None)
            if checkpoint is not None:
                sub.add_argument("checkpoint", type=Path, nargs=checkpoint or None)
            source = sub.add_mutually_exclusive_group(required=True)
            source.add_argument("--item", type=int, help="number of a shape of the test data")
            source.add_argument("--file", type=Path, help="a mesh or a cloud")
            sub.add_argument("--up", choices=("y", "z"), default="y", help="the axis that points up in the shape (y)")
            sub.add_argument("--azimuth", type=float, default=30, metavar="DEGREES", help="of the eye (30)")
            sub.add_argument("--elevation", type=float, default=20, metavar="DEGREES", help="of the eye (20)")
        target = sub.add_mutually_exclusive_group(required=True)
        target.add_argument("--out", type=Path, help="the picture to write")
        if window:
            target.add_argument("--window", action="store_true")
        sub.add_argument("--overwrite", action="store_true", help="replace an existing picture")
        return sub

    command("cloud", "the points that a network gets", "?", None, True)
    command("normals", "the points with their normals", "?", None, True)
    command("samples", "the points that every layer samples", "", "?", True)
    sub = command("neighborhood", "the neighbors of one query, their order and attention", "", "", True)
    sub.add_argument("--layer", type=int, default=1, help="from 1 (1)")
    sub.add_argument("--query", type=int, default=0, help="from 0 (0)")
    sub = command("turning", "the answers of networks when a shape is turned", "", "", False)
    sub.add_argument("--name", default="RISurConv", help="of the first network in the picture (RISurConv)")
    sub.add_argument(
        "--against", type=opponent, nargs="+", default=[], metavar="NAME=CONFIG:CHECKPOINT", help="other networks"
    )
    sub.add_argument("--views", type=int, default=6)
    sub.add_argument("--seed", type=int, default=0, help="of the rotations")
    sub = command("confusion", "confusion matrices of tools/test.py --out", None, None, False)
    sub.add_argument("results", type=Path, nargs="+")
    sub = command("room", "furnished rooms, and the truth about the first of them", None, None, True)
    sub.add_argument("--split", choices=("train", "test"), default="train", help="whose furniture (train)")
    sub.add_argument("--seed", type=int, default=0, help="of the series of rooms (0)")
    sub.add_argument("--number", type=int, nargs="+", required=True, metavar="N", help="rooms of the series, from 0")

    def detector(name: str, help: str, several: bool = False) -> argparse.ArgumentParser:
        sub = command(name, help, None, None, False)
        sub.add_argument("config", type=Path)
        sub.add_argument("checkpoint", type=Path, nargs="+" if several else None)
        return sub

    def image(sub: argparse.ArgumentParser) -> None:
        source = sub.add_mutually_exclusive_group()
        source.add_argument("--item", type=int, default=0, help="number of an image of the test data (0)")
        source.add_argument("--file", type=Path, help="an image")

    def score(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--score", type=float, default=0.3, help="from which an object is drawn (0.3)")

    sub = detector("detections", "what a detector finds, below the annotations")
    sub.add_argument("--items", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="of the test data (0 1 2)")
    score(sub)
    sub = detector("maps", "the labels that a segmentor gives, below the true ones")
    sub.add_argument("--items", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="of the test data (0 1 2)")
    sub = detector("scanpaths", "the order of looks that a network predicts, below the true one")
    sub.add_argument("--items", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="of the test data (0 1 2)")
    sub = command("segments", "the labels that networks give to points, beside the true ones", None, None, True)
    sub.add_argument("config", type=Path)
    sub.add_argument("checkpoint", type=Path)
    sub.add_argument("--items", type=int, nargs="+", default=[0], metavar="N", help="of the test data (0)")
    sub.add_argument("--name", help="of the first network in the picture (its class)")
    sub.add_argument(
        "--against", type=opponent, nargs="+", default=[], metavar="NAME=CONFIG:CHECKPOINT", help="other networks"
    )
    sub.add_argument("--turned", choices=("z", "SO3"), help="each cloud also turned: about the up axis, or anyhow")
    sub.add_argument("--seed", type=int, default=0, help="of the rotations (0)")
    sub.add_argument(
        "--around", type=int, default=1, metavar="N", help="one cloud from N sides, as a strip around the up axis (1)"
    )
    sub.add_argument("--azimuth", type=float, default=30, metavar="DEGREES", help="of the eye (30)")
    sub.add_argument("--elevation", type=float, default=40, metavar="DEGREES", help="of the eye (40)")
    sub.add_argument("--size", type=int, default=640, metavar="PIXELS", help="of a side of a panel (640)")
    sub.add_argument(
        "--open",
        nargs="*",
        metavar="CLASS",
        help="classes that are left out where they hide the inside (board ceiling door floor wall window, where there "
        "are such); without names none",
    )
    sub = detector("strip", "what a detector finds in one image, over its training", several=True)
    image(sub)
    score(sub)
    sub = detector("relation", "the position relation of one query of a DETR, by head")
    image(sub)
    sub.add_argument("--layer", type=int, help="of the decoder, from 1 (the last)")
    sub.add_argument("--query", type=int, help="from 0 (that of the highest score)")
    sub.add_argument("--others", type=int, default=40, metavar="N", help="queries drawn, of the highest scores (40)")
    sub = detector("keypoints", "the key points of BVR, and the attention of one detection to them")
    image(sub)
    sub.add_argument("--detection", type=int, help="0 is the one with the highest score (0)")

    def backbone(name: str, help: str) -> argparse.ArgumentParser:
        sub = command(name, help, None, None, False)
        sub.add_argument(
            "network",
            help="a checkpoint of a training, a config with a backbone, or a variant (attlas.backbones.list() names "
            "all)",
        )
        sub.add_argument("--weights", type=Path, help="a checkpoint of the authors or of ours (random weights)")
        sub.add_argument("--image", type=Path, required=True)
        sub.add_argument("--size", type=int, default=224, help="of the short side of the image (224)")
        return sub

    sub = backbone("attention", "where the mixers of an image network look from a place")
    sub.add_argument("--place", type=float, nargs=2, default=[0.5, 0.5], metavar=("ROW", "COLUMN"), help="0 to 1 (0.5)")
    sub.add_argument("--mixers", nargs="+", help="modules by name (the last of each kind at each resolution)")
    sub = command("saliency", "which places of an image a number of the answer comes from", None, None, False)
    sub.add_argument("checkpoint", type=Path, help="of a classifier, a detector of one stage, a DETR, or a segmentor")
    sub.add_argument("input", type=Path, help="an image")
    sub.add_argument("--config", type=Path, help="where the checkpoint holds none")
    sub.add_argument("--method", nargs="+", default=["normgrad"], metavar="NAME", help="one or several (normgrad)")
    sub.add_argument(
        "--target",
        nargs="+",
        default=[None],
        help="what is explained, a row for each: a class, by name or number; of detectors RANK, RANK:CLASS or "
        "RANK:left (a side of the box); of segmentors CLASS or CLASS@ROW,COLUMN (that of the best answer)",
    )
    sub.add_argument("--layers", nargs="+", help='modules by name, or "input"; several are combined (the last level)')
    sub.add_argument("--combine", choices=("product", "sum"), default="product", help="of several layers (product)")
    sub.add_argument("--meta", type=float, metavar="RATE", help="of a step of meta-saliency before the maps")
    backbone("interpreter", "which patches an IA-RED2 scores high, and which it keeps")
    sub = backbone("tree", "the tree of dependencies that a DependencyViT sees in an image")
    sub.add_argument("--block", type=int, default=-1, metavar="N", help="from 0; negative ones from the last (-1)")
    sub.add_argument("--method", choices=("arborescence", "argmax"), default="arborescence", help="of reading the tree")
    sub = backbone("prompts", "which prompts the tokens of an image pick in a TCPA")
    sub.add_argument("--block", type=int, default=-1, metavar="N", help="from 0; negative ones from the last (-1)")
    sub.add_argument("--folder", type=Path, help="of images that count in the shares of groups, too")
    sub = command("registers", "the artefacts in the last map of networks, and that map denoised", None, None, False)
    sub.add_argument("network", nargs="+", help="checkpoints of trainings, configs with a backbone, or variants")
    sub.add_argument("--weights", type=Path, nargs="+", help="a checkpoint for each (random weights)")
    sub.add_argument("--image", type=Path, required=True)
    sub.add_argument("--size", type=int, default=518, help="of the short side of the image (518)")
    sub.add_argument("--views", type=int, default=10, help="that are averaged (10)")
    sub.add_argument("--shift", type=float, default=0.15, help="the largest, as a share of the sides (0.15)")
    sub.add_argument("--seed", type=int, default=0, help="of the views (0)")
    sub = command(
        "contrast", "what a question makes a model look at, against what it looks at anyhow", None, None, False
    )
    sub.add_argument(
        "network",
        help="a folder of a vision-language model in transformers' format; or, for the look of a class token, a "
        "checkpoint of a training, a config with a backbone, or a variant",
    )
    sub.add_argument("--image", type=Path, required=True)
    sub.add_argument("--layers", type=int, nargs="+", metavar="N", help="from 0 (20 to 25; of a ViT all)")
    sub.add_argument("--variant", choices=("v1", "v2", "v3", "v4"), default="v4", help="of the method (v4)")
    sub.add_argument("--top", type=float, default=0.2, metavar="SHARE", help="of the pixels that stay, at most (0.2)")
    sub.add_argument("--question", help="to the vision-language model")
    sub.add_argument("--queries", choices=("last", "text"), default="last", help="tokens whose attention it is (last)")
    sub.add_argument("--template", help="of a prompt, with {images} and {question} (the model's chat template)")
    sub.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="of an answer (32)")
    sub.add_argument("--legacy-grid", action="store_true", help="lay the tokens over the image as the authors' code")
    sub.add_argument("--device", default="cpu", help="of the vision-language model (cpu)")
    sub.add_argument("--weights", type=Path, help="a checkpoint of the ViT (random weights)")
    sub.add_argument("--size", type=int, default=224, help="of the short side of the image of a ViT (224)")
    sub.add_argument("--general", type=Path, help="the image that a ViT's is held against (its mean color)")
    sub = detector("restored", "what restorers make of a part of a picture, beside the truth")
    sub.add_argument("--item", type=int, default=0, help="number of a picture of the test data (0)")
    sub.add_argument(
        "--crop", type=int, nargs=3, required=True, metavar=("ROW", "COLUMN", "SIDE"), help="of the part, in the truth"
    )
    sub.add_argument("--name", help="of the first network in the picture (its class)")
    sub.add_argument(
        "--against", type=opponent, nargs="+", default=[], metavar="NAME=CONFIG:CHECKPOINT", help="other networks"
    )
    sub = detector("anomalies", "how badly the frames of a video are predicted, as a curve, with frames")
    source = sub.add_mutually_exclusive_group()
    source.add_argument("--item", type=int, default=0, help="number of a video of the test data (0)")
    source.add_argument("--file", type=Path, help="a video, or a folder of frames")
    sub.add_argument("--threshold", type=float, help="score from which a frame is anomalous (measured in training)")
    sub = command("attribution", "which pixels a restored patch is made of (local attribution maps)", None, None, False)
    sub.add_argument("network", type=named, metavar="[NAME=]CHECKPOINT", help="of a restorer, or its authors' file")
    sub.add_argument(
        "--against", type=named, nargs="+", default=[], metavar="[NAME=]CHECKPOINT", help="others of that scale"
    )
    sub.add_argument("--file", type=Path, required=True, help="the picture to restore")
    sub.add_argument(
        "--place", type=int, nargs=2, required=True, metavar=("ROW", "COLUMN"), help="of the patch, in what is restored"
    )
    sub.add_argument("--side", type=int, default=16, metavar="PIXELS", help="of the patch, there (16)")
    sub.add_argument(
        "--around", type=int, default=64, metavar="PIXELS", help="side of the part of the picture that is restored (64)"
    )
    sub.add_argument("--steps", type=int, default=50, help="of the integral (50)")
    sub.add_argument("--sigma", type=float, default=1.2, metavar="PIXELS", help="of the strongest blur (1.2)")
    sub.add_argument("--edges", choices=("differences", "sobel"), default="differences", help="what is attributed")
    sub = detector("matches", "where the pixels of an image are in another: truth, flow, the other image warped")
    sub.add_argument("--items", type=int, nargs="+", default=[0], metavar="N", help="pairs of the test data (0)")
    return parser


def named(text: str) -> tuple[str, Path]:
    """A path, and the name before the first equals sign; "" where there is none, or where it is inside the path."""
    name, equals, path = text.partition("=")
    if not equals or "/" in name or os.sep in name:
        return "", Path(text)
    if not name or not path:
        raise argparse.ArgumentTypeError(f"{text}: [NAME=]CHECKPOINT was expected.")
    return name, Path(path)


def opponent(text: str) -> tuple[str, Path, Path]:
    name, equals, paths = text.partition("=")
    config, colon, checkpoint = paths.rpartition(":")
    if not (name and equals and config and colon and checkpoint):
        raise argparse.ArgumentTypeError(f"{text}: NAME=CONFIG:CHECKPOINT was expected.")
    return name, Path(config), Path(checkpoint)


def check_names(first: str, args: argparse.Namespace) -> None:
    """ValueError where two networks of a picture have one name."""
    names = [first, *(name for name, _, _ in args.against)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--name and --against name {names.count(name)} networks {name!r}; name each otherwise")


def network_named(what: str, weights: Path | None):
    """The network of a variant, a config or a checkpoint, and a title that says whose weights it has."""
    from attlas.backbones.zoo import find
    from attlas.config import load_config

    network = find(what, weights)
    source: str | Path | None = weights
    if source is None and what.endswith(".py"):
        source = load_config(what).model.backbone.get("pretrained")
    elif source is None and Path(what).suffix:
        source = what
    text = "random weights" if source is None else f"weights of {Path(source).name}"
    return network, text if source == what else f"{Path(what).name}, {text}"


def draw_attention(args: argparse.Namespace):
    from attlas.backbones.inspection.attention_maps import draw, look, read_image

    pixels, image = read_image(args.image, args.size)
    network, title = network_named(args.network, args.weights)
    return draw(pixels, look(network, image, tuple(args.place), args.mixers), title)


def draw_saliency(args: argparse.Namespace):
    from attlas.backbones.inspection.explaining import ask, explain
    from attlas.backbones.inspection.pictures import draw_saliency
    from attlas.inference import load

    questions = ask(load(args.checkpoint, args.config), args.input, args.target)
    maps = [[explain(q, m, args.layers, args.combine, args.meta) for m in args.method] for q in questions]
    for question, row in zip(questions, maps):
        if "lrp" in args.method and not args.layers:
            total = float(row[args.method.index("lrp")].sum())
            score = float(question.score(question.network(*question.inputs)))
            print(f"{question.said}: relevance sums to {total:.4g}, the score is {score:.4g}")
    return draw_saliency(questions, maps, args.method, args.checkpoint.name)


def draw_interpreter(args: argparse.Namespace):
    import torch

    from attlas.backbones.ia_red2 import IARED2
    from attlas.backbones.inspection.attention_maps import read_image
    from attlas.backbones.inspection.interpreter import draw_scores

    pixels, image = read_image(args.image, args.size)
    network, title = network_named(args.network, args.weights)
    if not isinstance(network, IARED2):
        raise ValueError(f"{args.network}: the network is a {type(network).__name__}, and must be an IARED2")
    with torch.no_grad():
        found = network.interpret(image)
    scores = [found.heat_map(g)[0].numpy() for g in range(len(found.scores))]
    kept = [stays[0].numpy() for stays in found.kept_maps()]
    return draw_scores(pixels, scores, kept, network.patch_size, f"{title}: cost {100 * found.cost[0]:.0f} %")


def draw_tree(args: argparse.Namespace):
    import torch

    from attlas.backbones.dependencyvit import DependencyViT, dependency_tree
    from attlas.backbones.inspection.attention_maps import read_image
    from attlas.backbones.inspection.dependency_trees import draw_tree

    pixels, image = read_image(args.image, args.size)
    network, title = network_named(args.network, args.weights)
    if not isinstance(network, DependencyViT):
        raise ValueError(f"{args.network}: the network is a {type(network).__name__}, and must be a DependencyViT")
    with torch.no_grad():
        found = network.dependencies(image, args.block)
    parents = dependency_tree(found.mask[0], args.method).numpy()
    title = f"{title}: block {args.block % len(network.blocks)}"
    messages, places = found.messages[0].numpy(), found.places[0].numpy()
    return draw_tree(pixels, parents, messages, places, found.size, network.patch_size, title)


def draw_prompts(args: argparse.Namespace):
    from attlas.backbones.inspection.attention_maps import read_image
    from attlas.backbones.inspection.prompts import draw, look
    from attlas.backbones.tcpa import TCPA
    from attlas.images import SUFFIXES

    files = []
    if args.folder is not None:
        files = sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not files:
            raise ValueError(f"--folder {args.folder}: no images are in it")
    pixels, image = read_image(args.image, args.size)
    network, title = network_named(args.network, args.weights)
    if not isinstance(network, TCPA):
        raise ValueError(f"{args.network}: the network is a {type(network).__name__}, and must be a TCPA")
    seen = look(network, image, args.block)
    others = [look(network, read_image(file, args.size)[1], args.block) for file in files]
    return draw(pixels, seen, network.patch_size, f"{title}: block {args.block % len(network.blocks)}", others)


def draw_registers(args: argparse.Namespace):
    from attlas.backbones.inspection.attention_maps import read_image
    from attlas.backbones.inspection.registers import draw, look

    weights = args.weights or [None] * len(args.network)
    if len(weights) != len(args.network):
        raise ValueError(f"--weights: {len(weights)} files for {len(args.network)} networks; give one for each")
    pixels, image = read_image(args.image, args.size)
    looks = []
    for what, file in zip(args.network, weights):
        network, title = network_named(what, file)
        looks += look(network, image, title, args.views, args.shift, args.seed)
    return draw(pixels, looks)


def draw_contrast(args: argparse.Namespace):
    options = dict(variant=args.variant, top_percent=args.top)
    given = {name: getattr(args, name) for name in ("weights", "general", "question", "template")}
    folder = Path(args.network).is_dir()
    of_vit, of_vlm = ("weights", "general"), ("question", "template")
    if wrong := [f"--{name}" for name in (of_vit if folder else of_vlm) if given[name] is not None]:
        kind = "vision-language model" if folder else "ViT"
        raise ValueError(f"{', '.join(wrong)}: {args.network} is taken for a {kind}, which has no use for it")
    return draw_vlm_contrast(args, options) if folder else draw_class_contrast(args, options)


def draw_vlm_contrast(args: argparse.Namespace, options: dict):
    from attlas.dense.vlm.carve import GENERAL, LAYERS
    from attlas.dense.vlm.inference import VisionLanguageModel, focus
    from attlas.dense.vlm.pictures import draw
    from attlas.images import read_image

    if args.question is None:
        raise ValueError(f"{args.network} is a folder, so it is taken for a vision-language model: give --question")
    image = read_image(args.image)
    vlm = VisionLanguageModel.load(args.network, args.device, template=args.template)
    found = focus(
        vlm,
        image,
        args.question,
        args.layers or LAYERS,
        args.queries,
        args.max_new_tokens,
        legacy_grid=args.legacy_grid,
        **options,
    )
    look = found.looks[0]
    grids = ", ".join(f"{len(view.rows)} rows x {len(view.columns)} columns" for view in found.carved.views)
    lines = [
        f"question: {args.question}",
        f"answer: {found.answer}" + ("" if found.refined_answer is None else f"; refined: {found.refined_answer}"),
        f"attention of {look.queries}, {len(look.ids)} steps, layers {', '.join(map(str, look.layers))}; {grids}; "
        f"logits changed by {max(other.difference for other in found.looks):g}",
    ]
    print(*lines, sep="\n")
    return draw(found.carved, ("question", GENERAL.rstrip(".")), "\n".join(lines))


def draw_class_contrast(args: argparse.Namespace, options: dict):
    from attlas.backbones.inspection.attention_maps import read_image
    from attlas.dense.vlm.inference import class_focus
    from attlas.dense.vlm.pictures import draw

    pixels, image = read_image(args.image, args.size)
    network, title = network_named(args.network, args.weights)
    if args.general is None:
        general, name = image.mean((2, 3), keepdim=True).expand_as(image).contiguous(), "its mean color"
    else:
        general, name = read_image(args.general, args.size)[1], args.general.name
    carved = class_focus(network, image, general, pixels, args.layers or (), **options)
    which = ", ".join(map(str, args.layers or range(carved.query.shape[1])))
    lines = [title, f"attention of the class token, mean over heads, blocks {which}"]
    print(lines[1])
    return draw(carved, (args.image.name, name), "\n".join(lines), args.layers)


def draw_confusion(args: argparse.Namespace):
    from attlas.confusion import draw_confusions

    return draw_confusions(dict(zip(shortest_names(args.results), args.results)))


def shortest_names(paths: list[Path]) -> list[str]:
    """The ends of paths, without suffix, that tell them apart.

    Raises:
        ValueError: a path is there twice.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"a file of results is named twice: {', '.join(map(str, paths))}")
    parts = [path.resolve().with_suffix("").parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = [str(Path(*part[-length:])) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]  # they differ in their suffix alone


def draw_room(args: argparse.Namespace):
    from attlas import rendering
    from attlas.dense.rooms import Room

    rooms = [Room(args.split, args.seed, number) for number in args.number]
    if args.out is None:
        return rendering.window([rendering.joined(*room.meshes) for room in rooms], "furnished rooms")
    from attlas.dense.room_pictures import draw_rooms

    return draw_rooms(rooms)


def detector_config(args: argparse.Namespace):
    from attlas.backbones.channels import fill_channels
    from attlas.config import load_config

    config = load_config(args.config)
    fill_channels(config.model, config.get("default_scope"))
    return config


def image_of(args: argparse.Namespace, config):
    from attlas.browsing import config_dataset
    from attlas.dense.detection import inspection

    if args.file is not None:
        return inspection.file_subject(args.file)
    return inspection.subject(config_dataset(config, "test"), args.item)


def draw_detections(args: argparse.Namespace):
    from attlas.browsing import config_dataset
    from attlas.dense.detection import inspection, pictures

    config = detector_config(args)
    dataset = config_dataset(config, "test")
    subjects = [inspection.subject(dataset, item) for item in args.items]
    return pictures.draw_detections(inspection.detector(args.checkpoint, config), subjects, args.score)


def draw_maps(args: argparse.Namespace):
    from attlas.browsing import config_dataset
    from attlas.dense.segmentation.pictures import draw_maps
    from attlas.inference import Inferencer

    config = detector_config(args)
    return draw_maps(config_dataset(config, "test"), Inferencer(args.checkpoint, config), args.items)


def draw_scanpaths(args: argparse.Namespace):
    from attlas.browsing import config_dataset
    from attlas.dense.gaze.pictures import draw_predictions
    from attlas.inference import Inferencer

    config = detector_config(args)
    return draw_predictions(config_dataset(config, "test"), Inferencer(args.checkpoint, config), args.items)


def restorer(checkpoint: Path, config=None):
    from attlas.dense.restoration import Restorer
    from attlas.inference import load

    model = load(checkpoint, config)
    if not isinstance(model, Restorer):
        raise ValueError(f"{checkpoint}: the model is a {type(model).__name__}, and must be a restorer")
    return model


def draw_restored(args: argparse.Namespace):
    from attlas.browsing import config_dataset
    from attlas.config import load_config
    from attlas.dense.restoration.pictures import draw_restored

    config = load_config(args.config)
    first = restorer(args.checkpoint, config)
    name = args.name or type(first.network).__name__
    check_names(name, args)
    asked = {name: first} | {name: restorer(checkpoint, load_config(own)) for name, own, checkpoint in args.against}
    return draw_restored(config_dataset(config, "test"), asked, args.item, args.crop)


def draw_anomalies(args: argparse.Namespace):
    from attlas.browsing import choose, config_dataset
    from attlas.config import load_config
    from attlas.dense.video import Video, VideoAnomalyDetector
    from attlas.dense.video.pictures import draw_anomalies
    from attlas.inference import Inferencer, load

    config = load_config(args.config)
    model = load(args.checkpoint, config)
    if not isinstance(model, VideoAnomalyDetector):
        raise ValueError(
            f"{args.checkpoint}: the model is a {type(model).__name__}, and must be a VideoAnomalyDetector"
        )
    inferencer, truth = Inferencer(model, threshold=args.threshold), None
    if args.file is None:
        dataset = config_dataset(config, "test")
        item = dataset[choose(dataset, 1, [args.item])[0]]
        video, truth = item["video"], item["truth"]
    else:
        video = Video(args.file)
    (result,) = inferencer(video.path)
    if "error" in result:
        raise ValueError(f"{video.name}: {result['error']}")
    return draw_anomalies(video, result, truth, Path(video.name).name)


def draw_attribution(args: argparse.Namespace):
    from attlas.dense.restoration.pictures import draw_attribution
    from attlas.images import read_image

    image, asked = read_image(args.file), {}
    for given, path in (args.network, *args.against):
        model = restorer(path)
        name = given or type(model.network).__name__
        if name in asked:
            raise ValueError(f"two networks would be named {name!r}; name them: NAME=CHECKPOINT")
        asked[name] = model
    options = dict(steps=args.steps, sigma=args.sigma, edges=args.edges)
    return draw_attribution(image, asked, args.place, args.side, args.around, **options)


def draw_matches(args: argparse.Namespace):
    from attlas.browsing import config_dataset
    from attlas.config import load_config
    from attlas.dense.matching import Matcher
    from attlas.dense.matching.pictures import draw_pairs
    from attlas.inference import load

    config = load_config(args.config)
    model = load(args.checkpoint, config)
    if not isinstance(model, Matcher):
        raise ValueError(f"{args.checkpoint}: the model is a {type(model).__name__}, and must be a matcher")
    return draw_pairs(config_dataset(config, "test"), model, args.items)


def draw_segments(args: argparse.Namespace):
    from attlas.config import load_config
    from attlas.data import positive
    from attlas.inference import Inferencer
    from attlas.pointnets import pictures
    from attlas.pointnets.viewer import config_dataset

    positive("--size", args.size)
    for option in ("azimuth", "elevation"):
        if not math.isfinite(getattr(args, option)):
            raise ValueError(f"--{option} is {getattr(args, option)}; it must be a finite number")
    config = load_config(args.config)
    first = Inferencer(args.checkpoint, config)
    name = args.name or type(getattr(first.model, "network", first.model)).__name__
    check_names(name, args)
    networks = {name: first}
    networks |= {name: Inferencer(checkpoint, load_config(config)) for name, config, checkpoint in args.against}
    dataset = config_dataset(config)
    groups = ["none", args.turned] if args.turned else ["none"]
    seen = [pictures.ask(dataset, item, networks, group, args.seed) for item in args.items for group in groups]
    if args.out is None:
        return pictures.show_segments(seen, args.open)
    return pictures.draw_segments(seen, args.azimuth, args.elevation, args.around, args.open, args.size)


def draw_strip(args: argparse.Namespace):
    from attlas.dense.detection import inspection, pictures

    config = detector_config(args)
    subject = image_of(args, config)
    asked = ((inspection.trained(path), inspection.detector(path, config)) for path in args.checkpoint)
    return pictures.draw_strip(asked, len(args.checkpoint), subject, args.score)


def draw_relation(args: argparse.Namespace):
    from attlas.dense.detection import inspection, pictures

    config = detector_config(args)
    subject, asked = image_of(args, config), inspection.detector(args.checkpoint, config)
    seen = inspection.position_relation(asked, subject, args.layer, args.query)
    return pictures.draw_relation(subject, seen, args.others)


def draw_keypoints(args: argparse.Namespace):
    from attlas.dense.detection import inspection, pictures

    config = detector_config(args)
    subject, asked = image_of(args, config), inspection.detector(args.checkpoint, config)
    return pictures.draw_key_points(subject, inspection.key_points(asked, subject, args.detection))


def draw_shape(args: argparse.Namespace):
    """The commands that show one shape: the figure, or None after a window was closed."""
    from attlas import rendering
    from attlas.config import load_config
    from attlas.pointnets import viewer

    def network(config: Path, checkpoint: Path | None):
        return viewer.config_network(load_config(config), checkpoint)

    if args.config is not None:
        shape = viewer.subject(viewer.config_dataset(load_config(args.config)), args.item, args.file)
    elif args.file is not None:
        shape = viewer.file_subject(args.file)
    else:
        raise ValueError("--item is an item of a config's test data: name the config, or give --file.")
    backward = rendering.view_direction(args.azimuth, args.elevation, args.up)
    if args.command == "turning":
        check_names(args.name, args)
        networks = {args.name: network(args.config, args.checkpoint)}
        networks |= {name: network(config, checkpoint) for name, config, checkpoint in args.against}
        turned = viewer.turning(shape, networks, args.views, args.seed, args.azimuth, args.elevation, args.up)
        return viewer.draw_turning(turned)
    if args.command == "neighborhood":
        seen = viewer.neighborhood(shape, network(args.config, args.checkpoint), args.layer, args.query)
        if args.out is None:
            return rendering.window([rendering.joined(*viewer.neighborhood_scene(seen))], shape.name)
        title = f"{shape.name}: layer {args.layer}, query {args.query}"
        return viewer.draw_neighborhood(seen, title, backward, args.up)
    if args.command == "samples":
        meshes, titles = viewer.samples_scenes(shape, network(args.config, args.checkpoint))
    else:
        scene = viewer.cloud_scene if args.command == "cloud" else viewer.normals_scene
        meshes, titles = [scene(shape)], [f"{shape.name}: {len(shape.cloud.pos):,} points"]
    if args.out is None:
        return rendering.window(meshes, shape.name)
    return viewer.draw_panels(meshes, titles, backward, args.up)


def run(args: argparse.Namespace) -> None:
    commands = {
        "anomalies": draw_anomalies,
        "attention": draw_attention,
        "attribution": draw_attribution,
        "confusion": draw_confusion,
        "contrast": draw_contrast,
        "detections": draw_detections,
        "interpreter": draw_interpreter,
        "keypoints": draw_keypoints,
        "maps": draw_maps,
        "matches": draw_matches,
        "prompts": draw_prompts,
        "registers": draw_registers,
        "relation": draw_relation,
        "restored": draw_restored,
        "room": draw_room,
        "saliency": draw_saliency,
        "scanpaths": draw_scanpaths,
        "segments": draw_segments,
        "strip": draw_strip,
        "tree": draw_tree,
    }
    draw = commands.get(args.command, draw_shape)
    if args.out is None:
        draw(args)
    else:
        out = check_out(args.out, PICTURES, args.overwrite)  # before the work, not after it
        save_figure(draw(args), out)


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
