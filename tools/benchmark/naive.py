"""What `tools/benchmark` measures against: RISurConv, and operators of images, in the manner of their releases. Not
part of the library.

RISurConv is eager PyTorch as the release has it: farthest point sampling in S rounds in every layer, `cdist` and
`topk` for the neighbors, every intermediate of the properties written out as (B, S, K, 3), 1x1 convolutions over
(B, C, K, S) with the neighbors' features gathered before them, and attention with (B, S, K, K) in memory. Module names
follow `attlas.pointnets.risurconv`, so that both load each other's weights. The operators of images copy, for every
pixel, block or region, the keys and values that it reads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def farthest_point_sample(points: Tensor, count: int) -> Tensor:
    """(B, N, 3) -> (B, S): one round per sample over rows of three."""
    batch, size, _ = points.shape
    index = torch.zeros(batch, count, dtype=torch.long, device=points.device)
    distance = torch.full((batch, size), 1e10, dtype=points.dtype, device=points.device)
    clouds = torch.arange(batch, device=points.device)
    farthest = torch.zeros(batch, dtype=torch.long, device=points.device)
    for s in range(count):
        index[:, s] = farthest
        center = points[clouds, farthest].unsqueeze(1)
        distance = torch.minimum(distance, ((points - center) ** 2).sum(-1))
        farthest = distance.max(-1).indices
    return index


def gather(values: Tensor, index: Tensor) -> Tensor:
    """(B, N, C) at (B, ...) -> (B, ..., C)."""
    clouds = torch.arange(len(values), device=values.device).view(-1, *[1] * (index.ndim - 1))
    return values[clouds, index]


def knn(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """(B, S, 3) among (B, N, 3) -> (B, S, K), nearest first, by the whole matrix of distances."""
    return torch.cdist(queries, points).topk(k, dim=-1, largest=False).indices


def local_reference_axis(points: Tensor, k: int) -> Tensor:
    """(B, N, 3) -> (B, N, 3): the axis of least spread of the neighbors, nearer ones weighted more."""
    offsets = gather(points, knn(points, points, k)) - points.unsqueeze(2)
    length = offsets.norm(dim=-1, keepdim=True)
    weight = length.amax(2, keepdim=True) - length
    weight = weight / weight.sum(2, keepdim=True)
    return torch.linalg.eigh((weight * offsets).mT @ offsets).eigenvectors[..., 0]


def unit(vectors: Tensor) -> Tensor:
    """(..., 3) of length 1, or 0."""
    return vectors / (vectors.norm(dim=-1, keepdim=True) + 1e-7)


def order(offsets: Tensor, normal: Tensor) -> Tensor:
    """(B, S, K, 3) around (B, S, 1, 3) -> places (B, S, K), as `surface_properties` of the library orders them."""
    projected = offsets - (offsets * normal).sum(-1, keepdim=True) * normal
    around = projected / projected.norm(dim=-1, keepdim=True)
    around = torch.where(around.isnan(), torch.zeros_like(around), around)
    longest = projected.norm(dim=-1).argmax(-1, keepdim=True)
    reference = around.gather(2, longest.unsqueeze(-1).expand(-1, -1, -1, 3))
    turn = (around * reference).sum(-1)
    sign = torch.sign((torch.cross(around, reference.expand_as(around), dim=-1) * normal).sum(-1))
    sign = sign.scatter(-1, longest, 1.0)
    sign[..., 0] = 1
    return (sign * turn - (1 - sign)).argsort(dim=-1, descending=True)


def properties(a: Tensor, normal_a: Tensor, normal_p: Tensor, step: int) -> Tensor:
    """Ordered offsets and normals (B, S, K, 3), the query's normal (B, S, 1, 3) -> the fourteen, formula by formula."""
    b, c = a.roll(step, 2), a.roll(-step, 2)
    normal_b, normal_c = normal_a.roll(step, 2), normal_a.roll(-step, 2)
    normal_p = normal_p.expand_as(a)

    def dot(x, y):
        return (x * y).sum(-1)

    return torch.stack(
        [
            a.norm(dim=-1),
            dot(unit(-a), -normal_p),
            dot(unit(-a), normal_a),
            dot(unit(-a), unit(-b)),
            dot(unit(-b), -normal_p),
            dot(unit(-b), normal_b),
            dot(unit(b), unit(b - a)),
            -dot(unit(a - b), normal_a),
            dot(unit(a - b), normal_b),
            dot(unit(c), unit(a)),
            dot(unit(c), unit(c - a)),
            dot(unit(c - a), normal_c),
            dot(unit(a), normal_c),
            dot(torch.cross(unit(c), unit(a), dim=-1), torch.cross(unit(b), unit(a), dim=-1)),
        ],
        dim=-1,
    )


