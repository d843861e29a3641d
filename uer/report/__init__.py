"""Reports on runs: `python3 -m uer.report RUN…` turns their logs into a page and pictures."""
