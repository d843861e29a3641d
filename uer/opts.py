"""Options of pretrain.py and calibrate.py, one group per concern. Needs no torch, so that `--help` is quick."""

from __future__ import annotations

import argparse

from uer.arguments import add_uer_options
from uer.data.options import add_corpus_options, add_masking_options, add_processor_option, add_tokenizer_options

STRATEGIES = ("dim", "head")
PENALTIES = ("published", "fade")
SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial")
FORMATS = ("uer", "uer-py", "huggingface", "onnx")
LAYER_SIGNALS = ("output", "attention", "feedforward")
OBJECTIVES = ("mlm", "states", "similarity", "logits", "relations", "bert", "sp")  # the last two: UER's words for mlm
COMPACTOR_INITS = ("identity", "calibrated")
MASK_SCORES = ("norm", "taylor")
AFTER_SQUEEZE = ("compactors", "student")
OPTIMIZERS = ("adamw", "muon")
COMPOSE_DTYPES = ("float32", "tf32")
TOP_K, RELATION_HEADS = 128, 48


class _Objective(argparse.Action):
    """One of ours, or UER's words (kept as `uer_target`), all of which come to masked language modelling."""

    def __call__(self, parser, namespace, values, option_string=None):
        ours = {word for word in values if word not in ("bert", "sp")} or {"mlm"}
        if len(ours) > 1 or (ours != {"mlm"} and len(values) > 1):
            parser.error(f"--target {' '.join(values)}: one target is needed")
        setattr(namespace, self.dest, ours.pop())
        namespace.uer_target = values


def add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--pretrained_model_path", metavar="PATH",
                       help="teacher: a UER file or a Hugging Face folder; without it a model starts from scratch")
    group.add_argument("--config_path", metavar="FILE", help="model config (see bert/), where the teacher brings none")
    group.add_argument("--allow_missing_head", action="store_true",
                       help="give a teacher without MLM head a fresh one instead of refusing it")
    group.add_argument("--dropout", type=float, default=None, metavar="P",
                       help="share of activations dropped in training (default: the config's; none for a calibrated "
                            "student, nor for targets without labels)")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--dataset_path", nargs="+", metavar="FILE",
                       help="dataset file(s) of preprocess.py; a glob does as well")
    group.add_argument("--dev_path", nargs="+", metavar="FILE", help="held-out dataset, to evaluate on")
    add_processor_option(group, "uer_data_processor", "(default: as --dataset_path was built)")
    group.set_defaults(uer_target=None, processor=None)
    group.add_argument("--target", dest="objective", nargs="+", choices=OBJECTIVES, action=_Objective,
                       help="mlm: masked tokens. Without labels, from a teacher that runs along: states: its states, "
                            "through the calibrated map; similarity: its similarities of the texts in a batch; logits: "
                            "what its classifier, tagger or reader says; relations: of the last layer's queries, keys "
                            "and values between tokens (default: mlm, states or logits, by the model)")
    group.add_argument("--batch_size", type=int, default=32, metavar="N",
                       help="instances per process and micro-step (default: 32)")
    group.add_argument("--no_group_by_length", dest="group_by_length", action="store_false",
                       help="do not put instances of like length into one batch")


