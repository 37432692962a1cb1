"""ImageFolder on folders that are graphs and no trees: rings of links, several names of a file, links that lead nowhere."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ringload import ConfigError, ImageFolder, ImageFrame
from ringload.sources import folder_walk as walk

SIZE = (8, 8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of two images each, one of them in a folder within."""
    for name in ("cat", "dog"):
        (tmp_path / "root" / name / "deep").mkdir(parents=True)
        for file in (f"{name}.png", f"deep/{name}2.png"):
            (tmp_path / "root" / name / file).write_text(file)
    return tmp_path / "root"


def found(root: Path | str, **options: Any) -> dict[str, list[str]]:
    """class -> its files."""
    source = ImageFolder(root, size=SIZE, **options)
    names = source.class_names
    rows = zip(source.filenames, source.labels.tolist(), strict=True)
    files: dict[str, list[str]] = {name: [] for name in names}
    for file, label in rows:
        files[names[label]].append(file)
    return files


MAX_CRASHES_OWN = {name: sorted([f"{name}/{name}.png", f"{name}/deep/{name}2.png"]) for name in ("cat", "dog")}

# name -> links (where, from the root on; to what: a path that starts with ROOT is from the root on, too)
RINGS: dict[str, list[tuple[str, str]]] = {
    "to the root": [("cat/all", "ROOT")],
    "to the root, relative": [("cat/all", "..")],
    "two to the root": [(f"cat/all{k}", "ROOT") for k in range(2)],
    "many to the root, in each class": [(f"{name}/all{k}", "ROOT") for name in MAX_CRASHES_OWN for k in range(20)],
    "above the root": [("cat/up", "ROOT/..")],
    "to /": [("cat/deep/up", "/")],
    "to the class": [("cat/self", "ROOT/cat")],
    "two to the class": [(f"cat/self{k}", "ROOT/cat") for k in range(2)],
    "from within to the class": [("cat/deep/up", "..")],
    "to itself": [("cat/deep/self", ".")],
    "to a folder of the class": [("cat/deep2", "deep")],
    "to the other class": [("cat/dogs", "ROOT/dog")],
    "to within the other class": [("cat/dogs", "ROOT/dog/deep")],
    "to each other": [("cat/dog", "ROOT/dog"), ("dog/cat", "ROOT/cat")],
    "beside the classes, to the root": [("all", "ROOT")],
    "beside the classes, to above": [("all", "..")],
    "beside the classes, to a class": [("kitten", "cat")],
    "outside, that lead back": [("../out/back", "ROOT"), ("../out/again", "."), ("dog/out", "ROOT/../out")],
}


@pytest.mark.parametrize("links", RINGS.values(), ids=RINGS)
@pytest.mark.filterwarnings("ignore:in .*, links to folders above or to folders of another class are skipped")
def test_a_ring_ends_and_each_file_is_one_sample(root: Path, links: list[tuple[str, str]]) -> None:
    for link, target in links:
        (root / link).parent.mkdir(exist_ok=True)
        (root / link).symlink_to(target.replace("ROOT", str(root)))
    assert found(root) == MAX_CRASHES_OWN
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found(root, follow_links=False) == MAX_CRASHES_OWN


@pytest.mark.filterwarnings("ignore:in .*, links to folders above")
def test_the_root_may_be_a_link_and_be_given_in_any_way(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "cat/all").symlink_to(root)
    (root.parent / "alias").symlink_to(root)
    monkeypatch.chdir(root.parent)
    monkeypatch.setenv("HOME", str(root.parent))
    for form in ("alias", "root", "~/root", "root/../alias/", Path("alias")):
        assert found(form) == MAX_CRASHES_OWN
    assert ImageFolder("~/root", size=SIZE).filepaths[0] == str(root / "cat/cat.png")


def test_links_that_are_passed_over_are_named(root: Path) -> None:
    (root / "cat/all").symlink_to(root)
    with pytest.warns(UserWarning, match=r"of another class are skipped: \['cat/all'\]. follow_links=False") as warned:
        found(root)
    assert [one.filename for one in warned] == [__file__]


