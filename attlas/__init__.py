"""Attlas: an atlas of attention for 3-D point clouds and dense prediction.

The floors are `attlas.kernels`, `attlas.backbones`, `attlas.pointnets` and `attlas.dense`; each imports only the
floors below it, and nothing here imports any of them.
"""

__version__ = "0.1.0"
