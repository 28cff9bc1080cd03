"""Tables of the records that the benchmarks write. It needs pandas only, so a notebook can import it alone."""
import json
from pathlib import Path

import numpy as np
import pandas as pd

PARTS = {"phase1": "phase 1, s an epoch", "phase2": "phase 2, s an epoch", "whole": "the whole fit, s"}
COLUMNS = {  # of the scaling table: title and how to read a row of the record
    "phase 1, s an epoch": lambda r: r["phase1"]["seconds_per_epoch"],
    "phase 2, s an epoch": lambda r: r["phase2"]["seconds_per_epoch"],
    "exact graph, s": lambda r: r["graph_exact"]["seconds"],
    "approximate graph, s": lambda r: (r["graph_approximate"] or {}).get("seconds"),
    "recall": lambda r: (r["graph_approximate"] or {}).get("recall"),
    "k-means, s": lambda r: r["kmeans"]["seconds"],
    "extra memory, MiB": lambda r: None if r["extra_bytes"] is None else r["extra_bytes"] / 2 ** 20,
    "extra / data": lambda r: None if r["extra_bytes"] is None else r["extra_bytes"] / r["data_bytes"],
}
NO_SLOPE = ("recall",)


def feature_rate_percent(seconds, side, record):
    "The rate at which features were computed, as a share of the machine's rate for products of matrices in the same precision."
    flop = 2 * record["macs"]["backbone"] * record["options"]["n"]
    return 100 * flop / seconds / 1e9 / record["gflops"][side.split()[1]]


PRETRAINING = ("simclr_vs_lightly_cpu", "simclr_vs_lightly_cuda")
DEVICES = {"arcface_cost_cpu": "CPU", "arcface_cost_cuda": "GPU"}
COSTS = (  # of the table of ArcFace: part, title, quantity of the record, how to show it (from value, side and record)
    ("features", "features, images a second", "seconds", lambda v, side, r: r["options"]["n"] / v),
    ("features", "features, % of the matrix rate", "seconds", feature_rate_percent),
    ("phase1", "phase 1, {head_epochs} epochs, s", "whole", lambda v, side, r: v),
    ("phase1", "phase 1, {head_epochs} epochs, images a second", "whole",
     lambda v, side, r: r["options"]["n"] * r["options"]["head_epochs"] / v),
    ("phase1", "phase 1, a later epoch, s", "seconds_per_epoch", lambda v, side, r: v),
    ("phase2", "phase 2, s an epoch", "seconds_per_epoch", lambda v, side, r: v),
    ("phase2", "phase 2, images a second", "seconds_per_epoch", lambda v, side, r: r["options"]["n"] / v),
    ("memory", "extra memory of a fit, MiB", "extra_bytes", lambda v, side, r: v / 2 ** 20),
    ("memory", "memory of a fit on the GPU, MiB", "gpu_bytes", lambda v, side, r: v / 2 ** 20),
)


def _number(value, missing="-"):
    "Three digits, without an exponent where they can be read without."
    if value is None:
        return missing
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def table(path):
    """The table of a record that one of the scripts beside this file wrote.

    Parameters
    ----------
    path : the JSON file. One of `arcface_cost.py` is shown beside the record of the other device, where that lies in the same
        folder under its usual name.

    Returns
    -------
    DataFrame of str

    Raises
    ------
    ValueError : if the file is no record of these benchmarks
    """
    record = json.loads(Path(path).read_text("utf-8"))
    makers = {"idec_vs_clustpy": _ratios, "idec_scaling": _scaling, **dict.fromkeys(PRETRAINING, _views),
              **dict.fromkeys(DEVICES, lambda record: _costs(_both_devices(record, Path(path).parent)))}
    if not isinstance(record, dict) or record.get("name") not in makers or record.get("format") != 1:
        raise ValueError(f"{path} is no record of {' or '.join(makers)}; write one with the scripts beside this file.")
    return makers[record["name"]](record)


