# Gecko on a CPU, as a user without rights. Files are under /work, caches (models, indexes) under /cache.
#
#   docker build -t gecko .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" gecko distill docs -o runs/mine --dry-run
#   docker run --rm -p 8080:8080 --user "$(id -u):$(id -g)" -v "$PWD:/work" -v gecko-cache:/cache gecko \
#       serve runs/mine/model --host 0.0.0.0 --api-keys keys.txt
#
# The last one is reachable from other machines, so it needs keys: gecko serve --new-key LABEL --api-keys keys.txt
FROM python:3.12-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/gecko
ENV PATH=/opt/gecko/bin:$PATH
COPY constraints.txt ./
# torch first and alone, so that no other package pulls in a build for CUDA.
RUN pip install --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --prefer-binary -c constraints.txt '.[corpus,serve]'

FROM python:3.12-slim
COPY --from=build /opt/gecko /opt/gecko
# Any user may write the cache, since --user gives the files in /work to whoever calls.
RUN useradd --create-home --uid 1000 gecko && mkdir -m 1777 /cache && mkdir /work && chown gecko:gecko /work
ENV PATH=/opt/gecko/bin:$PATH GECKO_CACHE=/cache HF_HOME=/cache/huggingface PYTHONDONTWRITEBYTECODE=1
USER 1000
WORKDIR /work
EXPOSE 8080
ENTRYPOINT ["gecko"]
CMD ["--help"]
