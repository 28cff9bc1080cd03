"""mlp and the two counters, against counts made by hand; MobileNetV3-Small, against torchvision's own."""
import copy
import hashlib
import io
import os
import pickle
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.transforms.functional import normalize, resize

from bc_clust import backbones
from bc_clust.backbones import (IMAGENET_MEAN, IMAGENET_STD, MobileNetV3Small, ResNet, count_macs, count_parameters,
                                imagenet_input, mlp, mobilenet_v3_small)
from bc_clust.data import DataIntegrityError, DataUnavailableError, data_folders

PAPER = (784, 500, 500, 1000, 10)


def test_layers_of_the_paper():
    kinds = [type(layer) for layer in mlp(PAPER)]
    assert kinds == [nn.Linear, nn.ReLU] * 3 + [nn.Linear]
    assert [tuple(layer.weight.shape) for layer in mlp(PAPER) if isinstance(layer, nn.Linear)] == [
        (500, 784), (500, 500), (1000, 500), (10, 1000)]


def test_last_activation_and_another_activation():
    net = mlp((3, 4, 2), activation=nn.GELU, last_activation=True)
    assert [type(layer) for layer in net] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU]
    leaky = mlp((3, 4, 2), activation=lambda: nn.LeakyReLU(0.3))
    assert leaky[1].negative_slope == 0.3 and len(leaky) == 3
    relu = mlp((3, 2), last_activation=True)
    assert (relu(torch.randn(100, 3)) >= 0).all()


def test_forward_is_what_the_layers_say():
    torch.manual_seed(0)
    net, x = mlp((3, 4, 2)), torch.randn(5, 3)
    first, _, last = net
    by_hand = (x @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
    assert torch.allclose(net(x), by_hand)


def test_each_activation_is_a_module_of_its_own():
    net = mlp((2, 3, 4, 5))
    assert net[1] is not net[3]


def test_same_seed_same_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return mlp(PAPER).state_dict()

    assert all(torch.equal(a, b) for a, b in zip(weights(0).values(), weights(0).values()))
    assert not torch.equal(weights(0)["0.weight"], weights(1)["0.weight"])


def test_widths_may_be_any_sequence():
    assert len(mlp([3, 2])) == 1
    assert len(mlp(w for w in (3, 2))) == 1
    assert len(mlp(torch.tensor([3, 4, 2]).numpy())) == 3


@pytest.mark.parametrize("widths", [(), (5,), (5, 0), (5, -1, 2), (5, 2.0), (5, True), (5, "3"), (5, None)])
def test_bad_widths(widths):
    with pytest.raises(ValueError, match="at least two whole numbers"):
        mlp(widths)


def test_parameters_by_hand():
    assert count_parameters(mlp(PAPER)) == 1_154_010
    assert count_parameters(mlp(PAPER[::-1])) == 1_154_784
    assert count_parameters(nn.Conv2d(3, 8, 5)) == 8 * (3 * 25 + 1)
    assert count_parameters(nn.BatchNorm1d(7)) == 14  # running statistics are no parameters
    assert count_parameters(nn.ReLU()) == 0


def test_frozen_and_tied_parameters():
    net = mlp((4, 3, 2))
    net[0].weight.requires_grad_(False)
    assert count_parameters(net) == 4 * 3 + 3 + 3 * 2 + 2
    assert count_parameters(net, trainable_only=True) == 3 + 3 * 2 + 2
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    assert count_parameters(tied) == 9


def test_macs_by_hand():
    assert count_macs(mlp(PAPER), (1, 784)) == 1_152_000
    assert count_macs(mlp(PAPER), (5, 784)) == 5 * 1_152_000
    assert count_macs(nn.Conv2d(3, 8, 3, padding=1), (1, 3, 28, 28)) == 28 * 28 * 8 * 3 * 9
    assert count_macs(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4), (2, 4, 8, 8)) == 2 * 4 * 4 * 8 * 9
    assert count_macs(nn.ReLU(), (1, 5)) == 0
    assert count_macs(mlp((4, 2)).double(), (1, 4)) == 8