class Attention(nn.Module):
    """Offset attention of x (B, C, K, S) among the neighbors, or (B, C, S) among the points."""

    def __init__(self, channels: int, dims: int):
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv1d, nn.BatchNorm1d)
        self.q = conv(channels, channels // 4, 1, bias=False)
        self.k = conv(channels, channels // 4, 1, bias=False)
        self.v = conv(channels, channels, 1)
        self.trans = conv(channels, channels, 1)
        self.norm = norm(channels)
        # axes that bring (B, C, K, S) to (B, S, C, K), and back
        self.axes: tuple[int, ...] = (0, 3, 1, 2) if dims == 2 else (0, 1, 2)
        self.back: tuple[int, ...] = (0, 2, 3, 1) if dims == 2 else (0, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (project(x).permute(self.axes) for project in (self.q, self.k, self.v))
        weight = torch.softmax(q.transpose(-1, -2) @ k, dim=-1)
        weight = weight / (1e-9 + weight.sum(dim=1, keepdim=True))
        attended = (v @ weight).permute(self.back)
        return x + F.relu(self.norm(self.trans(x - attended)))


class Layer(nn.Module):
    """Queries, their K neighbors in a source cloud, the properties, the convolution: features of the queries."""

    def __init__(self, in_channels: int, out_channels: int, k: int, width: int = 64):
        super().__init__()
        self.neighbors = k
        self.embedding = nn.Sequential()
        self.embedding.linear1 = nn.Conv2d(14, 32, 1, bias=False)
        self.embedding.norm1 = nn.BatchNorm2d(32)
        self.embedding.linear2 = nn.Conv2d(32, width, 1, bias=False)
        self.embedding.norm2 = nn.BatchNorm2d(width)
        self.neighbor_attention = Attention(width, 2)
        self.linear = nn.Conv2d(width + in_channels, out_channels, 1)
        self.norm = nn.BatchNorm2d(out_channels)
        self.point_attention = Attention(out_channels, 1)

    def forward(self, points, normals, features, queries, query_normals):
        """points, normals (B, N, 3), features (B, N, C) or None, queries, query_normals (B, S, 3) -> (B, S, C')."""
        index = knn(queries, points, self.neighbors)
        index = torch.cat([index[..., :-1].sort(-1).values, index[..., -1:]], -1)
        offsets = gather(points, index) - queries.unsqueeze(2)
        step = 2 if queries.shape[1] >= 1024 else 1
        return self.convolve(points, normals, features, queries, query_normals, index, offsets, step)

    def convolve(self, points, normals, features, queries, query_normals, index, offsets, step):
        """The same, of neighbors at the index (B, S, K), in order of their offsets (B, S, K, 3)."""
        index = index.gather(-1, order(offsets, query_normals.unsqueeze(2)))
        relative = gather(points, index) - queries.unsqueeze(2)
        surface = properties(relative, gather(normals, index), query_normals.unsqueeze(2), step)
        x = surface.permute(0, 3, 2, 1)  # (B, C, K, S)
        e = self.embedding
        x = F.relu(e.norm2(e.linear2(e.norm1(e.linear1(x)))))
        x = self.neighbor_attention(x)
        if features is not None:
            x = torch.cat([x, gather(features, index).permute(0, 3, 2, 1)], dim=1)
        x = F.relu(self.norm(self.linear(x))).max(2).values
        return self.point_attention(x).transpose(1, 2)


class GroupAll(Layer):
    """The whole cloud around its center: (B, N, 3), (B, N, 3), (B, N, C) -> (B, 1, C')."""

    def forward(self, points, normals, features):
        centered = points - points.mean(1, keepdim=True)
        distance = centered.norm(dim=-1, keepdim=True)
        weight = distance.amax(1, keepdim=True) - distance
        weight = weight / weight.sum(1, keepdim=True)
        axis = torch.linalg.eigh((weight * centered).transpose(1, 2) @ centered, UPLO="U").eigenvectors[..., 0]
        projection = (weight * (centered @ axis.unsqueeze(-1))).sum((1, 2))
        query_normals = torch.where(projection < 0, -1.0, 1.0)[:, None, None] * axis.unsqueeze(1)
        index = torch.arange(points.shape[1], device=points.device).expand(len(points), 1, -1)
        return self.convolve(
            points, normals, features, points[:, :1] * 0, query_normals, index, centered.unsqueeze(1), 1
        )


class Propagation(Layer):
    """Features of coarse points at dense ones, beside theirs, and convolutions of both."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, mlp: list[int], k: int):
        super().__init__(in_channels, out_channels, k)
        widths = [out_channels + skip_channels, *mlp]
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Conv1d(before, after, 1), nn.BatchNorm1d(after), nn.ReLU())
            for before, after in zip(widths, mlp)
        )

    def forward(self, points, normals, features, queries, query_normals, skip):
        x = super().forward(points, normals, features, queries, query_normals)
        x = torch.cat([x, skip], dim=-1).transpose(1, 2)
        for layer in self.mlp:
            x = layer(x)
        return x.transpose(1, 2)


def encode(layers: nn.ModuleList, counts: list[int], points: Tensor, normals: Tensor) -> list:
    """Points, normals and features of the input and of every layer."""
    levels: list = [(points, normals, None)]
    for layer, count in zip(layers, counts):
        sampled = farthest_point_sample(levels[-1][0], count)
        queries = gather(levels[-1][0], sampled), gather(levels[-1][1], sampled)
        levels.append((*queries, layer(*levels[-1], *queries)))
    return levels


class NaiveRISurConv(nn.Module):
    """The classifier without the transformer encoder: (B, N, 3), (B, N, 3) -> logits."""

    def __init__(self, num_classes, num_points=512, channels=(32, 64, 128, 256, 512), neighbors=(8, 16, 32, 64)):
        super().__init__()
        *channels, pooled = channels
        self.counts = [num_points >> level for level in range(len(channels))]
        self.layers = nn.ModuleList(
            Layer(before, after, k) for before, after, k in zip([0, *channels], channels, neighbors)
        )
        self.group_all = GroupAll(channels[-1], pooled, 0)
        self.head = nn.Sequential()
        for i, (before, after) in enumerate([(pooled, 256), (256, 128)], start=1):
            self.head.add_module(f"linear{i}", nn.Linear(before, after))
            self.head.add_module(f"norm{i}", nn.BatchNorm1d(after))
        self.head.linear3 = nn.Linear(128, num_classes)

    def forward(self, points: Tensor, normals: Tensor) -> Tensor:
        x = self.group_all(*encode(self.layers, self.counts, points, normals)[-1]).squeeze(1)
        for i in (1, 2):
            linear, norm = self.head.get_submodule(f"linear{i}"), self.head.get_submodule(f"norm{i}")
            x = F.dropout(F.relu(norm(linear(x))), 0.4, self.training)
        return self.head.linear3(x)


class NaiveRISurConvSegmenter(nn.Module):
    """Points, normals (B, N, 3) and categories (B,) -> logits (B, N, classes)."""

    def __init__(
        self,
        num_classes=50,
        num_categories=16,
        num_points=512,
        channels=(64, 128, 256, 512),
        neighbors=(8, 16, 32, 64),
        decoder=((512, 512), (512, 256), (256, 128), (128,)),
        decoder_neighbors=(64, 32, 32, 32),
    ):
        super().__init__()
        self.num_categories = num_categories
        self.counts = [num_points >> level for level in range(len(channels))]
        self.layers = nn.ModuleList(
            Layer(before, after, k) for before, after, k in zip([0, *channels], channels, neighbors)
        )
        coarse, layers = channels[-1], []
        for (out, *mlp), k, skip in zip(decoder, decoder_neighbors, [*channels[-2::-1], num_categories]):
            layers.append(Propagation(coarse, skip, out, mlp, k))
            coarse = mlp[-1] if mlp else out + skip
        self.propagations = nn.ModuleList(layers[::-1])
        self.head = nn.Sequential()
        self.head.linear1, self.head.norm1 = nn.Conv1d(coarse, 128, 1), nn.BatchNorm1d(128)
        self.head.linear2 = nn.Conv1d(128, num_classes, 1)

    def forward(self, points: Tensor, normals: Tensor, category: Tensor) -> Tensor:
        one_hot = F.one_hot(category, self.num_categories).to(points)
        levels = encode(self.layers, self.counts, points, normals)
        levels[0] = (points, normals, one_hot.unsqueeze(1).repeat(1, points.shape[1], 1))
        coarse = levels.pop()
        for propagation in reversed(self.propagations):
            *dense, skip = levels.pop()
            coarse = (*dense, propagation(*coarse, *dense, skip))
        x = self.head.norm1(self.head.linear1(coarse[2].transpose(1, 2)))
        return self.head.linear2(F.dropout(F.relu(x), 0.4, self.training)).transpose(1, 2)


def load_from_attlas(naive: nn.Module, network: nn.Module) -> None:
    """Copy the weights of an `attlas` network of the same sizes, a classifier with encoder_layers=0."""
    state, shapes = network.state_dict(), {name: value.shape for name, value in naive.state_dict().items()}
    naive.load_state_dict({name: value.view(shapes[name]) for name, value in state.items()})


# --- images ----------------------------------------------------------------------------------------------------------


def window_index(height: int, width: int, kernel: int, dilation: int, device: torch.device) -> Tensor:
    """(H W, k²): the pixels in the window of every pixel of a map. Windows stop at borders, row and column by row and
    column: those of pixel i take i mod dilation, i mod dilation + dilation, ... and are full everywhere."""

    def along(length: int) -> Tensor:
        place = torch.arange(length, device=device)
        group, number = place % dilation, place // dilation
        count = (length - group + dilation - 1) // dilation  # pixels in the group
        first = torch.minimum((number - kernel // 2).clamp(min=0), count - kernel)
        return group[:, None] + dilation * (first[:, None] + torch.arange(kernel, device=device))

    rows, columns = along(height), along(width)
    return (rows[:, None, :, None] * width + columns[None, :, None, :]).reshape(height * width, kernel**2)


def windows(x: Tensor, index: Tensor) -> Tensor:
    """(B, H, W, heads, D) -> (B, H W, heads, k², D), copied."""
    return x.flatten(1, 2)[:, index].transpose(2, 3)


def neighborhood_attention(q: Tensor, k: Tensor, v: Tensor, kernel: int, dilation: int) -> Tensor:
    """(B, H, W, heads, D) each -> the same."""
    index = window_index(q.shape[1], q.shape[2], kernel, dilation, q.device)
    query = q.flatten(1, 2).unsqueeze(3) * q.shape[-1] ** -0.5
    weight = torch.softmax(query @ windows(k, index).transpose(-1, -2), dim=-1)
    return (weight @ windows(v, index)).view(v.shape)


def neighborhood_aggregate(logits: Tensor, v: Tensor, kernel: int, bias: Tensor) -> Tensor:
    """Logits (B, H, W, heads, k²), v (B, H, W, heads, D), table (heads, 2k - 1, 2k - 1) -> like v."""
    height, width = v.shape[1:3]
    index = window_index(height, width, kernel, 1, v.device)
    pixel = torch.arange(height * width, device=v.device).unsqueeze(1)
    down, right = index // width - pixel // width, index % width - pixel % width
    offsets = bias[:, down + kernel - 1, right + kernel - 1]  # (heads, H W, k²)
    weight = torch.softmax(logits.flatten(1, 2) + offsets.transpose(0, 1), dim=-1)
    return (weight.unsqueeze(3) @ windows(v, index)).view(v.shape)


def small_kernel_aggregate(x: Tensor, weight: Tensor) -> Tensor:
    """(B, C, H, W), (B, Cw, k², H, W) -> (B, C, H, W)."""
    batch, channels, height, width = x.shape
    kernels, taps = weight.shape[1:3]
    kernel = round(taps**0.5)
    copies = F.unfold(x, kernel, padding=kernel // 2).view(batch, channels // kernels, kernels, taps, height, width)
    return (copies * weight.unsqueeze(1)).sum(3).view(x.shape)


def nprf_attention(q: Tensor, k: Tensor, v: Tensor, features: Tensor, bias: Tensor) -> Tensor:
    """(B, heads, N, D), features (m, D), bias (heads, 2 N - 1) -> like v: dense attention with the same biases, and
    the weights of all pairs written out."""
    places = torch.arange(q.shape[2], device=q.device)
    biases = bias[:, places[None] - places[:, None] + len(places) - 1]
    phi_q, phi_k = ((F.normalize(x, dim=-1) @ features.T - 0.5).exp() / len(features) ** 0.5 for x in (q, k))
    weights = biases.exp() * (phi_q @ phi_k.mT)
    return weights / weights.sum(-1, keepdim=True) @ v


def span_summary(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (..., w, D) -> key and value (..., D) of each: maxima, and what the query of maxima sees."""
    weights = (k @ q.amax(-2).unsqueeze(-1)).softmax(-2)
    return k.amax(-2), (weights * v).sum(-2)


def combiner_fixed(q: Tensor, k: Tensor, v: Tensor, w: int) -> Tensor:
    """(B, heads, N, D) -> the same, causal: logits of the own row and of the rows before, beside each other."""
    q, k, v = (x.unflatten(2, (-1, w)) for x in (q * q.shape[-1] ** -0.5, k, v))
    rows, (keys, values) = q.shape[2], span_summary(q, k, v)
    own = (q @ k.mT).masked_fill(torch.ones(w, w, dtype=torch.bool, device=q.device).triu(1), -1e10)
    others = torch.einsum("bhrcd,bhsd->bhrcs", q, keys)
    later = torch.ones(rows, rows, dtype=torch.bool, device=q.device).triu()
    weights = torch.cat([own, others.masked_fill(later.unsqueeze(1), -1e10)], -1).softmax(-1)
    return (weights[..., :w] @ v + weights[..., w:] @ values.unsqueeze(2)).flatten(2, 3)


def combiner_logsparse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, heads, N, D) -> the same, causal: at every level queries are rolled onto the block before theirs, and those
    of even blocks masked."""
    q, length = q * q.shape[-1] ** -0.5, q.shape[2]
    logits, values = [(q * k).sum(-1)], [v]
    places = torch.arange(length, device=q.device)
    for level in range((length - 1).bit_length()):
        size = 1 << level
        blocks = [F.pad(x, (0, 0, 0, -length % size)).unflatten(2, (-1, size)) for x in (q, k, v)]
        summary = span_summary(*blocks) if level else (blocks[1][..., 0, :], blocks[2][..., 0, :])
        keys, given = (x.roll(1, 2).repeat_interleave(size, 2)[:, :, :length] for x in summary)
        logits.append((q * keys).sum(-1).masked_fill((places >> level & 1) == 0, -1e9))
        values.append(given)
    weights = torch.stack(logits, -1).softmax(-1)
    return (weights.unsqueeze(-1) * torch.stack(values, 3)).sum(3)


def combiner_rowmajor(q: Tensor, k: Tensor, v: Tensor, w: int) -> Tensor:
    """(B, heads, N, D) -> the same, causal: logits of the own row and of the column in the rows before, beside each
    other."""
    q, k, v = (x.unflatten(2, (-1, w)) for x in (q * q.shape[-1] ** -0.5, k, v))
    rows, logits = q.shape[2], q @ k.mT
    values = logits.softmax(-1) @ v
    own = logits.masked_fill(torch.ones(w, w, dtype=torch.bool, device=q.device).triu(1), -1e10)
    others = torch.einsum("bhrcd,bhscd->bhrcs", q, k)
    later = torch.ones(rows, rows, dtype=torch.bool, device=q.device).triu()
    weights = torch.cat([own, others.masked_fill(later.unsqueeze(1), -1e10)], -1).softmax(-1)
    return (weights[..., :w] @ v + torch.einsum("bhrcs,bhscd->bhrcd", weights[..., w:], values)).flatten(2, 3)


def combiner_mixture(q: Tensor, k: Tensor, v: Tensor, w: int) -> Tensor:
    """(B, heads, N, D) -> the same, causal: five blocks of logits beside each other, of running maxima."""
    q, k, v = (x.unflatten(2, (-1, w)) for x in (q * q.shape[-1] ** -0.5, k, v))
    rows = q.shape[2]

    def above(*lines):
        """Of lines (..., length, D), keys and values of what is before each place."""
        theta, kappa, length = lines[0].cummax(-2).values, lines[1].cummax(-2).values, lines[0].shape[-2]
        behind = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        found = (theta @ lines[1].mT).masked_fill(behind, -1e10).softmax(-1) @ lines[2]
        return [F.pad(x, (0, 0, 1, 0))[..., :-1, :] for x in (kappa, found)]

    up = [x.transpose(2, 3) for x in above(*(x.transpose(2, 3) for x in (q, k, v)))]
    left, right = above(q, k, v), [x.flip(3) for x in above(*(x.flip(3) for x in (q, k, v)))]
    row, column = (torch.arange(n, device=q.device) for n in (rows, w))
    by_row = dict(eq="bhrcd,bhred->bhrce", out="bhrce,bhred->bhrcd")
    by_column = dict(eq="bhrcd,bhscd->bhrcs", out="bhrcs,bhscd->bhrcd")
    later = (row >= row[:, None]).unsqueeze(1)
    parts = [
        ((k, v), by_column, later),
        ((k, v), by_row, column > column[:, None]),
        (up, by_row, (row == 0)[:, None, None] | (column == column[:, None])),
        (left, by_column, later | (column == 0)[:, None]),
        (right, by_column, later | (column == w - 1)[:, None]),
    ]
    logits = [torch.einsum(of["eq"], q, keys).masked_fill(hidden, -1e10) for (keys, _), of, hidden in parts]
    weights = torch.cat(logits, -1).softmax(-1).split([x.shape[-1] for x in logits], -1)
    found = [torch.einsum(of["out"], share, values) for share, ((_, values), of, _) in zip(weights, parts)]
    return sum(found[1:], found[0]).flatten(2, 3)


def outlook_attention(logits: Tensor, v: Tensor, stride: int, scale: float) -> Tensor:
    """Logits (B, h, w, heads, k², k²), v (B, H, W, heads, D) -> like v: the values are unfolded, and results folded."""
    batch, height, width, heads, dim = v.shape
    kernel = round(logits.shape[-1] ** 0.5)
    windows = dict(kernel_size=kernel, padding=kernel // 2, stride=stride)
    copies = F.unfold(v.permute(0, 3, 4, 1, 2).flatten(1, 2), **windows).view(batch, heads, dim, kernel**2, -1)
    weights = (logits.flatten(1, 2).transpose(1, 2) * scale).softmax(-1)  # (B, heads, h w, k², k²)
    mixed = weights @ copies.permute(0, 1, 4, 3, 2)
    maps = F.fold(mixed.permute(0, 1, 4, 3, 2).flatten(1, 3), (height, width), **windows)
    return maps.view(batch, heads, dim, height, width).permute(0, 3, 4, 1, 2)


def lightning_attention(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    """(B, heads, N, D) each -> the same: all N x N weights, with their decays and a mask."""
    places = torch.arange(q.shape[2], device=q.device)
    distance = places[:, None] - places
    decay = torch.where(distance < 0, 0, (-slopes[:, None, None] * distance).exp())
    return ((q @ k.mT) * decay) @ v


def carafe(features: Tensor, masks: Tensor, kernel: int) -> Tensor:
    """(B, C, H, W), (B, k², s H, s W) -> (B, C, s H, s W): k² copies of the map, enlarged by repetition."""
    scale = masks.shape[2] // features.shape[2]
    copies = F.unfold(features, kernel, padding=kernel // 2).unflatten(2, features.shape[2:])
    copies = F.interpolate(copies, scale_factor=scale).unflatten(1, (-1, kernel**2))
    return (copies * masks.unsqueeze(1)).sum(2)


def psa_mask(x: Tensor, kernel: int) -> Tensor:
    """(B, k², H, W) -> (B, H W, H, W), collected: an index of the size of the result."""
    height, width = x.shape[2:]
    rows, columns = (
        torch.arange(length, device=x.device).unsqueeze(1) - torch.arange(length, device=x.device) + kernel // 2
        for length in (height, width)
    )
    tap = rows[:, None, :, None] * kernel + columns[None, :, None, :]
    return x.gather(1, tap.flatten(0, 1).expand(len(x), -1, -1, -1))


def deformable_convolution(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """(B, C, H, W), (B, 2 k², H, W), (O, C, k, k), (B, k², H, W) -> (B, O, H, W): a grid_sample for each tap."""
    batch, _, height, width = x.shape
    kernel, columns = weight.shape[2], []
    rows, cols = (torch.arange(length, device=x.device, dtype=x.dtype) for length in (height, width))
    for tap in range(kernel**2):
        y = rows[:, None] + tap // kernel - kernel // 2 + offset[:, 2 * tap]
        z = cols + tap % kernel - kernel // 2 + offset[:, 2 * tap + 1]
        place = torch.stack([2 * z / (width - 1) - 1, 2 * y / (height - 1) - 1], -1)
        columns.append(F.grid_sample(x, place, align_corners=True) * mask[:, tap : tap + 1])
    out = weight.flatten(1) @ torch.stack(columns, 2).view(batch, -1, height * width)
    return out.view(batch, -1, height, width)


def position_relation(source: Tensor, target: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Boxes (B, N, 4), (B, M, 4) and a convolution's weight (heads, 4 D) -> (B, heads, N, M)."""
    with torch.no_grad():
        one, other = source.unsqueeze(2), target.unsqueeze(1)
        offset = ((one[..., :2] - other[..., :2]).abs() / (one[..., 2:] + 1e-5) + 1).log()
        size = ((one[..., 2:] + 1e-5) / (other[..., 2:] + 1e-5)).log()
        count = weight.shape[1] // 8
        speeds = 100 / 10000 ** (torch.arange(count, device=source.device) / count)
        angles = torch.cat([offset, size], -1).unsqueeze(-1) * speeds
        sines = torch.stack([angles.sin(), angles.cos()], -1).flatten(3).permute(0, 3, 1, 2).contiguous()
    return F.conv2d(sines.to(weight.dtype), weight[..., None, None], bias).relu()


def halo_attention(
    q: Tensor, k: Tensor, v: Tensor, height_rel: Tensor, width_rel: Tensor, block: int, halo: int
) -> Tensor:
    """(B, H, W, heads, D) each and tables (2 win - 1, D), win = block + 2 halo -> (B, H, W, heads, D)."""
    side = block + 2 * halo
    rows, columns = q.shape[1] // block, q.shape[2] // block
    # (B, rows, block, columns, block, heads, D) -> (B, rows, columns, heads, block, block, D)
    query = q.unflatten(2, (columns, block)).unflatten(1, (rows, block)).permute(0, 1, 3, 5, 2, 4, 6)

    def unfolded(x: Tensor) -> Tensor:  # (B, rows, columns, heads, win², D)
        x = F.pad(x, (0, 0, 0, 0, halo, halo, halo, halo)).unfold(1, side, block).unfold(2, side, block)
        return x.permute(0, 1, 2, 3, 5, 6, 4).flatten(4, 5)

    place = torch.arange(side, device=q.device) - torch.arange(block, device=q.device).unsqueeze(1) + side - 1
    vertical = torch.einsum("brchyxd,yud->brchyxu", query, height_rel[place])
    horizontal = torch.einsum("brchyxd,xwd->brchyxw", query, width_rel[place])
    position = (vertical.unsqueeze(-1) + horizontal.unsqueeze(-2)).flatten(-2).flatten(4, 5)
    logits = query.flatten(4, 5) * q.shape[-1] ** -0.5 @ unfolded(k).transpose(-1, -2) + position
    out = torch.softmax(logits, dim=-1) @ unfolded(v)  # (B, rows, columns, heads, block², D)
    return out.unflatten(4, (block, block)).permute(0, 1, 4, 2, 5, 3, 6).reshape(v.shape)


def local_cross_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, h, w, heads, D) on (B, s h, s w, heads, D) each -> (B, h, w, heads, D); the blocks copied, token by token."""
    (rows, columns), batch = q.shape[1:3], len(q)

    def cut(x: Tensor) -> Tensor:  # (B · tokens, heads, s², D)
        x = x.unflatten(2, (columns, -1)).unflatten(1, (rows, -1)).permute(0, 1, 3, 5, 2, 4, 6)
        return x.flatten(4, 5).flatten(0, 2)

    out = F.scaled_dot_product_attention(q.flatten(0, 2).unsqueeze(2), cut(k), cut(v))
    return out.squeeze(2).unflatten(0, (batch, rows, columns))


def window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, block: int, halo: int, shift: int) -> Tensor:
    """(B, H, W, heads, D) each and a bias (heads, block², win²), win = block + 2 halo -> (B, H, W, heads, D); the
    windows unfolded, the mask of a shift made every time, as HAT's authors have it."""
    side, (batch, height, width, heads, depth) = block + 2 * halo, q.shape
    rows, columns = height // block, width // block

    def cut(x: Tensor) -> Tensor:  # (B · blocks, heads, block², D)
        x = x.unflatten(2, (columns, block)).unflatten(1, (rows, block)).permute(0, 1, 3, 5, 2, 4, 6)
        return x.flatten(4, 5).flatten(0, 2)

    def unfolded(x: Tensor) -> Tensor:  # (B · blocks, heads, win², D)
        x = F.unfold(x.flatten(3).permute(0, 3, 1, 2), side, padding=halo, stride=block)
        return x.unflatten(1, (heads, depth, -1)).permute(0, 4, 1, 3, 2).flatten(0, 1).contiguous()

    k, v = (unfolded(x) if halo else cut(x) for x in (k, v))
    logits = cut(q) * depth**-0.5 @ k.transpose(-1, -2) + bias
    if shift:
        down, right = (torch.arange(size, device=q.device) >= size - shift for size in (height, width))
        part = 2 * down.unsqueeze(1) + right
        part = part.unflatten(1, (columns, block)).unflatten(0, (rows, block)).transpose(1, 2).flatten(2).flatten(0, 1)
        mask = (part.unsqueeze(1) != part.unsqueeze(2)).to(q.dtype) * -100
        logits = (logits.unflatten(0, (batch, -1)) + mask.unsqueeze(1)).flatten(0, 1)
    out = torch.softmax(logits, dim=-1) @ v
    out = out.unflatten(2, (block, block)).unflatten(0, (batch, rows, columns)).permute(0, 1, 4, 2, 5, 3, 6)
    return out.reshape(batch, height, width, heads, -1)


def reversed_attention(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """(B, heads, N, D) each, and weights (B, heads, N) -> (B, heads, N, D), with the matrix of all pairs."""
    sent = torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2), dim=-1) * weight.unsqueeze(-1)
    return sent.transpose(-1, -2) @ v


