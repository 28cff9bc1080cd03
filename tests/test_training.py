"""Training: seeds, device, precision, files, and above all that a killed fit resumes to the same bits."""
import os
import pickle
import random
import signal
import stat
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

from bc_clust import training
from bc_clust.idec import IDEC
from bc_clust.training import (BFLOAT16, FLOAT32, CheckpointError, DeepEstimator, Phase, batches, check_number,
                               check_option, load_estimator, read_checkpoint, resolve_device, resolve_precision, save,
                               seeded, to_float, write_atomic, write_checkpoint)

SMALL = dict(n_clusters=2, hidden_dims=(16, 8), latent_dim=3, pretrain_epochs=4, max_epochs=4, batch_size=16,
             n_neighbors=3, stop_rule=None, random_state=3, device="cpu", precision="float32", n_init=2)


@pytest.fixture
def X():
    return np.random.default_rng(0).integers(0, 256, (60, 6, 6), dtype=np.uint8)


def same_fit(a, b):
    "Equal in every bit: weights, centres, labels, history."
    for name in ("network_", "centres_"):
        for key, value in getattr(a, name).state_dict().items():
            assert torch.equal(value, getattr(b, name).state_dict()[key]), key
    assert np.array_equal(a.label_path_, b.label_path_)
    assert a.history_.equals(b.history_)
    return True


# --- seeds -----------------------------------------------------------------------------------------------------

def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def test_seeded_sets_every_generator_and_restores_the_callers():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = [draws(), draws()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = draws()
    with seeded(5):
        inside = draws()
    with pytest.raises(KeyError):
        with seeded(5):
            assert draws() == inside
            raise KeyError
    assert [first, draws()] == expected


def test_fit_leaves_global_generators_alone(X):
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = draws()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    IDEC(**SMALL).fit(X)
    assert draws() == expected


def test_same_seed_same_bits_other_seed_other_weights(X):
    a, b, c = IDEC(**SMALL).fit(X), IDEC(**SMALL).fit(X), IDEC(**{**SMALL, "random_state": 4}).fit(X)
    assert same_fit(a, b)
    assert not torch.equal(a.network_.encoder[0].weight, c.network_.encoder[0].weight)


def test_random_state_none_draws_from_numpy_and_is_noted(X):
    np.random.seed(11)
    a = IDEC(**{**SMALL, "random_state": None}).fit(X)
    np.random.seed(11)
    b = IDEC(**{**SMALL, "random_state": None}).fit(X)
    again = IDEC(**{**SMALL, "random_state": a.seed_}).fit(X)
    assert a.seed_ == b.seed_ and same_fit(a, again)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "7", True])
def test_bad_random_state(X, seed):
    with pytest.raises(ValueError, match="random_state"):
        IDEC(**{**SMALL, "random_state": seed}).fit(X)


# --- device and precision ----------------------------------------------------------------------------------------

def test_device():
    assert resolve_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert resolve_device("auto").type == expected
    with pytest.raises(ValueError, match="unknown; use 'auto'"):
        resolve_device("gpu")
    with pytest.raises(ValueError, match="not available"):
        resolve_device("cuda:97")


def test_precision_table(monkeypatch):
    assert resolve_precision("float32", "cpu") is FLOAT32 and resolve_precision("bfloat16", "cpu") is BFLOAT16
    monkeypatch.setattr(training, "cpu_has_bfloat16", lambda: True)
    assert resolve_precision("auto", "cpu") is BFLOAT16
    monkeypatch.setattr(training, "cpu_has_bfloat16", lambda: False)
    assert resolve_precision("auto", "cpu") is FLOAT32 and resolve_precision("auto", "mps") is FLOAT32
    for capability, expected in [((9, 0), BFLOAT16), ((8, 0), BFLOAT16), ((7, 5), FLOAT32)]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert resolve_precision("auto", "cuda") is expected
    with pytest.raises(ValueError, match="precision='half'"):
        resolve_precision("half")


def test_bfloat16_fit_is_near_float32(X):
    a, b = IDEC(**SMALL).fit(X), IDEC(**{**SMALL, "precision": "bfloat16"}).fit(X)
    assert b.network_.encoder[0].weight.dtype == torch.float32
    loss_a, loss_b = a.history_["loss"].iloc[3], b.history_["loss"].iloc[3]
    assert loss_a != loss_b and abs(loss_a - loss_b) < 0.02 * loss_a
    assert b.transform(X).dtype == np.float32


