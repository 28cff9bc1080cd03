"""Tests of the readers of mammograms: on tiny generated files in the published layouts, and on the real mini-MIAS where it is at hand."""
import base64
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

from bc_clust import data, mammograms
from bc_clust.data import DataIntegrityError, DataUnavailableError, check_file, grouped_folds, list_sets, load, load_or_phantom
from bc_clust.mammograms import CARDS, load_folder, phantom_films, read_dicom, read_tfrecords, write_phantom_mias

TASKS = ("normal-abnormal", "benign-malignant", "lesion-crops")


@pytest.fixture(autouse=True)
def nothing_at_hand(tmp_path, monkeypatch, request):
    """No real folder is found, unless the test asks for the real one."""
    if "real" not in request.fixturenames:
        monkeypatch.delenv("BC_CLUST_DATA", raising=False)
        monkeypatch.setattr(data, "user_cache_dir", lambda *args, **kwargs: str(tmp_path / "cache"))


# --- mini-MIAS --------------------------------------------------------------------------------------------------------

TABLE = """A title, and some words about the columns.

mdb001 G CIRC B 535 425 197
mdb002 D NORM\x20
mdb003 F MISC B 233 940 29
mdb003 F MISC M 313 540 27
mdb004 F CALC M *NOTE 3*
=====
"""


def film(folder, number, marks=(), side=512):
    """A grey film with bright pixels at `marks`, (row, column)."""
    pixels = np.full((side, side), 60, np.uint8)
    for row, column in marks:
        pixels[row, column] = 250
    Image.fromarray(pixels).save(folder / f"mdb{number:03d}.pgm")


@pytest.fixture
def four(tmp_path):
    """Four films with the table above; a bright pixel in the middle of the first circle."""
    folder = tmp_path / "mini-mias"
    folder.mkdir()
    for k in range(1, 5):
        film(folder, k, [(299, 267)] if k == 1 else ())   # y 425 -> row (1023 - 425 + .5) / 2 - .5 = 298.75; x 535 -> 267.25
    (folder / "Info.txt").write_text(TABLE)
    return folder


def read(folder, **settings):
    return load("mias", root=folder, **({"complete": False, "size": 64} | settings))


def test_all_films_in_order_with_their_metadata(four):
    s = read(four, size=512)
    assert s.images.shape == s.masks.shape == (4, 512, 512) and s.images.dtype == np.uint8 and s.masks.dtype == bool
    assert s.labels.tolist() == [1, 0, 1, 1] and s.class_names == ("normal", "abnormal") and s.task == "normal-abnormal"
    assert s.groups.tolist() == [0, 0, 1, 1] and s.split is None and s.name == "mias"
    m = s.metadata
    assert m.columns.tolist() == ["film", "side", "tissue", "abnormality", "severity", "x", "y", "radius", "n_lesions"]
    assert m.film.tolist() == ["mdb001", "mdb002", "mdb003", "mdb004"] and m.side.tolist() == ["right", "left"] * 2
    assert m.tissue.tolist() == list("GDFF") and m.abnormality.tolist() == ["CIRC", "NORM", "MISC", "CALC"]
    assert m.severity.tolist() == ["B", "", "M", "M"] and m.n_lesions.tolist() == [1, 0, 2, 1]   # both kinds: malignant
    assert m.loc[0, ["x", "y", "radius"]].tolist() == [267.25, 298.75, 98.5]
    assert m.loc[2, ["x", "y"]].tolist() == [156.25, 241.25] and m.x.isna().tolist() == [False, True, False, True]
    assert s.source == "mini-MIAS folder, copies of 512 pixels, 4 of 322 films" and "Suckling" in s.citation and "research" in s.licence


def test_the_circle_lies_on_the_lesion(four):
    s = read(four, size=512)
    row, column = np.unravel_index(s.images[0].argmax(), (512, 512))
    assert (row, column) == (299, 267) and s.masks[0, row, column]
    rows, columns = np.nonzero(s.masks[0])
    assert (rows.min() + rows.max()) / 2 == pytest.approx(298.75, abs=.5) and (columns.min() + columns.max()) / 2 == pytest.approx(267.25, abs=.5)
    assert s.masks[0].sum() == pytest.approx(np.pi * 98.5 ** 2, rel=.01)
    assert s.masks.any(axis=(1, 2)).tolist() == [True, False, True, False]     # mdb004 has no circle
    both = s.masks[2]
    assert both[41, 116] and both[241, 156] and not both[140, 136]             # the union of two circles


@pytest.mark.parametrize("size", [28, 100, 224])
def test_circles_scale_with_the_picture(four, size):
    s = read(four, size=size)
    big, small = (ndimage_centre(x) for x in (read(four, size=512).masks[0], s.masks[0]))
    assert np.abs((np.array(small) + .5) * 512 / size - .5 - big).max() < 512 / size / 2
    assert np.array_equal(s.images[0], np.asarray(Image.open(four / "mdb001.pgm").resize((size, size), Image.Resampling.LANCZOS)))
    assert s.metadata.radius[0] == pytest.approx(197 * size / 1024)


def ndimage_centre(mask):
    return tuple(np.mean(part) for part in np.nonzero(mask))


def test_a_circle_below_a_pixel_still_marks_one(four):
    (four / "Info.txt").write_text(TABLE.replace("535 425 197", "535 425 1"))
    assert read(four, size=28).masks[0].sum() >= 1


def test_benign_malignant_takes_the_abnormal_films(four):
    s, two = read(four), read(four, task="benign-malignant")
    assert two.labels.tolist() == [0, 1, 1] and two.class_names == ("benign", "malignant")
    assert two.metadata.film.tolist() == ["mdb001", "mdb003", "mdb004"] and two.groups.tolist() == [0, 1, 1]
    assert np.array_equal(two.images, s.images[[0, 2, 3]]) and np.array_equal(two.masks, s.masks[[0, 2, 3]])
    assert two.sha256 == s.sha256 and two.source == s.source + ", 'normal' left out"


def test_lesion_crops_lie_within_the_film_and_around_the_circle(four):
    s = read(four, task="lesion-crops", size=128)
    assert s.labels.tolist() == [0, 0, 1] and s.groups.tolist() == [0, 1, 1] and s.metadata.n_lesions.tolist() == [1, 2, 2]
    # radius 98.5 at 512: four radii; 14.5: 58, so 64; 13.5: 64. The second would leave the film at the top and is moved.
    assert s.metadata[["left", "top", "crop"]].to_numpy().tolist() == [[71, 102, 394], [85, 10, 64], [125, 210, 64]]
    film1 = Image.open(four / "mdb001.pgm")
    assert np.array_equal(s.images[0], np.asarray(film1.crop((71, 102, 465, 496)).resize((128, 128), Image.Resampling.LANCZOS)))
    for mask, (x, y, radius) in zip(s.masks, s.metadata[["x", "y", "radius"]].to_numpy()):
        assert mask[round(y), round(x)] and abs(x - 63.5) < 1 and radius * 4 <= 128 * 1.01
        assert mask.sum() == pytest.approx(np.pi * radius ** 2, rel=.02)


def test_a_crop_at_the_edge_is_moved_not_filled(four):
    (four / "Info.txt").write_text(TABLE.replace("535 425 197", "3 1020 60"))
    s = read(four, task="lesion-crops")
    assert s.metadata.loc[0, ["left", "top", "crop"]].tolist() == [0, 0, 120] and s.images[0].min() >= 59
    assert s.metadata.x[0] == pytest.approx((1.25 + .5) * 64 / 120 - .5)


def test_neighbouring_circles_are_in_the_mask_of_a_crop(four):
    (four / "Info.txt").write_text(TABLE.replace("233 940", "333 540"))   # ten pixels beside the other one at 512
    s = read(four, task="lesion-crops", size=64)
    assert s.masks[2].sum() > 1.2 * np.pi * s.metadata.radius[2] ** 2


