"""Benchmarks: machine ceilings, one-batch, offline and serving runs, reports."""
