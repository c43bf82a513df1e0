/* Dense networks with products in bfloat16 on a processor's matrix tiles (AMX): all steps in one call.
 *
 * A network is a chain of dense layers, each but the last with or without a ReLU behind it. The loss is the mean
 * cross-entropy of the softmax over the samples whose label counts. Weights, sums, biases, the softmax, gradients
 * and the optimizer are float32; only the factors of products are rounded to bfloat16, as under PyTorch's
 * autocast. One step is
 *
 *     forward     a_l         = relu(W_l a_{l-1} + b_l)                 l = 1 .. L
 *     backward    delta_{l-1} = W_l^T delta_l * (a_{l-1} > 0)           l = L .. 2
 *     gradient    dW_l        = delta_l a_{l-1}^T,  db_l = delta_l 1    l = L .. 1
 *
 * Every product is cut into squares of 32 x 32 results. The gradient of a square goes from the tiles straight
 * into the optimizer: it is never stored, unless the samples come in several slabs.
 *
 * One thread at a time computes a replica, always in the same order: its numbers depend neither on the number of
 * replicas nor on the number of threads.
 */
#include "blocks.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__linux__)
#include "tiles.h"

#include <sys/syscall.h>
#include <unistd.h>

enum { MOST_LAYERS = 64, UNCOUNTED = -100, PIECES = 4 };

/* ctypes mirrors these in bfloat16.py. */
typedef struct {
    int64_t inputs, outputs, relu;
    int64_t weights, bias; /* where they start among the parameters; bias -1: none */
} Layer;

typedef struct {
    int64_t layers, stored;
    int64_t slab, slabs; /* most samples at once, a multiple of 32; slabs > 1: gradients are added up */
    const Layer *layer;
} Network;

typedef struct {
    int64_t samples, per_replica_targets;
    const half_word *x;     /* (samples, inputs) */
    const int64_t *labels;  /* (K or 1, samples) */
    const int64_t *indices; /* (steps, K, batch), or null for all samples in order */
    int64_t batch;
} Data;

typedef struct { /* what a layer reads and gives, for one slab; the letters are explained above */
    half_word *input_b;   /* B (inputs, samples): forward */
    half_word *input_t;   /* B (samples, inputs): gradient */
    half_word *input_a;   /* A (inputs, samples): where the ReLU let something through */
    half_word *delta_a;   /* A (outputs, samples): gradient */
    half_word *delta_b;   /* B (outputs, samples): backward */
    half_word *weights_a; /* A (outputs, inputs): forward */
    half_word *weights_t; /* A (inputs, outputs): backward */
    real *bias, *bias_gradient;
} Place;

typedef struct { /* a thread's memory */
    Place place[MOST_LAYERS];
    real *square;   /* (32, 32) */
    real *scores;   /* (outputs of the last layer, samples), padded: scores, then their deltas */
    real *gradient; /* (stored), for several slabs */
} Scratch;

#include "job.h"

/* ---- weights ------------------------------------------------------------------------------------------- */

static void store_weights(const Layer *l, const Place *p, const __m512i *row, int64_t top, int64_t left) {
    store_rows(row, p->weights_a, top, left, padded(l->inputs));
    if (p->weights_t) store_transposed(row, p->weights_t, top, left, padded(l->outputs));
}

INLINE __m512i read_weights(const real *from, int64_t count) {
    const __mmask32 there = first(count);
    return rounded(_mm512_maskz_loadu_ps((__mmask16)there, from),
                   _mm512_maskz_loadu_ps((__mmask16)(there >> 16), from + 16));
}

/* Rounds all of a replica's weights. */
static void take_weights(const Network *n, const Scratch *scratch, const real *parameters) {
    for (const Layer *l = n->layer; l < n->layer + n->layers; l++) {
        const Place *p = scratch->place + (l - n->layer);
        const real *w = parameters + l->weights;
        for (int64_t top = 0; top < padded(l->outputs); top += SIDE)
            for (int64_t left = 0; left < padded(l->inputs); left += SIDE) {
                __m512i row[SIDE];
                for (int64_t r = 0; r < SIDE; r++)
                    row[r] = read_weights(w + (top + r) * l->inputs + left,
                                          top + r < l->outputs ? l->inputs - left : 0);
                store_weights(l, p, row, top, left);
            }
        for (int64_t o = 0; o < l->outputs; o++) p->bias[o] = l->bias < 0 ? 0 : parameters[l->bias + o];
    }
}

/* ---- a network on one slab of samples ------------------------------------------------------------------ */

