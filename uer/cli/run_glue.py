"""All GLUE tasks of a folder, several models side by side: a table and a chart."""

from __future__ import annotations

from uer.cli import importing, suggestion
from uer.config import parse_with_config
from uer.finetuning.options import glue_parser as parser
from uer.progress import ending


def main() -> None:
    args, given = parse_with_config(parser)
    with importing():
        from uer.finetuning.glue import run_glue

    found = run_glue(args, given)
    scores = {name: model["average"] for name, model in found["models"].items()}
    ending(f"{args.output_path}/glue.md, a table of {len(scores)} model(s)",
           ", ".join(f"{name} {100 * mean['median']:.1f}" for name, mean in scores.items() if mean) or
           "no task that counts", suggestion("report", "RUN_FOLDER", "--results", f"{args.output_path}/glue.json"))
