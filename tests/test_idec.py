"""IDEC: each equation against a naive version, finite differences and stored values of other libraries; the estimator."""
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import kneighbors_graph
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from threadpoolctl import threadpool_limits

from bc_clust import idec
from bc_clust.idec import (CONVENTIONS, IDEC, PAPER, QUICK, STUDIES, VARIANTS, batch_edges, cluster_assignment, cluster_loss,
                           graph_loss, neighbour_graph, reconstruction_loss, target_distribution)

SMALL = dict(hidden_dims=(32, 16), latent_dim=4, pretrain_epochs=6, max_epochs=5, batch_size=32, n_neighbors=3,
             stop_rule=None, random_state=0, device="cpu", precision="float32", n_init=3)


@pytest.fixture
def X():
    "Eighty 6 x 5 images that vary in four ways, with a little noise."
    rng = np.random.default_rng(0)
    ways = rng.normal(size=(80, 4)) @ rng.normal(size=(4, 30)) + 0.2 * rng.normal(size=(80, 30))
    return np.clip(128 + 30 * ways, 0, 255).astype(np.uint8).reshape(80, 6, 5)


@pytest.fixture
def blobs():
    X, y = make_blobs(120, n_features=8, centers=3, cluster_std=1.0, random_state=1)
    return StandardScaler().fit_transform(X).astype(np.float32), y


# --- equations -----------------------------------------------------------------------------------------------------

def test_assignment_by_hand_and_naive():
    q = cluster_assignment(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]))
    kernel = np.array([1, 1 / 2, 1 / 5])
    np.testing.assert_allclose(q.numpy()[0], kernel / kernel.sum(), rtol=1e-6)
    rng = np.random.default_rng(0)
    z, mu = rng.normal(size=(7, 3)), rng.normal(size=(4, 3))
    naive = 1 / (1 + ((z[:, None] - mu[None]) ** 2).sum(-1))
    naive /= naive.sum(1, keepdims=True)
    np.testing.assert_allclose(cluster_assignment(torch.tensor(z), torch.tensor(mu)).numpy(), naive, rtol=1e-12)


# Values of another implementation (ClustPy 0.0.3, float64) for z, mu of the generator below.
ORACLE_Q = [[0.6427483, 0.3572517], [0.8262713, 0.1737287], [0.1599307, 0.8400693]]
ORACLE_P = [[0.7315038, 0.2684962], [0.9500977, 0.0499023], [0.0296025, 0.9703975]]


def oracle_input():
    i = torch.arange(6, dtype=torch.float64).reshape(3, 2)
    return torch.sin(i), torch.cos(torch.arange(4, dtype=torch.float64).reshape(2, 2) * 1.3)


def test_assignment_and_target_equal_stored_oracle():
    z, mu = oracle_input()
    q = cluster_assignment(z, mu)
    np.testing.assert_allclose(q.numpy(), ORACLE_Q, atol=1e-6)
    np.testing.assert_allclose(target_distribution(q).numpy(), ORACLE_P, atol=1e-6)


def test_assignment_target_and_loss_equal_clustpy():
    dec = pytest.importorskip("clustpy.deep.dec")
    z, mu = oracle_input()
    z.requires_grad_()
    q = cluster_assignment(z, mu)
    torch.testing.assert_close(q, dec._dec_predict(mu, z, 1.0, None))
    p = target_distribution(q)
    torch.testing.assert_close(p, dec._dec_compression_value(q).detach())
    ours, = torch.autograd.grad(cluster_loss(p, q, "clustpy"), z, retain_graph=True)
    theirs, = torch.autograd.grad(dec._dec_compression_loss_fn(q), z)
    torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-6)  # they add 1e-8 inside the logarithm


def test_target_by_hand_sharpens_and_balances():
    q = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.5, 0.5]], dtype=torch.float64)
    f = np.array([2.1, 0.9])
    w = q.numpy() ** 2 / f
    p = target_distribution(q).numpy()
    np.testing.assert_allclose(p, w / w.sum(1, keepdims=True), rtol=1e-12)
    assert p[2, 1] > 0.5  # an undecided image is sent to the smaller cluster
    assert target_distribution(q.clone().requires_grad_()).requires_grad is False


