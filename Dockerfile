# docker build -t mom . && docker run --rm -v "$PWD/outputs:/outputs" mom run_dir=/outputs/first
# For a GPU, add `--gpus all` to docker run: the wheels of PyTorch in requirements.lock bring CUDA where pip finds them.
FROM python:3.11-slim

WORKDIR /mom
# The dependencies first, so that a change of the code does not install them again.
COPY requirements.lock ./
RUN pip install --no-cache-dir -r requirements.lock
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY src ./src
COPY conf ./conf
RUN pip install --no-cache-dir --no-deps .

ENV MOM_CACHE=/outputs/cache PYTHONUNBUFFERED=1
ENTRYPOINT ["mom"]
