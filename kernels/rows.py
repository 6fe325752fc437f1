"""Loops of a CPU over chosen rows of a matrix: what attentions to a few keys of each query share.

They take four rows at a time, so that the vector, or the sum, is read once for them. No subscript is checked.
"""

from .dispatch import compiled


@compiled(fastmath={"reassoc", "nsz", "contract"})  # for vector instructions in sums over channels
def products(x, rows, keys, count, found):
    """found[i] = x · rows[keys[i]]."""
    whole, zero = count // 4 * 4, x.dtype.type(0)
    for i in range(0, whole, 4):
        row_0, row_1, row_2, row_3 = rows[keys[i]], rows[keys[i + 1]], rows[keys[i + 2]], rows[keys[i + 3]]
        product_0 = product_1 = product_2 = product_3 = zero
        for d in range(x.shape[0]):
            product_0 += x[d] * row_0[d]
            product_1 += x[d] * row_1[d]
            product_2 += x[d] * row_2[d]
            product_3 += x[d] * row_3[d]
        found[i], found[i + 1], found[i + 2], found[i + 3] = product_0, product_1, product_2, product_3
    for i in range(whole, count):
        row, product = rows[keys[i]], zero
        for d in range(x.shape[0]):
            product += x[d] * row[d]
        found[i] = product


@compiled(fastmath={"contract"})
def add_rows(weights, rows, keys, count, total):
    """total += Σ_i weights[i] rows[keys[i]]."""
    whole = count // 4 * 4
    for i in range(0, whole, 4):
        row_0, row_1, row_2, row_3 = rows[keys[i]], rows[keys[i + 1]], rows[keys[i + 2]], rows[keys[i + 3]]
        weight_0, weight_1, weight_2, weight_3 = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        for d in range(total.shape[0]):
            total[d] += weight_0 * row_0[d] + weight_1 * row_1[d] + weight_2 * row_2[d] + weight_3 * row_3[d]
    for i in range(whole, count):
        row, weight = rows[keys[i]], weights[i]
        for d in range(total.shape[0]):
            total[d] += weight * row[d]


@compiled(fastmath={"contract"})
def add_to_rows(weights, x, keys, count, rows):
    """rows[keys[i]] += weights[i] x."""
    for i in range(count):
        row, weight = rows[keys[i]], weights[i]
        for d in range(x.shape[0]):
            row[d] += weight * x[d]