def _ratios(record):
    rows = []
    for row in record["rows"]:
        for part, title in PARTS.items():
            median = lambda side: np.median([run[side][part] for run in row["runs"]])
            steps = lambda side: run_steps(row["runs"], side, part)
            ratio = [run["ratio"][part] for run in row["runs"]]
            rows.append({
                "settings of bc_clust": row["row"], "part": title, "ClustPy (median)": _number(median("clustpy")),
                "bc_clust (median)": _number(median("bc_clust")), "ratio (median)": f"{np.median(ratio):.2f}",
                "ratio (range)": f"{min(ratio):.2f} to {max(ratio):.2f}", "repeats": str(len(ratio)),
                "steps (ClustPy, bc_clust)": f"{steps('clustpy')}, {steps('bc_clust')}"})
    return pd.DataFrame(rows, dtype=str)


def run_steps(runs, side, part):
    "Optimiser steps that a part took, the same in all runs (else all of them, so that it shows)."
    at = {"phase1": slice(0, 1), "phase2": slice(1, 2), "whole": slice(0, 2)}[part]
    return "/".join(str(s) for s in sorted({sum(run[side]["steps"][at]) for run in runs}))


def shares(row, phase):
    """How much of a phase's time its matrix products would take at the machine's full rate, how much Adam took, and the rest.

    The rest is everything else: the batches, ReLU and losses, and the matrix products' own lag behind the full rate.
    """
    seconds = row[phase]["seconds_per_epoch"]
    matrix = row[phase]["flop"] / 1e9 / row["gflops"]["float32"] / seconds
    adam = row[phase]["optimizer_per_epoch"] / seconds
    return {"matrix products": matrix, "Adam": adam, "the rest": max(0.0, 1 - matrix - adam)}


def _limit(row):
    "In words, from the measured shares: what limits the phases and the graph, and what a fit of the paper waits for."
    words = []
    for phase, name in (("phase1", "phase 1"), ("phase2", "phase 2")):
        part = shares(row, phase)
        words.append(f"{name}: {max(part, key=part.get)} ({', '.join(f'{k} {v:.0%}' for k, v in part.items())})")
    graph = row["graph_exact"]["flop"] / 1e9 / row["gflops"]["float64"] / row["graph_exact"]["seconds"]
    words.append(f"exact graph: {'matrix products' if graph >= .5 else 'not matrix products'} ({graph:.0%} of their float64 rate)")
    fit = {name: row[phase]["seconds_per_epoch"] * row["paper_epochs"][phase]
           for phase, name in (("phase1", "phase 1"), ("phase2", "phase 2"))}
    fit.update({"the exact graph": row["graph_exact"]["seconds"], "k-means": row["kmeans"]["seconds"]})
    longest = max(fit, key=fit.get)
    return "; ".join(words) + f"; a fit of the paper's epochs waits for {longest} ({fit[longest] / sum(fit.values()):.0%})"


def slope(n, values):
    "Slope of log(value) against log(n); None where a value is missing, not above zero, or there is one n only."
    if len(set(n)) < 2 or any(v is None or v <= 0 for v in values):
        return None
    return float(np.polyfit(np.log(n), np.log(values), 1)[0])


def _scaling(record):
    rows, titles = record["rows"], list(COLUMNS)
    n, values = [r["n"] for r in rows], {t: [read(r) for r in rows] for t, read in COLUMNS.items()}
    missing = {t: "not installed" if t in ("approximate graph, s", "recall") else "-" for t in titles}
    lines = [{"n": f"{r['n']:,}", **{t: _number(values[t][i], missing[t]) for t in titles}, "limited by": _limit(r)}
             for i, r in enumerate(rows)]
    for name, some in (("slope, all n", slice(None)), ("slope, two largest n", slice(-2, None))):
        steep = {t: None if t in NO_SLOPE else slope(n[some], values[t][some]) for t in titles}
        lines.append({"n": name, **{t: "-" if v is None else f"{v:.2f}" for t, v in steep.items()}, "limited by": "-"})
    return pd.DataFrame(lines, dtype=str)


