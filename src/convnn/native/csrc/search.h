/* The exact search: the k keys with the largest <query, key> + bias of every query.
 *
 * Keys are packed into panels of NR columns, C rows each. A register tile of MR queries x NR keys is summed over the
 * channels in order, so that equal keys have equal scores wherever they stand, and ties can be taken lowest index
 * first. The scores of MR queries stay in a buffer that the cache holds. The largest scores of some lanes give a
 * threshold that at least k keys reach; one pass over the buffer finds the few that do, and counting the larger ones
 * orders them. Where not all keys stay in the cache, several blocks of queries are compared with some before the next.
 */

enum { LANES = 64, CHUNK = 8192 /* keys whose scores are held at a time, at most */, BLOCKS = 8 };

/* Keys that are compared at a time: so few that they stay in the cache. */
static int64_t chunk_of(int64_t channels) {
    int64_t keys = (1 << 17) / channels / NR * NR;
    return keys > CHUNK ? CHUNK : keys < 512 ? 512 : keys;
}

/* Blocks of MR queries that are compared with a chunk before the next one. */
static int64_t blocks_at_once(int64_t keys, int64_t chunk) { return keys > chunk ? BLOCKS : 1; }

/* Numbers from a row of scores to the next. */
static int64_t score_stride(int64_t chunk, int64_t panels) { return (chunk < panels * NR ? chunk : panels * NR) + 4 * NR; }

/* Lanes of which the n-th largest is the threshold of n keys. */
static int lanes_for(int n) {
    int count = n <= 9 ? 16 : n <= 20 ? 32 : 64;
    return count < NR ? NR : count;
}

/* One image of the search, packed. */
typedef struct {
    const float *panels; /* (panels, C, NR) */
    const float *bias;   /* (panels * NR): the keys' biases; -inf for keys that may not be chosen and for padding */
    float largest;       /* of the absolute values of the keys; inf where one is not finite */
    int total_order;     /* scores may be NaN, or too few are finite: NaN, numbers and excluded keys are ordered */
} PackedKeys;

/* The k best so far, by descending score, and behind them keys that may be among the best. */
typedef struct {
    float score[LANES];
    int32_t index[LANES];
    int count;
} Best;

/* sum[r][j] = sum over c of rows[c][r] * panel[c][j], in the order of c. */
static inline __attribute__((always_inline)) void sum_products(const float *restrict rows, const float *restrict panel,
                                                               int64_t channels, vf sum[MR][2]) {
    UNROLL for (int r = 0; r < MR; r++) sum[r][0] = sum[r][1] = vf_all(0);
    for (int64_t c = 0; c < channels; c++) {
        vf left = vf_load(panel), right = vf_load(panel + VF_LANES);
        UNROLL for (int r = 0; r < MR; r++) {
            vf x = vf_all(rows[r]);
            sum[r][0] = vf_fma(x, left, sum[r][0]);
            sum[r][1] = vf_fma(x, right, sum[r][1]);
        }
        rows += MR;
        panel += NR;
    }
}

static inline void raise_lane(float *lane, vf score) { vf_store(lane, vf_max(vf_load(lane), score)); }

/* scores[r][j] = sum over c of rows[c][r] * panel[c][j], plus bias[j]; lanes[r][j] = the largest of so far. */
static void score_panel(const float *restrict rows, const float *restrict panel, int64_t channels,
                        const float *restrict bias, float *restrict scores, int64_t stride, float *restrict lanes) {
    vf sum[MR][2];
    sum_products(rows, panel, channels, sum);
    UNROLL for (int r = 0; r < MR; r++)
        for (int half = 0; half < 2; half++) {
            vf score = vf_add(sum[r][half], vf_load(bias + half * VF_LANES));
            vf_store(scores + r * stride + half * VF_LANES, score);
            raise_lane(lanes + r * LANES + half * VF_LANES, score);
        }
}

/* Return the n-th largest of the first `count` lanes, a multiple of VF_LANES. */
static float nth_largest(const float *lanes, int count, int n) {
    vf least = vf_all(INFINITY), limit = vf_all((float)n), none = vf_all(INFINITY);
    for (int at = 0; at < count; at += VF_LANES) {
        vf here = vf_load(lanes + at), larger = vf_all(0);
        for (int j = 0; j < count; j++) larger = vf_count_greater(larger, vf_all(lanes[j]), here);
        least = vf_min(least, vf_where_less(larger, limit, here, none)); /* of those that fewer than n exceed */
    }
    float each[VF_LANES], result = INFINITY;
    vf_store(each, least);
    for (int j = 0; j < VF_LANES; j++) result = each[j] < result ? each[j] : result;
    return result;
}

