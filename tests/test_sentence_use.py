"""Sentence encoders read text as sentence-transformers does: length, case, prompts, what is pooled and compared."""

from __future__ import annotations

import json

import pytest
import torch
from commands import call
from corpora import TOKENS, write_vocab
from folders import roberta
from sentence_folder import edit
from test_ranking import beir

from uer.errors import UserError
from uer.evaluation.ranking import read_beir, retrieval
from uer.evaluation.vectors import Embedder
from uer.formats import load_model
from uer.formats.sentence import SentenceFacts, read_sentence_facts
from uer.formats.tokenizer_files import text_beside
from uer.tokenizers import build

CPU = torch.device("cpu")
TEXTS = ["the river", "New CAFE running low", "a b c . the unwanted", "un " * 30]


def embedder(folder, role=None):
    loaded = load_model(folder, config=None, vocab_size=len(TOKENS), target="states")
    return Embedder(loaded, build(text_beside(folder)[0]), CPU, role=role)


def without(key):
    return lambda data: data.pop(key)


def test_the_newest_folders_say_their_length_in_the_tokenizer_config(teacher):
    assert embedder(teacher).seq_length == 24
    edit(teacher / "sentence_bert_config.json", without("max_seq_length"))
    edit(teacher / "tokenizer_config.json", lambda data: data.update(model_max_length=19))
    assert read_sentence_facts(teacher).max_seq_length == 19 and embedder(teacher).seq_length == 19
    for said in (lambda data: data.update(model_max_length=10 ** 30), without("model_max_length")):
        edit(teacher / "tokenizer_config.json", said)
        assert read_sentence_facts(teacher).max_seq_length is None
        assert embedder(teacher).seq_length == 64  # the positions


def test_lengths_under_other_names(teacher):
    """As older versions called the file, and as arguments for the tokenizer; what says how files are found is none."""
    path = teacher / "sentence_bert_config.json"
    edit(path, lambda data: data.update(config_args={"trust_remote_code": True, "cache_dir": None}))
    for key in ("processor_kwargs", "tokenizer_args"):
        edit(path, lambda data, key=key: data.update({key: {"model_max_length": 9}}))
        assert embedder(teacher).seq_length == 9
        edit(path, without(key))
    path.rename(teacher / "sentence_xlm-roberta_config.json")
    edit(teacher / "sentence_xlm-roberta_config.json", lambda data: data.update(max_seq_length=11, do_lower_case=True))
    edit(teacher / "tokenizer_config.json", lambda data: data.update(do_lower_case=False))
    assert embedder(teacher).seq_length == 11 and text_beside(teacher)[0].lower_case


def test_the_file_of_an_encoder_is_pooled_as_its_folder_says(teacher):
    edit(teacher / "1_Pooling/config.json", lambda data: data.update(pooling_mode="cls"))
    for path in (teacher, teacher / "model.safetensors"):
        loaded = load_model(path, config=None, vocab_size=None, target=None)
        assert (loaded.config.pooling, loaded.sentence.normalize) == ("first", True)


def test_a_pooling_that_is_null_is_told_by_the_flags(teacher):
    edit(teacher / "1_Pooling/config.json", lambda data: data.update(pooling_mode=None))
    assert read_sentence_facts(teacher).pooling == "mean"


def test_what_is_pooled_of_a_prompt_must_be_one_thing(teacher):
    edit(teacher / "1_Pooling/config.json", lambda data: data.update(pooling_mode="cls", include_prompt=False))
    with pytest.raises(UserError, match="include_prompt false with pooling cls"):
        read_sentence_facts(teacher)
    edit(teacher / "config_sentence_transformers.json", lambda data: data.update(prompts={"query": ""}))
    assert read_sentence_facts(teacher).pooling == "first"


