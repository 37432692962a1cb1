/* Scaling, as "antialias" does: a part of an image of bytes into a row, mirrored and converted if asked to. _jpeg.c and
   _resample.c include this file.

   Each output pixel is the mean of the pixels below a triangle (see resample.py). The arithmetic is that of cykooz-resizer,
   and so of Pillow-SIMD: weights are 16-bit integers, sums are 32-bit, and each direction rounds to 8 bits. The pixels are those
   of cykooz-resizer, to the bit, with AVX2 and without: tests/test_native.py compares them. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(RINGLOAD_NO_AVX2)
#include <immintrin.h>
#define HAS_AVX2_CODE 1
#endif

enum { PADDING = 64 };       /* bytes after each buffer, which vector instructions may read, and never use */
enum { MAX_PRECISION = 21 }; /* bits: a sum of 8-bit pixels times weights fits into 32 bits */
enum { MAX_SIDE = 65500 };   /* of what is written: the sum of all sizes fits into 64 bits */

typedef struct {
    int n_out;
    int n_weights;    /* of an output pixel, at most; a multiple of 4 */
    int n_groups;     /* how many times 4 weights are used, at most */
    int precision;    /* weights are multiplied by 2**precision */
    int32_t *first;   /* (n_out,) the first input pixel */
    int32_t *n_used;  /* (n_out,) how many input pixels follow */
    int16_t *weights; /* (n_out, n_weights), 0 where none is used */
} Taps;

/* Weights for `n_out` pixels from the part [begin, end) of `n_in` pixels; `mirrored`: the last output pixel comes first.
   False: there is not enough memory. */
static int make_taps(Taps *taps, int n_in, double begin, double end, int n_out, int mirrored)
{
    double scale = (end - begin) / n_out, stretch = scale > 1.0 ? scale : 1.0, reciprocal = 1.0 / stretch;
    int window = (int)ceil(stretch) * 2 + 1;
    double highest = 0.0, *values = calloc((size_t)n_out * window, sizeof *values);
    taps->n_out = n_out;
    taps->n_weights = (window + 3) / 4 * 4;
    taps->first = calloc(n_out, sizeof *taps->first);
    taps->n_used = calloc(n_out, sizeof *taps->n_used);
    taps->weights = calloc((size_t)n_out * taps->n_weights + PADDING, sizeof *taps->weights);
    if (!values || !taps->first || !taps->n_used || !taps->weights) {
        free(values);
        return 0;
    }
    for (int out = 0; out < n_out; out++) {
        double middle = begin + (out + 0.5) * scale, center = middle - 0.5, sum = 0.0, *value = values + (size_t)out * window;
        double low = floor(middle - stretch), high = ceil(middle + stretch);
        int from = low > 0.0 ? (int)low : 0, to = high < n_in ? (int)high : n_in, n = 0;
        int at = mirrored ? n_out - 1 - out : out, begun = from;
        for (int in = from; in < to; in++) {
            double distance = fabs((in - center) * reciprocal), weight = distance < 1.0 ? 1.0 - distance : 0.0;
            if (in == begun && weight == 0.0) {
                begun++; /* no weight of 0 at the beginning */
            } else {
                value[n++] = weight;
                sum += weight;
            }
        }
        while (n > 0 && value[n - 1] == 0.0)
            n--; /* nor at the end */
        for (int i = 0; i < n; i++) {
            value[i] /= sum;
            highest = value[i] > highest ? value[i] : highest;
        }
        taps->first[at] = begun;
        taps->n_used[at] = n;
        taps->n_groups = (n + 3) / 4 > taps->n_groups ? (n + 3) / 4 : taps->n_groups;
    }
    for (taps->precision = 0; taps->precision < MAX_PRECISION; taps->precision++)
        if (round(highest * (1 << (taps->precision + 1))) >= 1 << 15)
            break;
    for (int out = 0; out < n_out; out++) {
        int at = mirrored ? n_out - 1 - out : out;
        for (int i = 0; i < taps->n_used[at]; i++)
            taps->weights[(size_t)at * taps->n_weights + i] =
                (int16_t)round(values[(size_t)out * window + i] * (1 << taps->precision));
    }
    free(values);
    return 1;
}

static void free_taps(Taps *taps)
{
    free(taps->first);
    free(taps->n_used);
    free(taps->weights);
}

static inline uint8_t clip(int32_t sum, int precision)
{
    sum >>= precision;
    return sum < 0 ? 0 : sum > 255 ? 255 : (uint8_t)sum;
}

