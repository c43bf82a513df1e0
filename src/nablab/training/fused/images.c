/* Small networks for images: all steps of a replica's training in one call.
 *
 * A network is a chain of convolutions, poolings and dense layers, each but the last with or without a ReLU
 * or an ELU behind it. The loss is the mean cross-entropy of the softmax over the samples whose label counts.
 *
 * Layout. A pixel is a vector of samples, so loops run over whole vectors whatever the sizes of layers. Pixels
 * of a row lie one after the other: a convolution reads the same row at as many offsets as its kernel is wide.
 * Where a convolution pads, the maps that it reads have a border of zeros, and so have the deltas that it reads
 * going backward. Samples go through all layers in tiles of `tile` vectors whose maps fit the second-level cache.
 *
 * A batch is always computed as two parts whose gradients are added at the end, by one thread or by two. So a
 * replica's numbers depend neither on the number of replicas nor on the number of threads.
 */
#include "image_layers.h"

enum { UNCOUNTED = -100, SPINS = 4000, TOGETHER = 31 };

/* ctypes mirrors these in images.py. */
typedef struct {
    int64_t samples, per_replica_targets;
    const uint8_t *bytes;   /* (samples, channels, height, width), with `table`; or null */
    const real *table;      /* (channels, 256): what a byte becomes */
    const real *numbers;    /* the samples, if they are not bytes */
    const int64_t *labels;  /* (K or 1, samples) */
    const int64_t *indices; /* (steps, K, batch), or null for all samples in order */
    int64_t batch;
} Data;

#include "job.h"

/* ---- a network on one tile ----------------------------------------------------------------------------- */

/* From the layer `first` on. */
static void forward(const Network *n, const real *parameters, const Scratch *scratch, int64_t first) {
    for (int64_t place = first; place < n->layers; place++) {
        const int64_t kind = n->layer[place].kind;
        if (kind == CONVOLUTION) convolve(n, place, parameters, scratch);
        else if (kind == DENSE) dense(n, place, parameters, scratch);
        else (kind == POOLING ? pool : average)(n, place, scratch);
        if (n->layer[place].activation == ELU) apply_elu(n, place + 1, scratch);
    }
}

static void backward(const Network *n, const real *parameters, const Scratch *scratch, real *gradient) {
    for (int64_t place = n->layers - 1; place >= 0; place--) {
        const int64_t kind = n->layer[place].kind;
        if (kind == POOLING || kind == AVERAGING) {
            if (place) (kind == POOLING ? pool_back : average_back)(n, place, scratch);
        } else {
            (kind == DENSE ? dense_gradient : convolution_gradient)(n, place, scratch, gradient);
            bias_gradient(n, place, scratch, gradient);
            if (place) (kind == DENSE ? dense_back : convolve_back)(n, place, parameters, scratch);
        }
        if (activated(n, place, ELU)) apply_elu_slope(n, place, scratch);
    }
}

/* Fills the last delta; returns the sum of the losses of the samples that count. */
static double softmax_delta(const Network *n, const Scratch *scratch, const int64_t *labels, int64_t samples,
                            real factor) {
    const int64_t classes = n->layer[n->layers - 1].channels, lanes = n->tile * LANES;
    const real *z = (const real *)scratch->value[n->layers].at;
    real *delta = (real *)scratch->delta[n->layers].at;
    double total = 0;
    for (int64_t s = 0; s < lanes; s++) {
        const int64_t label = s < samples ? labels[s] : UNCOUNTED;
        if (label == UNCOUNTED) {
            for (int64_t c = 0; c < classes; c++) delta[c * lanes + s] = 0;
            continue;
        }
        real most = z[s], mass = 0;
        for (int64_t c = 1; c < classes; c++) most = z[c * lanes + s] > most ? z[c * lanes + s] : most;
        for (int64_t c = 0; c < classes; c++) {
            const real part = IS_DOUBLE ? (real)exp(z[c * lanes + s] - most)
                                        : (real)expf((float)(z[c * lanes + s] - most));
            delta[c * lanes + s] = part;
            mass += part;
        }
        total += log((double)mass) + (double)most - (double)z[label * lanes + s];
        for (int64_t c = 0; c < classes; c++)
            delta[c * lanes + s] = factor * (delta[c * lanes + s] / mass - (real)(c == label));
    }
    return total;
}

