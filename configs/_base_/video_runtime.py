# What every training and test of a detector of anomalies in videos starts from. A checkpoint holds the scores of normal
# frames, of which tools/infer.py takes its threshold.
_base_ = ["./default_runtime.py"]

custom_hooks = [dict(type="NormalScores", clips=200)]
test_evaluator = dict(type="VideoAUC", sigma=3.0)
val_cfg = dict()
test_cfg = dict()
