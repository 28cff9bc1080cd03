"""Scores checked by hand-made cases, against scikit-learn, and by properties that any score must have."""
import itertools

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as skm
from threadpoolctl import threadpool_limits

from bc_clust.metrics import (
    assign_noise, bootstrap_interval, classification_scores, cluster_sizes, clustering_scores, contingency_table,
    internal_scores, majority_vote, match_clusters, permutation_baseline)

KEYS = ["accuracy", "majority_share", "balanced_accuracy", "purity", "nmi", "ami", "ari", "n_clusters",
        "smallest_share", "noise_share"]
INTERNAL = ["silhouette", "davies_bouldin", "calinski_harabasz"]
CLASSIFICATION = ["accuracy", "majority_share", "balanced_accuracy", "f1", "sensitivity", "specificity", "auc"]
BREAST = np.repeat([0, 1], [210, 570])


def from_table(table):
    """Labels (classes, clusters) whose contingency table is `table` (rows clusters)."""
    table = np.asarray(table)
    rows, columns = np.indices(table.shape)
    return np.repeat(columns.ravel(), table.ravel()), np.repeat(rows.ravel(), table.ravel())


def best_by_trying(table):
    """The accuracy of the best one-to-one matching, every matching tried."""
    table = np.asarray(table)
    table = table if table.shape[0] <= table.shape[1] else table.T
    return max(sum(table[i, j] for i, j in enumerate(chosen))
               for chosen in itertools.permutations(range(table.shape[1]), table.shape[0])) / table.sum()


# ---- tables and matching ----------------------------------------------------------------------


def test_contingency_table_by_hand():
    table = contingency_table(["b", "a", "b", "b"], [2, 0, -1, 2])
    assert table.index.tolist() == [-1, 0, 2] and table.columns.tolist() == ["a", "b"]
    assert table.to_numpy().tolist() == [[0, 1], [1, 0], [0, 2]]
    assert (table.index.name, table.columns.name) == ("cluster", "class")


