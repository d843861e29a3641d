"""How text becomes ids: what stands beside a vocabulary or model is obeyed, and compared wherever two meet."""

from __future__ import annotations

import json

import pytest
from corpora import SPECIALS, TOKENS, described, write_vocab
from folders import (
    MERGES,
    PIECES,
    ROBERTA,
    arguments,
    roberta,
    tokenizer_of,
    tokens,
    unigram,
    wordpiece,
    write,
)

from uer.errors import UserError
from uer.formats.tokenizer_files import text_beside, vocabulary_files, write_tokenizer
from uer.tokenizers import TextRules, Vocab, agreed_rules, build, build_tokenizer
from uer.tokenizers.rules import KEY, merged, recorded

TEXT = "The Café 你好 ΑΣ unwanted"


# -- found beside ------------------------------------------------------------------------------------------------------


def test_a_roberta_folder_is_byte_level_bpe(tmp_path):
    for config in (None, {}, {"add_prefix_space": True}):
        tokenizer = tokenizer_of(roberta(tmp_path / "r", config))
        assert tokenizer.rules.kind == "bpe"
        start = ["Ġlow", "er"] if config and config["add_prefix_space"] else ["low", "er"]
        assert tokens(tokenizer, "lower the<mask>low") == [*start, "Ġthe", "<mask>", start[0]]
    by_path = build_tokenizer(arguments("--vocab_path", tmp_path / "r/vocab.json"))  # merges.txt is found beside
    assert by_path.rules.pieces_sha256 == tokenizer.rules.pieces_sha256 and by_path.rules.merges == MERGES
    (tmp_path / "r/merges.txt").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="--merges_path"):
        build_tokenizer(arguments("--vocab_path", tmp_path / "r/vocab.json"))
    given = arguments("--vocab_path", tmp_path / "r/vocab.json", "--merges_path", tmp_path / "elsewhere")
    assert build_tokenizer(given).rules.merges == MERGES


@pytest.mark.parametrize(("config", "expected"), [
    ({}, "[UNK] cafe 你 好 [UNK] un ##want ##ed"),
    ({"do_lower_case": False}, "The [UNK] 你 好 [UNK] un ##want ##ed"),
    ({"strip_accents": False}, "the [UNK] 你 好 [UNK] un ##want ##ed"),
    ({"do_lower_case": False, "strip_accents": True}, "The [UNK] 你 好 [UNK] un ##want ##ed"),
    ({"tokenize_chinese_chars": False}, "the cafe 你 ##好 [UNK] un ##want ##ed"),
])
def test_settings_of_a_wordpiece_folder(tmp_path, config, expected):
    vocabulary = [*TOKENS, "##want", "##好", "Cafe"] if config.get("strip_accents") else [*TOKENS, "##want", "##好"]
    folder = wordpiece(tmp_path / "m", config, vocabulary)
    expected = expected.replace("[UNK] cafe", "the cafe").split()
    if config.get("strip_accents"):
        expected[1] = "Cafe"
    for tokenizer in (tokenizer_of(folder), build_tokenizer(arguments("--vocab_path", folder / "vocab.txt")),
                      build_tokenizer(arguments("--vocab_path", folder))):
        assert tokens(tokenizer, TEXT) == expected
    # exported, and read again: from all files, from tokenizer.json alone, from the rest
    (tmp_path / "out").mkdir()
    write_tokenizer(tmp_path / "out", tokenizer.rules, max_length=8)
    assert tokens(tokenizer_of(tmp_path / "out"), TEXT) == expected
    (tmp_path / "out/tokenizer_config.json").unlink()
    (tmp_path / "out/vocab.txt").unlink()
    assert tokens(tokenizer_of(tmp_path / "out"), TEXT) == expected


