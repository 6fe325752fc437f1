"""How a classifier of point clouds is asked (see `attlas.inference`)."""

import json
from collections.abc import Mapping

import numpy as np
import torch
from mmengine.dataset import Compose
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from ..data import build_transforms, seeded
from ..inference import Classification, Exportable
from .datasets import as_data
from .shapes import SUFFIXES, check_shape, read_shape
from .transforms import EstimateNormals, FarthestPoints, PoissonPoints, RandomPoints, SamplePoints, as_float32

DENSE = 10_000  # points of a mesh for transforms that choose from a dense cloud, as modelnet40_normal_resampled has
SHOWN_POINTS, SHOWN_FACES = 4096, 100_000  # most in a picture


class AnyShape(BaseTransform):
    """The transforms of a data set of meshes, or of one of clouds, for both.

    SamplePoints and PoissonPoints take meshes alone: of a cloud, RandomPoints chooses as many points, and
    EstimateNormals gives them the normals that those of a mesh have. Where FarthestPoints comes first, a mesh is
    sampled before it.
    """

    def __init__(self, transforms: Compose):
        steps = transforms.transforms
        choices = [s for s in steps if isinstance(s, (FarthestPoints, PoissonPoints, RandomPoints, SamplePoints))]
        sampled = [RandomPoints(DENSE)] if choices and isinstance(choices[0], FarthestPoints) else []
        self.of_meshes = build_transforms([*sampled, *steps])
        self.of_clouds = build_transforms([new for step in steps for new in self._of_clouds(step)])

    @staticmethod
    def _of_clouds(step):
        if not isinstance(step, (PoissonPoints, SamplePoints)):
            return [step]
        normals = [EstimateNormals(only_missing=True)] if getattr(step, "include_normals", True) else []
        return [RandomPoints(step.num), *normals]

    def forward(self, data: Data) -> Data:
        return as_float32(self.of_clouds(data) if data.face is None else self.of_meshes(data))


class ExportedPointNetwork(Exportable):
    """Points (B, N, 3) and their unit normals (B, N, 3) to logits (B, classes)."""

    def __init__(self, model, steps):
        why = "a cloud has as many points as the transforms choose"
        about = dict(
            layout="points (B, N, 3), their unit normals (B, N, 3)", transforms=json.dumps(list(map(dict, steps)))
        )
        if model.classes:
            about["classes"] = json.dumps(model.classes, ensure_ascii=False)
        fixed = {".pt2": dict(height=why, width=why)}
        super().__init__(type(model.network).__name__, ["logits"], about, fixed)
        self.network, self.steps = model.network, steps

    def inputs(self, batch, size):
        if size is None:
            chosen = [
                step["num"] for step in self.steps if str(step.get("type")).endswith(("RandomPoints", "FarthestPoints"))
            ]
            size = chosen[-1:] or [1024]
        if len(size) != 1:
            raise ValueError("--size takes one number of points")
        normals = torch.nn.functional.normalize(torch.randn(batch, size[0], 3), dim=-1)
        return normals * torch.rand(batch, size[0], 1), normals

    def forward(self, points, normals):
        return self.network(points, normals)


class PointClassification(Classification):
    """Files of meshes and clouds, arrays of points (N, 3), with normals (N, 6), and dicts of pos (N, 3) and perhaps
    normal (N, 3) and face (F, 3)."""

    suffixes = SUFFIXES
    exports = (".pt2",)

    def read(self, path):
        return as_data(read_shape(path), path.name)

    def take(self, source):
        if not isinstance(source, Mapping):
            table = np.asarray(source)
            if table.ndim != 2 or table.shape[1] not in (3, 6):
                raise ValueError(f"points must be (N, 3), or with normals (N, 6), not {table.shape}")
            source = {"pos": table[:, :3]} | ({"normal": table[:, 3:]} if table.shape[1] == 6 else {})
        if "pos" not in source or source.keys() - {"pos", "normal", "face"}:
            raise ValueError(f"a shape must have pos, and may have normal and face, not {', '.join(source)}")
        return as_data(check_shape(dict(source)), "shape")

    def prepare(self, transforms):
        return AnyShape(transforms)

    def form(self, item):
        if item.face is not None:
            raise ValueError("it is still a mesh behind the transforms of the config; add SamplePoints or RandomPoints")
        return tuple(item.pos.shape), item.get("normal") is not None

    def exportable(self, model, steps):
        return ExportedPointNetwork(model, steps)

    def picture(self, source):
        from .. import rendering  # here, because Open3D takes a second, and only pictures need it

        mesh = source.face is not None and source.face.shape[1] <= SHOWN_FACES
        if not mesh and (source.face is not None or len(source.pos) > SHOWN_POINTS):
            with seeded(0):
                source = RandomPoints(SHOWN_POINTS)(source)
        points = source.pos.numpy().astype(float)
        faces = source.face.T.numpy() if mesh else None
        scene = rendering.spheres(points, rendering.CLAY) if faces is None else rendering.surface(points, faces)
        return rendering.snapshots([scene], rendering.view_direction(), "y", 480)[0]
