"""Serving: a run's policy over HTTP. All but `app.py` and `launch.py` is plain Python without Ray."""
