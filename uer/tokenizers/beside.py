"""What stands beside a vocabulary or a model and says how text becomes ids, in files as Hugging Face names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from uer.errors import UserError
from uer.files import read_object
from uer.tokenizers.bpe import read_merges
from uer.tokenizers.pieces import Pieces
from uer.tokenizers.rules import TextRules, recorded
from uer.tokenizers.tokenizer_json import TokenizerJson, added_token
from uer.tokenizers.vocab import ROLES, AddedToken, Vocab, digest, read_tokens

FILES = {"bert": "vocab.txt", "bpe": "vocab.json", "xlmroberta": "sentencepiece.bpe.model"}
MERGES, TOKENIZER_JSON, TOKENIZER_CONFIG = "merges.txt", "tokenizer.json", "tokenizer_config.json"
SENTENCES = tuple(f"sentence_{kind}_config.json" for kind in (
    "bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"))  # as versions have called it
# tokenizer_class, without Tokenizer and Fast -> kind; of the generic ones tokenizer.json tells.
CLASSES = {**dict.fromkeys(("Bert", "DistilBert", "Electra", "MobileBert", "ConvBert"), "bert"),
           **dict.fromkeys(("Roberta", "Bart", "Longformer"), "bpe"), "XLMRoberta": "xlmroberta"}
WHOLE = ("PreTrained", "TokenizersBackend")  # classes that take tokenizer.json as it is
GENERIC = ("", *WHOLE)
UNLIMITED = 1 << 20  # a model_max_length above says nothing: transformers writes 10 ** 30
# tokenizer_config.json -> settings of `TextRules`
SETTINGS = {"bert": {"do_lower_case": "lower_case", "strip_accents": "strip_accents",
                     "tokenize_chinese_chars": "split_ideographs"}, "bpe": {"add_prefix_space": "prefix_space"}}


def rules_of_vocabulary(path: str | Path, kind: str | None = None, merges_path: str | None = None) -> list[TextRules]:
    """What --vocab_path says, with what stands beside it.

    Args:
        path: a vocabulary; tokenizer.json; or a folder that holds either.
        kind, merges_path: as given by the user.
    Raises:
        UserError: a file that cannot be read, or is not what its name says.
    """
    path = Path(path)
    if path.is_dir():
        found = rules_of_folder(path)
        if found is None:
            raise UserError(f"--vocab_path {path}: none of {', '.join(FILES.values())} and {TOKENIZER_JSON} is in it")
        return [found]
    if path.name in (*FILES.values(), TOKENIZER_JSON) and path.is_file():
        found = rules_of_folder(path.parent, path, kind, merges_path)
        assert found is not None
        return [found]
    return _rules_of_stem(path, kind, merges_path)


def rules_of_stem(path: Path, config: Path | None) -> list[TextRules]:
    """What stands beside a UER model `<stem>.bin`: `<stem>_vocab.txt` or `.json`, and what a JSON keeps.

    Args:
        path: the model without its ending.
        config: the JSON that describes the model.
    """
    own = recorded(read_object(config), str(config)) if config else None
    vocabulary = next((file for ending in (".txt", ".json", ".model") if (
        file := path.with_name(f"{path.name}_vocab{ending}")).is_file()), None)
    parts = [] if own is None else [own]
    return parts + (_rules_of_stem(vocabulary, own.kind if own else None, None, own) if vocabulary else [])


def _rules_of_stem(path: Path, kind: str | None, merges_path: str | None,
                   told: TextRules | None = None) -> list[TextRules]:
    """A vocabulary under a name of its own; of `<stem>_vocab.txt` with `<stem>_merges.txt` and `<stem>_config.json`.

    `told`: what a JSON says of it, which is that config's by default.
    """
    source, stem = f"--vocab_path {path}", path.stem.removesuffix("_vocab")
    merges, config = path.with_name(f"{stem}_merges.txt"), path.with_name(f"{stem}_config.json")
    named = stem != path.stem
    own = recorded(read_object(config), str(config)) if named and config.is_file() else None
    if path.suffix == ".model":
        pieces = Pieces.load(path)
        rules = TextRules(source, kind="xlmroberta").holding(_vocab(pieces.tokens, source, told or own), path.name,
                                                             pieces=pieces)
    else:
        kind = kind or ("bpe" if path.suffix == ".json" else None)
        chosen = merges_path or (merges if kind == "bpe" and named and merges.is_file() else None)
        rules = TextRules(source, kind=kind).holding(_vocab(read_tokens(path), source, told or own), path.name,
                                                     read_merges(chosen) if chosen else None)
    return [rules] if own is None else [rules, own]


def _vocab(tokens: list[str], source: str, told: TextRules | None) -> Vocab:
    """A vocabulary file's tokens, with special and added ones as a JSON says, if this is the file that it means."""
    if told is None or told.vocab_sha256 != digest(tokens):
        return Vocab(tokens, source)
    added = [added_token(entry, entry.get("id") if isinstance(entry, dict) else None, told.source)
             for entry in told.added_tokens or []]
    return Vocab(tokens, source, dict(zip(ROLES, map(str, told.special_tokens or []))), added)


