"""Encoders, projectors and their layers, and the embedding of images by an encoder."""
