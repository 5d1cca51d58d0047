import json
from pathlib import Path
from typing import Any

import pytest

from gecko.config.gone import GONE_KEYS
from gecko.config.load import (
    change_config,
    changed_keys,
    known_keys,
    load_config,
    make_config,
    override,
    with_former_defaults,
)
from gecko.config.run import PRESETS, RunConfig, parse_budget
from gecko.config.stages import CorpusConfig
from gecko.core.errors import ConfigError
from gecko.core.files import digest

DICTS = ("generate.variables", "pretrain.tasks", "pretrain.weights")


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("mine.nn", "mine.n"),
        ("train.loss.temprature", "train.loss.temperature"),
        ("select.fussion", "select.fusion"),
        ("generate.querys", "generate.queries"),
        ("bugdet", "budget"),
        ("selct", "select"),
        ("trian", "train"),
    ],
)
def test_unknown_key_names_a_near_match(key: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[f"{key}=1"])
    assert f"unknown key {key}; did you mean {near}?" in str(caught.value)


def test_unknown_key_without_a_neighbour_lists_the_sections() -> None:
    with pytest.raises(ConfigError, match=r"unknown key zzzzzzzzzz; known sections: .*corpus, generate, .*train"):
        load_config(overrides=["zzzzzzzzzz=1"])


def test_unknown_key_of_a_recipe_names_the_file(tmp_path: Path) -> None:
    path = recipe(tmp_path, "[train.loss]\nsame_towers = true\nhardnes = 2.0\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    lines = str(caught.value).splitlines()
    assert sorted(lines) == [
        f"{path}: unknown key train.loss.hardnes; did you mean train.loss.hardness?",
        f"{path}: unknown key train.loss.same_towers; did you mean train.loss.same_tower?",
    ]


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("mine.n=1", "mine.n", "1"),
        ("mine.n=many", "mine.n", "'many'"),
        ("mine=3", "mine", "3"),
        ("select.fusion=sum", "select.fusion", "'sum'"),
        ("train.formats=[]", "train.formats", "[]"),
        ('train.formats=["plain"]', "train.formats.0", "'plain'"),
        ("train.learning_rate=0", "train.learning_rate", "0"),
        ("train.learning_rate=nan", "train.learning_rate", "nan"),
        ("select.min_rc=nan", "select.min_rc", "nan"),
        ("generate.temperature=inf", "generate.temperature", "inf"),
        ("generate.heldout=1", "generate.heldout", "1"),
        ("generate.top_p=0", "generate.top_p", "0"),
        ("seed=-1", "seed", "-1"),
    ],
)
def test_bad_values_name_key_and_value(text: str, key: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[text])
    assert f"the settings: {key} = {value}: " in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=10", 10),
        ("a.b=1e-4", 1e-4),
        ("a.b=true", True),
        ("a.b=[1, 2]", [1, 2]),
        ('a.b=["x", "y"]', ["x", "y"]),
        ('a.b="10"', "10"),
        ("a.b=null", None),
        ('a.b="none"', "none"),
        ("a.b= null ", None),
        ("a.b=20m", "20m"),
        ("a.b=hf:some/Model-1.5B", "hf:some/Model-1.5B"),
        ("a.b=openai:http://host/v1#model=x", "openai:http://host/v1#model=x"),
        ("a.b=", ""),
        (" a.b =5", 5),
    ],
)
def test_set(text: str, value: Any) -> None:
    assert override({}, [text]) == {"a": {"b": value}}


@pytest.mark.parametrize("text", ["mine.n", "=3", "mine.=3", "Mine.n=3", "mine n=3", ".n=3", "1=2"])
def test_set_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write it as section\.key=value"):
        override({}, [text])


def test_set_goes_in_order_and_leaves_its_input_alone() -> None:
    given = {"mine": {"n": 5}, "seed": 1}
    assert override(given, ["mine.n=6", "mine.n=7", "mine.warmup_epochs=2"]) == {
        "mine": {"n": 7, "warmup_epochs": 2},
        "seed": 1,
    }
    assert given == {"mine": {"n": 5}, "seed": 1}


