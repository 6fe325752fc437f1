"""First floor: tensor operators on point clouds, one file per operator. Depends on PyTorch, SciPy and a FPS wheel only.

Shapes in names: B clouds, N points, S queries (sampled points), K neighbours, C channels, M coarse points.
"""

from .farthest_point_sample import farthest_point_sample
from .gather import gather_neighbors
from .local_reference_axis import local_reference_axis, principal_axis
from .neighbors import ball_query, knn
from .surface_attention import surface_attention
from .surface_properties import surface_order, surface_properties

__all__ = [
    "ball_query",
    "farthest_point_sample",
    "gather_neighbors",
    "knn",
    "local_reference_axis",
    "principal_axis",
    "surface_attention",
    "surface_order",
    "surface_properties",
]
