#!/bin/sh
# A further machine of a distillation: gives its processes to the training that the first machine's stage starts, and
# again when that stage is tried again, until the training is done. From the checkout, in its environment:
#   SLIMTTS_NODES=2 SLIMTTS_NODE0=10.0.0.1:29500 infra/multinode/join.sh /shared/runs/demo
# The first machine runs the flow with the same two variables. Both see one workspace at the same path.
set -eu
workspace=${1:?the workspace of the run, on a file system that all machines share}
nodes=${SLIMTTS_NODES:?how many machines train together}
first=${SLIMTTS_NODE0:?host:port of the first machine}
python=${PYTHON:-.venv/bin/python}
attempts=${SLIMTTS_JOIN_ATTEMPTS:-1000}
export SLIMTTS_SUPERVISED=1 # the stage on the first machine holds the lock, wherever torchrun puts process 0

processes_in_all() {
  "$python" -c 'import sys, yaml; print(yaml.safe_load(open(sys.argv[1]))["distill_student"]["processes"])' \
    "$workspace/params.yaml"
}

for attempt in $(seq "$attempts"); do
  if processes=$(processes_in_all) && "$python" -m torch.distributed.run \
      --nnodes "$nodes" --nproc-per-node "$((processes / nodes))" --max-restarts 0 \
      --rdzv-backend c10d --rdzv-id slimtts --rdzv-endpoint "$first" \
      --no-python "$python" -m slimtts.cli distill_student --workspace "$workspace" \
      ${SLIMTTS_THREADS:+--threads "$SLIMTTS_THREADS"}; then
    exit 0
  fi
  echo "join.sh: attempt $attempt of $attempts is over; waiting for the first machine" >&2
  sleep "${SLIMTTS_JOIN_PAUSE_S:-10}"
done
exit 1
