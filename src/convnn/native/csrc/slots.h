/* Aggregation by slot matrices, and its gradients.
 *
 * forward    out[n] = sum over m of rho[n,m] W_m x[I[n,m]]: the neighbours of a block of queries are held side by side,
 *            k C_in numbers a query, and multiplied with the packed matrices.
 * backward   T[j,m] = sum over the queries n whose slot m is j of rho[n,m] g[n], by an inverse index (CSR): the owner of a
 *            row adds up, in the order of n. Then dx[j] = sum over m of W_m^t T[j,m] and dW_m = sum over j of T[j,m] x[j]^t.
 */

typedef struct {
    const struct convnn_slots *p;
    int transposed; /* the matrices are packed for the gradient of the values */
    float *panels;
    float *x, *g; /* copies of the images worked on, where the columns of a tensor are not contiguous */
    int64_t first_image, count, parts;
    int32_t *starts, *entries; /* CSR of each image: where the entries n k + m of a token start */
    float *grad_weight; /* (parts, slots * C_out, padded(C_in)) */
    atomic_int failed; /* what the function returns */
} SlotsTask;

static int64_t blocks_of(int64_t rows) { return (rows + BLOCK - 1) / BLOCK; }

/* Pack the matrices for a product with rows of (m, c) or, for the gradient of the values, of (m, o): some rows at a
 * time, so that the numbers of all slots, which are neighbours in memory, stay in the cache for all slots. */
static void pack_slots(int64_t begin, int64_t end, void *context) {
    enum { T = 16 };
    SlotsTask *task = context;
    const struct convnn_slots *p = task->p;
    int64_t rows = task->transposed ? p->out : p->channels, columns = task->transposed ? p->channels : p->out;
    int64_t row = p->weight_stride[!task->transposed], column = p->weight_stride[task->transposed];
    for (int64_t at = begin; at < end; at++) {
        int64_t first = at * NR, here = columns - first < NR ? columns - first : NR;
        for (int64_t r0 = 0; r0 < rows; r0 += T)
            for (int64_t m = 0; m < p->k; m++)
                for (int64_t r = r0; r < r0 + T && r < rows; r++) {
                    const float *from = p->weight + r * row + first * column + m * p->weight_stride[2];
                    float *restrict to = task->panels + ((at * p->k + m) * rows + r) * NR;
                    for (int64_t j = 0; j < here; j++) to[j] = from[j * column];
                    for (int64_t j = here; j < NR; j++) to[j] = 0;
                }
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

/* A tensor (B, rows, columns) whose images are copied to rows. */
typedef struct {
    const float *from;
    const int64_t *stride;
    int64_t first_image, rows, columns;
    float *to;
} Copy;

enum { COPIED_ROWS = 64 /* rows that one thread copies at a time */ };

static int64_t parts_of(int64_t rows) { return (rows + COPIED_ROWS - 1) / COPIED_ROWS; }

static void copy_parts(int64_t begin, int64_t end, void *context) {
    const Copy *copy = context;
    for (int64_t i = begin; i < end; i++) {
        int64_t image = i / parts_of(copy->rows), first = i % parts_of(copy->rows) * COPIED_ROWS;
        int64_t rows = copy->rows - first < COPIED_ROWS ? copy->rows - first : COPIED_ROWS;
        const float *from = copy->from + (copy->first_image + image) * copy->stride[0] + first * copy->stride[1];
        read_rows(from, copy->stride[1], copy->stride[2], rows, copy->columns,
                  copy->to + (image * copy->rows + first) * copy->columns, copy->columns);
    }
}

/* Copy the values of the images that a task works on. */
static void copy_values(SlotsTask *task) {
    const struct convnn_slots *p = task->p;
    Copy copy = {p->value, p->value_stride, task->first_image, p->values, p->channels, task->x};
    run_range(task->count * parts_of(p->values), copy_parts, &copy, &task->failed);
}

static inline float rho_at(const struct convnn_slots *p, int64_t at) { return p->rho ? p->rho[at] : 1; }

/* out (count, width) = the bias and the added rows of the queries `row` and following, numbered through the batch. */
static void begin_with(const struct convnn_slots *p, int64_t row, int64_t count, float *out, int64_t width) {
    for (int64_t r = 0; r < count; r++, row++) {
        const float *table = p->added + row / p->queries * p->added_rows * p->out, *from[ROWS], *start = p->bias;
        int64_t m = 0;
        do {
            int64_t count_of = p->added_k - m < ROWS ? p->added_k - m : ROWS;
            for (int64_t i = 0; i < count_of; i++)
                from[i] = table + (p->added_index[row * p->added_k + m + i] * p->added_k + m + i) * p->out;
            sum_rows(out + r * width, start, from, NULL, count_of, p->out);
            start = out + r * width;
            m += count_of;
        } while (m < p->added_k);
    }
}

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
    begin_with(p, task->first_image * p->queries + first, count, out, width);
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
    int64_t size = held_floats(p->k * p->channels);
    float *memory = calloc((size_t)(size + BLOCK * padded(p->out)), sizeof(float));
    if (!memory) { task->failed = CONVNN_NO_MEMORY; return; }
    for (int64_t i = begin; i < end; i++)
        forward_block(task, i * BLOCK, memory, memory + size);
    free(memory);
}

static int slot_mix(const struct convnn_slots *p) {
    int64_t queries = p->batch * p->queries;
    if (outside(p->index, queries * p->k, p->values)) return CONVNN_BAD_INDEX;
    if (p->added_k && outside(p->added_index, queries * p->added_k, p->added_rows / p->added_k)) return CONVNN_BAD_INDEX;
    SlotsTask task = {.p = p};
    int64_t K = p->k * p->channels;
    int copied = p->value_stride[2] != 1;
    int64_t group = copied ? images_at_a_time(p->batch, p->values * p->channels) : p->batch;
    float *memory = malloc((size_t)(padded(p->out) * K + (copied ? group * p->values * p->channels : 0)) * sizeof(float));
    if (!memory) return CONVNN_NO_MEMORY;
    task.panels = memory;
    task.x = copied ? memory + padded(p->out) * K : NULL;
    run_range(padded(p->out) / NR, pack_slots, &task, &task.failed);
    for (; task.first_image < p->batch && !task.failed; task.first_image += group) {
        task.count = p->batch - task.first_image < group ? p->batch - task.first_image : group;
        if (copied) copy_values(&task);
        run_range(blocks_of(task.count * p->queries), forward_blocks, &task, &task.failed);
    }
    free(memory);
    return task.failed;
}