/* Order `count` scores, none of which is NaN and behind which the array has -inf up to a whole vector: order[0] is the
 * largest, equal ones in their order. Without a branch: which are among the best cannot be predicted. */
static void rank(const float *scores, int count, int32_t *order) {
    float larger[LANES];
    uint8_t equal[LANES] = {0}; /* how many had as many larger ones so far: these are equal */
    for (int at = 0; at < count; at += VF_LANES) {
        vf here = vf_load(scores + at), sum = vf_all(0);
        for (int j = 0; j < count; j++) sum = vf_count_greater(sum, vf_all(scores[j]), here);
        vf_store(larger + at, sum);
    }
    for (int j = 0; j < count; j++) {
        int place = (int)larger[j];
        order[place + equal[place]++] = j;
    }
}

/* Order what may be among the best, and keep k of it. */
static void keep_best(Best *best, int k) {
    float score[CONVNN_MOST_K];
    int32_t index[CONVNN_MOST_K], order[LANES];
    int count = best->count < k ? best->count : k;
    for (int j = best->count; j % VF_LANES; j++) best->score[j] = -INFINITY;
    rank(best->score, best->count, order);
    for (int m = 0; m < count; m++) {
        score[m] = best->score[order[m]];
        index[m] = best->index[order[m]];
    }
    memcpy(best->score, score, (size_t)count * sizeof(float));
    memcpy(best->index, index, (size_t)count * sizeof(int32_t));
    best->count = count;
}

/* Add the keys of one chunk that reach the threshold. */
static void select_best(Best *best, int k, const float *scores, int64_t count, float threshold, int64_t first,
                        int64_t skip) {
    vf limit = vf_all(threshold);
    for (int64_t at = 0; at < count; at += 4 * VF_LANES) {
        uint64_t reached = vf_at_least(vf_load(scores + at), limit);
        reached |= (uint64_t)vf_at_least(vf_load(scores + at + VF_LANES), limit) << VF_LANES;
        reached |= (uint64_t)vf_at_least(vf_load(scores + at + 2 * VF_LANES), limit) << 2 * VF_LANES;
        reached |= (uint64_t)vf_at_least(vf_load(scores + at + 3 * VF_LANES), limit) << 3 * VF_LANES;
        for (; reached; reached &= reached - 1) {
            int64_t j = at + __builtin_ctzll(reached);
            if (first + j == skip) continue;
            if (best->count == LANES) keep_best(best, k);
            best->score[best->count] = scores[j];
            best->index[best->count++] = (int32_t)(first + j);
        }
    }
    keep_best(best, k);
}

/* Find the k best of at most LANES keys, `count` of them with what fills the last vector, none of which is NaN. */
static void select_few(const float *scores, int count, int k, int64_t skip, int64_t *index) {
    float row[LANES];
    int32_t order[LANES];
    memcpy(row, scores, (size_t)count * sizeof(float));
    if (skip >= 0 && skip < count) row[skip] = -INFINITY;
    rank(row, count, order);
    for (int m = 0; m < k; m++) index[m] = order[m];
}

/* Order keys as whole numbers: excluded, then by score, then NaN. */
static inline int32_t rank_of(float score, int excluded) {
    if (excluded) return INT32_MIN;
    if (score != score) return INT32_MAX;
    score += 0.0f; /* -0 is 0 */
    int32_t bits;
    memcpy(&bits, &score, sizeof bits);
    return bits < 0 ? (int32_t)(INT32_MIN + 1 + (INT32_MAX - (bits & INT32_MAX))) : bits;
}

/* Add the keys of one chunk, whatever their scores are. */
static void select_in_total_order(Best *best, int k, const float *scores, int64_t count, int64_t first, int64_t skip,
                           const uint8_t *masked) {
    int32_t worst = INT32_MIN;
    if (best->count) memcpy(&worst, &best->score[best->count - 1], sizeof worst);
    for (int64_t j = 0; j < count; j++) {
        int excluded = first + j == skip || (masked && masked[first + j]);
        int32_t rank = rank_of(scores[j], excluded), held;
        if (best->count == k && rank <= worst) continue;
        int at = best->count < k ? best->count++ : k - 1;
        for (; at > 0; at--) {
            memcpy(&held, &best->score[at - 1], sizeof held);
            if (held >= rank) break;
            best->score[at] = best->score[at - 1];
            best->index[at] = best->index[at - 1];
        }
        memcpy(&best->score[at], &rank, sizeof rank);
        best->index[at] = (int32_t)(first + j);
        memcpy(&worst, &best->score[best->count - 1], sizeof worst);
    }
}

