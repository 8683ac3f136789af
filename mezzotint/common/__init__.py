"""What every package shares: storage, files, digests, keyed random generators, locks, errors."""