/* The samples of `index`, or of `start` and on where it is null; zeros behind them. */
static void gather(const Network *n, const Scratch *scratch, const Data *d, const int64_t *index, int64_t start,
                   int64_t samples, int train) {
    const int64_t inputs = n->layer[0].inputs, width = padded(samples), depth = padded(inputs);
    const Place *p = scratch->place;
    for (int64_t top = 0; top < width; top += SIDE) {
        const half_word *from[SIDE];
        for (int64_t r = 0; r < SIDE && top + r < samples; r++)
            from[r] = d->x + inputs * (index ? index[top + r] : start + top + r);
        for (int64_t left = 0; left < depth; left += SIDE) {
            __m512i row[SIDE];
            const __mmask32 there = first(inputs - left);
            for (int64_t r = 0; r < SIDE; r++)
                row[r] = top + r < samples ? _mm512_maskz_loadu_epi16(there, from[r] + left)
                                           : _mm512_setzero_si512();
            store_turned(row, p->input_b, top, left, depth);
            if (train) store_pairs(row, p->input_t, top, left, width);
        }
    }
}

static void forward(const Network *n, const Scratch *scratch, int64_t samples, int train) {
    const int64_t width = padded(samples);
    for (int64_t place = 0; place < n->layers; place++) {
        const Layer *l = n->layer + place;
        const Place *p = scratch->place + place;
        const int64_t depth = padded(l->inputs), height = padded(l->outputs), last = place == n->layers - 1;
        const __m512 least = _mm512_set1_ps(l->relu ? 0.0f : -INFINITY);
        for (int64_t top = 0; top < height; top += SIDE)
            for (int64_t left = 0; left < width; left += SIDE) {
                multiply(tile_at(p->weights_a, top, 0, depth), tile_at(p->input_b, left, 0, depth), depth,
                         scratch->square);
                __m512i row[SIDE];
                for (int64_t r = 0; r < SIDE; r++) {
                    const __m512 bias = _mm512_set1_ps(p->bias[top + r]);
                    const __m512 low = _mm512_add_ps(_mm512_load_ps(scratch->square + r * SIDE), bias);
                    const __m512 high = _mm512_add_ps(_mm512_load_ps(scratch->square + r * SIDE + 16), bias);
                    if (last) {
                        _mm512_storeu_ps(scratch->scores + (top + r) * width + left, low);
                        _mm512_storeu_ps(scratch->scores + (top + r) * width + left + 16, high);
                    } else /* in this order the maximum of a NaN stays one */
                        row[r] = rounded(_mm512_max_ps(least, low), _mm512_max_ps(least, high));
                }
                if (last) continue;
                store_pairs(row, p[1].input_b, top, left, height);
                if (!train) continue;
                store_rows(row, p[1].input_a, top, left, width);
                store_turned(row, p[1].input_t, top, left, width);
            }
    }
}

/* Turns scores into deltas; returns the sum of the losses of the samples that count. */
static double softmax_delta(const Network *n, const Scratch *scratch, const int64_t *labels, int64_t samples,
                            real factor) {
    const int64_t classes = n->layer[n->layers - 1].outputs, width = padded(samples);
    real *z = scratch->scores;
    double total = 0;
    for (int64_t s = 0; s < width; s++) {
        const int64_t label = s < samples ? labels[s] : UNCOUNTED;
        if (label == UNCOUNTED) {
            for (int64_t c = 0; c < classes; c++) z[c * width + s] = 0;
            continue;
        }
        real most = z[s], mass = 0;
        const real own = z[label * width + s];
        for (int64_t c = 1; c < classes; c++) most = z[c * width + s] > most ? z[c * width + s] : most;
        for (int64_t c = 0; c < classes; c++) mass += z[c * width + s] = expf(z[c * width + s] - most);
        total += log((double)mass) + (double)most - (double)own;
        for (int64_t c = 0; c < classes; c++)
            z[c * width + s] = factor * (z[c * width + s] / mass - (real)(c == label));
    }
    for (int64_t c = classes; c < padded(classes); c++)
        for (int64_t s = 0; s < width; s++) z[c * width + s] = 0;
    return total;
}

/* Stores a square of a layer's deltas, and adds up its biases' gradients. `sign`: the layer's outputs as tiles
 * of A, whose zeros let nothing through; or null. */
INLINE void store_delta(const Layer *l, const Place *p, const real *from, int64_t stride, half_word *sign,
                        int64_t top, int64_t left, int64_t width) {
    half_word *const upper = sign ? tile_at(sign, top, left, width) : 0;
    half_word *const lower = sign ? tile_at(sign, top + 16, left, width) : 0;
    __m512i row[SIDE];
    for (int64_t r = 0; r < SIDE; r++) {
        __mmask32 through = 0xffffffffu;
        if (sign) {
            const __m512i value = _mm512_loadu_si512((r < 16 ? upper : lower) + 32 * (r % 16));
            through = _mm512_test_epi16_mask(value, value);
        }
        const __m512 low = _mm512_maskz_loadu_ps((__mmask16)through, from + r * stride);
        const __m512 high = _mm512_maskz_loadu_ps((__mmask16)(through >> 16), from + r * stride + 16);
        p->bias_gradient[top + r] += _mm512_reduce_add_ps(_mm512_add_ps(low, high));
        row[r] = rounded(low, high);
    }
    store_rows(row, p->delta_a, top, left, width);
    if (p->delta_b) store_pairs(row, p->delta_b, top, left, padded(l->outputs));
}