def test_macs_leave_the_network_as_it_was():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    net.train()
    net[2].eval()
    modes, state = [m.training for m in net.modules()], {k: v.clone() for k, v in net.state_dict().items()}
    assert count_macs(net, (1, 4)) == 16
    assert [m.training for m in net.modules()] == modes == [True, True, True, False]
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_macs_put_the_modes_back_when_the_shape_does_not_fit():
    net = mlp((4, 2)).train()
    with pytest.raises(RuntimeError):
        count_macs(net, (1, 5))
    assert net.training and net[0].training


@pytest.mark.parametrize("shape", [(), (784,), (1, 0), (1, -4), (1, 4.0)])
def test_bad_input_shape(shape):
    with pytest.raises(ValueError, match="batch axis"):
        count_macs(mlp((4, 2)), shape)


# ---- MobileNetV3-Small: the network -----------------------------------------------------------

FEATURES_FILE = "mobilenet_v3_small_features_tv_IMAGENET1K_V1.pt"


def stirred(network, seed=0):
    """Fill BatchNorm's statistics and weights with numbers, so that a layer left out or swapped shows."""
    generator = torch.Generator().manual_seed(seed)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.running_mean, part.bias.data):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
            for tensor in (part.running_var, part.weight.data):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return network


@pytest.fixture(scope="module")
def whole():
    """torchvision's network with its classifier, in eval mode."""
    torch.manual_seed(0)
    return stirred(models.mobilenet_v3_small()).eval()