def add_optimization_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimization")
    group.add_argument("--total_steps", type=int, default=100000, metavar="N", help="optimizer steps (default: 100000)")
    group.add_argument("--accumulation_steps", type=int, default=1, metavar="N",
                       help="micro-steps per optimizer step (default: 1)")
    group.add_argument("--learning_rate", type=float, metavar="LR",
                       help="of teacher or plain model (default: 2e-5, but see --w_step and --student_learning_rate)")
    group.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw",
                       help="muon: matrices of a plain model's layers move by their momentum made orthogonal, at "
                            "AdamW's rates, the rest by AdamW (default: adamw)")
    group.add_argument("--head_learning_rate", type=float, metavar="LR",
                       help="of a plain or folded model's head: MLM, labels, map of states (default: that of the rest)")
    group.add_argument("--warmup", type=float, default=0.1, metavar="SHARE",
                       help="share of total_steps in which learning rates rise (default: 0.1)")
    group.add_argument("--scheduler", choices=SCHEDULERS, default="linear",
                       help="learning rates after the warm-up (default: linear)")
    group.add_argument("--bf16", action="store_true",
                       help="run the student in bfloat16 (weights, compactors and updates stay float32)")
    group.add_argument("--fp16", action="store_true",
                       help="the same in float16, with a loss scale; an update whose gradient overflows is left out")
    group.add_argument("--compose_dtype", choices=COMPOSE_DTYPES,
                       help="of the products that compose the student's weights (default: tf32 with --bf16 or --fp16 "
                            "on a GPU, else float32)")
    group.add_argument("--compile", action="store_true",
                       help="compile the student's encoder with torch.compile, anew at each squeeze; dimensions "
                            "wait for the last of their group")
    group.add_argument("--max_grad_norm", type=float, metavar="X",
                       help="largest norm of the gradient, of a plain model or teacher and compactors (default: any)")
    group.add_argument("--seed", type=int, default=7, help="of masks, order and dropout (default: 7)")


def add_shape_options(group: argparse._ArgumentGroup) -> None:
    """The student's shape, its width apart."""
    group.add_argument("--target_feedforward_size", type=int, metavar="N",
                       help="neurons of the student's feed-forward layers (default: the teacher's, in proportion)")
    group.add_argument("--target_heads", type=int, metavar="N",
                       help="heads of the student, with a calibrated start: some of the teacher's leave, the others "
                            "share the width (default: by --compactor_mask_strategy)")
    group.add_argument("--layer_sizes", metavar="FILE",
                       help="heads and neurons of each layer of the student, with a calibrated start: a JSON list of "
                            "one {\"heads\": 12, \"feedforward\": 512} for each, or a student's config; "
                            "what is left out is as usual, a head as wide as usual (default: alike)")
    group.add_argument("--target_layers", type=int, metavar="N",
                       help="layers to keep, before anything else leaves; those below make up for those that leave, in "
                            "closed form, and which ones is found out (default: all)")
    group.add_argument("--keep_layers", type=int, nargs="+", metavar="I",
                       help="these layers, counted from 0, instead of those that would be found")
    group.add_argument("--tie_student", action="store_true",
                       help="one table for embedding and decoder, the one that fits both best; with a calibrated "
                            "start, of a student that is trained by itself (default: two)")
    group.add_argument("--compactor_mask_strategy", choices=STRATEGIES, default="dim",
                       help="dim: every head gets thinner; head: whole heads leave (default: dim)")


def add_squeeze_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("weight-inherited distillation")
    group.add_argument("--weight_squeeze", action="store_true",
                       help="compress the teacher; without it, this is a plain MLM run")
    group.add_argument("--target_dim", type=int, metavar="D", help="the student's hidden size (default: the teacher's)")
    group.add_argument("--mlm_target_dim", type=int, metavar="D",
                       help="features inside the student's MLM head or classifier (default: --target_dim); with "
                            "another width, it cannot be written for Hugging Face or UER-py")
    add_shape_options(group)
    group.add_argument("--compactor_init", choices=COMPACTOR_INITS, default="identity",
                       help="identity: the published start, dimensions fade during the run; calibrated: closed-form "
                            "compactors from a few batches, the student has its size from the first step "
                            "(default: identity)")
    group.add_argument("--compactor_learning_rate", type=float, metavar="LR",
                       help="of the compactors (default: 5e-5, but see --w_step)")
    group.add_argument("--bias_correction", choices=("true", "false"),
                       help="whether AdamW corrects the bias of its moments, without which its first hundreds of steps "
                            "are several times the rate (default: false, as published; true with --compactor_init "
                            "calibrated, with another --target than mlm, and see --w_step)")
    group.add_argument("--w_step", type=int, metavar="N",
                       help="steps between mask updates (default: 500; where none of --w_step, --mask_schedule_share, "
                            "--penalty and --l2_lambda is given: masks that fade, over a quarter of the run or half of "
                            "a short one, with rates of 1e-4 and --bias_correction true)")
    group.add_argument("--mask_schedule_share", type=float, metavar="SHARE",
                       help="sets --w_step so that the mask schedule takes this share of total_steps")
    group.add_argument("--mask_scores", choices=MASK_SCORES, default="norm",
                       help="what masks are chosen by. norm: column norms of the compactors; taylor: running mean of "
                            "|gradient × value| (default: norm)")
    group.add_argument("--l2_lambda", type=float, metavar="λ", help="strength of the published penalty (default: 20)")
    group.add_argument("--penalty", choices=PENALTIES,
                       help="published: L2 gradient and moment surgery; fade: masked entries shrink by a constant "
                            "factor (default: published, but see --w_step)")
    group.add_argument("--after_squeeze", "--train", choices=AFTER_SQUEEZE,
                       help="once everything has left (after calibration: from the first step), go on training teacher "
                            "and compactors through the student, or fold them into the plain student and train that, "
                            "at a plain student's cost (default: compactors; student with --compactor_init "
                            "calibrated)")
    group.add_argument("--student_learning_rate", type=float, metavar="LR",
                       help="of the student once it is folded (default: the larger of --learning_rate and "
                            "--compactor_learning_rate, after calibration the former if both are given; if neither: "
                            "2e-4, for states, similarities, relations and layers 1e-3, for logits with layers 5e-4)")
    group.add_argument("--comp_only", action="store_true", help="train the compactors alone")
    group.add_argument("--mask_path", metavar="FILE", help="where the masks are recorded, for convert.py")
    group.add_argument("--squeeze_tolerance", type=float, default=1e-4, metavar="X",
                       help="masked dimensions leave for good once their compactor entries are below X (default: 1e-4)")
    group.add_argument("--no_squeeze", action="store_true", help="keep masked dimensions in the model to the end")


