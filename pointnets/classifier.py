"""Point-cloud classification as an MMEngine model: any network that maps points and normals to logits."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor
from torch_geometric.data import Data

from .. import checkpoint  # noqa: F401  by which `init_cfg` loads weights
from ..registry import MODELS
from .inference import PointClassification


@MODELS.register_module()
class PointPreprocessor(BaseDataPreprocessor):
    """A list of clouds -> the arguments of the `forward` of a model, on its device.

    Args:
        of_points: for models that label points. These get `point_labels` besides; and outside of training the clouds
            may be of any sizes, in lists.
    """

    def __init__(self, of_points: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.of_points = of_points

    def forward(self, data: list[Data], training: bool = False) -> dict:
        sizes = {len(cloud.pos) for cloud in data}
        together = training or not self.of_points
        if together and len(sizes) != 1:
            raise ValueError(
                f"the clouds of a batch must have one number of points, got {sorted(sizes)}: "
                "have the transforms choose them, by dict(type='FarthestPoints', num=...) or 'RandomPoints'"
            )
        if len({cloud.get("normal") is not None for cloud in data}) != 1:
            raise ValueError(
                "some clouds of a batch have normals and some have not: give them those they lack by "
                "dict(type='EstimateNormals', only_missing=True) among the transforms"
            )

        def gathered(key: str) -> Tensor | list[Tensor] | None:
            if data[0].get(key) is None:
                return None
            values = [cloud[key].to(self.device, non_blocking=True) for cloud in data]
            return torch.stack(values) if together else values

        found = dict(
            points=gathered("pos"),
            normals=gathered("normal"),
            labels=torch.stack([cloud.y for cloud in data]).to(self.device, non_blocking=True),
            identities=[(cloud.cloud, cloud.get("protocol")) for cloud in data],
        )
        return found | (dict(point_labels=gathered("point_label")) if self.of_points else {})


@MODELS.register_module()
class PointClassifier(BaseModel):
    """Cross-entropy training and prediction of a point network.

    Args:
        network: config of a module `network(points (B, N, 3), normals (B, N, 3) or None) -> logits (B, classes)`.
        label_smoothing: share of the target spread over all classes.

    `mode="loss"` gives {"loss", "accuracy"}, `mode="tensor"` the logits, and `mode="predict"` for each cloud
    {"log_probs", "label", "cloud", "protocol"}.
    """

    task = PointClassification

    def __init__(self, network: dict, label_smoothing: float = 0.0, data_preprocessor=None, init_cfg=None):
        super().__init__(data_preprocessor or dict(type="PointPreprocessor"), init_cfg)
        self.network = MODELS.build(network)
        self.label_smoothing = label_smoothing

    @property
    def checkpoint_rules(self) -> list:
        """The rules for the authors' files, which hold a network and no more."""
        return [*getattr(self.network, "checkpoint_rules", ()), (r"^(?!network\.)", "network.")]

    def forward(self, points: Tensor, normals: Tensor | None = None, labels=None, identities=None, mode="tensor"):
        logits = self.network(points, normals)
        if mode == "tensor":
            return logits
        if mode == "loss":
            return dict(
                loss=F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing),
                accuracy=(logits.detach().argmax(-1) == labels).float().mean() * 100,
            )
        if mode == "predict":
            log_probs = logits.log_softmax(-1)
            return [
                dict(log_probs=row, label=label, cloud=cloud, protocol=protocol)
                for row, label, (cloud, protocol) in zip(log_probs, labels, identities)
            ]
        raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}")
