"""The estimator ArcFace: its contract, its two phases, what it refuses, and that nothing it says of held-out images is memory."""
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_classifier
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags
from sklearn.utils.class_weight import compute_sample_weight

from bc_clust import arcface
from bc_clust.arcface import ArcFace, arcface_loss, class_cosines
from bc_clust.backbones import imagenet_input, mobilenet_v3_small
from bc_clust.data import DataIntegrityError, DataUnavailableError, phantom
from bc_clust.experiments import run
from bc_clust.training import CheckpointError, load_estimator, save

TINY = dict(weights=None, image_size=32, hidden_dim=32, embedding_dim=8, head_epochs=3, finetune_epochs=2, unfrozen_blocks=2,
            batch_size=16, random_state=0, precision="float32", device="cpu")


@pytest.fixture(scope="module")
def images():
    return phantom(n=45, size=32, random_state=0)


@pytest.fixture(scope="module")
def data(images):
    return images.images, np.array(images.class_names)[images.labels]


@pytest.fixture(scope="module")
def fitted(data):
    return ArcFace(**TINY).fit(*data)


def weights(model):
    return {f"{name}.{k}": v.clone() for name, part in model._modules().items() for k, v in part.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- the contract -------------------------------------------------------------------------------------------------

def test_classifier_and_transformer(fitted, data):
    X, y = data
    Z, proba = fitted.transform(X), fitted.predict_proba(X)
    assert Z.shape == (45, 8) and Z.dtype == np.float32 and np.allclose(np.linalg.norm(Z, axis=1), 1, atol=1e-6)
    assert proba.shape == (45, 3) and np.allclose(proba.sum(1), 1, atol=1e-6)
    assert fitted.classes_.tolist() == sorted(set(y)) and is_classifier(fitted)
    assert np.array_equal(fitted.predict(X), fitted.classes_[proba.argmax(1)])
    cosine = class_cosines(torch.from_numpy(Z), fitted.vectors_.W.detach())
    np.testing.assert_allclose(proba, (fitted.scale * cosine).softmax(1).numpy(), atol=1e-5)
    assert fitted.score(X, y) == (fitted.predict(X) == y).mean()
    assert fitted.history_["phase"].tolist() == ["head"] * 3 + ["finetune"] * 2
    assert fitted.weights_source_ == "random initialisation"


def test_labels_of_any_kind_give_the_same_fit(images, data, fitted):
    places = np.searchsorted(np.unique(data[1]), data[1])   # of the names in alphabetical order
    numbers = ArcFace(**TINY).fit(images.images, places * 10 - 3)
    assert numbers.classes_.tolist() == [-3, 7, 17] and same(weights(numbers), weights(fitted))
    yes_no = ArcFace(**TINY).fit(images.images, (images.labels == 1).tolist())
    assert yes_no.classes_.tolist() == [False, True] and yes_no.predict(images.images[:4]).dtype == bool


def test_tags_and_what_is_left_after_fit(fitted, data):
    tags = get_tags(ArcFace())
    assert tags.estimator_type == "classifier" and tags.target_tags.required
    assert tags.input_tags.three_d_array and not tags.input_tags.two_d_array
    assert not {"_encoded", "_weight", "_features", "_live"} & set(vars(fitted))
    assert np.array_equal(fitted.given_labels_, data[1])


def test_a_failed_refit_leaves_the_model_as_it_was(data, fitted):
    X, y = data
    model = pickle.loads(pickle.dumps(fitted))
    before = model.predict(X)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        model.set_params(weights="/nowhere.pt").fit(X, np.array(["x", "z"] * 22 + ["x"]))
    assert np.array_equal(model.predict(X), before) and same(weights(model), weights(fitted))


def test_same_seed_same_bits_and_another_seed_not(data, fitted):
    assert same(weights(clone(fitted).fit(*data)), weights(fitted))
    assert not same(weights(clone(fitted).set_params(random_state=1).fit(*data)), weights(fitted))


def test_pixels_as_bytes_floats_or_colours(data, fitted):
    X, _ = data
    np.testing.assert_allclose(fitted.transform(X / 255), fitted.transform(X), atol=1e-5)
    np.testing.assert_array_equal(fitted.transform(np.repeat(X[..., None], 3, axis=3)), fitted.transform(X))
    assert fitted.transform(np.repeat(np.repeat(X[:2], 2, 1), 2, 2)).shape == (2, 8)   # another size is brought to image_size


def test_composes(data):
    X, y = data
    pipeline = make_pipeline(ArcFace(**TINY), PCA(2), LogisticRegression()).fit(X, y)
    assert pipeline.predict(X).shape == (45,) and pipeline[:-1].transform(X).shape == (45, 2)


def test_saved_loaded_pickled(data, fitted, tmp_path):
    X, _ = data
    save(fitted, tmp_path / "model")
    for back in (load_estimator(tmp_path / "model"), pickle.loads(pickle.dumps(fitted))):
        assert np.array_equal(back.transform(X), fitted.transform(X)) and np.array_equal(back.predict(X), fitted.predict(X))
        assert back.classes_.tolist() == fitted.classes_.tolist() and back.weights_source_ == fitted.weights_source_


def test_settings_from_numpy_and_paths_can_be_saved(data, tmp_path):
    torch.save(mobilenet_v3_small(None).state_dict(), tmp_path / "w.pt")
    model = ArcFace(**{**TINY, "weights": tmp_path / "w.pt", "embedding_dim": np.int64(8), "margin": np.float32(0.25)}).fit(*data)
    save(model, tmp_path / "model")
    back = load_estimator(tmp_path / "model")
    assert back.embedding_dim == 8 and back.margin == 0.25 and Path(back.weights) == tmp_path / "w.pt"
    assert np.array_equal(back.transform(data[0]), model.transform(data[0]))


def test_a_loaded_model_needs_no_imagenet_weights(data, fitted, tmp_path, monkeypatch):
    model = clone(fitted).set_params(head_epochs=1, finetune_epochs=0).fit(*data)
    model.weights = "imagenet"
    save(model, tmp_path / "model")
    asked = []
    monkeypatch.setattr(arcface, "mobilenet_v3_small", lambda weights: asked.append(weights) or mobilenet_v3_small(weights))
    assert np.array_equal(load_estimator(tmp_path / "model").transform(data[0]), model.transform(data[0])) and asked == [None]


# --- the phases ---------------------------------------------------------------------------------------------------

def stages(data, **settings):
    "All weights before training, after phase 1 and at the end."
    found = [weights(ArcFace(**{**TINY, "head_epochs": 0, "finetune_epochs": 0}).fit(*data))]
    model = ArcFace(**{**TINY, **settings})
    model.fit(*data, callback=lambda m, row: found.append(weights(m)) if row["phase"] == "head" and row["epoch"] == 2 else None)
    return [*found, weights(model)]


def changed(before, after):
    return {k for k in before if not torch.equal(before[k], after[k])}


def buffers(names):
    return {k for k in names if k.endswith(("running_mean", "running_var", "num_batches_tracked"))}


@pytest.mark.parametrize("train_batchnorm", [False, True])
def test_phase_1_leaves_the_backbone_and_phase_2_trains_its_last_blocks(data, train_batchnorm):
    start, middle, end = stages(data, train_batchnorm=train_batchnorm)
    heads = {k for k in start if k.startswith(("head_", "vectors_"))}
    assert changed(start, middle) == heads   # all of head and class vectors; not one number of the backbone, no running mean
    moved, last = changed(middle, end), {k for k in start if k.startswith(("backbone_.features.11.", "backbone_.features.12."))}
    assert moved - buffers(moved) == heads | (last - buffers(last))
    assert buffers(moved) == (buffers(last) if train_batchnorm else set())


def test_settings_reach_networks_and_optimisers(data):
    seen = {}
    def look(model, row):
        group, = model._live["adam"].param_groups
        seen[row["phase"]] = group["lr"], group["weight_decay"], len(group["params"])
    model = ArcFace(**TINY, head_lr=0.02, finetune_lr=0.003, weight_decay=0.04, dropout=0.35).fit(*data, callback=look)
    last = sum(1 for block in model.backbone_.blocks[-2:] for _ in block.parameters())
    assert seen == {"head": (0.02, 0.04, 5), "finetune": (0.003, 0.04, 5 + last)}
    assert [tuple(p.shape) for p in model.head_.parameters()] == [(32, 576), (32,), (8, 32), (8,)]
    assert model.head_[2].p == 0.35 and model.vectors_.W.shape == (3, 8)


def test_the_cache_changes_nothing_but_the_time(data):
    with_cache, without = (stages(data, cache_features=c)[1] for c in (True, False))
    for k in with_cache:
        torch.testing.assert_close(with_cache[k], without[k], atol=2e-5, rtol=1e-4)


def test_the_cache_runs_the_backbone_once_an_image(data, monkeypatch):
    seen, forward = [], ArcFace._backbone
    monkeypatch.setattr(ArcFace, "_backbone", lambda self, batch: seen.append(len(batch)) or forward(self, batch))
    ArcFace(**{**TINY, "finetune_epochs": 0}).fit(*data)
    assert sum(seen) == 45
    seen.clear()
    ArcFace(**{**TINY, "finetune_epochs": 0, "cache_features": False}).fit(*data)
    assert sum(seen) == 3 * 45


def test_only_phase_2_augments(data, monkeypatch):
    seen, original = [], arcface._augmented
    monkeypatch.setattr(arcface, "_augmented", lambda x: seen.append(len(x)) or original(x))
    ArcFace(**{**TINY, "cache_features": False}).fit(*data)
    assert sum(seen) == 2 * 45
    seen.clear()
    ArcFace(**{**TINY, "augment": False}).fit(*data)
    assert seen == []


def test_augmented_mirrors_resamples_and_changes_intensity(monkeypatch):
    called = []
    for name in ("random_flip", "random_affine", "random_intensity"):
        monkeypatch.setattr(arcface, name, lambda x, name=name: called.append(name) or x)
    arcface._augmented(torch.rand(2, 8, 8))
    assert called == ["random_flip", "random_affine", "random_intensity"]


def test_augmented_keeps_shape_range_and_colours_together():
    grey = torch.rand(6, 20, 20, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    a = arcface._augmented(grey)
    torch.manual_seed(1)
    b = arcface._augmented(grey[..., None].repeat(1, 1, 1, 3))
    assert a.shape == grey.shape and 0 <= a.min() and a.max() <= 1 and not torch.equal(a, grey)
    for colour in range(3):
        torch.testing.assert_close(b[..., colour], a)


@pytest.mark.parametrize("class_weight, expected", [("balanced", [45 / (3 * 9), 45 / (3 * 12), 45 / (3 * 24)]), (None, None)])
def test_margin_scale_and_class_weights_reach_the_loss(images, monkeypatch, class_weight, expected):
    y, told = np.repeat([0, 1, 2], [9, 12, 24]), []
    def spy(Z, W, y, margin, scale, weight):
        told.append((margin, scale, weight))
        return arcface_loss(Z, W, y, margin, scale, weight)
    monkeypatch.setattr(arcface, "arcface_loss", spy)
    ArcFace(**TINY, margin=0.3, scale=9.0, class_weight=class_weight).fit(images.images, y)
    assert all(m == 0.3 and s == 9.0 for m, s, _ in told) and len(told) == 5 * 3
    for *_, weight in told:
        assert weight is None if expected is None else np.allclose(weight, expected)


def test_no_batch_of_one(images, monkeypatch):
    sizes = []
    def spy(Z, *rest):
        sizes.append(len(Z))
        return arcface_loss(Z, *rest)
    monkeypatch.setattr(arcface, "arcface_loss", spy)
    ArcFace(**{**TINY, "head_epochs": 0, "finetune_epochs": 1}).fit(images.images[:33], np.arange(33) % 3)
    assert sizes == [16, 17]


def test_loss_and_accuracy_of_an_epoch_are_means_over_images(data):
    """With a learning rate of next to nothing the history says what the untrained network scores."""
    X, y = data
    still = dict(head_lr=1e-12, weight_decay=0.0, dropout=0.0, finetune_epochs=0, head_epochs=1, class_weight=None)
    model = ArcFace(**{**TINY, **still}).fit(X, y)
    codes = torch.from_numpy(np.searchsorted(model.classes_, y))
    Z = torch.from_numpy(model.transform(X))
    row = model.history_.iloc[0]
    assert row["loss"] == pytest.approx(arcface_loss(Z, model.vectors_.W.detach(), codes, 0.5, 16.0).item(), rel=1e-4)
    assert row["train_accuracy"] == model.score(X, y)


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_softmax_is_the_plain_classifier(images, class_weight):
    X, y = images.images, np.repeat([0, 1, 2], [9, 12, 24])
    model = ArcFace(**{**TINY, "loss": "softmax", "head_epochs": 1, "finetune_epochs": 0, "head_lr": 1e-12, "dropout": 0.0,
                       "batch_size": 45, "class_weight": class_weight}).fit(X, y)
    with torch.no_grad():
        z = model.head_(model.backbone_(imagenet_input(X, 32)))
        logits = z @ model.vectors_.W.T
    loss = log_loss(y, logits.double().softmax(1), sample_weight=None if class_weight is None else compute_sample_weight("balanced", y))
    assert model.history_["loss"][0] == pytest.approx(loss, rel=1e-4)
    np.testing.assert_allclose(model.predict_proba(X), logits.softmax(1).numpy(), atol=1e-5)
    np.testing.assert_allclose(model.transform(X), torch.nn.functional.normalize(z).numpy(), atol=1e-5)
    assert np.array_equal(model.predict(X), logits.argmax(1).numpy())


def test_output_features(data, fitted):
    model = clone(fitted).set_params(output="features").fit(*data)
    with torch.no_grad():
        expected = model.backbone_.eval()(imagenet_input(data[0], 32)).numpy()
    np.testing.assert_allclose(model.transform(data[0]), expected, atol=1e-5)
    assert np.array_equal(model.predict(data[0]), fitted.predict(data[0]))


def test_head_and_embedding_are_float32_under_bfloat16(data):
    model = ArcFace(**{**TINY, "precision": "bfloat16"}).fit(*data)
    Z = model.transform(data[0])
    assert np.allclose(np.linalg.norm(Z, axis=1), 1, atol=1e-6) and np.isfinite(model.history_["loss"]).all()


# --- resume -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("phase, epoch", [("head", 0), ("head", 2), ("finetune", 0)])
def test_resumed_is_as_never_interrupted(data, fitted, tmp_path, monkeypatch, phase, epoch):
    monkeypatch.setattr(ArcFace, "checkpoint_seconds", 0)

    class Stop(Exception):
        pass

    def interrupt(model, row):
        if (row["phase"], row["epoch"]) == (phase, epoch):
            raise Stop

    with pytest.raises(Stop):
        ArcFace(**TINY, checkpoint_dir=tmp_path).fit(*data, callback=interrupt)
    resumed = ArcFace(**TINY, checkpoint_dir=tmp_path, resume=True).fit(*data)
    assert same(weights(resumed), weights(fitted)) and resumed.history_.equals(fitted.history_)


def test_a_checkpoint_of_other_labels_is_refused(data, tmp_path):
    X, y = data
    ArcFace(**TINY, checkpoint_dir=tmp_path).fit(X, y)
    with pytest.raises(CheckpointError, match="belongs to another run: labels is"):
        ArcFace(**TINY, checkpoint_dir=tmp_path, resume=True).fit(X, y[::-1])


# --- what is refused ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("change, message", [
    (dict(margin=1.6), "below pi / 2"), (dict(margin=28.6), "28.6 degrees are 0.499"), (dict(scale=0), "scale=0"),
    (dict(loss="cosface"), "'arcface', 'softmax'"), (dict(unfrozen_blocks=14), "at most 13"), (dict(image_size=16), "image_size=16"),
    (dict(batch_size=1), "batch_size=1"), (dict(class_weight={0: 1}), "class_weight"), (dict(dropout=1.0), "dropout=1.0"),
    (dict(head_epochs=-1), "head_epochs=-1"), (dict(finetune_epochs=1.5), "finetune_epochs=1.5"), (dict(output="z"), "'embedding', 'features'"),
    (dict(head_lr=0), "head_lr=0"), (dict(augment="yes"), "augment='yes'"), (dict(random_state=-1), "random_state=-1")])
