"""First floor: tensor operators, one file each. It depends on PyTorch and Numba, and on Triton on a GPU.

Suffixes of names are shapes. For point clouds: B clouds, N points, S queries (sampled points), K neighbors, C channels,
M coarse points. The files of image operators define their own.

What every operator promises of its arguments, and `tests/kernels/test_operators.py` tries:

- A wrong argument (type, shape, dtype, device, value) raises a ValueError, a TypeError, or an IndexError if an index is
  out of range; the message names the argument. Coordinates and boxes must be finite, normals of unit length, indices
  and lengths in range. These values are looked at on a CPU only, and not while tracing: a look would wait for the
  device.
- All other floating-point tensors may hold infinities and NaN. On a CPU an output is finite where the PyTorch reference
  has a finite number, and only there; which of infinity and NaN stands elsewhere is not promised. A gradient is finite
  at least where the reference's is, whose zeros times infinity a loop may skip. Of a batch only the image or cloud with
  the infinity changes, except by what all of them share (the statistics of `residual_norm`, gradients of tables and
  weights). On a GPU finite results are promised of finite arguments only.
- Distances of coordinates are squared in the coordinates' dtype. Coordinates beyond 5e18 in float32 (4e153 in float64)
  are refused where values are looked at; elsewhere distances beyond 1.8e19 are all equally infinite, and the lowest
  index wins. `local_reference_axis` and `principal_axis` scale first, and have no such limit.
"""

# By their full names: a program that runs in this folder may import it as `kernels`, as transformers does in search of
# a package of that name. Operators that registered twice would no longer be those that the tables of exports know.
from attlas.kernels.box_overlaps import bbox_overlaps, box_iou_rotated
from attlas.kernels.bridging_attention import bridging_attention
from attlas.kernels.carafe import carafe
from attlas.kernels.combiner_attention import (
    combiner_fixed,
    combiner_logsparse,
    combiner_mixture,
    combiner_rowmajor,
    combiner_rows,
)
from attlas.kernels.deform_roi_pool import deform_roi_pool
from attlas.kernels.deformable_attention import deformable_attention
from attlas.kernels.deformable_convolution import deformable_convolution
from attlas.kernels.farthest_point_sample import farthest_point_sample
from attlas.kernels.focal_loss import sigmoid_focal_loss, softmax_focal_loss
from attlas.kernels.gather import gather_neighbors, scatter_neighbors
from attlas.kernels.gather_max import gather_max
from attlas.kernels.halo_attention import halo_attention, window_attention
from attlas.kernels.lightning_attention import (
    lightning_attention,
    lightning_attention_both_ways,
    lightning_attention_step,
)
from attlas.kernels.local_cross_attention import local_cross_attention
from attlas.kernels.local_reference_axis import local_reference_axis, principal_axis
from attlas.kernels.neighbor_moments import neighbor_moments
from attlas.kernels.neighborhood_aggregate import neighborhood_aggregate
from attlas.kernels.neighborhood_attention import neighborhood_attention
from attlas.kernels.neighbors import ball_query, knn
from attlas.kernels.nms import nms, nms_match, nms_rotated, soft_nms
from attlas.kernels.nprf_attention import nprf_attention
from attlas.kernels.outlook_attention import outlook_attention
from attlas.kernels.position_relation import position_relation
from attlas.kernels.psa_mask import psa_mask
from attlas.kernels.residual_norm import residual_norm
from attlas.kernels.reversed_attention import reversed_attention
from attlas.kernels.roi_align import roi_align
from attlas.kernels.roi_pool import roi_pool
from attlas.kernels.routed_attention import routed_attention
from attlas.kernels.small_kernel_aggregate import small_kernel_aggregate
from attlas.kernels.sparse_attention import sparse_attention
from attlas.kernels.surface_attention import surface_attention
from attlas.kernels.surface_properties import surface_properties
from attlas.kernels.three_interpolate import three_interpolate, three_nn

__all__ = [
    "ball_query",
    "bbox_overlaps",
    "box_iou_rotated",
    "bridging_attention",
    "carafe",
    "combiner_fixed",
    "combiner_logsparse",
    "combiner_mixture",
    "combiner_rowmajor",
    "combiner_rows",
    "deform_roi_pool",
    "deformable_attention",
    "deformable_convolution",
    "farthest_point_sample",
    "gather_max",
    "gather_neighbors",
    "halo_attention",
    "knn",
    "lightning_attention",
    "lightning_attention_both_ways",
    "lightning_attention_step",
    "local_cross_attention",
    "local_reference_axis",
    "neighbor_moments",
    "neighborhood_aggregate",
    "neighborhood_attention",
    "nms",
    "nms_match",
    "nms_rotated",
    "nprf_attention",
    "outlook_attention",
    "position_relation",
    "principal_axis",
    "psa_mask",
    "residual_norm",
    "reversed_attention",
    "roi_align",
    "roi_pool",
    "routed_attention",
    "scatter_neighbors",
    "sigmoid_focal_loss",
    "small_kernel_aggregate",
    "soft_nms",
    "softmax_focal_loss",
    "sparse_attention",
    "surface_attention",
    "surface_properties",
    "three_interpolate",
    "three_nn",
    "window_attention",
]
