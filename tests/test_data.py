"""Tests of bc_clust.data. They pass without BC_CLUST_DATA and check more when it is set."""
import hashlib
import http.client
import io
import os
import pickle
import socket
import subprocess
import sys
import threading

import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from bc_clust import data
from bc_clust.data import (DataIntegrityError, DataUnavailableError, ImageSet, check_file, constant_images, data_folders,
                           duplicate_groups, find_duplicates, grouped_folds, list_sets, load, phantom, standardised)
from bc_clust.mammograms import CARDS

medmnist = pytest.importorskip("medmnist")


def smooth_images(n, side=28, seed=0, channels=()):
    """Independent smooth random images."""
    noise = np.random.default_rng(seed).normal(size=(n, side, side, *channels))
    noise = ndimage.gaussian_filter(noise, (0, side / 14, side / 14, *(0 for _ in channels)))
    return np.uint8(np.clip(120 + 40 * noise / noise.std(), 0, 255))


def image_set(**changes):
    parts = dict(images=smooth_images(4, 8), labels=np.array([0, 1, 1, 0]), class_names=("a", "b"))
    return ImageSet(**(parts | changes))


# --- the container ----------------------------------------------------------------------------------------------------

def test_imageset_subset_takes_every_part_along():
    s = image_set(split=np.array(["train", "test", "val", "test"]), groups=np.array([5, 6, 7, 8]),
                  masks=np.arange(4 * 64).reshape(4, 8, 8) > 100, metadata=pd.DataFrame({"age": [40, 50, 60, 70]}),
                  name="x", source="made")
    for index in ([3, 1], np.array([3, 1])):
        t = s.subset(index)
        assert np.array_equal(t.images, s.images[[3, 1]]) and t.labels.tolist() == [0, 1]
        assert t.split.tolist() == ["test", "test"] and t.groups.tolist() == [8, 6]
        assert np.array_equal(t.masks, s.masks[[3, 1]])
        assert t.metadata.age.tolist() == [70, 50] and t.metadata.index.tolist() == [0, 1]
        assert (len(t), t.name, t.source) == (2, "x", "made, 2 of 4 rows")
    assert s.subset(np.array([False, True, False, True])).groups.tolist() == [6, 8]
    assert len(s) == 4


@pytest.mark.parametrize("index, error, match", [
    (np.array([True, False]), ValueError, r"shape \(4,\)"), ([0, 4], IndexError, "below 4"), ([], TypeError, "integers"),
    (np.array([], dtype=int), IndexError, "at least one"), ([0.5], TypeError, "integers or booleans"),
])
def test_imageset_subset_bad_index(index, error, match):
    with pytest.raises(error, match=match):
        image_set().subset(index)


def test_imageset_accepts_the_documented_shapes():
    assert len(image_set(images=smooth_images(4, 8, channels=(3,)))) == 4
    assert len(image_set(images=np.ones((4, 5), np.float32))) == 4
    many = image_set(labels=np.array([[0, 1], [1, 1], [0, 0], [1, 0]]))
    assert "a (2)" in repr(many) and "b (2)" in repr(many)


def test_imageset_repr_names_classes_counts_and_source():
    text = repr(image_set(name="x", source="made", split=np.array(["train"] * 3 + ["test"]), groups=np.array([0, 0, 1, 2])))
    for piece in ("'x'", "4 rows", "0 = a (2)", "1 = b (2)", "train 3", "groups: 3", "source: made"):
        assert piece in text


@pytest.mark.parametrize("changes, error, match", [
    (dict(images=[[1, 2]]), TypeError, "NumPy array, got list"),
    (dict(images=np.ones((4, 8, 8))), ValueError, r"uint8 .* got float64 \(4, 8, 8\)"),
    (dict(images=np.ones((4, 8, 8, 4), np.uint8)), ValueError, r"\(4, 8, 8, 4\)"),
    (dict(images=np.ones((4, 8), np.uint8)), ValueError, r"got uint8 \(4, 8\)"),
    (dict(images=np.ones((0, 8, 8), np.uint8)), ValueError, "at least one image"),
    (dict(images=np.array([[1, 2], [np.nan, 1], [1, 2], [np.inf, 0]], np.float32)), ValueError,
     "NaN or infinite values in 2 rows, the first is row 1"),
    (dict(labels=np.array([0, 1, 1])), ValueError, "3 rows for 4 images"),
    (dict(labels=np.array([0, 1, 2, 0])), ValueError, r"0\.\.1 .* from 0 to 2"),
    (dict(labels=np.array([0, 1, -1, 0])), ValueError, "from -1 to 1"),
    (dict(labels=np.array([0, 1, 1, 0], np.int32)), TypeError, "int64"),
    (dict(labels=np.zeros((4, 3), np.int64)), ValueError, "3 columns for 2 class names"),
    (dict(labels=np.full((4, 2), 2)), ValueError, r"0\.\.1"),
    (dict(groups=np.arange(3)), ValueError, "groups has 3 rows"),
    (dict(split=np.array(["train"])), ValueError, "split has 1 rows"),
    (dict(metadata=pd.DataFrame({"a": [1]})), ValueError, "metadata has 1 rows"),
    (dict(masks=np.zeros((4, 8, 7), bool)), ValueError, r"bool of shape \(4, 8, 8\)"),
    (dict(masks=np.zeros((4, 8, 8), np.uint8)), ValueError, "got uint8"),
])
def test_imageset_refuses(changes, error, match):
    with pytest.raises(error, match=match):
        image_set(**changes)


def test_constant_images():
    images = smooth_images(5)
    assert constant_images(images).tolist() == []
    images[1], images[4] = 0, 255
    assert constant_images(images).tolist() == [1, 4]


