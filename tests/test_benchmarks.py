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
    assert record["options"]["sizes"] == [20, N] == [row["n"] for row in record["rows"]]
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


@pytest.mark.parametrize("path", sorted((FOLDER.parent / "results" / "benchmarks").glob("*.json")), ids=lambda p: p.stem)
def test_committed_records_make_tables(path):
    from tables import table

    assert isinstance(table(path), pd.DataFrame) and json.loads(path.read_text("utf-8"))["name"] == path.stem