def test_contingency_table_names_every_class_also_an_absent_one():
    table = contingency_table([2, 0, 2], [0, 0, 1], class_names=["benign", "malignant", "normal"])
    assert table.columns.tolist() == ["benign", "malignant", "normal"]
    assert table.to_numpy().tolist() == [[1, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize("y, names", [([0, 2], ["a", "b"]), (["a", "b"], ["a", "b"]), ([-1, 0], ["a", "b"])])
def test_contingency_table_refuses_names_that_do_not_fit(y, names):
    with pytest.raises(ValueError, match="class_names names the classes 0 to 1"):
        contingency_table(y, [0, 1], names)


@pytest.mark.parametrize("table, matching, accuracy", [
    ([[60, 280], [150, 290]], {0: 1, 1: 0}, 430 / 780),     # two by two, crossed
    ([[5, 1], [4, 0], [1, 9]], {0: 0, 2: 1}, 14 / 20),      # more clusters: the four of cluster 1 are errors
    ([[1, 2, 7]], {0: 2}, 7 / 10),                          # fewer clusters: two classes unmatched
    ([[3, 3], [3, 3]], None, 1 / 2),
])
def test_matching_by_hand(table, matching, accuracy):
    y, labels = from_table(table)
    assert clustering_scores(y, labels)["accuracy"] == pytest.approx(accuracy, abs=1e-15)
    if matching:
        assert match_clusters(y, labels) == matching


@pytest.mark.parametrize("shape", [(2, 2), (4, 3), (3, 5), (5, 5), (1, 4), (6, 2)])
def test_accuracy_is_the_best_of_all_matchings(shape):
    rng = np.random.default_rng(sum(shape))
    for _ in range(20):
        table = rng.integers(0, 6, size=shape)
        table[:, 0] += 1                                    # every cluster has a member
        table[0] += 1                                       # and every class
        assert clustering_scores(*from_table(table))["accuracy"] == pytest.approx(best_by_trying(table))


def test_equal_accuracies_are_split_by_mean_recall():
    table = np.array([[4, 3], [5, 4]])                      # straight 8, crossed 8; class sizes 9 and 7
    y, labels = from_table(table)
    straight, crossed = (4 / 9 + 4 / 7) / 2, (5 / 9 + 3 / 7) / 2
    assert straight > crossed
    assert clustering_scores(y, labels)["balanced_accuracy"] == pytest.approx(straight)
    assert clustering_scores(y, 1 - labels)["balanced_accuracy"] == pytest.approx(straight)
    assert match_clusters(y, labels) == {0: 0, 1: 1} and match_clusters(y, 1 - labels) == {0: 1, 1: 0}


def test_match_returns_plain_python_of_the_caller_s_kind():
    matching = match_clusters(np.array(["cat", "dog", "dog"]), np.array([4, 9, 9]))
    assert matching == {4: "cat", 9: "dog"}
    assert all(type(k) is int and type(v) is str for k, v in matching.items())
    assert match_clusters([True, False], [0, 1]) == {0: 1, 1: 0}


@pytest.mark.parametrize("table, called", [
    ([[5, 1], [4, 0], [1, 9]], {0: 0, 1: 0, 2: 1}), ([[2, 2], [1, 3]], {0: 0, 1: 1}), ([[3, 4, 2]], {0: 1})])
def test_a_vote_calls_each_cluster_by_its_largest_class(table, called):
    y, labels = from_table(table)
    assert majority_vote(y, labels) == called
    right = np.mean([called[c] == t for c, t in zip(labels.tolist(), y.tolist())])
    assert right == pytest.approx(clustering_scores(y, labels)["purity"])
    names = np.array(["ant", "bee", "cow"])
    assert majority_vote(names[y], labels) == {c: names[t] for c, t in called.items()}


def test_noise_does_not_vote():
    assert majority_vote([1, 1, 1, 0], [-1, -1, 0, 0]) == {0: 0} and majority_vote([1, 0], [-1, -1]) == {}
    assert {type(v) for pair in majority_vote([1, 0], [3, 4]).items() for v in pair} == {int}
    with pytest.raises(ValueError, match="differ in length"):
        majority_vote([0, 1], [0, 1, 1])


def test_noise_is_never_matched():
    assert match_clusters([0, 0, 0, 1], [-1, -1, -1, 0]) == {0: 1}
    assert match_clusters([0, 1], [-1, -1]) == {}


def test_cluster_sizes():
    assert cluster_sizes([0, 2, 2, -1]).tolist() == [1, 0, 2]
    assert cluster_sizes([0, 2, 2, -1], n_clusters=5).tolist() == [1, 0, 2, 0, 0]
    assert cluster_sizes([-1, -1]).tolist() == [] and cluster_sizes([-1], n_clusters=2).tolist() == [0, 0]
    with pytest.raises(ValueError, match="n_clusters=2, but labels go up to 2"):
        cluster_sizes([0, 2], n_clusters=2)


# ---- clustering scores ------------------------------------------------------------------------


def test_keys_and_plain_types():
    scores = clustering_scores([0, 0, 1, 1], [0, 0, 1, 1], X=np.eye(4))
    assert list(scores) == KEYS + INTERNAL
    assert type(scores["n_clusters"]) is int
    assert all(type(v) is float for k, v in scores.items() if k != "n_clusters")
    assert list(clustering_scores([0, 1], [0, 1])) == KEYS


def test_one_cluster_on_the_counts_of_breastmnist():
    scores = clustering_scores(BREAST, np.zeros(780, int))
    assert scores == {"accuracy": 570 / 780, "majority_share": 570 / 780, "balanced_accuracy": 0.5, "purity": 570 / 780,
                      "nmi": 0, "ami": 0, "ari": 0, "n_clusters": 1, "smallest_share": 1, "noise_share": 0}
    three = clustering_scores([0, 1, 1, 2, 2, 2], [0] * 6)
    assert three["balanced_accuracy"] == pytest.approx(1 / 3) and three["accuracy"] == 0.5


def test_three_by_two_by_hand():
    scores = clustering_scores(*from_table([[5, 1], [4, 0], [1, 9]]))
    assert scores["accuracy"] == 14 / 20 and scores["purity"] == 18 / 20
    assert scores["balanced_accuracy"] == pytest.approx((5 / 10 + 9 / 10) / 2)
    assert scores["majority_share"] == 0.5 and scores["n_clusters"] == 3 and scores["smallest_share"] == 4 / 20


@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    y, labels = rng.integers(3, size=90), rng.integers(5, size=90)
    X = rng.normal(size=(90, 4)) + labels[:, None]
    scores = clustering_scores(y, labels, X=X)
    assert scores["nmi"] == pytest.approx(skm.normalized_mutual_info_score(y, labels))
    assert scores["ami"] == pytest.approx(skm.adjusted_mutual_info_score(y, labels))
    assert scores["ari"] == pytest.approx(skm.adjusted_rand_score(y, labels))
    assert scores["purity"] == pytest.approx(skm.cluster.contingency_matrix(y, labels).max(axis=0).sum() / 90)
    assert scores["silhouette"] == pytest.approx(skm.silhouette_score(X, labels))
    assert scores["davies_bouldin"] == pytest.approx(skm.davies_bouldin_score(X, labels))
    assert scores["calinski_harabasz"] == pytest.approx(skm.calinski_harabasz_score(X, labels))
    matching = match_clusters(y, labels)                    # unmatched clusters predict a class that does not exist
    predicted = np.array([matching.get(c, 99) for c in labels])
    assert scores["accuracy"] == pytest.approx(skm.accuracy_score(y, predicted))
    assert scores["balanced_accuracy"] == pytest.approx(skm.recall_score(y, predicted, labels=[0, 1, 2], average="macro"))


@pytest.mark.parametrize("seed", range(4))
def test_names_and_order_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    y, labels = rng.integers(3, size=40), rng.integers(4, size=40)
    scores, order = clustering_scores(y, labels), rng.permutation(40)
    renamed = clustering_scores(np.array(["c", "a", "b"])[y][order], np.array([7, 0, 30, 2])[labels][order])
    assert renamed == pytest.approx(scores)
    assert 0 <= scores["accuracy"] <= scores["purity"] <= 1
    assert scores["purity"] >= scores["majority_share"] - 1e-12


@pytest.mark.parametrize("y", [[0, 0, 1, 1], ["x", "x", "y", "y"], [False, False, True, True], [0.0, 0.0, 5.0, 5.0],
                               pd.Series(["x", "x", "y", "y"], dtype="category"), np.array(["x", "x", "y", "y"], dtype=object)])
def test_any_kind_of_class(y):
    scores = clustering_scores(y, [1, 1, 0, 0])
    assert [scores[k] for k in ("accuracy", "balanced_accuracy", "purity", "nmi", "ami", "ari")] == pytest.approx([1] * 6)


# ---- noise ------------------------------------------------------------------------------------

NOISY_Y, NOISY = [0, 0, 1, 1, 1, 1], [0, 0, 1, 1, -1, -1]
NOISY_X = np.array([0, 1, 10, 11, 4, 8.0])[:, None]


def test_noise_policies_by_hand():
    own, drop, nearest = (clustering_scores(NOISY_Y, NOISY, X=NOISY_X, noise=p) for p in ("own", "drop", "nearest"))
    assert [s["accuracy"] for s in (own, drop, nearest)] == pytest.approx([4 / 6, 1, 5 / 6])
    assert [s["purity"] for s in (own, drop, nearest)] == pytest.approx([4 / 6, 1, 5 / 6])
    assert [s["balanced_accuracy"] for s in (own, drop, nearest)] == pytest.approx([(1 + 2 / 4) / 2, 1, (1 + 3 / 4) / 2])
    assert [s["majority_share"] for s in (own, drop, nearest)] == pytest.approx([4 / 6, 2 / 4, 4 / 6])
    assert [s["smallest_share"] for s in (own, drop, nearest)] == pytest.approx([2 / 6, 2 / 4, 3 / 6])
    assert all(s["noise_share"] == 2 / 6 and s["n_clusters"] == 2 for s in (own, drop, nearest))
    assert own["nmi"] == pytest.approx(skm.normalized_mutual_info_score(NOISY_Y, NOISY))
    assert own["ari"] == pytest.approx(skm.adjusted_rand_score(NOISY_Y, NOISY)) and drop["ari"] == 1
    assert own["silhouette"] == drop["silhouette"] == pytest.approx(skm.silhouette_score(NOISY_X[:4], NOISY[:4]))
    assert nearest["silhouette"] == pytest.approx(skm.silhouette_score(NOISY_X, [0, 0, 1, 1, 0, 1]))


def test_all_noise():
    y, labels, X = [0, 0, 1], [-1, -1, -1], np.arange(3.0)[:, None]
    own, drop, nearest = (clustering_scores(y, labels, X=X, noise=p) for p in ("own", "drop", "nearest"))
    assert [own[k] for k in ("accuracy", "balanced_accuracy", "purity", "nmi", "ami", "ari", "n_clusters")] == [0] * 7
    assert own["majority_share"] == pytest.approx(2 / 3) and np.isnan(own["smallest_share"])
    assert all(np.isnan(drop[k]) for k in drop if k not in ("n_clusters", "noise_share"))
    assert drop["n_clusters"] == 0 and own["noise_share"] == drop["noise_share"] == nearest["noise_share"] == 1
    assert nearest["accuracy"] == 0
    assert all(list(s) == KEYS + INTERNAL and np.isnan([s[k] for k in INTERNAL]).all() for s in (own, drop, nearest))


def test_noise_assigned_to_the_nearest_mean():
    labels = np.array(NOISY)
    assert assign_noise(labels, NOISY_X).tolist() == [0, 0, 1, 1, 0, 1]
    assert labels.tolist() == NOISY                         # the caller's array is left alone
    assert assign_noise([5, 9, -1], [[0.0], [4.0], [3.0]]).tolist() == [5, 9, 9]
    assert assign_noise([-1, -1], [[0.0], [1.0]]).tolist() == [-1, -1]
    images = np.zeros((3, 2, 2), np.uint8)
    images[1] = 255
    images[2] = 200
    assert assign_noise([0, 1, -1], images).tolist() == [0, 1, 1]


# ---- internal scores --------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [-1, -1, 0, 0], [-1, -1, -1, -1]])
def test_internal_scores_are_nan_where_undefined(labels):
    scores = internal_scores(np.arange(8.0).reshape(4, 2), labels)
    assert list(scores) == INTERNAL and np.isnan(list(scores.values())).all()


def test_internal_scores_without_any_spread():
    assert np.isnan(list(internal_scores(np.ones((4, 2)), [0, 0, 1, 1]).values())).all()
    two_points = internal_scores([[0.0], [0.0], [1.0], [1.0]], [0, 0, 1, 1])
    assert two_points["silhouette"] == 1 and two_points["davies_bouldin"] == 0
    assert np.isnan(two_points["calinski_harabasz"])


def test_internal_scores_flatten_images_and_sample_repeatably():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(256, size=(60, 3, 3), dtype=np.uint8), rng.integers(2, size=60)
    assert internal_scores(images, labels) == internal_scores(images.reshape(60, 9).astype(float), labels)
    sampled = internal_scores(images, labels, sample_size=30)
    assert sampled == internal_scores(images, labels, sample_size=30)
    assert sampled["silhouette"] != internal_scores(images, labels)["silhouette"]
    picked = np.random.default_rng(0).permutation(60)[:30]
    assert sampled["silhouette"] == pytest.approx(skm.silhouette_score(images.reshape(60, 9)[picked].astype(float), labels[picked]))
    assert sampled["davies_bouldin"] == internal_scores(images, labels)["davies_bouldin"]


# ---- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize("y, labels, message", [
    ([0, 1], [0], r"differ in length \(y_true 2, labels 1\)"),
    ([], [], "at least one label"),
    ([0, np.nan], [0, 1], "y_true has missing values .* in 1 rows"),
    (["a", None], [0, 1], "missing values"),
    ([0, 1], [0, np.nan], "labels has missing values"),
    ([0.5, 1], [0, 1], "not whole"),
    ([0, np.inf], [0, 1], "not whole"),
    ([0, 1], [0.2, 0.8], "labels holds numbers that are not whole"),
    ([[0], [1]], [0, 1], r"shape \(2, 1\).*pass y_true\[:, 0\]"),
    ([[0, 1], [1, 1]], [0, 1], "multi-label set: score one column at a time"),
    ([0, 1], ["a", "b"], "cluster labels are integers"),
    ([0, 1], [0, -2], "holds -2: the only negative cluster label is -1"),
    (np.array(["a", 1], dtype=object), [0, 1], "mixes types"),
    (3, [0], "1-d array"),
])
def test_bad_labels(y, labels, message):
    with pytest.raises((ValueError, TypeError), match=message):
        clustering_scores(y, labels)