# --- duplicates -------------------------------------------------------------------------------------------------------

def test_exact_duplicates_give_all_pairs_of_a_set_of_copies():
    images = smooth_images(6)[[0, 1, 0, 2, 0, 2]]
    pairs = find_duplicates(images)
    assert sorted(map(tuple, pairs[["i", "j"]].to_numpy())) == [(0, 2), (0, 4), (2, 4), (3, 5)]
    assert set(pairs.kind) == {"exact"} and (pairs.correlation == 1).all() and (pairs.bits == 0).all()
    assert duplicate_groups(images).tolist() == [0, 1, 0, 2, 0, 2]


def test_near_duplicates_survive_contrast_and_noise_and_report_labels_and_split():
    images = smooth_images(30)
    noisy = images[3] * 0.7 + 30 + np.random.default_rng(1).normal(0, 2, (28, 28))
    images = np.concatenate([images, np.uint8(noisy)[None]])
    labels, split = np.r_[np.zeros(30, int), 1], np.array(["train"] * 30 + ["test"])
    pairs = find_duplicates(images, labels, split)
    assert pairs[["i", "j", "kind"]].to_numpy().tolist() == [[3, 30, "near"]]
    assert not pairs.same_label[0] and not pairs.same_split[0]
    assert (pairs.label_i[0], pairs.label_j[0], pairs.split_i[0], pairs.split_j[0]) == (0, 1, "train", "test")
    by_hand = np.corrcoef(images[3].ravel(), images[30].ravel())[0, 1]
    assert pairs.correlation[0] == pytest.approx(by_hand, abs=1e-5)


def test_the_hash_confirms_between_the_two_thresholds():
    images = smooth_images(40)
    everything = find_duplicates(images, threshold=0.3)
    i, j, r, bits = (everything[c].tolist()[0] for c in ("i", "j", "correlation", "bits"))
    hashes = [imagehash.phash(Image.fromarray(images[k])) for k in (i, j)]
    assert bits == hashes[0] - hashes[1]   # the library's own distance
    has = lambda **settings: (i, j) in set(find_duplicates(images, **settings)[["i", "j"]].itertuples(index=False, name=None))
    assert has(threshold=r - 0.001, max_bits=0) and not has(threshold=r + 0.001, confirmed=r + 0.001, max_bits=64)
    assert has(threshold=r + 0.001, confirmed=r - 0.001, max_bits=bits)
    assert not has(threshold=r + 0.001, confirmed=r - 0.001, max_bits=bits - 1)


def test_similar_pairs_do_not_depend_on_the_block():
    images = smooth_images(25)
    whole, parts = (data._similar_pairs(images, 0.3, 0.3, 64, block=b) for b in (1000, 4))
    for a, b in zip(whole, parts):
        np.testing.assert_allclose(a, b, atol=1e-6)
    Z = images.reshape(25, -1)
    assert len(whole[0]) == (np.corrcoef(Z)[np.triu_indices(25, 1)] >= 0.3).sum()


def test_constant_images_are_no_near_duplicates_of_anything():
    images = smooth_images(4)
    images[1], images[2] = 10, 200
    assert len(find_duplicates(images)) == 0
    images[2] = 10
    assert find_duplicates(images)[["i", "j", "kind"]].to_numpy().tolist() == [[1, 2, "exact"]]


@pytest.mark.parametrize("images", [smooth_images(3, 64), smooth_images(3, 28, channels=(3,)), smooth_images(3, 100)])
def test_duplicates_at_other_sizes_and_in_colour(images):
    six = np.concatenate([images, np.uint8(images * 0.9)])
    found = set(find_duplicates(six)[["i", "j"]].itertuples(index=False, name=None))
    assert found == {(0, 3), (1, 4), (2, 5)}


def test_duplicates_of_feature_tables_and_of_one_image():
    table = np.array([[1, 2], [3, 4], [1, 2]], np.float32)
    assert find_duplicates(table)[["i", "j", "kind"]].to_numpy().tolist() == [[0, 2, "exact"]]
    assert duplicate_groups(table).tolist() == [0, 1, 0]
    assert len(find_duplicates(smooth_images(1))) == 0 and duplicate_groups(smooth_images(1)).tolist() == [0]


def test_groups_chain_and_near_limit():
    a, b, other = smooth_images(3)
    between = np.uint8((a.astype(float) + b) / 2)   # like both, which are unlike each other
    images = np.stack([a, other, b, between])
    rule = dict(threshold=0.55, confirmed=0.55)
    pairs = set(find_duplicates(images, **rule)[["i", "j"]].itertuples(index=False, name=None))
    assert pairs == {(0, 3), (2, 3)}
    assert duplicate_groups(images, **rule).tolist() == [0, 1, 0, 0]
    assert duplicate_groups(images, **rule, near_limit=4).tolist() == [0, 1, 0, 0]
    assert duplicate_groups(images, **rule, near_limit=3).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("call, match", [
    (lambda x: find_duplicates(x, threshold=0), "threshold is a correlation"),
    (lambda x: find_duplicates(x, threshold=1.1), "threshold is a correlation"),
    (lambda x: find_duplicates(x, labels=[0]), r"label must have shape \(3,\)"),
    (lambda x: find_duplicates(x, split=["train"]), r"split must have shape \(3,\)"),
    (lambda x: duplicate_groups(x / 255), "uint8"),
])
def test_duplicates_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call(smooth_images(3))


# --- folds ------------------------------------------------------------------------------------------------------------

