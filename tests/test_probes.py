"""Probes: known answers, no leak between the parts of a split, repeatability, bad input."""
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bc_clust.data import grouped_folds
from bc_clust.metrics import classification_scores
from bc_clust.probes import LinearClassifier, SoftmaxClassifier, knn_probe, linear_probe, logistic_regression
from bc_clust.training import CheckpointError, load_estimator, save

COLUMNS = ["repeat", "fold", "n_train", "n_test", "accuracy", "majority_share", "balanced_accuracy", "f1",
           "sensitivity", "specificity", "auc"]
both = pytest.mark.parametrize("probe", [linear_probe, knn_probe])


def noisy_classes(n=90, n_classes=2, seed=0):
    """Overlapping classes in three dimensions."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    return rng.normal(size=(n, 3)) + y[:, None], y


@both
def test_separable_classes_score_one(probe):
    y = np.repeat(["left", "right"], 20)
    Z = np.random.default_rng(0).normal(size=(40, 2)) + np.where(y == "left", -20, 20)[:, None]
    table = probe(Z, y, pos_label="right")
    assert table.columns.tolist() == COLUMNS and len(table) == 5
    assert (table[["accuracy", "balanced_accuracy", "f1", "sensitivity", "specificity", "auc"]] == 1).all(axis=None)
    assert (table.majority_share == 0.5).all() and table.n_test.sum() == 40
    assert (table.n_train + table.n_test == 40).all()


@both
@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_same_as_the_loop_written_out(probe, n_classes):
    Z, y = noisy_classes(n_classes=n_classes)
    groups = np.arange(90) // (2 * n_classes)
    table = probe(Z, y, groups, n_splits=3, n_repeats=2, random_state=7, pos_label=1)
    for i, (train, test) in enumerate(grouped_folds(y, groups, 3, 2, 7)):
        model = (make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)) if probe is linear_probe
                 else KNeighborsClassifier(5)).fit(Z[train], y[train])
        expected = classification_scores(y[test], model.predict_proba(Z[test]), pos_label=1)
        assert table.loc[i, list(expected)].to_dict() == pytest.approx(expected)
        assert (table.repeat[i], table.fold[i], table.n_test[i]) == (i // 3, i % 3, len(test))
    assert i == 5


@both
def test_the_positive_class_changes_only_what_it_should(probe):
    Z, y = noisy_classes()
    zero, one, none = (probe(Z, y, pos_label=p) for p in (0, 1, None))
    pd.testing.assert_series_equal(zero.sensitivity, one.specificity, check_names=False)
    pd.testing.assert_series_equal(zero.auc, one.auc)
    assert none[["sensitivity", "specificity"]].isna().all(axis=None) and none.auc.equals(one.auc)


@both
def test_names_of_classes_do_not_matter(probe):
    Z, y = noisy_classes()
    named = np.array(["benign", "malignant"], dtype=object)[y]
    pd.testing.assert_frame_equal(probe(Z, y, pos_label=1), probe(Z, named, pos_label="malignant"))


@both
def test_copies_score_only_where_groups_are_ignored(probe):
    rng = np.random.default_rng(0)
    Z, coin = np.repeat(rng.normal(size=(80, 100)), 6, axis=0), np.repeat(np.arange(80) % 2, 6)
    assert probe(Z, coin).auc.mean() > 0.9
    assert probe(Z, coin, groups=np.repeat(np.arange(80), 6), n_repeats=2).auc.mean() == pytest.approx(0.5, abs=0.15)


@both
def test_images_are_flattened_and_their_range_does_not_matter(probe):
    images = np.random.default_rng(0).integers(256, size=(40, 3, 3), dtype=np.uint8)
    y = np.arange(40) % 2
    pd.testing.assert_frame_equal(probe(images, y), probe(images.reshape(40, 9) / 255, y))


@both
def test_repeatable_and_seeded(probe):
    Z, y = noisy_classes()
    pd.testing.assert_frame_equal(probe(Z, y), probe(Z, y))
    assert not probe(Z, y).equals(probe(Z, y, random_state=1))


def test_the_linear_probe_ignores_the_scale_of_a_feature_and_neighbours_do_not():
    Z, y = noisy_classes()
    stretched = Z * [1, 1, 1000]
    pd.testing.assert_frame_equal(linear_probe(Z, y), linear_probe(stretched, y), rtol=1e-3)
    assert not knn_probe(Z, y).equals(knn_probe(stretched, y))


def test_a_chosen_strength_is_the_inner_best_and_groups_stay_together_inside():
    Z, y = noisy_classes(n=60)
    chosen = linear_probe(Z, y, C=[1e-3, 1e-1, 10])
    assert chosen.columns.tolist() == COLUMNS[:4] + ["C"] + COLUMNS[4:] and set(chosen.C) <= {1e-3, 1e-1, 10}
    single = linear_probe(Z, y, C=[0.1])
    pd.testing.assert_frame_equal(single.drop(columns="C"), linear_probe(Z, y, C=0.1))
    # Copies of pure noise: kept together, the inner folds see no gain in a weak penalty; split, they would.
    rng = np.random.default_rng(1)
    copies, coin, group = np.repeat(rng.normal(size=(60, 200)), 4, axis=0), np.repeat(np.arange(60) % 2, 4), np.repeat(np.arange(60), 4)
    assert (linear_probe(copies, coin, groups=group, C=[1e-5, 10]).C == 1e-5).all()
    assert (linear_probe(copies, coin, C=[1e-5, 10]).C == 10).all()


def test_settings_reach_the_models():
    Z, y = noisy_classes()
    skewed = y.copy()
    skewed[:40] = 0
    assert (linear_probe(Z, skewed, class_weight="balanced", pos_label=1).sensitivity.mean()
            > linear_probe(Z, skewed, pos_label=1).sensitivity.mean())
    assert not linear_probe(Z, y, C=1e-4).auc.equals(linear_probe(Z, y, C=100).auc)
    assert not knn_probe(Z, y, n_neighbors=1).equals(knn_probe(Z, y))


@both
@pytest.mark.parametrize("Z, y, settings, message", [
    (np.zeros((4, 2)), [0, 1, 0], {}, "X has 4 rows, but there are 3 labels"),
    (np.full((10, 2), np.nan), [0, 1] * 5, {}, "NaN or infinite"),
    (np.zeros((10, 2)), [0, np.nan] * 5, {}, "y has missing values"),
    (np.zeros((10, 2)), np.zeros((10, 2), int), {}, "multi-label"),
    (np.zeros((10, 2)), [0, 1] * 5, {"groups": [0, 1]}, "y 10, groups 2"),
    (np.zeros((10, 2)), [0, 1] * 5, {"pos_label": 2}, r"pos_label=2 is not among the classes \[0, 1\]"),
    (np.zeros((10, 2)), [0, 1] * 5, {"n_splits": 6}, "6"),
    (np.zeros((10, 2)), [0] * 10, {}, "one class"),
    (np.zeros((10, 2)), [1] * 8 + [2] * 2, {"n_splits": 3}, "class 2 has only 2 groups .*too few for 3 folds"),
    (np.zeros((10, 2)), ["benign"] * 8 + ["malignant"] * 2, {"n_splits": 3}, "class malignant has only 2"),
])
def test_bad_input(probe, Z, y, settings, message):
    with pytest.raises(ValueError, match=message):
        probe(Z, y, **settings)


@pytest.mark.parametrize("C", [0, -1, [1, 0], [], np.nan, np.inf])
def test_bad_strength(C):
    with pytest.raises(ValueError, match="give a positive number"):
        linear_probe(np.zeros((10, 2)), [0, 1] * 5, C=C)


def test_bad_class_weight_and_inner_folds():
    with pytest.raises(ValueError, match=r"class_weight=\{1: 50\}: give None"):
        linear_probe(np.zeros((10, 2)), [1, 2] * 5, class_weight={1: 50})
    with pytest.raises(ValueError, match="class b has only 2 groups .*too few for the three inner folds over which C is chosen"):
        linear_probe(np.zeros((20, 2)), ["a"] * 16 + ["b"] * 4, n_splits=2, C=[0.1, 1])


@pytest.mark.parametrize("n_neighbors", [0, 9, 2.5])
def test_bad_number_of_neighbours(n_neighbors):
    with pytest.raises(ValueError, match="whole number from 1 to 8, the size of the training part"):
        knn_probe(np.zeros((10, 2)), [0, 1] * 5, n_neighbors=n_neighbors)


def test_breastmnist_pixels_hold_something(breastmnist):
    table = linear_probe(breastmnist.images, breastmnist.labels, breastmnist.groups, C=1e-3, pos_label=0)
    assert 0.70 < table.auc.mean() < 0.85
    assert (table.n_test.sum(), len(table)) == (780, 5)


# --- linear evaluation by SGD -------------------------------------------------------------------------------------

def two_clouds(n=40, d=3, seed=0):
    rng = np.random.default_rng(seed)
    y = np.repeat(["b", "a"], n)
    return rng.normal(size=(2 * n, d)) + np.where(y == "a", 1.0, -1.0)[:, None], y


def test_one_step_of_the_linear_classifier_by_hand():
    Z, y = two_clouds()
    model = LinearClassifier(n_epochs=1, batch_size=80, lr=0.5, momentum=0.0).fit(Z, y)
    assert model.classes_.tolist() == ["a", "b"]
    sign = np.where(y == "a", 0.5, -0.5)      # from weights of 0 every probability is a half
    np.testing.assert_allclose(model.coef_[0], 0.5 * (sign[:, None] * Z).mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.coef_[1], -model.coef_[0], rtol=1e-5)
    np.testing.assert_allclose(model.intercept_, 0, atol=1e-6)


def test_many_steps_of_the_linear_classifier_reach_the_solved_one():
    Z, y = two_clouds()
    mine = LinearClassifier(n_epochs=3000, batch_size=80, lr=0.5).fit(Z, y).predict_proba(Z)
    solved = LogisticRegression(C=1e9, max_iter=5000).fit(Z, y).predict_proba(Z)
    assert np.abs(mine - solved).max() < 0.02


def test_linear_classifier_answers_and_determinism():
    Z, y = two_clouds()
    model, again, other = (LinearClassifier(batch_size=16, random_state=seed).fit(Z, y) for seed in (0, 0, 1))
    assert np.array_equal(model.coef_, again.coef_) and not np.array_equal(model.coef_, other.coef_)
    proba = model.predict_proba(Z)
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-5)
    assert (model.predict(Z) == np.array(["a", "b"])[proba.argmax(1)]).all() and model.score(Z, y) > 0.9


@pytest.mark.parametrize("settings, word", [(dict(n_epochs=0), "n_epochs"), (dict(lr=0), "lr"), (dict(momentum=2), "momentum"),
                                            (dict(batch_size=0.5), "batch_size"), (dict(random_state=None), "random_state=None"),
                                            (dict(random_state=1.5), "random_state=1.5")])
def test_linear_classifier_refuses(settings, word):
    with pytest.raises(ValueError, match=word):
        LinearClassifier(**settings).fit(*two_clouds())


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="y holds one class only, 'a'; give at least two"):
        LinearClassifier().fit(np.zeros((4, 3)), ["a"] * 4)
    with pytest.raises(ValueError, match="y holds one class only: no C can be chosen"):
        logistic_regression(np.zeros(30), C=[0.1, 1])
    assert logistic_regression(np.zeros(30), C=0.1).get_params()["logisticregression__C"] == 0.1, "y is not used where there is nothing to choose"


@pytest.mark.parametrize("Z, message", [
    (np.full((2, 3), np.nan), "Z holds NaN"), (np.zeros((2, 4)), r"shape \(2, 4\).*fitted to 3 numbers a row"),
    (np.zeros(3), r"shape \(3,\).*give a numeric array \(n, 3\)"), (np.array([["a"] * 3]), "dtype <U1")])
def test_linear_classifier_says_what_is_wrong_with_the_features_it_is_asked_about(Z, message):
    with pytest.raises(ValueError, match=message):
        LinearClassifier(n_epochs=1).fit(*two_clouds()).predict(Z)


def test_linear_classifier_flattens_alike_when_fitted_and_asked_and_leaves_generators_alone():
    Z, y = two_clouds(d=4)
    torch.manual_seed(0)
    model = LinearClassifier(n_epochs=2).fit(Z.reshape(-1, 2, 2), y)
    torch.testing.assert_close(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))
    assert np.array_equal(model.predict_proba(Z), model.predict_proba(Z.reshape(-1, 2, 2))) and model.predict_proba(Z[:0]).shape == (0, 2)


def test_linear_classifier_is_fitted_first():
    with pytest.raises(NotFittedError):
        LinearClassifier().predict(np.zeros((2, 3)))


# --- the network trained with labels ------------------------------------------------------------------------------

SMALL = dict(backbone="resnet18", image_size=16, n_epochs=2, batch_size=8, random_state=0, precision="float32", device="cpu")


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    y = np.tile(["dark", "light"], 9)[:17]    # 17: the last batch would hold one picture
    return (rng.integers(0, 80, (17, 20, 20)) + np.where(y == "light", 150, 0)[:, None, None]).astype(np.uint8), y


def parameters(model):
    return torch.cat([v.flatten().float() for part in model._modules().values() for v in part.state_dict().values()])


def test_softmax_classifier(pictures, tmp_path):
    X, y = pictures
    model = SoftmaxClassifier(**SMALL).fit(X, y)
    proba = model.predict_proba(X)
    assert model.classes_.tolist() == ["dark", "light"] and proba.shape == (17, 2) and is_classifier(model)
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-5)
    assert (model.predict(X) == model.classes_[proba.argmax(1)]).all() and model.transform(X).shape == (17, 512)
    assert torch.equal(parameters(model), parameters(SoftmaxClassifier(**SMALL).fit(X, np.where(y == "light", 5, -1))))
    save(model, tmp_path / "m.safetensors")
    assert np.array_equal(load_estimator(tmp_path / "m.safetensors").predict_proba(X), proba)
    assert "_encoded" not in vars(model)


def test_softmax_classifier_learns(pictures):
    X, y = pictures
    model = SoftmaxClassifier(**{**SMALL, "n_epochs": 15, "brightness": 0, "contrast": 0}).fit(X, y)
    assert model.history_["loss"].iloc[-1] < 0.3 * model.history_["loss"].iloc[0] and model.score(X, y) == 1


def test_softmax_classifier_resumes(pictures, tmp_path):
    X, y = pictures
    whole = SoftmaxClassifier(**SMALL).fit(X, y)

    def stop(model, row):
        raise KeyboardInterrupt

    part = SoftmaxClassifier(**SMALL, checkpoint_dir=tmp_path)
    part.checkpoint_seconds = 0
    with pytest.raises(KeyboardInterrupt):
        part.fit(X, y, callback=stop)
    resumed = SoftmaxClassifier(**SMALL, checkpoint_dir=tmp_path, resume=True).fit(X, y)
    assert torch.equal(parameters(resumed), parameters(whole)) and len(resumed.history_) == 2
    with pytest.raises(CheckpointError, match="labels"):
        SoftmaxClassifier(**SMALL, checkpoint_dir=tmp_path, resume=True).fit(X, np.roll(y, 1))


@pytest.mark.parametrize("y, word", [(None, "requires y"), (np.zeros(17), "one class only"), (np.arange(5), "17")])
def test_softmax_classifier_refuses(pictures, y, word):
    with pytest.raises(ValueError, match=word):
        SoftmaxClassifier(**SMALL).fit(pictures[0], y)
