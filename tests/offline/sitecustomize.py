"""Runs at the start of every Python that the tests start: conftest.py puts this folder on PYTHONPATH."""

import offline

offline.forbid([])
