"""The contrastive autoencoder: each loss by hand, where gradients go, prototypes, sampling, determinism, resume, errors."""
import pickle

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.metrics import normalized_mutual_info_score
from sklearn.pipeline import make_pipeline
from torch.nn import functional as F

from bc_clust.contrastive_ae import (AS_PUBLISHED, QUICK, ContrastiveAutoencoder, ConvDecoder, ConvEncoder, cluster_means, elbow, pad_to_eight,
                                     prototype_assignment)
from bc_clust.simclr import nt_xent
from bc_clust.training import load_estimator, save

TINY = dict(latent_dim=6, pretrain_epochs=2, cluster_epochs=2, batch_size=16, n_init=2, precision="float32", device="cpu", random_state=0)
STILL = dict(crop=None, flip=0, vertical_flip=0, brightness=0, contrast=0, blur=0)   # a view is the picture itself


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).integers(0, 256, (40, 12, 12), dtype=np.uint8)


@pytest.fixture(scope="module")
def fitted(X):
    return ContrastiveAutoencoder(3, **TINY).fit(X)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return np.uint8(data.images / 16 * 255), data.target


def losses(model, X):
    "A fitted model's losses on a batch, as in training, before there are prototypes."
    model._carry = {}
    model._settle()
    return model._losses(torch.from_numpy(X))


# ---- parts -------------------------------------------------------------------------------------


def test_a_stage_is_convolution_gelu_batchnorm():
    encoder = ConvEncoder(1, 4, widths=(2, 3, 5)).eval()
    x = torch.rand(3, 1, 16, 16)
    y = x
    for stage, (convolution, _, norm) in zip(encoder.stages, encoder.stages):
        y = norm(F.gelu(F.conv2d(y, convolution.weight, convolution.bias, stride=2, padding=1)))
    assert y.shape == (3, 5, 2, 2)
    assert torch.allclose(encoder(x), y.flatten(2).mean(2) @ encoder.linear.weight.T + encoder.linear.bias, atol=1e-6)


@pytest.mark.parametrize("side", [8, 24, 64])
def test_decoder_gives_the_side_back(side):
    drawn = ConvDecoder(3, side, 7)(torch.randn(2, 7))
    assert drawn.shape == (2, 3, side, side) and 0 < drawn.min() and drawn.max() < 1


def test_padding_repeats_the_edge_and_leaves_multiples_alone():
    x = torch.rand(2, 3, 13, 13)
    padded = pad_to_eight(x)
    assert padded.shape[-2:] == (16, 16) and torch.equal(padded[..., :13, :13], x)
    assert torch.equal(padded[..., 14, :13], x[..., 12, :]) and torch.equal(padded[..., 15, 15], x[..., 12, 12])
    even = torch.rand(1, 1, 16, 16)
    assert pad_to_eight(even) is even


def test_assignment():
    rng = np.random.default_rng(0)
    h, B = rng.standard_normal((9, 4)), rng.standard_normal((3, 4))
    near = prototype_assignment(torch.tensor(h), torch.tensor(B)).numpy()
    assert np.allclose(near, softmax(-((h[:, None] - B) ** 2).sum(2), axis=1), atol=1e-6)
    assert np.allclose(prototype_assignment(torch.tensor(h), torch.tensor(B), "dot").numpy(), softmax(h @ B.T, axis=1), atol=1e-6)


def test_cluster_means():
    rng = np.random.default_rng(0)
    h, labels, old = rng.standard_normal((30, 4)), rng.integers(0, 3, 30), rng.standard_normal((4, 4))   # cluster 3 is empty
    new = cluster_means(torch.tensor(h), torch.tensor(labels), torch.tensor(old)).numpy()
    assert np.allclose(new[:3], [h[labels == k].mean(0) for k in range(3)]) and np.array_equal(new[3], old[3])