class Convolution(DeepEstimator):
    "The smallest image method, to see channels-last memory and the contract of the base class."

    def __init__(self, epochs=2, random_state=0, device="cpu", precision="auto", verbose=False, checkpoint_dir=None,
                 resume=False):
        self.epochs, self.random_state, self.device, self.precision = epochs, random_state, device, precision
        self.verbose, self.checkpoint_dir, self.resume = verbose, checkpoint_dir, resume

    def _prepare(self, X, reset):
        return torch.from_numpy(X)[:, None]

    def _build(self):
        self.network_ = nn.Conv2d(1, 4, 3)

    def _phases(self, x, y):
        return [Phase("train", self.epochs, lambda fresh: None, lambda e: {"loss": 1.0 / (e + 1), "stop": e == 2})]

    def _embed(self, x):
        return self.network_(x).mean((2, 3))


def test_channels_last_follows_precision(X):
    for precision, expected in (("bfloat16", True), ("float32", False)):
        weight = Convolution(precision=precision).fit(X).network_.weight
        assert weight.repeat(1, 2, 1, 1).shape[1] == 2
        placed = Convolution(precision=precision)
        placed.network_ = nn.Conv2d(3, 4, 3)
        placed._settle(), placed._place()
        assert placed.network_.weight.is_contiguous(memory_format=torch.channels_last) is expected


def test_stop_ends_a_phase_and_history_has_a_row_an_epoch(X):
    fitted = Convolution(epochs=9).fit(X)
    assert fitted.history_["epoch"].tolist() == [0, 1, 2] and fitted.history_.columns.tolist() == ["phase", "epoch", "loss"]
    seen = []
    Convolution(epochs=2).fit(X, callback=lambda estimator, row: seen.append((type(estimator), row["epoch"])))
    assert seen == [(Convolution, 0), (Convolution, 1)]


def test_progress_bar_only_when_verbose(X, capsys):
    Convolution(verbose=False).fit(X)
    assert capsys.readouterr().err == ""
    Convolution(verbose=True).fit(X)
    assert "train" in capsys.readouterr().err


# --- batches -------------------------------------------------------------------------------------------------------

def test_batches_cover_everything_once():
    plain = list(batches(10, 4))
    assert [b.tolist() for b in plain] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    shuffled = torch.cat(list(batches(1000, 64, torch.Generator().manual_seed(1))))
    assert sorted(shuffled.tolist()) == list(range(1000)) and shuffled.tolist() != list(range(1000))


def test_to_float_scales_pixels_only():
    x = torch.tensor([0, 255], dtype=torch.uint8)
    assert to_float(x).tolist() == [0, 1] and x.tolist() == [0, 255]
    assert to_float(torch.tensor([0.0, 255.0], dtype=torch.float64)).tolist() == [0, 255]
    assert to_float(torch.tensor([3.0])).dtype == torch.float32


# --- settings ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("value, kwargs", [(0, dict(low=1)), (True, dict(low=0)), (float("nan"), dict(low=0)),
                                           (2.0, dict(low=1, integer=True)), (0, dict(low=0, above=True)),
                                           (1.1, dict(low=0, high=1)), ("3", dict(low=0)), (float("inf"), dict(low=0))])
def test_check_number_refuses(value, kwargs):
    with pytest.raises(ValueError, match=r"rate=.*use a "):
        check_number("rate", value, **kwargs)


def test_check_accepts():
    assert check_number("rate", np.float32(0.5), 0, 1) is None and check_number("k", np.int64(3), 2, integer=True) is None
    assert check_option("rule", None, ("a", None)) is None
    with pytest.raises(ValueError, match="rule='b' is unknown; use one of 'a', None"):
        check_option("rule", "b", ("a", None))


# --- files ---------------------------------------------------------------------------------------------------------

