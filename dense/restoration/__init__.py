"""Restoration: pictures to better pictures, on MMEngine."""
