# docker build -t kr3 .
# docker run -it kr3                                                     the demo: prepare, train, sample
# docker run --gpus all --shm-size=1g -v "$PWD/data:/kr3/data" -v "$PWD/out:/kr3/out" kr3 torchrun --standalone --nproc_per_node=gpu train.py config/kr3.py
FROM python:3.12-slim-bookworm

# torch.compile builds its kernels with a C++ compiler; which version matters little, and old ones leave the archive
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 kr3 && mkdir /kr3 && chown kr3 /kr3
WORKDIR /kr3

# the libraries change rarely, the code often: two layers. The CUDA libraries come with torch, the driver from the host
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt

USER 1000
COPY --chown=kr3 . .
CMD ["sh", "-c", "python prepare.py --source=demo && python train.py config/demo.py && python sample.py"]
