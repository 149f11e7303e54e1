"""`make clean-notebooks`: a stored notebook keeps its sources, outputs and tags, nothing of an editor or the day."""

import sys
from pathlib import Path

import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def tidy(path: Path) -> None:
    """Number the cells, name the kernel that each environment has, join what was printed in pieces; a cell that waits
    for a person's hand holds no output.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = {"kernelspec": KERNEL}
    for number, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags")
        cell.id, cell.metadata = f"{path.stem[:2]}-{number:02d}", {"tags": tags} if tags else {}
        if "skip-execution" in (tags or []):
            cell.outputs, cell.execution_count = [], None
    notebook, _ = CoalesceStreamsPreprocessor(enabled=True)(notebook, {})
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        tidy(Path(argument))
