"""calibrate.py --student_path: a sentence encoder's map into its teacher's space, fitted anew to some text.

    W, b    least squares of the teacher's vectors on the student's pooled states, as a correction to the map there is

Training finds one map for all text. The few dimensions of a small student tell the texts of one index apart better
through a map of their own: what is fitted to the documents of an index (their sentences) lets the student's queries
find them among the teacher's vectors.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from uer.arguments import refuse_overwriting, typed_again
from uer.calibration.command import WISHES, Made, check_text, gather, judge
from uer.calibration.moments import Moments, regress
from uer.conversion.outputs import UER_FORMATS, Source, check_kept_size, output_paths, write_outputs, written_by
from uer.data.loader import MlmBatch
from uer.errors import UserError
from uer.formats import LoadedModel, load_model
from uer.formats.model_card import CardFacts
from uer.formats.shapes import WORDS, parameter_count
from uer.models.bert import Bert, from_weights
from uer.opts import calibrate_parser
from uer.progress import tracked

WEIGHT, BIAS = "target.output_layer.weight", "target.output_layer.bias"
IDLE = ("budget", "sweep", "sweep_path", "compactors_path", "allow_missing_head", "compactor_mask_strategy")
BATCHES = 512  # by default: a text costs two forward passes, and no memory


def refit_student(args: argparse.Namespace, command: str) -> Made:
    """Fit the map of --student_path to the text, compare before and after, write the student. `UserError` for an
    option that would do nothing, where teacher or student are no sentence encoders, and for other words."""
    _check(args)
    paths = output_paths(args.output_model_path, args.output_format or ["uer"])
    refuse_overwriting(args, {"output_model_path": written_by(paths)})
    args.calibration_batches = args.calibration_batches or BATCHES
    material = gather(args, paths)
    teacher, device = material.loaded, material.place.device
    if teacher.config.target != "states":
        raise UserError(f"--student_path: {args.pretrained_model_path} is no sentence encoder, so no student of it has "
                        f"a map into its space")
    student = load_model(args.student_path, config=None, vocab_size=material.text.vocab_size, target="states")
    before = _with_map(student, teacher.config.outputs)
    positions = before.config.max_seq_length
    longest = max(batch.src.shape[1] for batch in (*material.batches, *material.held_out))
    if longest > positions:
        raise UserError(f"--student_path {args.student_path}: {positions} positions, and texts have up to {longest} "
                        f"tokens; cut them with --seq_length {positions}")
    theirs, ours = (from_weights(model.config, model.weights).to(device).eval() for model in (teacher, before))
    after = fitted(theirs, ours, material.batches, by_direction(teacher))
    for line in (*student.notes, f"map fitted to {sum(len(batch.src) for batch in material.batches):,} texts"):
        print(line)
    figures = []
    if material.held_out:
        for when, weights in (("before", before.weights), ("after", after)):
            found = judge({"teacher": (teacher.config, teacher.weights), "student": (before.config, weights)},
                          material.held_out, material.where, material.place, mapped=True)
            figures += [(f"{what}, {when}", said) for what, said in found.figures]
    for what, said in figures[:1]:  # how good it is after, the script's end says
        print(f"{what}: {said}")
    facts = CardFacts(
        name=Path(args.output_model_path).stem, source=Path(args.student_path).name,
        how="A student as it was, but for its map into its teacher's space, which was fitted to a text by least "
            "squares.", parameters=parameter_count(after), command=command, teacher=teacher.config, figures=figures)
    sentence = teacher.sentence and replace(teacher.sentence, mapped=False, pooling=before.config.pooling)
    source = Source(before.config, after, facts, student.extras, material.text, sentence=student.sentence or sentence,
                    keep_embedding_size=not UER_FORMATS.keys() >= paths.keys(), reading=student.reading)
    for line in write_outputs(source, paths):
        print(f"written: {line}")
    return Made(paths, "states", figures)


@torch.no_grad()
def fitted(teacher: Bert, student: Bert, batches: Sequence[MlmBatch], by_direction: bool) -> dict[str, torch.Tensor]:
    """The student's weights with the map that tells most of the teacher's vectors on these texts.

    Args:
        teacher, student: on the batches' device, with target `states` and as many outputs.
        by_direction: vectors of length 1 are told, so that every text counts alike.
    """
    hidden, outputs = student.config.hidden_size, student.config.outputs
    moments = Moments(batches[0].src.device, z=hidden, y=outputs)
    for batch in tracked(batches, len(batches), "map", "batches"):
        wanted = teacher.target(teacher.pooled(batch.src, batch.seg))
        moments.add(z=student.pooled(batch.src, batch.seg), y=F.normalize(wanted, dim=1) if by_direction else wanted)
    prior = student.get_parameter(WEIGHT).double()
    covariance, across = moments.share().covariance("z"), moments.covariance("y", "z")
    told = ((prior @ covariance) * prior).sum()
    if by_direction and told > 0:  # vectors have become shorter: by as much as least squares say
        prior = prior * ((prior * across).sum() / told)
    found = regress(moments, "z", "y", prior)
    weights = student.state_dict()
    return weights | {WEIGHT: found.matrix.to(weights[WEIGHT]), BIAS: found.offset.to(weights[WEIGHT])}


def by_direction(teacher: LoadedModel) -> bool:
    """Whether a teacher's vectors count by their direction alone."""
    return teacher.sentence is None or teacher.sentence.normalize or teacher.sentence.similarity in (None, "cosine")


def _with_map(student: LoadedModel, outputs: int) -> LoadedModel:
    """The student with a map of so many outputs: its own, or, where it has none into the teacher's space, zeros."""
    if student.config.outputs == outputs:
        return student
    states = student.weights[WORDS]
    none = {WEIGHT: states.new_zeros(outputs, states.shape[1]), BIAS: states.new_zeros(outputs)}
    return replace(student, config=replace(student.config, outputs=outputs), weights={**student.weights, **none})


def _check(args: argparse.Namespace) -> None:
    """`UserError` for what can be known to be wrong before any work."""
    said = typed_again(calibrate_parser(), args, (*WISHES, *IDLE))
    if idle := [word for word in said if word.startswith("--")]:
        raise UserError(f"--student_path: the student is there already, and all but its map stays; leave "
                        f"{', '.join(idle)} out")
    check_text(args)
    if not args.output_model_path:
        raise UserError("--output_model_path is needed, where the student goes")
    check_kept_size(args.keep_embedding_size, args.output_format or ["uer"])