def add_soft_target_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("soft labels")
    group.add_argument("--soft_targets_weight", type=float, default=0.0, metavar="W",
                       help="share of a soft-label loss from a teacher that runs along (default: 0)")
    group.add_argument("--soft_targets_teacher", metavar="PATH",
                       help="that teacher (default: with --weight_squeeze the one at --pretrained_model_path)")
    group.add_argument("--soft_targets_temperature", type=float, default=1.0, metavar="T",
                       help="softens both distributions (default: 1)")
    group.add_argument("--soft_targets_top_k", type=int, default=TOP_K, metavar="K",
                       help=f"tokens of the teacher's distribution that count (default: {TOP_K})")


def add_teaching_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("teaching: what a teacher that runs along is learnt from")
    group.add_argument("--state_distance", choices=("cosine", "squared"), default="cosine",
                       help="between states: 1 - cosine, or squared error (default: cosine)")
    group.add_argument("--state_tokens", action="store_true",
                       help="compare the states of all tokens (default: pooled, as the teacher pools)")
    group.add_argument("--similarity_weight", type=float, default=0.0, metavar="W",
                       help="with --target states: add W times the loss of --target similarity (default: 0)")
    group.add_argument("--relation_weight", type=float, default=0.0, metavar="W",
                       help="with --target mlm: add W times the loss of --target relations (default: 0)")
    group.add_argument("--relation_heads", type=int, default=RELATION_HEADS, metavar="N",
                       help="heads that queries, keys and values are split into for relations, at most; as many as "
                            f"divide both models' widths (default: {RELATION_HEADS})")
    group.add_argument("--augment_texts", type=float, default=0.0, metavar="SHARE",
                       help="end this share of the texts as others do, and replace tokens in this share (default: 0)")
    group.add_argument("--layer_weight", type=float, default=0.0, metavar="W",
                       help="with any --target and a teacher that runs along: add W times what linear maps of the "
                            "student's layers do not tell of the teacher's, a share from 0 to 1 (default: 0)")
    group.add_argument("--layer_signals", nargs="+", choices=LAYER_SIGNALS, default=["output"],
                       help="what of a layer (default: output)")
    group.add_argument("--layer_numbers", type=int, nargs="+", metavar="I",
                       help="of which of the student's layers, counted from 0 (default: of all)")
    group.add_argument("--fix_state_map", action="store_true", help="leave the map into the teacher's space as it is")


