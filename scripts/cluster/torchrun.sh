#!/bin/bash
# The published recipe by torchrun. A process that fails is started again with all others, up to three times, and the run
# goes on from its newest checkpoint: save often. Asked to end (SIGTERM, Ctrl-C), torchrun gives the processes 30 seconds
# to save.
#
#   bash scripts/cluster/torchrun.sh                                     # one machine with eight GPUs
#   NODES=2 HEAD=first:29500 bash scripts/cluster/torchrun.sh            # on each of two machines
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"
part $((${NODES:-1} * ${GPUS:-8}))

MACHINES=(--standalone)
if [ "${NODES:-1}" -gt 1 ]; then
    MACHINES=(--nnodes "$NODES" --rdzv_backend c10d --rdzv_endpoint "$HEAD" --rdzv_id "${RUN:-wid}")
fi
exec python3 -m torch.distributed.run "${MACHINES[@]}" --nproc_per_node "${GPUS:-8}" --max_restarts 3 \
    pretrain.py "${RECIPE[@]}" --save_checkpoint_steps 2000 --keep_checkpoints 5 "$@"