def test_write_atomic_keeps_the_old_file_when_interrupted(tmp_path, monkeypatch):
    target = tmp_path / "file"
    write_atomic(target, b"old")

    def torn(fd):
        raise KeyboardInterrupt
    monkeypatch.setattr(os, "fsync", torn)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(target, b"new")
    assert target.read_bytes() == b"old" and [f.name for f in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_write_atomic_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_write_atomic_names_an_unusable_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="cannot write .*Choose a folder"):
        write_atomic(tmp_path / "file" / "inside", b"x")


def test_checkpoint_round_trip_and_damage(tmp_path):
    file = tmp_path / "checkpoint.pt"
    write_checkpoint(file, {"a": torch.arange(5), "b": [1, None, "x"]})
    back = read_checkpoint(file)
    assert back["a"].tolist() == [0, 1, 2, 3, 4] and back["b"] == [1, None, "x"]
    data = file.read_bytes()
    for cut in (1, len(data) // 2, len(data) - len(training.MAGIC) - 3):
        file.write_bytes(data[:-cut])
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(file)
    altered = bytearray(data)
    altered[len(data) // 2] ^= 1
    file.write_bytes(bytes(altered))
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(file)
    for foreign in (b"", b"PK\x03\x04", b"{}"):
        file.write_bytes(foreign)
        with pytest.raises(CheckpointError, match="not a bc_clust checkpoint"):
            read_checkpoint(file)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_checkpoint_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "c", {"x": Bomb()})
    with pytest.raises(pickle.UnpicklingError):
        read_checkpoint(tmp_path / "c")
    assert not (tmp_path / "exploded").exists()


# --- resume ----------------------------------------------------------------------------------------------------------

class Cut(Exception):
    pass


@pytest.mark.parametrize("phase, epoch", [("pretrain", 0), ("pretrain", 3), ("cluster", 0), ("cluster", 2), ("cluster", 3)])
@pytest.mark.parametrize("settings", [{}, {"update_interval": 3, "loss_convention": "idec-keras"}, {"corruption": 0.2}])
def test_resumed_fit_equals_an_unbroken_one(X, tmp_path, phase, epoch, settings):
    settings = {**SMALL, **settings}

    def cut(estimator, row):
        if (row["phase"], row["epoch"]) == (phase, epoch):
            raise Cut
    broken = IDEC(**settings, checkpoint_dir=tmp_path)
    broken.checkpoint_seconds = 0
    with pytest.raises(Cut):
        broken.fit(X, callback=cut)
    resumed = IDEC(**settings, checkpoint_dir=tmp_path, resume=True).fit(X)
    assert same_fit(IDEC(**settings).fit(X), resumed)


def test_resuming_a_finished_fit_trains_nothing(X, tmp_path):
    done = IDEC(**SMALL, checkpoint_dir=tmp_path).fit(X)
    seen = []
    again = IDEC(**SMALL, checkpoint_dir=tmp_path, resume=True).fit(X, callback=lambda e, row: seen.append(row))
    assert same_fit(done, again) and seen == []


SCRIPT = """
    import sys, numpy as np, torch
    torch.set_num_threads(1)
    from bc_clust.idec import IDEC
    from bc_clust.training import save
    X = np.random.default_rng(0).integers(0, 256, (60, 6, 6), dtype=np.uint8)
    model = IDEC(**{settings!r}, checkpoint_dir={folder!r}, resume=True)
    model.checkpoint_seconds = 0
    def tell(estimator, row):
        print(row["phase"], row["epoch"], flush=True)
    save(model.fit(X, callback=tell), {out!r})
"""


def test_sigkill_at_several_points_then_resume_gives_the_same_bits(X, tmp_path):
    settings = {**SMALL, "pretrain_epochs": 40, "max_epochs": 40}
    torch.set_num_threads(1)
    whole = IDEC(**settings).fit(X)
    out = tmp_path / "model.safetensors"
    script = textwrap.dedent(SCRIPT).format(settings=settings, folder=str(tmp_path), out=str(out))
    for line in ("pretrain 3", "pretrain 39", "cluster 20"):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        for printed in process.stdout:
            if printed.strip() == line:
                break
        else:
            pytest.fail(f"the fit ended before {line!r}")
        time.sleep(0.01 * random.random())  # anywhere in the next epoch or its checkpoint
        process.kill()
        assert process.wait() in (-getattr(signal, "SIGKILL", 9), 1)
        assert not out.exists()
    last = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    assert same_fit(whole, load_estimator(out))


def test_resume_refuses_other_settings_data_and_damage(X, tmp_path):
    IDEC(**SMALL, checkpoint_dir=tmp_path).fit(X)
    with pytest.raises(CheckpointError, match="lr is '0.0005' there and '0.1' here"):
        IDEC(**{**SMALL, "lr": 0.1}, checkpoint_dir=tmp_path, resume=True).fit(X)
    with pytest.raises(CheckpointError, match="data is"):
        IDEC(**SMALL, checkpoint_dir=tmp_path, resume=True).fit(X + 1)
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="Remove it and fit again"):
        IDEC(**SMALL, checkpoint_dir=tmp_path, resume=True).fit(X)
    assert same_fit(IDEC(**SMALL, checkpoint_dir=tmp_path).fit(X), IDEC(**SMALL).fit(X))  # a plain fit starts afresh


