/* JPEG files into rows, by libjpeg-turbo: only the part that is shown is decoded, then scaled, mirrored and written in one call.

     header   bytes -> (height, width, whether the decoder holds the whole image)
     decode   bytes, scale, part, row -> pixels in the row

   The pixels are those of the way in Python (simplejpeg, then cykooz-resizer or a copy), to the bit: tests/test_native.py
   compares them. What this module does not decode, it refuses with ValueError and the reason, before it writes into the row;
   the caller then takes the way in Python. Nothing is kept between two calls, and the GIL is released while a call decodes.

   libjpeg leaves a call by longjmp. Memory is therefore noted in `Work`, and freed in one place. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(RINGLOAD_NO_AVX2)
#include <immintrin.h>
#define HAS_AVX2_CODE 1
#endif

#ifndef JCS_EXTENSIONS
#error "this is not libjpeg-turbo: it cannot decode RGBA, nor a part of the columns"
#endif

#define STRING_OF(name) #name
#define STRING(name) STRING_OF(name) /* of the value of a macro */

enum { PADDING = 64 };       /* bytes after each buffer, which vector instructions may read, and never use */
enum { MAX_PRECISION = 21 }; /* bits: a sum of 8-bit pixels times weights fits into 32 bits */
enum { MAX_SIDE = 65500 };   /* of what is written: the sum of all sizes fits into 64 bits */

/* -- scaling ---------------------------------------------------------------------------------------------------------

   Each output pixel is the mean of the pixels below a triangle (see resample.py). The arithmetic is that of cykooz-resizer,
   and so of Pillow-SIMD: weights are 16-bit integers, sums are 32-bit, and each direction rounds to 8 bits. */

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

/* -- a call ----------------------------------------------------------------------------------------------------------- */

typedef struct {
    double top, left, height, width; /* of the part, in pixels of the scaled image */
} Box;

typedef struct {
    struct jpeg_decompress_struct jpeg; /* first: libjpeg's functions get a pointer to it */
    struct jpeg_error_mgr errors;
    jmp_buf end;
    char reason[JMSG_LENGTH_MAX];

    const uint8_t *data;
    size_t n_bytes;
    J_COLOR_SPACE color;
    int n_channels, eighths, mirrored;
    Box box;
    int out_height, out_width;
    uint8_t *out;        /* (out_height, out_width, n_channels) of bytes, or of floats if there are levels */
    const float *levels; /* (256,) what each byte becomes, or NULL */

    uint8_t *pixels;  /* (n_rows, stride) the decoded part, with what is decoded to its left and right */
    size_t stride;
    int n_rows;
    uint8_t *between; /* rows that are scaled in one direction */
    uint8_t *line;    /* a finished row, if there are levels */
    Taps across, down;
} Work;

static void refuse(Work *work, const char *reason)
{
    snprintf(work->reason, sizeof work->reason, "%s", reason);
    longjmp(work->end, 1);
}

static void on_error(j_common_ptr jpeg)
{
    Work *work = (Work *)jpeg;
    (*jpeg->err->format_message)(jpeg, work->reason);
    longjmp(work->end, 1);
}

/* A warning (level -1) says that the data are damaged. */
static void on_message(j_common_ptr jpeg, int level)
{
    if (level < 0)
        on_error(jpeg);
}

static void on_output(j_common_ptr jpeg)
{
    (void)jpeg; /* nothing is printed */
}

static void *memory(Work *work, size_t n_bytes)
{
    void *allocated = malloc(n_bytes + PADDING);
    if (allocated == NULL)
        refuse(work, "there is not enough memory");
    return allocated;
}

static void begin(Work *work)
{
    work->jpeg.err = jpeg_std_error(&work->errors);
    work->errors.error_exit = on_error;
    work->errors.emit_message = on_message;
    work->errors.output_message = on_output;
    jpeg_create_decompress(&work->jpeg);
    jpeg_mem_src(&work->jpeg, (unsigned char *)work->data, work->n_bytes);
    jpeg_read_header(&work->jpeg, TRUE);
}