/* The samples of `index`, or of `start` and on where it is null, into the first maps. What stands in the lanes
 * behind them stays, for nobody reads what comes out of these. */
static void gather(const Network *n, const Data *d, const Maps maps, const int64_t *index, int64_t start,
                   int64_t samples) {
    const int64_t lanes = n->tile * LANES, area = n->height * n->width, size = n->channels * area;
    int64_t from[VECTORS * LANES];
    for (int64_t s = 0; s < samples; s++) from[s] = size * (index ? index[s] : start + s);
    if (!d->bytes && maps.row == n->width * n->tile && maps.plane == area * n->tile) {
        /* Sample by sample: to fetch a pixel of each in turn took twice as long with 1,000 inputs. */
        for (int64_t s = 0; s < samples; s++)
            for (int64_t pixel = 0; pixel < size; pixel++)
                ((real *)maps.at)[pixel * lanes + s] = d->numbers[from[s] + pixel];
        return;
    }
    for (int64_t c = 0; c < n->channels; c++)
        for (int64_t y = 0; y < n->height; y++)
            for (int64_t x = 0; x < n->width; x++) {
                real *to = (real *)(maps.at + c * maps.plane + y * maps.row + x * n->tile);
                const int64_t pixel = c * area + y * n->width + x;
                if (d->bytes)
                    for (int64_t s = 0; s < samples; s++) to[s] = d->table[c * 256 + d->bytes[from[s] + pixel]];
                else
                    for (int64_t s = 0; s < samples; s++) to[s] = d->numbers[from[s] + pixel];
            }
}

/* ---- one step ------------------------------------------------------------------------------------------ */

static int64_t batch_size(const Data *d) { return d->indices ? d->batch : d->samples; }

/* Fills `gradient` with a part of a step's gradient; returns the part's loss. */
static double part_gradient(const Job *job, const Scratch *scratch, int64_t replica, int64_t step, int64_t part,
                            real *gradient) {
    const Network *n = job->network;
    const Data *d = job->data;
    const int64_t batch = batch_size(d), lanes = n->tile * LANES, tiles = (batch + lanes - 1) / lanes;
    const int64_t *index = d->indices ? d->indices + (step * job->replicas + replica) * batch : 0;
    const int64_t *labels = d->labels + (d->per_replica_targets ? replica : 0) * d->samples;
    const real *parameters = job->parameters + replica * n->stored;
    int64_t counted = 0, chosen[VECTORS * LANES];
    double loss = 0;
    Scratch own = *scratch;
    for (int64_t s = 0; s < batch; s++) counted += labels[index ? index[s] : s] != UNCOUNTED;
    memset(gradient, 0, n->stored * sizeof(real));
    for (int64_t tile = tiles * part / PARTS; tile < tiles * (part + 1) / PARTS; tile++) {
        const int64_t start = tile * lanes, samples = batch - start < lanes ? batch - start : lanes;
        for (int64_t s = 0; s < samples; s++) chosen[s] = labels[index ? index[start + s] : start + s];
        own.used = samples;
        gather(n, d, scratch->value[0], index ? index + start : 0, start, samples);
        forward(n, parameters, scratch, 0);
        loss += softmax_delta(n, scratch, chosen, samples, (real)(1.0 / (double)counted));
        backward(n, parameters, &own, gradient);
    }
    return loss / (double)counted;
}

/* Adds the parts of the gradient and updates the parameters from `start` to `end`. */
static void update_range(const Job *job, int64_t replica, int64_t step, int64_t start, int64_t end,
                         real *const *gradient) {
    for (int64_t p = start; p < end; p++) gradient[0][p] += gradient[1][p];
    update(job, replica, step, start, end, gradient[0]);
}

