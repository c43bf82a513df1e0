/* The layers of images.c, forward, backward and their gradients, on one tile of samples.
 *
 * A pixel is a vector of samples; maps lie by channel, row and column. Each loop keeps a block of results in
 * registers: `line` of R channels by S vectors of a row of pixels, `add_taps` of R channels by C taps, `units`
 * of R units, `outer_rows` of R units by vectors of inputs. Sizes of blocks are constants after inlining.
 */
#include "blocks.h"

enum { CONVOLUTION, DENSE, POOLING, AVERAGING };
enum { LINEAR, RELU, ELU };
enum { PARTS = 2, TAPS = 5, ROWS = UNITS == 10 ? 6 : 3, MOST_LAYERS = 64 };
typedef real loose __attribute__((vector_size(VECTOR_BYTES), may_alias, aligned(sizeof(real))));

/* ctypes mirrors both in images.py. */
typedef struct {
    int64_t kind, kernel, padding, activation;
    int64_t weights, bias;           /* where they start among the parameters; bias -1: none */
    int64_t channels, height, width; /* of the output; a dense layer's units are channels of one pixel */
} Layer;

typedef struct {
    int64_t layers, stored, tile;
    int64_t channels, height, width; /* of the images */
    int64_t basis;                   /* most networks in a Basis */
    const Layer *layer;
} Network;

typedef struct { /* maps (channel, row, column) of vectors; `at` is the first pixel inside the border */
    vec *at;
    int64_t row, plane;
} Maps;

typedef struct {
    Maps value[MOST_LAYERS + 1], delta[MOST_LAYERS + 1];
    real *turned, *gradient[PARTS];
    vec *first, *basis; /* all of the first layer's outputs, and as many for each network of a Basis */
    int64_t first_size;
    int64_t used; /* samples of the tile; the deltas of the lanes behind them are zero */
} Scratch;

typedef struct {
    int64_t channels, height, width;
} Shape;

static Shape shape_of(const Network *n, int64_t place) {
    if (!place) return (Shape){n->channels, n->height, n->width};
    const Layer *l = n->layer + place - 1;
    return (Shape){l->channels, l->height, l->width};
}

/* ---- activations ---------------------------------------------------------------------------------------- */

/* A ReLU is a part of the loops that write its inputs or their deltas; ELU takes a pass of its own over them. */
static real slope_of(const Layer *l) { return (real)(l->activation != RELU); }

static int activated(const Network *n, int64_t place, int64_t activation) {
    return place > 0 && n->layer[place - 1].activation == activation;
}

/* z > 0 ? z : e^z - 1. With z = k ln 2 + r it is 2^k (e^r - 1) + 2^k - 1, and r is at most ln 2 / 2 off zero. */
INLINE vec elu_of(vec z) {
    const vec positive = (vec)((mask)z & (z > 0));
    vec low = z - positive;
    if (IS_DOUBLE) {
        for (int lane = 0; lane < LANES; lane++) low[lane] = (real)expm1((double)low[lane]);
        return positive + low;
    }
    const mask far = low < -80; /* e^z is no more than rounding */
    low = (vec)(((mask)low & ~far) | ((mask)all(-80) & far));
    const mask k = __builtin_convertvector(low * (real)1.44269504 - (real)0.5, mask);
    const vec whole = __builtin_convertvector(k, vec);
    const vec r = low - whole * (real)0.693359375 + whole * (real)2.12194440e-4;
    vec p = r * (real)(1.0 / 5040) + (real)(1.0 / 720);
    p = r * p + (real)(1.0 / 120);
    p = r * p + (real)(1.0 / 24);
    p = r * p + (real)(1.0 / 6);
    p = r * p + (real)0.5;
    p = r * r * p + r;
    const vec power = (vec)((k + 127) << 23);
    return positive + (power * p + (power - 1));
}