/* A row of `n` values, from `n_used` rows that are `stride` bytes apart. */
static void mix_rows(const uint8_t *in, size_t stride, const int16_t *weights, int n_used, int precision, uint8_t *out, int n)
{
    enum { AT_ONCE = 256 };
    int32_t sums[AT_ONCE];
    for (int begin = 0; begin < n; begin += AT_ONCE) {
        int many = n - begin < AT_ONCE ? n - begin : AT_ONCE;
        for (int x = 0; x < many; x++)
            sums[x] = 1 << (precision - 1);
        for (int i = 0; i < n_used; i++) {
            const uint8_t *row = in + i * stride + begin;
            for (int x = 0; x < many; x++)
                sums[x] += row[x] * weights[i];
        }
        for (int x = 0; x < many; x++)
            out[begin + x] = clip(sums[x], precision);
    }
}

/* A row of output pixels from a row of pixels with `n_channels` values. */
static void mix_columns(const uint8_t *in, const Taps *taps, int n_channels, uint8_t *out)
{
    for (int x = 0; x < taps->n_out; x++) {
        const int16_t *weights = taps->weights + (size_t)x * taps->n_weights;
        const uint8_t *pixel = in + (size_t)taps->first[x] * n_channels;
        for (int c = 0; c < n_channels; c++) {
            int32_t sum = 1 << (taps->precision - 1);
            for (int i = 0; i < taps->n_used[x]; i++)
                sum += pixel[i * n_channels + c] * weights[i];
            out[(size_t)x * n_channels + c] = clip(sum, taps->precision);
        }
    }
}

#ifdef HAS_AVX2_CODE

/* As `mix_rows`, 16 values at a time, the last ones perhaps twice, and two rows at a time. */
__attribute__((target("avx2"))) static void mix_rows_avx2(
    const uint8_t *in, size_t stride, const int16_t *weights, int n_used, int precision, uint8_t *out, int n)
{
    __m256i half = _mm256_set1_epi32(1 << (precision - 1));
    __m128i shift = _mm_cvtsi32_si128(precision);
    if (n < 16) {
        mix_rows(in, stride, weights, n_used, precision, out, n);
        return;
    }
    for (int begin = 0; begin < n; begin += 16) {
        int x = begin + 16 <= n ? begin : n - 16;
        const uint8_t *column = in + x;
        __m256i low = half, high = half;
        for (int i = 0; i < n_used; i += 2) {
            __m256i a = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(column + i * stride)));
            __m256i b = _mm256_setzero_si256();
            uint32_t pair = (uint16_t)weights[i];
            if (i + 1 < n_used) {
                b = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(column + (i + 1) * stride)));
                pair |= (uint32_t)(uint16_t)weights[i + 1] << 16;
            }
            __m256i both = _mm256_set1_epi32((int32_t)pair);
            low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), both));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), both));
        }
        __m256i words = _mm256_packs_epi32(_mm256_sra_epi32(low, shift), _mm256_sra_epi32(high, shift));
        __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128((__m128i *)(out + x), bytes);
    }
}

/* The sums, of 32 bits, of output pixel `x` of 3 or 4 values. 4 input pixels are taken at a time, the last ones with weights of
   0: `most_groups` times, or, if that is 0, as many times as this pixel needs. So up to 7 pixels behind those that are used, and
   4 bytes, are read. */
__attribute__((target("avx2"), always_inline)) static inline __m128i mix_pixel(
    const uint8_t *in, const Taps *taps, int x, int most_groups, int n_channels, __m256i order, __m256i half)
{
    const __m256i lanes = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    const uint8_t *pixel = in + taps->first[x] * n_channels;
    const int16_t *weights = taps->weights + (size_t)x * taps->n_weights;
    int n_groups = most_groups ? most_groups : (taps->n_used[x] + 3) / 4;
    __m256i sum = half;
    for (int i = 0; i < n_groups; i++) {
        __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(pixel + i * 4 * n_channels)));
        __m256i pairs = _mm256_castsi128_si256(_mm_loadl_epi64((const __m128i *)(weights + i * 4)));
        pairs = _mm256_permutevar8x32_epi32(pairs, lanes);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(bytes, order), pairs));
    }
    return _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
}