def test_kl_is_zero_only_at_equality_and_allows_zero_targets():
    q = torch.tensor([[0.3, 0.7], [0.6, 0.4]])
    assert abs(cluster_loss(q, q)) < 1e-7
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = -(np.log(0.3) + np.log(0.4)) / 2
    assert float(cluster_loss(p, q, "idec-keras")) == pytest.approx(expected, rel=1e-6)
    assert float(cluster_loss(p, q, "idec-pytorch")) == pytest.approx(expected / 2, rel=1e-6)


@pytest.mark.parametrize("convention, rec, kl", [("idec-pytorch", 1 / 12, 1 / 2), ("idec-keras", 1 / 12, 1.0), ("clustpy", 1 / 3, 1.0)])
def test_three_readings_of_the_losses(convention, rec, kl):
    rng = np.random.default_rng(1)
    x, x_hat = torch.tensor(rng.random((3, 4))), torch.tensor(rng.random((3, 4)))
    q = torch.tensor([[0.3, 0.7], [0.6, 0.4]])
    p = target_distribution(q)
    total = ((x - x_hat) ** 2).sum()
    assert float(reconstruction_loss(x, x_hat, convention)) == pytest.approx(float(total) * rec)
    summed = (p * (p / q).log()).sum() / 2
    assert float(cluster_loss(p, q, convention)) == pytest.approx(float(summed) * kl, rel=1e-5)
    if convention == "idec-pytorch":  # what torch's own means give
        assert torch.isclose(cluster_loss(p, q), torch.nn.functional.kl_div(q.log(), p, reduction="none").mean())


def test_gradients_against_finite_differences():
    torch.manual_seed(0)
    z = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    mu = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    edges = torch.tensor([[0, 1, 2], [1, 4, 5]])
    p = target_distribution(cluster_assignment(z, mu))
    assert torch.autograd.gradcheck(lambda z, mu: cluster_loss(p, cluster_assignment(z, mu)), (z, mu))
    assert torch.autograd.gradcheck(lambda z: graph_loss(z, edges), (z,))


# --- graph -----------------------------------------------------------------------------------------------------------

def dense(edges, n):
    G = np.zeros((n, n))
    G[edges[0], edges[1]] = G[edges[1], edges[0]] = 1
    return G


def test_graph_by_hand():
    x = np.array([[0.0], [1.0], [3.0], [100.0]])  # nearest: 0-1, 1-0, 2-1, 3-2
    assert neighbour_graph(x, 1).tolist() == [[0, 1, 2], [1, 2, 3]]


