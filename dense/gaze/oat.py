"""OAT: the order in which a person looks at the objects of a scene while searching for one of them.

"OAT: Object-Level Attention Transformer for Gaze Scanpath Prediction", ECCV 2024, arXiv 2407.13335,
github.com/HKUST-NISL/oat_eccv24. A token is an object: features of its crop, and of its place on a grid. An encoder
sees all objects and the target, a decoder the objects that were looked at, and a pointer chooses among the tokens of
the encoder. The target's own token stands for the end of the search.

The authors' network has two linear layers that nothing uses (`generator`, `LinearEmbedding`); they are left out here,
and ignored in checkpoints.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from ... import checkpoint  # noqa: F401  by which `init_cfg` loads weights
from ...data import check_seed, positive
from ...registry import MODELS
from .inference import Gaze
from .positions import GridPositions, step_sinusoids
from .preprocessing import check_crops

VARIANTS: dict[str, dict[str, Any]] = dict(
    oat_amazon=dict(rows=6, columns=14),
    oat_yogurt=dict(rows=3, columns=9, positions=11),
    oat_wine=dict(rows=2, columns=11, crop=(195, 53), spp=4),
)
RULES = [
    (r"^(generator|LinearEmbedding|onedpositional_encoding)\.", None),  # the last is the sinusoid of the steps
    (r"^transformer_(encoder|decoder)\.", r"\1."),
    (r"^cnn_embedding\.", "patches."),
    (r"\bcnn([12])\.0\.", r"conv\1."),
    (r"^cross_attentions\.", "pointer.heads."),
    (r"\bdecode_fc\.", "query."),
    (r"\bencode_fc\.", "key."),
    (r"^readout\.", "pointer.readout."),
]


# --- what a crop looks like ------------------------------------------------------------------------------------------


def pyramid_pool(x: Tensor, levels: int) -> Tensor:
    """Spatial pyramid of maxima: of level l, the maxima over a grid of g = 2^l x 2^l windows, each of ceil(size / g)
    along an axis, the map being filled up with zeros (half before, rounded down, and the rest behind).

    Args:
        x: (B, C, H, W), at least 0 everywhere, so that the zeros change nothing.
        levels: grids, from 1 x 1 on.

    Returns:
        (B, C (1 + 4 + 16 + ...)), the levels one after the other, each by channel.
    """
    pooled = []
    for level in range(levels):
        grid = 2**level
        height, width = (math.ceil(side / grid) for side in x.shape[2:])
        rows, columns = height * grid - x.shape[2], width * grid - x.shape[3]
        filled = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        pooled.append(F.max_pool2d(filled, (height, width)).flatten(1))
    return torch.cat(pooled, 1)


class PatchEmbedding(nn.Module):
    """Crops (B, 3, h, w) to features (B, dim): two convolutions without padding, and pooling.

    Args:
        dim: features.
        spp: levels of `pyramid_pool`, with which crops may have any size from 19 x 19 on; with 0 the last pooling is a
            plain one, and crops must be as large as `crop`.
        crop: height and width of crops, which matter with spp=0 alone.

    Raises:
        ValueError: crops that are too small for the convolutions.
    """

    def __init__(self, dim: int, spp: int = 0, crop: Sequence[int] = (150, 93)):
        super().__init__()
        if isinstance(spp, bool) or spp not in range(5):
            raise ValueError(f"spp is {spp!r}; it may be 0 (crops of one size), or 1 to 4 levels of a pyramid.")
        self.spp = spp
        height, width = ((side - 4) // 5 - 2 for side in crop)
        if min(height, width) < (1 if spp else 3):
            raise ValueError(f"crop is {tuple(crop)}; with spp={spp} each side must be at least {19 if spp else 29}.")
        cells = sum(4**level for level in range(spp)) or (height // 3) * (width // 3)
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 5), nn.Conv2d(16, 32, 3)
        self.fc = nn.Linear(32 * cells, dim)

    def forward(self, crops: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(crops)), 5)
        x = F.relu(self.conv2(x))
        return self.fc(pyramid_pool(x, self.spp) if self.spp else F.max_pool2d(x, 3).flatten(1))


# --- the pointer -----------------------------------------------------------------------------------------------------


class PointerHead(nn.Module):
    """Logits of decoder tokens (B, L, E) over encoder tokens (B, N, E): products of linear maps of both, by
    sqrt(scale_dim), behind them a constant 0, that of padding: (B, L, N + 1)."""

    def __init__(self, dim: int, scale_dim: int):
        super().__init__()
        self.query, self.key, self.scale = nn.Linear(dim, dim), nn.Linear(dim, dim), scale_dim**-0.5

    def forward(self, decoded: Tensor, encoded: Tensor) -> Tensor:
        return F.pad(self.query(decoded) @ self.key(encoded).mT * self.scale, (0, 1))


class ObjectAttention(nn.Module):
    """One or several `PointerHead`s, whose logits a linear map with a bias adds up, also those of padding: they become
    that bias. The number of objects is free.

    Args:
        dim: E, channels of the tokens.
        heads: number of heads; one has no readout.
        scale_dim: number whose root divides the products.
    """

    def __init__(self, dim: int, heads: int = 2, scale_dim: int = 512):
        super().__init__()
        self.heads = nn.ModuleList(PointerHead(dim, scale_dim) for _ in range(positive("pointer_heads", heads)))
        self.readout = nn.Linear(heads, 1) if heads > 1 else None

    def forward(self, decoded: Tensor, encoded: Tensor) -> Tensor:
        """(B, L, E), (B, N, E) -> (B, L, N + 1)."""
        logits = [head(decoded, encoded) for head in self.heads]
        return logits[0] if self.readout is None else self.readout(torch.stack(logits, -1)).squeeze(-1)


# --- the network -----------------------------------------------------------------------------------------------------


class Scene(NamedTuple):
    """What tokens look up, for a batch of B scenes of at most N objects. The vocabulary has N + 3 entries: the objects,
    then end, padding and begin."""

    features: Tensor  # of the crops, (B, N + 3, E / 2)
    places: Tensor  # rows and columns, (B, N + 3, 2)
    targets: Tensor  # (B,)
    absent: Tensor | None  # (B, N) booleans: what only fills up a smaller scene


@MODELS.register_module()
class OAT(BaseModel):
    """Scanpaths over objects. One set of weights takes scenes of any number of objects.

    Sequences are (B, L), int64: a begin token N + 2, objects 0 to N - 1, the end token N, padding N + 1, where N is the
    number of objects of the largest scene of the batch.

    Args:
        rows, columns: of the grid of places. Without cells, objects lie on it row by row.
        crop: height and width of crops; see `PatchEmbedding`.
        dim: E, channels of a token, an even number; half for the crop and half for the place.
        heads, mlp_dim, depth, dropout: of encoder and decoder, standard post-norm transformers with ReLU; depth is the
            number of layers of each.
        pointer_heads, pointer_dim: of the pointer; see `ObjectAttention`.
        spp: levels of the pyramid over crops; see `PatchEmbedding`.
        position, positions, sigma, table, alpha: of the encoding of places; see `GridPositions`. The authors' table
            (`learned_PE_random_2.npy`, `amazon_learned_random_PE.npy`) is in no checkpoint: table="FILE.npy".
        blank: value of the crops of begin, end and padding. The authors train with 1, and generate with 0 (see
            `generate`); 1 in both is our choice.
        max_length: most objects of a path that is generated; the authors take the longest path of their training.
        samples: paths drawn for each scene by `mode="predict"`; 0 for the one of the largest logits.
        seed: of these draws.

    `mode="loss"` gives {"loss", "accuracy"}: cross entropy of the next token with teacher forcing, and the share of
    steps, in percent, whose token is the likeliest. `mode="tensor"` gives the logits (B, L + 1, N + 2) of the steps of
    `paths`. `mode="predict"` gives a dict for each scene; see `predict`.
    """

    task = Gaze
    checkpoint_rules = RULES

    def __init__(
        self,
        rows: int,
        columns: int,
        crop: Sequence[int] = (150, 93),
        dim: int = 512,
        heads: int = 4,
        mlp_dim: int = 512,
        depth: Sequence[int] = (4, 4),
        dropout: float = 0.1,
        pointer_heads: int = 2,
        pointer_dim: int = 512,
        spp: int = 0,
        position: str = "learned",
        positions: int | Sequence[int] | None = None,
        sigma: float = 2.0,
        table: Any = None,
        alpha: float = 1.0,
        blank: float = 1.0,
        max_length: int = 32,
        samples: int = 0,
        seed: int = 0,
        data_preprocessor=None,
        init_cfg=None,
    ):
        super().__init__(data_preprocessor or dict(type="GazePreprocessor"), init_cfg)
        self.rows, self.columns = positive("rows", rows), positive("columns", columns)
        if positive("dim", dim) % 2 or dim % heads:
            raise ValueError(f"dim is {dim}; it must be an even multiple of heads={heads}.")
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 0:
            raise ValueError(f"samples is {samples!r}; it must be a number of paths, or 0 for the likeliest.")
        self.dim, self.blank, self.samples, self.seed = dim, blank, samples, check_seed(seed)
        self.max_length = positive("max_length", max_length)
        self.patches = PatchEmbedding(dim // 2, spp, crop)
        self.crop = None if spp else tuple(crop)
        self.positions = GridPositions(rows, columns, dim // 2, position, positions, sigma, table, alpha)
        layer = (dim, heads, mlp_dim, dropout)
        encoders, decoders = depth
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(*layer, batch_first=True), encoders, enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(*layer, batch_first=True), decoders)
        self.dropout = nn.Dropout(dropout)
        self.pointer = ObjectAttention(dim, pointer_heads, pointer_dim)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    # --- tokens

    def scene(
        self,
        crops: Tensor,
        targets: Tensor,
        cells: Tensor | None = None,
        counts: Tensor | None = None,
        blank: float | None = None,
    ) -> Scene:
        """What the tokens of a batch look up. Numbers are looked at where that costs nothing, on a CPU.

        Args:
            crops: float (B, N, 3, h, w), red, green, blue; in [0, 1], unless the weights are of other numbers.
            targets: int64 (B,), the objects that are searched.
            cells: int64 (B, N, 2), rows and columns of the objects, several of which may share one; by default object i
                lies in row i // columns. Free places come from `cells_of_boxes`.
            counts: int64 (B,), the objects of each scene, N by default; crops and cells behind them have no influence.
            blank: value of the crops of tokens that are no objects; by default that of the network.

        Raises:
            ValueError: no objects; a target that is none of them; objects outside the grid; NaN; other shapes.
        """
        check_crops(crops, targets, cells, counts, (self.rows, self.columns), self.crop)
        batch, most = crops.shape[:2]
        patch = crops.new_full((1, *crops.shape[2:]), self.blank if blank is None else blank)
        features = self.patches(torch.cat([crops.flatten(0, 1), patch]))
        features = torch.cat([features[:-1].unflatten(0, (batch, most)), features[-1].expand(batch, 3, -1)], 1)
        columns, sizes = self.columns, targets.new_full((batch,), most) if counts is None else counts
        if cells is None:
            row_major = torch.arange(most, device=crops.device)
            cells = torch.stack([row_major // columns, row_major % columns], -1).expand(batch, -1, -1)
        else:
            sizes = sizes.new_full((batch,), self.rows * columns)
        others = torch.stack([sizes, sizes + 1], 1)  # end and padding lie behind the last object
        begin = features.new_tensor([self.rows / 2, columns / 2]).expand(batch, 1, 2)
        others = torch.stack([others // columns, others % columns], -1)
        places = torch.cat([cells.to(begin), others.to(begin), begin], 1)
        absent = None if counts is None else torch.arange(most, device=crops.device) >= counts[:, None]
        return Scene(features, places, targets, absent)

    def triples(self, scene: Scene, tokens: Tensor, flags: Tensor) -> Tensor:
        """Rows, columns and flags (B, L, 3) of tokens (B, L)."""
        index = tokens[..., None].expand(-1, -1, 2)
        return torch.cat([scene.places.gather(1, index), flags[..., None].to(scene.places)], -1)

    def embed(self, scene: Scene, tokens: Tensor, flags: Tensor) -> Tensor:
        """(B, L, E): features of the crops of tokens (B, L), and behind them those of their places."""
        looks = scene.features.gather(1, tokens[..., None].expand(-1, -1, scene.features.shape[2]))
        return torch.cat([looks, self.positions(self.triples(scene, tokens, flags)).to(looks)], -1)

    def encoder_tokens(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """Tokens and flags (B, N + 1) that the encoder sees: all objects, then the target, whose flag is 1."""
        batch, most = len(scene.targets), scene.features.shape[1] - 3
        objects = torch.arange(most, device=scene.targets.device).expand(batch, -1)
        flags = torch.zeros(batch, most + 1, dtype=torch.bool, device=scene.targets.device)
        flags[:, -1] = True
        return torch.cat([objects, scene.targets[:, None]], 1), flags

    def encode(self, scene: Scene) -> Tensor:
        """The encoder's output (B, N + 1, E)."""
        return self.encoder(self.embed(scene, *self.encoder_tokens(scene)), src_key_padding_mask=_with_target(scene))

    def decode(self, scene: Scene, encoded: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B, L, N + 2) of what follows each of the tokens (B, L): the objects, the end, and padding. An object
        that a scene does not have has minus infinity."""
        most, length = scene.features.shape[1] - 3, tokens.shape[1]
        embedded = self.embed(scene, tokens, tokens == scene.targets[:, None])
        embedded = self.dropout(embedded + step_sinusoids(length, self.dim, embedded))
        later = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        decoded = self.decoder(
            embedded,
            encoded,
            tgt_mask=later,
            tgt_key_padding_mask=tokens == most + 1,
            memory_key_padding_mask=_with_target(scene),
        )
        logits = self.pointer(decoded, encoded)
        return logits if scene.absent is None else logits.masked_fill(F.pad(scene.absent, (0, 2))[:, None], -math.inf)

    # --- training and prediction

    def forward(self, crops, targets, cells=None, counts=None, paths=None, names=None, mode="tensor"):
        """See `scene`; `paths` are B paths, int64 (L_i,) of objects, without begin and end."""
        if mode not in ("loss", "predict", "tensor"):
            raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}")
        if paths is None and mode != "predict":
            raise ValueError(f"mode={mode!r} needs paths, and the batch has none.")
        scene = self.scene(crops, targets, cells, counts)
        encoded = self.encode(scene)
        if mode == "predict":
            return self.predict(scene, encoded, paths, names)
        tokens, wanted = self.teach(paths, crops.shape[1], targets.device)
        logits = self.decode(scene, encoded, tokens)
        if mode == "tensor":
            return logits
        seen = wanted >= 0
        rows, right = logits[seen], wanted[seen]
        accuracy = (rows.detach().argmax(-1) == right).float().mean() * 100
        return dict(loss=F.cross_entropy(rows, right), accuracy=accuracy)

    @staticmethod
    def teach(paths: Sequence[Tensor], objects: int, device: Any) -> tuple[Tensor, Tensor]:
        """Tokens (B, L + 1) that the decoder sees of paths, and what shall follow each, -1 behind the end."""
        rows = [path.tolist() for path in paths]
        length = max(map(len, rows)) + 1
        end, padding, begin = objects, objects + 1, objects + 2
        seen = [[begin, *row, *[end, *[padding] * length][: length - 1 - len(row)]] for row in rows]
        wanted = [[*row, end, *[-1] * (length - 1 - len(row))] for row in rows]
        return torch.tensor(seen, device=device), torch.tensor(wanted, device=device)

    @torch.no_grad()
    def generate(
        self,
        scene: Scene,
        encoded: Tensor | None = None,
        samples: int = 0,
        max_length: int | None = None,
        generator: torch.Generator | None = None,
    ) -> list[list[tuple[list[int], bool]]]:
        """Paths of a batch of scenes. The end can not be the first choice, and padding never is one.

        Args:
            scene: of `self.scene`; the authors generate with `blank=0.0` there.
            encoded: of `self.encode`.
            samples: paths drawn for each scene; 0 for one, of the largest logits.
            max_length: most objects of a path; by default that of the network.
            generator: of the draws; PyTorch's own by default.

        Returns:
            For each scene a list of (objects of the path, whether the end was chosen).

        Raises:
            ValueError: the network gives NaN.
        """
        encoded = self.encode(scene) if encoded is None else encoded
        times = max(samples, 1)
        repeated: Any = [part if part is None else part.repeat_interleave(times, 0) for part in scene]
        scene = Scene(*repeated)
        encoded = encoded.repeat_interleave(times, 0)
        end = encoded.shape[1] - 1
        tokens = scene.targets.new_full((len(encoded), 1), end + 2)
        over = torch.zeros(len(encoded), dtype=torch.bool, device=encoded.device)
        for step in range(self.max_length if max_length is None else positive("max_length", max_length)):
            logits = self.decode(scene, encoded, tokens)[:, -1, : end + (step > 0)].float()
            if logits.isnan().any():
                raise ValueError("the network gives NaN for the next object of a path.")
            if samples:
                chosen = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
            else:
                chosen = logits.argmax(-1)
            tokens = torch.cat([tokens, chosen.masked_fill(over, end + 1)[:, None]], 1)
            over |= chosen == end
            if over.all():
                break
        paths = [([token for token in row if token < end], end in row) for row in tokens[:, 1:].tolist()]
        return [paths[start : start + times] for start in range(0, len(paths), times)]

    def predict(self, scene: Scene, encoded: Tensor, paths=None, names=None) -> list[dict]:
        """For each scene dict(paths, a list of lists of objects; ended, whether each chose the end; target, cells (n,
        2), name), and with a true path also dict(truth, similarity, see `metrics.similarity`)."""
        generator = torch.Generator(encoded.device).manual_seed(self.seed) if self.samples else None
        found = self.generate(scene, encoded, self.samples, generator=generator)
        most = scene.features.shape[1] - 3
        counts = [most] * len(found) if scene.absent is None else (~scene.absent).sum(1).tolist()
        results = [
            dict(
                paths=[path for path, _ in drawn],
                ended=[ended for _, ended in drawn],
                target=int(target),
                cells=places[:count].long().cpu(),
                name=names[number] if names else f"scene {number}",
            )
            for number, (drawn, target, places, count) in enumerate(zip(found, scene.targets, scene.places, counts))
        ]
        if paths is not None:
            tokens, wanted = self.teach(paths, most, scene.targets.device)
            chances = self.decode(scene, encoded, tokens).float().softmax(-1)
            right = chances.gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
            for result, path, row in zip(results, paths, right):
                result.update(truth=path.tolist(), similarity=float(row[: len(path) + 1].mean()))
        return results


def _with_target(scene: Scene) -> Tensor | None:
    """Which of the encoder's tokens (B, N + 1) only fill up."""
    return None if scene.absent is None else F.pad(scene.absent, (0, 1))
