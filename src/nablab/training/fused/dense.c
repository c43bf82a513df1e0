/* Small dense networks: all steps of a replica's training in one call.
 *
 * A network is a chain of layers z_l = W_l a_{l-1} + b_l, a_l = act_l(z_l). The loss is the mean of
 * (a_L - y)^2 over the n samples and all outputs. One step is
 *
 *     forward     a_l         = act(W_l a_{l-1} + b_l)                        l = 1 .. L
 *     output      delta_L     = 2 (a_L - y) / (n * outputs) * act'(z_L)
 *     gradient    dW_l        = delta_l a_{l-1}^T,  db_l = delta_l 1^T        l = L .. 1
 *     backward    delta_{l-1} = W_l^T delta_l * act'(z_{l-1})                 l = L .. 2
 *
 * and the optimizer, which does what its namesake in torch.optim does.
 *
 * Layout. A unit is a row of samples, so that loops over samples fill whole vectors, whatever the widths. The
 * samples go through all layers in tiles that stay in the cache. A layer's parameters are one matrix [W | b]
 * of shape (outputs, inputs + 1), without the last column where there is no bias, and a row of ones below the
 * inputs makes db a column of dW. Lanes behind the last sample hold x = 0 and get delta = 0.
 *
 * Nearly all time goes into products of small matrices: blocks.h. One build serves every architecture;
 * docs/engine.md has the measurements.
 *
 * One thread at a time computes a replica, always in the same order: its numbers depend neither on the number
 * of replicas nor on the number of threads. `real` is float, or double with -DREAL=double.
 */
#include "blocks.h"

/* ctypes mirrors Network and Data in fused.py. A stride is a row's length in vectors. */
typedef struct {
    int64_t layers;
    const int64_t *width;   /* (layers + 1): inputs, hidden units ..., outputs */
    const int64_t *bias;    /* (layers): 1 or 0 */
    const int64_t *offset;  /* (layers): where [W | b] starts among the parameters */
    const int64_t *is_tanh; /* (layers) */
    const double *slope;    /* (layers): z > 0 ? z : slope z, then tanh if asked; slope 1 is the identity */
    int64_t stored;         /* number of parameters, rounded up to whole vectors */
    int64_t tile, stride;   /* most vectors of samples in a tile; stride of the scratch rows */
} Network;

typedef struct {
    int64_t samples, batch;             /* batch 0: all samples, from packed rows; else gathered by index */
    const real *x_packed, *y_packed;    /* (inputs + 1, stride) and (K or 1, outputs, stride) */
    int64_t stride;
    const real *x, *y;                  /* (samples, inputs) and (K or 1, samples, outputs) */
    const int64_t *indices;             /* (steps, K, batch) */
    int64_t per_replica_targets;
} Data;

typedef struct { /* some samples: x with its row of ones, and y */
    const vec *x, *y;
    int64_t x_stride, y_stride, samples, vectors;
} Tile;

typedef struct { /* a thread's memory */
    vec *activation; /* every layer's rows, each layer's followed by a row of ones */
    vec *x, *y;      /* gathered samples */
    vec *delta, *delta_before;
    real *turned, *gradient; /* (stored): every [W | b] transposed; the gradient */
} Scratch;

#include "job.h"

/* ---- a network on one tile ---------------------------------------------------------------------------- */

/* Fills the activations; returns those of the last layer. */
static vec *forward(const Network *n, const Tile *tile, const Scratch *scratch) {
    const vec *in = tile->x;
    vec *out = scratch->activation;
    for (int64_t l = 0, in_stride = tile->x_stride;; l++, in_stride = n->stride) {
        const int64_t inputs = n->width[l], outputs = n->width[l + 1];
        const real *matrix = scratch->turned + n->offset[l];
        const real *bias = n->bias[l] ? matrix + inputs * outputs : 0;
        product_forward((Product){.rows = outputs, .columns = inputs, .vectors = tile->vectors,
                                  .matrix = matrix, .start = bias, .in = in, .out = out,
                                  .matrix_stride = outputs, .in_stride = in_stride, .stride = n->stride,
                                  .slope = (real)n->slope[l]});
        if (n->is_tanh[l]) apply_tanh(outputs, tile->vectors, n->stride, out);
        if (l + 1 == n->layers) return out;
        in = out, out += (outputs + 1) * n->stride;
    }
}

