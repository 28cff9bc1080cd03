"""Run notebooks from a fresh kernel and keep their outputs: `make notebooks` runs this.

    python tests/run_notebooks.py             # all
    python tests/run_notebooks.py 00 30_idec  # those whose names begin so

A notebook is written only when every cell ran, and then in one step, so a failure leaves the old one
as it was. Cells tagged `skip-execution` are not run. Widgets are dropped from the outputs, because
they show nothing without a running kernel.
"""
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbdev.clean import nbdev_clean

NBS = Path(__file__).resolve().parents[1] / "nbs"
WIDGET = "application/vnd.jupyter.widget-view+json"
CELL_SECONDS = 1800


def choose(names):
    """Return the notebooks whose file names begin with one of `names`, or all of them."""
    every = sorted(NBS.glob("[!_]*.ipynb"))
    unknown = [name for name in names if not any(p.name.startswith(name) for p in every)]
    if unknown:
        raise SystemExit(f"no notebook begins with {', '.join(unknown)}; there are: "
                         + ", ".join(p.stem for p in every))
    return [p for p in every if not names or p.name.startswith(tuple(names))]


def without_widgets(notebook):
    """Drop outputs that are views of a widget, and the stored state of widgets."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
    notebook.metadata.pop("widgets", None)
    return notebook


def run(path):
    """Execute one notebook in its own folder and replace it by the result, cleaned."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3", store_widget_state=False,
                            resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    part = path.with_name(f"_{path.stem}.part.ipynb")
    try:
        nbformat.write(without_widgets(notebook), part)
        nbdev_clean(str(part))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def main(names):
    """Run the chosen notebooks, print the seconds of each, return how many failed."""
    os.chdir(NBS.parent)  # nbdev_clean looks for settings.ini from here upwards
    failed = []
    for path in choose(names):
        start = time.perf_counter()
        try:
            run(path)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            failed.append(path.name)
            print(f"{path.name}: failed; the file is as it was.\n{error}", file=sys.stderr, flush=True)
        else:
            print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
