"""The command line of `python3 -m uer.report`. Needs no torch to answer `--help`."""

from __future__ import annotations

import argparse
import importlib.util

from uer.errors import UserError, run_script
from uer.progress import ending


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="python3 -m uer.report", allow_abbrev=False,
        description="Turn the logs of one or several runs into an HTML page that stands alone, and PNGs beside it.")
    out.add_argument("runs", nargs="+", metavar="RUN", help="--tb_path of a run, or the metrics.jsonl in there")
    out.add_argument("--names", nargs="+", metavar="NAME", help="what to call the runs (default: their folders)")
    out.add_argument("--mask_path", nargs="+", metavar="FILE",
                     help="mask files of the runs, in their order (default: where the logs say they are)")
    out.add_argument("--output_path", metavar="DIR",
                     help="folder for report.html and the PNGs (default: `report`, beside a single log or here)")
    out.add_argument("--results", nargs="+", default=[], metavar="FILE",
                     help="glue.json of run_glue.py and figures of evaluate.py, to be shown as tables")
    return out


def main() -> None:
    args = parser().parse_args()
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("a report needs matplotlib, which is not installed (pip install matplotlib)")
    from uer.report.page import write_report

    path, verdicts = write_report(args.runs, args.names, args.mask_path, args.output_path, args.results)
    ending(f"{path}", " ".join(verdicts), f"open {path} in a browser")


if __name__ == "__main__":
    run_script(main)
