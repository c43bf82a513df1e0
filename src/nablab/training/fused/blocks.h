/* The vector type, the activations and the two register-blocked loops of dense.c.
 *
 * Rows are vectors of samples; a stride is a row's length in vectors. `product_block` keeps R rows of V
 * vectors in registers, `gradient_block` a patch of R rows and C columns. R, V and C are constants after
 * inlining, so that the compiler unrolls the loops over them; a switch picks the block sizes that cut a layer
 * evenly.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifndef REAL
#define REAL float
#endif
typedef REAL real;
#define IS_DOUBLE (sizeof(real) == sizeof(double))

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
typedef real vec __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef real half __attribute__((vector_size(VECTOR_BYTES / 2), may_alias));
typedef __typeof__((vec){0} > (vec){0}) mask;

/* Blocks that just fit the vector registers: 32 of them on AVX-512 and 64-bit ARM, else 16. */
#if defined(__AVX512F__) || defined(__aarch64__)
enum { UNITS = 10, PATCH_ROWS = 4, PATCH_COLUMNS = 6 };
#else
enum { UNITS = 5, PATCH_ROWS = 3, PATCH_COLUMNS = 4 };
#endif
enum { VECTORS = 4, LANES = sizeof(vec) / sizeof(real) };

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* ---- vectors and activations -------------------------------------------------------------------------- */

INLINE vec all(real value) { return value - (vec){0}; }

/* By halves: the plain loop would be one long chain of additions, which doubled the time of a step. */
INLINE real sum(vec v) {
    const half folded = ((const half *)&v)[0] + ((const half *)&v)[1];
    real total[LANES / 2];
    memcpy(total, &folded, sizeof folded);
    for (int lanes = LANES / 4; lanes > 0; lanes /= 2)
        for (int lane = 0; lane < lanes; lane++) total[lane] += total[lane + lanes];
    return total[0];
}

/* sign > 0 ? z : slope z, without a blend, for C has none for vectors. */
INLINE vec leak(vec sign, vec z, real slope) {
    const vec positive = (vec)((mask)z & (sign > 0));
    return positive + slope * (z - positive);
}

/* The rational approximation of the Eigen library, of degree 13 over 6: relative error below 4e-7. */
INLINE real rational_tanh(real z) {
    const real limit = (real)7.90531110763549805;
    z = z > limit ? limit : z;
    z = z < -limit ? -limit : z;
    const real s = z * z;
    real p = s * (real)-2.76076847742355e-16 + (real)2.00018790482477e-13;
    p = s * p + (real)-8.60467152213735e-11;
    p = s * p + (real)5.12229709037114e-08;
    p = s * p + (real)1.48572235717979e-05;
    p = s * p + (real)6.37261928875436e-04;
    p = s * p + (real)4.89352455891786e-03;
    real q = s * (real)1.19825839466702e-06 + (real)1.18534705686654e-04;
    q = s * q + (real)2.26843463243900e-03;
    q = s * q + (real)4.89352518554385e-03;
    return z * p / q;
}

static void apply_tanh(int64_t rows, int64_t vectors, int64_t stride, vec *row) {
    for (int64_t r = 0; r < rows; r++, row += stride) {
        real *z = (real *)row;
        for (int64_t s = 0; s < vectors * LANES; s++)
            z[s] = IS_DOUBLE ? (real)tanh(z[s]) : rational_tanh(z[s]);
    }
}

/* delta *= tanh'(z) = 1 - a^2. */
static void apply_tanh_slope(int64_t rows, int64_t vectors, int64_t stride, const vec *a, vec *delta) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t s = r * stride; s < r * stride + vectors; s++) delta[s] *= 1 - a[s] * a[s];
}

/* ---- products: forward and backward -------------------------------------------------------------------- */

/* out[r] = start[r] + sum_c matrix[c, r] in[c], then leak. Forward: W^T with bias. Backward: W without. */
typedef struct {
    int64_t rows, columns, vectors;
    const real *matrix, *start; /* start: null for zeros */
    const vec *in, *sign;       /* sign: a_{l-1} going backward, for act' has the sign of a; else null */
    vec *out;
    int64_t matrix_stride, in_stride, stride;
    real slope;
} Product;

