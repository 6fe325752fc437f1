# The RetinaNet of ../retinanet/retinanet_biformer_rooms.py, whose features attend to key points.
_base_ = ["../retinanet/retinanet_biformer_rooms.py"]

model = dict(bbox_head=dict(type="attlas.BVRRetinaHead", keypoint_head=dict(feat_channels=64)))
