"""Runs at the start of a Python that shall open an export: Diptych cannot be imported there, nor the network be reached."""

import sys

import offline

offline.forbid([])


class Hidden:
    """Refuses every import of Diptych, wherever it is installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "diptych":
            raise ModuleNotFoundError("Diptych is hidden from this process", name=name)


sys.meta_path.insert(0, Hidden())
