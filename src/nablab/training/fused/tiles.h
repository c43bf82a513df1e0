/* Products of bfloat16 matrices on a processor's tiles (AMX), and their layouts.
 *
 * A product P = A B takes A (rows, depth) and B (depth, columns) in panels of 16 rows or 16 columns. A panel is
 * a row of tiles of 1 KB, each 32 of the depth. A tile of A holds 16 rows of 32 numbers; a tile of B, 16 pairs of
 * rows, side by side for each column. Seen as 32-bit numbers the second is the transpose of the first, which
 * makes one of the other in 64 shuffles. Sizes are padded to 32 with zeros.
 */
#include <immintrin.h>

enum { SIDE = 32, TILE = 512 };
typedef uint16_t half_word; /* a bfloat16 */

static int64_t padded(int64_t size) { return (size + SIDE - 1) / SIDE * SIDE; }

/* Where the tile of a panel's 16 rows (or columns) `at` and the next, and of the depth `deep`, starts. */
INLINE half_word *tile_at(half_word *panels, int64_t at, int64_t deep, int64_t depth) {
    return panels + (at / 16 * (depth / SIDE) + deep / SIDE) * TILE;
}

/* ---- 16-bit and 32-bit numbers in registers ------------------------------------------------------------ */

INLINE __m512i interleave_low(__m512i even, __m512i odd) {
    const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38,
                                           6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    return _mm512_permutex2var_epi16(even, order, odd);
}

INLINE __m512i interleave_high(__m512i even, __m512i odd) {
    const __m512i order = _mm512_set_epi16(63, 31, 62, 30, 61, 29, 60, 28, 59, 27, 58, 26, 57, 25, 56, 24, 55, 23,
                                           54, 22, 53, 21, 52, 20, 51, 19, 50, 18, 49, 17, 48, 16);
    return _mm512_permutex2var_epi16(even, order, odd);
}

/* Writes the transpose of 16 rows of 16 32-bit numbers. */
INLINE void transpose(const __m512i *row, half_word *to) {
    __m512i a[16], b[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        a[i] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88);
        a[i + 4] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xdd);
        a[i + 8] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88);
        a[i + 12] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xdd);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        _mm512_storeu_si512(to + 32 * i, _mm512_shuffle_i32x4(a[i], a[i + 8], 0x88));
        _mm512_storeu_si512(to + 32 * (i + 4), _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0x88));
        _mm512_storeu_si512(to + 32 * (i + 8), _mm512_shuffle_i32x4(a[i], a[i + 8], 0xdd));
        _mm512_storeu_si512(to + 32 * (i + 12), _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0xdd));
    }
}

/* 32 float32 as bfloat16, rounded to the nearest. */
INLINE __m512i rounded(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

INLINE __mmask32 first(int64_t count) {
    return count >= SIDE ? 0xffffffffu : count <= 0 ? 0 : (1u << count) - 1;
}

/* A square of 32 rows as tiles of A: rows in panels, columns in the depth. */
INLINE void store_rows(const __m512i *row, half_word *panels, int64_t top, int64_t left, int64_t depth) {
    half_word *upper = tile_at(panels, top, left, depth), *lower = tile_at(panels, top + 16, left, depth);
    UNROLL for (int r = 0; r < 16; r++) {
        _mm512_storeu_si512(upper + 32 * r, row[r]);
        _mm512_storeu_si512(lower + 32 * r, row[r + 16]);
    }
}

/* The same square as tiles of B whose depth are the columns: those of A, transposed. */
INLINE void store_turned(const __m512i *row, half_word *panels, int64_t top, int64_t left, int64_t depth) {
    transpose(row, tile_at(panels, top, left, depth));
    transpose(row + 16, tile_at(panels, top + 16, left, depth));
}

/* The same square as tiles of B whose depth are the rows. */
INLINE void store_pairs(const __m512i *row, half_word *panels, int64_t top, int64_t left, int64_t depth) {
    half_word *low = tile_at(panels, left, top, depth), *high = tile_at(panels, left + 16, top, depth);
    UNROLL for (int r = 0; r < 16; r++) {
        _mm512_storeu_si512(low + 32 * r, interleave_low(row[2 * r], row[2 * r + 1]));
        _mm512_storeu_si512(high + 32 * r, interleave_high(row[2 * r], row[2 * r + 1]));
    }
}

/* The transpose of the square as tiles of A: columns in panels, rows in the depth. */
INLINE void store_transposed(const __m512i *row, half_word *panels, int64_t top, int64_t left, int64_t depth) {
    __m512i low[16], high[16];
    UNROLL for (int r = 0; r < 16; r++) {
        low[r] = interleave_low(row[2 * r], row[2 * r + 1]);
        high[r] = interleave_high(row[2 * r], row[2 * r + 1]);
    }
    transpose(low, tile_at(panels, left, top, depth));
    transpose(high, tile_at(panels, left + 16, top, depth));
}

/* ---- products ------------------------------------------------------------------------------------------ */

static void set_up_tiles(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } tiles __attribute__((aligned(64))) = {.palette = 1};
    for (int t = 0; t < 8; t++) tiles.row_bytes[t] = 64, tiles.rows[t] = 16;
    _tile_loadconfig(&tiles);
}

/* to (32, 32) = A (32, depth) B (depth, 32): two panels each. */
INLINE void multiply(half_word *a, half_word *b, int64_t depth, real *to) {
    const int64_t tiles = depth / SIDE, panel = tiles * TILE;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t t = 0; t < tiles; t++, a += TILE, b += TILE) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_loadd(5, a + panel, 64);
        _tile_loadd(7, b + panel, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, to, SIDE * sizeof(real));
    _tile_stored(1, to + 16, SIDE * sizeof(real));
    _tile_stored(2, to + 16 * SIDE, SIDE * sizeof(real));
    _tile_stored(3, to + 16 * SIDE + 16, SIDE * sizeof(real));
}
