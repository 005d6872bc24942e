"""Uses of a trained encoder: evaluation, embeddings, classifiers."""