def test_settings(data, change, message):
    with pytest.raises(ValueError, match=message):
        ArcFace(**{**TINY, **change}).fit(*data)


@pytest.mark.parametrize("X, message", [
    (np.zeros((45, 784), np.uint8), r"shape \(45, 784\); ArcFace takes images"), (np.zeros((45, 32, 32, 4), np.uint8), "ArcFace takes images"),
    (np.zeros((45, 32, 40), np.uint8), "32 by 40 pixels; pad or crop"), (np.zeros((45, 32, 32), np.int64), "dtype int64"),
    (np.full((45, 32, 32), np.nan), "not finite or not from 0 to 1"), (np.full((45, 32, 32), 200.0), "divide 8-bit grey values by 255"),
    (np.zeros((0, 32, 32), np.uint8), "at least one")])
def test_images(data, fitted, X, message):
    with pytest.raises(ValueError, match=message):
        ArcFace(**TINY).fit(X, data[1])
    with pytest.raises(ValueError, match=message):
        fitted.transform(X)


@pytest.mark.filterwarnings("ignore:The number of unique classes")
@pytest.mark.parametrize("y, message", [
    (None, "requires y to be passed"), (np.zeros(45, int), "one class only"), (np.arange(44) % 3, "44 labels for 45 images"),
    (np.arange(45) % 44, "has one image only"), (np.linspace(0, 1, 45), "continuous"), (np.zeros((45, 2), int), "1d array")])