/* The deltas of the layer before. */
static void backward(const Network *n, const Scratch *scratch, int64_t place, int64_t width) {
    const Layer *l = n->layer + place, *before = l - 1;
    const Place *p = scratch->place + place;
    const int64_t depth = padded(l->outputs);
    for (int64_t top = 0; top < padded(l->inputs); top += SIDE)
        for (int64_t left = 0; left < width; left += SIDE) {
            multiply(tile_at(p->weights_t, top, 0, depth), tile_at(p->delta_b, left, 0, depth), depth,
                     scratch->square);
            store_delta(before, p - 1, scratch->square, SIDE, before->relu ? p->input_a : 0, top, left, width);
        }
}

/* ---- one step ------------------------------------------------------------------------------------------ */

typedef struct { /* the optimizer of one replica */
    Rule rule;
    real *w, *m, *v;
    real *sum; /* of the gradients of all slabs, or null where there is one */
    int begins, ends;
} Optimization;

/* Adds the gradients of a square to those of the slabs before; behind the last slab, updates its weights. */
static void update_square(const Layer *l, const Place *p, const Optimization *o, real *square, int64_t top,
                          int64_t left) {
    const int64_t count = l->inputs - left < SIDE ? l->inputs - left : SIDE;
    __m512i row[SIDE];
    for (int64_t r = 0; r < SIDE; r++) {
        const int64_t at = l->weights + (top + r) * l->inputs + left;
        real *g = square + r * SIDE;
        row[r] = _mm512_setzero_si512();
        if (top + r >= l->outputs) continue;
        if (!o->begins)
            for (int64_t c = 0; c < count; c++) g[c] += o->sum[at + c];
        if (!o->ends) {
            memcpy(o->sum + at, g, count * sizeof(real));
            continue;
        }
        if (count == SIDE) apply(&o->rule, o->w + at, o->m + at, o->v + at, g, SIDE);
        else apply(&o->rule, o->w + at, o->m + at, o->v + at, g, count);
        row[r] = read_weights(o->w + at, count);
    }
    if (o->ends) store_weights(l, p, row, top, left);
}

/* A layer's gradient, and what follows from it. */
static void learn(const Layer *l, const Place *p, const Scratch *scratch, const Optimization *o, int64_t width) {
    for (int64_t top = 0; top < padded(l->outputs); top += SIDE)
        for (int64_t left = 0; left < padded(l->inputs); left += SIDE) {
            multiply(tile_at(p->delta_a, top, 0, width), tile_at(p->input_t, left, 0, width), width,
                     scratch->square);
            update_square(l, p, o, scratch->square, top, left);
        }
    if (!o->ends || l->bias < 0) return;
    apply(&o->rule, o->w + l->bias, o->m + l->bias, o->v + l->bias, p->bias_gradient, l->outputs);
    memcpy(p->bias, o->w + l->bias, l->outputs * sizeof(real));
}

/* The loss of this slab and those before it, whose sum is `total`; learns from the slab if that is finite. */
static double learn_slab(const Network *n, const Scratch *scratch, const int64_t *labels, int64_t samples,
                         real factor, const Optimization *o, double total) {
    const int64_t width = padded(samples), last = n->layers - 1;
    forward(n, scratch, samples, 1);
    const double loss = total + softmax_delta(n, scratch, labels, samples, factor);
    if (!isfinite(loss)) return loss;
    for (int64_t place = 0; place <= last && o->begins; place++)
        memset(scratch->place[place].bias_gradient, 0, padded(n->layer[place].outputs) * sizeof(real));
    for (int64_t top = 0; top < padded(n->layer[last].outputs); top += SIDE)
        for (int64_t left = 0; left < width; left += SIDE)
            store_delta(n->layer + last, scratch->place + last, scratch->scores + top * width + left, width, 0, top,
                        left, width);
    for (int64_t place = last; place >= 0; place--) {
        if (place) backward(n, scratch, place, width);
        learn(n->layer + place, scratch->place + place, scratch, o, width);
    }
    return loss;
}

