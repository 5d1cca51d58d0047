"""From a pre-trained language model to an embedder (Section 3 of the paper): mean pooling, a projection, LoRA.

Notable here:

- whether a model attends in both directions is not looked up but tried: a later token must change an earlier state,
  with padding and without. A causal model is switched by its own configuration, and tried again; one that cannot be
  switched is refused;
- so what makes it bidirectional stands in ``config.json``, and sentence-transformers alone loads the same model;
- the chat template of an instruct model is not for texts to be embedded; that stands in the saved model, too;
- the projection begins as an isometry, and LoRA as zero: neither changes a cosine before it is trained.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gecko.config.training import BackboneConfig
from gecko.core.errors import ConfigError
from gecko.weights.files import hub_commit

if TYPE_CHECKING:
    import torch
    from peft import LoraModel
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer

# How a configuration says that attention goes both ways; the first one that the model knows or heeds is used.
_SWITCHES: dict[str, bool] = {"use_bidirectional_attention": True, "is_causal": False}

# Otherwise every text is put into the chat template of a model that has one, and is cut behind its preamble.
_TEXT_ONLY: Any = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}


def load_backbone(
    target: str, config: BackboneConfig | None = None, seed: int = 0, *, weights: bool = True
) -> "SentenceTransformer":
    """Load an embedder, or make one of a language model, in float32, running none of its repository's code.

    A language model becomes a transformer that attends both ways, the mean over its tokens, padding left out, and, if
    ``config`` asks for it, a linear layer. An embedder is taken as it is, with a linear layer added in front of its
    final norm if it asks for a width that the model does not have.

    Args:
        target: a folder or a name on the hub.
        config: what to build; none: nothing beyond what is needed.
        seed: of the projection.
        weights: read them; without, the model can embed nothing, and whether it attends both ways is not tried.

    Raises:
        ConfigError: the model is causal and stays so, has no padding token, or has its projection already.
        OSError: it cannot be found or read, and so do ValueError and RuntimeError.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from sentence_transformers.util.file_io import is_sentence_transformer_model

    config = config or BackboneConfig()
    loading: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32}
    if not weights:
        loading["device_map"] = "meta"
    here = Path(target)
    revision = None if here.is_dir() else hub_commit(target) or None  # the commit that the model's identity names
    made = (here / "modules.json").exists() if here.is_dir() else is_sentence_transformer_model(target)
    if made:
        model = SentenceTransformer(target, revision=revision, trust_remote_code=False, model_kwargs=loading)
    else:
        transformer = _transformer(target, revision, loading, config)
        pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
        # Without weights there is nothing to move.
        model = SentenceTransformer(modules=[transformer, pooling], device=None if weights else "meta")
    if config.projection is not None and config.projection != model.get_embedding_dimension():
        _project(model, config, target, seed)
    return model


def _transformer(target: str, revision: str | None, loading: dict[str, Any], config: BackboneConfig) -> "Transformer":
    from sentence_transformers.base.modules import Transformer

    pinned = {} if revision is None else {"revision": revision}
    module: Transformer = Transformer(
        target,
        model_kwargs={**loading, **pinned, "trust_remote_code": False},
        config_kwargs=pinned,
        processor_kwargs=pinned,
        modality_config=_TEXT_ONLY,
        module_output_name="token_embeddings",
    )
    tokenizer: Any = module.tokenizer
    if config.pad_token:
        if config.pad_token not in tokenizer.get_vocab():
            raise ConfigError(
                f"{config.SECTION}.pad_token = {config.pad_token!r}: no token of {target}; its end token is "
                f"{tokenizer.eos_token!r}"
            )
        tokenizer.pad_token = config.pad_token
    if tokenizer.pad_token is None:
        token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        raise ConfigError(
            f"model {target} has no padding token, so texts of different lengths make no batch. Name a token of its "
            f"vocabulary, for example with {config.SECTION}.pad_token = {token!r} in a run, --pad-token {token!r} for "
            'gecko eval, or elsewhere as "pad_token" in the model\'s tokenizer_config.json; padding is not attended to'
        )
    tokenizer.padding_side = "right"
    if module.model.device.type != "meta":
        _attend_both_ways(module.model, target)
    return module


