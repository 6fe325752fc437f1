"""Readers of meshes and clouds that hold a file to what it declares: PCD, PLY, OFF, OBJ, STL, glTF, NumPy's arrays.

Each takes the bytes of a file and gives `pos` (N, 3), and `normal` (N, 3) or `face` (F, 3) where the file has them, as
numbers of any kind. It raises an error, mostly a ValueError, where the file is none of its format, holds fewer or more
than its header declares, or declares what its bytes cannot hold: that is refused before memory is asked for. Polygons
become fans of triangles, in the file's order. Nothing is unpickled.

They are our own because the known readers fill in, cut or skip without a word: Open3D's of PCD takes what a header
lacks from memory that nobody wrote; trimesh drops the rest of a PLY, OBJ or ASCII STL line that is no number, the faces
that an OFF lacks, sparse accessors and the lines after a relative index. What could check a file for them has read it.

What declares nothing cannot be held to it: text tables and OBJ may be cut between two lines, and a text file whose last
line has no newline may have lost digits of its last number.
"""

from .gltf import read_gltf
from .meshes import read_obj, read_off, read_stl
from .pcd import read_pcd
from .ply import labelled_ply, read_ply
from .tables import DEFLATED, read_npy, read_npz, read_text

__all__ = [
    "DEFLATED",
    "READERS",
    "labelled_ply",
    "read_gltf",
    "read_npy",
    "read_npz",
    "read_obj",
    "read_off",
    "read_pcd",
    "read_ply",
    "read_stl",
    "read_text",
]

READERS = {".obj": read_obj, ".off": read_off, ".pcd": read_pcd, ".ply": read_ply, ".stl": read_stl}