static double take_step(const Job *job, const Scratch *scratch, int64_t replica, int64_t step, int begins) {
    const Network *n = job->network;
    const Data *d = job->data;
    const int64_t batch = d->indices ? d->batch : d->samples, from = replica * n->stored;
    const int64_t *index = d->indices ? d->indices + (step * job->replicas + replica) * batch : 0;
    const int64_t *labels = d->labels + (d->per_replica_targets ? replica : 0) * d->samples;
    Optimization o = {.rule = rule_at(job, replica, step), .w = job->parameters + from, .m = job->first + from,
                      .v = job->second + from, .sum = scratch->gradient};
    int64_t counted = 0, chosen[n->slab];
    double loss = 0;
    if (begins) take_weights(n, scratch, job->parameters + from);
    for (int64_t s = 0; s < batch; s++) counted += labels[index ? index[s] : s] != UNCOUNTED;
    const real factor = (real)(1.0 / (double)counted);
    for (int64_t slab = 0; slab < n->slabs && isfinite(loss); slab++) {
        const int64_t start = batch * slab / n->slabs, samples = batch * (slab + 1) / n->slabs - start;
        for (int64_t s = 0; s < samples; s++) chosen[s] = labels[index ? index[start + s] : start + s];
        gather(n, scratch, d, index ? index + start : 0, start, samples, 1);
        o.begins = slab == 0, o.ends = slab == n->slabs - 1;
        loss = learn_slab(n, scratch, chosen, samples, factor, &o, loss);
    }
    return loss / (double)counted;
}

/* ---- what Python calls --------------------------------------------------------------------------------- */

static void *take(char **space, int64_t bytes) {
    void *at = *space;
    *space += (bytes + 63) / 64 * 64;
    return at;
}

/* Lays out a thread's memory, which starts at a multiple of 64 bytes, and returns its size. */
static int64_t lay_out(const Network *n, char *space, Scratch *scratch) {
    char *const start = space;
    const int64_t word = sizeof(half_word), number = sizeof(real);
    for (int64_t place = 0; place < n->layers; place++) {
        const int64_t inputs = padded(n->layer[place].inputs), outputs = padded(n->layer[place].outputs);
        Place *p = scratch->place + place;
        p->input_b = take(&space, inputs * n->slab * word);
        p->input_t = take(&space, inputs * n->slab * word);
        p->input_a = place ? take(&space, inputs * n->slab * word) : 0;
        p->delta_a = take(&space, outputs * n->slab * word);
        p->delta_b = place ? take(&space, outputs * n->slab * word) : 0;
        p->weights_a = take(&space, inputs * outputs * word);
        p->weights_t = place ? take(&space, inputs * outputs * word) : 0;
        p->bias = take(&space, outputs * number);
        p->bias_gradient = take(&space, outputs * number);
    }
    scratch->square = take(&space, SIDE * SIDE * number);
    scratch->scores = take(&space, padded(n->layer[n->layers - 1].outputs) * n->slab * number);
    scratch->gradient = n->slabs > 1 ? take(&space, n->stored * number) : 0;
    return space - start;
}

/* The memory that Python gives begins anywhere. */
static void open_space(const Network *n, char *space, Scratch *scratch) {
    lay_out(n, space + (64 - (uintptr_t)space % 64) % 64, scratch);
    set_up_tiles();
}

/* Whether this processor and this system let a process use the tiles. */
int64_t nablab_has_tiles(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

int64_t nablab_most_layers(void) { return MOST_LAYERS; }

int64_t nablab_scratch_bytes(const Network *n) {
    Scratch scratch;
    return lay_out(n, 0, &scratch) + 64;
}

void nablab_advance(Job *job, char *space) {
    Scratch scratch;
    open_space(job->network, space, &scratch);
    work_through(job, &scratch);
    _tile_release();
}

/* The outputs (K, samples, classes) of all replicas. A ticket is a part of one replica's samples. */
void nablab_predict(const Network *n, const Data *d, const real *parameters, int64_t replicas, int64_t *next,
                    real *out, char *space) {
    Scratch scratch;
    open_space(n, space, &scratch);
    const int64_t slabs = (d->samples + n->slab - 1) / n->slab, pieces = slabs < PIECES ? slabs : PIECES;
    const int64_t classes = n->layer[n->layers - 1].outputs;
    for (;;) {
        const int64_t ticket = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        const int64_t replica = ticket / pieces, piece = ticket % pieces;
        if (replica >= replicas) break;
        take_weights(n, &scratch, parameters + replica * n->stored);
        for (int64_t slab = slabs * piece / pieces; slab < slabs * (piece + 1) / pieces; slab++) {
            const int64_t start = slab * n->slab;
            const int64_t samples = d->samples - start < n->slab ? d->samples - start : n->slab;
            gather(n, &scratch, d, 0, start, samples, 0);
            forward(n, &scratch, samples, 0);
            for (int64_t s = 0; s < samples; s++)
                for (int64_t c = 0; c < classes; c++)
                    out[(replica * d->samples + start + s) * classes + c] =
                        scratch.scores[c * padded(samples) + s];
        }
    }
    _tile_release();
}

#else
int64_t nablab_has_tiles(void) { return 0; }
#endif