def test_elbow():
    assert elbow([2, 3, 4, 5, 6], [10, 6, 2, 1.5, 1]) == 4
    assert elbow([2, 4, 8], [3, 1, 0]) == 4
    for k, inertias in (([2, 3], [2, 1]), ([2, 3, 4], [3, 2]), ([[2, 3, 4]], [[3, 2, 1]])):
        with pytest.raises(ValueError, match="two lists of one length, at least 3"):
            elbow(k, inertias)


# ---- losses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["view", "clean", "image"])
def test_losses_by_hand_where_views_are_the_pictures(X, target):
    model = ContrastiveAutoencoder(3, **TINY, **STILL, recon_target=target, use_condition=False).fit(X)
    for part in model._modules().values():
        part.eval()
    contrastive, reconstruction, codes = losses(model, X)
    x = pad_to_eight(torch.from_numpy(X).float()[:, None] / 255)
    with torch.no_grad():
        h = model.encoder_(x)
        z = model.projector_(h)
        assert torch.allclose(contrastive, nt_xent(z, z, 0.5), atol=1e-5)
        assert torch.allclose(reconstruction, (model.decoder_(h) - x)[..., :12, :12].square().mean(), atol=1e-6)
    assert codes.shape == (40 if target == "image" else 80, 6) and not codes.requires_grad


@pytest.mark.parametrize("target, mirrored", [("view", True), ("clean", False), ("image", False)])
def test_what_is_drawn(X, target, mirrored):
    "With views that are always mirrored it can be seen which picture the decoder is compared with."
    model = ContrastiveAutoencoder(3, **TINY, **{**STILL, "flip": 1}, recon_target=target, use_condition=False).fit(X)
    for part in model._modules().values():
        part.eval()
    _, reconstruction, _ = losses(model, X)
    x = torch.from_numpy(X).float()[:, None] / 255
    seen = x if target == "image" else x.flip(-1)
    with torch.no_grad():
        drawn = model.decoder_(model.encoder_(pad_to_eight(seen)))
    assert torch.allclose(reconstruction, F.mse_loss(drawn[..., :12, :12], x.flip(-1) if mirrored else x), atol=1e-6)


@pytest.mark.parametrize("target", ["view", "clean", "image"])
def test_where_the_gradient_of_each_term_goes(X, target):
    model = ContrastiveAutoencoder(3, **TINY, recon_target=target).fit(X)
    contrastive, reconstruction, _ = losses(model, X)
    def reached(loss, part):
        grads = torch.autograd.grad(loss, list(part.parameters()), retain_graph=True, allow_unused=True)
        return any(g is not None and g.abs().sum() > 0 for g in grads)
    assert [reached(contrastive, p) for p in (model.encoder_, model.projector_, model.decoder_)] == [True, True, False]
    assert [reached(reconstruction, p) for p in (model.encoder_, model.projector_, model.decoder_)] == [True, False, True]


def test_a_weight_of_zero_leaves_its_part_as_it_began(X):
    begin = ContrastiveAutoencoder(3, **{**TINY, "pretrain_epochs": 0, "cluster_epochs": 0}).fit(X)
    plain = ContrastiveAutoencoder(3, **TINY, contrastive_weight=0).fit(X)
    contrastive = ContrastiveAutoencoder(3, **TINY, reconstruction_weight=0).fit(X)
    same = lambda a, b: all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert same(begin.projector_, plain.projector_) and not same(begin.decoder_, plain.decoder_)
    assert same(begin.decoder_, contrastive.decoder_) and not same(begin.projector_, contrastive.projector_)
    assert contrastive.n_iter_ == 0, "phase 2 has nothing to learn"


def test_the_decoder_is_told_the_mixture_of_prototypes(X):
    model = ContrastiveAutoencoder(3, **TINY).fit(X)
    h = torch.randn(4, 6)
    B = torch.from_numpy(model.prototypes_)
    told = torch.from_numpy(softmax(-((h[:, None] - B) ** 2).sum(2).numpy(), axis=1)) @ B
    model.decoder_.eval()
    with torch.no_grad():
        assert torch.allclose(model._draw(h, B), model.decoder_(torch.cat([h, told], 1)), atol=1e-5)
        assert torch.allclose(model._draw(h, None), model.decoder_(torch.cat([h, torch.zeros(4, 6)], 1)), atol=1e-6)
    assert np.allclose(model.inverse_transform(h), model._draw(h, B).detach()[:, 0, :12, :12], atol=1e-5)


