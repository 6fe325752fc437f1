"""mmdet's classes are imported by the tests: attlas first, which offers mmcv what it lacks."""

import attlas  # noqa: F401