/* As `mix_columns` for 3 and 4 channels, four output pixels at a time, the last ones perhaps twice. See `mix_pixel`. */
__attribute__((target("avx2"), always_inline)) static inline void mix_columns_of(
    int most_groups, const uint8_t *in, const Taps *taps, int n_channels, uint8_t *out)
{
    enum { O = -128 }; /* makes a 0 */
    const __m256i three = _mm256_setr_epi8(0, O, 3, O, 1, O, 4, O, 2, O, 5, O, O, O, O, O,
                                           6, O, 9, O, 7, O, 10, O, 8, O, 11, O, O, O, O, O);
    const __m256i four = _mm256_setr_epi8(0, O, 4, O, 1, O, 5, O, 2, O, 6, O, 3, O, 7, O,
                                          8, O, 12, O, 9, O, 13, O, 10, O, 14, O, 11, O, 15, O);
    const __m128i close_up = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, O, O, O, O); /* without a fourth value */
    const __m256i order = n_channels == 3 ? three : four;
    const __m256i half = _mm256_zextsi128_si256(_mm_set1_epi32(1 << (taps->precision - 1)));
    const __m128i shift = _mm_cvtsi32_si128(taps->precision);
    if (taps->n_out < 4) {
        mix_columns(in, taps, n_channels, out);
        return;
    }
    for (int begin = 0; begin < taps->n_out; begin += 4) {
        int x = begin + 4 <= taps->n_out ? begin : taps->n_out - 4;
        __m128i a = mix_pixel(in, taps, x, most_groups, n_channels, order, half);
        __m128i b = mix_pixel(in, taps, x + 1, most_groups, n_channels, order, half);
        __m128i c = mix_pixel(in, taps, x + 2, most_groups, n_channels, order, half);
        __m128i d = mix_pixel(in, taps, x + 3, most_groups, n_channels, order, half);
        __m128i low = _mm_packs_epi32(_mm_sra_epi32(a, shift), _mm_sra_epi32(b, shift));
        __m128i high = _mm_packs_epi32(_mm_sra_epi32(c, shift), _mm_sra_epi32(d, shift));
        __m128i bytes = _mm_packus_epi16(low, high);
        if (n_channels == 3)
            bytes = _mm_shuffle_epi8(bytes, close_up);
        if ((taps->n_out - x) * n_channels >= 16)
            _mm_storeu_si128((__m128i *)(out + (size_t)x * n_channels), bytes);
        else
            memcpy(out + (size_t)x * n_channels, &bytes, 4 * n_channels);
    }
}

__attribute__((target("avx2"))) static void mix_columns_avx2(const uint8_t *in, const Taps *taps, int n_channels, uint8_t *out)
{
    if (taps->n_groups == 1 && n_channels == 3) /* the usual cases, which the compiler unrolls */
        mix_columns_of(1, in, taps, 3, out);
    else if (taps->n_groups == 2 && n_channels == 3)
        mix_columns_of(2, in, taps, 3, out);
    else
        mix_columns_of(0, in, taps, n_channels, out);
}

static int has_avx2;

#endif

/* To be called once, before anything is scaled. */
static void look_at_cpu(void)
{
#ifdef HAS_AVX2_CODE
    has_avx2 = __builtin_cpu_supports("avx2") != 0;
#endif
}

static void rows_to_row(const uint8_t *in, size_t stride, const Taps *taps, int y, uint8_t *out, int n)
{
    const int16_t *weights = taps->weights + (size_t)y * taps->n_weights;
    in += taps->first[y] * stride;
#ifdef HAS_AVX2_CODE
    if (has_avx2) {
        mix_rows_avx2(in, stride, weights, taps->n_used[y], taps->precision, out, n);
        return;
    }
#endif
    mix_rows(in, stride, weights, taps->n_used[y], taps->precision, out, n);
}

static void columns_to_row(const uint8_t *in, const Taps *taps, int n_channels, uint8_t *out)
{
#ifdef HAS_AVX2_CODE
    if (has_avx2 && n_channels > 1) {
        mix_columns_avx2(in, taps, n_channels, out);
        return;
    }
#endif
    mix_columns(in, taps, n_channels, out);
}

/* Where the pixels go. */
typedef struct {
    void *row; /* (height, width, n_channels) of bytes, or of floats if there are levels */
    int height, width, n_channels;
    int mirrored;
    const float *levels; /* (256,) what each byte becomes, or NULL */
} Target;

/* A part of an image, in its pixels. */
typedef struct {
    double top, left, height, width;
} Box;

/* Pixels that are scaled: rows of `n_columns` pixels, `stride` bytes apart. */
typedef struct {
    const uint8_t *pixels;
    size_t stride;
    int n_rows, n_columns;
} Source;

/* Row `y`, behind which PADDING bytes may be read: the last rows of the image are copied into `copy`. */
static const uint8_t *padded_row(const Source *in, int y, size_t n_bytes, uint8_t *copy)
{
    const uint8_t *row = in->pixels + y * in->stride;
    if ((in->n_rows - 1 - y) * in->stride >= PADDING)
        return row;
    return memcpy(copy, row, n_bytes);
}

