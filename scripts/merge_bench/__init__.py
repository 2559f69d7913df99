"""What `scripts/bench_merge.py` is made of."""