@pytest.mark.parametrize("score", [match_clusters, contingency_table, permutation_baseline])
def test_every_function_checks_lengths(score):
    with pytest.raises(ValueError, match="differ in length"):
        score([0, 1, 1], [0, 1])


@pytest.mark.parametrize("X, message", [
    (np.zeros((3, 2)), "X has 3 rows, but there are 2 labels"),
    ([[0.0], [np.nan]], "NaN or infinite"),
    ([[0.0], [np.inf]], "NaN or infinite"),
    ([0.0, 1.0], r"shape \(2,\)"),
    ([["a"], ["b"]], "numeric array"),
])
def test_bad_features(X, message):
    with pytest.raises(ValueError, match=message):
        clustering_scores([0, 1], [0, 1], X=X)


def test_bad_noise_policy():
    with pytest.raises(ValueError, match="choose 'own', 'drop' or 'nearest'"):
        clustering_scores([0, 1], [0, 1], noise="ignore")
    with pytest.raises(ValueError, match="needs X"):
        clustering_scores([0, 1], [0, -1], noise="nearest")


# ---- permutations -----------------------------------------------------------------------------


def test_permutation_baseline_agrees_with_real_shuffling():
    y, labels = from_table([[20, 40, 5], [10, 30, 25]])
    luck = permutation_baseline(y, labels, n=2000, random_state=1)
    rng = np.random.default_rng(0)
    shuffled = pd.DataFrame([clustering_scores(rng.permutation(y), labels) for _ in range(400)])[luck.index]
    assert list(luck.columns) == ["observed", "mean", "sd", "p95", "p_value"]
    assert luck.index.tolist() == ["accuracy", "balanced_accuracy", "purity", "nmi", "ami", "ari"]
    error = luck["sd"] * np.sqrt(1 / 400 + 1 / 2000)
    assert ((shuffled.mean() - luck["mean"]).abs() <= 5 * error + 1e-12).all()
    np.testing.assert_allclose(shuffled.std(), luck["sd"], rtol=0.2, atol=1e-12)
    np.testing.assert_allclose(shuffled.quantile(0.95), luck["p95"], rtol=0.2)