def test_where_nothing_says_the_case_the_vocabulary_does(tmp_path):
    assert described(write_vocab(tmp_path)).lower_case is True
    cased = write_vocab(tmp_path, [*TOKENS, *(f"Word{i}" for i in range(9))])
    assert described(cased).lower_case is False
    assert described(cased, "--do_lower_case").lower_case is True
    # in scripts without capitals, folding case would take vowels (Hindi) and take Hangul apart
    accented = write_vocab(tmp_path, [*TOKENS, "नदी", "की", "हिन्दी", "कि", "한국", "##어"])
    assert described(accented).lower_case is True and described(accented).accents is False
    assert tokens(build_tokenizer(arguments("--vocab_path", accented)), "The हिन्दी 한국어") == [
        "the", "हिन्दी", "한국", "##어"]
    assert described(accented, "--do_lower_case").accents is True
    assert described(wordpiece(tmp_path, {}, [*TOKENS, *"ABCDEFGHIJ"]) / "vocab.txt").lower_case is True  # as theirs


def test_a_uer_file_and_what_stands_beside_it(tmp_path):
    rules = described(wordpiece(tmp_path / "m", {"do_lower_case": False, "strip_accents": True}) / "vocab.txt")
    write(tmp_path / "s_config.json", {"layers_num": 2, KEY: rules.to_dict()})
    found = agreed_rules(arguments("--vocab_path", tmp_path / "m/vocab.txt"), *text_beside(tmp_path / "s.bin"))
    assert (found.lower_case, found.accents, found.kind) == (False, True, "bert")
    bare = write_vocab(tmp_path)  # the same vocabulary without its files: case and accents are the model's
    found = agreed_rules(arguments("--vocab_path", bare), *text_beside(tmp_path / "s.bin"))
    assert (found.lower_case, found.accents) == (False, True)
    for name, content in vocabulary_files(described(roberta(tmp_path / "r"))).items():
        (tmp_path / f"t_{name}").write_bytes(content)
    assert tokens(tokenizer_of(tmp_path / "t.bin"), "lower") == ["low", "er"]
    assert build_tokenizer(arguments("--vocab_path", tmp_path / "t_vocab.json")).rules.merges == MERGES


def test_tokenizers_that_are_not_here_are_refused(tmp_path):
    folder = wordpiece(tmp_path / "m", {"tokenizer_class": "BertJapaneseTokenizer"})
    with pytest.raises(UserError, match="BertJapaneseTokenizer"):
        tokenizer_of(folder)
    with pytest.raises(UserError, match="tokenizer: bert and BertJapaneseTokenizer"):
        tokenizer_of(folder, "--tokenizer", "bert")
    with pytest.raises(UserError, match="BertJapaneseTokenizer"):  # its file alone is obeyed alike
        build_tokenizer(arguments("--vocab_path", folder / "vocab.txt"))
    chosen = build_tokenizer(arguments("--vocab_path", folder / "vocab.txt", "--tokenizer", "bert"))
    assert chosen.rules.kind == "bert"
    for config, words in (({"do_lower_case": "no"}, "do_lower_case is 'no'"), ({"tokenizer_class": 3}, "is 3, a name")):
        with pytest.raises(UserError, match=words):
            tokenizer_of(wordpiece(tmp_path / "m", config))
    (folder / "tokenizer_config.json").write_bytes(b"\xef\xbb\xbf{\"do_lower_case\": false}")
    assert tokenizer_of(folder).rules.lower_case is False


# -- tokenizer.json ----------------------------------------------------------------------------------------------------


def test_tokenizer_json_alone(tmp_path):
    (tmp_path / "out").mkdir()
    for folder, text in ((wordpiece(tmp_path / "m", {"strip_accents": False}), TEXT),
                         (roberta(tmp_path / "r", {}), "lower the river <mask> é")):
        known = tokenizer_of(folder)
        write_tokenizer(tmp_path / "out", known.rules, max_length=8)
        for path in [path for path in (tmp_path / "out").iterdir() if path.name != "tokenizer.json"]:
            path.unlink()
        alone = tokenizer_of(tmp_path / "out")
        assert alone.encode(text) == known.encode(text) and tokens(alone, text)[0] != "[UNK]"
        assert merged([alone.rules, known.rules], []).kind == known.rules.kind
        assert build_tokenizer(arguments("--vocab_path", tmp_path / "out/tokenizer.json")).encode(text) == \
            known.encode(text)


