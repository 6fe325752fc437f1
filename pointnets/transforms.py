"""What a pipeline does to one shape: sample, center, rotate, augment.

Each transform is a PyTorch Geometric `BaseTransform` over `Data(pos (N, 3), normal (N, 3) or absent)` and is named in a
config: `transforms=[dict(type='SamplePoints', num=1024, include_normals=True), dict(type='UnitSphere')]`. Normals
follow whatever happens to the points. PyG's `SamplePoints`, `Center`, `NormalizeScale` and `NormalizeRotation` go by
their own names; those of its transforms that would leave normals behind (`RandomRotate`, `RandomFlip`, ...) do not.

Points of float64 (see `read_shape`) stay float64 until `as_float32`, which every draw ends with.

Random transforms draw from torch's global generator; `attlas.data.seeded` makes a draw a function of a few integers.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch_geometric import transforms as pyg
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from ..data import UP_AXES, one_of, positive
from ..kernels import farthest_point_sample, local_reference_axis
from ..registry import TRANSFORMS
from .shapes import fits_float32

GROUPS = ("none", "z", "SO3")
FEWEST = 5  # points that `local_reference_axis` takes

for transform in (pyg.Center, pyg.NormalizeScale, pyg.NormalizeRotation):
    TRANSFORMS.register_module(module=transform)


def random_rotation(group: str, up: str = "y") -> Tensor:
    """A rotation matrix (3, 3), float64: the identity ('none'), a uniform angle about the `up` axis ('z', as the field
    calls it whichever axis is up), or Haar-uniform in SO(3) ('SO3', from a normalized Gaussian quaternion)."""
    if group == "none":
        return torch.eye(3, dtype=torch.float64)
    if group == "z":
        angle = 2 * np.pi * torch.rand((), dtype=torch.float64).item()
        rotation = Rotation.from_rotvec(angle * np.array(UP_AXES[up]))
    else:
        rotation = Rotation.from_quat(torch.randn(4, dtype=torch.float64).numpy())
    return torch.from_numpy(rotation.as_matrix().copy())


def rotate(data: Data, rotation: Tensor) -> Data:
    """`data` with points and normals turned by a (3, 3) matrix, computed in float64 and returned in their own dtype."""
    for key in ("pos", "normal"):
        if key in data:
            data[key] = (data[key].double() @ rotation.T).to(data[key].dtype)
    return data


def as_float32(data: Data) -> Data:
    """`data` with points and normals as networks take them.

    Raises ValueError where float32 would lose the shape, because it lies far from the origin for its size."""
    if data.pos.dtype == torch.float64 and not fits_float32(data.pos.numpy()):
        size = float((data.pos.amax(0) - data.pos.amin(0)).max())
        place = ", ".join(f"{coordinate:.7g}" for coordinate in data.pos.mean(0).tolist())
        raise ValueError(
            f"its points lie around ({place}), where float32 has too few digits for a shape of size {size:.3g}: center "
            "it, by dict(type='UnitSphere') or dict(type='Center') among the transforms"
        )
    for key in ("pos", "normal"):
        if data.get(key) is not None:
            data[key] = data[key].float()
    return data


def select(data: Data, index: Tensor) -> Data:
    """The points at `index` (S,), with what belongs to each. A mesh is refused: its faces would point at vertices that
    are gone."""
    if data.face is not None:
        raise ValueError("a transform that chooses points got a mesh; sample it first (SamplePoints or RandomPoints).")
    for key in ("pos", "normal", "point_label", "color"):
        if key in data:
            data[key] = data[key][index]
    return data


@TRANSFORMS.register_module()
class SamplePoints(pyg.SamplePoints):
    """PyG's: `num` points of a mesh, uniform by area, with the normals of its faces if `include_normals`."""

    def forward(self, data: Data) -> Data:
        if data.face is None:
            raise ValueError("SamplePoints needs a mesh, and got a cloud; RandomPoints takes both.")
        return super().forward(data)


