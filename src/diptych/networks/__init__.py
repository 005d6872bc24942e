"""Encoders, projectors and their layers, and an encoder applied to images."""