@pytest.mark.parametrize("table", [[[20, 40, 5], [10, 30, 25]], [[210, 570]], [[3], [4]], [[7]], [[5, 0], [0, 5]], [[1, 0], [0, 1]]])
def test_permutation_baseline_observes_what_the_scores_say(table):
    y, labels = from_table(table)
    luck, scores = permutation_baseline(y, labels, n=20), clustering_scores(y, labels)
    assert luck["observed"].to_dict() == pytest.approx({k: scores[k] for k in luck.index})


def test_a_collapsed_partition_is_worth_nothing():
    luck = permutation_baseline(BREAST, np.zeros(780, int), n=50)
    assert luck.loc["accuracy"].tolist() == pytest.approx([570 / 780, 570 / 780, 0, 570 / 780, 1])
    assert luck.loc["ari"].tolist() == [0, 0, 0, 0, 1]


def test_a_true_partition_is_not_luck_and_chance_correction_holds():
    truth = permutation_baseline(BREAST, 1 - BREAST, n=500)
    assert truth.loc[["accuracy", "ari"], "p_value"].tolist() == [1 / 501] * 2
    assert truth.loc[["ami", "ari"], "mean"].abs().max() < 0.001
    assert 0.5 < truth.loc["accuracy", "mean"] < 0.65          # luck is not the majority share, and not one half


