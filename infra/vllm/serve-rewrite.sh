#!/bin/sh
# Qwen2.5-7B-Instruct on one A100: sh infra/vllm/serve-rewrite.sh [MODEL] [more flags]     (flags: README.md beside this)
set -eu
model=${1:-Qwen/Qwen2.5-7B-Instruct}
[ $# -eq 0 ] || shift
exec "${PYTHON:-python3}" -m vllm.entrypoints.openai.api_server \
    --model "$model" \
    --served-model-name Qwen/Qwen2.5-7B-Instruct \
    --dtype bfloat16 \
    --max-model-len 2048 \
    --max-num-seqs 512 \
    --gpu-memory-utilization 0.92 \
    --enable-prefix-caching \
    --generation-config vllm \
    --port 8000 "$@"
