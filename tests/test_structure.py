"""The repository agrees with itself: notebooks, package, table of rooms, site, README, packaging.

Nothing here runs a notebook. `tests/check_notebooks.py` compares exports, `nbdev_test` runs the cells.
"""
import ast
import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import derive
import student

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").glob("[!_]*.ipynb"))
MODULES = sorted((ROOT / "bc_clust").glob("[!_]*.py"))
WIDGET = "application/vnd.jupyter.widget-view+json"
MOST_BYTES = 1_500_000
MOST_LINES = 40

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)


# ---- reading ----------------------------------------------------------------------------------


def code_cells(path):
    """Return (position, source, outputs) of the code cells; IPython's own lines left out."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(i, re.sub(r"^\s*[%!].*$", "", "".join(c["source"]), flags=re.MULTILINE), c["outputs"])
            for i, c in enumerate(cells) if c["cell_type"] == "code"]


def markdown_cells(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]


def is_exported(source):
    return re.search(r"^#\|\s*export[is]?\s*$", source, flags=re.MULTILINE) is not None


def number_of(path):
    return int(m[1]) if (m := re.match(r"(\d+)_", path.name)) else None


def module_of(path):
    names = [m[1] for _, source, _ in code_cells(path)
             if (m := re.search(r"^#\|\s*default_exp\s+(\S+)", source, flags=re.MULTILINE))]
    return names[0] if names else None


def rooms():
    """Return the table of rooms in CONTRIBUTING.md: notebook -> (module, state)."""
    row = re.compile(r"^\| `(nbs/[\w.]+)` \| (?:`(\w+)`|-) \|.*\| (built|planned) \|$", flags=re.MULTILINE)
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return {m[1]: (m[2], m[3]) for m in row.finditer(text)}


def room_numbers():
    """Return module -> number of its notebook."""
    return {module: number_of(Path(name)) for name, (module, _) in rooms().items() if module}


def imports(tree, package="bc_clust"):
    """Yield (line, top-level package, room) of every import; room is None outside bc_clust."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [package if node.level else "", node.module or ""]))
            names = [f"{base}.{alias.name}" if base == package else base for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            yield node.lineno, first, rest.partition(".")[0] if first == package and rest else None


def functions(tree):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def docstring_node(node):
    first = node.body[0] if node.body else None
    has = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return first if has else None


def body_lines(node):
    """Count the lines of a function's body, its docstring left out."""
    body = node.body[1:] if docstring_node(node) else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def lines_of_code(source):
    """Count a cell's lines, leaving out blank lines, comments, docstrings and signatures."""
    tree = ast.parse(source)
    left_out = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            left_out.update(range(node.lineno, node.body[0].lineno))
            if doc := docstring_node(node):
                left_out.update(range(doc.lineno, doc.end_lineno + 1))
    return sum(1 for i, line in enumerate(source.splitlines(), 1)
               if i not in left_out and line.strip() and not line.lstrip().startswith("#"))


def text_of(output):
    """Return what an output says in words: pictures embedded in it are left out."""
    data = output.get("data", {})
    parts = ["".join(v) for k, v in data.items() if k.startswith("text/")] + ["".join(output.get("text", ""))]
    return re.sub(r"data:[\w/+.-]+;base64,[\w+/=\s\\]+", "", "\n".join(parts))


def has_picture(output):
    data = output.get("data", {})
    html = "".join(data.get("text/html", ""))
    return any(k.startswith("image/") for k in data) or "data:image/" in html or "<svg" in html or "<video" in html


# A path that only exists on the machine of whoever ran the notebook; not part of an address or a longer path.
MACHINE_PATH = re.compile(r"(?<![\w.:/+=~%-])/(?:home|Users|root|work|tmp|opt|mnt|content|private|var/folders)/[\w.][^\s'\",)]*"
                          r"|\b[A-Z]:\\\\?Users\\[^\s'\",)]*")


def machine_paths(text):
    return MACHINE_PATH.findall(text)


# ---- notebooks --------------------------------------------------------------------------------


def test_there_are_notebooks():
    assert NOTEBOOKS, "nbs/ holds no notebook"


@each_notebook
def test_title_cell(path):
    cell = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    lines = [line for line in "".join(cell["source"]).splitlines() if line.strip()]
    right = (cell["cell_type"] == "markdown" and len(lines) == 2
             and re.match(r"# \S", lines[0]) and re.match(r"> \S", lines[1]))
    assert right, f"{path.name}: the first cell has to be `# Title`, `> subtitle` and nothing else (nbdev drops the rest)"


@each_notebook
def test_module_is_named_in_the_first_code_cell(path):
    wanted = rooms().get(f"nbs/{path.name}", (None, None))[0]
    assert module_of(path) == wanted, f"{path.name}: exports to {module_of(path)}, CONTRIBUTING.md says {wanted}"
    if wanted:
        first = code_cells(path)[0][1]
        assert re.match(rf"#\|\s*default_exp {wanted}\s*$", first), f"{path.name}: the first code cell has to be `#| default_exp {wanted}`"


@each_notebook
def test_size_and_stored_outputs(path):
    assert path.stat().st_size < MOST_BYTES, f"{path.name} is {path.stat().st_size / 1e6:.1f} MB; 1.5 MB is the most"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in notebook["metadata"], f"{path.name} stores widgets' state: run `make notebooks`"
    for i, _, outputs in code_cells(path):
        for output in outputs:
            assert output["output_type"] != "error", f"{path.name}, cell {i} stores an error: {output.get('ename')}"
            assert WIDGET not in output.get("data", {}), (
                f"{path.name}, cell {i} stores a widget, which shows nothing without a kernel: run `make notebooks`")


@each_notebook
def test_no_path_of_a_machine(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for i, cell in enumerate(notebook["cells"]):
        texts = ["".join(cell["source"])] + [text_of(o) for o in cell.get("outputs", [])]
        found = [p for text in texts for p in machine_paths(text)]
        assert not found, f"{path.name}, cell {i} names a path of one machine: {found[0]}"


@each_notebook
def test_figures_have_caption_and_alt_text(path):
    for i, source, outputs in code_cells(path):
        if any(has_picture(o) for o in outputs):
            for option in ("fig-cap", "fig-alt"):
                assert re.search(rf"^#\|\s*{option}:\s*\S", source, flags=re.MULTILINE), (
                    f"{path.name}, cell {i} makes a figure and has no `#| {option}: ...`")


@each_notebook
def test_no_output_was_lost(path):
    """A notebook that is rebuilt and not run again keeps its prose and loses tables and pictures."""
    silent = {"update", "assert_close", "cleanup", "VBox"}   # what a last line may call and show nothing
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for i, source, outputs in code_cells(path):
        if "skip-execution" in cells[i]["metadata"].get("tags", []):
            continue
        if re.search(r"^#\|\s*fig-cap:", source, flags=re.MULTILINE):
            assert any(has_picture(o) for o in outputs), f"{path.name}, cell {i} has lost its figure: run `make notebooks`"
        last = ast.parse(source).body[-1:]
        called = {getattr(n.func, "attr", getattr(n.func, "id", "")) for node in last for n in ast.walk(node) if isinstance(n, ast.Call)}
        shows = last and isinstance(last[0], ast.Expr) and not isinstance(last[0].value, ast.Constant) and not source.rstrip().endswith(";")
        assert outputs or not shows or called & silent, f"{path.name}, cell {i} has lost what it shows: run `make notebooks`"


@each_notebook
def test_imports_stand_in_cells_of_their_own(path):
    """The documentation build runs cells with an import, so anything beside it would run too."""
    kinds = (ast.Import, ast.ImportFrom)
    for i, source, _ in code_cells(path):
        tree = ast.parse(source)
        # An exported function may import inside its body (the build runs exported cells anyway).
        found = tree.body if is_exported(source) else ast.walk(tree)
        if any(isinstance(node, kinds) for node in found):
            assert all(isinstance(node, kinds) for node in tree.body), (
                f"{path.name}, cell {i} mixes imports and other code: give the imports a cell of their own")


@each_notebook
def test_cells_are_short_and_parse_on_the_oldest_python(path):
    for i, source, _ in code_cells(path):
        ast.parse(source, feature_version=(3, 10))
        count = lines_of_code(source)
        assert count <= MOST_LINES, (f"{path.name}, cell {i}: {count} lines of code "
                                     f"(docstrings, signatures, comments left out); {MOST_LINES} is the most")


@each_notebook
def test_exercises_mark_their_solutions(path):
    begin, end = "### BEGIN SOLUTION", "### END SOLUTION"
    pairs = 0
    for i, source, _ in code_cells(path):
        marks = [line.strip() for line in source.splitlines() if line.strip() in (begin, end)]
        assert marks == [begin, end] * (len(marks) // 2), f"{path.name}, cell {i}: {begin} and {end} have to stand in pairs"
        pairs += len(marks) // 2
    if number_of(path) is not None and number_of(path) < 50:
        assert pairs, f"{path.name} has no exercise with `{begin}` ... `{end}`"


@each_notebook
def test_the_students_version_has_no_solutions(path):
    notebook = json.loads(path.read_text("utf-8"))
    pairs = sum("".join(c["source"]).count("### BEGIN SOLUTION") for c in notebook["cells"])
    assert student.without_solutions(notebook) == pairs
    codes = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    assert not any("SOLUTION" in source for source in codes) and sum(source.count("write your own code here") for source in codes) == pairs
    for source in codes:
        ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE))


def test_solutions_and_their_outputs_are_taken_out(tmp_path, capsys):
    def code(source): return {"cell_type": "code", "source": source.splitlines(True), "outputs": [{"text": "42"}], "execution_count": 1}
    body = "def f(x):\n    y = x\n    ### BEGIN SOLUTION\n    if y:\n        return 1\n    ### END SOLUTION"
    notebook = {"cells": [code("1"), code(body), code("assert f(1) == 1"), {"cell_type": "markdown", "source": ["text"]}, code("f(2)"), {"cell_type": "markdown", "source": ["**2. Next.**"]}, code("2")]}
    assert student.without_solutions(notebook) == 1
    own = "".join(notebook["cells"][1]["source"])
    assert own.startswith("def f(x):\n    y = x\n    raise NotImplementedError(") and "return" not in own
    assert [bool(c["outputs"]) for c in notebook["cells"] if c["cell_type"] == "code"] == [True, False, False, False, True]
    space = {}
    exec(own, space)
    with pytest.raises(NotImplementedError, match="your own code"):
        space["f"](1)
    student.main(str(tmp_path / "handout"), "01", "index")
    assert sorted(p.name for p in (tmp_path / "handout").iterdir()) == ["01_metrics.ipynb", "images", "index.ipynb"] and "4 solutions" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no notebook begins with 99"):
        student.main(str(tmp_path / "other"), "99")
    with pytest.raises(SystemExit, match="name another"):
        student.main(str(ROOT / "nbs"))


def test_page_names_are_unique_without_their_number():
    names = [re.sub(r"^\d+[a-zA-Z0-9]*_", "", p.stem.lower()) for p in NOTEBOOKS]
    assert len(set(names)) == len(names), f"two notebooks make the same page: {sorted(names)}"


# ---- package ----------------------------------------------------------------------------------


@each_module
def test_function_bodies_are_short(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    long = [f"{node.name} ({body_lines(node)})" for node in functions(tree) if body_lines(node) > MOST_LINES]
    assert not long, f"{path.name}: bodies of more than {MOST_LINES} lines: {', '.join(long)}"


@each_module
def test_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    top = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    inner = [node for c in top if isinstance(c, ast.ClassDef) for node in c.body
             if isinstance(node, kinds) and not node.name.startswith("_")]
    bare = [node.name for node in top + inner if not ast.get_docstring(node)]
    assert not bare, f"{path.name}: no docstring on {', '.join(bare)}"


@each_module
def test_nothing_is_left_undone(path):
    found = re.findall(r"\bTODO\b|\bFIXME\b|\bNotImplementedError\b", path.read_text(encoding="utf-8"))
    assert not found, f"{path.name} holds {', '.join(sorted(set(found)))}"


@each_module
def test_no_development_tool_is_imported(path):
    tools = {"nbdev", "fastcore", "execnb", "ghapi", "pytest", "clustpy", "nbclient", "nbconvert"}
    used = [f"{first} (line {line})" for line, first, _ in imports(ast.parse(path.read_text(encoding="utf-8"))) if first in tools]
    assert not used, f"{path.name} imports {', '.join(used)}; a user of the package does not have it"


@each_module
def test_no_pickle_is_unpacked(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    names = {first for _, first, _ in imports(tree)} & {"pickle", "dill", "cloudpickle", "shelve"}
    assert not names, f"{path.name} imports {', '.join(sorted(names))}"
    wanted = {"np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False), "torch.load": ("weights_only", True)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (rule := wanted.get(ast.unparse(node.func))):
            given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            assert given.get(rule[0]) is rule[1], f"{path.name}, line {node.lineno}: {ast.unparse(node.func)} without {rule[0]}={rule[1]}"


@each_module
def test_rooms_import_only_lower_rooms(path):
    numbers = room_numbers()
    mine = numbers.get(path.stem)
    assert mine is not None, f"{path.name} belongs to no room in CONTRIBUTING.md"
    for line, _, room in imports(ast.parse(path.read_text(encoding="utf-8"))):
        if room is None or room.startswith("_"):
            continue
        assert room in numbers, f"{path.name}, line {line} imports {room}, which is no room in CONTRIBUTING.md"
        assert numbers[room] < mine, f"{path.name} ({mine:02d}), line {line} imports {room} ({numbers[room]:02d}): only lower numbers"
        both_methods = 10 <= mine < 50 and numbers[room] >= 10
        allowed = (path.stem, room) in {("contrastive_ae", "simclr"), ("generated", "contrastive_ae")}
        assert allowed or not both_methods, f"{path.name}, line {line}: a method imports no other method ({room})"


def test_table_of_rooms_is_true():
    table = rooms()
    files = {f"nbs/{p.name}" for p in NOTEBOOKS}
    built = {name for name, (_, state) in table.items() if state == "built"}
    assert files - built == set(), f"not marked as built in CONTRIBUTING.md: {sorted(files - built)}"
    assert built - files == set(), f"CONTRIBUTING.md says built, but there is no such file: {sorted(built - files)}"
    modules = {p.stem for p in MODULES}
    exported = {table[name][0] for name in built} - {None}
    assert modules == exported, f"modules {sorted(modules)}, the table of rooms says {sorted(exported)}"


# ---- site -------------------------------------------------------------------------------------


def read_yaml(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def pages(contents):
    """Return the pages of a sidebar, its sections opened, in order."""
    return [page for item in contents
            for page in (pages(item["contents"]) if isinstance(item, dict) else [item])]


@pytest.mark.parametrize("name", [p.relative_to(ROOT).as_posix() for p in [
    *ROOT.glob("*.yml"), *ROOT.glob("nbs/*.yml"), *ROOT.glob(".github/workflows/*.yml"), ROOT / "CITATION.cff"]])
def test_yaml_parses(name):
    assert isinstance(read_yaml(name), dict)


def test_sidebar_lists_every_notebook_in_order():
    listed = pages(read_yaml("_quarto.yml")["website"]["sidebar"]["contents"])
    files = [p.name for p in NOTEBOOKS]
    assert sorted(listed) == sorted(files), (
        f"_quarto.yml, sidebar: missing {sorted(set(files) - set(listed))}, not there {sorted(set(listed) - set(files))}")
    numbered = [name for name in listed if name != "index.ipynb"]
    assert listed[0] == "index.ipynb" and numbered == sorted(numbered), f"sidebar out of order: {listed}"


def test_metadata_files_resolve_from_source_and_staging():
    names = read_yaml("nbs/_quarto.yml")["metadata-files"]
    assert names == ["nbdev.yml", "../_quarto.yml"]
    for folder in ("nbs", "_proc"):  # nbdev copies what lies in nbs/ into _proc/
        found = [(ROOT / "nbs" / n if not n.startswith("..") else ROOT / folder / n).resolve() for n in names]
        assert all(p.is_file() for p in found), f"from {folder}/: {found}"
    assert (ROOT / "nbs" / read_yaml("_quarto.yml")["format"]["html"]["css"]).is_file()


def test_quarto_stages_what_nbdev_makes():
    project = read_yaml("_quarto.yml")["project"]
    assert project == {"type": "website", "render": ["_proc/**/*.ipynb"]}
    assert "custom_quarto_yml" not in derive.settings() and derive.settings()["custom_sidebar"] == "True"
    assert not (ROOT / "nbs" / derive.settings()["readme_nb"]).exists(), "nbdev_docs would rewrite README.md"


def test_nbdev_writes_the_same_nbdev_yml():
    quarto = pytest.importorskip("nbdev.quarto")
    assert quarto._nbdev_yml == derive.NBDEV_YML


def test_one_pinned_quarto():
    pinned = derive.settings()["docs_requirements"].removeprefix("quarto-cli==")
    steps = read_yaml(".github/workflows/docs.yml")["jobs"]["site"]["steps"]
    used = [step["with"]["version"] for step in steps if "quarto" in step.get("uses", "")]
    assert used == [pinned]


# ---- README, versions, addresses --------------------------------------------------------------


DERIVED = ["README.md", "CITATION.cff", "CONTRIBUTING.md", "CHANGELOG.md", "nbs/nbdev.yml"]


def test_every_derived_file_is_compared():
    assert {p.as_posix() for p in derive.derived()} == {*DERIVED, *(f"nbs/{p.name}" for p in NOTEBOOKS)}


@pytest.mark.parametrize("name", DERIVED + [f"nbs/{p.name}" for p in NOTEBOOKS])
def test_derived_files_are_up_to_date(name):
    text = (ROOT / name).read_text(encoding="utf-8") if (ROOT / name).exists() else ""
    assert text == derive.derived()[Path(name)], f"{name} does not follow from settings.ini and nbs/index.ipynb: run `make sync`"


def test_readme_shows_outputs_and_hides_what_the_site_hides():
    notebook = {"cells": [
        {"cell_type": "markdown", "source": ["See [data](00_data.ipynb) and ![a](images/a.png)."]},
        {"cell_type": "code", "source": ["#| echo: false\n", "table()"],
         "outputs": [{"output_type": "display_data", "data": {"text/markdown": ["| a |"], "text/plain": ["no"]}}]},
        {"cell_type": "code", "source": ["#| hide\n", "secret()"], "outputs": []},
        {"cell_type": "code", "source": ["print(1)"], "outputs": [{"output_type": "stream", "text": ["1\n"]}]}]}
    assert derive.readme(notebook) == derive.NOTE + (
        "See [data](nbs/00_data.ipynb) and ![a](nbs/images/a.png).\n\n| a |\n\n```python\nprint(1)\n```\n\n```\n1\n```\n")


def test_readme_refuses_a_picture_in_an_output():
    notebook = {"cells": [{"cell_type": "code", "source": ["plot()"], "outputs": [
        {"output_type": "display_data", "data": {"image/png": "aaaa", "text/plain": ["<Figure>"]}}]}]}
    with pytest.raises(ValueError, match="Write it to nbs/images/"):
        derive.readme(notebook)


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    inside = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not t.startswith(("http", "#"))]
    missing = [t for t in inside if not (ROOT / t).exists()]
    assert inside and not missing, f"README.md links to what is not there: {missing}"
    blob = re.escape(f"{derive.settings()['git_url']}/blob/{derive.settings()['branch']}/")
    missing = [t for t in re.findall(blob + r"([\w./-]+)", text) if not (ROOT / t).exists()]
    assert not missing, f"README.md links to what is not in the repository: {missing}"


def test_readme_lists_every_notebook_with_its_minutes():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| \[[^\]]+\]\(nbs/([\w.]+)\) \| [^|]+ \| ([^|]+) \| [^|]+ \|$", text, flags=re.MULTILINE))
    files = {p.name for p in NOTEBOOKS} - {"index.ipynb"}
    assert rows.keys() == files, f"nbs/index.ipynb, table of notebooks: missing {sorted(files - rows.keys())}, not there {sorted(rows.keys() - files)}"
    vague = [name for name, minutes in rows.items() if not re.fullmatch(r"(under |about )?\d+", minutes)]
    assert not vague, f"nbs/index.ipynb: no measured minutes for {vague} (`nbdev_test --timing` prints seconds)"


def readme_example():
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return blocks[0]


def test_the_readme_example_is_ten_lines():
    lines = [line for line in readme_example().splitlines() if line.strip()]
    assert len(lines) <= 10
    assert {room for _, _, room in imports(ast.parse(readme_example())) if room} <= room_numbers().keys()


@pytest.mark.slow
def test_the_readme_example_runs_on_the_phantom(capsys):
    exec(compile(readme_example().replace('load("breastmnist")', 'load("phantom")'), "README.md", "exec"), {})
    assert "balanced_accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_the_readme_example_runs_on_breastmnist(breastmnist, capsys):
    names = {}
    exec(compile(readme_example(), "README.md", "exec"), names)
    assert names["embedding"].shape[0] == len(breastmnist) == 780
    assert "balanced_accuracy" in capsys.readouterr().out


def test_one_version():
    version = derive.settings()["version"]
    init = (ROOT / "bc_clust" / "__init__.py").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = {
        "bc_clust/__init__.py": re.search(r'__version__ = "(.+)"', init)[1],
        "CITATION.cff": str(read_yaml("CITATION.cff")["version"]),
        "CHANGELOG.md": re.search(r"^## (\S+)", changelog, flags=re.MULTILINE)[1],
    }
    assert set(found.values()) == {version}, f"settings.ini says {version}, but {found}"


WRITTEN = [p for p in [*ROOT.glob("*"), *ROOT.glob(".github/workflows/*"), *ROOT.glob(".ci/*"), *ROOT.glob("nbs/*"),
                       *ROOT.glob("tests/*.py"), *ROOT.glob("bc_clust/*.py"), *ROOT.glob("benchmarks/*")]
           if p.suffix in {".md", ".ini", ".py", ".yml", ".cff", ".txt", ".css", ".ipynb"} or p.name in {"Makefile", "run"}]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_addresses_follow_from_one_account(path):
    cfg = derive.settings()
    text = path.read_text(encoding="utf-8")
    accounts = re.findall(rf"https://github\.com/([\w.-]+)/{cfg['repo']}\b", text)
    accounts += re.findall(rf"https://([\w-]+)\.github\.io/{cfg['repo']}\b", text)
    assert set(accounts) <= {cfg["user"]}, f"{path.name} names {set(accounts)}, settings.ini {cfg['user']}: run `make sync`"


@pytest.mark.parametrize("path", [p for p in WRITTEN if p.suffix != ".ipynb"], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_path_of_a_machine_in_other_files(path):
    found = machine_paths(path.read_text(encoding="utf-8"))
    assert not found, f"{path.relative_to(ROOT)} names a path of one machine: {found[0]}"


def test_the_search_for_machine_paths_finds_them():
    slash = "/"  # spelled apart, or this file would find itself
    found = [f"see {slash}home{slash}ann/x.npz now", f"'{slash}tmp{slash}a'", f"({slash}Users{slash}b/c)", f"File {slash}root{slash}.cache/d"]
    assert all(machine_paths(text) for text in found)
    assert not any(map(machine_paths, ["https://x.org/home/ann", "~/work/a", "benign/root/x", "a/tmp/b", "/dev/null"]))


# ---- packaging --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packaging():
    """What setup.py hands to setuptools; nothing is built or installed."""
    given = {}
    before = sys.modules.get("setuptools")
    sys.modules["setuptools"] = SimpleNamespace(setup=lambda **kwargs: given.update(kwargs))
    try:
        runpy.run_path(str(ROOT / "setup.py"))
    finally:
        sys.modules.pop("setuptools")
        if before:
            sys.modules["setuptools"] = before
    return given


def requirement_names(requirements):
    return {re.match(r"[\w.-]+", r)[0].lower() for r in requirements}


def test_the_package_is_the_only_thing_packed(packaging):
    assert packaging["packages"] == ["bc_clust"]
    assert not {"package_data", "data_files", "include_package_data"} & packaging.keys()
    assert packaging["python_requires"] == ">=3.10"


def test_a_user_gets_no_development_tool(packaging):
    users = requirement_names(packaging["install_requires"])
    extras = {name: requirement_names(r) for name, r in packaging["extras_require"].items()}
    assert extras.keys() == {"notebook", "dev", "docs", "oracles", "large"}
    assert not users & set().union(*extras.values()), "asked for at run time and as an extra"
    assert extras["dev"] < extras["docs"]
    assert "clustpy" not in extras["dev"], "it needs a compiler, which the plain test command must not"


def test_every_import_of_the_package_is_required(packaging):
    other = {"sklearn": "scikit-learn", "PIL": "pillow", "IPython": "ipywidgets"}  # ipywidgets brings IPython
    required = requirement_names(packaging["install_requires"]) | {"bc_clust"}
    missing = {}
    for path in MODULES:
        for line, first, _ in imports(ast.parse(path.read_text(encoding="utf-8"))):
            if first not in sys.stdlib_module_names and other.get(first, first).lower() not in required:
                missing[f"{path.name}:{line}"] = first
    assert not missing, f"imported but not in settings.ini's requirements: {missing}"


def test_the_entry_points_exist_by_name(packaging):
    assert packaging["entry_points"] == {"console_scripts": ["bc_clust=bc_clust.cli:main"], "nbdev": ["bc_clust=bc_clust._modidx:d"]}


def test_constraints_agree_with_the_development_tools():
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    dev = derive.settings()["dev_requirements"].split()
    pins = [r for r in dev if re.match(r"(nbdev|execnb|fastcore|ghapi)\b", r)]
    assert len(pins) == 4 and set(pins) <= set(lines)
    assert "nbdev==2.4.14" in lines


def test_no_workflow_installs_nbdev_unpinned():
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in read_yaml(path.relative_to(ROOT))["jobs"].values():
            for step in job["steps"]:
                command = step.get("run", "")
                if "pip install" in command:
                    assert re.search(r'-e (\.|"\.\[[\w,]+\]")', command), f"{path.name}: {command}"
                    assert "nbdev" not in command, f"{path.name} installs nbdev by itself: {command}"
                if "uses" in step:
                    assert re.search(r"@v\d+$", step["uses"]), f"{path.name}: {step['uses']} is not pinned to a major version"
