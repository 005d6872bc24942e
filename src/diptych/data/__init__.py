"""Images: from a path to uint8 squares."""