static void finish(Work *work)
{
    jpeg_destroy_decompress(&work->jpeg);
    free(work->pixels);
    free(work->between);
    free(work->line);
    free_taps(&work->across);
    free_taps(&work->down);
}

/* Refuse what simplejpeg refuses, so that both ways decode the same files. */
static void check_kind(Work *work)
{
    const struct jpeg_decompress_struct *jpeg = &work->jpeg;
    const jpeg_component_info *parts = jpeg->comp_info;
    if (jpeg->num_components == 1 && jpeg->jpeg_color_space == JCS_GRAYSCALE)
        return;
    if (jpeg->num_components != 3 || (jpeg->jpeg_color_space != JCS_YCbCr && jpeg->jpeg_color_space != JCS_RGB))
        refuse(work, "its colours are not those of a photograph");
    int across = parts[0].h_samp_factor, down = parts[0].v_samp_factor;
    for (int i = 1; i < 3; i++)
        if (parts[i].h_samp_factor != 1 || parts[i].v_samp_factor != 1)
            refuse(work, "it has an unusual chroma subsampling");
    if (!((across <= 2 && down <= 2) || (across == 4 && down == 1)))
        refuse(work, "it has an unusual chroma subsampling");
}

/* Whether an end of the image follows its header. Without one the file was cut short, perhaps below the part that is decoded. */
static int has_end(const Work *work)
{
    const uint8_t *begin = work->jpeg.src->next_input_byte, *at = work->data + work->n_bytes - 2;
    for (; at >= begin; at--)
        if (at[0] == 0xFF && at[1] == JPEG_EOI)
            return 1;
    return 0;
}

/* A progressive file may leave out the last bits of coefficients. libjpeg then smooths, by what lies outside of the part, too. */
static int is_complete(const struct jpeg_decompress_struct *jpeg)
{
    if (!jpeg->progressive_mode || jpeg->coef_bits == NULL)
        return 1;
    for (int part = 0; part < jpeg->num_components; part++)
        for (int i = 0; i < DCTSIZE2; i++)
            if (jpeg->coef_bits[part][i] != 0)
                return 0;
    return 1;
}

/* Decode rows [top, bottom) and at least columns [left, right) of the scaled image. Returns where column `left` begins. */
static const uint8_t *decode_part(Work *work, int top, int bottom, int left, int right)
{
    struct jpeg_decompress_struct *jpeg = &work->jpeg;
    /* The first and last column that are decoded lack a neighbour to interpolate chroma with: they are not used. */
    JDIMENSION from = left > 0 ? left - 1 : 0, to = right < (int)jpeg->output_width ? right + 1 : right, width = to - from;
    if (width < jpeg->output_width)
        jpeg_crop_scanline(jpeg, &from, &width);
    work->n_rows = bottom - top;
    work->stride = (size_t)jpeg->output_width * work->n_channels;
    work->pixels = memory(work, work->n_rows * work->stride);
    if (top > 0 && jpeg_skip_scanlines(jpeg, top) != (JDIMENSION)top)
        refuse(work, "its first lines cannot be skipped");
    for (int row = 0; row < work->n_rows;) {
        JSAMPROW rows[16];
        int n = work->n_rows - row < 16 ? work->n_rows - row : 16;
        for (int i = 0; i < n; i++)
            rows[i] = work->pixels + (row + i) * work->stride;
        int n_read = jpeg_read_scanlines(jpeg, rows, n);
        if (n_read == 0)
            refuse(work, "its lines end too early");
        row += n_read;
    }
    return work->pixels + (size_t)(left - from) * work->n_channels;
}

/* A row of bytes is finished. */
static void put_row(const Work *work, int y, const uint8_t *row)
{
    int n = work->out_width * work->n_channels;
    if (work->levels == NULL) {
        uint8_t *out = work->out + (size_t)y * n;
        if (row != out)
            memcpy(out, row, n);
        return;
    }
    float *out = (float *)work->out + (size_t)y * n;
    for (int i = 0; i < n; i++)
        out[i] = work->levels[row[i]];
}

