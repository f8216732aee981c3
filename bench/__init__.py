"""Benchmarks against peers. Never part of the tests: a timing says nothing about being right."""