def _both_devices(record, folder):
    "The record under the name of its device, and the other device's, where it is there; the CPU first."
    found = {record["name"]: record}
    for name in DEVICES.keys() - found.keys():
        if (folder / f"{name}.json").exists():
            other = json.loads((folder / f"{name}.json").read_text("utf-8"))
            if not isinstance(other, dict) or (other.get("name"), other.get("format")) != (name, 1):
                raise ValueError(f"{folder / name}.json is no record of {name}; write one with arcface_cost.py.")
            found[name] = other
    return {DEVICES[name]: found[name] for name in DEVICES if name in found}


def _costs(records):
    lines = {}  # what was measured -> device -> cells; other settings are another line, so nothing unlike stands side by side
    for device, record in records.items():
        for what, cells in _cost_cells(record):
            lines.setdefault(what, {})[device] = cells
    columns, rows = ("plain way", "bc_clust", "ratio (median)", "ratio (range)"), []
    for (title, images, ours, plain), found in lines.items():
        row = {"what": title, "images": images, "bc_clust in": ours, "plain way in": plain}
        for device in DEVICES.values():
            row.update({f"{device}, {c}": cell for c, cell in zip(columns, found.get(device, ["not run"] * len(columns)))})
        rows.append(row)
    return pd.DataFrame(rows, dtype=str)


def _cost_cells(record):
    "Pairs of what a line shows and its cells for this record."
    parts = {row["part"]: row for row in record["rows"]}
    for part, title, quantity, show in COSTS:
        for ours, plain in parts[part]["beside"].items():
            cells = []
            for side in (plain, ours):
                values = [run["sides"][side][quantity] for run in parts[part]["runs"]]
                cells.append("-" if None in values else _number(show(float(np.median(values)), side, record)))
            ratio = [run["ratio"][ours][quantity] for run in parts[part]["runs"]]
            cells += ["-"] * 2 if None in ratio else [f"{np.median(ratio):.2f}", f"{min(ratio):.2f} to {max(ratio):.2f}"]
            what = title.format(**record["options"]), str(record["options"]["n"]), *(side.split()[1] for side in (ours, plain))
            yield what, cells


def _views(record):
    """A line for each network and pair of sides: views a second, the ratio, and where the time of a step goes.

    The rate is that of the multiplications of the encoder, forward and twice backward, as a share of the matrix rate that was
    measured before each repeat.
    """
    rows = []
    for row in record["rows"]:
        for ours, theirs in row["beside"].items():
            side = ours.split(",")[0]
            views = [np.median([run["sides"][s]["views_per_second"] for run in row["runs"]]) for s in (theirs, side)]
            ratio = [run["ratio"][ours] for run in row["runs"]]
            rate = np.median([6 * row["macs"] * run["sides"][side]["views_per_second"] / 1e9 / run["gflops"][side.split()[1]] for run in row["runs"]])
            rows.append({"network": row["backbone"], "lightly in": theirs.split()[1], "bc_clust in": side.split()[1],
                         "lightly, views a second": _number(views[0]), "bc_clust, views a second": _number(views[1]),
                         "ratio (median)": f"{np.median(ratio):.2f}", "ratio (range)": f"{min(ratio):.2f} to {max(ratio):.2f}",
                         "lightly's step": _step(row["parts"][theirs]), "bc_clust's step": _step(row["parts"][side]),
                         "bc_clust, % of the matrix rate": f"{100 * rate:.0f}"})
    return pd.DataFrame(rows, dtype=str)


def _step(parts):
    whole = sum(parts.values())
    return ", ".join(f"{name} {seconds / whole:.0%}" for name, seconds in parts.items())
