/* The training of K replicas as a job for several threads. To be included behind the kernel's own types
 * Network, Data and Scratch; the kernel defines `take_step`. */
#include "update.h"

#include <pthread.h>

/* ctypes mirrors it in replicas.py. */
typedef struct {
    const Network *network;
    const Data *data;
    const Optimizer *optimizer;
    int64_t replicas, steps, chunks, threads;
    const double *rates;               /* (steps): multiplies the learning rate */
    real *parameters, *first, *second; /* (K, stored): the weights and the optimizer's two memories */
    int64_t *taken;                    /* (K): steps taken since the start of training */
    uint8_t *active;                   /* (K): 0 once frozen or diverged */
    double *loss;                      /* (steps, K) */
    int64_t *finished;                 /* (K): chunks done */
    uint8_t *held;                     /* (K): 1 while a thread works on the replica */
    int64_t arrived, places;           /* two threads that share one replica: at the barrier; given out */
    real *gradient[2];                 /* and a part each of the gradient */
    double part_loss[2];
} Job;

/* The loss before the step; updates the replica if it is finite. `begins`: the first step of a chunk. */
static double take_step(const Job *job, const Scratch *scratch, int64_t replica, int64_t step, int begins);

static Rule rule_at(const Job *job, int64_t replica, int64_t step) {
    return rule_of(job->optimizer, replica, job->taken[replica] + 1, job->rates[step]);
}

/* Updates a replica's parameters from `start` to `end`. */
static void update(const Job *job, int64_t replica, int64_t step, int64_t start, int64_t end,
                   const real *gradient) {
    const int64_t from = replica * job->network->stored + start;
    const Rule rule = rule_at(job, replica, step);
    apply(&rule, job->parameters + from, job->first + from, job->second + from, gradient + start, end - start);
}

static void advance_chunk(const Job *job, const Scratch *scratch, int64_t replica, int64_t chunk) {
    const int64_t start = job->steps * chunk / job->chunks, end = job->steps * (chunk + 1) / job->chunks;
    for (int64_t step = start; step < end && job->active[replica]; step++) {
        const double loss = take_step(job, scratch, replica, step, step == start);
        job->loss[step * job->replicas + replica] = loss;
        if (isfinite(loss)) job->taken[replica]++;
        else job->active[replica] = 0;
    }
}

/* The replica that is furthest behind of those that nobody holds, now held; -1 if all that remains is held. */
static int64_t hold_next(Job *job) {
    for (;;) {
        int64_t next = -1, least = job->chunks;
        for (int64_t replica = 0; replica < job->replicas; replica++) {
            if (__atomic_load_n(job->held + replica, __ATOMIC_RELAXED)) continue;
            const int64_t finished = __atomic_load_n(job->finished + replica, __ATOMIC_RELAXED);
            if (finished < least) least = finished, next = replica;
        }
        if (next < 0) return -1;
        if (__atomic_exchange_n(job->held + next, 1, __ATOMIC_ACQUIRE)) continue; /* another was faster */
        if (job->finished[next] < job->chunks) return next;
        __atomic_store_n(job->held + next, 0, __ATOMIC_RELEASE);
    }
}

/* Works chunk by chunk, each time on the replica that is furthest behind, so that threads end together.
 *
 * No thread waits for another: where other programs keep the cores busy, one that is suspended holds a single
 * replica, and the rest goes on. Chunks of a replica come one after the other whoever computes them. */
static void work_through(Job *job, const Scratch *scratch) {
    for (int64_t replica; (replica = hold_next(job)) >= 0;) {
        advance_chunk(job, scratch, replica, job->finished[replica]);
        __atomic_store_n(job->finished + replica, job->finished[replica] + 1, __ATOMIC_RELAXED);
        __atomic_store_n(job->held + replica, 0, __ATOMIC_RELEASE);
    }
}
