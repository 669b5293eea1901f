/* Products of rows with packed panels: what the aggregation is made of.
 *
 * Rows are held MR at a time, at most SPAN of their columns, at the fixed distance STRIDE: a broadcast then needs no
 * pointer per row. SPAN is a multiple of MR, so that MR columns of the transposed product never lie in two spans.
 * A matrix (K, columns) is packed into panels (columns / NR, K, NR), zeros behind the last column.
 */

enum { SPAN = 256 / MR * MR, STRIDE = 256 + 16, BLOCK = 8 * MR /* rows worked on at a time */ };

static inline int64_t padded(int64_t columns) { return (columns + NR - 1) / NR * NR; }

/* out[r][0:NR] += sum over c < count of rows[r * STRIDE + c] * panel[c][0:NR] */
static void add_product(const float *restrict rows, const float *restrict panel, int64_t count, float *restrict out,
                        int64_t stride) {
    vf sum[MR][2];
    UNROLL for (int r = 0; r < MR; r++) {
        sum[r][0] = vf_load(out + r * stride);
        sum[r][1] = vf_load(out + r * stride + VF_LANES);
    }
    for (int64_t c = 0; c < count; c++) {
        vf left = vf_load(panel), right = vf_load(panel + VF_LANES);
        UNROLL for (int r = 0; r < MR; r++) {
            vf x = vf_all(rows[r * STRIDE]);
            sum[r][0] = vf_fma(x, left, sum[r][0]);
            sum[r][1] = vf_fma(x, right, sum[r][1]);
        }
        rows++;
        panel += NR;
    }
    UNROLL for (int r = 0; r < MR; r++) {
        vf_store(out + r * stride, sum[r][0]);
        vf_store(out + r * stride + VF_LANES, sum[r][1]);
    }
}

/* out[r][0:NR] += sum over j < count of a[j * a_stride + r] * b[j * b_stride + 0:NR], for r < MR */
static void add_transposed(const float *restrict a, int64_t a_stride, const float *restrict b, int64_t b_stride,
                           int64_t count, float *restrict out, int64_t stride) {
    vf sum[MR][2];
    UNROLL for (int r = 0; r < MR; r++) {
        sum[r][0] = vf_load(out + r * stride);
        sum[r][1] = vf_load(out + r * stride + VF_LANES);
    }
    for (int64_t j = 0; j < count; j++) {
        vf left = vf_load(b), right = vf_load(b + VF_LANES);
        UNROLL for (int r = 0; r < MR; r++) {
            vf x = vf_all(a[r]);
            sum[r][0] = vf_fma(x, left, sum[r][0]);
            sum[r][1] = vf_fma(x, right, sum[r][1]);
        }
        a += a_stride;
        b += b_stride;
    }
    UNROLL for (int r = 0; r < MR; r++) {
        vf_store(out + r * stride, sum[r][0]);
        vf_store(out + r * stride + VF_LANES, sum[r][1]);
    }
}

/* Multiply BLOCK rows, held as (spans, BLOCK / MR, MR, STRIDE), K columns each, with panels of `depth` rows of which the
 * product begins at `from`; out (BLOCK, width). */
static void add_block(const float *rows, int64_t blocks, int64_t K, const float *panels, int64_t depth, int64_t from,
                      float *out, int64_t width) {
    for (int64_t k = 0; k < K; k += SPAN) {
        int64_t count = K - k < SPAN ? K - k : SPAN;
        for (int64_t column = 0; column < width; column += NR) {
            const float *panel = panels + (column / NR * depth + from + k) * NR;
            for (int64_t r = 0; r < blocks; r++)
                add_product(rows + (k / SPAN * BLOCK + r * MR) * STRIDE, panel, count,
                            out + r * MR * width + column, width);
        }
    }
}

/* Where the part of row r from column k on is held. */
static inline float *held(float *rows, int64_t r, int64_t k) { return rows + (k / SPAN * BLOCK + r) * STRIDE + k % SPAN; }

static int64_t held_floats(int64_t K) { return (K + SPAN - 1) / SPAN * BLOCK * STRIDE; }

