"""Seconds of bc_clust's IDEC beside ClustPy's IDEC: same network, data, batches, epochs and threads, in one process.

    python benchmarks/idec_vs_clustpy.py --repeats 5 --epochs 30 --threads 1

README.md in this folder says how to read the result.
"""
import argparse
import contextlib
import gc
import io
import sys

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from bc_clust.backbones import count_parameters
from bc_clust.data import load_or_phantom
from bc_clust.idec import IDEC
from bc_clust.training import resolve_device

from measure import StepClock, load_average, record, synchronize, whole_number, write
from tables import table

HIDDEN, LATENT, BATCH, N_INIT = (500, 500, 1000), 10, 256, 20
PRETRAIN_LR, LR, CLUSTER_WEIGHT = 3e-4, 5e-4, 0.1
NO_GRAPH = dict(graph_weight=0.0, pretrain_graph_weight=0.0)
ROWS = {  # settings of our side; ClustPy's are the same in every row
    "float32, no graph (like for like)": dict(precision="float32", loss_convention="clustpy", **NO_GRAPH),
    "float32, the paper's settings with graph": dict(precision="float32"),
    "bfloat16, no graph": dict(precision="bfloat16", loss_convention="clustpy", **NO_GRAPH),
}
NOTES = [
    "Seconds an epoch are the mean of all epochs but the first of a phase, from optimiser step to optimiser step; "
    "the whole is the wall time of fit, start-up and k-means included.",
    "Both: the same layers with ReLU, batches of 256 shuffled anew each epoch and the smaller last batch kept, Adam, "
    "the same learning rates and loss weights, k-means from 20 starts, no augmentation, no early stop.",
    "ClustPy reads the images one by one through a DataLoader and stacks them to batches; bc_clust indexes a tensor.",
    "ClustPy runs Adam in torch's default form, bc_clust asks for the fused one; the update is the same.",
    "ClustPy reads the loss after every step, bc_clust once an epoch.",
    "ClustPy computes P from each batch, and so does bc_clust where there is no graph (loss_convention \"clustpy\"); with "
    "the paper's settings bc_clust computes P once an epoch. ClustPy's centres are float64, bc_clust's float32.",
    "bc_clust assigns all images after each epoch of phase 2, for the label path and the stop rule; ClustPy does not.",
    "At its end ClustPy runs a second k-means and encodes all images twice; its progress bars are drawn into nowhere.",
    "bc_clust runs k-means on one thread, ClustPy on as many as are allowed.",
]


def clustpy_idec(epochs, device, seed):
    "ClustPy's estimator with the network and settings of the paper."
    from clustpy.deep import IDEC as ClustpyIDEC  # imported late: a test extra
    from clustpy.deep.neural_networks import FeedforwardAutoencoder

    network = (FeedforwardAutoencoder, {"layers": [784, *HIDDEN, LATENT], "activation_fn": torch.nn.ReLU})
    return ClustpyIDEC(
        n_clusters=2, batch_size=BATCH, pretrain_optimizer_params={"lr": PRETRAIN_LR},
        clustering_optimizer_params={"lr": LR}, pretrain_epochs=epochs, clustering_epochs=epochs, neural_network=network,
        embedding_size=LATENT, clustering_loss_weight=CLUSTER_WEIGHT, ssl_loss_weight=1.0, augmentation_invariance=False,
        initial_clustering_params={"n_init": N_INIT}, device=torch.device(device), random_state=seed)


def our_idec(epochs, device, seed, settings):
    "bc_clust's estimator with the same."
    return IDEC(
        n_clusters=2, hidden_dims=HIDDEN, latent_dim=LATENT, batch_size=BATCH, pretrain_lr=PRETRAIN_LR, lr=LR,
        cluster_weight=CLUSTER_WEIGHT, pretrain_epochs=epochs, max_epochs=epochs, stop_rule=None, n_init=N_INIT,
        device=device, random_state=seed, **settings)


def trained_network(estimator):
    return estimator.network_ if isinstance(estimator, IDEC) else estimator.neural_network_trained_


