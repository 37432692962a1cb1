"""Packages: what runs without those that it does not use, and tells of those that do not go together, undone."""

from tests.breaks import Break, Edit

TABLE = (
    Break(
        "xxhash is needed by sources that are asked for no fingerprint",
        (),
        (
            Edit(
                "packing/watch.py",
                "try:\n    import xxhash\nexcept ImportError:\n    xxhash = None  # type: ignore[assignment]\n",
                "import xxhash\n",
            ),
        ),
        (
            "test_bare.py::test_arrays_need_numpy_cloudpickle_and_psutil_alone",
            "test_bare.py::test_a_function_with_much_data_of_its_own_needs_no_more",
        ),
        r"d 'xxhash'",
    ),
    Break(
        "two packages of OpenCV in one folder go unnoticed",
        (),
        (Edit("images/decoder.py", "    warn_of_two()\n", ""),),
        ("test_bare.py::test_two_packages_of_opencv_in_one_folder_are_warned_of_once",),
        r"UserWarning: opencv-contrib-python",
    ),
    Break(
        "of an OpenCV whose files are not whole, nothing is said",
        (),
        (Edit("images/__init__.py", "    raise unusable(_PART, error) from error\n", "    raise\n"),),
        ("test_bare.py::test_opencv_whose_files_are_not_whole_is_an_error_with_the_remedy",),
        r"ImportError: cannot import name 'imdecode'|No module named 'cv2'|libGL",
    ),
)
