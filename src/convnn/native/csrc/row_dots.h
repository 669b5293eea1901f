/* out[r] = sum over c of a[r,c] b[r,c]. */

struct row_dots_problem {
    const float *a, *b;
    float *out;
    int64_t columns;
};

static float dot(const float *a, const float *b, int64_t count) {
    vf sum = vf_zero();
    int64_t c = 0;
    for (; c + VF_LANES <= count; c += VF_LANES)
        sum = vf_fma(vf_load(a + c), vf_load(b + c), sum);
    float total = vf_sum(sum);
    for (; c < count; c++)
        total += a[c] * b[c];
    return total;
}

static void row_dots_range(int64_t begin, int64_t end, void *context) {
    const struct row_dots_problem *p = context;
    for (int64_t r = begin; r < end; r++)
        p->out[r] = dot(p->a + r * p->columns, p->b + r * p->columns, p->columns);
}

static int row_dots(const float *a, const float *b, float *out, int64_t rows, int64_t columns) {
    struct row_dots_problem problem = {a, b, out, columns};
    int64_t grain = 16384 / (columns + 1) + 1; /* below about 16,384 products a thread is not worth its start */
    return parallel_for(0, rows, grain, row_dots_range, &problem);
}