def test_labels(data, y, message):
    with pytest.raises(ValueError, match=message):
        ArcFace(**TINY).fit(data[0], y)


def test_a_class_with_one_image_is_named(data):
    y = np.array(["benign"] * 30 + ["malignant"] * 14 + ["normal"])
    with pytest.raises(ValueError, match="class 'normal' has one image only; give each class two or more, or leave it out"):
        ArcFace(**TINY).fit(data[0], y)


def test_weights_that_are_not_there_or_of_another_network(data, tmp_path, monkeypatch):
    monkeypatch.setenv("BC_CLUST_DATA", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("bc_clust.backbones._open_url", lambda *a: (_ for _ in ()).throw(OSError("no network")))
    monkeypatch.setattr("bc_clust.backbones._weights_folders", lambda: [tmp_path])
    with pytest.raises(DataUnavailableError, match="With weights=None the network starts at random"):
        ArcFace(**{**TINY, "weights": "imagenet"}).fit(*data)
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "resnet.pt")
    with pytest.raises(DataIntegrityError, match="does not fit MobileNetV3-Small"):
        ArcFace(**{**TINY, "weights": str(tmp_path / "resnet.pt")}).fit(*data)


def test_not_fitted_and_nothing_learnt(data):
    for method in ("transform", "predict", "predict_proba"):
        with pytest.raises(NotFittedError, match="call fit first"):
            getattr(ArcFace(), method)(np.zeros((2, 32, 32), np.uint8))
    features = ArcFace(**{**TINY, "head_epochs": 0, "finetune_epochs": 0, "output": "features"}).fit(*data)
    assert not hasattr(features, "predict") and not hasattr(features, "predict_proba")
    assert features.transform(data[0]).shape == (45, 576)