@pytest.mark.parametrize("k", [1, 4])
def test_graph_is_equation_7(k):
    x = np.random.default_rng(2).normal(size=(40, 5))
    distance = ((x[:, None] - x[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    near = np.zeros((40, 40), bool)
    np.put_along_axis(near, distance.argsort(1)[:, :k], True, 1)
    edges = neighbour_graph(x, k).numpy()
    assert np.array_equal(dense(edges, 40) > 0, near | near.T) and (edges[0] < edges[1]).all()


def test_graph_loss_is_equation_6():
    rng = np.random.default_rng(3)
    z, edges = rng.normal(size=(25, 4)), neighbour_graph(rng.normal(size=(25, 3)), 3)
    G = dense(edges.numpy(), 25)
    double_sum = sum(((z[i] - z[j]) ** 2).sum() * G[i, j] for i in range(25) for j in range(25))
    assert float(graph_loss(torch.tensor(z), edges)) == pytest.approx(double_sum / (2 * 25))
    assert float(graph_loss(torch.tensor(z), edges[:, :0])) == 0


def test_graph_in_blocks_equals_scikit_learns(monkeypatch):
    rng = np.random.default_rng(6)
    for x in (rng.integers(0, 255, (53, 40), dtype=np.uint8), rng.normal(size=(53, 4)).astype(np.float32)):
        theirs = kneighbors_graph(x.astype(np.float64), 4, include_self=False)
        expected = {(min(i, j), max(i, j)) for i, j in zip(*map(lambda v: v.tolist(), theirs.nonzero()))}
        for block in (1024, 7, 1):  # one block, many, and columns in blocks smaller than n_neighbors + 1
            monkeypatch.setattr(idec._nearest, "__defaults__", (block,))
            edges = neighbour_graph(x, 4)
            assert set(map(tuple, edges.T.tolist())) == expected and edges.shape[1] == len(expected)


def test_copies_of_an_image_are_neighbours_but_never_of_themselves():
    x = np.array([[7, 7], [7, 7], [7, 7], [200, 0]], dtype=np.uint8)
    edges = neighbour_graph(x, 2)
    assert (edges[0] != edges[1]).all() and {(0, 1), (0, 2), (1, 2)} <= set(map(tuple, edges.T.tolist()))


def test_graph_needs_more_rows_than_neighbours():
    with pytest.raises(ValueError, match="n_neighbors=3 needs more than 3 rows, got 3"):
        neighbour_graph(np.eye(3), 3)


def test_approximate_graph(monkeypatch):
    def gone(name):
        raise ImportError(name)
    with monkeypatch.context() as patch:
        patch.setattr(idec, "import_module", gone)
        with pytest.raises(ImportError, match="pip install pynndescent"):
            neighbour_graph(np.eye(5), 2, "approximate")
    pytest.importorskip("pynndescent")
    x = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    exact, near = (set(map(tuple, neighbour_graph(x, 4, m).T.tolist())) for m in ("exact", "approximate"))
    assert len(exact & near) > 0.97 * len(exact) and all(i < j for i, j in near)


class FakeSearch:
    "Stands for PyNNDescent: two rows that name themselves, one that was not found among its own neighbours."
    neighbor_graph = np.array([[0, 1, 2], [1, 0, 2], [0, 1, 3], [2, 3, 0]], dtype=np.int32), None

    def __init__(self, x, n_neighbors, random_state):
        assert x.dtype == np.float32 and x.max() <= 1 and n_neighbors == 3 and random_state == 0


def test_approximate_graph_leaves_each_row_itself_out(monkeypatch):
    monkeypatch.setattr(idec, "import_module", lambda name: type("module", (), {"NNDescent": FakeSearch}))
    found = idec._nearest_approximate(torch.tensor([[0], [85], [170], [255]], dtype=torch.uint8), 2)
    assert found.tolist() == [[1, 2], [0, 2], [0, 1], [2, 0]]


@pytest.mark.parametrize("scaling, divisor", [("samples", 3), ("edges", 2), ("pairs", 4.5), ("sum", 1)])
def test_graph_scalings_by_hand(scaling, divisor):
    z = torch.tensor([[0.0], [1.0], [3.0]])
    edges = torch.tensor([[0, 1], [1, 2]])  # squared lengths 1 and 4
    assert graph_loss(z, edges, scaling) == 5 / divisor
    assert graph_loss(z, edges[:, :0], scaling) == 0
    G = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0.0]])
    matrix = (z[:, None] - z).square().sum(2) * G
    assert graph_loss(z, edges, "samples") == matrix.sum() / (2 * 3) and graph_loss(z, edges, "pairs") == pytest.approx(matrix.mean().item())


@pytest.mark.parametrize("n, batch_size", [(25, 8), (24, 8), (25, 25), (25, 100), (25, 1)])
def test_batch_edges_are_the_edges_inside_each_batch(n, batch_size):
    edges = neighbour_graph(np.random.default_rng(4).normal(size=(n, 3)), 3)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    G, parts = dense(edges.numpy(), n), batch_edges(edges, order, batch_size)
    stretches = order.split(batch_size)
    assert len(parts) == len(stretches)
    for part, index in zip(parts, stretches):
        assert np.array_equal(dense(part.numpy(), len(index)), G[np.ix_(index, index)])


# --- the estimator ---------------------------------------------------------------------------------------------------

K_IS_ONE = {name: "the check sets n_clusters=1, which IDEC refuses; run below with n_clusters=2" for name in (
    "check_dont_overwrite_parameters", "check_methods_subset_invariance", "check_fit2d_1sample", "check_fit2d_1feature",
    "check_fit2d_predict1d")}


class AtLeastTwo(IDEC):
    "IDEC for checks that set n_clusters=1 on it: reads as 2."
    n_clusters = property(lambda self: max(2, self.__dict__["n_clusters"]),
                          lambda self, value: self.__dict__.__setitem__("n_clusters", value))


def checks():
    settings = dict(hidden_dims=(16,), latent_dim=3, pretrain_epochs=2, max_epochs=2, n_init=2, n_neighbors=2,
                    precision="float32")
    for cls, chosen in ((IDEC, lambda name: name not in K_IS_ONE), (AtLeastTwo, lambda name: name in K_IS_ONE)):
        for estimator, check in estimator_checks_generator(cls(2, **settings)):
            name = getattr(check, "func", check).__name__
            if chosen(name):
                yield pytest.param(estimator, check, id=f"{cls.__name__}-{name}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator, check", list(checks()))