def test_links_to_what_is_elsewhere_are_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "pool/more").mkdir(parents=True)
    for file in ("pool/1.png", "pool/more/2.png", "3.png"):
        (tmp_path / file).write_text(file)
    (root / "cat/pool").symlink_to(tmp_path / "pool")
    (root / "cat/three.png").symlink_to(tmp_path / "3.png")
    (root / "cat/three.txt").symlink_to(tmp_path / "3.png")  # is not called as images are
    (root / "cat/.hidden.png").symlink_to(tmp_path / "3.png")
    with pytest.warns(UserWarning, match=r"skipped, since their names have no suffix of images: 1 of \.txt$") as warned:
        listed = found(root)
    assert len(warned) == 1
    assert listed["cat"] == ["cat/cat.png", "cat/deep/cat2.png", "cat/pool/1.png", "cat/pool/more/2.png", "cat/three.png"]
    (root / "cat/three.txt").unlink()
    assert found(root, follow_links=False) == MAX_CRASHES_OWN
    (root / "dog/pool").symlink_to(tmp_path / "pool")  # no class's own: each has it
    with pytest.warns(
        UserWarning, match=r"2 files are in two classes, by links: \['cat/pool/1.png = dog/pool/1.png', "
    ) as warned:
        assert found(root)["dog"] == sorted([*MAX_CRASHES_OWN["dog"], "dog/pool/1.png", "dog/pool/more/2.png"])
    assert len(warned) == 1
    (root / "bird").symlink_to(tmp_path / "pool/more")  # a class's own
    with pytest.warns(UserWarning, match="links to folders above or to folders of another class") as warned:
        listed = found(root)
    assert "skipped: ['cat/pool/more', 'dog/pool/more']" in str(warned[0].message)
    assert listed["bird"] == ["bird/2.png"]


def test_a_root_one_level_too_high_is_said_to_be_one(root: Path) -> None:
    with pytest.warns(UserWarning, match=r"one folder, '.*', and so one class; its .* folders inside of it, \['cat', 'dog'"):
        assert len(found(root.parent)) == 1


