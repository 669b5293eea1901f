/* The gradients of the aggregation by slot matrices: see slots.h. */

/* Invert the index of an image: starts (values + 1), entries n k + m, ascending within a token. */
static void invert_index(const int64_t *index, int64_t count, int64_t values, int32_t *starts, int32_t *entries) {
    memset(starts, 0, (size_t)(values + 1) * sizeof *starts);
    for (int64_t e = 0; e < count; e++) starts[index[e] + 1]++;
    for (int64_t j = 0; j < values; j++) starts[j + 1] += starts[j];
    for (int64_t e = 0; e < count; e++) entries[starts[index[e]]++] = (int32_t)e;
    for (int64_t j = values; j > 0; j--) starts[j] = starts[j - 1];
    starts[0] = 0;
}

static void invert_images(int64_t begin, int64_t end, void *context) {
    SlotsTask *task = context;
    const struct convnn_slots *p = task->p;
    int64_t count = p->queries * p->k;
    for (int64_t i = begin; i < end; i++)
        invert_index(p->index + (task->first_image + i) * count, count, p->values, task->starts + i * (p->values + 1),
                     task->entries + i * count);
}

/* Slots worked on at a time: T of BLOCK tokens stays in the cache. */
static int64_t slots_at_a_time(const struct convnn_slots *p) {
    int64_t most = (3 << 15) / (BLOCK * p->out);
    return most < 1 ? 1 : most < p->k ? most : p->k;
}

typedef struct {
    float *T;               /* (BLOCK, slots C_out), held for a product */
    float *dx, *x, *tile;   /* (BLOCK, padded(C_in)), the same, (MR, padded(C_in)) */
} BackwardMemory;

/* T of the rows first .. first + count of a group of images, numbered through, and some slots. */
static void sum_gradients(const SlotsTask *task, int64_t first, int64_t count, int64_t slot, int64_t slots, float *T) {
    const struct convnn_slots *p = task->p;
    int64_t stride, pairs = p->queries * p->k;
    for (int64_t k = 0; k < slots * p->out; k += SPAN) memset(held(T, 0, k), 0, (size_t)(count * STRIDE) * sizeof(float));
    for (int64_t r = 0; r < count; r++) {
        int64_t local = (first + r) / p->values, j = (first + r) % p->values, image = task->first_image + local;
        const float *g = rows_of(p->grad, p->grad_stride, task->g, image, local, p->queries, p->out, &stride);
        const int32_t *starts = task->starts + local * (p->values + 1), *entries = task->entries + local * pairs;
        for (int32_t e = starts[j]; e < starts[j + 1]; e++) {
            int64_t n = entries[e] / (int32_t)p->k, m = entries[e] % (int32_t)p->k - slot;
            if (m < 0 || m >= slots) continue;
            add_held(T, r, m * p->out, g + n * stride, p->out, rho_at(p, image * pairs + entries[e]));
        }
    }
}

/* grad_weight[row] += sum over j of T[j,row] x[j], for row < K: MR rows at a time, the last ones through a copy, since
 * what is behind them belongs to other slots. */
static void add_outer(BackwardMemory *memory, int64_t K, int64_t wide, int64_t count, float *grad_weight) {
    for (int64_t row = 0; row < K; row += MR) {
        int64_t rows = K - row < MR ? K - row : MR;
        float *to = grad_weight + row * wide, *tile = rows < MR ? memory->tile : to;
        if (rows < MR) memcpy(tile, to, (size_t)(rows * wide) * sizeof(float));
        for (int64_t column = 0; column < wide; column += NR)
            add_transposed(held(memory->T, 0, row), STRIDE, memory->x + column, wide, count, tile + column, wide);
        if (rows < MR) memcpy(to, tile, (size_t)(rows * wide) * sizeof(float));
    }
}

