"""Keys that make `classic/cartpole` a run of a second or two."""

SMALL = (
    "algorithm.hidden=[16]",
    "actors.envs_per_actor=4",
    "actors.fragment_steps=8",
    "replay.min_items=100",
    "replay.capacity_steps=2000",
    "replay.samples_per_insert=4.0",
    "learner.batch_size=16",
    "learner.updates_per_call=4",
    "stop.env_steps=4000",
)