/* The outputs of the layer before `place`, through its ELU. */
static void apply_elu(const Network *n, int64_t place, const Scratch *scratch) {
    const Shape shape = shape_of(n, place);
    const Maps maps = scratch->value[place];
    for (int64_t c = 0; c < shape.channels; c++)
        for (int64_t y = 0; y < shape.height; y++) {
            vec *row = maps.at + c * maps.plane + y * maps.row;
            for (int64_t s = 0; s < shape.width * n->tile; s++) row[s] = elu_of(row[s]);
        }
}

/* delta *= elu'(z) = 1 where the output is positive, else the output plus 1. */
static void apply_elu_slope(const Network *n, int64_t place, const Scratch *scratch) {
    const Shape shape = shape_of(n, place);
    const Maps maps = scratch->value[place], delta = scratch->delta[place];
    for (int64_t c = 0; c < shape.channels; c++)
        for (int64_t y = 0; y < shape.height; y++) {
            const vec *value = maps.at + c * maps.plane + y * maps.row;
            vec *row = delta.at + c * delta.plane + y * delta.row;
            for (int64_t s = 0; s < shape.width * n->tile; s++)
                row[s] *= 1 + (vec)((mask)value[s] & (value[s] < 0));
        }
}

/* ---- convolutions -------------------------------------------------------------------------------------- */

/* One row of pixels: out[r] = bias[r] + sum over planes a and taps j of weight(r, a, j) in[a] shifted by j.
 * Backward the planes are the outputs, the rows the inputs, and the taps run from last to first. */
typedef struct {
    const real *weight, *bias;
    int64_t w_row, w_plane, w_tap;
    int64_t rows, planes, kernel, vectors, pixel;
    const vec *in, *sign; /* sign: what the result's ReLU gave, going backward; else null */
    vec *out;
    int64_t in_row, in_plane, out_plane, sign_plane;
    real slope;
} Line;

