"""The command line of `python3 -m uer.report`. Needs no torch to answer `--help`."""

from __future__ import annotations

import argparse
import importlib.util

from uer.errors import UserError, run_script


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m uer.report", allow_abbrev=False,
        description="Turn the logs of one or several runs into an HTML page that stands alone, and PNGs beside it.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="--tb_path of a run, or the metrics.jsonl in there")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="what to call the runs (default: their folders)")
    parser.add_argument("--mask_path", nargs="+", metavar="FILE",
                        help="mask files of the runs, in their order (default: where the logs say they are)")
    parser.add_argument("--output_path", metavar="DIR",
                        help="folder for report.html and the PNGs (default: `report`, beside a single log or here)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("a report needs matplotlib, which is not installed (pip install matplotlib)")
    from uer.report.page import write_report

    print(write_report(args.runs, args.names, args.mask_path, args.output_path))


if __name__ == "__main__":
    run_script(main)
