#!/bin/sh
# Qwen2.5-7B-Instruct on one A100: sh infra/vllm/serve-rewrite.sh [MODEL] [more flags]     (flags: README.md beside this)
# It listens on this machine alone; HOST=0.0.0.0 with a VLLM_API_KEY lets others in.
set -eu
model=${1:-Qwen/Qwen2.5-7B-Instruct}
[ $# -eq 0 ] || shift
host=${HOST:-127.0.0.1}
case "$host" in
127.* | localhost | ::1) ;;
*)
    if [ -z "${VLLM_API_KEY:-}" ]; then
        echo "HOST=$host lets others in: set VLLM_API_KEY here and where harmon recaption runs." >&2
        exit 2
    fi
    ;;
esac
exec "${PYTHON:-python3}" -m vllm.entrypoints.openai.api_server \
    --model "$model" \
    --served-model-name Qwen/Qwen2.5-7B-Instruct \
    --dtype bfloat16 \
    --max-model-len 2048 \
    --max-num-seqs 512 \
    --gpu-memory-utilization 0.92 \
    --enable-prefix-caching \
    --generation-config vllm \
    --host "$host" \
    --port 8000 "$@"
