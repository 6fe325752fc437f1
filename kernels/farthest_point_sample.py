"""Farthest point sampling: S points of a cloud, each the farthest from those already taken.

    index[0] = start;  index[s] = argmax_n min_{t < s} |x_n - x_index[t]|²,  the first maximum wins

The algorithm is greedy: the first S' of S samples are the samples for S'. A network that samples its own samples can
take prefixes instead. When only duplicates are left (all distances are 0), index 0 repeats.

All paths compute a squared distance in the same order, (dx·dx + dy·dy) + dz·dz without fused multiply-adds, and resolve
ties in the same way, so a cloud gets the same samples on every device.

On a CPU a tree of boxes skips the points whose distance cannot change. Every node stores the largest distance of its
points; if its box is farther from the new sample than that, all its distances stay.

Source: Eldar et al., "The farthest point strategy for progressive image sampling", IEEE TIP 1997; its place in point
networks: Qi et al., PointNet++, arXiv 1706.02413. Boxes that leave out points: Han et al., QuickFPS, TCAD 2023.
"""

import numpy as np
import torch
from torch import Tensor

from .checks import can_look, check_count, check_lengths, check_points
from .dispatch import INTERPRETED, compiled, each, pick, tl, triton


def farthest_point_sample(
    points: Tensor, num_samples: int, start: int | Tensor | str = 0, lengths: Tensor | None = None
) -> Tensor:
    """Indices of `num_samples` points of every cloud, each as far as possible from those before it.

    Args:
        points: coordinates (B, N, 3), float32 or float64.
        num_samples: number of samples S, 1..N. A cloud of fewer valid points repeats index 0 after its last one.
        start: first sample: one index for all clouds, or (B,) int64, or "random" (from torch's generator).
        lengths: numbers of valid points (B,), int64; the points after them are padding, which is never sampled. All
            points by default.

    Returns:
        (B, S) int64. Of equal distances, the lowest index comes first. No gradient flows.

    Raises:
        TypeError, ValueError: an argument of another type, shape, dtype or value.
    """
    check_points(points)
    check_count(num_samples, "num_samples", points.shape[1], "points")
    check_lengths(lengths, points)
    start_B = _start_of_each(start, points, lengths)
    return farthest_point_sample_op(points.detach(), num_samples, start_B, lengths)


def _start_of_each(start: int | Tensor | str, points: Tensor, lengths: Tensor | None) -> Tensor:
    """`start` as (B,) int64, checked."""
    batch, size, _ = points.shape
    valid = size if lengths is None else lengths
    if isinstance(start, str):
        if start != "random":
            raise ValueError(f'start must be an index, a tensor of them or "random", got {start!r:.60}')
        # the remainder of so large a number is practically uniform, and needs no synchronization to read the lengths
        return torch.randint(1 << 62, (batch,), device=points.device) % valid
    if not isinstance(start, Tensor):
        check_count(start, "start", size - 1, "the last point", at_least=0)
        start = torch.full((batch,), start, device=points.device)
    if start.dtype != torch.int64 or start.shape != (batch,):
        raise ValueError(
            f"start must be int64 of shape ({batch},), one per cloud, got {start.dtype} {tuple(start.shape)}"
        )
    if start.device != points.device:
        raise ValueError(f"start must be on the device of the points, {points.device}, got {start.device}")
    if can_look(start):
        wrong = ((start < 0) | (start >= valid)).nonzero()
        if len(wrong):
            cloud = int(wrong[0])
            last = (size if lengths is None else int(lengths[cloud])) - 1
            raise ValueError(f"start must lie in 0..{last} in cloud {cloud}, got {int(start[cloud])}")
    return start


