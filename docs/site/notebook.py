"""Notebooks as pages: cells, their stored outputs and pictures. Nothing is run.

What a cell's picture shows is in the cell's metadata, ``alt``. Outputs are stored anew by
``jupyter nbconvert --to notebook --execute --inplace docs/tour.ipynb``.
"""

import base64
import json
from pathlib import Path

from mkdocs.structure.files import File


class NotebookPage(File):
    """A page whose Markdown was made from a notebook, which links name by the notebook's name."""

    def is_documentation_page(self):
        return True


def on_files(files, config):
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            notebook = json.loads(Path(file.abs_src_path).read_text())
            text, pictures = as_markdown(notebook, Path(file.src_uri).stem)
            files.remove(file)
            files.append(NotebookPage.generated(config, file.src_uri, content=text))
            for name, data in pictures.items():
                uri = str(Path(file.src_uri).with_name(name))
                files.append(File.generated(config, uri, content=data))
    return files


def as_markdown(notebook, stem):
    """The notebook's Markdown, and its pictures as ``{file name: bytes}``."""
    parts, pictures = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            text = output.get("text") or data.get("text/plain", "")
            if "image/png" in data:
                name = f"{stem}_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![{cell['metadata'].get('alt', '')}]({name})")
            elif text:
                parts.append(f"```text {{ .output }}\n{''.join(text).rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures
