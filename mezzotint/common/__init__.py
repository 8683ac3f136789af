"""Shared by all packages: storage, files, digests, keyed random generators, locks, errors."""