def measured_fit(estimator, X, epochs, device):
    "Fit once and return the raw timings, steps, parameters and the final reconstruction error an image."
    gc.collect()
    synchronize(device)
    silent = io.StringIO()
    clock = StepClock(-(-len(X) // BATCH), epochs, device)
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent), clock:
        estimator.fit(X)
    first, second = clock.phases()
    network = trained_network(estimator)
    x = torch.from_numpy(X).to(device)
    with torch.inference_mode():
        error = (network.decoder(network.encoder(x)) - x).square().sum(1).mean().item()
    return {"phase1": first["seconds_per_epoch"], "phase2": second["seconds_per_epoch"], "whole": clock.seconds,
            "steps": [first["steps"], second["steps"]], "epoch_ends": [first["ends"], second["ends"]],
            "parameters": count_parameters(network), "reconstruction_error": round(error, 4)}


def compare(X, settings, repeats, epochs, device, say=print):
    "The runs of one row: pairs of fits, ClustPy first in every other pair."
    runs = []
    for repeat in range(repeats):
        sides = {"clustpy": clustpy_idec(epochs, device, repeat), "bc_clust": our_idec(epochs, device, repeat, settings)}
        order = list(sides) if repeat % 2 == 0 else list(sides)[::-1]
        seconds = {side: measured_fit(sides[side], X, epochs, device) for side in order}
        ratio = {part: seconds["clustpy"][part] / seconds["bc_clust"][part] for part in ("phase1", "phase2", "whole")}
        runs.append({"repeat": repeat, "first": order[0], **seconds, "ratio": ratio})
        say(f"  repeat {repeat + 1} of {repeats}: " + ", ".join(f"{k} {v:.2f}" for k, v in ratio.items()))
    return runs


def main(arguments=None):
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--threads", type=whole_number(1), default=1, help="torch threads of both sides (default: 1)")
    options.add_argument("--repeats", type=whole_number(1), default=5, help="pairs of fits a row (default: 5)")
    options.add_argument("--epochs", type=whole_number(2), default=30, help="epochs of each of the two phases (default: 30)")
    options.add_argument("--device", choices=("cpu", "cuda", "auto"), default="cpu",
                         help="where both sides train; auto: a GPU where there is one (default: cpu)")
    options.add_argument("--out", help="the JSON file (default: results/benchmarks/idec_vs_clustpy.json)")
    o = options.parse_args(arguments)
    try:
        clustpy_idec(2, "cpu", 0)
    except ImportError as error:
        raise SystemExit(f"ClustPy cannot be imported ({error}). Install it: pip install -e '.[oracles]'") from error
    try:  # not "auto" on a Mac: ClustPy does not know its GPU
        device = str(resolve_device("cpu" if o.device == "auto" and not torch.cuda.is_available() else o.device))
    except ValueError as error:
        options.error(str(error))
    load = load_average()
    images = load_or_phantom("breastmnist")
    X = np.ascontiguousarray(images.images.reshape(len(images), -1), dtype=np.float32) / np.float32(255)
    torch.set_num_threads(o.threads)
    rows, fitted = [], our_idec(2, device, 0, {}).fit(X)  # the record asks a fitted estimator for its device
    with threadpool_limits(o.threads):
        for row, settings in ROWS.items():
            print(f"{row}: one fit of each side to warm up, then {o.repeats} pairs")
            compare(X, settings, 1, 2, device, say=lambda text: None)
            rows.append({"row": row, "settings": settings, "runs": compare(X, settings, o.repeats, o.epochs, device)})
    result = record(
        "idec_vs_clustpy", fitted, o.threads, also=("clustpy",),
        options={"repeats": o.repeats, "epochs": o.epochs, "batch_size": BATCH, "device": device}, load_before=load,
        data={"name": images.name, "source": images.source, "sha256": images.sha256, "shape": list(X.shape)},
        rows=rows, notes=NOTES)
    path = write(result, o.out)
    print(f"\n{table(path).to_string(index=False)}\n\n" + "\n".join(f"- {note}" for note in NOTES) + f"\n\nWritten to {path}")


if __name__ == "__main__":
    sys.exit(main())