INLINE void product_block(const int R, const int V, const int backward, const Product p, int64_t top,
                          int64_t left) {
    const real *matrix = p.matrix + top;
    const vec *in = p.in + left;
    vec total[UNITS][VECTORS], input[VECTORS];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < V; v++) total[r][v] = all(p.start ? p.start[top + r] : 0);
    for (int64_t c = 0; c < p.columns; c++, matrix += p.matrix_stride, in += p.in_stride) {
        UNROLL for (int v = 0; v < V; v++) input[v] = in[v];
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int v = 0; v < V; v++) total[r][v] += matrix[r] * input[v];
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < V; v++) {
            const int64_t at = (top + r) * p.stride + left + v;
            p.out[at] = leak(backward ? p.sign[at] : total[r][v], total[r][v], p.slope);
        }
}

INLINE void product_rows(const int R, const int backward, const Product p, int64_t top) {
    const int V = 2 * R <= UNITS ? VECTORS : 2;
    int64_t left = 0;
    for (; left + V <= p.vectors; left += V) product_block(R, V, backward, p, top, left);
    for (; left < p.vectors; left++) product_block(R, 1, backward, p, top, left);
}

INLINE void product(const int backward, const Product p) {
    const int64_t blocks = (p.rows + UNITS - 1) / UNITS;
    for (int64_t block = 0, top = 0, end; block < blocks; block++, top = end) {
        end = p.rows * (block + 1) / blocks;
#define CASE(R) case R: if (R <= UNITS) product_rows(R <= UNITS ? R : 1, backward, p, top); break;
        switch (end - top) {
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10)
        }
#undef CASE
    }
}

static void product_forward(const Product p) { product(0, p); }
static void product_backward(const Product p) { product(1, p); }

/* ---- gradient ----------------------------------------------------------------------------------------- */

/* gradient (rows, columns) += delta (rows, vectors) a^T, for a of shape (columns, vectors). */
typedef struct {
    int64_t rows, columns, vectors;
    const vec *delta, *a;
    int64_t delta_stride, a_stride;
    real *gradient;
} Outer;

INLINE void gradient_block(const int R, const int C, const Outer o, int64_t top, int64_t left) {
    const vec *delta = o.delta + top * o.delta_stride, *a = o.a + left * o.a_stride;
    real *gradient = o.gradient + top * o.columns + left;
    vec total[PATCH_ROWS][PATCH_COLUMNS] = {0}, d[PATCH_ROWS];
    for (int64_t s = 0; s < o.vectors; s++) {
        UNROLL for (int r = 0; r < R; r++) d[r] = delta[r * o.delta_stride + s];
        UNROLL for (int c = 0; c < C; c++)
            UNROLL for (int r = 0; r < R; r++) total[r][c] += d[r] * a[c * o.a_stride + s];
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < C; c++) gradient[r * o.columns + c] += sum(total[r][c]);
}

INLINE void gradient_rows(const int R, const Outer o, int64_t top) {
    const int64_t blocks = (o.columns + PATCH_COLUMNS - 1) / PATCH_COLUMNS;
    for (int64_t block = 0, left = 0, end; block < blocks; block++, left = end) {
        end = o.columns * (block + 1) / blocks;
#define CASE(C) \
    case C: if (C <= PATCH_COLUMNS) gradient_block(R, C <= PATCH_COLUMNS ? C : 1, o, top, left); break;
        switch (end - left) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
    }
}

static void add_gradient(const Outer o) {
    const int64_t blocks = (o.rows + PATCH_ROWS - 1) / PATCH_ROWS;
    for (int64_t block = 0, top = 0, end; block < blocks; block++, top = end) {
        end = o.rows * (block + 1) / blocks;
#define CASE(R) case R: if (R <= PATCH_ROWS) gradient_rows(R <= PATCH_ROWS ? R : 1, o, top); break;
        switch (end - top) { CASE(1) CASE(2) CASE(3) CASE(4) }
#undef CASE
    }
}
