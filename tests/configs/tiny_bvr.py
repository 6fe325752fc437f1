# tiny_detector.py with key points.
_base_ = "tiny_detector.py"

model = dict(
    bbox_head=dict(
        type="attlas.BVRRetinaHead",
        keypoint_head=dict(feat_channels=16, stacked_convs=1, per_level=6, num_keys=12),
        bridging=dict(num_heads=4, base_size=40),
    )
)
