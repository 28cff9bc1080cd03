"""Write the files that follow from settings.ini and from nbs/index.ipynb: `make sync` runs this.

README.md is the home page's notebook as Markdown; nbs/nbdev.yml, CITATION.cff and the addresses of
the repository in prose follow from settings.ini. `derived()` returns what each file should hold,
so that a test can compare it with what it does hold.
"""
import json
import re
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INDEX = Path("nbs/index.ipynb")
README = Path("README.md")
NOTE = "<!-- Made from nbs/index.ipynb by `make sync`: change that notebook, not this file. -->\n\n"

NBDEV_YML = """project:
  output-dir: {doc_path}

website:
  title: "{title}"
  site-url: "{doc_host}{doc_baseurl}"
  description: "{description}"
  repo-branch: {branch}
  repo-url: "{git_url}"
"""


def settings(root=ROOT):
    """Return settings.ini as a dictionary, with `%(user)s` and the like filled in."""
    parser = ConfigParser()
    parser.read(root / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def with_account(text, cfg):
    """Point every address of the repository and of its site at the account in settings.ini."""
    repo = re.escape(cfg["repo"])
    text = re.sub(rf"https://github\.com/[\w.-]+/{repo}\b", cfg["git_url"], text)
    return re.sub(rf"https://[\w-]+\.github\.io/{repo}\b", cfg["doc_host"] + cfg["doc_baseurl"], text)


def citation(text, cfg):
    """Set version and addresses in the text of CITATION.cff."""
    values = {
        "version": cfg["version"],
        "repository-code": f'"{cfg["git_url"]}"',
        "url": f'"{cfg["doc_host"]}{cfg["doc_baseurl"]}"',
    }
    for key, value in values.items():
        text = re.sub(rf"^{key}: .*$", f"{key}: {value}", text, flags=re.MULTILINE)
    return text


def _fence(text, language=""):
    return f"```{language}\n{text.rstrip()}\n```"


def _output(output):
    """Return one stored output as Markdown; a picture belongs in nbs/images instead."""
    data = output.get("data", {})
    if output["output_type"] == "stream":
        return _fence("".join(output["text"]))
    if "text/markdown" in data:
        return "".join(data["text/markdown"]).rstrip()
    if any(key.startswith("image/") for key in data):
        raise ValueError(f"{INDEX}: README.md cannot hold a picture stored in an output. "
                         "Write it to nbs/images/ and show it as ![alt text](images/name.png).")
    return _fence("".join(data["text/plain"]))


def _code_cell(cell):
    source = "".join(cell["source"])
    directives = re.findall(r"^#\|\s*(.+?)\s*$", source, flags=re.MULTILINE)
    if "hide" in directives or "include: false" in directives:
        return []
    shown = re.sub(r"^#\|.*\n?", "", source, flags=re.MULTILINE).strip()
    blocks = [] if "echo: false" in directives or not shown else [_fence(shown, "python")]
    return blocks + [_output(output) for output in cell["outputs"]]


def readme(notebook):
    """Return README.md for the home page's notebook (a dictionary, as nbformat stores it).

    Markdown cells stand as they are, code cells as fenced blocks followed by their outputs. Links
    to a notebook or a picture gain the folder `nbs/`, because README.md lies one folder higher.
    """
    blocks = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            blocks.append("".join(cell["source"]).strip())
        elif cell["cell_type"] == "code":
            blocks.extend(_code_cell(cell))
    text = "\n\n".join(block for block in blocks if block)
    text = re.sub(r"\]\((?=[\w-]+\.ipynb|images/)", "](nbs/", text)
    text = text.replace('src="images/', 'src="nbs/images/')
    return NOTE + text + "\n"


def _notebook_with_account(text, cfg):
    """Change addresses in the sources of a notebook and leave its outputs alone."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if with_account(source, cfg) != source:
            cell["source"] = with_account(source, cfg).splitlines(keepends=True)
    return json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def derived(root=ROOT):
    """Return path -> text for every file that follows from settings.ini and the home page."""
    cfg = settings(root)
    files = {Path("nbs/nbdev.yml"): NBDEV_YML.format(**cfg)}
    files[Path("CITATION.cff")] = citation((root / "CITATION.cff").read_text(encoding="utf-8"), cfg)
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        files[Path(name)] = with_account((root / name).read_text(encoding="utf-8"), cfg)
    for path in sorted((root / "nbs").glob("[!_]*.ipynb")):
        text = path.read_text(encoding="utf-8")
        if with_account(text, cfg) != text:
            text = _notebook_with_account(text, cfg)
        files[path.relative_to(root)] = text
    files[README] = readme(json.loads(files[INDEX]))
    return files


if __name__ == "__main__":
    for path, text in derived().items():
        target = ROOT / path
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8", newline="\n")
            print(f"wrote {path.as_posix()}")
