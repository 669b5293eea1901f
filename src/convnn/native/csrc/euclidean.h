/* The exact search by Euclidean distance: factor^2 |q - k|^2 + |position of q - position of k|^2, smallest first.
 *
 * Coordinates are moved to a centre of the keys, in float64, and rounded to float32: x'. Products rank the keys by
 * s = <q', k'> - |k'|^2 / 2, which is wrong by at most E = |q'| slope + offset, two numbers per key (below). A key whose
 * s + E is below the k-th largest s - E is not among the k nearest; the distances of the others are computed by differences
 * in float64, which decide.
 */

typedef struct {
    const struct convnn_euclidean *problem;
    float *panels, *bias, *slope, *offset;
    double *centre;
    int exhaustive; /* all keys are compared by differences: a number is not finite, or too large for float32 products, or too few keys may be chosen */
} EuclideanKeys;

typedef struct {
    const struct convnn_euclidean *problem;
    EuclideanKeys *images;
    int64_t first_image, panels, width;
    int64_t chunk, blocks, parts; /* keys and blocks of queries that are compared at a time; parts of an image */
    atomic_int failed; /* what the function returns */
} EuclideanTask;

typedef struct {
    double distance[CONVNN_MOST_K];
    int32_t index[CONVNN_MOST_K];
    int8_t rank[CONVNN_MOST_K]; /* 0: NaN, 1: a distance, 2: excluded */
    int count;
} Nearest;

static inline void insert_nearest(Nearest *best, int k, double distance, int rank, int32_t index) {
    if (best->count == k) {
        int last = best->rank[k - 1];
        if (rank > last || (rank == last && !(distance < best->distance[k - 1]))) return;
    }
    int at = best->count < k ? best->count++ : k - 1;
    for (; at > 0; at--) {
        int before = best->rank[at - 1];
        if (before < rank || (before == rank && !(distance < best->distance[at - 1]))) break;
        best->distance[at] = best->distance[at - 1];
        best->index[at] = best->index[at - 1];
        best->rank[at] = best->rank[at - 1];
    }
    best->distance[at] = distance;
    best->index[at] = index;
    best->rank[at] = (int8_t)rank;
}

static double squared_distance(const float *restrict a, const float *restrict b, int64_t count) {
    double parts[16] = {0}; /* independent sums, which the compiler keeps in vectors */
    int64_t c = 0;
    for (; c + 16 <= count; c += 16)
        for (int j = 0; j < 16; j++) {
            double d = (double)a[c + j] - b[c + j];
            parts[j] += d * d;
        }
    for (int j = 0; c < count; c++, j++) {
        double d = (double)a[c] - b[c];
        parts[j] += d * d;
    }
    double sum = 0;
    for (int j = 0; j < 16; j++) sum += parts[j];
    return sum;
}

static double distance_of(const struct convnn_euclidean *p, int64_t image, int64_t query, int64_t key) {
    double d = squared_distance(p->query + (image * p->queries + query) * p->channels,
                                p->key + (image * p->keys + key) * p->channels, p->channels);
    if (p->axes) {
        double factor = p->factor[image];
        d = d * (factor * factor) + squared_distance(p->query_position + query * p->axes, p->key_position + key * p->axes,
                                                     p->axes);
    }
    return d;
}

/* Embed a token: its coordinates times factor, and its position, both from the centre; return its squared length. */
static double embed(const struct convnn_euclidean *p, int64_t image, const float *token, const float *position,
                    const double *centre, float *out, int64_t stride) {
    double factor = p->axes ? p->factor[image] : 1, sum = 0;
    for (int64_t c = 0; c < p->channels + p->axes; c++) {
        double x = c < p->channels ? factor * token[c] : position[c - p->channels];
        x -= centre[c];
        out[c * stride] = (float)x;
        sum += x * x;
    }
    return sum;
}

/* Return the median of one coordinate of some keys: any centre is right, and one among most of the keys is best. */
static double middle(const struct convnn_euclidean *p, int64_t image, int64_t c) {
    enum { SOME = 15 };
    float sorted[SOME] = {0};
    int count = p->keys < SOME ? (int)p->keys : SOME;
    for (int i = 0; i < count; i++) {
        int64_t key = i * p->keys / count;
        float x = c < p->channels ? p->key[(image * p->keys + key) * p->channels + c]
                                  : p->key_position[key * p->axes + c - p->channels];
        int at = i;
        for (; at > 0 && sorted[at - 1] > x; at--) sorted[at] = sorted[at - 1];
        sorted[at] = x;
    }
    return sorted[count / 2];
}

