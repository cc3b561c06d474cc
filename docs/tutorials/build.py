"""percent scripts -> notebooks in docs/tutorials; --run executes them."""
import re, sys
from pathlib import Path
import jupytext, nbformat
OUT = Path("/tmp/w_T/docs/tutorials"); OUT.mkdir(parents=True, exist_ok=True)
run = "--run" in sys.argv
for name in [a for a in sys.argv[1:] if a[0] != "-"]:
    book = jupytext.read(f"/tmp/tut/src/{name}.py", fmt="py:percent")
    for i, cell in enumerate(book.cells):
        cell["id"] = f"{name.replace('_','-')}-{i:02d}"
        cell.metadata.clear()
    if run:
        from nbclient import NotebookClient
        NotebookClient(book, timeout=900, kernel_name="python3", resources={"metadata": {"path": "/tmp/tut"}}).execute()
    elif Path(f"/tmp/tut/executed_{name}.ipynb").exists():
        old = [c for c in nbformat.read(f"/tmp/tut/executed_{name}.ipynb", 4).cells if c.cell_type == "code"]
        for c, o in zip([c for c in book.cells if c.cell_type == "code"], old, strict=True):
            if c.source != o.source: print("code differs:", c.source[:80])
            c.outputs, c.execution_count = o.outputs, o.execution_count
    book.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"}})
    book.nbformat, book.nbformat_minor = 4, 5
    for cell in book.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            merged = []
            for o in cell.outputs:
                if "metadata" in o: o["metadata"] = {}
                if o.output_type == "stream" and o.name == "stderr": print("STDERR", name, o.text)
                if o.output_type == "stream" and merged and merged[-1].output_type == "stream" and merged[-1].name == o.name:
                    merged[-1]["text"] += o.text; continue
                if o.output_type == "display_data": o["data"].pop("text/plain", None)
                merged.append(o)
            cell.outputs = merged
    nbformat.validate(book)
    nbformat.write(book, OUT / f"{name}.ipynb")
    print(name, (OUT / f"{name}.ipynb").stat().st_size)
