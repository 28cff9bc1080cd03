"""SimCLR: its loss and optimiser against loops, finite differences and lightly; the estimator's contract, resume, and what it refuses."""
import math

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_classifier, is_clusterer
from sklearn.cluster import KMeans
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from torch.nn import functional as F

from bc_clust import backbones, training
from bc_clust.augment import resize
from bc_clust.data import phantom
from bc_clust.experiments import run
from bc_clust.simclr import LARS, QUICK, SimCLR, nt_xent, partner_found, warmup_cosine
from bc_clust.training import CheckpointError, load_estimator, save

SINES = torch.sin(torch.arange(1, 43, dtype=torch.float64)).reshape(2, 7, 3)
# lightly 1.6.0, NTXentLoss(temperature)(*SINES): the value, and the gradient with respect to row 2 of the first view
LIGHTLY = {0.05: (31.132898390735253, [-1.1487058770556986, 0.19605655981998504, 1.360565499758324]),
           0.5: (4.498087670228268, [-0.1536932806177812, 0.02623175911888248, 0.1820394404956009]),
           1.0: (3.334089385818558, [-0.07157603378083528, 0.012216313356555708, 0.08477703833234493])}


# --- the loss -----------------------------------------------------------------------------------------------------

def loop(za, zb, temperature):
    "Equation (1) of Chen et al., letter by letter."
    z, n, total = torch.cat([za, zb]), len(za), 0.0
    for i in range(2 * n):
        like = [F.cosine_similarity(z[i], z[k], dim=0) / temperature for k in range(2 * n)]
        total -= torch.log(like[(i + n) % (2 * n)].exp() / sum(like[k].exp() for k in range(2 * n) if k != i))
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 3.0])
def test_loss_is_the_equation(temperature):
    assert math.isclose(nt_xent(*SINES, temperature), loop(*SINES, temperature), rel_tol=1e-12)


@pytest.mark.parametrize("temperature", LIGHTLY)
def test_loss_and_gradient_are_lightlys(temperature):
    views = [z.clone().requires_grad_() for z in SINES]
    value = nt_xent(*views, temperature)
    value.backward()
    expected, gradient = LIGHTLY[temperature]
    assert math.isclose(value.item(), expected, rel_tol=1e-12)
    np.testing.assert_allclose(views[0].grad[2], gradient, rtol=1e-10)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_loss_and_gradient_against_lightly_where_it_is_installed(temperature):
    loss = pytest.importorskip("lightly.loss", reason="lightly is an extra: pip install -e '.[oracles]'").NTXentLoss(temperature)
    mine, theirs = ([z.clone().requires_grad_() for z in SINES] for _ in range(2))
    value, other = nt_xent(*mine, temperature), loss(*theirs)
    value.backward(), other.backward()
    assert math.isclose(value.item(), other.item(), rel_tol=1e-12)
    for a, b in zip(mine, theirs):
        torch.testing.assert_close(a.grad, b.grad)


def test_gradient_against_finite_differences():
    views = [z[:4].clone().requires_grad_() for z in SINES]
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.3), views)


def test_only_directions_count_and_the_views_may_be_swapped():
    za, zb = SINES
    assert math.isclose(nt_xent(za, zb), nt_xent(7 * zb, 0.01 * za), rel_tol=1e-12)
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    assert math.isclose(nt_xent(za, zb), nt_xent(za[order], zb[order]), rel_tol=1e-12)
    assert not math.isclose(nt_xent(za, zb), nt_xent(za, zb[order]), rel_tol=1e-3), "rows are pairs"