def test_layers(tmp_path: Path) -> None:
    path = recipe(tmp_path, 'preset = "paper"\nseed = 3\n[mine]\nn = 11\n[generate]\nqueries = 40\n')
    alone = load_config(path)
    assert (alone.preset, alone.seed, alone.mine.n, alone.generate.queries) == ("paper", 3, 11, 40)
    assert alone.generate.neighbourhood == 1  # the preset's, beside what the recipe says of the same section
    over = load_config(path, ["mine.n=13"], {"seed": 4, "mine": {"n": 12, "warmup_epochs": 0}})
    assert (over.seed, over.mine.n, over.mine.warmup_epochs, over.generate.queries) == (4, 13, 0, 40)
    assert load_config(path, ["preset=default"]).generate.neighbourhood == RunConfig(budget="1m").generate.neighbourhood


def test_presets() -> None:
    default, paper = load_config(), load_config(overrides=["preset=paper"])
    changed = {"corpus": {"chunk_tokens": "read"}, "lexical": {"sentences": 2000}, "train": {"min_steps": 30}}
    assert default == make_config({"budget": "20m", **changed}, "here")
    assert (paper.select.min_rc, paper.train.loss.mask_groups, paper.train.formats) == (None, False, ["unified"])
    assert paper.mine.warmup_epochs == 1
    # What the paper prescribes and no preset may change.
    for config in (default, paper):
        assert (config.select.fusion, config.select.rrf_constant, config.mine.n) == ("rrf", 0.0, 20)
        assert (config.select.positive, config.select.negative) == ("p1", "last")
        assert (config.train.loss.same_tower, config.train.loss.hard_negatives) == (True, "own")
    changed = {line.split(":")[0] for line in changed_keys(default, paper)}
    assert changed == {
        "preset",
        "generate.neighbourhood",
        "mine.warmup_epochs",
        "prompts.query_likelihood",
        "select.min_rc",
        "select.self_contained",
        "corpus.chunk_tokens",
        "lexical.sentences",
        "train.formats",
        "train.min_steps",
        "train.loss.mask_groups",
        "train.loss.unique_ids",
        "pretrain.loss.mask_groups",
    }


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pretrain.dim_weights=[0, 0.0, 0]", "pretrain.dim_weights = .*all weights are 0"),
        ("train.dim_weights=[1, -0.5]", "train.dim_weights = .*-0.5 is no weight"),
        ("train.dim_weights=[nan, 1]", "train.dim_weights"),
        ("pretrain.weights.web=-1", "pretrain.weights = .*web = -1 is no weight"),
    ],
)
def test_weights_that_weigh_nothing_are_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=[setting])


@pytest.mark.parametrize("text", ["preset=quick", 'preset=["paper"]', "preset=3"])
def test_unknown_preset(text: str) -> None:
    with pytest.raises(ConfigError, match="does not exist; choose one of: default, paper"):
        load_config(overrides=[text])


def test_unreadable_recipes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: No such file"):
        load_config(tmp_path / "nothing.toml")
    with pytest.raises(ConfigError, match=r"recipe\.toml: not valid TOML: .*line 2"):
        load_config(recipe(tmp_path, "seed = 1\nseed: 2\n"))
    (tmp_path / "recipe.toml").write_bytes(b'llm = "\xff"')
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "recipe.toml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", ("seconds", 90.0)),
        ("20m", ("seconds", 1200.0)),
        ("1.5h", ("seconds", 5400.0)),
        (" 2 h ", ("seconds", 7200.0)),
        ("300000tok", ("tokens", 300000.0)),
    ],
)
def test_budget(text: str, expected: tuple[str, float]) -> None:
    assert parse_budget(text) == expected


@pytest.mark.parametrize("text", ["", "20", "m", "0m", "-5m", "20 minutes", "1d", "1e3tok", "20m30s"])
def test_bad_budget(text: str) -> None:
    with pytest.raises(ConfigError, match="write 90s, 20m, 2h or 300000tok"):
        parse_budget(text)
    with pytest.raises(ConfigError, match="write 90s, 20m, 2h or 300000tok"):
        load_config(base={"budget": text})


def test_a_run_must_have_an_end() -> None:
    with pytest.raises(ConfigError, match=r"generate\.queries and budget are both unset"):
        load_config(overrides=["budget=null"])
    assert load_config(overrides=["budget=null", "generate.queries=10"]).budget is None
    with pytest.raises(ConfigError, match=r"mine\.model and mine\.warmup_epochs exclude each other"):
        load_config(overrides=["mine.model=minilm", "mine.warmup_epochs=1"])


def test_saved_settings_are_read_back_equal() -> None:
    for name in PRESETS:
        config = load_config(overrides=[f"preset={name}", "train.loss.false_negative_margin=0.1", "train.dims=[64,32]"])
        again = make_config(json.loads(json.dumps(config.model_dump())), "config.json")
        assert again == config
        assert changed_keys(config, again) == []


