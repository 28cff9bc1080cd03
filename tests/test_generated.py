"""Drawings and what they teach: SSIM against scikit-image, scores by hand, the encoder taught with labels, readings of a record."""
import dataclasses

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from bc_clust.contrastive_ae import ContrastiveAutoencoder, ConvEncoder, pad_to_eight
from bc_clust.data import grouped_folds, phantom
from bc_clust.experiments import run
from bc_clust.generated import (
    GENERATED, NUMBERS, READINGS, VARIANTS, WAYS, ConvClassifier, answers_from_projection, draw_by_class, drawing_scores,
    scores_of_training_on, ssim, votes,
)
from bc_clust.metrics import clustering_scores
from bc_clust.training import load_estimator, save

A, B = ((f(s * np.arange(121)) + 1).reshape(1, 11, 11) / 2 for f, s in ((np.sin, 0.7), (np.cos, 0.31)))
LIBRARY = {7: 0.01817641431345523, 5: 0.017154790937244587}   # scikit-image 0.26, structural_similarity(A, B, data_range=1.0, win_size=...)


@pytest.fixture(scope="module")
def images():
    return phantom(n=90, size=12, random_state=0)


@pytest.fixture(scope="module")
def split(images):
    return next(grouped_folds(images.labels, images.groups, 5, random_state=0))


@pytest.fixture(scope="module")
def fitted(images, split):
    settings = dict(latent_dim=6, pretrain_epochs=2, cluster_epochs=1, batch_size=16, n_init=2, precision="float32", device="cpu", random_state=0)
    return ContrastiveAutoencoder(4, **settings).fit(images.images[split[0]])


@pytest.mark.parametrize("window", LIBRARY)
def test_ssim_equals_the_library(window):
    assert ssim(A, B, window)[0] == pytest.approx(LIBRARY[window], abs=1e-12)
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is an extra: pip install -e '.[oracles]'")
    rng = np.random.default_rng(window)
    a, b = rng.random((2, 3, 13, 13)), rng.random((2, 3, 13, 13))
    theirs = [metrics.structural_similarity(x, y, data_range=1.0, win_size=window) for x, y in zip(a[0], b[0])]
    np.testing.assert_allclose(ssim(a[0], b[0], window), theirs, atol=1e-10)
    colour = metrics.structural_similarity(np.moveaxis(a[0], 0, 2), np.moveaxis(b[0], 0, 2), data_range=1.0, win_size=window, channel_axis=2)
    assert ssim(np.moveaxis(a[:1], 1, 3), np.moveaxis(b[:1], 1, 3), window)[0] == pytest.approx(colour, abs=1e-10)


def test_ssim_of_equal_flat_and_opposite_pictures():
    assert ssim(A, A)[0] == pytest.approx(1) and ssim(A, 1 - A)[0] < 0
    assert ssim(0 * A, 0 * A)[0] == 1 and ssim(0 * A + 0.2, 0 * A + 0.6)[0] == pytest.approx(0.2401 / 0.4001)
    np.testing.assert_allclose(ssim(np.concatenate([A, B]), np.concatenate([B, B])), [ssim(A, B)[0], 1])


@pytest.mark.parametrize("a, b, window, part", [
    (A, A[:, :9], 7, r"\(1, 11, 11\), b \(1, 9, 11\)"), (A[0], A[0], 7, "two batches"), (A, A, 4, "odd window"), (A[:, :5, :5], A[:, :5, :5], 7, "fits"),
    (A, A, 1, "window=1")])
def test_ssim_refuses(a, b, window, part):
    with pytest.raises(ValueError, match=part):
        ssim(a, b, window)


def test_drawings_are_scored_beside_the_mean_training_picture(images, split, fitted):
    train, test = split
    found, X = drawing_scores(fitted, images, train, test), images.images / 255
    drawn = fitted.reconstruct(images.images[test])
    assert found["mse"] == pytest.approx(((drawn - X[test]) ** 2).mean()) and found["ssim"] == pytest.approx(np.mean(ssim(drawn, X[test])))
    assert found["mse_of_mean"] == pytest.approx(((X[train].mean(0) - X[test]) ** 2).mean())
    assert found["ssim_of_mean"] == pytest.approx(np.mean([ssim(X[train].mean(0)[None], x[None]) for x in X[test]]))


def test_projections_have_length_one_and_are_those_of_the_projector(images, fitted):
    x = images.images[:5]
    with torch.no_grad():
        by_hand = fitted.projector_(torch.from_numpy(fitted.transform(x))).numpy()
    z = fitted.project(x)
    np.testing.assert_allclose(z, by_hand / np.linalg.norm(by_hand, axis=1, keepdims=True), atol=1e-5)
    assert z.dtype == np.float32 and np.allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)