def test_folds_keep_groups_together_and_classes_in_proportion():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 3)
    labels = (groups % 4 == 0).astype(int)
    order = rng.permutation(300)
    groups, labels = groups[order], labels[order]
    folds = list(grouped_folds(labels, groups, n_splits=5, n_repeats=3, random_state=1))
    assert len(folds) == 15
    for train, test in folds:
        assert not np.intersect1d(groups[train], groups[test]).size
        assert np.array_equal(np.sort(np.r_[train, test]), np.arange(300))
        assert labels[test].mean() == pytest.approx(0.25, abs=0.03)
    for k in range(3):
        assert np.array_equal(np.sort(np.concatenate([t for _, t in folds[5 * k:5 * k + 5]])), np.arange(300))
    assert not np.array_equal(folds[0][1], folds[5][1])


def test_folds_are_fixed_by_the_seed():
    labels = np.repeat([0, 1], 30)
    test_rows = lambda seed: [t.tolist() for _, t in grouped_folds(labels, None, 3, 2, seed)]
    assert test_rows(0) == test_rows(0) != test_rows(1)


def test_folds_without_groups_are_stratified():
    for _, test in grouped_folds(["x"] * 20 + ["y"] * 10, n_splits=5):
        assert len(test) == 6 and (test >= 20).sum() == 2


@pytest.mark.parametrize("settings, match", [
    (dict(labels=[0] * 9 + [1] * 3, n_splits=4), "class 1 has only 3 members, too few for 4 folds"),
    (dict(labels=[0] * 8 + [1] * 8, groups=[0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 9, 9, 9, 9], n_splits=3),
     "class 1 has only 2 groups, too few for 3 folds"),
    (dict(labels=[0, 1] * 5, groups=[0, 1]), r"groups must have shape \(10,\)"),
    (dict(labels=np.zeros((10, 2))), "multi-label"),
    (dict(labels=[]), r"shape \(n,\)"),
    (dict(labels=[0, 1] * 5, n_splits=1), "n_splits must be 2 or more"),
    (dict(labels=[0, 1] * 5, n_repeats=0), "n_repeats 1 or more"),
    (dict(labels=[0, 1] * 5, random_state=None), "random_state must be a whole number"),
])
def test_folds_refuse_on_the_call_itself(settings, match):
    with pytest.raises(ValueError, match=match):
        grouped_folds(**settings)


def test_folds_error_for_a_missing_class_is_raised(monkeypatch):
    class Unlucky:
        def __init__(self, *args, **kwargs):
            pass

        def split(self, X, y, groups=None):
            return [(np.arange(5), np.arange(5, 10)), (np.arange(5, 10), np.arange(5))]
    monkeypatch.setattr(data, "StratifiedKFold", Unlucky)
    with pytest.raises(ValueError, match="test fold 0 has no image of class 0"):
        grouped_folds([0] * 5 + [1] * 5, n_splits=2)


# --- files: a fake MedMNIST file --------------------------------------------------------------------------------------

def npz_bytes(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def fake_arrays(side=28, channels=(), n_labels=1, high=2, counts=(6, 2, 3)):
    rng = np.random.default_rng(0)
    images = smooth_images(sum(counts), side, channels=channels)
    labels = rng.integers(0, high, (sum(counts), n_labels)).astype(np.uint8)
    ends = np.cumsum(counts)[:-1]
    return ({f"{s}_images": x for s, x in zip(("train", "val", "test"), np.split(images, ends))}
            | {f"{s}_labels": x for s, x in zip(("train", "val", "test"), np.split(labels, ends))})


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """`fake(name, size, content)` makes `content` the official file of a set, served from a local folder."""
    server, cache = tmp_path / "server", tmp_path / "cache"
    server.mkdir()
    monkeypatch.delenv("BC_CLUST_DATA", raising=False)
    monkeypatch.setattr(data, "user_cache_dir", lambda *args, **kwargs: str(cache))

    def make(name="breastmnist", size=28, content=None):
        content = npz_bytes(**fake_arrays(size)) if content is None else content
        tail = "" if size == 28 else f"_{size}"
        (server / f"{name}{tail}.npz").write_bytes(content)
        changed = medmnist.INFO[name] | {f"MD5{tail}": hashlib.md5(content).hexdigest(),
                                         f"url{tail}": (server / f"{name}{tail}.npz").as_uri()}
        monkeypatch.setitem(medmnist.INFO, name, changed)
        return content
    make.server, make.cache, make.tmp = server, cache, tmp_path
    return make


@pytest.mark.parametrize("name, size, options, shape, label_shape", [
    ("breastmnist", 28, {}, (11, 28, 28), (11,)), ("breastmnist", 64, {}, (11, 64, 64), (11,)),
    ("breastmnist", 128, {}, (11, 128, 128), (11,)), ("breastmnist", 224, {}, (11, 224, 224), (11,)),
    ("pathmnist", 28, dict(channels=(3,), high=9), (11, 28, 28, 3), (11,)),
    ("retinamnist", 64, dict(channels=(3,), high=5), (11, 64, 64, 3), (11,)),
    ("chestmnist", 28, dict(n_labels=14), (11, 28, 28), (11, 14)),
])
def test_load_medmnist_kinds_and_sizes(fake, name, size, options, shape, label_shape):
    arrays = fake_arrays(size, **options)
    content = fake(name, size, npz_bytes(**arrays))
    fake.cache.mkdir()
    tail = "" if size == 28 else f"_{size}"
    (fake.cache / f"{name}{tail}.npz").write_bytes(content)
    s = load(name, size=size, download=False)
    assert s.images.shape == shape and s.images.dtype == np.uint8 and s.labels.shape == label_shape
    order = ("train", "val", "test")
    assert np.array_equal(s.images, np.concatenate([arrays[f"{k}_images"] for k in order]))
    assert np.array_equal(s.labels.reshape(11, -1), np.concatenate([arrays[f"{k}_labels"] for k in order]))
    assert s.split.tolist() == ["train"] * 6 + ["val"] * 2 + ["test"] * 3
    assert s.metadata.row.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 0, 1, 2]
    assert s.sha256 == hashlib.sha256(content).hexdigest() and s.source == f"medmnist {size}x{size} npz"
    assert s.class_names == tuple(medmnist.INFO[name]["label"].values()) and len(s.groups) == 11
    assert s.task == medmnist.INFO[name]["task"] and s.licence == medmnist.INFO[name]["license"] and s.citation