# ---- prototypes --------------------------------------------------------------------------------


def test_without_phase_two_prototypes_are_the_means_of_kmeans(X):
    model = ContrastiveAutoencoder(3, **{**TINY, "cluster_epochs": 0}).fit(X)
    kmeans = KMeans(3, n_init=2, random_state=0).fit(model.transform(X))
    assert np.allclose(model.prototypes_, kmeans.cluster_centers_, atol=1e-4) and np.array_equal(model.labels_, kmeans.labels_)
    assert len(model.label_path_) == 1 and model.n_iter_ == 0


def test_the_three_updates(X):
    start = ContrastiveAutoencoder(3, **{**TINY, "cluster_epochs": 0}).fit(X).prototypes_
    fixed, batch, epoch = (ContrastiveAutoencoder(3, **{**TINY, "cluster_epochs": 1}, prototype_update=u).fit(X) for u in ("fixed", "batch", "epoch"))
    assert np.allclose(fixed.prototypes_, start, atol=1e-6)
    h = epoch.transform(X)
    nearest = ((h[:, None] - start) ** 2).sum(2).argmin(1)
    wanted = np.array([h[nearest == k].mean(0) if (nearest == k).any() else start[k] for k in range(3)])
    assert np.allclose(epoch.prototypes_, wanted, atol=1e-4)
    assert not np.allclose(batch.prototypes_, start, atol=1e-3) and not np.allclose(batch.prototypes_, epoch.prototypes_, atol=1e-3)


@pytest.mark.parametrize("settings", [{}, AS_PUBLISHED, {"n_clusters": "elbow"}], ids=["mended", "as published", "elbow"])
def test_labels_are_what_predict_says(X, settings):
    model = ContrastiveAutoencoder(**{**TINY, "n_clusters": 3, **settings}).fit(X)
    assert np.array_equal(model.labels_, model.predict(X)) and np.array_equal(model.labels_, model.label_path_[-1])
    c = model.predict_proba(X)
    assert c.shape == (40, model.n_clusters_) and np.allclose(c.sum(1), 1, atol=1e-5)
    history = model.history_
    assert list(history["phase"]) == ["pretrain"] * 2 + ["cluster"] * 2
    sizes = np.bincount(model.labels_, minlength=model.n_clusters_) / 40
    assert np.isclose(history["smallest_share"].iloc[-1], sizes.min())
    assert np.isclose(history["label_change"].iloc[-1], (model.label_path_[-1] != model.label_path_[-2]).mean())


def test_elbow_keeps_its_curve(X):
    model = ContrastiveAutoencoder(**{**TINY, "cluster_epochs": 0}).fit(X)
    assert len(model.inertias_) == 19 and model.n_clusters_ == elbow(range(2, 21), model.inertias_) == len(model.prototypes_)


# ---- pictures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 12), (8, 8), (20, 20, 3)])
def test_shapes(shape):
    X = np.random.default_rng(0).random((20, *shape), dtype=np.float32)
    model = ContrastiveAutoencoder(2, **TINY).fit(X)
    Z = model.transform(X)
    assert Z.shape == (20, 6) and Z.dtype == np.float32
    drawn = model.inverse_transform(Z)
    assert drawn.shape == X.shape and drawn.dtype == np.float32 and 0 <= drawn.min() and drawn.max() <= 1
    assert np.array_equal(drawn, model.reconstruct(X)) and model.sample(3, random_state=0)[0].shape == (3, *shape)


def test_bytes_are_divided_by_255(X, fitted):
    assert np.allclose(fitted.transform(X), fitted.transform(X / 255), atol=1e-5)


