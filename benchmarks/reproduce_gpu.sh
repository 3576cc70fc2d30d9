#!/bin/sh
# The paper's tables and figures at full size on one GPU, in commands of less than ten minutes.
#
#   sh benchmarks/reproduce_gpu.sh OUT MNIST IR_MNIST CALTECH256
#
# One call is one such command: it ends with exit code 75 when its time is spent, and with 0 when
# everything is computed. Call it again until then; nothing that is finished is computed again, and a
# training that was under way goes on from its checkpoint. Tables are written after every call, of
# what there is. Where nobody ends a command early, one line does all of it:
#
#   until sh benchmarks/reproduce_gpu.sh OUT MNIST IR_MNIST CALTECH256; [ $? -ne 75 ]; do :; done
set -eu

if [ $# -ne 4 ]; then
  echo "usage: $0 OUT MNIST IR_MNIST CALTECH256 (folders: of results, and of the source files)" >&2
  exit 2
fi

exec python -m jax_noisy_anogan.reproduce all --out "$1" \
  --mnist_root "$2" --ir_mnist_root "$3" --caltech256_root "$4" \
  --processes "${PROCESSES:-1}" --time_budget_s "${TIME_BUDGET_S:-500}"