static double take_step(const Job *job, const Scratch *scratch, int64_t replica, int64_t step, int begins) {
    double loss = 0;
    (void)begins;
    for (int64_t part = 0; part < PARTS; part++)
        loss += part_gradient(job, scratch, replica, step, part, scratch->gradient[part]);
    if (isfinite(loss)) update_range(job, replica, step, 0, job->network->stored, scratch->gradient);
    return loss;
}

static pthread_mutex_t door = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t opened = PTHREAD_COND_INITIALIZER; /* shared by all jobs: who wakes looks again */

/* Spins for as long as the other thread takes if it has a core of its own, then sleeps until it is there: where
 * other programs keep the cores busy, spinning would take the core that it waits for. */
static void wait_for_all(Job *job, int64_t *meetings) {
    const int64_t expected = PARTS * ++*meetings;
    if (__atomic_add_fetch(&job->arrived, 1, __ATOMIC_ACQ_REL) == expected) {
        pthread_mutex_lock(&door);
        pthread_cond_broadcast(&opened);
        pthread_mutex_unlock(&door);
        return;
    }
    for (int64_t spin = 0; spin < SPINS; spin++)
        if (__atomic_load_n(&job->arrived, __ATOMIC_ACQUIRE) >= expected) return;
    pthread_mutex_lock(&door);
    while (__atomic_load_n(&job->arrived, __ATOMIC_ACQUIRE) < expected) pthread_cond_wait(&opened, &door);
    pthread_mutex_unlock(&door);
}

/* Two threads on the only replica: a part of the batch each, then a part of the parameters each. */
static void advance_together(Job *job, const Scratch *scratch) {
    const int64_t part = __atomic_fetch_add(&job->places, 1, __ATOMIC_RELAXED);
    const int64_t stored = job->network->stored, half = stored / 2 / LANES * LANES;
    int64_t meetings = 0;
    if (part >= PARTS) return;
    job->gradient[part] = scratch->gradient[part];
    for (int64_t step = 0; step < job->steps; step++) {
        job->part_loss[part] = part_gradient(job, scratch, 0, step, part, job->gradient[part]);
        wait_for_all(job, &meetings);
        const double loss = job->part_loss[0] + job->part_loss[1];
        if (part == 0) job->loss[step] = loss;
        if (!isfinite(loss)) {
            if (part == 0) job->active[0] = 0;
            return;
        }
        update_range(job, 0, step, part ? half : 0, part ? stored : half, job->gradient);
        wait_for_all(job, &meetings);
        if (part == 0) job->taken[0]++;
    }
}

/* ---- what Python calls --------------------------------------------------------------------------------- */

/* Maps with a border at the next free place. */
static Maps place_maps(vec **space, Shape shape, int64_t border, int64_t tile) {
    const int64_t row = (shape.width + 2 * border) * tile, plane = (shape.height + 2 * border) * row;
    const Maps maps = {.at = *space + border * (row + tile), .row = row, .plane = plane};
    *space += shape.channels * plane;
    return maps;
}

/* Lays out a thread's memory and returns its size in vectors. It must be zero at first: borders stay so. */
static int64_t lay_out(const Network *n, vec *space, Scratch *scratch) {
    vec *const start = space;
    int64_t widest = 1;
    for (int64_t place = 0; place <= n->layers; place++) {
        const Shape shape = shape_of(n, place);
        const Layer *reader = place < n->layers ? n->layer + place : 0, *maker = place ? reader - 1 : 0;
        if (place == n->layers) maker = n->layer + place - 1;
        const int64_t size = shape.channels * shape.height * shape.width;
        const int64_t border = reader && reader->kind == CONVOLUTION ? reader->padding : 0;
        vec *const maps = space;
        scratch->value[place] = place_maps(&space, shape, border, n->tile);
        if (place == 1) scratch->first = maps, scratch->first_size = space - maps;
        if (maker)
            scratch->delta[place] = place_maps(
                &space, shape, maker->kind == CONVOLUTION ? maker->kernel - 1 - maker->padding : 0, n->tile);
        if (reader && reader->kind == DENSE && size > widest) widest = size;
    }
    scratch->turned = (real *)space;
    space += (widest + LANES - 1) / LANES * n->tile * LANES;
    scratch->basis = space;
    space += n->basis * scratch->first_size;
    for (int64_t part = 0; part < PARTS; part++, space += n->stored / LANES + 1)
        scratch->gradient[part] = (real *)space;
    return space - start;
}