def test_changed_keys() -> None:
    old = load_config(overrides=["mine.n=10"])
    new = load_config(overrides=["mine.n=12", "llm=fake", "train.loss.hardness=2.0"])
    assert changed_keys(old, new) == [
        "llm: 'default' -> 'fake'",
        "mine.n: 10 -> 12",
        "train.loss.hardness: 0.0 -> 2.0",
    ]


def test_known_keys_are_the_keys_that_can_be_set() -> None:
    keys = known_keys()
    assert {"seed", "budget", "mine.n", "train.loss.temperature"} <= set(keys)
    assert "train.loss" not in keys
    values = load_config().model_dump()
    for key in keys:
        value: Any = values
        for part in key.split("."):
            value = value[part]
        assert not isinstance(value, dict) or key in DICTS


def test_fields_that_came_later_change_no_fingerprint_until_they_are_set() -> None:
    plain = load_config(overrides=["lexical.sentences=0"])
    for section in (plain, plain.generate, plain.select, plain.train):
        assert section.LATER
        assert not section.LATER & json.loads(section.model_dump_json()).keys()
        assert section.model_dump().keys() >= section.LATER
    given = ["generate.variables.language={en=1}", "select.task_rows=uniform", "asked.limit=7"]
    changed = load_config(overrides=given)
    assert make_config(json.loads(changed.model_dump_json()), "here") == changed
    assert make_config(json.loads(plain.model_dump_json()), "here") == plain
    for one, other in ((plain, changed), (plain.generate, changed.generate), (plain.select, changed.select)):
        assert one.model_dump_json() != other.model_dump_json()
    kept = {"temperature", "variables"}
    assert json.loads(plain.generate.model_dump_json(include=kept)).keys() == {"temperature"}
    assert json.loads(changed.generate.model_dump_json(include=kept)).keys() == kept


GONE = [
    ("rate.llm", "", "teacher", "rate = {'llm': 'teacher'}", "select.min_rc drops"),
    ("prompts.rate", "rate", "mine.toml", "prompts.rate = 'mine.toml'", "select.min_rc drops"),
    ("select.min_rating", None, 0.5, "select.min_rating = 0.5", "select.min_rc drops"),
    ("select.max_copied", None, 0.8, "select.max_copied = 0.8", "select.max_title"),
    ("select.near_jaccard", None, 0.8, "select.near_jaccard = 0.8", "corpus.near_duplicates"),
    ("select.near_cosine", None, 0.95, "select.near_cosine = 0.95", "corpus.near_duplicates"),
    ("select.flawed_weight", 0.0, 0.3, "select.flawed_weight = 0.3", "is dropped"),
    ("select.task_shares", {}, {"question": 0.5}, "select.task_shares = {'question': 0.5}", "select.task_rows"),
    ("train.loss.spread", 0.0, 0.1, "train.loss.spread = 0.1", "the temperature of the loss"),
    ("pretrain.loss.spread", 0.0, 1, "pretrain.loss.spread = 1", "temperature of the loss"),
    ("train.loss.match", 0.0, 1.0, "train.loss.match = 1.0", "train.loss.distill"),
    ("train.loss.match_model", "", "minilm", "train.loss.match_model = 'minilm'", "train.loss.distill"),
]