def test_neighbours_on_z_by_hand(images, split, fitted):
    train, test = split
    z, y = fitted.project(images.images), images.labels
    answers = KNeighborsClassifier(5).fit(z[train], y[train]).predict_proba(z[test])
    found = answers_from_projection(fitted, images, train, test)
    assert found["accuracy"] == accuracy_score(y[test], answers.argmax(1)) and found["auc"] == pytest.approx(roc_auc_score(y[test], answers, multi_class="ovr"))
    assert answers_from_projection(fitted, images, train, test, by="linear probe") != found


# ---- the encoder taught with labels ---------------------------------------------------------------


def test_the_classifier_is_the_encoder_and_a_line(images):
    X, y = images.images, np.array(["a", "b", "c"])[images.labels]
    model = ConvClassifier(8, n_epochs=2, batch_size=32, random_state=0, precision="float32", device="cpu").fit(X, y)
    assert isinstance(model.backbone_[1], ConvEncoder) and model.image_size == 12 and list(model.classes_) == ["a", "b", "c"]
    planes = (torch.from_numpy(X[:4] / np.float32(255))[:, None] - float(model.mean_[0])) / float(model.std_[0])
    with torch.no_grad():
        features = model.backbone_[1].eval()(pad_to_eight(planes)).numpy()
    np.testing.assert_allclose(model.transform(X[:4]), features, atol=1e-5)
    proba = model.predict_proba(X)
    assert proba.shape == (90, 3) and np.allclose(proba.sum(1), 1, atol=1e-5) and set(model.predict(X)) <= set("abc")


def test_the_classifier_learns_repeats_clones_and_saves(images, tmp_path):
    X, y = images.images, images.labels
    settings = dict(n_epochs=40, batch_size=16, lr=0.003, crop=None, flip=0, vertical_flip=0, brightness=0, contrast=0, blur=0, precision="float32", device="cpu")
    model = ConvClassifier(**settings, random_state=1).fit(X, y)
    assert model.history_["train_accuracy"].iloc[-1] > 0.9
    again = clone(model).fit(X, y)
    np.testing.assert_array_equal(model.transform(X), again.transform(X))
    save(model, tmp_path / "m.safetensors")
    np.testing.assert_array_equal(load_estimator(tmp_path / "m.safetensors").predict_proba(X), model.predict_proba(X))


def test_the_classifier_takes_three_channels_and_refuses_what_it_cannot_use(images):
    X, y = np.repeat(images.images[..., None], 3, axis=3), images.labels
    assert ConvClassifier(4, n_epochs=1, batch_size=32, precision="float32").fit(X, y).transform(X).shape == (90, 4)
    for settings, part in ((dict(latent_dim=0), "latent_dim=0"), (dict(n_epochs=0), "n_epochs=0"), (dict(lr=0), "lr=0"), (dict(crop=(2, 3)), "crop")):
        with pytest.raises(ValueError, match=part):
            ConvClassifier(**settings).fit(images.images, y)
    with pytest.raises(ValueError, match="requires y"):
        ConvClassifier().fit(images.images)
    for settings in VARIANTS.values():
        assert ConvClassifier(**settings).get_params()["n_epochs"] == 130


# ---- pictures of a class -------------------------------------------------------------------------


class Line:
    "Codes that are the first two pixels; a drawing whose first two pixels are its code."

    seed_, device = 3, "cpu"

    def transform(self, X): return X.reshape(len(X), -1)[:, :2].astype(np.float32)

    def inverse_transform(self, Z): return np.pad(Z, ((0, 0), (0, 62))).reshape(len(Z), 8, 8).astype(np.float32)


def test_drawn_pictures_have_the_mean_and_spread_of_their_class():
    rng, y = np.random.default_rng(0), np.repeat([5, 9], 4000)
    X = Line().inverse_transform(rng.normal(size=(8000, 2)) * np.where(y == 5, 1, 3)[:, None] + np.where(y == 5, 0, 10)[:, None])
    order = rng.permutation(8000)
    codes = Line().transform(draw_by_class(Line(), X[order], y[order], random_state=1))
    for c, mean, sd in ((5, 0, 1), (9, 10, 3)):
        assert np.allclose(codes[y[order] == c].mean(0), mean, atol=0.2) and np.allclose(codes[y[order] == c].std(0), sd, rtol=0.05)
    assert not np.array_equal(codes, Line().transform(draw_by_class(Line(), X[order], y[order], random_state=2)))