def test_scikit_learn_checks(estimator, check):
    assert check(estimator) is None


def test_defaults_are_the_papers():
    p = IDEC().get_params()
    assert (p["hidden_dims"], p["latent_dim"], p["batch_size"]) == ((500, 500, 1000), 10, 256)
    assert (p["pretrain_epochs"], p["pretrain_lr"], p["lr"]) == (400, 3e-4, 5e-4)
    assert (p["cluster_weight"], p["graph_weight"], p["pretrain_graph_weight"], p["tol"]) == (0.1, 0.001, 0.001, 0.001)
    assert p["stop_rule"] == "label-change"


def test_finds_blobs_with_every_convention_and_variant(blobs):
    X, y = blobs
    for convention in CONVENTIONS:
        model = IDEC(3, **{**SMALL, "pretrain_epochs": 40, "loss_convention": convention}).fit(X)
        assert adjusted_rand_score(y, model.labels_) > 0.9, convention
    for name, variant in VARIANTS.items():
        model = IDEC(3, **{**SMALL, "pretrain_epochs": 40, **variant}).fit(X)
        assert adjusted_rand_score(y, model.labels_) > 0.9, name


def test_relu_after_the_last_layers_is_a_setting(X):
    plain, cut = IDEC(2, **SMALL).fit(X), IDEC(2, **SMALL, last_activation=True).fit(X)
    assert plain.transform(X).min() < 0 and plain.reconstruct(X).min() < 0
    assert cut.transform(X).min() == 0 and cut.reconstruct(X).min() == 0 and cut.transform(X).max() > 0


def test_ae_k_means_is_k_means_on_the_embedding(X):
    model = IDEC(2, **{**SMALL, **VARIANTS["AE + k-means"]}).fit(X)
    with threadpool_limits(1):
        kmeans = KMeans(2, n_init=3, random_state=0).fit(model.transform(X))
    assert np.array_equal(model.labels_, kmeans.labels_)
    np.testing.assert_allclose(model.cluster_centers_, kmeans.cluster_centers_, rtol=1e-5)
    assert model.n_iter_ == 0 and model.label_path_.shape == (1, 80)


def test_parts_of_the_loss_are_recorded_and_add_up(X):
    model = IDEC(2, **SMALL).fit(X)
    pre, cluster = model.history_.iloc[:6], model.history_.iloc[6:]
    assert (pre["phase"] == "pretrain").all() and (cluster["phase"] == "cluster").all() and len(cluster) == 5
    np.testing.assert_allclose(pre["loss"], pre["reconstruction"] + 0.001 * pre["graph"], rtol=1e-5)
    total = cluster["reconstruction"] + 0.1 * cluster["cluster"] + 0.001 * cluster["graph"]
    np.testing.assert_allclose(cluster["loss"], total, rtol=1e-5)
    assert model.history_["loss"].iloc[5] < model.history_["loss"].iloc[0]
    plain = IDEC(2, **{**SMALL, **VARIANTS["DEC"]}).fit(X).history_
    assert "graph" not in plain and plain["reconstruction"].iloc[6:].isna().all()


def test_paths_sizes_and_changes_agree(X):
    model = IDEC(2, **SMALL).fit(X)
    path, cluster = model.label_path_, model.history_.iloc[6:]
    assert path.shape == (6, 80) and np.array_equal(path[-1], model.labels_)
    np.testing.assert_allclose(cluster["label_change"], (path[1:] != path[:-1]).mean(1), atol=1e-6)
    np.testing.assert_allclose(cluster["smallest_share"], [np.bincount(p, minlength=2).min() / 80 for p in path[1:]], atol=1e-6)
    assert np.array_equal(model.predict(X), model.labels_)
    q = model.predict_proba(X)
    torch.testing.assert_close(torch.tensor(q), cluster_assignment(torch.tensor(model.transform(X)), torch.tensor(model.cluster_centers_)))


def test_target_schedule(X, monkeypatch):
    "How often all images are assigned: once at the start and once an epoch, and besides every T batches."
    counts = {}
    original = IDEC._assign_all
    for interval in ("epoch", "batch", np.int64(2)):
        calls = []
        monkeypatch.setattr(IDEC, "_assign_all", lambda self, x, calls=calls: (calls.append(1), original(self, x))[1])
        IDEC(2, **SMALL, update_interval=interval).fit(X)  # 5 epochs of 3 batches
        counts[interval] = len(calls)
    assert counts == {"epoch": 6, "batch": 6, 2: 6 + 8}


