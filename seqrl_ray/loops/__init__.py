"""What runs here in one process is the reference for what runs in many: rollout, training, judging, run
folders.
"""
