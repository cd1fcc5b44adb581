# The image for deploy/rayjob.yaml: the project and exactly what `make setup` installs, without the
# test tools.
# Build it from a clean checkout:   docker build -t REGISTRY/label-backfill:TAG .
FROM python:3.12-slim

# KubeRay's health checks call wget.
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY pyproject.toml constraints.txt ./
# The Linux build of torch includes CUDA, and also runs without a GPU.
RUN pip install -q --disable-pip-version-check --no-cache-dir $(grep '^torch==' constraints.txt)
RUN pip install -q --disable-pip-version-check --no-cache-dir -c constraints.txt -e .

COPY cli cli
COPY backfill backfill
COPY actors actors
COPY pds pds
COPY datasets datasets

# Ray's workers import the project from /app. NVIDIA's container runtime needs the other two
# variables.
ENV PYTHONPATH=/app NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# KubeRay starts Ray itself. To run a command by hand:
#   docker run --rm -v "$PWD/data:/data" IMAGE python -m cli status --data-dir /data
CMD ["python", "-m", "cli", "--help"]