@pytest.mark.parametrize(("part", "value", "words"), [
    ("model", {"type": "WordLevel", "vocab": {}}, "a model of type WordLevel"),
    ("normalizer", {"type": "NFKC"}, "normalizer NFKC instead of BertNormalizer"),
    ("normalizer", {"type": "BertNormalizer", "clean_text": False}, "does not clean the text"),
    ("pre_tokenizer", {"type": "Whitespace"}, "pre_tokenizer Whitespace instead of BertPreTokenizer"),
    ("model", {"type": "WordPiece", "vocab": {"a": "b"}}, "expected an object of token: id"),
    ("model", {"type": "WordPiece", "vocab": {"a": 0}}, r"token '\[PAD\]' has the id 0, which is that of 'a'"),
    ("added_tokens", [{"id": "x", "content": "y"}], "is no added token"),
    ("model", 7, "model 7"),
])
def test_what_a_tokenizer_json_asks_for_and_is_not_here(tmp_path, part, value, words):
    write_tokenizer(tmp_path, described(wordpiece(tmp_path)), max_length=8)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    for path in tmp_path.iterdir():
        path.unlink()
    write(tmp_path / "tokenizer.json", {**data, part: value})
    with pytest.raises(UserError, match=words):
        tokenizer_of(tmp_path)


BERT = {"type": "BertProcessing", "cls": ["<s>", 0], "sep": ["</s>", 2]}
LEFT = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}], "pair": []}


@pytest.mark.parametrize(("around", "between"), [
    (None, 0), ({"type": "ByteLevel"}, 0), (LEFT, 0), ({"type": "BertProcessing"}, 0), (BERT, 1),
    ({**BERT, "type": "RobertaProcessing"}, 2), ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, BERT]}, 1)])
def test_special_tokens_stand_where_tokenizer_json_puts_them(tmp_path, around, between):
    """Of a class that does not say it itself; none around a text is another text than the model's."""
    known = tokenizer_of(roberta(tmp_path / "r", {}))
    for kind, folder in (("PreTrainedTokenizerFast", tmp_path / "j"), ("RobertaTokenizer", tmp_path / "k")):
        folder.mkdir()
        write_tokenizer(folder, known.rules, max_length=8)
        (folder / "vocab.json").unlink()
        data = json.loads((folder / "tokenizer.json").read_text())
        write(folder / "tokenizer.json", {**data, "post_processor": around})
        write(folder / "tokenizer_config.json", {"tokenizer_class": kind})
    assert tokenizer_of(tmp_path / "k").separators == 2
    if not between:
        with pytest.raises(UserError, match="a post_processor that puts something else around texts than <s> and </s>"):
            tokenizer_of(tmp_path / "j")
        return
    tokenizer = tokenizer_of(tmp_path / "j")
    assert tokenizer.separators == recorded({KEY: tokenizer.rules.to_dict()}, "").separators == between
    write_tokenizer(tmp_path / "j", tokenizer.rules, max_length=8)
    assert tokenizer_of(tmp_path / "j").separators == between


def test_a_decoders_tokenizer_puts_nothing_around_a_text(tmp_path):
    with pytest.raises(UserError, match="a GPT2Tokenizer; there are"):
        tokenizer_of(roberta(tmp_path / "r", {"tokenizer_class": "GPT2Tokenizer"}))


def test_unigram_goes_through_sentencepiece(tmp_path):
    pytest.importorskip("sentencepiece")
    folder = unigram(tmp_path / "u")
    tokenizer = tokenizer_of(folder)
    assert tokenizer.rules.kind == "xlmroberta"
    assert tokens(tokenizer, "the lower  river, <mask>Q") == [
        "\u2581the", "\u2581low", "er", "\u2581river", ",", "<mask>", "\u2581", "<unk>"]
    for name, content in vocabulary_files(tokenizer.rules).items():  # the model that it is the same as
        (tmp_path / name).write_bytes(content)
    again = build_tokenizer(arguments("--spm_model_path", tmp_path / "sentencepiece.bpe.model"))
    assert again.vocab.tokens == tokenizer.vocab.tokens and again.rules.pieces_sha256 == tokenizer.rules.pieces_sha256
    assert merged([again.rules, tokenizer.rules], []).kind == "xlmroberta"
    # in another order, as in CamemBERT
    turned = [("<unk>", 0.0), *PIECES[4:-1], ("<s>", 0.0), ("</s>", 0.0), ("<pad>", 0.0), ("<mask>", 0.0)]
    assert tokens(tokenizer_of(unigram(tmp_path / "c", turned, 0)), "the lower") == ["\u2581the", "\u2581low", "er"]


