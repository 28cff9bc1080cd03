"""Tests of `load("busi")`: on tiny generated folders in the published layout, and on the real one where it is at hand."""
import hashlib
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from bc_clust import data
from bc_clust.data import (DataIntegrityError, DataUnavailableError, check_file, duplicate_groups, find_duplicates, find_mark,
                           grouped_folds, list_sets, load, load_or_phantom, phantom, write_phantom_busi)

CLASSES = ("benign", "malignant", "normal")


@pytest.fixture(autouse=True)
def nothing_at_hand(tmp_path, monkeypatch, request):
    """No real folder is found, unless the test asks for the real one."""
    if "real" not in request.fixturenames:
        monkeypatch.delenv("BC_CLUST_DATA", raising=False)
        monkeypatch.setattr(data, "user_cache_dir", lambda *args, **kwargs: str(tmp_path / "cache"))


@pytest.fixture
def made(tmp_path):
    """A generated folder: 12 pictures (7 benign, 3 malignant, 2 normal), 96 pixels wide."""
    return write_phantom_busi(tmp_path)


def read(folder, **settings):
    return load("busi", root=folder, **({"complete": False} | settings))


def test_the_generated_folder_has_the_published_layout(made):
    names = {c: sorted(p.name for p in (made / c).iterdir()) for c in CLASSES}
    assert made.name == "Dataset_BUSI_with_GT" and sorted(p.name for p in made.iterdir()) == list(CLASSES)
    assert names["malignant"] == ["malignant (1).png", "malignant (1)_mask.png", "malignant (2).png", "malignant (2)_mask.png",
                                  "malignant (3).png", "malignant (3)_mask.png", "malignant (3)_mask_1.png"]
    assert names["normal"] == ["normal (1).png", "normal (1)_mask.png", "normal (2).png", "normal (2)_mask.png"]
    assert [Image.open(made / "benign" / f"benign ({k}).png").size for k in (1, 2, 3, 4)] == [(96, 90), (96, 84), (96, 78), (96, 96)]
    with pytest.raises(FileExistsError):
        write_phantom_busi(made.parent)
    with pytest.raises(ValueError, match="n must be a whole number of 4 or more"):
        write_phantom_busi(made.parent / "other", n=3)


def test_load_order_classes_and_metadata(made):
    s = read(made)
    assert s.images.shape == s.masks.shape == (12, 224, 224) and s.images.dtype == np.uint8 and s.masks.dtype == bool
    assert s.labels.tolist() == [0] * 7 + [1] * 3 + [2] * 2 and s.class_names == CLASSES
    assert s.metadata.file.tolist()[:2] + s.metadata.file.tolist()[-1:] == ["benign/benign (1).png", "benign/benign (2).png",
                                                                            "normal/normal (2).png"]
    assert s.metadata.n_masks.tolist() == [1, 1, 2, 1, 1, 2, 1, 1, 1, 2, 1, 1]
    assert s.metadata.loc[0, ["class", "width", "height", "mode", "left", "top", "right", "bottom"]].tolist() == [
        "benign", 96, 90, "L", 0, 7, 224, 217]
    assert (s.name, s.task, s.split, len(s.groups), len(s.sha256)) == ("busi", "3-class", None, 12, 64)
    assert s.source == "BUSI folder, copies of at most 256 pixels, 12 of 780 pictures"
    assert "10.1016/j.dib.2019.104863" in s.citation and "Al-Dhabyani" in s.citation and s.licence


def test_numbers_are_counted_not_spelled(tmp_path):
    names = read(write_phantom_busi(tmp_path, n=24, size=32)).metadata.file.tolist()
    assert names[:13] == [f"benign/benign ({k}).png" for k in range(1, 14)]


def test_benign_malignant_leaves_normal_out_and_keeps_the_rest(made):
    s, two = read(made), read(made, task="benign-malignant")
    assert len(two) == 10 and two.class_names == ("benign", "malignant") and two.task == "benign-malignant"
    assert np.array_equal(two.images, s.images[:10]) and np.array_equal(two.masks, s.masks[:10])
    assert two.groups.tolist() == s.groups[:10].tolist() and two.sha256 == s.sha256
    assert two.metadata["class"].tolist() == ["benign"] * 7 + ["malignant"] * 3
    assert two.source == s.source + ", 'normal' left out"


