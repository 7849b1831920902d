"""Takes out of executed notebooks what differs from run to run and says nothing.

That is timings, random cell ids and the interpreter's version.
"""

import sys

import nbformat


def tidy(path: str) -> None:
    """Rewrites the notebook at `path`; lines printed one after another become one output."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.language_info = {"name": "python"}
    for number, cell in enumerate(notebook.cells, 1):
        cell.id = f"cell-{number}"
        cell.metadata.pop("execution", None)
        outputs: list[nbformat.NotebookNode] = []
        for output in cell.get("outputs", []):
            if (
                outputs
                and output.output_type == "stream"
                and outputs[-1].get("name") == output.name
            ):
                outputs[-1].text += output.text
            else:
                outputs.append(output)
        if cell.cell_type == "code":
            cell.outputs = outputs
    nbformat.write(notebook, path)


for name in sys.argv[1:]:
    tidy(name)