# -- where two meet ----------------------------------------------------------------------------------------------------


def test_a_vocabulary_beside_the_model_goes_before_another(tmp_path):
    folder = wordpiece(tmp_path / "m", {})
    same = write_vocab(tmp_path)
    assert build_tokenizer(arguments("--vocab_path", same), *text_beside(folder)).rules.kind == "bert"
    other = write_vocab(tmp_path, [*SPECIALS, *reversed(TOKENS[len(SPECIALS):])])
    with pytest.raises(UserError, match=rf"in --vocab_path {other} and in {folder}: another vocabulary \(vocab.txt"):
        build_tokenizer(arguments("--vocab_path", other), *text_beside(folder))
    with pytest.raises(UserError, match="tokenizer: bert and bpe"):
        tokenizer_of(roberta(tmp_path / "r"), "--tokenizer", "bert")


def test_another_case_is_a_warning_if_the_user_gave_it(tmp_path):
    folder, said = wordpiece(tmp_path / "m", {"do_lower_case": False}), []
    tokenizer = build_tokenizer(arguments("--do_lower_case"), *text_beside(folder), say=said.append)
    assert tokens(tokenizer, "The Café") == ["the", "cafe"]
    assert said == [f"warning: case is folded, as the command line says; {folder} has it kept",
                    f"text: WordPiece, {len(TOKENS)} tokens of vocab.txt, case folded"]
    made = TextRules("data", final=True, kind="bert", lower_case=False)
    with pytest.raises(UserError, match="the command line and in data: case folded: yes and no"):
        build_tokenizer(arguments("--do_lower_case"), made, *text_beside(folder))
    upper = TextRules("teacher", kind="bert", lower_case=True)
    with pytest.raises(UserError, match="in data and in teacher: case folded: no and yes"):
        merged([made, upper], [])
    assert merged([TextRules("the command line", lower_case=False), made, upper], said).lower_case is False


def test_two_vocabularies_in_one_folder_are_refused(tmp_path):
    folder = wordpiece(tmp_path / "m", {})
    write_tokenizer(folder, tokenizer_of(folder).rules, max_length=8)
    assert tokenizer_of(folder).rules.vocab_size == len(TOKENS)
    write_vocab(folder, [*TOKENS[:-2], TOKENS[-1], TOKENS[-2]])
    with pytest.raises(UserError, match=r"vocab.txt and .*tokenizer.json are two vocabularies"):
        tokenizer_of(folder)


def test_what_is_kept_comes_back(tmp_path):
    for folder in (wordpiece(tmp_path / "m", {"strip_accents": False}), roberta(tmp_path / "r", {})):
        rules = tokenizer_of(folder).rules
        again = recorded(json.loads(json.dumps({KEY: rules.to_dict()})), "kept")
        assert again is not None and again.to_dict() == rules.to_dict()
        assert merged([rules, again], []).kind == rules.kind
    with pytest.raises(UserError, match="no description of how text becomes ids"):
        recorded({KEY: {"kind": 3}}, "kept")


def test_older_records_say_less_and_still_count(tmp_path):
    vocab = Vocab(TOKENS)
    old = {"vocab_sha256": vocab.sha256, "vocab_size": len(vocab), "tokenizer": "bert", "do_lower_case": True}
    found = recorded(old, "old")
    assert found is not None and (found.lower_case, found.accents, found.split_ideographs) == (True, True, True)
    for config, agrees in (({}, True), ({"strip_accents": False}, False), ({"do_lower_case": False}, False)):
        parts = [found, *text_beside(wordpiece(tmp_path / "m", config))]
        if agrees:
            assert build(merged(parts, [])).encode("the") == [TOKENS.index("the")]
        else:
            with pytest.raises(UserError, match="old and in"):
                merged(parts, [])
    assert recorded({"teacher": {}}, "nothing") is None


