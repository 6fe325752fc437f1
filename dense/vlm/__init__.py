"""Vision-language models of transformers: what they look at (CARVE), and a second look at images (Vision Remember)."""
