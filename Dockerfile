# The inference service on CPU: an ordinary user, nothing written outside /data and /tmp (docs/operations.md).
#   docker build -t weightgen .
#   docker run --rm -v weightgen:/data weightgen keys make --name first --scope read --scope generate --scope upload
#   docker run --rm -v weightgen:/data --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 weightgen
# The command line instead: docker run --rm --entrypoint weightgen weightgen --help
FROM python:3.11-slim AS build
ARG EXTRAS=service,postgres,s3,table,images
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends make \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY . .
# Compiled now, for later nothing may be written here.
RUN make setup EXTRAS="$EXTRAS" TORCH_INDEX="--extra-index-url https://download.pytorch.org/whl/cpu" \
 && .venv/bin/python -m compileall -q model_zoo service weightgen

FROM python:3.11-slim
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin weightgen \
 && install -d -o weightgen -g weightgen -m 0750 /data
COPY --from=build /app /app
WORKDIR /app
ENV PATH="/app/.venv/bin:$PATH" \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HUB_OFFLINE=1 \
    OMP_NUM_THREADS=1 \
    WEIGHTGEN_HOST=0.0.0.0 \
    WEIGHTGEN_PORT=8000 \
    WEIGHTGEN_DATA_DIR=/data
USER 10001:10001
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=90s --retries=3 CMD ["python", "-m", "service.process.health"]
ENTRYPOINT ["python", "-m", "service"]
