/* JPEG files into rows, by libjpeg-turbo: only the part that is shown is decoded, then scaled, mirrored and written in one call.

     header   bytes -> (height, width, whether the decoder holds the whole image)
     decode   bytes, scale, part, row -> pixels in the row

   The pixels are those of the way in Python (simplejpeg, then cykooz-resizer or a copy), to the bit: tests/test_native.py
   compares them. What this module does not decode, it refuses with ValueError and the reason, before it writes into the row;
   the caller then takes the way in Python. Nothing is kept between two calls, and the GIL is released while a call decodes.

   libjpeg leaves a call by longjmp. Memory is therefore noted in `Work`, and freed in one place. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <jpeglib.h>
#include <jerror.h>

#include "scale.h"

#ifndef JCS_EXTENSIONS
#error "this is not libjpeg-turbo: it cannot decode RGBA, nor a part of the columns"
#endif

#define STRING_OF(name) #name
#define STRING(name) STRING_OF(name) /* of the value of a macro */

/* -- a call ----------------------------------------------------------------------------------------------------------- */

typedef struct {
    struct jpeg_decompress_struct jpeg; /* first: libjpeg's functions get a pointer to it */
    struct jpeg_error_mgr errors;
    jmp_buf end;
    char reason[JMSG_LENGTH_MAX];

    const uint8_t *data;
    size_t n_bytes;
    J_COLOR_SPACE color;
    int eighths;
    Box box; /* of the scaled image */
    Target target;
    uint8_t *pixels; /* the decoded part, with what is decoded to its left and right */
} Work;

#define NO_MEMORY "there is not enough memory"

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

/* Decode rows [top, bottom) and at least columns [left, right) of the scaled image. */
static Source decode_part(Work *work, int top, int bottom, int left, int right)
{
    struct jpeg_decompress_struct *jpeg = &work->jpeg;
    int n_channels = work->target.n_channels, n_rows = bottom - top;
    /* The first and last column that are decoded lack a neighbour to interpolate chroma with: they are not used. */
    JDIMENSION from = left > 0 ? left - 1 : 0, to = right < (int)jpeg->output_width ? right + 1 : right, width = to - from;
    if (width < jpeg->output_width)
        jpeg_crop_scanline(jpeg, &from, &width);
    size_t stride = (size_t)jpeg->output_width * n_channels;
    work->pixels = malloc(n_rows * stride);
    if (work->pixels == NULL)
        refuse(work, NO_MEMORY);
    if (top > 0 && jpeg_skip_scanlines(jpeg, top) != (JDIMENSION)top)
        refuse(work, "its first lines cannot be skipped");
    for (int row = 0; row < n_rows;) {
        JSAMPROW rows[16];
        int n = n_rows - row < 16 ? n_rows - row : 16;
        for (int i = 0; i < n; i++)
            rows[i] = work->pixels + (row + i) * stride;
        int n_read = jpeg_read_scanlines(jpeg, rows, n);
        if (n_read == 0)
            refuse(work, "its lines end too early");
        row += n_read;
    }
    return (Source){work->pixels + (size_t)(left - from) * n_channels, stride, n_rows, right - left};
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
    Source decoded = decode_part(work, top, bottom, left, right);
    box.top -= top;
    box.left -= left;
    if (!scale(decoded, box, &work->target))
        refuse(work, NO_MEMORY);
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

static PyObject *decode(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer data = {0}, out = {0}, levels = {0};
    PyObject *out_given, *levels_given, *result = NULL;
    Work work = {0};
    Box *box = &work.box;
    if (!PyArg_ParseTuple(arguments, "y*i(dddd)OpO:decode", &data, &work.eighths, &box->top, &box->left, &box->height,
                          &box->width, &out_given, &work.target.mirrored, &levels_given))
        return NULL;
    if (!take_target(&work.target, out_given, levels_given, &out, &levels) || !check_box(box, MAX_SIDE + 1, MAX_SIDE + 1))
        goto end;
    if (work.eighths < 1 || work.eighths > 8) {
        PyErr_SetString(PyExc_ValueError, "eighths are from 1 to 8");
        goto end;
    }
    work.data = data.buf;
    work.n_bytes = data.len;
    work.color = work.target.n_channels == 1 ? JCS_GRAYSCALE : work.target.n_channels == 3 ? JCS_RGB : JCS_EXT_RGBA;
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
    look_at_cpu();
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddStringConstant(module, "LIBRARY", "libjpeg-turbo " STRING(LIBJPEG_TURBO_VERSION)) < 0)
        Py_CLEAR(module);
    return module;
}