# --- controls -----------------------------------------------------------------------------------------------------

def test_shuffled_labels_are_a_permutation_that_the_seed_fixes(data, monkeypatch):
    seen = []
    def spy(Z, W, y, *rest):
        seen.append(y)
        return arcface_loss(Z, W, y, *rest)
    monkeypatch.setattr(arcface, "arcface_loss", spy)
    whole = {**TINY, "batch_size": 64, "finetune_epochs": 0, "head_epochs": 1}
    counts = []
    for shuffle, seed in ((False, 0), (True, 0), (True, 0), (True, 1)):
        ArcFace(**{**whole, "shuffle_labels": shuffle, "random_state": seed}).fit(*data)
        counts.append(seen[-1])
    true, once, again, other = counts
    assert torch.equal(once, again) and not torch.equal(once, true) and not torch.equal(once, other)
    assert torch.equal(once.bincount(), true.bincount())
    model = ArcFace(**{**whole, "shuffle_labels": True}).fit(*data)
    assert sorted(model.given_labels_) == sorted(data[1]) and not np.array_equal(model.given_labels_, data[1])


def test_training_scores_of_shuffled_labels_are_against_the_labels_that_were_given(images, tmp_path, monkeypatch):
    monkeypatch.setattr(arcface, "mobilenet_v3_small", lambda weights: Pixels())
    settings = dict(weights=None, image_size=32, head_epochs=150, finetune_epochs=0, dropout=0.0, head_lr=3e-3, precision="float32",
                    device="cpu", shuffle_labels=True)
    record, = run(ArcFace(**settings), images, seeds=1, results=tmp_path, keep=False, say=None)
    assert record["scores"]["training, classifier"]["accuracy"] > 0.9
    assert record["scores"]["held out, classifier"]["accuracy"] < 0.75