def test_permutation_baseline_and_noise():
    y, labels = np.array([0, 1] * 20), np.array([-1] * 20 + [0, 1] * 10)
    own, drop = permutation_baseline(y, labels, n=50), permutation_baseline(y, labels, n=50, noise="drop")
    assert own.loc["accuracy", "observed"] == 0.5 and drop.loc["accuracy", "observed"] == 1
    assert own.loc["nmi", "observed"] == pytest.approx(clustering_scores(y, labels)["nmi"])
    assert permutation_baseline([0, 1], [-1, -1], noise="drop").isna().all(axis=None)
    assert permutation_baseline([0, 1], [-1, -1], n=5).loc["accuracy", "mean"] == 0
    with pytest.raises(ValueError, match="assign_noise"):
        permutation_baseline(y, labels, noise="nearest")
    with pytest.raises(ValueError, match="2 or more shuffles"):
        permutation_baseline(y, labels, n=1)


def test_permutation_baseline_is_repeatable():
    y, labels = from_table([[20, 40], [10, 30]])
    first = permutation_baseline(y, labels, n=100, random_state=3)
    pd.testing.assert_frame_equal(first, permutation_baseline(y, labels, n=100, random_state=3))
    assert not first.equals(permutation_baseline(y, labels, n=100, random_state=4))


