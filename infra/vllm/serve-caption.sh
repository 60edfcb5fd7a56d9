#!/bin/sh
# Qwen2-VL-72B-Instruct on eight A100-80G: sh infra/vllm/serve-caption.sh [MODEL] [more flags]     (flags: README.md)
# It listens on this machine alone; HOST=0.0.0.0 with a VLLM_API_KEY lets others in.
set -eu
model=${1:-Qwen/Qwen2-VL-72B-Instruct}
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
    --host "$host" \
    --port 8000 "$@"