/* Scale the part `box` of `in (n_rows, n_columns)`, a row being work->stride bytes, and write it. */
static void scale(Work *work, const uint8_t *in, int n_columns, Box box)
{
    int n_channels = work->n_channels, n_rows = work->n_rows, height = work->out_height, width = work->out_width;
    double box_width = fmin(box.width, n_columns - box.left), box_height = fmin(box.height, n_rows - box.top); /* rounding */
    int is_across = box_width != width || box.left != round(box.left) || work->mirrored;
    int is_down = box_height != height || box.top != round(box.top);
    size_t n_in = (size_t)n_columns * n_channels, n_out = (size_t)width * n_channels;
    if (is_across && !make_taps(&work->across, n_columns, box.left, box.left + box_width, width, work->mirrored))
        refuse(work, "there is not enough memory");
    if (is_down && !make_taps(&work->down, n_rows, box.top, box.top + box_height, height, 0))
        refuse(work, "there is not enough memory");
    if (work->levels)
        work->line = memory(work, n_out);
    if (is_across && is_down && height > box.height && width < box.width) { /* across first: it is less to do */
        work->between = memory(work, n_rows * n_out);
        for (int y = 0; y < n_rows; y++)
            columns_to_row(in + y * work->stride, &work->across, n_channels, work->between + y * n_out);
        for (int y = 0; y < height; y++) {
            uint8_t *row = work->levels ? work->line : work->out + y * n_out;
            rows_to_row(work->between, n_out, &work->down, y, row, (int)n_out);
            put_row(work, y, row);
        }
        return;
    }
    if (is_down)
        work->between = memory(work, n_in);
    if (!is_across)
        in += (size_t)box.left * n_channels;
    for (int y = 0; y < height; y++) {
        const uint8_t *row = in + (y + (size_t)box.top) * work->stride;
        uint8_t *made = work->levels ? work->line : work->out + y * n_out;
        if (is_down) {
            uint8_t *mixed = is_across ? work->between : made;
            rows_to_row(in, work->stride, &work->down, y, mixed, (int)(is_across ? n_in : n_out));
            row = mixed;
        }
        if (is_across) {
            columns_to_row(row, &work->across, n_channels, made);
            row = made;
        }
        put_row(work, y, row);
    }
}

static void decode_and_scale(Work *work)
{
    struct jpeg_decompress_struct *jpeg = &work->jpeg;
    check_kind(work);
    if (!has_end(work))
        refuse(work, "it has no end");
    jpeg->out_color_space = work->color;
    jpeg->scale_num = work->eighths;
    jpeg->scale_denom = 8;
    jpeg->dct_method = JDCT_ISLOW;
    jpeg_start_decompress(jpeg);
    if (!is_complete(jpeg))
        refuse(work, "it lacks bits of its coefficients");
    Box box = work->box;
    int top = (int)floor(box.top), left = (int)floor(box.left);
    int bottom = (int)ceil(box.top + box.height), right = (int)ceil(box.left + box.width);
    if (top < 0 || left < 0 || bottom > (int)jpeg->output_height || right > (int)jpeg->output_width)
        refuse(work, "the part is not inside the image");
    const uint8_t *pixels = decode_part(work, top, bottom, left, right);
    box.top -= top;
    box.left -= left;
    scale(work, pixels, right - left, box);
}

/* -- Python ----------------------------------------------------------------------------------------------------------- */

/* Whether a step of `work` was done; else an exception is set. The GIL is released meanwhile. */
static int run(Work *work, void (*step)(Work *))
{
    volatile int is_done = 0; /* as a call may end by longjmp */
    Py_BEGIN_ALLOW_THREADS
    if (setjmp(work->end) == 0) {
        begin(work);
        step(work);
        is_done = 1;
    }
    Py_END_ALLOW_THREADS
    return is_done;
}

static PyObject *header(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer data;
    Work work = {0};
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(arguments, "y*:header", &data))
        return NULL;
    work.data = data.buf;
    work.n_bytes = data.len;
    if (run(&work, check_kind)) {
        int is_held = work.jpeg.progressive_mode || work.jpeg.comps_in_scan < work.jpeg.num_components;
        result = Py_BuildValue("IIO", work.jpeg.image_height, work.jpeg.image_width, is_held ? Py_True : Py_False);
    } else {
        PyErr_SetString(PyExc_ValueError, work.reason);
    }
    finish(&work);
    PyBuffer_Release(&data);
    return result;
}

