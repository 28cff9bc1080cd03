"""Write the notebooks without the solutions of their exercises into a folder, to hand out: `make student` runs this.

    python tests/student.py            # all, into student/
    python tests/student.py week3 20   # those whose names begin with 20, into week3/

What stands between the two marks becomes a line that says where to write. The outputs of these cells and of their
checks go; all others stay. The checks are left as they are: they run the student's own code.
"""
import json
import re
import shutil
import sys
from pathlib import Path

NBS = Path(__file__).resolve().parents[1] / "nbs"
SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION\n.*?^[ \t]*### END SOLUTION$", re.M | re.S)
NEXT = re.compile(r"#|\*\*\d")   # a heading or another exercise: what comes is no check of this one
YOURS = r'\1raise NotImplementedError("write your own code here, in place of this line")'


def without_solutions(notebook):
    """Take the solutions out of a notebook as JSON holds it; return how many there were."""
    found, check_follows = 0, False
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            if NEXT.match("".join(cell["source"])):
                check_follows = False
            continue
        source, count = SOLUTION.subn(YOURS, "".join(cell["source"]))
        if count or check_follows:
            cell["outputs"], cell["execution_count"] = [], None
        if count:
            cell["source"] = source.splitlines(keepends=True)
        found, check_follows = found + count, bool(count) or check_follows
    return found


def main(folder="student", *names):
    """Write the notebooks whose names begin with one of `names`, or all, and the pictures beside them."""
    chosen = [p for p in sorted(NBS.glob("[!_]*.ipynb")) if not names or p.name.startswith(names)]
    if not chosen:
        raise SystemExit(f"no notebook begins with {', '.join(names)}; there are: {', '.join(p.stem for p in sorted(NBS.glob('[!_]*.ipynb')))}")
    folder = Path(folder)
    if folder.resolve() == NBS:
        raise SystemExit("this folder holds the notebooks with their solutions; name another")
    folder.mkdir(parents=True, exist_ok=True)
    for path in chosen:
        notebook = json.loads(path.read_text("utf-8"))
        count = without_solutions(notebook)
        (folder / path.name).write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(f"{folder / path.name}: {count} solutions taken out")
    shutil.copytree(NBS / "images", folder / "images", dirs_exist_ok=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