def written(value: Any) -> str:
    """A value in TOML, as ``--set`` reads it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {one}" for key, one in value.items()) + "}"
    return json.dumps(value)


@pytest.mark.parametrize(("key", "default", "other", "said", "instead"), GONE)
def test_a_key_that_is_gone_is_accepted_at_its_default_alone(
    tmp_path: Path, key: str, default: Any, other: Any, said: str, instead: str
) -> None:
    plain = load_config()
    *sections, name = key.split(".")

    def saved(value: Any) -> dict[str, Any]:
        values = plain.model_dump()
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
        return values

    assert make_config(saved(default), "config.json") == plain
    assert load_config(overrides=[f"{key}={written(default)}"]) == plain
    if default is not None:
        assert load_config(recipe(tmp_path, f"{key} = {written(default)}\n")) == plain
    path = recipe(tmp_path, f"{key} = {written(other)}\n")
    for place, read in (
        ("config.json", lambda: make_config(saved(other), "config.json")),
        ("the settings", lambda: load_config(overrides=[f"{key}={written(other)}"])),
        ("--set", lambda: change_config(plain, None, [f"{key}={written(other)}"])),
        (str(path), lambda: load_config(path)),
    ):
        with pytest.raises(ConfigError) as caught:
            read()
        assert str(caught.value).startswith(f"{place}: {said}: this setting is gone, leave it out; ")
        assert instead in str(caught.value)


def test_the_table_of_what_is_gone_is_tested_whole() -> None:
    paths = {"pretrain.loss": "train.loss"}
    tested = {(paths.get(section, section), key) for section, _, key in (gone[0].rpartition(".") for gone in GONE)}
    listed = {(section, key) for section, keys in GONE_KEYS.items() for key in keys}
    assert listed == {("", "rate") if one == ("rate", "llm") else one for one in tested}


def test_what_is_hashed_of_a_section_is_what_it_was_with_the_keys_that_are_gone() -> None:
    config = load_config(overrides=["preset=paper", "select.task_rows=uniform"])
    assert config.select.model_dump_json() == (
        '{"fusion":"rrf","released":[],"rrf_constant":0.0,"positive":"p1","negative":"last","negatives":1,"min_rc":null,'
        '"self_contained":false,"max_copied":null,"max_title":null,"near_jaccard":null,"near_cosine":null,'
        '"flawed_weight":0.0,"task_shares":{},"task_rows":"uniform"}'
    )
    loss = (
        '"unique_ids":false,"hard_negatives":"none","false_negative_margin":null,"hardness":0.0,"spread":0.0,'
        '"distill":0.0,"distill_candidates":null,"distill_temperature":0.5,"match":0.0,"match_model":""}'
    )
    whole = '{"temperature":0.05,"same_tower":false,"mask_groups":false,' + loss
    assert config.pretrain.loss.model_dump_json() == whole
    assert f'"loss":{whole}' in config.pretrain.model_dump_json(exclude={"sources"})
    assert config.prompts.model_dump_json() == (
        '{"generate":"generate","query_likelihood":"query_likelihood","relevance":"relevance"}'
    )
    # All of it: what a data set that is sent depends on.
    former = load_config(overrides=["corpus.chunk_tokens=null", "lexical.sentences=0"])
    assert digest(former.model_dump_json()) == "61e9338257964341"
    assert "near_cosine" not in config.model_dump()["select"]
    assert json.loads(config.select.model_dump_json(include={"max_title"})).keys() == {"max_title"}
    within = json.loads(config.model_dump_json(include={"select"}))["select"]
    assert within == json.loads(config.select.model_dump_json())


def test_a_folder_keeps_its_amount_of_work_where_none_is_named() -> None:
    def amount(saved: str, *named: str) -> tuple[str | None, int | None]:
        config = with_former_defaults(load_config(overrides=named), load_config(overrides=[saved]))
        return config.budget, config.generate.queries

    assert amount("budget=2h") == ("2h", None)
    assert amount("generate.queries=350") == (None, 350)
    assert amount("generate.queries=350", "budget=5m") == ("5m", None)
    assert amount("budget=2h", "generate.queries=7") == (None, 7)


def test_variables_may_be_listed() -> None:
    listed = load_config(overrides=['generate.variables.persona=["a nurse", "a pilot"]'])
    assert listed.generate.variables == {"persona": {"a nurse": 1.0, "a pilot": 1.0}}
    assert load_config(overrides=["generate.variables=null"]).generate.variables == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("generate.variables.who={a=-1}", "who: a = -1.0 is no weight"),
        ("generate.variables.who={a=0}", "who has no value with a weight above 0"),
        ('generate.variables.who=["{passage}"]', "without braces"),
        ('generate.variables.who=["two\\nlines"]', "one line of text"),
        ("generate.variables=3", "valid dictionary"),
        ("select.task_rows=500", "select.task_rows = 500: a number of rows is no longer taken; write 'uniform'"),
    ],
)
def test_bad_variables_and_tasks(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=[text])


def test_a_table_that_is_a_setting_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    first = load_config(None, ["generate.variables.language={en=0.7, de=0.3}", "pretrain.weights={a=0.5, b=0.5}"])
    other = change_config(first, None, ["generate.variables.language={fr=1}", "pretrain.weights={c=1}"])
    assert other.generate.variables == {"language": {"fr": 1}}
    assert other.pretrain.weights == {"c": 1}
    added = change_config(first, None, ["generate.variables.length={short=1}", "mine={n=7}"])
    assert set(added.generate.variables) == {"language", "length"}
    assert (added.mine.n, added.mine.warmup_epochs) == (7, first.mine.warmup_epochs)
    path = recipe(tmp_path, "[pretrain.weights]\nd = 1\n")
    assert change_config(first, path, ["generate.variables={}"]).pretrain.weights == {"d": 1}
    assert change_config(first, None, ["generate.variables={}"]).generate.variables == {}


@pytest.mark.parametrize("by_recipe", [True, False])
def test_another_preset_takes_the_place_of_the_runs(tmp_path: Path, by_recipe: bool) -> None:
    def changed(config: RunConfig, preset: str) -> RunConfig:
        if by_recipe:
            return change_config(config, recipe(tmp_path, f'preset = "{preset}"\n'))
        return change_config(config, None, [f"preset={preset}"])

    first = load_config(overrides=["generate.queries=50", "train.batch=32"])
    paper = load_config(overrides=["preset=paper", "generate.queries=50", "train.batch=32"])
    assert changed(first, "paper") == paper != first
    assert changed(paper, "default") == first
    own = load_config(overrides=["generate.queries=50", "train.min_steps=7"])  # not as the preset has it: it stays
    assert changed(own, "paper").train.min_steps == 7


def test_the_budget_of_a_command_holds_where_nothing_else_ends_the_run() -> None:
    assert load_config(budget="10m").budget == "10m"
    assert load_config(base={"budget": "1h"}, budget="10m").budget == "1h"
    assert load_config(overrides=["generate.queries=50"], budget="10m").budget is None


def test_paths_are_settings_as_their_text_is(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('budget = "5m"\n')
    given = {"backbone": tmp_path / "model", "corpus": {"sources": [tmp_path / "a.txt", "stdlib"]}}
    texts = {"backbone": str(tmp_path / "model"), "corpus": {"sources": [str(tmp_path / "a.txt"), "stdlib"]}}
    assert load_config(str(recipe), base=given) == load_config(recipe, base=texts)
    assert CorpusConfig(sources=[tmp_path]).sources == [str(tmp_path)]  # type: ignore[list-item]


def test_a_length_in_characters_that_is_named_is_meant(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("corpus.chunk_chars = 500")
    assert load_config().corpus.chunk_tokens == "read"
    assert load_config(overrides=["corpus.overlap=40"]).corpus.chunk_tokens == "read"
    for config in (load_config(recipe), load_config(overrides=["corpus.max_chars=900"])):
        assert config.corpus.chunk_tokens is None
    assert load_config(recipe, ["corpus.chunk_tokens=64"]).corpus.chunk_tokens == 64
    assert load_config(recipe, ["corpus.chunk_tokens=read"]).corpus.chunk_tokens == "read"
    for changed in (change_config(load_config(), recipe), change_config(load_config(), None, ["corpus.max_chars=900"])):
        assert changed.corpus.chunk_tokens is None
    assert change_config(load_config(), None, ["corpus.min_chars=9"]).corpus.chunk_tokens == "read"
    assert load_config(overrides=["preset=paper"]).corpus.chunk_tokens is None


@pytest.mark.parametrize("setting", ["student=other", "train.freeze=passages", "train.backbone.projection=8"])
def test_what_cannot_learn_bm25s_order_does_without_where_nobody_names_it(setting: str) -> None:
    more = [setting, 'train.formats=["native"]']
    assert load_config().lexical.sentences == 2000
    assert load_config(overrides=more).lexical.sentences == 0
    assert change_config(load_config(), None, more).lexical.sentences == 0
    assert load_config(overrides=[f"{setting.partition('=')[0]}=null"]).lexical.sentences == 2000
    assert load_config(overrides=["preset=paper"]).lexical.sentences == 0
    assert load_config(overrides=["train.backbone.lora_rank=8"]).lexical.sentences == 0
    with pytest.raises(ConfigError, match="lexical = 5"):
        load_config(overrides=[*more, "lexical=5"])
    with pytest.raises(ConfigError, match=r"lexical\.sentences = 90 trains the backbone"):
        load_config(overrides=[*more, "lexical.sentences=90"])


@pytest.mark.parametrize("value", ["15", "whole", "true", "-3", "[16]", "64.5"])
def test_no_length_of_a_chunk(value: str) -> None:
    with pytest.raises(
        ConfigError, match=r"corpus\.chunk_tokens = .*: write a number of tokens from 16 on, read, or null"
    ):
        load_config(overrides=[f"corpus.chunk_tokens={value}"])