def rules_of_folder(folder: Path, only: Path | None = None, kind: str | None = None,
                    merges_path: str | None = None) -> TextRules | None:
    """What the tokenizer files of a folder say, and sentence-transformers beside them; None: there are none.

    Args:
        only: the vocabulary to take, where there are several.
        kind, merges_path: as given by the user.
    Raises:
        UserError: files that cannot be read, or contradict each other.
    """
    rules, path = _rules_of_folder(folder, only, kind, merges_path), sentence_config(folder)
    if rules is None or _optional(path).get("do_lower_case") is not True or rules.lower_case:
        return rules
    if rules.kind not in (None, "bert"):
        raise UserError(f"{path}: do_lower_case is true, but only WordPiece can fold case here, and the tokenizer is "
                        f"{rules.kind}")
    return replace(rules, kind="bert", lower_case=True, strip_accents=bool(rules.accents))  # lower(text), no more


def sentence_config(folder: Path) -> Path:
    """What sentence-transformers writes beside its encoder: the length, whether case is folded before the tokenizer."""
    return next((path for name in SENTENCES if (path := folder / name).is_file()), folder / SENTENCES[0])


def tokenizer_limit(folder: Path) -> int | None:
    """Tokens at most, as tokenizer_config.json says; None: it does not."""
    limit = _optional(folder / TOKENIZER_CONFIG).get("model_max_length")
    return limit if isinstance(limit, int) and limit < UNLIMITED else None


def _rules_of_folder(folder: Path, only: Path | None, kind: str | None, merges_path: str | None) -> TextRules | None:
    config = _optional(folder / TOKENIZER_CONFIG)
    name = _class_name(folder, config)
    whole = TokenizerJson(folder / TOKENIZER_JSON) if (folder / TOKENIZER_JSON).is_file() else None
    side = config.get("truncation_side") or (whole and whole.cut_side()) or "right"
    if side != "right":
        raise UserError(f"{folder / TOKENIZER_CONFIG}: truncation_side is {side!r}, but long texts are cut at the end "
                        f"here; 'right' is needed")
    foreign = name not in CLASSES and name not in GENERIC
    vocabulary = _vocabulary(folder, CLASSES.get(name), foreign)
    if only and (kind or not foreign):  # --tokenizer says how to read it all the same
        vocabulary = only
    if vocabulary is None or vocabulary.name == TOKENIZER_JSON or (whole is not None and name in WHOLE):
        if whole is not None:
            if vocabulary is not None and vocabulary.suffix == ".txt":
                _compare(vocabulary, read_tokens(vocabulary), whole)
            return _surrounded(_of_tokenizer_json(folder, whole, config), name, whole)
        return TextRules(str(folder), kind=f"{name}Tokenizer") if foreign and vocabulary is None else None
    source = f"--vocab_path {only}" if only else str(folder)
    kind = CLASSES.get(name) or kind or next(kind for kind, file in FILES.items() if file == vocabulary.name)
    if kind == "xlmroberta":
        _settings(kind, folder, config, whole)
        pieces = Pieces.load(vocabulary)
        vocab = Vocab(pieces.tokens, source, _special(folder, config), _added(folder, config, pieces.tokens, None))
        return TextRules(source, kind=kind).holding(vocab, vocabulary.name, pieces=pieces)
    tokens = read_tokens(vocabulary)
    if whole is not None:
        _compare(vocabulary, tokens, whole)
    vocab = Vocab(tokens, f"--vocab_path {vocabulary}", _special(folder, config), _added(folder, config, tokens, whole))
    merges = Path(merges_path) if merges_path else folder / MERGES
    told = bool(config or whole or kind != "bert" or (folder / "config.json").is_file())
    rules = TextRules(source, kind=kind if told else None, **_settings(kind, folder, config, whole))
    rules = rules.holding(vocab, vocabulary.name, read_merges(merges) if kind == "bpe" and merges.is_file() else None)
    return _surrounded(rules, name, whole)


def _surrounded(rules: TextRules, name: str, whole: TokenizerJson | None) -> TextRules:
    """With the special tokens around texts as tokenizer.json has them, where no class of `CLASSES` says so itself."""
    if whole is None or rules.vocab is None or not name or name in CLASSES:
        return rules
    return replace(rules, separators=whole.separators(rules.vocab))


def _class_name(folder: Path, config: Mapping[str, Any]) -> str:
    """tokenizer_class without Tokenizer and Fast; of a CamemBERT, whose files are called like XLM-RoBERTa's, always."""
    name = config.get("tokenizer_class") or ""
    if not name and (folder / "config.json").is_file():
        data = _read(folder / "config.json")
        name = data.get("tokenizer_class") or ("Camembert" if data.get("model_type") == "camembert" else "")
    if not isinstance(name, str):
        raise UserError(f"{folder / TOKENIZER_CONFIG}: tokenizer_class is {name!r}, a name is needed")
    return name.removesuffix("Fast").removesuffix("Tokenizer")