static int check_arguments(const Work *work, const Py_buffer *out, const Py_buffer *levels)
{
    const Box *box = &work->box;
    Py_ssize_t item_bytes = levels->obj ? sizeof(float) : 1;
    if (out->ndim != 3 || out->itemsize != item_bytes || (out->shape[2] != 1 && out->shape[2] != 3 && out->shape[2] != 4) ||
        out->shape[0] < 1 || out->shape[1] < 1 || out->shape[0] > MAX_SIDE || out->shape[1] > MAX_SIDE)
        PyErr_SetString(PyExc_TypeError, "out is (H, W, C) uint8, or float32 with levels; C is 1, 3 or 4");
    else if (levels->obj && levels->len != 256 * (Py_ssize_t)sizeof(float))
        PyErr_SetString(PyExc_TypeError, "levels are (256,) float32");
    else if (work->eighths < 1 || work->eighths > 8)
        PyErr_SetString(PyExc_ValueError, "eighths are from 1 to 8");
    else if (!(box->top >= 0 && box->left >= 0 && box->height > 0 && box->width > 0 && box->top + box->height <= MAX_SIDE + 1 &&
               box->left + box->width <= MAX_SIDE + 1))
        PyErr_SetString(PyExc_ValueError, "the part is not inside an image");
    else
        return 1;
    return 0;
}

static PyObject *decode(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer data = {0}, out = {0}, levels = {0};
    PyObject *levels_object;
    Work work = {0};
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(arguments, "y*i(dddd)OpO:decode", &data, &work.eighths, &work.box.top, &work.box.left,
                          &work.box.height, &work.box.width, &result, &work.mirrored, &levels_object))
        return NULL;
    PyObject *out_object = result;
    result = NULL;
    if (PyObject_GetBuffer(out_object, &out, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) < 0)
        goto end;
    if (levels_object != Py_None && PyObject_GetBuffer(levels_object, &levels, PyBUF_C_CONTIGUOUS) < 0)
        goto end;
    if (!check_arguments(&work, &out, &levels))
        goto end;
    work.data = data.buf;
    work.n_bytes = data.len;
    work.out = out.buf;
    work.levels = levels.obj ? levels.buf : NULL;
    work.out_height = (int)out.shape[0];
    work.out_width = (int)out.shape[1];
    work.n_channels = (int)out.shape[2];
    work.color = work.n_channels == 1 ? JCS_GRAYSCALE : work.n_channels == 3 ? JCS_RGB : JCS_EXT_RGBA;
    if (run(&work, decode_and_scale))
        result = Py_NewRef(Py_None);
    else
        PyErr_SetString(PyExc_ValueError, work.reason);
    finish(&work);
end:
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    PyBuffer_Release(&levels);
    return result;
}

static PyMethodDef methods[] = {
    {"header", header, METH_VARARGS,
     "header(data) -> (height, width, is_held_whole). Raises ValueError with the reason for files that `decode` refuses."},
    {"decode", decode, METH_VARARGS,
     "decode(data, eighths, (top, left, height, width), out, mirrored, levels): decode the part of the image at the scale\n"
     "eighths / 8, scale it to `out (H, W, C) uint8`, mirror it if asked to; with `levels (256,) float32`, `out` is float32 and\n"
     "gets the level of each byte. Raises ValueError with the reason, before it writes to `out`."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_jpeg", "JPEG files into rows, by libjpeg-turbo. See jpeg.py.", -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__jpeg(void)
{
#ifdef HAS_AVX2_CODE
    has_avx2 = __builtin_cpu_supports("avx2") != 0;
#endif
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddStringConstant(module, "LIBRARY", "libjpeg-turbo " STRING(LIBJPEG_TURBO_VERSION)) < 0)
        Py_CLEAR(module);
    return module;
}
