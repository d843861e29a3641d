"""docs/: every command on a page does what it says, with small figures; pages are short, links lead somewhere."""

import importlib
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from commands import ROOT, TEACHER, call, everything, shell
from corpora import TOKENS, described, random_corpus, write_vocab
from test_data_records import json_lines
from test_ranking import beir
from tuning import write_glue, write_squad, write_uer_tsv

from uer.cli import COMMANDS
from uer.cli.options import explained
from uer.config import ModelConfig
from uer.errors import UserError
from uer.formats.export import write_huggingface
from uer.formats.sentence import SentenceFacts, write_sentence_files
from uer.models.bert import from_scratch
from uer.tokenizers import TextRules

PAGES = sorted((ROOT / "docs").glob("*.md"))
LONGEST = 120  # lines of a page
SMALLER = [(r"--target_dim (384|256|192)", "--target_dim 64"), (r"--target_layers 6", "--target_layers 1"),
           (r"--target_vocab 8000", "--target_vocab 70"),
           (r"--sweep 6x384 12x192 6x192", "--sweep 1x64 2x64"),
           (r"--budget 20M --uneven", "--budget 0.08M --uneven"), (r"--budget 20M", "--budget 0.2M"),
           (r"--seq_length 128", "--seq_length 32"),
           (r"--total_steps \d+", "--total_steps 4"), (r"--(eval|report|save_checkpoint)_steps \d+", r"--\1_steps 2"),
           (r"\.bin-\d+", ".bin-4"), (r"--batch_size 64", "--batch_size 4"),
           (r"--processes_num 8", "--processes_num 2"), (r"--word_segmenter jieba", ""),
           (r"--full_sentences", "--full_sentences --seq_length 32"), (r"--seeds 1 2 3", "--seeds 1"),
           (r"--learning_rate 2e-5 5e-5", "--learning_rate 5e-5 --epochs_num 1 --seq_length 32"),
           (r"(run_squad.py .*)", r"\1 --epochs_num 1 --seq_length 48 --max_query_length 16 --doc_stride 16")]