typedef struct {
    const struct convnn_search *problem;
    PackedKeys *images;
    int64_t first_image, panels;
    int64_t chunk, blocks, parts; /* keys and blocks of queries that are compared at a time; parts of an image */
    atomic_int failed; /* what the function returns */
} SearchTask;

/* Return the largest of absolute values; inf where one is not finite. As whole numbers: NaN > inf > the others. */
static float largest_size(const float *x, int64_t count) {
    int32_t largest = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= INT32_MAX;
        largest = bits > largest ? bits : largest;
    }
    float result;
    memcpy(&result, &largest, sizeof result);
    return result < INFINITY ? result : INFINITY;
}

/* Pack the queries first .. first + MR of an image: rows (C, MR), zeros behind the last; return the largest size. */
static float pack_queries(const struct convnn_search *p, int64_t image, int64_t first, float *rows) {
    int64_t count = p->queries - first < MR ? p->queries - first : MR;
    if (count < MR) memset(rows, 0, (size_t)(p->channels * MR) * sizeof(float));
    for (int64_t r = 0; r < count; r++) {
        int64_t from = image * p->query_stride[0] + (first + r) * p->query_stride[1];
        for (int64_t c = 0; c < p->channels; c++)
            rows[c * MR + r] = p->query[from + c * p->query_stride[2]];
    }
    return largest_size(rows, p->channels * MR);
}

static int64_t panels_of(const struct convnn_search *p) { return (p->keys + NR - 1) / NR; }

static void pack_keys(const struct convnn_search *p, int64_t image, float *panels, float *bias, PackedKeys *packed) {
    enum { T = 16 };
    int64_t count = panels_of(p), chosen = 0;
    int total_order = 0;
    for (int64_t at = 0; at < count; at++) {
        float *panel = panels + at * p->channels * NR;
        int64_t first = at * NR, here = p->keys - first < NR ? p->keys - first : NR;
        if (here < NR) memset(panel, 0, (size_t)(p->channels * NR) * sizeof(float));
        for (int64_t c0 = 0; c0 < p->channels; c0 += T) {
            int64_t c1 = p->channels - c0 < T ? p->channels : c0 + T;
            int64_t from = image * p->key_stride[0] + first * p->key_stride[1];
            for (int64_t j = 0; j < here; j++)
                for (int64_t c = c0; c < c1; c++)
                    panel[c * NR + j] = p->key[from + j * p->key_stride[1] + c * p->key_stride[2]];
        }
    }
    for (int64_t key = 0; key < (count + 4) * NR; key++) {
        float added = key >= p->keys ? -INFINITY : p->bias ? p->bias[image * p->keys + key] : 0;
        total_order |= added != added;
        bias[key] = key < p->keys && p->masked && p->masked[image * p->keys + key] ? -INFINITY : added;
        chosen += bias[key] > -INFINITY;
    }
    float largest = largest_size(panels, count * p->channels * NR);
    *packed = (PackedKeys){panels, bias, largest, total_order || chosen < p->k + (p->skip != NULL)};
}

static void pack_images(int64_t begin, int64_t end, void *context) {
    SearchTask *task = context;
    const struct convnn_search *p = task->problem;
    for (int64_t i = begin; i < end; i++)
        pack_keys(p, task->first_image + i, (float *)task->images[i].panels, (float *)task->images[i].bias,
                  &task->images[i]);
}

/* What one thread works with: BLOCKS blocks of MR queries, and the scores of one of them. */
typedef struct {
    float *rows, *scores;
    Best *best;
    float largest[BLOCKS]; /* of the absolute values of a block's queries */
} SearchMemory;

