"""What the benchmarks share: a clock on the optimiser, the rate of matrix products, peak memory, the record."""
import argparse
import ctypes
import gc
import json
import os
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from bc_clust.experiments import code_digest, environment, results_folder
from bc_clust.training import write_atomic

try:
    import resource
except ImportError:  # Windows
    resource = None


def whole_number(low):
    "A type for argparse: a whole number of at least `low`."
    def read(text):
        if not text.isdigit() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r}: use a whole number of at least {low}")
        return int(text)
    return read


def synchronize(device):
    "Wait until the device has done what it was given; a GPU works behind the program's back."
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


class StepClock:
    """Counts optimiser steps and reads the time after the last step of each epoch.

    It listens to every `torch.optim` optimiser while its `with` block runs, so two programs are measured the same way and
    neither is changed. Each optimiser that appears is taken as a phase. The first epoch of a phase holds start-up (first use of
    buffers, of the optimiser's state), so seconds an epoch are the mean of all later ones: from the last step of the first
    epoch to the last step of the last.

    Parameters
    ----------
    steps_per_epoch : int
    epochs : int, at least 2, the epochs that each phase must have
    device : str or torch.device
    """

    def __init__(self, steps_per_epoch, epochs, device="cpu"):
        self.steps_per_epoch, self.epochs, self.device = steps_per_epoch, epochs, device
        self._phases = {}  # optimiser -> its record; the reference keeps ids from being used again

    def __enter__(self):
        self._hooks = [register_optimizer_step_pre_hook(self._before), register_optimizer_step_post_hook(self._after)]
        self.start = time.perf_counter()
        return self

    def __exit__(self, *exception):
        synchronize(self.device)
        self.seconds = round(time.perf_counter() - self.start, 6)
        for hook in self._hooks:
            hook.remove()

    def _before(self, optimizer, args, kwargs):
        self._began = time.perf_counter()

    def _after(self, optimizer, args, kwargs):
        phase = self._phases.setdefault(optimizer, {"steps": 0, "ends": [], "optimizer": 0.0})
        if phase["ends"]:  # not in the first epoch
            phase["optimizer"] += time.perf_counter() - self._began
        phase["steps"] += 1
        if phase["steps"] % self.steps_per_epoch == 0:
            synchronize(self.device)
            phase["ends"].append(round(time.perf_counter() - self.start, 6))

    def phases(self, expected=2):
        """The phases in their order: dicts of steps, ends (seconds from the start to the end of each epoch),
        seconds_per_epoch, optimizer_per_epoch (seconds inside the optimiser's own step; of meaning on a CPU only), and
        parameters (how many numbers the optimiser was given to train).

        Raises
        ------
        RuntimeError : if another number of phases or of steps was seen, for then the times say nothing.
        """
        found, wanted = list(self._phases.values()), self.steps_per_epoch * self.epochs
        sizes = [sum(p.numel() for group in o.param_groups for p in group["params"]) for o in self._phases]
        if [p["steps"] for p in found] != [wanted] * expected:
            raise RuntimeError(f"expected {expected} optimisers of {wanted} steps each, saw steps "
                               f"{[p['steps'] for p in found]}: this is not the work that was to be timed")
        later = self.epochs - 1
        return [{"steps": p["steps"], "ends": p["ends"],
                 "seconds_per_epoch": round((p["ends"][-1] - p["ends"][0]) / later, 6),
                 "optimizer_per_epoch": round(p["optimizer"] / later, 6), "parameters": size} for p, size in zip(found, sizes)]


def _rate(work, operations, seconds, device):
    "GFLOP/s of a piece of work, the best of many."
    synchronize(device)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        work()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return operations / best / 1e9


def matrix_rate(dtype, side=2048, seconds=1.0, device="cpu"):
    "GFLOP/s of torch's product of two square matrices of a dtype, on a GPU or on as many threads as torch has now: the best of many."
    a, b, out = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(3))
    return _rate(lambda: torch.mm(a, b, out=out), 2 * side ** 3, seconds, device)


def convolution_rate(dtype, n=64, channels=256, side=16, seconds=1.0, device="cpu"):
    """GFLOP/s of a large 3 x 3 convolution in channels-last memory, measured as `matrix_rate` does.

    It is a product of matrices, too, but not always by the same library: on some processors torch computes it more than
    twice as fast as `torch.mm` in float32. So it is the nearer ceiling for a network of convolutions.
    """
    x, w = (torch.ones(*shape, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
            for shape in ((n, channels, side, side), (channels, channels, 3, 3)))
    return _rate(lambda: torch.conv2d(x, w, padding=1), 2 * n * side ** 2 * channels ** 2 * 9, seconds, device)


def _status(field):
    "A field of /proc/self/status in bytes."
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _highest():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class PeakMemory:
    """The most memory that a `with` block adds to the process: `extra` in bytes (None where it cannot be read), `how`.

    Freed memory is handed back to the system first, where the C library can do that; else the block would get it for nothing.
    """

    def __enter__(self):
        gc.collect()
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            pass  # not glibc
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the mark of the highest memory starts anew
            self._base, self._read, self.how = _status("VmRSS"), lambda: _status("VmHWM"), "VmHWM, reset before the block"
        except OSError:
            # Without the reset an earlier peak would be charged to the block or hide it: count from that peak.
            self._read, self.how = (_highest, "growth of ru_maxrss") if resource else (None, "not available here")
            self._base = _highest() if resource else None
        return self

    def __exit__(self, *exception):
        self.extra = self._read() - self._base if self._read else None


def installed(name):
    "Version of a package, or None."
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def record(name, estimator, threads, also=(), **parts):
    "What every record begins with (versions, machine, date, digest of the estimator's code), then `parts`."
    machine = environment(estimator, threads)
    machine.pop("precision")  # a setting of the rows
    machine.update({package: installed(package) for package in also}, cores=os.cpu_count())
    return {"format": 1, "name": name, "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "code": code_digest(estimator), "environment": machine, **parts}


def load_average():
    "Processes that wanted to run in the last minute, before the benchmark adds its own; None on Windows."
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def write(record, out):
    "Write the record as JSON, whole or not at all, and return its path."
    path = Path(out) if out else results_folder() / "benchmarks" / f"{record['name']}.json"
    write_atomic(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return path
