/* out[r] = sum over c of a[r,c] b[r,c]. */

struct row_dots_problem {
    const float *a, *b;
    float *out;
    int64_t columns;
};

static void row_dots_range(int64_t begin, int64_t end, void *context) {
    const struct row_dots_problem *p = context;
    for (int64_t r = begin; r < end; r++) {
        const float *a = p->a + r * p->columns, *b = p->b + r * p->columns;
        vf sum = vf_zero();
        int64_t c = 0;
        for (; c + VF_LANES <= p->columns; c += VF_LANES)
            sum = vf_fma(vf_load(a + c), vf_load(b + c), sum);
        float total = vf_sum(sum);
        for (; c < p->columns; c++)
            total += a[c] * b[c];
        p->out[r] = total;
    }
}

static int row_dots(const float *a, const float *b, float *out, int64_t rows, int64_t columns) {
    struct row_dots_problem problem = {a, b, out, columns};
    int64_t grain = 16384 / (columns + 1) + 1; /* below about 16,384 products a thread is not worth its start */
    return parallel_for(0, rows, grain, row_dots_range, &problem);
}