# ---- classification ---------------------------------------------------------------------------

TRUTH, GUESS = np.array([0] * 4 + [1] * 6), np.array([0, 0, 0, 1, 0, 0, 1, 1, 1, 1])


def test_classification_by_hand():
    scores = classification_scores(TRUTH, GUESS, pos_label=0, average="binary")
    assert list(scores) == CLASSIFICATION and all(type(v) is float for v in scores.values())
    assert scores["accuracy"] == 0.7 and scores["majority_share"] == 0.6
    assert scores["sensitivity"] == 3 / 4 and scores["specificity"] == 4 / 6
    assert scores["balanced_accuracy"] == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert scores["f1"] == pytest.approx(6 / 9) and np.isnan(scores["auc"])


def test_the_positive_class_is_explicit():
    assert np.isnan([classification_scores(TRUTH, GUESS)[k] for k in ("sensitivity", "specificity")]).all()
    zero, one = (classification_scores(TRUTH, GUESS, pos_label=p) for p in (0, 1))
    assert (zero["sensitivity"], zero["specificity"]) == (one["specificity"], one["sensitivity"])
    assert zero["f1"] == one["f1"] == pytest.approx(skm.f1_score(TRUTH, GUESS, average="macro"))
    with pytest.raises(ValueError, match="pos_label=2 is not among"):
        classification_scores(TRUTH, GUESS, pos_label=2)


@pytest.mark.parametrize("average", ["macro", "weighted", "micro"])
@pytest.mark.parametrize("names", [np.array([0, 1, 2]), np.array(["c", "a", "b"])])
def test_classification_against_scikit_learn(average, names):
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=80)
    proba = rng.dirichlet(np.ones(3), size=80)
    proba[np.arange(80), y] += 0.3
    proba /= proba.sum(axis=1, keepdims=True)
    guess = proba.argmax(axis=1)
    scores = classification_scores(names[y], proba, pos_label=names[1], classes=names, average=average)
    assert scores["accuracy"] == pytest.approx(skm.accuracy_score(y, guess))
    assert scores["balanced_accuracy"] == pytest.approx(skm.balanced_accuracy_score(y, guess))
    assert scores["f1"] == pytest.approx(skm.f1_score(y, guess, average=average))
    assert scores["auc"] == pytest.approx(skm.roc_auc_score(y, proba, multi_class="ovr"))
    assert scores["sensitivity"] == pytest.approx(skm.recall_score(y == 1, guess == 1))
    assert scores["specificity"] == pytest.approx(skm.recall_score(y != 1, guess != 1))


