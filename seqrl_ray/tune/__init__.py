"""Sweeps: many runs searched over hyper-parameters, on Ray Tune. What `seqrl tune` does."""