@pytest.mark.parametrize("interval", ["epoch", "batch", 2])
def test_clustering_sharpens_the_assignment(X, interval):
    def certainty(epochs):
        settings = {**SMALL, **VARIANTS["DEC"], "max_epochs": epochs, "update_interval": interval, "lr": 2e-3}
        return IDEC(2, **settings).fit(X).predict_proba(X).max(1).mean()
    assert certainty(20) > certainty(0) + 0.05


def test_centres_are_trained(X):
    first = IDEC(2, **{**SMALL, "max_epochs": 0}).fit(X).cluster_centers_
    assert np.abs(IDEC(2, **SMALL).fit(X).cluster_centers_ - first).max() > 1e-4


def test_stop_rules(X):
    eager = {**SMALL, "tol": 2.0, "max_epochs": 5}  # tol above 1: every epoch counts as quiet
    stopped = IDEC(2, **{**eager, "stop_rule": "label-change"}).fit(X)
    assert stopped.n_iter_ == 1 and stopped.stop_epoch_ == 0
    on = IDEC(2, **eager).fit(X)
    assert on.n_iter_ == 5 and on.stop_epoch_ == 0  # training goes on, the epoch is noted
    strict = IDEC(2, **{**eager, "stop_rule": "guarded", "min_share": 1.0}).fit(X)
    assert strict.n_iter_ == 5 and strict.stop_epoch_ == 0 and strict.guarded_stop_epoch_ is None
    never = IDEC(2, **{**SMALL, "tol": 0.0, "stop_rule": "label-change"}).fit(X)
    assert never.n_iter_ == 5 and never.stop_epoch_ is None
    guarded = IDEC(2, **{**eager, "stop_rule": "guarded", "min_share": 0.01}).fit(X)
    assert guarded.n_iter_ == 1 and guarded.guarded_stop_epoch_ == 0


def test_graph_pulls_neighbours_together(X):
    def last(weight):
        settings = {**SMALL, "pretrain_epochs": 60, "pretrain_lr": 3e-3, "max_epochs": 0, "pretrain_graph_weight": weight}
        return IDEC(2, **settings).fit(X).history_["graph"].iloc[-1]
    assert last(0.1) < 0.5 * last(1e-9)


def test_graph_scope(X):
    "In scope 'all' each batch meets eq. (6) over all images, and the rest of its loss is the batch's."
    whole, part = (IDEC(2, **{**SMALL, "graph_scope": scope, "graph_scaling": "sum"}).fit(X) for scope in ("all", "batch"))
    x = torch.from_numpy(X.reshape(80, 30))
    index, weights = torch.tensor([4, 2, 9]), {"reconstruction": 1.0, "graph": 0.5}
    edges = neighbour_graph(x, 3)
    for model in (whole, part):
        model._device = torch.device("cpu")
        model._edges, model._generator = edges, torch.Generator().manual_seed(0)
    inside = part._batches(x, weights)
    assert [e.shape[1] for _, e in whole._batches(x, weights)] == 3 * [edges.shape[1]]
    assert 0 < sum(e.shape[1] for _, e in inside) < edges.shape[1]
    parts = whole._losses(x, index, edges, weights)
    z = torch.from_numpy(whole.transform(X))
    assert parts["graph"].item() == pytest.approx(graph_loss(z, edges, "sum").item(), rel=1e-5)
    error = ((whole.reconstruct(X[index]) - X[index] / 255) ** 2).mean()
    assert parts["reconstruction"].item() == pytest.approx(error, rel=1e-4)
    assert not np.array_equal(whole.transform(X), part.transform(X))


def same_fit(a, b):
    return (all(torch.equal(p, q) for p, q in zip(a.network_.parameters(), b.network_.parameters()))
            and np.array_equal(a.label_path_, b.label_path_) and a.history_.equals(b.history_))


@pytest.mark.parametrize("later", [{}, {"lr": 1e-2}, {"graph_weight": 0.0}, {"loss_convention": "idec-keras"},
                                   {"n_clusters": 3}, {"max_epochs": 0}])
