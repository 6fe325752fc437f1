"""Pictures of clouds, of what a RISurConv sees in them, and of how networks answer when a model is turned.

The 3-D scenes are drawn by `render`, panels and text by Matplotlib.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure, SubFigure
from mmengine.config import Config
from torch import Tensor
from torch_geometric.data import Data

from .. import checkpoint
from ..confusion import draw_confusion, group_name, overall_accuracy, read_results
from ..data import UP_AXES, build_transforms, drawn, seeded
from ..files import PICTURES, check_out, near_files, save_figure
from ..registry import DATASETS, MODELS
from ..rendering import (
    CLAY,
    Mesh,
    arrow,
    camera_frame,
    center_of,
    disc,
    joined,
    look,
    normal_colors,
    point_radius,
    render,
    snapshots,
    spheres,
    surface,
    tubes,
    view_direction,
)
from .datasets import PointClouds, RotatedViews, as_data
from .risurconv import Pyramid, RISurConv
from .shapes import read_shape
from .transforms import as_float32, random_rotation

Network = Callable[[Tensor, Tensor | None], Tensor]  # points, normals (B, N, 3) -> logits (B, classes)

STEEL, FAINT, INK = (0.27, 0.48, 0.68), (0.80, 0.81, 0.83), (0.16, 0.17, 0.20)
RIGHT, WRONG = "#1b7837", "#b2182b"


# --- shapes and networks ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A shape to look at: the cloud as a network gets it, and the mesh that it was sampled from, if any."""

    name: str
    cloud: Data  # pos and normal (N, 3) float32
    surface: Data | None = None  # pos (V, 3), face (3, F)
    label: int | None = None
    classes: tuple[str, ...] = ()
    after: Callable[[Data], Data] = field(
        default_factory=lambda: build_transforms([])
    )  # what the data set does after a rotation

    def solid(self) -> Mesh:
        """The mesh, or the points as spheres."""
        if self.surface is None:
            return spheres(self.cloud.pos.numpy(), CLAY)
        return surface(self.surface.pos.numpy(), self.surface.face.T.numpy())


def subject(dataset: PointClouds | RotatedViews, item: int | None = None, file: str | Path | None = None) -> Subject:
    """Item `item` of a data set (before any rotation of `RotatedViews`), or a file put through its transforms."""
    after = build_transforms([])
    if isinstance(dataset, RotatedViews):
        dataset, after = dataset.dataset, dataset.transform
    if file is not None:
        return file_subject(file, dataset.transform, after, dataset.classes)
    item = check_range("item", item, len(dataset), f"the data set ({dataset.split})")
    raw = dataset.get(int(dataset.items[item]))
    cloud = drawn(after, dataset[item], dataset.name(item), dataset.seed, 0, item)
    _need_normals(cloud)
    return Subject(raw.name, cloud, raw if raw.face is not None else None, int(raw.y), dataset.classes, after)


def file_subject(file: str | Path, transform=None, after=None, classes: Sequence[str] = ()) -> Subject:
    """A mesh or cloud of a file (see `read_shape`); by default 2,048 points in the unit sphere, with normals."""
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"The shape {path} does not exist. {near_files(path)}")
    raw = as_data(read_shape(path), path.name)
    if transform is None:
        names = ["RandomPoints"] if raw.face is not None else []
        transform = build_transforms(
            [dict(type=name, num=2048) for name in names]
            + [dict(type="UnitSphere"), dict(type="EstimateNormals", only_missing=True)]
        )
    after = after or build_transforms([])
    cloud = drawn(lambda data: as_float32(after(transform(data))), raw.clone(), f"shape {raw.name}", 0)
    _need_normals(cloud)
    return Subject(path.name, cloud, raw if raw.face is not None else None, None, tuple(classes), after)


def _need_normals(cloud: Data) -> None:
    if cloud.face is not None:
        raise ValueError(f"shape {cloud.name} is still a mesh after the transforms of the config; add SamplePoints.")
    if cloud.get("normal") is None:
        build_transforms([dict(type="EstimateNormals")])(cloud)


def config_dataset(cfg: Config) -> PointClouds | RotatedViews:
    """The test data set of a config (without one, that of the validation)."""
    loader = cfg.get("test_dataloader") or cfg.get("val_dataloader")
    if loader is None:
        raise ValueError(f"{cfg.filename} has no test_dataloader to take an item from; give a file instead.")
    dataset = DATASETS.build(loader["dataset"])
    if not isinstance(dataset, (PointClouds, RotatedViews)):
        raise ValueError(f"{cfg.filename}: the test data set is a {type(dataset).__name__}, not a set of point clouds.")
    return dataset