class Pixels(torch.nn.Module):
    """A backbone that hands on 12 x 12 mean grey values, standing in for one that knows something."""
    n_features, source, blocks, n_frozen = 144, "pixels", [None] * 13, 13

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x[:, :1], 12).flatten(1)

    def freeze_except_last(self, k):
        return []


def test_shuffled_labels_are_learnt_by_heart_and_say_nothing_of_other_images(monkeypatch):
    monkeypatch.setattr(arcface, "mobilenet_v3_small", lambda weights: Pixels())
    images = phantom(n=480, size=32, task="benign-malignant", difficulty=0.0,
                     proportions={"benign": 1, "malignant": 1, "normal": 0}, random_state=3)
    X, y = images.images, images.labels
    right = {True: [], False: []}
    for seed in range(2):
        for shuffle in (False, True):
            model = ArcFace(weights=None, image_size=32, head_epochs=150, finetune_epochs=0, dropout=0.0, weight_decay=0.0,
                            head_lr=3e-3, shuffle_labels=shuffle, random_state=seed, precision="float32", device="cpu")
            right[shuffle].append(model.fit(X[:120], y[:120]).score(X[120:], y[120:]))
            assert model.history_["train_accuracy"].iloc[-1] > 0.95
    assert abs(np.mean(right[True]) - 0.5) < 0.06 and np.mean(right[False]) > 0.75, right