INLINE void line_block(const int R, const int S, const Line l, int64_t top, int64_t left) {
    vec total[ROWS][VECTORS], input[VECTORS];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int s = 0; s < S; s++) total[r][s] = all(l.bias ? l.bias[top + r] : 0);
    for (int64_t a = 0; a < l.planes; a++) {
        const real *w = l.weight + top * l.w_row + a * l.w_plane;
        for (int64_t ky = 0; ky < l.kernel; ky++) {
            const vec *in = l.in + a * l.in_plane + ky * l.in_row + left;
            for (int64_t kx = 0; kx < l.kernel; kx++, in += l.pixel, w += l.w_tap) {
                UNROLL for (int s = 0; s < S; s++) input[s] = in[s];
                UNROLL for (int r = 0; r < R; r++)
                    UNROLL for (int s = 0; s < S; s++) total[r][s] += w[r * l.w_row] * input[s];
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int s = 0; s < S; s++) {
            const vec z = total[r][s];
            const vec sign = l.sign ? l.sign[(top + r) * l.sign_plane + left + s] : z;
            l.out[(top + r) * l.out_plane + left + s] = leak(sign, z, l.slope);
        }
}

INLINE void line_rows(const int R, const Line l, int64_t top) {
    int64_t left = 0;
    for (; left + 4 <= l.vectors; left += 4) line_block(R, 4, l, top, left);
    for (; left + 2 <= l.vectors; left += 2) line_block(R, 2, l, top, left);
    for (; left < l.vectors; left++) line_block(R, 1, l, top, left);
}

static void line(const Line l) {
    const int64_t blocks = (l.rows + ROWS - 1) / ROWS;
    for (int64_t block = 0, top = 0, end; block < blocks; block++, top = end) {
        end = l.rows * (block + 1) / blocks;
#define CASE(R) case R: if (R <= ROWS) line_rows(R <= ROWS ? R : 1, l, top); break;
        switch (end - top) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
    }
}

static void convolve(const Network *n, int64_t place, const real *parameters, const Scratch *scratch) {
    const Layer *l = n->layer + place;
    const Shape from = shape_of(n, place);
    const Maps in = scratch->value[place], out = scratch->value[place + 1];
    const int64_t taps = l->kernel * l->kernel, border = l->padding * (in.row + n->tile);
    for (int64_t y = 0; y < l->height; y++)
        line((Line){.weight = parameters + l->weights, .bias = l->bias < 0 ? 0 : parameters + l->bias,
                    .w_row = from.channels * taps, .w_plane = taps, .w_tap = 1, .rows = l->channels,
                    .planes = from.channels, .kernel = l->kernel, .vectors = l->width * n->tile,
                    .pixel = n->tile, .in = in.at - border + y * in.row, .in_row = in.row,
                    .in_plane = in.plane, .out = out.at + y * out.row, .out_plane = out.plane,
                    .slope = slope_of(l)});
}

static void convolve_back(const Network *n, int64_t place, const real *parameters, const Scratch *scratch) {
    const Layer *l = n->layer + place;
    const Shape from = shape_of(n, place);
    const Maps in = scratch->delta[place + 1], out = scratch->delta[place], value = scratch->value[place];
    const int64_t taps = l->kernel * l->kernel;
    const int64_t border = (l->kernel - 1 - l->padding) * (in.row + n->tile);
    const int relu = activated(n, place, RELU);
    for (int64_t y = 0; y < from.height; y++)
        line((Line){.weight = parameters + l->weights + taps - 1, .w_row = taps,
                    .w_plane = from.channels * taps, .w_tap = -1, .rows = from.channels,
                    .planes = l->channels, .kernel = l->kernel, .vectors = from.width * n->tile,
                    .pixel = n->tile, .in = in.at - border + y * in.row, .in_row = in.row,
                    .in_plane = in.plane, .out = out.at + y * out.row, .out_plane = out.plane,
                    .sign = relu ? value.at + y * value.row : 0, .sign_plane = value.plane,
                    .slope = (real)!relu});
}

/* The gradient of R outputs by C taps side by side of one input plane. */
typedef struct {
    const vec *delta, *in;
    int64_t height, vectors, pixel;
    int64_t delta_row, delta_plane, in_row;
    real *gradient;
    int64_t columns;
} Taps;

INLINE void taps_block(const int R, const int C, const Taps t) {
    vec total[PATCH_ROWS][TAPS] = {0}, d[PATCH_ROWS];
    for (int64_t y = 0; y < t.height; y++) {
        const vec *delta = t.delta + y * t.delta_row, *in = t.in + y * t.in_row;
        for (int64_t s = 0; s < t.vectors; s++) {
            UNROLL for (int r = 0; r < R; r++) d[r] = delta[r * t.delta_plane + s];
            UNROLL for (int c = 0; c < C; c++)
                UNROLL for (int r = 0; r < R; r++) total[r][c] += d[r] * in[c * t.pixel + s];
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < C; c++) t.gradient[r * t.columns + c] += sum(total[r][c]);
}

INLINE void taps_rows(const int R, const Taps t, int64_t count) {
#define CASE(C) case C: taps_block(R, C, t); break;
    switch (count) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) }
#undef CASE
}

static void add_taps(const Taps t, int64_t rows, int64_t count) {
#define CASE(R) case R: if (R <= PATCH_ROWS) taps_rows(R <= PATCH_ROWS ? R : 1, t, count); break;
    switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) }
#undef CASE
}

