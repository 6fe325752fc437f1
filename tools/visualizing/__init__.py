"""The commands of tools/visualize.py by group: each module adds its commands to the parser, and draws them."""