def farthest_point_sample_reference(
    points_BN3: Tensor, num_samples: int, start_B: Tensor, lengths_B: Tensor | None = None
) -> Tensor:
    """The definition, in S - 1 rounds over three contiguous rows of coordinates."""
    batch, size, _ = points_BN3.shape
    rows_3BN = points_BN3.permute(2, 0, 1).contiguous()
    distance_BN = points_BN3.new_full((batch, size), torch.inf)
    if lengths_B is not None:  # a distance of -1 is below all others: padding is never the farthest
        padding_BN = torch.arange(size, device=points_BN3.device) >= lengths_B[:, None]
        distance_BN.masked_fill_(padding_BN, -1)
    index_BS = start_B[:, None].repeat(1, num_samples)
    for s in range(1, num_samples):
        last_3B1 = rows_3BN.gather(2, index_BS[:, s - 1].expand(3, batch).unsqueeze(2))
        dx_BN, dy_BN, dz_BN = (rows_3BN - last_3B1).square_()
        torch.minimum(distance_BN, dx_BN.add_(dy_BN).add_(dz_BN), out=distance_BN)
        index_BS[:, s] = distance_BN.argmax(1)
    return index_BS


# CPU: a tree of boxes ------------------------------------------------------------------------------------------------

# Points of a leaf: few make tight boxes, many make long loops for vector instructions.
LEAF = 96

# Columns of the tables of nodes, which are numbered in depth-first order: a left child follows its parent.
# `boxes`: lowest x, y, z, highest x, y, z, and FARTHEST, the largest distance of its points to the samples so far.
# `links`: its points are BEGIN..END-1 of the sorted ones; RIGHT is its right child, or 0 for a leaf; SKIP is the first
# node after its branch; INDEX is the lowest index in the cloud of the points at the distance FARTHEST.
FARTHEST = 6
BEGIN, END, RIGHT, SKIP, INDEX = range(5)


@compiled
def _split(x, y, z, index, axis, middle, spare):
    """Move the points up to `middle` to the front and return their number; both parts keep their order.

    Each point is written to both lists, and only one of the two grows: there is no branch to mispredict.
    """
    key = (x, y, z)[axis]
    spare_x, spare_y, spare_z, spare_index = spare
    left = np.uint64(0)  # unsigned: subscripts that cannot be negative are faster
    for j in range(np.uint64(len(x))):
        right = j - left
        is_left = key[j] <= middle
        spare_x[right], spare_y[right], spare_z[right], spare_index[right] = x[j], y[j], z[j], index[j]
        x[left], y[left], z[left], index[left] = x[j], y[j], z[j], index[j]
        left += np.uint64(is_left)
    for j in range(left, np.uint64(len(x))):
        right = j - left
        x[j], y[j], z[j], index[j] = spare_x[right], spare_y[right], spare_z[right], spare_index[right]
    return left


