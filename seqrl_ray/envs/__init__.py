"""The environment doors: everything that steps, behind one contract (`seqrl_ray.types_env.VectorEnv`).

`make.make_env` opens a door from a recipe's `[env]` table; `check.check_env` runs the contract on anyone's
environment. Nothing is imported or started here: simulators load when an environment of their kind is made.
"""