static void embed_keys(int64_t begin, int64_t end, void *context) {
    EuclideanTask *task = context;
    const struct convnn_euclidean *p = task->problem;
    for (int64_t i = begin; i < end; i++) {
        EuclideanKeys *keys = &task->images[i];
        int64_t image = task->first_image + i, chosen = 0, wide = task->panels * NR;
        double factor = p->axes ? p->factor[image] : 1, longest = 0;
        const double u = 1.0 / (1 << 24), tiny = 1.2e-38; /* also where subnormal numbers are flushed to 0 */
        for (int64_t c = 0; c < task->width; c++) keys->centre[c] = middle(p, image, c) * (c < p->channels ? factor : 1);
        for (int64_t key = 0; key < wide; key++) keys->bias[key] = -INFINITY, keys->slope[key] = keys->offset[key] = 0;
        memset(keys->panels, 0, (size_t)(wide * task->width) * sizeof(float));
        for (int64_t key = 0; key < p->keys; key++) {
            double square = embed(p, image, p->key + (image * p->keys + key) * p->channels,
                                  p->key_position + key * p->axes, keys->centre,
                                  keys->panels + key / NR * task->width * NR + key % NR, NR);
            longest = square <= longest ? longest : square; /* a NaN is kept */
            if (square != square) longest = INFINITY;
            if (p->masked && p->masked[image * p->keys + key]) continue;
            double terms = (double)(task->width + 8) * (1 + 1e-5);
            keys->bias[key] = (float)(-square / 2);
            keys->slope[key] = (float)(u * terms * sqrt(square));
            keys->offset[key] = (float)(4 * u * square + terms * tiny);
            chosen++;
        }
        keys->exhaustive = !(longest < 1e30) || chosen < p->k + (p->skip != NULL);
    }
}

/* scores[r][j] = s + E of each pair; lanes[r][j] = the largest s - E so far. */
static void bound_panel(const float *restrict rows, const float *lengths, const EuclideanKeys *keys, int64_t first,
                        int64_t channels, float *restrict scores, int64_t stride, float *restrict lanes) {
    vf sum[MR][2], none = vf_all(-1);
    sum_products(rows, keys->panels + first * channels, channels, sum);
    UNROLL for (int r = 0; r < MR; r++)
        for (int half = 0; half < 2; half++) {
            int64_t at = first + half * VF_LANES;
            vf score = vf_add(sum[r][half], vf_load(keys->bias + at));
            vf error = vf_fma(vf_all(lengths[r]), vf_load(keys->slope + at), vf_load(keys->offset + at));
            vf_store(scores + r * stride + half * VF_LANES, vf_add(score, error));
            raise_lane(lanes + r * LANES + half * VF_LANES, vf_fma(error, none, score));
        }
}

/* What one thread works with: BLOCKS blocks of MR queries, and the scores of one of them. */
typedef struct {
    float *rows, *scores, *length, *limit; /* limit: the n-th largest s - E of a query so far, or -inf */
    Nearest *best;
} EuclideanMemory;

/* Compare a query with the keys of a chunk that products do not exclude, by differences. */
static void compare_near(const EuclideanTask *task, int64_t image, int64_t query, int64_t start, int64_t end,
                         const float *scores, float limit, int exhaustive, Nearest *best) {
    const struct convnn_euclidean *p = task->problem;
    int64_t skip = p->skip ? p->skip[query] : -1;
    vf least = vf_all(limit);
    for (int64_t at = 0; at < end; at += VF_LANES) {
        uint32_t near = exhaustive ? UINT32_MAX : vf_at_least(vf_load(scores + at), least);
        for (int64_t j = at; near && j < at + VF_LANES && j < end; j++) {
            if (!(near >> (j - at) & 1)) continue;
            int excluded = start + j == skip || (p->masked && p->masked[image * p->keys + start + j]);
            if (excluded && !exhaustive) continue;
            double distance = excluded ? 0 : distance_of(p, image, query, start + j);
            int rank = excluded ? 2 : distance != distance ? 0 : 1;
            insert_nearest(best, (int)p->k, rank == 1 ? distance : 0, rank, (int32_t)(start + j));
        }
    }
}