/* Columns k .. k + count of row r, where they are held: source times factor, plus what was there or not. */
static inline __attribute__((always_inline)) void put(float *rows, int64_t r, int64_t k, const float *source,
                                                      int64_t count, float factor, int sum) {
    vf times = vf_all(factor), none = vf_all(-0.0f); /* which changes no product, not even one of -0 */
    while (count > 0) {
        int64_t part = SPAN - k % SPAN < count ? SPAN - k % SPAN : count, c = 0;
        float *restrict to = held(rows, r, k);
        for (; c + VF_LANES <= part; c += VF_LANES)
            vf_store(to + c, vf_fma(times, vf_load(source + c), sum ? vf_load(to + c) : none));
        for (; c < part; c++) to[c] = factor * source[c] + (sum ? to[c] : -0.0f);
        k += part, source += part, count -= part;
    }
}

/* Hold columns k .. k + count of row r: source times factor. */
static inline void hold(float *rows, int64_t r, int64_t k, const float *source, int64_t count, float factor) {
    put(rows, r, k, source, count, factor, 0);
}

/* Add source times factor to columns k .. k + count of row r. */
static inline void add_held(float *rows, int64_t r, int64_t k, const float *source, int64_t count, float factor) {
    put(rows, r, k, source, count, factor, 1);
}

/* out[0:count] = start + the sum over m < k of rows[m], times factors[m]; a start of zeros and factors of one where
 * there are none. */
static void sum_rows(float *out, const float *start, const float *const *rows, const float *factors, int64_t k,
                     int64_t count) {
    int64_t c = 0;
    for (; c + 4 * VF_LANES <= count; c += 4 * VF_LANES) { /* in registers */
        vf sum[4];
        UNROLL for (int i = 0; i < 4; i++) sum[i] = start ? vf_load(start + c + i * VF_LANES) : vf_all(0);
        for (int64_t m = 0; m < k; m++) {
            vf factor = vf_all(factors ? factors[m] : 1);
            UNROLL for (int i = 0; i < 4; i++) sum[i] = vf_fma(factor, vf_load(rows[m] + c + i * VF_LANES), sum[i]);
        }
        UNROLL for (int i = 0; i < 4; i++) vf_store(out + c + i * VF_LANES, sum[i]);
    }
    for (; c < count; c++) {
        float sum = start ? start[c] : 0;
        for (int64_t m = 0; m < k; m++) sum += (factors ? factors[m] : 1) * rows[m][c];
        out[c] = sum;
    }
}

enum { ROWS = 32 /* rows summed at a time */ };

/* Copy a matrix (rows, columns) between a tensor with strides and rows of `distance` numbers. */
static void read_rows(const float *data, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t columns,
                      float *restrict out, int64_t distance) {
    enum { T = 16 }; /* tile by tile, so that both sides stay in the cache */
    for (int64_t r0 = 0; r0 < rows; r0 += T)
        for (int64_t c0 = 0; c0 < columns; c0 += T) {
            int64_t r1 = rows - r0 < T ? rows : r0 + T, c1 = columns - c0 < T ? columns : c0 + T;
            for (int64_t c = c0; c < c1; c++)
                for (int64_t r = r0; r < r1; r++)
                    out[r * distance + c] = data[r * row_stride + c * column_stride];
        }
}

static void write_rows(float *data, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t columns,
                       const float *restrict from, int64_t distance) {
    enum { T = 16 };
    if (column_stride == 1) {
        for (int64_t r = 0; r < rows; r++)
            memcpy(data + r * row_stride, from + r * distance, (size_t)columns * sizeof(float));
        return;
    }
    for (int64_t c0 = 0; c0 < columns; c0 += T)
        for (int64_t r0 = 0; r0 < rows; r0 += T) {
            int64_t r1 = rows - r0 < T ? rows : r0 + T, c1 = columns - c0 < T ? columns : c0 + T;
            for (int64_t c = c0; c < c1; c++)
                for (int64_t r = r0; r < r1; r++)
                    data[r * row_stride + c * column_stride] = from[r * distance + c];
        }
}
