# llmdistill for machines without GPUs: the exact versions of requirements.lock.
#   docker build --file docker/cpu.Dockerfile --tag llmdistill:cpu .
FROM python:3.11.13-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008  # Debian keeps no old versions; the release is pinned by the base image
RUN apt-get update \
 && apt-get install --yes --no-install-recommends build-essential \
 && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/llmdistill
ENV PATH=/opt/llmdistill/bin:$PATH
COPY requirements.lock /src/
# PyTorch's CPU build comes from its own index, everything else from the usual one.
RUN grep '^torch==' /src/requirements.lock > /src/torch.lock \
 && grep '^setuptools==' /src/requirements.lock > /src/build.lock \
 && grep --invert-match '^torch==' /src/requirements.lock > /src/other.lock \
 && pip install --no-cache-dir --no-deps --requirement /src/build.lock \
 && pip install --no-cache-dir --no-deps --index-url https://download.pytorch.org/whl/cpu --requirement /src/torch.lock \
 && pip install --no-cache-dir --no-deps --no-build-isolation --requirement /src/other.lock
COPY pyproject.toml README.md /src/
COPY launch /src/launch
COPY llmdistill /src/llmdistill
RUN pip install --no-cache-dir --no-deps --no-build-isolation /src

FROM python:3.11.13-slim-bookworm
# vLLM's CPU build compiles small kernels when it loads, and links these two.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc g++ libnuma1 libtcmalloc-minimal4 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 llmdistill
COPY --from=build /opt/llmdistill /opt/llmdistill
ENV PATH=/opt/llmdistill/bin:$PATH \
    RAY_USAGE_STATS_ENABLED=0
USER 1000:1000
WORKDIR /home/llmdistill
CMD ["llmdistill", "--help"]
