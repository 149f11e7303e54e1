#!/usr/bin/env bash
# What works in a frozen container: repository, packages, home and matplotlib's folder read-only, no git, one thread.
#   bash tests/frozen.sh PYTHON FOLDER     # FOLDER: an empty one, for a copy of the repository and what it writes
set -eu
python=$1 folder=$2
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$folder"
mkdir repo site home out
cp -r "$root"/{Makefile,README.md,pyproject.toml,constraints.txt,environment.yml,mnist_ae,notebooks,figures,tests} repo
"$python" - << 'EOF'
import shutil, umap, pynndescent
from pathlib import Path
for package in (umap, pynndescent):  # the two whose compiled code numba would keep beside them
    here = Path(package.__file__).parent
    shutil.copytree(here, Path("site", here.name), ignore=shutil.ignore_patterns("__pycache__"))
EOF
chmod -R a-w repo site home
trap 'chmod -R u+w "$folder"' EXIT

# Root may write anywhere: it lays that down.
as_reader=(env)
if [ "$(id -u)" = 0 ]; then
  as_reader=(setpriv --bounding-set=-all --inh-caps=-all)
  "${as_reader[@]}" true 2> /dev/null || { echo "skipped: root cannot lay down its rights here"; exit 0; }
fi
cd repo
frozen() {
  "${as_reader[@]}" env HOME="$folder/home" MPLCONFIGDIR="$folder/home/mpl" OMP_THREAD_LIMIT=1 MNIST_AE_OUT="$folder/out" \
    PYTHONPATH="$folder/site:$folder/repo" "$@"
}
! frozen touch x 2> /dev/null || { echo "skipped: what is read-only can be written to here"; exit 0; }

frozen make "$folder/out/runs/notebooks/02_inspect_codes.ipynb" DATASET=digits EPOCHS=1 THREADS=1 PYTHON="$python"
ls "$folder"/out/runs/numba/*/*.nbi > /dev/null && test -s "$folder/out/figures/digits/02_map.png" && echo "02 ran"

cat > "$folder/out/01_picture.ipynb" << 'EOF'
{"cells": [{"cell_type": "code", "execution_count": 1, "id": "a", "metadata": {}, "outputs": [{"name": "stdout",
"output_type": "stream", "text": ["drawn\n"]}], "source": ["from mnist_ae import plots\n", "print('drawn')"]}],
"metadata": {"kernelspec": {"display_name": "a", "language": "python", "name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}
EOF
frozen "$python" -m pytest -p no:cacheprovider -p tests.nbval_plugin --nbval --nbval-current-env "$folder/out/01_picture.ipynb"
echo "a picture drew no false alarm"

frozen "$python" -m pytest -p no:cacheprovider tests/test_project.py -k "names_a_machine" | grep "no clone, or no git"
echo "tests skip what needs git"