@compiled
def build_tree(points_N3):
    """Sort the points into leaves by halving boxes; return the sorted x, y, z and index (N,), `boxes` and `links`."""
    size = len(points_N3)
    x, y, z = points_N3[:, 0].copy(), points_N3[:, 1].copy(), points_N3[:, 2].copy()
    index = np.arange(size).astype(np.int32)
    spare = np.empty_like(x), np.empty_like(x), np.empty_like(x), np.empty_like(index)
    # at worst every point is a leaf; memory that is never touched costs nothing
    boxes = np.empty((2 * size, 8), points_N3.dtype)
    links = np.empty((2 * size, 5), np.int32)
    # right halves to split: begin, end, parent. They are disjoint and not empty
    pending = np.empty((size, 3), np.int32)
    pending[0, 0], pending[0, 1], pending[0, 2] = 0, size, -1
    waiting, count = 1, 0
    half = points_N3.dtype.type(0.5)
    while waiting:
        waiting -= 1
        begin, end, parent = pending[waiting, 0], pending[waiting, 1], pending[waiting, 2]
        if parent >= 0:
            links[parent, RIGHT] = count
        while True:  # down the left halves
            node = count
            count += 1
            low_x = high_x = x[begin]
            low_y = high_y = y[begin]
            low_z = high_z = z[begin]
            for j in range(begin, end):
                low_x, high_x = min(low_x, x[j]), max(high_x, x[j])
                low_y, high_y = min(low_y, y[j]), max(high_y, y[j])
                low_z, high_z = min(low_z, z[j]), max(high_z, z[j])
            for i, side in enumerate((low_x, low_y, low_z, high_x, high_y, high_z)):
                boxes[node, i] = side
            links[node, BEGIN], links[node, END], links[node, RIGHT] = begin, end, 0
            boxes[node, FARTHEST] = np.inf
            links[node, INDEX] = index[begin]  # the lowest, since parts keep their order
            extent_x, extent_y, extent_z = high_x - low_x, high_y - low_y, high_z - low_z
            longest = max(extent_x, extent_y, extent_z)
            axis = 0 if extent_x == longest else 1 if extent_y == longest else 2
            low, high = boxes[node, axis], boxes[node, axis + 3]
            if end - begin <= LEAF or not low < high:  # any number of duplicates stays together, and NaN, too
                break
            middle = half * low + half * high
            if not low <= middle < high:  # rounding, between adjacent numbers. Both halves must hold points
                middle = low
            part = slice(begin, end)
            left_end = begin + np.int64(_split(x[part], y[part], z[part], index[part], axis, middle, spare))
            pending[waiting, 0], pending[waiting, 1], pending[waiting, 2] = left_end, end, node
            waiting += 1
            end = left_end
    links[0, SKIP] = count
    for node in range(count):
        right = links[node, RIGHT]
        if right:
            links[node + 1, SKIP], links[right, SKIP] = right, links[node, SKIP]
    return x, y, z, index, boxes[:count], links[:count]


@compiled
def _sample_cloud(points_N3, distance_N, distance_as_int_N, start, index_S):
    """Fill `index_S`; `distance_N` holds the distances of the sorted points, all infinite at first.

    Non-negative floats have the order of their bits read as integers. The arrays `..._as_int` are such views of the
    same memory: the compiler vectorizes the maximum of integers, but not that of floats.
    """
    x, y, z, index, boxes, links = build_tree(points_N3)
    boxes_as_int = boxes.view(distance_as_int_N.dtype)
    visited = np.empty(len(links), np.int32)
    zero = points_N3.dtype.type(0)
    none = np.int32(2**31 - 1)
    last = np.int64(start)
    for s in range(len(index_S)):
        index_S[s] = last
        last_x, last_y, last_z = points_N3[last]
        inner = 0
        node = 0
        while node < len(links):
            # Exact in spite of rounding, which is monotonic: the rounded difference to a point of the box is at least
            # that to the box, hence also the squares and their sum. No point of the box is nearer than `bound`.
            dx = max(boxes[node, 0] - last_x, last_x - boxes[node, 3], zero)
            dy = max(boxes[node, 1] - last_y, last_y - boxes[node, 4], zero)
            dz = max(boxes[node, 2] - last_z, last_z - boxes[node, 5], zero)
            bound = dx * dx + dy * dy + dz * dz
            if bound >= boxes[node, FARTHEST]:
                node = links[node, SKIP]
                continue
            if links[node, RIGHT]:
                visited[inner] = node
                inner += 1
            else:
                begin, end = links[node, BEGIN], links[node, END]
                leaf_x, leaf_y, leaf_z, leaf_index = x[begin:end], y[begin:end], z[begin:end], index[begin:end]
                distance, distance_as_int = distance_N[begin:end], distance_as_int_N[begin:end]
                for j in range(len(distance)):
                    dx, dy, dz = leaf_x[j] - last_x, leaf_y[j] - last_y, leaf_z[j] - last_z
                    distance[j] = min(dx * dx + dy * dy + dz * dz, distance[j])
                farthest = distance_as_int[0]
                for j in range(len(distance)):
                    farthest = max(farthest, distance_as_int[j])
                lowest = none
                for j in range(len(distance)):
                    lowest = min(lowest, leaf_index[j] if distance_as_int[j] == farthest else none)
                boxes_as_int[node, FARTHEST], links[node, INDEX] = farthest, lowest
            node += 1
        for i in range(inner - 1, -1, -1):  # children before their parents
            node = visited[i]
            winner, right = node + 1, links[node, RIGHT]
            if boxes[right, FARTHEST] > boxes[winner, FARTHEST] or (
                boxes[right, FARTHEST] == boxes[winner, FARTHEST] and links[right, INDEX] < links[winner, INDEX]
            ):
                winner = right
            boxes[node, FARTHEST], links[node, INDEX] = boxes[winner, FARTHEST], links[winner, INDEX]
        last = np.int64(links[0, INDEX])


