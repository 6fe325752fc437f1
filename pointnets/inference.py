"""How networks of point clouds are asked (see `attlas.inference`): for a class, or for a label of every point."""

import json
from collections.abc import Mapping

import numpy as np
import torch
from mmengine.dataset import Compose
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from ..data import build_transforms, drawn, seeded
from ..drawing import palette
from ..files import printable, replacing
from ..tasks import Classification, Exportable, ModelError, Task
from .datasets import as_data, category_parts, competing
from .formats import labelled_ply
from .scenes import RandomBlock
from .shapes import SUFFIXES, check_shape, read_shape
from .transforms import EstimateNormals, FarthestPoints, PoissonPoints, RandomPoints, SamplePoints, as_float32

DENSE = 10_000  # points of a mesh for transforms that choose from a dense cloud, as modelnet40_normal_resampled has
SHOWN_POINTS, SHOWN_FACES = 4096, 100_000  # most in a picture
CHOOSING = (FarthestPoints, PoissonPoints, RandomBlock, RandomPoints, SamplePoints)  # transforms that choose points
NO_CATEGORY = -1  # of clouds whose category is not given


class AnyShape(BaseTransform):
    """The transforms of a data set of meshes, or of one of clouds, for both.

    SamplePoints and PoissonPoints take meshes alone: of a cloud, RandomPoints chooses as many points, and
    EstimateNormals gives them the normals that those of a mesh have. Where FarthestPoints comes first, a mesh is
    sampled before it.
    """

    def __init__(self, transforms: Compose):
        steps = transforms.transforms
        choices = [step for step in steps if isinstance(step, CHOOSING)]
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
            names = [kind.__name__ for kind in CHOOSING]
            chosen = [step.get("num") for step in self.steps if str(step.get("type")).rpartition(".")[2] in names]
            size = [number for number in chosen if number is not None][-1:]
            if not size:
                raise ValueError(
                    f"the transforms of the test data choose no number of points ({', '.join(names)} do): give --size"
                )
        if len(size) != 1:
            raise ValueError("--size takes one number of points")
        normals = torch.nn.functional.normalize(torch.randn(batch, size[0], 3), dim=-1)
        return normals * torch.rand(batch, size[0], 1), normals

    def forward(self, points, normals):
        return self.network(points, normals)


class OfShapes(Task):
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


class PointClassification(OfShapes, Classification):
    """Classes of shapes."""

    unit = "cloud"

    def prepare(self, transforms):
        return AnyShape(transforms)

    def form(self, item):
        if item.face is not None:
            raise ValueError("it is still a mesh behind the transforms of the config; add SamplePoints or RandomPoints")
        return tuple(item.pos.shape), item.get("normal") is not None

    def question(self, model, source, target):
        """Targets are the log-probabilities of classes, by name or number; by default that of the likeliest class."""
        from ..backbones.classification.inference import class_number
        from .explanation import question  # here, because only explanations need it

        cloud = drawn(model.transforms, source.clone(), "the cloud", 0)
        self.form(cloud)
        batch = model.data_preprocessor([cloud], False)
        points, normals = batch["points"], batch["normals"]
        with torch.no_grad():
            log_probs = model(points, normals)[0].log_softmax(0)
        known = model.classes
        number = int(log_probs.argmax()) if target is None else class_number(target, known, len(log_probs))
        name = printable(known[number]) if known else f"class {number}"
        said = f"{name} ({100 * float(log_probs[number].exp()):.0f} %)"
        return question(model.network, points, normals, number, said)

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


