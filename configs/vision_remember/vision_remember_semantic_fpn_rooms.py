# Semantic FPN on the built-in rooms, in whose neck coarse maps read the finer ones again. Nothing was published for it.
_base_ = ["../semantic_fpn/semantic_fpn_biformer_rooms.py"]

work_dir = "work_dirs/vision_remember_semantic_fpn_rooms"
model = dict(neck=dict(type="attlas.VisionRememberNeck", levels=2, head_dim=32))
