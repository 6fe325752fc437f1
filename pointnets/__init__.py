"""Third floor: point clouds to classes and parts; data sets, transforms, metrics and the viewer."""

from . import classifier, datasets, dgcnn, metrics, pointnet2, risurconv, scenes, segmenter, transforms

__all__ = ["classifier", "datasets", "dgcnn", "metrics", "pointnet2", "risurconv", "scenes", "segmenter", "transforms"]
