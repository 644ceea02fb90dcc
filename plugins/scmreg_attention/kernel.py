"""The Triton kernels of `Triton`: attention and its tangent in one pass over the keys.

One program owns a block of queries of one head. Per query it keeps the running maximum ``m`` of the logits and

    l = Σ P,   O = Σ P V,   μ = Σ H,   T = Σ (H V + P tV),   with  P = e^{S-m},  H = P∘(tS - c),

from which ``o = O/l``, ``to = (T - μ o)/l`` and ``lse = m + log l``. Three choices make it quick and exact:

* ``H V`` and ``P tV`` share the accumulator ``T`` and so its rescaling: a third one would not fit the registers.
* ``c = scale (tQ·mean K + Q·mean tK)``, one number per query. It cancels in ``to``, whatever its value; this one takes
  away what all keys have in common, which would otherwise drown the rest when ``H`` is rounded to 16 bits.
* ``l`` and ``μ`` sum the *rounded* ``P`` and ``H``, those that multiply ``V``. What all values have in common then
  cancels exactly, not just up to the rounding of ``P`` and ``H``.

A head dimension that is no power of two is covered by two tiles (72 = 64 + 8 of 16), not padded to the next power.
Only what a network fixes is known at compile time: never a length, a batch size or a number of heads.
"""

import triton
import triton.language as tl

__all__ = ["attention", "means"]

STRIDES = [f"{x}_{dim}" for x in ("q", "k", "v", "tq", "tk", "tv", "o") for dim in "bhl"]


@triton.jit
def load(
    base, rows, columns, stride_row, stride_column, row_end, column_end, GUARD: tl.constexpr, RAGGED: tl.constexpr
):
    """Load a tile; zeros at rows from ``row_end`` on under ``GUARD``, at columns from ``column_end`` if ``RAGGED``."""
    pointers = base + (rows[:, None] * stride_row + columns[None, :] * stride_column)
    if GUARD and RAGGED:
        x = tl.load(pointers, mask=(rows[:, None] < row_end) & (columns[None, :] < column_end), other=0.0)
    elif GUARD:
        x = tl.load(pointers, mask=rows[:, None] < row_end, other=0.0)
    elif RAGGED:
        x = tl.load(pointers, mask=columns[None, :] < column_end, other=0.0)
    else:
        x = tl.load(pointers)
    return x


@triton.jit
def store(base, x, rows, columns, stride_row, stride_column, row_end, column_end):
    """Store a tile, rounded, without the rows from ``row_end`` and the columns from ``column_end`` on."""
    pointers = base + (rows[:, None] * stride_row + columns[None, :] * stride_column)
    mask = (rows[:, None] < row_end) & (columns[None, :] < column_end)
    tl.store(pointers, x.to(base.dtype.element_ty), mask=mask)


@triton.jit
def compare(x0, x1, y0, y1, total, PRECISION: tl.constexpr):
    """Return ``x yᵀ``, added to ``total``, of matrices in two tiles each; what is ``None`` is not there."""
    if total is None:
        total = tl.dot(x0, tl.trans(y0), input_precision=PRECISION)
    else:
        total = tl.dot(x0, tl.trans(y0), total, input_precision=PRECISION)
    if x1 is not None:
        total = tl.dot(x1, tl.trans(y1), total, input_precision=PRECISION)
    return total


