"""Backbones of each architecture, tiny and random: both directions, padding, projection, LoRA, and a plain reload."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gecko.config.training import BackboneConfig
from gecko.core.errors import ConfigError
from gecko.encoder import load_encoder, save_model
from gecko.encoder.build import add_lora, attends_both_ways, load_backbone, merge_lora, trained_weights
from gecko.encoder.encode import pooled_in_float32
from gecko.encoder.encoder import load_outline
from gecko.encoder.save import most_positions, window_of

WORDS = "a river stone bread light engine garden winter copper signal task query title text none search result : |"
TEXTS = [
    "task: search result | query: river stone",
    "title: none | text: bread light engine garden winter copper signal",
]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
ENCODERS = ["bert", "mpnet", "modernbert", "t5"]
CAUSAL = ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"]


def config_of(kind, vocabulary):
    import transformers

    small = {**SMALL, "vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    decoder = {**small, "num_key_value_heads": 2, "head_dim": 8}
    match kind:
        case "bert":
            return transformers.BertModel(transformers.BertConfig(**small))
        case "mpnet":
            return transformers.MPNetModel(transformers.MPNetConfig(**{**small, "pad_token_id": 1}))
        case "modernbert":
            more = {"cls_token_id": 1, "sep_token_id": 2, "reference_compile": False}
            return transformers.ModernBertModel(transformers.ModernBertConfig(**small, **more))
        case "t5":
            t5 = transformers.T5Config(vocab_size=vocabulary, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
            return transformers.T5ForConditionalGeneration(t5)
        case "gpt2":
            return transformers.GPT2LMHeadModel(
                transformers.GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4)
            )
        case "gemma3":
            return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**decoder, sliding_window=4))
        case "gemma2":
            return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**decoder, sliding_window=4))
        case _:
            name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma": "Gemma"}[kind]
            made = getattr(transformers, f"{name}Config")(**decoder)
            return getattr(transformers, f"{name}ForCausalLM")(made)


def tokenizer_of(pad="<pad>"):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS.split()])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=pad, eos_token="</s>", unk_token="<unk>", padding_side="left"
    )


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """The folder of a raw language model of some architecture, as transformers saves it."""
    made = {}

    def make(kind, pad="<pad>"):
        if (kind, pad) not in made:
            folder = tmp_path_factory.mktemp(kind)
            tokenizer = tokenizer_of(pad)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = config_of(kind, len(tokenizer))
                for weight in model.parameters():
                    if weight.ndim > 1:
                        torch.nn.init.normal_(weight, std=0.2)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[kind, pad] = folder
        return made[kind, pad]

    return make


def vectors(model, texts):
    with torch.no_grad():
        return model.encode(texts, batch_size=len(texts), convert_to_numpy=True)


@pytest.mark.parametrize("kind", [*ENCODERS, *CAUSAL])
def test_every_architecture_reads_both_ways_and_not_its_padding(raw, kind):
    from transformers import AutoModel

    folder = raw(kind)
    if kind in CAUSAL:
        assert not attends_both_ways(AutoModel.from_pretrained(folder).eval())  # else the test below says nothing
    model = load_backbone(str(folder)).eval()
    assert attends_both_ways(model.transformers_model)
    assert model.tokenizer.padding_side == "right"
    assert model.transformers_model.dtype == torch.float32
    together, alone = vectors(model, TEXTS), np.concatenate([vectors(model, [text]) for text in TEXTS])
    assert np.abs(together).max() > 1e-2
    np.testing.assert_allclose(together, alone, atol=1e-5 * np.abs(together).max())


@pytest.mark.parametrize("kind", [*ENCODERS, *CAUSAL])
def test_an_outline_says_what_the_model_reads_and_reads_no_weights(raw, kind, tmp_path):
    model = load_backbone(str(raw(kind)))
    model.max_seq_length = 24
    save_model(model, tmp_path / kind, "unified")
    for spec in (str(raw(kind)), str(tmp_path / kind)):
        whole, outline = load_encoder(spec), load_outline(spec)
        for found in (
            lambda one: (one.form, one.dim, one.model.prompts),
            lambda one: (window_of(one.model), most_positions(one.model)),
            lambda one: [one.model.tokenizer(text)["input_ids"] for text in ("", *TEXTS)],
        ):
            assert found(outline) == found(whole)
        assert {weight.device.type for weight in outline.model.parameters()} == {"meta"}


@pytest.mark.parametrize("kind", [*ENCODERS, *CAUSAL])
def test_once_saved_every_state_follows_from_every_token_and_from_no_padding(raw, kind, tmp_path):
    from sentence_transformers import SentenceTransformer

    save_model(load_backbone(str(raw(kind))), tmp_path / kind, "unified")
    inner = SentenceTransformer(str(tmp_path / kind), device="cpu").transformers_model.eval()
    mask = torch.tensor([[1] * 7 + [0] * 2])
    tokens = inner.get_input_embeddings()(torch.arange(4, 13)[None]).detach().requires_grad_()  # (1, 9, D)
    states = inner(inputs_embeds=tokens, attention_mask=mask).last_hidden_state[0]  # (9, D)
    # not the sum of a state's numbers: a norm keeps that the same
    direction = torch.randn(states.shape[1], generator=torch.Generator().manual_seed(0))
    for state in states[:7]:
        (gradient,) = torch.autograd.grad(state @ direction, tokens, retain_graph=True)
        assert (gradient[0, :7].abs().amax(dim=1) > 0).all()
        assert not gradient[0, 7:].any()


def test_pooling_is_the_mean_of_the_states(raw):
    model = load_backbone(str(raw("llama"))).eval()
    features = model.preprocess(TEXTS[:1])
    states = model.transformers_model(**{name: features[name] for name in ("input_ids", "attention_mask")})
    expected = states.last_hidden_state[0].mean(dim=0)
    np.testing.assert_allclose(vectors(model, TEXTS[:1])[0], expected.detach().numpy(), rtol=1e-4, atol=1e-6)


# Loads a model where gecko cannot be imported.
PLAIN = """
    import json, sys
    import numpy as np
    sys.modules["gecko"] = None
    from sentence_transformers import SentenceTransformer
    answers = {}
    for folder in sys.argv[2:]:
        model = SentenceTransformer(folder, device="cpu")
        answers[folder] = [model.encode(json.loads(sys.argv[1])).tolist(), model.get_embedding_dimension()]
    assert not [name for name in sys.modules if name.startswith("gecko.")]
    print(json.dumps(answers))
