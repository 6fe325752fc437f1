"""What image networks and vision-language models look at."""

import argparse
from pathlib import Path
from typing import Any

from .common import Commands, Draw, command, eye


def add(commands: Commands) -> None:
    sub = backbone(commands, "attention", draw_attention, "where the mixers of an image network look from a place")
    sub.add_argument("--place", type=float, nargs=2, default=[0.5, 0.5], metavar=("ROW", "COLUMN"), help="0 to 1 (0.5)")
    sub.add_argument("--mixers", nargs="+", help="modules by name (the last of each kind at each resolution)")
    sub = command(commands, "saliency", draw_saliency, "which places of an input a number of the answer comes from")
    sub.add_argument(
        "checkpoint",
        type=Path,
        help="of a classifier of images or shapes, a detector, a segmentor, or a restorer",
    )
    sub.add_argument("input", type=Path, help="an image, a mesh or a cloud")
    sub.add_argument("--config", type=Path, help="where the checkpoint holds none")
    sub.add_argument("--method", nargs="+", default=["normgrad"], metavar="NAME", help="one or several (normgrad)")
    sub.add_argument(
        "--target",
        nargs="+",
        default=[None],
        help="what is explained, a row for each: a class, by name or number; of detectors RANK, RANK:CLASS or "
        "RANK:left (a side of the box); of segmentors CLASS or CLASS@ROW,COLUMN (that of the best answer). Of "
        "restorers ROW,COLUMN,SIDE, the mean of that patch of what is restored, or ROW,COLUMN,SIDE:FILE, its PSNR "
        "against the picture of a file",
    )
    sub.add_argument(
        "--layers",
        nargs="+",
        help='modules by name, or "input"; several are combined, not of clouds (the last level; of restorers input)',
    )
    sub.add_argument("--combine", choices=("product", "sum"), default="product", help="of several layers (product)")
    sub.add_argument("--meta", type=float, metavar="RATE", help="of a step of meta-saliency before the maps")
    eye(sub)
    backbone(commands, "interpreter", draw_interpreter, "which patches an IA-RED2 scores high, and which it keeps")
    sub = backbone(commands, "tree", draw_tree, "the tree of dependencies that a DependencyViT sees in an image")
    sub.add_argument("--block", type=int, default=-1, metavar="N", help="from 0; negative ones from the last (-1)")
    sub.add_argument("--method", choices=("arborescence", "argmax"), default="arborescence", help="of reading the tree")
    sub = backbone(commands, "prompts", draw_prompts, "which prompts the tokens of an image pick in a TCPA")
    sub.add_argument("--block", type=int, default=-1, metavar="N", help="from 0; negative ones from the last (-1)")
    sub.add_argument("--folder", type=Path, help="of images that count in the shares of groups, too")
    sub = command(
        commands, "registers", draw_registers, "the artefacts in the last map of networks, and that map denoised"
    )
    sub.add_argument("network", nargs="+", help="checkpoints of trainings, configs with a backbone, or variants")
    sub.add_argument("--weights", type=Path, nargs="+", help="a checkpoint for each (random weights)")
    sub.add_argument("--image", type=Path, required=True)
    sub.add_argument("--size", type=int, default=518, help="of the short side of the image (518)")
    sub.add_argument("--views", type=int, default=10, help="that are averaged (10)")
    sub.add_argument("--shift", type=float, default=0.15, help="the largest, as a share of the sides (0.15)")
    sub.add_argument("--seed", type=int, default=0, help="of the views (0)")
    sub = command(
        commands, "contrast", draw_contrast, "what a question makes a model look at, against what it looks at anyhow"
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


def backbone(commands: Commands, name: str, draw: Draw, help: str) -> argparse.ArgumentParser:
    sub = command(commands, name, draw, help)
    sub.add_argument(
        "network",
        help="a checkpoint of a training, a config with a backbone, or a variant (attlas.backbones.list() names all)",
    )
    sub.add_argument("--weights", type=Path, help="a checkpoint of the authors or of ours (random weights)")
    sub.add_argument("--image", type=Path, required=True)
    sub.add_argument("--size", type=int, default=224, help="of the short side of the image (224)")
    return sub


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
    from attlas.backbones.inspection import pictures
    from attlas.backbones.inspection.explaining import ask, default_layer, explain
    from attlas.inference import load

    questions = ask(load(args.checkpoint, args.config), args.input, args.target)
    maps = [[explain(q, m, args.layers, args.combine, args.meta) for m in args.method] for q in questions]
    for question, row in zip(questions, maps):
        if "lrp" in args.method and not args.layers:
            total = float(row[args.method.index("lrp")].sum())
            score = float(question.score(question.network(*question.inputs)).detach())
            print(f"{question.said}: relevance sums to {total:.4g}, the score is {score:.4g}")
    if questions[0].picture.ndim == 3:
        return pictures.draw_saliency(questions, maps, args.method, args.checkpoint.name)
    from attlas.pointnets import explanation
    from attlas.rendering import view_direction

    layers = [args.layers[0] if args.layers else default_layer(questions[0], method) for method in args.method]
    backward = view_direction(args.azimuth, args.elevation, args.up)
    return explanation.draw_saliency(questions, maps, args.method, layers, args.checkpoint.name, backward, args.up)


def asked(args: argparse.Namespace, kind: type) -> tuple[Any, Any, Any, str]:
    """The pixels, the input, the network and its title.

    Raises:
        ValueError: the network is of another class than `kind`.
    """
    from attlas.backbones.inspection.attention_maps import read_image

    pixels, image = read_image(args.image, args.size)
    network, title = network_named(args.network, args.weights)
    if not isinstance(network, kind):
        raise ValueError(f"{args.network}: the network is a {type(network).__name__}, and must be {kind.__name__}")
    return pixels, image, network, title


def draw_interpreter(args: argparse.Namespace):
    import torch

    from attlas.backbones.ia_red2 import IARED2
    from attlas.backbones.inspection.interpreter import draw_scores

    pixels, image, network, title = asked(args, IARED2)
    with torch.no_grad():
        found = network.interpret(image)
    scores = [found.heat_map(g)[0].numpy() for g in range(len(found.scores))]
    kept = [stays[0].numpy() for stays in found.kept_maps()]
    return draw_scores(pixels, scores, kept, network.patch_size, f"{title}: cost {100 * found.cost[0]:.0f} %")


def draw_tree(args: argparse.Namespace):
    import torch

    from attlas.backbones.dependencyvit import DependencyViT, dependency_tree
    from attlas.backbones.inspection.dependency_trees import draw_tree

    pixels, image, network, title = asked(args, DependencyViT)
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
    pixels, image, network, title = asked(args, TCPA)
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
