"""An embedding model over HTTP: OpenAI's and Google's embedding APIs, and a page to try it on."""

from gecko.serving.config import ServeConfig, make_serve_config

__all__ = ["ServeConfig", "make_serve_config"]
