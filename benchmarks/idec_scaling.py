"""How IDEC's seconds and memory grow with the number of images, each number in a fresh process.

    python benchmarks/idec_scaling.py --sizes 1000 3000 10000 30000 100000 --epochs 2 --threads 1

README.md in this folder says how to read the result.
"""
import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from bc_clust import idec
from bc_clust.backbones import count_macs
from bc_clust.data import phantom

from measure import PeakMemory, StepClock, load_average, matrix_rate, record, whole_number, write
from tables import table

SIZES = (1000, 3000, 10_000, 30_000, 100_000)
# The C library of Linux would keep freed blocks for later, and how many is chance. Blocks of this size and more are given back at
# once, so that what is measured is what the fit holds, at the price of time. 0 leaves the library as it is.
GIVE_BACK_MIB = 1
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
FEWEST_STEPS = 60  # optimiser steps a phase: with few images an epoch is too short to time two of them
WARM = 1024  # images of the fit that wakes the libraries: at least one batch of the largest size that IDEC uses


@contextmanager
def timed(owner, name, calls):
    "Time every call of a function inside the block; `calls` receives pairs of seconds and result."
    original = getattr(owner, name)

    def wrapper(*args, **kwargs):
        start = time.perf_counter()
        result = original(*args, **kwargs)
        calls.append((time.perf_counter() - start, result))
        return result

    with patch.object(owner, name, wrapper):
        yield


def flop(model, n, d):
    """Floating-point operations of the matrix products: an epoch of each phase, and the exact graph.

    A training step costs three forward passes (forward, gradient of the weights, gradient of the inputs), less the gradient of
    the images, which nobody needs. Phase 2 encodes all images once more after the epoch. The graph needs n x n inner products
    (in float64, as `bc_clust.idec.neighbour_graph` takes them).
    """
    encoder, whole = count_macs(model.network_.encoder, (1, d)), count_macs(model.network_, (1, d))
    first = count_macs(model.network_.encoder[0], (1, d))
    epoch = n * (3 * whole - first)
    return {"phase1": 2 * epoch, "phase2": 2 * (epoch + n * encoder), "graph": 2 * n * n * d}


def approximate(X, n_neighbors, exact):
    "Seconds of the approximate graph and the share of the exact graph's edges it holds; None without pynndescent."
    if importlib.util.find_spec("pynndescent") is None:
        return None
    idec.neighbour_graph(X[:WARM], n_neighbors, method="approximate")  # compiles; that is not counted
    start = time.perf_counter()
    edges = idec.neighbour_graph(X, n_neighbors, method="approximate")
    seconds = time.perf_counter() - start
    found, true = ((e[0] * len(X) + e[1]).cpu().numpy() for e in (edges, exact))
    return {"seconds": seconds, "recall": float(np.isin(true, found).mean()), "edges": int(edges.shape[1])}