static void backward_block(const SlotsTask *task, int64_t first, BackwardMemory *memory, float *grad_weight) {
    const struct convnn_slots *p = task->p;
    int64_t left = task->count * p->values - first, count = left < BLOCK ? left : BLOCK, wide = padded(p->channels);
    int64_t blocks = (count + MR - 1) / MR, step = slots_at_a_time(p), stride;
    for (int64_t r = 0; p->grad_weight && r < count; r++) { /* whole panels are read: zeros behind the last channel */
        int64_t local = (first + r) / p->values;
        const float *x = rows_of(p->value, p->value_stride, task->x, task->first_image + local, local, p->values,
                                 p->channels, &stride);
        int64_t j = (first + r) % p->values;
        const int32_t *starts = task->starts + local * (p->values + 1);
        if (starts[j] < starts[j + 1]) memcpy(memory->x + r * wide, x + j * stride, (size_t)p->channels * sizeof(float));
        else memset(memory->x + r * wide, 0, (size_t)p->channels * sizeof(float)); /* it may be NaN: 0 NaN is no 0 */
    }
    if (p->grad_value) memset(memory->dx, 0, (size_t)(BLOCK * wide) * sizeof(float));
    for (int64_t slot = 0; slot < p->k; slot += step) {
        int64_t slots = p->k - slot < step ? p->k - slot : step, K = slots * p->out;
        sum_gradients(task, first, count, slot, slots, memory->T);
        if (p->grad_value)
            add_block(memory->T, blocks, K, task->panels, p->k * p->out, slot * p->out, memory->dx, wide);
        if (p->grad_weight) add_outer(memory, K, wide, count, grad_weight + slot * p->out * wide);
    }
    for (int64_t r = 0; p->grad_value && r < count;) {
        int64_t image = task->first_image + (first + r) / p->values, row = (first + r) % p->values;
        int64_t part = p->values - row < count - r ? p->values - row : count - r;
        write_rows(p->grad_value + image * p->grad_value_stride[0] + row * p->grad_value_stride[1],
                   p->grad_value_stride[1], p->grad_value_stride[2], part, p->channels, memory->dx + r * wide, wide);
        r += part;
    }
}

static int64_t grad_weight_floats(const struct convnn_slots *p) { return p->k * p->out * padded(p->channels); }

static void backward_parts(int64_t begin, int64_t end, void *context) {
    SlotsTask *task = context;
    const struct convnn_slots *p = task->p;
    int64_t width = slots_at_a_time(p) * p->out, wide = padded(p->channels);
    int64_t size = held_floats(width);
    float *memory = calloc((size_t)(size + (2 * BLOCK + MR) * wide), sizeof(float));
    if (!memory) { task->failed = CONVNN_NO_MEMORY; return; }
    float *dx = memory + size;
    BackwardMemory parts = {memory, dx, dx + BLOCK * wide, dx + 2 * BLOCK * wide};
    int64_t total = blocks_of(task->count * p->values);
    for (int64_t part = begin; part < end; part++)
        for (int64_t i = total * part / task->parts; i < total * (part + 1) / task->parts; i++)
            backward_block(task, i * BLOCK, &parts, task->grad_weight + part * grad_weight_floats(p));
    free(memory);
}

/* Add the parts' gradients of the matrices, in order, for some outputs. */
static void reduce_weight(int64_t begin, int64_t end, void *context) {
    SlotsTask *task = context;
    const struct convnn_slots *p = task->p;
    int64_t wide = padded(p->channels), size = grad_weight_floats(p), slot = p->out * wide;
    const int64_t *stride = p->grad_weight_stride;
    for (int64_t o = begin; o < end; o++) {
        float *restrict total = task->grad_weight + o * wide, *to = p->grad_weight + o * stride[0];
        for (int64_t part = 1; part < task->parts; part++)
            for (int64_t m = 0; m < p->k; m++)
                for (int64_t c = 0; c < p->channels; c++) total[m * slot + c] += total[part * size + m * slot + c];
        for (int64_t c = 0; c < p->channels; c++) /* the slots are neighbours in memory */
            for (int64_t m = 0; m < p->k; m++) to[c * stride[1] + m * stride[2]] = total[m * slot + c];
    }
}

