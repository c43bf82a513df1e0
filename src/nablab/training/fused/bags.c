/* Dense networks that read sparse samples, such as the words of a text: all steps in one call.
 *
 * A network is a chain of dense layers, each but the last with or without a ReLU behind it, and behind a ReLU
 * perhaps dropout. The loss is the mean cross-entropy of the softmax over the samples whose label counts.
 *
 * A text of 20 words out of 1,000 has 20 numbers that are not zero. The first layer adds up the rows of these
 * words forward, and adds the deltas to the rows of these words backward: a fiftieth of the dense product. What
 * is left of a step is the later layers and the optimizer's pass over all weights.
 *
 * Layout. A layer's weights are (inputs, width), a word's row in one piece; width is the number of outputs
 * rounded up to whole vectors. The numbers behind the outputs are zero and stay zero: their deltas are.
 *
 * One thread at a time computes a replica, always in the same order: its numbers depend neither on the number of
 * replicas nor on the number of threads.
 */
#include "blocks.h"

enum { MOST_LAYERS = 64, UNCOUNTED = -100, PIECES = 4, BLOCK_ROWS = UNITS >= 10 ? 4 : 2 };

/* ctypes mirrors these in bags.py. */
typedef struct {
    int64_t inputs, outputs, width, relu;
    int64_t weights, bias; /* where they start among the parameters; bias -1: none */
    double dropout;
} Layer;

typedef struct {
    int64_t layers, stored;
    int64_t slab;          /* most samples at once */
    const Layer *layer;
    const uint64_t *seeds; /* (K): of dropout */
} Network;

typedef struct {
    int64_t samples, per_replica_targets;
    const int64_t *starts;  /* (samples + 1): where the numbers of a sample begin */
    const int32_t *places;  /* which inputs are not zero */
    const real *values;     /* and what they are */
    const int64_t *labels;  /* (K or 1, samples) */
    const int64_t *indices; /* (steps, K, batch), or null for all samples in order */
    int64_t batch;
} Data;

typedef struct { /* a thread's memory */
    real *value[MOST_LAYERS]; /* (slab, width): what a layer gives */
    real *delta[MOST_LAYERS]; /* and the gradient with respect to what it gives before the ReLU */
    real *turned;             /* (outputs, width of the layer before): a layer's weights, for the way back */
    real *gradient;           /* (stored) */
    int64_t *chosen;          /* (slab): samples */
} Scratch;

#include "job.h"

/* ---- products ------------------------------------------------------------------------------------------ */

/* out[r] (+)= sum_k a[r, k] b[k], rows of whole vectors. */
typedef struct {
    int64_t rows, depth, vectors;
    const real *a;
    int64_t a_row, a_step;
    const real *b, *start; /* start: added to each row, or null */
    real *out;
    int64_t b_stride, out_stride, add;
} Multiply;

INLINE void multiply_block(const int R, const int V, const Multiply m, int64_t top, int64_t left) {
    vec total[BLOCK_ROWS][VECTORS], row[VECTORS];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < V; v++) {
            const int64_t at = (left + v) * LANES;
            total[r][v] = m.add ? *(const vec *)(m.out + (top + r) * m.out_stride + at)
                                : m.start ? *(const vec *)(m.start + at) : (vec){0};
        }
    const real *a = m.a + top * m.a_row, *b = m.b + left * LANES;
    for (int64_t k = 0; k < m.depth; k++, a += m.a_step, b += m.b_stride) {
        UNROLL for (int v = 0; v < V; v++) row[v] = ((const vec *)b)[v];
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int v = 0; v < V; v++) total[r][v] += a[r * m.a_row] * row[v];
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < V; v++)
            *(vec *)(m.out + (top + r) * m.out_stride + (left + v) * LANES) = total[r][v];
}

INLINE void multiply_columns(const int R, const Multiply m, int64_t top) {
    int64_t left = 0;
    for (; left + VECTORS <= m.vectors; left += VECTORS) multiply_block(R, VECTORS, m, top, left);
    for (; left < m.vectors; left++) multiply_block(R, 1, m, top, left);
}

