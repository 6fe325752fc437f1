"""Third floor: feature maps to boxes, masks and images."""