def test_load_downloads_into_the_cache_and_then_finds_it(fake, monkeypatch):
    content = fake()
    s = load("breastmnist")
    assert [p.name for p in fake.cache.iterdir()] == ["breastmnist.npz"]
    assert (fake.cache / "breastmnist.npz").read_bytes() == content
    monkeypatch.setattr(data, "_open_url", lambda *a: pytest.fail("a second download"))
    assert load("breastmnist").sha256 == s.sha256


def test_load_downloads_into_root_when_given(fake):
    fake()
    load("breastmnist", root=fake.tmp / "not" / "yet")
    assert (fake.tmp / "not" / "yet" / "breastmnist.npz").exists() and not fake.cache.exists()


def test_search_order_is_root_then_variable_then_cache(fake, monkeypatch):
    content = fake()
    folders = [fake.tmp / "root", fake.tmp / "variable", fake.cache]
    for folder in folders:
        folder.mkdir()
        (folder / "breastmnist.npz").write_bytes(content)
    monkeypatch.setenv("BC_CLUST_DATA", str(folders[1]))
    assert data_folders(folders[0]) == folders
    for folder in folders:
        assert check_file("breastmnist", root=folders[0])["path"] == str(folder / "breastmnist.npz")
        (folder / "breastmnist.npz").unlink()
    with pytest.raises(DataUnavailableError):
        load("breastmnist", root=folders[0], download=False)


def test_searching_creates_no_folder(fake):
    fake()
    with pytest.raises(DataUnavailableError):
        load("breastmnist", download=False)
    list_sets()
    check_file("breastmnist")
    assert not fake.cache.exists()


def test_missing_file_error_says_all_one_needs(fake, monkeypatch):
    fake()
    monkeypatch.setenv("BC_CLUST_DATA", str(fake.tmp / "named"))
    with pytest.raises(DataUnavailableError) as caught:
        load("breastmnist", root=fake.tmp / "mine", download=False)
    text = str(caught.value)
    for piece in ("breastmnist.npz", medmnist.INFO["breastmnist"]["url"], str(fake.tmp / "mine"), str(fake.tmp / "named"),
                  str(fake.cache), "BC_CLUST_DATA", 'load("phantom")', 'load("wdbc")', 'load("digits")', "download=False"):
        assert piece in text


