"""Cluster files: what `ray up` reads, checked without a cloud."""