@triton.jit
def gather(
    o, t, p, h, decay, V, v_l, v_d, TV, tv_l, tv_d, rows, columns, row_end, column_end,
    GUARD: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return ``decay o + p V`` and ``decay t + h V + p TV``; ``h``, ``TV`` or both may be ``None``."""
    v = load(V, rows, columns, v_l, v_d, row_end, column_end, GUARD, RAGGED)
    o = tl.dot(p, v, o * decay[:, None], input_precision=PRECISION)
    if h is not None or TV is not None:
        t = t * decay[:, None]
    if h is not None:
        t = tl.dot(h, v, t, input_precision=PRECISION)
    if TV is not None:
        tv = load(TV, rows, columns, tv_l, tv_d, row_end, column_end, GUARD, RAGGED)
        t = tl.dot(p, tv, t, input_precision=PRECISION)
    return o, t


@triton.jit
def rounded(x, dtype: tl.constexpr, PTX: tl.constexpr):
    """Round float32 to ``dtype``; return it, and the same numbers in float32."""
    if PTX and dtype == tl.bfloat16:
        # Two at a time. The compiler converts one at a time where both forms are used, at an eighth of the rate.
        y, wide = tl.inline_asm_elementwise(
            "{ cvt.rn.bf16x2.f32 $0, $4, $3; shl.b32 $1, $0, 16; and.b32 $2, $0, 0xffff0000; }",
            "=&r,=r,=r,r,r",
            [x],
            dtype=(tl.bfloat16, tl.float32),
            is_pure=True,
            pack=2,
        )
    else:
        y = x.to(dtype)
        wide = y.to(tl.float32)
    return y, wide


@triton.jit(do_not_specialize=["heads", "groups", "L", "S", *STRIDES])
def attention(
    Q, K, V, TQ, TK, TV, MEAN_K, MEAN_TK, LENGTHS, O, TO, LSE,
    q_b, q_h, q_l, q_d,
    k_b, k_h, k_l, k_d,
    v_b, v_h, v_l, v_d,
    tq_b, tq_h, tq_l, tq_d,
    tk_b, tk_h, tk_l, tk_d,
    tv_b, tv_h, tv_l, tv_d,
    o_b, o_h, o_l, o_d,
    scale, heads, groups, L, S,
    CAUSAL: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    E: tl.constexpr, E0: tl.constexpr, E1: tl.constexpr,
    UNIT: tl.constexpr, PRECISION: tl.constexpr, PTX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write ``O``, ``TO`` and ``LSE`` for a block of queries of one head; ``TO`` only if there is a tangent.

    Args:
        Q, K, V, TQ, TK, TV: inputs ``(B, H or Hk, L or S, D)``; a tangent that is ``None`` is not computed with.
        MEAN_K, MEAN_TK: means over the keys, ``(B, Hk, D)``, float32, contiguous; of K with TQ, of TK with TK.
        LENGTHS: number of keys that each batch entry sees, or ``None``.
        O, TO, LSE: results; ``LSE (B, H, L)`` is contiguous, float32 and in natural units, 0 where no key is seen.
        q_b to o_d: strides, those of the first three axes in units of ``UNIT`` elements; TO has those of O.
        scale: factor of the logits, positive.
        heads, groups, L, S: number of query heads, of those that share a key head, of queries, of keys.
        D, D0, D1: head dimension, and the two tiles that cover it; the second is absent if 0.
        E, E0, E1: columns of O and TO that one program computes, and their tiles.
        PRECISION: how float32 is multiplied.
        PTX: whether the chip understands PTX.
    """
    HAS_TQ: tl.constexpr = TQ is not None
    HAS_TK: tl.constexpr = TK is not None
    HAS_TV: tl.constexpr = TV is not None
    HAS_TS: tl.constexpr = HAS_TQ or HAS_TK
    DUAL: tl.constexpr = HAS_TS or HAS_TV
    PARTS: tl.constexpr = (D + E - 1) // E
    LOG2E: tl.constexpr = 1.4426950408889634
    dtype = Q.dtype.element_ty

    # Programs side by side share keys. Under CAUSAL the last queries, which see most, come first.
    blocks = tl.cdiv(L, BLOCK_M)
    program = tl.program_id(0)
    part = program % PARTS
    block = (program // PARTS) % blocks
    head_of_all = program // (PARTS * blocks)
    if CAUSAL:
        block = blocks - 1 - block
    b = (head_of_all // heads).to(tl.int64)
    h = (head_of_all % heads).to(tl.int64)
    hk = h // groups

    first = block * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    row_end = L - first
    d0 = tl.arange(0, D0)
    d1 = D0 + tl.arange(0, D1 if D1 > 0 else 16)
    e0 = part * E + tl.arange(0, E0)
    e1 = part * E + E0 + tl.arange(0, E1 if E1 > 0 else 16)
    e_end = tl.minimum(part * E + E, D)
    RAGGED_D0: tl.constexpr = D0 > D
    RAGGED_D1: tl.constexpr = D0 + D1 > D
    RAGGED_E0: tl.constexpr = E0 > E or (PARTS - 1) * E + E0 > D
    RAGGED_E1: tl.constexpr = E0 + E1 > E or (PARTS - 1) * E + E0 + E1 > D

    Q += b * q_b * UNIT + h * q_h * UNIT + first.to(tl.int64) * (q_l * UNIT)
    K += b * k_b * UNIT + hk * k_h * UNIT
    V += b * v_b * UNIT + hk * v_h * UNIT
    q0 = load(Q, rows, d0, q_l * UNIT, q_d, row_end, D, True, RAGGED_D0)
    q1 = load(Q, rows, d1, q_l * UNIT, q_d, row_end, D, True, RAGGED_D1) if D1 > 0 else None
    if HAS_TQ:
        TQ += b * tq_b * UNIT + h * tq_h * UNIT + first.to(tl.int64) * (tq_l * UNIT)
        tq0 = load(TQ, rows, d0, tq_l * UNIT, tq_d, row_end, D, True, RAGGED_D0)
        tq1 = load(TQ, rows, d1, tq_l * UNIT, tq_d, row_end, D, True, RAGGED_D1) if D1 > 0 else None
    if HAS_TK:
        TK += b * tk_b * UNIT + hk * tk_h * UNIT
    if HAS_TV:
        TV += b * tv_b * UNIT + hk * tv_h * UNIT

    # c, over the scale until the end.
    centre = tl.zeros([BLOCK_M], tl.float32)
    if HAS_TQ:
        MEAN_K += (b * (heads // groups) + hk) * D
        mean = tl.load(MEAN_K + d0, mask=d0 < D, other=0.0)
        centre += tl.sum(tq0.to(tl.float32) * mean[None, :], 1)
        if D1 > 0:
            mean = tl.load(MEAN_K + d1, mask=d1 < D, other=0.0)
            centre += tl.sum(tq1.to(tl.float32) * mean[None, :], 1)
    if HAS_TK:
        MEAN_TK += (b * (heads // groups) + hk) * D
        mean = tl.load(MEAN_TK + d0, mask=d0 < D, other=0.0)
        centre += tl.sum(q0.to(tl.float32) * mean[None, :], 1)
        if D1 > 0:
            mean = tl.load(MEAN_TK + d1, mask=d1 < D, other=0.0)
            centre += tl.sum(q1.to(tl.float32) * mean[None, :], 1)
    centre *= scale

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mu = tl.zeros([BLOCK_M], tl.float32)
    o0 = tl.zeros([BLOCK_M, E0], tl.float32)
    t0 = tl.zeros([BLOCK_M, E0], tl.float32)
    if E1 > 0:
        o1 = tl.zeros([BLOCK_M, E1], tl.float32)
        t1 = tl.zeros([BLOCK_M, E1], tl.float32)

    # Keys that any row sees, and among them whole blocks that every row sees.
    seen = S
    if LENGTHS is not None:
        seen = tl.minimum(S, tl.load(LENGTHS + b).to(tl.int32))
    whole = seen
    if CAUSAL:
        # Row i sees the keys up to i + S - L.
        last = first + S - L
        whole = tl.minimum(seen, last + 1)
        seen = tl.minimum(seen, last + BLOCK_M)
    whole = tl.maximum(whole, 0) // BLOCK_N * BLOCK_N

    for GUARD in tl.static_range(2):
        for start in tl.range(whole if GUARD else 0, seen if GUARD else whole, BLOCK_N, disable_licm=True):
            keys = tl.arange(0, BLOCK_N)
            end = seen - start
            step = tl.cast(start, tl.int64)
            base = K + step * (k_l * UNIT)
            k0 = load(base, keys, d0, k_l * UNIT, k_d, end, D, GUARD, RAGGED_D0)
            k1 = load(base, keys, d1, k_l * UNIT, k_d, end, D, GUARD, RAGGED_D1) if D1 > 0 else None
            s = compare(q0, q1, k0, k1, None, PRECISION)
            if HAS_TQ:
                ts = compare(tq0, tq1, k0, k1, None, PRECISION)
            if HAS_TK:
                base = TK + step * (tk_l * UNIT)
                tk0 = load(base, keys, d0, tk_l * UNIT, tk_d, end, D, GUARD, RAGGED_D0)
                tk1 = load(base, keys, d1, tk_l * UNIT, tk_d, end, D, GUARD, RAGGED_D1) if D1 > 0 else None
                ts = compare(q0, q1, tk0, tk1, ts if HAS_TQ else None, PRECISION)
            if GUARD:
                visible = keys[None, :] < end
                if CAUSAL:
                    visible = visible & (keys[None, :] + (start - last) <= rows[:, None])
                s = tl.where(visible, s, float("-inf"))

            top = tl.maximum(m, tl.max(s, 1) * (scale * LOG2E))
            # A row that has seen no key yet: with 0 for its maximum every exponential is an exact 0, not NaN.
            level = tl.where(top == float("-inf"), 0.0, top) if GUARD else top
            decay = tl.math.exp2(m - level)
            m = top
            p = tl.math.exp2(s * (scale * LOG2E) - level[:, None])
            p_rounded, p_wide = rounded(p, dtype, PTX)
            total = total * decay + tl.sum(p_wide, 1)
            h_rounded = None
            if HAS_TS:
                h_rounded, h_wide = rounded(p * (ts * scale - centre[:, None]), dtype, PTX)
                mu = mu * decay + tl.sum(h_wide, 1)

            v = V + step * (v_l * UNIT)
            tv = TV + step * (tv_l * UNIT) if HAS_TV else None
            o0, t0 = gather(
                o0, t0, p_rounded, h_rounded, decay, v, v_l * UNIT, v_d, tv, tv_l * UNIT, tv_d,
                keys, e0, end, e_end, GUARD, RAGGED_E0, PRECISION,
            )  # fmt: skip
            if E1 > 0:
                o1, t1 = gather(
                    o1, t1, p_rounded, h_rounded, decay, v, v_l * UNIT, v_d, tv, tv_l * UNIT, tv_d,
                    keys, e1, end, e_end, GUARD, RAGGED_E1, PRECISION,
                )  # fmt: skip

    # A row that sees no key: sums and lse of 0.
    empty = total == 0.0
    divisor = tl.where(empty, 1.0, total)
    lse = tl.where(empty, 0.0, m + tl.math.log2(divisor)) / LOG2E
    if part == 0:
        tl.store(LSE + head_of_all.to(tl.int64) * L + first + rows, lse, mask=rows < row_end)
    O += b * o_b * UNIT + h * o_h * UNIT + first.to(tl.int64) * (o_l * UNIT)
    inverse = 1.0 / divisor
    o0 = o0 * inverse[:, None]
    store(O, o0, rows, e0, o_l * UNIT, o_d, row_end, e_end)
    if E1 > 0:
        o1 = o1 * inverse[:, None]
        store(O, o1, rows, e1, o_l * UNIT, o_d, row_end, e_end)
    if DUAL:
        TO += b * o_b * UNIT + h * o_h * UNIT + first.to(tl.int64) * (o_l * UNIT)
        store(TO, (t0 - mu[:, None] * o0) * inverse[:, None], rows, e0, o_l * UNIT, o_d, row_end, e_end)
        if E1 > 0:
            store(TO, (t1 - mu[:, None] * o1) * inverse[:, None], rows, e1, o_l * UNIT, o_d, row_end, e_end)


@triton.jit(do_not_specialize=["heads", "S", "x_b", "x_h", "x_l"])
def means(
    X, LENGTHS, MEAN,
    x_b, x_h, x_l, x_d,
    heads, S,
    D: tl.constexpr, UNIT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Average one head of ``X`` over the keys that are seen, in float32: ``MEAN (B, Hk, D)``; 0 if there are none."""
    program = tl.program_id(0).to(tl.int64)
    b = program // heads
    X += b * x_b * UNIT + (program % heads) * x_h * UNIT
    seen = S
    if LENGTHS is not None:
        seen = tl.maximum(tl.minimum(S, tl.load(LENGTHS + b).to(tl.int32)), 0)
    columns = tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in tl.range(0, seen, BLOCK_N):
        base = X + tl.cast(start, tl.int64) * (x_l * UNIT)
        rows = tl.arange(0, BLOCK_N)
        total += load(base, rows, columns, x_l * UNIT, x_d, seen - start, D, True, BLOCK_D > D).to(tl.float32)
    mean = tl.sum(total, 0) / tl.maximum(seen, 1).to(tl.float32)
    tl.store(MEAN + program * D + columns, mean, mask=columns < D)