@pytest.mark.parametrize("n", [2, 5, 128])
def test_value_where_all_is_alike_and_where_all_is_right(n):
    assert math.isclose(nt_xent(torch.ones(n, 4), torch.ones(n, 4)), math.log(2 * n - 1), rel_tol=1e-6)
    corners = torch.eye(n, dtype=torch.float64)
    assert math.isclose(nt_xent(corners, corners, 0.5), math.log1p((2 * n - 2) * math.exp(-2)), rel_tol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_stable_in_half_precision_and_when_cold(dtype, temperature):
    views = [z.to(dtype).requires_grad_() for z in SINES]
    value = nt_xent(*views, temperature)
    value.backward()
    exact = nt_xent(*(z.detach().double() for z in views), temperature)
    assert value.dtype == torch.float32 and math.isclose(value.item(), exact.item(), rel_tol=1e-4)
    assert all(z.grad.isfinite().all() and z.grad.abs().sum() > 0 for z in views)


def test_float32_also_under_autocast():
    za, zb = SINES.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = nt_xent(za, zb, 0.05)
    assert inside.dtype == torch.float32 and inside == nt_xent(za, zb, 0.05)


def test_a_vector_of_zeros_leaves_no_nan():
    za = SINES[0].clone()
    za[0] = 0
    za.requires_grad_()
    nt_xent(za, SINES[1]).backward()
    assert za.grad.isfinite().all()


@pytest.mark.parametrize("za, zb, temperature, word", [
    (torch.ones(1, 3), torch.ones(1, 3), 0.5, "at least two images"),
    (torch.ones(4, 3), torch.ones(5, 3), 0.5, r"\(4, 3\) and zb \(5, 3\)"),
    (torch.ones(4, 3), torch.ones(4, 3), 0, "temperature=0"),
    (torch.ones(4, 3), torch.ones(4, 3), -1.0, "temperature=-1.0"),
    (torch.ones(4, 3), torch.ones(4, 3), math.nan, "temperature=nan"),
    (torch.ones(4), torch.ones(4), 0.5, "za is a tensor"),
    (torch.ones(4, 3, dtype=torch.int64), torch.ones(4, 3), 0.5, "int64"),
    (torch.ones(4, 3), np.ones((4, 3)), 0.5, "zb is ndarray")])
def test_loss_refuses(za, zb, temperature, word):
    with pytest.raises(ValueError, match=word):
        nt_xent(za, zb, temperature)


def test_partner_found_by_hand():
    za = torch.eye(4)[:3]
    assert partner_found(za, 5 * za) == 1 and partner_found(za, za.roll(1, 0)) == 0
    zb = za.clone()
    zb[0] = torch.tensor([0.1, 1, 0, 0])   # image 1 is nearer to it than its partner; to the partner it is still the nearest of all
    assert math.isclose(partner_found(za, zb), 5 / 6, abs_tol=1e-6)
    zb[0] = torch.tensor([-0.1, 1, 0, 0])  # now the partner finds one of the four at 0 before it
    assert math.isclose(partner_found(za, zb), 4 / 6, abs_tol=1e-6)
    assert partner_found(*torch.randn(2, 300, 16, generator=torch.Generator().manual_seed(0))) < 0.02


# --- LARS and its schedule ----------------------------------------------------------------------------------------

def start():
    w = torch.nn.Parameter(torch.sin(torch.arange(1, 7, dtype=torch.float64)).reshape(2, 3))
    return w, torch.nn.Parameter(torch.tensor([0.5, -0.25], dtype=torch.float64))


def five_steps(make):
    (w, b) = parameters = start()
    optimiser = make(*parameters)
    for t in range(5):
        w.grad = torch.cos(torch.arange(1, 7, dtype=torch.float64) + t).reshape(2, 3) * (1 + t)
        b.grad = torch.tensor([0.1 * t, -0.2], dtype=torch.float64)
        optimiser.step()
    return w.detach(), b.detach()


def test_lars_by_numpy():
    w, v = start()[0].detach().numpy(), np.zeros((2, 3))
    for t in range(5):
        g = np.cos(np.arange(1, 7) + t).reshape(2, 3) * (1 + t)
        ratio = 0.001 * np.linalg.norm(w) / (np.linalg.norm(g) + 0.1 * np.linalg.norm(w))
        v = 0.9 * v + ratio * (g + 0.1 * w)
        w = w - 50 * v
    mine = five_steps(lambda w, b: LARS([w, b], lr=50, momentum=0.9, weight_decay=0.1))[0]
    np.testing.assert_allclose(mine, w, rtol=1e-12)


def test_lars_leaves_biases_to_plain_sgd():
    mine = five_steps(lambda w, b: LARS([w, b], lr=50, momentum=0.9, weight_decay=0.1))[1]
    theirs = five_steps(lambda w, b: torch.optim.SGD([w, b], lr=50, momentum=0.9))[1]
    torch.testing.assert_close(mine, theirs)


def test_lars_is_lightlys_where_it_is_installed():
    lars = pytest.importorskip("lightly.utils.lars", reason="lightly is an extra: pip install -e '.[oracles]'").LARS
    mine = five_steps(lambda w, b: LARS([w, b], lr=50, momentum=0.9, weight_decay=0.1))
    theirs = five_steps(lambda w, b: lars([{"params": [w], "weight_decay": 0.1}, {"params": [b], "weight_decay": 0}], lr=50., momentum=0.9, eps=0))
    for a, b in zip(mine, theirs):
        torch.testing.assert_close(a, b)


def test_a_step_does_not_depend_on_the_length_of_the_gradient():
    moved = []
    for factor in (1e-6, 1, 1e6):
        w = torch.nn.Parameter(torch.tensor([[3., 4.]], dtype=torch.float64))
        w.grad = factor * torch.tensor([[0., 2.]], dtype=torch.float64)
        LARS([w], lr=1, momentum=0, weight_decay=0, trust=0.1).step()
        moved.append(w.detach())
    torch.testing.assert_close(moved[0], torch.tensor([[3., 3.5]], dtype=torch.float64))
    torch.testing.assert_close(moved[0], moved[2])


def test_lars_with_weights_or_a_gradient_of_zero_and_without_one():
    zero, still, none = (torch.nn.Parameter(v) for v in (torch.zeros(2, 2), torch.ones(2, 2), torch.ones(2, 2)))
    zero.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimiser = LARS([zero, still, none], lr=0.5, momentum=0, weight_decay=0)
    optimiser.step()
    assert (zero == -0.5).all(), "a layer of zeros takes a plain step, or it would never move"
    assert (still == 1).all() and (none == 1).all() and none not in optimiser.state


def test_lars_closure_and_state():
    w = torch.nn.Parameter(torch.ones(2, 2))
    optimiser = LARS([w], lr=1)

    def closure():
        loss = w.square().sum()
        loss.backward()
        return loss

    assert optimiser.step(closure) == 4
    other = LARS([w], lr=3)
    other.load_state_dict(optimiser.state_dict())
    assert other.param_groups[0]["lr"] == 1 and torch.equal(other.state[w]["momentum"], optimiser.state[w]["momentum"])


@pytest.mark.parametrize("settings", [dict(lr=-1), dict(lr=1, momentum=2), dict(lr=1, weight_decay=-1), dict(lr=1, trust=0), dict(lr=math.nan)])
def test_lars_refuses(settings):
    with pytest.raises(ValueError, match=next(name for name, value in settings.items() if value != 1)):
        LARS([torch.nn.Parameter(torch.ones(2, 2))], **settings)


def test_warmup_and_cosine():
    rate = np.array([warmup_cosine(step, 110, 10) for step in range(110)])
    np.testing.assert_allclose(rate[:10], np.arange(10) / 10)
    np.testing.assert_allclose(rate[10:], (1 + np.cos(np.pi * np.arange(100) / 100)) / 2)
    assert warmup_cosine(0, 5, 0) == 1 and warmup_cosine(110, 110, 10) == pytest.approx(0)


# --- the estimator ------------------------------------------------------------------------------------------------

TINY = dict(backbone="resnet18", image_size=16, projection_dim=8, n_epochs=3, warmup_epochs=1, batch_size=8, random_state=0,
            precision="float32", device="cpu")


@pytest.fixture(scope="module")
def X():
    return phantom(n=20, size=24, random_state=0).images


@pytest.fixture(scope="module")
def fitted(X):
    return SimCLR(**TINY).fit(X)


def weights(model):
    return {f"{name}.{k}": v.clone() for name, part in model._modules().items() for k, v in part.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_what_a_fit_gives(fitted, X):
    Z = fitted.transform(X)
    assert Z.shape == (20, 512) and Z.dtype == np.float32 and np.isfinite(Z).all() and (Z >= 0).all()
    assert fitted.history_.columns.tolist() == ["phase", "epoch", "loss", "partner_found", "lr"] and len(fitted.history_) == 3
    assert not is_classifier(fitted) and not is_clusterer(fitted)
    z = clone(fitted).set_params(output="projection").fit(X).transform(X)
    assert z.shape == (20, 8) and np.allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    assert not {"_live", "_lr", "_generator"} & set(vars(fitted))


def test_same_seed_same_bits_and_another_seed_another_fit(fitted, X):
    assert same(weights(SimCLR(**TINY).fit(X)), weights(fitted))
    assert not same(weights(SimCLR(**{**TINY, "random_state": 1}).fit(X)), weights(fitted))


def test_labels_are_ignored(fitted, X):
    assert same(weights(SimCLR(**TINY).fit(X, np.arange(20))), weights(fitted))


def test_floats_and_bytes_are_the_same_images(fitted, X):
    assert same(weights(SimCLR(**TINY).fit((X / 255).astype(np.float32))), weights(fitted))
    np.testing.assert_allclose(fitted.transform(X[:4]), fitted.transform((X[:4] / 255).astype(np.float32)), atol=1e-6)


def test_both_views_go_through_the_network_in_one_pass_and_the_short_batch_is_left_out(X, monkeypatch):
    passes = []
    original = SimCLR._features
    monkeypatch.setattr(SimCLR, "_features", lambda self, planes: passes.append(len(planes)) or original(self, planes))
    SimCLR(**TINY).fit(X)
    assert passes == [16, 16] * 3, "20 images: two batches of 8, twice as many views each, and 4 left over"
    passes.clear()
    SimCLR(**{**TINY, "batch_size": 64}).fit(X)
    assert passes == [40] * 3, "fewer images than a batch: one batch of all"


def test_the_rate_warms_up_and_falls(X):
    model = SimCLR(**{**TINY, "n_epochs": 4, "warmup_epochs": 2, "lr": 0.4}).fit(X)
    steps = [warmup_cosine(2 * epoch + 1, 8, 4) for epoch in range(4)]   # two steps an epoch, the last one is written down
    np.testing.assert_allclose(model.history_["lr"], 0.4 * np.array(steps))


def test_standardised_by_the_images_of_fit(fitted, X):
    assert fitted.mean_.shape == (1,) and math.isclose(fitted.mean_[0], (X / 255).mean(), rel_tol=1e-5)
    assert math.isclose(fitted.std_[0], (X / 255).std(), rel_tol=1e-4)
    half = SimCLR(**{**TINY, "n_epochs": 0, "warmup_epochs": 0}).fit(X[:10])
    assert math.isclose(half.mean_[0], (X[:10] / 255).mean(), rel_tol=1e-5)


def test_it_learns_the_task(X):
    easy = dict(n_epochs=25, warmup_epochs=2, batch_size=20, optimizer="adam", crop=(0.9, 1.0), flip=0, vertical_flip=0, brightness=0, contrast=0, blur=0)
    history = SimCLR(**{**TINY, **easy}).fit(X).history_
    assert history["partner_found"].iloc[0] < 0.4 and history["partner_found"].iloc[-1] > 0.9
    assert history["loss"].iloc[-1] < history["loss"].iloc[0] - 1


def test_controls_are_not_trained(X):
    settings = {**TINY, "n_epochs": 0, "warmup_epochs": 0}
    untrained = SimCLR(**settings).fit(X)
    assert len(untrained.history_) == 0 and (untrained.transform(X) >= 0).all()
    pixels = SimCLR(**settings, output="pixels").fit(X).transform(X)
    small = resize(torch.from_numpy(X).float()[:, None] / 255, 16)
    np.testing.assert_allclose(pixels, small.flatten(1), atol=1e-6)


def test_fewer_images(X):
    few, all_of_them = (SimCLR(**{**TINY, "n_images": n}).fit(X) for n in (8, 20))
    assert same(weights(few), weights(SimCLR(**{**TINY, "n_images": 8}).fit(X)))
    assert not same(weights(few), weights(all_of_them))


def test_colour_and_the_number_of_channels(fitted, X):
    colour = np.repeat(X[..., None], 3, axis=3)
    model = SimCLR(**TINY).fit(colour)
    assert model.n_channels_ == 3 and model.transform(colour).shape == (20, 512)
    with pytest.raises(ValueError, match="X has 3 channels; this SimCLR was fitted on images with 1"):
        fitted.transform(colour)


def test_a_resumed_fit_ends_where_an_uninterrupted_one_does(X, fitted, tmp_path):
    class Stop(Exception):
        pass

    def stop(model, row):
        if row["epoch"] == 1:
            raise Stop

    model = SimCLR(**TINY, checkpoint_dir=tmp_path)
    model.checkpoint_seconds = 0
    with pytest.raises(Stop):
        model.fit(X, callback=stop)
    resumed = SimCLR(**TINY, checkpoint_dir=tmp_path, resume=True).fit(X)
    assert same(weights(resumed), weights(fitted)) and resumed.history_.equals(fitted.history_)
    with pytest.raises(CheckpointError, match="temperature"):
        SimCLR(**{**TINY, "temperature": 0.1}, checkpoint_dir=tmp_path, resume=True).fit(X)


def test_a_pretrained_network_is_shared_by_what_differs_only_later(X, fitted, tmp_path):
    SimCLR(**TINY, pretrain_dir=tmp_path).fit(X)
    shared = SimCLR(**TINY, output="projection", pretrain_dir=tmp_path).fit(X)
    assert shared.pretrain_shared_ and same(weights(shared), weights(fitted)) and shared.transform(X).shape == (20, 8)
    assert not SimCLR(**{**TINY, "temperature": 0.1}, pretrain_dir=tmp_path).fit(X).pretrain_shared_
    assert not SimCLR(**TINY, pretrain_dir=tmp_path).fit(X[:18]).pretrain_shared_


def test_save_and_load(fitted, X, tmp_path):
    save(fitted, tmp_path / "model.safetensors")
    loaded = load_estimator(tmp_path / "model.safetensors")
    assert np.array_equal(loaded.transform(X), fitted.transform(X)) and loaded.crop == (0.5, 0.8)
    with pytest.raises(NotFittedError):
        SimCLR().transform(X)


def test_in_a_pipeline(X):
    assert make_pipeline(SimCLR(**{**TINY, "n_epochs": 0, "warmup_epochs": 0}), KMeans(2, n_init=1, random_state=0)).fit_predict(X).shape == (20,)


def test_bfloat16_is_near_float32(X):
    half = SimCLR(**{**TINY, "precision": "bfloat16", "n_epochs": 0, "warmup_epochs": 0}).fit(X).transform(X)
    full = SimCLR(**{**TINY, "n_epochs": 0, "warmup_epochs": 0}).fit(X).transform(X)
    assert 0 < np.abs(half - full).max() < 0.05 * np.abs(full).max()


def test_a_cpu_without_bfloat16_is_warned_of_and_auto_avoids_it(X, monkeypatch, recwarn):
    for room in (training, backbones):
        monkeypatch.setattr(room, "cpu_has_bfloat16", lambda: False)
    untrained = {**TINY, "n_epochs": 0, "warmup_epochs": 0, "device": "cpu"}
    for precision in ("auto", "float32"):
        assert SimCLR(**{**untrained, "precision": precision}).fit(X)._precision is training.FLOAT32
    assert not [w for w in recwarn if "bfloat16" in str(w.message)]
    with pytest.warns(UserWarning, match="precision='bfloat16': this CPU has no instructions.*'auto'"):
        SimCLR(**{**untrained, "precision": "bfloat16"}).fit(X)
    assert SimCLR(**QUICK).precision == "auto"   # the quick profile is for any laptop


def test_convolutions_use_channels_last_memory_also_in_float32(X):
    model = SimCLR(**{**TINY, "precision": "float32", "device": "cpu"}).fit(np.repeat(X[..., None], 3, axis=3))
    weights = next(p for p in model.backbone_.parameters() if p.ndim == 4 and p.shape[2] > 1)
    seen = []
    model.backbone_.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model.transform(np.repeat(X[..., None], 3, axis=3))
    for tensor in (weights, *seen):
        assert tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    assert len(seen) == 1


@pytest.mark.parametrize("settings, word", [
    (dict(temperature=0), "temperature"), (dict(batch_size=1), "batch_size"), (dict(backbone="resnet51"), "resnet51"),
    (dict(n_epochs=10, warmup_epochs=10), "warmup_epochs=10"), (dict(crop=(0.8, 0.5)), "crop"), (dict(crop=0.5), "crop"), (dict(flip=2), "flip"),
    (dict(brightness=-0.1), "brightness"), (dict(image_size=4), "image_size"), (dict(optimizer="sgd"), "optimizer"),
    (dict(output="z"), "output"), (dict(lr=0), "lr"), (dict(n_images=1), "n_images"), (dict(stem="big"), "stem")])
def test_settings_that_are_refused(X, settings, word):
    with pytest.raises(ValueError, match=word):
        SimCLR(**{**TINY, **settings}).fit(X)


@pytest.mark.parametrize("bad, word", [
    (np.zeros((4, 16, 12), np.uint8), "16 by 12"), (np.zeros((4, 256)), "shape"), (np.zeros((4, 16, 16), int), "dtype"),
    (np.full((4, 16, 16), 255.0), "from 0 to 1"), (np.zeros((1, 16, 16), np.uint8), "one image")])
def test_images_that_are_refused(bad, word):
    with pytest.raises(ValueError, match=word):
        SimCLR(**TINY).fit(bad)


# --- records ------------------------------------------------------------------------------------------------------

def test_a_run_is_scored_on_images_it_has_not_seen(tmp_path):
    images, seen = phantom(n=40, size=16, task="binary-class", random_state=0), []

    class Spy(SimCLR):
        def fit(self, X, y=None, callback=None):
            seen.append((len(X), y))
            return super().fit(X, y, callback)

    settings = {**TINY, "n_epochs": 1, "warmup_epochs": 0}
    record = run(Spy(**settings), images, seeds=1, results=tmp_path, say=None)[0]
    assert seen == [(32, None)], "four folds of five, and no labels"
    assert {"held out, k-means", "held out, linear probe", "held out, SGD classifier", "held out, linear probe, C chosen"} <= record["scores"].keys()
    assert record["data"]["protocol"]["folds"] == 5 and "pretrain" not in record["data"]
    other = phantom(n=24, size=16, random_state=5)
    elsewhere = run(Spy(**settings), images, seeds=1, results=tmp_path, say=None, pretrain=other)[0]
    assert seen[1] == (24, None) and elsewhere["data"]["pretrain"]["n"] == 24
    assert len(list(tmp_path.glob(f"spy/*-from-phantom-{other.task}-16x16/*/seed-0.json"))) == 1
    run(Spy(**settings), images, seeds=1, results=tmp_path, say=None, keep=False, pretrain=images)
    assert len(list(tmp_path.glob("spy/*-from-*/*/seed-0.json"))) == 2, "another task of the same set may have other images"
    assert len(list(tmp_path.rglob("*.embedding.safetensors"))) == 2 and not list(tmp_path.rglob("*.model.safetensors")), "22 MiB a model"
    with pytest.raises(ValueError, match="pretrain is for estimators that learn an embedding"):
        run(KMeans(2), images, seeds=1, results=tmp_path, say=None, pretrain=other)
