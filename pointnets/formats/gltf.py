"""glTF, as JSON or binary: the triangles of a scene."""

import base64
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from .reading import Arrays

GLTF_TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
GLTF_LOOKS = ("KHR_materials_", "KHR_texture_", "KHR_lights_", "EXT_texture_", "KHR_xmp")  # no word on geometry
# A node may stand for a mesh that others stand for too: limits of what a small file can ask for in this way.
GLTF_MOST = 1 << 24  # vertices and triangles, where the buffers do not hold that many bytes
GLTF_PARTS = 100_000  # parts of meshes (primitives)


def read_gltf(content: bytes, folder: Path) -> Arrays:
    """glTF 2.0, as JSON or binary (.glb): the triangles, strips and fans of all meshes of the scene, each where its
    nodes put it. Materials, lines, points, skins and animations are not read; compressed (Draco, meshopt), quantized
    and sparse geometry is refused. Buffers may lie in the file, or in other files of its `folder` or below."""
    return _Gltf(content, folder).read()


class _Gltf:
    def __init__(self, content: bytes, folder: Path):
        self.folder = folder
        self.binary: bytes | None = None
        if content.startswith(b"glTF"):
            content = self._chunks(content)
        self.tree: dict = json.loads(content)
        if not isinstance(self.tree, dict) or not str(self._of(self.tree, "asset", {}).get("version")).startswith("2"):
            raise ValueError("this is no glTF 2.0")
        required = self._of(self.tree, "extensionsRequired", [])
        if other := [name for name in required if not str(name).startswith(GLTF_LOOKS)]:
            raise ValueError(f"it needs the extension {str(other[0])[:60]!r}; export it without")
        self.buffers: dict[str | None, bytes] = {}

    def _chunks(self, content: bytes) -> bytes:
        """The JSON of a binary file; the buffer becomes `self.binary`."""
        version, length = struct.unpack_from("<II", content, 4) if len(content) >= 12 else (0, 0)
        if version != 2 or length != len(content):
            raise ValueError(f"version 2 and {len(content)} bytes were expected, not {version} and {length}")
        at, chunks = 12, []
        while at < length:
            size, kind = struct.unpack_from("<I4s", content, at) if at + 8 <= length else (length, b"")
            if at + 8 + size > length:
                raise ValueError(f"a chunk of {size} bytes is declared, which the file does not hold")
            chunks.append((kind, content[at + 8 : at + 8 + size]))
            at += 8 + size
        if not chunks or chunks[0][0] != b"JSON":
            raise ValueError("the first chunk is not JSON")
        if len(chunks) > 1 and chunks[1][0] == b"BIN\0":
            self.binary = chunks[1][1]
        return chunks[0][1]

    @staticmethod
    def _of(entry: dict, key: str, default: Any) -> Any:
        """`entry[key]`, of the default's kind; a natural number where that is one."""
        value = entry.get(key, default)
        if type(value) is not type(default) or (isinstance(default, int) and value < 0):
            raise ValueError(f"{key} is {str(value)[:40]!r}; a {type(default).__name__} was expected")
        return value

    def _item(self, kind: str, index: Any) -> dict:
        items = self._of(self.tree, kind, [])
        if type(index) is not int or not 0 <= index < len(items) or not isinstance(items[index], dict):
            raise ValueError(f"{kind}[{str(index)[:40]}] does not exist; there are {len(items)}")
        return items[index]

    def _buffer(self, index: Any) -> bytes:
        buffer = self._item("buffers", index)
        uri, size = buffer.get("uri"), self._of(buffer, "byteLength", 0)
        if uri not in self.buffers:
            self.buffers[uri] = self._load(uri)
        held = self.buffers[uri]
        if size > len(held):
            raise ValueError(f"buffers[{index}] of {size} bytes is declared, and {len(held)} were found")
        return held

    def _load(self, uri: Any) -> bytes:
        if uri is None and self.binary is not None:
            return self.binary
        if not isinstance(uri, str):
            raise ValueError("a buffer is missing from the file")
        if uri.startswith("data:"):
            return base64.b64decode(uri.partition(",")[2], validate=True)
        path = self.folder / unquote(uri)
        if "://" in uri or not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"the buffer {uri[:60]!r} lies outside the file's folder")
        if not path.is_file():
            raise ValueError(f"the buffer {uri[:60]!r} is missing from the file's folder")
        return path.read_bytes()

    def _accessor(self, index: Any, kind: str, components: Sequence[int]) -> np.ndarray:
        """The numbers (count, columns) of an accessor, as a view."""
        accessor = self._item("accessors", index)
        if "sparse" in accessor or "bufferView" not in accessor:
            raise ValueError(f"accessors[{index}] is sparse or compressed, which is not read; export it without")
        component = self._of(accessor, "componentType", 0)
        if accessor.get("type") != kind or component not in components:
            raise ValueError(f"accessors[{index}] is no {kind} of a type that is read")
        view = self._item("bufferViews", accessor["bufferView"])
        held = self._buffer(view.get("buffer"))
        dtype, columns = np.dtype(GLTF_TYPES[component]), {"SCALAR": 1, "VEC3": 3}[kind]
        count, row = self._of(accessor, "count", 0), columns * dtype.itemsize
        offset, length = self._of(view, "byteOffset", 0), self._of(view, "byteLength", 0)
        stride, inside = self._of(view, "byteStride", row), self._of(accessor, "byteOffset", 0)
        if count < 1 or stride < row or offset + length > len(held) or inside + (count - 1) * stride + row > length:
            raise ValueError(f"accessors[{index}] of {count} times {row} bytes lies outside its buffer")
        return np.ndarray((count, columns), dtype, held, offset + inside, (stride, dtype.itemsize))

    def _triangles(self, primitive: dict) -> tuple[np.ndarray, np.ndarray]:
        """Vertices (N, 3) and triangles (F, 3); of points and lines, none."""
        mode = self._of(primitive, "mode", 4)
        if mode > 6:
            raise ValueError(f"the mode of a primitive is {mode}; it may be 0 to 6")
        if mode < 4:
            return np.empty((0, 3)), np.empty((0, 3), np.int64)
        pos = self._accessor(self._of(primitive, "attributes", {}).get("POSITION"), "VEC3", (5126,))
        if "indices" in primitive:
            index = self._accessor(primitive["indices"], "SCALAR", (5121, 5123, 5125)).ravel().astype(np.int64)
        else:
            index = np.arange(len(pos))
        if index.max() >= len(pos):
            raise ValueError(f"a triangle has the corner {index.max()}, and there are {len(pos)} vertices")
        if mode == 4:
            if len(index) % 3:
                raise ValueError(f"{len(index)} corners do not make triangles")
            return pos, index.reshape(-1, 3)
        if len(index) < 3:
            raise ValueError(f"{len(index)} corners do not make a strip or fan of triangles")
        step = np.arange(len(index) - 2)
        if mode == 6:
            return pos, np.stack([np.full(len(step), index[0]), index[1:-1], index[2:]], axis=1)
        odd = step % 2  # every other triangle of a strip is turned
        return pos, np.stack([index[step], index[step + 1 + odd], index[step + 2 - odd]], axis=1)

    @staticmethod
    def _matrix(node: dict) -> np.ndarray:
        """The transform (4, 4) of a node."""

        def numbers(key: str, default: Sequence[float]) -> np.ndarray:
            values = np.array(node.get(key, default), dtype=np.float64)
            if values.shape != (len(default),):
                raise ValueError(f"the {key} of a node has not {len(default)} numbers")
            return values

        if "matrix" in node:
            return numbers("matrix", [0.0] * 16).reshape(4, 4).T
        x, y, z, w = numbers("rotation", (0, 0, 0, 1))
        matrix = np.eye(4)
        matrix[:3, :3] = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
        matrix[:3, :3] *= numbers("scale", (1, 1, 1))
        matrix[:3, 3] = numbers("translation", (0, 0, 0))
        return matrix

    def read(self) -> Arrays:
        nodes = self._of(self.tree, "nodes", [])
        if self._of(self.tree, "scenes", []):
            roots = self._of(self._item("scenes", self.tree.get("scene", 0)), "nodes", [])
        else:
            children = {
                child for node in range(len(nodes)) for child in self._of(self._item("nodes", node), "children", [])
            }
            roots = [node for node in range(len(nodes)) if node not in children]
        waiting = [(root, np.eye(4)) for root in roots]
        visited: set[int] = set()
        positions: list[np.ndarray] = []
        faces: list[np.ndarray] = []
        vertices = size = parts = 0
        while waiting:
            index, above = waiting.pop()
            node = self._item("nodes", index)
            if index in visited:
                raise ValueError(f"nodes[{index}] stands twice in the scene, which must be a tree")
            visited.add(index)
            matrix = above @ self._matrix(node)
            waiting += [(child, matrix) for child in self._of(node, "children", [])]
            for primitive in self._of(self._item("meshes", node["mesh"]), "primitives", []) if "mesh" in node else []:
                pos, face = self._triangles(primitive)
                parts += 1
                size += len(pos) + len(face)
                if parts > GLTF_PARTS or size > max(GLTF_MOST, sum(map(len, self.buffers.values()))):
                    raise ValueError(
                        f"its nodes repeat meshes up to {parts:,} parts and {size:,} vertices and triangles"
                    )
                positions.append(pos @ matrix[:3, :3].T + matrix[:3, 3])
                # a reflection turns the triangles
                faces.append((face[:, ::-1] if np.linalg.det(matrix[:3, :3]) < 0 else face) + vertices)
                vertices += len(pos)
        if not vertices:
            raise ValueError("there are no triangles in the scene")
        return {"pos": np.concatenate(positions), "face": np.concatenate(faces)}
