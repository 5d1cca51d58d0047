"""A model of two towers: one transformer for queries, another for passages, as a Router of sentence-transformers.

The task chooses the tower; a text without a task is a passage.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gecko.core.errors import ConfigError
from gecko.core.files import read_json, write_json
from gecko.encoder.spec import TOWER, model_identity, resolve_model

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Side = Literal["query", "document"]
SIDES: tuple[Side, ...] = ("query", "document")


def two_towers(queries: "SentenceTransformer", passages: "SentenceTransformer") -> "SentenceTransformer":
    """One model of two, with the saved prompts of that of the queries.

    Raises ConfigError: one of them has two towers already.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router

    if has_two_towers(queries) or has_two_towers(passages):
        raise ConfigError("a model of two towers cannot become a tower; give the model that it was trained from")
    towers: dict[str, Any] = {"query": list(queries), "document": list(passages)}
    router = Router(towers, default_route="document")
    model = SentenceTransformer(modules=[router], device=str(queries.device))
    model.prompts, model.default_prompt_name = {**queries.prompts}, queries.default_prompt_name
    return model


def has_two_towers(model: "SentenceTransformer") -> bool:
    """Whether queries and passages run through transformers of their own."""
    from sentence_transformers.base.modules import Router

    return isinstance(model[0], Router)


def tower(model: "SentenceTransformer", side: Side) -> "SentenceTransformer":
    """The model of one side, with the prompts of all; of a model of one tower, the model itself.

    Raises ConfigError: the model is a router of other things than queries and passages.
    """
    from sentence_transformers import SentenceTransformer

    if not has_two_towers(model):
        return model
    routes: Any = model[0].sub_modules
    if set(routes) != set(SIDES):
        raise ConfigError(
            f"a model with the routes {', '.join(routes)}; Gecko runs routers of query and document alone"
        )
    one = SentenceTransformer(modules=[*routes[side], *list(model)[1:]], device=str(model.device))
    one.prompts, one.default_prompt_name = {**model.prompts}, model.default_prompt_name
    return one


def name_passages(folder: Path, start: str) -> None:
    """Have a saved model of two towers say which model made its passage tower, so that an index of that one serves it."""
    file = folder / "config_sentence_transformers.json"
    write_json(file, {**read_json(file), TOWER: model_identity(start)})


def passage_identity(spec: str) -> str:
    """What a model's passage vectors are known by: :func:`gecko.encoder.model_identity`, that of the start for two towers."""
    file = Path(resolve_model(spec)) / "config_sentence_transformers.json"
    config = read_json(file) if file.is_file() else {}
    found: str = config.get(TOWER) or model_identity(spec)
    return found
