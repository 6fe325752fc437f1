"""What of a point network's answer is explained: the log-probability of a class; and the points that a map is of.

    asked = question(model, cloud, number)           # of `PointClassification.question`
    layer = default_layer(asked.network.network)     # network.layers.3 of a DGCNN
    (values,) = normgrad(asked.network, asked.inputs, asked.score, layer, grid=rows)    # (1, S)
    points_of(asked, layer)                          # (S, 3)

Layers give a row for each of their points. Which points these are, a layer itself says: those of the cloud (EdgeConv),
those that it gives beside the features (set abstraction), or those that it is asked for (RISurConv).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..backbones.inspection.capture import INPUT, LAYER
from ..backbones.inspection.pictures import relative, scales
from ..backbones.inspection.targets import Question, cross_entropy, log_probability
from ..rendering import CLAY, Mesh, joined, point_radius, snapshots, spheres
from .dgcnn import EdgeConv
from .pictures import draw_grid
from .pointnet2 import MultiScaleAbstraction, SetAbstraction
from .risurconv import GroupAll, Propagation, RISurConv

SMALL, FAINT = 0.5, (0.80, 0.81, 0.83)  # of the points that a layer has not: share of the radius, color


class Cloud(nn.Module):
    """A point network as a function of points (B, 3, 1, N), a map of one row, and normals (B, N, 3), if any.

    Args:
        network: points (B, N, 3), normals (B, N, 3) or None -> logits (B, classes); in inference mode. Its modules are
            below the name "network".
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.train(network.training)

    def forward(self, points: Tensor, normals: Tensor | None = None) -> Tensor:
        return self.network(points.squeeze(2).mT.contiguous(), normals)


def rows(x: Tensor) -> Tensor:
    """Features (B, S, C) as maps (B, C, S)."""
    if x.ndim != 3:
        raise ValueError(f"a layer of points gives features (B, points, C), and this one gives shape {tuple(x.shape)}")
    return x.mT


def question(network: nn.Module, points: Tensor, normals: Tensor | None, number: int, said: str) -> Question:
    """The log-probability of a class of one cloud.

    Args:
        network: as of `Cloud`.
        points, normals: (1, N, 3).
        number: of the class.
        said: it, in words.
    """
    inputs = (points.mT.unsqueeze(2).contiguous(), *([] if normals is None else [normals]))
    shown = points[0].cpu().numpy()
    score, layer = log_probability(number), default_layer(network)
    return Question(Cloud(network), inputs, score, said, shown, loss=cross_entropy(number), layer=layer, grid=rows)


def default_layer(network: nn.Module) -> str:
    """The last layer that has several points, as a layer of `Cloud`; the input of networks without."""
    found = INPUT
    for name, module in network.named_modules():
        if isinstance(module, EdgeConv) or (
            isinstance(module, RISurConv) and not isinstance(module, (GroupAll, Propagation))
        ):
            found = f"network.{name}"
        elif isinstance(module, (SetAbstraction, MultiScaleAbstraction)) and module.num_points is not None:
            found = f"network.{name}[1]"
    return found


@torch.no_grad()
def points_of(asked: Question, layer: str) -> np.ndarray:
    """The points (S, 3) whose values the map of a layer has.

    Raises:
        ValueError: a layer that does not say which points it has.
    """
    if layer == INPUT:
        return asked.picture
    match: Any = LAYER.fullmatch(layer)
    module = dict(asked.network.named_modules())[match["name"]]
    seen: list[tuple[Any, Any]] = []
    handle = module.register_forward_hook(lambda module, args, output: seen.append((args, output)))
    try:
        asked.network(*asked.inputs)
    finally:
        handle.remove()
    args, output = seen[int(match["call"] or 0)]
    if isinstance(module, EdgeConv):
        return asked.picture
    if isinstance(module, (SetAbstraction, MultiScaleAbstraction)):
        return output[0][0].cpu().numpy()
    if isinstance(module, RISurConv) and not isinstance(module, GroupAll):
        return args[3][0].cpu().numpy()
    raise ValueError(
        f"{layer} ({type(module).__name__}) does not say which points its values are of: choose input, or a layer such "
        f"as {default_layer(asked.network.network)}"  # type: ignore[arg-type]
    )


def draw_saliency(
    questions: Sequence[Question],
    maps: Sequence[Sequence[Tensor]],
    methods: Sequence[str],
    layers: Sequence[str],
    title: str,
    backward: np.ndarray,
    up: str,
    size: int = 480,
) -> Figure:
    """A row for each question: the cloud, and the values of each method at the points of its layer, amid the others.

    Colors are those of the maps of images: values of at least 0 go from dark to yellow, the largest; signed ones are
    red for what raises the score, blue for what lowers it.

    Args:
        questions: of clouds.
        maps: of S values for each method, for each question.
        methods, layers: their names, and where each of them looks.
        title: text above all rows.
        backward, up: direction to the eye (3,), and the axis that points up.
        size: pixels of a side of a panel, before it is cut to what is seen.
    """
    meshes, below = [], []
    for asked, of_question in zip(questions, maps):
        radius = point_radius(asked.picture)
        meshes.append(spheres(asked.picture, CLAY, radius))
        below.append([f"{len(asked.picture):,} points"])
        for values, layer in zip(of_question, layers):
            points = points_of(asked, layer)
            meshes.append(_scene(asked.picture, points, values.flatten().float().cpu().numpy(), radius))
            below[-1].append(f"{layer}: {len(points):,} points")
    columns = 1 + len(methods)
    pictures = snapshots(meshes, backward, up, size)
    lines = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    figure = draw_grid(lines, below, ["cloud", *methods], [asked.said for asked in questions])
    figure.suptitle(title, fontsize=10, parse_math=False)
    scales(figure, maps)
    return figure


def _scene(cloud: np.ndarray, points: np.ndarray, values: np.ndarray, radius: float) -> Mesh:
    shares = relative(values)
    signed = bool((shares < 0).any())
    colors = ScalarMappable(Normalize(-1 if signed else 0, 1), "RdBu_r" if signed else "inferno").to_rgba(shares)
    if len(points) == len(cloud):
        return spheres(points, colors[:, :3], radius)
    return joined(spheres(cloud, FAINT, SMALL * radius), spheres(points, colors[:, :3], 1.5 * radius))
