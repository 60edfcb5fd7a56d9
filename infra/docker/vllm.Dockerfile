# Qwen behind vLLM's OpenAI-compatible API, started as infra/vllm/serve-*.sh say; weights are mounted, never copied in.
#   docker build -f infra/docker/vllm.Dockerfile -t harmon-vllm:0.32.0 .
#   docker run --gpus 1 --shm-size 4g -p 8000:8000 -v /models:/models:ro -e HOST=0.0.0.0 -e VLLM_API_KEY harmon-vllm:0.32.0
# A digest pins the very bytes: --build-arg VLLM=vllm/vllm-openai:v0.32.0@sha256:…, which
# `docker buildx imagetools inspect vllm/vllm-openai:v0.32.0` tells.
ARG VLLM=vllm/vllm-openai:v0.32.0

FROM ${VLLM}
# An account with a name: torch.compile's cache asks for it. vLLM's own image runs as root.
RUN useradd --uid 2000 --create-home --shell /bin/bash vllm
COPY infra/vllm/serve-rewrite.sh infra/vllm/serve-caption.sh /opt/vllm/
ENV HF_HUB_OFFLINE=1 \
    VLLM_NO_USAGE_STATS=1
USER 2000:2000
EXPOSE 8000
ENTRYPOINT ["sh"]
CMD ["/opt/vllm/serve-rewrite.sh", "/models/Qwen2.5-7B-Instruct"]