def config_network(cfg: Config, weights: str | Path | None) -> torch.nn.Module:
    """The point network of a config with the weights of a checkpoint (None: untrained), in evaluation mode."""
    model = MODELS.build(cfg.model)
    if not hasattr(model, "network"):
        raise ValueError(f"{cfg.filename}: the model is a {type(model).__name__}; a PointClassifier was expected.")
    if weights is not None:
        path = Path(weights)
        if not path.is_file():
            raise FileNotFoundError(f"The checkpoint {path} does not exist. {near_files(path)}")
        checkpoint.load(model, path)
    return model.eval().network


def check_range(argument: str, value: int | None, count: int, where: str, first: int = 0) -> int:
    """`value` if first <= value < first + count, or else a ValueError."""
    if value is None or not first <= value < first + count:
        raise ValueError(f"{argument} is {value}; {where} has {argument} {first} to {first + count - 1}.")
    return value


# --- panels ----------------------------------------------------------------------------------------------------------


def _picture(axes: Axes, picture: np.ndarray, title: str = "") -> None:
    axes.imshow(picture, interpolation="antialiased")
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize=10, color=INK)


def draw_panels(meshes: Sequence[Mesh], titles: Sequence[str], backward: np.ndarray, up: str) -> Figure:
    """One panel for each mesh, at one scale, cropped to what is seen."""
    pictures = np.stack(snapshots(meshes, backward, up, 900 if len(meshes) == 1 else 640))
    seen = pictures[..., 3].max(0) > 0
    pad = len(seen) // 40
    rows, columns = (np.flatnonzero(seen.any(axis)) for axis in (1, 0))
    pictures = np.pad(pictures, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    pictures = pictures[:, rows[0] : rows[-1] + 2 * pad + 1, columns[0] : columns[-1] + 2 * pad + 1]
    height, width = np.array(pictures.shape[1:3]) / 150
    canvas = Figure(figsize=(len(meshes) * max(width, 2.4), height + 0.35), layout="constrained")
    for axes, picture, title in zip(np.ravel(canvas.subplots(1, len(meshes))), pictures, titles):
        _picture(axes, picture, title)
    return canvas


def cloud_scene(item: Subject) -> Mesh:
    return spheres(item.cloud.pos.numpy(), STEEL)


def normals_scene(item: Subject) -> Mesh:
    """The points and their normals as lines, colored by the direction of the normal."""
    points, normals = item.cloud.pos.numpy().astype(float), item.cloud.normal.numpy().astype(float)
    radius = point_radius(points)
    colors = normal_colors(normals)
    return joined(
        spheres(points, colors, 0.8 * radius), tubes(points, points + 6 * radius * normals, colors, radius / 5)
    )


def samples_scenes(item: Subject, network: Pyramid) -> tuple[list[Mesh], list[str]]:
    """The input, and for each layer the points that it samples, amid those that it samples from."""
    need_risurconv(network)
    with torch.no_grad():
        levels = [level[0][0].numpy() for level in network.encode(item.cloud.pos[None], item.cloud.normal[None])]
    radius = point_radius(levels[0])
    colors = colormaps["viridis"](np.linspace(0.15, 0.8, len(network.layers)))[:, :3]
    meshes, titles = [spheres(levels[0], CLAY, radius)], [f"input: {len(levels[0]):,} points"]
    for depth, (layer, before, points) in enumerate(zip(network.layers, levels, levels[1:])):
        grown = radius * (1.2 + 0.3 * depth)
        meshes.append(joined(spheres(before, FAINT, 0.6 * grown), spheres(points, colors[depth], grown)))
        titles.append(f"layer {depth + 1}: {len(points):,} points, K = {layer.k}")
    return meshes, titles


def need_risurconv(network: object) -> None:
    if not isinstance(network, Pyramid):
        raise ValueError(f"the network is a {type(network).__name__}; its layers can be shown of a RISurConv only.")


# --- a neighborhood -------------------------------------------------------------------------------------------------


@torch.no_grad()
def neighbor_weights(layer: RISurConv, properties: Tensor) -> Tensor:
    """The attention of a layer among its neighbors: properties (B, S, K, 14) -> weights (B, S, K, K).

    Row j, column i: the weight of neighbor i's value in what neighbor j receives.
    """
    attention = layer.neighbor_attention
    x = layer.embedding(properties)
    weight = torch.softmax(attention.q(x) @ attention.k(x).mT, dim=-1)
    axis = 1 if attention.normalize == "points" else -2
    return (weight / (1e-9 + weight.sum(dim=axis, keepdim=True))).mT


@dataclass(frozen=True)
class Neighborhood:
    """What one query of one layer sees. Arrays in the order around the normal."""

    source: np.ndarray  # (N, 3) the points that the neighbors are taken from
    query: np.ndarray  # (3,)
    normal: np.ndarray  # (3,)
    neighbors: np.ndarray  # (K, 3)
    weights: np.ndarray  # (K, K), see `neighbor_weights`

    @property
    def colors(self) -> np.ndarray:
        """A color (K, 3) for each place: once round the wheel."""
        hue = np.arange(len(self.neighbors)) / len(self.neighbors)
        return hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.62), np.full_like(hue, 0.86)], axis=1))


