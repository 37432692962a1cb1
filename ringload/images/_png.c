/* The filters of PNG files, undone: each row of an inflated file begins with the number of its filter, 0 to 4, and its bytes are
   differences to what the filter predicts from the bytes to the left, above, and above to the left (ISO 15948, 9.2).

     unfilter   rows of differences -> rows of pixels, in place

   This is three quarters of Pillow's time for a PNG file, which predicts byte by byte, with branches. The loops below are
   compiled once for each number of bytes a pixel, and have no branches. The GIL is released while a call works. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <stdlib.h>

#define INLINE static inline __attribute__((always_inline))

enum { MAX_STEP = 4 }; /* bytes a pixel, at most */

INLINE void add_left(uint8_t *row, Py_ssize_t n_bytes, const int step)
{
    uint8_t left[MAX_STEP] = {0};
    for (Py_ssize_t at = 0; at < n_bytes; at += step)
        for (int k = 0; k < step; k++)
            row[at + k] = left[k] = (uint8_t)(left[k] + row[at + k]);
}

INLINE void add_above(uint8_t *row, const uint8_t *above, Py_ssize_t n_bytes)
{
    for (Py_ssize_t at = 0; at < n_bytes; at++)
        row[at] = (uint8_t)(row[at] + above[at]);
}

INLINE void add_mean(uint8_t *row, const uint8_t *above, Py_ssize_t n_bytes, const int step)
{
    uint8_t left[MAX_STEP] = {0};
    for (Py_ssize_t at = 0; at < n_bytes; at += step)
        for (int k = 0; k < step; k++)
            row[at + k] = left[k] = (uint8_t)(row[at + k] + ((left[k] + above[at + k]) >> 1));
}

/* Of left, above, and above to the left: the one that is nearest to left + above - corner, and the first of equals. */
INLINE void add_nearest(uint8_t *row, const uint8_t *above, Py_ssize_t n_bytes, const int step)
{
    int left[MAX_STEP] = {0}, corner[MAX_STEP] = {0};
    for (Py_ssize_t at = 0; at < n_bytes; at += step)
        for (int k = 0; k < step; k++) {
            int up = above[at + k];
            int from_left = abs(up - corner[k]), from_up = abs(left[k] - corner[k]);
            int from_corner = abs(up + left[k] - 2 * corner[k]);
            int nearest = from_left <= from_up ? left[k] : up, least = from_left <= from_up ? from_left : from_up;
            nearest = from_corner < least ? corner[k] : nearest;
            corner[k] = up;
            left[k] = (uint8_t)(row[at + k] + nearest);
            row[at + k] = (uint8_t)left[k];
        }
}

/* False: there is no such filter. */
INLINE int undo(uint8_t *row, const uint8_t *above, Py_ssize_t n_bytes, const int step)
{
    switch (row[-1]) {
    case 0:
        return 1;
    case 1:
        add_left(row, n_bytes, step);
        return 1;
    case 2:
        add_above(row, above, n_bytes);
        return 1;
    case 3:
        add_mean(row, above, n_bytes, step);
        return 1;
    case 4:
        add_nearest(row, above, n_bytes, step);
        return 1;
    default:
        return 0;
    }
}

static int undo_rows(uint8_t *rows, const uint8_t *zeros, Py_ssize_t first, Py_ssize_t end, Py_ssize_t n_bytes, int step)
{
    int is_valid = 1;
    for (Py_ssize_t y = first; y < end && is_valid; y++) {
        uint8_t *row = rows + y * (n_bytes + 1) + 1;
        const uint8_t *above = y ? row - n_bytes - 1 : zeros;
        switch (step) {
        case 1:
            is_valid = undo(row, above, n_bytes, 1);
            break;
        case 2:
            is_valid = undo(row, above, n_bytes, 2);
            break;
        case 3:
            is_valid = undo(row, above, n_bytes, 3);
            break;
        default:
            is_valid = undo(row, above, n_bytes, 4);
        }
    }
    return is_valid;
}

PyDoc_STRVAR(unfilter_doc,
             "unfilter(rows, first, end, row_bytes, pixel_bytes) -> bool\n\n"
             "Undo the filters of rows[first:end]; those before are done. False: a filter is not valid.\n\n"
             "rows: (H, 1 + row_bytes) uint8, contiguous. pixel_bytes: 1 to 4.\n"
             "Raises ValueError for other arguments.");

static PyObject *unfilter(PyObject *self, PyObject *arguments)
{
    Py_buffer rows;
    Py_ssize_t first, end, row_bytes;
    int pixel_bytes, is_valid = 0;
    uint8_t *zeros = NULL;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "w*nnni", &rows, &first, &end, &row_bytes, &pixel_bytes))
        return NULL;
    if (pixel_bytes < 1 || pixel_bytes > MAX_STEP || row_bytes <= 0 || row_bytes >= rows.len || row_bytes % pixel_bytes || first < 0 || first > end ||
        end > rows.len / (row_bytes + 1))
        PyErr_SetString(PyExc_ValueError, "these are no rows of pixels");
    else if (!(zeros = calloc((size_t)row_bytes, 1)))
        PyErr_NoMemory();
    else {
        Py_BEGIN_ALLOW_THREADS
        is_valid = undo_rows(rows.buf, zeros, first, end, row_bytes, pixel_bytes);
        Py_END_ALLOW_THREADS
    }
    free(zeros);
    PyBuffer_Release(&rows);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(is_valid);
}

static PyMethodDef methods[] = {{"unfilter", unfilter, METH_VARARGS, unfilter_doc}, {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_png", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit__png(void)
{
    return PyModule_Create(&module);
}
