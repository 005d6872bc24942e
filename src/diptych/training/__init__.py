"""Pretraining: the loop, optimizers, schedules, what is watched meanwhile."""
