/* parallel_for: on PyTorch's threads where their address is known, on threads of its own elsewhere.
 * Threads of its own live as long as one call: nothing of them is left that a fork could copy in a wrong state, and
 * calls from several threads share nothing. Compiled without any level's flags. */
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

#include "internal.h"

enum { MOST_THREADS = 256 };

typedef int32_t (*torch_parallel_for)(int64_t, int64_t, int64_t, range_function, void *);
typedef int32_t (*torch_get_num_threads)(uint32_t *);

static _Atomic(torch_parallel_for) on_torch;
static _Atomic(torch_get_num_threads) torch_threads;
static _Thread_local int own_threads = 1; /* of a thread, as PyTorch's number is */
static _Thread_local int inside;          /* this thread runs a part of a range */

void convnn_use_torch(void *parallel_for_address, void *get_num_threads) {
    atomic_store(&on_torch, (torch_parallel_for)parallel_for_address);
    atomic_store(&torch_threads, (torch_get_num_threads)get_num_threads);
}

void convnn_set_threads(int threads) { own_threads = threads < 1 ? 1 : threads; }

int convnn_threads(void) {
    torch_get_num_threads get = atomic_load(&torch_threads);
    uint32_t count;
    if (get && get(&count) == 0 && count >= 1)
        return (int)count;
    return own_threads;
}

int parallel_threads(void) { return inside ? 1 : convnn_threads(); }

struct part {
    int64_t begin, end;
    range_function range;
    void *context;
};

static void run_part(const struct part *part) {
    inside = 1;
    part->range(part->begin, part->end, part->context);
    inside = 0;
}

static void *run_thread(void *part) {
    run_part(part);
    return NULL;
}

static int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

static void on_own_threads(const struct part *whole, int64_t count) {
    struct part parts[MOST_THREADS];
    pthread_t threads[MOST_THREADS];
    int started[MOST_THREADS];
    int64_t items = whole->end - whole->begin, size = ceiling(items, count);
    count = ceiling(items, size);
    for (int64_t i = 0; i < count; i++) {
        parts[i] = *whole;
        parts[i].begin = whole->begin + i * size;
        parts[i].end = i + 1 < count ? parts[i].begin + size : whole->end;
        started[i] = i > 0 && pthread_create(&threads[i], NULL, run_thread, &parts[i]) == 0;
    }
    for (int64_t i = 0; i < count; i++)
        if (!started[i]) /* the first part, and those for which the system gave no thread */
            run_part(&parts[i]);
    for (int64_t i = 0; i < count; i++)
        if (started[i])
            pthread_join(threads[i], NULL);
}

int parallel_for(int64_t begin, int64_t end, int64_t grain, range_function range, void *context) {
    if (begin >= end)
        return CONVNN_OK;
    grain = grain < 1 ? 1 : grain;
    int64_t most = ceiling(end - begin, grain), count = parallel_threads();
    count = count < most ? count : most;
    count = count < MOST_THREADS ? count : MOST_THREADS;
    if (count <= 1) {
        range(begin, end, context);
        return CONVNN_OK;
    }
    torch_parallel_for run = atomic_load(&on_torch);
    if (run)
        return run(begin, end, grain, range, context) == 0 ? CONVNN_OK : CONVNN_NO_THREADS;
    struct part whole = {begin, end, range, context};
    on_own_threads(&whole, count);
    return CONVNN_OK;
}