def test_auc_of_two_classes_from_probabilities_logits_or_one_score():
    rng = np.random.default_rng(1)
    y, score = rng.integers(2, size=60), rng.normal(size=60)
    score += y
    expected = skm.roc_auc_score(y, score)
    p = 1 / (1 + np.exp(-score))
    assert classification_scores(y, np.c_[1 - p, p])["auc"] == pytest.approx(expected)
    assert classification_scores(y, np.c_[5 - score, 5 * np.ones(60)])["auc"] == pytest.approx(expected)
    assert classification_scores(y, score, pos_label=1, threshold=0.5)["auc"] == pytest.approx(expected)
    assert classification_scores(y, score, pos_label=0, threshold=0.5)["auc"] == pytest.approx(1 - skm.roc_auc_score(y == 0, -score)) == pytest.approx(1 - expected)


def test_threshold_is_inclusive():
    y, score = ["m", "m", "b", "b"], [0.9, 0.5, 0.5, 0.1]
    scores = classification_scores(y, score, pos_label="m", threshold=0.5)
    assert scores["sensitivity"] == 1 and scores["specificity"] == 0.5 and scores["auc"] == 7 / 8


@pytest.mark.filterwarnings("error")
def test_missing_classes():
    proba = np.array([[0.9, 0.1], [0.2, 0.8]])
    scores = classification_scores([0, 0], proba, classes=[0, 1], pos_label=1)
    assert np.isnan(scores["auc"]) and np.isnan(scores["sensitivity"]) and scores["specificity"] == 0.5
    assert scores["balanced_accuracy"] == 0.5 and scores["majority_share"] == 1
    with pytest.raises(ValueError, match=r"2 columns, but y_true holds the classes \[0\]"):
        classification_scores([0, 0], proba)
    three = classification_scores([0, 1], np.eye(3)[:2], classes=[0, 1, 2])
    assert np.isnan(three["auc"]) and three["accuracy"] == 1
    assert np.isnan(classification_scores([0, 0], [0, 0], classes=[0, 1], pos_label=1, average="binary")["f1"])
    assert classification_scores([1, 0], [0, 0], pos_label=1, average="binary")["f1"] == 0
    assert classification_scores([0, 0, 1], [0, 2, 1])["accuracy"] == pytest.approx(2 / 3)   # a class never true


@pytest.mark.parametrize("predictions, settings, message", [
    ([0.2, 0.8], {}, "`threshold` and `pos_label`"),
    ([0.2, 0.8], {"threshold": 0.5}, "needs two classes and `pos_label`"),
    ([0.2, np.nan], {"threshold": 0.5, "pos_label": 1}, "NaN, infinite"),
    ([[0.2, np.inf], [0, 1]], {}, "NaN, infinite"),
    ([[0.2], [0.8]], {}, r"shape \(2, 1\)"),
    ([[0.2, 0.8], [0.8, 0.2]], {"threshold": 0.5}, "with a threshold"),
    ([0, 1, 1], {}, r"differ in length \(y_true 2, predictions 3\)"),
    ([[0.2, 0.3, 0.5], [0.8, 0.1, 0.1]], {}, "3 columns"),
    ([[0.2, 0.8], [0.8, 0.2]], {"classes": [0, 0]}, "must name each"),
    ([0, 2], {"classes": [0, 1]}, "predicted labels holds 2, not among"),
    ([0, 1], {"classes": [1, 2]}, "y_true holds 0, not among"),
    ([0, 1], {"average": "mean"}, "average='mean'"),
    ([0, 1], {"average": "binary"}, "'binary' with a pos_label"),
    ([0, np.nan], {}, "predicted labels has missing values"),
])
def test_bad_predictions(predictions, settings, message):
    with pytest.raises(ValueError, match=message):
        classification_scores([0, 1], predictions, **settings)


def test_string_truth_with_number_predictions_is_refused():
    with pytest.raises(ValueError, match="not among the classes"):
        classification_scores(["0", "1"], [0, 1], classes=["0", "1"])
    with pytest.raises(TypeError, match="y_true with the predictions mixes types"):
        classification_scores(["a", "b"], [0, 1])