def coordinated_attention(
    q: Tensor, k: Tensor, v: Tensor, prompt_k: Tensor, prompt_v: Tensor, allowed: Tensor
) -> Tensor:
    """(B, heads, 1 + N, D) each, prompts (B, heads, P, D), which of these every token sees (B, 1 + N, P) -> (B, heads,
    1 + N, D), with all weights, and the mask of all heads and columns, which is 1 at all tokens."""
    weights = (q @ torch.cat([prompt_k, k], dim=2).mT * q.shape[-1] ** -0.5).softmax(-1)
    mask = torch.ones_like(weights)
    mask[..., : prompt_k.shape[2]] = allowed.unsqueeze(1).to(mask.dtype)
    return weights * mask @ torch.cat([prompt_v, v], dim=2)


def routed_attention(q: Tensor, k: Tensor, v: Tensor, index: Tensor, regions: int) -> Tensor:
    """(B, H, W, heads, D) each, which regions every region reads (B, regions², topk) -> (B, H, W, heads, D)."""
    batch, height, width, heads, _ = v.shape

    def cut(x: Tensor) -> Tensor:  # (B, regions², pixels of a region, heads, D)
        x = x.unflatten(2, (regions, -1)).unflatten(1, (regions, -1)).transpose(2, 3)
        return x.flatten(3, 4).flatten(1, 2)

    def chosen(x: Tensor) -> Tensor:  # (B, regions², heads, topk · pixels, D)
        return gather(cut(x), index).flatten(2, 3).transpose(2, 3)

    query = cut(q).transpose(2, 3) * q.shape[-1] ** -0.5
    out = torch.softmax(query @ chosen(k).transpose(-1, -2), dim=-1) @ chosen(v)
    out = out.transpose(2, 3).reshape(batch, regions, regions, height // regions, width // regions, heads, -1)
    return out.transpose(2, 3).reshape(v.shape)


def sparse_attention(q: Tensor, k: Tensor, v: Tensor, index: Tensor) -> Tensor:
    """(B, heads, N, D) each, which keys every query reads (B, heads, N, topk) -> (B, heads, N, D)."""

    def chosen(x: Tensor) -> Tensor:  # (B, heads, N, topk, D)
        places = index.flatten(2).unsqueeze(-1).expand(-1, -1, -1, x.shape[-1])
        return x.gather(2, places).unflatten(2, index.shape[2:])

    logits = chosen(k) @ (q * q.shape[-1] ** -0.5).unsqueeze(-1)
    return (torch.softmax(logits, dim=3).mT @ chosen(v)).squeeze(3)


def position_attention(query: Tensor, key: Tensor, v: Tensor) -> Tensor:
    """(B, N, D), (B, N, D), (B, N, C) -> (B, N, C): without a scale."""
    return torch.softmax(query @ key.mT, dim=-1) @ v


def bridging_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, query_positions: Tensor, key_positions: Tensor, step: float
) -> Tensor:
    """(B, N, heads, D), (B, K, heads, D) twice, (heads, Y, X), (B, N, 2), (B, K, 2) -> (B, N, heads, D)."""
    size = table.new_tensor([table.shape[2], table.shape[1]])
    difference = (key_positions.unsqueeze(1) - query_positions.unsqueeze(2)) * step  # (B, N, K, 2)
    maps = table.expand(len(q), -1, -1, -1)
    found = F.grid_sample(maps, difference * 2 / size, padding_mode="border", align_corners=False)
    logits = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5 + found.clamp(min=1e-6).log()
    return torch.einsum("bhij,bjhd->bihd", torch.softmax(logits, dim=-1).to(v.dtype), v)


