"""Run reports: synthetic logs, a real run, logs that are broken, and the page in a real browser."""

import base64
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from bench import WID, options, run

from uer.errors import UserError, run_script
from uer.report import __main__ as command
from uer.report import figures
from uer.report.log import current, group_of, mask_stability, names_for, read_run
from uer.report.page import SECTIONS, write_report
from uer.report.page import told as page_of
from uer.report.story import story
from uer.training.recorder import is_noted

KEYS = [section.key for section in SECTIONS]
SIZES = {"hidden": [64, 32], "attention.0": [64, 32], "attention.1": [64, 32], "ffn.0": [256, 128],
         "ffn.1": [256, 128], "mlm": [64, 32]}


def synthetic(folder: Path, speed: float = 1.0, squeezed_at: int = 400, total: int = 1000) -> Path:
    """The log of a run in which everything happens: masks, a squeeze, evaluations."""
    def model(scale: int) -> dict:
        parts = {"embedding": 4000 * scale, "attention": 30000 * scale, "feed-forward": 60000 * scale,
                 "MLM head": 5000 * scale}
        return {"kind": "model", "parameters": parts, "trained": 10**6, "composition": 2 * 10**8 * scale,
                "operations": {part: 10**4 * number for part, number in parts.items()}, "peak_memory": 10**8,
                "on_activations": 9 * 10**9}

    lines = [{"step": 0, **model(2), "start": {"total_steps": total, "groups": SIZES, "strategy": "dim"}}]
    for step in range(20, total + 1, 20):
        share = max(0.5, 1 - step / 600)
        if step % 40 == 0 and step <= squeezed_at:
            groups = {name: {"kept": round(share * size), "stable": None if step == 40 else 1 - 0.3 * 40 / step,
                             "norms": [1.0 if i < 32 * share else 0.1 for i in range(32)]}
                      for name, (size, _) in SIZES.items()}
            lines.append({"step": step, "kind": "masks", "groups": groups})
        if step == squeezed_at:
            lines.append({"step": step, "kind": "squeeze", "groups": list(SIZES), "loss_before": 3.0,
                          "loss_after": 3.0001})
            lines.append({"step": step, **model(1)})
        lines.append({"step": step, "kind": "train", "loss": 2 + 4 * 0.99 ** (speed * step), "accuracy": step / 4000,
                      "tokens_per_second": 1000, "seconds_per_step": 0.5 if step <= squeezed_at else 0.06,
                      **{f"kept/{name}": round(share * size) for name, (size, _) in SIZES.items()}})
        if step % 200 == 0:
            lines.append({"step": step, "kind": "dev", "loss": 2.1 + 4 * 0.99 ** (speed * step),
                          "accuracy": step / 4100})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def check_folder(folder: Path, title: str, keys: Sequence[str] = KEYS) -> str:
    """The page and its pictures are there, whole, and nothing in the page comes from elsewhere; returns its text."""
    assert {path.name for path in folder.iterdir()} == {"report.html", *(f"{key}.png" for key in keys)}
    for key in keys:
        head = (folder / f"{key}.png").read_bytes()[:24]
        width, height = struct.unpack(">II", head[16:24])
        assert head[:8] == b"\x89PNG\r\n\x1a\n" and 600 < width < 2500 and 150 < height < 4000, key
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"<title>{title}</title>" in page
    assert re.findall(r'<section id="(\w+)">', page) == list(keys)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(source.startswith("data:") for source in sources) and "http" not in page.replace("base64", "")[:4000]
    for source in sources[1:]:
        svg = base64.b64decode(source.removeprefix("data:image/svg+xml;base64,")).decode()
        assert svg.rstrip().endswith("</svg>") and svg.count("<path") > 3
    return page


def call(*words, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["uer.report", *map(str, words)])
    run_script(command.main)


