"""Clouds, what networks of points make of them, and their labels."""

import argparse
import math
from pathlib import Path

from .common import Commands, against, check_names, command


def add(commands: Commands) -> None:
    command(commands, "cloud", draw_shape, "the points that a network gets", config="?", window=True)
    command(commands, "normals", draw_shape, "the points with their normals", config="?", window=True)
    command(
        commands, "samples", draw_shape, "the points that every layer samples", config="", checkpoint="?", window=True
    )
    sub = command(
        commands,
        "neighborhood",
        draw_shape,
        "the neighbors of one query, their order and attention",
        config="",
        checkpoint="",
        window=True,
    )
    sub.add_argument("--layer", type=int, default=1, help="from 1 (1)")
    sub.add_argument("--query", type=int, default=0, help="from 0 (0)")
    sub = command(
        commands, "turning", draw_shape, "the answers of networks when a shape is turned", config="", checkpoint=""
    )
    sub.add_argument("--name", default="RISurConv", help="of the first network in the picture (RISurConv)")
    against(sub)
    sub.add_argument("--views", type=int, default=6)
    sub.add_argument("--seed", type=int, default=0, help="of the rotations")
    sub = command(
        commands,
        "segments",
        draw_segments,
        "the labels that networks give to points, beside the true ones",
        window=True,
    )
    sub.add_argument("config", type=Path)
    sub.add_argument("checkpoint", type=Path)
    sub.add_argument("--items", type=int, nargs="+", default=[0], metavar="N", help="of the test data (0)")
    sub.add_argument("--name", help="of the first network in the picture (its class)")
    against(sub)
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
