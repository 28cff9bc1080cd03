"""Check that the notebooks and what is made from them agree; nothing in the tree is changed.

    python tests/check_notebooks.py export    # bc_clust/ is what nbdev_export writes
    python tests/check_notebooks.py clean     # nbdev_clean would change no notebook
    python tests/check_notebooks.py stage     # nbdev stages every page of the site

Each check works on a copy in a temporary folder, so work in progress is never overwritten.
"""
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("settings.ini", "_quarto.yml", "nbs", "bc_clust")


def _copy(folder):
    """Copy what nbdev reads into `folder` and return that folder."""
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "_*.ipynb")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignore)
        elif source.exists():
            shutil.copy2(source, folder / name)
    return folder


def _nbdev(code, folder):
    """Run a line of nbdev's own functions in `folder`; return its complaint, or nothing."""
    environment = {k: v for k, v in os.environ.items() if k != "IN_TEST"}  # nbdev exports nothing where this is set
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if not done.returncode:
        return ""
    # Through the worker processes one error is told many times over: name each once, the cell's source after it.
    errors = dict.fromkeys(re.findall(r"^(\w*(?:Error|Exception): .*)$", done.stdout, flags=re.MULTILINE))
    cell = done.stdout.rpartition("Exception: Error in notebook")[2].partition("\n")[2].rstrip()
    return "nbdev stopped with an error:\n" + ("\n".join([*errors, cell]) if errors else done.stdout[-4000:])


def _texts(folder, pattern):
    return {p.name: p.read_text(encoding="utf-8") for p in sorted(folder.glob(pattern))}


def _difference(have, want, name):
    lines = difflib.unified_diff(have.splitlines(), want.splitlines(), f"{name} (in the tree)",
                                 f"{name} (made anew)", lineterm="", n=1)
    return "\n".join(list(lines)[:20])


def _compare(have, want, folder, advice):
    """Say how two sets of files differ, and what to do about it."""
    differ = [name for name in sorted(have.keys() | want.keys()) if have.get(name) != want.get(name)]
    if not differ:
        return ""
    shown = [_difference(have.get(name, ""), want.get(name, ""), f"{folder}/{name}") for name in differ[:3]]
    return f"{', '.join(f'{folder}/{name}' for name in differ)}: {advice}\n" + "\n".join(shown)


def check_export(folder):
    """Export afresh and compare with the package in the tree."""
    for path in (folder / "bc_clust").glob("*.py"):
        if path.name != "__init__.py":  # nbdev only adds the version to this one
            path.unlink()
    problem = _nbdev("from nbdev.doclinks import nbdev_export; nbdev_export()", folder)
    return problem or _compare(
        _texts(ROOT / "bc_clust", "*.py"), _texts(folder / "bc_clust", "*.py"), "bc_clust",
        "differs from what the notebooks export. The notebooks are the only source: move your change there "
        "if you edited a module, then run `make sync`.")


def check_clean(folder):
    """Clean a copy of every notebook and compare."""
    before = _texts(folder / "nbs", "*.ipynb")
    torn = [name for name, text in before.items() if not _is_json(text)]
    if torn:
        return f"{', '.join(torn)}: not valid JSON (a merge conflict?); nbdev cannot read it."
    problem = _nbdev("from nbdev.clean import nbdev_clean; nbdev_clean()", folder)
    return problem or _compare(before, _texts(folder / "nbs", "*.ipynb"), "nbs",
                               "not clean (execution counts, metadata). Run `make sync`.")


def _is_json(text):
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def check_stage(folder):
    """Stage the site's source as the documentation build does, without Quarto."""
    if any(part.startswith(".") for part in folder.parts):
        return f"nbdev stages nothing below a folder that begins with a dot: {folder}. Set TMPDIR to another."
    problem = _nbdev("from nbdev.serve import proc_nbs; proc_nbs(n_workers=2)", folder)
    if problem:
        return problem
    staged = folder / "_proc"
    wanted = [p.relative_to(folder / "nbs") for p in (folder / "nbs").rglob("*") if p.is_file()]
    missing = [p.as_posix() for p in wanted if not (staged / p).is_file()]
    if missing or not wanted:
        return f"not staged for the site: {', '.join(missing) or 'everything'}"
    pages = [_page(path) for path in sorted(staged.glob("*.ipynb"))]
    untitled = [name for name, title, _ in pages if not title]
    if untitled:
        return f"{', '.join(untitled)}: no title; the first cell has to be `# Title`, then `> subtitle`."
    outputs = [output for _, _, output in pages]
    twice = sorted({o for o in outputs if outputs.count(o) > 1})
    return f"two notebooks make the page {', '.join(twice)}: change one name after the number" if twice else ""


def _page(path):
    """Return file name, title and output file of a staged notebook, from its front matter."""
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    matter = "".join(first["source"])
    field = {key: (re.search(rf"^{key}: (.+)$", matter, re.MULTILINE) or [None, ""])[1]
             for key in ("title", "output-file")}
    return path.name, field["title"], field["output-file"]


CHECKS = {"export": check_export, "clean": check_clean, "stage": check_stage}


def main(names):
    """Run the named checks; return the number that failed."""
    unknown = sorted(set(names) - CHECKS.keys())
    if unknown or not names:
        print(f"usage: python tests/check_notebooks.py {' '.join(CHECKS)}   (one or more)")
        return 2
    failed = 0
    for name in names:
        with tempfile.TemporaryDirectory() as temporary:
            problem = CHECKS[name](_copy(Path(temporary).resolve()))
        print(f"{name}: {'FAILED' if problem else 'ok'}" + (f"\n{problem}" if problem else ""), flush=True)
        failed += bool(problem)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