def _farthest_point_sample_cpu(
    points_BN3: Tensor, num_samples: int, start_B: Tensor, lengths_B: Tensor | None
) -> Tensor:
    batch, size, _ = points_BN3.shape
    points = points_BN3.contiguous().numpy()
    starts = start_B.tolist()
    lengths = [size] * batch if lengths_B is None else lengths_B.tolist()
    index_BS = np.empty((batch, num_samples), np.int64)
    for start, length in zip(starts, lengths):
        if not 0 <= start < length <= size:  # a traced graph has not checked them, and the loops check no bounds
            raise IndexError(f"start must lie in 0..length-1 and lengths in 1..{size}, got {start} and {length}")
    integer = np.int32 if points.dtype == np.float32 else np.int64

    def sample(cloud: int) -> None:
        points_N3 = points[cloud, : lengths[cloud]]
        distance_N = np.full(len(points_N3), np.inf, points.dtype)
        _sample_cloud(points_N3, distance_N, distance_N.view(integer), starts[cloud], index_BS[cloud])

    each(sample, range(batch))
    return torch.from_numpy(index_BS)


# GPU: one program for each cloud -------------------------------------------------------------------------------------

# Samples depend on each other, so the latency of one decides: a pass over the points, a maximum over the whole program,
# and a load of the winner's coordinates from the L1 cache (about 40 cycles; reading them from the registers would take
# three more reductions over the program, several hundred cycles).


