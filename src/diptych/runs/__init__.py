"""The files on the disk: run folders, checkpoints, encoder folders, published weights."""