int64_t nablab_lanes(void) { return LANES; }

int64_t nablab_most_layers(void) { return MOST_LAYERS; }

int64_t nablab_scratch_bytes(const Network *n) {
    Scratch scratch;
    vec nowhere;
    return lay_out(n, &nowhere, &scratch) * (int64_t)sizeof(vec);
}

void nablab_advance(Job *job, vec *space) {
    Scratch scratch;
    lay_out(job->network, space, &scratch);
    if (job->replicas == 1 && job->threads == PARTS) {
        if (job->active[0]) advance_together(job, &scratch);
    } else
        work_through(job, &scratch);
}

/* The replicas' first layers as combinations of a few: what these give is computed once for all replicas. */
typedef struct {
    int64_t size;              /* B; 0: none, and each replica computes its own */
    const real *parameters;    /* (B, stored) */
    const real *factors;       /* (K, B) */
} Basis;

static void compute_basis(const Network *n, const Basis *b, const Scratch *scratch) {
    Layer first = n->layer[0];
    Network linear = *n;
    first.activation = LINEAR, linear.layers = 1, linear.layer = &first;
    for (int64_t i = 0; i < b->size; i++) {
        forward(&linear, b->parameters + i * n->stored, scratch, 0);
        memcpy(scratch->basis + i * scratch->first_size, scratch->first, scratch->first_size * sizeof(vec));
    }
}

/* The first layer's outputs for a replica, from those of the basis. Borders are zero in all of them. */
static void combine(const Network *n, const Basis *b, const Scratch *scratch, const real *factors) {
    const int elu = n->layer[0].activation == ELU;
    const real slope = slope_of(n->layer);
    for (int64_t v = 0; v < scratch->first_size; v++) {
        vec total = {0};
        for (int64_t i = 0; i < b->size; i++) total += factors[i] * scratch->basis[i * scratch->first_size + v];
        scratch->first[v] = elu ? elu_of(total) : leak(total, total, slope);
    }
}

/* The outputs (K, samples, classes) of all replicas. A ticket is a tile of samples for some replicas, so that
 * samples are gathered, and the basis is computed, once for these. */
void nablab_predict(const Network *n, const Data *d, const real *parameters, int64_t replicas, int64_t *next,
                    real *out, vec *space, const Basis *basis) {
    Scratch scratch;
    lay_out(n, space, &scratch);
    const int64_t lanes = n->tile * LANES, tiles = (d->samples + lanes - 1) / lanes;
    const int64_t classes = n->layer[n->layers - 1].channels, groups = (replicas + TOGETHER - 1) / TOGETHER;
    for (;;) {
        const int64_t ticket = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        const int64_t start = ticket / groups * lanes, from = ticket % groups * TOGETHER;
        if (ticket >= groups * tiles) return;
        const int64_t samples = d->samples - start < lanes ? d->samples - start : lanes;
        const int64_t end = from + TOGETHER < replicas ? from + TOGETHER : replicas;
        gather(n, d, scratch.value[0], 0, start, samples);
        if (basis->size) compute_basis(n, basis, &scratch);
        for (int64_t replica = from; replica < end; replica++) {
            if (basis->size) combine(n, basis, &scratch, basis->factors + replica * basis->size);
            forward(n, parameters + replica * n->stored, &scratch, basis->size > 0);
            const real *z = (const real *)scratch.value[n->layers].at;
            for (int64_t s = 0; s < samples; s++)
                for (int64_t c = 0; c < classes; c++)
                    out[(replica * d->samples + start + s) * classes + c] = z[c * lanes + s];
        }
    }
}
