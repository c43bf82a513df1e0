/* The training of K replicas as a job for several threads. To be included behind the kernel's own types
 * Network, Data and Scratch; the kernel defines `take_step`. */
#include "update.h"

#include <sched.h>

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
    int64_t next, *finished;           /* the queue: next ticket; (K) chunks finished */
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

/* Works until the queue is empty. Tickets go round the replicas chunk by chunk, so that threads end together;
 * a chunk waits for its replica's chunk before it. */
static void work_through(Job *job, const Scratch *scratch) {
    for (;;) {
        const int64_t ticket = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        const int64_t chunk = ticket / job->replicas, replica = ticket % job->replicas;
        if (chunk >= job->chunks) return;
        while (__atomic_load_n(&job->finished[replica], __ATOMIC_ACQUIRE) < chunk) sched_yield();
        advance_chunk(job, scratch, replica, chunk);
        __atomic_store_n(&job->finished[replica], chunk + 1, __ATOMIC_RELEASE);
    }
}
