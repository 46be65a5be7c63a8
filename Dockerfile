# weightgen on CPU, as an ordinary user: docker build -t weightgen . && docker run --rm weightgen --help
# The same make targets as on any machine: docker run --rm --entrypoint make weightgen test
FROM python:3.11-slim

RUN apt-get update \
 && apt-get install -y --no-install-recommends git make \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home weightgen
WORKDIR /home/weightgen/app
RUN chown weightgen:weightgen .
USER weightgen

COPY --chown=weightgen:weightgen . .
RUN make setup TORCH_INDEX="--extra-index-url https://download.pytorch.org/whl/cpu" \
 && rm -rf /home/weightgen/.cache

ENV PATH="/home/weightgen/app/.venv/bin:$PATH" HF_HUB_OFFLINE=1
ENTRYPOINT ["weightgen"]
CMD ["--help"]