def test_a_file_of_several_names_is_one_sample_of_a_class(root: Path, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_text("1")
    (root / "cat/a.png").symlink_to("cat.png")  # the name without a link stays
    (root / "cat/b.png").symlink_to(tmp_path / "1.png")
    (root / "cat/c.png").symlink_to(tmp_path / "1.png")  # of links, the first
    (root / "cat/d.png").symlink_to("c.png")
    os.link(root / "dog/dog.png", root / "dog/a.png")  # of hard links, too
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        listed = found(root)
    assert listed["cat"] == ["cat/b.png", *MAX_CRASHES_OWN["cat"]]
    assert listed["dog"] == ["dog/a.png", "dog/deep/dog2.png"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_file_of_two_classes_is_a_sample_of_each_and_named(root: Path, link: Any) -> None:
    link(root / "cat/cat.png", root / "dog/pet.png")
    with pytest.warns(
        UserWarning, match=r"1 files are in two classes, by links: \['(cat/cat|dog/pet).png = .*Each is a sample"
    ):
        listed = found(root)
    assert listed == {"cat": MAX_CRASHES_OWN["cat"], "dog": ["dog/deep/dog2.png", "dog/dog.png", "dog/pet.png"]}


def test_two_classes_that_are_one_folder_are_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (root / "a").symlink_to(tmp_path / "pool")
    (root / "b").symlink_to(tmp_path / "pool")
    with pytest.raises(ConfigError, match="a and b are links to one folder: a folder is one class"):
        found(root)
    assert found(root, follow_links=False) == MAX_CRASHES_OWN


def test_links_that_lead_nowhere_are_named_and_bad_samples(root: Path) -> None:
    (root / "cat/gone.png").symlink_to("/nonexist/gone.png")
    (root / "cat/loop.png").symlink_to("loop.png")
    (root / "cat/folder").symlink_to("/nonexist/folder")
    with pytest.warns(
        UserWarning, match=r"links are broken: \['cat/folder', 'cat/gone.png', 'cat/loop.png'\]. Those with a suffix"
    ):
        listed = found(root)
    assert listed["cat"] == ["cat/cat.png", "cat/deep/cat2.png", "cat/gone.png", "cat/loop.png"]
    assert found(root, follow_links=False) == MAX_CRASHES_OWN


def test_a_class_of_nothing_but_links_is_none_if_they_are_not_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_text("1")
    (root / "bird").mkdir()
    (root / "bird/1.png").symlink_to(tmp_path / "1.png")
    assert found(root)["bird"] == ["bird/1.png"]
    with pytest.raises(ConfigError, match="bird holds no image"):
        found(root, follow_links=False)
    (root / "only").mkdir()
    (root / "only/linked").symlink_to(root / "cat")
    with pytest.raises(ConfigError, match=r"has no folders \(links are not followed\): make one for each class"):
        found(root / "only", follow_links=False)
    assert found(root / "only") == {"linked": ["linked/cat.png", "linked/deep/cat2.png"]}


@pytest.mark.parametrize("value", ["no", 1, None])
def test_follow_links_is_a_bool(root: Path, value: Any) -> None:
    with pytest.raises(ConfigError, match="follow_links is True or False"):
        found(root, follow_links=value)


def test_classes_are_folders_in_their_order_or_by_their_numbers(root: Path) -> None:
    for classes in (["dog", "cat"], ("dog", "cat"), {"cat": 1, "dog": 0}):
        assert ImageFolder(root, size=SIZE, classes=classes).class_indices == {"dog": 0, "cat": 1}
    assert found(root, classes=["dog"]) == {"dog": MAX_CRASHES_OWN["dog"]}
    (root / "cat/dogs").symlink_to(root / "dog")
    with pytest.warns(UserWarning, match="are skipped"):  # whether that class is asked for or not
        assert found(root, classes=["cat"]) == {"cat": MAX_CRASHES_OWN["cat"]}
    with pytest.raises(ConfigError, match="classes is a set, which defines no order"):
        ImageFolder(root, size=SIZE, classes={"dog", "cat"})
    with pytest.raises(ConfigError, match=r"no folder for the classes \[3, 'bird'\]; it has \['cat', 'dog'\]"):
        ImageFolder(root, size=SIZE, classes=["cat", "bird", 3])


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_folder_that_cannot_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        closed = Path(folder) / "cat/deep"
        closed.mkdir(parents=True)
        closed.chmod(0)
        os.seteuid(65534)  # root reads any folder
        try:
            with pytest.raises(ConfigError, match=f"cannot read the folder {closed}: Permission denied"):
                found(Path(folder))
        finally:
            os.seteuid(0)


def test_names_that_are_no_utf_8_are_files_as_others_are(root: Path) -> None:
    name = os.fsdecode(b"\xff\xfe.png")
    (root / "cat" / name).write_text("x")
    assert f"cat/{name}" in ImageFolder(root, size=SIZE).filenames


def test_numbers_that_a_file_system_gives_to_several_files_are_no_proof(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems do. Two names without a link are one file only if the file says that it has several."""
    stat = os.stat

    def same(path: Any, **options: Any) -> os.stat_result:
        status = list(stat(path, **options))
        if str(path).endswith(".png"):
            status[1:3] = 7, 7
        return os.stat_result(status)

    monkeypatch.setattr(os, "stat", same)
    one = walk._Class()
    for file in MAX_CRASHES_OWN["cat"]:
        one.add(file, 7, by_link=False)
    walk._keep_once(one, str(root))
    assert one.paths == MAX_CRASHES_OWN["cat"]


def test_a_folder_is_as_the_table_of_it(photos: Path) -> None:
    source = ImageFolder(photos, size=SIZE)
    table = pd.DataFrame({"path": source.filenames, "label": [file[0] for file in source.filenames]})
    twin = ImageFrame(table, label="label", root=photos, size=SIZE)
    assert (source.filepaths, source.labels.tolist()) == (twin.filepaths, twin.labels.tolist())
    assert source.fingerprint() == twin.fingerprint()
