# Everything that needs no GPU: downloads, filtering, audits, the Prefect server and worker, Ray's CPU nodes.
#   docker build -f infra/docker/data.Dockerfile -t harmon-data:0.1.0 .
# A version is pinned; a digest pins the very bytes: --build-arg PYTHON=python:3.11.14-slim-bookworm@sha256:…, which
# `docker buildx imagetools inspect python:3.11.14-slim-bookworm` tells.
ARG PYTHON=python:3.11.14-slim-bookworm

FROM ${PYTHON} AS packages
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY pyproject.toml constraints.txt ./
COPY infra/img2dataset/requirements.txt img2dataset.txt
COPY infra/docker/dependencies.py ./
# torch without CUDA first: the ordinary wheel would bring 5 GB of libraries that no CPU uses.
RUN python -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --index-url https://download.pytorch.org/whl/cpu torch==2.14.1 torchvision==0.29.1 \
    && python dependencies.py pyproject.toml > requirements.txt \
    && /opt/venv/bin/python -m pip install -c constraints.txt -r requirements.txt
# img2dataset's pins clash with ours, so it has an environment of its own.
RUN python -m venv /opt/img2dataset && /opt/img2dataset/bin/python -m pip install -r img2dataset.txt

FROM ${PYTHON}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# wget: KubeRay's probes; g++: torch.compile. Debian drops a version from its mirrors as it fixes it, so none is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 2000 --create-home --shell /bin/bash harmon \
    && install -d -o harmon -g harmon /scratch /runs
COPY --from=packages /opt/venv /opt/venv
COPY --from=packages /opt/img2dataset /opt/img2dataset
ENV PATH=/opt/venv/bin:$PATH \
    HARMON_IMG2DATASET_PYTHON=/opt/img2dataset/bin/python \
    HARMON_SCRATCH=/scratch \
    NO_ALBUMENTATIONS_UPDATE=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
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
