"""Language models as teachers: the protocol, and one file a backend."""
