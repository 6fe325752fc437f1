"""First floor: tensor operators, one file each. It depends on PyTorch and Numba, and on Triton on a GPU.

Suffixes of names are shapes. For point clouds: B clouds, N points, S queries (sampled points), K neighbors, C channels,
M coarse points. The files of image operators define their own.
"""

from .farthest_point_sample import farthest_point_sample
from .gather import gather_neighbors, scatter_neighbors
from .gather_max import gather_max
from .halo_attention import halo_attention
from .local_reference_axis import local_reference_axis, principal_axis
from .neighbor_moments import neighbor_moments
from .neighborhood_aggregate import neighborhood_aggregate
from .neighborhood_attention import neighborhood_attention
from .neighbors import ball_query, knn
from .residual_norm import residual_norm
from .routed_attention import routed_attention
from .small_kernel_aggregate import small_kernel_aggregate
from .surface_attention import surface_attention
from .surface_properties import surface_properties
from .three_interpolate import three_interpolate, three_nn

__all__ = [
    "ball_query",
    "farthest_point_sample",
    "gather_max",
    "gather_neighbors",
    "halo_attention",
    "knn",
    "local_reference_axis",
    "neighbor_moments",
    "neighborhood_aggregate",
    "neighborhood_attention",
    "principal_axis",
    "residual_norm",
    "routed_attention",
    "scatter_neighbors",
    "small_kernel_aggregate",
    "surface_attention",
    "surface_properties",
    "three_interpolate",
    "three_nn",
]