@torch.no_grad()
def neighborhood(item: Subject, network: Pyramid, layer: int, query: int) -> Neighborhood:
    """Query `query` (from 0) of layer `layer` (from 1) of a RISurConv."""
    need_risurconv(network)
    check_range("layer", layer, len(network.layers), "the network", first=1)
    check_range("query", query, network.num_points[layer - 1], f"layer {layer}")
    levels = network.encode(item.cloud.pos[None], item.cloud.normal[None])
    (points, normals, _), (queries, query_normals, _) = levels[layer - 1 : layer + 1]
    module = cast(RISurConv, network.layers[layer - 1])
    properties, index = module.neighbors(points, normals, queries, query_normals)
    weights = neighbor_weights(module, properties)[0, query]
    seen = points[0], queries[0, query], query_normals[0, query], points[0, index[0, query]], weights
    return Neighborhood(*(tensor.double().numpy() for tensor in seen))


def neighborhood_scene(seen: Neighborhood) -> tuple[Mesh, Mesh]:
    """Query, normal, the neighbors in the colors of their order, edges along it and plumb lines to the tangent plane;
    and that plane. The volume of a neighbor grows with the weight that it receives from the others.
    """
    reach = float(np.linalg.norm(seen.neighbors - seen.query, axis=1).max()) or 1.0
    received = seen.weights.sum(0)
    radius = 0.05 * reach * np.clip(received / received.mean(), 0.2, 5) ** (1 / 3)
    feet = seen.neighbors - ((seen.neighbors - seen.query) @ seen.normal)[:, None] * seen.normal
    spread = max(float(np.linalg.norm(feet - seen.query, axis=1).max()), 0.3 * reach)
    scene = joined(
        spheres(seen.neighbors, seen.colors, radius),
        tubes(seen.neighbors[:-1], seen.neighbors[1:], seen.colors[:-1], 0.012 * reach),
        tubes(seen.neighbors, feet, (0.6, 0.6, 0.62), 0.005 * reach),
        spheres(seen.query[None], INK, 0.08 * reach),
        arrow(seen.query, 0.7 * reach * seen.normal, INK, 0.016 * reach),
    )
    return scene, disc(seen.query, seen.normal, (0.86, 0.90, 0.95), 1.15 * spread)


def _apart(places: np.ndarray, fixed: np.ndarray, gap: float) -> np.ndarray:
    """Moves labels at `places` (N, 2) until they keep `gap` from each other and from `fixed` (M, 2), if they can."""
    places = places.copy()
    for _ in range(100):
        difference = places[:, None] - np.concatenate([places, fixed])
        distance = np.linalg.norm(difference, axis=-1, keepdims=True) + 1e-9
        push = np.where(distance < gap, difference / distance * (gap - distance), 0)
        places += 0.3 * push.sum(1)
    return places


