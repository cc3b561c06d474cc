"""Execute the notebooks, in place: ``python docs/tutorials/execute.py [NOTEBOOK.ipynb ...]``.

What a cell printed and its figures are kept, and nothing that says where or when it ran.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def execute(path: Path) -> None:
    """Run all cells of a notebook and write it back.

    Args:
        path: the notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raised; the file stays as it was.
        RuntimeError: A cell wrote a warning; the file stays as it was.
    """
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=folder).execute()
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = _shown(cell.outputs)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def _shown(outputs: list) -> list:
    """What a reader sees of outputs: figures, and printed text in one piece."""
    shown = []
    for output in outputs:
        if output.output_type == "stream":
            if output.name == "stderr":
                raise RuntimeError(f"a cell warned; fix it:\n{output.text}")
            if shown and shown[-1].output_type == "stream":
                shown[-1].text += output.text
                continue
        else:
            output.metadata = {}
            output.data.pop("text/plain", None)  # says a figure's size and nothing else
        shown.append(output)
    return shown


if __name__ == "__main__":
    for path in [Path(given) for given in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        execute(path)
        print(path.name)
