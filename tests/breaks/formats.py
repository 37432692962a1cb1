"""Formats of the extra `formats`, and values that are kept: what refuses wrong sizes and wrong values, undone."""

from tests.breaks import Break, Edit

TESTS = "test_more_formats.py"

TABLE = (
    Break(
        "a compressed frame of another size than the DICOM file's is decoded",
        (),
        (Edit("images/dicom.py", "    if size != (height, width):\n", "    if size[0] < 0:\n"),),
        (f"{TESTS}::test_compressed_dicom",),
        r"did not match|DID NOT RAISE",
    ),
    Break(
        "the bits beyond BitsStored are a part of DICOM's values",
        (),
        (Edit("images/dicom.py", "    return (values << unused) >> unused if unused else values\n", "    return values\n"),),
        (f"{TESTS}::test_dicom_by_its_stored_bits_and_inverted",),
        r"Mismatched elements",
    ),
    Break(
        "values of an 8-bit DICOM file whose least is white are shown when they are to be kept",
        (),
        (Edit("images/pillow.py", " and values.n_bits == 8 and not values.is_inverted:", ":"),),
        (f"{TESTS}::test_values_of_dicom_files_are_those_of_pydicom",),
        r"Mismatched elements",
    ),
    Break(
        "a QOI file without its end is decoded, and its last pixel repeated",
        (),
        (Edit("images/qoi.py", "    if bytes(data[-len(END) :]) != END:\n", "    if len(data) < len(END):\n"),),
        (f"{TESTS}::test_what_is_cut_short_is_refused[QOI-refuse]",),
        r"DID NOT RAISE",
    ),
    Break(
        "the limits see one size of a JPEG 2000 file, and its decoder another",
        (),
        (Edit("images/jpeg2000.py", "    if size not in (None, (bottom - top, right - left)):\n", "    if size == ():\n"),),
        (f"{TESTS}::test_headers_of_jpeg_2000_that_differ_are_refused",),
        r"did not match|DID NOT RAISE",
    ),
    Break(
        "a .npy file of objects reaches NumPy",
        (),
        (Edit("images/npy.py", "    if not DTYPES.fullmatch(name):\n", "    if not name:\n"),),
        (f"{TESTS}::test_nothing_of_an_npy_file_is_unpickled",),
        r"did not match|DID NOT RAISE",
    ),
    Break(
        "floats are cut to integers",
        (),
        (Edit("images/values.py", "    _check_fits(values, out.dtype)\n", ""),),
        (f"{TESTS}::test_floats_are_kept",),
        r"did not match|DID NOT RAISE|Cannot cast",
    ),
    Break(
        "values of more than 8 bits are rounded down after they are averaged",
        (),
        (Edit("images/values.py", "np.rint(scaled).clip(", "np.floor(scaled).clip("),),
        (f"{TESTS}::test_kept_values_are_resized_as_pillow_resizes_floats",),
        r"Mismatched elements",
    ),
)