def add_calibration_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("calibration (with --compactor_init calibrated)")
    group.add_argument("--calibration_path", nargs="+", metavar="FILE",
                       help="dataset to calibrate on (default: the training dataset)")
    group.add_argument("--calibration_batches", type=int, metavar="N",
                       help="batches of 16 instances to calibrate on, over all processes (default: 4; 64 for a teacher "
                            "without MLM head)")
    group.add_argument("--compactors_path", metavar="FILE",
                       help="what calibrate.py --compactors_path wrote for this teacher and student, instead of "
                            "calibrating again")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--output_model_path", metavar="PATH", help="checkpoints are written to PATH-<step>")
    group.add_argument("--save_checkpoint_steps", type=int, default=10000, metavar="N",
                       help="steps between checkpoints; the last step always writes one (default: 10000)")
    group.add_argument("--keep_checkpoints", type=int, metavar="N",
                       help="delete all but the newest N checkpoints (default: keep all)")
    group.add_argument("--resume", nargs="?", const="newest", metavar="CHECKPOINT",
                       help="go on from a checkpoint of this run (without a value: the newest)")
    group.add_argument("--allow_changed_data", action="store_true",
                       help="let --resume go on with another batch size, number of processes, seed or masking (with "
                            "what is left of the epoch), or with another dataset (from its beginning)")
    group.add_argument("--report_steps", type=int, default=100, metavar="N",
                       help="steps between reports (default: 100)")
    group.add_argument("--eval_steps", type=int, metavar="N",
                       help="steps between evaluations on --dev_path (default: at the end only)")
    group.add_argument("--tb_path", metavar="DIR", help="TensorBoard events and metrics.jsonl go here")
    group.add_argument("--tb_histograms_steps", type=int, metavar="N",
                       help="steps between histograms of all weights in TensorBoard (default: none)")
    group.add_argument("--log_path", metavar="FILE", help="the console's lines go here as well")
    group.add_argument("--dryrun", action="store_true",
                       help="run every stage once on a few instances, in a temporary folder, and say how long each "
                            "took")
    group.add_argument("--plan", action="store_true",
                       help="print parameters, operations, memory and traffic of the run and leave; data, vocabulary "
                            "and weights need not be there")
    group.add_argument("--seq_length", type=int, metavar="N",
                       help="with --plan: tokens per instance (default: the dataset's, else 128)")


def add_distributed_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("processes")
    group.add_argument("--world_size", type=int, default=1, metavar="N", help="processes in all (default: 1)")
    group.add_argument("--gpu_ranks", type=int, nargs="+", default=[], metavar="RANK",
                       help="ranks that run on this machine, one GPU each (CPU processes where there is no GPU)")
    group.add_argument("--master_ip", metavar="URL",
                       help="where the processes meet, tcp://<machine of rank 0>:<port> (default: a free port, which "
                            "does for one machine)")
    group.add_argument("--local_rank", "--local-rank", type=int, metavar="N",
                       help="as torch.distributed.launch gives it; else LOCAL_RANK in the environment says it")
    group.add_argument("--backend", choices=("nccl", "gloo"),
                       help="how processes talk (default: nccl on GPUs, gloo on CPUs)")
    group.add_argument("--rendezvous_timeout", type=float, default=300.0, metavar="SECONDS",
                       help="how long the processes wait for each other at the start (default: 300)")
    group.add_argument("--ddp_comm_hook", choices=("none", "bf16"), default="none",
                       help="what gradients travel as between GPUs (nccl); none: as they are, bf16: in bfloat16, half "
                            "the bytes (default: none)")
    group.add_argument("--shard_master", action="store_true",
                       help="every process keeps, composes and updates a part of the layers only")
    group.add_argument("--check_replicas_steps", type=int, default=1000, metavar="N",
                       help="steps between comparisons of the processes' weights (default: 1000)")


def pretrain_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Compress a BERT by weight-inherited distillation (--weight_squeeze), or train one by MLM.",
        epilog="Options come first from the command line, then from the JSON at --config_path, then from the defaults.")
    add_data_options(parser)
    add_tokenizer_options(parser)
    add_masking_options(parser)
    add_model_options(parser)
    add_optimization_options(parser)
    add_squeeze_options(parser)
    add_calibration_options(parser)
    add_soft_target_options(parser)
    add_teaching_options(parser)
    add_run_options(parser)
    add_distributed_options(parser)
    add_uer_options(parser, without=("target", "optimizer", "data_processor"))
    return parser