def commands(page: Path) -> list[str]:
    """The commands in a page's sh blocks, a line each."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def parser_of(words: list[str]):
    """The parser of a command line and the words that it is to take."""
    assert words[0] == "python3"
    if words[1] == "-m":
        name = words[2].rpartition(".")[2] if words[2] != "uer" else words[3]
        rest = words[4 if words[2] == "uer" else 3:]
    else:
        assert (ROOT / words[1]).is_file(), words[1]
        name, rest = Path(words[1]).stem, words[2:]
    return importlib.import_module(COMMANDS[name][0]).parser(), rest


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_short_its_links_lead_somewhere_and_its_options_exist(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) < LONGEST
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    for path in re.findall(r"`((?:uer|tests|scripts|benchmarks|experiments)/[\w/]+\.\w+)`", text):
        assert (ROOT / path).is_file(), path
    for line in commands(page):
        parser, words = parser_of(shlex.split(line))
        parser.parse_args(words)
    known = {option for name in COMMANDS for options in explained(name) for option in options.split(", ")}
    assert not set(re.findall(r"(?<![\w-])--\w+", text)) - known - {"--nnodes", "--signal"}


def test_the_readme_links_every_page():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {page.name for page in PAGES} == set(re.findall(r"\(docs/(\w+\.md)\)", readme))


def test_the_pictures_are_what_the_script_draws(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    draw = importlib.import_module("draw")
    monkeypatch.setattr(draw, "PICTURES", tmp_path)
    draw.main()
    kept = {path.name: path.read_bytes() for path in (ROOT / "docs/pictures").iterdir()}
    assert kept == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name):
    """By more than its default; `python3 -m uer options WORD` finds it."""
    for option, text in explained(name).items():
        assert len(re.sub(r"\(?default:.*?\)?$", "", text).split()) >= 2, f"{name} {option}: {text!r} explains nothing"


def test_errors_name_pages_that_are_there():
    code = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("uer/**/*.py"))
    named = set(re.findall(r'page="(\w+)"', code))
    assert {"compress", "cluster", "formats"} <= named <= {page.stem for page in PAGES}
    assert str(UserError("no", page="formats")) == "no (docs/formats.md)"


# -- commands, run -----------------------------------------------------------------------------------------------------


def world(folder: Path) -> None:
    """What the pages' commands expect: a hub's BERT, JSON lines, UER's places, a TSV task."""
    for name in ("preprocess.py", "pretrain.py", "convert.py", "calibrate.py", "evaluate.py", "uer", "scripts",
                 "finetune", "inference"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("corpus", "heldout", "models", "bert", "datasets/chnsenticorp", "squad"):
        (folder / name).mkdir(parents=True)
    for i, name in enumerate(("corpus/a.jsonl", "corpus/b.jsonl", "heldout/c.jsonl")):
        (folder / name).write_text(json_lines(random_corpus(i, 60).split("\n\n")), encoding="utf-8")
    (folder / "zh_corpus.txt").write_text(random_corpus(5, 60), encoding="utf-8")
    vocab = write_vocab(folder).rename(folder / "models/google_zh_vocab.txt")
    for name in ("base", "small"):
        (folder / f"bert/{name}_config.json").write_text(TEACHER.to_json())
    theirs = ModelConfig(**{**vars(TEACHER), "layernorm": "huggingface", "layernorm_eps": 1e-12, "tie_weights": True})
    write_huggingface(folder / "my-bert", theirs, dict(from_scratch(theirs, len(TOKENS), seed=2).state_dict()),
                      text=described(vocab))
    write_encoder(folder, described(vocab))
    for name in ("train", "dev", "test"):
        write_uer_tsv(folder / f"datasets/chnsenticorp/{name}.tsv", 24, 1)
    write_uer_tsv(folder / "datasets/chnsenticorp/test_nolabel.tsv", 4, 2, labels=False)
    write_glue(folder / "glue/SST-2", "SST-2")
    for name in ("train", "dev"):
        write_squad(folder / f"squad/{name}.json", 8, 1)


def write_encoder(folder: Path, text: TextRules) -> None:
    """A sentence encoder as sentence-transformers has it, texts, pairs with scores, and something to search in."""
    config = replace(TEACHER, target="states", outputs=TEACHER.hidden_size)
    write_huggingface(folder / "my-encoder", config, dict(from_scratch(config, len(TOKENS), seed=3).state_dict()),
                      text=text)
    write_sentence_files(folder / "my-encoder", SentenceFacts("mean", True, 24, {}, None, "cosine"), 128, 128)
    for i, name in enumerate(("sentences", "other")):
        (folder / f"{name}.txt").write_text(random_corpus(i, 40).replace("\n\n", "\n"), encoding="utf-8")
    (folder / "pairs.tsv").write_text("sentence1\tsentence2\tscore\nthe river\tthe river\t5\nnew cafe\tun un\t1\n"
                                      "running low\trunning\t3\n")
    beir(folder / "search")


def run_page(folder: Path, name: str) -> list[str]:
    """Run a page's commands through the shell; returns what each printed."""
    said = []
    for line in commands(ROOT / "docs" / name):
        for pattern, small in SMALLER:
            line = re.sub(pattern, small, line)
        said.append(shell(folder, line))
    return said


def test_a_newcomer_gets_a_judged_student_with_four_commands(tmp_path, monkeypatch, capsys):
    """A hub's BERT and a folder of JSON lines, the first page, nothing else."""
    world(tmp_path)
    monkeypatch.chdir(tmp_path)
    first = re.search(r"```sh\n(.*?)```", (ROOT / "docs/compress.md").read_text(encoding="utf-8"), re.DOTALL)
    four = [line for line in first[1].replace("\\\n", " ").splitlines() if line.strip()]
    assert len(four) == 4 == len([line for line in four if line in commands(ROOT / "docs/compress.md")])
    said = ""
    for line in four:
        for pattern, small in SMALLER:
            line = re.sub(pattern, small, line)
        python, script, *words = shlex.split(line)
        assert python == "python3"
        call(script, *words)
        said = capsys.readouterr().out
        check_the_end(said)
        assert "--target_dim 64" not in line or re.search(r"good  held-out accuracy .* %.*; the teacher's ", said)
    assert "held-out" in re.search(r"\ngood  (.*)", said)[1]
    student = tmp_path / "models/small-student"
    assert {"config.json", "model.safetensors", "vocab.txt", "README.md"} <= {path.name for path in student.iterdir()}
    assert tmp_path / "logs/small/metrics.jsonl" in everything(tmp_path / "logs")


def check_the_end(said: str) -> None:
    """Three lines, and a command that its parser takes, if the names in capitals are taken as they stand."""
    following = re.search(r"(?:^|\n)made  .+\ngood  .+\nnext  (.+)\n$", said)
    assert following, said
    words = shlex.split(following[1])
    if words[0] == "python3":
        parser, options = parser_of(words)
        parser.parse_args([word.replace("DIM", "64") for word in options])


@pytest.mark.long
@pytest.mark.parametrize("name", [page.name for page in PAGES if commands(page)])
def test_the_commands_of_a_page(tmp_path, name):
    world(tmp_path)
    if name == "judge.md":
        run_page(tmp_path, "compress.md")
    for line, said in zip(commands(ROOT / "docs" / name), run_page(tmp_path, name), strict=True):
        if "--plan" not in line:
            check_the_end(said)