@triton.jit(do_not_specialize=["size", "num_samples"])
def farthest_point_sample_fwd_kernel(
    rows_B3N, start_B, lengths_B, index_BS, size, num_samples, HAS_LENGTHS: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Coordinates and distances of a cloud stay in registers. One program for each cloud."""
    cloud = tl.program_id(0).to(tl.int64)
    rows_B3N += cloud * 3 * size
    index_BS += cloud * num_samples
    length = size
    if HAS_LENGTHS:
        length = tl.load(lengths_B + cloud).to(tl.int32)
    n = tl.arange(0, BLOCK_N)
    is_valid = n < length
    x = tl.load(rows_B3N + n, mask=is_valid, other=0)
    y = tl.load(rows_B3N + size + n, mask=is_valid, other=0)
    z = tl.load(rows_B3N + 2 * size + n, mask=is_valid, other=0)
    distance = tl.where(is_valid, float("inf"), -1.0).to(x.dtype)  # padding stays at -1
    last = tl.load(start_B + cloud).to(tl.int32)
    tl.store(index_BS, last)
    for s in range(1, num_samples):
        dx = x - tl.load(rows_B3N + last)
        dy = y - tl.load(rows_B3N + size + last)
        dz = z - tl.load(rows_B3N + 2 * size + last)
        distance = tl.minimum(distance, dx * dx + dy * dy + dz * dz)
        _, last = tl.max(distance, 0, return_indices=True)  # of equals, the first
        # a GPU does not check for NaN: the index must stay inside the cloud even then
        last = tl.minimum(last, size - 1)
        tl.store(index_BS + s, last)


@triton.jit(do_not_specialize=["size", "num_samples"])
def farthest_point_sample_fwd_tiled_kernel(
    rows_B3N,
    start_B,
    lengths_B,
    distance_BN,
    index_BS,
    size,
    num_samples,
    HAS_LENGTHS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Clouds that registers cannot hold: distances, infinite at first, stay in memory. One program for each cloud."""
    cloud = tl.program_id(0).to(tl.int64)
    rows_B3N += cloud * 3 * size
    distance_BN += cloud * size
    index_BS += cloud * num_samples
    length = size
    if HAS_LENGTHS:
        length = tl.load(lengths_B + cloud).to(tl.int32)
    lane = tl.arange(0, BLOCK_N)
    last = tl.load(start_B + cloud).to(tl.int32)
    tl.store(index_BS, last)
    for s in range(1, num_samples):
        last_x = tl.load(rows_B3N + last)
        last_y = tl.load(rows_B3N + size + last)
        last_z = tl.load(rows_B3N + 2 * size + last)
        # each lane keeps the first farthest of its own points; the lanes are compared once for a sample
        farthest = tl.full((BLOCK_N,), -1.0, distance_BN.dtype.element_ty)
        index = tl.full((BLOCK_N,), 0, tl.int32)
        for begin in range(0, length, BLOCK_N):
            n = begin + lane
            is_valid = n < length
            dx = tl.load(rows_B3N + n, mask=is_valid, other=0) - last_x
            dy = tl.load(rows_B3N + size + n, mask=is_valid, other=0) - last_y
            dz = tl.load(rows_B3N + 2 * size + n, mask=is_valid, other=0) - last_z
            distance = tl.load(distance_BN + n, mask=is_valid, other=-1)
            distance = tl.minimum(distance, dx * dx + dy * dy + dz * dz)
            tl.store(distance_BN + n, distance, mask=is_valid)
            is_farther = distance > farthest
            farthest = tl.where(is_farther, distance, farthest)
            index = tl.where(is_farther, n, index)
        last = tl.min(tl.where(farthest == tl.max(farthest, 0), index, size - 1), 0)
        tl.store(index_BS + s, last)
        tl.debug_barrier()  # the distances are written before any thread reads them for the next sample


@triton.jit(do_not_specialize=["size", "num_samples"])
def farthest_point_sample_fwd_shared_kernel(
    rows_B3N, start_B, lengths_B, slots_BSP, index_BS, size, num_samples,
    HAS_LENGTHS: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Large clouds: PROGRAMS programs that run at the same time hold a share of a cloud each in their registers.

    For every sample, each program writes its farthest point into its own slot and waits until all slots are filled. A
    slot is one number, the bits of the distance above the complement of the index: its maximum is the farthest point,
    of equals that of lowest index. It is never zero; zero means empty.
    """
    cloud = (tl.program_id(0) // PROGRAMS).to(tl.int64)
    share = tl.program_id(0) % PROGRAMS
    rows_B3N += cloud * 3 * size
    slots_BSP += cloud * num_samples * PROGRAMS
    index_BS += cloud * num_samples
    length = size
    if HAS_LENGTHS:
        length = tl.load(lengths_B + cloud).to(tl.int32)
    n = share * BLOCK_N + tl.arange(0, BLOCK_N)
    is_valid = n < length
    x = tl.load(rows_B3N + n, mask=is_valid, other=0)
    y = tl.load(rows_B3N + size + n, mask=is_valid, other=0)
    z = tl.load(rows_B3N + 2 * size + n, mask=is_valid, other=0)
    distance = tl.where(is_valid, float("inf"), -1.0)  # padding stays at -1
    last = tl.load(start_B + cloud).to(tl.int32)
    if share == 0:
        tl.store(index_BS, last)
    slot = tl.arange(0, PROGRAMS)
    for s in range(1, num_samples):
        dx = x - tl.load(rows_B3N + last)
        dy = y - tl.load(rows_B3N + size + last)
        dz = z - tl.load(rows_B3N + 2 * size + last)
        distance = tl.minimum(distance, dx * dx + dy * dy + dz * dz)
        farthest, place = tl.max(distance, 0, return_indices=True)  # of equals, the first
        own = farthest.to(tl.int32, bitcast=True).to(tl.int64) << 32 | (
            0xFFFFFFFF - (share * BLOCK_N + place).to(tl.int64)
        )
        tl.store(slots_BSP + s * PROGRAMS + share, own)
        slots = tl.load(slots_BSP + s * PROGRAMS + slot, volatile=True)
        while tl.min((slots != 0).to(tl.int32), 0) == 0:
            slots = tl.load(slots_BSP + s * PROGRAMS + slot, volatile=True)
        last = (0xFFFFFFFF - (tl.max(slots, 0) & 0xFFFFFFFF)).to(tl.int32)
        # a GPU does not check for NaN: the index must stay inside the cloud even then
        last = tl.minimum(last, size - 1)
        if share == 0:
            tl.store(index_BS + s, last)


def _shares(points_BN3: Tensor) -> tuple[int, int]:
    """Programs for each cloud, and points for each program, such that all programs of all clouds run at the same time.

    (0, 0) where they cannot.
    """
    batch, size, _ = points_BN3.shape
    if points_BN3.dtype != torch.float32:
        return 0, 0
    if INTERPRETED:  # it runs one program after the other
        return 1, triton.next_power_of_2(size)
    most = torch.cuda.get_device_properties(points_BN3.device).multi_processor_count // batch
    for block in (1024, 2048, 4096, 8192):
        programs = triton.next_power_of_2(triton.cdiv(size, block))
        if programs <= most:
            return programs, block
    return 0, 0


def _farthest_point_sample_triton(
    points_BN3: Tensor, num_samples: int, start_B: Tensor, lengths_B: Tensor | None
) -> Tensor:
    batch, size, _ = points_BN3.shape
    rows_B3N = points_BN3.transpose(1, 2).contiguous()
    index_BS = torch.empty(batch, num_samples, dtype=torch.int64, device=points_BN3.device)
    block = triton.next_power_of_2(size)
    lengths = start_B if lengths_B is None else lengths_B.contiguous()  # any pointer: it is not read
    options = {"HAS_LENGTHS": lengths_B is not None, "enable_fp_fusion": False}  # rounds as the other paths do
    with torch.cuda.device_of(points_BN3):
        # four numbers for each point: 128 of the 256 KiB of registers of a multiprocessor
        if block * points_BN3.element_size() <= 32 * 1024:
            farthest_point_sample_fwd_kernel[(batch,)](
                rows_B3N,
                start_B.contiguous(),
                lengths,
                index_BS,
                size,
                num_samples,
                BLOCK_N=block,
                num_warps=min(max(block // 256, 1), 16),  # 8 points a thread, 16 at most
                **options,
            )
        elif (shares := _shares(points_BN3))[0]:
            programs, block = shares
            farthest_point_sample_fwd_shared_kernel[(batch * programs,)](
                rows_B3N,
                start_B.contiguous(),
                lengths,
                torch.zeros(batch, num_samples, programs, dtype=torch.int64, device=points_BN3.device),
                index_BS,
                size,
                num_samples,
                PROGRAMS=programs,
                BLOCK_N=block,
                num_warps=min(max(block // 256, 1), 16),
                **({} if INTERPRETED else {"launch_cooperative_grid": True}),
                **options,
            )
        else:
            farthest_point_sample_fwd_tiled_kernel[(batch,)](
                rows_B3N,
                start_B.contiguous(),
                lengths,
                points_BN3.new_full((batch, size), torch.inf),
                index_BS,
                size,
                num_samples,
                BLOCK_N=4096,
                num_warps=16,
                **options,
            )
    return index_BS


# Registration --------------------------------------------------------------------------------------------------------


@torch.library.custom_op("attlas::farthest_point_sample", mutates_args=())
def farthest_point_sample_op(points: Tensor, num_samples: int, start: Tensor, lengths: Tensor | None) -> Tensor:
    return pick(
        points,
        reference=farthest_point_sample_reference,
        triton=_farthest_point_sample_triton,
        cpu=_farthest_point_sample_cpu,
    )(points, num_samples, start, lengths)


@farthest_point_sample_op.register_fake
def _(points, num_samples, start, lengths):
    return points.new_empty(points.shape[0], num_samples, dtype=torch.int64)