"""


def test_sentence_transformers_alone_gives_the_same_vectors(raw, tmp_path):
    expected = {}
    for kind in (*ENCODERS, *CAUSAL):
        model = load_backbone(str(raw(kind)), BackboneConfig(projection=48)).eval()
        folder = tmp_path / kind
        save_model(model, folder, "unified", [48, 16])
        saved = json.loads((folder / "config_sentence_transformers.json").read_text())
        assert saved["matryoshka_dimensions"] == [48, 16]
        assert saved["prompts"]["document"] == "title: none | text: "
        expected[str(folder)] = vectors(model, TEXTS)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PLAIN), json.dumps(TEXTS), *expected],
        env={**environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    for folder, (found, width) in answers.items():
        assert width == 48
        np.testing.assert_allclose(found, expected[folder], atol=1e-5 * np.abs(expected[folder]).max())
        assert load_encoder(folder).form == "unified"


def test_the_chat_template_of_an_instruct_model_is_not_put_around_texts(raw, tmp_path):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    expected = vectors(load_backbone(str(raw("llama"))).eval(), TEXTS)
    chat = tmp_path / "chat"
    shutil.copytree(raw("llama"), chat)
    tokenizer = AutoTokenizer.from_pretrained(chat)
    tokenizer.chat_template = "{% for message in messages %}river stone {{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(chat)
    model = load_backbone(str(chat)).eval()
    np.testing.assert_array_equal(vectors(model, TEXTS), expected)
    save_model(model, tmp_path / "saved", "unified")
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert again.tokenizer.chat_template  # it is still there, and still not used
    np.testing.assert_allclose(vectors(again, TEXTS), expected, atol=1e-6)
    templated = SentenceTransformer(str(chat), device="cpu")  # what is made without care: the test is not vacuous
    assert "message" in templated[0].modality_config


def test_a_projection_changes_no_cosine_before_it_is_trained(raw):
    bare = load_backbone(str(raw("llama"))).eval()
    wide = load_backbone(str(raw("llama")), BackboneConfig(projection=48), seed=5).eval()
    assert wide.get_embedding_dimension() == 48
    for model in (bare, wide):
        one, two = (vector / np.linalg.norm(vector) for vector in vectors(model, TEXTS))
        assert one @ two == pytest.approx(np.dot(*(v / np.linalg.norm(v) for v in vectors(bare, TEXTS))), abs=1e-5)
    again = load_backbone(str(raw("llama")), BackboneConfig(projection=48), seed=5).eval()
    other = load_backbone(str(raw("llama")), BackboneConfig(projection=48), seed=6).eval()
    assert np.array_equal(vectors(again, TEXTS), vectors(wide, TEXTS))
    assert not np.allclose(vectors(other, TEXTS), vectors(wide, TEXTS))


def test_an_embedder_keeps_its_norm_last_and_gets_one_projection(tmp_path):
    from sentence_transformers.base.modules import Dense, Normalize

    from gecko.encoder import resolve_model

    model = load_backbone(resolve_model("minilm"), BackboneConfig(projection=512))
    assert [type(module) for module in model][-2:] == [Dense, Normalize]
    assert np.linalg.norm(vectors(model, TEXTS), axis=1) == pytest.approx(1, abs=1e-5)
    model.save_pretrained(str(tmp_path / "wide"), create_model_card=False)
    again = load_backbone(str(tmp_path / "wide"), BackboneConfig(projection=512))  # stage 2 after stage 1
    assert sum(isinstance(module, Dense) for module in again) == 1
    with pytest.raises(ConfigError, match="has a projection to 512 numbers already"):
        load_backbone(str(tmp_path / "wide"), BackboneConfig(projection=256))


def test_lora_trains_little_begins_as_nothing_and_is_merged(raw, tmp_path):
    pytest.importorskip("peft")
    model = load_backbone(str(raw("qwen2")))
    before, weights = vectors(model.eval(), TEXTS), sum(weight.numel() for weight in model.parameters())
    lora = add_lora(model, BackboneConfig(lora_rank=2), seed=1)
    np.testing.assert_allclose(vectors(model, TEXTS), before, atol=1e-5)
    trained = trained_weights(model)
    assert 0 < sum(weight.numel() for weight in trained.values()) < weights / 3
    assert all("lora" in name for name in trained)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(0), std=0.1)
    changed = vectors(model, TEXTS)
    assert np.abs(changed - before).max() > 1e-2
    merge_lora(lora)
    assert not any("lora" in name for name, _ in model.named_parameters())
    np.testing.assert_allclose(vectors(model, TEXTS), changed, atol=1e-4)
    save_model(model, tmp_path / "merged", "unified")
    assert not list((tmp_path / "merged").glob("adapter*"))
    np.testing.assert_allclose(vectors(load_encoder(str(tmp_path / "merged")).model, TEXTS), changed, atol=1e-4)


def test_a_model_without_padding_token_is_refused_until_one_is_named(raw):
    folder = str(raw("llama", pad=None))
    with pytest.raises(ConfigError, match="has no padding token.*train.backbone.pad_token = '</s>'"):
        load_backbone(folder)
    with pytest.raises(ConfigError, match="'<nothing>': no token"):
        load_backbone(folder, BackboneConfig(pad_token="<nothing>"))
    model = load_backbone(folder, BackboneConfig(pad_token="</s>")).eval()
    together, alone = vectors(model, TEXTS), np.concatenate([vectors(model, [text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5 * np.abs(together).max())


def test_a_model_that_stays_causal_is_refused(raw, monkeypatch):
    monkeypatch.setattr("gecko.encoder.build.attends_both_ways", lambda _: False)
    with pytest.raises(ConfigError, match="LlamaModel.* attends to earlier tokens only"):
        load_backbone(str(raw("llama")))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "modernbert"])
def test_a_bfloat16_copy_keeps_the_rotary_frequencies(raw, kind):
    model = load_backbone(str(raw(kind)))
    twin = pooled_in_float32(model, torch.bfloat16)
    assert {weight.dtype for weight in twin[0].parameters()} == {torch.bfloat16}
    kept, found = dict(model[0].named_buffers()), dict(twin[0].named_buffers())
    assert any("inv_freq" in name for name in kept)
    assert all(torch.equal(kept[name], found[name]) and kept[name].dtype == found[name].dtype for name in kept)
    assert twin.encode(["one two"])[0].dtype.name == "float32"
    assert {weight.dtype for weight in model[0].parameters()} == {torch.float32}


def test_positions_are_counted_from_behind_the_paddings_number():
    import transformers

    shape = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    for kind, offset in (("Bert", 0), ("Roberta", 2)):
        config = getattr(transformers, f"{kind}Config")(**shape, intermediate_size=8, max_position_embeddings=22)
        body = getattr(transformers, f"{kind}Model")(config)
        holder = torch.nn.Module()
        holder.model = body
        held = SimpleNamespace(transformers_model=body, named_modules=holder.named_modules)
        assert most_positions(held) == 22 - offset
    bare = SimpleNamespace(transformers_model=None, named_modules=torch.nn.Linear(2, 2).named_modules)
    assert most_positions(bare) is None