static void convolution_gradient(const Network *n, int64_t place, const Scratch *scratch, real *gradient) {
    const Layer *l = n->layer + place;
    const Shape from = shape_of(n, place);
    const Maps in = scratch->value[place], delta = scratch->delta[place + 1];
    const int64_t k = l->kernel, columns = from.channels * k * k, border = l->padding * (in.row + n->tile);
    const int64_t blocks = (l->channels + PATCH_ROWS - 1) / PATCH_ROWS, pieces = (k + TAPS - 1) / TAPS;
    for (int64_t block = 0, top = 0, end; block < blocks; block++, top = end) {
        end = l->channels * (block + 1) / blocks;
        for (int64_t a = 0; a < from.channels; a++)
            for (int64_t ky = 0; ky < k; ky++)
                for (int64_t piece = 0, kx = 0, stop; piece < pieces; piece++, kx = stop) {
                    stop = k * (piece + 1) / pieces;
                    add_taps((Taps){.delta = delta.at + top * delta.plane, .height = l->height,
                                    .in = in.at - border + a * in.plane + ky * in.row + kx * n->tile,
                                    .vectors = l->width * n->tile, .pixel = n->tile,
                                    .delta_row = delta.row, .delta_plane = delta.plane, .in_row = in.row,
                                    .gradient = gradient + l->weights + top * columns + (a * k + ky) * k + kx,
                                    .columns = columns}, end - top, stop - kx);
                }
    }
}

static void bias_gradient(const Network *n, int64_t place, const Scratch *scratch, real *gradient) {
    const Layer *l = n->layer + place;
    const Maps delta = scratch->delta[place + 1];
    if (l->bias < 0) return;
    for (int64_t c = 0; c < l->channels; c++) {
        vec total = {0};
        for (int64_t y = 0; y < l->height; y++)
            for (int64_t s = 0; s < l->width * n->tile; s++)
                total += delta.at[c * delta.plane + y * delta.row + s];
        gradient[l->bias + c] += sum(total);
    }
}

/* ---- pooling ------------------------------------------------------------------------------------------- */

static void pool(const Network *n, int64_t place, const Scratch *scratch) {
    const Layer *l = n->layer + place;
    const Maps in = scratch->value[place], out = scratch->value[place + 1];
    const int64_t v = n->tile, k = l->kernel;
    for (int64_t c = 0; c < l->channels; c++)
        for (int64_t y = 0; y < l->height; y++)
            for (int64_t x = 0; x < l->width; x++)
                for (int64_t s = 0; s < v; s++) {
                    const vec *corner = in.at + c * in.plane + k * y * in.row + k * x * v + s;
                    vec most = corner[0];
                    for (int64_t ky = 0; ky < k; ky++)
                        for (int64_t kx = 0; kx < k; kx++) {
                            const vec value = corner[ky * in.row + kx * v];
                            const mask greater = value > most;
                            most = (vec)((greater & (mask)value) | (~greater & (mask)most));
                        }
                    out.at[c * out.plane + y * out.row + x * v + s] = most;
                }
}

/* The delta goes to the first of the largest values, as in PyTorch. */
static void pool_back(const Network *n, int64_t place, const Scratch *scratch) {
    const Layer *l = n->layer + place;
    const Maps in = scratch->value[place], out = scratch->value[place + 1];
    const Maps delta = scratch->delta[place], given = scratch->delta[place + 1];
    const int64_t v = n->tile, k = l->kernel;
    const int relu = activated(n, place, RELU);
    for (int64_t c = 0; c < l->channels; c++)
        for (int64_t y = 0; y < l->height; y++)
            for (int64_t x = 0; x < l->width; x++)
                for (int64_t s = 0; s < v; s++) {
                    const int64_t corner = c * in.plane + k * y * in.row + k * x * v + s;
                    const int64_t target = c * delta.plane + k * y * delta.row + k * x * v + s;
                    const vec most = out.at[c * out.plane + y * out.row + x * v + s];
                    const vec whole = given.at[c * given.plane + y * given.row + x * v + s];
                    mask left = most > 0;
                    if (!relu) left |= ~left;
                    for (int64_t ky = 0; ky < k; ky++)
                        for (int64_t kx = 0; kx < k; kx++) {
                            const mask here = left & (in.at[corner + ky * in.row + kx * v] == most);
                            delta.at[target + ky * delta.row + kx * v] = (vec)(here & (mask)whole);
                            left &= ~here;
                        }
                }
}

