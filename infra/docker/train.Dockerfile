# Training, latents, evaluation and serving on NVIDIA GPUs, and Ray's GPU nodes.
#   docker build -f infra/docker/train.Dockerfile -t harmon-train:0.1.0 .
# PyPI's torch brings CUDA 13, cuDNN and NCCL of the versions in constraints.txt; of the machine it needs the driver and
# the NVIDIA container toolkit. EFA's libraries are not in it: docs/deploy.md says what to add for p4de.
# A digest pins the very bytes: --build-arg PYTHON=python:3.11.14-slim-bookworm@sha256:…, which
# `docker buildx imagetools inspect python:3.11.14-slim-bookworm` tells.
ARG PYTHON=python:3.11.14-slim-bookworm

FROM ${PYTHON} AS packages
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY pyproject.toml constraints.txt infra/docker/dependencies.py ./
# torch in a layer of its own: it is most of the image, and changes less often than the rest.
RUN python -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install -c constraints.txt torch==2.14.1 torchvision==0.29.1
RUN python dependencies.py pyproject.toml gpu eval > requirements.txt \
    && /opt/venv/bin/python -m pip install -c constraints.txt -r requirements.txt

FROM ${PYTHON}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# wget: KubeRay's probes; g++: torch.compile and Triton. Debian drops a version as it fixes it, so none is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 2000 --create-home --shell /bin/bash harmon \
    && install -d -o harmon -g harmon /scratch /runs
COPY --from=packages /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    HARMON_SCRATCH=/scratch \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HF_HUB_OFFLINE=1 \
    DO_NOT_TRACK=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    PYTHONUNBUFFERED=1
WORKDIR /opt/harmon
# Last, so that a change of code makes one small layer. Installed where it lies: its recipes are read from there.
COPY . .
RUN /opt/venv/bin/python -m pip install --no-cache-dir --no-deps --editable .
WORKDIR /runs
USER 2000:2000
CMD ["harmon", "--help"]
