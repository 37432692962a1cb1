/* "antialias" in C, for any decoder's pixels: see scale.h.

     scale    pixels, part, row -> the part in the row: scaled, mirrored and converted in one call

   Pixels may be rows of a larger image. The GIL is released while a call works. */

#include "scale.h"

static PyObject *py_scale(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer pixels = {0}, out = {0}, levels = {0};
    PyObject *pixels_given, *out_given, *levels_given, *result = NULL;
    Target to = {0};
    Box box;
    int is_done;
    if (!PyArg_ParseTuple(arguments, "O(dddd)OpO:scale", &pixels_given, &box.top, &box.left, &box.height, &box.width, &out_given,
                          &to.mirrored, &levels_given))
        return NULL;
    if (PyObject_GetBuffer(pixels_given, &pixels, PyBUF_STRIDES) < 0)
        return NULL;
    if (!take_target(&to, out_given, levels_given, &out, &levels))
        goto end;
    if (pixels.ndim != 3 || pixels.itemsize != 1 || pixels.shape[2] != to.n_channels || pixels.strides[2] != 1 ||
        pixels.strides[1] != to.n_channels || pixels.strides[0] < pixels.shape[1] * to.n_channels ||
        pixels.shape[0] > MAX_SIDE * 64 || pixels.shape[1] > MAX_SIDE * 64) {
        PyErr_SetString(PyExc_TypeError, "pixels are (h, w, C) uint8 with the channels of out; each row is contiguous");
        goto end;
    }
    if (!check_box(&box, pixels.shape[0], pixels.shape[1]))
        goto end;
    Source in = {pixels.buf, pixels.strides[0], (int)pixels.shape[0], (int)pixels.shape[1]};
    Py_BEGIN_ALLOW_THREADS
    is_done = scale(in, box, &to);
    Py_END_ALLOW_THREADS
    result = is_done ? Py_NewRef(Py_None) : PyErr_NoMemory();
end:
    PyBuffer_Release(&pixels);
    PyBuffer_Release(&out);
    PyBuffer_Release(&levels);
    return result;
}

static PyMethodDef methods[] = {
    {"scale", py_scale, METH_VARARGS,
     "scale(pixels, (top, left, height, width), out, mirrored, levels): scale a part of `pixels (h, w, C) uint8` to\n"
     "`out (H, W, C) uint8`, and mirror it if asked to; with `levels (256,) float32`, `out` is float32 and gets the level of each\n"
     "byte. Raises MemoryError."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_resample", "Scaling of images. See resample.py.", -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__resample(void)
{
    look_at_cpu();
    return PyModule_Create(&definition);
}