def test_case_may_be_folded_before_the_tokenizer(tmp_path, teacher):
    edit(teacher / "tokenizer_config.json", lambda data: data.update(do_lower_case=False))
    kept = build(text_beside(teacher)[0])
    edit(teacher / "sentence_bert_config.json", lambda data: data.update(do_lower_case=True))
    folded = build(text_beside(teacher)[0])
    assert kept.encode("the RIVER") != folded.encode("the RIVER") == kept.encode("the river")
    assert folded.encode("caf\u00e9") == kept.encode("caf\u00e9")  # accents are left alone
    other = roberta(tmp_path / "roberta")
    (other / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    with pytest.raises(UserError, match="do_lower_case is true, but only WordPiece"):
        text_beside(other)


def test_prompts_stand_before_the_texts(teacher):
    facts = SentenceFacts(prompts={"query": "q ", "passage": "p ", "x": "the "}, default_prompt_name="x")
    assert [facts.prompt(role) for role in (None, "query", "document")] == ["the ", "q ", "p "]
    assert SentenceFacts(prompts={"document": "", "passage": "p "}).prompt("document") == ""
    plain, asked = embedder(teacher), embedder(teacher, "query")  # whose query prompt is "the "
    torch.testing.assert_close(asked(TEXTS), plain(["the " + text for text in TEXTS]))
    assert not torch.allclose(asked(TEXTS), plain(TEXTS), atol=1e-3)
    edit(teacher / "config_sentence_transformers.json", lambda data: data.update(default_prompt_name="query"))
    torch.testing.assert_close(embedder(teacher)(TEXTS), asked(TEXTS))
    edit(teacher / "1_Pooling" / "config.json", lambda data: data.update(include_prompt=False))
    apart = embedder(teacher)
    src = torch.tensor([apart.instances(["river"])[0].tokens.tolist()])
    states = apart.model.hidden_states(src, torch.ones_like(src))[0]
    torch.testing.assert_close(apart(["river"])[0], torch.nn.functional.normalize(states[2:].mean(0), dim=0))
    edit(teacher / "config_sentence_transformers.json", lambda data: data.update(default_prompt_name="else"))
    with pytest.raises(UserError, match="default_prompt_name 'else', which is none of the prompts"):
        read_sentence_facts(teacher)


def test_sentence_transformers_agrees(teacher):
    package = pytest.importorskip("sentence_transformers")
    edit(teacher / "sentence_bert_config.json", lambda data: data.update(do_lower_case=True))
    edit(teacher / "config_sentence_transformers.json", lambda data: data.update(default_prompt_name="query"))
    edit(teacher / "1_Pooling" / "config.json", lambda data: data.update(include_prompt=False))
    edit(teacher / "tokenizer_config.json", lambda data: data.update(do_lower_case=False))
    (teacher / "tokenizer.json").unlink(missing_ok=True)
    wanted = package.SentenceTransformer(str(teacher), device="cpu").encode(TEXTS)
    torch.testing.assert_close(embedder(teacher)(TEXTS), torch.tensor(wanted), rtol=0, atol=1e-5)


def test_prompts_and_pooling_come_along(files, tmp_path, teacher):
    edit(teacher / "1_Pooling" / "config.json", lambda data: data.update(include_prompt=False))
    call("calibrate.py", "--pretrained_model_path", teacher, "--corpus_path", files / "corpus.txt", "--vocab_path",
         teacher / "vocab.txt", "--target_dim", 64, "--output_model_path", tmp_path / "small.bin", "--output_format",
         "huggingface", "uer")
    assert read_sentence_facts(tmp_path / "small") == read_sentence_facts(teacher)
    assert not read_sentence_facts(tmp_path / "small").include_prompt


def test_documents_are_found_by_the_models_own_similarity(tmp_path):
    folder = beir(tmp_path / "set")
    where = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [0.0, 1.0], "aaa": [1.0, 0.0], "bbb": [9.0, 9.0], "ab": [3.0, 1.0],
             "cc": [0.1, 0.0]}

    def embed(texts):
        return torch.tensor([where[text] for text in texts])

    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td1\t1\n")
    assert retrieval(embed, embed, folder, "dot")["nDCG@10"] == 1  # the longest first
    assert retrieval(embed, embed, folder)["nDCG@10"] == pytest.approx(1 / 2 / 1.160964, abs=1e-5)  # fourth of four
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\n")
    assert retrieval(embed, embed, folder, "euclidean")["nDCG@10"] == 1
    assert retrieval(embed, embed, folder, "manhattan")["nDCG@10"] == 1


def test_beir_folders_as_people_have_them(tmp_path):
    folder = beir(tmp_path / "set")
    texts = [{"_id": "d0", "title": None, "text": "a\u2028b\x85c"}, {"_id": 1, "title": "t", "text": None},
             {"_id": "d2", "text": "x"}]
    lines = [json.dumps(text, ensure_ascii=False) for text in texts]
    (folder / "corpus.jsonl").write_text("\r\n".join(lines) + "\r\n\r\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1.0\nq0\td0\t1\nq1\t1\t0.5\n")
    corpus, _, grades = read_beir(folder)
    assert corpus == {"d0": "a\u2028b\x85c", "1": "t", "d2": "x"} and grades == {"q0": {"d0": 1}, "q1": {"1": 0.5}}
    for row, words in (("q9\td0\t1", "no query 'q9' in .*queries"), ("q0\td9\t1", "no document 'd9' in .*corpus"),
                       ("q0\td0\tyes", "grade 'yes'; a number"), ("q0\td0\tnan", "grade 'nan'"),
                       ("q0\td0\t2", "'d0' has another grade")):
        (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\nq0\td0\t1\n{row}\n")
        with pytest.raises(UserError, match=f"line 3: .*{words}"):
            read_beir(folder)
    for line, words in (('{"_id": "d0", "text": "other"}', "_id 'd0' has another text"),
                        ('{"_id": "d3"}', "_id and text"), ("[]", "_id and text"),
                        ('{"_id": "d3", "text": ["a"]}', "is no text")):
        (folder / "corpus.jsonl").write_text(json.dumps(texts[0]) + "\n\n" + line + "\n")
        with pytest.raises(UserError, match=f"line 3: .*{words}"):
            read_beir(folder)


def test_agreement_reads_as_much_as_the_model_does(tmp_path, teacher, capsys):
    words, out = write_vocab(tmp_path), tmp_path / "out.json"
    other = tmp_path / "other"
    loaded = load_model(teacher, config=None, vocab_size=None, target=None)
    from uer.formats.export import write_huggingface
    from uer.formats.sentence import write_sentence_files
    weights = dict(loaded.weights)
    weights["embedding.position_embedding.weight"] = torch.cat(
        [loaded.weights["embedding.position_embedding.weight"][:24], torch.randn(40, 128)])
    write_huggingface(other, loaded.config, weights, text=text_beside(teacher)[0])
    write_sentence_files(other, loaded.sentence, 128, 64)
    (tmp_path / "text.txt").write_text("".join(f"{text} {'river low ' * 30}\n" for text in TEXTS))
    call("evaluate.py", "--task", "agreement", "--model_path", other, "--teacher_path", teacher, "--vocab_path", words,
         "--test_path", tmp_path / "text.txt", "--output_path", out)
    assert json.loads(out.read_text())["cosine"] == pytest.approx(1, abs=1e-5)  # positions from 24 on are not used
