#!/bin/sh
# Makes lmms-eval's own environment: sh infra/lmms-eval/install.sh [FOLDER]     (0.7 GB; half a minute of computing)
# What both need (torch, transformers and the like) is read from .venv beside FOLDER, behind this one's own packages: so
# versions that clash stay apart, and torch is not installed twice.
set -eu
here=$(dirname "$0")
environment=${1:-.venv-lmms-eval}
pip="$environment/bin/python -m pip install --quiet --disable-pip-version-check --no-deps"
"${PYTHON:-python3}" -m venv "$environment"
$pip -r "$here/requirements.txt"
$pip --no-build-isolation -e "$here/../.."  # Harmon, for its entry point
packages=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo 'import site, sys; site.addsitedir(f"{sys.prefix}/../.venv/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages")' \
    > "$packages/ours-behind.pth"
"$environment/bin/python" -c 'from importlib.metadata import version; print("lmms-eval", version("lmms_eval"))'
