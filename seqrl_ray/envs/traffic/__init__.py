"""The traffic environment: every signal of a SUMO district, stepped together through libsumo.

`env.TrafficEnv` is the door; nothing of SUMO is imported until one is built.
"""
