"""Images: what makes the fast decoder's pixels those of the other, and refuses what it does not decode, undone."""

from tests.breaks import Break, Edit

C, S = "images/_jpeg.c", "images/scale.h"
P, PLAIN = "images/_png.c", "images/plain.py"
KINDS = "test_native.py::test_the_same_pixels_of_each_kind_of_file"
ROUNDED = "    __m256i half = _mm256_set1_epi32(1 << (precision - 1));\n"

TABLE = (
    Break(
        "a part is decoded without the columns beside it, which its chroma depends on",
        (),
        (Edit(C, "JDIMENSION from = left > 0 ? left - 1 : 0,", "JDIMENSION from = left,"),),
        (f"{KINDS}[vectors-4:2:0-False-0]",),
        r"Mismatched elements",
    ),
    Break(
        "scaled rows are rounded down",
        (),
        (Edit(S, "            sums[x] = 1 << (precision - 1);\n", "            sums[x] = 0;\n"),),
        (f"{KINDS}[no vectors-4:4:4-False-0]",),
        r"Mismatched elements",
    ),
    Break(
        "the vectors use another rounding",
        (),
        (
            Edit(
                S,
                "    __m256i half = _mm256_set1_epi32(1 << (precision - 1));\n",
                "    __m256i half = _mm256_setzero_si256();\n",
            ),
        ),
        (f"{KINDS}[vectors-4:4:4-False-0]",),
        r"Mismatched elements",
    ),
    Break(
        "of a file that is cut short, the part that is there is shown",
        (),
        (Edit(C, "    if (!has_end(work))\n", "    if (0 && !has_end(work))\n"),),
        ("test_native.py::test_what_is_cut_short_is_refused_though_the_part_that_is_shown_is_there",),
        r"DID NOT RAISE",
    ),
    Break(
        "damage in what is decoded is not noticed",
        (),
        (Edit(C, "    if (level < 0)\n", "    if (level < -1)\n"),),
        ("test_native.py::test_damage_in_what_is_decoded_is_refused",),
        r"DID NOT RAISE",
    ),
    Break(
        "a progressive file without its last bits is decoded in part, so that libjpeg smooths it otherwise",
        (),
        (Edit(C, "    if (!is_complete(jpeg))\n", "    if (0 && !is_complete(jpeg))\n"),),
        ("test_native.py::test_a_progressive_file_without_its_last_bits_is_left_to_the_other_way",),
        r"DID NOT RAISE",
    ),
    Break(
        "a refusal keeps the memory of its pixels",
        (),
        (Edit(C, "    free(work->pixels);\n", ""),),
        ("test_native.py::test_refusals_do_not_leak",),
        r"one leaked image is",
    ),
    Break(
        "many pixels behind the last one are read, with weights of 0",
        (),
        (Edit(S, "most_groups ? most_groups : (taps->n_used[x] + 3) / 4;", "most_groups ? most_groups : taps->n_groups;"),),
        ("test_native.py::test_damaged_files_under_sanitizers",),
        r"AddressSanitizer",
    ),
    Break(
        "bytes behind the last row of the image are read",
        (),
        (Edit(S, "    if ((in->n_rows - 1 - y) * in->stride >= PADDING)\n", "    if (n_bytes > 0 && copy != NULL)\n"),),
        ("test_native.py::test_nothing_is_read_behind_the_pixels[vectors]",),
        r"AddressSanitizer",
    ),
    Break(
        "a part outside of the image is read",
        (),
        (Edit(C, " || right > (int)jpeg->output_width)\n", ")\n"),),
        ("test_native.py::test_wrong_arguments",),
        r"DID NOT RAISE",
    ),
    Break(
        "the flip is drawn before the part, so that a seed gives other pixels",
        (),
        (
            Edit(
                "images/augment.py",
                "        if (height, width) not in self._drawn:\n",
                "        if (height, width) not in self._drawn and self.is_mirrored in (True, False):\n",
            ),
        ),
        ("test_images.py::test_the_part_is_drawn_first_then_the_flip",),
        r"assert",
    ),
    Break(
        "of equally near neighbours, the filter of PNG takes the corner",
        (),
        (Edit(P, "from_corner < least ?", "from_corner <= least ?"),),
        ("test_plain.py::test_the_same_pixels_of_each_kind_of_png[2-8-False]",),
        r"AssertionError|assert",
    ),
    Break(
        "a filter that PNG does not have is passed over",
        (),
        (Edit(P, "    default:\n        return 0;\n", "    default:\n        return 1;\n"),),
        ("test_plain.py::test_streams_of_any_kind[None-no filter 5]",),
        r"assert",
    ),
    Break(
        "a PNG file whose inflated pixels are wrong by their checksum is shown",
        (),
        (Edit(PLAIN, "n_inflated == len(free) and stream.eof and data", "n_inflated == len(free) and data"),),
        ("test_plain.py::test_streams_of_any_kind[None-no checksum]",),
        r"assert",
    ),
    Break(
        "an orientation after the pixels of a PNG file is not seen",
        (),
        (Edit(PLAIN, " and data[at : at + len(PNG_END)] == PNG_END\n", "\n"),),
        ("test_plain.py::test_chunks_after_the_pixels_are_pillows[eXIf]",),
        r"assert",
    ),
    Break(
        "OpenCV's decoder of WebP reads on in what follows the pixels",
        (),
        (Edit(PLAIN, "opencv_values(memoryview(only_pixels_of_webp(data)))", "opencv_values(data)"),),
        ("test_plain.py::test_each_byte_changed[WebP with EXIF]",),
        r"assert",
    ),
)