@TRANSFORMS.register_module()
class RandomPoints(BaseTransform):
    """`num` random points of a shape, whatever it is: on a mesh uniformly by area, with the normals of the faces; of a
    cloud a choice without replacement (with as few repetitions as possible where it holds fewer than `num`)."""

    def __init__(self, num: int):
        self.num = positive("RandomPoints.num", num)
        self.on_mesh = SamplePoints(num, include_normals=True)

    def forward(self, data: Data) -> Data:
        if data.face is not None:
            return self.on_mesh(data)
        size = data.pos.size(0)
        return select(data, torch.cat([torch.randperm(size) for _ in range(-(-self.num // size))])[: self.num])


@TRANSFORMS.register_module()
class FarthestPoints(BaseTransform):
    """`num` points of a cloud by farthest point sampling, from its first point or from a random one."""

    def __init__(self, num: int, start: str = "first"):
        self.num = positive("FarthestPoints.num", num)
        self.start = one_of("FarthestPoints.start", start, ("first", "random"))

    def forward(self, data: Data) -> Data:
        size = data.pos.size(0)
        if size < self.num:
            raise ValueError(
                f"FarthestPoints(num={self.num}) got a cloud of {size} points; ask for fewer, "
                "or use RandomPoints, which repeats points."
            )
        if self.start == "random":
            data = select(data, torch.arange(size).roll(-int(torch.randint(size, ()))))
        return select(data, farthest_point_sample(data.pos[None], self.num)[0])


@TRANSFORMS.register_module()
class PoissonPoints(BaseTransform):
    """`num` evenly spread points of a mesh with the normals of its triangles: Open3D's Poisson-disk sampling (Yuksel's
    elimination from `init_factor * num` uniform points), as FG3D is prepared. Reseeds Open3D's own generator."""

    def __init__(self, num: int, init_factor: float = 5):
        self.num = positive("PoissonPoints.num", num)
        if init_factor < 1:
            raise ValueError(f"PoissonPoints.init_factor is {init_factor!r}; it must be at least 1.")
        self.init_factor = init_factor

    def forward(self, data: Data) -> Data:
        import open3d  # here, because importing it takes a second and few pipelines need it

        if data.face is None:
            raise ValueError("PoissonPoints needs a mesh, and got a cloud; use FarthestPoints instead.")
        mesh = open3d.geometry.TriangleMesh(
            open3d.utility.Vector3dVector(data.pos.double().numpy()),
            open3d.utility.Vector3iVector(data.face.T.int().numpy()),
        )
        mesh.compute_triangle_normals()
        open3d.utility.random.seed(int(torch.randint(2**31 - 1, ())))
        cloud = mesh.sample_points_poisson_disk(self.num, self.init_factor, use_triangle_normal=True)
        data.pos = torch.tensor(np.asarray(cloud.points), dtype=data.pos.dtype)
        data.normal = torch.tensor(np.asarray(cloud.normals), dtype=data.pos.dtype)
        data.face = None
        return data


@TRANSFORMS.register_module()
class Shuffle(BaseTransform):
    """A random order of the points."""

    def forward(self, data: Data) -> Data:
        return select(data, torch.randperm(data.pos.size(0)))


@TRANSFORMS.register_module()
class UnitSphere(BaseTransform):
    """Centers on the mean of the points and scales the farthest one to norm 1 (coincident points go to the origin)."""

    def forward(self, data: Data) -> Data:
        centered = data.pos.double()  # whose squares are finite
        centered = centered - centered.mean(dim=0)
        radius = centered.norm(dim=1).max()
        data.pos = (centered / radius if radius > 0 else centered).to(data.pos.dtype)
        return data


def estimated_normals(points: Tensor, k: int = 32) -> Tensor:
    """Normals (N, 3) of points (N, 3), from `k` nearest neighbors, or from all points where a cloud has fewer.

    Raises ValueError where `k`, or the number of points, is below 5."""
    if len(points) < FEWEST:
        have = "1 point" if len(points) == 1 else f"{len(points)} points"
        raise ValueError(f"a cloud of {have} is too small to estimate normals; {FEWEST} are needed")
    return local_reference_axis(points[None], min(k, len(points)))[0]


@TRANSFORMS.register_module()
class EstimateNormals(BaseTransform):
    """Normals of a cloud as the local reference axis of `k` nearest neighbors (see `estimated_normals`); with
    `only_missing`, shapes that have normals keep theirs. Put it after every rotation: only then does a test of
    invariance cover the estimate too."""

    def __init__(self, k: int = 32, only_missing: bool = False):
        self.k, self.only_missing = positive("EstimateNormals.k", k), only_missing

    def forward(self, data: Data) -> Data:
        if not (self.only_missing and "normal" in data):
            data.normal = estimated_normals(data.pos, self.k)
        return data


@TRANSFORMS.register_module()
class RandomRotation(BaseTransform):
    """Turns points and normals by `random_rotation(group, up)`: 'SO3' (Haar-uniform), 'z' (about `up`) or 'none'."""

    def __init__(self, group: str = "SO3", up: str = "y"):
        self.group = one_of("RandomRotation.group", group, GROUPS)
        self.up = one_of("RandomRotation.up", up, tuple(UP_AXES))

    def forward(self, data: Data) -> Data:
        return rotate(data, random_rotation(self.group, self.up))


@TRANSFORMS.register_module()
class RandomScale(BaseTransform):
    """Scales by U(low, high), or by one such factor for each axis (`anisotropic`), where normals are transformed by the
    inverse transpose and brought back to length 1."""

    def __init__(self, low: float = 0.8, high: float = 1.25, anisotropic: bool = False):
        if not 0 < low <= high:
            raise ValueError(f"RandomScale.low and .high are {low!r} and {high!r}; they must obey 0 < low <= high.")
        self.low, self.high, self.anisotropic = low, high, anisotropic

    def forward(self, data: Data) -> Data:
        scale = torch.empty(3 if self.anisotropic else 1, dtype=data.pos.dtype).uniform_(self.low, self.high)
        data.pos = data.pos * scale
        if self.anisotropic and "normal" in data:
            data.normal = F.normalize(data.normal / scale, dim=1)
        return data


@TRANSFORMS.register_module()
class RandomShift(BaseTransform):
    """Moves the whole cloud by U(-distance, distance) along each axis."""

    def __init__(self, distance: float = 0.1):
        if distance < 0:
            raise ValueError(f"RandomShift.distance is {distance!r}; it must be at least 0.")
        self.distance = distance

    def forward(self, data: Data) -> Data:
        data.pos = data.pos + torch.empty(3, dtype=data.pos.dtype).uniform_(-self.distance, self.distance)
        return data


@TRANSFORMS.register_module()
class RandomJitter(BaseTransform):
    """Moves every point by N(0, sigma) along each axis, clipped to [-clip, clip]; normals stay."""

    def __init__(self, sigma: float = 0.01, clip: float = 0.05):
        if sigma < 0 or clip < 0:
            raise ValueError(f"RandomJitter.sigma and .clip are {sigma!r} and {clip!r}; both must be at least 0.")
        self.sigma, self.clip = sigma, clip

    def forward(self, data: Data) -> Data:
        data.pos = data.pos + (self.sigma * torch.randn_like(data.pos)).clamp_(-self.clip, self.clip)
        return data


@TRANSFORMS.register_module()
class RandomDropout(BaseTransform):
    """Drops a share U(0, max_ratio) of the points. Their number stays: a dropped one becomes a copy of the first
    (PointNet++'s augmentation, which the released recipe of RISurConv uses too)."""

    def __init__(self, max_ratio: float = 0.875):
        if not 0 <= max_ratio <= 1:
            raise ValueError(f"RandomDropout.max_ratio is {max_ratio!r}; it must lie in [0, 1].")
        self.max_ratio = max_ratio

    def forward(self, data: Data) -> Data:
        size = data.pos.size(0)
        keep = torch.rand(size) >= self.max_ratio * torch.rand(())
        return select(data, torch.arange(size) * keep)
