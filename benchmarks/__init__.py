"""Benchmarks: they measure; the tests assert."""
