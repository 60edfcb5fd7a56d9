#!/bin/sh
# Makes vLLM's own environment: sh infra/vllm-cpu/install.sh [FOLDER]     (3.4 GB; about a minute where torch is cached)
set -eu
here=$(dirname "$0")
environment=${1:-.venv-vllm}
"${PYTHON:-python3}" -m venv "$environment"
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$here/requirements.txt"
cp "$here/sitecustomize.py" "$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
VLLM_NO_USAGE_STATS=1 "$environment/bin/python" -c 'import vllm; print("vllm", vllm.__version__)'