/* Means of windows. */
static void average(const Network *n, int64_t place, const Scratch *scratch) {
    const Layer *l = n->layer + place;
    const Maps in = scratch->value[place], out = scratch->value[place + 1];
    const int64_t v = n->tile, k = l->kernel;
    const real share = (real)1 / (real)(k * k);
    for (int64_t c = 0; c < l->channels; c++)
        for (int64_t y = 0; y < l->height; y++)
            for (int64_t x = 0; x < l->width; x++)
                for (int64_t s = 0; s < v; s++) {
                    const vec *corner = in.at + c * in.plane + k * y * in.row + k * x * v + s;
                    vec total = {0};
                    for (int64_t ky = 0; ky < k; ky++)
                        for (int64_t kx = 0; kx < k; kx++) total += corner[ky * in.row + kx * v];
                    out.at[c * out.plane + y * out.row + x * v + s] = share * total;
                }
}

static void average_back(const Network *n, int64_t place, const Scratch *scratch) {
    const Layer *l = n->layer + place;
    const Maps in = scratch->value[place], delta = scratch->delta[place], given = scratch->delta[place + 1];
    const int64_t v = n->tile, k = l->kernel;
    const real share = (real)1 / (real)(k * k), slope = (real)!activated(n, place, RELU);
    for (int64_t c = 0; c < l->channels; c++)
        for (int64_t y = 0; y < l->height; y++)
            for (int64_t x = 0; x < l->width; x++)
                for (int64_t s = 0; s < v; s++) {
                    const int64_t corner = c * in.plane + k * y * in.row + k * x * v + s;
                    const int64_t target = c * delta.plane + k * y * delta.row + k * x * v + s;
                    const vec part = share * given.at[c * given.plane + y * given.row + x * v + s];
                    for (int64_t ky = 0; ky < k; ky++)
                        for (int64_t kx = 0; kx < k; kx++)
                            delta.at[target + ky * delta.row + kx * v] =
                                leak(in.at[corner + ky * in.row + kx * v], part, slope);
                }
}

/* ---- dense layers -------------------------------------------------------------------------------------- */

/* out[r] = bias[r] + sum_c weight(r, c) in[c]; forward the rows are outputs, backward inputs. */
typedef struct {
    const real *weight, *bias;
    int64_t w_row, w_column, rows, columns;
    const vec *in, *sign;
    Maps out;
    int64_t width, pixels; /* of the maps that the rows are pixels of */
    real slope;
} Units;

INLINE void units_block(const int R, const int V, const Units u, int64_t top) {
    vec total[UNITS][VECTORS], input[VECTORS];
    const real *w = u.weight + top * u.w_row;
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int s = 0; s < V; s++) total[r][s] = all(u.bias ? u.bias[top + r] : 0);
    for (int64_t c = 0; c < u.columns; c++, w += u.w_column) {
        UNROLL for (int s = 0; s < V; s++) input[s] = u.in[c * V + s];
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int s = 0; s < V; s++) total[r][s] += w[r * u.w_row] * input[s];
    }
    UNROLL for (int r = 0; r < R; r++) {
        const int64_t row = top + r, pixel = row % u.pixels;
        vec *out = u.out.at + row / u.pixels * u.out.plane + pixel / u.width * u.out.row + pixel % u.width * V;
        UNROLL for (int s = 0; s < V; s++)
            out[s] = leak(u.sign ? u.sign[row * V + s] : total[r][s], total[r][s], u.slope);
    }
}

INLINE void units_all(const int V, const Units u) {
    const int most = UNITS / (V == 4 ? 2 : 1);
    const int64_t blocks = (u.rows + most - 1) / most;
    for (int64_t block = 0, top = 0, end; block < blocks; block++, top = end) {
        end = u.rows * (block + 1) / blocks;
#define CASE(R) case R: if (R <= most) units_block(R <= most ? R : 1, V, u, top); break;
        switch (end - top) {
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10)
        }
#undef CASE
    }
}

static void units(int64_t tile, const Units u) {
    if (tile == 1) units_all(1, u);
    else if (tile == 2) units_all(2, u);
    else units_all(4, u);
}