def test_sample(fitted):
    pictures, clusters = fitted.sample(200, random_state=1)
    again, _ = fitted.sample(200, random_state=1)
    assert np.array_equal(pictures, again) and not np.array_equal(pictures, fitted.sample(200, random_state=2)[0])
    assert np.abs(np.bincount(clusters, minlength=3) / 200 - fitted.cluster_shares_).max() < 0.15
    assert (fitted.sample(5, cluster=2)[1] == 2).all()


def test_samples_lie_about_the_mean_of_their_cluster(X):
    model = ContrastiveAutoencoder(3, **{**TINY, "cluster_epochs": 0}).fit(X)   # in phase 2 a cluster of noise may lose all its images
    h = model.transform(X)
    for k in range(3):
        assert np.allclose(model.code_means_[k], h[model.labels_ == k].mean(0), atol=1e-4)
    model.code_covariances_ = np.zeros_like(model.code_covariances_)
    assert np.allclose(model.sample(2, cluster=1)[0], model.inverse_transform(model.code_means_[[1, 1]]), atol=1e-5)


def test_digits(digits):
    X, y = digits
    model = ContrastiveAutoencoder(10, flip=0, vertical_flip=0, **QUICK, random_state=0, device="cpu").fit(X[:1400])
    error, of_mean = (((guess - X[1400:] / 255) ** 2).mean() for guess in (model.reconstruct(X[1400:]), X[:1400].mean(0) / 255))
    assert error < 0.2 * of_mean
    assert normalized_mutual_info_score(y[1400:], model.predict(X[1400:])) > 0.6


# ---- an estimator ------------------------------------------------------------------------------


def test_same_seed_same_bits_and_no_trace(X, fitted):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    again = ContrastiveAutoencoder(3, **TINY).fit(X)
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])
    assert np.array_equal(fitted.transform(X), again.transform(X)) and np.array_equal(fitted.prototypes_, again.prototypes_)
    other = ContrastiveAutoencoder(3, **{**TINY, "random_state": 1}).fit(X)
    assert not np.array_equal(fitted.transform(X), other.transform(X))


class Stop(Exception):
    pass


@pytest.mark.parametrize("settings", [{}, AS_PUBLISHED, {"n_clusters": "elbow"}], ids=["mended", "as published", "elbow"])
@pytest.mark.parametrize("at", [("pretrain", 0), ("pretrain", 1), ("cluster", 0)])
def test_resume_ends_where_an_uninterrupted_fit_does(X, tmp_path, settings, at):
    settings = {**TINY, "n_clusters": 3, **settings}
    def stop(estimator, row):
        if (row["phase"], row["epoch"]) == at:
            raise Stop
    with pytest.raises(Stop):
        model = ContrastiveAutoencoder(**settings, checkpoint_dir=str(tmp_path))
        model.checkpoint_seconds = 0
        model.fit(X, callback=stop)
    resumed = ContrastiveAutoencoder(**settings, checkpoint_dir=str(tmp_path), resume=True).fit(X)
    whole = ContrastiveAutoencoder(**settings).fit(X)
    assert np.array_equal(resumed.transform(X), whole.transform(X)) and np.array_equal(resumed.prototypes_, whole.prototypes_)
    assert np.array_equal(resumed.label_path_, whole.label_path_) and resumed.history_.equals(whole.history_)


def test_phase_one_is_shared(X, tmp_path):
    first = ContrastiveAutoencoder(3, **TINY, pretrain_dir=str(tmp_path)).fit(X)
    other = ContrastiveAutoencoder(4, **TINY, pretrain_dir=str(tmp_path)).fit(X)
    assert not first.pretrain_shared_ and other.pretrain_shared_
    assert np.array_equal(other.transform(X), ContrastiveAutoencoder(4, **TINY).fit(X).transform(X))
    assert not ContrastiveAutoencoder(3, **TINY, temperature=0.1, pretrain_dir=str(tmp_path)).fit(X).pretrain_shared_