def test_originals_and_reduced_copies_give_the_same_arrays(tmp_path):
    original = write_phantom_mias(tmp_path / "a", n=12, side=1024)
    reduced = tmp_path / "b" / original.name
    shutil.copytree(original, reduced)
    for path in reduced.glob("*.pgm"):
        Image.open(path).resize((512, 512), Image.Resampling.BOX).save(path)
    for task in TASKS:
        s, t = read(original, task=task), read(reduced, task=task)
        assert np.array_equal(s.images, t.images) and np.array_equal(s.masks, t.masks) and s.sha256 == t.sha256
    assert "films of 1024 pixels, 12 of 322" in s.source and "copies of 512 pixels, 12 of 322" in t.source
    shutil.copy(original / "mdb001.pgm", reduced)
    assert "films of 1024 pixels and copies of 512 pixels" in read(reduced).source and read(reduced).sha256 == t.sha256


def test_checksum_is_of_the_content(four):
    before = read(four).sha256
    (four / "Info.txt").write_bytes(TABLE.replace("\n", "\r\n").replace("some words", "others").encode())
    assert read(four, size=32, task="lesion-crops").sha256 == before
    (four / "Info.txt").write_text(TABLE.replace("197", "196"))
    assert read(four).sha256 != before
    (four / "Info.txt").write_text(TABLE)
    film(four, 2, [(0, 0)])
    assert read(four).sha256 != before


@pytest.mark.parametrize("name", ["mini-mias", "all-mias", "MIAS", "some/mini-mias", "."])
def test_where_the_folder_is_found(four, tmp_path, name):
    root = tmp_path / "elsewhere"
    place = root / name
    shutil.copytree(four, place)
    assert len(read(root)) == 4 and list_sets(root).set_index("name").loc["mias", "found"] == str(place)


def test_a_folder_with_films_goes_before_an_empty_one(four, tmp_path):
    root = tmp_path / "elsewhere"
    (root / "mini-mias").mkdir(parents=True)
    with pytest.raises(DataIntegrityError, match="lacks Info.txt"):
        read(root)
    shutil.copytree(four, root / "MIAS")
    assert len(read(root)) == 4


def change(path, old, new):
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("damage, match", [
    (lambda f: (f / "Info.txt").unlink(), "lacks Info.txt, which says what the films show"),
    (lambda f: change(f / "Info.txt", "mdb002 D NORM", "*"), r"mdb002\.pgm has no line in Info\.txt"),
    (lambda f: change(f / "Info.txt", "D NORM", "D NORMAL"), r"line 4 of .*Info\.txt cannot be read: 'mdb002 D NORMAL'; expected"),
    (lambda f: change(f / "Info.txt", "CIRC B", "CIRC X"), "line 3 .* cannot be read"),
    (lambda f: change(f / "Info.txt", "425 197", "425"), "line 3 .* cannot be read"),
    (lambda f: change(f / "Info.txt", "mdb003 F MISC B 233 940 29", "mdb003 F NORM"), "calls mdb003 normal and abnormal"),
    (lambda f: change(f / "Info.txt", "535", "1535"), "the circle of mdb001 does not lie in a film"),
    (lambda f: (f / "Info.txt").write_text("nothing"), "holds no line"),
    (lambda f: [p.unlink() for p in f.glob("*.pgm")], "holds no film"),
    (lambda f: film(f, 5), r"mdb005\.pgm has no line"),
    (lambda f: (f / "mdb001.pgm").rename(f / "mdbx.pgm"), r"mdbx\.pgm has no line"),
    (lambda f: film(f, 1, side=500), r"mdb001\.pgm is 500x500 pixels; a film of mini-MIAS has 1024x1024"),
    (lambda f: (f / "mdb001.pgm").write_bytes((f / "mdb001.pgm").read_bytes()[:5000]), r"mdb001\.pgm cannot be read as a picture"),
    (lambda f: (f / "mdb001.pgm").write_bytes(b"not a film"), r"mdb001\.pgm cannot be read as a picture"),
    (lambda f: Image.fromarray(np.full((512, 512), 900, np.uint16)).save(f / "mdb001.pgm"), "expected 8-bit grey"),
])
def test_what_is_wrong_with_the_files_is_said(four, damage, match):
    damage(four)
    with pytest.raises(DataIntegrityError, match=match):
        read(four)


def test_a_line_without_its_film_is_found(four, monkeypatch):
    monkeypatch.setattr(mammograms, "_MIAS_PUBLISHED", 4)
    assert len(read(four, complete=True)) == 4
    (four / "Info.txt").write_text(TABLE + "mdb005 G NORM\n")
    with pytest.raises(DataIntegrityError, match=r"lacks mdb005\.pgm \(4 films"):
        read(four, complete=True)
    assert len(read(four)) == 4


def test_a_part_is_refused_unless_it_is_asked_for(four):
    with pytest.raises(DataIntegrityError, match=r"lacks mdb005\.pgm \(4 films, published 322\).*complete=False"):
        read(four, complete=True)
    (four / "mdb003.pgm").unlink()
    with pytest.raises(DataIntegrityError, match=r"lacks mdb003\.pgm"):
        read(four, complete=True)
    assert read(four).metadata.film.tolist() == ["mdb001", "mdb002", "mdb004"]
    assert read(four, task="lesion-crops").metadata.film.tolist() == ["mdb001"]


@pytest.mark.parametrize("settings, error, match", [
    ({"task": "3-class"}, ValueError, "task '3-class' does not exist for 'mias'; accepted: 'normal-abnormal', 'benign-malignant', 'lesion-crops'"),
    ({"size": 27}, ValueError, "size must be a whole number of 28 or more for 'mias'"),
    ({"size": 64.0}, ValueError, "size must be a whole number"),
    ({"size": True}, ValueError, "size must be a whole number"),
    ({"near_limit": 3}, TypeError, "takes no near_limit; .*complete"),
])
def test_bad_settings(four, settings, error, match):
    with pytest.raises(error, match=match):
        read(four, **settings)


def test_folds_keep_pairs_together():
    s = phantom_films(40, 28, random_state=2)
    woman = (s.metadata.film.str[3:].astype(int).to_numpy() + 1) // 2
    for train, test in grouped_folds(s.labels, s.groups, n_splits=3):
        assert not set(woman[train]) & set(woman[test])


# --- simulated films --------------------------------------------------------------------------------------------------

def test_phantom_films_have_lesions_where_the_masks_say():
    s = phantom_films(24, 128)
    assert (s.name, s.licence, s.images.shape, s.source) == ("phantom-mias", "CC0", (24, 128, 128), "phantom films n=24 random_state=0")
    assert np.bincount(s.labels).tolist() == [15, 9] and s.metadata.n_lesions.max() == 2
    circled = s.masks.any(axis=(1, 2))
    assert circled.sum() == 8 and (s.labels[circled] == 1).all()
    for image, mask in zip(s.images[circled], s.masks[circled]):
        assert image[mask].mean() > image[~mask & (image > 40)].mean() + 20
    right = s.metadata.side == "right"
    assert s.images[right][:, :, :60].mean() < s.images[right][:, :, 60:].mean()   # the chest wall of film 1 is at the right


def test_phantom_films_repeat_and_differ():
    a, b, c = (phantom_films(12, 64, random_state=k) for k in (1, 1, 2))
    assert a.sha256 == b.sha256 and np.array_equal(a.images, b.images) and a.sha256 != c.sha256
    assert set(phantom_films(12, 64, "lesion-crops").labels) == {0, 1}


@pytest.mark.parametrize("settings, match", [({"n": 13}, "even number"), ({"n": 10}, "from 12 to 998"), ({"n": 1000}, "three digits"), ({"n": 12.0}, "even number"), ({"side": 512.0}, "side must be 512 or 1024"),
                                             ({"side": 256}, "side must be 512 or 1024"), ({"random_state": -1}, "random_state")])