# -- pages -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The folder of a report on one run with a name, and one on two; what the command said of the second."""
    folder, said = tmp_path_factory.mktemp("pages"), StringIO()
    paths = [synthetic(folder / "logs/a"), synthetic(folder / "logs/b", speed=2.0, squeezed_at=200)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        call(paths[0] / "metrics.jsonl", "--names", "6 × 64 & <b>", monkeypatch=patch)
        with redirect_stdout(said):
            call(*paths, monkeypatch=patch)
    return {1: folder / "logs/a/report", 2: folder / "report", "said": said.getvalue()}


def test_two_runs(pages):
    assert re.fullmatch(r"made  report/report.html\ngood  a: 24.4 % of .*\nnext  open report/report.html .*\n",
                        pages["said"])
    page = check_folder(pages[2], "2 runs: a, b")
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    assert [row[0] for row in rows[1:]] == ["a", "b"]
    assert rows[1][1:] == ["1,000", "2.100", "24.4 %", "198 → 99 k", "2.38 → 1.19 GFLOP", "7.6", "500 → 60 ms",
                           "step 400"]
    assert rows[2][-1] == "step 200"


def test_one_run_with_a_name(pages):
    page = check_folder(pages[1], "Run 6 × 64 &amp; &lt;b&gt;")
    assert "Step 1,000 of 1,000" in page and "198 → 99 k" in page and "<b>2.100</b>" in page


def test_the_story_of_a_run_over_two_days(tmp_path, monkeypatch):
    """Stopped at 620, resumed from 600: one curve, time of both days, the teacher, GLUE, what comes next."""
    log = synthetic(tmp_path / "a") / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[0]["start"] |= {"teacher_accuracy": 0.25, "output": "models/s.bin"}
    again = {**lines[0], "step": 600}
    told_next = "python3 convert.py --load_model_path models/s.bin-1000 --vocab_path v.txt"
    first, second = ([line for line in lines if low <= line["step"] <= high] for low, high in ((0, 620), (601, 1000)))
    log.write_text("".join(json.dumps(line) + "\n" for line in [*first, again, *second, {
        "step": 1000, "kind": "end", "next": told_next}]))
    models = {"teacher": {"tasks": {"SST-2": {"score": {"median": 0.9}}}, "average": {"median": 0.9}},
              "student": {"tasks": {}, "average": None}}
    (tmp_path / "glue.json").write_text(json.dumps({"models": models}))
    (tmp_path / "sts.json").write_text(json.dumps({"STS-B": {"spearman": 0.8123}, "pairs": 1500}))
    found = read_run(str(tmp_path / "a"), "a")
    steps = [line["step"] for line in found.train]
    assert steps == sorted(set(steps)) and steps[-1] == 1000
    told = story(found)
    assert told["How good"].startswith("24.4 % of the masked tokens of held-out text right, 98 % of what its teacher")
    assert told["How long"].startswith("0:03:56 in 1,000 steps, in 2 starts")  # 400 · 0.5 s + 600 · 0.06 s
    assert told["Next"] == told_next
    call(tmp_path / "a", "--results", tmp_path / "glue.json", tmp_path / "sts.json", monkeypatch=monkeypatch)
    page = check_folder(tmp_path / "a/report", "Run a")
    cells = re.findall(r"<td>([^<]*)</td>", page)
    assert cells == ["teacher", "90.0", "90.0", "student", "–", "–", "sts", "0.8123", "1,500"]
    found.train = found.train[:10]
    assert story(found)["Next"] == "The same command with --resume: 800 steps are left."
    assert "<code>" not in page_of(found)


def test_a_run_without_labels_is_told_by_its_own_figure(tmp_path):
    log = synthetic(tmp_path)
    lines = [json.loads(line) for line in (log / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "start" in line:
            line["start"] = {**line["start"], "figure": "cosine"}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (log / "metrics.jsonl").write_text(re.sub(r'(["/])mlm"', r'\1cls"', text))  # the groups of a classifier
    found = read_run(str(log), "a")
    told = story(found)
    assert told["How good"].startswith("Cosine") and "masked tokens" not in told["How good"]
    assert list(found.kept()) == list(found.stability()) == ["hidden", "attention", "ffn", "cls"]
    pictures = [figures.norms([found]), figures.dimensions([found])]
    words = [text.get_text() for axes in pictures[0].axes for text in (axes.title, *axes.texts)]
    assert "classifier" in words and "MLM head" not in words
    assert "all squeezed" in [text.get_text() for text in pictures[1].axes[0].texts]
    assert [group_of(f"target.{name}_left_compactor") for name in ("output_layer_2", "mlm_linear_2")] == ["cls", "mlm"]


def test_results_that_are_none(tmp_path, monkeypatch, capsys):
    (tmp_path / "x.json").write_text('{"name": "x"}')
    with pytest.raises(SystemExit):
        call(synthetic(tmp_path / "a"), "--results", tmp_path / "x.json", monkeypatch=monkeypatch)
    assert "x.json: no figures in it" in capsys.readouterr().err


def test_logs_of_plain_and_older_runs(tmp_path):
    """Nothing but losses: the page has the parts that the logs tell of."""
    for name, more in (("plain", {}), ("older", {"kept/hidden": 32, "kept/ffn.0": 128})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(
            json.dumps({"step": step, "kind": "train", "loss": 5.0, "accuracy": 0.0, **more}) + "\n"
            for step in (1, 2)))
    write_report([str(tmp_path / "plain")])
    check_folder(tmp_path / "plain" / "report", "Run plain", ["learning"])
    write_report([str(tmp_path / name) for name in ("plain", "older")], output=str(tmp_path / "both"))
    check_folder(tmp_path / "both", "2 runs: plain, older", ["learning", "dimensions"])


def test_a_real_run(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(options(bench, *WID, penalty="fade", total_steps=48, w_step=2, report_steps=4, eval_steps=24,
                after_squeeze="student", dev_path=bench / "dev.pt", tb_path="logs/wid"))
    run(options(bench, total_steps=8, report_steps=4, tb_path="logs/plain", output_model_path="plain.bin"))
    assert story(read_run("logs/plain", "plain"))["What"].startswith("Step 8 of 8; 2 layers × 32")
    write_report(["logs/wid"])
    page = check_folder(tmp_path / "logs/wid/report", "Run wid")
    assert "newest checkpoint model.bin-48" in page and "2 layers × 32 to 16 (dim)" in page
    found = read_run("logs/wid", "wid")
    assert {n: c[-1][1] for n, c in found.kept().items()} == dict.fromkeys(["hidden", "attention", "ffn", "mlm"], 0.5)
    left, squeezed = ([line["step"] for line in lines] for lines in (found.model, found.squeeze))
    assert squeezed and len(found.fold) == 1 and {0, *squeezed, found.fold[0]["step"]} < {*left}
    assert sum(found.model[-1]["parameters"].values()) < sum(found.model[0]["parameters"].values())
    assert all(line["seconds_per_step"] > 0 for line in found.train)
    of_file, of_log = mask_stability("masks.txt"), {}
    for line in found.masks:
        for name, group in line["groups"].items():
            assert group["norms"] == sorted(group["norms"], reverse=True) and len(group["norms"]) <= 32
            of_log.setdefault(name, {})[line["step"]] = group["stable"]
    for name, curve in of_file.items():  # the file has the steps at which some mask changed, and the last checkpoint
        for step, share in curve[:-1]:
            if step in of_log[name]:
                assert of_log[name][step] == pytest.approx(share), (name, step)


def test_a_resumed_run_counts_once():
    def line(kind, step, **more):
        return {"kind": kind, "step": step, **more}

    first = [line("model", 0, start={}), *(line("train", step) for step in (1, 2, 3, 4)), line("dev", 4)]
    resumed = [line("model", 2, start={"again": 1}), line("train", 3), line("dev", 4)]
    assert [(x["kind"], x["step"]) for x in current(first + resumed)] == [
        ("model", 0), ("train", 1), ("train", 2), ("model", 2), ("train", 3), ("dev", 4)]
    assert current([*first, line("model", 0, start={}), line("train", 1)]) == [first[0], first[1]]
    assert [x["step"] for x in current([line("train", step) for step in (1, 2, 3, 2, 3)])] == [1, 2, 3]


def test_few_mask_updates_are_noted_however_long_the_run():
    assert all(map(is_noted, range(1, 128))) and sum(map(is_noted, range(1, 10**5))) < 800


def test_names_tell_runs_apart():
    assert names_for(["x/a", "x/b/metrics.jsonl"]) == ["a", "b"] and names_for(["x/a", "y/a"]) == ["x/a", "y/a"]
    with pytest.raises(UserError, match="the same run is named twice"):
        names_for(["x/a", "x/a"])


# -- logs that cannot be used ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [b'{"step": 1020, "kind": "tr', b'{"step": 1020, "kind": "train"}', b"\n"])
def test_a_line_that_is_being_written(tmp_path, tail):
    folder = synthetic(tmp_path / "a")
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(tail)
    assert read_run(str(folder), "a").last_step == 1000


GOOD = '{"step": 1, "kind": "train", "loss": 5.0, "accuracy": 0.1}\n'


@pytest.mark.parametrize(("content", "message"), [
    (None, "metrics.jsonl: no such file"),
    ("", "no training report in there (yet)"),
    ('{"step": 4, "kind": "dev", "loss": 5.0, "accuracy": 0.1}\n', "no training report"),
    (GOOD + "nonsense\n" + GOOD, "line 2: not JSON ('nonsense')"),
    (GOOD + "[1, 2]\n", "line 2: a JSON object with a step and a kind is needed"),
    ('{"step": 1, "kind": "train", "loss": 5.0}\n', "line 1: a line of kind train without accuracy"),
    (GOOD.replace("5.0", "NaN"), "no training report"),
    (GOOD.replace("0.1", '"x"'), "line 1: accuracy 'x'; a number is needed"),
    ('{"step": 0, "kind": "model", "parameters": 1, "operations": 1, "start": 3}\n', "start must be a JSON object"),
    (b"\xff\xfe\n", "not a text file in UTF-8")])
def test_broken_logs(tmp_path, monkeypatch, capsys, content, message):
    folder = tmp_path / "run"
    folder.mkdir()
    if content is not None:
        (folder / "metrics.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as end:
        call(folder, monkeypatch=monkeypatch)
    said = capsys.readouterr().err
    assert end.value.code == 2 and message in said and said.count("\n") == 1 and not (folder / "report").exists()


def test_a_run_that_lost_its_loss(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(GOOD + GOOD.replace("5.0", "NaN").replace('"step": 1', '"step": 2'))
    run = read_run(str(tmp_path), "run")
    assert run.curve("train", "loss") == [(1, 5.0)] and run.last_step == 1


def test_options_that_do_not_fit(tmp_path):
    folder = str(synthetic(tmp_path / "a"))
    with pytest.raises(UserError, match="--names has 2 values for 1 runs"):
        write_report([folder], names=["a", "b"])
    with pytest.raises(UserError, match=r"absent.txt: cannot be read"):
        write_report([folder], mask_paths=["absent.txt"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        write_report([folder], output=str(tmp_path / "file"))


def test_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        call(tmp_path, monkeypatch=monkeypatch)
    assert end.value.code == 2 and "needs matplotlib" in capsys.readouterr().err


# -- in a browser ------------------------------------------------------------------------------------------------------

LOOK = """
<script>
window.addEventListener("load", async () => {
  const found = [];
  for (const image of document.images) {
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
    const pen = canvas.getContext("2d");
    pen.drawImage(image, 0, 0);
    const pixels = new Uint32Array(pen.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
    found.push([image.getBoundingClientRect().width > 300, new Set(pixels).size]);
  }
  document.body.dataset.found = JSON.stringify({title: document.title, images: found,
      wide: document.documentElement.scrollWidth > window.innerWidth});
});
</script>
"""


def chromium() -> str:
    """A Chromium on PATH, or one that playwright has installed; skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if shutil.which(name):
            return shutil.which(name)
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache/ms-playwright")
    found = sorted(cache.glob("chromium*/chrome-*/*chrom*"))
    found = [path for path in found if path.is_file() and os.access(path, os.X_OK)]
    if not found:
        pytest.skip("no Chromium: neither on PATH nor installed by playwright")
    return str(found[-1])


@pytest.mark.parametrize("runs", [1, 2])
def test_the_page_in_a_browser(pages, tmp_path, runs):
    browser = chromium()
    text = (pages[runs] / "report.html").read_text(encoding="utf-8")
    looked_at = tmp_path / "looked_at.html"
    looked_at.write_text(text.replace("</body>", LOOK + "</body>"), encoding="utf-8")
    done = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                           f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1100,900",
                           "--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom",
                           looked_at.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    seen = json.loads(found[1].replace("&quot;", '"'))
    assert seen["title"] == ("Run 6 × 64 &amp; &lt;b&gt;" if runs == 1 else "2 runs: a, b") and not seen["wide"]
    assert len(seen["images"]) == len(SECTIONS)
    for key, (wide, colours) in zip(KEYS, seen["images"]):
        assert wide and colours > 50, key
