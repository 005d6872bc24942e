"""A trained encoder at work: evaluation, embeddings, classifiers."""
