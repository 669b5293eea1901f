/* Aggregation by slot matrices, and its gradients.
 *
 * forward    out[n] = sum over m of rho[n,m] W_m x[I[n,m]]: the neighbours of a block of queries are held side by side,
 *            k C_in numbers a query, and multiplied with the packed matrices.
 * backward   T[j,m] = sum over the queries n whose slot m is j of rho[n,m] g[n], by an inverse index (CSR): the owner of a
 *            row adds up, in the order of n. Then dx[j] = sum over m of W_m^t T[j,m] and dW_m = sum over j of T[j,m] x[j]^t.
 */

typedef struct {
    const struct convnn_slots *p;
    float *panels;       /* the packed matrices */
    float *x, *g;        /* the rows of a group of images, where a tensor has not rows */
    int64_t first_image, count, parts;
    int32_t *starts, *entries; /* CSR a image: where the entries (n k + m) of a token start */
    float *grad_weight;  /* (parts, slots * C_out, padded(C_in)) */
    atomic_int failed; /* what the function returns */
} SlotsTask;

static int64_t blocks_of(int64_t rows) { return (rows + BLOCK - 1) / BLOCK; }

/* Pack W for the forward pass: rows (m, c), columns o. */
static void pack_forward(int64_t begin, int64_t end, void *context) {
    SlotsTask *task = context;
    const struct convnn_slots *p = task->p;
    for (int64_t at = begin; at < end; at++)
        for (int64_t m = 0; m < p->k; m++)
            for (int64_t c = 0; c < p->channels; c++)
                for (int64_t j = 0; j < NR; j++) {
                    int64_t o = at * NR + j;
                    task->panels[((at * p->k + m) * p->channels + c) * NR + j] =
                        o < p->out ? p->weight[o * p->weight_stride[0] + c * p->weight_stride[1] + m * p->weight_stride[2]] : 0;
                }
}

/* Pack W for the gradient of the values: rows (m, o), columns c. */
static void pack_backward(int64_t begin, int64_t end, void *context) {
    SlotsTask *task = context;
    const struct convnn_slots *p = task->p;
    for (int64_t at = begin; at < end; at++)
        for (int64_t m = 0; m < p->k; m++)
            for (int64_t o = 0; o < p->out; o++)
                for (int64_t j = 0; j < NR; j++) {
                    int64_t c = at * NR + j;
                    task->panels[((at * p->k + m) * p->out + o) * NR + j] =
                        c < p->channels ? p->weight[o * p->weight_stride[0] + c * p->weight_stride[1] + m * p->weight_stride[2]] : 0;
                }
}

/* Return the rows of an image, and their stride. */
static const float *rows_of(const float *data, const int64_t *stride, const float *copy, int64_t image, int64_t local,
                            int64_t rows, int64_t columns, int64_t *row_stride) {
    if (!copy) {
        *row_stride = stride[1];
        return data + image * stride[0];
    }
    *row_stride = columns;
    return copy + local * rows * columns;
}

enum { READ_ROWS = 64 };

static void read_values(int64_t begin, int64_t end, void *context) {
    SlotsTask *task = context;
    const struct convnn_slots *p = task->p;
    int64_t parts = (p->values + READ_ROWS - 1) / READ_ROWS;
    for (int64_t i = begin; i < end; i++) {
        int64_t image = i / parts, first = i % parts * READ_ROWS;
        int64_t rows = p->values - first < READ_ROWS ? p->values - first : READ_ROWS;
        read_rows(p->value + (task->first_image + image) * p->value_stride[0] + first * p->value_stride[1],
                  p->value_stride[1], p->value_stride[2], rows, p->channels,
                  task->x + (image * p->values + first) * p->channels, p->channels);
    }
}

static void read_gradients(int64_t begin, int64_t end, void *context) {
    SlotsTask *task = context;
    const struct convnn_slots *p = task->p;
    int64_t parts = (p->queries + READ_ROWS - 1) / READ_ROWS;
    for (int64_t i = begin; i < end; i++) {
        int64_t image = i / parts, first = i % parts * READ_ROWS;
        int64_t rows = p->queries - first < READ_ROWS ? p->queries - first : READ_ROWS;
        read_rows(p->grad + (task->first_image + image) * p->grad_stride[0] + first * p->grad_stride[1],
                  p->grad_stride[1], p->grad_stride[2], rows, p->out,
                  task->g + (image * p->queries + first) * p->out, p->out);
    }
}

static inline float rho_at(const struct convnn_slots *p, int64_t at) { return p->rho ? p->rho[at] : 1; }

/* The rows first .. first + BLOCK of a group of images, numbered through. */
static void forward_block(const SlotsTask *task, int64_t first, float *rows, float *out) {
    const struct convnn_slots *p = task->p;
    int64_t left = task->count * p->queries - first, count = left < BLOCK ? left : BLOCK, width = padded(p->out), stride;
    int64_t K = p->k * p->channels, blocks = (count + MR - 1) / MR;
    for (int64_t r = 0; r < count; r++) {
        int64_t local = (first + r) / p->queries;
        const float *x = rows_of(p->value, p->value_stride, task->x, task->first_image + local, local, p->values,
                                 p->channels, &stride);
        for (int64_t m = 0; m < p->k; m++) {
            int64_t at = (task->first_image * p->queries + first + r) * p->k + m;
            hold(rows, r, m * p->channels, x + p->index[at] * stride, p->channels, rho_at(p, at));
        }
    }
    memset(out, 0, (size_t)(blocks * MR * width) * sizeof(float));
    add_block(rows, blocks, K, task->panels, K, 0, out, width);
    for (int64_t r = 0; r < count;) { /* image by image */
        int64_t image = (first + r) / p->queries, row = (first + r) % p->queries;
        int64_t part = p->queries - row < count - r ? p->queries - row : count - r;
        write_rows(p->result + (task->first_image + image) * p->result_stride[0] + row * p->result_stride[1],
                   p->result_stride[1], p->result_stride[2], part, p->out, out + r * width, width);
        r += part;
    }
}

static void forward_blocks(int64_t begin, int64_t end, void *context) {
    SlotsTask *task = context;
    const struct convnn_slots *p = task->p;
    int64_t held = held_floats(p->k * p->channels);
    float *memory = calloc((size_t)(held + BLOCK * padded(p->out)), sizeof(float));
    if (!memory) { task->failed = CONVNN_NO_MEMORY; return; }
    for (int64_t i = begin; i < end; i++)
        forward_block(task, i * BLOCK, memory, memory + held);
    free(memory);
}

static int slot_mix(const struct convnn_slots *p) {
    SlotsTask task = {.p = p};
    int64_t K = p->k * p->channels;
    int copied = p->value_stride[2] != 1;
    int64_t group = copied ? images_at_a_time(p->batch, p->values * p->channels) : p->batch;
    float *memory = malloc((size_t)(padded(p->out) * K + (copied ? group * p->values * p->channels : 0)) * sizeof(float));
    if (!memory) return CONVNN_NO_MEMORY;
    task.panels = memory;
    task.x = copied ? memory + padded(p->out) * K : NULL;
    run_range(padded(p->out) / NR, pack_forward, &task, &task.failed);
    for (; task.first_image < p->batch && !task.failed; task.first_image += group) {
        task.count = p->batch - task.first_image < group ? p->batch - task.first_image : group;
        if (copied) run_range(task.count * ((p->values + READ_ROWS - 1) / READ_ROWS), read_values, &task, &task.failed);
        run_range(blocks_of(task.count * p->queries), forward_blocks, &task, &task.failed);
    }
    free(memory);
    return task.failed;
}