static void multiply(const Multiply m) {
    int64_t top = 0;
    for (; top + BLOCK_ROWS <= m.rows; top += BLOCK_ROWS) multiply_columns(BLOCK_ROWS, m, top);
    for (; top < m.rows; top++) multiply_columns(1, m, top);
}

/* Adds the rows of a sample's inputs, times their values, to `out`. */
INLINE void gather_vectors(const int V, const Data *d, int64_t sample, const real *rows, int64_t width,
                           const real *start, real *out) {
    vec total[VECTORS];
    UNROLL for (int v = 0; v < V; v++) total[v] = start ? ((const vec *)start)[v] : (vec){0};
    for (int64_t k = d->starts[sample]; k < d->starts[sample + 1]; k++) {
        const vec *row = (const vec *)(rows + d->places[k] * width);
        UNROLL for (int v = 0; v < V; v++) total[v] += d->values[k] * row[v];
    }
    UNROLL for (int v = 0; v < V; v++) ((vec *)out)[v] = total[v];
}

static void gather(const Data *d, int64_t sample, const real *rows, int64_t width, const real *start, real *out) {
    int64_t left = 0;
    for (; left + VECTORS * LANES <= width; left += VECTORS * LANES)
        gather_vectors(VECTORS, d, sample, rows + left, width, start ? start + left : 0, out + left);
    for (; left < width; left += LANES)
        gather_vectors(1, d, sample, rows + left, width, start ? start + left : 0, out + left);
}

/* Adds a sample's delta, times the values of its inputs, to the rows of these. */
INLINE void scatter_vectors(const int V, const Data *d, int64_t sample, const real *delta, int64_t width,
                            real *rows) {
    vec own[VECTORS];
    UNROLL for (int v = 0; v < V; v++) own[v] = ((const vec *)delta)[v];
    for (int64_t k = d->starts[sample]; k < d->starts[sample + 1]; k++) {
        vec *row = (vec *)(rows + d->places[k] * width);
        UNROLL for (int v = 0; v < V; v++) row[v] += d->values[k] * own[v];
    }
}

static void scatter(const Data *d, int64_t sample, const real *delta, int64_t width, real *rows) {
    int64_t left = 0;
    for (; left + VECTORS * LANES <= width; left += VECTORS * LANES)
        scatter_vectors(VECTORS, d, sample, delta + left, width, rows + left);
    for (; left < width; left += LANES) scatter_vectors(1, d, sample, delta + left, width, rows + left);
}

/* ---- dropout ------------------------------------------------------------------------------------------- */