/* A row of bytes is finished. */
static void put_row(const Target *to, int y, const uint8_t *bytes)
{
    size_t n = (size_t)to->width * to->n_channels;
    if (to->levels == NULL) {
        uint8_t *out = (uint8_t *)to->row + y * n;
        if (bytes != out)
            memcpy(out, bytes, n);
        return;
    }
    float *out = (float *)to->row + y * n;
    for (size_t i = 0; i < n; i++)
        out[i] = to->levels[bytes[i]];
}

/* Scale the part `box` of an image. False: there is not enough memory, and nothing is written. */
static int scale(Source in, Box box, const Target *to)
{
    double width = fmin(box.width, in.n_columns - box.left), height = fmin(box.height, in.n_rows - box.top); /* rounding */
    int is_across = width != to->width || box.left != round(box.left) || to->mirrored;
    int is_down = height != to->height || box.top != round(box.top);
    int across_first = is_across && is_down && to->height > box.height && to->width < box.width; /* then it is less to do */
    size_t n_in = (size_t)in.n_columns * to->n_channels, n_out = (size_t)to->width * to->n_channels;
    Taps across = {0}, down = {0};
    uint8_t *wide = malloc(n_in + PADDING), *made = malloc(n_out + PADDING); /* a row before, and after it is scaled across */
    uint8_t *narrow = malloc((across_first ? in.n_rows * n_out : 0) + PADDING); /* all rows, scaled across */
    int is_done = wide != NULL && made != NULL && narrow != NULL &&
                  (!is_across || make_taps(&across, in.n_columns, box.left, box.left + width, to->width, to->mirrored)) &&
                  (!is_down || make_taps(&down, in.n_rows, box.top, box.top + height, to->height, 0));
    if (is_done && across_first) {
        for (int y = 0; y < in.n_rows; y++)
            columns_to_row(padded_row(&in, y, n_in, wide), &across, to->n_channels, narrow + y * n_out);
        in = (Source){narrow, n_out, in.n_rows, to->width};
        n_in = n_out;
    }
    if (is_done && !is_across)
        in.pixels += (size_t)box.left * to->n_channels;
    is_across = is_across && !across_first;
    for (int y = 0; is_done && y < to->height; y++) {
        uint8_t *out = to->levels ? made : (uint8_t *)to->row + y * n_out;
        const uint8_t *row;
        if (is_down) {
            rows_to_row(in.pixels, in.stride, &down, y, is_across ? wide : out, is_across ? n_in : n_out);
            row = is_across ? wide : out;
        } else {
            int from = y + (int)box.top;
            row = is_across ? padded_row(&in, from, n_in, wide) : in.pixels + from * in.stride;
        }
        if (is_across) {
            columns_to_row(row, &across, to->n_channels, out);
            row = out;
        }
        put_row(to, y, row);
    }
    free(wide);
    free(made);
    free(narrow);
    free_taps(&across);
    free_taps(&down);
    return is_done;
}

/* What Python's arguments `out (H, W, C)` and `levels` say; the caller releases both buffers. False: an exception is set. */
static int take_target(Target *target, PyObject *out_given, PyObject *levels_given, Py_buffer *out, Py_buffer *levels)
{
    if (PyObject_GetBuffer(out_given, out, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) < 0)
        return 0;
    if (levels_given != Py_None && PyObject_GetBuffer(levels_given, levels, PyBUF_C_CONTIGUOUS) < 0)
        return 0;
    Py_ssize_t item_bytes = levels->obj ? sizeof(float) : 1;
    if (out->ndim != 3 || out->itemsize != item_bytes || (out->shape[2] != 1 && out->shape[2] != 3 && out->shape[2] != 4) ||
        out->shape[0] < 1 || out->shape[1] < 1 || out->shape[0] > MAX_SIDE || out->shape[1] > MAX_SIDE) {
        PyErr_SetString(PyExc_TypeError, "out is (H, W, C) uint8, or float32 with levels; C is 1, 3 or 4");
        return 0;
    }
    if (levels->obj && levels->len != 256 * (Py_ssize_t)sizeof(float)) {
        PyErr_SetString(PyExc_TypeError, "levels are (256,) float32");
        return 0;
    }
    target->row = out->buf;
    target->height = (int)out->shape[0];
    target->width = (int)out->shape[1];
    target->n_channels = (int)out->shape[2];
    target->levels = levels->obj ? levels->buf : NULL;
    return 1;
}

/* Whether a part is inside an image of this size; else an exception is set. */
static int check_box(const Box *box, double height, double width)
{
    const double rounding = 1e-6;
    if (box->top >= 0 && box->left >= 0 && box->height > 0 && box->width > 0 && box->top + box->height <= height + rounding &&
        box->left + box->width <= width + rounding)
        return 1;
    PyErr_SetString(PyExc_ValueError, "the part is not inside the image");
    return 0;
}
