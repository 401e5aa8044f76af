# docker build -t kr3 .
# docker run -it kr3                      the demo: prepare, train, then it asks for beginnings
#
# KR3, from an empty folder: docs/KR3.md. The image holds the code; data/ and out/ are mounted over it.
FROM python:3.12-slim-bookworm

# torch.compile needs a C++ compiler. Any version will do, and old ones leave the archive, so none is named.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 kr3 && mkdir /kr3 && chown kr3 /kr3
WORKDIR /kr3
# for caches: the user that the container runs as (--user) may have no home
ENV HOME=/tmp

# The libraries change rarely, the code often: two layers. The CUDA libraries come with torch; the driver is the host's.
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt

# All but what .dockerignore names: the scripts, model.py, parts/, config/, tests/ and docs/
USER 1000
COPY --chown=kr3 . .
CMD ["sh", "-c", "python prepare.py --source=demo && python train.py config/demo.py --init_from=auto && python sample.py"]