@pytest.mark.parametrize("beside", ["m_config.json", "m.bin.json"])
def test_a_uer_file_keeps_what_a_vocabulary_file_does_not_say(tmp_path, beside):
    """Added tokens with all that is said of them, and special ones under other names, of which one stands behind."""
    names = {"[PAD]": "<nil>", "[CLS]": "<cls>", "[MASK]": "hole"}
    config = {"pad_token": "<nil>", "cls_token": "<cls>", "mask_token": "<gap>"}
    folder = wordpiece(tmp_path / "m", config, [names.get(token, token) for token in TOKENS])
    write(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **config, "added_tokens_decoder": {
        len(TOKENS): {"content": "Covid", "single_word": True}, len(TOKENS) + 1: {"content": "<x>", "special": True},
        len(TOKENS) + 2: {"content": "<gap>", "lstrip": True, "special": True},
        len(TOKENS) + 3: {"content": "[E1]", "special": True}}})
    known = tokenizer_of(folder)
    for name, content in vocabulary_files(known.rules).items():
        (tmp_path / f"m_{name}").write_bytes(content)
    write(tmp_path / beside, {"layers_num": 1, KEY: known.rules.to_dict()})
    (tmp_path / "m.bin").touch()
    for again in (tokenizer_of(tmp_path / "m.bin"), tokenizer_of(tmp_path / "m.bin", "--vocab_path", folder)):
        for text in ("the covid covids <x> river", "a <gap> <cls> [E1]<nil>b"):
            assert again.encode(text) == known.encode(text)
        assert again.vocab.special_tokens == known.vocab.special_tokens and again.vocab.added == known.vocab.added
    write_vocab(tmp_path).rename(tmp_path / "m_vocab.txt")
    with pytest.raises(UserError, match="another vocabulary"):
        tokenizer_of(tmp_path / "m.bin")


# -- vocabularies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "  \n", "\t17\n", " 17 3\n", "\n\n\n \n"])
def test_vocabularies_are_read_as_uer_reads_them(tmp_path, end):
    path = tmp_path / "v.txt"
    last = end.lstrip(" \t0123456789")[-1:] if end.count("\n") == 1 else "\n\n \n"
    line = end if end.count("\n") == 1 else "\n"
    path.write_bytes(b"\xef\xbb\xbf" + "".join(token + line for token in TOKENS).encode() + last.encode())
    vocab = Vocab.load(path)
    assert vocab.tokens == TOKENS and vocab.sha256 == Vocab(TOKENS).sha256


def test_a_blank_line_amid_the_others_keeps_its_number(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("\n".join([*TOKENS[:7], "", *TOKENS[7:]]))
    assert Vocab.load(path).tokens == [*TOKENS[:7], "", *TOKENS[7:]]
    (tmp_path / "vocab.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(dict(zip(ROBERTA, range(999)))).encode())
    assert Vocab.load(tmp_path / "vocab.json").tokens == ROBERTA


def test_added_tokens_are_found_before_everything_else(tmp_path):
    folder = wordpiece(tmp_path / "m", {"additional_special_tokens": ["[E1]"]})
    write(folder / "added_tokens.json", {"[E1]": len(TOKENS) + 1, "Covid": len(TOKENS)})
    tokenizer = tokenizer_of(folder)
    assert len(tokenizer.vocab) == len(TOKENS) + 2 and tokenizer.rules.added == {"Covid": 81, "[E1]": 82}
    assert tokens(tokenizer, "the COVIDs[E1]new") == ["the", "Covid", "s", "[E1]", "new"]
    ids, _ = tokenizer.encode_lines(["the covid-", "[E1]"])
    assert ids.tolist() == [*tokenizer.encode("the covid-"), 82]
    with pytest.raises(UserError, match="added tokens: 2"):
        merged([tokenizer.rules, described(write_vocab(tmp_path))], [])
    write(folder / "added_tokens.json", {})
    assert tokenizer_of(wordpiece(folder, {})).rules.added == {}
    write(folder / "added_tokens.json", {"other": 7})
    with pytest.raises(UserError, match="the added token 'other' has the id 7, which is that of"):
        tokenizer_of(folder)