def calibrate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Make a smaller BERT from a teacher and some text in closed form, without any training.")
    group = parser.add_argument_group("text")
    add_corpus_options(group, required=False)
    add_processor_option(group, "processor", "(default: mlm, or as --dataset_path was built)")
    group.add_argument("--dataset_path", nargs="+", metavar="FILE", help="dataset of preprocess.py, instead of text")
    group.add_argument("--full_sentences", nargs="?", const="true", choices=("true", "false"),
                       help="with --corpus_path: join the lines of a document, instead of one instance a line "
                            "(default: true for a teacher with MLM head, false for others)")
    group.add_argument("--seq_length", type=int, metavar="N",
                       help="with --corpus_path: tokens an instance (default: 128, or the teacher's positions)")
    group.add_argument("--dev_path", nargs="+", metavar="FILE",
                       help="held-out dataset to compare on (default: other parts of the text)")
    group.add_argument("--skip_evaluation", action="store_true", help="do not compare teacher and student")
    add_tokenizer_options(parser)
    add_masking_options(parser)
    group = parser.add_argument_group("teacher and student")
    group.add_argument("--pretrained_model_path", required=True, metavar="PATH",
                       help="teacher: a UER file, a Hugging Face or a sentence-transformers folder")
    group.add_argument("--config_path", metavar="FILE", help="the teacher's config, where it does not bring its own")
    group.add_argument("--allow_missing_head", action="store_true",
                       help="give a teacher without MLM head a fresh one, instead of compressing it as the encoder, "
                            "classifier, tagger or reader that it is")
    group.add_argument("--target_dim", type=int, metavar="D", help="the student's hidden size (default: the teacher's)")
    group.add_argument("--student_path", metavar="PATH",
                       help="a student of a sentence encoder that is there already: leave it as it is, but for its map "
                            "into the teacher's space, which is fitted to the text, the documents of an index say")
    add_shape_options(group)
    group.add_argument("--target_vocab", metavar="N|FILE",
                       help="words to keep: the N most frequent of the text, or those of a vocabulary file, in its "
                            "order; others are spelt with them (default: all)")
    group.add_argument("--calibration_batches", type=int, metavar="N",
                       help="batches of 16 instances to calibrate on (default: 4; 64 for a teacher without MLM head, "
                            "512 with --student_path)")
    group.add_argument("--seed", type=int, default=7, help="of the choice of batches and a fresh head (default: 7)")
    group.add_argument("--output_model_path", metavar="FILE", help="student to write")
    group.add_argument("--output_format", nargs="+", choices=FORMATS,
                       help="one or several, as convert.py has them (default: uer)")
    group.add_argument("--keep_embedding_size", action="store_true",
                       help="of a sentence encoder: let the Hugging Face folder and ONNX end with a map into the "
                            "teacher's space, so that their vectors stand beside the teacher's")
    group.add_argument("--compactors_path", metavar="FILE",
                       help="also write the compactors, for pretrain.py --compactors_path to start from")
    group = parser.add_argument_group("shapes side by side")
    group.add_argument("--sweep", nargs="+", metavar="LAYERSxHIDDEN[xFEEDFORWARD]",
                       help="instead of writing a student, print of each of these shapes (6x256 4x312) size, "
                            "operations, texts a second on this machine, and what it is worth without training")
    group.add_argument("--budget", metavar="N",
                       help="the same for the shapes that spend a budget: of parameters (9M), or of operations that a "
                            "text may take (0.75GFLOP); with --uneven on the layers of one")
    group.add_argument("--uneven", action="store_true",
                       help="with --budget: write one student, of --target_dim and --target_layers (default: the "
                            "widest that the budget allows), and spend the budget on the heads and neurons of its "
                            "layers where they are worth most to what the teacher says")
    group.add_argument("--sweep_path", metavar="FILE",
                       help="write the table there as JSON lines, and a plot beside it (.png; needs matplotlib)")
    add_uer_options(parser, without=("data_processor",))
    return parser