@pytest.mark.parametrize("n_clusters", [3, "elbow"])
def test_saved_and_pickled(X, tmp_path, n_clusters):
    model = ContrastiveAutoencoder(n_clusters, **TINY).fit(X)
    save(model, tmp_path / "model.safetensors")
    for other in (load_estimator(tmp_path / "model.safetensors"), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(model.transform(X), other.transform(X)) and np.array_equal(model.predict(X), other.predict(X))
        assert np.array_equal(model.sample(4, random_state=0)[0], other.sample(4, random_state=0)[0])


def test_clone_and_pipeline(X):
    model = ContrastiveAutoencoder(3, **TINY)
    assert clone(model).get_params() == model.get_params()
    assert make_pipeline(model, PCA(2)).fit_transform(X).shape == (40, 2)
    assert np.array_equal(model.fit_predict(X), model.labels_)


@pytest.mark.parametrize("settings, match", [
    (dict(n_clusters=1), "n_clusters"), (dict(n_clusters="knee"), "elbow"), (dict(latent_dim=0), "latent_dim"), (dict(batch_size=1), "batch_size"),
    (dict(temperature=0), "temperature=0: use a number above 0"), (dict(lr=0), "lr"), (dict(recon_target="crop"), "'image', 'view', 'clean'"),
    (dict(assignment="cosine"), "'distance', 'dot'"), (dict(prototype_update="step"), "'epoch', 'batch', 'fixed'"),
    (dict(contrastive_weight=0, reconstruction_weight=0), "nothing to learn"), (dict(contrastive_weight=-1), "contrastive_weight"),
    (dict(crop=(0.9, 0.5)), "crop"), (dict(flip=2), "flip"), (dict(use_condition="yes"), "use_condition"), (dict(n_init=0), "n_init")])
def test_bad_settings(X, settings, match):
    with pytest.raises(ValueError, match=match):
        ContrastiveAutoencoder(**settings).fit(X)


@pytest.mark.parametrize("bad, match", [
    (np.zeros((5, 64)), "takes images"), (np.zeros((5, 8, 9)), "8 by 9"), (np.zeros((3, 8, 8)), "give at least 4"), (np.zeros((0, 8, 8)), "at least one"),
    (np.zeros((5, 8, 8), dtype=int), "uint8"), (np.full((5, 8, 8), 2.0), "from 0 to 1"), (np.full((5, 8, 8), np.nan), "not finite")])
def test_bad_images(bad, match):
    with pytest.raises(ValueError, match=match):
        ContrastiveAutoencoder(2).fit(bad)


def test_bad_questions(X, fitted):
    with pytest.raises(ValueError, match="fewer clusters"):
        ContrastiveAutoencoder(50).fit(X)
    with pytest.raises(ValueError, match="8 pixels with 1 channels.*fitted on 12 pixels"):
        fitted.transform(X[:, :8, :8])
    for bad in (np.zeros((2, 5)), np.zeros(6), np.full((1, 6), np.inf), np.zeros((0, 6))):
        with pytest.raises(ValueError, match=r"finite codes of shape \(n, 6\)"):
            fitted.inverse_transform(bad)
    with pytest.raises(ValueError, match="cluster=3"):
        fitted.sample(2, cluster=3)
    with pytest.raises(ValueError, match="n=0"):
        fitted.sample(0)
    fresh = ContrastiveAutoencoder(2)
    for ask in (lambda: fresh.sample(1), lambda: fresh.inverse_transform(np.zeros((1, 32))), lambda: fresh.predict(X)):
        with pytest.raises(NotFittedError):
            ask()


def test_the_elbow_wants_five_images(X):
    with pytest.raises(ValueError, match="holds 4 images; give at least 5"):
        ContrastiveAutoencoder(**TINY).fit(X[:4])
    assert ContrastiveAutoencoder(**TINY).fit(X[:5]).n_clusters_ in (2, 3, 4)
