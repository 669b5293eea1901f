/* Sums of gathered rows, their transpose, and the products and distances of gathered pairs.
 *
 * bag_sum         out[n]   = sum over m of w[n,m] v[m] table[r[n,m]]           v: one vector a slot, or ones
 * bag_scatter     out[j]   = sum over (n,m) with r[n,m] = j of w[n,m] v[m] source[n]
 * pair_product    out[n,m] = sum over c of v[m,c] source[n,c] table[r[n,m],c]
 * pair_distance   out[n,m] = |source[n] - table[r[n,m]]|^2
 * vector_gradient dv[m]    = sum over n of w[n,m] source[n] table[r[n,m]]
 *
 * A thread owns what it writes and adds in the order of n and m: results depend on nothing but the arguments.
 */

typedef struct {
    const struct convnn_bags *p;
    int64_t width; /* channels that one thread scatters at a time */
    int64_t chunk; /* queries whose gradients of the vectors are added up together */
    float *sums;   /* (chunks, k, C) */
    atomic_int failed;
} BagsTask;

static int bad_index(const struct convnn_bags *p) {
    return outside(p->index, p->batch * p->queries * p->k, p->by_slot ? p->rows / p->k : p->rows);
}

static inline int64_t table_row(const struct convnn_bags *p, int64_t at) {
    return p->by_slot ? p->index[at] * p->k + at % p->k : p->index[at];
}

static inline const float *table_of(const struct convnn_bags *p, int64_t image, int64_t at) {
    return p->table + image * p->table_stride[0] + table_row(p, at) * p->table_stride[1];
}

static inline const float *source_of(const struct convnn_bags *p, int64_t row) {
    return p->source + row / p->queries * p->source_stride[0] + row % p->queries * p->source_stride[1];
}

static inline float bag_weight(const struct convnn_bags *p, int64_t at) { return p->weight ? p->weight[at] : 1; }

/* to[0:count] += factor * from * vector, a vector of ones where there is none. */
static inline void add_row(float *restrict to, const float *restrict from, const float *restrict vector, float factor,
                           int64_t count) {
    if (vector)
        for (int64_t c = 0; c < count; c++) to[c] += factor * from[c] * vector[c];
    else if (factor == 1)
        for (int64_t c = 0; c < count; c++) to[c] += from[c];
    else
        for (int64_t c = 0; c < count; c++) to[c] += factor * from[c];
}

static inline const float *vector_of(const struct convnn_bags *p, int64_t m) {
    return p->vectors ? p->vectors + m * p->channels : NULL;
}

static void bag_sum_range(int64_t begin, int64_t end, void *context) {
    const struct convnn_bags *p = context;
    for (int64_t row = begin; row < end; row++) {
        float *out = p->result + row * p->channels;
        const float *start = NULL;
        for (int64_t first = row * p->k; first < (row + 1) * p->k; first += ROWS) {
            const float *from[ROWS];
            int64_t left = (row + 1) * p->k - first, count = left < ROWS ? left : ROWS;
            for (int64_t i = 0; i < count; i++) from[i] = table_of(p, row / p->queries, first + i);
            if (!p->vectors) sum_rows(out, start, from, p->weight ? p->weight + first : NULL, count, p->channels);
            else {
                if (!start) memset(out, 0, (size_t)p->channels * sizeof(float));
                for (int64_t i = 0; i < count; i++)
                    add_row(out, from[i], vector_of(p, (first + i) % p->k), bag_weight(p, first + i), p->channels);
            }
            start = out;
        }
    }
}

/* Rows that are worth the start of a thread. */
static int64_t bag_grain(const struct convnn_bags *p) { return 16384 / (p->k * p->channels + 1) + 1; }

static int bag_sum(const struct convnn_bags *p) {
    if (bad_index(p)) return CONVNN_BAD_INDEX;
    return parallel_for(0, p->batch * p->queries, bag_grain(p), bag_sum_range, (void *)p);
}

enum { SCATTERED = 64 /* queries, and most channels, that one thread scatters at a time */ };

/* Scatter `width` channels of one image. */
static void scatter_part(int64_t begin, int64_t end, void *context) {
    const BagsTask *task = context;
    const struct convnn_bags *p = task->p;
    int64_t parts = (p->channels + task->width - 1) / task->width;
    float tile[SCATTERED * SCATTERED];
    for (int64_t i = begin; i < end; i++) {
        int64_t image = i / parts, c0 = i % parts * task->width, row_stride = p->source_stride[1];
        int64_t count = p->channels - c0 < task->width ? p->channels - c0 : task->width;
        float *out = p->result + image * p->rows * p->channels + c0;
        for (int64_t j = 0; j < p->rows; j++) memset(out + j * p->channels, 0, (size_t)count * sizeof(float));
        for (int64_t first = 0; first < p->queries; first += SCATTERED) {
            int64_t rows = p->queries - first < SCATTERED ? p->queries - first : SCATTERED, distance = row_stride;
            const float *from = p->source + image * p->source_stride[0] + first * row_stride + c0 * p->source_stride[2];
            if (p->source_stride[2] != 1) {
                read_rows(from, row_stride, p->source_stride[2], rows, count, tile, SCATTERED);
                from = tile, distance = SCATTERED;
            }
            for (int64_t r = 0; r < rows; r++)
                for (int64_t m = 0; m < p->k; m++) {
                    int64_t at = (image * p->queries + first + r) * p->k + m;
                    const float *vector = p->vectors ? vector_of(p, m) + c0 : NULL;
                    add_row(out + table_row(p, at) * p->channels, from + r * distance, vector, bag_weight(p, at), count);
                }
        }
    }
}