def draw_neighborhood(seen: Neighborhood, title: str, backward: np.ndarray, up: str, size: int = 640) -> Figure:
    """The cloud with the neighborhood in it, the neighborhood with its order, and the attention among it."""
    canvas = Figure(figsize=(13, 4.7), layout="constrained")
    whole, near, table = canvas.subplots(1, 3, width_ratios=[0.95, 1.15, 1.15])
    radius = point_radius(seen.source)
    axis = np.array(UP_AXES[up])
    if seen.normal @ backward < 0:  # look from the side on which the neighborhood is
        backward = 2 * (backward @ axis) * axis - backward
    scene = joined(
        spheres(seen.source, FAINT, 0.7 * radius),
        spheres(seen.neighbors, seen.colors, 1.2 * radius),
        spheres(seen.query[None], INK, 1.3 * radius),
    )
    _picture(whole, snapshots([scene], backward, up, size)[0], title)

    scene, plane = neighborhood_scene(seen)
    side = np.cross(axis, seen.normal)
    side = side / np.linalg.norm(side) if np.linalg.norm(side) > 0.1 else np.eye(3)[0]
    frame = camera_frame(seen.normal - 0.6 * np.cross(seen.normal, side), seen.normal)
    middle = center_of(joined(scene, plane), frame)
    scene.translate(-middle)
    plane.translate(-middle)
    camera = look([joined(scene, plane)], frame, margin=1.12)
    pictures = [render(mesh, camera, size) for mesh in (scene, joined(scene, plane))]
    near.imshow(np.ones((1, 1, 3)), extent=(0, size, size, 0))
    for picture, opacity in zip(pictures[::-1], (1, 0.6)):  # what the plane hides shines through it
        near.imshow(picture, alpha=picture[..., 3] * opacity, interpolation="antialiased")
    near.set_axis_off()
    near.set_title("order around the normal (size: attention received)", fontsize=10, color=INK)
    balls = camera.project(seen.neighbors - middle)
    outward = balls - camera.project((seen.query - middle)[None])
    outward /= np.linalg.norm(outward, axis=1, keepdims=True) + 1e-9
    for place, (x, y) in enumerate(size * _apart(balls + 0.045 * outward, balls, 0.04)):
        near.text(x, y, str(place + 1), ha="center", va="center", fontsize=8, color=INK)

    count = len(seen.weights)
    relative = seen.weights / seen.weights.mean()
    image = table.imshow(relative, cmap="Blues", vmin=0, vmax=max(2.0, relative.max()))
    step = max(count // 8, 1)
    ticks = np.arange(step - 1, count, step)
    table.set(xticks=ticks, yticks=ticks, xticklabels=ticks + 1, yticklabels=ticks + 1)
    table.tick_params(length=0, labelsize=8)
    table.set_xlabel("neighbor attended to", fontsize=9)
    table.set_ylabel("neighbor that attends", fontsize=9)
    table.set_title("attention among the neighbors (1: the mean)", fontsize=10, color=INK)
    for spine in table.spines.values():
        spine.set_visible(False)
    bar = canvas.colorbar(image, ax=table, shrink=0.75, pad=0.02)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return canvas


# --- turning ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turning:
    """Pictures of a turned shape, and for each network the predicted class and its probability under each rotation."""

    pictures: list[np.ndarray]
    answers: dict[str, list[tuple[int, float]]]
    classes: tuple[str, ...]
    label: int | None


@torch.no_grad()
def turning(
    item: Subject,
    networks: Mapping[str, Network],
    views: int = 6,
    seed: int = 0,
    azimuth: float = 30,
    elevation: float = 20,
    up: str = "y",
    size: int = 420,
) -> Turning:
    """Shows a shape upright and then under `views - 1` uniform rotations to some networks."""
    if views < 1:
        raise ValueError(f"views is {views}; it must be at least 1.")
    rotations = [torch.eye(3, dtype=torch.float64)]
    with seeded(seed):
        rotations += [random_rotation("SO3") for _ in range(views - 1)]
    solid = item.solid()
    turned = [Mesh(solid) for _ in rotations]
    for mesh, rotation in zip(turned, rotations):
        mesh.rotate(rotation.numpy(), center=(0, 0, 0))
    answers: dict[str, list[tuple[int, float]]] = {name: [] for name in networks}
    for rotation in rotations:
        cloud = item.cloud.clone()
        for key in ("pos", "normal"):
            cloud[key] = (cloud[key].double() @ rotation.T).float()
        with seeded(seed):
            cloud = item.after(cloud)
        for name, network in networks.items():
            best = network(cloud.pos[None], cloud.normal[None])[0].softmax(-1).max(-1)
            answers[name].append((int(best.indices), float(best.values)))
    pictures = snapshots(turned, view_direction(azimuth, elevation, up), up, size)
    return Turning(pictures, answers, item.classes, item.label)


def draw_turning(seen: Turning, canvas: Figure | SubFigure | None = None) -> Figure | SubFigure:
    """A strip of views, and beneath each the answer of each network: right in green, wrong in red."""
    views, rows = len(seen.pictures), len(seen.answers)
    if canvas is None:
        canvas = Figure(figsize=(1.75 * views + 1.3, 1.95 + 0.34 * rows))
    width, height = canvas.bbox.width, canvas.bbox.height  # pixels
    margin = 1.2 * canvas.get_figure(root=True).dpi / width  # for the names of the networks
    column = (1 - margin - 0.01) / views
    row = 0.30 * canvas.get_figure(root=True).dpi / height
    table = rows * row + 0.06 * canvas.get_figure(root=True).dpi / height
    title = 0.24 * canvas.get_figure(root=True).dpi / height
    for view, picture in enumerate(seen.pictures):
        left = margin + view * column
        axes = canvas.add_axes((left, table, column, 1 - table - title))
        _picture(axes, picture)
        name = "upright" if view == 0 else f"rotation {view}"
        canvas.text(left + column / 2, 1 - title / 2, name, ha="center", va="center", fontsize=9.5, color="0.4")
    for number, (name, answers) in enumerate(seen.answers.items()):
        y = table - (number + 0.5) * row - 0.02 * row
        weight = "bold" if number == 0 else "normal"
        canvas.text(0.012, y, name, ha="left", va="center", fontsize=10.5, color=INK, weight=weight)
        for view, (label, probability) in enumerate(answers):
            right = label == seen.label
            mark, color = ("", INK) if seen.label is None else ("✓ ", RIGHT) if right else ("✗ ", WRONG)
            what = seen.classes[label] if label < len(seen.classes) else f"class {label}"
            canvas.text(
                margin + (view + 0.5) * column,
                y,
                f"{mark}{what}  {100 * probability:.0f} %",
                ha="center",
                va="center",
                fontsize=10.5,
                color=color,
            )
    return canvas


# --- results of tools/test.py ----------------------------------------------------------------------------------------


def draw_accuracy(axes: Axes, accuracies: Mapping[str, Mapping[str, float]]) -> None:
    """Bars of accuracy in percent: for each network one a protocol, given as accuracies[network][protocol]."""
    protocols = list(dict.fromkeys(p for by_protocol in accuracies.values() for p in by_protocol))
    width = 0.8 / len(protocols)
    shades = dict(zip(protocols, ("#b9cbe0", "#2f5d8a", "#7a7f87")))
    for number, protocol in enumerate(protocols):
        places = np.arange(len(accuracies)) + (number - (len(protocols) - 1) / 2) * width
        values = [by_protocol.get(protocol, np.nan) for by_protocol in accuracies.values()]
        label = f"tested under {group_name(protocol)}"
        bars = axes.bar(places, values, 0.94 * width, color=shades[protocol], label=label)
        axes.bar_label(bars, fmt="%.1f", fontsize=9.5, padding=2, color=INK)
    axes.set_xticks(range(len(accuracies)), accuracies)
    axes.tick_params(axis="x", length=0, labelsize=10.5)
    axes.tick_params(axis="y", labelsize=9, color="0.6")
    axes.set(ylim=(0, 100), yticks=range(0, 101, 20))
    axes.set_ylabel("overall accuracy, %", fontsize=9.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.6")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(protocols), frameon=False, fontsize=9.5)


def figure(
    shape: Subject,
    networks: Mapping[str, Network],
    results: Mapping[str, str | Path],
    out: str | Path,
    overwrite: bool = False,
    **options,
) -> Turning:
    """The picture of the README: one turned shape with the networks' answers, their accuracies, and the confusion
    matrix of the first network under SO(3).

    Args:
        shape: what `subject` returns; it must have a label.
        networks: by name, the first one is ours.
        results: by the same names, the npz files of `ClassificationMetric` with protocols "z" and "SO3".
        out: a file to write, .png, .pdf or .svg.
        options: views, seed, azimuth, elevation and up of `turning`.
    """
    path = check_out(out, PICTURES, overwrite)
    read = {name: read_results(file) for name, file in results.items()}
    first = next(iter(networks))
    if first not in read or not read[first][1].keys() >= {"z", "SO3"}:
        raise ValueError(f"results must hold protocols 'z' and 'SO3' of {first!r}, got {dict(results)!r}")
    seen = turning(shape, networks, **options)

    strip = 1.9 + 0.30 * len(networks) + 0.3
    bottom = 5.6
    canvas = Figure(figsize=(12, strip + bottom), facecolor="white")
    top, low = canvas.subfigures(2, 1, squeeze=False, height_ratios=[strip, bottom])[:, 0]
    draw_turning(seen, top)
    bars = low.add_axes((0.065, 0.15, 0.38, 0.68))
    keys = [key for key in ("z", "SO3") if any(key in confusions for _, confusions in read.values())]
    accuracies = {
        name: {key: overall_accuracy(confusions[key]) for key in keys if key in confusions}
        for name, (_, confusions) in read.items()
    }
    draw_accuracy(bars, accuracies)
    classes, confusions = read[first]
    matrix = low.add_axes((0.535, 0.15, 0.45, 0.78))
    draw_confusion(matrix, confusions["SO3"], classes, f"{first} under SO(3)")
    save_figure(canvas, path)
    return seen
