# syntax=docker/dockerfile:1
# One image for every process of coord: `docker build -t coord .`; what a container runs is its command.

# The Python that the gate runs on; the image is rebuilt for its security fixes with `docker compose build --pull`.
FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /usr/local/lib/coord
# Only what the wheel is built from: a change to docs or tests builds nothing anew.
COPY pyproject.toml LICENSE ./
COPY scripts/constraints.txt scripts/
COPY coord coord
COPY workers workers
# Also what builds the wheel, in an environment of its own: older pips heed the first of these there, newer ones the second.
ENV PIP_CONSTRAINT=/src/scripts/constraints.txt \
    PIP_BUILD_CONSTRAINT=/src/scripts/constraints.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    /usr/local/lib/coord/bin/pip install --disable-pip-version-check --constraint scripts/constraints.txt .

FROM python:3.11-slim
# A number, so that a cluster which forbids root can see that it is none; it owns nothing and needs no home.
RUN groupadd --gid 10001 coord \
    && useradd --uid 10001 --gid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin coord
COPY --from=build /usr/local/lib/coord /usr/local/lib/coord
# Lines appear as they are written; no .pyc files are written beside code that belongs to root.
ENV PATH=/usr/local/lib/coord/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /tmp
CMD ["coord", "--help"]
