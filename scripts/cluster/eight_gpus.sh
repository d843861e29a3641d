#!/bin/bash
# The published recipe on one machine with eight GPUs. Started again, it goes on from the newest checkpoint.
#
#   bash scripts/cluster/eight_gpus.sh --dryrun          # try everything first
#   bash scripts/cluster/eight_gpus.sh --bf16            # any option of pretrain.py
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"
part 8

exec python3 pretrain.py "${RECIPE[@]}" --world_size 8 --gpu_ranks 0 1 2 3 4 5 6 7 "$@"