def deformable_attention(v: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """(B, S, heads, C), (L, 2), (B, Q, heads, L, P, 2), (B, Q, heads, L, P) -> (B, Q, heads · C)."""
    batch, _, heads, channels = v.shape
    grids, factors = (2 * locations - 1).transpose(1, 2).flatten(0, 1), weights.transpose(1, 2).flatten(0, 1)
    grids = grids.to(v.dtype)
    levels = v.split([height * width for height, width in sizes.tolist()], dim=1)
    seen = []
    for level, (height, width) in enumerate(sizes.tolist()):
        maps = levels[level].flatten(2).transpose(1, 2).reshape(batch * heads, channels, height, width)
        seen.append(F.grid_sample(maps, grids[:, :, level], padding_mode="zeros", align_corners=False))
    out = (torch.stack(seen, dim=-2) * factors.unsqueeze(1)).sum((-2, -1))  # B heads, C, Q
    return out.view(batch, heads * channels, -1).transpose(1, 2).contiguous()


def roi_align(x: Tensor, rois: Tensor, bins: int, ratio: int) -> Tensor:
    """(B, C, H, W), (R, 5) -> (R, C, bins, bins): all samples of an image at once, then their means."""
    size = torch.tensor([x.shape[3], x.shape[2]], device=x.device)
    number = (torch.arange(bins * ratio, device=x.device) + 0.5) / (bins * ratio)
    out = x.new_empty(len(rois), x.shape[1], bins, bins)
    for b in range(len(x)):
        mine = rois[:, 0] == b
        start, end = rois[mine, 1:3, None] / size[:, None], rois[mine, 3:, None] / size[:, None]
        places = (2 * (start + (end - start) * number) - 1).to(x.dtype)  # boxes, x and y, samples
        grid = torch.stack(torch.broadcast_tensors(places[:, 0, None, :], places[:, 1, :, None]), -1)
        seen = F.grid_sample(x[b : b + 1], grid.flatten(0, 1)[None], padding_mode="border", align_corners=False)
        out[mine] = F.avg_pool2d(seen[0].unflatten(1, (-1, len(number))).transpose(0, 1), ratio)
    return out


def roi_pool(x: Tensor, rois: Tensor, bins: int) -> Tensor:
    """(B, C, H, W), (R, 5) of whole pixels -> (R, C, bins, bins): one box after the other."""
    boxes = [x[b, :, top : bottom + 1, left : right + 1] for b, left, top, right, bottom in rois.long().tolist()]
    return torch.stack([F.adaptive_max_pool2d(box, bins) for box in boxes])


def sigmoid_focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """(N, C), (N,) -> (N, C): a target C is the background."""
    wanted = F.one_hot(target, logits.shape[1] + 1)[:, :-1].to(logits.dtype)
    p = logits.sigmoid()
    wrong = (1 - p) * wanted + p * (1 - wanted)
    factor = (alpha * wanted + (1 - alpha) * (1 - wanted)) * wrong**gamma
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * factor