/* grad_rho[n,m] = <W_m^t g[n], x[I[n,m]]> */
static void rho_blocks(int64_t begin, int64_t end, void *context) {
    SlotsTask *task = context;
    const struct convnn_slots *p = task->p;
    int64_t blocks = blocks_of(p->queries), wide = padded(p->channels), size = held_floats(p->out), x_stride, g_stride;
    float *rows = calloc((size_t)(size + BLOCK * wide), sizeof(float));
    if (!rows) { task->failed = CONVNN_NO_MEMORY; return; }
    float *projected = rows + size;
    for (int64_t i = begin; i < end; i++) {
        int64_t local = i / blocks, image = task->first_image + local, first = i % blocks * BLOCK;
        int64_t count = p->queries - first < BLOCK ? p->queries - first : BLOCK;
        const float *x = rows_of(p->value, p->value_stride, task->x, image, local, p->values, p->channels, &x_stride);
        const float *g = rows_of(p->grad, p->grad_stride, task->g, image, local, p->queries, p->out, &g_stride);
        for (int64_t r = 0; r < count; r++) hold(rows, r, 0, g + (first + r) * g_stride, p->out, 1);
        for (int64_t m = 0; m < p->k; m++) {
            memset(projected, 0, (size_t)(BLOCK * wide) * sizeof(float));
            add_block(rows, (count + MR - 1) / MR, p->out, task->panels, p->k * p->out, m * p->out, projected, wide);
            for (int64_t r = 0; r < count; r++) {
                int64_t at = (image * p->queries + first + r) * p->k + m;
                p->grad_rho[at] = dot(projected + r * wide, x + p->index[at] * x_stride, p->channels);
            }
        }
    }
    free(rows);
}

static int slot_mix_backward(const struct convnn_slots *p) {
    if (outside(p->index, p->batch * p->queries * p->k, p->values)) return CONVNN_BAD_INDEX;
    SlotsTask task = {.p = p, .transposed = 1};
    int copy_x = p->value_stride[2] != 1, copy_g = p->grad_stride[2] != 1;
    int64_t x_size = copy_x ? p->values * p->channels : 0, g_size = copy_g ? p->queries * p->out : 0;
    int64_t csr = (p->values + 1 + p->queries * p->k + 1) / 2 * 2;
    int64_t group = images_at_a_time(p->batch, x_size + g_size + csr), panels = padded(p->channels) * p->k * p->out;
    int64_t needed = p->grad_weight ? grad_weight_floats(p) : 0;
    task.parts = parallel_threads();
    float *memory = malloc((size_t)(panels + group * (x_size + g_size + csr)) * sizeof(float));
    task.grad_weight = calloc((size_t)(needed * task.parts + 1), sizeof(float));
    if (memory && task.grad_weight) {
        task.panels = memory;
        task.x = copy_x ? memory + panels : NULL;
        task.g = copy_g ? memory + panels + group * x_size : NULL;
        task.starts = (int32_t *)(memory + panels + group * (x_size + g_size));
        task.entries = task.starts + group * (p->values + 1);
        run_range(padded(p->channels) / NR, pack_slots, &task, &task.failed);
        for (; task.first_image < p->batch && !task.failed; task.first_image += group) {
            task.count = p->batch - task.first_image < group ? p->batch - task.first_image : group;
            if (copy_x) copy_values(&task);
            if (copy_g) {
                Copy copy = {p->grad, p->grad_stride, task.first_image, p->queries, p->out, task.g};
                run_range(task.count * parts_of(p->queries), copy_parts, &copy, &task.failed);
            }
            if (p->grad_value || p->grad_weight) {
                run_range(task.count, invert_images, &task, &task.failed);
                run_range(task.parts, backward_parts, &task, &task.failed);
            }
            if (p->grad_rho) run_range(task.count * blocks_of(p->queries), rho_blocks, &task, &task.failed);
        }
        if (p->grad_weight && !task.failed) run_range(p->out, reduce_weight, &task, &task.failed);
    } else
        task.failed = CONVNN_NO_MEMORY;
    free(memory);
    free(task.grad_weight);
    return task.failed;
}