def test_write_phantom_mias_bad_settings(tmp_path, settings, match):
    with pytest.raises(ValueError, match=match):
        write_phantom_mias(tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_films_that_could_not_all_be_written_leave_nothing(tmp_path, monkeypatch):
    saved = []

    def full(self, path):
        saved.append(path)
        if len(saved) > 3:
            raise OSError("no space left")
        path.touch()
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="no space left"):
        write_phantom_mias(tmp_path, n=12)
    assert len(saved) == 4 and not list(tmp_path.iterdir())


def test_a_selection_without_lesions_holds_nothing_for_questions_about_them(tmp_path):
    folder = write_phantom_mias(tmp_path, n=12)
    for film in {line.split()[0] for line in (folder / "Info.txt").read_text().splitlines() if " CIRC " in line or " CALC " in line}:
        (folder / f"{film}.pgm").unlink()
    assert set(load("mias", root=tmp_path, complete=False).labels) == {0}
    for task in ("benign-malignant", "lesion-crops"):
        with pytest.raises(DataIntegrityError, match=f"none of its . films has what the task '{task}' asks about"):
            load("mias", task=task, root=tmp_path, complete=False)


def test_write_phantom_mias_refuses_to_overwrite(tmp_path):
    assert write_phantom_mias(tmp_path, n=12).name == "mini-mias"
    with pytest.raises(FileExistsError, match="mini-mias is there already"):
        write_phantom_mias(tmp_path, n=12)


def test_load_or_phantom_keeps_task_and_size(four, monkeypatch):
    said = []
    for task, names in (("normal-abnormal", ("normal", "abnormal")), ("lesion-crops", ("benign", "malignant"))):
        s = load_or_phantom("mias", size=32, task=task, say=said.append)
        assert s.name == "phantom-mias" and s.task == task and s.class_names == names and s.images.shape[1:] == (32, 32)
        assert min(np.bincount(s.labels)) >= 10
    assert "simulated" in said[0] and "mini-mias is not at hand" in said[0]
    monkeypatch.setenv("BC_CLUST_DATA", str(four))
    monkeypatch.setattr(mammograms, "_MIAS_PUBLISHED", 4)
    assert load_or_phantom("mias", say=said.append).name == "mias" and said[2].startswith("Using mias (mini-MIAS folder")


def test_load_knows_the_set_without_this_room_being_imported():
    code = ("import sys\nfrom bc_clust.data import load, list_sets, check_file, DataUnavailableError\n"
            "assert 'bc_clust.mammograms' not in sys.modules and len(load('digits')) == 1797\n"
            "assert 'bc_clust.mammograms' not in sys.modules\n"
            "try: load('mias', root='nowhere')\n"
            "except DataUnavailableError: pass\n"
            "assert 'torch' not in sys.modules and 'pydicom' not in sys.modules\n"
            "assert 'mias' in list_sets().name.tolist()\n")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# --- a folder of pictures ---------------------------------------------------------------------------------------------

@pytest.fixture
def pictures(tmp_path):
    """Two classes: three grey pictures of two patients in one, two in the other, one in a folder of its own and one in colour."""
    base = tmp_path / "set"
    for k, (place, shape) in enumerate({"b": (60, 40), "a": (30, 50)}.items()):
        (base / place).mkdir(parents=True)
        for j in range(3 - k):
            Image.fromarray(np.full(shape, 50 * k + 10 * j + 5, np.uint8)).save(base / place / f"P{j // 2}_{j}.png")
    (base / "a" / "deeper").mkdir()
    Image.fromarray(np.full((30, 50, 3), (0, 200, 0), np.uint8)).save(base / "a" / "deeper" / "P7_0.png")
    (base / "a" / "Thumbs.db").write_bytes(b"x")
    (base / "a" / ".hidden.png").write_bytes(b"x")
    return base


def test_load_folder_reads_classes_in_order(pictures):
    s = load_folder(pictures, size=28)
    assert s.images.shape == (6, 28, 28) and s.class_names == ("a", "b") and s.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert s.metadata.file.tolist() == ["a/P0_0.png", "a/P0_1.png", "a/deeper/P7_0.png", "b/P0_0.png", "b/P0_1.png", "b/P1_2.png"]
    assert (s.name, s.task, s.groups, s.split, s.masks, s.source) == ("set", "folders", None, None, None, "folder set")
    first = s.metadata.loc[0, ["width", "height", "bits", "photometric", "window", "left", "top", "right", "bottom"]].tolist()
    assert first == [50, 30, 8, "L", "none", 0, 5, 28, 22]
    assert (s.images[0, 5:22] == 55).all() and s.images[0, :5].max() == s.images[0, 22:].max() == 0
    assert np.unique(s.images[2]).tolist() == [0, 117] and s.metadata.photometric[2] == "RGB"   # grey by luma: 0.587 * 200
    assert load_folder(pictures).images.shape[1:] == (224, 224)


def test_load_folder_groups_by_expression_or_function(pictures):
    assert load_folder(pictures, 28, groups=r"P(\d+)_").groups.tolist() == [0, 0, 1, 0, 0, 2]
    assert load_folder(pictures, 28, groups=r"(deeper|P\d)").groups.tolist() == [0, 0, 1, 0, 0, 2]   # in a folder's name, too
    s = load_folder(pictures, 28, groups=lambda name: name[:4])
    assert s.groups.tolist() == [0, 0, 1, 2, 2, 3] and s.metadata.patient.tolist()[:3] == ["a/P0", "a/P0", "a/de"]
    with pytest.raises(DataIntegrityError, match=r"the file 'a/P0_0.png' does not fit groups='Q.*it is not known to whom"):
        load_folder(pictures, 28, groups=r"Q(\d+)")
    with pytest.raises(ValueError, match="holds no group in parentheses"):
        load_folder(pictures, 28, groups=r"P\d+")
    with pytest.raises(DataIntegrityError, match=r"does not fit groups=.*it is not known to whom"):
        load_folder(pictures, 28, groups=r"(P0)?_")   # fits all files, but of some without the group
    for wrong in (float("nan"), None, ["P0"]):
        with pytest.raises(DataIntegrityError, match=r"groups gives (nan|None|\['P0'\]) for the file 'a/.*should give a name or a number"):
            load_folder(pictures, 28, groups=lambda name: wrong)


def test_load_folder_takes_names_for_classes_and_leaves_folders_out(pictures):
    s = load_folder(pictures, 28, classes={"b": "good", "a": "bad"}, name="x", task="quality")
    assert s.class_names == ("good", "bad") and s.labels.tolist() == [1, 1, 1, 0, 0, 0] and (s.name, s.task) == ("x", "quality")
    assert len(load_folder(pictures, 28, classes={"b": "good", "a": None})) == 3
    with pytest.raises(DataIntegrityError, match="b stands for no class; classes knows 'a'.*None for a sub-folder to leave out"):
        load_folder(pictures, 28, classes={"a": "bad"})


def test_load_folder_says_what_is_wrong(pictures, tmp_path):
    with pytest.raises(DataUnavailableError, match="is no folder"):
        load_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataIntegrityError, match="holds no sub-folder with pictures"):
        load_folder(tmp_path / "empty")
    with pytest.raises(ValueError, match="size must be a whole number of 28 or more"):
        load_folder(pictures, size=8)
    with pytest.raises(ValueError, match="give a dict from the names of the sub-folders"):
        load_folder(pictures, classes=["a", "b"])
    for groups in ("(unclosed", 5):
        with pytest.raises(ValueError, match="neither a function nor a regular expression"):
            load_folder(pictures, groups=groups)
    with pytest.raises(DataIntegrityError, match="groups gives None for the file"):
        load_folder(pictures, groups=lambda name: None)
    (pictures / "c").mkdir()
    with pytest.raises(DataIntegrityError, match="c holds no picture"):
        load_folder(pictures)
    (pictures / "c" / "x.png").write_bytes(b"no picture")
    with pytest.raises(DataIntegrityError, match=r"x\.png cannot be read as a picture"):
        load_folder(pictures)