static int bag_scatter(const struct convnn_bags *p) {
    if (bad_index(p)) return CONVNN_BAD_INDEX;
    BagsTask task = {.p = p, .width = SCATTERED};
    int64_t tasks = p->batch * ((p->channels + SCATTERED - 1) / SCATTERED);
    if (tasks < parallel_threads()) task.width = 16; /* a cache line, so that no two threads write into one */
    run_range(p->batch * ((p->channels + task.width - 1) / task.width), scatter_part, &task, &task.failed);
    return task.failed;
}

static float pair(const float *a, const float *b, const float *vector, int64_t count) {
    if (!vector) return dot(a, b, count);
    vf sum = vf_zero();
    int64_t c = 0;
    for (; c + VF_LANES <= count; c += VF_LANES)
        sum = vf_fma(vf_fma(vf_load(a + c), vf_load(b + c), vf_zero()), vf_load(vector + c), sum);
    float total = vf_sum(sum);
    for (; c < count; c++) total += a[c] * b[c] * vector[c];
    return total;
}

static float pair_squares(const float *a, const float *b, int64_t count) {
    vf sum = vf_zero(), minus = vf_all(-1);
    int64_t c = 0;
    for (; c + VF_LANES <= count; c += VF_LANES) {
        vf difference = vf_fma(minus, vf_load(b + c), vf_load(a + c));
        sum = vf_fma(difference, difference, sum);
    }
    float total = vf_sum(sum);
    for (; c < count; c++) total += (a[c] - b[c]) * (a[c] - b[c]);
    return total;
}

static void product_range(int64_t begin, int64_t end, void *context) {
    const struct convnn_bags *p = context;
    for (int64_t at = begin * p->k; at < end * p->k; at++) {
        int64_t row = at / p->k;
        p->result[at] = pair(source_of(p, row), table_of(p, row / p->queries, at), vector_of(p, at % p->k), p->channels);
    }
}

static int pair_product(const struct convnn_bags *p) {
    if (bad_index(p)) return CONVNN_BAD_INDEX;
    return parallel_for(0, p->batch * p->queries, bag_grain(p), product_range, (void *)p);
}

static void distance_range(int64_t begin, int64_t end, void *context) {
    const struct convnn_bags *p = context;
    for (int64_t at = begin * p->k; at < end * p->k; at++) {
        int64_t row = at / p->k;
        p->result[at] = pair_squares(source_of(p, row), table_of(p, row / p->queries, at), p->channels);
    }
}

static int pair_distance(const struct convnn_bags *p) {
    if (bad_index(p)) return CONVNN_BAD_INDEX;
    return parallel_for(0, p->batch * p->queries, bag_grain(p), distance_range, (void *)p);
}

static void vector_chunks(int64_t begin, int64_t end, void *context) {
    const BagsTask *task = context;
    const struct convnn_bags *p = task->p;
    for (int64_t i = begin; i < end; i++) {
        float *sums = task->sums + i * p->k * p->channels;
        int64_t last = (i + 1) * task->chunk, total = p->batch * p->queries;
        for (int64_t row = i * task->chunk; row < last && row < total; row++)
            for (int64_t m = 0; m < p->k; m++) {
                int64_t at = row * p->k + m;
                const float *from = table_of(p, row / p->queries, at);
                add_row(sums + m * p->channels, source_of(p, row), from, bag_weight(p, at), p->channels);
            }
    }
}

static int vector_gradient(const struct convnn_bags *p) {
    if (bad_index(p)) return CONVNN_BAD_INDEX;
    enum { MOST_CHUNKS = 64 };
    BagsTask task = {.p = p, .chunk = 256};
    int64_t total = p->batch * p->queries, numbers = p->k * p->channels;
    if (total > task.chunk * MOST_CHUNKS) task.chunk = (total + MOST_CHUNKS - 1) / MOST_CHUNKS;
    int64_t chunks = (total + task.chunk - 1) / task.chunk;
    task.sums = calloc((size_t)(chunks * numbers), sizeof(float));
    if (!task.sums) return CONVNN_NO_MEMORY;
    run_range(chunks, vector_chunks, &task, &task.failed);
    memcpy(p->result, task.sums, (size_t)numbers * sizeof(float));
    for (int64_t i = 1; i < chunks; i++) add_row(p->result, task.sums + i * numbers, NULL, 1, numbers);
    free(task.sums);
    return task.failed;
}
