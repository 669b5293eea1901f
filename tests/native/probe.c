/* Records what parallel_for does: the ranges, the threads that run them, and those of a call from inside a range. */
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "internal.h"

struct record {
    int64_t begin, end;
    uint64_t thread;
    int64_t inner_parts, inner_elsewhere;
};

struct log {
    _Atomic int64_t used;
    struct record *records;
};

struct inner {
    pthread_t outer;
    _Atomic int64_t parts, elsewhere;
};

static void inner_range(int64_t begin, int64_t end, void *context) {
    struct inner *inner = context;
    (void)begin, (void)end;
    inner->parts++;
    if (!pthread_equal(inner->outer, pthread_self()))
        inner->elsewhere++;
}

static void outer_range(int64_t begin, int64_t end, void *context) {
    struct log *log = context;
    struct inner inner = {.outer = pthread_self()};
    usleep(2000); /* long enough for no thread to take the part of another */
    parallel_for(0, 1000, 1, inner_range, &inner);
    log->records[log->used++] = (struct record){begin, end, (uint64_t)(uintptr_t)pthread_self(), inner.parts, inner.elsewhere};
}

CONVNN_API int64_t probe(int64_t begin, int64_t end, int64_t grain, struct record *records) {
    struct log log = {0, records};
    parallel_for(begin, end, grain, outer_range, &log);
    return log.used;
}

CONVNN_API int probe_threads(void) { return parallel_threads(); }