def test_shared_pretraining_gives_the_bits_of_a_whole_run(X, tmp_path, later):
    settings = {**SMALL, "corruption": 0.2, "n_clusters": 2}  # masking draws from the global generator
    first = IDEC(**settings, pretrain_dir=tmp_path).fit(X)
    shared = IDEC(**{**settings, **later}, pretrain_dir=tmp_path).fit(X)
    assert shared.pretrain_shared_ and not first.pretrain_shared_ and len(list(tmp_path.iterdir())) == 1
    assert same_fit(shared, IDEC(**{**settings, **later}).fit(X))


@pytest.mark.parametrize("earlier", [{"random_state": 1}, {"pretrain_lr": 1e-2}, {"pretrain_graph_weight": 0.5}, {"batch_size": 40},
                                     {"n_neighbors": 4}, {"graph_scope": "all"}, {"graph_scaling": "sum"},
                                     {"loss_convention": "clustpy"}, {"hidden_dims": (32, 8)}, {"latent_dim": 3},
                                     {"pretrain_epochs": 5}, {"corruption": 0.1}, {"last_activation": True},
                                     {"precision": "bfloat16"}])
def test_pretraining_is_not_shared_where_it_differs(X, tmp_path, earlier):
    IDEC(2, **SMALL, pretrain_dir=tmp_path).fit(X)
    other = IDEC(2, **{**SMALL, **earlier}, pretrain_dir=tmp_path).fit(X)
    assert not other.pretrain_shared_ and len(list(tmp_path.iterdir())) == 2
    assert not IDEC(2, **SMALL, pretrain_dir=tmp_path).fit(X[:-1]).pretrain_shared_  # other data


def test_without_a_graph_in_phase_1_its_settings_do_not_matter_there(X, tmp_path):
    plain = {**SMALL, "pretrain_graph_weight": 0.0}
    IDEC(2, **plain, pretrain_dir=tmp_path).fit(X)
    assert IDEC(2, **{**plain, "n_neighbors": 6, "graph_scope": "all"}, pretrain_dir=tmp_path).fit(X).pretrain_shared_


def test_studies_are_settings_the_estimator_accepts():
    for study, rows in {"variants": VARIANTS, **STUDIES}.items():
        for label, settings in rows.items():
            model = IDEC(2).set_params(**{**PAPER, **settings})
            model._check_settings()
            assert label and model.stop_rule is None, study
    labels = [label for rows in STUDIES.values() for label in rows]
    assert len(set(labels)) == len(labels)
    assert list(STUDIES["graph-weight"].values())[3] == {"graph_weight": 0.004}


def test_reconstruct_and_inverse_transform(X):
    model = IDEC(2, **{**SMALL, "pretrain_epochs": 150, "pretrain_lr": 3e-3, "latent_dim": 16}).fit(X)
    drawn = model.reconstruct(X)
    assert drawn.shape == X.shape and drawn.dtype == np.float32
    np.testing.assert_allclose(model.inverse_transform(model.transform(X)), drawn, atol=1e-5)
    pixels = X / 255
    assert ((drawn - pixels) ** 2).mean() < 0.9 * ((pixels - pixels.mean(0)) ** 2).mean()
    with pytest.raises(ValueError, match=r"shape \(3, 5\).*\(n, 16\)"):
        model.inverse_transform(np.zeros((3, 5)))


def test_uint8_equals_scaled_floats_and_flat_equals_images(X):
    a = IDEC(2, **SMALL).fit(X)
    b = IDEC(2, **SMALL).fit((X / np.float32(255)).reshape(80, -1))
    np.testing.assert_allclose(a.transform(X), b.transform(X.reshape(80, -1) / np.float32(255)), atol=1e-4)


def test_composes_with_scikit_learn(X, blobs):
    pipe = make_pipeline(StandardScaler(), IDEC(3, **SMALL)).fit(blobs[0])
    assert pipe.predict(blobs[0]).shape == (120,)
    Z = make_pipeline(IDEC(2, **SMALL), PCA(2)).fit_transform(X)
    assert Z.shape == (80, 2)
    assert IDEC(2, **SMALL).fit(pd.DataFrame(blobs[0], columns=list("abcdefgh"))).feature_names_in_[0] == "a"