@pytest.mark.parametrize("size", [28, 61, 96, 300])
def test_pictures_keep_their_proportions_between_black_bars(made, size):
    s = read(made, size=size)
    assert s.images.shape == s.masks.shape == (12, size, size)
    for i, row in s.metadata.iterrows():
        picture = Image.open(made / row.file)
        scale = size / max(picture.size)
        w, h = round(picture.width * scale), round(picture.height * scale)
        assert (row.right - row.left, row.bottom - row.top) == (w, h) and row.left == (size - w) // 2 and row.top == (size - h) // 2
        inside = s.images[i, row.top:row.bottom, row.left:row.right]
        assert np.array_equal(inside, np.asarray(picture.resize((w, h), Image.Resampling.LANCZOS)))
        outside = s.images[i].copy()
        outside[row.top:row.bottom, row.left:row.right] = 0
        assert not outside.any()


def test_masks_are_united_and_resized_without_new_values(made):
    s = read(made, size=96)   # the size at which nothing is resized
    i = 2   # benign (3): two masks
    parts = [np.asarray(Image.open(made / "benign" / f"benign (3){tail}.png")) for tail in ("_mask", "_mask_1")]
    assert parts[0].any() and parts[1].any() and not (parts[0] & parts[1]).any()
    top, bottom = s.metadata.loc[i, ["top", "bottom"]]
    assert np.array_equal(s.masks[i, top:bottom], (parts[0] | parts[1]) > 0)
    assert np.array_equal(s.masks.any(axis=(1, 2)), s.labels < 2)
    big = read(made, size=224)
    wanted = Image.fromarray(parts[0] | parts[1]).resize((224, round(78 * 224 / 96)), Image.Resampling.NEAREST)
    top, bottom = big.metadata.loc[i, ["top", "bottom"]]
    assert np.array_equal(big.masks[i, top:bottom], np.asarray(wanted) > 0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_grey_and_colour_give_the_same_arrays(made, tmp_path, mode):
    other = tmp_path / "other" / made.name
    shutil.copytree(made, other)
    for path in other.rglob("*.png"):
        picture = Image.open(path).convert(mode)
        if mode.endswith("A"):
            picture.putalpha(Image.new("L", picture.size, 90))   # alpha is dropped, not blended
        picture.save(path)
    s, t = read(made, size=64), read(other, size=64)
    assert np.array_equal(s.images, t.images) and np.array_equal(s.masks, t.masks) and s.sha256 == t.sha256
    assert set(t.metadata["mode"]) == {mode} and set(s.metadata["mode"]) == {"L"}


def test_colour_is_turned_grey_by_luma(made):
    colours = np.zeros((90, 96, 3), np.uint8)
    colours[..., 1] = 200
    Image.fromarray(colours).save(made / "benign" / "benign (1).png")
    s = read(made, size=96)
    assert np.unique(s.images[0]).tolist() == [0, 117]   # 0.587 * 200, and the bars


def test_originals_and_reduced_copies_give_the_same_arrays(tmp_path):
    original = write_phantom_busi(tmp_path / "a", n=8, size=400)
    reduced = tmp_path / "b" / original.name
    shutil.copytree(original, reduced)
    for path in reduced.rglob("*.png"):   # the canonical form, made here by hand
        picture = Image.open(path).convert("L")
        short = min(picture.size)
        size = tuple(round(side * 256 / short) for side in picture.size)
        mask = "_mask" in path.name
        picture.resize(size, Image.Resampling.NEAREST if mask else Image.Resampling.LANCZOS).save(path)
    s, t = read(original, size=100), read(reduced, size=100)
    for part in ("images", "masks", "labels", "groups"):
        assert np.array_equal(getattr(s, part), getattr(t, part)), part
    assert s.sha256 == t.sha256 and s.metadata.width[0] == 400 and min(t.metadata.height[0], t.metadata.width[0]) == 256
    assert s.source == "BUSI folder, original files, 8 of 780 pictures"
    assert t.source == "BUSI folder, copies of at most 256 pixels, 8 of 780 pictures"


def test_checksum_is_of_the_content(made):
    before = read(made).sha256
    for path in made.rglob("*.png"):
        picture = Image.open(path)
        picture.load()
        picture.save(path, compress_level=1)   # other bytes, same pixels
    assert read(made).sha256 == read(made, size=40).sha256 == before
    picture = np.asarray(Image.open(made / "normal" / "normal (2).png")).copy()
    picture[5, 5] ^= 1
    Image.fromarray(picture).save(made / "normal" / "normal (2).png")
    assert read(made).sha256 != before
    mask = Image.open(made / "benign" / "benign (1)_mask.png")
    changed = read(made).sha256
    mask.putpixel((0, 0), 255)
    mask.save(made / "benign" / "benign (1)_mask.png")
    assert read(made).sha256 != changed


# --- where it is looked for -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("layout", ["{}", "Dataset_BUSI_with_GT/{}", "Dataset_BUSI/{}", "archive/{}", "renamed"])
def test_the_folder_is_found_in_every_usual_place(made, tmp_path, layout):
    place = tmp_path / "data" / layout.format("Dataset_BUSI_with_GT")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(made, place)
    root = place if layout == "renamed" else tmp_path / "data"
    assert len(read(root)) == 12 and list_sets(root).set_index("name").loc["busi", "found"] == str(place)
    assert len(read(place)) == 12   # the folder itself


def test_search_order_is_root_then_variable_then_cache(tmp_path, monkeypatch):
    made = [write_phantom_busi(tmp_path / name, n=n, size=32) for name, n in (("root", 8), ("variable", 10), ("cache", 12))]
    monkeypatch.setenv("BC_CLUST_DATA", str(tmp_path / "variable"))
    for folder, n in zip(made, (8, 10, 12)):
        assert len(read(tmp_path / "root")) == n
        shutil.rmtree(folder)
    with pytest.raises(DataUnavailableError):
        read(tmp_path / "root")


def test_missing_set_error_says_all_one_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("BC_CLUST_DATA", str(tmp_path / "named"))
    with pytest.raises(DataUnavailableError) as caught:
        load("busi", root=tmp_path / "mine")
    for piece in ("Dataset_BUSI_with_GT is not at hand", "10.1016/j.dib.2019.104863", "Dataset of breast ultrasound images", "by hand",
                  str(tmp_path / "mine"), str(tmp_path / "named"), str(tmp_path / "cache"), 'load("phantom")', 'load("wdbc")'):
        assert piece in str(caught.value)
    assert not (tmp_path / "cache").exists()


# --- bad folders ------------------------------------------------------------------------------------------------------

def drop(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def resized_mask(folder):
    path = folder / "malignant" / "malignant (1)_mask.png"
    Image.open(path).resize((95, 90)).save(path)


def truncated(name, keep=0.5):
    def cut(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:int(len(content) * keep)])
    return cut


def filled_mask(name, value):
    def fill(folder):
        Image.new("L", Image.open(folder / name).size, value).save(folder / name)
    return fill


@pytest.mark.parametrize("damage, match", [
    (lambda f: shutil.rmtree(f / "malignant"), "lacks the folder malignant; BUSI has benign, malignant and normal"),
    (lambda f: [shutil.rmtree(f / c) for c in CLASSES], "lacks the folder benign and malignant and normal"),
    (lambda f: [p.unlink() for p in (f / "normal").iterdir()], "normal holds no picture"),
    (drop("benign/benign (2)_mask.png"), r"benign \(2\).png has no mask; BUSI has one or more"),
    (drop("malignant/malignant (3).png"), r"malignant \(3\)_mask(_1)?.png is a mask without its picture"),
    (drop("normal/normal (1).png"), r"normal \(1\)_mask.png is a mask without its picture"),
    (resized_mask, r"malignant \(1\)_mask.png is 95x90 pixels, its picture 96x90; both must be of one size"),
    (truncated("benign/benign (4).png"), r"benign \(4\).png cannot be read as a picture"),
    (truncated("benign/benign (4).png", 0), r"benign \(4\).png cannot be read as a picture"),
    (truncated("benign/benign (6)_mask_1.png"), r"benign \(6\)_mask_1.png cannot be read as a picture"),
    (lambda f: (f / "normal" / "normal (2).png").write_text("<html>log in</html>"), r"normal \(2\).png cannot be read"),
    (lambda f: Image.fromarray(np.zeros((90, 96), np.uint16)).save(f / "benign" / "benign (1).png"),
     r"benign \(1\).png has the pixel format 'I;16'; expected 8-bit grey, RGB or RGBA"),
    (filled_mask("benign/benign (1)_mask.png", 0), r"the masks of .*benign \(1\).png mark nothing in a picture"),
    (filled_mask("normal/normal (1)_mask.png", 255), r"the masks of .*normal \(1\).png mark a lesion in a normal picture"),
    (lambda f: shutil.copy(f / "benign" / "benign (1).png", f / "benign" / "benign (1) copy.png"),
     r"holds 1 pictures that are no part of BUSI, such as 'benign \(1\) copy.png'; expected names like 'benign \(1\).png'"),
    (lambda f: shutil.copy(f / "benign" / "benign (1).png", f / "normal" / "benign (1).png"), r"normal holds 1 pictures"),
    (lambda f: (f / "benign" / "scan.JPG").write_bytes(b""), "such as 'scan.JPG'"),
])
def test_a_damaged_folder_is_refused_and_the_file_is_named(made, damage, match):
    damage(made)
    with pytest.raises(DataIntegrityError, match=match):
        read(made)
    report = check_file("busi", root=made)
    assert not report["ok"] and report["path"] == str(made) and report["problem"]


def test_files_of_file_managers_are_passed_over(made):
    before = read(made).sha256
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._benign (1).png", "notes.txt"):
        (made / "benign" / name).write_bytes(b"no picture")
        (made / name).write_bytes(b"no picture")
    (made / "__MACOSX").mkdir()
    (made / "normal" / "more").mkdir()
    assert read(made).sha256 == before
    (made / "normal" / "normal (1)_mask.png").unlink()   # a normal picture needs no mask
    assert len(read(made)) == 12 and not read(made).masks[10].any()


def test_a_part_of_the_set_is_refused_unless_asked_for(made, monkeypatch):
    with pytest.raises(DataIntegrityError, match=r"benign lacks 'benign \(8\).png' \(7 pictures, published 437\).*complete=False"):
        load("busi", root=made)
    monkeypatch.setattr(data, "BUSI_COUNTS", {"benign": 7, "malignant": 3, "normal": 2})
    assert len(load("busi", root=made)) == 12 and check_file("busi", root=made)["ok"]
    for tail in ("", "_mask"):
        (made / "malignant" / f"malignant (2){tail}.png").rename(made / "malignant" / f"malignant (4){tail}.png")
    with pytest.raises(DataIntegrityError, match=r"malignant lacks 'malignant \(2\).png'"):
        load("busi", root=made)
    assert read(made).metadata.file[8] == "malignant/malignant (3).png"
    for tail in ("", "_mask"):
        shutil.copy(made / "malignant" / f"malignant (4){tail}.png", made / "malignant" / f"malignant (2){tail}.png")
    with pytest.raises(DataIntegrityError, match=r"holds, beyond the published pictures, 'malignant \(4\).png'"):
        load("busi", root=made)


@pytest.mark.parametrize("settings, error, match", [
    (dict(task="binary-class"), ValueError, "task 'binary-class' does not exist for 'busi'; accepted: '3-class', 'benign-malignant'"),
    (dict(size=27), ValueError, "size must be a whole number of 28 or more for 'busi'.*got 27"),
    (dict(size=64.0), ValueError, "got 64.0"), (dict(size=True), ValueError, "got True"), (dict(size="64"), ValueError, "got '64'"),
    (dict(near_limit=0), TypeError, "takes no near_limit; .*complete"),
])
def test_bad_settings(made, settings, error, match):
    with pytest.raises(error, match=match):
        read(made, **settings)


# --- cards ------------------------------------------------------------------------------------------------------------

def test_list_sets_and_check_file(made, monkeypatch):
    row = list_sets(made).set_index("name").loc["busi"]
    assert row.drop("found").tolist() == ["ultrasound", "any", 3, "780", "cite", False] and row.found == str(made)
    assert list_sets().set_index("name").loc["busi", "found"] == "-"
    missing = check_file("busi")
    assert not missing["ok"] and missing["path"] == "-" and "10.1016/j.dib.2019.104863" in missing["problem"]
    monkeypatch.setattr(data, "BUSI_COUNTS", {"benign": 7, "malignant": 3, "normal": 2})
    report = check_file("busi", size=32, root=made)
    assert report == dict(name="busi", size=32, path=str(made), ok=True, problem="", md5_expected="-", md5="-",
                          sha256=load("busi", root=made).sha256, n=12, n_constant=0)


def test_load_or_phantom_keeps_the_question(made, monkeypatch):
    said = []
    s = load_or_phantom("busi", size=28, say=said.append)
    assert s.name == "phantom" and s.class_names == CLASSES and s.images.shape == (780, 28, 28)
    two = load_or_phantom("busi", size=28, say=said.append, task="benign-malignant")
    assert two.class_names == ("benign", "malignant") and "Dataset_BUSI_with_GT is not at hand" in said[1]
    monkeypatch.setenv("BC_CLUST_DATA", str(made))
    monkeypatch.setattr(data, "BUSI_COUNTS", {"benign": 7, "malignant": 3, "normal": 2})
    assert load_or_phantom("busi", task="benign-malignant", say=said.append).labels.tolist() == [0] * 7 + [1] * 3
    assert said[2].startswith("Using busi (BUSI folder")


# --- copies and marks -------------------------------------------------------------------------------------------------

def test_copies_are_grouped_whatever_their_shape_size_and_class(made):
    picture = Image.open(made / "benign" / "benign (4).png")          # 96 x 96
    brighter = Image.fromarray(np.uint8(np.asarray(picture) * 0.9 + 10))
    picture.save(made / "malignant" / "malignant (2).png")
    brighter.resize((192, 192), Image.Resampling.LANCZOS).save(made / "normal" / "normal (1).png")
    bars = Image.new("L", (130, 96))                                  # the same centre between black bars
    bars.paste(picture, (17, 0))
    bars.save(made / "benign" / "benign (5).png")
    for name, size in (("malignant/malignant (2)", (96, 96)), ("normal/normal (1)", (192, 192)), ("benign/benign (5)", (130, 96))):
        mask = Image.new("L", size)
        if "normal" not in name:
            mask.paste(255, (40, 40, 60, 60))
        mask.save(made / f"{name}_mask.png")
    for size in (28, 224):
        s = read(made, size=size)
        assert s.groups.tolist() == [0, 1, 2, 3, 3, 4, 5, 6, 3, 7, 3, 8]
    for train, test in grouped_folds(s.labels[:10], s.groups[:10], n_splits=2):
        assert not set(s.groups[:10][train]) & set(s.groups[:10][test])


def drawn(draw, size=(300, 256)):
    """A phantom picture with something drawn over it."""
    picture = Image.fromarray(phantom(n=1, size=300, random_state=4).images[0, :size[1]])
    draw(ImageDraw.Draw(picture))
    return np.asarray(picture)


@pytest.mark.parametrize("draw, at", [
    (lambda d: None, None),
    (lambda d: d.line((20, 100, 250, 100), fill=255, width=3), None),            # level: as a ligament lies
    (lambda d: d.rectangle((100, 60, 160, 120), fill=255), None),                # bright, but not thin
    (lambda d: d.line((50, 0, 50, 7), fill=255), None),                          # in the skin line
    (lambda d: d.line((10, 12, 10, 17), fill=255), None),                        # in the corner of the logo
    (lambda d: d.line((200, 90, 200, 99), fill=255), (90, 99, 200, 200)),
    (lambda d: d.line((200, 90, 200, 91), fill=255), None),                      # two pixels: speckle is as long
    (lambda d: (d.line((114, 140, 126, 140), fill=255), d.line((120, 134, 120, 146), fill=255)), (134, 146, 114, 126)),
    (lambda d: d.text((30, 220), "RT AXILLA", fill=255), (220, 235, 30, 90)),
    (lambda d: d.text((30, 220), "RT AXILLA", fill=20), None),                   # darker than tissue is not sought
])
def test_find_mark(draw, at):
    strength, row, column = find_mark(drawn(draw))
    assert (strength >= data.MARK_LEVEL) == (at is not None)
    if at is not None:
        assert at[0] <= row <= at[1] and at[2] <= column <= at[3]


def test_find_mark_by_hand_and_bad_input():
    picture = np.full((40, 40), 100, np.uint8)
    assert find_mark(picture)[0] == 0
    picture[25:30, 30] = 160, 190, 255, 170, 130
    assert find_mark(picture) == (70, 27, 30)   # the weakest of three rows, 170 - 100
    picture[:, 30:34] = 200
    assert find_mark(picture)[0] == 100         # four pixels wide is thin, five is not
    picture[:, 30:35] = 200
    assert find_mark(picture)[0] == 0
    assert data.MARK_LEVEL == 78                # the value that was validated on the real pictures
    for bad in (picture / 255, picture[None], picture.tolist()):
        with pytest.raises(ValueError, match="uint8 array of shape"):
            find_mark(bad)


def test_overlay_in_metadata_points_at_the_mark(tmp_path):
    folder = write_phantom_busi(tmp_path, n=4, size=300)
    path = folder / "malignant" / "malignant (1).png"
    picture = Image.open(path)
    ImageDraw.Draw(picture).text((200, 180), "LT", fill=255)
    picture.save(path)
    s = read(folder, size=150)
    assert s.metadata.overlay.tolist() == [False, False, True, False]
    row, canonical = s.metadata.loc[2], picture.resize((round(300 * 256 / 282), 256), Image.Resampling.LANCZOS)
    strength, y, x = find_mark(np.asarray(canonical))
    assert row.mark_strength == strength > 100 and 170 <= x * 300 / canonical.width <= 230 and row.top == 4
    assert row.mark_row == pytest.approx(4 + y * 150 / canonical.width, abs=0.06)
    assert row.mark_column == pytest.approx(x * 150 / canonical.width, abs=0.06)


# --- the real folder --------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def real():
    try:
        return load("busi")
    except DataUnavailableError:
        pytest.skip("the real BUSI folder is not at hand; set BC_CLUST_DATA")


def test_real_busi(real):
    assert real.images.shape == real.masks.shape == (780, 224, 224) and np.bincount(real.labels).tolist() == [437, 210, 133]
    assert real.sha256 == "dcd498462b67f5de7adc5067144c9846f89d04e4d85c88d91bc52d3f4abe207a"
    assert real.metadata.n_masks.value_counts().to_dict() == {1: 763, 2: 16, 3: 1}
    assert np.array_equal(real.masks.any(axis=(1, 2)), real.labels < 2)
    assert real.metadata.loc[[0, 436, 646, 779], "file"].tolist() == [
        "benign/benign (1).png", "benign/benign (437).png", "malignant/malignant (210).png", "normal/normal (133).png"]
    if real.source.startswith("BUSI folder, copies"):
        assert hashlib.sha256(real.images.tobytes()).hexdigest() == "ac5f7ee37d52fb0d78d0c90b5d75608ac3b2a878b8aa399d160a9376b8625f3b"
    small = load("busi", size=28, task="benign-malignant")
    assert small.masks.any(axis=(1, 2)).all() and np.array_equal(small.groups, real.groups[:647]) and small.sha256 == real.sha256


def test_real_copies(real):
    assert np.bincount(np.bincount(real.groups)).tolist() == [0, 447, 118, 21, 5, 0, 0, 2]
    index = dict(zip(real.metadata.file, real.groups))
    assert index["benign/benign (433).png"] == index["malignant/malignant (145).png"]   # the same bytes in two classes
    mixed = pd.Series(real.labels).groupby(real.groups).nunique()
    assert (mixed > 1).sum() == 8


def test_real_groups_agree_with_breastmnist(real, breastmnist):
    table = next((f / "breastmnist_to_busi.csv" for f in data.data_folders() if (f / "breastmnist_to_busi.csv").exists()), None)
    if table is None:
        pytest.skip("breastmnist_to_busi.csv is not at hand")
    at = pd.Series(np.arange(780), index=real.metadata.file)[pd.read_csv(table).busi_file].to_numpy()
    assert np.array_equal(real.labels[at] == 1, breastmnist.labels == 0)
    ours, theirs = (np.triu(g[:, None] == g, k=1) for g in (real.groups[at], breastmnist.groups))
    assert (ours.sum(), theirs.sum(), (ours & theirs).sum()) == (253, 257, 253)


def test_real_marks(real):
    assert real.metadata.overlay.groupby(real.metadata["class"]).sum().to_dict() == {"benign": 178, "malignant": 58, "normal": 8}
    marked = dict(zip(real.metadata.file, real.metadata.overlay))
    for name in ("benign (297)", "benign (213)", "malignant (143)", "normal (31)", "benign (271)", "malignant (124)"):
        assert marked[f"{name.split()[0]}/{name}.png"], name      # callipers or text, looked at
    for name in ("benign (101)", "malignant (34)", "normal (91)", "benign (434)", "malignant (97)", "normal (84)"):
        assert not marked[f"{name.split()[0]}/{name}.png"], name


def test_real_folds(real):
    for train, test in grouped_folds(real.labels, real.groups, n_splits=5, n_repeats=2):
        assert not np.intersect1d(real.groups[train], real.groups[test]).size
        np.testing.assert_allclose(np.bincount(real.labels[test]) / len(test), [.560, .269, .171], atol=0.04)
