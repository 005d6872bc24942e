"""What lies on the disk: the run folder, checkpoints, encoders, published weights."""
