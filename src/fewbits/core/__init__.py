"""No domain: errors, codec, digests, units, atomic files, child processes."""