/* Fills the last layer's delta; returns the sum of squared errors. */
static double output_delta(const Network *n, const Tile *tile, real factor, const vec *a, vec *delta) {
    const int64_t last = n->layers - 1, outputs = n->width[n->layers];
    vec squares = {0};
    for (int64_t r = 0; r < outputs; r++)
        for (int64_t s = 0; s < tile->vectors; s++) {
            const vec output = a[r * n->stride + s];
            vec error = output - tile->y[r * tile->y_stride + s];
            for (int64_t lane = tile->samples - s * LANES; lane < LANES; lane++) error[lane] = 0;
            squares += error * error;
            delta[r * n->stride + s] = leak(output, factor * error, (real)n->slope[last]);
        }
    if (n->is_tanh[last]) apply_tanh_slope(outputs, tile->vectors, n->stride, a, delta);
    return sum(squares);
}

/* Adds to scratch->gradient; returns the sum of squared errors. */
static double tile_gradient(const Network *n, const real *parameters, const Tile *tile,
                            const Scratch *scratch, real factor) {
    vec *a = forward(n, tile, scratch), *delta = scratch->delta, *delta_before = scratch->delta_before;
    const double squares = output_delta(n, tile, factor, a, delta);
    for (int64_t l = n->layers - 1;; l--) {
        const int64_t inputs = n->width[l], outputs = n->width[l + 1], columns = inputs + n->bias[l];
        if (l > 0) a -= (inputs + 1) * n->stride;
        add_gradient((Outer){.rows = outputs, .columns = columns, .vectors = tile->vectors, .delta = delta,
                             .a = l ? a : tile->x, .delta_stride = n->stride,
                             .a_stride = l ? n->stride : tile->x_stride,
                             .gradient = scratch->gradient + n->offset[l]});
        if (l == 0) return squares;
        product_backward((Product){.rows = inputs, .columns = outputs, .vectors = tile->vectors,
                                   .matrix = parameters + n->offset[l], .in = delta, .sign = a,
                                   .out = delta_before, .matrix_stride = columns, .in_stride = n->stride,
                                   .stride = n->stride, .slope = (real)n->slope[l - 1]});
        if (n->is_tanh[l - 1]) apply_tanh_slope(inputs, tile->vectors, n->stride, a, delta_before);
        vec *swap = delta;
        delta = delta_before, delta_before = swap;
    }
}

/* ---- one step ----------------------------------------------------------------------------------------- */

static void turn(const Network *n, const real *parameters, real *turned) {
    for (int64_t l = 0; l < n->layers; l++) {
        const int64_t rows = n->width[l + 1], columns = n->width[l] + n->bias[l];
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < columns; c++)
                turned[n->offset[l] + c * rows + r] = parameters[n->offset[l] + r * columns + c];
    }
}

/* The samples that `index` names as rows, with zeros behind them. */
static void gather(const real *from, int64_t features, const int64_t *index, const Tile *tile, vec *to,
                   int64_t stride) {
    for (int64_t s = 0; s < tile->vectors * LANES; s++)
        for (int64_t f = 0; f < features; f++)
            ((real *)(to + f * stride))[s] = s < tile->samples ? from[index[s] * features + f] : 0;
}

/* Vectors `start` to `end` of the samples of a step. */
static Tile get_tile(const Job *job, const Scratch *scratch, int64_t replica, int64_t step, int64_t start,
                     int64_t end) {
    const Network *n = job->network;
    const Data *d = job->data;
    const int64_t inputs = n->width[0], outputs = n->width[n->layers], labels = d->per_replica_targets ? replica : 0;
    const int64_t left = (d->batch ? d->batch : d->samples) - start * LANES, most = (end - start) * LANES;
    Tile tile = {.vectors = end - start, .samples = left < most ? left : most};
    if (d->batch) {
        const int64_t *index = d->indices + (step * job->replicas + replica) * d->batch + start * LANES;
        gather(d->x, inputs, index, &tile, scratch->x, n->stride);
        gather(d->y + labels * d->samples * outputs, outputs, index, &tile, scratch->y, n->stride);
        tile.x = scratch->x, tile.y = scratch->y, tile.x_stride = tile.y_stride = n->stride;
    } else {
        tile.x = (const vec *)d->x_packed + start;
        tile.y = (const vec *)d->y_packed + labels * outputs * d->stride + start;
        tile.x_stride = tile.y_stride = d->stride;
    }
    return tile;
}

