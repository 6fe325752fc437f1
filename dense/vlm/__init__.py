"""Vision-language models of transformers: what they look at (CARVE)."""