class PointSegmentation(OfShapes):
    """Labels of the points of clouds, in the order of the points, whatever number they are. A dict may have `category`
    besides, the number of the cloud's, for networks that want it; with others it is an error of that input.

    A result has the number of "points", the axis that is "up", the "category" where one is known, the "classes" that
    were found, a list of dict(label, name, points, share), the largest first, and the "labels", a list with one for
    each point. tools/infer.py writes the labels as PLY.
    """

    top = 50

    def read(self, path):
        data = super().read(path)
        data.y = torch.tensor(NO_CATEGORY)
        return data

    def take(self, source):
        category = NO_CATEGORY
        if isinstance(source, Mapping):
            source = dict(source)
            if "category" in source:
                category = source.pop("category")
                if isinstance(category, bool) or not isinstance(category, (int, np.integer)) or category < 0:
                    raise ValueError(f"category must be the number of one, from 0, not {category!r}")
        data = super().take(source)
        data.y = torch.tensor(int(category))
        return data

    def prepare(self, transforms):
        for step in transforms.transforms:
            if isinstance(step, CHOOSING):
                raise ValueError(
                    f"the transforms of the test data choose points ({type(step).__name__}), and each point of a cloud "
                    "is to be labelled; the model draws the points for the network itself (num_points)"
                )
        return build_transforms([*transforms.transforms, as_float32])

    def form(self, item):
        if item.face is not None:
            raise ValueError("it is a mesh, and points are labelled: sample it first (attlas.pointnets.transforms)")
        return item.get("normal") is not None

    def exportable(self, model, steps):
        raise ValueError("a PointSegmenter labels clouds draw by draw, and no file holds that; it is not exported")

    def result(self, prediction, source, classes, top):
        log_probs = prediction["log_probs"].double().cpu()
        if not torch.isfinite(log_probs).all():
            raise ValueError("the network gives NaN or infinite numbers for it")
        if classes and len(classes) != log_probs.shape[1]:
            raise ModelError(f"There are names of {len(classes)} classes, and the network has {log_probs.shape[1]}.")
        names = classes or [f"class {number}" for number in range(log_probs.shape[1])]
        category = prediction["category"]
        if category is not None and not prediction["num_categories"]:
            raise ValueError(f"category is {category}, and the network takes none: leave it out")
        category = category if classes else None
        known = {} if category is None else dict(category=list(category_parts(names))[category])
        allowed = torch.tensor(competing(names, category))
        labels = allowed[log_probs[:, allowed].argmax(1)]
        counts = labels.bincount(minlength=log_probs.shape[1])
        order = counts.argsort(descending=True, stable=True)[:top].tolist()
        found = [
            dict(label=i, name=names[i], points=int(counts[i]), share=float(counts[i] / len(labels)))
            for i in order
            if counts[i]
        ]
        return dict(points=len(labels), up=prediction["up"], **known, classes=found, labels=labels.tolist())

    def said(self, result):
        shares = ", ".join(f"{printable(entry['name'])} {100 * entry['share']:.1f} %" for entry in result["classes"])
        return f"{result['points']:,} points: {shares}"

    def draw(self, source, result):
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        from .. import rendering

        labels = np.array(result["labels"])
        points, up = standing(source.pos.numpy().astype(float), result["up"])
        shown = np.random.default_rng(0).permutation(len(points))[: 4 * SHOWN_POINTS]
        scene = rendering.spheres(points[shown], class_colors(labels[shown]) / 255)
        image = rendering.snapshots([scene], rendering.view_direction(up=up), up, 720)[0]
        canvas = Figure(figsize=(8.0, 5.0), layout="constrained", dpi=120)
        axes = canvas.subplots()
        axes.imshow(image)
        axes.set_axis_off()
        handles = [
            Patch(
                color=class_colors(np.array([entry["label"]]))[0] / 255,
                label=f"{printable(entry['name'], 40)} {100 * entry['share']:.1f} %".replace("$", r"\$"),
            )
            for entry in result["classes"][:16]
        ]
        canvas.legend(handles=handles, loc="outside right upper", fontsize=9, frameon=False)
        canvas.suptitle(printable(result["input"], 90), fontsize=9, color="0.4", parse_math=False)
        return canvas

    def save(self, source, result, stem):
        labels = np.array(result.pop("labels"))
        path = stem.with_name(f"{stem.name}.ply")
        normal = None if source.get("normal") is None else source.normal.numpy()
        names = {entry["label"]: entry["name"] for entry in result["classes"]}
        with replacing(path) as temporary:
            temporary.write_bytes(labelled_ply(source.pos.numpy(), labels, class_colors(labels), normal, names))
        return dict(cloud=path.name)


def class_colors(labels: np.ndarray) -> np.ndarray:
    """The color of each label (N,), as maps of images have it: uint8 (N, 3)."""
    return palette(int(labels.max(initial=-1)) + 1)[labels]


def standing(vectors: np.ndarray, up: str) -> tuple[np.ndarray, str]:
    """Points or directions (N, 3) with the axis "y" or "z" up, on which cameras stand, and that axis; those with "x" up
    are turned."""
    return (vectors[:, [1, 2, 0]], "z") if up == "x" else (vectors, up)