# --- bad input -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("setting, value, words", [
    ("n_clusters", 1, "at least 2"), ("n_clusters", 2.0, "whole number"), ("batch_size", 0, "at least 1"),
    ("lr", 0, "above 0"), ("lr", float("nan"), "above 0"), ("graph_weight", -1, "at least 0"), ("corruption", 1.5, "at most 1"),
    ("loss_convention", "mean", "'idec-pytorch', 'idec-keras', 'clustpy'"), ("stop_rule", "early", "'guarded'"),
    ("update_interval", 0, "at least 1"), ("update_interval", "often", "'epoch', 'batch'"), ("hidden_dims", (8, 0), "at least 1"),
    ("pretrain_epochs", -1, "at least 0"), ("min_share", 2, "at most 1"), ("device", "tpu", "unknown|not available"),
    ("precision", "float16", "'bfloat16'"), ("last_activation", "relu", "True, False")])
def test_bad_settings(X, setting, value, words):
    with pytest.raises(ValueError, match=f"(?s){setting}.*({words})"):
        IDEC(**{"n_clusters": 2, **SMALL, setting: value}).fit(X)


def test_all_weights_zero(X):
    nothing = dict(reconstruction_weight=0, cluster_weight=0, graph_weight=0)
    with pytest.raises(ValueError, match="nothing to learn.*max_epochs=0"):
        IDEC(2, **{**SMALL, **nothing}).fit(X)
    assert IDEC(2, **{**SMALL, **nothing, "max_epochs": 0}).fit(X).n_iter_ == 0


def broken(kind, X):
    if kind == "NaN":
        X = X.astype(float)
        X[3, 2, 1] = np.nan
    elif kind == "infinity":
        X = X.astype(float)
        X[3, 2, 1] = np.inf
    elif kind == "huge":
        X = X.astype(float)
        X[0] = 1e300
    elif kind == "words":
        X = np.array([["a", "b"]] * 9)
    elif kind == "complex":
        X = X.reshape(80, -1) * 1j
    elif kind == "one dimension":
        X = X.reshape(-1)
    elif kind == "empty":
        X = X[:0]
    elif kind == "few":
        X = X[:1]
    elif kind == "constant":
        X = np.zeros_like(X)
    elif kind == "small for graph":
        X = X[:3]
    return X


@pytest.mark.parametrize("kind, words", [
    ("NaN", "NaN"), ("infinity", "infinity"), ("huge", "too large for float32"), ("words", "numeric|convert"), ("complex", "Complex"),
    ("one dimension", "2D array"), ("empty", "minimum of 1 is required"), ("few", "n_samples=1 is fewer than n_clusters=2"),
    ("constant", "only 1 different rows.*constant"), ("small for graph", "n_neighbors=3 needs more than 3 images, got 3")])
def test_bad_data(X, tmp_path, kind, words):
    model = IDEC(2, **SMALL, checkpoint_dir=tmp_path / "checkpoints")
    with pytest.raises(ValueError, match=words):
        model.fit(broken(kind, X))
    assert not (tmp_path / "checkpoints").exists() and not hasattr(model, "history_")


def test_transform_refuses_other_shapes_and_unfitted(X):
    with pytest.raises(NotFittedError, match="call fit first"):
        IDEC().transform(X)
    with pytest.raises(NotFittedError, match="call fit first"):
        IDEC().inverse_transform(np.zeros((1, 10)))
    model = IDEC(2, **SMALL).fit(X)
    with pytest.raises(ValueError, match=r"shape \(5, 6\), but IDEC was fitted on \(6, 5\)"):
        model.transform(X.transpose(0, 2, 1))
    with pytest.raises(ValueError, match="features"):
        model.transform(np.zeros((3, 7), np.float32))


# --- the real data ----------------------------------------------------------------------------------------------------

def test_k_means_on_raw_pixels_is_the_papers_55_percent(breastmnist):
    X = breastmnist.images.reshape(780, -1) / 255
    with threadpool_limits(1):
        labels = KMeans(2, n_init=20, random_state=0).fit_predict(X)
    agree = (labels == breastmnist.labels).sum()
    assert max(agree, 780 - agree) == 429


@pytest.mark.slow
def test_quick_profile_on_real_images(breastmnist):
    model = IDEC(2, **QUICK, random_state=0).fit(breastmnist.images)
    assert model.history_["reconstruction"].iloc[QUICK["pretrain_epochs"] - 1] < 0.015
    assert model.reconstruct(breastmnist.images).shape == (780, 28, 28)
    assert PAPER["stop_rule"] is None and model.label_path_.shape[1] == 780
