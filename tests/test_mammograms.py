"""Tests of the readers of mammograms: on tiny generated files in the published layouts, and on the real mini-MIAS where it is at hand."""
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bc_clust import data, mammograms
from bc_clust.data import DataIntegrityError, DataUnavailableError, check_file, grouped_folds, list_sets, load, load_or_phantom
from bc_clust.mammograms import phantom_films, write_phantom_mias

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


def test_missing_set_says_where_from_and_where_to(tmp_path):
    with pytest.raises(DataUnavailableError) as caught:
        load("mias", root=tmp_path)
    for part in ("mini-mias is not at hand", "peipa.essex.ac.uk", "research use only", str(tmp_path), 'load("phantom")'):
        assert part in str(caught.value), part
    assert not check_file("mias")["ok"] and check_file("mias")["path"] == "-"


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


@pytest.mark.parametrize("settings, match", [({"n": 13}, "even number"), ({"n": 10}, "12 or more"), ({"n": 12.0}, "even number"),
                                             ({"side": 256}, "side must be 512 or 1024"), ({"random_state": -1}, "random_state")])
def test_write_phantom_mias_bad_settings(tmp_path, settings, match):
    with pytest.raises(ValueError, match=match):
        write_phantom_mias(tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_write_phantom_mias_refuses_to_overwrite(tmp_path):
    assert write_phantom_mias(tmp_path, n=12).name == "mini-mias"
    with pytest.raises(FileExistsError):
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