def _attend_both_ways(model: Any, target: str) -> None:
    """Switch a causal model to attention in both directions, in its configuration.

    Raises ConfigError: its attention stays causal, or its saved configuration would forget the switch.
    """
    if attends_both_ways(model):
        return
    layers = [module for module in model.modules() if hasattr(module, "is_causal")]
    before = [module.is_causal for module in layers]
    for name, value in _SWITCHES.items():
        if name != "is_causal" and not hasattr(model.config, name):
            continue
        old = getattr(model.config, name, True)
        setattr(model.config, name, value)
        for module in layers:  # some models read the first switch when the layers are made
            module.is_causal = False
        kept = type(model.config).from_dict(model.config.to_dict())
        if attends_both_ways(model) and getattr(kept, name, None) is value:
            return
        setattr(model.config, name, old)
        for module, causal in zip(layers, before, strict=True):
            module.is_causal = causal
    raise ConfigError(
        f"model {target} ({type(model).__name__}) attends to earlier tokens only, and no setting of its own changes "
        "that; a model that is reloaded would not be the one that was trained. Take an encoder, or a language model "
        "such as Llama, Qwen2, Qwen3, Gemma or SmolLM2"
    )


def attends_both_ways(model: Any) -> bool:
    """Whether a later token changes an earlier state of a transformers model, with and without padding behind it."""
    import torch

    vocabulary = int(model.config.get_text_config().vocab_size)
    tokens = torch.arange(2, 10).remainder(vocabulary).repeat(2, 1)  # (2, 8)
    tokens[1, 5] = 1
    tokens = tokens.to(model.device)
    training = model.training
    model.eval()

    def changes(mask: torch.Tensor) -> bool:
        with torch.no_grad():
            first, second = (
                model(input_ids=row[None, : len(mask)], attention_mask=mask[None]).last_hidden_state[0, 0]
                for row in tokens
            )  # (D,)
        return bool((first - second).abs().max() > 1e-6 * first.abs().max())

    whole = torch.ones(6, dtype=torch.long, device=tokens.device)
    both = changes(whole) and changes(torch.cat([whole, torch.zeros_like(whole[:2])]))
    model.train(training)
    return both


def _project(model: "SentenceTransformer", config: BackboneConfig, target: str, seed: int) -> None:
    """Put a linear layer of ``config.projection`` numbers behind the pooling."""
    import torch
    from sentence_transformers.base.modules import Dense

    full, width = model.get_embedding_dimension(), config.projection
    assert full is not None and width is not None
    if any(isinstance(module, Dense) for module in model):
        raise ConfigError(
            f"{config.SECTION}.projection = {width}, but {target} has a projection to {full} numbers already; leave it unset"
        )
    layer = Dense(full, width, bias=False, activation_function=torch.nn.Identity())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.nn.init.orthogonal_(layer.linear.weight)
    after = [name for name, module in model.named_children() if type(module).__name__ == "Pooling"]
    place = 1 + max((int(name) for name in after), default=len(model) - 1)
    modules = list(model.children())
    modules.insert(place, layer.to(model.device))
    for index, module in enumerate(modules):
        model._modules[str(index)] = module


def add_lora(model: "SentenceTransformer", config: BackboneConfig, seed: int) -> "LoraModel":
    """Freeze the transformer's weights and put low-rank updates beside its linear layers; what is returned merges them.

    Raises ConfigError: peft is not installed.
    """
    import torch

    try:
        from peft import LoraConfig, LoraModel
    except ImportError as error:
        raise ConfigError(f"{config.SECTION}.lora_rank needs peft: pip install 'gecko-embed[lora]'") from error
    transformer: Any = model.transformers_model
    linear = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=sorted(name for name in linear if not name.startswith("pooler")),
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LoraModel(transformer, lora, "default")


def merge_lora(lora: "LoraModel") -> None:
    """Add the low-rank updates to the weights beside which they stand, and take them away."""
    lora.merge_and_unload().requires_grad_(True)


def trained_weights(model: "SentenceTransformer") -> "dict[str, torch.Tensor]":
    """The weights that training changes, by name."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