@pytest.mark.parametrize("damage", [lambda b: b[:len(b) // 2], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b"",
                                    lambda b: b"<html>please log in</html>", lambda b: npz_bytes(**fake_arrays(high=1)),
                                    lambda b: pickle.dumps({"train_images": 1})],
                         ids=["truncated", "altered", "empty", "foreign", "same shape", "pickle"])
def test_a_damaged_file_is_refused_with_both_checksums(fake, damage):
    good = fake()
    bad = damage(good)
    fake.cache.mkdir()
    (fake.cache / "breastmnist.npz").write_bytes(bad)
    with pytest.raises(DataIntegrityError) as caught:
        load("breastmnist")
    for piece in (str(fake.cache / "breastmnist.npz"), hashlib.md5(good).hexdigest(), hashlib.md5(bad).hexdigest(),
                  "Remove it", medmnist.INFO["breastmnist"]["url"]):
        assert piece in str(caught.value)
    assert (fake.cache / "breastmnist.npz").read_bytes() == bad   # never overwritten behind the user's back
    report = check_file("breastmnist")
    assert not report["ok"] and report["md5"] == hashlib.md5(bad).hexdigest() != report["md5_expected"]
    assert "not the official file" in report["problem"]


@pytest.mark.parametrize("content", [b"no archive", npz_bytes(train_images=np.zeros(3)),
                                     npz_bytes(**{k: np.array([{}], dtype=object) for k in fake_arrays()})],
                         ids=["no archive", "missing keys", "pickled objects"])
def test_a_file_with_the_right_checksum_but_wrong_content_is_refused(fake, content):
    fake(content=content)
    with pytest.raises(DataIntegrityError, match="cannot be read as a MedMNIST file"):
        load("breastmnist")


def test_a_folder_in_place_of_the_file_is_refused(fake):
    fake()
    (fake.cache / "breastmnist.npz").mkdir(parents=True)
    with pytest.raises(DataIntegrityError, match="cannot be opened"):
        load("breastmnist")
    assert not check_file("breastmnist")["ok"]


class Answer(io.BytesIO):
    """A connection that hands out some bytes and then fails."""
    def __init__(self, content, error):
        super().__init__(content)
        self.headers, self.error = {"Content-Length": "1000000"}, error

    def read(self, n=-1):
        piece = super().read(min(n, 40))
        if not piece:
            raise self.error
        return piece


@pytest.mark.parametrize("error", [ConnectionResetError("reset by peer"), http.client.IncompleteRead(b""), TimeoutError("slow")])
def test_an_interrupted_download_leaves_nothing(fake, monkeypatch, error):
    content = fake()
    monkeypatch.setattr(data, "_open_url", lambda *args: Answer(content[:100], error))
    with pytest.raises(DataUnavailableError, match="breastmnist.npz is not at hand: the download into"):
        load("breastmnist")
    assert list(fake.cache.iterdir()) == []


def test_ctrl_c_during_a_download_leaves_nothing(fake, monkeypatch):
    content = fake()
    monkeypatch.setattr(data, "_open_url", lambda *args: Answer(content[:100], KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        load("breastmnist")
    assert list(fake.cache.iterdir()) == []


def test_a_wrong_download_leaves_nothing(fake):
    fake()
    (fake.server / "breastmnist.npz").write_bytes(b"a login page")
    with pytest.raises(DataUnavailableError, match=hashlib.md5(b"a login page").hexdigest()):
        load("breastmnist")
    assert list(fake.cache.iterdir()) == []


def test_a_download_that_never_starts_writes_nothing(fake):
    fake()
    (fake.server / "breastmnist.npz").unlink()
    with pytest.raises(DataUnavailableError, match="download into"):
        load("breastmnist")
    assert not fake.cache.exists()


def test_an_unwritable_folder_is_a_clear_error(fake):
    fake()
    fake.cache.write_text("a file where the folder should be")
    with pytest.raises(DataUnavailableError, match="the download into .*cache failed") as caught:
        load("breastmnist")
    assert "root=" in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_a_clear_error(fake):
    fake()
    fake.cache.mkdir(mode=0o500)
    with pytest.raises(DataUnavailableError, match="Permission denied"):
        load("breastmnist")
    assert list(fake.cache.iterdir()) == []


def test_a_silent_network_is_given_up_on(fake, monkeypatch):
    """A server that accepts and never answers: the wait is bounded by _CONNECT_SECONDS, not by the socket."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        fake()
        info = medmnist.INFO["breastmnist"] | {"url": f"http://127.0.0.1:{server.getsockname()[1]}/breastmnist.npz"}
        monkeypatch.setitem(medmnist.INFO, "breastmnist", info)
        monkeypatch.setattr(data, "_CONNECT_SECONDS", 0.2)
        with pytest.raises(DataUnavailableError, match="no answer within 0.2 s"):
            load("breastmnist")
    assert not fake.cache.exists()


def test_two_downloads_at_once_both_end_with_the_whole_file(fake):
    content = fake()
    errors = []

    def work(pid):
        try:
            load("breastmnist", root=fake.tmp / f"r{pid}")
        except Exception as error:
            errors.append(error)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors and all((fake.tmp / f"r{k}" / "breastmnist.npz").read_bytes() == content for k in range(2))


def test_groups_are_near_for_breastmnist_and_exact_elsewhere(fake):
    arrays = fake_arrays()
    arrays["test_images"][0] = arrays["train_images"][1]
    arrays["test_images"][1] = np.uint8(arrays["train_images"][2] * 0.9)
    for name, expected in (("breastmnist", [0, 1, 2, 3, 4, 5, 6, 7, 1, 2, 8]), ("pneumoniamnist", [0, 1, 2, 3, 4, 5, 6, 7, 1, 8, 9])):
        fake(name, 28, npz_bytes(**arrays))
        assert load(name).groups.tolist() == expected
    assert load("pneumoniamnist", near_limit=100).groups.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 1, 2, 8]


def test_check_file_counts_constant_images(fake):
    arrays = fake_arrays()
    arrays["val_images"][1] = 9
    content = fake(content=npz_bytes(**arrays))
    fake.cache.mkdir()
    (fake.cache / "breastmnist.npz").write_bytes(content)
    report = check_file("breastmnist")
    assert report["ok"] and report["problem"] == "" and (report["n"], report["n_constant"], report["size"]) == (11, 1, 28)
    assert report["md5"] == report["md5_expected"] == hashlib.md5(content).hexdigest()
    assert report["sha256"] == hashlib.sha256(content).hexdigest()


def test_check_file_of_missing_and_offline_sets(fake):
    fake()
    report = check_file("breastmnist", size=64)
    assert not report["ok"] and report["path"] == "-" and "breastmnist_64.npz" in report["problem"]
    for name in ("phantom", "wdbc", "digits"):
        assert check_file(name)["ok"] and check_file(name)["path"] == "-"
    assert (check_file("digits")["n"], check_file("digits")["n_constant"]) == (1797, 0)
    with pytest.raises(ValueError, match="size 99"):
        check_file("breastmnist", size=99)


def test_list_sets(fake):
    fake()
    table = list_sets().set_index("name")
    assert table.columns.tolist() == ["kind", "sizes", "classes", "n", "licence", "found", "offline"]
    names = {name for name, info in medmnist.INFO.items() if "3D" not in info["python_class"]}
    assert set(table.index) == names | {"phantom", "wdbc", "digits", "busi"} | CARDS.keys()
    assert table.index[table.offline].tolist() == ["wdbc", "digits", "phantom"]
    assert table.loc["digits", ["sizes", "classes", "n", "licence", "found"]].tolist() == ["-", 10, "1797", "CC BY 4.0", "-"]
    assert table.loc["breastmnist", ["sizes", "n", "found", "classes"]].tolist() == ["28, 64, 128, 224", "780", "-", 2]
    load("breastmnist")
    assert list_sets().set_index("name").loc["breastmnist", "found"] == str(fake.cache / "breastmnist.npz")


@pytest.mark.parametrize("call, error, match", [
    (lambda: load("brestmnist"), ValueError, "Did you mean 'breastmnist'.*Accepted: wdbc, digits, phantom, busi, mias,.* pathmnist"),
    (lambda: load("zzz"), ValueError, r"unknown image set 'zzz'\. Accepted"),
    (lambda: load(None), ValueError, "unknown image set None"),
    (lambda: load("organmnist3d"), ValueError, "unknown image set"),
    (lambda: load("breastmnist", size=32), ValueError, "size 32 does not exist for 'breastmnist'; accepted: 28, 64, 128, 224"),
    (lambda: load("breastmnist", task="3-class"), ValueError, "task '3-class' does not exist.*'binary-class'"),
    (lambda: load("wdbc", task="x"), ValueError, "accepted: 'benign-malignant'"),
    (lambda: load("wdbc", size=28), ValueError, "size 28 does not exist"),
    (lambda: load("wdbc", n=3), TypeError, "takes no n; .* nothing"),
    (lambda: load("digit"), ValueError, "Did you mean 'digits'"),
    (lambda: load("digits", task="x"), ValueError, "task 'x' does not exist for 'digits'; accepted: 'digit'"),
    (lambda: load("digits", size=8), ValueError, "size 8 does not exist for 'digits'; accepted: None"),
    (lambda: load("digits", n=3), TypeError, "takes no n; .* nothing"),
    (lambda: load("phantom", noise=3), TypeError, "takes no noise; .*difficulty"),
])
def test_load_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_medmnist_is_imported_late_and_may_be_missing():
    code = ("import sys; sys.modules['medmnist'] = None\n"
            "from bc_clust.data import load, list_sets\n"
            "assert len(load('wdbc')) == 569 and len(load('phantom', n=3)) == 3 and len(load('digits')) == 1797\n"
            "assert 'torch' not in sys.modules\n"
            "assert list_sets().name.tolist()[:5] == ['wdbc', 'digits', 'phantom', 'busi', 'mias']\n"
            "try: load('breastmnist')\n"
            "except ValueError as error: assert 'medmnist is not installed' in str(error)\n"
            "else: raise SystemExit('no error')\n")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# --- the offline sets -------------------------------------------------------------------------------------------------

def test_wdbc():
    from sklearn.datasets import load_breast_cancer
    s, table = load("wdbc"), load_breast_cancer()
    assert s.images.shape == (569, 30) and s.images.dtype == np.float32
    assert np.array_equal(s.images, table.data.astype(np.float32)) and np.array_equal(s.labels, table.target)
    assert s.class_names == ("malignant", "benign") and len(s.sha256) == 64
    assert s.metadata.columns[0] == "mean radius"


def test_digits():
    from sklearn.datasets import load_digits
    s, bundled = load("digits", task="digit"), load_digits()
    assert s.images.shape == (1797, 8, 8) and s.images.dtype == np.uint8 and s.labels.dtype == np.int64
    assert np.unique(s.images).tolist() == [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
    assert np.array_equal(np.rint(s.images * (16 / 255)), bundled.images) and np.array_equal(s.labels, bundled.target)
    assert np.bincount(s.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert s.class_names == tuple("0123456789") and (s.name, s.task, s.licence) == ("digits", "digit", "CC BY 4.0")
    assert s.groups is s.split is s.masks is s.metadata is None
    assert "Alpaydin and Kaynak" in s.citation and "UCI" in s.citation and "10.24432/C50P49" in s.citation
    assert s.source == "scikit-learn digits, 8x8 pixels (UCI optdigits, test part)"
    assert s.sha256 == "b41ca9fd335466eee997366c2e6f6bbe0a1b4582afe091fc4eba35f4a254182f"
    assert load("digits").sha256 == s.sha256 and duplicate_groups(s.images, near_limit=0).max() == 1796   # no exact copies


def test_standardised_columns():
    s = load("wdbc")
    z = standardised(s)
    assert z.images.dtype == np.float32 and z.images.shape == s.images.shape
    X = s.images.astype(np.float64)
    np.testing.assert_allclose(z.images, (X - X.mean(axis=0)) / X.std(axis=0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(z.images.mean(axis=0, dtype=np.float64), 0, atol=1e-7)
    np.testing.assert_allclose(z.images.std(axis=0, dtype=np.float64), 1, atol=1e-7)
    assert np.array_equal(s.images, load("wdbc").images) and s.source == load("wdbc").source   # the set given is not touched


def test_standardised_keeps_all_else_and_says_so_once():
    s = load("wdbc")
    s = ImageSet(**(vars(s) | dict(split=np.repeat(["train", "test"], [300, 269]), groups=np.arange(569) // 2)))
    z = standardised(s)
    assert z.source == "scikit-learn breast_cancer, 30 features, standardised"
    for field in vars(s).keys() - {"images", "source"}:
        assert getattr(z, field) is getattr(s, field), field
    twice = standardised(z)
    assert twice.source == z.source
    np.testing.assert_allclose(twice.images, z.images, atol=1e-6)
    part = standardised(z.subset(np.arange(100)))   # other rows, another mean: said again
    assert part.source.endswith(", standardised, 100 of 569 rows, standardised")


def test_standardised_in_float64_and_constant_columns():
    step = np.arange(4, dtype=np.float32)
    X = np.stack([1e7 + step, 1e-3 * step, np.full(4, 0.1, np.float32), np.full(4, 3e30, np.float32)], axis=1)
    z = standardised(ImageSet(X, np.array([0, 1, 1, 0]), ("a", "b"))).images
    wanted = (step - 1.5) / np.sqrt(1.25)
    np.testing.assert_allclose(z[:, 0], wanted, rtol=1e-6)
    np.testing.assert_allclose(z[:, 1], wanted, rtol=1e-6)
    assert (z[:, 2:] == 0).all()


@pytest.mark.parametrize("make, error, match", [
    (lambda: load("digits"), ValueError, r"takes a table of features, float32 \(n, d\).*got pictures, uint8 \(1797, 8, 8\)"),
    (lambda: image_set(images=smooth_images(4, 8, channels=(3,))), ValueError, r"uint8 \(4, 8, 8, 3\)"),
    (lambda: load("wdbc").images, TypeError, "takes an ImageSet, got ndarray"),
])
def test_standardised_refuses(make, error, match):
    with pytest.raises(error, match=match):
        standardised(make())


def test_phantom_is_deterministic_whatever_the_chunk():
    a, b, c = (phantom(n=23, size=28, random_state=3, chunk=k) for k in (1, 7, None))
    for other in (b, c):
        assert np.array_equal(a.images, other.images) and np.array_equal(a.masks, other.masks)
        assert a.sha256 == other.sha256 and a.metadata.equals(other.metadata)
    assert phantom(n=23, random_state=4).sha256 != a.sha256
    assert load("phantom", n=23, random_state=3).sha256 == a.sha256


@pytest.mark.parametrize("size", [8, 28, 45, 128])
def test_phantom_sizes_and_parts(size):
    s = load("phantom", size=size, n=12)
    assert s.images.shape == s.masks.shape == (12, size, size) and len(s.metadata) == 12
    assert s.images.std(axis=(1, 2)).min() > 3 and len(constant_images(s.images)) == 0
    assert s.name == "phantom" and f"size={size}" in s.source


def test_phantom_classes_and_tasks():
    s = phantom(n=780)
    assert np.bincount(s.labels).tolist() == [437, 210, 133] and s.class_names == ("benign", "malignant", "normal")
    assert (np.array(s.class_names)[s.labels] == s.metadata["class"]).all()
    binary = phantom(n=780, task="binary-class")
    assert np.bincount(binary.labels).tolist() == [210, 570] and binary.class_names == ("malignant", "normal, benign")
    assert np.array_equal(binary.images, s.images) and np.array_equal(binary.labels == 0, s.labels == 1)
    two = phantom(n=90, task="benign-malignant", proportions={"benign": 2, "malignant": 1, "normal": 7})
    assert np.bincount(two.labels).tolist() == [60, 30] and two.masks.any(axis=(1, 2)).all()
    assert np.bincount(phantom(n=10, proportions={"malignant": 1}).labels, minlength=3).tolist() == [0, 10, 0]
    assert np.bincount(phantom(n=7, proportions={"benign": 1, "malignant": 1, "normal": 1}).labels).sum() == 7


def test_phantom_masks_and_factors_agree():
    s = phantom(n=120, size=64, difficulty=0.5, random_state=2)
    f = s.metadata
    assert np.array_equal(s.masks.any(axis=(1, 2)), f.lesion) and np.array_equal(f.lesion, s.labels != 2)
    normal = ~f.lesion
    assert (f.loc[normal, list(data.BIRADS)] == "none").all().all()
    assert f.loc[normal & ~f.fat_lobule, "radius_mm"].isna().all() and f.loc[f.lesion, "radius_mm"].notna().all()
    assert 0 < f.fat_lobule.sum() < normal.sum()
    smooth = f.lesion & (f.margin == "circumscribed") & (f["shape"] != "irregular")
    area = s.masks.sum(axis=(1, 2)) * (data.FIELD_MM / 64) ** 2
    inside = smooth & (f.x_mm.abs() < 6) & (f.z_mm < 22)
    assert inside.sum() > 10
    np.testing.assert_allclose(area[inside], np.pi * f.radius_mm[inside] ** 2, rtol=0.12)
    rows, columns = np.indices((64, 64))
    centre = np.array([[columns[m].mean(), rows[m].mean()] for m in s.masks[inside]]) + 0.5
    np.testing.assert_allclose(centre[:, 0] * data.FIELD_MM / 64 - data.FIELD_MM / 2, f.x_mm[inside], atol=0.3)
    np.testing.assert_allclose(centre[:, 1] * data.FIELD_MM / 64, f.z_mm[inside], atol=0.3)


def test_phantom_lesions_are_dark_and_posterior_features_are_as_named():
    s = phantom(n=400, size=56, difficulty=0, random_state=5)
    f, X = s.metadata, s.images.astype(float)
    wide = f.aspect > 1
    assert wide[f.orientation == "parallel"].mean() > 0.95 and wide[f.orientation == "not parallel"].mean() < 0.05
    below, beside, contrast = [], [], []
    for k in np.flatnonzero(f.lesion):
        z, x = ((f.z_mm[k] + 1.6 * f.radius_mm[k]) / 38 * 56, (f.x_mm[k] + 19) / 38 * 56)
        rows = slice(int(min(z, 50)), int(min(z, 50)) + 5)
        below.append(X[k][rows, int(x) - 1:int(x) + 2].mean())
        beside.append(np.median(X[k][rows]))
        contrast.append(X[k][s.masks[k]].mean() - X[k][(f.z_mm[k] / 38 * 56).astype(int)].mean())
    trail = pd.Series(np.subtract(below, beside)).groupby(f.posterior[f.lesion].to_numpy()).median()
    assert trail["enhancement"] > 5 > trail["none"] - 5 and trail["shadowing"] < -8
    assert np.median(contrast) < -15


def test_speckle_of_uniform_tissue_is_rayleigh():
    rng = np.random.default_rng(0)
    draw = lambda: data._complex_normal(rng, (8, 128, 128))
    assert np.abs(np.square(np.abs(draw())).mean() - 1) < 0.02
    for pitch in (0.34, 0.17):
        envelope = data._speckle(np.zeros((8, 128, 128), np.float32), pitch, draw(), draw())
        assert envelope.mean() / envelope.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), abs=0.05)
        assert np.square(envelope).mean() == pytest.approx(1, abs=0.05)
    louder = data._speckle(np.full((8, 128, 128), 20, np.float32), 0.34, draw(), draw())
    assert np.square(louder).mean() == pytest.approx(100, rel=0.05)


def test_display_compresses_logarithmically():
    envelope = np.array([1e-9, 0.1, 1.0, 1e9])[:, None, None] * np.ones((1, 1, 1))
    grey = data._display(envelope, np.zeros(4))[:, 0, 0]
    assert grey[0] == 0 and grey[3] == 255 and grey[2] - grey[1] == pytest.approx(255 * 20 / 60)
    assert data._display(envelope, np.full(4, 6))[2, 0, 0] - grey[2] == pytest.approx(255 * 6 / 60)
    assert data._average_down(np.arange(16.0).reshape(1, 4, 4), 2).tolist() == [[[2.5, 4.5], [10.5, 12.5]]]


def test_difficulty_moves_the_factors_together():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 20_000)
    for factor, levels in data.BIRADS.items():
        benign, malignant = np.array(list(levels.values())).T
        assert benign.sum() == pytest.approx(1) and malignant.sum() == pytest.approx(1)
        for d in (0, 0.4, 1):
            drawn = data._levels(factor, labels, d, rng.random(40_000))
            for k, p in enumerate((benign, malignant)):
                expected = (1 - d) * p + d * (benign + malignant) / 2
                shares = [(drawn[labels == k] == level).mean() for level in levels]
                np.testing.assert_allclose(shares, expected, atol=0.015)


def test_phantom_at_difficulty_one_gives_both_lesion_classes_one_distribution():
    f = data._draw_factors(np.repeat([0, 1], 1500), 1, np.random.default_rng(0))
    means = f.groupby("class")[["radius_mm", "lesion_db", "lesion_db_per_mm"]].mean()
    spread = f[["radius_mm", "lesion_db", "lesion_db_per_mm"]].std()
    assert (np.abs(means.loc["benign"] - means.loc["malignant"]) < 0.12 * spread).all()


def test_phantom_images_are_independent():
    p = phantom(n=400, random_state=1)
    assert len(find_duplicates(p.images)) == 0


@pytest.mark.parametrize("settings, match", [
    (dict(n=0), "n must be a whole number of 1 or more"), (dict(n=2.5), "n must be"), (dict(size=7), "size must be .* 8 or more"),
    (dict(size=True), "size must be"), (dict(chunk=0), "chunk must be"), (dict(difficulty=1.1), r"difficulty must lie in \[0, 1\]"),
    (dict(difficulty=float("nan")), "difficulty"), (dict(proportions={"cyst": 1}), "benign, malignant, normal"),
    (dict(proportions={"benign": -1}), "zero or more"), (dict(proportions={"benign": 0}), "at least one above zero"),
    (dict(task="4-class"), "'3-class', 'benign-malignant', 'binary-class'"), (dict(random_state=None), "random_state"),
])
def test_phantom_bad_input(settings, match):
    with pytest.raises(ValueError, match=match):
        phantom(**({"n": 4} | settings))


# --- the real file ----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def real():
    try:
        return load("breastmnist", download=False)
    except DataUnavailableError:
        pytest.skip("the real BreastMNIST is not at hand; set BC_CLUST_DATA")


def test_real_breastmnist(real):
    assert real.images.shape == (780, 28, 28) and np.bincount(real.labels).tolist() == [210, 570]
    assert real.class_names == ("malignant", "normal, benign")
    assert {k: int((real.split == k).sum()) for k in ("train", "val", "test")} == {"train": 546, "val": 78, "test": 156}
    assert real.sha256 == "3a22d2a4625e7dd8903f0f59030e81a3d0c222bece2e5e10927456cb50efdec1"
    assert check_file("breastmnist")["ok"] and len(constant_images(real.images)) == 0


def test_real_duplicates(real):
    pairs = find_duplicates(real.images, real.labels, real.split)
    assert pairs.kind.value_counts().to_dict() == {"near": 241, "exact": 1}
    assert (~pairs.same_label).sum() == 10 and (~pairs.same_split).sum() == 130
    assert pairs.loc[0, ["i", "j", "label_i", "label_j", "split_i", "split_j"]].tolist() == [115, 700, 0, 1, "train", "test"]
    assert np.bincount(np.bincount(real.groups)).tolist() == [0, 442, 119, 22, 5, 0, 0, 2]


def test_real_folds_part_no_pair(real):
    pairs = find_duplicates(real.images)
    for _, test in grouped_folds(real.labels, real.groups, n_splits=5, n_repeats=2):
        inside = np.isin(np.arange(780), test)
        assert (inside[pairs.i] == inside[pairs.j]).all()


def test_load_or_phantom_says_which_and_why(monkeypatch):
    said = []
    wanted = data.load("wdbc")
    assert np.array_equal(data.load_or_phantom("wdbc", say=said.append).images, wanted.images)

    def unavailable(name, **kwargs):
        raise DataUnavailableError("breastmnist.npz is not at hand\nand more lines")
    monkeypatch.setattr(data, "load", unavailable)
    images = data.load_or_phantom("breastmnist", random_state=3, say=said.append)
    assert images.name == "phantom" and images.images.shape == (780, 28, 28) and images.class_names[0] == "malignant"
    assert said[0].startswith("Using wdbc (") and said[1] == "Using simulated images (phantom), because breastmnist.npz is not at hand"

    def damaged(name, **kwargs):
        raise data.DataIntegrityError("altered")
    monkeypatch.setattr(data, "load", damaged)
    with pytest.raises(data.DataIntegrityError):
        data.load_or_phantom("breastmnist")