def as_bytes(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def features_only(network):
    """The form of the shared file: the features as the first part of a Sequential."""
    return {f"0.{k}": v for k, v in network.features.state_dict().items()}


@pytest.fixture
def file(tmp_path):
    def write(state, name="weights.pt"):
        path = tmp_path / name
        path.write_bytes(state if isinstance(state, bytes) else as_bytes(state))
        return path

    return write


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def state_of(network):
    return {k: v.clone() for k, v in network.state_dict().items()}


@pytest.mark.parametrize("side", [(28, 28), (64, 64), (65, 40)])
def test_features_are_torchvisions_bit_for_bit(whole, file, side):
    net = mobilenet_v3_small(file(whole.state_dict())).eval()
    x = torch.randn(3, 3, *side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = whole.avgpool(whole.features(x)).flatten(1)
        assert torch.equal(net(x), expected)
        assert torch.equal(whole.classifier(net(x)), whole(x))
    assert expected.std() > 0.01 and net(x).shape == (3, net.n_features) == (3, 576)


def test_random_start_is_torchvisions_under_the_same_seed():
    torch.manual_seed(5)
    expected = models.mobilenet_v3_small().features.state_dict()
    torch.manual_seed(5)
    net = mobilenet_v3_small(None)
    assert same(net.features.state_dict(), expected)
    assert (net.source, net.sha256, net.n_frozen) == ("random initialisation", "", 0)
    torch.manual_seed(6)
    assert not torch.equal(mobilenet_v3_small(None).features[0][0].weight, net.features[0][0].weight)


def test_what_follows_starts_the_same_whatever_the_weights(whole, file):
    path, after = file(whole.state_dict()), []
    for weights in (None, path):
        torch.manual_seed(3)
        mobilenet_v3_small(weights)
        after.append(torch.rand(4))
    assert torch.equal(*after)


def test_blocks_and_sizes(whole):
    net = MobileNetV3Small()
    assert len(net.blocks) == 13 and all(a is b for a, b in zip(net.blocks, net.features))
    assert [type(b).__name__ for b in net.blocks[1:12]] == ["InvertedResidual"] * 11
    assert count_parameters(net) == 927_008 and net.training
    assert count_macs(whole, (1, 3, 224, 224)) == 56_510_400
    assert count_macs(net, (1, 3, 224, 224)) == 54_896_576 == 56_510_400 - 576 * 1024 - 1024 * 1000
    assert 2 * count_macs(whole, (32, 3, 224, 224)) == 3_616_665_600


@pytest.mark.parametrize("x", [torch.zeros(2, 28, 28), torch.zeros(2, 1, 28, 28), torch.zeros(2, 28, 28, 3),
                               torch.zeros(2, 3, 28, 28, dtype=torch.uint8)])
def test_other_input_is_refused(x):
    with pytest.raises(ValueError, match=r"floats \(n, 3, h, w\).*imagenet_input"):
        MobileNetV3Small()(x)


# ---- weights ----------------------------------------------------------------------------------


def test_every_form_of_a_state_dict_gives_the_same_network(whole, file):
    full, own = whole.state_dict(), {k: v for k, v in whole.state_dict().items() if k.startswith("features.")}
    another_head = {k: v for k, v in full.items() if k != "classifier.3.weight"} | {"classifier.3.weight": torch.zeros(3, 1024)}
    for state in (full, own, features_only(whole), another_head):
        path = file(state)
        net = mobilenet_v3_small(path)
        assert same(net.state_dict(), own) and net.training
        assert net.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert net.source == f"weights.pt, SHA-256 {net.sha256[:8]}"
    assert same(mobilenet_v3_small(str(path)).state_dict(), own)
    saved = file(net.state_dict(), "again.pt")
    assert same(mobilenet_v3_small(saved).state_dict(), own)


def test_missing_keys_are_named(whole, file):
    state = features_only(whole)
    for key in ("0.4.block.0.0.weight", "0.4.block.0.1.running_mean", "0.5.block.2.fc1.bias", "0.12.1.bias"):
        del state[key]
    with pytest.raises(DataIntegrityError) as error:
        mobilenet_v3_small(file(state))
    assert "missing: 4 (features.4.block.0.0.weight, features.4.block.0.1.running_mean, features.5.block.2.fc1.bias, ...)" in str(error.value)
    assert "unexpected" not in str(error.value) and "torchvision.models.mobilenet_v3_small" in str(error.value)


def test_unexpected_keys_and_shapes_are_named(whole, file):
    state = whole.state_dict() | {"extra.weight": torch.zeros(1), "features.0.0.weight": torch.zeros(16, 1, 3, 3)}
    with pytest.raises(DataIntegrityError) as error:
        mobilenet_v3_small(file(state))
    assert "unexpected: 1 (extra.weight)" in str(error.value) and "missing" not in str(error.value)
    assert "of another shape: 1 (features.0.0.weight is (16, 1, 3, 3), not (16, 3, 3, 3))" in str(error.value)


def test_other_networks_are_refused(file):
    for other in (models.mobilenet_v3_large(), models.mobilenet_v2(), models.resnet18()):
        with pytest.raises(DataIntegrityError, match="does not fit MobileNetV3-Small"):
            mobilenet_v3_small(file(other.state_dict()))


@pytest.mark.parametrize("content", [{"epoch": 3, "state_dict": {}}, [torch.zeros(2)], torch.zeros(2), {0: torch.zeros(2)}])
def test_what_is_no_state_dict_is_refused(file, content):
    with pytest.raises(DataIntegrityError, match="holds no state dict.*checkpoint"):
        mobilenet_v3_small(file(content))


def test_not_finite_values_are_refused(whole, file):
    state = features_only(whole)
    state["0.3.block.1.1.running_var"] = torch.full_like(state["0.3.block.1.1.running_var"], torch.nan)
    with pytest.raises(DataIntegrityError, match=r"NaN or infinite values in 1 \(features.3.block.1.1.running_var\)"):
        mobilenet_v3_small(file(state))


class Trap:
    """Makes a folder when it is unpacked."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_no_pickle_is_unpacked(file, tmp_path):
    trap = Trap(tmp_path / "unpacked")
    for content in (pickle.dumps(trap, protocol=2), as_bytes({"0.0.0.weight": trap}), b"", b"not weights", as_bytes(torch.zeros(9))[:-40]):
        with pytest.raises(DataIntegrityError, match="cannot be read as weights") as error:
            mobilenet_v3_small(file(content))
        assert "weights_only" not in str(error.value), "torch advises to unpack it all the same"
        assert not (tmp_path / "unpacked").exists()


def test_no_such_file_and_other_kinds(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'imagnet'.*\"imagenet\", the path of a state dict, or None"):
        mobilenet_v3_small("imagnet")
    with pytest.raises(FileNotFoundError, match="no such file"):
        mobilenet_v3_small(tmp_path / "weights.pt")
    with pytest.raises(DataIntegrityError, match="cannot be opened"):
        mobilenet_v3_small(tmp_path)
    for weights in (3, True, b"imagenet", {}):
        with pytest.raises(TypeError, match="weights is"):
            mobilenet_v3_small(weights)


# ---- ImageNet weights: where they are found, fetched from, and what is left behind --------------


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An empty data folder and an empty torch cache; no network. Returns both folders."""
    def no_network(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(backbones, "data_folders", lambda: [tmp_path / "data", tmp_path / "cache"])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    return tmp_path / "data" / "weights", tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def official(places, whole, monkeypatch):
    """Stands for the two real files, which a test does not have: their bytes, under a name and checksum of their own."""
    full, part = as_bytes(whole.state_dict()), as_bytes(features_only(whole))
    sha256 = hashlib.sha256(full).hexdigest()[:8]
    monkeypatch.setattr(backbones, "_official", lambda: (f"http://127.0.0.1:9/net-{sha256}.pth", f"net-{sha256}.pth", sha256))
    monkeypatch.setattr(backbones, "_FEATURES_SHA256", hashlib.sha256(part).hexdigest())
    return f"net-{sha256}.pth", full, part


def put(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def files_below(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_name_and_checksum_are_torchvisions():
    url, name, sha256 = backbones._official()
    assert url == models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.url and url.endswith("/" + name)
    assert (name, sha256) == ("mobilenet_v3_small-047dcff4.pth", "047dcff4")


def test_whole_file_before_features_and_data_folder_before_cache(official, places, whole):
    name, full, part = official
    data, cache = places
    put(data, FEATURES_FILE, part)
    net = mobilenet_v3_small("imagenet", download=False)
    assert net.source == f"torchvision IMAGENET1K_V1, features only (no official hash exists), SHA-256 {net.sha256[:8]}"
    assert same(net.features.state_dict(), whole.features.state_dict())
    put(cache, name, full)
    net = mobilenet_v3_small(download=False)
    assert net.source.startswith("torchvision IMAGENET1K_V1, whole file, SHA-256 ") and net.sha256 == hashlib.sha256(full).hexdigest()
    put(data, name, b"damaged")
    with pytest.raises(DataIntegrityError, match="truncated, altered or another file"):
        mobilenet_v3_small(download=False)


def test_altered_files_are_refused(official, places):
    name, full, part = official
    for file_name, content in ((name, full), (FEATURES_FILE, part)):
        for bad in (content[:-1], content[:500] + bytes([content[500] ^ 1]) + content[501:]):
            put(places[0], file_name, bad)
            with pytest.raises(DataIntegrityError, match="expected SHA-256") as error:
                mobilenet_v3_small("imagenet")
            assert hashlib.sha256(bad).hexdigest() in str(error.value)
        (places[0] / file_name).unlink()


def assert_told(error, places, reason):
    text = str(error.value)
    for part in ("mobilenet_v3_small-047dcff4.pth is not at hand", reason, FEATURES_FILE, str(places[0]), str(places[1]), "weights=None",
                 models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.url):
        assert part in text, part


def test_without_network_the_error_says_what_to_do(places, tmp_path):
    with pytest.raises(DataUnavailableError) as error:
        mobilenet_v3_small("imagenet")
    assert_told(error, places, "no network in this test")
    with pytest.raises(DataUnavailableError) as error:
        mobilenet_v3_small("imagenet", download=False)
    assert_told(error, places, "download=False")
    assert files_below(tmp_path) == []
    assert isinstance(mobilenet_v3_small(None), MobileNetV3Small)


def test_a_network_that_hangs_is_given_up(places, monkeypatch):
    released, no_socket = threading.Event(), None
    monkeypatch.setattr(socket, "create_connection", lambda *args, **kwargs: released.wait(60) and no_socket)
    monkeypatch.setattr(backbones, "_CONNECT_SECONDS", 0.2)
    try:
        with pytest.raises(DataUnavailableError) as error:
            mobilenet_v3_small("imagenet")
        assert not released.is_set()
        assert_told(error, places, "no answer within 0.2 s")
    finally:
        released.set()


@pytest.fixture
def server(monkeypatch, official):
    """A web server on this machine in place of torchvision's; `serve(body, length)` says what it sends."""
    sent = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            sent["path"] = self.path
            self.send_response(sent["status"])
            self.send_header("Content-Length", str(sent["length"]))
            self.end_headers()
            self.wfile.write(sent["body"])

        def log_message(self, *args):
            pass

    monkeypatch.undo()   # the network is needed here
    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()

    def serve(body, length=None, status=200):
        sent.update(body=body, length=len(body) if length is None else length, status=status)
        return f"http://127.0.0.1:{http.server_port}/models/{official[0]}"

    yield serve
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture
def fetch(server, official, tmp_path, monkeypatch):
    """Loads "imagenet" from the server, with empty folders; a proxy of the machine is passed by."""
    def load(*args, **kwargs):
        name, full, _ = official
        url = server(*args, **kwargs)
        monkeypatch.setattr(backbones, "_official", lambda: (url, name, hashlib.sha256(full).hexdigest()[:8]))
        return mobilenet_v3_small("imagenet")

    monkeypatch.setattr(backbones, "data_folders", lambda: [tmp_path / "data"])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return load


def test_download_is_checked_cached_and_used_again(fetch, official, tmp_path, monkeypatch, whole):
    name, full, _ = official
    net = fetch(full)
    assert same(net.features.state_dict(), whole.features.state_dict()) and "whole file" in net.source
    assert (tmp_path / "torch" / "hub" / "checkpoints" / name).read_bytes() == full
    assert files_below(tmp_path) == [name]
    monkeypatch.setattr(backbones, "_fetch_weights", None)   # a second download would fail
    assert mobilenet_v3_small("imagenet").sha256 == net.sha256


def test_bad_downloads_leave_nothing_behind(fetch, official, tmp_path):
    full = official[1]
    with pytest.raises(DataUnavailableError, match="IncompleteRead"):
        fetch(full[:1000], length=len(full))          # the connection breaks off
    with pytest.raises(DataUnavailableError, match="what came has SHA-256"):
        fetch(full[:-1])                              # it ends early and says so
    with pytest.raises(DataUnavailableError, match="HTTP Error 404"):
        fetch(b"", status=404)
    assert files_below(tmp_path) == []


def test_an_interrupt_while_writing_leaves_nothing_behind(fetch, official, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(official[1])
    assert files_below(tmp_path) == []


def test_a_cache_that_cannot_be_written(fetch, official, tmp_path):
    (tmp_path / "torch").write_text("a file where the folder should be")
    with pytest.raises(DataUnavailableError, match="cannot write"):
        fetch(official[1])


def test_the_real_file():
    """The features of the shared folder: the file named in the docs, and torchvision's own reading of it."""
    found = [p for folder in data_folders() if (p := folder / "weights" / FEATURES_FILE).exists()]
    if not found:
        pytest.skip(f"weights/{FEATURES_FILE} is in none of the data folders (BC_CLUST_DATA)")
    state, sha256 = backbones._read_weights(found[0])
    assert sha256 == "282d4d1d3f1887c0af9f9259f7e46133d6d7cb2a7a6110c6251a73b046de300d" == backbones._FEATURES_SHA256
    net, theirs = mobilenet_v3_small(found[0]).eval(), models.mobilenet_v3_small().eval()
    report = theirs.load_state_dict({f"features.{k.removeprefix('0.')}": v for k, v in state.items()}, strict=False)
    assert report.missing_keys == [f"classifier.{i}.{kind}" for i in (0, 3) for kind in ("weight", "bias")]
    assert report.unexpected_keys == []
    x = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(net(x), theirs.avgpool(theirs.features(x)).flatten(1))
    assert net(x).std() > 0.1


# ---- input ------------------------------------------------------------------------------------


def test_input_against_torchvisions_normalize():
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    expected = normalize(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, IMAGENET_MEAN, IMAGENET_STD)
    out = imagenet_input(images)
    assert out.shape == (4, 3, 6, 5) and out.dtype == torch.float32 and torch.equal(out, expected)
    preset = models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.transforms()
    assert (list(IMAGENET_MEAN), list(IMAGENET_STD)) == (preset.mean, preset.std)


def test_grey_is_repeated_and_the_input_is_not_changed():
    images = np.random.default_rng(1).integers(0, 256, (3, 7, 5), dtype=np.uint8)
    before = images.copy()
    out = imagenet_input(images)
    assert torch.equal(out, imagenet_input(np.repeat(images[..., None], 3, axis=3)))
    assert np.array_equal(images, before)
    floats = torch.from_numpy(images) / 255
    kept = floats.clone()
    assert torch.equal(imagenet_input(floats), out) and torch.equal(floats, kept)
    assert torch.equal(imagenet_input(floats.double()), out) and imagenet_input(floats.double()).dtype == torch.float32
    black = imagenet_input(np.zeros((1, 2, 2), np.uint8))[0, :, 0, 0]
    assert torch.allclose(black, torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))


@pytest.mark.parametrize("side, size", [(28, 64), (64, 28), (40, 40)])
def test_input_of_a_size(side, size):
    """As torchvision resizes tensors, smoothed where they shrink; the colours are the caller's, uint8 or float."""
    images = np.random.default_rng(2).integers(0, 256, (3, side, side), dtype=np.uint8)
    expected = resize(torch.from_numpy(images)[:, None].float() / 255, [size, size], antialias=True)
    out = imagenet_input(images, size)
    assert out.shape == (3, 3, size, size)
    assert torch.allclose(out, normalize(expected.repeat(1, 3, 1, 1), IMAGENET_MEAN, IMAGENET_STD), atol=1e-5)
    assert torch.equal(imagenet_input(torch.from_numpy(images) / 255, size), out)


def test_a_size_does_not_squash():
    images = np.zeros((2, 30, 40), np.uint8)
    with pytest.raises(ValueError, match="30 by 40 pixels.*pad or crop"):
        imagenet_input(images, 224)
    assert imagenet_input(images).shape == (2, 3, 30, 40)


@pytest.mark.parametrize("images", [np.zeros((4, 4), np.uint8), np.zeros((2, 4, 4, 1), np.uint8), np.zeros((2, 3, 4, 4), np.uint8),
                                    np.zeros((1, 2, 4, 4, 3), np.uint8)])
def test_input_of_another_shape(images):
    with pytest.raises(ValueError, match=r"give \(n, h, w\) for grey"):
        imagenet_input(images)


@pytest.mark.parametrize("dtype", [np.int64, np.int16, bool])
def test_input_of_another_dtype(dtype):
    with pytest.raises(ValueError, match="give uint8, or floats"):
        imagenet_input(np.zeros((2, 4, 4), dtype))


@pytest.mark.gpu
def test_on_the_gpu(whole, file):
    images = torch.randint(0, 256, (4, 64, 64), dtype=torch.uint8)
    x = imagenet_input(images.cuda())
    assert x.is_cuda and torch.allclose(x.cpu(), imagenet_input(images))
    net = mobilenet_v3_small(file(whole.state_dict())).eval()
    with torch.no_grad():
        on_cpu = net(imagenet_input(images))
        assert torch.allclose(net.cuda()(x).cpu(), on_cpu, atol=2e-3 * float(on_cpu.abs().max()))


# ---- freezing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 3, 12, 13])
def test_a_training_step_moves_the_last_blocks_only(k):
    torch.manual_seed(0)
    net = stirred(MobileNetV3Small())
    head = nn.Linear(net.n_features, 4)
    model = nn.Sequential(net, head)
    parameters = net.freeze_except_last(k)
    assert [id(p) for p in parameters] == [id(p) for b in net.blocks[13 - k:] for p in b.parameters()]
    assert net.n_frozen == 13 - k
    optimiser = torch.optim.SGD([*parameters, *head.parameters()], lr=0.1)
    before = state_of(net)
    for _ in range(2):
        model.train()
        optimiser.zero_grad()
        model(torch.randn(8, 3, 64, 64)).square().mean().backward()
        optimiser.step()
    moved = {name for name, v in net.state_dict().items() if not torch.equal(v, before[name])}
    assert {int(name.split(".")[1]) for name in moved} == set(range(13 - k, 13))
    if k:
        assert {name.rsplit(".", 1)[1] for name in moved} == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def test_frozen_blocks_stay_in_eval_mode_through_a_parent():
    net = MobileNetV3Small()
    net.freeze_except_last(2)
    parent = nn.ModuleDict({"backbone": net})
    for mode in (True, False, True):
        assert parent.train(mode) is parent and net.training is mode
        assert not any(m.training for b in net.blocks[:11] for m in b.modules())
        assert all(m.training is mode for b in net.blocks[11:] for m in b.modules())
    parent.eval()
    assert not any(m.training for m in parent.modules())


def test_freezing_can_be_changed_and_undone():
    net = MobileNetV3Small()
    assert net.freeze_except_last(0) == [] and count_parameters(net, trainable_only=True) == 0
    assert net.training and not any(m.training for b in net.blocks for m in b.modules()), "at once, before any call of train"
    assert len(net.freeze_except_last(13)) == len(list(net.parameters()))
    assert all(m.training for m in net.modules()), "unfrozen blocks take the mode of the network"
    net.eval()
    net.freeze_except_last(5)
    assert not any(m.training for m in net.modules())
    assert len(net.freeze_except_last(np.int64(3))) < len(net.freeze_except_last(4))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_stays_frozen(copied):
    net = MobileNetV3Small()
    net.freeze_except_last(1)
    other = copied(net).train()
    assert other.n_frozen == 12 and not any(m.training for b in other.blocks[:12] for m in b.modules())
    assert count_parameters(other, trainable_only=True) == count_parameters(net.blocks[12])


def test_counting_does_not_thaw():
    net = MobileNetV3Small().train()
    net.freeze_except_last(2)
    modes = [m.training for m in net.modules()]
    count_macs(net, (1, 3, 32, 32))
    assert [m.training for m in net.modules()] == modes


@pytest.mark.parametrize("k", [-1, 14, 1.0, True, None, "3"])
def test_bad_number_of_blocks(k):
    net = MobileNetV3Small()
    with pytest.raises(ValueError, match="whole number from 0 to 13"):
        net.freeze_except_last(k)
    assert net.n_frozen == 0 and count_parameters(net, trainable_only=True) == 927_008


def torchvision_twin(net, name):
    "torchvision's network with the weights of `net`, its classifier taken off."
    twin = getattr(models, name)()
    twin.fc = nn.Identity()
    names = {"conv1.": "stem.0.", "bn1.": "stem.1.", **{f"layer{i + 1}.": f"blocks.{i}." for i in range(4)}}
    state = net.state_dict()
    twin.load_state_dict({old + key[len(new):]: value for old, new in names.items() for key, value in state.items() if key.startswith(new)})
    return twin


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_resnet_with_the_photo_stem_is_torchvisions(name):
    torch.manual_seed(0)
    net = ResNet(name, 3, "photo")
    twin, x = torchvision_twin(net, name), torch.rand(2, 3, 64, 64)
    for mode in (True, False):   # in training mode as well, where BatchNorm takes the statistics of the batch
        assert torch.allclose(net.train(mode)(x), twin.train(mode)(x), atol=1e-5)
    assert len(net.state_dict()) == len(twin.state_dict())


@pytest.mark.parametrize("name, n_features, n_parameters, macs", [
    ("resnet18", 512, 11_167_680, 554_237_952), ("resnet50", 2048, 23_499_200, 1_296_629_760)])
def test_resnet_with_the_small_stem(name, n_features, n_parameters, macs):
    net = ResNet(name)
    assert net.n_features == n_features and count_parameters(net) == n_parameters
    assert count_macs(net, (1, 1, 32, 32)) == macs
    x = torch.rand(2, 1, 32, 32)
    assert net.feature_map(x).shape == (2, n_features, 4, 4)
    assert torch.allclose(net.eval()(x), nn.AdaptiveAvgPool2d(1)(net.feature_map(x)).flatten(1), atol=1e-6)


def test_the_small_stem_keeps_every_pixel_and_starts_like_the_other_convolutions():
    torch.manual_seed(0)
    net = ResNet("resnet18")
    assert net.stem(torch.rand(1, 1, 32, 32)).shape == (1, 64, 32, 32)
    assert net.stem[0].weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


@pytest.mark.parametrize("settings, word", [(dict(name="resnet51"), "resnet51"), (dict(in_channels=2), "in_channels"),
                                            (dict(stem="tiny"), "stem"), (dict(name=50), "resnet50")])
def test_resnet_refuses_what_it_does_not_know(settings, word):
    with pytest.raises(ValueError, match=word):
        ResNet(**settings)