def measure(X, epochs):
    "All measurements of one number of images, X uint8 (n, h, w)."
    settings = dict(n_clusters=2, stop_rule=None, precision="float32", device="cpu", random_state=0)
    idec.IDEC(pretrain_epochs=1, max_epochs=1, **settings).fit(X[:WARM])
    steps, graphs, kmeans = -(-len(X) // idec.IDEC().batch_size), [], []
    epochs = max(epochs, -(-FEWEST_STEPS // steps))
    model, clock = idec.IDEC(pretrain_epochs=epochs, max_epochs=epochs, **settings), StepClock(steps, epochs)
    with timed(idec, "neighbour_graph", graphs), timed(idec.KMeans, "fit", kmeans), PeakMemory() as memory, clock:
        model.fit(X)
    (graph_seconds, edges), = graphs
    (kmeans_seconds, _), = kmeans
    d = int(np.prod(X.shape[1:]))
    first, second = clock.phases()
    work, paper = flop(model, len(X), d), idec.IDEC()
    return {
        "n": len(X), "epochs": epochs, "fit": clock.seconds,
        "data_bytes": X.nbytes, "extra_bytes": memory.extra, "extra_how": memory.how,
        "phase1": {**first, "flop": work["phase1"]}, "phase2": {**second, "flop": work["phase2"]},
        "graph_exact": {"seconds": graph_seconds, "flop": work["graph"], "edges": int(edges.shape[1])},
        "graph_approximate": approximate(X.reshape(len(X), d), model.n_neighbors, edges),
        "kmeans": {"seconds": kmeans_seconds},
        "gflops": {"float32": matrix_rate(torch.float32), "float64": matrix_rate(torch.float64)},
        "paper_epochs": {"phase1": paper.pretrain_epochs, "phase2": paper.max_epochs}}


def child(file, n, epochs, threads):
    "Measure in this process and print the row as JSON."
    X = np.array(np.load(file, mmap_mode="r", allow_pickle=False)[:n])  # the rest of the file never gets into memory
    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        print(json.dumps(measure(X, epochs)))


def in_fresh_process(file, n, epochs, threads, give_back_mib=GIVE_BACK_MIB):
    "One row, measured by a child process that has done nothing else."
    give_back = {"MALLOC_MMAP_THRESHOLD_": str(give_back_mib * 2**20)} if give_back_mib else {}
    command = [sys.executable, __file__, "--child", str(file), "--sizes", str(n), "--epochs", str(epochs),
               "--threads", str(threads)]
    done = subprocess.run(command, env={**os.environ, **give_back, **dict.fromkeys(THREAD_VARIABLES, str(threads))},
                          stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"the measurement of {n:,} images ended with status {done.returncode} (negative: killed, often for "
                         "want of memory); nothing was written. Leave out the largest --sizes.")
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments=None):
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--sizes", type=whole_number(10), nargs="+", default=SIZES, metavar="N",
                         help=f"numbers of images (default: {' '.join(map(str, SIZES))})")
    options.add_argument("--threads", type=whole_number(1), default=1, help="threads of torch and of the graphs (default: 1)")
    options.add_argument("--epochs", type=whole_number(2), default=2,
                         help="epochs of each of the two phases, more where an epoch is short (default: 2)")
    options.add_argument("--give-back-mib", type=whole_number(0), default=GIVE_BACK_MIB, metavar="MIB",
                         help="freed blocks from this size on are given back at once; 0: as the C library decides (default: 1)")
    options.add_argument("--out", help="the JSON file (default: results/benchmarks/idec_scaling.json)")
    options.add_argument("--child", help=argparse.SUPPRESS)
    o = options.parse_args(arguments)
    if o.child:
        return child(o.child, o.sizes[0], o.epochs, o.threads)
    sizes, load, rows = sorted(set(o.sizes)), load_average(), []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npy"
        print(f"simulating {sizes[-1]:,} images")
        start = time.perf_counter()
        images = phantom(n=sizes[-1], size=28, random_state=0)
        seconds = time.perf_counter() - start
        np.save(file, images.images)
        data = {"name": images.name, "source": images.source, "sha256": images.sha256,
                "seconds_to_make": seconds}
        del images  # the children need the memory
        for n in sizes:
            print(f"{n:,} images", flush=True)
            rows.append(in_fresh_process(file, n, o.epochs, o.threads, o.give_back_mib))
    result = record("idec_scaling", idec.IDEC(), o.threads, also=("pynndescent", "numba"), load_before=load, data=data,
                    options={"sizes": sizes, "epochs": o.epochs, "give_back_mib": o.give_back_mib}, rows=rows)
    path = write(result, o.out)
    shown = table(path)
    print("\n" + shown.drop(columns="limited by").to_string(index=False) + "\n")
    print("\n".join(f"{row['n']} images. {row['limited by']}" for _, row in shown[:len(rows)].iterrows()))
    print(f"\nWritten to {path}")


if __name__ == "__main__":
    sys.exit(main())