class Spy(ConvClassifier):
    "Keeps what it was fitted with."

    seen = []

    def fit(self, X, y=None, callback=None):
        Spy.seen.append((X, y, self.get_params()))
        return super().fit(X, y, callback)


def test_what_a_classifier_is_trained_on(images, split, fitted, monkeypatch):
    monkeypatch.setattr("bc_clust.generated.ConvClassifier", Spy)
    monkeypatch.setitem(scores_of_training_on.__globals__["OF_DRAWN"], "n_epochs", 1)
    Spy.seen.clear()
    train, test = split
    X, y = (images.images[train] / 255).astype(np.float32), images.labels[train]
    scores = {what: scores_of_training_on(fitted, images, train, test, what) for what in WAYS}
    sets = dict(zip(WAYS, Spy.seen))
    for what, (seen, classes, settings) in sets.items():
        assert len(seen) == 2 * len(train) and np.array_equal(classes, np.tile(y, 2)), "as many pictures, and so as many steps"
        assert settings["flip"] == (0.5 if what == "real, mirrored" else 0) and settings["random_state"] == 0
        halves = np.split(seen, 2)
        real = [np.allclose(half, X, atol=1e-6) for half in halves]
        assert sum(real) == {"real": 2, "real, mirrored": 2, "real and drawn": 1, "drawn": 0, "drawn again": 0}[what]
    assert not np.allclose(*np.split(sets["drawn"][0], 2)), "two different draws"
    assert all(np.allclose(half, fitted.reconstruct(images.images[train]), atol=1e-6) for half in np.split(sets["drawn again"][0], 2))
    assert all(set(found) >= {"accuracy", "auc", "majority_share"} for found in scores.values())
    with pytest.raises(ValueError, match="what='both'"):
        scores_of_training_on(fitted, images, train, test, "both")


# ---- what a record holds -------------------------------------------------------------------------


def test_votes_by_hand(images, split, fitted):
    train, test = split
    found, y = votes(fitted, images, train, test, deals=3), images.labels
    numbers = [k for k in NUMBERS if k <= len(train)]
    assert set(found) == {f"{kind}, {k}" for kind in ("training", "held out", "one to one", "lots") for k in numbers}
    h = fitted.transform(images.images)
    kmeans = KMeans(8, n_init=5, random_state=fitted.seed_).fit(h[train])
    scores = clustering_scores(y[train], kmeans.labels_)
    assert found["training, 8"] == pytest.approx(scores["purity"]) and found["one to one, 8"] == pytest.approx(scores["accuracy"])
    names = {k: np.bincount(y[train][kmeans.labels_ == k], minlength=3).argmax() for k in range(8)}
    assert found["held out, 8"] == np.mean([names[c] == t for c, t in zip(kmeans.predict(h[test]), y[test])])
    share = np.bincount(y[train]).max() / len(train)
    assert share <= found["lots, 8"] < found["lots, 64"], "lots gain by number alone"


def test_readings_name_their_part(images, split, fitted):
    train, test = split
    assert READINGS["training, drawing"](fitted, images, train, test) == drawing_scores(fitted, images, train, train)
    assert READINGS["held out, drawing"](fitted, images, train, test) == drawing_scores(fitted, images, train, test)
    assert READINGS["held out, linear probe on z"](fitted, images, train, test) == answers_from_projection(fitted, images, train, test, by="linear probe")
    assert list(GENERATED) == [f"held out, trained on {what}" for what in WAYS]


def test_colour_images_go_the_same_way(images, tmp_path, monkeypatch):
    monkeypatch.setitem(scores_of_training_on.__globals__["OF_DRAWN"], "n_epochs", 1)
    colour = dataclasses.replace(images, images=np.stack([images.images, 255 - images.images, images.images], axis=3))
    model = ContrastiveAutoencoder(3, pretrain_epochs=1, cluster_epochs=1, batch_size=32, n_init=1, precision="float32", device="cpu")
    record, = run(model, colour, [0], results=tmp_path, say=None, keep=False, readings={**READINGS, **GENERATED})
    assert record["settings"]["n_clusters"] == 3 and set(READINGS) | set(GENERATED) <= set(record["scores"])
    assert 0 < record["scores"]["held out, drawing"]["mse"] < 1 and -1 <= record["scores"]["held out, drawing"]["ssim"] < 1
    with pytest.raises(ValueError, match="of a multi-label set take one column"):
        run(model, dataclasses.replace(images, labels=np.eye(3, dtype=np.int64)[images.labels]), [0], results=tmp_path, say=None)