/* The finalizer of splitmix64: a number that looks unlike its neighbors'. */
static uint64_t mixed(uint64_t z) {
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t key_of(uint64_t seed, int64_t step, int64_t layer) {
    return mixed(mixed(mixed(seed) ^ (uint64_t)step) ^ (uint64_t)layer);
}

/* Drops values with probability `share` and scales the others, as torch.nn.Dropout. Whether a value is dropped
 * is a function of the key and of its place in the batch, so that it depends on nothing else. */
static void drop(real *values, int64_t count, uint64_t first, uint64_t key, double share) {
    const uint32_t low = (uint32_t)key, high = (uint32_t)(key >> 32);
    const uint32_t limit = (uint32_t)(share * 4294967296.0);
    const real scale = (real)(1 / (1 - share));
    for (int64_t p = 0; p < count; p++) {
        uint32_t x = (uint32_t)(first + (uint64_t)p) * 0x9e3779b9u + low;
        x = (x ^ (x >> 16)) * 0x7feb352du;
        x ^= high;
        x = (x ^ (x >> 15)) * 0x846ca68bu;
        x ^= x >> 16;
        values[p] = x < limit ? 0 : values[p] * scale;
    }
}

/* ---- a network on one slab of samples ------------------------------------------------------------------ */

typedef struct {
    uint64_t seed;
    int64_t step, first; /* first: place of the slab's first sample in the batch */
} Chance;

/* `chance`: null in evaluation, where nothing is dropped. */
static void forward(const Network *n, const Data *d, const real *parameters, const Scratch *scratch,
                    int64_t samples, const Chance *chance) {
    for (int64_t place = 0; place < n->layers; place++) {
        const Layer *l = n->layer + place;
        const real *w = parameters + l->weights, *bias = l->bias < 0 ? 0 : parameters + l->bias;
        real *out = scratch->value[place];
        const int64_t count = samples * l->width;
        if (place == 0)
            for (int64_t s = 0; s < samples; s++)
                gather(d, scratch->chosen[s], w, l->width, bias, out + s * l->width);
        else
            multiply((Multiply){.rows = samples, .depth = l->inputs, .vectors = l->width / LANES,
                                .a = scratch->value[place - 1], .a_row = l[-1].width, .a_step = 1, .b = w,
                                .b_stride = l->width, .start = bias, .out = out, .out_stride = l->width});
        if (l->relu) /* in this order a NaN stays one */
            for (int64_t p = 0; p < count; p++) out[p] = out[p] < 0 ? 0 : out[p];
        if (chance && l->dropout > 0)
            drop(out, count, (uint64_t)(chance->first * l->width), key_of(chance->seed, chance->step, place),
                 l->dropout);
    }
}

/* Fills the last delta; returns the sum of the losses of the samples that count. */
static double softmax_delta(const Network *n, const Scratch *scratch, const int64_t *labels, int64_t samples,
                            real factor) {
    const Layer *l = n->layer + n->layers - 1;
    double total = 0;
    for (int64_t s = 0; s < samples; s++) {
        const real *z = scratch->value[n->layers - 1] + s * l->width;
        real *delta = scratch->delta[n->layers - 1] + s * l->width;
        const int64_t label = labels[scratch->chosen[s]];
        memset(delta, 0, l->width * sizeof(real));
        if (label == UNCOUNTED) continue;
        real most = z[0], mass = 0;
        for (int64_t c = 1; c < l->outputs; c++) most = z[c] > most ? z[c] : most;
        for (int64_t c = 0; c < l->outputs; c++) {
            delta[c] = IS_DOUBLE ? (real)exp(z[c] - most) : (real)expf((float)(z[c] - most));
            mass += delta[c];
        }
        total += log((double)mass) + (double)most - (double)z[label];
        for (int64_t c = 0; c < l->outputs; c++) delta[c] = factor * (delta[c] / mass - (real)(c == label));
    }
    return total;
}

/* The deltas of the layer before: nothing comes back where the ReLU or dropout let nothing through. */
static void backward(const Network *n, const real *parameters, const Scratch *scratch, int64_t place,
                     int64_t samples) {
    const Layer *l = n->layer + place, *before = l - 1;
    const real *w = parameters + l->weights, *value = scratch->value[place - 1];
    real *delta = scratch->delta[place - 1];
    for (int64_t o = 0; o < l->outputs; o++)
        for (int64_t i = 0; i < before->width; i++)
            scratch->turned[o * before->width + i] = i < l->inputs ? w[i * l->width + o] : 0;
    multiply((Multiply){.rows = samples, .depth = l->outputs, .vectors = before->width / LANES,
                        .a = scratch->delta[place], .a_row = l->width, .a_step = 1, .b = scratch->turned,
                        .b_stride = before->width, .out = delta, .out_stride = before->width});
    const real scale = (real)(1 / (1 - before->dropout));
    if (before->relu)
        for (int64_t p = 0; p < samples * before->width; p++) delta[p] = value[p] > 0 ? delta[p] * scale : 0;
}

static void add_gradient_of(const Network *n, const Data *d, const Scratch *scratch, int64_t place,
                            int64_t samples) {
    const Layer *l = n->layer + place;
    const real *delta = scratch->delta[place];
    real *gradient = scratch->gradient + l->weights;
    if (place == 0)
        for (int64_t s = 0; s < samples; s++)
            scatter(d, scratch->chosen[s], delta + s * l->width, l->width, gradient);
    else
        multiply((Multiply){.rows = l->inputs, .depth = samples, .vectors = l->width / LANES,
                            .a = scratch->value[place - 1], .a_row = 1, .a_step = l[-1].width, .b = delta,
                            .b_stride = l->width, .out = gradient, .out_stride = l->width, .add = 1});
    if (l->bias < 0) return;
    for (int64_t s = 0; s < samples; s++)
        for (int64_t o = 0; o < l->width; o++) scratch->gradient[l->bias + o] += delta[s * l->width + o];
}

/* ---- one step ------------------------------------------------------------------------------------------ */

static double take_step(const Job *job, const Scratch *scratch, int64_t replica, int64_t step, int begins) {
    const Network *n = job->network;
    const Data *d = job->data;
    const int64_t batch = d->indices ? d->batch : d->samples;
    const int64_t *index = d->indices ? d->indices + (step * job->replicas + replica) * batch : 0;
    const int64_t *labels = d->labels + (d->per_replica_targets ? replica : 0) * d->samples;
    const real *parameters = job->parameters + replica * n->stored;
    Chance chance = {.seed = n->seeds[replica], .step = job->taken[replica]};
    int64_t counted = 0;
    double loss = 0;
    (void)begins;
    for (int64_t s = 0; s < batch; s++) counted += labels[index ? index[s] : s] != UNCOUNTED;
    memset(scratch->gradient, 0, n->stored * sizeof(real));
    for (int64_t start = 0; start < batch && isfinite(loss); start += n->slab) {
        const int64_t samples = batch - start < n->slab ? batch - start : n->slab;
        for (int64_t s = 0; s < samples; s++) scratch->chosen[s] = index ? index[start + s] : start + s;
        chance.first = start;
        forward(n, d, parameters, scratch, samples, &chance);
        loss += softmax_delta(n, scratch, labels, samples, (real)(1.0 / (double)counted));
        for (int64_t place = n->layers - 1; place >= 0; place--) {
            add_gradient_of(n, d, scratch, place, samples);
            if (place) backward(n, parameters, scratch, place, samples);
        }
    }
    if (isfinite(loss)) update(job, replica, step, 0, n->stored, scratch->gradient);
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
    int64_t largest = 0;
    for (int64_t place = 0; place < n->layers; place++) {
        const Layer *l = n->layer + place;
        scratch->value[place] = take(&space, n->slab * l->width * sizeof(real));
        scratch->delta[place] = take(&space, n->slab * l->width * sizeof(real));
        if (place && l->outputs * l[-1].width > largest) largest = l->outputs * l[-1].width;
    }
    scratch->turned = take(&space, largest * sizeof(real));
    scratch->gradient = take(&space, n->stored * sizeof(real));
    scratch->chosen = take(&space, n->slab * sizeof(int64_t));
    return space - start;
}

/* The memory that Python gives begins anywhere. */
static void open_space(const Network *n, char *space, Scratch *scratch) {
    lay_out(n, space + (64 - (uintptr_t)space % 64) % 64, scratch);
}

int64_t nablab_lanes(void) { return LANES; }

int64_t nablab_most_layers(void) { return MOST_LAYERS; }

int64_t nablab_scratch_bytes(const Network *n) {
    Scratch scratch;
    return lay_out(n, 0, &scratch) + 64;
}

void nablab_advance(Job *job, char *space) {
    Scratch scratch;
    open_space(job->network, space, &scratch);
    work_through(job, &scratch);
}

/* The outputs (K, samples, classes) of all replicas. A ticket is a part of one replica's samples. */
void nablab_predict(const Network *n, const Data *d, const real *parameters, int64_t replicas, int64_t *next,
                    real *out, char *space) {
    Scratch scratch;
    open_space(n, space, &scratch);
    const Layer *last = n->layer + n->layers - 1;
    const int64_t slabs = (d->samples + n->slab - 1) / n->slab, pieces = slabs < PIECES ? slabs : PIECES;
    for (;;) {
        const int64_t ticket = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        const int64_t replica = ticket / pieces, piece = ticket % pieces;
        if (replica >= replicas) return;
        for (int64_t slab = slabs * piece / pieces; slab < slabs * (piece + 1) / pieces; slab++) {
            const int64_t start = slab * n->slab;
            const int64_t samples = d->samples - start < n->slab ? d->samples - start : n->slab;
            for (int64_t s = 0; s < samples; s++) scratch.chosen[s] = start + s;
            forward(n, d, parameters + replica * n->stored, &scratch, samples, 0);
            for (int64_t s = 0; s < samples; s++)
                memcpy(out + (replica * d->samples + start + s) * last->outputs,
                       scratch.value[n->layers - 1] + s * last->width, last->outputs * sizeof(real));
        }
    }
}
