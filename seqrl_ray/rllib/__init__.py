"""The bridge to RLlib: its algorithms on our environments, with our run folder, evaluation and sweeps.

A room of its own, because it is the only one that imports RLlib (seconds, and a great many names); the others
know an algorithm of RLlib's by its name alone. `docs/rllib.md` says what works and what does not.
"""

import logging

import ray.rllib  # noqa: F401  # sets the levels that are set again below

# In every process of a run: RLlib announces its own deprecations, and an API that has long been its default.
for _name in ("ray.rllib", "ray._common.deprecation"):
    logging.getLogger(_name).setLevel(logging.ERROR)
