# llmdistill for NVIDIA GPUs: vLLM and DeepSpeed on one PyTorch.
#   docker build --file docker/gpu.Dockerfile --tag llmdistill:gpu .
# vllm 0.32.0 pins torch 2.13.0, the version of requirements.lock. What this package itself asks for has the lock's version;
# what vLLM's CUDA build asks for has the version that it pins.
# The base has nvcc, with which DeepSpeed and FlashInfer build their kernels on the machine where they run.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008  # Ubuntu keeps no old versions; the release is pinned by the base image
RUN apt-get update \
 && apt-get install --yes --no-install-recommends build-essential libaio-dev libibverbs1 libnuma1 ninja-build \
        python3.12 python3.12-dev python3.12-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3.12 -m venv /opt/llmdistill \
 && userdel --remove ubuntu \
 && useradd --create-home --uid 1000 llmdistill
ENV PATH=/opt/llmdistill/bin:$PATH \
    RAY_USAGE_STATS_ENABLED=0
COPY requirements.lock pyproject.toml README.md /src/
COPY launch /src/launch
COPY llmdistill /src/llmdistill
RUN grep --extended-regexp '^(accelerate|datasets|deepspeed|numpy|ray|safetensors|tokenizers|torch|transformers)==' \
        /src/requirements.lock > /src/constraints.txt \
 && pip install --no-cache-dir --constraint /src/constraints.txt "/src[gpu]" \
 && pip check \
 && rm -rf /src
USER 1000:1000
WORKDIR /home/llmdistill
CMD ["llmdistill", "--help"]