def test_resume_needs_a_folder_and_starts_afresh_without_a_file(X, tmp_path):
    with pytest.raises(ValueError, match="resume=True needs checkpoint_dir"):
        IDEC(**SMALL, resume=True).fit(X)
    assert same_fit(IDEC(**SMALL, checkpoint_dir=tmp_path / "new", resume=True).fit(X), IDEC(**SMALL).fit(X))


def test_unwritable_checkpoint_folder(X, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="cannot write"):
        IDEC(**SMALL, checkpoint_dir=tmp_path / "file").fit(X)


# --- saving ------------------------------------------------------------------------------------------------------------

def test_save_and_load(X, tmp_path):
    model = IDEC(**SMALL).fit(X)
    save(model, tmp_path / "m.safetensors")
    back = load_estimator(tmp_path / "m.safetensors")
    assert same_fit(model, back) and back.get_params() == model.get_params()
    assert np.array_equal(back.transform(X), model.transform(X)) and np.array_equal(back.labels_, model.labels_)
    assert back.stop_epoch_ == model.stop_epoch_ and isinstance(back.hidden_dims, tuple)
    save(model, tmp_path / "half", half=True)
    assert (tmp_path / "half").stat().st_size < 0.75 * (tmp_path / "m.safetensors").stat().st_size
    np.testing.assert_allclose(load_estimator(tmp_path / "half").transform(X), model.transform(X), atol=2e-3)


def test_load_refuses_damaged_foreign_and_unknown(X, tmp_path):
    file = tmp_path / "m"
    model = IDEC(**SMALL).fit(X)
    save(model, file)
    data = file.read_bytes()
    for wrong in (data[:200], b"", b"hello world, this is no model"):
        file.write_bytes(wrong)
        with pytest.raises(CheckpointError, match="not a model that bc_clust saved"):
            load_estimator(file)
    file.write_bytes(data.replace(b'\\"class\\": \\"IDEC\\"', b'\\"class\\": \\"IDEX\\"'))
    with pytest.raises(CheckpointError, match="'IDEX', which is not known here"):
        load_estimator(file)
    save(model, file)
    other = file.read_bytes().replace(b'\\"latent_dim\\": 3', b'\\"latent_dim\\": 4')
    assert other != data
    file.write_bytes(other)
    with pytest.raises(CheckpointError, match="does not fit this version"):
        load_estimator(file)
    with pytest.raises(FileNotFoundError):
        load_estimator(tmp_path / "none")
    with pytest.raises(NotFittedError, match="call fit first"):
        save(IDEC(), file)


def test_pickle_and_clone(X):
    model = IDEC(**SMALL).fit(X)
    back = pickle.loads(pickle.dumps(model))
    assert same_fit(model, back) and np.array_equal(back.predict(X), model.labels_)
    assert not hasattr(clone(model), "history_")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_fit_agrees_with_cpu(X):
    cpu = IDEC(**{**SMALL, "max_epochs": 0}).fit(X)
    gpu = IDEC(**{**SMALL, "max_epochs": 0, "device": "cuda"}).fit(X)
    np.testing.assert_allclose(gpu.transform(X), cpu.transform(X), atol=1e-3)
    assert next(pickle.loads(pickle.dumps(gpu)).network_.parameters()).device.type == "cpu"
