# syntax=docker/dockerfile:1
# One image for the job, the Spark master and the Spark workers: all need the same Python packages.
FROM python:3.11.14-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends openjdk-17-jre-headless procps \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir uv==0.13.8 \
    && useradd --create-home --uid 10001 embedstream \
    && install --directory --owner=embedstream /data /opt/embedstream /opt/embedstream/jars

USER embedstream
WORKDIR /opt/embedstream
ENV EMBEDSTREAM_JARS=/opt/embedstream/jars \
    PATH=/opt/embedstream/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1

# The dependencies first: this layer is rebuilt only when the lock changes.
COPY --chown=embedstream pyproject.toml uv.lock README.md ./
RUN uv sync --locked --no-dev --extra s3 --no-install-project

COPY --chown=embedstream core core
COPY --chown=embedstream streaming streaming
RUN uv sync --locked --no-dev --extra s3 --no-editable \
    && embedstream jars --set spark --set s3 --class-archive

VOLUME /data
ENTRYPOINT ["embedstream"]
CMD ["--help"]