static void dense(const Network *n, int64_t place, const real *parameters, const Scratch *scratch) {
    const Layer *l = n->layer + place;
    const Shape from = shape_of(n, place);
    const int64_t inputs = from.channels * from.height * from.width;
    units(n->tile, (Units){.weight = parameters + l->weights, .w_row = inputs, .w_column = 1,
                           .bias = l->bias < 0 ? 0 : parameters + l->bias, .rows = l->channels,
                           .columns = inputs, .in = scratch->value[place].at,
                           .out = scratch->value[place + 1], .width = 1, .pixels = 1,
                           .slope = slope_of(l)});
}

static void dense_back(const Network *n, int64_t place, const real *parameters, const Scratch *scratch) {
    const Layer *l = n->layer + place;
    const Shape from = shape_of(n, place);
    const int64_t inputs = from.channels * from.height * from.width;
    const int relu = activated(n, place, RELU);
    units(n->tile, (Units){.weight = parameters + l->weights, .w_row = 1, .w_column = inputs, .rows = inputs,
                           .columns = l->channels, .in = scratch->delta[place + 1].at,
                           .sign = relu ? scratch->value[place].at : 0, .out = scratch->delta[place],
                           .width = from.width, .pixels = from.height * from.width,
                           .slope = (real)!relu});
}

/* gradient (rows, inputs) += delta (rows, samples) a (samples, inputs), R rows of V vectors at a time; a row of
 * delta has `lanes` places. Lanes behind the last input add zeros to what follows. */
INLINE void outer_block(const int R, const int V, const real *delta, int64_t lanes, int64_t samples,
                        const vec *a, int64_t stride, real *gradient, int64_t inputs) {
    vec total[PATCH_ROWS][VECTORS] = {0}, value[VECTORS];
    for (int64_t s = 0; s < samples; s++) {
        UNROLL for (int v = 0; v < V; v++) value[v] = a[s * stride + v];
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int v = 0; v < V; v++) total[r][v] += delta[r * lanes + s] * value[v];
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < V; v++) *(loose *)(gradient + r * inputs + v * LANES) += total[r][v];
}

INLINE void outer_rows(const int R, const real *delta, int64_t lanes, int64_t samples, const vec *a,
                       int64_t stride, real *gradient, int64_t inputs) {
    int64_t v = 0;
    for (; v + VECTORS <= stride; v += VECTORS)
        outer_block(R, VECTORS, delta, lanes, samples, a + v, stride, gradient + v * LANES, inputs);
    for (; v < stride; v++)
        outer_block(R, 1, delta, lanes, samples, a + v, stride, gradient + v * LANES, inputs);
}

static void dense_gradient(const Network *n, int64_t place, const Scratch *scratch, real *gradient) {
    const Layer *l = n->layer + place;
    const Shape from = shape_of(n, place);
    const int64_t inputs = from.channels * from.height * from.width, lanes = n->tile * LANES;
    const int64_t samples = scratch->used, stride = (inputs + LANES - 1) / LANES;
    const real *a = (const real *)scratch->value[place].at, *delta = (const real *)scratch->delta[place + 1].at;
    for (int64_t s = 0; s < samples; s++) {
        real *turned = scratch->turned + s * stride * LANES;
        for (int64_t i = 0; i < inputs; i++) turned[i] = a[i * lanes + s];
        for (int64_t i = inputs; i < stride * LANES; i++) turned[i] = 0;
    }
    const vec *rows = (const vec *)scratch->turned;
    real *to = gradient + l->weights;
    int64_t o = 0;
    for (; o + PATCH_ROWS <= l->channels; o += PATCH_ROWS)
        outer_rows(PATCH_ROWS, delta + o * lanes, lanes, samples, rows, stride, to + o * inputs, inputs);
    for (; o < l->channels; o++)
        outer_rows(1, delta + o * lanes, lanes, samples, rows, stride, to + o * inputs, inputs);
}
