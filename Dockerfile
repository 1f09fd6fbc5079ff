# The page and the command line in a container. On a processor:
#
#   docker build -t sgm-video .
#   docker run --rm -p 127.0.0.1:8501:8501 -v sgm-checkpoints:/data/checkpoints -v sgm-outputs:/data/outputs sgm-video
#
# then open http://127.0.0.1:8501. On an NVIDIA card (its driver and the NVIDIA Container Toolkit must be installed):
#
#   docker build -t sgm-video:cuda --build-arg TORCH_BACKEND=cu128 .
#   docker run --rm --gpus all -p 127.0.0.1:8501:8501 -v ... sgm-video:cuda
#
# Page and HTTP API use every card (-e SGM_DEVICES=cuda:0 for some). Keep the 127.0.0.1 of -p: the page has no login, and
# inside the container it listens on every interface, or nothing could reach it. That address alone keeps it from the rest
# of your network. With -e SGM_API_KEYS=... the API wants one of these keys.
# Other commands: docker run --rm -e HF_TOKEN -v sgm-checkpoints:/data/checkpoints sgm-video sgm download svd_xt
# Folders of your own instead of the named volumes (-v "$PWD/outputs:/data/outputs") must be writable by user id 1000.

ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# Which build of torch: cpu, or cu126, cu128, ... as `uv pip install --torch-backend` knows them.
ARG TORCH_BACKEND=cpu

# Triton compiles the fast kernels for the card at the first video, with a C compiler.
# hadolint ignore=DL3008
RUN if [ "$TORCH_BACKEND" != cpu ]; then \
        apt-get update \
        && apt-get install -y --no-install-recommends gcc libc6-dev \
        && rm -rf /var/lib/apt/lists/*; \
    fi

RUN useradd --create-home --uid 1000 sgm \
    && mkdir -p /data/checkpoints /data/outputs \
    && chown -R sgm /data

WORKDIR /opt/sgm-video
COPY . .
# The README's `python -m pip install -e .`, by uv, which finds the wanted build of torch.
# hadolint ignore=DL3013
RUN python -m pip install --no-cache-dir uv \
    && uv pip install --system --no-cache --torch-backend "$TORCH_BACKEND" -e .

USER 1000
WORKDIR /data
ENV U2NET_HOME=/data/checkpoints/u2net
VOLUME ["/data/checkpoints", "/data/outputs"]
EXPOSE 8501
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8501/_stcore/health')"]

# Trusted is whoever -p lets in. Answers go to addresses and localhost alone: a proxy with a name of its own has to send
# such an address as Host and as Origin.
CMD ["sgm", "app", "--host=0.0.0.0", "--trust-network", "--no-browser"]