def _vocabulary(folder: Path, kind: str | None, foreign: bool) -> Path | None:
    """The vocabulary file that decides; None: tokenizer.json does, or there is none."""
    names = [] if foreign else [FILES[kind]] if kind else list(FILES.values())
    for name in names:
        if (folder / name).is_file() and (name != FILES["bpe"] or (folder / MERGES).is_file()):
            return folder / name
    return None


def _of_tokenizer_json(folder: Path, whole: TokenizerJson, config: Mapping[str, Any]) -> TextRules:
    found = whole.parse()
    added = _added(folder, config, found.tokens, whole)
    vocab = Vocab(found.tokens, str(whole.path), _special(folder, config), added)
    taken = _class_name(folder, config) in WHOLE and found.kind == "bert"
    settings = {**found.settings, **({} if taken else _stated(found.kind, folder, config))}
    return TextRules(str(whole.path), kind=found.kind, **settings).holding(
        vocab, TOKENIZER_JSON, found.merges, found.pieces)


def _settings(kind: str, folder: Path, config: Mapping[str, Any], whole: TokenizerJson | None) -> dict[str, Any]:
    """Of tokenizer_config.json; what it does not say, of tokenizer.json; what that does not say, the library's.

    Versions of transformers take the other steps of the one or of the other: they must be the same.
    """
    stated, found = _stated(kind, folder, config), whole.settings(kind) if whole and kind in FILES else {}
    if kind == "bert":
        usual = {"lower_case": True, "split_ideographs": True} if config else {}
        return {**usual, **found, **stated}
    return {**({"prefix_space": False} if kind == "bpe" else {}), **stated}


def _stated(kind: str, folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    out = {}
    for theirs, ours in SETTINGS.get(kind, {}).items():
        value = config.get(theirs)
        if value is not None and not isinstance(value, bool):
            raise UserError(f"{folder / TOKENIZER_CONFIG}: {theirs} is {value!r}, true or false is needed")
        if value is not None:
            out[ours] = value
    return out


def _compare(path: Path, tokens: list[str], whole: TokenizerJson) -> None:
    """`UserError` where a vocabulary file and tokenizer.json beside it give a token two ids."""
    theirs = whole.wordpiece_ids()
    if theirs is None:
        return
    mine = {token: number for number, token in enumerate(tokens)}
    odd = next((token for token in theirs if mine.get(token, theirs[token]) != theirs[token]), None)
    if odd is None and len(mine.keys() - {""}) != len(theirs.keys() - {""}):
        odd = next(iter((mine.keys() ^ theirs.keys()) - {""} - {token.content for token in whole.added()}), None)
    if odd is not None:
        raise UserError(f"{path} and {whole.path} are two vocabularies: {odd!r} is {mine.get(odd, 'not')} in the one, "
                        f"{theirs.get(odd, 'not')} in the other; take away the one that is not the model's")


# -- special and added tokens ------------------------------------------------------------------------------------------


def _special(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Role -> token, as tokenizer_config.json and special_tokens_map.json say."""
    out = {}
    for data in (_optional(folder / "special_tokens_map.json"), config):
        for role in ROLES:
            value = data.get(role)
            content = value.get("content") if isinstance(value, dict) else value
            if isinstance(content, str):
                out[role] = content
    return out


def _added(folder: Path, config: Mapping[str, Any], tokens: list[str], whole: TokenizerJson | None) -> list[AddedToken]:
    """What is looked for in the text before everything else, from all files that name such tokens."""
    maps = _optional(folder / "special_tokens_map.json")
    extra = [value for data in (maps, config) for key in ("additional_special_tokens", "extra_special_tokens")
             if isinstance(values := data.get(key), list) for value in values]
    names = {value.get("content") if isinstance(value, dict) else value for value in extra}
    names |= set(_special(folder, config).values())
    path = folder / "added_tokens.json"
    found = {content: added_token({"content": content, "special": content in names}, number, str(path))
             for content, number in _optional(path).items()}
    found |= {token.content: token for token in (whole.added() if whole else [])}
    decoder = config.get("added_tokens_decoder")
    for number, entry in (decoder if isinstance(decoder, dict) else {}).items():
        token = added_token(entry, number, str(folder / TOKENIZER_CONFIG))
        found[token.content] = token
    known = {token: number for number, token in enumerate(tokens)}
    behind = max([len(tokens) - 1, *(token.id for token in found.values())])
    for value in extra:
        content = value.get("content") if isinstance(value, dict) else value
        if content not in found:
            behind += content not in known
            token = added_token(value, known.get(str(content), behind), str(folder / TOKENIZER_CONFIG))
            found[token.content] = token
    return sorted(found.values(), key=lambda token: token.id)


def _read(path: Path) -> dict[str, Any]:
    return read_object(path, "tokenizer file")


def _optional(path: Path) -> dict[str, Any]:
    return _read(path) if path.is_file() else {}