/* Search for one block of queries in one chunk of keys. */
static void search_chunk(const SearchTask *task, int64_t image, int64_t first, int64_t start, const float *rows,
                         float largest, float *scores, Best *best) {
    const struct convnn_search *p = task->problem;
    const PackedKeys *keys = &task->images[image - task->first_image];
    float lanes[MR * LANES];
    int64_t count = p->queries - first < MR ? p->queries - first : MR, stride = score_stride(task->chunk, task->panels);
    int64_t left = p->keys - start, width = left < task->chunk ? left : task->chunk, wide = (width + NR - 1) / NR;
    int k = (int)p->k, n = k + (p->skip != NULL), lane_count = lanes_for(n);
    int total_order = keys->total_order || !((double)largest * keys->largest * p->channels < 1e37);
    for (int j = 0; j < MR * LANES; j++) lanes[j] = -INFINITY;
    for (int64_t at = 0; at < wide; at++)
        score_panel(rows, keys->panels + (start / NR + at) * p->channels * NR, p->channels,
                    keys->bias + start + at * NR, scores + at * NR, stride, lanes + at * NR % lane_count);
    for (int64_t r = 0; r < count; r++) {
        float *row = scores + r * stride;
        int64_t skip = p->skip ? p->skip[first + r] : -1;
        if (total_order) {
            const uint8_t *masked = p->masked ? p->masked + image * p->keys : NULL;
            /* a key of bias -inf scores -inf, where the sum may be NaN; a masked one must not hide that */
            for (int64_t j = 0; p->bias && j < width; j++)
                if (p->bias[image * p->keys + start + j] == -INFINITY) row[j] = -INFINITY;
            select_in_total_order(&best[r], k, row, width, start, skip, masked);
            continue;
        }
        if (p->keys <= LANES) {
            select_few(row, (int)(wide * NR), k, skip, p->index + (image * p->queries + first + r) * p->k);
            continue;
        }
        for (int64_t j = wide * NR; j < wide * NR + 3 * NR; j++) row[j] = -INFINITY;
        float threshold = nth_largest(lanes + r * LANES, lane_count, n);
        if (best[r].count == k && best[r].score[k - 1] > threshold) threshold = best[r].score[k - 1];
        select_best(&best[r], k, row, wide * NR, threshold, start, skip);
    }
}

/* Search for some blocks of queries of one image: a chunk of keys stays in the cache for all of them. */
static void search_part(const SearchTask *task, int64_t image, int64_t first, SearchMemory *memory) {
    const struct convnn_search *p = task->problem;
    int64_t left = p->queries - first, queries = left < task->blocks * MR ? left : task->blocks * MR;
    for (int64_t r = 0; r < queries; r++) memory->best[r].count = 0;
    for (int64_t r = 0; r < queries; r += MR)
        memory->largest[r / MR] = pack_queries(p, image, first + r, memory->rows + r * p->channels);
    for (int64_t start = 0; start < p->keys; start += task->chunk)
        for (int64_t r = 0; r < queries; r += MR)
            search_chunk(task, image, first + r, start, memory->rows + r * p->channels, memory->largest[r / MR],
                         memory->scores, memory->best + r);
    for (int64_t r = 0; r < queries; r++)
        for (int m = 0; m < memory->best[r].count; m++)
            p->index[(image * p->queries + first + r) * p->k + m] = memory->best[r].index[m];
}

static void search_parts(int64_t begin, int64_t end, void *context) {
    SearchTask *task = context;
    const struct convnn_search *p = task->problem;
    int64_t queries = task->blocks * MR;
    size_t floats = (size_t)(queries * p->channels + MR * score_stride(task->chunk, task->panels));
    SearchMemory memory = {.best = malloc((size_t)queries * sizeof(Best) + floats * sizeof(float))};
    if (!memory.best) {
        task->failed = CONVNN_NO_MEMORY;
        return;
    }
    memory.rows = (float *)(memory.best + queries);
    memory.scores = memory.rows + queries * p->channels;
    for (int64_t i = begin; i < end; i++)
        search_part(task, task->first_image + i / task->parts, i % task->parts * queries, &memory);
    free(memory.best);
}

static int search(const struct convnn_search *p) {
    SearchTask task = {.problem = p, .panels = panels_of(p), .chunk = chunk_of(p->channels)};
    task.blocks = blocks_at_once(p->keys, task.chunk);
    task.parts = (p->queries + task.blocks * MR - 1) / (task.blocks * MR);
    int64_t size = task.panels * p->channels * NR, padded = (task.panels + 4) * NR;
    int64_t group = images_at_a_time(p->batch, size + padded);
    PackedKeys *images = malloc((size_t)group * (sizeof *images + (size_t)(size + padded) * sizeof(float)));
    if (!images) return CONVNN_NO_MEMORY;
    float *memory = (float *)(images + group);
    task.images = images;
    for (; task.first_image < p->batch && !task.failed; task.first_image += group) {
        int64_t count = p->batch - task.first_image < group ? p->batch - task.first_image : group;
        for (int64_t i = 0; i < count; i++)
            images[i] = (PackedKeys){.panels = memory + i * (size + padded), .bias = memory + i * (size + padded) + size};
        run_range(count, pack_images, &task, &task.failed);
        run_range(count * task.parts, search_parts, &task, &task.failed);
    }
    free(images);
    return task.failed;
}