# ---- bootstrap --------------------------------------------------------------------------------


def test_bootstrap_of_a_mean_agrees_with_theory():
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(np.mean, values, n=2000)
    se = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * se, abs=0.15 * se)
    assert high == pytest.approx(values.mean() + 1.96 * se, abs=0.15 * se)
    narrow = bootstrap_interval(np.mean, values, n=2000, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert narrow[1] - narrow[0] == pytest.approx(2 * 0.6745 * se, rel=0.1)


def test_bootstrap_keeps_rows_together_and_is_repeatable():
    a = np.arange(50)
    assert bootstrap_interval(lambda x, y: float(np.all(x * 2 == y)), a, 2 * a, n=20) == (1, 1)
    first = bootstrap_interval(np.mean, a, n=50, random_state=2)
    assert first == bootstrap_interval(np.mean, a, n=50, random_state=2) != bootstrap_interval(np.mean, a, n=50, random_state=3)
    assert bootstrap_interval(lambda M: M.shape[1], np.zeros((5, 3)), n=5) == (3, 3)


def test_bootstrap_draws_whole_groups():
    groups = np.array(["a", "b", "a", "c", "b", "a"])

    def whole(drawn):                                       # a group comes with all its members, as often as it is drawn
        counts = {g: np.sum(drawn == g) for g in "abc"}
        return float(counts["a"] % 3 == 0 and counts["b"] % 2 == 0 and counts["a"] // 3 + counts["b"] // 2 + counts["c"] == 3)

    assert bootstrap_interval(whole, groups, groups=groups, n=100) == (1, 1)


def test_copies_make_the_interval_too_narrow_unless_grouped():
    values = np.random.default_rng(0).normal(size=100)
    width = lambda *a, **k: np.diff(bootstrap_interval(np.mean, *a, n=1000, **k))[0]
    alone, copies = width(values), np.repeat(values, 4)
    assert width(copies) == pytest.approx(alone / 2, rel=0.1)
    assert width(copies, groups=np.repeat(np.arange(100), 4)) == pytest.approx(alone, rel=1e-9)


def test_bootstrap_leaves_undefined_draws_out():
    auc = lambda y, p: classification_scores(y, p, pos_label=1, threshold=0.5, classes=[0, 1])["auc"]
    assert bootstrap_interval(auc, [0, 1, 1], [0.1, 0.8, 0.9], n=100) == (1, 1)
    assert np.isnan(bootstrap_interval(lambda a: np.nan, [1, 2], n=5)).all()


@pytest.mark.parametrize("arrays, settings, message", [
    ((), {}, "no arrays"),
    (([1, 2], [1]), {}, "differ in length"),
    (([1, 2],), {"groups": [0]}, "groups 1"),
    (([1, 2],), {"groups": [0, 0]}, "single group"),
    (([1],), {}, "only one independent unit"),
    (([1, 2],), {"level": 95}, "level between 0 and 1"),
    (([1, 2],), {"n": 1}, "2 or more draws"),
    (([1, 2],), {"groups": [0, np.nan]}, "groups has missing values"),
])
def test_bad_bootstrap(arrays, settings, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(np.mean, *arrays, **settings)


def test_a_score_must_be_one_number():
    with pytest.raises(TypeError, match="score returned a dict: it must return one number"):
        bootstrap_interval(clustering_scores, [0, 1, 1], [0, 1, 1])
    with pytest.raises(TypeError, match="ndarray"):
        bootstrap_interval(lambda a: a, [0, 1, 1])


# ---- the real images --------------------------------------------------------------------------


def test_k_means_on_breastmnist_is_429_of_780(breastmnist):
    from sklearn.cluster import KMeans

    X = breastmnist.images.reshape(780, -1) / 255
    with threadpool_limits(1):
        labels = KMeans(2, n_init=20, random_state=0).fit_predict(X)
    scores = clustering_scores(breastmnist.labels, labels)
    assert round(scores["accuracy"] * 780) == 429 and scores["accuracy"] == pytest.approx(429 / 780)
    assert scores["majority_share"] == 570 / 780
