"""First floor: tensor operators on point clouds, one file per operator. Depends on PyTorch and Numba; Triton on a GPU.

Shapes in names: B clouds, N points, S queries (sampled points), K neighbours, C channels, M coarse points.
"""

from .farthest_point_sample import farthest_point_sample
from .gather import gather_neighbors, scatter_neighbors
from .gather_max import gather_max
from .local_reference_axis import local_reference_axis, principal_axis
from .neighbor_moments import neighbor_moments
from .neighbors import ball_query, knn
from .residual_norm import residual_norm
from .surface_attention import surface_attention
from .surface_properties import surface_order, surface_properties
from .three_interpolate import three_interpolate, three_nn

__all__ = [
    "ball_query",
    "farthest_point_sample",
    "gather_max",
    "gather_neighbors",
    "knn",
    "local_reference_axis",
    "neighbor_moments",
    "principal_axis",
    "residual_norm",
    "scatter_neighbors",
    "surface_attention",
    "surface_order",
    "surface_properties",
    "three_interpolate",
    "three_nn",
]
