#!/bin/sh
# Qwen2-VL-72B-Instruct on eight A100-80G: sh infra/vllm/serve-caption.sh [MODEL] [more flags]     (flags: README.md)
set -eu
model=${1:-Qwen/Qwen2-VL-72B-Instruct}
[ $# -eq 0 ] || shift
exec "${PYTHON:-python3}" -m vllm.entrypoints.openai.api_server \
    --model "$model" \
    --served-model-name Qwen/Qwen2-VL-72B-Instruct \
    --dtype bfloat16 \
    --tensor-parallel-size 8 \
    --max-model-len 4096 \
    --max-num-seqs 256 \
    --gpu-memory-utilization 0.92 \
    --enable-prefix-caching \
    --limit-mm-per-prompt '{"image": 1, "video": 0}' \
    --mm-processor-kwargs '{"min_pixels": 3136, "max_pixels": 1003520}' \
    --generation-config vllm \
    --port 8000 "$@"
