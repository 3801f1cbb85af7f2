"""The Python client: storage, embeddings, and the named rules they are opened with."""