def test_a_class_of_one_patient_cannot_be_folded(pictures):
    s = load_folder(pictures, 28, groups=lambda name: "same")
    with pytest.raises(ValueError, match="class 0 has only 1 groups, too few for 2 folds"):
        grouped_folds(s.labels, s.groups, n_splits=2)


def test_checksum_of_a_folder_is_of_names_and_pixels(pictures):
    before = load_folder(pictures, 28).sha256
    picture = Image.open(pictures / "a" / "P0_0.png")
    picture.load()
    picture.save(pictures / "a" / "P0_0.png", compress_level=0)
    assert load_folder(pictures, 64).sha256 == before
    picture.putpixel((0, 0), 0)
    picture.save(pictures / "a" / "P0_0.png")
    assert load_folder(pictures, 28).sha256 != before


# --- DICOM ------------------------------------------------------------------------------------------------------------

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 60 + 100   # 100 to 3880 of 4095


def write_dicom(path, values=RAMP, leave_out=(), **fields):
    """A DICOM file of 12 bits, written by pydicom."""
    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.SOPClassUID, d.SOPInstanceUID, d.Modality = "1.2.840.10008.5.1.4.1.1.1.2", "2.25.1", "MG"
    d.Rows, d.Columns = values.shape
    d.SamplesPerPixel, d.PhotometricInterpretation, d.PixelRepresentation = 1, "MONOCHROME2", 0
    d.BitsAllocated, d.BitsStored, d.HighBit = 16, 12, 11
    d.PixelData = np.asarray(values).astype("<u2").tobytes()
    for name, value in fields.items():
        setattr(d, name, value)
    for name in leave_out:
        delattr(d, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if pydicom.__version__ < "3":
        d.is_little_endian, d.is_implicit_VR = True, False
        d.save_as(path, write_like_original=False)
    else:
        d.save_as(path, enforce_file_format=True)
    return path


def grey_of(path):
    picture, facts = read_dicom(path)
    assert picture.mode == "L"
    return np.asarray(picture), facts


def test_without_a_window_the_values_are_stretched(tmp_path):
    grey, facts = grey_of(write_dicom(tmp_path / "a.dcm"))
    assert np.array_equal(grey, np.rint((RAMP - 100.0) / 3780 * 255)) and facts == {"bits": 12, "photometric": "MONOCHROME2", "window": "none"}
    assert (grey_of(write_dicom(tmp_path / "b.dcm", np.full((8, 8), 7)))[0] == 0).all()   # one value only
    small = grey_of(write_dicom(tmp_path / "c.dcm", RescaleSlope="0.0001", RescaleIntercept="0"))[0]   # values from 0.01 to 0.388
    assert small.max() == 255 and np.abs(small.astype(int) - grey).max() <= 1


def test_a_window_is_applied_and_its_whole_range_is_the_scale(tmp_path):
    grey, facts = grey_of(write_dicom(tmp_path / "a.dcm", WindowCenter=2000, WindowWidth=1001))
    line = np.clip((RAMP - 1999.5) / 1000 + 0.5, 0, 1)   # DICOM PS3.3, C.11.2.1.2.1
    assert np.abs(grey - 255 * line).max() <= .5 + 1e-6 and facts["window"] == "window"
    half, _ = grey_of(write_dicom(tmp_path / "b.dcm", np.minimum(RAMP, 2000), WindowCenter=2000, WindowWidth=1001))
    assert half.max() in (127, 128)   # nothing brighter is there, and the scale stays the window's
    several, _ = grey_of(write_dicom(tmp_path / "c.dcm", WindowCenter=[2000, 9], WindowWidth=[1001, 9]))
    assert np.array_equal(several, grey)   # of several windows the first


def test_rescale_comes_before_the_window(tmp_path):
    grey, _ = grey_of(write_dicom(tmp_path / "a.dcm", WindowCenter=2000, WindowWidth=1001))
    other, _ = grey_of(write_dicom(tmp_path / "b.dcm", RescaleSlope=2, RescaleIntercept=-50, WindowCenter=3950, WindowWidth=2001))
    assert np.abs(grey.astype(int) - other).max() <= 1


def test_monochrome1_is_inverted(tmp_path):
    plain, _ = grey_of(write_dicom(tmp_path / "a.dcm", WindowCenter=2000, WindowWidth=1001))
    inverted, facts = grey_of(write_dicom(tmp_path / "b.dcm", 4095 - RAMP, WindowCenter=2096, WindowWidth=1001,
                                          PhotometricInterpretation="MONOCHROME1"))
    assert facts["photometric"] == "MONOCHROME1" and np.abs(plain.astype(int) - inverted).max() <= 1


@pytest.mark.parametrize("fields", [{}, {"RescaleSlope": 1, "RescaleIntercept": 0}, {"WindowCenter": 1, "WindowWidth": 2}])
def test_a_lookup_table_goes_first(tmp_path, fields):
    item = Dataset()
    table = np.minimum(np.arange(4096) // 8, 1023)   # to 10 bits, half of which is never reached
    item.LUTDescriptor, item.LUTData = [4096, 0, 10], table.astype("<u2").tobytes()
    grey, facts = grey_of(write_dicom(tmp_path / "a.dcm", VOILUTSequence=[item], **fields))
    assert facts["window"] == "VOI LUT" and np.array_equal(grey, np.rint(255 * table[RAMP] / 1023))


def test_bits_of_sixteen_and_of_eight(tmp_path):
    grey, facts = grey_of(write_dicom(tmp_path / "a.dcm", RAMP * 16, BitsStored=16, HighBit=15, WindowCenter=32768, WindowWidth=65536))
    assert facts["bits"] == 16 and np.abs(grey - RAMP * 16 / 65535 * 255).max() <= .51
    small = np.arange(64, dtype=np.uint8).reshape(8, 8)
    grey, facts = grey_of(write_dicom(tmp_path / "b.dcm", small, BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=small.tobytes()))
    assert facts["bits"] == 8 and np.array_equal(grey, np.rint(small / 63 * 255))


def overwrite(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("make, match", [
    (lambda p: write_dicom(p, leave_out=["PixelData"]), "is a DICOM file without pixels.*only its header copied"),
    (lambda p: write_dicom(p, PixelData=bytes(60)), "the pixels of .* cannot be read.*Explicit VR Little Endian.*truncated"),
    (lambda p: write_dicom(p, leave_out=["Rows"]), "the pixels of .* cannot be read"),
    (lambda p: write_dicom(p, PhotometricInterpretation="RGB"), "photometric interpretation RGB and 1 frames; expected MONOCHROME1"),
    (lambda p: write_dicom(p, leave_out=["PhotometricInterpretation"]), "photometric interpretation missing"),
    (lambda p: write_dicom(p, NumberOfFrames=3, PixelData=RAMP.tobytes() * 3), "3 frames"),
    (lambda p: overwrite(p, b"no DICOM at all" * 20), "cannot be read as DICOM"),
    (lambda p: overwrite(p, b""), "cannot be read as DICOM"),
    (lambda p: write_dicom(p, WindowCenter=2000, WindowWidth=0), "the window or VOI LUT of .*a.dcm cannot be applied"),
    (lambda p: write_dicom(p, WindowCenter=2000, WindowWidth=100, VOILUTFunction="ROUND"), "the window or VOI LUT of .* cannot be applied"),
])
def test_what_is_wrong_with_a_dicom_file_is_said(tmp_path, make, match):
    with pytest.raises(DataIntegrityError, match=match):
        read_dicom(make(tmp_path / "a.dcm"))


def test_a_dicom_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    for path in (tmp_path / "typo.dcm", tmp_path):
        with pytest.raises(DataUnavailableError, match="there is no file"):
            read_dicom(path)


def test_a_compression_that_cannot_be_undone_is_named(tmp_path):
    path = write_dicom(tmp_path / "a.dcm")
    d = pydicom.dcmread(path)
    d.file_meta.TransferSyntaxUID = JPEG2000Lossless
    d.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
    d["PixelData"].is_undefined_length = True
    d.save_as(path)
    with pytest.raises(DataIntegrityError, match="JPEG 2000.*needs pylibjpeg"):
        read_dicom(path)


def test_dicom_in_a_folder_of_pictures(tmp_path):
    write_dicom(tmp_path / "x" / "a.DCM", WindowCenter=2000, WindowWidth=1001)
    write_dicom(tmp_path / "x" / "b.dicom")
    s = load_folder(tmp_path, 32)
    assert s.metadata.window.tolist() == ["window", "none"] and s.metadata.bits.tolist() == [12, 12]


# --- INbreast ---------------------------------------------------------------------------------------------------------

INBREAST = ["1", "2", "3", "4a", "4c", "5", "6"]


@pytest.fixture
def inbreast(tmp_path):
    """Seven pictures of four women, BI-RADS 1 to 6; as in the release, density is blank once and the table ends in an empty row."""
    base = tmp_path / "INbreast Release 1.0"
    rows = ["Patient ID;Patient age;Laterality;View;Acquisition date;File Name;ACR;Bi-Rads"]
    for k, assessment in enumerate(INBREAST):
        rows.append(f"removed;removed;{'RL'[k % 2]};CC;201001;{200 + k};{'    ' if k == 5 else 1 + k % 4};{assessment}")
        write_dicom(base / "AllDICOMs" / f"{200 + k}_{k // 2:016x}_MG_{'RL'[k % 2]}_CC_ANON.dcm")
    (base / "INbreast.csv").write_text("\n".join([*rows, ";;;;;;;"]) + "\n")
    return base


def test_inbreast(inbreast):
    s = load("inbreast", size=32, root=inbreast.parent)
    assert s.labels.tolist() == [0, 1, 1, 1, 1, 1, 1] and s.class_names == ("normal", "abnormal")
    assert s.groups.tolist() == [0, 0, 1, 1, 2, 2, 3] and s.images.shape == (7, 32, 32) and s.split is None
    assert s.metadata.file.tolist()[:2] == ["200", "201"] and s.metadata.bi_rads.tolist() == INBREAST
    assert s.metadata.density.tolist() == ["1", "2", "3", "4", "1", "", "3"] and s.metadata.side.tolist()[:2] == ["R", "L"]
    two = load("inbreast", "benign-malignant", 32, root=inbreast)
    assert two.labels.tolist() == [0, 0, 1, 1, 1, 1] and two.metadata.file.tolist()[0] == "201" and two.groups.tolist() == [0, 1, 1, 2, 2, 3]
    assert "Moreira" in two.citation and two.licence and two.source == "INbreast folder, 6 pictures"


def dicom_of(base, number):
    return next((base / "AllDICOMs").glob(f"{number}_*"))


@pytest.mark.parametrize("damage, match", [
    (lambda b: (b / "INbreast.csv").unlink(), r"lacks INbreast\.csv, which says what the pictures show"),
    (lambda b: change(b / "INbreast.csv", "Bi-Rads", "BIRADS"), r"lacks the column 'Bi-Rads'; it has 'Patient ID', .*'BIRADS'"),
    (lambda b: change(b / "INbreast.csv", ";", ","), "lacks the column 'File Name' and 'Laterality'"),
    (lambda b: change(b / "INbreast.csv", ";202;", ";902;"), "'202' has no row in the table"),
    (lambda b: change(b / "INbreast.csv", ";L;CC", ";Q;CC"), "INbreast.csv: the side 'Q' is unknown; expected 'L' or 'R'"),
    (lambda b: change(b / "INbreast.csv", ";202;", ";201;"), "INbreast.csv: '201' has two rows; expected a row a picture"),
    (lambda b: change(b / "INbreast.csv", ";4a", ";0"), "the assessment '0' is unknown; expected BI-RADS 1 to 6"),
    (lambda b: dicom_of(b, 203).unlink(), r"lacks the file of '203' \(1 of 7 are missing\).*complete=False"),
    (lambda b: dicom_of(b, 203).rename(b / "AllDICOMs" / "203.dcm"), "'203.dcm' has no row"),
    (lambda b: write_dicom(dicom_of(b, 204), leave_out=["PixelData"]), "204_.* is a DICOM file without pixels"),
    (lambda b: [p.unlink() for p in (b / "AllDICOMs").iterdir()], "7 of 7 are missing"),
])
def test_inbreast_says_what_is_wrong(inbreast, damage, match):
    damage(inbreast)
    with pytest.raises(DataIntegrityError, match=match):
        load("inbreast", size=32, root=inbreast)


def test_a_part_of_inbreast(inbreast):
    dicom_of(inbreast, 203).unlink()
    s = load("inbreast", size=32, root=inbreast, complete=False)
    assert s.metadata.file.tolist() == ["200", "201", "202", "204", "205", "206"]
    for k in (1, 2, 4, 5, 6):
        dicom_of(inbreast, 200 + k).unlink()
    with pytest.raises(DataIntegrityError, match="no picture is left for the task 'benign-malignant'"):
        load("inbreast", "benign-malignant", 32, root=inbreast, complete=False)


def rewrite(path, f):
    f(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)


# --- VinDr-Mammo ------------------------------------------------------------------------------------------------------

@pytest.fixture
def vindr(tmp_path):
    """Three examinations with two pictures each: BI-RADS 1, 3 and 5, the last one in the test part."""
    base, rows = tmp_path / "vindr-mammo" / "1.0.0", []
    for k in range(6):
        study, image = f"s{k // 2}", f"i{k}"
        write_dicom(base / "images" / study / f"{image}.dicom")
        rows.append((study, "series", image, "LR"[k % 2], "MLO", 8, 8, f"BI-RADS {(1, 3, 5)[k // 2]}", "DENSITY C",
                     "test" if k > 3 else "training"))
    pd.DataFrame(rows, columns=["study_id", "series_id", "image_id", "laterality", "view_position", "height", "width", "breast_birads",
                                "breast_density", "split"]).to_csv(base / "breast-level_annotations.csv", index=False)
    return base


def test_vindr(vindr, tmp_path):
    s = load("vindr-mammo", size=32, root=tmp_path)
    assert s.labels.tolist() == [0, 0, 1, 1, 1, 1] and s.split.tolist() == ["train"] * 4 + ["test"] * 2
    assert s.groups.tolist() == [0, 0, 1, 1, 2, 2] and s.metadata.file.tolist()[:2] == ["s0/i0", "s0/i1"]
    assert s.metadata.density.unique().tolist() == ["DENSITY C"] and s.metadata.side.tolist() == list("LRLRLR")
    two = load("vindr-mammo", "benign-malignant", 32, root=tmp_path)
    assert two.labels.tolist() == [0, 0, 1, 1] and two.split.tolist() == ["train", "train", "test", "test"]


def test_vindr_as_png_gives_the_same_set(vindr, tmp_path):
    before = load("vindr-mammo", size=32, root=tmp_path)
    for path in (vindr / "images").rglob("*.dicom"):
        read_dicom(path)[0].save(path.with_suffix(".png"))
        path.unlink()
    after = load("vindr-mammo", size=32, root=tmp_path)
    assert after.sha256 == before.sha256 and np.array_equal(after.images, before.images) and after.metadata.bits.unique().tolist() == [8]


@pytest.mark.parametrize("damage, match", [
    (lambda b: change(b / "breast-level_annotations.csv", "breast_birads", "birads"), "lacks the column 'breast_birads'"),
    (lambda b: change(b / "breast-level_annotations.csv", "training", "tuning"), "the split 'tuning' is unknown; expected 'training' or 'test'"),
    (lambda b: change(b / "breast-level_annotations.csv", "BI-RADS 5", "BI-RADS ?"), r"the assessment 'BI-RADS \?' is unknown"),
    (lambda b: change(b / "breast-level_annotations.csv", "L,MLO", "L,XYZ"), "the view 'XYZ' is unknown; expected 'CC' or 'MLO'"),
    (lambda b: change(b / "breast-level_annotations.csv", "R,MLO", "Q,MLO"), "the side 'Q' is unknown; expected 'L' or 'R'"),
    (lambda b: rewrite(b / "breast-level_annotations.csv", lambda t: pd.concat([t, t[:1]])), "'s0/i0' has two rows; expected a row a picture"),
    (lambda b: rewrite(b / "breast-level_annotations.csv", lambda t: t.assign(split=["test", *t.split[1:]])), "stands in both parts of the split"),
    (lambda b: overwrite(b / "breast-level_annotations.csv", b""), "annotations.csv cannot be read as a table in UTF-8"),
    (lambda b: overwrite(b / "breast-level_annotations.csv", "st\xfcdy,x\n".encode("latin-1")), "cannot be read as a table in UTF-8"),
    (lambda b: (b / "images" / "s1" / "i2.dicom").unlink(), r"lacks the file of 's1/i2' \(1 of 6"),
    (lambda b: write_dicom(b / "images" / "s1" / "i9.dicom"), "'s1/i9' has no row in the table"),
])
def test_vindr_says_what_is_wrong(vindr, tmp_path, damage, match):
    damage(vindr)
    with pytest.raises(DataIntegrityError, match=match):
        load("vindr-mammo", size=32, root=tmp_path)


# --- CBIS-DDSM --------------------------------------------------------------------------------------------------------

MASK = np.zeros((8, 8), np.uint16)
MASK[2:5, 2:5] = 4095
CBIS_COLUMNS = ["patient_id", "breast_density", "left or right breast", "image view", "abnormality id", "abnormality type", "mass shape",
                "mass margins", "assessment", "pathology", "subtlety", "image file path", "cropped image file path", "ROI mask file path"]


def cbis_row(base, kind, split, patient, view, number, pathology, swapped=False):
    """One finding: its files, and its row of the table (calcifications have other columns between)."""
    case = f"{kind.title()}-{'Training' if split == 'train' else 'Test'}_{patient}_LEFT_{view}"
    full, part = f"{case}/1.2.{number}/1.3.{number}", f"{case}_{number}/1.4/1.5"
    if not (base / case).exists():
        write_dicom(base / full / "1-1.dcm", RAMP + number)
        (base / full).joinpath("LICENSE").write_text("x")
    else:
        full = f"{case}/1.2.1/1.3.1"
    write_dicom(base / part / ("1-2.dcm" if swapped else "1-1.dcm"), RAMP[:4])
    write_dicom(base / part / ("1-1.dcm" if swapped else "1-2.dcm"), MASK)
    return (patient, 3, "LEFT", view, number, kind, "OVAL", "SPICULATED", 4, pathology, 5, f"{full}/000000.dcm", f"{part}/000001.dcm\n",
            f"{part}/000000.dcm\n")


@pytest.fixture
def cbis(tmp_path):
    """Five films of four women: one film with two findings, one woman in two parts."""
    base = tmp_path / "CBIS-DDSM"
    rows = {("mass", "train"): [("P_1", "CC", 1, "BENIGN"), ("P_1", "CC", 2, "MALIGNANT"), ("P_2", "MLO", 1, "BENIGN_WITHOUT_CALLBACK")],
            ("mass", "test"): [("P_3", "CC", 1, "MALIGNANT")], ("calc", "train"): [("P_4", "CC", 1, "BENIGN")],
            ("calc", "test"): [("P_1", "MLO", 1, "BENIGN")]}
    for k, ((kind, split), findings) in enumerate(rows.items()):
        table = pd.DataFrame([cbis_row(base, kind, split, *f, swapped=k % 2 == 1) for f in findings], columns=CBIS_COLUMNS)
        if kind == "calc":
            table = table.rename(columns={"breast_density": "breast density", "mass shape": "calc type", "mass margins": "calc distribution"})
        table.to_csv(base / f"{kind}_case_description_{split}_set.csv", index=False)
    return base


def test_cbis_films(cbis, tmp_path):
    s = load("cbis-ddsm", size=32, root=tmp_path)
    assert s.task == "benign-malignant" and s.metadata.patient.tolist() == ["P_1", "P_2", "P_3", "P_4", "P_1"]
    assert s.labels.tolist() == [1, 0, 1, 0, 0] and s.split.tolist() == ["train", "train", "test", "train", "test"]
    assert s.groups.tolist() == [0, 1, 2, 3, 0] and s.metadata.n_findings.tolist() == [2, 1, 1, 1, 1]
    assert s.metadata.kind.tolist() == ["mass", "mass", "mass", "calc", "calc"] and s.metadata["view"].tolist()[1] == "MLO"
    assert s.metadata.pathology.tolist()[:2] == ["MALIGNANT", "BENIGN_WITHOUT_CALLBACK"] and s.metadata.side.unique().tolist() == ["left"]
    assert s.class_names == ("benign", "malignant") and s.licence == "CC BY 3.0" and s.masks is None


def test_a_cbis_film_in_two_tables_is_one_row(cbis, tmp_path):
    for split, pathology, patient in (("test", "MALIGNANT", "P_2"), ("train", "BENIGN", "P_4")):   # P_2: a film of the masses of training
        path = cbis / f"calc_case_description_{split}_set.csv"
        rewrite(path, lambda t: pd.concat([t, pd.DataFrame([cbis_row(cbis, "calc", split, patient, "MLO", 1, pathology)], columns=t.columns)]))
    s = load("cbis-ddsm", size=32, root=tmp_path)
    rows = s.metadata[s.metadata.patient == "P_2"]
    assert len(s) == 6 and len(rows) == 1 and rows.n_findings.item() == 2 and rows.pathology.item() == "MALIGNANT"
    assert s.labels[rows.index[0]] == 1 and s.split[rows.index[0]] == "train", "in both parts: of the training part"
    assert (s.metadata.patient == "P_4").sum() == 2, "two views are two films"
    assert len(load("cbis-ddsm", "lesion-crops", 32, root=tmp_path)) == 8, "each finding keeps its crop"


def test_cbis_crops_are_no_masks_whichever_comes_first(cbis, tmp_path):
    s = load("cbis-ddsm", "lesion-crops", 32, root=tmp_path)
    assert len(s) == 6 and s.labels.tolist() == [0, 1, 0, 1, 0, 0] and s.groups.tolist() == [0, 0, 1, 2, 3, 0]
    assert s.metadata.height.tolist() == [4] * 6 and s.metadata.width.tolist() == [8] * 6   # the crop, not the 8 x 8 mask


def test_cbis_by_the_published_names_and_in_folders_of_the_program(cbis, tmp_path):
    before = load("cbis-ddsm", size=32, root=tmp_path)
    inner = cbis / "manifest-1" / "CBIS-DDSM"
    inner.mkdir(parents=True)
    for place in [p for p in cbis.iterdir() if p.is_dir() and p.name != "manifest-1"]:
        shutil.move(place, inner / place.name)
    for path in inner.glob("*_CC/*/*/1-1.dcm"):
        path.rename(path.with_name("000000.dcm"))
    for path in list(inner.glob("*_MLO/*/*/1-1.dcm")):   # the other form: dates and descriptions for folders
        (place := path.parents[2] / "07-20-2016-DDSM-NA-1" / "1.000000-full mammogram images-2").mkdir(parents=True)
        path.rename(place / "1-1.dcm")
        shutil.rmtree(path.parents[1])
    after = load("cbis-ddsm", size=32, root=tmp_path)
    assert after.sha256 == before.sha256 and after.labels.tolist() == before.labels.tolist()


@pytest.mark.parametrize("damage, match", [
    (lambda b: (b / "calc_case_description_test_set.csv").unlink(), r"lacks calc_case_description_test_set\.csv"),
    (lambda b: change(b / "mass_case_description_test_set.csv", "image view", "view"), "lacks the column 'image view'"),
    (lambda b: change(b / "mass_case_description_test_set.csv", "MALIGNANT", "UNPROVEN"), "the pathology 'UNPROVEN' is unknown; expected 'BENIGN' or"),
    (lambda b: change(b / "mass_case_description_test_set.csv", "LEFT,CC", "LEFT,AP"), "the view 'AP' is unknown; expected 'CC' or 'MLO'"),
    (lambda b: change(b / "mass_case_description_test_set.csv", "LEFT,CC", "BOTH,CC"), "the side 'both' is unknown; expected 'left' or 'right'"),
    (lambda b: shutil.rmtree(b / "Mass-Test_P_3_LEFT_CC"), r"lacks the file of 'Mass-Test_P_3_LEFT_CC.*\(1 of 5 are missing\)"),
    (lambda b: next(b.glob("Mass-Test_P_3_LEFT_CC/*/*/1-1.dcm")).unlink(), "1 of 5 are missing"),
    (lambda b: write_dicom(next(b.glob("Mass-Test_P_3_LEFT_CC/*/*")) / "1-2.dcm"), "holds 2 DICOM files, and none is at"),
    (lambda b: write_dicom(next(b.glob("Mass-Test_P_3_LEFT_CC/*/*/1-1.dcm")), leave_out=["PixelData"]), "without pixels"),
])
def test_cbis_says_what_is_wrong(cbis, tmp_path, damage, match):
    damage(cbis)
    with pytest.raises(DataIntegrityError, match=match):
        load("cbis-ddsm", size=32, root=tmp_path)


def test_a_part_of_cbis(cbis, tmp_path):
    shutil.rmtree(cbis / "Mass-Test_P_3_LEFT_CC")
    assert load("cbis-ddsm", size=32, root=tmp_path, complete=False).metadata.patient.tolist() == ["P_1", "P_2", "P_4", "P_1"]
    (cbis / "Mass-Test_P_3_LEFT_CC_1" / "1.4" / "1.5" / "1-2.dcm").unlink()   # the crop; the mask stays
    with pytest.raises(DataIntegrityError, match="1 of 6 are missing"):
        load("cbis-ddsm", "lesion-crops", 32, root=tmp_path)


# --- KAU-BCMD ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def kau(tmp_path):
    """Four folders as published, one of them with an inner one, two pictures a woman."""
    for place in ("BIRAD1/b1", "Birad3/b3", "Birad4/b4", "Birad5/Birad5"):
        (tmp_path / "KAU-BCMD" / place).mkdir(parents=True)
        number = "12" if "4" in place else place[5]
        for view in ("CC_L", "MLO_R"):
            Image.fromarray(np.full((30, 20), 90, np.uint8)).save(tmp_path / "KAU-BCMD" / place / f"20_BC{number}_ {view}.jpg")
    (tmp_path / "KAU-BCMD" / "reports").mkdir()
    return tmp_path / "KAU-BCMD"


def test_kau(kau, tmp_path):
    s = load("kau-bcmd", size=32, root=tmp_path)
    assert s.labels.tolist() == [0, 0, 1, 1, 1, 1, 1, 1] and s.class_names == ("normal", "abnormal") and len(set(s.groups)) == 4
    assert s.metadata.bi_rads.tolist() == list("11334455") and s.metadata.patient.tolist()[4:6] == ["12", "12"]
    two = load("kau-bcmd", "benign-malignant", 32, root=tmp_path)
    assert two.labels.tolist() == [0, 0, 1, 1, 1, 1] and two.class_names == ("benign", "malignant")
    assert "Alsolami" in two.citation and two.name == "kau-bcmd" and two.source == "KAU-BCMD folder, 6 pictures"


def test_kau_with_a_folder_for_each_case(kau, tmp_path):
    before = load("kau-bcmd", size=32, root=tmp_path)
    for path in list(kau.rglob("*.jpg")):
        case = path.parents[1] / path.name.split("_ ")[0]
        case.mkdir(exist_ok=True)
        path.rename(case / f"{path.stem[-1]}.jpg")
    for path in list(kau.iterdir()):
        (kau / "archive").mkdir(exist_ok=True)
        shutil.move(path, kau / "archive" / path.name)
    after = load("kau-bcmd", size=32, root=tmp_path)
    assert after.groups.tolist() == before.groups.tolist() and after.metadata.bi_rads.tolist() == list("11334455")


def test_kau_says_what_is_wrong(kau, tmp_path):
    next((kau / "Birad4").rglob("*.jpg")).rename(kau / "Birad4" / "unknown.jpg")
    with pytest.raises(DataIntegrityError, match="the file 'Birad4/unknown.jpg' does not fit groups"):
        load("kau-bcmd", size=32, root=tmp_path)
    for name in ("Birad3", "Birad4", "Birad5"):
        shutil.rmtree(kau / name)
    with pytest.raises(DataIntegrityError, match="lacks a class of the task 'normal-abnormal'; it holds the folders BIRAD1, reports"):
        load("kau-bcmd", size=32, root=tmp_path)


# --- tiles in TFRecord files ------------------------------------------------------------------------------------------

# Two records written by the package tfrecord 1.14.6 with crc32c 2.9: an implementation that is not ours.
WRITTEN = base64.b64decode(
    "PAAAAAAAAADIt6NSCjoKEQoFaW1hZ2USCAoGCgQHCAn6Cg4KBWxhYmVsEgUaAwoBAwoVCgxsYWJlbF9ub3JtYWwSBRoDCgEBSlGL/kQAAAAAAAAAQ1kumgpC"
    "Cg4KBWltYWdlEgUKAwoBAQoQCgVsYWJlbBIHGgUKAwWsAgoeCgxsYWJlbF9ub3JtYWwSDhoMCgr+//////////8BD5n/2A==")


def field(number, data):
    """A field of bytes in protobuf's wire format."""
    size, length = bytearray(), len(data)
    while length > 127:
        size.append(length & 127 | 128)
        length >>= 7
    return bytes([number << 3 | 2, *size, length]) + data


def example(packed=True, **features):
    """A tf.train.Example of whole numbers and bytes."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = field(1, field(1, value))
        else:
            feature = field(3, field(1, bytes([value])) if packed else bytes([1 << 3, value]))
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def record(data):
    """A record of a TFRecord file."""
    head = len(data).to_bytes(8, "little")
    return head + mammograms._masked_crc(head) + data + mammograms._masked_crc(data)


def tile(finding, grey=9):
    return record(example(image=np.full((299, 299), grey, np.uint8).tobytes(), label=finding, label_normal=int(finding > 0)))


@pytest.fixture
def tiles(tmp_path):
    """Two shards, one of them in a folder of its own name."""
    base = tmp_path / "ddsm-mammography"
    (base / "training10_1").mkdir(parents=True)
    (base / "training10_0.tfrecords").write_bytes(tile(0, 10) + tile(2, 20) + tile(4, 30))
    (base / "training10_1" / "training10_1.tfrecords").write_bytes(tile(1, 40) + tile(3, 50))
    return base


def test_checksum_has_the_published_value():
    assert mammograms._masked_crc(b"") == (0xA282EAD8).to_bytes(4, "little")
    crc = 0xE3069283   # CRC-32C of "123456789", the check value in the catalogues
    assert mammograms._masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")


def test_records_of_another_implementation_are_read(tmp_path):
    (tmp_path / "x").write_bytes(WRITTEN)
    records = list(read_tfrecords(tmp_path / "x"))
    assert [len(r) for r in records] == [60, 68]
    assert mammograms._example(records[0]) == {"image": [bytes([7, 8, 9, 250])], "label": [3], "label_normal": [1]}
    assert mammograms._example(records[1])["label"] == [5, 300]   # 300 takes two bytes


def test_numbers_are_read_packed_or_not():
    assert mammograms._example(example(packed=False, label=7)) == mammograms._example(example(label=7)) == {"label": [7]}


@pytest.mark.parametrize("at, check, match", [
    (0, True, "no TFRecord file, or record 0 has a damaged length"), (9, True, "damaged length"), (40, True, "record 0 .* is altered"),
    (80, True, "record 1 has a damaged length"), (-3, True, "record 1 .* is altered"), (-3, False, None)])
def test_an_altered_byte_is_found(tmp_path, at, check, match):
    data = bytearray(WRITTEN)
    data[at] ^= 4
    (tmp_path / "x").write_bytes(data)
    if match is None:
        assert len(list(read_tfrecords(tmp_path / "x", check))) == 2
    else:
        with pytest.raises(DataIntegrityError, match=match):
            list(read_tfrecords(tmp_path / "x", check))


@pytest.mark.parametrize("end, match", [(-1, "cut off in record 1"), (100, "cut off in record 1"), (80, "damaged length"), (5, "damaged length")])
def test_a_file_that_is_cut_off_is_found(tmp_path, end, match):
    (tmp_path / "x").write_bytes(WRITTEN[:end])
    with pytest.raises(DataIntegrityError, match=match):
        list(read_tfrecords(tmp_path / "x"))


def test_tiles(tiles, tmp_path):
    s = load("ddsm-tiles", size=32, root=tmp_path, shards=[0, 1])
    assert s.labels.tolist() == [0, 1, 1, 1, 1] and s.images[:, 5, 5].tolist() == [10, 20, 30, 40, 50] and s.images.shape == (5, 32, 32)
    assert s.groups is None and s.split.tolist() == ["train"] * 5 and s.metadata.shard.tolist() == [0, 0, 0, 1, 1]
    two = load("ddsm-tiles", "benign-malignant", 32, root=tiles, shards=[0, 1])
    assert two.labels.tolist() == [0, 1, 0, 1] and two.metadata.finding.tolist() == [
        "benign mass", "malignant mass", "benign calcification", "malignant calcification"]
    assert load("ddsm-tiles", size=64, root=tiles, shards=[1]).metadata.shard.tolist() == [1, 1]
    assert two.sha256 == s.sha256 and two.source == "TFRecord files 0, 1, 4 tiles"


@pytest.mark.parametrize("data, match", [
    (tile(5), "89401 pixels and the label 5; expected 299 x 299 and 0 to 4"),
    (record(example(image=b"123", label=1)), "3 pixels and the label 1"),
    (record(example(label=1)), "record 0 of .* is no tile: KeyError.*expected the features image and label"),
    (record(b"\x0f\x01\x02"), "is no tile"), (record(b"\x0a\x7fabc"), "is no tile"), (b"foreign", "no TFRecord file"),
])
def test_tiles_say_what_is_wrong(tiles, tmp_path, data, match):
    (tiles / "training10_0.tfrecords").write_bytes(data)
    with pytest.raises(DataIntegrityError, match=match):
        load("ddsm-tiles", size=32, root=tmp_path, shards=[0])


def test_tiles_shards(tiles, tmp_path):
    with pytest.raises(DataIntegrityError, match=r"lacks training10_2\.tfrecords; it holds the numbers 0, 1.*shards="):
        load("ddsm-tiles", size=32, root=tmp_path)
    with pytest.raises(DataIntegrityError, match="lacks training10_any"):
        load("ddsm-tiles", size=32, root=tmp_path, shards=[])
    (tiles / "training10_0.tfrecords").write_bytes(tile(0))
    with pytest.raises(DataIntegrityError, match="no tile is left for the task 'benign-malignant'"):
        load("ddsm-tiles", "benign-malignant", 32, root=tmp_path, shards=[0])


# --- all of them ------------------------------------------------------------------------------------------------------

PLACES = {"mias": "peipa.essex.ac.uk", "inbreast": "10.1016/j.acra.2011.09.014", "vindr-mammo": "physionet.org",
          "cbis-ddsm": "cancerimagingarchive.net", "kau-bcmd": "10.3390/data6110111", "ddsm-tiles": "skooch/ddsm-mammography"}


@pytest.mark.parametrize("name", PLACES)
def test_a_missing_set_says_where_from_and_where_to(name, tmp_path):
    with pytest.raises(DataUnavailableError) as caught:
        load(name, root=tmp_path)
    for part in ("is not at hand", PLACES[name], str(tmp_path), 'load("phantom")'):
        assert part in str(caught.value), part
    assert not check_file(name)["ok"] and CARDS.keys() == PLACES.keys()
    with pytest.raises(ValueError, match=f"task 'x' does not exist for '{name}'"):
        load(name, "x", root=tmp_path)
    with pytest.raises(ValueError, match=f"28 or more for '{name}'"):
        load(name, size=5, root=tmp_path)


@pytest.mark.parametrize("name, task, names", [("inbreast", None, ("normal", "abnormal")), ("cbis-ddsm", None, ("benign", "malignant")),
                                               ("ddsm-tiles", "benign-malignant", ("benign", "malignant"))])
def test_a_missing_set_has_simulated_films_for_its_question(name, task, names):
    s = load_or_phantom(name, size=28, task=task, say=lambda line: None)
    assert s.name == "phantom-mias" and s.class_names == names and s.images.shape[1:] == (28, 28)


# --- the real films ---------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def real():
    """All 322 films; skipped where they are not at hand."""
    try:
        return load("mias", size=64, download=False)
    except DataUnavailableError as error:
        pytest.skip(str(error).splitlines()[0])


def test_real_counts(real):
    assert np.bincount(real.labels).tolist() == [207, 115] and len(np.unique(real.groups)) == 161
    assert real.sha256 == "a64e69f087f57aa3406505e3080505bcc0433d74c566f0b8e1ba02ae492a40d4"
    m = real.metadata
    assert m.severity.value_counts().to_dict() == {"": 207, "B": 63, "M": 52} and m.n_lesions.sum() == 123
    assert m.film[(m.n_lesions > 0) & m.radius.isna()].tolist() == ["mdb059", "mdb216", "mdb233", "mdb245"]
    assert m.loc[m.film == "mdb144", "severity"].item() == "M"


def test_real_circles_lie_on_bright_lesions(real):
    """Three lesions that anyone sees: brighter within the circle than in the ring around it, and not so when mirrored."""
    s = load("mias", size=512)
    for name in ("mdb028", "mdb184", "mdb025"):
        i = s.metadata.index[s.metadata.film == name][0]
        x, y, radius = s.metadata.loc[i, ["x", "y", "radius"]]
        rows, columns = np.indices((512, 512))
        inner, ring = (np.hypot(rows - y, columns - x) < k * radius for k in (.5, 1.5))
        assert s.images[i][inner].mean() > s.images[i][ring & ~s.masks[i]].mean() + 30, name
        flipped = s.images[i][::-1]
        assert flipped[inner].mean() < s.images[i][inner].mean() - 30, name


def test_real_crops(real):
    crops = load("mias", "lesion-crops", 32)
    assert np.bincount(crops.labels).tolist() == [68, 51] and crops.masks.any(axis=(1, 2)).all()
    m = crops.metadata
    assert m.crop.min() == 64 and m.crop.max() == 394 and (m.left + m.crop <= 512).all() and (m.top + m.crop <= 512).all()
    assert crops.sha256 == real.sha256


def test_an_empty_tfrecord_file_is_refused(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(DataIntegrityError, match="x is empty"):
        list(read_tfrecords(tmp_path / "x"))