/* The loss, and its gradient in scratch->gradient. */
static double loss_and_gradient(const Job *job, const Scratch *scratch, int64_t replica, int64_t step) {
    const Network *n = job->network;
    const real *parameters = job->parameters + replica * n->stored;
    const int64_t samples = job->data->batch ? job->data->batch : job->data->samples;
    const int64_t vectors = (samples + LANES - 1) / LANES, tiles = (vectors + n->tile - 1) / n->tile;
    const double count = (double)(samples * n->width[n->layers]);
    double squares = 0;
    memset(scratch->gradient, 0, n->stored * sizeof(real));
    turn(n, parameters, scratch->turned);
    for (int64_t i = 0; i < tiles; i++) {
        const int64_t start = vectors * i / tiles, end = vectors * (i + 1) / tiles;
        const Tile tile = get_tile(job, scratch, replica, step, start, end);
        squares += tile_gradient(n, parameters, &tile, scratch, (real)(2 / count));
    }
    return squares / count;
}

static double take_step(const Job *job, const Scratch *scratch, int64_t replica, int64_t step, int begins) {
    const double loss = loss_and_gradient(job, scratch, replica, step);
    (void)begins;
    if (isfinite(loss)) update(job, replica, step, 0, job->network->stored, scratch->gradient);
    return loss;
}

/* ---- what Python calls -------------------------------------------------------------------------------- */

/* Lays out a thread's memory and returns its size in vectors. */
static int64_t lay_out(const Network *n, vec *space, Scratch *scratch) {
    int64_t units = 0, widest = 0;
    for (int64_t l = 1; l <= n->layers; l++) {
        units += n->width[l] + 1;
        if (n->width[l] > widest) widest = n->width[l];
    }
    scratch->activation = space;
    scratch->x = scratch->activation + units * n->stride;
    scratch->y = scratch->x + (n->width[0] + 1) * n->stride;
    scratch->delta = scratch->y + n->width[n->layers] * n->stride;
    scratch->delta_before = scratch->delta + widest * n->stride;
    scratch->turned = (real *)(scratch->delta_before + widest * n->stride);
    scratch->gradient = scratch->turned + n->stored;
    return (vec *)(scratch->gradient + n->stored) - space;
}

static void fill_ones(const Network *n, const Scratch *scratch) {
    vec *row = scratch->activation;
    for (int64_t l = 1; l <= n->layers; l++, row += n->stride) {
        row += n->width[l] * n->stride;
        for (int64_t s = 0; s < n->stride; s++) row[s] = all(1);
    }
    for (int64_t s = 0; s < n->stride; s++) scratch->x[n->width[0] * n->stride + s] = all(1);
}

int64_t nablab_lanes(void) { return LANES; }

int64_t nablab_scratch_bytes(const Network *n) {
    Scratch scratch;
    vec nowhere;
    return lay_out(n, &nowhere, &scratch) * (int64_t)sizeof(vec);
}

void nablab_advance(Job *job, vec *space) {
    Scratch scratch;
    lay_out(job->network, space, &scratch);
    fill_ones(job->network, &scratch);
    work_through(job, &scratch);
}

/* One replica's outputs (outputs, stride) for packed rows x (inputs + 1, stride). */
void nablab_predict(const Network *n, const real *parameters, const vec *x, int64_t stride, vec *out,
                    vec *space) {
    Scratch scratch;
    lay_out(n, space, &scratch);
    turn(n, parameters, scratch.turned);
    for (int64_t start = 0; start < stride; start += n->tile) {
        const int64_t vectors = stride - start < n->tile ? stride - start : n->tile;
        const Tile tile = {.x = x + start, .x_stride = stride, .vectors = vectors};
        const vec *last = forward(n, &tile, &scratch);
        for (int64_t r = 0; r < n->width[n->layers]; r++)
            memcpy(out + r * stride + start, last + r * n->stride, vectors * sizeof(vec));
    }
}