/* Search for one block of queries, `row` the first of them in the memory, in one chunk of keys. */
static void euclidean_chunk(const EuclideanTask *task, int64_t local, int64_t first, int64_t start, int64_t row,
                            EuclideanMemory *memory) {
    const struct convnn_euclidean *p = task->problem;
    const EuclideanKeys *keys = &task->images[local];
    int64_t image = task->first_image + local, count = p->queries - first < MR ? p->queries - first : MR;
    int64_t left = p->keys - start, end = left < task->chunk ? left : task->chunk;
    int64_t stride = score_stride(task->chunk, task->panels);
    int n = (int)p->k + (p->skip != NULL), lane_count = lanes_for(n);
    float lanes[MR * LANES];
    for (int j = 0; j < MR * LANES; j++) lanes[j] = -INFINITY;
    for (int64_t at = 0; at < end; at += NR)
        bound_panel(memory->rows + row * task->width, memory->length + row, keys, start + at, task->width,
                    memory->scores + at, stride, lanes + at % lane_count);
    for (int64_t r = 0; r < count; r++) {
        int exhaustive = keys->exhaustive || !(memory->length[row + r] < 1e15);
        float *limit = memory->limit + row + r, here = exhaustive ? -INFINITY : nth_largest(lanes + r * LANES, lane_count, n);
        if (here > *limit) *limit = here;
        compare_near(task, image, first + r, start, end, memory->scores + r * stride, *limit, exhaustive,
                     memory->best + row + r);
    }
}

/* Search for some blocks of queries of one image: a chunk of keys stays in the cache for all of them. */
static void euclidean_part(const EuclideanTask *task, int64_t local, int64_t first, EuclideanMemory *memory) {
    const struct convnn_euclidean *p = task->problem;
    const EuclideanKeys *keys = &task->images[local];
    int64_t image = task->first_image + local, left = p->queries - first;
    int64_t queries = left < task->blocks * MR ? left : task->blocks * MR;
    memset(memory->rows, 0, (size_t)(task->blocks * MR * task->width) * sizeof(float));
    for (int64_t r = 0; r < queries; r++) {
        float *rows = memory->rows + r / MR * MR * task->width + r % MR;
        memory->best[r].count = 0;
        memory->limit[r] = -INFINITY;
        memory->length[r] = (float)sqrt(embed(p, image, p->query + (image * p->queries + first + r) * p->channels,
                                              p->query_position + (first + r) * p->axes, keys->centre, rows, MR));
    }
    for (int64_t start = 0; start < p->keys; start += task->chunk)
        for (int64_t row = 0; row < queries; row += MR) euclidean_chunk(task, local, first + row, start, row, memory);
    for (int64_t r = 0; r < queries; r++)
        for (int m = 0; m < p->k; m++)
            p->index[(image * p->queries + first + r) * p->k + m] = memory->best[r].index[m];
}

static void euclidean_parts(int64_t begin, int64_t end, void *context) {
    EuclideanTask *task = context;
    int64_t queries = task->blocks * MR, rows = queries * task->width;
    size_t floats = (size_t)(rows + MR * score_stride(task->chunk, task->panels) + 2 * queries);
    EuclideanMemory memory = {.best = calloc(1, (size_t)queries * sizeof(Nearest) + floats * sizeof(float))};
    if (!memory.best) {
        task->failed = CONVNN_NO_MEMORY;
        return;
    }
    memory.rows = (float *)(memory.best + queries);
    memory.length = memory.rows + rows;
    memory.limit = memory.length + queries;
    memory.scores = memory.limit + queries;
    for (int64_t i = begin; i < end; i++) euclidean_part(task, i / task->parts, i % task->parts * queries, &memory);
    free(memory.best);
}

static int search_euclidean(const struct convnn_euclidean *p) {
    int64_t width = p->channels + p->axes, panels = (p->keys + NR - 1) / NR, floats = panels * NR * (width + 3);
    int64_t bytes = (int64_t)sizeof(EuclideanKeys) + width * (int64_t)sizeof(double) + floats * (int64_t)sizeof(float);
    int64_t group = images_at_a_time(p->batch, floats);
    EuclideanTask task = {.problem = p, .panels = panels, .width = width, .chunk = chunk_of(width)};
    task.blocks = blocks_at_once(p->keys, task.chunk);
    task.parts = (p->queries + task.blocks * MR - 1) / (task.blocks * MR);
    task.images = malloc((size_t)(group * bytes));
    if (!task.images) return CONVNN_NO_MEMORY;
    double *centres = (double *)(task.images + group);
    float *memory = (float *)(centres + group * width);
    for (int64_t i = 0; i < group; i++)
        task.images[i] = (EuclideanKeys){
            .panels = memory + i * floats,
            .bias = memory + i * floats + panels * NR * width,
            .slope = memory + i * floats + panels * NR * (width + 1),
            .offset = memory + i * floats + panels * NR * (width + 2),
            .centre = centres + i * width,
        };
    for (; task.first_image < p->batch && !task.failed; task.first_image += group) {
        int64_t count = p->batch - task.first_image < group ? p->batch - task.first_image : group;
        run_range(count, embed_keys, &task, &task.failed);
        run_range(count * task.parts, euclidean_parts, &task, &task.failed);
    }
    free(task.images);
    return task.failed;
}
