# The published recipe (the README's second command) without what says on which machines it runs. Sourced by the scripts
# beside it, which are started at the top of the repository. More options can be given to them; the last one counts.
# The published rates are in here, and a calibrated start would take them for the folded student's: with it give
# --student_learning_rate 2e-4 (with --target relations 1e-3) as well.

OUTPUT=${OUTPUT:-models/12-192-reduce-dim-stage1.bin}

RECIPE=(
    --dataset_path bert_corpus_dataset.pt
    --pretrained_model_path models/google/12-768-model.bin
    --vocab_path models/google_uncased_en_vocab.txt --config_path bert/base_config.json
    --output_model_path "$OUTPUT"
    --warmup 0.01 --data_processor mlm --total_steps 400000 --save_checkpoint_steps 100000
    --learning_rate 1e-6 --target mlm --tb_path logs/12-192-reduce-dim.log
    --target_dim 192 --compactor_mask_strategy dim --l2_lambda 20 --weight_squeeze
    --compactor_learning_rate 5e-5 --w_step 500 --mask_path mask_path/12-192-reduce-dim.txt
)

# part PROCESSES: adds a process's part of the published 8 x 120 instances a step, at most 120 at once, rounded down.
part() {
    local each=$((960 / $1)) pieces
    pieces=$(((each + 119) / 120))
    RECIPE+=(--batch_size $((each / pieces)))
    if [ "$pieces" -gt 1 ]; then RECIPE+=(--accumulation_steps "$pieces"); fi
}

# A run that was interrupted goes on from its newest checkpoint.
if compgen -G "$OUTPUT-*[0-9]" | grep -qE -- '-[0-9]+$'; then
    RECIPE+=(--resume)
fi
