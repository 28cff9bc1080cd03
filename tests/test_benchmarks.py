"""The benchmarks on tiny data: what they record, and that both sides did the same work. No time is judged."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
N, BATCHES = 260, 2  # the second batch holds four images: two steps an epoch for little more than the price of one


@pytest.fixture(autouse=True, scope="module")
def the_scripts_folder():
    sys.path.insert(0, str(FOLDER))  # as when a script in it is run
    yield
    sys.path.remove(str(FOLDER))


def run_script(name, *words):
    return subprocess.run([sys.executable, FOLDER / f"{name}.py", *map(str, words)], capture_output=True, text=True)


# ---- IDEC beside ClustPy ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def versus(tmp_path_factory, the_scripts_folder):
    pytest.importorskip("clustpy.deep", reason="ClustPy is an extra: pip install -e '.[oracles]'")
    import idec_vs_clustpy
    from bc_clust.data import phantom

    path = tmp_path_factory.mktemp("benchmarks") / "deep" / "versus.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(idec_vs_clustpy, "load_or_phantom", lambda name: phantom(n=N, task="binary-class"))
        idec_vs_clustpy.main(["--repeats", "2", "--epochs", "3", "--out", str(path)])
    return path


def test_versus_records_three_rows_and_where_they_were_measured(versus):
    record = json.loads(versus.read_text("utf-8"))
    assert record["name"] == "idec_vs_clustpy" and record["options"]["epochs"] == 3
    assert record["data"]["shape"] == [N, 784] and len(record["data"]["sha256"]) == 64
    assert record["environment"]["threads"] == 1 and record["environment"]["device"] == "cpu"
    assert {"processor", "python", "torch", "numpy", "clustpy", "bc_clust"} <= record["environment"].keys()
    assert [row["settings"].get("precision") for row in record["rows"]] == ["float32", "float32", "bfloat16"]
    assert [row["settings"].get("graph_weight") for row in record["rows"]] == [0.0, None, 0.0]
    assert len(record["code"]) == 12 and len(record["date"]) == 10 and record["notes"]
    assert list(versus.parent.iterdir()) == [versus]


def test_versus_both_sides_did_the_same_work(versus):
    for row in json.loads(versus.read_text("utf-8"))["rows"]:
        assert [run["first"] for run in row["runs"]] == ["clustpy", "bc_clust"]
        for run in row["runs"]:
            ours, theirs = run["bc_clust"], run["clustpy"]
            assert ours["steps"] == theirs["steps"] == [3 * BATCHES, 3 * BATCHES]
            assert ours["parameters"] == theirs["parameters"] == 2_308_794
            assert 0 < ours["reconstruction_error"] < 200 and 0 < theirs["reconstruction_error"] < 200


def test_versus_ratios_and_seconds_follow_from_the_raw_timings(versus):
    for row in json.loads(versus.read_text("utf-8"))["rows"]:
        for run in row["runs"]:
            for part, ratio in run["ratio"].items():
                assert ratio == run["clustpy"][part] / run["bc_clust"][part]
            for side in ("clustpy", "bc_clust"):
                for part, ends in zip(("phase1", "phase2"), run[side]["epoch_ends"]):
                    assert ends == sorted(ends) and len(ends) == 3 and ends[-1] <= run[side]["whole"]
                    assert run[side][part] == pytest.approx((ends[2] - ends[0]) / 2, abs=2e-6)


def test_versus_table(versus):
    from tables import table

    shown, record = table(versus), json.loads(versus.read_text("utf-8"))
    assert len(shown) == 9 and shown.map(lambda cell: isinstance(cell, str)).all(axis=None)
    assert list(shown["steps (ClustPy, bc_clust)"][:3]) == ["6, 6", "6, 6", "12, 12"]
    ratios = [run["ratio"]["phase2"] for run in record["rows"][1]["runs"]]
    assert shown["ratio (median)"][4] == f"{np.median(ratios):.2f}"
    assert shown["ratio (range)"][4] == f"{min(ratios):.2f} to {max(ratios):.2f}"


@pytest.mark.parametrize("words, message", [(["--epochs", "1"], "at least 2"), (["--repeats", "many"], "at least 1"),
                                            (["--device", "abacus"], "abacus")])
def test_versus_refuses_wrong_options(words, message, tmp_path, capsys):
    import idec_vs_clustpy

    with pytest.raises(SystemExit, match="2"):
        idec_vs_clustpy.main([*words, "--out", str(tmp_path / "a.json")])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_versus_says_what_is_missing_without_clustpy(tmp_path, monkeypatch):
    import idec_vs_clustpy

    monkeypatch.setitem(sys.modules, "clustpy.deep", None)
    with pytest.raises(SystemExit, match=r"pip install -e '\.\[oracles\]'"):
        idec_vs_clustpy.main(["--out", str(tmp_path / "a.json")])
    assert not list(tmp_path.iterdir())


# ---- growth with the number of images ---------------------------------------------------------


@pytest.fixture(scope="module")
def scaling(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmarks") / "scaling.json"
    done = run_script("idec_scaling", "--sizes", N, 20, "--epochs", 2, "--out", path)
    assert done.returncode == 0, done.stderr
    return path, done.stdout


def test_scaling_records_every_part_of_the_fit(scaling):
    import idec_scaling

    record = json.loads(scaling[0].read_text("utf-8"))
    assert record["options"]["sizes"] == [20, N] == [row["n"] for row in record["rows"]] and record["options"]["give_back_mib"] == 1
    for row, batches in zip(record["rows"], (1, BATCHES)):
        assert row["data_bytes"] == row["n"] * 784
        assert row["epochs"] == idec_scaling.FEWEST_STEPS // batches
        for phase in ("phase1", "phase2"):
            assert row[phase]["steps"] == idec_scaling.FEWEST_STEPS and len(row[phase]["ends"]) == row["epochs"]
            assert 0 < row[phase]["optimizer_per_epoch"] < row[phase]["seconds_per_epoch"]
        inside = row["phase1"]["ends"][-1] + row["kmeans"]["seconds"]
        assert row["graph_exact"]["seconds"] < row["phase1"]["ends"][0] and inside < row["phase2"]["ends"][0] < row["fit"]
        assert row["graph_exact"]["edges"] >= 5 * row["n"] / 2
        assert min(row["gflops"].values()) > 0
        assert row["extra_bytes"] is None or row["extra_bytes"] > 4 * 2_308_794 * 4  # weights, gradients, Adam's two means


def test_scaling_recall_and_its_absence(scaling):
    from importlib.util import find_spec

    rows = json.loads(scaling[0].read_text("utf-8"))["rows"]
    if find_spec("pynndescent") is None:
        assert all(row["graph_approximate"] is None for row in rows) and "not installed" in scaling[1]
    else:
        assert all(0.5 < row["graph_approximate"]["recall"] <= 1 for row in rows)


def test_scaling_approximate_graph_is_compared_with_the_exact_one(monkeypatch):
    import idec_scaling

    exact, asked = torch.tensor([[0, 0, 1, 2], [1, 2, 3, 3]]), []

    def three_of_four(x, n_neighbors, method):
        asked.append((len(x), n_neighbors, method))
        return torch.tensor([[0, 1, 2, 0], [1, 3, 3, 3]])

    monkeypatch.setattr(idec_scaling.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(idec_scaling.idec, "neighbour_graph", three_of_four)
    found = idec_scaling.approximate(np.zeros((4, 2), np.uint8), 2, exact)
    assert found["recall"] == 0.75 and found["edges"] == 4
    assert asked == [(4, 2, "approximate")] * 2  # the first call compiles and is not timed
    monkeypatch.setattr(idec_scaling.importlib.util, "find_spec", lambda name: None)
    assert idec_scaling.approximate(np.zeros((4, 2), np.uint8), 2, exact) is None


def test_scaling_table(scaling):
    from tables import slope, table

    shown, rows = table(scaling[0]), json.loads(scaling[0].read_text("utf-8"))["rows"]
    assert list(shown["n"]) == ["20", "260", "slope, all n", "slope, two largest n"]
    assert shown.map(lambda cell: isinstance(cell, str)).all(axis=None)
    expected = slope([20, N], [row["phase1"]["seconds_per_epoch"] for row in rows])
    assert shown["phase 1, s an epoch"][2] == f"{expected:.2f}"
    assert all("phase 1: " in words and "the paper's epochs waits for" in words for words in shown["limited by"][:2])


def test_scaling_counts_the_operations():
    import idec_scaling
    from bc_clust.idec import IDEC

    model = IDEC(2, hidden_dims=(3,), latent_dim=2, pretrain_epochs=0, max_epochs=0, device="cpu", random_state=0,
                 graph_weight=0, pretrain_graph_weight=0).fit(np.random.default_rng(0).random((10, 5)))
    forward = 5 * 3 + 3 * 2 + 2 * 3 + 3 * 5
    step = forward + forward + (forward - 5 * 3)  # forward, gradient of weights, gradient of inputs but the images'
    assert idec_scaling.flop(model, 10, 5) == {"phase1": 2 * 10 * step, "phase2": 2 * 10 * (step + 5 * 3 + 3 * 2),
                                               "graph": 2 * 10 * 10 * 5}


def test_scaling_writes_nothing_where_a_size_fails(tmp_path, monkeypatch):
    import idec_scaling

    monkeypatch.setattr(idec_scaling.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, -9, ""))
    with pytest.raises(SystemExit, match="300 images ended with status -9"):
        idec_scaling.main(["--sizes", "300", "--out", str(tmp_path / "a.json")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mib, threshold", [(0, None), (1, "1048576"), (8, "8388608")])
def test_scaling_tells_the_c_library_what_to_give_back(mib, threshold, monkeypatch):
    import idec_scaling

    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    seen = []
    monkeypatch.setattr(idec_scaling.subprocess, "run",
                        lambda *a, env, **k: seen.append(env) or subprocess.CompletedProcess(a, 0, "{}"))
    assert idec_scaling.in_fresh_process("images.npy", 300, 2, 1, mib) == {}
    assert seen[0].get("MALLOC_MMAP_THRESHOLD_") == threshold


# ---- what ArcFace costs -----------------------------------------------------------------------

COST_N, COST_STEPS = 40, 2  # 32 images and 8


@pytest.fixture(scope="module")
def small():
    from bc_clust.data import phantom

    return phantom(n=50, size=32, random_state=0)


@pytest.fixture(scope="module")
def cost(tmp_path_factory, the_scripts_folder, small):
    import arcface_cost

    def here(file, side, device, threads):
        with np.load(file, allow_pickle=False) as data:
            return arcface_cost.memory(side, data["X"], data["y"], device)

    path, threads = tmp_path_factory.mktemp("benchmarks") / "deep" / "arcface_cost_cpu.json", torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arcface_cost, "load_or_phantom", lambda name, size: small)
        patch.setattr(arcface_cost, "in_fresh_process", here)  # a process of its own is tested below, once
        arcface_cost.main(["--repeats", "2", "--head-epochs", "3", "--finetune-epochs", "2", "--n", str(COST_N), "--out", str(path)])
    torch.set_num_threads(threads)
    return path


def cost_parts(path):
    return {row["part"]: row for row in json.loads(path.read_text("utf-8"))["rows"]}


def test_cost_records_four_parts_and_where_they_were_measured(cost, small):
    record = json.loads(cost.read_text("utf-8"))
    assert record["name"] == "arcface_cost_cpu" and list(cost_parts(cost)) == ["features", "phase1", "phase2", "memory"]
    assert record["options"] == {"repeats": 2, "head_epochs": 3, "finetune_epochs": 2, "n": COST_N, "batch_size": 32,
                                 "feature_batch_size": 32, "device": "cpu"}
    assert record["data"] == {"name": "phantom", "source": small.source, "sha256": small.sha256, "shape": [COST_N, 32, 32]}
    assert record["environment"]["threads"] == 1 and record["environment"]["device"] == "cpu"
    assert {"processor", "python", "torch", "torchvision", "pillow", "bc_clust"} <= record["environment"].keys()
    assert record["host"]["processor"] == record["environment"]["processor"] and record["notes"]
    assert record["features_difference"] < 1e-4 and min(record["gflops"].values()) > 0
    assert len(record["code"]) == 12 and list(cost.parent.iterdir()) == [cost]


def test_cost_counts_the_operations(cost):
    macs = json.loads(cost.read_text("utf-8"))["macs"]
    assert macs["head"] == 576 * 256 + 256 * 64 and macs["whole"] == macs["backbone"] + macs["head"] + 64 * 3
    assert 1e6 < macs["backbone"] < 3e6  # of 32 pixels; 224 pixels take 49 times as many where the layers are convolutions


@pytest.mark.parametrize("part, epochs, parameters", [("phase1", 3, 147_712 + 16_448 + 192), ("phase2", 2, None)])
def test_cost_both_sides_did_the_same_work(cost, part, epochs, parameters):
    from bc_clust.backbones import mobilenet_v3_small

    if parameters is None:  # the last three blocks too
        parameters = 147_712 + 16_448 + 192 + sum(p.numel() for p in mobilenet_v3_small(None).freeze_except_last(3))
    for run in cost_parts(cost)[part]["runs"]:
        assert set(run["sides"]) == {"plain float32", "bc_clust float32", "bc_clust bfloat16"}
        for found in run["sides"].values():
            assert found["steps"] == epochs * COST_STEPS and found["parameters"] == parameters
            ends = found["ends"]
            assert ends == sorted(ends) and len(ends) == epochs and ends[-1] <= found["whole"] and 0 < found["loss"] < 20
            assert found["seconds_per_epoch"] == pytest.approx((ends[-1] - ends[0]) / (epochs - 1), abs=2e-6)


def test_cost_sides_take_turns_and_ratios_follow_from_the_raw_numbers(cost):
    for part, row in cost_parts(cost).items():
        plain_bfloat16 = "plain bfloat16" if part == "features" else "plain float32"
        assert row["beside"] == {"bc_clust float32": "plain float32", "bc_clust bfloat16": plain_bfloat16}
        first, second = row["runs"]
        assert second["order"] == first["order"][1:] + first["order"][:1] and set(first["order"]) == set(first["sides"])
        for run in row["runs"]:
            for ours, ratios in run["ratio"].items():
                plain, mine = run["sides"][row["beside"][ours]], run["sides"][ours]
                for quantity, ratio in ratios.items():
                    if part == "memory":  # so small a fit may take nothing that can be seen
                        assert ratio is None or ratio == plain[quantity] / mine[quantity]
                    else:
                        assert ratio == plain[quantity] / mine[quantity] > 0


def test_cost_ratio_of_memory_is_left_out_where_a_number_is_missing_or_zero():
    import arcface_cost

    bytes_of = {"plain float32": 300, "bc_clust float32": 200, "bc_clust bfloat16": 0}
    row = arcface_cost.compare("memory", lambda side, repeat: {"extra_bytes": bytes_of[side], "gpu_bytes": None}, 1,
                               say=lambda *a, **k: None)
    assert row["runs"][0]["ratio"] == {"bc_clust float32": {"extra_bytes": 1.5, "gpu_bytes": None},
                                       "bc_clust bfloat16": {"extra_bytes": None, "gpu_bytes": None}}


def test_cost_refuses_sides_that_train_different_numbers_of_parameters():
    import arcface_cost

    with pytest.raises(RuntimeError, match="other numbers of parameters in phase1"):
        arcface_cost.compare("phase1", lambda side, repeat: {"parameters": len(side)}, 1)


def test_cost_refuses_features_that_differ(small, monkeypatch):
    import arcface_cost

    X, y = arcface_cost.spread(small.images, small.labels, 20)
    assert arcface_cost.difference(X, y, "cpu") < 1e-4
    monkeypatch.setattr(arcface_cost, "IMAGENET_MEAN", (0.4, 0.4, 0.4))  # the plain side only
    with pytest.raises(RuntimeError, match="features of the two sides differ"):
        arcface_cost.difference(X, y, "cpu")


def test_cost_the_plain_way_trains_what_arcface_trains(small):
    import arcface_cost

    X, y = arcface_cost.spread(small.images, small.labels, 40)
    ours, plain = (arcface_cost.settings("x float32", X, "cpu", finetune_epochs=1) for _ in range(2))
    plain, start = (arcface_cost.PlainWay(plain, 3) for _ in range(2))
    ours.fit(X, y), plain.fit(X, y)
    before, after = start.backbone.state_dict(), plain.backbone.state_dict()
    first = ours.backbone_.state_dict()
    assert before.keys() == after.keys() == first.keys()
    for key in after:  # what ArcFace left as it was, its BatchNorm too, is what the plain way left, and from the same start
        assert torch.equal(before[key], first[key]) == torch.equal(before[key], after[key]), key
    assert not torch.equal(before["features.10.block.0.0.weight"], after["features.10.block.0.0.weight"])
    assert torch.equal(before["features.9.block.0.1.running_mean"], after["features.9.block.0.1.running_mean"])
    assert not torch.equal(start.vectors.W, plain.vectors.W)
    torch.testing.assert_close(plain.weight.cpu(), torch.tensor(40 / (3 * np.bincount(y)), dtype=torch.float32))


def test_cost_the_plain_way_changes_images_in_phase_2_only(small):
    import arcface_cost
    from bc_clust.backbones import imagenet_input

    X, y = small.images[:8], np.arange(8) % 3
    plain = arcface_cost.PlainWay(arcface_cost.settings("plain float32", X, "cpu"), 3)
    still, moved = (next(iter(plain.loader(X, y, shuffle=False, augment=augment)))[0] for augment in (False, True))
    torch.testing.assert_close(still, imagenet_input(X))
    assert moved.shape == (8, 3, 32, 32) and (moved - still).abs().flatten(1).amax(1).min() > 0.05
    grey = moved * torch.tensor(arcface_cost.IMAGENET_STD)[:, None, None] + torch.tensor(arcface_cost.IMAGENET_MEAN)[:, None, None]
    torch.testing.assert_close(grey[:, 0], grey[:, 2])  # the three channels change together
    asked, loader = [], plain.loader
    plain.loader = lambda X, y, shuffle, augment=False: asked.append((shuffle, augment)) or loader(X, y, shuffle, augment)
    plain.fit(X, y)
    assert asked == [(True, False), (True, True)]


@pytest.mark.parametrize("epochs", [dict(head_epochs=3), dict(finetune_epochs=1)])
def test_cost_the_plain_way_ends_where_arcface_ends(small, epochs):
    import arcface_cost

    X, y = arcface_cost.spread(small.images, small.labels, 30)  # one batch, so that the order of the images is no matter
    ours = arcface_cost.settings("x float32", X, "cpu", **epochs).set_params(dropout=0.0, augment=False)
    plain = arcface_cost.PlainWay(ours, 3).fit(X, y)
    ours.fit(X, y)
    assert plain.loss == pytest.approx(ours.history_["loss"].iloc[-1], rel=1e-5)
    for theirs, mine in ((plain.head, ours.head_), (plain.vectors, ours.vectors_)):
        for key, value in mine.state_dict().items():
            torch.testing.assert_close(theirs.state_dict()[key], value, atol=2e-6, rtol=0, msg=key)


def test_cost_states_the_batches_in_which_features_are_computed(monkeypatch):
    import arcface_cost
    from bc_clust.data import phantom

    images, sizes = phantom(n=70, size=32, random_state=0), []
    transform = arcface_cost.extractor("bc_clust float32", images.images, images.labels, "cpu")
    monkeypatch.setattr(arcface_cost.ArcFace, "_backbone",
                        lambda self, batch: sizes.append(len(batch)) or self.backbone_(batch[:, None].expand(-1, 3, -1, -1)))
    assert transform(images.images).shape == (70, 576) and sizes == [arcface_cost.MAP_BATCH] * (70 // arcface_cost.MAP_BATCH) + [70 % arcface_cost.MAP_BATCH]


def test_cost_takes_images_from_the_whole_set():
    import arcface_cost

    X, y = arcface_cost.spread(np.arange(100), np.repeat([0, 1], 50), 20)
    assert X[0] == 0 and X[-1] == 99 and np.unique(X).size == 20 and np.bincount(y).tolist() == [10, 10]
    few = arcface_cost.warm_part(np.arange(780), np.arange(780))[0]
    assert len(few) == 32 + 12 and len(few) % 32 == 780 % 32


def test_cost_memory_comes_from_a_process_of_its_own(small, tmp_path):
    import arcface_cost

    file = tmp_path / "images.npz"
    np.savez(file, X=small.images[:40], y=np.arange(40) % 3)
    found = arcface_cost.in_fresh_process(file, "plain float32", "cpu", 1)
    assert found["data_bytes"] == 40 * 32 * 32 and found["gpu_bytes"] is None and found["extra_how"] and found["loss"] > 0


def test_cost_writes_nothing_where_a_process_fails(small, tmp_path, monkeypatch):
    import arcface_cost

    def killed(command, **kwargs):
        return subprocess.CompletedProcess(command, -9, "")

    monkeypatch.setattr(arcface_cost, "load_or_phantom", lambda name, size: small)
    monkeypatch.setattr(arcface_cost, "difference", lambda *a: 0.0)
    monkeypatch.setattr(arcface_cost, "timed_features", lambda *a: {"seconds": 1.0})
    monkeypatch.setattr(arcface_cost, "timed_phase", lambda *a, **k: {"whole": 1.0, "seconds_per_epoch": 1.0})
    monkeypatch.setattr(arcface_cost.subprocess, "run", killed)
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit, match="memory of plain float32 ended with status -9"):
        arcface_cost.main(["--out", str(tmp_path / "a.json")])
    torch.set_num_threads(threads)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words, message", [
    (["--head-epochs", "1"], "at least 2"), (["--n", "33"], "would hold one image"), (["--n", "51"], "the set has 50 images"),
    (["--n", "5"], "at least 20"), (["--device", "auto"], "auto"),
    pytest.param(["--device", "cuda"], "not available", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU"))])
def test_cost_refuses_wrong_options(words, message, small, tmp_path, capsys, monkeypatch):
    import arcface_cost

    monkeypatch.setattr(arcface_cost, "load_or_phantom", lambda name, size: small)
    with pytest.raises(SystemExit, match="2"):
        arcface_cost.main([*words, "--out", str(tmp_path / "a.json")])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_cost_table_says_not_run_without_a_record_of_a_gpu(cost):
    from tables import table

    shown, parts = table(cost), cost_parts(cost)
    assert shown.map(lambda cell: isinstance(cell, str)).all(axis=None)
    assert (shown.filter(like="GPU, ") == "not run").all(axis=None) and shown.filter(like="GPU, ").shape == (18, 4)
    line = shown.set_index(["what", "bc_clust in"]).loc[("phase 1, 3 epochs, images a second", "bfloat16")]
    assert line["images"] == "40" and line["plain way in"] == "float32"
    ours = np.median([run["sides"]["bc_clust bfloat16"]["whole"] for run in parts["phase1"]["runs"]])
    assert float(line["CPU, bc_clust"].replace(",", "")) == pytest.approx(40 * 3 / ours, rel=0.006)
    ratios = [run["ratio"]["bc_clust bfloat16"]["whole"] for run in parts["phase1"]["runs"]]
    assert line["CPU, ratio (median)"] == f"{np.median(ratios):.2f}"
    assert line["CPU, ratio (range)"] == f"{min(ratios):.2f} to {max(ratios):.2f}"
    gpu = shown[shown["what"] == "memory of a fit on the GPU, MiB"]
    assert len(gpu) == 2 and (gpu.filter(like="CPU, ") == "-").all(axis=None)


def test_cost_table_puts_a_gpu_beside_the_cpu_where_the_work_is_the_same(cost, tmp_path):
    from tables import table

    record = json.loads(cost.read_text("utf-8"))
    (tmp_path / "arcface_cost_cpu.json").write_text(json.dumps(record))
    record.update(name="arcface_cost_cuda", options={**record["options"], "finetune_epochs": 9})
    for run in record["rows"][0]["runs"]:
        run["sides"]["bc_clust float32"]["seconds"] = 0.5
    (tmp_path / "arcface_cost_cuda.json").write_text(json.dumps(record))
    from_cpu, from_gpu = (table(tmp_path / f"arcface_cost_{device}.json") for device in ("cpu", "cuda"))
    pd.testing.assert_frame_equal(from_cpu, from_gpu)
    assert len(from_cpu) == 18 and not (from_cpu == "not run").any(axis=None)
    assert from_cpu["GPU, bc_clust"][0] == "80.0" and from_cpu["CPU, plain way"][0] == from_cpu["GPU, plain way"][0]

    record["options"]["head_epochs"] = 7  # another phase 1: a line of its own
    (tmp_path / "arcface_cost_cuda.json").write_text(json.dumps(record))
    shown = table(tmp_path / "arcface_cost_cpu.json").set_index(["what", "bc_clust in"])
    assert shown.loc[("phase 1, 3 epochs, s", "float32"), "GPU, bc_clust"] == "not run"
    assert shown.loc[("phase 1, 7 epochs, s", "float32"), "CPU, bc_clust"] == "not run"

    (tmp_path / "arcface_cost_cuda.json").write_text("[]")
    with pytest.raises(ValueError, match="arcface_cost_cuda.json is no record"):
        table(tmp_path / "arcface_cost_cpu.json")


def test_cost_share_of_the_matrix_rate():
    from tables import feature_rate_percent

    record = {"macs": {"backbone": 5e9}, "options": {"n": 10}, "gflops": {"float32": 100.0, "bfloat16": 400.0}}
    assert feature_rate_percent(2.0, "plain float32", record) == pytest.approx(50)  # 100 GFLOP in 2 s
    assert feature_rate_percent(2.0, "bc_clust bfloat16", record) == pytest.approx(12.5)


# ---- what both share --------------------------------------------------------------------------


def train(phases, steps):
    for _ in range(phases):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        for _ in range(steps):
            weight.grad = torch.ones(3)
            optimizer.step()


def test_the_clock_counts_steps_of_each_phase_and_lets_go():
    from measure import StepClock

    with StepClock(steps_per_epoch=4, epochs=3) as clock:
        train(phases=2, steps=12)
    train(phases=1, steps=5)  # outside: not seen
    first, second = clock.phases()
    assert first["steps"] == second["steps"] == 12
    assert len(first["ends"]) == 3 and first["ends"][-1] <= second["ends"][0] <= clock.seconds
    assert first["parameters"] == second["parameters"] == 3


@pytest.mark.parametrize("phases, steps, seen", [(1, 12, r"\[12\]"), (2, 11, r"\[11, 11\]"), (3, 12, r"\[12, 12, 12\]")])
def test_the_clock_refuses_other_work(phases, steps, seen):
    from measure import StepClock

    with StepClock(steps_per_epoch=4, epochs=3) as clock:
        train(phases, steps)
    with pytest.raises(RuntimeError, match=f"expected 2 optimisers of 12 steps each, saw steps {seen}"):
        clock.phases()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_extra_memory_is_that_of_the_block():
    from measure import PeakMemory

    before = np.ones(2 ** 24, np.uint8)  # freed before the block: neither hides nor adds to what the block takes
    del before
    with PeakMemory() as memory:
        np.ones(2 ** 25, np.uint8)
    assert memory.extra == pytest.approx(2 ** 25, abs=2 ** 21)  # the kernel counts pages in lots


def test_shares_of_a_phase_add_up():
    from tables import shares

    row = {"phase1": {"seconds_per_epoch": 2.0, "optimizer_per_epoch": 0.5, "flop": 100e9}, "gflops": {"float32": 100.0}}
    assert shares(row, "phase1") == {"matrix products": 0.5, "Adam": 0.25, "the rest": 0.25}


def test_slope_is_the_power_of_n():
    from tables import slope

    assert slope([10, 100, 1000], [3.0, 300.0, 30_000.0]) == pytest.approx(2)
    assert slope([10, 100], [1.0, None]) is None and slope([10], [1.0]) is None and slope([10, 20], [0.0, 1.0]) is None


@pytest.mark.parametrize("text", ["{}", "[]", '{"name": "idec_scaling", "format": 2}'])
def test_a_foreign_file_is_refused(text, tmp_path):
    from tables import table

    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is no record of idec_vs_clustpy or idec_scaling"):
        table(path)


# --- simclr_vs_lightly ------------------------------------------------------------------------

@pytest.fixture(scope="module")
def pretraining(tmp_path_factory):
    pytest.importorskip("lightly.transforms", reason="lightly is an extra: pip install -e '.[oracles]'")
    import simclr_vs_lightly
    from bc_clust.data import phantom

    path, threads = tmp_path_factory.mktemp("benchmarks") / "views.json", torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simclr_vs_lightly, "load_or_phantom", lambda name, size: phantom(n=20, size=32))
        patch.setattr(simclr_vs_lightly, "BATCH", 4)
        patch.setattr(simclr_vs_lightly, "SIDE", 16)
        patch.setattr(simclr_vs_lightly, "whole_number", lambda low: int)
        simclr_vs_lightly.main(["--backbones", "resnet18", "--n", "9", "--epochs", "3", "--repeats", "2", "--out", str(path)])
    torch.set_num_threads(threads)
    return json.loads(path.read_text("utf-8")), path


def test_views_of_both_sides_are_the_same_work(pretraining):
    record, _ = pretraining
    row, = record["rows"]
    assert record["options"]["n"] == 9 and row["macs"] > 1e8 and row["parameters"] == 11_167_104 + 576
    for run in row["runs"]:
        ours, theirs = (run["sides"][f"{name} float32"] for name in ("bc_clust", "lightly"))
        assert ours["steps"] == theirs["steps"] == 3 * 2 and theirs["parameters"] - ours["parameters"] == 1152, "9 images are two batches of 4"
        for found in run["sides"].values():
            assert found["views_per_second"] == pytest.approx(2 * 4 * 2 / found["seconds_per_epoch"], rel=1e-3)
            assert 0 < found["loss"] < 10
        assert run["ratio"]["bc_clust float32"] == theirs["seconds_per_epoch"] / ours["seconds_per_epoch"]
    first, second = (run["order"] for run in row["runs"])
    assert second == first[1:] + first[:1]


def test_views_say_where_the_time_goes(pretraining):
    from tables import table

    record, path = pretraining
    for parts in record["rows"][0]["parts"].values():
        assert list(parts) == ["views", "forward", "backward", "optimiser"] and min(parts.values()) >= 0 and parts["forward"] > 0
    shown = table(path).iloc[0]
    run = [r["ratio"]["bc_clust float32"] for r in record["rows"][0]["runs"]]
    share = sorted(6 * record["rows"][0]["macs"] * r["sides"]["bc_clust float32"]["views_per_second"] / 1e9 / r["gflops"]["float32"] for r in record["rows"][0]["runs"])
    assert shown["bc_clust, % of the matrix rate"] == f"{100 * sum(share) / 2:.0f}" and share[0] > 0, "each repeat by the rate measured before it"
    assert shown["network"] == "resnet18" and shown["ratio (median)"] == f"{sum(run) / 2:.2f}" and "forward" in shown["lightly's step"]


@pytest.mark.parametrize("path", sorted((FOLDER.parent / "results" / "benchmarks").glob("*.json")), ids=lambda p: p.stem)
def test_committed_records_make_tables(path):
    from tables import table

    found = json.loads(path.read_text("utf-8"))
    threads, mib = found["environment"]["threads"], found["options"].get("give_back_mib", 1)
    ending = ("" if threads == 1 else f"_{threads}_threads") + ("" if mib == 1 else f"_{mib}_MiB")
    assert isinstance(table(path), pd.DataFrame) and path.stem == found["name"] + ending
